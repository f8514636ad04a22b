use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::health::Health;
use crate::order::Instruction;
use crate::registration::{Origin, Registration, Weights};

#[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
fn t0() -> Instant {
    Instant::now()
}

fn instance(service: &str, port: u16) -> Vec<u8> {
    let registration = Registration {
        id: "x".into(),
        service: service.into(),
        address: ([127, 0, 0, 1], port).into(),
        advertise: None,
        tagged_addresses: BTreeMap::new(),
        enable_tag_override: false,
        protocol: None,
        tags: vec![],
        meta: BTreeMap::new(),
        weights: Weights::default(),
        checks: vec![],
        origin: Origin::Configuration,
    };
    InstanceBody::of(&registration, &[] as &[Health], None, None).encode()
}

fn policy(timeout_s: u64) -> (String, Vec<u8>) {
    let text = format!(r#"{{"policy":{{"timeout":"{}s"}}}}"#, timeout_s + 1).into_bytes();
    (policy_key(&policy_hash(&text)), text)
}

fn instance_with(service: &str, policy: &[u8]) -> Vec<u8> {
    let plain = InstanceBody::decode(&instance(service, 1)).unwrap();
    InstanceBody { policy: Some(policy_hash(policy)), ..plain }.encode()
}

fn override_of(service: &str, issued_us: u64, until_us: u64) -> (String, Vec<u8>) {
    let subject = Subject::Override(service.into());
    let text = String::from_utf8(policy(issued_us).1).unwrap();
    let instruction = Instruction::Override(Arc::new(Published::read(&text).unwrap()));
    let order = OrderBody { instruction, issued_us, until_us, by: "host-a".into() };
    (subject.key(), order.encode())
}

fn registry(own: u64) -> Registry {
    Registry::new(own, 1, 100, 1000)
}

fn extent(node: u64, generation: u64, upto: u64) -> Extent {
    Extent { node, generation, upto }
}

fn bodies(registry: &Registry, node: u64) -> Vec<(String, Vec<u8>)> {
    let own = |(key, body): (&str, &[u8])| (key.to_owned(), body.to_vec());
    registry.record(node).map(|record| record.bodies().map(own).collect()).unwrap_or_default()
}

/// The index by service says what the records say, and the count of entries is right.
fn assert_consistent(registry: &Registry) {
    let mut listed = BTreeMap::<String, BTreeSet<(u64, Arc<str>)>>::new();
    let mut count = 0;
    for (node, record) in registry.nodes() {
        count += record.present();
        let withdrawn = record.entries.iter().filter(|(_, entry)| entry.body.is_none());
        let withdrawn = withdrawn.map(|(key, entry)| (entry.seq, Arc::clone(key)));
        assert_eq!(record.withdrawn, withdrawn.collect());
        assert!(record.withdrawn.iter().all(|(seq, _)| *seq > record.gc));
        for (key, entry) in &record.entries {
            if let Some(instance) = entry.instance() {
                listed.entry(instance.service.clone()).or_default().insert((node, Arc::clone(key)));
            }
        }
    }
    assert_eq!(registry.index.by_service, listed);
    let mut orders = BTreeMap::<Subject, BTreeMap<u64, Arc<OrderBody>>>::new();
    for (node, record) in registry.nodes() {
        for (subject, order) in record.orders() {
            orders.entry(subject.clone()).or_default().insert(node, Arc::clone(order));
        }
    }
    assert_eq!(registry.index.orders, orders);
    assert_eq!(registry.present, count);
}

#[test]
fn a_delta_on_a_missing_base_is_a_gap_and_the_answer_closes_it() {
    let mut owner = registry(1);
    let mut other = registry(2);
    owner.write(t0(), "a", Some(instance("a", 1)));
    let first = owner.delta_for(extent(1, 1, 0)).unwrap();
    owner.write(t0(), "b", Some(instance("b", 2)));
    let second = owner.delta_for(extent(1, 1, 1)).unwrap();
    assert_eq!(other.apply(second.clone()), Applied::Gap(extent(1, 1, 0)));
    assert!(matches!(other.apply(first), Applied::Changed(_)));
    assert!(matches!(other.apply(second.clone()), Applied::Changed(Changes { base: 1, .. })));
    assert_eq!(other.apply(second), Applied::Unchanged);
    assert_eq!(bodies(&other, 1), bodies(&owner, 1));
}

#[test]
fn a_newer_generation_replaces_everything_and_an_older_one_is_ignored() {
    let mut other = registry(2);
    let mut old = registry(1);
    old.write(t0(), "a", Some(instance("a", 1)));
    old.write(t0(), "b", Some(instance("b", 2)));
    let old_delta = old.delta_for(extent(1, 0, 0)).unwrap();
    other.apply(old_delta.clone());
    let mut new = Registry::new(1, 2, 100, 1000);
    new.write(t0(), "c", Some(instance("c", 3)));
    let Applied::Changed(changes) = other.apply(new.delta_for(extent(1, 0, 0)).unwrap()) else {
        panic!("not taken")
    };
    assert_eq!(changes.services, BTreeSet::from(["a".into(), "b".into(), "c".into()]));
    assert_eq!(bodies(&other, 1), bodies(&new, 1));
    assert_eq!(other.apply(old_delta), Applied::Unchanged);
    assert_consistent(&other);
}

#[test]
fn a_record_belongs_to_its_owner() {
    let mut owner = registry(1);
    owner.write(t0(), "a", Some(instance("a", 1)));
    let mut forged = registry(1);
    for _ in 0..3 {
        forged.write(t0(), "a", Some(instance("evil", 1)));
        forged.write(t0(), "a", None);
    }
    let before = bodies(&owner, 1);
    assert_eq!(owner.apply(forged.delta_for(extent(1, 0, 0)).unwrap()), Applied::OwnIsBehind(1));
    assert_eq!(owner.bury(t0(), 1, 7), Applied::OwnIsBehind(7));
    assert_eq!(bodies(&owner, 1), before);
    assert!(owner.jump(8));
    assert!(!owner.jump(8), "never back, never the same");
    assert_eq!(bodies(&owner, 1), before);
    assert_eq!(owner.bury(t0(), 1, 7), Applied::Unchanged);
}

#[test]
fn the_buried_do_not_rise() {
    let t0 = t0();
    let mut owner = registry(1);
    owner.write(t0, "a", Some(instance("a", 1)));
    let delta = owner.delta_for(extent(1, 0, 0)).unwrap();
    let mut other = registry(2);
    other.apply(delta.clone());
    assert!(matches!(other.bury(t0, 1, 1), Applied::Changed(c) if c.services.contains("a")));
    assert_eq!(other.apply(delta.clone()), Applied::Unchanged);
    assert!(other.wants(&[extent(1, 1, 5)]).is_empty());
    assert_eq!(other.wants(&[extent(1, 2, 5)]), [extent(1, 2, 0)]);
    other.expire(t0 + TOMBSTONE_KEPT, 0);
    assert!(
        matches!(other.apply(delta), Applied::Changed(_)),
        "after a day nobody has it any more"
    );
    assert_consistent(&other);
}

#[test]
fn a_host_that_stays_down_is_buried_after_an_hour() {
    let t0 = t0();
    let mut owner = registry(1);
    owner.write(t0, "a", Some(instance("a", 1)));
    let mut other = registry(2);
    other.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    other.set_down(1, Some(t0));
    assert_eq!(other.expire(t0 + DOWN_KEPT - Duration::from_secs(1), 0), Changes::default());
    other.set_down(1, None);
    assert_eq!(other.expire(t0 + 2 * DOWN_KEPT, 0), Changes::default());
    other.set_down(1, Some(t0));
    assert!(other.expire(t0 + DOWN_KEPT, 0).services.contains("a"));
    assert!(other.record(1).is_none());
    assert!(other.digest().contains(&extent(1, 1, Extent::TOMBSTONE)));
}

#[test]
fn who_missed_a_forgotten_withdrawal_gets_the_whole_record() {
    let t0 = t0();
    let mut owner = registry(1);
    let mut other = registry(2);
    owner.write(t0, "a", Some(instance("a", 1)));
    owner.write(t0, "b", Some(instance("b", 1)));
    other.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    owner.write(t0, "a", None);
    owner.write(t0, "c", Some(instance("c", 1)));
    owner.expire(t0 + WITHDRAWN_KEPT, 0);
    let delta = owner.delta_for(extent(1, 1, 2)).unwrap();
    assert_eq!(delta.base, 0);
    assert!(matches!(other.apply(delta), Applied::Changed(_)));
    assert_eq!(bodies(&other, 1), bodies(&owner, 1));
    assert!(other.instances_of("a").next().is_none());
    assert_consistent(&other);
    assert_consistent(&owner);
}

#[test]
fn a_policy_is_believed_only_under_its_own_name_and_in_the_record_that_names_it() {
    let mut owner = registry(1);
    let (key, text) = policy(1);
    let hash = policy_hash(&text);
    owner.write(t0(), "i", Some(instance_with("web", &text)));
    let believed = |registry: &Registry| registry.policy_of(1, &hash).is_some();
    assert!(!believed(&owner), "nobody has it");
    // Another host has it; that says nothing about this one.
    let mut third = registry(3);
    third.write(t0(), &key, Some(text.clone()));
    let mut other = registry(2);
    other.apply(third.delta_for(extent(3, 0, 0)).unwrap());
    other.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    assert!(!believed(&other));
    owner.write(t0(), &key, Some(policy(2).1));
    assert!(!believed(&owner), "the text is not what the name says");
    let noise = b"not a policy".to_vec();
    owner.write(t0(), &policy_key(&policy_hash(&noise)), Some(noise.clone()));
    assert!(owner.policy_of(1, &policy_hash(&noise)).is_none());
    let changes = owner.write(t0(), &key, Some(text));
    assert!(believed(&owner));
    assert!(changes.services.contains("web"), "its instances are others now");
    let Applied::Changed(changes) = other.apply(owner.delta_for(extent(1, 1, 1)).unwrap()) else {
        panic!("not taken")
    };
    assert!(changes.services.contains("web"));
    assert!(believed(&other));
    assert!(owner.write(t0(), &key, None).services.contains("web"));
    assert_consistent(&owner);
    assert_consistent(&other);
}

#[test]
fn a_host_that_stays_down_is_kept_until_what_it_ordered_has_ended() {
    let t0 = t0();
    let mut owner = registry(1);
    let (key, body) = override_of("web", 1, 9_000_000);
    owner.write(t0, &key, Some(body));
    let mut other = registry(2);
    other.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    other.set_down(1, Some(t0));
    assert_eq!(other.expire(t0 + DOWN_KEPT, 8_999_999), Changes::default());
    assert_eq!(other.standing(8_999_999).0.len(), 1);
    let changes = other.expire(t0 + DOWN_KEPT, 9_000_000);
    assert!(changes.orders);
    assert!(other.record(1).is_none());
    assert!(other.standing(0).0.is_empty());
    // One that leaves takes its orders along.
    other.apply(Delta { generation: 2, ..owner.delta_for(extent(1, 0, 0)).unwrap() });
    assert_eq!(other.standing(1).0.len(), 1);
    assert!(matches!(other.bury(t0, 1, 2), Applied::Changed(changes) if changes.orders));
    assert!(other.standing(1).0.is_empty());
}

#[test]
fn keys_of_kinds_that_we_do_not_know_are_passed_on_and_show_nowhere() {
    let mut owner = registry(1);
    for key in ["\u{3}new", "\u{1}short", "\u{2}teleport x"] {
        owner.write(t0(), key, Some(instance("web", 1)));
    }
    assert_eq!(owner.instances_of("web").count(), 0);
    let mut other = registry(2);
    other.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    assert_eq!(bodies(&other, 1), bodies(&owner, 1));
}

#[test]
fn limits_hold() {
    let mut other = Registry::new(2, 1, 2, 3);
    let mut owner = registry(1);
    for i in 0..10 {
        owner.write(t0(), &format!("i{i}"), Some(instance("a", i)));
    }
    assert_eq!(other.apply(owner.delta_for(extent(1, 0, 0)).unwrap()), Applied::TooMany);
    let mut small = registry(3);
    small.write(t0(), "i", Some(instance("a", 1)));
    assert!(matches!(other.apply(small.delta_for(extent(3, 0, 0)).unwrap()), Applied::Changed(_)));
    let mut third = registry(4);
    third.write(t0(), "i", Some(instance("a", 1)));
    assert_eq!(other.apply(third.delta_for(extent(4, 0, 0)).unwrap()), Applied::TooMany);
}

#[test]
fn what_comes_and_goes_all_day_is_taken_by_those_who_follow_and_by_newcomers() {
    let t0 = t0();
    let mut owner = Registry::new(1, 1, 100, 100);
    let mut follower = Registry::new(2, 1, 100, 100);
    let mut late = Registry::new(3, 1, 100, 100);
    owner.write(t0, "keeper", Some(instance("task", 1)));
    late.apply(owner.delta_for(extent(1, 0, 0)).unwrap());
    let mut most = 0;
    for i in 0..20_000 {
        owner.write(t0, &format!("task-{i}"), Some(instance("task", 2)));
        if i >= 20 {
            owner.write(t0, &format!("task-{}", i - 20), None);
        }
        let known = follower.record(1).map_or(extent(1, 0, 0), |record| record.extent(1));
        let delta = owner.delta_for(known).unwrap();
        most = most.max(delta.entries.len());
        assert!(matches!(follower.apply(delta), Applied::Changed(_)), "after {i}");
    }
    assert!(most <= 3, "who follows hears of changes alone: {most}");
    for behind in [&mut late, &mut Registry::new(4, 1, 100, 100)] {
        let known = behind.record(1).map_or(extent(1, 0, 0), |record| record.extent(1));
        for from in [&owner, &follower] {
            let delta = from.delta_for(known).unwrap();
            assert!(delta.entries.len() <= 21 + WITHDRAWN_MIN, "{}", delta.entries.len());
        }
        assert!(matches!(behind.apply(follower.delta_for(known).unwrap()), Applied::Changed(_)));
        assert_eq!(bodies(behind, 1), bodies(&owner, 1));
        assert_eq!(behind.instances_of("task").count(), 21);
        assert_consistent(behind);
    }
    assert_consistent(&owner);
    assert_consistent(&follower);
}

#[test]
fn any_number_of_withdrawals_is_taken_from_who_still_tells_of_all() {
    let mut other = Registry::new(2, 1, 10, 10);
    let withdrawn = |seq| DeltaEntry { key: Arc::from(format!("gone-{seq}")), seq, body: None };
    let mut entries: Vec<DeltaEntry> = (1..30_000).map(withdrawn).collect();
    let body = Some(Arc::from(instance("task", 1)));
    entries.push(DeltaEntry { key: Arc::from("task"), seq: 30_000, body });
    let (first, rest) = entries.split_at(15_000);
    let delta = |base, upto, entries: &[DeltaEntry]| Delta {
        node: 1,
        generation: 1,
        base,
        upto,
        gc: 0,
        entries: entries.to_vec(),
    };
    assert!(matches!(other.apply(delta(0, 15_000, first)), Applied::Changed(_)));
    assert!(matches!(other.apply(delta(15_000, 30_000, rest)), Applied::Changed(_)));
    assert_eq!(other.instances_of("task").count(), 1);
    assert_eq!(other.record(1).unwrap().withdrawn.len(), WITHDRAWN_MIN);
    assert_consistent(&other);
}

#[test]
fn what_a_whole_record_replaces_is_not_counted() {
    let mut other = Registry::new(2, 1, 10, 10);
    for generation in 1..5 {
        let mut owner = Registry::new(1, generation, 10, 10);
        for i in 0..10 {
            owner.write(t0(), &format!("{generation}-{i}"), Some(instance("task", i)));
        }
        let whole = owner.delta_for(extent(1, 0, 0)).unwrap();
        assert!(matches!(other.apply(whole), Applied::Changed(_)), "generation {generation}");
        assert_eq!(bodies(&other, 1), bodies(&owner, 1));
        owner.write(t0(), &format!("{generation}-0"), None);
        owner.write(t0(), "another", Some(instance("task", 1)));
        let swapped = owner.delta_for(extent(1, generation, 10)).unwrap();
        assert!(matches!(other.apply(swapped), Applied::Changed(_)), "one for another");
        assert_consistent(&other);
    }
}

/// What an owner does, and from which base it tells of it.
#[derive(Debug, Clone)]
enum Step {
    Write {
        key: u8,
        service: u8,
    },
    Withdraw {
        key: u8,
    },
    Publish {
        policy: u8,
        is_there: bool,
    },
    Order {
        service: u8,
        is_there: bool,
    },
    Jump,
    Forget,
    /// It is reminded of nothing that was withdrawn, as if there had been too much.
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6u8, 0..4u8).prop_map(|(key, service)| Step::Write { key, service }),
        3 => (0..6u8).prop_map(|key| Step::Withdraw { key }),
        2 => (0..3u8, any::<bool>()).prop_map(|(policy, is_there)| Step::Publish { policy, is_there }),
        2 => (0..3u8, any::<bool>()).prop_map(|(service, is_there)| Step::Order { service, is_there }),
        1 => Just(Step::Jump),
        1 => Just(Step::Forget),
        1 => Just(Step::Compact),
    ]
}

proptest! {
    /// Any deltas of one owner, in any order, any number of times: never further back, never a state that the owner
    /// was not in, and once the last one was heard (asking for what is missing), the owner's state.
    #[test]
    fn merges_commute_repeat_harmlessly_and_never_go_back(
        steps in vec(step(), 1..30),
        heard in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let t0 = t0();
        let mut owner = registry(1);
        let mut states = vec![owner.record(1).unwrap().clone()];
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write { key, service } => _ = owner.write(t0, &format!("k{key}"), Some(instance(&format!("s{service}"), i as u16))),
                Step::Withdraw { key } => _ = owner.write(t0, &format!("k{key}"), None),
                Step::Publish { policy: which, is_there } => {
                    let (key, text) = policy(which.into());
                    owner.write(t0, &key, is_there.then_some(text));
                }
                Step::Order { service, is_there } => {
                    let (key, body) = override_of(&format!("s{service}"), i as u64, 1000);
                    owner.write(t0, &key, is_there.then_some(body));
                }
                Step::Jump => { let next = owner.record(1).unwrap().generation + 1; owner.jump(next); }
                Step::Forget => _ = owner.expire(t0 + WITHDRAWN_KEPT, 0),
                Step::Compact => owner.records.get_mut(&1).unwrap().forget_withdrawn_beyond(0),
            }
            states.push(owner.record(1).unwrap().clone());
        }
        assert_consistent(&owner);
        let mut other = registry(2);
        let mut last = (0, 0);
        for (which, since) in heard {
            let state = &states[which.index(states.len())];
            let since = since.index(state.upto as usize + 1) as u64;
            if since >= state.upto { continue }
            let delta = state.delta(1, since);
            other.apply(delta.clone());
            let repeated = other.apply(delta);
            prop_assert!(matches!(repeated, Applied::Unchanged | Applied::Gap(_)));
            assert_consistent(&other);
            if let Some(record) = other.record(1) {
                prop_assert!((record.generation, record.upto) >= last);
                last = (record.generation, record.upto);
                let has: Vec<_> = record.bodies().collect();
                prop_assert!(states.iter().any(|s| (s.generation, s.upto) == last && s.bodies().collect::<Vec<_>>() == has));
            }
        }
        let known = other.record(1).map_or(extent(1, 0, 0), |r| r.extent(1));
        if let Some(delta) = owner.delta_for(known) {
            prop_assert!(matches!(other.apply(delta), Applied::Changed(_)));
        }
        prop_assert_eq!(bodies(&other, 1), bodies(&owner, 1));
        prop_assert_eq!(other.standing(1), owner.standing(1));
        assert_consistent(&other);
    }

    /// Orders of several hosts, heard in any order: the same one counts everywhere, and only while it stands.
    #[test]
    fn hosts_agree_on_the_order_that_counts(
        orders in vec((1..5u64, 0..3u8, 0..4u64, 1..10u64), 1..12),
        turn in any::<prop::sample::Index>(),
        wall in 0..12u64,
    ) {
        let mut owners: Vec<Registry> = (1..5).map(registry).collect();
        for (node, service, issued, until) in &orders {
            let (key, body) = override_of(&format!("s{service}"), *issued, *until);
            owners[*node as usize - 1].write(t0(), &key, Some(body));
        }
        let mut deltas: Vec<Delta> =
            (1..5).filter_map(|node| owners[node as usize - 1].delta_for(extent(node, 0, 0))).collect();
        let heard = |deltas: &[Delta]| {
            let mut other = registry(9);
            for delta in deltas {
                other.apply(delta.clone());
            }
            assert_consistent(&other);
            other.standing(wall)
        };
        let standing = heard(&deltas);
        let turn = turn.index(deltas.len());
        deltas.rotate_left(turn);
        prop_assert_eq!(&heard(&deltas), &standing);
        deltas.reverse();
        prop_assert_eq!(&heard(&deltas), &standing);
        for (subject, order) in &standing.0 {
            prop_assert!(order.until_us > wall);
            let newer = owners.iter().flat_map(Registry::own_orders).any(|(other, body)| {
                other == subject && body.stands(wall) && body.issued_us > order.issued_us
            });
            prop_assert!(!newer, "{:?} is not the newest", order);
        }
    }

    /// Two hosts that exchange digests end up with the same.
    #[test]
    fn an_exchange_makes_equal(
        left in vec((0..4u64, 0..4u8, 0..4u8), 0..20),
        right in vec((0..4u64, 0..4u8, 0..4u8), 0..20),
        buried in vec((0..4u64, 0..3u64), 0..3),
    ) {
        let t0 = t0();
        let make = |own: u64, writes: &[(u64, u8, u8)]| {
            let mut registry = registry(own);
            for (node, key, service) in writes {
                let mut owner = Registry::new(10 + node, 1 + u64::from(*service), 100, 1000);
                for i in 0..=*key {
                    owner.write(t0, &format!("k{i}"), Some(instance(&format!("s{service}"), 1)));
                }
                registry.apply(owner.delta_for(extent(10 + node, 0, 0)).unwrap());
            }
            registry
        };
        let mut a = make(1, &left);
        let mut b = make(2, &right);
        for (node, generation) in buried {
            a.bury(t0, 10 + node, generation);
        }
        // As the protocol does it: b's digest, then what a has more, and what a wants.
        let digest = b.digest();
        for e in digest.iter().filter(|e| e.upto == Extent::TOMBSTONE) {
            a.bury(t0, e.node, e.generation);
        }
        let (deltas, tombstones) = a.surplus(&digest);
        let wants = a.wants(&digest);
        for e in tombstones {
            b.bury(t0, e.node, e.generation);
        }
        for delta in deltas {
            b.apply(delta);
        }
        for want in wants {
            if let Some(delta) = b.delta_for(want) {
                a.apply(delta);
            }
        }
        for node in 10..14 {
            prop_assert_eq!(bodies(&a, node), bodies(&b, node));
        }
        assert_consistent(&a);
        assert_consistent(&b);
    }
}

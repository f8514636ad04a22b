use std::net::SocketAddr;

use proptest::prelude::*;

use super::joining::JOIN_LAST;
use super::*;
use crate::catalog::{NodeStatus, Policies};
use crate::health::{Health, Status};
use crate::order::{Instruction, OrderError, Subject};
use crate::registration::{Check, CheckKind, Origin, RegisterError, Registration, Weights};

mod checks;

const WALL: u64 = 1_800_000_000_000;

#[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
fn t0() -> Instant {
    Instant::now()
}

fn address(host: u8) -> SocketAddr {
    ([127, 0, 0, host], 7111).into()
}

fn config(host: u8) -> Config {
    Config {
        mesh: "m".into(),
        domain: "mesh".into(),
        node: NodeInfo {
            id: host.into(),
            name: format!("host-{host}"),
            address: address(host),
            mesh_port: 7110,
            zone: None,
            version: "0.1.0".into(),
        },
        keys: vec![[1; 32]],
        profile: Profile::LAN,
        limits: Limits { members: 10, records: 20 },
    }
}

fn host(number: u8, now: Instant) -> Discovery {
    Discovery::new(config(number), None, now, WALL, [number; 32], [number; 16])
}

/// A host of a mesh in which nothing is scarce but on the host itself.
fn roomy_host(number: u8, now: Instant) -> Discovery {
    let config = Config { limits: Limits { members: 10, records: 10_000 }, ..config(number) };
    Discovery::new(config, None, now, WALL, [number; 32], [number; 16])
}

fn registration(id: &str, service: &str) -> Registration {
    Registration {
        id: id.into(),
        service: service.into(),
        address: "127.0.0.1:8080".parse().unwrap(),
        advertise: None,
        tagged_addresses: BTreeMap::new(),
        enable_tag_override: false,
        protocol: None,
        tags: vec![],
        meta: BTreeMap::new(),
        weights: Weights::default(),
        checks: vec![Check {
            id: format!("service:{id}"),
            name: String::new(),
            kind: CheckKind::Tcp { authority: "127.0.0.1:8080".into(), tls: None },
            notes: String::new(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
            initial: Status::Critical,
            deregister_after: None,
        }],
        origin: Origin::Api,
    }
}

fn events(host: &mut Discovery) -> Vec<Event> {
    std::iter::from_fn(|| host.poll_event()).collect()
}

/// Lets both talk, at once and without loss, until neither has anything to say.
fn talk(now: Instant, hosts: &mut [Discovery]) {
    for _ in 0..100 {
        let mut quiet = true;
        for from in 0..hosts.len() {
            let source = hosts[from].node().address;
            while let Some(Transmit { to, payload }) = hosts[from].poll_transmit() {
                quiet = false;
                if let Some(to) = hosts.iter_mut().find(|host| host.node().address == to) {
                    to.handle_datagram(now, WALL, source, &payload);
                }
            }
            while let Some(dial) = hosts[from].poll_dial() {
                quiet = false;
                let to = hosts.iter_mut().find(|host| host.node().address == dial.to);
                let response = match to {
                    None => Err(DialError::Refused),
                    Some(to) => {
                        to.handle_request(now, WALL, source, &dial.request).ok_or(DialError::Other)
                    }
                };
                hosts[from].handle_response(
                    now,
                    WALL,
                    dial.id,
                    response.as_deref().map_err(|e| *e),
                );
            }
        }
        if quiet {
            return;
        }
    }
    panic!("they never fall silent");
}

fn pair(now: Instant) -> [Discovery; 2] {
    let mut pair = [host(1, now), host(2, now)];
    pair[1].join(now, address(1));
    talk(now, &mut pair);
    assert!(pair.iter().all(|host| host.membership.up().len() == 1));
    pair
}

#[test]
fn one_exchange_introduces_two_hosts() {
    let now = t0();
    let mut hosts = [host(1, now), host(2, now)];
    hosts[0].register(now, WALL, registration("a", "a")).unwrap();
    hosts[1].register(now, WALL, registration("b", "b")).unwrap();
    hosts[1].join(now, address(1));
    talk(now, &mut hosts);
    for host in &mut hosts {
        host.handle_timeout(now + Duration::from_millis(20), WALL);
        assert_eq!(host.snapshot().services.len(), 2, "{:?}", host.snapshot());
        assert_eq!(host.snapshot().alive().count(), 2);
    }
}

#[test]
fn a_client_finds_its_registration_in_the_next_look_up() {
    let now = t0();
    let mut host = host(1, now);
    events(&mut host);
    host.register(now, WALL, registration("a", "web")).unwrap();
    assert_eq!(events(&mut host), [Event::SnapshotChanged, Event::SaveDue]);
    let view = Arc::clone(host.snapshot().service("web").unwrap());
    assert!(!view.instances[0].takes_requests(), "not before its check passes");
    assert!(view.index >= WALL * 1000);

    let passing = Health { status: Status::Passing, output: "ok".into() };
    host.set_health(now, WALL, "a", 0, passing.clone()).unwrap();
    let next = Arc::clone(host.snapshot().service("web").unwrap());
    assert!(next.instances[0].takes_requests());
    assert!(next.index > view.index, "the index moves within a millisecond, too");
    host.set_health(now, WALL, "a", 0, passing).unwrap();
    assert!(
        Arc::ptr_eq(&next, host.snapshot().service("web").unwrap()),
        "nothing changed, nobody is woken"
    );

    // The same again: its health is kept.
    host.register(now, WALL, registration("a", "web")).unwrap();
    assert!(Arc::ptr_eq(&next, host.snapshot().service("web").unwrap()));
    host.register(now, WALL, registration("b", "other")).unwrap();
    assert!(
        Arc::ptr_eq(&next, host.snapshot().service("web").unwrap()),
        "another service's change"
    );

    host.deregister(now, WALL, "a").unwrap();
    assert!(host.snapshot().service("web").is_none());
    assert!(host.snapshot().service_index("web") > next.index, "indices never go back");
}

/// A check that begins as critical and fails at its first run has the same status before and after it.
#[test]
fn what_a_check_saw_is_published_though_the_status_stays() {
    let now = t0();
    let mut host = host(1, now);
    host.register(now, WALL, registration("a", "web")).unwrap();
    let output = |host: &Discovery| {
        host.snapshot().service("web").unwrap().instances[0].checks[0].output.clone()
    };
    assert_eq!(output(&host), "");
    for saw in ["connection refused", "503"] {
        let failing = Health { status: Status::Critical, output: saw.into() };
        host.set_health(now, WALL, "a", 0, failing.clone()).unwrap();
        assert_eq!(output(&host), saw);
        let index = host.snapshot().index;
        host.set_health(now, WALL, "a", 0, failing).unwrap();
        assert_eq!(host.snapshot().index, index, "the same again is no news");
    }
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    let now = t0();
    let mut host = roomy_host(1, now);
    let index = host.snapshot().index;
    let errors = [
        host.register(now, WALL, registration("", "web")),
        host.register(now, WALL, registration("a", "Not A Name")),
        host.deregister(now, WALL, "a"),
        host.set_health(
            now,
            WALL,
            "a",
            0,
            Health { status: Status::Passing, output: String::new() },
        ),
    ];
    for error in errors {
        assert!(error.is_err());
    }
    let mut large = registration("a", "web");
    large.meta = (0..60).map(|i| (format!("k{i}"), "x".repeat(500))).collect();
    assert_eq!(
        host.register(now, WALL, large).unwrap_err().to_string(),
        "bytes of the registration: more than the limit of 8192"
    );
    assert_eq!(host.snapshot().index, index);
    for i in 0..crate::registration::INSTANCES_MAX {
        host.register(now, WALL, registration(&i.to_string(), &format!("web-{i}"))).unwrap();
    }
    assert!(host.register(now, WALL, registration("one more", "web")).is_err());
    host.leave(now, WALL);
    assert_eq!(host.register(now, WALL, registration("0", "web")), Err(RegisterError::Leaving));
}

#[test]
fn what_is_saved_makes_the_same_host_again() {
    let now = t0();
    let [mut first, _] = pair(now);
    let mut own = registration("of-the-file", "file");
    own.origin = Origin::Configuration;
    first.register(now, WALL, own).unwrap();
    first.register(now, WALL, registration("of-the-api", "api")).unwrap();
    let json = serde_json::to_string(&first.saved()).unwrap();
    let saved: Saved = serde_json::from_str(&json).unwrap();
    // The clock went back an hour meanwhile.
    let again = Discovery::new(config(1), Some(saved), now, WALL - 3_600_000, [9; 32], [9; 16]);
    assert!(again.generation() > first.generation());
    assert!(again.membership.epoch() > first.membership.epoch());
    let ids: Vec<&str> = again.registrations().map(|r| &*r.id).collect();
    assert_eq!(ids, ["of-the-api"], "the file gives its own again");
    assert_eq!(again.saved().members, [SavedMember { node: 2, address: address(2) }]);
    // Another host's data directory is not ours.
    let other = Discovery::new(config(5), Some(first.saved()), now, WALL, [9; 32], [9; 16]);
    assert_eq!(other.registrations().count(), 0);
}

#[test]
fn a_lonely_host_asks_for_addresses_ever_more_rarely_and_else_sleeps() {
    let start = t0();
    let mut host = host(1, start);
    let (mut now, mut asked, mut woken) = (start, Vec::new(), 0);
    while now < start + Duration::from_secs(600) {
        now = host.poll_timeout().unwrap();
        host.handle_timeout(now, WALL);
        woken += 1;
        asked.extend(
            events(&mut host).into_iter().filter(|e| *e == Event::ResolveJoin).map(|_| now - start),
        );
    }
    assert_eq!(asked[0], Duration::ZERO);
    assert!(asked[1] < Duration::from_millis(650));
    let gaps: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap <= JOIN_LAST.mul_f64(1.2)), "{gaps:?}");
    assert!((20..40).contains(&asked.len()), "{}", asked.len());
    assert!(woken < 150, "{woken} times awake in ten minutes");
}

#[test]
fn joins_that_make_no_sense_are_not_made() {
    let now = t0();
    let [mut first, second] = pair(now);
    first.all_told(now, WALL);
    first.join(now, address(1));
    first.join(now, second.node().address);
    assert_eq!(first.poll_dial(), None);
    first.join(now, address(7));
    first.join(now, address(7));
    assert!(first.poll_dial().is_some());
    assert_eq!(first.poll_dial(), None, "one at a time");
}

#[test]
fn a_host_knows_all_when_it_was_told_all_and_not_when_it_has_met_somebody() {
    let now = t0();
    let mut hosts = [host(1, now), host(2, now)];
    hosts[0].register(now, WALL, registration("a", "a")).unwrap();
    let (location, epoch) = (hosts[0].own_location(), hosts[0].membership.epoch());
    hosts[1].learn_address(now, location);
    hosts[1].membership.handle_alive(now, 1, epoch, 0);
    hosts[1].pump(now);
    assert!(hosts[1].membership.up().contains_key(&1), "met by chance");
    assert!(hosts[1].snapshot().partial);
    hosts[1].handle_timeout(now, WALL);
    talk(now, &mut hosts);
    assert!(
        !hosts[1].snapshot().partial,
        "it asks whom it has met, though it was told to join nobody"
    );
    assert!(hosts[1].snapshot().service("a").is_some());

    let mut alone = host(3, now);
    assert!(alone.snapshot().partial && !alone.knows_others());
    alone.all_told(now, WALL);
    assert!(!alone.snapshot().partial, "nobody else is there to tell it");
}

#[test]
fn what_others_would_refuse_is_refused_where_it_is_asked_for() {
    let now = t0();
    let mut host = host(1, now);
    let one = |number: usize| registration(&format!("i{number}"), "web");
    for number in 0..20 {
        host.register(now, WALL, one(number)).unwrap();
    }
    assert_eq!(host.register(now, WALL, one(20)), Err(RegisterError::MeshFull));
    assert_eq!(host.counters().registrations_refused, 1);
    assert!(!host.note(now, WALL, "roster", Some(vec![1])));
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(host.drain(now, WALL, 1, day), Err(OrderError::MeshFull));
    let other = Registration { service: "other".into(), ..one(7) };
    assert_eq!(host.register(now, WALL, other), Ok(()), "no more than there were");
    host.deregister(now, WALL, "i3").unwrap();
    assert_eq!(host.register(now, WALL, one(20)), Ok(()));
}

#[test]
fn a_record_that_is_not_taken_is_told_of_now_and_then() {
    let now = t0();
    let small = Config { limits: Limits { members: 10, records: 5 }, ..config(1) };
    let mut hosts = [Discovery::new(small, None, now, WALL, [1; 32], [1; 16]), host(2, now)];
    for number in 0..10 {
        let one = registration(&format!("i{number}"), "web");
        hosts[1].register(now, WALL, one).unwrap();
    }
    let mut told = 0;
    for minute in 0..7 {
        let now = now + minute * Duration::from_secs(60);
        hosts[1].dial_join(now, address(1));
        talk(now, &mut hosts);
        let events = events(&mut hosts[0]);
        told += events.iter().filter(|e| matches!(e, Event::RecordRefused { node: 2, .. })).count();
    }
    assert!(hosts[0].counters().refused_limit >= 7);
    assert_eq!(told, 2, "every five minutes");
}

#[test]
fn a_configuration_is_offered_whole_or_not_at_all() {
    let now = t0();
    let mut host = host(1, now);
    let configured = |number: usize| Registration {
        origin: Origin::Configuration,
        ..registration(&format!("c{number}"), "web")
    };
    host.register(now, WALL, registration("api", "web")).unwrap();
    host.register(now, WALL, configured(0)).unwrap();
    let none = BTreeMap::new();
    let fits: Vec<Registration> = (1..20).map(configured).collect();
    assert_eq!(host.check_offers(now, &fits, &none), Ok(()));
    let policy = says("web", r#"{"policy":{"timeout":"7s"}}"#);
    assert_eq!(
        host.check_offers(now, &fits, &policy),
        Err(("c19".into(), RegisterError::MeshFull)),
        "what is said of the service takes a place too"
    );
    let many: Vec<Registration> = (1..21).map(configured).collect();
    assert_eq!(host.check_offers(now, &many, &none), Err(("c20".into(), RegisterError::MeshFull)));
    let bad = Registration { service: "not a name".into(), ..configured(2) };
    let (id, cause) = host.check_offers(now, &[configured(1), bad], &none).unwrap_err();
    assert!(id == "c2" && matches!(cause, RegisterError::Name(_)), "{id}: {cause}");
    let takes_over = Registration { id: "api".into(), ..configured(1) };
    assert_eq!(host.check_offers(now, &[takes_over], &none), Ok(()));
    let mut kept: Vec<&str> = host.registrations().map(|one| one.id.as_str()).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["api", "c0"], "to ask changes nothing");
}

#[test]
fn members_and_records_are_limited() {
    let now = t0();
    let mut hosts: Vec<Discovery> = (1..=15).map(|number| host(number, now)).collect();
    for host in &mut hosts {
        for i in 0..5 {
            host.register(now, WALL, registration(&format!("i{i}"), "web")).unwrap();
        }
    }
    for number in 1..15 {
        hosts[number].join(now, address(1));
        talk(now, &mut hosts);
    }
    let first = &mut hosts[0];
    first.handle_timeout(now + Duration::from_millis(100), WALL);
    assert_eq!(first.membership.up().len(), 10);
    let instances = first.snapshot().service("web").unwrap().instances.len();
    assert!((10..=25).contains(&instances), "{instances}");
    assert!(first.counters().refused_limit > 0);
}

#[test]
fn after_the_goodbye_there_is_silence() {
    let now = t0();
    let mut hosts = pair(now);
    hosts[1].leave(now, WALL);
    talk(now, &mut hosts);
    let late = now + Duration::from_secs(60);
    let [first, second] = &mut hosts;
    assert!(first.membership.up().is_empty());
    assert_eq!(second.poll_timeout(), None);
    second.handle_timeout(late, WALL);
    second.join(late, address(1));
    assert_eq!((second.poll_transmit(), second.poll_dial()), (None, None));
    assert_eq!(second.handle_request(late, WALL, address(1), &[]), None);
}

#[test]
fn a_response_to_another_request_is_not_believed() {
    let now = t0();
    let mut hosts = pair(now);
    let [first, second] = &mut hosts;
    let mut answers = Vec::new();
    for _ in 0..2 {
        first.dial_suspect(now, 2, second.membership.epoch(), true);
        let dial = first.poll_dial().unwrap();
        answers
            .push((dial.id, second.handle_request(now, WALL, address(1), &dial.request).unwrap()));
    }
    let before = first.counters().refused_seal;
    first.handle_response(now, WALL, answers[0].0, Ok(&answers[1].1));
    assert_eq!(first.counters().refused_seal, before + 1);
    first.handle_response(now, WALL, answers[1].0, Ok(&answers[1].1));
    assert_eq!(first.counters().refused_seal, before + 1);
}

#[test]
fn a_repeated_request_is_not_acted_on() {
    let now = t0();
    let [mut first, mut second] = pair(now);
    second.compare_with_random_peer(now);
    let dial = second.poll_dial().unwrap();
    assert!(first.handle_request(now, WALL, address(2), &dial.request).is_some());
    assert_eq!(first.handle_request(now, WALL, address(2), &dial.request), None);
    assert_eq!(first.counters().refused_replay, 1);
}

fn policy(text: &str) -> Arc<Published> {
    Arc::new(Published::read(text).unwrap())
}

const SLOW: &str = r#"{"policy":{"timeout":"9s"}}"#;
const FAST: &str = r#"{"policy":{"timeout":"1s"}}"#;

fn says(service: &str, text: &str) -> BTreeMap<String, Arc<Published>> {
    [(service.to_owned(), policy(text))].into()
}

/// What a host takes for the policy of a service, after everybody has talked.
fn policies(now: Instant, hosts: &mut [Discovery], service: &str) -> Vec<Policies> {
    for _ in 0..3 {
        let later = now + Duration::from_secs(1);
        hosts.iter_mut().for_each(|host| host.handle_timeout(later, WALL));
        talk(later, hosts);
    }
    let view = |host: &mut Discovery| {
        host.handle_timeout(now + Duration::from_secs(2), WALL);
        host.snapshot().service(service).map(|view| view.policies.clone()).unwrap_or_default()
    };
    hosts.iter_mut().map(view).collect()
}

#[test]
fn a_policy_travels_with_the_instances_of_its_service() {
    let now = t0();
    let mut hosts = pair(now);
    hosts[1].set_policies(now, WALL, says("web", SLOW));
    assert!(!hosts[1].registry.own_policies().any(|_| true), "it does not offer the service");
    hosts[1].register(now, WALL, registration("a", "web")).unwrap();
    hosts[1].register(now, WALL, registration("b", "other")).unwrap();
    for seen in policies(now, &mut hosts, "web") {
        let [vote] = &seen.published[..] else { panic!("{seen:?}") };
        assert_eq!((&**vote.policy.text(), vote.instances), (SLOW, 1));
        assert_eq!(vote.hosts, ["host-2"]);
    }
    assert_eq!(policies(now, &mut hosts, "other"), [Policies::default(), Policies::default()]);
    // Another one; an instance that comes later has it too.
    hosts[1].set_policies(now, WALL, says("web", FAST));
    hosts[1].register(now, WALL, registration("c", "web")).unwrap();
    for seen in policies(now, &mut hosts, "web") {
        assert_eq!((seen.winner(), seen.published[0].instances), (Some(&policy(FAST)), 2));
        assert_eq!(seen.published.len(), 1);
    }
    assert_eq!(hosts[1].registry.own_policies().count(), 1, "the old one is withdrawn");
    hosts[1].set_policies(now, WALL, BTreeMap::new());
    assert_eq!(policies(now, &mut hosts, "web"), [Policies::default(), Policies::default()]);
    assert_eq!(hosts[1].registry.own_policies().count(), 0);
}

#[test]
fn the_policy_of_most_instances_counts_and_equal_ones_are_kept_once() {
    let now = t0();
    let mut hosts: Vec<Discovery> = (1..=4).map(|number| host(number, now)).collect();
    for (at, text, instances) in [(0, SLOW, 1), (1, FAST, 2), (2, FAST, 1)] {
        hosts[at].set_policies(now, WALL, says("web", text));
        for i in 0..instances {
            hosts[at].register(now, WALL, registration(&format!("i{i}"), "web")).unwrap();
        }
    }
    // One that publishes none has no vote.
    for i in 0..9 {
        hosts[3].register(now, WALL, registration(&format!("i{i}"), "web")).unwrap();
    }
    for at in 1..4 {
        hosts[at].join(now, address(1));
        talk(now, &mut hosts);
    }
    for seen in policies(now, &mut hosts, "web") {
        let votes: Vec<_> =
            seen.published.iter().map(|vote| (&**vote.policy.text(), vote.instances)).collect();
        assert_eq!(votes, [(FAST, 3), (SLOW, 1)]);
        assert_eq!(seen.published[0].hosts, ["host-2", "host-3"]);
    }
    let hash = crate::index::policy_hash(FAST.as_bytes());
    let kept = |node| hosts[0].registry.policy_of(node, &hash).unwrap();
    assert!(Arc::ptr_eq(kept(2), kept(3)));
}

#[test]
fn an_order_counts_everywhere_until_its_end() {
    let now = t0();
    let mut hosts = pair(now);
    hosts[0].register(now, WALL, registration("a", "web")).unwrap();
    let minute = Duration::from_secs(60);
    hosts[0].override_policy(now, WALL, "web", policy(FAST), minute).unwrap();
    hosts[1].drain(now, WALL, 1, minute).unwrap();
    assert_eq!(hosts[1].drain(now, WALL, 77, minute), Err(OrderError::NoSuchHost));
    talk(now, &mut hosts);
    let later = now + Duration::from_secs(1);
    for host in &mut hosts {
        host.handle_timeout(later, WALL + 1000);
    }
    talk(later, &mut hosts);
    for host in &mut hosts {
        host.handle_timeout(later + Duration::from_secs(1), WALL + 2000);
        let catalog = host.snapshot();
        let order = &catalog.orders[&Subject::Override("web".into())];
        assert_eq!(order.instruction, Instruction::Override(policy(FAST)));
        assert_eq!((order.until_us, &*order.by), ((WALL + 60_000) * 1000, "host-1"));
        assert_eq!(catalog.orders[&Subject::Drain(1)].by, "host-2");
        assert!(catalog.nodes[&1].draining && !catalog.nodes[&2].draining);
        assert!(!catalog.service("web").unwrap().instances[0].takes_requests());
    }
    // Each lets go of it by itself.
    for host in &mut hosts {
        let end = host.timers.orders.expect("the end is awaited");
        assert!(end <= now + minute + Duration::from_millis(1), "{:?}", end - now);
        host.handle_timeout(end, WALL + 60_000);
        host.handle_timeout(end + Duration::from_millis(20), WALL + 60_020);
        let catalog = host.snapshot();
        assert!(catalog.orders.is_empty() && !catalog.nodes[&1].draining);
        assert_eq!(host.timers.orders, None);
        assert_eq!(host.registry.own_orders().count(), 0, "and its issuer withdraws it");
    }
}

#[test]
fn the_newest_order_counts_wherever_it_was_issued() {
    let now = t0();
    let mut hosts = pair(now);
    let hour = Duration::from_secs(3600);
    // The clock of the first is ten minutes ahead.
    hosts[0].override_policy(now, WALL + 600_000, "web", policy(SLOW), hour).unwrap();
    talk(now, &mut hosts);
    hosts[0].handle_timeout(now + Duration::from_secs(1), WALL);
    talk(now, &mut hosts);
    hosts[1].handle_timeout(now + Duration::from_secs(1), WALL);
    let subject = Subject::Override("web".into());
    assert!(hosts[1].snapshot().orders.contains_key(&subject));
    hosts[1].override_policy(now, WALL, "web", policy(FAST), hour).unwrap();
    let order = Arc::clone(&hosts[1].snapshot().orders[&subject]);
    assert_eq!(order.instruction, Instruction::Override(policy(FAST)));
    hosts[1].undo(now, WALL, &subject).unwrap();
    assert!(hosts[1].snapshot().orders.is_empty(), "also those of other hosts are taken back");
    assert_eq!(hosts[1].undo(now, WALL, &subject), Err(OrderError::Nothing));
}

#[test]
fn orders_are_limited() {
    let now = t0();
    let mut host = roomy_host(1, now);
    let day = Duration::from_secs(24 * 3600);
    let order = |host: &mut Discovery, service: &str, ttl| {
        host.override_policy(now, WALL, service, policy(FAST), ttl)
    };
    assert_eq!(order(&mut host, "web", Duration::ZERO), Err(OrderError::Ttl));
    assert_eq!(order(&mut host, "web", day + Duration::from_secs(1)), Err(OrderError::Ttl));
    for i in 0..crate::order::ORDERS_MAX {
        order(&mut host, &format!("web-{i}"), day).unwrap();
    }
    assert_eq!(order(&mut host, "one-more", day), Err(OrderError::TooMany));
    order(&mut host, "web-0", day).expect("one may be replaced");
    host.leave(now, WALL);
    assert_eq!(order(&mut host, "web-0", day), Err(OrderError::Leaving));
}

#[test]
fn a_host_keeps_its_own_orders_over_a_restart_and_lets_go_of_ended_ones() {
    let now = t0();
    let mut first = host(1, now);
    let minute = Duration::from_secs(60);
    first.override_policy(now, WALL, "web", policy(FAST), minute).unwrap();
    first.drain(now, WALL, 1, 2 * minute).unwrap();
    assert!(events(&mut first).contains(&Event::SaveDue));
    let json = serde_json::to_string(&first.saved()).unwrap();
    let saved = || serde_json::from_str::<Saved>(&json).unwrap();
    let again = |wall| Discovery::new(config(1), Some(saved()), now, wall, [9; 32], [9; 16]);
    assert_eq!(again(WALL + 1000).snapshot().orders, first.snapshot().orders);
    let late = again(WALL + 90_000);
    assert_eq!(late.snapshot().orders.keys().collect::<Vec<_>>(), [&Subject::Drain(1)]);
    assert!(late.snapshot().nodes[&1].draining);
    // What an earlier version saved has none.
    let old = json.replace("\"orders\"", "\"unknown\"");
    assert_eq!(serde_json::from_str::<Saved>(&old).unwrap().orders, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever arrives that no member sealed: no panic, no effect.
    #[test]
    fn noise_has_no_effect(
        noise in proptest::collection::vec(any::<u8>(), 0..1500),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let now = t0();
        let [mut first, mut second] = pair(now);
        second.register(now, WALL, registration("x", "x")).unwrap();
        second.handle_timeout(now + Duration::from_secs(1), WALL);
        let genuine = second.poll_transmit().unwrap().payload;
        second.compare_with_random_peer(now);
        let request = second.poll_dial().unwrap().request;
        let before = (first.snapshot().index, first.membership.up().clone(), first.registry.digest());
        let mut inputs = vec![noise];
        for mut bytes in [genuine, request] {
            let at = at.index(bytes.len());
            inputs.push(bytes[..at].to_vec());
            bytes[at] ^= flip;
            inputs.push(bytes);
        }
        let dial = { first.join(now, address(9)); first.poll_dial().unwrap().id };
        for bytes in &inputs {
            first.handle_datagram(now, WALL, address(2), bytes);
            prop_assert_eq!(first.handle_request(now, WALL, address(2), bytes), None);
            first.handle_response(now, WALL, dial, Ok(bytes));
        }
        prop_assert_eq!(before, (first.snapshot().index, first.membership.up().clone(), first.registry.digest()));
        prop_assert_eq!(first.poll_transmit(), None);
        let refused: u64 = first.counters().refused().iter().map(|(_, count)| count).sum();
        prop_assert!(refused >= 2 * inputs.len() as u64);
    }
}

#[test]
fn notes_show_at_all_hosts_while_their_writer_is_up_and_wake_no_watcher_of_a_service() {
    let now = t0();
    let mut hosts = pair(now);
    hosts[0].register(now, WALL, registration("a", "web")).unwrap();
    let mut at = now;
    let mut pass = |hosts: &mut [Discovery; 2]| {
        for _ in 0..4 {
            at += Duration::from_millis(100);
            hosts.iter_mut().for_each(|host| host.handle_timeout(at, WALL + 1000));
            talk(at, hosts);
        }
        at
    };
    let soon = pass(&mut hosts);
    let before = hosts[1].snapshot();

    assert!(hosts[0].note(soon, WALL, "quota", Some(vec![7, 0, 255])));
    assert!(!hosts[0].note(soon, WALL, "long", Some(vec![0; NOTE_MAX + 1])));
    assert!(hosts[0].note(soon, WALL, "longest", Some(vec![0; NOTE_MAX])));
    assert_eq!(hosts[0].snapshot().notes[&1]["quota"][..], [7, 0, 255], "its own at once");
    let at = pass(&mut hosts);
    let after = hosts[1].snapshot();
    assert_eq!(after.notes[&1]["quota"][..], [7, 0, 255]);
    assert_eq!(after.notes[&1]["longest"].len(), NOTE_MAX, "fetched, where no datagram has room");
    assert_eq!(after.service_index("web"), before.service_index("web"));
    assert_eq!(after.nodes_index, before.nodes_index);

    hosts[0].note(at, WALL, "longest", None);
    assert_eq!(hosts[0].snapshot().notes[&1].len(), 1);
    hosts[0].leave(at, WALL);
    talk(at, &mut hosts);
    hosts[1].handle_timeout(at + Duration::from_secs(1), WALL + 3000);
    assert!(hosts[1].snapshot().notes.is_empty());
    assert!(!hosts[0].note(at, WALL, "quota", None), "it has left");
}

#[test]
fn what_is_said_about_quotas_arrives_as_it_was_said() {
    let now = t0();
    let mut hosts = pair(now);
    events(&mut hosts[1]);
    hosts[0].send_quota(2, vec![0xff; QUOTA_MAX]);
    hosts[0].send_quota(2, vec![0; QUOTA_MAX + 1]);
    hosts[0].send_quota(1, vec![1]);
    assert_eq!(hosts[0].counters().datagrams_dropped, 1);
    talk(now, &mut hosts);
    let quotas: Vec<Event> = events(&mut hosts[1])
        .into_iter()
        .filter(|event| matches!(event, Event::Quota { .. }))
        .collect();
    assert_eq!(quotas, [Event::Quota { from: 1, bytes: vec![0xff; QUOTA_MAX] }]);
}

#[test]
fn what_a_slow_shell_loses_is_counted() {
    let now = t0();
    let mut host = host(1, now);
    while host.poll_transmit().is_some() {}
    while host.poll_event().is_some() {}
    for _ in 0..TRANSMITS_MAX + 3 {
        host.send_to(address(2), &[]);
    }
    for node in 0..EVENTS_MAX as u64 + 5 {
        host.tell(Event::NewIdentity { node });
    }
    let counters = host.counters();
    assert_eq!((counters.datagrams_dropped, counters.events_dropped), (3, 5));
    // What asks for something to be done is never lost, and asked for once.
    host.tell(Event::SaveDue);
    host.tell(Event::SaveDue);
    assert_eq!(host.counters().events_dropped, 5);
    assert_eq!(std::iter::from_fn(|| host.poll_transmit()).count(), TRANSMITS_MAX);
    let told = events(&mut host);
    assert_eq!((told.len(), told.last()), (EVENTS_MAX + 1, Some(&Event::SaveDue)));
}

/// A member of an earlier life was where this host is now: addresses were given out anew.
#[test]
fn a_time_to_try_somebody_is_never_past_for_good() {
    let now = t0();
    let mut saved = host(1, now).saved();
    saved.members = vec![
        SavedMember { node: 9, address: address(1) },
        SavedMember { node: 8, address: address(8) },
    ];
    let mut again = Discovery::new(config(1), Some(saved), now, WALL, [1; 32], [2; 16]);
    let mut at = now;
    let mut woken = 0;
    while at < now + Duration::from_secs(30) {
        again.handle_timeout(at, WALL);
        // The name comes to the address that is being tried already.
        again.join(at, address(8));
        while again.poll_dial().is_some() {}
        at = again.poll_timeout().expect("it goes on").max(at + Duration::from_micros(1));
        woken += 1;
    }
    assert!(woken < 200, "{woken} times awake in half a minute");
}

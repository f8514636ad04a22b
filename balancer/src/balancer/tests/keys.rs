//! Choices by key: shards, consistent hashing; and by zone.

use std::collections::BTreeSet;

use evenkeel_config::policy::{Factor, KeySource, ShardFallback, Zone};

use super::*;

/// Nodes differ, as they would.
fn specs(count: u16) -> Vec<EndpointSpec> {
    (0..count).map(|index| EndpointSpec { node: u64::from(index) + 1, ..spec(index) }).collect()
}

fn sharded(count: u16, size: u32, fallback: ShardFallback, balance: Balance) -> Bench {
    let mut bench = Bench::new(0, balance);
    bench.update(specs(count));
    let shard = &mut bench.policy.shard;
    (shard.key, shard.size, shard.fallback) = (Some(KeySource::Identity), size, fallback);
    bench
}

fn hashed(count: u16) -> Bench {
    let mut bench = Bench::new(0, Balance::Hash);
    bench.policy.hash.key = Some(KeySource::Address);
    bench.update(specs(count));
    bench
}

impl Bench {
    fn wish(&mut self, wish: &Wish<'_>) -> Result<Ticket, NoEndpoint> {
        self.balancer.pick(self.now, &mut self.rng, &self.policy, wish)
    }

    fn fail_until_out(&mut self, serial: u64) {
        let tried: Vec<u64> =
            self.balancer.endpoints().iter().map(|e| e.serial()).filter(|&s| s != serial).collect();
        for _ in 0..5 {
            let mut ticket = self.pick(Attempt::Retry, &tried).expect("it is untried");
            assert_eq!(ticket.endpoint().serial(), serial);
            ticket.head(self.now, Verdict::Failure);
        }
    }
}

impl Bench {
    /// Where an attempt goes that succeeds at once.
    fn to(&mut self, wish: &Wish<'_>) -> u64 {
        let mut ticket = self.wish(wish).expect("there is an endpoint");
        ticket.head(self.now, Verdict::Success);
        ticket.endpoint().serial()
    }
}

fn shard(key: u64) -> Wish<'static> {
    Wish { shard: Some(key), ..Wish::FIRST }
}

fn hash(key: u64) -> Wish<'static> {
    Wish { hash: Some(key), ..Wish::FIRST }
}

#[test]
fn every_attempt_of_a_request_stays_in_its_shard() {
    for balance in ALL {
        let mut bench = sharded(12, 3, ShardFallback::Fail, balance);
        for key in 0..50 {
            let firsts: BTreeSet<u64> = (0..60).map(|_| bench.to(&shard(key))).collect();
            assert_eq!(firsts.len(), 3, "{balance:?}: the shard is used in full");
            let mut tried = vec![bench.to(&shard(key))];
            for attempt in [Attempt::Hedge, Attempt::Retry] {
                let to = bench.to(&Wish { attempt, tried: &tried, ..shard(key) });
                assert!(firsts.contains(&to) && !tried.contains(&to));
                tried.push(to);
            }
            let more = Wish { attempt: Attempt::Hedge, tried: &tried, ..shard(key) };
            assert_eq!(
                bench.wish(&more).err(),
                Some(NoEndpoint::AllTried),
                "a copy does not leave"
            );
            let again = bench.to(&Wish { attempt: Attempt::Retry, ..more });
            assert!(firsts.contains(&again), "a retry takes a tried one of the shard again");
        }
    }
}

#[test]
fn a_shard_without_a_usable_endpoint_fails_or_widens() {
    let mut bench = sharded(12, 2, ShardFallback::Fail, Balance::P2c);
    let members: BTreeSet<u64> = (0..40).map(|_| bench.to(&shard(5))).collect();
    assert_eq!(members.len(), 2);
    for &member in &members {
        bench.fail_until_out(member);
    }
    assert_eq!(bench.wish(&shard(5)).err(), Some(NoEndpoint::Shard));
    assert!(bench.wish(&Wish::FIRST).is_ok(), "requests without a key go on");
    bench.policy.shard.fallback = ShardFallback::Widen;
    assert!(!members.contains(&bench.to(&shard(5))), "any other endpoint");
    let copy = Wish { attempt: Attempt::Hedge, ..shard(5) };
    assert!(bench.wish(&copy).is_err(), "a copy never leaves the shard");
    bench.policy.shard.key = None;
    assert!(bench.wish(&shard(5)).is_ok(), "no shards, no bounds");
}

#[test]
fn members_that_drain_are_a_shards_last_resort() {
    let mut bench = sharded(6, 2, ShardFallback::Fail, Balance::P2c);
    let members: BTreeSet<u16> =
        (0..40).map(|_| bench.wish(&shard(9)).unwrap().endpoint().spec().address.port()).collect();
    let draining = |from: Vec<EndpointSpec>, count: usize| -> Vec<EndpointSpec> {
        let out: Vec<u16> = members.iter().copied().take(count).collect();
        from.into_iter()
            .map(|spec| EndpointSpec { serving: !out.contains(&spec.address.port()), ..spec })
            .collect()
    };
    bench.update(draining(specs(6), 1));
    let used: BTreeSet<u16> =
        (0..40).map(|_| bench.wish(&shard(9)).unwrap().endpoint().spec().address.port()).collect();
    assert_eq!(used.len(), 1, "one still serves");
    bench.update(draining(specs(6), 2));
    assert!(members.contains(&bench.wish(&shard(9)).unwrap().endpoint().spec().address.port()));
    bench.policy.shard.fallback = ShardFallback::Widen;
    assert!(!members.contains(&bench.wish(&shard(9)).unwrap().endpoint().spec().address.port()));
    bench.policy.shard.fallback = ShardFallback::Fail;
    bench.policy.panic = Share::percent(0);
    assert_eq!(bench.wish(&shard(9)).err(), Some(NoEndpoint::Shard));
}

/// Of 28 shards one is poisoned: its endpoints err, and are ejected. One retry within the shard serves everybody else.
#[test]
fn one_retry_finds_what_a_poison_tenant_left() {
    let mut bench = sharded(8, 2, ShardFallback::Fail, Balance::P2c);
    let poisoned: BTreeSet<u64> = (0..40).map(|_| bench.to(&shard(0))).collect();
    let (mut down, mut served_at_once) = (0, 0);
    for key in (1..2_001).map(crate::key::scramble) {
        let first = bench.to(&shard(key));
        if !poisoned.contains(&first) {
            served_at_once += 1;
            continue;
        }
        let retry = Wish { attempt: Attempt::Retry, tried: &[first], ..shard(key) };
        down += u32::from(poisoned.contains(&bench.to(&retry)));
    }
    assert!((40..=110).contains(&down), "{down} of 2000, 71 is a 28th");
    assert!(
        served_at_once > 1_300,
        "{served_at_once}: three quarters miss the poisoned two at first"
    );
}

#[test]
fn one_key_goes_to_one_endpoint_and_its_next_when_that_is_out() {
    let mut bench = hashed(10);
    for key in 0..30 {
        let home = bench.to(&hash(key));
        for _ in 0..10 {
            assert_eq!(bench.to(&hash(key)), home);
        }
        let copy = Wish { attempt: Attempt::Hedge, tried: &[home], ..hash(key) };
        let next = bench.to(&copy);
        let retry = Wish { attempt: Attempt::Retry, ..copy };
        assert!(next != home && bench.to(&retry) == next, "the order is the key's");
    }
    let home = bench.to(&hash(1));
    let next = bench.to(&Wish { attempt: Attempt::Retry, tried: &[home], ..hash(1) });
    bench.fail_until_out(home);
    assert_eq!(bench.to(&hash(1)), next);
    bench.now += 300 * S;
    assert_eq!(bench.to(&hash(1)), home, "it comes back");
    let keyless: BTreeSet<u64> = (0..100).map(|_| bench.to(&Wish::FIRST)).collect();
    assert!(keyless.len() > 5, "requests without the key are spread");
}

#[test]
fn within_a_shard_a_key_has_its_order_too() {
    let mut bench = hashed(12);
    (bench.policy.shard.key, bench.policy.shard.size) = (Some(KeySource::Identity), 3);
    let of = |bench: &mut Bench, hash: u64| {
        bench.to(&Wish { shard: Some(4), hash: Some(hash), ..Wish::FIRST })
    };
    let homes: BTreeSet<u64> = (0..60).map(|key| of(&mut bench, key)).collect();
    assert_eq!(homes.len(), 3);
    assert!((0..60).all(|key| of(&mut bench, key) == of(&mut bench, key)));
}

proptest! {
    #[test]
    fn hashing_disturbs_only_whose_endpoint_went(count in 2u16..40, gone in any::<prop::sample::Index>()) {
        let mut bench = hashed(count);
        let before: Vec<u64> = (0..200).map(|key| bench.to(&hash(key))).collect();
        let mut fewer = specs(count);
        let left = bench.serial(gone.index(usize::from(count)));
        fewer.remove(gone.index(usize::from(count)));
        bench.update(fewer);
        for (key, home) in (0..200).zip(before) {
            let now = bench.to(&hash(key));
            prop_assert!(now == home || home == left);
        }
    }

    /// However the keys are spread: nobody has more than the bound allows, and one that is rounded up.
    #[test]
    fn the_bound_holds_for_any_keys(
        count in 1u16..20, bound in 1_000u32..3_000, hot in 1u64..10, picks in 1usize..300,
        weights in prop::collection::vec(1u32..4, 20),
    ) {
        let mut bench = hashed(0);
        bench.update(specs(count).into_iter().zip(weights).map(|(spec, weight)| EndpointSpec { weight, ..spec }).collect());
        bench.policy.hash.bound = Factor::thousandths(bound);
        bench.policy.slow_start = Duration::ZERO;
        let set = bench.balancer.endpoints();
        let total: u32 = set.iter().map(|endpoint| endpoint.spec().weight).sum();
        let mut tickets = Vec::new();
        for pick in 0..picks {
            let ticket = bench.wish(&hash(pick as u64 % hot)).unwrap();
            let endpoint = ticket.endpoint().clone();
            tickets.push(ticket);
            let mean = tickets.len() as f64 * f64::from(endpoint.spec().weight) / f64::from(total);
            prop_assert!(f64::from(endpoint.in_flight()) < bench.policy.hash.bound.times() * mean + 1.0 + 1e-9);
            if pick % 3 == 2 {
                drop(tickets.remove(pick % tickets.len()));
            }
        }
    }
}

/// Four endpoints in each of three zones; ours is `a`.
fn zoned() -> Bench {
    let mut bench = Bench::new(0, Balance::P2c);
    bench.policy.slow_start = Duration::ZERO;
    bench.zones(&["a", "b", "c"]);
    bench
}

impl Bench {
    fn zones(&self, zones: &[&str]) {
        let zoned = specs(12).into_iter().enumerate().map(|(index, spec)| EndpointSpec {
            zone: zones.get(index / 4).map(|zone| Arc::from(*zone)),
            ..spec
        });
        self.balancer.update(self.now, zoned.collect(), Some("a"));
    }

    /// The share of first attempts that go to the zone.
    fn stay(&mut self) -> f64 {
        let near = (0..2_000).filter(|_| {
            let mut ticket = self.first();
            ticket.head(self.now, Verdict::Success);
            ticket.endpoint().spec().zone.as_deref() == Some("a")
        });
        near.count() as f64 / 2_000.0
    }
}

#[test]
fn the_own_zone_is_preferred_and_nothing_is_lost_without_one() {
    for balance in ALL {
        let mut bench = zoned();
        bench.policy.balance = balance;
        let stay = bench.stay();
        assert!((0.95..1.0).contains(&stay), "{balance:?}: {stay} stay, and some look elsewhere");
        bench.policy.zone = Zone::Any;
        let stay = bench.stay();
        assert!((0.25..0.42).contains(&stay), "{balance:?}: {stay}, a third is even");
        bench.policy.zone = Zone::Prefer;
        bench.zones(&["b", "b", "c"]);
        assert_eq!(bench.stay(), 0.0, "nobody is in our zone: the others are used");
        bench.zones(&["a", "a", "a"]);
        assert_eq!(bench.stay(), 1.0);
        bench.zones(&["a"]);
        assert!(bench.stay() > 0.95, "{balance:?}: those without a zone are elsewhere");
    }
}

#[test]
fn a_zone_that_is_out_is_left_evenly() {
    let mut bench = zoned();
    bench.policy.eject.max = Share::percent(100);
    for index in 0..4 {
        bench.fail_until_out(bench.serial(index));
    }
    let spread = bench.spread(4_000);
    assert!((0..4).all(|index| !spread.contains_key(&index)), "{spread:?}");
    assert!((4..12).all(|index| (350..650).contains(&spread[&index])), "{spread:?}, 500 is even");
}

#[test]
fn explain_says_what_a_key_means() {
    let mut bench = hashed(6);
    (bench.policy.shard.key, bench.policy.shard.size) = (Some(KeySource::Identity), 2);
    let both = Wish { shard: Some(3), hash: Some(4), ..Wish::FIRST };
    let verdict = |bench: &Bench, wish: &Wish<'_>, filter: &str| -> Vec<(bool, String)> {
        let reports = bench.balancer.explain(bench.now, &bench.policy, wish);
        let of = |report: &crate::EndpointReport| {
            let verdict = report.verdicts.iter().find(|verdict| verdict.filter == filter);
            verdict.map(|verdict| (verdict.pass, verdict.why.clone()))
        };
        reports.iter().filter_map(of).collect()
    };
    let members: Vec<bool> =
        verdict(&bench, &both, "shard").iter().map(|(pass, _)| *pass).collect();
    assert_eq!(members.iter().filter(|&&member| member).count(), 2);
    let to = bench.to(&both);
    let index = (0..6).find(|&index| bench.serial(index) == to).unwrap();
    assert!(members[index], "what explain says is what a pick does");
    bench.policy.shard.key = None;
    assert!(verdict(&bench, &both, "shard").is_empty());
    let order = verdict(&bench, &both, "hash");
    let to = bench.to(&both);
    let first = (0..6).find(|&index| bench.serial(index) == to).unwrap();
    assert_eq!(order[first], (true, "number 1 in the order of this key".to_owned()));
    let mut places: Vec<String> = order.into_iter().map(|(_, why)| why).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 6);
    assert!(verdict(&bench, &Wish::FIRST, "hash").iter().all(|(pass, _)| *pass));

    let bench = zoned();
    let zones = verdict(&bench, &Wish::FIRST, "zone");
    assert!(zones.iter().all(|(pass, _)| *pass), "a preference: {zones:?}");
    let away = |(_, why): &(bool, String)| why.contains("another zone");
    assert!(!zones[..4].iter().any(away) && zones[4..].iter().all(away), "{zones:?}");
}

use std::sync::Arc;

use evenkeel_config::policy::{Balance, Factor, KeySource, Share};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::endpoint::{EndpointSpec, Hop};
use crate::ticket::Verdict;

const MS: Duration = Duration::from_millis(1);

/// Endpoints whose answers take as long as the test says, each asked in turn.
struct Bench {
    balancer: Balancer,
    hedger: Hedger,
    retries: Budget,
    now: Instant,
    rng: SmallRng,
    policy: Policy,
}

impl Bench {
    #[allow(clippy::disallowed_methods)]
    fn new(zones: &[Option<&str>]) -> Bench {
        let now = Instant::now();
        let mut policy = Policy { balance: Balance::RoundRobin, ..Policy::default() };
        policy.hedge.mode = Mode::Enforce;
        policy.slow_start = Duration::ZERO;
        let bench = Bench {
            balancer: Balancer::new(now),
            hedger: Hedger::new(now),
            retries: Budget::new(now),
            now,
            rng: SmallRng::seed_from_u64(1),
            policy,
        };
        let specs = zones.iter().enumerate().map(|(index, zone)| {
            let address = ([127, 0, 0, 1], 1_000 + index as u16).into();
            EndpointSpec {
                node: 1,
                instance: Arc::from(format!("i{index}")),
                address,
                dial: address,
                hop: Hop::Direct,
                protocol: None,
                weight: 1,
                zone: zone.map(Arc::from),
                serving: true,
                preserved: false,
            }
        });
        bench.balancer.update(now, specs.collect(), None);
        bench
    }

    /// For so many seconds 100 requests a second, each endpoint answering after its milliseconds.
    fn seconds(&mut self, seconds: u32, millis: &[u32]) {
        for _ in 0..seconds * 100 {
            self.now += 10 * MS;
            self.hedger.request(self.now);
            let mut ticket =
                self.balancer.pick(self.now, &mut self.rng, &self.policy, &Wish::FIRST).unwrap();
            let index = usize::from(ticket.endpoint().spec().address.port()) - 1_000;
            ticket.head(self.now + millis[index] * MS, Verdict::Success);
        }
    }

    fn probe(&self) -> Option<Ticket> {
        self.probe_for(&Wish::FIRST)
    }

    fn probe_for(&self, wish: &Wish<'_>) -> Option<Ticket> {
        self.balancer.probe_due(self.now, &self.policy, wish, &self.hedger, &self.retries)
    }

    fn out(&self) -> Vec<usize> {
        let endpoints = self.balancer.endpoints();
        (0..endpoints.len()).filter(|&index| endpoints[index].on_probation()).collect()
    }
}

const FOUR: [Option<&str>; 4] = [None; 4];

#[test]
fn the_slow_one_goes_is_probed_and_returns() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(5, &[10, 10, 10, 10]);
    assert!(bench.out().is_empty() && bench.probe().is_none());
    bench.seconds(1, &[10, 10, 90, 10]);
    assert!(bench.out().is_empty(), "a second is not long enough");
    bench.seconds(5, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    let before = bench.balancer.endpoints()[2].in_flight();
    let probe = bench.probe().expect("one is due");
    assert_eq!(probe.endpoint().serial(), bench.balancer.endpoints()[2].serial());
    assert_eq!((probe.endpoint().in_flight(), bench.balancer.circuit().copies()), (before + 1, 1));
    assert!(bench.probe().is_none(), "the next is not due");
    drop(probe);
    assert_eq!(bench.balancer.circuit().copies(), 0);
    let probes = |bench: &mut Bench, count: u32, latency: Duration| {
        for _ in 0..count {
            bench.seconds(1, &[10, 10, 10, 10]);
            bench.probe().expect("one is due").head(bench.now + latency, Verdict::Success);
        }
    };
    probes(&mut bench, 8, 90 * MS);
    assert_eq!(bench.out(), [2], "it is still slow");
    probes(&mut bench, 6, 25 * MS);
    assert_eq!(bench.out(), [2], "2.5 times is still too near to 3 times");
    let mut more = 0;
    while !bench.out().is_empty() {
        probes(&mut bench, 1, 10 * MS);
        bench.seconds(1, &[10, 10, 10, 10]);
        more += 1;
    }
    assert!((3..=8).contains(&more), "{more} probes that were well");
    let counts = bench.balancer.probations();
    assert_eq!((counts.entered, counts.left, counts.probes), (1, 1, 15 + more));
    assert_eq!(bench.balancer.endpoints()[2].probations(), 1);
}

#[test]
fn without_copies_a_few_requests_are_the_probes() {
    for mode in [Mode::Off, Mode::Observe] {
        let mut bench = Bench::new(&FOUR);
        bench.policy.hedge.mode = mode;
        bench.seconds(8, &[10, 10, 90, 10]);
        assert_eq!(bench.out(), [2]);
        assert!(bench.probe().is_none(), "no copies are allowed");
        bench.seconds(60, &[10, 10, 90, 10]);
        let trials = bench.balancer.probations().trials;
        assert!((12..=60).contains(&trials), "{trials} of 6000 requests");
        bench.seconds(40, &[10, 10, 10, 10]);
        assert!(bench.out().is_empty());
    }
}

/// Copies are allowed and no request may be copied: then nobody asks for probes.
#[test]
fn where_nothing_may_be_copied_one_request_each_five_seconds_is_a_probe() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(8, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    bench.seconds(60, &[10, 10, 90, 10]);
    let trials = bench.balancer.probations().trials;
    assert!((9..=12).contains(&trials), "{trials} in a minute");
}

#[test]
fn probes_are_paid_for() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(8, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    let mut probes = 0;
    for _ in 0..60 {
        bench.now += Duration::from_millis(500);
        probes += u32::from(bench.probe().is_some());
    }
    assert!((1..=40).contains(&probes), "{probes} for the 800 requests before, a twentieth");
}

#[test]
fn other_zones_are_not_its_peers() {
    let mut bench = Bench::new(&[Some("a"), Some("a"), Some("a"), Some("b"), Some("b")]);
    bench.seconds(20, &[1, 1, 1, 9, 9]);
    assert!(bench.out().is_empty(), "zone b is further away");
    bench.seconds(10, &[1, 1, 1, 40, 9]);
    assert_eq!(bench.out(), [3]);
}

#[test]
fn fractions_of_a_millisecond_are_not_slow_and_a_few_answers_say_nothing() {
    let mut bench = Bench::new(&FOUR);
    bench.policy.probation.min_requests = 400;
    bench.seconds(15, &[10, 10, 90, 10]);
    assert!(bench.out().is_empty(), "375 answers");
    bench.policy.probation.slower_than = None;
    bench.seconds(15, &[10, 10, 90, 10]);
    assert!(bench.out().is_empty(), "it is off");
    let mut bench = Bench::new(&FOUR);
    for _ in 0..3_000 {
        bench.now += 10 * MS;
        let mut ticket =
            bench.balancer.pick(bench.now, &mut bench.rng, &bench.policy, &Wish::FIRST).unwrap();
        let slow = ticket.endpoint().spec().address.port() == 1_002;
        ticket.head(bench.now + if slow { MS } else { MS / 10 }, Verdict::Success);
    }
    assert!(bench.out().is_empty());
}

#[test]
fn a_policy_that_switches_it_off_uses_all_again() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(8, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    let seen = |bench: &mut Bench| {
        let picks: Vec<u16> = (0..40)
            .map(|_| {
                let mut ticket = bench
                    .balancer
                    .pick(bench.now, &mut bench.rng, &bench.policy, &Wish::FIRST)
                    .unwrap();
                ticket.head(bench.now, Verdict::Success);
                ticket.endpoint().spec().address.port()
            })
            .collect();
        picks.contains(&1_002)
    };
    assert!(!seen(&mut bench));
    bench.policy.probation.slower_than = None;
    assert!(seen(&mut bench));
    bench.policy.probation.slower_than = Some(Factor::thousandths(3_000));
    assert!(!seen(&mut bench));
    // When the others are gone, slow is better than nothing.
    let others: Vec<u64> =
        (0..4).filter(|&i| i != 2).map(|i| bench.balancer.endpoints()[i].serial()).collect();
    let wish = Wish { attempt: Attempt::Retry, tried: &others, ..Wish::FIRST };
    let ticket = bench.balancer.pick(bench.now, &mut bench.rng, &bench.policy, &wish).unwrap();
    assert_eq!(ticket.endpoint().spec().address.port(), 1_002);
    let copy = Wish { attempt: Attempt::Hedge, ..wish };
    assert!(bench.balancer.pick(bench.now, &mut bench.rng, &bench.policy, &copy).is_err());
}

#[test]
fn the_typical_latency_is_a_mean_of_logarithms() {
    let probation = Probation::default();
    (0..1_000).for_each(|_| probation.answered(2_000_000, false));
    assert_eq!(probation.typical().1, 1_000);
    probation.answered(2_000_000_000, false);
    let after = probation.typical().0;
    assert!(after < Duration::from_millis(3), "one long poll: {after:?}");
    probation.given_up(1_000, false);
    assert_eq!(probation.typical().0, after, "it is known to take longer than that");
    (0..40).for_each(|_| probation.given_up(4_000_000, false));
    assert!(probation.typical().0 > Duration::from_millis(8));
}

#[test]
fn a_probe_stays_in_its_requests_shard() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(8, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    (bench.policy.shard.key, bench.policy.shard.size) = (Some(KeySource::Identity), 2);
    let set = bench.balancer.endpoints();
    let mut outside = 0;
    for key in 0..100 {
        bench.now += MS;
        let wish = Wish { shard: Some(key), ..Wish::FIRST };
        let inside = set.shard(key, 2).contains(2);
        let probe = bench.probe_for(&wish);
        assert!(inside || probe.is_none(), "{key}");
        outside += u32::from(!inside);
        bench.now += Duration::from_millis(250) * u32::from(probe.is_some());
    }
    assert!((30..70).contains(&outside), "{outside}: half of the shards have it");
    assert!(bench.balancer.probations().probes > 10);
}

/// Several workers find the same probe due, because in a shard each request looks.
#[test]
fn of_several_workers_one_gets_the_probe() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(8, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    (bench.policy.shard.key, bench.policy.shard.size) = (Some(KeySource::Identity), 4);
    bench.policy.hedge.budget = Share::percent(100);
    let wish = Wish { shard: Some(1), ..Wish::FIRST };
    for round in 0..200 {
        bench.now += Duration::from_millis(250);
        (0..10).for_each(|_| bench.hedger.request(bench.now));
        let (bench, start) = (&bench, std::sync::Barrier::new(4));
        let probes = std::thread::scope(|scope| {
            let worker = || {
                start.wait();
                bench.probe_for(&wish)
            };
            let workers = [(); 4].map(|()| scope.spawn(worker));
            workers.into_iter().filter_map(|worker| worker.join().unwrap()).count()
        });
        assert!(probes <= 1, "{probes} in round {round}");
        assert_eq!(
            (bench.balancer.circuit().requests(), bench.balancer.circuit().copies()),
            (0, 0)
        );
    }
    let (counts, (_, paid)) = (bench.balancer.probations(), bench.retries.recent(bench.now));
    assert!(counts.probes >= 30, "{counts:?}");
    assert!(paid <= 41, "{paid} paid for in the last 10 s, of {counts:?}");
}

/// Costly keys make their endpoint slow: to send them elsewhere would make the next one slow.
#[test]
fn endpoints_that_serve_different_keys_are_not_compared() {
    let mut bench = Bench::new(&FOUR);
    bench.policy.balance = Balance::Hash;
    bench.policy.hash.key = Some(KeySource::Address);
    bench.seconds(10, &[10, 10, 90, 10]);
    assert!(bench.out().is_empty());
}

#[test]
fn one_that_is_left_without_peers_returns() {
    let mut bench = Bench::new(&FOUR);
    bench.seconds(5, &[10, 10, 10, 10]);
    bench.seconds(6, &[10, 10, 90, 10]);
    assert_eq!(bench.out(), [2]);
    let specs: Vec<EndpointSpec> =
        bench.balancer.endpoints().iter().map(|endpoint| endpoint.spec().clone()).collect();
    // Another zone is no peer.
    let elsewhere = specs.iter().enumerate().map(|(index, spec)| EndpointSpec {
        zone: Some(Arc::from(if index == 2 { "a" } else { "b" })),
        ..spec.clone()
    });
    bench.balancer.update(bench.now, elsewhere.collect(), None);
    let mut left = 60;
    while !bench.out().is_empty() {
        assert!(left > 0, "nobody is left to be slower than");
        left -= 1;
        bench.seconds(1, &[10, 10, 90, 10]);
    }
}

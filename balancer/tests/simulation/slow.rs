//! Endpoints that are slow, and probation: who goes, who stays, who comes back.

use evenkeel_balancer::ProbationCounts;
use evenkeel_config::policy::{Balance, Policy, Probation};

use crate::backend::{Backend, MS, S, Service};
use crate::measured::{Measured, Summary};
use crate::seeds;
use crate::world::{Load, World, hedged, unhedged};

const ALL: [Balance; 4] =
    [Balance::P2c, Balance::LeastRequest, Balance::RoundRobin, Balance::Random];

/// `count` backends, the first `slow` of them `times` slower from, to.
fn backends(count: usize, slow: usize, from: u64, to: u64, times: f64) -> Vec<Backend> {
    let mut backends = vec![Backend::new(8); count];
    backends[..slow].iter_mut().for_each(|backend| backend.slow = vec![(from, to, times)]);
    backends
}

fn counts(world: &World) -> ProbationCounts {
    world.balancer.probations()
}

#[test]
fn two_slow_ones_of_sixteen_do_not_show() {
    for balance in ALL {
        for policy in [unhedged(balance), Policy { balance, ..hedged() }] {
            let name = format!("{balance:?}, {:?}", policy.hedge.mode);
            let load = Load::new(policy, 500, Service::Steady(2 * MS), 20);
            let run = |seed, slow| {
                World::new(seed, load.clone(), backends(14 + slow, slow, 0, u64::MAX, 16.0))
                    .finish()
            };
            let fast: Vec<Measured> = seeds(3).map(|seed| run(seed, 0)).collect();
            let mixed: Vec<Measured> = seeds(3).map(|seed| run(seed, 2)).collect();
            let (fast, mixed) = (
                Summary::of(&format!("{name}, 14 fast"), &fast),
                Summary::of(&format!("{name}, and 2 slow"), &mixed),
            );
            assert!(mixed.p99.0 <= 1.1 * fast.p99.0, "{name}: {mixed:?} against {fast:?}");
        }
    }
}

/// What probation alone does: without it a way of choosing that does not look at latency shows the slow ones.
#[test]
fn without_probation_they_show() {
    let mut policy = unhedged(Balance::RoundRobin);
    policy.probation.slower_than = None;
    let load = Load::new(policy, 500, Service::Steady(2 * MS), 10);
    let mut world = World::new(1, load, backends(16, 2, 0, u64::MAX, 16.0));
    world.run(15 * S);
    assert_eq!(counts(&world).entered, 0);
    assert!(world.finish().quantile_ms(0.99) > 20.0, "they must hurt, or nothing is shown");
}

#[test]
fn they_return_within_seconds_of_getting_well() {
    for (policy, within) in
        [(Policy { balance: Balance::RoundRobin, ..hedged() }, 8), (unhedged(Balance::Random), 20)]
    {
        let name = format!("{:?}, {:?}", policy.balance, policy.hedge.mode);
        let load = Load::new(policy, 500, Service::Steady(2 * MS), 85);
        let mut world = World::new(1, load, backends(16, 2, 0, 40 * S, 16.0));
        world.run(40 * S);
        assert_eq!((counts(&world).out, counts(&world).entered), (2, 2), "{name}");
        world.run((40 + within) * S);
        assert_eq!(counts(&world).out, 0, "{name}: {:?}", counts(&world));
        world.run(70 * S);
        let before = world.result.firsts.clone();
        world.run(90 * S);
        for backend in 0..2 {
            let share = (world.result.firsts[&backend] - before[&backend]) as f64 / 10_000.0 * 16.0;
            assert!((0.7..1.3).contains(&share), "{name}: {share} of its fair share");
        }
        assert_eq!(counts(&world).entered, 2, "{name}: nobody went again");
        world.finish();
    }
}

/// Nobody goes: all are slow together; one is fast; a few answers are slow; all are alike and busy; there are long polls, or short pauses.
#[test]
fn who_is_not_slower_than_most_stays() {
    let service = Service::Exponential(5 * MS);
    for balance in ALL {
        for policy in [unhedged(balance), Policy { balance, ..hedged() }] {
            let load = Load::new(policy, 800, service, 60);
            let stay = |what: &str, load: &Load, backends: Vec<Backend>| {
                let mut world = World::new(2, load.clone(), backends);
                world.run(65 * S);
                assert_eq!(counts(&world).entered, 0, "{balance:?}: {what}");
                world.finish();
            };
            stay("together", &load, backends(16, 16, 20 * S, 40 * S, 16.0));
            stay("one is fast", &load, backends(16, 15, 20 * S, u64::MAX, 16.0));
            stay(
                "alike and busy",
                &Load { rate_per_sec: 2_600, end: 30 * S, ..load.clone() },
                vec![Backend::new(2); 8],
            );
            stay(
                "long polls",
                &Load { long_poll_share: 0.01, ..load.clone() },
                backends(8, 0, 0, 0, 1.0),
            );
            let mut pausing = backends(8, 0, 0, 0, 1.0);
            for backend in 0..4 {
                pausing[backend as usize].pause((20 + backend) * S, (20 + backend) * S + 700 * MS);
            }
            stay("pauses", &load, pausing);
        }
    }
}

/// Slow for five seconds, well for five: in rotation ever less, so seldom more than a few times.
#[test]
fn one_that_flaps_does_not_come_and_go_with_it() {
    let load = Load::new(unhedged(Balance::RoundRobin), 500, Service::Steady(2 * MS), 295);
    let mut backends = backends(8, 0, 0, 0, 1.0);
    backends[0].slow = (0..30).map(|turn| (turn * 10 * S, (turn * 10 + 5) * S, 16.0)).collect();
    let mut world = World::new(3, load, backends);
    world.run(300 * S);
    let counts = counts(&world);
    assert!((2..=8).contains(&counts.entered), "30 times slow: {counts:?}");
    world.finish();
}

/// In a small set one can go, and one always stays; at most half go.
#[test]
fn half_of_them_stay() {
    for (count, slow, out) in [(1, 1, 0), (2, 1, 1), (3, 1, 1), (4, 2, 2), (5, 2, 2)] {
        let load = Load::new(unhedged(Balance::RoundRobin), 300, Service::Steady(2 * MS), 15);
        let mut world = World::new(4, load, backends(count, slow, 5 * S, u64::MAX, 16.0));
        world.run(20 * S);
        assert_eq!(counts(&world).out, out, "{slow} of {count}");
        world.finish();
    }
}

/// All replicas are eight times slower for twenty seconds, idle and busy: copies stay within their budget and make nothing worse.
#[test]
fn when_all_are_slow_together_copies_do_no_harm() {
    for rate in [400, 2_000] {
        let run = |policy: Policy| {
            let load = Load::new(policy, rate, Service::Exponential(2 * MS), 40);
            let runs: Vec<Measured> = seeds(3)
                .map(|seed| {
                    World::new(seed, load.clone(), backends(8, 8, 15 * S, 35 * S, 8.0)).finish()
                })
                .collect();
            Summary::of(&format!("all slow, {rate}/s, {:?}", load.policy.hedge.mode), &runs)
        };
        let (with, without) = (run(hedged()), run(unhedged(Balance::P2c)));
        assert!(with.extra.1 <= 5.0, "{with:?}");
        assert!(with.p99.0 <= 1.02 * without.p99.0, "{with:?} against {without:?}");
    }
}

/// Somebody else's work makes 4 of 16 hosts 2.5 times slower. In even shares these can take 160/s each; the load goes from
/// three quarters of what that makes in all to 1.74 times as much, which all together can well take.
#[test]
fn an_antagonist_on_some_hosts_does_not_show() {
    let run = |policy: Policy, times: f64| {
        let rate = (times * 160.0 * 16.0) as u64;
        let load = Load::new(policy, rate, Service::Exponential(10 * MS), 15);
        let runs: Vec<Measured> = seeds(2)
            .map(|seed| {
                let mut backends = vec![Backend::new(4); 16];
                backends[..4]
                    .iter_mut()
                    .for_each(|backend| backend.slow = vec![(0, u64::MAX, 2.5)]);
                World::new(seed, load.clone(), backends).finish()
            })
            .collect();
        Summary::of(&format!("antagonist, {times}, {:?}", load.policy.balance), &runs)
    };
    let even = Policy {
        probation: Probation { slower_than: None, ..Probation::default() },
        ..unhedged(Balance::RoundRobin)
    };
    for times in [0.75, 1.0, 1.27, 1.74] {
        let ours = run(hedged(), times);
        assert_eq!(ours.failed, 0);
        assert!(ours.p99.1 <= 80.0, "{times}: {ours:?}");
        if times == 1.27 {
            let even = run(even.clone(), times);
            assert!(ours.p99.0 <= even.p99.0 / 3.0, "{ours:?} against {even:?}");
        }
    }
}

//! Scouts against pauses and against antagonists, and what they cost where there is nothing to find.

use evenkeel_config::policy::{Balance, Policy, Scout, ScoutMode};
use rand::{SeedableRng, rngs::SmallRng};

use crate::backend::{Backend, MS, S, Service, US};
use crate::measured::{Measured, Summary};
use crate::seeds;
use crate::world::{Load, World, hedged, unhedged};

const STEADY: Service = Service::Steady(200 * US);

fn before_each(policy: Policy) -> Policy {
    Policy { scout: Scout { mode: ScoutMode::BeforeEach, ..Scout::default() }, ..policy }
}

fn beside(policy: Policy) -> Policy {
    Policy { scout: Scout { mode: ScoutMode::Pool, ..Scout::default() }, ..policy }
}

/// Six backends, each stopped for `length` about every `every`, 200 requests a second.
fn pausing(
    seed: u64,
    policy: &Policy,
    length: u64,
    every: u64,
    ports: bool,
    lossy: u32,
) -> Measured {
    let load = Load::new(policy.clone(), 200, STEADY, 30);
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut backends = vec![Backend::new(4); 6];
    for backend in &mut backends {
        backend.pause_at_random(&mut rng, length, every, load.end);
    }
    World::new(seed, load, backends).scouting(ports, lossy).finish()
}

fn runs(name: &str, count: u64, run: impl Fn(u64) -> Measured) -> Summary {
    Summary::of(name, &seeds(count).map(run).collect::<Vec<_>>())
}

#[test]
fn with_scouts_before_each_the_pauses_are_gone() {
    for (name, ports) in [("scout ports", true), ("by progress", false)] {
        let policy = before_each(hedged());
        let summary = runs(&format!("before_each, {name}"), 10, |seed| {
            pausing(seed, &policy, 100 * MS, S, ports, 0)
        });
        let (p99, p999) = if ports { (1.5, 5.0) } else { (3.0, 10.0) };
        assert!(summary.p99.0 <= p99 && summary.p999.0 <= p999, "{name}: {summary:?}");
        assert!(summary.extra.1 <= 5.0 && summary.failed == 0, "{name}: {summary:?}");
    }
}

#[test]
fn without_copies_scouts_alone_do() {
    let each = before_each(unhedged(Balance::P2c));
    let summary =
        runs("before_each, no copies", 10, |seed| pausing(seed, &each, 100 * MS, S, true, 0));
    assert!(summary.p99.0 <= 1.5, "{summary:?}");
    assert!(summary.failed == 0, "{summary:?}");
    // Nobody waits here: what goes out between a pause's beginning and the next scout meets it.
    let meet = |policy: &Policy| {
        let all: Vec<Measured> =
            seeds(5).map(|seed| pausing(seed, policy, 100 * MS, S, true, 0)).collect();
        let slow = |run: &Measured| run.latencies.iter().filter(|&&ns| ns > 2 * MS).count();
        all.iter().map(slow).sum::<usize>()
    };
    let (with, without) = (meet(&beside(unhedged(Balance::P2c))), meet(&unhedged(Balance::P2c)));
    assert!(2 * with <= without, "{with} requests meet a pause with scouts, {without} without");
}

#[test]
fn short_and_long_pauses() {
    for (length, every) in
        [(10 * MS, S), (50 * MS, S), (200 * MS, 2 * S), (500 * MS, 5 * S), (2 * S, 20 * S)]
    {
        let policy = before_each(hedged());
        let name = format!("before_each, {} ms every {} s", length / MS, every / S);
        let summary = runs(&name, 3, |seed| pausing(seed, &policy, length, every, true, 0));
        assert!(summary.p99.0 <= 1.5 && summary.p999.0 <= 5.0, "{name}: {summary:?}");
    }
}

/// One datagram of a hundred is lost each way: a lost scout costs its request a millisecond, and its endpoint no more than ten.
#[test]
fn lost_datagrams_cost_little() {
    let policy = before_each(hedged());
    let lossy =
        runs("before_each, 1 % lost", 5, |seed| pausing(seed, &policy, 100 * MS, S, true, 10));
    assert!(lossy.p99.0 <= 3.0 && lossy.p999.0 <= 10.0 && lossy.failed == 0, "{lossy:?}");
    let policy = before_each(unhedged(Balance::P2c));
    let all =
        runs("before_each, all lost", 3, |seed| pausing(seed, &policy, 1, 1_000 * S, true, 1_000));
    assert!(all.p999.1 <= 1.0, "a firewall costs nothing: {all:?}");
}

/// We are one client of eight, and half of the hosts are half as fast for half of the time, because of what else runs there. Two choices know only
/// our own requests in flight; scouts know everybody's.
#[test]
fn a_pool_sees_what_two_choices_do_not() {
    let run = |policy: &Policy, seed: u64| {
        let mut load = Load::new(policy.clone(), 300, Service::Exponential(5 * MS), 20);
        load.others = (0..24).map(|backend| (backend, 2_100 / 24)).collect();
        let mut backends = vec![Backend::new(1); 24];
        for (number, backend) in backends.iter_mut().enumerate().take(12) {
            let shift = number as u64 * 500 * MS;
            let slow = |n: u64| (shift + 6 * n * S, shift + (6 * n + 3) * S, 2.0);
            backend.slow = (0..6).map(slow).collect();
        }
        World::new(seed, load, backends).finish()
    };
    let of = |name: &str, policy: &Policy| runs(name, 3, |seed| run(policy, seed));
    let p2c = of("antagonists, p2c", &unhedged(Balance::P2c));
    let least = of("antagonists, least_request", &unhedged(Balance::LeastRequest));
    let pool = of("antagonists, pool", &unhedged(Balance::Scout));
    assert!(pool.p99.0 <= 0.8 * p2c.p99.0, "{pool:?} against {p2c:?}");
    assert!(pool.p99.0 <= 0.8 * least.p99.0, "{pool:?} against {least:?}");
}

/// Alike endpoints: what the pool's choice costs against one at random, as for two choices.
#[test]
fn uniform_load_costs_no_more_than_at_random() {
    for rate in [1_600, 2_560] {
        let run = |policy: &Policy| {
            let load = Load::new(policy.clone(), rate, Service::Exponential(5 * MS), 10);
            let one = |seed| World::new(seed, load.clone(), vec![Backend::new(2); 8]).finish();
            let runs: Vec<Measured> = seeds(3).map(one).collect();
            let mean = runs.iter().map(Measured::mean_ms).sum::<f64>() / runs.len() as f64;
            let name = format!(
                "uniform {rate}/s, {:?}, {:?}, mean {mean:.2} ms",
                policy.balance,
                policy.scouting()
            );
            (mean, Summary::of(&name, &runs))
        };
        let (random_mean, random) = run(&unhedged(Balance::Random));
        for policy in [unhedged(Balance::Scout), beside(unhedged(Balance::P2c))] {
            let (mean, summary) = run(&policy);
            assert!(
                mean <= 1.03 * random_mean,
                "mean {mean} ms against {random_mean} ms at random"
            );
            assert!(summary.p99.0 <= 1.03 * random.p99.0, "{summary:?} against {random:?}");
        }
    }
}

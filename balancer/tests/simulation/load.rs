//! Slowness, growth and death of endpoints, and what balancing costs when there is nothing to balance.

use std::time::Duration;

use evenkeel_config::policy::{Balance, Policy};

use crate::backend::{Backend, MS, S, Service};
use crate::measured::{Measured, Summary};
use crate::seeds;
use crate::world::{Load, World, hedged, unhedged};

fn all(count: u64, run: impl Fn(u64) -> Measured) -> Vec<Measured> {
    seeds(count).map(run).collect()
}

fn share_of(run: &Measured, backend: usize) -> f64 {
    run.firsts.get(&backend).copied().unwrap_or_default() as f64 / run.requests as f64
}

/// Alike endpoints at half and at four fifths of their capacity: what the estimate's noise costs.
#[test]
fn uniform_load_costs_no_more_than_at_random() {
    for rate in [1_600, 2_560] {
        let run = |policy: Policy| {
            let load = Load::new(policy, rate, Service::Exponential(5 * MS), 10);
            let runs =
                all(3, |seed| World::new(seed, load.clone(), vec![Backend::new(2); 8]).finish());
            let mean = runs.iter().map(Measured::mean_ms).sum::<f64>() / runs.len() as f64;
            (
                mean,
                Summary::of(
                    &format!(
                        "uniform {rate}/s, {:?}, {:?}, mean {mean:.2} ms",
                        load.policy.balance, load.policy.hedge.mode
                    ),
                    &runs,
                ),
            )
        };
        let (random_mean, random) = run(unhedged(Balance::Random));
        for policy in [unhedged(Balance::P2c), hedged()] {
            let (mean, summary) = run(policy);
            assert!(
                mean <= 1.03 * random_mean,
                "mean {mean} ms against {random_mean} ms at random"
            );
            assert!(summary.p99.0 <= 1.03 * random.p99.0, "{summary:?} against {random:?}");
        }
    }
}

/// Buoyant's test of 2016: one of 11 goes from 167 ms to 2 s for half of the time.
#[test]
fn one_of_eleven_turns_slow() {
    let load = Load::new(hedged(), 1_000, Service::Steady(167 * MS), 60);
    let runs = all(1, |seed| {
        let mut backends = vec![Backend::new(500); 11];
        backends[0].slow = vec![(20 * S, 50 * S, 12.0)];
        World::new(seed, load.clone(), backends).finish()
    });
    Summary::of("one of 11 from 167 ms to 2 s", &runs);
    let late: usize =
        runs.iter().map(|run| run.latencies.iter().filter(|&&latency| latency > S).count()).sum();
    let requests: u64 = runs.iter().map(|run| run.requests).sum();
    assert!(
        late as f64 <= 0.000_1 * requests as f64,
        "{late} of {requests} took more than a second"
    );
}

#[test]
fn a_new_endpoint_starts_slowly_and_reaches_its_share() {
    for balance in [Balance::P2c, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let load = Load::new(unhedged(balance), 500, Service::Exponential(2 * MS), 60);
        let mut world = World::new(1, load, vec![Backend::new(8); 5]);
        world.known.remove(&4);
        world.update();
        world.run(10 * S);
        let share = |world: &mut World, until: u64| {
            let before =
                (world.result.requests, world.result.firsts.get(&4).copied().unwrap_or_default());
            world.run(until);
            let firsts = world.result.firsts.get(&4).copied().unwrap_or_default();
            (firsts - before.1) as f64 / (world.result.requests - before.0) as f64
        };
        assert!(share(&mut world, 11 * S) == 0.0);
        world.known.insert(4);
        world.update();
        let first_second = share(&mut world, 12 * S);
        assert!(
            (0.001..=0.08).contains(&first_second),
            "{balance:?}: {first_second} of the requests in its first second"
        );
        share(&mut world, 25 * S);
        let grown = share(&mut world, 60 * S);
        assert!(
            (0.12..=0.28).contains(&grown),
            "{balance:?}: {grown} of the requests when grown, 0.2 is fair"
        );
        world.finish();
    }
}

#[test]
fn a_dead_endpoint_costs_a_few_retries_and_comes_back() {
    for balance in [Balance::P2c, Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
        // None of the requests may be repeated once sent: what was not sent may.
        let load = Load {
            unsafe_share: 1.0,
            ..Load::new(unhedged(balance), 500, Service::Exponential(2 * MS), 90)
        };
        let mut backends = vec![Backend::new(8); 4];
        backends[0].down = vec![(10 * S, 30 * S)];
        let mut world = World::new(3, load, backends);
        world.run(30 * S);
        let extra = world.result.attempts - world.result.requests;
        assert!(
            (1..=6).contains(&extra),
            "{balance:?}: {extra} attempts at a dead endpoint in 20 s"
        );
        assert_eq!(world.result.failed, 0);
        world.run(60 * S);
        let before = (world.result.requests, world.result.firsts[&0]);
        world.run(90 * S);
        let share =
            (world.result.firsts[&0] - before.1) as f64 / (world.result.requests - before.0) as f64;
        assert!(
            (0.15..=0.35).contains(&share),
            "{balance:?}: {share} of the requests after its return, 0.25 is fair"
        );
        world.finish();
    }
}

#[test]
fn an_endpoint_that_fails_fast_draws_no_load() {
    for balance in [Balance::P2c, Balance::LeastRequest] {
        let mut policy = unhedged(balance);
        policy.eject.consecutive = 0; // the bias alone
        let load = Load::new(policy, 500, Service::Exponential(5 * MS), 30);
        let mut backends = vec![Backend::new(8); 4];
        backends[0].errs = vec![(5 * S, u64::MAX, 1.0)];
        let run = World::new(2, load, backends).finish();
        assert!(share_of(&run, 0) <= 0.03, "{balance:?}: {} of the requests", share_of(&run, 0));
    }
}

#[test]
fn an_endpoint_that_errs_is_ejected_ever_longer() {
    let mut policy = unhedged(Balance::RoundRobin);
    policy.eject.base = Duration::from_secs(1);
    let load = Load::new(policy, 500, Service::Exponential(5 * MS), 60);
    let mut backends = vec![Backend::new(8); 4];
    backends[0].errs = vec![(0, u64::MAX, 1.0)];
    let mut world = World::new(2, load, backends);
    world.run(60 * S);
    let endpoint = world.balancer.endpoints()[0].clone();
    assert!(
        (4..=6).contains(&endpoint.ejections()),
        "out for 1, 2, 4, 8, 16, 32 s and jitter: {}",
        endpoint.ejections()
    );
    let run = world.finish();
    assert!(share_of(&run, 0) < 0.005, "{} of the requests", share_of(&run, 0));
    assert_eq!(run.failed, 0, "another endpoint had the answer");
}

/// Three of four err: half of them are ejected at most, that is too many for this panic threshold, so all are used and nobody drowns the last.
#[test]
fn in_panic_all_are_used() {
    let mut policy = unhedged(Balance::Random);
    policy.panic = evenkeel_config::policy::Share::percent(60);
    let load = Load::new(policy, 500, Service::Exponential(5 * MS), 20);
    let mut backends = vec![Backend::new(8); 4];
    backends[..3].iter_mut().for_each(|backend| backend.errs = vec![(0, u64::MAX, 0.999)]);
    let run = World::new(2, load, backends).finish();
    let shares: Vec<f64> = (0..4).map(|backend| share_of(&run, backend)).collect();
    assert!(shares.iter().all(|share| (0.15..=0.35).contains(share)), "{shares:?}");
}

//! Replicas that stop for a moment: what hedging and the memory of silence are for.

use std::time::Duration;

use evenkeel_config::policy::{After, Balance, Hedge, Mode, Policy, Share};

use crate::backend::{Backend, MS, S, Service, US};
use crate::seeds;
use crate::world::{Load, Measured, World, median_and_worst};

fn hedged() -> Policy {
    let hedge = Hedge {
        mode: Mode::Enforce,
        after: After::Percentile(95.0),
        min: Duration::from_millis(1),
        budget: Share::percent(5),
        max: 2,
    };
    Policy { hedge, ..Policy::default() }
}

fn unhedged(balance: Balance) -> Policy {
    Policy { balance, hedge: Hedge { mode: Mode::Off, ..Hedge::default() }, ..Policy::default() }
}

/// `count` backends, each stopped for `length` about every `every`.
fn pausing(seed: u64, load: &Load, count: usize, length: u64, every: u64) -> Measured {
    use rand::{SeedableRng, rngs::SmallRng};
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut backends = vec![Backend::new(4); count];
    for backend in &mut backends {
        backend.pause_at_random(&mut rng, length, every, load.end);
    }
    World::new(seed, load.clone(), backends).finish()
}

fn print(name: &str, runs: &[Measured]) -> [(f64, f64); 4] {
    let figure = |of: fn(&Measured) -> f64| median_and_worst(runs.iter().map(of).collect());
    let figures = [
        figure(|run| run.quantile_ms(0.5)),
        figure(|run| run.quantile_ms(0.99)),
        figure(|run| run.quantile_ms(0.999)),
        figure(|run| 100.0 * run.extra()),
    ];
    let [p50, p99, p999, extra] = figures;
    println!(
        "{name:<44} p50 {:6.2} ms  p99 {:6.2} ({:6.2})  p99.9 {:6.2} ({:6.2})  extra {:5.2} % ({:5.2})",
        p50.0, p99.0, p99.1, p999.0, p999.1, extra.0, extra.1
    );
    figures
}

#[test]
fn sweep() {
    println!("median (worst) of the seeds");
    for (name, policy) in [
        ("random", unhedged(Balance::Random)),
        ("p2c", unhedged(Balance::P2c)),
        ("hedged p2c", hedged()),
        ("hedged least_request", Policy { balance: Balance::LeastRequest, ..hedged() }),
        ("hedged rr", Policy { balance: Balance::RoundRobin, ..hedged() }),
    ] {
        let load = Load::new(policy, 200, Service::Steady(200 * US), 60);
        let runs: Vec<Measured> =
            seeds(20).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
        print(name, &runs);
    }
    for (pause, every) in [
        (10 * MS, S),
        (30 * MS, S),
        (50 * MS, S),
        (100 * MS, S),
        (200 * MS, S),
        (200 * MS, 5 * S),
        (500 * MS, 5 * S),
        (2 * S, 20 * S),
    ] {
        let load = Load::new(hedged(), 200, Service::Steady(200 * US), 60);
        let runs: Vec<Measured> =
            seeds(10).map(|seed| pausing(seed, &load, 6, pause, every)).collect();
        print(&format!("pause {} ms every {} ms", pause / MS, every / MS), &runs);
    }
    for service in [200 * US, MS, 5 * MS, 20 * MS, 50 * MS] {
        let load = Load::new(hedged(), 200, Service::Exponential(service), 60);
        let runs: Vec<Measured> =
            seeds(10).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
        print(&format!("exp. service {} us", service / US), &runs);
    }
    let mut load = Load::new(hedged(), 200, Service::Steady(200 * US), 60);
    load.timer_slack = 1_000 * US;
    let runs: Vec<Measured> = seeds(10).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
    print("timer up to 1 ms late", &runs);
    load.timer_slack = 100 * US;
    load.unsafe_share = 0.1;
    let runs: Vec<Measured> = seeds(10).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
    print("a tenth unsafe", &runs);
    load.unsafe_share = 0.0;
    load.impatient_share = 0.05;
    let runs: Vec<Measured> = seeds(10).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
    print("impatient 5 %", &runs);
    load.impatient_share = 0.0;
    load.long_poll_share = 0.01;
    let runs: Vec<Measured> = seeds(10).map(|seed| pausing(seed, &load, 6, 100 * MS, S)).collect();
    print("long poll 1 %", &runs);
    let load = Load::new(hedged(), 2000, Service::Steady(200 * US), 60);
    let runs: Vec<Measured> =
        seeds(10).map(|seed| pausing(seed, &load, 16, 200 * MS, 5 * S)).collect();
    print("16 backends, 200 ms every 5 s, 2000/s", &runs);
}

//! Anything at once, then peace: endpoints come and go, pause, slow down, err and die, callers go away; then all heals.
//!
//! During the faults the invariants hold (the world asserts them with every step: no copy where the request was already, copies within
//! their budget over any ten seconds); afterwards nothing is in flight and the load evens out within a bounded time.

use evenkeel_config::policy::{Balance, KeySource, Policy};
use rand::RngExt;

use crate::backend::{Backend, MS, S, Service, US};
use crate::seeds;
use crate::world::{Load, World, hedged};

const COUNT: usize = 8;
const PEACE: u64 = 30 * S;
/// By then an endpoint that was ejected, each time for twice as long as the storm has lasted at most, has started slowly and has its share again.
const HEALED: u64 = 105 * S;
const END: u64 = 135 * S;

fn storm(seed: u64, balance: Balance, keyed: bool) {
    let mut policy = Policy { balance, ..hedged() };
    policy.hash.key = Some(KeySource::Address);
    if keyed {
        (policy.shard.key, policy.shard.size) = (Some(KeySource::Identity), 3);
    }
    policy.eject.base = std::time::Duration::from_millis(100);
    let load = Load {
        unsafe_share: 0.2,
        impatient_share: 0.05,
        long_poll_share: 0.01,
        tenants: 200,
        warm_up: 0,
        end: END,
        ..Load::new(policy, 200, Service::Exponential(500 * US), 0)
    };
    let mut world = World::new(seed, load, vec![Backend::new(4); COUNT]);
    while world.now < PEACE {
        let next = world.now + world.rng.random_range(10 * MS..300 * MS);
        world.run(next);
        fault(&mut world);
    }
    world.known = (0..COUNT).collect();
    world.update();
    world.run(HEALED);
    let before = (world.result.requests, world.result.failed, world.result.firsts.clone());
    world.run(END);
    let requests = world.result.requests - before.0;
    assert_eq!(world.result.failed, before.1, "seed {seed}, {balance:?}: requests failed in peace");
    for backend in 0..COUNT {
        let firsts =
            world.result.firsts[&backend] - before.2.get(&backend).copied().unwrap_or_default();
        let share = firsts as f64 * COUNT as f64 / requests as f64;
        assert!(
            (0.25..=2.5).contains(&share),
            "seed {seed}, {balance:?}: backend {backend} has {share} of its fair share"
        );
    }
    world.finish();
}

fn fault(world: &mut World) {
    let (now, backend) = (world.now, world.rng.random_range(0..COUNT));
    let until = (now + world.rng.random_range(10 * MS..3 * S)).min(PEACE);
    match world.rng.random_range(0..8) {
        0 => {
            world.known.remove(&backend);
            world.update();
        }
        1 | 2 => {
            world.known.insert(backend);
            world.update();
        }
        3 if world.backends[backend].is_awake_from(now) => {
            world.backends[backend].pause(now, until);
        }
        4 => world.backends[backend].slow.push((now, until, 50.0)),
        5 => world.backends[backend].errs.push((now, until, world.rng.random_range(0.1..1.0))),
        6 => {
            world.backends[backend].down.push((now, until));
            world.reset_all_at(backend);
        }
        _ => world.balancer.own_pause(world.instant()),
    }
}

#[test]
fn faults_end() {
    for seed in seeds(4) {
        for balance in [
            Balance::P2c,
            Balance::LeastRequest,
            Balance::RoundRobin,
            Balance::Random,
            Balance::Hash,
        ] {
            storm(seed, balance, seed % 2 == 0);
        }
    }
}

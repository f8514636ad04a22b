//! The own zone first: how much stays when zones are alike, how the rest leaves, what a zone's failure does.

use evenkeel_config::policy::{Balance, Policy, Zone};

use crate::backend::{Backend, MS, S, Service};
use crate::measured::{Measured, Summary};
use crate::seeds;
use crate::world::{Load, World, unhedged};

/// Four backends in each of three zones; the client stands in the first.
const ZONES: [&str; 12] = ["a", "a", "a", "a", "b", "b", "b", "b", "c", "c", "c", "c"];

fn world(seed: u64, load: &Load, own_threads: usize, threads: usize) -> World {
    let backends =
        (0..12).map(|index| Backend::new(if index < 4 { own_threads } else { threads })).collect();
    let mut world = World::new(seed, load.clone(), backends);
    world.zones = ZONES.to_vec();
    world.update();
    world
}

fn policy(zone: Zone) -> Policy {
    Policy { zone, ..unhedged(Balance::P2c) }
}

fn stays(run: &Measured) -> f64 {
    let own: u64 = (0..4).filter_map(|backend| run.firsts.get(&backend)).sum();
    own as f64 / run.requests as f64
}

/// Each zone's clients load it alike, to three fifths: nothing is gained elsewhere.
#[test]
fn balanced_zones_keep_their_requests() {
    let run = |zone: Zone| {
        let mut load = Load::new(policy(zone), 960, Service::Exponential(5 * MS), 20);
        load.others = (4..12).map(|backend| (backend, 240)).collect();
        seeds(3).map(|seed| world(seed, &load, 2, 2).finish()).collect::<Vec<_>>()
    };
    let (prefer, any) = (run(Zone::Prefer), run(Zone::Any));
    for run in &prefer {
        println!("{:.3} stay", stays(run));
        assert!(stays(run) >= 0.95, "{} stay", stays(run));
    }
    let (prefer, any) =
        (Summary::of("balanced, prefer", &prefer), Summary::of("balanced, any", &any));
    assert!(prefer.p99.0 <= 1.1 * any.p99.0, "{prefer:?} against {any:?}");
}

/// The zone could serve a third of what its client sends.
#[test]
fn a_zone_with_too_little_capacity_spills_without_a_tail() {
    let run = |zone: Zone| {
        let load = Load::new(policy(zone), 2_400, Service::Exponential(5 * MS), 20);
        seeds(3).map(|seed| world(seed, &load, 1, 4).finish()).collect::<Vec<_>>()
    };
    let (prefer, any) = (run(Zone::Prefer), run(Zone::Any));
    for run in &prefer {
        println!("{:.3} stay", stays(run));
        assert!((0.1..0.34).contains(&stays(run)), "{} stay", stays(run));
    }
    let (prefer, any) =
        (Summary::of("a third, prefer", &prefer), Summary::of("a third, any", &any));
    assert!(prefer.p99.0 <= 1.15 * any.p99.0, "{prefer:?} against {any:?}");
}

/// The zone turns three times slower from one moment to the next: what it cannot serve any more leaves before a queue has grown.
#[test]
fn a_zone_that_loses_capacity_at_once_does_not_queue() {
    let run = |zone: Zone| {
        let mut load = Load::new(policy(zone), 960, Service::Exponential(5 * MS), 20);
        load.others = (4..12).map(|backend| (backend, 100)).collect();
        let runs = seeds(3).map(|seed| {
            let mut world = world(seed, &load, 2, 2);
            world.backends[..4]
                .iter_mut()
                .for_each(|backend| backend.slow = vec![(10 * S, 20 * S, 3.0)]);
            world.finish()
        });
        Summary::of(&format!("three times slower at once, {zone:?}"), &runs.collect::<Vec<_>>())
    };
    let (prefer, any) = (run(Zone::Prefer), run(Zone::Any));
    assert!(
        prefer.p99.0 <= 1.5 * any.p99.0 && prefer.p999.0 <= 1.5 * any.p999.0,
        "{prefer:?} against {any:?}"
    );
}

/// The own zone goes down, all of it at once, and comes back.
#[test]
fn a_zone_that_fails_is_left_evenly_and_returned_to() {
    for balance in [Balance::P2c, Balance::RoundRobin] {
        let load = Load::new(
            Policy { balance, ..policy(Zone::Prefer) },
            960,
            Service::Exponential(5 * MS),
            115,
        );
        let mut world = world(5, &load, 4, 4);
        world.backends[..4].iter_mut().for_each(|backend| backend.down = vec![(20 * S, 40 * S)]);
        let firsts = |world: &World| -> Vec<u64> {
            (0..12)
                .map(|backend| world.result.firsts.get(&backend).copied().unwrap_or_default())
                .collect()
        };
        world.run(25 * S);
        let before = firsts(&world);
        world.run(40 * S);
        let spread: Vec<u64> =
            firsts(&world).iter().zip(before).map(|(now, before)| now - before).collect();
        let (least, most) = (spread[4..].iter().min().unwrap(), spread[4..].iter().max().unwrap());
        assert!(*most < least * 14 / 10, "{balance:?}: {spread:?}");
        assert!(spread[..4].iter().sum::<u64>() < 200, "{balance:?}: {spread:?}");
        world.run(100 * S);
        let before = firsts(&world);
        world.run(120 * S);
        let own: u64 = firsts(&world)[..4].iter().sum::<u64>() - before[..4].iter().sum::<u64>();
        assert!(own > 17_500, "{balance:?}: {own} of 19200 in the zone again");
        assert_eq!(world.finish().failed, 0);
    }
}

//! What a deaf or a cut host says of others costs nobody else anything.

use std::time::Duration;

use evenkeel_discovery::Event;

use crate::seeds;
use crate::world::World;

/// Hosts that run, hear and are heard, and that another such host took for dead.
fn healthy_called_down(world: &World, sick: usize) -> usize {
    let sick_id = world.hosts[sick].id;
    world.downs.iter().filter(|(_, by, whom)| *by != sick && *whom != sick_id).count()
}

#[test]
fn a_deaf_host_calls_nobody_down() {
    for hosts in [4, 8, 20] {
        for seed in seeds(4) {
            let mut world = World::with_mesh(seed, hosts);
            // It is heard, but hears nobody.
            for other in (0..hosts).filter(|other| *other != 1) {
                world.network.cut.insert((other, 1));
            }
            world.run(Duration::from_secs(60));
            assert_eq!(healthy_called_down(&world, 1), 0, "{hosts} hosts, seed {seed}");
            world.network.cut.clear();
            world.converge(Duration::from_secs(20));
            assert_eq!(healthy_called_down(&world, 1), 0, "healed, {hosts} hosts, seed {seed}");
        }
    }
}

#[test]
fn a_host_that_was_cut_off_comes_back_without_calling_others_down() {
    for seed in seeds(6) {
        let mut world = World::with_mesh(seed, 8);
        for _ in 0..3 {
            world.isolate(1);
            world.run(Duration::from_secs(1 + seed % 20));
            world.network.cut.clear();
            world.converge(Duration::from_secs(30));
        }
        assert_eq!(healthy_called_down(&world, 1), 0, "seed {seed}");
        let refuted = |host: usize| {
            world.hosts[host].events.iter().filter(|(_, event)| *event == Event::Refuted).count()
        };
        let others: usize = (0..8).filter(|host| *host != 1).map(refuted).sum();
        assert_eq!(others, 0, "seed {seed}: only who was called down refutes");
    }
}

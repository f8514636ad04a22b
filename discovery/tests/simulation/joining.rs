//! Hosts that start in any order find each other, and say that they are ready when they have.

use std::time::Duration;

use evenkeel_discovery::Readiness;
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::seeds;
use crate::world::World;

#[test]
fn hosts_that_each_name_one_other_are_one_mesh_whatever_their_order() {
    for seed in seeds(12) {
        let mut world = World::new(seed);
        let size = 4 + seed as usize % 5;
        for _ in 0..size {
            world.add_host();
        }
        for host in 0..size {
            let named = if host == 0 { vec![] } else { vec![world.hosts[host - 1].address] };
            world.hosts[host].join = named;
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.shuffle(&mut world.rng);
        for host in order {
            world.start(host);
            let pause = Duration::from_millis(world.rng.random_range(0..3000));
            world.run(pause);
        }
        let took = world.converge(Duration::from_secs(15));
        println!("{size} hosts are one mesh {took:?} after the last start");
        let all_ready = |world: &World| {
            let mut hosts = world.hosts.iter().map(|host| host.process.as_ref().expect("it runs"));
            hosts.all(|process| process.readiness() == Readiness::Ready)
        };
        assert!(world.wait(Duration::from_secs(3), all_ready).is_some(), "seed {seed}");
    }
}

#[test]
fn a_host_is_not_ready_before_each_name_was_tried() {
    let mut world = World::with_mesh(1, 3);
    let late = world.add_host();
    let slow = world.add_host();
    world.hosts[late].join = vec![world.hosts[0].address, world.hosts[slow].address];
    // Nothing comes back from the second name, not even a refusal.
    world.network.cut.insert((late, slow));
    world.start(late);
    let readiness = |world: &World| world.hosts[late].process.as_ref().expect("runs").readiness();
    world.run(Duration::from_secs(1));
    assert_eq!(readiness(&world), Readiness::Joining(world.hosts[slow].address));
    let is_partial =
        |world: &World| world.hosts[late].process.as_ref().expect("runs").snapshot().partial;
    assert!(is_partial(&world), "the second may know more than the first");
    let took = world.wait(Duration::from_secs(20), |world| readiness(world) == Readiness::Ready);
    assert!(took.is_some(), "in the end it is found dead");
    assert!(!is_partial(&world), "then the first has told all");
}

#[test]
fn all_restart_from_their_data_directories_and_find_each_other() {
    for seed in seeds(4) {
        let mut world = World::with_mesh(seed, 6);
        world.run(Duration::from_secs(10));
        for host in 0..6 {
            world.kill(host);
            // Even the first knows where the others were.
            world.hosts[host].join.clear();
        }
        for host in 0..6 {
            world.start(host);
        }
        let took = world.converge(Duration::from_secs(10));
        println!("all back after {took:?}");
    }
}

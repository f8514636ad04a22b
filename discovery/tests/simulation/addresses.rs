//! Who is at an address, whatever hosts say of themselves.

use std::time::Duration;

use evenkeel_discovery::{Event, Found, Readiness};

use crate::seeds;
use crate::world::World;

/// How often an event of a kind was told at a host.
fn count(world: &World, host: usize, of: impl Fn(&Event) -> bool) -> usize {
    world.hosts[host].events.iter().filter(|(_, event)| of(event)).count()
}

fn readiness(world: &World, host: usize) -> Readiness {
    world.hosts[host].process.as_ref().expect("it runs").readiness()
}

/// A mesh of five, and a sixth host whose configuration was copied from the second.
fn with_a_copied_address(seed: u64) -> (World, usize) {
    let mut world = World::with_mesh(seed, 5);
    let sixth = world.add_host();
    let mut config = world.config(sixth);
    config.node.address = world.hosts[1].address;
    world.start_with(sixth, config);
    (world, sixth)
}

#[test]
fn a_copied_address_takes_nothing_from_the_host_that_stands_there() {
    for seed in seeds(4) {
        let (mut world, sixth) = with_a_copied_address(seed);
        let second = world.hosts[1].id;
        for _ in 0..120 {
            world.run(Duration::from_secs(1));
            for host in [0, 2, 3, 4] {
                assert!(
                    !world.sees(host, "own-1").is_empty(),
                    "seed {seed}: host {host} lost the second at {:?}",
                    world.elapsed()
                );
            }
        }
        for host in 0..5 {
            let downs =
                |event: &Event| matches!(event, Event::NodeDown { node, .. } if *node == second);
            assert_eq!(count(&world, host, downs), 0, "seed {seed}: host {host}");
            let sixth = world.hosts[sixth].id;
            let ups = |event: &Event| matches!(event, Event::NodeUp { node, .. } if *node == sixth);
            assert_eq!(count(&world, host, ups), 0, "seed {seed}: nobody could reach it");
            let conflicts = |event: &Event| matches!(event, Event::AddressConflict { .. });
            assert!(count(&world, host, conflicts) <= 1, "seed {seed}: said once");
            assert_eq!(count(&world, host, |event| *event == Event::Refuted), 0, "seed {seed}");
            assert_eq!(readiness(&world, host), Readiness::Ready, "seed {seed}: host {host}");
        }
        let not_there = Readiness::NotThere(Found::Host(second));
        assert_eq!(readiness(&world, sixth), not_there, "seed {seed}");
        let told = |event: &Event| matches!(event, Event::NotThere { .. });
        assert_eq!(count(&world, sixth, told), 1, "seed {seed}: and its operator is told once");
        assert_eq!(count(&world, sixth, |event| *event == Event::Refuted), 0, "seed {seed}");
    }
}

#[test]
fn a_claim_dies_with_its_claimant_and_a_corrected_one_counts() {
    for seed in seeds(4) {
        let (mut world, sixth) = with_a_copied_address(seed);
        world.run(Duration::from_secs(20));
        world.kill(sixth);
        world.converge(Duration::from_secs(1));
        world.start(sixth);
        world.converge(Duration::from_secs(5));
        let is_ready = |world: &World| readiness(world, sixth) == Readiness::Ready;
        assert!(world.wait(Duration::from_secs(3), is_ready).is_some(), "seed {seed}");
        // And who stands there may restart meanwhile.
        world.kill(sixth);
        world.kill(1);
        let mut config = world.config(sixth);
        config.node.address = world.hosts[1].address;
        world.start_with(sixth, config);
        world.run(Duration::from_secs(10));
        world.start(1);
        let took = world.wait(Duration::from_secs(20), |world| {
            [0, 2, 3, 4].iter().all(|host| !world.sees(*host, "own-1").is_empty())
        });
        assert!(took.is_some(), "seed {seed}: the one that really is there is taken back");
    }
}

#[test]
fn a_host_where_nobody_answers_is_up_for_nobody_and_says_so() {
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 4);
        let fifth = world.add_host();
        let mut config = world.config(fifth);
        config.node.address = "127.9.9.9:7111".parse().expect("an address");
        world.start_with(fifth, config);
        world.run(Duration::from_secs(60));
        assert_eq!(readiness(&world, fifth), Readiness::NotThere(Found::Nobody), "seed {seed}");
        let fifth = world.hosts[fifth].id;
        for host in 0..4 {
            let ups = |event: &Event| matches!(event, Event::NodeUp { node, .. } if *node == fifth);
            assert_eq!(count(&world, host, ups), 0, "seed {seed}: host {host}");
        }
    }
}

/// Without a data directory and with a clock behind its predecessor's start: no number of its own is larger.
#[test]
fn a_wiped_host_whose_clock_is_behind_takes_its_predecessors_place() {
    type End = fn(&mut World, usize);
    let ends: [(&str, End); 4] = [
        ("said goodbye", World::leave),
        ("crashed a moment ago", World::kill),
        ("crashed long ago", |world, host| {
            world.kill(host);
            world.run(Duration::from_secs(15));
        }),
        ("was cut off before it crashed", |world, host| {
            world.isolate(host);
            world.run(Duration::from_secs(15));
            world.kill(host);
            world.network.cut.clear();
        }),
    ];
    for (what, end) in ends {
        for seed in seeds(3) {
            let mut world = World::with_mesh(seed, 5);
            end(&mut world, 2);
            world.hosts[2].keeps_data = false;
            world.hosts[2].offers.clear();
            world.hosts[2].clock_behind = Duration::from_secs(24 * 3600);
            world.start(2);
            let took = world.converge(Duration::from_secs(5));
            println!("{what}: in its place after {took:?}");
            world.run(Duration::from_secs(30));
            assert_eq!(readiness(&world, 2), Readiness::Ready, "{what}, seed {seed}");
            world.converge(Duration::ZERO);
            assert_eq!(
                count(&world, 2, |event| *event == Event::Refuted),
                0,
                "{what}, seed {seed}"
            );
        }
    }
}

#[test]
fn a_host_restored_from_a_backup_with_a_clock_behind_is_itself_again() {
    for seed in seeds(4) {
        let mut world = World::with_mesh(seed, 5);
        let backup = world.hosts[2].disk.clone();
        for _ in 0..3 {
            world.kill(2);
            world.start(2);
            world.converge(Duration::from_secs(5));
        }
        world.kill(2);
        world.hosts[2].disk = backup;
        world.hosts[2].clock_behind = Duration::from_secs(24 * 3600);
        world.start(2);
        world.converge(Duration::from_secs(5));
        world.run(Duration::from_secs(30));
        world.converge(Duration::ZERO);
    }
}

/// An address that is moved to another machine while the old one runs on.
#[test]
fn an_address_that_moves_belongs_to_where_it_leads() {
    for seed in seeds(3) {
        let mut world = World::with_mesh(seed, 4);
        let new = world.add_host();
        // From now on what is sent there reaches the new machine.
        let address = world.hosts[1].address;
        world.hosts[new].address = address;
        world.hosts[1].address = "127.9.9.9:7111".parse().expect("an address");
        world.start(new);
        let new_id = world.hosts[new].id;
        let took = world.wait(Duration::from_secs(20), |world| {
            [0, 2, 3].iter().all(|host| {
                let catalog = world.hosts[*host].process.as_ref().expect("runs").snapshot();
                let at: Vec<u64> = catalog
                    .alive()
                    .filter(|node| node.address == address)
                    .map(|node| node.id)
                    .collect();
                at == [new_id]
            })
        });
        assert!(took.is_some(), "seed {seed}: the new machine has the address");
        let told = world.wait(Duration::from_secs(60), |world| {
            readiness(world, 1) == Readiness::NotThere(Found::Host(new_id))
        });
        assert!(told.is_some(), "seed {seed}: {:?}", readiness(&world, 1));
    }
}

#[test]
fn two_processes_with_one_id_end_up_with_two() {
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 4);
        world.run(Duration::from_secs(5));
        let copy = world.add_host();
        world.hosts[copy].id = world.hosts[2].id;
        world.hosts[copy].disk = world.hosts[2].disk.clone();
        world.hosts[copy].offers = world.hosts[2].offers.clone();
        world.start(copy);
        let told_apart =
            |world: &World| world.hosts[copy].id != world.hosts[2].id && world.is_converged();
        let took = world.wait(Duration::from_secs(120), told_apart);
        let took = took.unwrap_or_else(|| panic!("seed {seed}: still one id"));
        println!("told apart after {took:?}");
        world.run(Duration::from_secs(60));
        world.converge(Duration::ZERO);
    }
}

//! Whole meshes in simulated time: faults first (nothing wrong is ever believed), then healing (everything right is
//! believed within bounds). To repeat a failure: `EVENKEEL_SEED=<seed> cargo test -p evenkeel-discovery --test simulation`.

#[path = "simulation/addresses.rs"]
mod addresses;
#[path = "simulation/hearsay.rs"]
mod hearsay;
#[path = "simulation/joining.rs"]
mod joining;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use evenkeel_discovery::{Event, NodeStatus};
use rand::RngExt;
use world::World;

/// Fixed seeds, and a new one each time; or the one given.
fn seeds(fixed: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("EVENKEEL_SEED") {
        return vec![seed.parse().expect("EVENKEEL_SEED is a number")];
    }
    #[expect(clippy::disallowed_methods, reason = "one seed that nobody has tried yet")]
    let new = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos();
    (1..=fixed).chain([new as u64 % 1_000_000_007]).collect()
}

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let worst = *times.last().expect("at least one");
    println!("{what}: p50 {:?}, worst {worst:?} of {}", times[times.len() / 2], times.len());
    worst
}

fn gone_everywhere(world: &World, victim: usize) -> bool {
    let service = format!("own-{victim}");
    world
        .running()
        .into_iter()
        .filter(|host| *host != victim)
        .all(|host| world.sees(host, &service).is_empty())
}

/// How often a host was told that it is dead.
fn refutations(world: &World) -> usize {
    let events = world.hosts.iter().flat_map(|host| &host.events);
    events.filter(|(_, event)| *event == Event::Refuted).count()
}

fn time_until_gone(hosts: usize, trials: u64, stop: impl Fn(&mut World, usize)) -> Vec<Duration> {
    let mut times = Vec::new();
    for seed in seeds(trials) {
        let mut world = World::with_mesh(seed, hosts);
        world.run(Duration::from_millis(seed % 700));
        let victim = 1 + seed as usize % (hosts - 1);
        stop(&mut world, victim);
        let took = world.wait(Duration::from_secs(30), |world| gone_everywhere(world, victim));
        times.push(took.unwrap_or_else(|| panic!("seed {seed}: host {victim} is still there")));
        let victim_id = world.hosts[victim].id;
        let mut others = world
            .downs
            .iter()
            .filter(|(_, observer, subject)| *observer != victim && *subject != victim_id);
        assert_eq!(others.next(), None, "seed {seed}: a host that runs was taken for dead");
    }
    times
}

#[test]
fn a_killed_process_is_out_of_every_look_up_on_4_hosts() {
    let worst = report("killed, 4 hosts", time_until_gone(4, 12, World::kill));
    assert!(worst <= Duration::from_millis(2500), "{worst:?}");
}

#[test]
fn a_killed_process_is_out_of_every_look_up_on_20_hosts() {
    let worst = report("killed, 20 hosts", time_until_gone(20, 6, World::kill));
    assert!(worst <= Duration::from_millis(2500), "{worst:?}");
}

#[test]
fn most_processes_killed_at_once_are_noticed_too() {
    for (hosts, survivors) in [(2, 1), (4, 1), (20, 10)] {
        let mut times = Vec::new();
        for seed in seeds(4) {
            let mut world = World::with_mesh(seed, hosts);
            (survivors..hosts).for_each(|host| world.kill(host));
            // None is kept for fear that it is us who are cut off: their ports are closed.
            let took = world.wait(Duration::from_secs(30), World::is_converged);
            times.push(took.unwrap_or_else(|| {
                panic!("seed {seed}: {survivors} of {hosts} left, not noticed")
            }));
        }
        let worst = report(&format!("killed, {} of {hosts} hosts", hosts - survivors), times);
        assert!(worst <= Duration::from_secs(5), "{worst:?}");
    }
}

/// A firewall that lets only TCP through: slower, but a mesh.
#[test]
fn datagrams_lost_for_good_between_two_hosts_kill_nobody() {
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 5);
        world.network.datagrams_cut.extend([(1, 2), (2, 1)]);
        world.run(Duration::from_secs(120));
        assert_eq!(world.downs, [], "seed {seed}");
        world.register(1, "new", "new");
        world.converge(Duration::from_secs(5));
    }
}

#[test]
fn a_silent_host_is_out_of_every_look_up() {
    for hosts in [2, 4, 20] {
        let worst =
            report(&format!("silent, {hosts} hosts"), time_until_gone(hosts, 4, World::isolate));
        assert!(worst <= Duration::from_secs(5), "{hosts} hosts: {worst:?}");
    }
}

#[test]
fn a_goodbye_is_known_at_once() {
    for hosts in [2, 4, 20] {
        let worst =
            report(&format!("left, {hosts} hosts"), time_until_gone(hosts, 4, World::leave));
        assert!(worst <= Duration::from_millis(300), "{hosts} hosts: {worst:?}");
    }
    let lossy = |world: &mut World, host: usize| {
        world.network.loss = 0.05;
        world.leave(host);
    };
    let worst = report("left, 20 hosts, 5 % loss", time_until_gone(20, 8, lossy));
    assert!(worst <= Duration::from_millis(500), "{worst:?}");
}

#[test]
fn a_registration_is_seen_by_all_within_a_second() {
    let (mut quiet, mut lossy) = (Vec::new(), Vec::new());
    for seed in seeds(3) {
        for (loss, times) in [(0.0, &mut quiet), (0.1, &mut lossy)] {
            let mut world = World::with_mesh(seed, 20);
            world.network.loss = loss;
            let host = seed as usize % 20;
            world.register(host, "new", "new");
            let all = |world: &World| {
                world.running().iter().all(|host| !world.sees(*host, "new").is_empty())
            };
            times.push(world.wait(Duration::from_secs(30), all).expect("seen by all"));
            world.deregister(host, "new");
            world.network.loss = 0.0;
            world.converge(Duration::from_secs(10));
        }
    }
    let worst = report("registered, 20 hosts", quiet);
    assert!(worst <= Duration::from_secs(1), "{worst:?}");
    let worst = report("registered, 20 hosts, 10 % loss", lossy);
    assert!(worst <= Duration::from_secs(5), "{worst:?}");
}

#[test]
fn many_instances_of_one_host_travel_too() {
    let mut world = World::with_mesh(1, 4);
    for i in 0..200 {
        world.register(1, &format!("many-{i}"), "many");
    }
    world.converge(Duration::from_secs(2));
    for i in 0..200 {
        world.deregister(1, &format!("many-{i}"));
    }
    world.converge(Duration::from_secs(2));
}

#[test]
fn nobody_is_taken_for_dead_for_a_pause_or_for_loss() {
    for seed in seeds(1) {
        let mut world = World::with_mesh(seed, 20);
        world.network.loss = 0.02;
        let hosts = world.hosts.len();
        // Five minutes in which somebody is always paused, for up to a second.
        for _ in 0..300 {
            let pauses = world.rng.random_range(1..=2);
            for _ in 0..pauses {
                let host = world.rng.random_range(0..hosts);
                let pause = Duration::from_millis(world.rng.random_range(50..=1000));
                world.pause(host, pause);
            }
            world.run(Duration::from_secs(1));
        }
        assert_eq!(world.downs, [], "seed {seed}: {} false downs", world.downs.len());
        assert_eq!(refutations(&world), 0, "seed {seed}: somebody was told that it is dead");
    }
}

/// Twenty processes on two cores: everybody waits for the processor much of the time.
#[test]
fn nobody_is_taken_for_dead_on_a_starved_machine() {
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 20);
        for _ in 0..600 {
            for host in 0..world.hosts.len() {
                if world.hosts[host].paused_until.is_none() && world.rng.random_bool(0.25) {
                    let pause = Duration::from_millis(world.rng.random_range(50..=500));
                    world.pause(host, pause);
                }
            }
            world.run(Duration::from_millis(100));
        }
        assert_eq!(world.downs, [], "seed {seed}: {} false downs", world.downs.len());
        assert_eq!(refutations(&world), 0, "seed {seed}: somebody was told that it is dead");
    }
}

#[test]
fn an_idle_mesh_is_quiet() {
    let mut world = World::with_mesh(1, 20);
    world.run(Duration::from_secs(30));
    let sent = |world: &World| {
        let counters =
            world.hosts.iter().map(|host| host.process.as_ref().expect("runs").counters());
        counters.map(|c| c.bytes_sent).sum::<u64>()
    };
    let before = sent(&world);
    world.run(Duration::from_secs(60));
    let bytes_per_sec = (sent(&world) - before) / 60 / 20;
    println!("idle: {bytes_per_sec} bytes a second from each of 20 hosts");
    assert!(bytes_per_sec < 1000, "{bytes_per_sec}");
}

#[test]
fn a_host_taken_for_dead_comes_back_by_itself() {
    for seed in seeds(4) {
        let mut world = World::with_mesh(seed, 6);
        let generation = |world: &World| {
            world.hosts[0].process.as_ref().unwrap().snapshot().nodes[&world.hosts[3].id].generation
        };
        let before = generation(&world);
        world.pause(3, Duration::from_secs(20));
        world
            .wait(Duration::from_secs(20), |world| gone_everywhere(world, 3))
            .expect("a long pause is a death");
        world.run(Duration::from_secs(20));
        let took = world.converge(Duration::from_secs(5));
        assert_eq!(generation(&world), before, "seed {seed}: its record was not touched");
        println!("back after {took:?}");
    }
}

#[test]
fn a_host_that_restarts_replaces_itself_at_once() {
    for keeps_data in [true, false] {
        let mut times = Vec::new();
        for seed in seeds(6) {
            let mut world = World::with_mesh(seed, 5);
            world.hosts[2].keeps_data = keeps_data;
            if !keeps_data {
                world.hosts[2].offers.clear();
            }
            world.kill(2);
            world.run(Duration::from_millis(world.seed % 100));
            world.start(2);
            times.push(world.converge(Duration::from_secs(5)));
            let old_is_listed = |world: &World, host: usize| {
                let catalog = world.hosts[host].process.as_ref().unwrap().snapshot();
                catalog.nodes.values().filter(|node| node.name == "host-2").count() > 1
            };
            assert!(
                !(0..5).any(|host| old_is_listed(&world, host)),
                "seed {seed}: the old one is still listed"
            );
            // And it stays so.
            world.run(Duration::from_secs(30));
            world.converge(Duration::ZERO);
        }
        let worst = report(
            if keeps_data { "restarted" } else { "restarted without a data directory" },
            times,
        );
        assert!(worst <= Duration::from_secs(2), "{worst:?}");
    }
}

#[test]
fn a_split_mesh_heals_and_no_service_empties() {
    let mut times = Vec::new();
    for seed in seeds(4) {
        let mut world = World::with_mesh(seed, 12);
        // `far` is offered on the other side only.
        for host in 6..12 {
            world.register(host, "far", "far");
        }
        world.converge(Duration::from_secs(5));
        world.split(6);
        for _ in 0..60 {
            world.run(Duration::from_secs(1));
            for host in 0..6 {
                assert!(
                    !world.sees(host, "far").is_empty(),
                    "seed {seed}: {host} sees nothing at {:?}",
                    world.elapsed()
                );
            }
        }
        let catalog = world.hosts[0].process.as_ref().unwrap().snapshot();
        assert_eq!(catalog.alive().count(), 6, "seed {seed}: the split was noticed");
        world.network.cut.clear();
        times.push(world.converge(Duration::from_secs(30)));
    }
    let worst = report("healed, 6 + 6 hosts", times);
    assert!(worst <= Duration::from_secs(15), "{worst:?}");
}

#[test]
fn what_was_sent_before_has_no_effect() {
    for keys in [vec![], vec![[7; 32]]] {
        let mut world = World::new(3);
        world.keys = keys;
        world.recording = Some(Vec::new());
        for _ in 0..4 {
            let host = world.add_host();
            world.start(host);
            world.register(host, "own", "own");
        }
        world.converge(Duration::from_secs(10));
        world.run(Duration::from_secs(5));
        world.leave(3);
        world.kill(2);
        world.run(Duration::from_secs(10));
        world.converge(Duration::ZERO);
        let recorded = world.recording.take().unwrap();
        assert!(recorded.len() > 50);
        let before = world.hosts[0].process.as_ref().unwrap().snapshot();
        let counted = world.hosts[0].process.as_ref().unwrap().counters();
        let mut to_first = 0;
        for (from, to, bytes) in &recorded {
            if *to == world.hosts[0].address {
                to_first += 1;
                world.inject(*from, 0, bytes.clone());
            }
        }
        world.run(Duration::from_secs(10));
        let after = world.hosts[0].process.as_ref().unwrap().snapshot();
        assert_eq!(after.index, before.index, "the dead did not rise");
        let counters = world.hosts[0].process.as_ref().unwrap().counters();
        let refused = counters.refused_replay - counted.refused_replay;
        assert!(
            refused >= to_first / 2,
            "{refused} of {to_first} refused, the rest was challenged"
        );
        // To a host that starts now all senders are unseen: it asks who they are, and the recording cannot answer.
        world.hosts[3].join.clear();
        world.hosts[3].disk = None;
        world.hosts[3].offers.clear();
        world.isolate(3);
        world.start(3);
        for (from, _, bytes) in &recorded {
            world.inject(*from, 3, bytes.clone());
        }
        world.run(Duration::from_secs(5));
        let process = world.hosts[3].process.as_ref().unwrap();
        assert_eq!(process.snapshot().nodes.len(), 1, "it believed a recording");
        assert!(process.counters().challenges > 0);
    }
}

#[test]
fn damaged_and_foreign_bytes_are_counted_and_have_no_effect() {
    let mut world = World::new(5);
    world.keys = vec![[7; 32]];
    for _ in 0..3 {
        let host = world.add_host();
        world.start(host);
    }
    world.converge(Duration::from_secs(10));
    // A host of another mesh and one with another key, told to join.
    for (mesh, key) in [("other", [7; 32]), ("sim", [9; 32])] {
        let stranger = world.add_host();
        let mut config = world.config(stranger);
        config.mesh = mesh.into();
        config.keys = vec![key];
        world.start_with(stranger, config);
    }
    world.recording = Some(Vec::new());
    world.run(Duration::from_secs(10));
    let recorded = world.recording.take().unwrap();
    let before = world.hosts[0].process.as_ref().unwrap().snapshot();
    for (from, _, bytes) in recorded.iter().take(300) {
        let mut damaged = bytes.clone();
        let at = world.rng.random_range(0..damaged.len());
        damaged[at] ^= world.rng.random_range(1..=255u8);
        world.inject(*from, 0, damaged);
        let cut = world.rng.random_range(0..bytes.len());
        world.inject(*from, 0, bytes[..cut].to_vec());
        let noise: Vec<u8> = (0..cut).map(|_| world.rng.random()).collect();
        world.inject(*from, 0, noise);
    }
    world.run(Duration::from_secs(10));
    let first = world.hosts[0].process.as_ref().unwrap();
    assert_eq!(first.snapshot().index, before.index);
    assert_eq!(first.snapshot().alive().count(), 3);
    let refused = first.counters().refused();
    for reason in ["length", "magic", "version", "foreign_mesh", "key", "seal"] {
        let count = refused.iter().find(|(name, _)| *name == reason).unwrap().1;
        assert!(count > 0, "{reason} is not counted: {refused:?}");
    }
    for stranger in [3, 4] {
        assert_eq!(world.hosts[stranger].process.as_ref().unwrap().snapshot().nodes.len(), 1);
    }
}

#[test]
fn a_draining_host_says_so_and_a_departed_one_is_listed_as_left() {
    let mut world = World::with_mesh(1, 4);
    let (now, wall) = (world.now, world.wall_ms());
    world.hosts[2].process.as_mut().unwrap().set_draining(now, wall, true);
    let id = world.hosts[2].id;
    let drains =
        |world: &World| world.hosts[0].process.as_ref().unwrap().snapshot().nodes[&id].draining;
    world.wait(Duration::from_secs(1), drains).expect("known within a second");
    world.leave(2);
    world.run(Duration::from_secs(1));
    for host in [0, 1, 3] {
        let catalog = world.hosts[host].process.as_ref().unwrap().snapshot();
        assert_eq!(catalog.nodes[&id].status, NodeStatus::Left);
    }
}

fn all_are_asked(world: &World, service: &str, expected: (Option<&str>, Option<&str>)) -> bool {
    let text = |seconds: &str| format!(r#"{{"policy":{{"timeout":"{seconds}"}}}}"#);
    let expected = (expected.0.map(text), expected.1.map(text));
    world.running().into_iter().all(|host| world.asked(host, service) == expected)
}

#[test]
fn a_policy_change_and_an_order_reach_all_within_a_second() {
    let mut times = Vec::new();
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 20);
        let host = seed as usize % 20;
        let mut reach = |world: &mut World, expected: (Option<&str>, Option<&str>)| {
            let service = format!("own-{host}");
            let took =
                world.wait(Duration::from_secs(30), |w| all_are_asked(w, &service, expected));
            times.push(took.unwrap_or_else(|| panic!("seed {seed}: {expected:?} is not known")));
        };
        let service = format!("own-{host}");
        world.publish(host, &service, 7);
        reach(&mut world, (Some("7s"), None));
        world.publish(host, &service, 8);
        reach(&mut world, (Some("8s"), None));
        world.order(19 - host, &service, 3, Duration::from_secs(20));
        reach(&mut world, (Some("8s"), Some("3s")));
        world.run(Duration::from_secs(15));
        assert!(all_are_asked(&world, &service, (Some("8s"), Some("3s"))));
        // The end comes everywhere at its time, and not before.
        world.run(Duration::from_secs(5));
        assert!(all_are_asked(&world, &service, (Some("8s"), None)), "seed {seed}");
        world.converge(Duration::from_secs(1));
    }
    let worst = report("policies and orders, 20 hosts", times);
    assert!(worst <= Duration::from_secs(1), "{worst:?}");
}

#[test]
fn what_a_crashed_host_ordered_counts_until_its_end_and_for_newcomers_too() {
    for seed in seeds(2) {
        let mut world = World::with_mesh(seed, 5);
        let two_hours = Duration::from_secs(2 * 3600);
        world.order(2, "shared", 3, two_hours);
        world.order(3, "own-0", 4, two_hours);
        world
            .wait(Duration::from_secs(5), |w| {
                all_are_asked(w, "shared", (None, Some("3s")))
                    && all_are_asked(w, "own-0", (None, Some("4s")))
            })
            .unwrap_or_else(|| panic!("seed {seed}: the orders are not known"));
        world.kill(2);
        world.leave(3);
        // Longer than the record of a host that is down is kept otherwise.
        world.run(Duration::from_secs(3600 + 60));
        assert!(all_are_asked(&world, "shared", (None, Some("3s"))), "seed {seed}");
        assert!(all_are_asked(&world, "own-0", (None, None)), "seed {seed}: one that left");
        let newcomer = world.add_host();
        world.start(newcomer);
        let told = |world: &World| all_are_asked(world, "shared", (None, Some("3s")));
        world.wait(Duration::from_secs(15), told).expect("a newcomer is told");
        world.run(Duration::from_secs(3600));
        assert!(all_are_asked(&world, "shared", (None, None)), "seed {seed}: it has ended");
    }
}

#[test]
fn an_issuer_that_restarts_goes_on_ordering() {
    let mut world = World::with_mesh(1, 4);
    world.order(2, "shared", 3, Duration::from_secs(600));
    let told = |world: &World| all_are_asked(world, "shared", (None, Some("3s")));
    world.wait(Duration::from_secs(5), told).expect("known to all");
    world.leave(2);
    world.wait(Duration::from_secs(5), |w| all_are_asked(w, "shared", (None, None))).expect("gone");
    world.start(2);
    world.wait(Duration::from_secs(15), told).expect("known again");
}

#[test]
fn what_was_ordered_otherwise_does_not_come_back() {
    let mut world = World::with_mesh(1, 4);
    world.order(1, "shared", 3, Duration::from_secs(600));
    let first = |world: &World| all_are_asked(world, "shared", (None, Some("3s")));
    world.wait(Duration::from_secs(5), first).expect("known to all");
    world.order(2, "shared", 5, Duration::from_secs(20));
    let second = |world: &World| all_are_asked(world, "shared", (None, Some("5s")));
    world.wait(Duration::from_secs(5), second).expect("the newest counts");
    let none = |world: &World| all_are_asked(world, "shared", (None, None));
    world.wait(Duration::from_secs(30), none).expect("it has ended, and what it replaced with it");
    assert!(world.wait(Duration::from_secs(20), first).is_none(), "nor later");
}

/// Everything at once, and then nothing: what a mesh must survive.
#[test]
fn faults_of_all_kinds_then_convergence() {
    for seed in seeds(6) {
        let size = 3 + seed as usize % 8;
        let mut world = World::with_mesh(seed, size);
        world.network.loss = world.rng.random_range(0.0..0.15);
        world.network.duplicate = world.rng.random_range(0.0..0.1);
        world.network.delay.1 = Duration::from_millis(world.rng.random_range(1..150));
        for host in 0..size {
            world.hosts[host].keeps_data = host == 0 || world.rng.random_bool(0.7);
        }
        for round in 0..60 {
            let host = world.rng.random_range(0..size);
            let other = world.rng.random_range(0..size);
            let runs = world.hosts[host].process.is_some();
            match world.rng.random_range(0..12) {
                0 if runs => world.kill(host),
                1 if runs => {
                    world.leave(host);
                }
                0..=3 if !runs => {
                    if !world.hosts[host].keeps_data {
                        world.hosts[host].offers.clear();
                    }
                    world.start(host);
                }
                4 if runs => {
                    let pause = Duration::from_millis(world.rng.random_range(10..8000));
                    world.pause(host, pause);
                }
                // Asymmetric: one direction only.
                5 => _ = world.network.cut.insert((host, other)),
                6 => world.network.cut.clear(),
                7 | 8 if runs && world.hosts[host].paused_until.is_none() => {
                    world.register(host, &format!("i{}", round % 5), &format!("s{}", round % 3));
                }
                9 if runs && world.hosts[host].paused_until.is_none() => {
                    if let Some(id) = world.hosts[host].offers.keys().next().cloned() {
                        world.deregister(host, &id);
                    }
                }
                10 if runs && world.hosts[host].paused_until.is_none() => {
                    let service = format!("s{}", round % 3);
                    world.publish(host, &service, 1 + round % 4);
                }
                11 if runs && world.hosts[host].paused_until.is_none() => {
                    let ttl = Duration::from_secs(1 + world.rng.random_range(0..200));
                    world.order(host, &format!("s{}", round % 3), 1 + round, ttl);
                }
                _ => {}
            }
            let pause = Duration::from_millis(world.rng.random_range(0..3000));
            world.run(pause);
        }
        world.network = world::Network::lan();
        for host in 0..size {
            if world.hosts[host].process.is_none() {
                if !world.hosts[host].keeps_data {
                    world.hosts[host].offers.clear();
                }
                world.start(host);
            }
        }
        let took = world.converge(Duration::from_secs(90));
        println!(
            "seed {seed}, {size} hosts: converged after {took:?}, {} false downs",
            world.downs.len()
        );
        let names: BTreeSet<String> = world.sees(0, "shared");
        assert!(names.len() <= size);
    }
}

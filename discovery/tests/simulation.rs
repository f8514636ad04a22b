//! Whole meshes in simulated time: faults first (nothing wrong is ever believed), then healing (everything right is
//! believed within bounds). To repeat a failure: `EVENKEEL_SEED=<seed> cargo test -p evenkeel-discovery --test simulation`.

#[path = "simulation/world.rs"]
mod world;

use std::time::Duration;

use world::World;

/// Fixed seeds, and a new one each time; or the one given.
fn seeds(fixed: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("EVENKEEL_SEED") {
        return vec![seed.parse().expect("EVENKEEL_SEED is a number")];
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "one seed that nobody has tried yet"
    )]
    let new = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos();
    (1..=fixed).chain([new as u64 % 1_000_000_007]).collect()
}

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let worst = *times.last().expect("at least one");
    println!(
        "{what}: p50 {:?}, worst {worst:?} of {}",
        times[times.len() / 2],
        times.len()
    );
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

fn time_until_gone(hosts: usize, trials: u64, stop: impl Fn(&mut World, usize)) -> Vec<Duration> {
    let mut times = Vec::new();
    for seed in seeds(trials) {
        let mut world = World::with_mesh(seed, hosts);
        world.run(Duration::from_millis(seed % 700));
        let victim = 1 + seed as usize % (hosts - 1);
        stop(&mut world, victim);
        let took = world.wait(Duration::from_secs(30), |world| {
            gone_everywhere(world, victim)
        });
        times.push(took.unwrap_or_else(|| panic!("seed {seed}: host {victim} is still there")));
        let victim_id = world.hosts[victim].id;
        let mut others = world
            .downs
            .iter()
            .filter(|(_, observer, subject)| *observer != victim && *subject != victim_id);
        assert_eq!(
            others.next(),
            None,
            "seed {seed}: a host that runs was taken for dead"
        );
    }
    times
}

#[test]
fn a_killed_process_is_out_of_every_look_up_on_4_hosts() {
    let worst = report("killed, 4 hosts", time_until_gone(4, 20, World::kill));
    assert!(worst <= Duration::from_millis(2500), "{worst:?}");
}

#[test]
fn a_killed_process_is_out_of_every_look_up_on_20_hosts() {
    let worst = report("killed, 20 hosts", time_until_gone(20, 20, World::kill));
    assert!(worst <= Duration::from_millis(2500), "{worst:?}");
}

#[test]
fn a_silent_host_is_out_of_every_look_up() {
    for hosts in [2, 4, 20] {
        let worst = report(
            &format!("silent, {hosts} hosts"),
            time_until_gone(hosts, 8, World::isolate),
        );
        assert!(worst <= Duration::from_secs(5), "{hosts} hosts: {worst:?}");
    }
}

#[test]
fn a_goodbye_is_known_at_once() {
    for hosts in [2, 4, 20] {
        let worst = report(
            &format!("left, {hosts} hosts"),
            time_until_gone(hosts, 10, World::leave),
        );
        assert!(
            worst <= Duration::from_millis(300),
            "{hosts} hosts: {worst:?}"
        );
    }
}

//! Hosts that are not where they say, that start in any order, and that stop answering while somebody waits for them.

use std::thread;
use std::time::{Duration, Instant};

use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use rustix::process::Signal;

use super::trio::Trio;

/// Why a host says that it is not ready; `None`: it is.
fn obstacle(host: &Host) -> Option<String> {
    let answer = host.ask_admin("/readyz")?;
    (answer.status != 200).then(|| answer.text())
}

/// How many lines of its log have these words.
fn lines_with(host: &Host, words: &str) -> usize {
    let log = host.process.output().expect("a log");
    log.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn a_copied_address_takes_nothing_from_the_host_that_is_there() {
    let mut trio = Trio::start(Lab::new(2), &Setup::default());
    let copied = Setup { says_it_is_at: Some(2), ..Setup::default() };
    let mut fourth = trio.lab.host(4, &copied);
    wait::for_true("the fourth says that it is not where it says", SOON, || {
        obstacle(&fourth)
            .is_some_and(|why| why.contains("another host") && why.contains("node.address"))
    });
    for _ in 0..100 {
        let answer = trio.caller.get("payments", "/");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for host in [&trio.caller, &trio.hosts[0], &trio.hosts[1]] {
        assert_eq!(host.members().len(), 3, "{:?}", host.members());
        assert_eq!(obstacle(host), None);
        assert!(lines_with(host, "address_conflict") <= 1, "said once");
        assert_eq!(lines_with(host, "refuted"), 0);
    }
    assert_eq!(lines_with(&fourth, "not_at_address"), 1);
    // Corrected, it is one of them.
    fourth.process.kill();
    fourth.write(&Setup::default());
    fourth.start_again();
    fourth.wait_until_ready();
    trio.caller.wait_for_members(4);
    trio.hosts.push(fourth);
}

/// Each names only the one before it, and the third starts first: its name refuses, the fourth's name does not.
#[test]
fn hosts_that_name_one_other_each_are_one_mesh_whatever_their_order() {
    let lab = Lab::new(1);
    let mut hosts = Vec::new();
    for (number, names) in [(3, 2), (4, 3), (1, 9), (2, 1)] {
        let host = lab.host(number, &Setup { join: vec![names], ..Setup::default() });
        // Its port answers, whether or not it is ready: the next one starts after it.
        wait::for_true("it runs", SOON, || host.ask_admin("/livez").is_some());
        hosts.push(host);
    }
    for host in &hosts {
        host.wait_until_ready();
        host.wait_for_members(4);
    }
}

/// A process that stopped keeps its sockets, so nothing breaks: the mesh knows first that it does not answer.
#[test]
fn a_get_that_waits_for_a_host_leaves_it_when_the_mesh_calls_it_down() {
    let policy = "{timeout: 60s, hedge: {mode: off}, balance: round_robin}".to_owned();
    let mut trio = Trio::start(Lab::new(2), &Setup { policy, ..Setup::default() });
    for _ in 0..20 {
        assert_eq!(trio.caller.get("payments", "/").status, 200);
    }
    trio.hosts[0].process.signal(Signal::STOP);
    let caller = &trio.caller;
    thread::scope(|scope| {
        let get = || (caller.get("payments", "/"), Instant::now());
        let gets: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
        wait::for_true("it is called down", SOON, || caller.members().len() == 2);
        let called_down = Instant::now();
        for get in gets {
            let (answer, at) = get.join().expect("the thread ends");
            assert_eq!(answer.status, 200, "{}", answer.text());
            // Its connection would be found dead another seven seconds later.
            let waited = at.saturating_duration_since(called_down);
            assert!(waited < Duration::from_secs(3), "it went on waiting for {waited:?}");
        }
    });
    let retries = caller.metrics().sum("evenkeel_attempts_total", &[("kind", "retry")]);
    assert!(retries >= 1.0, "somebody waited for the one that stopped");
    trio.hosts[0].process.signal(Signal::CONT);
    caller.wait_for_members(3);
}

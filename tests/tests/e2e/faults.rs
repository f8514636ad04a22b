//! What dies or stalls behind the mesh, under load: no GET fails, no POST is executed twice.
//!
//! Every test asks over HTTP/1.1 and over HTTP/2 at once, without client retries.

use std::time::{Duration, Instant};

use evenkeel_tests::client::Version;
use evenkeel_tests::ledger::{Ledger, Tally};
use evenkeel_tests::load::{Load, Report, most_at_once};
use evenkeel_tests::mesh::{App, Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use rustix::process::Signal;

use super::trio::Trio;

/// Both HTTPs at once: together 200 GETs and 60 POSTs a second.
pub fn start_loads(host: &Host) -> [Load; 2] {
    [Version::Http1, Version::Http2].map(|version| {
        let plan = host.load("payments.mesh");
        let ids = format!("{}-{version:?}", plan.ids);
        Load::start(evenkeel_tests::load::Plan {
            version,
            gets_per_sec: 100,
            posts_per_sec: 30,
            ids,
            ..plan
        })
    })
}

/// Until both have asked this many more.
pub fn after(loads: &[Load], more: u64) {
    loads.iter().for_each(|load| load.after(more));
}

/// What both saw, as one.
pub fn finish(loads: [Load; 2]) -> Report {
    let [http1, http2] = loads.map(Load::finish);
    Report { samples: [http1.samples, http2.samples].concat() }
}

/// The promise: no failed GET, each POST at most once, a success exactly once.
pub fn check(trio: &Trio, report: &Report) -> Tally {
    report.assert_no_failed_get();
    let tally = Ledger::read(trio.ledgers()).check(report);
    // A POST that failed was answered, with the mesh's reason: it did not just break.
    for post in report.posts().filter(|post| !post.succeeded()) {
        let told = post
            .outcome
            .as_ref()
            .unwrap_or_else(|error| panic!("a POST was left without an answer: {error}"));
        assert!(matches!(told.status, 502..=504) && !told.proxy_status.is_empty(), "{post:?}");
    }
    tally
}

/// POSTs that can have been in flight when something was killed: a few, or as many as were at once where this
/// machine stood still.
fn in_flight(report: &Report) -> usize {
    most_at_once(report.posts()).max(12)
}

/// Waits until nothing is on its way from this host to an application that it does not choose any more.
pub fn wait_until_unused(caller: &Host, app: &App) {
    let at = app.address.to_string();
    wait::for_true(&format!("nothing is on its way to {}", app.id()), SOON, || {
        let endpoints = caller.endpoints("payments");
        endpoints.iter().any(|one| one["address"] == at && one["in_flight"] == 0)
    });
}

/// Failed POSTs: at most what can have been in flight at that moment.
fn assert_few_posts_failed(tally: Tally, most: usize) {
    let failed = tally.sent - tally.succeeded;
    assert!(
        failed <= most,
        "{failed} of {} POSTs failed, at most {most} were in flight",
        tally.sent
    );
}

fn a_host_is_killed(workers: usize) {
    let mut trio =
        Trio::start(Lab::new(workers), &Setup { join: vec![1, 2, 3, 4], ..Setup::default() });
    let observer = trio.lab.host(4, &Setup { join: vec![1, 2, 3], ..Setup::default() });
    observer.wait_until_ready();
    trio.caller.wait_for_members(4);
    observer.wait_for_instances("payments", 2);
    let loads = start_loads(&trio.caller);
    after(&loads, 150);
    trio.hosts[0].process.kill();
    let killed = Instant::now();
    for host in [&trio.caller, &trio.hosts[1], &observer] {
        // Five seconds are promised: `discovery/tests/simulation.rs` holds them, whose clock is not this machine's.
        wait::for_true("the dead host is out of every look-up", SOON, || {
            host.passing("payments") == [trio.apps[1].address]
                && host.usable("payments") == [trio.apps[1].address]
                && host.members().len() == 3
        });
    }
    eprintln!("out of every look-up after {:?}", killed.elapsed());
    after(&loads, 150);
    trio.hosts[0].start_again();
    trio.caller.wait_for_instances("payments", 2);
    let served = trio.apps[0].count().0;
    wait::for_true("the restarted host is used again", SOON, || {
        trio.apps[0].count().0 > served + 5
    });
    let report = finish(loads);
    assert_few_posts_failed(check(&trio, &report), in_flight(&report));
}

/// Kills the first application, starts it again after so many requests, and waits until it is used.
fn kill_and_start_again(trio: &mut Trio, loads: &[Load], requests: u64) {
    trio.apps[0].process.kill();
    trio.caller.wait_for_instances("payments", 1);
    after(loads, requests);
    trio.apps[0].start_again();
    trio.caller.wait_for_instances("payments", 2);
    wait::for_true("it is used again", SOON, || trio.apps[0].count().0 > 5);
}

fn an_application_is_killed(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let loads = start_loads(&trio.caller);
    after(&loads, 150);
    kill_and_start_again(&mut trio, &loads, 150);
    let report = finish(loads);
    assert_few_posts_failed(check(&trio, &report), in_flight(&report));
}

fn an_application_resets_connections(workers: usize) {
    // In turn: else it is avoided after each reset, and seldom resets.
    let policy = "{balance: round_robin}".into();
    let trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    after(&loads, 100);
    trio.apps[0].set_flaky(10);
    after(&loads, 400);
    trio.apps[0].set_flaky(0);
    after(&loads, 50);
    let report = finish(loads);
    let tally = check(&trio, &report);
    assert!(
        tally.executed_untold > 0,
        "some POSTs were executed and reset before their answer: {tally:?}"
    );
    // One in ten at one of two applications, for most of the time.
    assert_few_posts_failed(tally, tally.sent / 10);
    assert!(trio.caller.metrics().sum("evenkeel_attempts_total", &[("kind", "retry")]) > 0.0);
}

fn an_application_is_paused_with_hedging_enforced(workers: usize) {
    let policy = "{hedge: {mode: enforce, after: p95, min: 1ms, budget: 10%}}".into();
    // The pauses are shorter than what a check takes for a failure: only the balancer can see them.
    let mut trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    // The route's percentile exists after 100 samples.
    after(&loads, 300);
    let (asked, started) = (trio.apps.iter().map(|app| app.count().0).sum::<u64>(), Instant::now());
    let won = |host: &Host| host.metrics().sum("evenkeel_hedges_total", &[("result", "won")]);
    let mut shortest = Duration::MAX;
    // Whether the first to meet a stop is a GET is by chance: whoever comes after it goes elsewhere.
    for pause in 0..20 {
        trio.apps[pause % 2].process.signal(Signal::STOP);
        let stopped = Instant::now();
        after(&loads, 30);
        shortest = shortest.min(stopped.elapsed());
        trio.apps[pause % 2].process.signal(Signal::CONT);
        after(&loads, 100);
        if pause >= 5 && won(&trio.caller) >= 3.0 {
            break;
        }
    }
    let executed = trio.apps.iter().map(|app| app.count().0).sum::<u64>() - asked;
    let took = started.elapsed();
    let report = finish(loads);
    let tally = check(&trio, &report);
    assert_few_posts_failed(tally, 0);

    let metrics = trio.caller.metrics();
    let hedges =
        metrics.sum("evenkeel_attempts_total", &[("upstream", "payments"), ("kind", "hedge")]);
    let first =
        metrics.sum("evenkeel_attempts_total", &[("upstream", "payments"), ("kind", "first")]);
    assert!(hedges <= first * 0.12, "{hedges} hedges for {first} requests: the budget is 10 %");
    assert!(executed > 500, "{executed} requests in {took:?}");
    assert!(won(&trio.caller) >= 3.0, "copies come first where the first is paused");
    let p95 = report.quantile(0.95);
    assert!(
        p95 < shortest / 2,
        "p95 of the GETs is {p95:?} although copies went elsewhere; the pauses took {shortest:?} and longer"
    );
}

fn observed_hedges_are_counted_and_not_sent(workers: usize) {
    // The default mode: an operator sees what hedging would do before it does anything.
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let loads = start_loads(&trio.caller);
    after(&loads, 200);
    let observed = |caller: &Host| {
        caller.metrics().sum("evenkeel_hedges_total", &[("result", "observed")]) > 0.0
    };
    // The first to meet a stop may be a POST, and whoever comes after it goes elsewhere.
    let met = (0..STOPS_MAX).any(|turn| {
        let app = &mut trio.apps[turn % 2];
        app.process.signal(Signal::STOP);
        after(&loads, 20);
        app.process.signal(Signal::CONT);
        after(&loads, 50);
        observed(&trio.caller)
    });
    assert!(met, "no GET met any of {STOPS_MAX} stops");
    let report = finish(loads);
    check(&trio, &report);
    let metrics = trio.caller.metrics();
    assert_eq!(metrics.sum("evenkeel_attempts_total", &[("kind", "hedge")]), 0.0);
    let explain = |method: &str| {
        let path = format!("/v1/explain/payments?method={method}&path=/");
        trio.caller.ask_admin(&path).unwrap().text()
    };
    // "… 5 copies, about 3 of them …"
    let said = explain("GET");
    let number = |before: &str| -> u32 {
        let rest = said.split_once(before).unwrap_or_else(|| panic!("{said}")).1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(number("copies, about ") <= number("would have sent "), "{said}");
    assert!(!explain("POST").contains("copies"), "what is never copied has no advice");
    let first =
        metrics.sum("evenkeel_attempts_total", &[("upstream", "payments"), ("kind", "first")]);
    assert_eq!(
        first,
        f64::from(u32::try_from(report.samples.len()).unwrap()),
        "each request counts once"
    );
}

fn a_host_is_paused_and_nothing_is_executed_twice(workers: usize) {
    let mut trio = Trio::start(
        Lab::new(workers),
        &Setup { policy: "{timeout: 5s, hedge: {mode: enforce}}".into(), ..Setup::default() },
    );
    let loads = start_loads(&trio.caller);
    after(&loads, 200);
    trio.hosts[0].process.signal(Signal::STOP);
    after(&loads, 60);
    trio.hosts[0].process.signal(Signal::CONT);
    after(&loads, 200);
    let report = finish(loads);
    let _ = check(&trio, &report);
}

fn an_application_errs_and_gets_well_again_and_again(workers: usize) {
    // In turn: else it is avoided after its first errors, and seldom errs often enough to be ejected.
    let policy = "{balance: round_robin, eject: {base: 500ms}, hedge: {mode: enforce}, \
                   retry: {when: [connect, refused, reset, '500']}}";
    let setup = Setup { policy: policy.into(), ..Setup::default() };
    let trio = Trio::start(Lab::new(workers), &setup);
    let loads = start_loads(&trio.caller);
    after(&loads, 100);
    for _ in 0..3 {
        trio.apps[0].set_erring(true);
        after(&loads, 100);
        trio.apps[0].set_erring(false);
        after(&loads, 100);
    }
    let served = trio.apps[0].count().0;
    wait::for_true("it is used again", SOON, || trio.apps[0].count().0 > served + 5);
    let report = finish(loads);
    report.assert_no_failed_get();
    let tally = Ledger::read(trio.ledgers()).check(&report);
    assert_eq!(tally.executed_untold, 0, "what errs executes nothing: {tally:?}");
    for post in report.posts().filter(|post| !post.succeeded()) {
        let told = post.outcome.as_ref().unwrap();
        assert!(told.status == 500 && told.app == "app-2", "the application's own: {post:?}");
    }
    // Five in a row and it is out for a while; about a fourth of the requests are POSTs. What was on its way then
    // errs as well.
    assert_few_posts_failed(tally, 18 + in_flight(&report));
    let metrics = trio.caller.metrics();
    assert!(metrics.sum("evenkeel_attempts_total", &[("kind", "retry")]) >= 3.0);
    assert!(metrics.sum("evenkeel_ejections_total", &[]) >= 3.0);
}

fn a_check_fails_and_passes_again_and_again(workers: usize) {
    let policy = "{hedge: {mode: enforce}}".into();
    let trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        trio.apps[from].set_healthy(false);
        trio.caller.wait_for_passing("payments", 1);
        trio.caller.wait_for_instances("payments", 1);
        wait_until_unused(&trio.caller, &trio.apps[from]);
        let (kept, served) = (trio.apps[from].count().0, trio.apps[to].count().0);
        wait::for_true("the other has it all", SOON, || trio.apps[to].count().0 >= served + 90);
        assert_eq!(trio.apps[from].count().0, kept, "it is still asked");
        trio.apps[from].set_healthy(true);
        trio.caller.wait_for_instances("payments", 2);
    }
    let report = finish(loads);
    assert_few_posts_failed(check(&trio, &report), 0);
}

fn all_applications_are_slow_together(workers: usize) {
    let policy = "{hedge: {mode: enforce, budget: 2%}}".into();
    let trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    after(&loads, 200);
    trio.apps.iter().for_each(|app| app.set_delay(Duration::from_millis(150)));
    after(&loads, 200);
    trio.apps.iter().for_each(|app| app.set_delay(Duration::ZERO));
    after(&loads, 100);
    let report = finish(loads);
    assert_few_posts_failed(check(&trio, &report), 0);
    let metrics = trio.caller.metrics();
    let sent = |kind| metrics.sum("evenkeel_attempts_total", &[("kind", kind)]);
    let (first, hedges) = (sent("first"), sent("hedge"));
    assert!(hedges <= first * 0.02, "{hedges} copies of {first}: the budget is 2 %");
    assert!(metrics.sum("evenkeel_hedges_total", &[("result", "refused")]) > 0.0, "more were due");
    // Two of five were slow, with 150 ms each: most of them with nothing in front of them, whatever this machine
    // was late with.
    let many = report.quantile(0.75);
    assert!(many < Duration::from_millis(600), "requests pile up: {many:?}");
}

/// One thing after the other goes wrong, under all that Evenkeel does about it at once.
fn under_all_of_it(workers: usize, scout: &str) {
    let policy = format!(
        "{{balance: scout, scout: {{mode: {scout}, timeout: 20ms}}, hedge: {{mode: enforce}}, eject: {{base: 500ms}}, \
           probation: {{slower_than: 3x, min_requests: 20}}}}"
    );
    let mut trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    after(&loads, 200);
    for pause in 0..4 {
        trio.apps[pause % 2].process.signal(Signal::STOP);
        after(&loads, 15);
        trio.apps[pause % 2].process.signal(Signal::CONT);
        after(&loads, 50);
    }
    trio.apps[0].set_flaky(20);
    after(&loads, 200);
    trio.apps[0].set_flaky(0);
    trio.apps[1].set_delay(Duration::from_millis(80));
    after(&loads, 200);
    trio.apps[1].set_delay(Duration::ZERO);
    after(&loads, 50);
    kill_and_start_again(&mut trio, &loads, 50);
    let report = finish(loads);
    let tally = check(&trio, &report);
    // One in twenty of an application's for a while, and what was in flight when it was killed.
    assert_few_posts_failed(tally, in_flight(&report) + tally.sent / 20);
    let metrics = trio.caller.metrics();
    assert!(metrics.sum("evenkeel_attempts_total", &[("kind", "hedge")]) > 0.0);
    assert!(metrics.sum("evenkeel_scouts_total", &[("event", "answered")]) > 100.0);
}

fn under_all_of_it_with_a_pool_of_scouts(workers: usize) {
    under_all_of_it(workers, "pool");
}

fn under_all_of_it_with_a_scout_before_each(workers: usize) {
    under_all_of_it(workers, "before_each");
}

/// That no GET meets a stop, so often in a row, is no chance.
const STOPS_MAX: usize = 30;

each_workers!(
    a_host_is_killed,
    an_application_is_killed,
    an_application_resets_connections,
    an_application_is_paused_with_hedging_enforced,
    observed_hedges_are_counted_and_not_sent,
    a_host_is_paused_and_nothing_is_executed_twice,
    an_application_errs_and_gets_well_again_and_again,
    a_check_fails_and_passes_again_and_again,
    all_applications_are_slow_together,
    under_all_of_it_with_a_pool_of_scouts,
    under_all_of_it_with_a_scout_before_each,
);

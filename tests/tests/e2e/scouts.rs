//! Scouts between real processes: a stopped application is known before a request meets it.
//!
//! Endpoints are chosen at random and there are no copies, so that every request that goes to a stopped application shows.
//! Scouts have 20 ms here: a test machine that does much else is late for a millisecond without any pause.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::load::{Load, Report, Sample};
use evenkeel_tests::mesh::{App, Host, Lab, SCOUT_PORT, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::{HeaderValue, Method};
use rustix::process::Signal;

use super::faults::{after, finish, start_loads};
use super::trio::{Trio, payments};

/// A caller that has nothing but its scouts.
fn setup(mode: &str, keys: &[String]) -> Setup {
    let policy = format!(
        "{{balance: random, hedge: {{mode: off}}, scout: {{mode: {mode}, timeout: 20ms}}}}"
    );
    Setup { policy, keys: keys.to_vec(), ..Setup::default() }
}

/// Stops the application for about 0.6 s under load, and says how many requests waited for it: who answered them
/// counts, since this machine makes others wait as well.
fn stop_under_load(caller: &Host, app: &mut App) -> (usize, Report) {
    let loads: [Load; 2] = start_loads(caller);
    after(&loads, 150);
    app.process.signal(Signal::STOP);
    after(&loads, 80);
    app.process.signal(Signal::CONT);
    after(&loads, 50);
    let report = finish(loads);
    report.assert_no_failed_get();
    report.assert_no_failed_post();
    let by_it = |one: &&Sample| one.outcome.as_ref().is_ok_and(|seen| seen.app == app.id());
    let waited = report.samples.iter().filter(|one| one.latency > WAITED).filter(by_it).count();
    eprintln!("{waited} of {} waited", report.samples.len());
    (waited, report)
}

/// Stops the application until at most so many requests waited: a machine that does much else makes them wait by itself, but
/// not each time.
fn few_wait(caller: &Host, app: &mut App, most: usize) {
    let mut waited = Vec::new();
    while waited.len() < TRIES {
        waited.push(stop_under_load(caller, app).0);
        if waited.last().is_some_and(|waited| *waited <= most) {
            return;
        }
    }
    panic!("{waited:?} waited, at most {most} may");
}

fn with_a_scout_port(app: &App) -> String {
    payments(app, &format!(", scout: {{tcp: {SCOUT_PORT}}}"))
}

fn without_scouts_half_of_the_requests_wait(workers: usize) {
    let mut trio = Trio::start_with(Lab::new(workers), &setup("off", &[]), with_a_scout_port);
    let many_wait =
        (0..TRIES).any(|_| stop_under_load(&trio.caller, &mut trio.apps[0]).0 > WITHOUT_MIN);
    assert!(many_wait, "else the other tests show nothing");
    let metrics = trio.caller.metrics();
    assert!(!metrics.has("evenkeel_scouts_total", &[]), "off is off");
}

fn before_each_nothing_is_sent_to_a_stopped_application(workers: usize) {
    let setup = setup("before_each", &[]);
    let mut trio = Trio::start_with(Lab::new(workers), &setup, with_a_scout_port);
    few_wait(&trio.caller, &mut trio.apps[0], IN_FLIGHT_MAX);
    let metrics = trio.caller.metrics();
    let of = |event| metrics.sum("evenkeel_scouts_total", &[("event", event)]);
    assert!(of("lost") > 0.0 && of("answered") > 100.0, "{} {}", of("lost"), of("answered"));
    let chosen = |by| metrics.sum("evenkeel_scout_choices_total", &[("by", by)]);
    assert!(chosen("answered") + chosen("known") > 100.0);
    assert!(metrics.sum("evenkeel_scout_time_seconds_total", &[("of", "round_trip")]) > 0.0);
    let answered = trio.hosts[0].metrics();
    assert!(answered.sum("evenkeel_scout_questions_total", &[("result", "answered")]) > 50.0);

    let explain = trio.caller.ask_admin("/v1/explain/payments").expect("the admin answers").text();
    assert!(explain.contains("\"scout\""), "the last report is shown: {explain}");
}

fn a_pool_of_answers_knows_too_with_keys(workers: usize) {
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned();
    let mut trio = Trio::start_with(Lab::new(workers), &setup("pool", &[key]), with_a_scout_port);
    // Nobody waits for an answer here: what goes out before the first scout is lost waits, and with two endpoints a suspect is
    // passed over in all but one choice of thirty.
    few_wait(&trio.caller, &mut trio.apps[0], WITHOUT_MIN);
}

fn without_a_scout_port_the_host_judges_by_progress(workers: usize) {
    let setup = setup("before_each", &[]);
    let mut trio = Trio::start_with(Lab::new(workers), &setup, |app| payments(app, ""));
    // Some have to go there before it owes an answer, and one at each trial.
    few_wait(&trio.caller, &mut trio.apps[0], 3 * IN_FLIGHT_MAX);
}

fn requests_follow_the_best_answers(workers: usize) {
    let policy = "{balance: scout, scout: {timeout: 20ms}}".into();
    let trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let loads = start_loads(&trio.caller);
    after(&loads, 200);
    let report = finish(loads);
    report.assert_no_failed_get();
    let metrics = trio.caller.metrics();
    let pool = metrics.sum("evenkeel_scout_choices_total", &[("by", "pool")]);
    assert!(pool > 50.0, "{pool} requests chose among answers");
    assert!(trio.apps.iter().all(|app| app.count().0 > 20), "both are used");
}

fn the_last_is_tried_whatever_its_scout_says(workers: usize) {
    let setup = setup("before_each", &[]);
    let mut trio = Trio::start_with(Lab::new(workers), &setup, with_a_scout_port);
    make_known(&trio.caller);
    trio.apps.iter_mut().for_each(|app| app.process.signal(Signal::STOP));
    let caller = &trio.caller;
    let answers: Vec<http::StatusCode> = std::thread::scope(|scope| {
        let mut requests = Vec::new();
        wait::for_true("one goes to the last", SOON, || {
            // The first may still go by an answer from just before the stop.
            requests.push(scope.spawn(|| caller.get("payments.mesh", "/").status));
            caller.metrics().sum("evenkeel_scout_choices_total", &[("by", "last")]) > 0.0
        });
        trio.apps.iter_mut().for_each(|app| app.process.signal(Signal::CONT));
        requests.into_iter().map(|request| request.join().expect("the request ends")).collect()
    });
    assert!(answers.iter().all(http::StatusCode::is_success), "{answers:?}");
}

/// A host alone, and two applications that it knows by their addresses.
fn with_static_endpoints(lab: &Lab, setup: Setup) -> (Host, Vec<App>) {
    let apps: Vec<App> = [2, 3].map(|number| lab.app(number)).into();
    let endpoints: Vec<String> = apps.iter().map(|app| format!("\"{}\"", app.address)).collect();
    let upstreams = format!(
        "[{{name: payments, endpoints: [{}], scout: {{tcp: {SCOUT_PORT}}}}}]",
        endpoints.join(", ")
    );
    let setup = Setup { upstreams, join: vec![1], ..setup };
    (lab.mesh(&[setup]).remove(0), apps)
}

/// Requests until a scout of each endpoint has been answered.
fn make_known(caller: &Host) {
    wait::for_true("all have answered a scout", SOON, || {
        assert_eq!(caller.get("payments.mesh", "/").status, 200);
        last_scouts(caller).iter().all(Option::is_some)
    });
}

/// What `explain` says of the last scout of each endpoint.
fn last_scouts(caller: &Host) -> Vec<Option<String>> {
    let explain = caller.ask_admin("/v1/explain/payments").expect("the admin answers").json();
    let endpoints = explain["endpoints"].as_array().expect("a list").clone();
    let scout = |endpoint: &serde_json::Value| {
        let verdicts = endpoint["verdicts"].as_array().expect("a list").iter();
        let scout = verdicts.clone().find(|verdict| verdict["filter"] == "scout")?;
        scout["reason"].as_str().filter(|why| !why.contains("never answered")).map(str::to_owned)
    };
    endpoints.iter().map(scout).collect()
}

fn static_endpoints_answer_on_their_scout_port(workers: usize) {
    let lab = Lab::new(workers);
    let (caller, mut apps) = with_static_endpoints(&lab, setup("before_each", &[]));
    few_wait(&caller, &mut apps[0], IN_FLIGHT_MAX);
    assert!(caller.metrics().sum("evenkeel_scouts_total", &[("event", "lost")]) > 0.0);
}

/// They say only that they live: there is nothing to choose by, but whom to avoid.
fn static_endpoints_are_no_pool(workers: usize) {
    let lab = Lab::new(workers);
    let policy = "{balance: scout, hedge: {mode: off}, scout: {timeout: 20ms}}".into();
    let (caller, mut apps) = with_static_endpoints(&lab, Setup { policy, ..Setup::default() });
    make_known(&caller);
    few_wait(&caller, &mut apps[0], IN_FLIGHT_MAX);
    let metrics = caller.metrics();
    assert!(metrics.sum("evenkeel_scouts_total", &[("event", "answered")]) > 20.0);
    assert_eq!(metrics.sum("evenkeel_scout_choices_total", &[("by", "pool")]), 0.0);
    assert!(apps.iter().all(|app| app.count().0 > 20), "both are used");
}

fn the_deadline_holds_while_a_scout_is_waited_for(workers: usize) {
    let lab = Lab::new(workers);
    // Much longer than the caller will wait.
    let policy = "{hedge: {mode: off}, scout: {mode: before_each, timeout: 20s}}".into();
    let (caller, mut apps) = with_static_endpoints(&lab, Setup { policy, ..Setup::default() });
    make_known(&caller);
    apps.iter_mut().for_each(|app| app.process.signal(Signal::STOP));
    let began = Instant::now();
    // The first may still go by an answer from just before the stop.
    for _ in 0..2 {
        let mut request = request(Method::GET, "payments.mesh", "/");
        request.headers_mut().insert("evenkeel-timeout", HeaderValue::from_static("300"));
        let answer = client::send(caller.outbound().into(), Version::Http1, request).unwrap();
        assert_eq!(answer.status, 504, "{}", answer.text());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "after {:?}", began.elapsed());
    let asked = caller.metrics().sum("evenkeel_scouts_total", &[("event", "lost")]);
    assert_eq!(asked, 0.0, "the scout was still waited for when the time was over");
    apps.iter_mut().for_each(|app| app.process.signal(Signal::CONT));
}

fn an_application_answers_scouts_on_a_path_of_its_own(workers: usize) {
    let setup = setup("before_each", &[]);
    let with_a_path = |app: &App| payments(app, ", scout: {http: /scout}");
    let mut trio = Trio::start_with(Lab::new(workers), &setup, with_a_path);
    few_wait(&trio.caller, &mut trio.apps[0], IN_FLIGHT_MAX);
    let answered = trio.hosts[0].metrics();
    assert!(answered.sum("evenkeel_scout_questions_total", &[("result", "answered")]) > 50.0);
}

/// The application says it, not what is in flight.
fn nobody_answers_for_an_application_whose_path_does_not(workers: usize) {
    let setup = setup("before_each", &[]);
    let ill = |app: &App| payments(app, ", scout: {http: /status/503}");
    let trio = Trio::start_with(Lab::new(workers), &setup, ill);
    let questions = |result| {
        trio.hosts[0].metrics().sum("evenkeel_scout_questions_total", &[("result", result)])
    };
    wait::for_true("the host was asked", SOON, || {
        assert_eq!(trio.caller.get("payments.mesh", "/").status, 200, "the last is tried");
        questions("silent") > 3.0
    });
    assert_eq!(questions("answered"), 0.0);
}

/// The news of a drain by gossip takes longer than a datagram: whoever asks hears it first.
fn a_draining_host_is_heard_by_a_scout(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &setup("before_each", &[]));
    let host = &trio.hosts[0];
    let loads = start_loads(&trio.caller);
    after(&loads, 50);
    // Whether a scout comes before the gossip is a race, but not one that is lost each time.
    let heard = (0..DRAINS_MAX).any(|_| {
        assert!(host.cli(&["drain", &host.name()]).status.success());
        trio.caller.wait_for_instances("payments", 1);
        let scouts = last_scouts(&trio.caller);
        assert!(host.cli(&["drain", &host.name(), "--undo"]).status.success());
        trio.caller.wait_for_instances("payments", 2);
        scouts.iter().flatten().any(|scout| scout.contains("drains"))
    });
    assert!(heard, "no scout said so");
    let report = finish(loads);
    report.assert_no_failed_get();
    report.assert_no_failed_post();
}

fn what_is_no_scout_is_counted_and_not_answered(workers: usize) {
    let lab = Lab::new(workers);
    let host = lab.mesh(&[Setup { join: vec![1], ..Setup::default() }]).remove(0);
    let counted =
        |result: &str| host.metrics().sum("evenkeel_scout_questions_total", &[("result", result)]);
    let member = UdpSocket::bind((host.ip, 0)).unwrap();
    let stranger = UdpSocket::bind((lab.ip(99), 0)).unwrap();
    for bytes in [&b""[..], b"hello", &[0; 1400], b"EVKL\x01\x03", &[255; 64]] {
        member.send_to(bytes, host.data()).unwrap();
        stranger.send_to(bytes, host.data()).unwrap();
    }
    wait::for_true("all are counted", SOON, || {
        counted("malformed") == 5.0 && counted("stranger") == 5.0
    });
    for socket in [member, stranger] {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err(), "nothing is answered");
    }
}

/// Longer than any request here takes at an application that runs, shorter than the stop.
const WAITED: Duration = Duration::from_millis(250);

/// What can be on its way to an application when it stops, at 260 requests a second.
const IN_FLIGHT_MAX: usize = 4;

/// Without scouts more than this many wait.
const WITHOUT_MIN: usize = 15;

/// A machine that does much else makes some wait, but not each time.
const TRIES: usize = 12;

const DRAINS_MAX: usize = 40;

each_workers!(
    without_scouts_half_of_the_requests_wait,
    before_each_nothing_is_sent_to_a_stopped_application,
    a_pool_of_answers_knows_too_with_keys,
    without_a_scout_port_the_host_judges_by_progress,
    requests_follow_the_best_answers,
    the_last_is_tried_whatever_its_scout_says,
    static_endpoints_answer_on_their_scout_port,
    static_endpoints_are_no_pool,
    the_deadline_holds_while_a_scout_is_waited_for,
    an_application_answers_scouts_on_a_path_of_its_own,
    nobody_answers_for_an_application_whose_path_does_not,
    a_draining_host_is_heard_by_a_scout,
    what_is_no_scout_is_counted_and_not_answered,
);

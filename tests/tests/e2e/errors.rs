//! What a caller is told when the mesh itself must answer: a status, a `Proxy-Status`, a body with the reason.

use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Answer, Version, request};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::Trio;

/// The answer carries this status, says so in RFC 9457's form, and has a `Proxy-Status` (RFC 9209) with one
/// of these error types.
fn assert_reason(answer: &Answer, status: u16, errors: &[&str], mentions: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let proxy_status = answer.header("proxy-status");
    assert!(
        errors.iter().any(|error| proxy_status.contains(&format!("error={error}"))),
        "Proxy-Status is {proxy_status:?}, not one of {errors:?}"
    );
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let body = answer.json();
    assert_eq!(body["status"], status, "{body}");
    assert!(!body["title"].as_str().unwrap_or_default().is_empty(), "{body}");
    assert!(answer.text().contains(mentions), "{body} does not mention {mentions}");
}

fn post(trio: &Trio, service: &str, path: &str) -> Answer {
    client::send(
        trio.caller.outbound().into(),
        Version::Http1,
        request(Method::POST, service, path),
    )
    .unwrap()
}

fn an_unknown_name_is_a_404_that_names_it(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    for name in ["nosuch", "nosuch.mesh", "nosuch.service.mesh:80"] {
        let answer = trio.caller.get(name, "/");
        assert_reason(&answer, 404, &["destination_not_found"], "nosuch");
    }
    // The access log says why, too: one line of JSON for each failure.
    wait::for_true("the access log has the failures", SOON, || {
        let log = trio.caller.process.output().unwrap();
        let lines =
            log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["reason"] == "unknown_service" && line["status"] == 404).count()
            == 3
    });
}

fn without_a_healthy_endpoint_503(workers: usize) {
    let setup = Setup { policy: "{panic: 0%}".into(), ..Setup::default() };
    let trio = Trio::start(Lab::new(workers), &setup);
    trio.apps.iter().for_each(|app| app.set_healthy(false));
    trio.caller.wait_for_instances("payments", 0);
    let answer = trio.caller.get("payments", "/");
    assert_reason(&answer, 503, &["destination_unavailable"], "payments");
    trio.apps.iter().for_each(|app| app.set_healthy(true));
    trio.caller.wait_for_instances("payments", 2);
    assert_eq!(trio.caller.get("payments", "/").status, 200);
}

fn all_unhealthy_at_once_are_tried_all_the_same(workers: usize) {
    // `panic` is 50 % unless said otherwise: a check that is wrong everywhere must not take the service away.
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    trio.apps.iter().for_each(|app| app.set_healthy(false));
    trio.caller.wait_for_instances("payments", 0);
    assert_eq!(trio.caller.get("payments", "/").status, 200);
}

fn nobody_listening_503(workers: usize) {
    let lab = Lab::new(workers);
    let upstreams = format!("[{{name: catalog, endpoints: [\"{0}:9\", \"{0}:10\"]}}]", lab.ip(120));
    let trio = Trio::start(lab, &Setup { upstreams, ..Setup::default() });
    let refused = ["connection_refused", "destination_unavailable"];
    assert_reason(&trio.caller.get("catalog", "/"), 503, &refused, "nothing was sent");
    // Nothing was sent: a POST fails the same way, and says so.
    assert_reason(&post(&trio, "catalog", "/ledger/x"), 503, &refused, "nothing was sent");

    // The same behind another host: its application does not listen, and the check has not seen it yet.
    let lab = Lab::new(workers);
    let mut trio = Trio::start_with(lab, &Setup::default(), |app| {
        format!("[{{name: payments, address: \"{}\"}}]", app.address)
    });
    trio.apps.iter_mut().for_each(|app| app.process.kill());
    assert_eq!(trio.caller.get("payments", "/").status, 503);
    assert_eq!(post(&trio, "payments", "/ledger/x").status, 503);
}

fn broken_after_sending_502_and_never_repeated(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let requests = || trio.apps.iter().map(|app| app.count().0).sum::<u64>();
    let before = requests();
    let answer = post(&trio, "payments", "/reset?at=head");
    assert_reason(&answer, 502, &["connection_terminated"], "connection broke");
    assert_eq!(requests(), before + 1, "a POST that may have been executed is not sent again");
    // A GET is tried again (retry.max: 2), and told the same in the end.
    let answer = trio.caller.get("payments", "/reset?at=head");
    assert_reason(&answer, 502, &["connection_terminated"], "connection broke");
    assert_eq!(requests(), before + 4);
    // After the head there is nothing left but to end the body early.
    let broken = client::get(trio.caller.outbound().into(), "payments", "/reset?at=body");
    assert!(broken.is_err(), "a body that breaks must not look whole: {broken:?}");
}

fn too_late_504_and_cancelled_to_the_application(workers: usize) {
    let setup = Setup { policy: "{timeout: 2s}".into(), ..Setup::default() };
    let trio = Trio::start(Lab::new(workers), &setup);
    let cancelled = || trio.apps.iter().map(|app| app.count().1).sum::<u64>();
    let asks = [Method::GET, Method::POST].into_iter().flat_map(|method| {
        [Version::Http1, Version::Http2].map(|version| (method.clone(), version))
    });
    for (earlier, (method, version)) in (0..).zip(asks) {
        let slow = request(method, "payments", "/hang");
        let answer = client::send(trio.caller.outbound().into(), version, slow).unwrap();
        assert_reason(&answer, 504, &["http_response_timeout"], "no response in time");
        wait::for_true("the application learns of it", SOON, || cancelled() > earlier);
    }
    // The remaining time travels and can be shortened by the caller, never made longer.
    let mut short = request(Method::GET, "payments", "/hang");
    short.headers_mut().insert("evenkeel-timeout", "100".parse().unwrap());
    let start = Instant::now();
    let answer = client::send(trio.caller.outbound().into(), Version::Http1, short).unwrap();
    assert_eq!(answer.status, 504);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "100 ms were asked for, {:?} it took",
        start.elapsed()
    );
    let mut long = request(Method::GET, "payments", "/hang");
    long.headers_mut().insert("evenkeel-timeout", "60000".parse().unwrap());
    assert_eq!(
        client::send(trio.caller.outbound().into(), Version::Http1, long).unwrap().status,
        504
    );
}

fn a_caller_that_goes_away_cancels_what_it_asked(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let arrived = || trio.apps.iter().map(|app| app.count().0).sum::<u64>();
    let cancelled = || trio.apps.iter().map(|app| app.count().1).sum::<u64>();
    let before = arrived();
    let mut caller = evenkeel_tests::raw::Raw::connect(trio.caller.outbound().into()).unwrap();
    caller.say("GET /hang HTTP/1.1\r\nhost: payments\r\n\r\n");
    wait::for_true("the request arrives", SOON, || arrived() > before);
    drop(caller);
    wait::for_true("its end arrives too", SOON, || cancelled() > 0);
    let failed =
        |host: &Host| host.metrics().sum("evenkeel_failures_total", &[("reason", "cancelled")]);
    let taken_back = |host: &Host| host.metrics().sum("evenkeel_inbound_cancelled_total", &[]);
    wait::for_true("both hosts count it", SOON, || {
        failed(&trio.caller) == 1.0 && trio.hosts.iter().map(taken_back).sum::<f64>() == 1.0
    });
    // There it may as well have been a copy that lost: nothing has failed.
    assert_eq!(trio.hosts.iter().map(failed).sum::<f64>(), 0.0);
}

each_workers!(
    an_unknown_name_is_a_404_that_names_it,
    without_a_healthy_endpoint_503,
    all_unhealthy_at_once_are_tried_all_the_same,
    nobody_listening_503,
    broken_after_sending_502_and_never_repeated,
    too_late_504_and_cancelled_to_the_application,
    a_caller_that_goes_away_cancels_what_it_asked,
);

//! Copies beside what is sensitive to them: callers that go away, deadlines, streams, trailers, uploads, early answers.
//!
//! A copy is due after a few milliseconds and both applications take longer, so every request that may be copied is.

use std::time::Duration;

use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::mesh::{Lab, Setup};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::Trio;

/// Copies of all that may be executed twice, PUTs among them; applications that answer after this time.
fn start(workers: usize, delay: Duration) -> Trio {
    let policy = "{timeout: 60s, hedge: {mode: enforce, after: 5ms, budget: 100%, max: 1}, \
                   repeat: {methods: [GET, PUT]}, eject: {consecutive: 0}}";
    let trio = Trio::start(Lab::new(workers), &Setup { policy: policy.into(), ..Setup::default() });
    trio.apps.iter().for_each(|app| app.set_delay(delay));
    trio
}

/// Copies that were sent.
fn copies(trio: &Trio) -> f64 {
    trio.caller.metrics().sum("evenkeel_attempts_total", &[("kind", "hedge")])
}

/// Requests that each application has been given, and how many of them it was told to forget.
fn counts(trio: &Trio) -> [(u64, u64); 2] {
    [trio.apps[0].count(), trio.apps[1].count()]
}

fn wait_until_nothing_is_in_flight(trio: &Trio) {
    wait::for_true("nothing is in flight", SOON, || {
        ["payments", "payments-h2"].iter().all(|service| {
            let report = trio.caller.ask_admin(&format!("/v1/endpoints/{service}")).unwrap();
            let endpoints = report.json()["endpoints"].take();
            let endpoints = endpoints.as_array().unwrap();
            endpoints.len() == 2 && endpoints.iter().all(|endpoint| endpoint["in_flight"] == 0)
        })
    });
}

fn a_caller_that_goes_away_cancels_all_copies(workers: usize) {
    let trio = start(workers, Duration::ZERO);
    for (before, service) in (0..).zip(["payments", "payments-h2"]) {
        let mut caller = Raw::connect(trio.caller.outbound().into()).unwrap();
        caller.say(format!("GET /hang HTTP/1.1\r\nhost: {service}\r\n\r\n"));
        wait::for_true("both have it", SOON, || counts(&trio) == [(before + 1, before); 2]);
        drop(caller);
        wait::for_true("both learn of the end", SOON, || {
            counts(&trio) == [(before + 1, before + 1); 2]
        });
    }
    wait_until_nothing_is_in_flight(&trio);
}

fn a_stream_that_is_taken_back_cancels_all_copies(workers: usize) {
    let trio = std::sync::Arc::new(start(workers, Duration::ZERO));
    for (before, service) in (0..).zip(["payments", "payments-h2"]) {
        let awaited = |what: &'static str, counted: (u64, u64)| {
            let trio = trio.clone();
            move || wait::for_true(what, SOON, || counts(&trio) == [counted; 2])
        };
        let arrived = awaited("both have it", (before + 1, before));
        let learnt = awaited("both learn of the end", (before + 1, before + 1));
        let hang = request(Method::GET, service, "/hang");
        client::abandon(trio.caller.outbound().into(), hang, arrived, learnt).unwrap();
    }
    wait_until_nothing_is_in_flight(&trio);
}

fn a_deadline_cancels_all_copies(workers: usize) {
    let trio = start(workers, Duration::ZERO);
    let asks = ["payments", "payments-h2"]
        .into_iter()
        .flat_map(|service| [Version::Http1, Version::Http2].map(|version| (service, version)));
    for (before, (service, version)) in (0..).zip(asks) {
        let mut hang = request(Method::GET, service, "/hang");
        hang.headers_mut().insert("evenkeel-timeout", "3000".parse().unwrap());
        let answer = client::send(trio.caller.outbound().into(), version, hang).unwrap();
        assert_eq!(answer.status, 504, "{}", answer.text());
        wait::for_true("both have it and learn of the end", SOON, || {
            counts(&trio) == [(before + 1, before + 1); 2]
        });
    }
    wait_until_nothing_is_in_flight(&trio);
}

fn the_copy_that_loses_is_cancelled(workers: usize) {
    let trio = start(workers, Duration::ZERO);
    // Whoever has it first, the second application is done two seconds before the first, and two after that has begun.
    trio.apps[0].set_delay(Duration::from_millis(2000));
    let answer = trio.caller.get("payments", "/slow?ms=4000");
    assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "app-3"));
    wait::for_true("the first is told to forget it", SOON, || counts(&trio) == [(1, 1), (1, 0)]);
    assert_eq!(copies(&trio), 1.0);
    wait_until_nothing_is_in_flight(&trio);
}

fn streams_and_trailers_come_from_one(workers: usize) {
    let trio = start(workers, SLOW);
    let to = trio.caller.outbound().into();
    for version in [Version::Http1, Version::Http2] {
        for service in ["payments", "payments-h2"] {
            let before = copies(&trio);
            let stream = request(Method::GET, service, "/stream?n=4&ms=20");
            let answer = client::send(to, version, stream).unwrap();
            assert_eq!(answer.text(), "chunk 0\nchunk 1\nchunk 2\nchunk 3\n");
            if version == Version::Http2 && service == "payments-h2" {
                assert_eq!(answer.trailer("x-chunks"), "4");
            }
            assert_eq!(copies(&trio), before + 1.0, "{version:?} {service}: it was copied");
        }
    }
    // As it comes, not collected first: this one does not end as long as anyone waits for it.
    trio.apps.iter().for_each(|app| app.set_delay(Duration::ZERO));
    let mut stream = Raw::connect(to).unwrap();
    stream.say("GET /stream?n=2&ms=1000000 HTTP/1.1\r\nhost: payments\r\n\r\n");
    let first = stream.hear_text("chunk 0", SOON).text();
    assert!(first.contains("chunk 0"), "{first}");
    drop(stream);
    wait_until_nothing_is_in_flight(&trio);
}

fn an_upload_is_copied_once_it_is_whole(workers: usize) {
    let trio = start(workers, SLOW);
    for service in ["payments", "payments-h2"] {
        let (before, asked) = (copies(&trio), counts(&trio).map(|(asked, _)| asked));
        let mut caller = Raw::connect(trio.caller.outbound().into()).unwrap();
        caller.say(format!(
            "PUT /status/200 HTTP/1.1\r\nhost: {service}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        ));
        let told = caller.hear_responses(1, SOON).text();
        assert!(told.starts_with("HTTP/1.1 100 Continue\r\n"), "{told}");
        caller.say("hel");
        // Many times what a copy waits for.
        std::thread::sleep(SLOW);
        assert_eq!(copies(&trio), before, "half an upload is not copied");
        caller.say("lo");
        let told = caller.hear_responses(1, SOON).text();
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
        assert_eq!(copies(&trio), before + 1.0, "it was still waiting when it was whole");
        let each = counts(&trio).map(|(asked, _)| asked);
        assert_eq!(each, asked.map(|before| before + 1), "each application had it once");
        // Nothing more comes of it: what is heard next is the answer to what is asked next.
        caller.say(format!("POST /status/204 HTTP/1.1\r\nhost: {service}\r\n\r\n"));
        let told = caller.hear_responses(1, SOON).text();
        assert!(told.starts_with("HTTP/1.1 204"), "{told}");
    }
    wait_until_nothing_is_in_flight(&trio);
}

fn an_answer_may_come_before_the_upload_ends(workers: usize) {
    let trio = start(workers, SLOW);
    for service in ["payments", "payments-h2"] {
        // Refused at its head: the caller is told although it has not sent the body.
        let mut caller = Raw::connect(trio.caller.outbound().into()).unwrap();
        caller.say(format!(
            "PUT /early?status=413 HTTP/1.1\r\nhost: {service}\r\ncontent-length: 100000\r\n\r\nthe first part"
        ));
        let told = caller.hear_responses(1, SOON);
        assert_eq!(told.status(), 413, "{}", told.text());
        // Answered while it goes on: both ways at once.
        let mut caller = Raw::connect(trio.caller.outbound().into()).unwrap();
        caller.say(format!(
            "PUT /echo HTTP/1.1\r\nhost: {service}\r\ncontent-length: 10\r\n\r\nhello"
        ));
        let told = caller.hear_text("hello", SOON).text();
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains("hello"), "{told}");
        caller.say("world");
        let told = caller.hear_text("world", SOON).text();
        assert!(told.contains("world"), "{told}");
    }
    assert_eq!(copies(&trio), 0.0, "what is not whole is not copied");
    wait_until_nothing_is_in_flight(&trio);
}

each_workers!(
    a_caller_that_goes_away_cancels_all_copies,
    a_stream_that_is_taken_back_cancels_all_copies,
    a_deadline_cancels_all_copies,
    the_copy_that_loses_is_cancelled,
    streams_and_trailers_come_from_one,
    an_upload_is_copied_once_it_is_whole,
    an_answer_may_come_before_the_upload_ends,
);

/// Long beside the time after which a copy is due.
const SLOW: Duration = Duration::from_millis(1500);

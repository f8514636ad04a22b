//! The harness itself, without a mesh: what it cannot see, no test with a mesh would see.

use std::time::Duration;

use bytes::Bytes;
use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::ledger::Ledger;
use evenkeel_tests::load::{Load, Plan};
use evenkeel_tests::mesh::{App, Lab};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::wait::{self, SOON};
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::{BodyExt, Full};
use rustix::process::Signal;

fn plan(app: &App, version: Version) -> Plan {
    Plan {
        to: app.address.into(),
        host: "app".into(),
        version,
        gets_per_sec: 300,
        posts_per_sec: 100,
        ids: format!("{version:?}"),
        tenant: String::new(),
    }
}

#[test]
fn a_killed_application_loses_requests_but_not_its_ledger() {
    let lab = Lab::new(1);
    let mut app = lab.app(1);
    let loads = [Version::Http1, Version::Http2].map(|version| Load::start(plan(&app, version)));
    loads.iter().for_each(|load| load.after(100));
    app.process.kill();
    loads.iter().for_each(|load| load.after(50));
    app.start_again();
    loads.iter().for_each(|load| load.after(100));
    let [http1, http2] = loads.map(Load::finish);
    for report in [&http1, &http2] {
        assert!(
            report.gets().any(|get| !get.succeeded()),
            "nothing answers while the application is dead"
        );
        assert!(report.posts().any(evenkeel_tests::load::Sample::succeeded));
        let ledger = Ledger::read([&app.ledger]);
        assert!(ledger.compare(report).is_err(), "the other load's ids are unknown to this one");
    }
    let both = evenkeel_tests::load::Report { samples: [http1.samples, http2.samples].concat() };
    let tally = Ledger::read([&app.ledger]).check(&both);
    assert!(tally.succeeded > 0 && tally.succeeded < tally.sent, "{tally:?}");
}

#[test]
fn a_pause_shows_in_the_latency_of_every_request_that_was_due() {
    let lab = Lab::new(1);
    let mut app = lab.app(1);
    let load = Load::start(plan(&app, Version::Http1));
    load.after(100);
    app.process.signal(Signal::STOP);
    // The one place where time itself is what is tested: the pause has this length.
    std::thread::sleep(Duration::from_millis(300));
    app.process.signal(Signal::CONT);
    load.after(100);
    let report = load.finish();
    report.assert_no_failed_get();
    let late = report.gets().filter(|get| get.latency > Duration::from_millis(100)).count();
    // 300/s for the 200 ms that are more than 100 ms before the end of the pause: 60.
    assert!(late >= 45, "{late} requests were late; an open loop sees about 60");
    assert!(report.quantile(0.999) >= Duration::from_millis(250));
}

#[test]
fn the_application_does_what_it_is_asked() {
    let lab = Lab::new(1);
    let app = lab.app(1);
    assert_eq!(app.get("/?bytes=5000").body.len(), 5000);
    assert_eq!(app.get("/status/418").status, 418);
    assert_eq!(app.get("/").header("x-app"), "app-1");
    for version in [Version::Http1, Version::Http2] {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let body = Full::new(Bytes::from_static(b"hello"))
            .with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut echo = http::Request::post("/echo").header("host", "app").body(body).unwrap();
        echo.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        let answer = client::send(app.address.into(), version, echo).unwrap();
        assert_eq!(answer.text(), "hello");
        if version == Version::Http2 {
            assert_eq!(answer.trailer("x-sum"), "7");
        }
        let answer = client::send(
            app.address.into(),
            version,
            request(Method::GET, "app", "/stream?n=3&ms=5"),
        );
        assert_eq!(answer.unwrap().text(), "chunk 0\nchunk 1\nchunk 2\n");
        for path in ["/reset?at=head", "/reset?at=body"] {
            assert!(
                client::send(app.address.into(), version, request(Method::GET, "app", path))
                    .is_err(),
                "{path}"
            );
        }
    }
    app.set_healthy(false);
    assert_eq!(app.get("/healthz").status, 503);

    let before = app.count();
    let mut caller = Raw::connect(app.address.into()).unwrap();
    caller.say("GET /hang HTTP/1.1\r\nhost: app\r\n\r\n");
    wait::for_true("the hanging request arrives", SOON, || app.count().0 == before.0 + 1);
    drop(caller);
    wait::for_true("its end is counted", SOON, || app.count().1 == before.1 + 1);
}

//! Whom a failure speaks against: an endpoint answers for what it did, and for nothing else.
//!
//! Each case has a service of its own with two instances and ejection after three failures in a row. It is asked
//! often enough that both would be ejected, and then the host is asked whether one was.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use evenkeel_tests::wait;

use crate::conformance::row::{Content, Row, TO_HTTP1, TO_HTTP2, Way, answer, ask, get};
use crate::conformance::run::within;
use crate::conformance::script::{
    CANCEL, INTERNAL_ERROR, Step, bytes, data, headers, request_headers,
};
use crate::conformance::stage::{Case, Stage};

/// A row whose outcome is a verdict on the endpoint.
struct Blame {
    row: Row,
    /// Whether it speaks against the endpoint.
    blamed: bool,
}

/// Runs all cases.
///
/// # Panics
/// When an endpoint is blamed for what it did not do, or not for what it did.
pub fn run() {
    let blames: Vec<Blame> = spared().chain(blamed()).collect();
    let cases: Vec<(Case<'_>, bool)> = blames
        .iter()
        .flat_map(|blame| Case::all_of(&blame.row).map(|case| (case, blame.blamed)))
        .filter(|(case, _)| case.way != Way::Passthrough)
        .collect();
    let (mut upstreams, mut services) = (String::new(), String::new());
    for (number, (case, _)) in cases.iter().enumerate() {
        let port = if case.way.is_http2() { 9002 } else { 9001 };
        let protocol = match case.way {
            Way::MeshUndeclared | Way::MeshUndeclaredHttp2 => "",
            way if way.is_http2() => ", protocol: http2",
            _ => ", protocol: http",
        };
        if matches!(case.way, Way::StaticHttp1 | Way::StaticHttp2) {
            upstreams += &format!(
                ", {{name: blame-{number}, endpoints: [\"{{ip120}}:{port}\", \
                 \"{{ip121}}:{port}\"]{protocol}, policy: {POLICY}}}"
            );
        } else {
            upstreams += &format!(", {{name: blame-{number}, policy: {POLICY}}}");
            for last in [120, 121] {
                services += &format!(
                    ", {{name: blame-{number}, id: blame-{number}-{last}, address: \
                     \"{{ip{last}}}:{port}\"{protocol}}}"
                );
            }
        }
    }
    let stage = Stage::with(&upstreams, &services);
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((case, blamed)) = cases.get(number) else { return };
                    if let Some(failure) = judge(&stage, case, *blamed, &format!("blame-{number}"))
                    {
                        failures.lock().expect("nobody panics with it").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panics with it");
    let (count, all) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{count} of {all} verdicts are wrong\n{}", failures.join("\n"));
}

/// Asks a service often enough; what is wrong with the verdict, if anything is.
fn judge(stage: &Stage, case: &Case<'_>, blamed: bool, service: &str) -> Option<String> {
    wait::for_true("both instances are known", Duration::from_secs(10), || {
        ejections(stage, service).len() == 2
    });
    let ejected = || ejections(stage, service).iter().sum::<u64>() > 0;
    for _ in 0..ASKED {
        stage.exchange(case, service.to_owned());
    }
    // What must be blamed may be counted a moment behind the response; what must not be has been asked for often.
    let held = if blamed { within(Duration::from_secs(1), ejected) } else { !ejected() };
    let caller = if case.http2 { "HTTP/2" } else { "HTTP/1.1" };
    let verb = if blamed { "is not blamed" } else { "is blamed" };
    let Row { about, section, .. } = case.row;
    (!held).then(|| {
        format!("{section}: over {:?}, caller {caller}, the endpoint {verb} for {about}", case.way)
    })
}

/// How often each endpoint of a service was ejected.
fn ejections(stage: &Stage, service: &str) -> Vec<u64> {
    let Some(answer) = stage.caller.ask_admin(&format!("/v1/endpoints/{service}")) else {
        return Vec::new();
    };
    let endpoints = answer.json()["endpoints"].take();
    let endpoints = endpoints.as_array().into_iter().flatten();
    endpoints.filter_map(|endpoint| endpoint["ejections"].as_u64()).collect()
}

/// What a caller asks for that can never succeed, what it does itself, and what is a limit of the proxy's own.
fn spared() -> impl Iterator<Item = Blame> {
    let many: String = (0..300).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let long = "v".repeat(100 * 1024);
    let grpc = &[("content-type", "application/grpc"), ("te", "trailers")];
    let mut rows = vec![
        Row::new("RFC 9110 §6.5.1", "a trailer that HTTP/2 forbids").http1(
            "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\
             Connection: x\r\n\r\n",
        ),
        Row::new("RFC 9110 §5.4", "a request with 300 fields")
            .http1(format!("GET {{path}} HTTP/1.1\r\n{{to}}{many}\r\n")),
        Row::new("RFC 6585 §5", "a request with a head of 100 KiB").ask(get(&[("X-Long", &long)])),
        Row::new("RFC 9110 §5.4", "a response with 300 fields")
            .ask(get(&[]))
            .reply_http1(format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok")),
        Row::new("RFC 9110 §15.6.3", "a response whose head is larger than the proxy reads")
            .ask(get(&[]))
            .reply(answer(200, &[("X-Long", &long)], Content::Sized("ok"))),
        Row::new("RFC 9110 §10.1.4", "TE on two lines").http1(
            "GET {path} HTTP/1.1\r\n{to}TE: trailers\r\nTE: trailers\r\nConnection: te\r\n\r\n",
        ),
        Row::new("gRPC over HTTP/2", "a media type of gRPC for an application of HTTP/1.1")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}Content-Type: application/grpc\r\n\
                 Content-Length: 0\r\n\r\n",
            )
            .over(TO_HTTP1),
        Row::new(
            "gRPC over HTTP/2",
            "a media type of gRPC for an application of HTTP/1.1 that \
                                      declares nothing",
        )
        .http1(
            "POST {path} HTTP/1.1\r\n{to}Content-Type: application/grpc\r\n\
                    Content-Length: 0\r\n\r\n",
        )
        .over(&[Way::MeshUndeclared]),
        Row::new(
            "RFC 9113 §3.3",
            "a request in HTTP/1.1 to an application of HTTP/2 that \
                                   declares nothing",
        )
        .ask(get(&[]))
        .over(&[Way::MeshUndeclaredHttp2]),
        Row::new("RFC 9113 §8.1", "an upload that its caller breaks off").http2(vec![
            request_headers("POST", &[], false),
            data("hello", false),
            Step::AwaitBody(5),
            Step::ResetStream(CANCEL),
        ]),
        Row::new("RFC 9112 §8", "an upload whose caller closes the connection").http1_steps(vec![
            bytes("POST {path} HTTP/1.1\r\n{to}Content-Length: 10\r\n\r\nhello"),
            Step::AwaitBody(5),
            Step::Close,
        ]),
        Row::new("RFC 9112 §7.1", "a chunk that breaks the grammar").http1_steps(vec![
            bytes(
                "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\
                 x\r\n",
            ),
            Step::AwaitArrivals(1),
        ]),
        Row::new("RFC 9110 §15.5.5", "a 404").ask(get(&[])).reply(answer(
            404,
            &[],
            Content::Sized("no"),
        )),
    ];
    for status in ["0", "3", "5", "16"] {
        rows.push(grpc_row(grpc, status, "in trailers"));
        rows.push(grpc_row(grpc, status, "in the head"));
    }
    rows.into_iter().map(|row| Blame { row, blamed: false })
}

/// What an endpoint did.
fn blamed() -> impl Iterator<Item = Blame> {
    let grpc = &[("content-type", "application/grpc"), ("te", "trailers")];
    [
        grpc_row(grpc, "14", "in trailers"),
        grpc_row(grpc, "14", "in the head"),
        Row::new("RFC 9112 §8", "a content that it breaks off").ask(get(&[])).reply_http1_steps(
            vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
                Step::AwaitHeard(5),
                Step::Close,
            ],
        ),
        Row::new("RFC 9113 §8.1", "a content that it breaks off").ask(get(&[])).reply_http2_steps(
            vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("hello", false),
                Step::AwaitHeard(5),
                Step::ResetStream(INTERNAL_ERROR),
            ],
        ),
        Row::new("RFC 9112 §9.5", "a connection that it closes without a response")
            .ask(ask("POST", &[]))
            .reply_http1_steps(vec![Step::AwaitRequest, Step::Close]),
        Row::new("RFC 9113 §8.1", "a stream that it resets without a response")
            .ask(ask("POST", &[]))
            .reply_http2_steps(vec![Step::AwaitRequest, Step::ResetStream(INTERNAL_ERROR)]),
    ]
    .into_iter()
    .map(|row| Blame { row, blamed: true })
}

fn grpc_row(request: &[(&str, &str)], status: &str, place: &str) -> Row {
    let head = [(":status", "200"), ("content-type", "application/grpc")];
    let said = [("grpc-status", status)];
    let steps = if place == "in trailers" {
        vec![Step::AwaitRequest, headers(&head, false), headers(&said, true)]
    } else {
        vec![Step::AwaitRequest, headers(&[&head[..], &said[..]].concat(), true)]
    };
    Row::new("gRPC over HTTP/2: Responses", format!("a gRPC status of {status} {place}"))
        .http2(vec![request_headers("POST", request, true)])
        .over(TO_HTTP2)
        .reply_http2_steps(steps)
}

const POLICY: &str =
    "{timeout: 1s, retry: {max: 0}, eject: {consecutive: 3, base: 60s, max: 100%}}";

/// Requests of one case: enough for three in a row at each of two instances.
const ASKED: usize = 12;

/// Cases at the same time: most of one is waiting for the other side.
const AT_ONCE: usize = 6;

//! Trailer sections (RFC 9110 §6.5): they pass, but for fields that frame, route, authenticate or belong to the hop,
//! and one of those neither spoils nor delays the message that has it.

use crate::conformance::check::Arrives::{Once, Unfinished};
use crate::conformance::check::Check::{Body, Lacks, NoTrailer, Refused, Status, Trailer};
use crate::conformance::row::{Content, Row, TO_HTTP1, TO_HTTP2, answer, get, upload};
use crate::conformance::script::{Step, bytes, data, headers, request_headers};

/// The rows.
pub fn rows() -> Vec<Row> {
    [passing(), left_out(), placed()].concat()
}

fn passing() -> Vec<Row> {
    let two: &[(&str, &str)] = &[("X-Sum", "abc"), ("X-Other", "a, b")];
    vec![
        Row::new("RFC 9110 §6.5", "trailers of a request pass")
            .ask(upload(&[("Trailer", "X-Sum, X-Other")]).trailers(two))
            .expect(
                Once(&[Body("hello"), Trailer("x-sum", "abc"), Trailer("x-other", "a, b")]),
                &[Status(&[200])],
            ),
        Row::new("RFC 9110 §6.5", "trailers of a request that were not announced pass to HTTP/2")
            .ask(upload(&[]).trailers(two))
            .over(TO_HTTP2)
            .expect(Once(&[Body("hello"), Trailer("x-sum", "abc")]), &[Status(&[200])]),
        Row::new(
            "RFC 9112 §7.1.2",
            "trailers of a request that were not announced do no harm in HTTP/1.1",
        )
        .ask(upload(&[]).trailers(two))
        .over(TO_HTTP1)
        .expect(Once(&[Body("hello")]), &[Status(&[200])])
        .left_lenient(
            "hyper writes those that Trailer announces; a recipient may discard the others",
        ),
        Row::new("RFC 9110 §6.5", "trailers of a response pass to a caller that takes them")
            .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
            .http1("GET {path} HTTP/1.1\r\n{to}TE: trailers\r\nConnection: te\r\n\r\n")
            .reply(
                answer(200, &[("Trailer", "X-Sum, X-Other")], Content::Streamed("hello"))
                    .trailers(two),
            )
            .expect(
                Once(&[]),
                &[
                    Status(&[200]),
                    Body("hello"),
                    Trailer("x-sum", "abc"),
                    Trailer("x-other", "a, b"),
                ],
            ),
        Row::new(
            "RFC 9110 §6.5.1",
            "trailers to a caller that did not say that it takes them pass or are left out",
        )
        .ask(get(&[]))
        .reply(answer(200, &[], Content::Streamed("hello")).trailers(two))
        .expect(Once(&[]), &[Status(&[200]), Body("hello")]),
        Row::new("RFC 9113 §8.1", "trailers behind no content pass")
            .http2(vec![
                request_headers("POST", &[("trailer", "x-sum")], false),
                headers(&[("x-sum", "abc")], true),
            ])
            .expect(Once(&[Body(""), Trailer("x-sum", "abc")]), &[Status(&[200])]),
        Row::new("RFC 9112 §7.1.2", "trailers behind an empty chunked content pass")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\nX-Sum: abc\r\n\r\n",
            )
            .expect(Once(&[Body(""), Trailer("x-sum", "abc")]), &[Status(&[200])]),
    ]
}

/// Fields that never pass as trailers.
fn left_out() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, value) in [
        ("Content-Length", "9"),
        ("Transfer-Encoding", "chunked"),
        ("Host", "evil.example"),
        ("Connection", "x-other"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Upgrade", "foo"),
        ("TE", "trailers"),
        ("Trailer", "x-sum"),
        ("Authorization", "Bearer x"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Set-Cookie", "a=1"),
        ("Content-Encoding", "gzip"),
        ("Content-Type", "text/plain"),
        ("Content-Range", "bytes 0-1/2"),
        ("Evenkeel-Timeout", "1"),
        ("Evenkeel-Service", "other"),
        ("Evenkeel-Failed", "reset"),
        ("Evenkeel-Refused", "connect"),
    ] {
        let chunked = format!("Trailer: X-Sum, {name}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let content = format!("5\r\nhello\r\n0\r\n{name}: {value}\r\nX-Sum: abc\r\n\r\n");
        let announced = format!("x-sum, {}", name.to_lowercase());
        let section = headers(&[(&name.to_lowercase(), value), ("x-sum", "abc")], true);
        let row = |whose: &str| {
            let about =
                format!("{whose} trailer {name} is left out and the message passes at once");
            Row::new("RFC 9110 §6.5.1", about)
        };
        rows.push(
            row("a request's")
                .http1(format!("POST {{path}} HTTP/1.1\r\n{{to}}{chunked}{content}"))
                .expect(Once(&[Body("hello"), Trailer("x-sum", "abc")]), &[Status(&[200])]),
        );
        rows.push(
            row("a response's")
                .http1("GET {path} HTTP/1.1\r\n{to}TE: trailers\r\nConnection: te\r\n\r\n")
                .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
                .reply_http1(format!("HTTP/1.1 200 OK\r\n{chunked}{content}"))
                .expect(Once(&[]), &[Status(&[200]), Body("hello"), Trailer("x-sum", "abc")]),
        );
        // HTTP/2 calls these malformed there; in HTTP/1.1 every one of them is only a field.
        let of_a_connection =
            ["Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "Transfer-Encoding", "TE"];
        if of_a_connection.contains(&name) {
            rows.push(
                row("over HTTP/2 a request's")
                    .http2(vec![request_headers("POST", &[], false), data("hello", false), section])
                    .expect(Unfinished, &[Refused])
                    .or(Once(&[Body("hello")]), &[Status(&[200])]),
            );
            continue;
        }
        rows.push(
            row("over HTTP/2 a request's")
                .http2(vec![
                    request_headers("POST", &[("trailer", &announced)], false),
                    data("hello", false),
                    section.clone(),
                ])
                .expect(Once(&[Body("hello"), Trailer("x-sum", "abc")]), &[Status(&[200])]),
        );
        rows.push(
            row("over HTTP/2 a response's")
                .http1("GET {path} HTTP/1.1\r\n{to}TE: trailers\r\nConnection: te\r\n\r\n")
                .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
                .reply_http2_steps(vec![
                    Step::AwaitRequest,
                    headers(&[(":status", "200"), ("trailer", &announced)], false),
                    data("hello", false),
                    section,
                ])
                .expect(Once(&[]), &[Status(&[200]), Body("hello"), Trailer("x-sum", "abc")]),
        );
    }
    rows.push(
        Row::new(
            "RFC 9110 §6.5.1",
            "when nothing is left of a trailer section the message passes \
             all the same",
        )
        .http1(
            "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\
             Connection: x\r\nContent-Length: 9\r\n\r\n",
        )
        .expect(
            Once(&[Body("hello"), NoTrailer("connection"), NoTrailer("content-length")]),
            &[Status(&[200])],
        ),
    );
    rows
}

/// Trailers are trailers: never merged into the header section.
fn placed() -> Vec<Row> {
    vec![
        Row::new("RFC 9110 §6.5.1", "a trailer does not become a field of the header section")
            .ask(upload(&[("Trailer", "X-Sum")]).trailers(&[("X-Sum", "abc")]))
            .expect(Once(&[Lacks("x-sum"), Trailer("x-sum", "abc")]), &[Status(&[200])]),
        Row::new("RFC 9112 §7.1.2", "a response's trailers come behind all of its content")
            .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"),
                bytes("5\r\nhello\r\n"),
                Step::AwaitHeard(5),
                bytes("1\r\n!\r\n0\r\nX-Sum: abc\r\n\r\n"),
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("hello!"), Trailer("x-sum", "abc")]),
        Row::new("RFC 9112 §7.1.2", "60 trailers of 100 bytes pass")
            .http1(format!(
                "POST {{path}} HTTP/1.1\r\n{{to}}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\
                 0\r\n{}\r\n",
                (0..60).map(|n| format!("X-{n}: {}\r\n", "v".repeat(100))).collect::<String>()
            ))
            .expect(Once(&[Body("hello")]), &[Status(&[200])]),
    ]
}

//! Interim responses (RFC 9110 §15.2), `Expect: 100-continue` (§10.1.1) and `Upgrade` (§7.8).

use crate::conformance::check::Arrives::{Anything, Nothing, Once, Unfinished};
use crate::conformance::check::Check::{Body, Has, Interim, Lacks, Only, Status};
use crate::conformance::row::{Content, Row, SERVICES, TO_HTTP1, answer, ask, get};
use crate::conformance::script::{Step, bytes, data, headers, request_headers};

/// The rows.
pub fn rows() -> Vec<Row> {
    [passed_on(), expectations(), upgrades()].concat()
}

fn passed_on() -> Vec<Row> {
    let mut rows = vec![
        Row::new("RFC 9110 §15.2", "103 is passed on before the response")
            .ask(get(&[]))
            .reply(
                answer(200, &[("X-A", "1")], Content::Sized("ok"))
                    .after(103, &[("Link", "</a.css>")]),
            )
            .expect(
                Once(&[]),
                &[Interim(&[103]), Status(&[200]), Body("ok"), Only("x-a", "1"), Lacks("link")],
            ),
        Row::new("RFC 8297 §2", "several 103 are passed on, in order, before the response")
            .ask(get(&[]))
            .reply(
                answer(200, &[], Content::Streamed("hello"))
                    .after(103, &[("Link", "</a.css>")])
                    .after(103, &[("Link", "</b.css>")]),
            )
            .expect(Once(&[]), &[Interim(&[103, 103]), Status(&[200]), Body("hello")]),
        Row::new("RFC 9110 §15.2", "102 is passed on before the response")
            .ask(get(&[]))
            .reply(answer(200, &[], Content::Sized("ok")).after(102, &[]))
            .expect(Once(&[]), &[Interim(&[102]), Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §15.2", "an HTTP/1.0 caller is sent no interim response")
            .http1("GET {path} HTTP/1.0\r\n{to}\r\n")
            .reply(answer(200, &[], Content::Sized("ok")).after(103, &[("Link", "</a.css>")]))
            .expect(Once(&[]), &[Interim(&[]), Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §15.2", "103 is passed on at once and not with the response")
            .http1_steps(vec![bytes("GET {path} HTTP/1.1\r\n{to}\r\n"), Step::AwaitInterim])
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"),
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ])
            .expect(Once(&[]), &[Interim(&[103]), Status(&[200]), Body("ok")]),
        Row::new("RFC 9113 §8.1", "an interim response with END_STREAM is malformed")
            .ask(get(&[]))
            .reply_http2_steps(vec![Step::AwaitRequest, headers(&[(":status", "103")], true)])
            .expect(Once(&[]), &[Status(&[502])]),
        Row::new("RFC 9110 §15.2", "an interim response and nothing behind it is a 502")
            .ask(ask("POST", &[]))
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 103 Early Hints\r\n\r\n"),
                Step::Close,
            ])
            .expect(Once(&[]), &[Status(&[502])]),
    ];
    rows.push(
        Row::new("RFC 9110 §15.2.1", "100 that nobody waits for does no harm")
            .ask(get(&[]))
            .reply(answer(200, &[], Content::Sized("ok")).after(100, &[]))
            .expect(Once(&[]), &[Status(&[200]), Body("ok")]),
    );
    rows.push(
        Row::new("RFC 9110 §8.6", "an interim response with a length has none on the way")
            .ask(get(&[]))
            .reply_http1(
                "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\
                 Content-Length: 2\r\n\r\nok",
            )
            .expect(Once(&[]), &[Status(&[200]), Body("ok")])
            .or(Once(&[]), &[Status(&[502])]),
    );
    rows
}

/// `Expect: 100-continue`.
fn expectations() -> Vec<Row> {
    let head = "POST {path} HTTP/1.1\r\n{to}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let refusal =
        "HTTP/1.1 401 Unauthorized\r\nX-A: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let head_http2 =
        || request_headers("POST", &[("content-length", "5"), ("expect", "100-continue")], false);
    vec![
        Row::new("RFC 9110 §10.1.1", "a request without content expects no leave to send it")
            .ask(get(&[("Expect", "100-continue")]))
            .expect(Once(&[Lacks("expect")]), &[Interim(&[]), Status(&[200])]),
        Row::new("RFC 9110 §10.1.1", "an application's 100 opens the content")
            .http1_steps(vec![bytes(head), Step::AwaitInterim, bytes("hello")])
            .http2(vec![head_http2(), Step::AwaitInterim, data("hello", true)])
            .reply_http1_steps(vec![
                bytes("HTTP/1.1 100 Continue\r\n\r\n"),
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ])
            .reply_http2_steps(vec![
                headers(&[(":status", "100")], false),
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("ok", true),
            ])
            .expect(Once(&[Body("hello")]), &[Interim(&[100]), Status(&[200]), Body("ok")]),
        Row::new(
            "RFC 9110 §10.1.1",
            "an application that reads without a 100 is sent the content \
             all the same",
        )
        .http1_steps(vec![bytes(head), Step::AwaitInterim, bytes("hello")])
        .reply(answer(200, &[], Content::Sized("ok")))
        .expect(Once(&[Body("hello")]), &[Interim(&[100]), Status(&[200]), Body("ok")]),
        Row::new(
            "RFC 9110 §10.1.1",
            "an application that refuses from the head is not preceded \
             by a 100",
        )
        .http1_steps(vec![bytes(head), Step::AwaitInterim])
        .http2(vec![head_http2(), Step::AwaitInterim])
        .reply_http1_steps(vec![bytes(refusal)])
        .reply_http2_steps(vec![headers(&[(":status", "401"), ("x-a", "1")], true)])
        .expect(Unfinished, &[Interim(&[]), Status(&[401]), Has("x-a", "1")]),
        Row::new("RFC 9110 §10.1.1", "a caller that does not wait for a 100 is served")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n\
                 hello",
            )
            .http2(vec![head_http2(), data("hello", true)])
            .expect(Once(&[Body("hello")]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §10.1.1", "an expectation without content is served")
            .ask(get(&[("Expect", "100-continue")]))
            .expect(Once(&[Body("")]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §10.1.1", "an HTTP/1.0 caller's expectation is ignored")
            .http1(
                "POST {path} HTTP/1.0\r\n{to}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n\
                 hello",
            )
            .expect(Once(&[Body("hello")]), &[Interim(&[]), Status(&[200])]),
        Row::new("RFC 9110 §10.1.1", "an expectation that is not known is a 417, or ends here")
            .ask(get(&[("Expect", "something")]))
            .expect(Nothing, &[Status(&[417])])
            .or(Once(&[]), &[Status(&[200])]),
        Row::new(
            "RFC 9110 §10.1.1",
            "a request without an expectation is sent no 100 of the \
             proxy's own",
        )
        .http1("POST {path} HTTP/1.1\r\n{to}Content-Length: 5\r\n\r\nhello")
        .expect(Once(&[Body("hello"), Lacks("expect")]), &[Interim(&[]), Status(&[200])]),
    ]
}

/// `Upgrade` and the 101 that answers it.
fn upgrades() -> Vec<Row> {
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n";
    vec![
        Row::new("RFC 9110 §15.2.2", "101 that nobody asked for is a 502")
            .ask(get(&[]))
            .reply_http1_steps(vec![Step::AwaitRequest, bytes(switched), Step::Close])
            .expect(Once(&[]), &[Status(&[502]), Interim(&[])]),
        Row::new(
            "RFC 9110 §15.2.2",
            "101 with a response behind it that nobody asked for is a 502",
        )
        .ask(ask("POST", &[]))
        .reply_http1_steps(vec![
            Step::AwaitRequest,
            bytes(format!("{switched}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
            Step::Close,
        ])
        .expect(Once(&[]), &[Status(&[502]), Interim(&[])]),
        Row::new(
            "RFC 9110 §7.8",
            "an offer to switch to h2c is not taken, and the request is \
             served",
        )
        .http1(
            "GET {path} HTTP/1.1\r\n{to}Connection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .over(SERVICES)
        .expect(Once(&[Lacks("upgrade"), Lacks("http2-settings")]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §7.8", "a WebSocket is refused with a reason, not asked as a plain GET")
            .http1(
                "GET {path} HTTP/1.1\r\n{to}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .expect(Nothing, &[Status(&[501])]),
        Row::new("RFC 9110 §7.8", "an offer of TLS, which some clients make with each GET, is not taken")
            .http1(
                "GET {path} HTTP/1.1\r\n{to}Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n",
            )
            .over(TO_HTTP1)
            .expect(Once(&[Lacks("upgrade")]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §7.8", "an Upgrade that Connection does not name is none")
            .http1("GET {path} HTTP/1.1\r\n{to}Upgrade: foo\r\n\r\n")
            .over(TO_HTTP1)
            .expect(Once(&[Lacks("upgrade")]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9110 §15.5.22", "426 passes")
            .ask(get(&[]))
            .reply_http1("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
            .expect(Anything, &[Status(&[426]), Body("no")]),
    ]
}

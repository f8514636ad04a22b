//! Which fields pass, which end at the proxy, and which make a message malformed (RFC 9110 §5, §7.6; RFC 9112 §5;
//! RFC 9113 §8.2).

use crate::conformance::check::Arrives::{Anything, Nothing, Once};
use crate::conformance::check::Check::{
    Body, Closed, Contains, Count, Has, Lacks, Method, Of, Only, Refused, Status,
};
use crate::conformance::row::{ALL, Content, MESH, Row, TO_HTTP1, TO_HTTP2, answer, get, upload};
use crate::conformance::script::{Step, bytes, headers, request_headers};

/// The rows.
pub fn rows() -> Vec<Row> {
    [
        end_to_end(),
        connection_options(),
        te(),
        between_hosts(),
        cookies(),
        sizes(),
        grammar_http1(),
        grammar_http2(),
    ]
    .concat()
}

/// Fields that pass as they are, in both directions.
fn end_to_end() -> Vec<Row> {
    let passing: &[(&str, &str)] = &[
        ("X-Empty", ""),
        ("X-Spaces", "a  b\tc"),
        ("X-Quoted", "\"a, b\"; q=\"\\\"\""),
        ("X-!#$%&'*+-.^_`|~9", "every character of a token"),
        ("Authorization", "Bearer x"),
        ("Accept-Encoding", "gzip, br"),
        ("If-None-Match", "\"a\", W/\"b\""),
        ("Range", "bytes=0-1"),
        ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("Priority", "u=1, i"),
        ("Evenkeelish", "not between hosts"),
    ];
    let answered: &[(&str, &str)] = &[
        ("X-Empty", ""),
        ("X-Spaces", "a  b\tc"),
        ("WWW-Authenticate", "Basic realm=\"a, b\""),
        ("Location", "http://elsewhere.example/a?b#c"),
        ("Cache-Control", "no-store"),
        ("Date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("Server", "raw"),
    ];
    vec![
        Row::new("RFC 9110 §7.6", "end-to-end fields of a request pass unchanged")
            .ask(get(passing))
            .expect(
                Once(&[
                    Only("x-empty", ""),
                    Only("x-spaces", "a  b\tc"),
                    Only("x-quoted", "\"a, b\"; q=\"\\\"\""),
                    Only("x-!#$%&'*+-.^_`|~9", "every character of a token"),
                    Only("authorization", "Bearer x"),
                    Only("accept-encoding", "gzip, br"),
                    Only("if-none-match", "\"a\", W/\"b\""),
                    Only("range", "bytes=0-1"),
                    Only("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                    Only("x-forwarded-for", "192.0.2.1"),
                    Only("priority", "u=1, i"),
                    Only("evenkeelish", "not between hosts"),
                ]),
                &[Status(&[200])],
            ),
        Row::new("RFC 9110 §7.6", "end-to-end fields of a response pass unchanged")
            .ask(get(&[]))
            .reply(answer(200, answered, Content::Sized("ok")))
            .expect(
                Once(&[]),
                &[
                    Status(&[200]),
                    Only("x-empty", ""),
                    Only("x-spaces", "a  b\tc"),
                    Only("www-authenticate", "Basic realm=\"a, b\""),
                    Only("location", "http://elsewhere.example/a?b#c"),
                    Only("cache-control", "no-store"),
                    Only("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
                    Only("server", "raw"),
                ],
            ),
        Row::new("RFC 9110 §5.3", "field lines of one name stay in order and apart")
            .ask(get(&[("X-A", "1"), ("X-B", "x"), ("X-A", "2"), ("X-A", "1")]))
            .reply(answer(
                200,
                &[("Set-Cookie", "a=1"), ("X-B", "x"), ("Set-Cookie", "b=2")],
                Content::Sized("ok"),
            ))
            .expect(
                Once(&[Count("x-a", 3), Has("x-a", "2")]),
                &[Status(&[200]), Count("set-cookie", 2)],
            ),
        Row::new("RFC 9110 §5.5", "bytes above 127 in a value pass unchanged")
            .http1(b"GET {path} HTTP/1.1\r\n{to}X-A: a\xe9\xffb\r\n\r\n")
            .http2(vec![Step::Headers(
                [
                    (":method", &b"GET"[..]),
                    (":scheme", b"http"),
                    (":authority", b"{host}"),
                    (":path", b"{path}"),
                    ("x-row", b"{row}"),
                    ("x-a", b"a\xe9\xffb"),
                ]
                .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
                .to_vec(),
                true,
            )])
            .expect(Once(&[Only("x-a", "a\u{e9}\u{ff}b")]), &[Status(&[200])]),
        Row::new("RFC 9112 §5.1", "white space around a value is none of it")
            .http1("GET {path} HTTP/1.1\r\n{to}X-A:no space\r\nX-B: \t two words \t\r\n\r\n")
            .expect(Once(&[Only("x-a", "no space"), Only("x-b", "two words")]), &[Status(&[200])]),
        Row::new(
            "RFC 9110 §12.5.3",
            "the content's coding is the application's: it is not changed on the way",
        )
        .ask(get(&[("Accept-Encoding", "gzip")]))
        .reply(answer(
            200,
            &[("Content-Encoding", "gzip"), ("Vary", "accept-encoding")],
            Content::Sized("gzip!"),
        ))
        .expect(Once(&[]), &[Status(&[200]), Body("gzip!"), Only("content-encoding", "gzip")]),
        Row::new("RFC 9110 §14.4", "206 passes with its range")
            .ask(get(&[("Range", "bytes=0-4")]))
            .reply(answer(206, &[("Content-Range", "bytes 0-4/10")], Content::Sized("hello")))
            .expect(
                Once(&[]),
                &[Status(&[206]), Body("hello"), Only("content-range", "bytes 0-4/10")],
            ),
    ]
}

/// `Connection` and the fields that it names.
fn connection_options() -> Vec<Row> {
    let mut rows = Vec::new();
    let one = |about: &str, lines: &str| {
        Row::new("RFC 9110 §7.6.1", about)
            .http1(format!("GET {{path}} HTTP/1.1\r\n{{to}}X-Hop: 1\r\nX-Kept: 1\r\n{lines}\r\n"))
    };
    for (about, lines) in [
        ("alone", "Connection: x-hop\r\n"),
        ("in upper case", "Connection: X-HOP\r\n"),
        ("in a list", "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n"),
        ("in a list with empty members", "Connection: ,, x-hop ,\r\n"),
        ("on the second line", "Connection: keep-alive\r\nConnection: x-hop\r\n"),
        ("beside close", "Connection: close, x-hop\r\n"),
        ("before its own line", "Connection: x-late, x-hop\r\nX-Late: 1\r\n"),
    ] {
        rows.push(one(&format!("a field that Connection names ends here: {about}"), lines).expect(
            Once(&[Lacks("x-hop"), Lacks("x-late"), Has("x-kept", "1")]),
            &[Status(&[200])],
        ));
    }
    let many: String = (0..40).map(|n| format!("x-{n}, ")).collect();
    rows.push(
        one(
            "a field that Connection names behind 40 others ends here, or the request is refused",
            &format!("Connection: {many}x-hop\r\n"),
        )
        .expect(Once(&[Lacks("x-hop"), Has("x-kept", "1")]), &[Status(&[200])])
        .or(Nothing, &[Status(&[400, 431])]),
    );
    for (about, value) in [
        ("before", &b"x\xff, x-hop"[..]),
        ("behind", b"x-hop, \xe9"),
        ("in a line before", b"\xff\r\nConnection: x-hop"),
    ] {
        let request = [
            &b"GET {path} HTTP/1.1\r\n{to}X-Hop: 1\r\nX-Kept: 1\r\nConnection: "[..],
            value,
            b"\r\n\r\n",
        ];
        rows.push(
            Row::new(
                "RFC 9110 §7.6.1",
                format!("a field that Connection names beside other bytes, {about}, ends here"),
            )
            .http1(request.concat())
            .expect(Once(&[Lacks("x-hop"), Has("x-kept", "1")]), &[Status(&[200])])
            .or(Nothing, &[Status(&[400])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §7.6.1", "Connection cannot take away what the message needs")
        .http1(
            "POST {path} HTTP/1.1\r\n{to}Connection: host, content-length\r\nContent-Length: 5\r\n\
             \r\nhello",
        )
        .expect(Once(&[Body("hello")]), &[Status(&[200])])
        .or(Nothing, &[Status(&[400])]),
    );
    for (name, gone) in [
        ("cache-control", &[Lacks("cache-control")]),
        ("authorization", &[Lacks("authorization")]),
        ("cookie", &[Lacks("cookie")]),
        ("accept", &[Lacks("accept")]),
    ] {
        rows.push(
            Row::new(
                "RFC 9110 §7.6.1",
                format!("Connection may name an end-to-end field, which then ends here: {name}"),
            )
            .http1(format!(
                "GET {{path}} HTTP/1.1\r\n{{to}}{name}: v\r\nConnection: {name}\r\n\r\n"
            ))
            .expect(Once(gone), &[Status(&[200])])
            .or(Nothing, &[Status(&[400])]),
        );
    }
    for (name, value) in [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Upgrade", "foo"),
        ("TE", "gzip"),
        ("Connection", "keep-alive"),
        ("Connection", "close"),
    ] {
        rows.push(
            Row::new(
                "RFC 9110 §7.6.1",
                format!("{name}: {value} ends here though Connection does not name it"),
            )
            .http1(format!("GET {{path}} HTTP/1.1\r\n{{to}}{name}: {value}\r\n\r\n"))
            .expect(
                Once(&[
                    Lacks("keep-alive"),
                    Lacks("proxy-connection"),
                    Lacks("proxy-authorization"),
                    Lacks("upgrade"),
                    Lacks("te"),
                ]),
                &[Status(&[200])],
            ),
        );
    }
    rows.push(
        Row::new("RFC 9110 §7.6.1", "hop-by-hop fields of a response end here")
            .ask(get(&[]))
            .reply_http1(
                "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: keep-alive\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
            )
            .expect(
                Once(&[]),
                &[
                    Status(&[200]),
                    Body("ok"),
                    Lacks("x-hop"),
                    Lacks("keep-alive"),
                    Lacks("proxy-connection"),
                    Has("x-kept", "1"),
                ],
            ),
    );
    rows.push(
        Row::new("RFC 9110 §7.8", "Upgrade of a response that switches nothing ends here")
            .ask(get(&[]))
            .reply_http1(
                "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\
                 Content-Length: 2\r\n\r\nok",
            )
            .expect(Once(&[]), &[Status(&[200]), Body("ok"), Lacks("upgrade")]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §9.6",
            "an application that closes does not close the caller's \
             connection",
        )
        .http1(
            "GET {path} HTTP/1.1\r\n{to}X-N: 1\r\n\r\nGET {path} HTTP/1.1\r\n\
             {to}Connection: close\r\n\r\n",
        )
        .over(TO_HTTP1)
        .reply_http1_steps(vec![
            Step::AwaitRequest,
            bytes("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
            Step::Close,
        ])
        .expect(Anything, &[Status(&[200]), Body("ok"), Of(1, &Status(&[200])), Closed]),
    );
    rows.push(
        Row::new("RFC 9112 §9.6", "a caller that says close is answered and the connection ends")
            .http1("GET {path} HTTP/1.1\r\n{to}Connection: close\r\n\r\n")
            .expect(Once(&[]), &[Status(&[200]), Body("ok"), Closed]),
    );
    rows.push(
        Row::new("RFC 9112 §9.3", "an HTTP/1.0 connection ends behind its response")
            .http1("GET {path} HTTP/1.0\r\n{to}\r\n")
            .expect(Once(&[]), &[Status(&[200]), Body("ok"), Closed]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §9.3",
            "an HTTP/1.0 connection with keep-alive serves on, or ends \
             behind its response",
        )
        .http1(
            "GET {path} HTTP/1.0\r\n{to}Connection: keep-alive\r\n\r\nGET {path} HTTP/1.0\r\n\
             {to}\r\n",
        )
        .expect(Anything, &[Status(&[200]), Body("ok"), Closed]),
    );
    rows.push(
        Row::new("RFC 9112 §6.1", "an HTTP/1.0 caller is not sent Transfer-Encoding")
            .http1("GET {path} HTTP/1.0\r\n{to}\r\n")
            .reply(answer(200, &[], Content::Streamed("hello")))
            .expect(
                Once(&[]),
                &[Status(&[200]), Body("hello"), Lacks("transfer-encoding"), Closed],
            ),
    );
    rows
}

/// `TE`.
fn te() -> Vec<Row> {
    let http1 = |about: &str, lines: &str| {
        Row::new("RFC 9110 §10.1.4", about)
            .http1(format!("GET {{path}} HTTP/1.1\r\n{{to}}{lines}\r\n"))
    };
    vec![
        http1(
            "TE: trailers with Connection: te passes, or ends here",
            "TE: trailers\r\nConnection: te\r\n",
        )
        .expect(Once(&[Only("te", "trailers")]), &[Status(&[200])])
        .or(Once(&[Lacks("te")]), &[Status(&[200])]),
        http1(
            "TE on two lines with Connection: te does no harm",
            "TE: trailers\r\nTE: gzip\r\nConnection: te\r\n",
        )
        .expect(Once(&[Only("te", "trailers")]), &[Status(&[200])])
        .or(Once(&[Lacks("te")]), &[Status(&[200])]),
        http1(
            "TE: gzip, trailers does not pass gzip on",
            "TE: gzip, trailers\r\nConnection: te\r\n",
        )
        .expect(Once(&[Only("te", "trailers")]), &[Status(&[200])])
        .or(Once(&[Lacks("te")]), &[Status(&[200])]),
        http1(
            "TE: trailers without Connection: te is none of the application's",
            "TE: trailers\r\n",
        )
        .over(TO_HTTP1)
        .expect(Once(&[Lacks("te")]), &[Status(&[200])])
        .or(Once(&[Only("te", "trailers"), Contains("connection", "te")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.2.2", "te: trailers over HTTP/2 passes to an application of HTTP/2")
            .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
            .over(TO_HTTP2)
            .expect(Once(&[Only("te", "trailers")]), &[Status(&[200])]),
        Row::new(
            "RFC 9110 §10.1.4",
            "te: trailers over HTTP/2 goes on in HTTP/1.1 only with Connection: te",
        )
        .http2(vec![request_headers("GET", &[("te", "trailers")], true)])
        .over(TO_HTTP1)
        .expect(Once(&[Lacks("te")]), &[Status(&[200])])
        .or(Once(&[Only("te", "trailers"), Contains("connection", "te")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.2.2", "te with another value over HTTP/2 is malformed")
            .http2(vec![request_headers("GET", &[("te", "gzip")], true)])
            .expect(Nothing, &[Refused])
            .or(Once(&[Lacks("te")]), &[Status(&[200])])
            .left_lenient("the field ends here, so the application sees a request without it"),
    ]
}

/// Names of which only hosts may speak: an application's are removed, in both directions.
fn between_hosts() -> Vec<Row> {
    let spoken: &[(&str, &str)] = &[
        ("Evenkeel-Service", "other"),
        ("Evenkeel-Instance", "other"),
        ("Evenkeel-Refused", "x"),
        ("Evenkeel-Failed", "x"),
        ("Evenkeel-Unheard-Of", "x"),
    ];
    vec![
        Row::new(
            "Evenkeel: headers between hosts",
            "an application cannot speak for a host in a request",
        )
        .ask(get(spoken))
        .expect(
            Once(&[
                Lacks("evenkeel-service"),
                Lacks("evenkeel-instance"),
                Lacks("evenkeel-unheard-of"),
            ]),
            &[Status(&[200])],
        ),
        Row::new(
            "Evenkeel: headers between hosts",
            "an application cannot speak for a host in a response",
        )
        .ask(get(&[]))
        .reply(answer(200, spoken, Content::Sized("ok")))
        .expect(
            Once(&[]),
            &[Status(&[200]), Body("ok"), Lacks("evenkeel-refused"), Lacks("evenkeel-failed")],
        ),
        Row::new(
            "Evenkeel: headers between hosts",
            "an application's 503 with evenkeel-refused stays its 503",
        )
        .ask(get(&[]))
        .reply(answer(
            503,
            &[("Evenkeel-Refused", "connect"), ("X-A", "1")],
            Content::Sized("mine"),
        ))
        .expect(
            Once(&[]),
            &[Status(&[503]), Body("mine"), Has("x-a", "1"), Lacks("evenkeel-refused")],
        ),
        Row::new(
            "Evenkeel: headers between hosts",
            "an application's 502 with evenkeel-failed stays its 502",
        )
        .ask(get(&[]))
        .reply(answer(502, &[("Evenkeel-Failed", "reset"), ("X-A", "1")], Content::Sized("mine")))
        .expect(
            Once(&[]),
            &[Status(&[502]), Body("mine"), Has("x-a", "1"), Lacks("evenkeel-failed")],
        ),
        Row::new(
            "Evenkeel: headers between hosts",
            "an application's 429 with evenkeel-limited stays its 429",
        )
        .ask(get(&[]))
        .reply(answer(
            429,
            &[("Evenkeel-Limited", "x"), ("Retry-After", "1")],
            Content::Sized("mine"),
        ))
        .expect(
            Once(&[]),
            &[Status(&[429]), Body("mine"), Has("retry-after", "1"), Lacks("evenkeel-limited")],
        ),
        Row::new(
            "Evenkeel: deadlines",
            "what is left of evenkeel-timeout reaches the application, and no more than that",
        )
        .ask(get(&[("Evenkeel-Timeout", "2500")]))
        .over(MESH)
        .expect(Once(&[Count("evenkeel-timeout", 1)]), &[Status(&[200])]),
        Row::new("gRPC over HTTP/2: Requests", "grpc-timeout reaches the application, once")
            .http2(vec![request_headers(
                "POST",
                &[("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "2S")],
                true,
            )])
            .over(TO_HTTP2)
            .expect(Once(&[Count("grpc-timeout", 1)]), &[Status(&[200])]),
        Row::new("Evenkeel: deadlines", "an evenkeel-timeout that cannot be read is ignored")
            .ask(get(&[("Evenkeel-Timeout", "soon")]))
            .expect(Once(&[]), &[Status(&[200])]),
    ]
}

/// `Cookie`, which HTTP/2 may split.
fn cookies() -> Vec<Row> {
    vec![
        Row::new("RFC 9113 §8.2.3", "cookie fields split by HTTP/2 are one for HTTP/1.1")
            .http2(vec![request_headers(
                "GET",
                &[("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("cookie", "c=3")],
                true,
            )])
            .over(TO_HTTP1)
            .expect(Once(&[Only("cookie", "a=1; b=2; c=3")]), &[Status(&[200])]),
        Row::new(
            "RFC 9113 §8.2.3",
            "cookie fields split by HTTP/2 lose nothing on the way to HTTP/2",
        )
        .http2(vec![request_headers("GET", &[("cookie", "a=1"), ("cookie", "b=2")], true)])
        .over(TO_HTTP2)
        .expect(Once(&[Only("cookie", "a=1; b=2")]), &[Status(&[200])])
        .or(Once(&[Has("cookie", "a=1"), Has("cookie", "b=2")]), &[Status(&[200])]),
        Row::new("RFC 6265 §5.4", "one cookie field passes unchanged")
            .ask(get(&[("Cookie", "a=1; b=2")]))
            .expect(Once(&[Only("cookie", "a=1; b=2")]), &[Status(&[200])]),
    ]
}

/// How many fields and how large a head: 64 KiB pass, and no more.
fn sizes() -> Vec<Row> {
    let lines =
        |count: usize| -> String { (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect() };
    let fields = |count: usize| -> Vec<(Vec<u8>, Vec<u8>)> {
        let pseudo = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "{host}"),
            (":path", "{path}"),
            ("x-row", "{row}"),
        ];
        let pseudo = pseudo.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        pseudo.chain((0..count).map(|n| (format!("x-{n}").into(), n.to_string().into()))).collect()
    };
    let mut rows = Vec::new();
    for count in [96, 120, 300] {
        rows.push(
            Row::new("RFC 9110 §5.4", format!("a request with {count} fields passes"))
                .http1(format!("GET {{path}} HTTP/1.1\r\n{{to}}{}X-Last: 1\r\n\r\n", lines(count)))
                .http2(vec![Step::Headers(fields(count), true)])
                .expect(Once(&[Only("x-0", "0"), Only("x-95", "95")]), &[Status(&[200])]),
        );
        rows.push(
            Row::new("RFC 9110 §5.4", format!("a response with {count} fields passes"))
                .ask(get(&[]))
                .reply_http1(format!(
                    "HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok",
                    lines(count)
                ))
                .reply_http2_steps(vec![
                    Step::AwaitRequest,
                    Step::Headers(
                        [vec![(b":status".to_vec(), b"200".to_vec())], fields(count).split_off(5)]
                            .concat(),
                        true,
                    ),
                ])
                .expect(Once(&[]), &[Status(&[200]), Only("x-0", "0"), Only("x-95", "95")]),
        );
    }
    for size in [8, 16, 40, 60] {
        let value = "v".repeat(size * 1024);
        rows.push(
            Row::new("RFC 9110 §5.4", format!("a field of {size} KiB passes, in both directions"))
                .ask(get(&[("X-Long", &value)]))
                .reply(answer(200, &[("X-Long", &value)], Content::Sized("ok")))
                .expect(
                    Once(&[Contains("x-long", "vvvv")]),
                    &[Status(&[200]), Contains("x-long", "vvvv")],
                ),
        );
    }
    rows.push(
        Row::new("RFC 9110 §5.4", "a head of 60 KiB in 60 fields passes")
            .ask(get(&(0..60).map(|_| ("X-Long", "")).collect::<Vec<_>>()))
            .http1(format!(
                "GET {{path}} HTTP/1.1\r\n{{to}}{}\r\n",
                format!("X-Long: {}\r\n", "v".repeat(1000)).repeat(60)
            ))
            .expect(Once(&[Count("x-long", 60)]), &[Status(&[200])]),
    );
    rows.push(
        Row::new("RFC 9110 §15.5.15", "a target of 16 KiB passes")
            .ask(get(&[]).path(&*format!("{{path}}?{}", "q".repeat(16 * 1024)).leak()))
            .expect(Once(&[]), &[Status(&[200])]),
    );
    for size in [70, 200, 2000] {
        let value = "v".repeat(size * 1024);
        rows.push(
            Row::new("RFC 6585 §5", format!("a head of {size} KiB is refused"))
                .ask(get(&[("X-Long", &value)]))
                .expect(Nothing, &[Refused]),
        );
    }
    rows.push(
        Row::new("RFC 6585 §5", "a head of 70 KiB is a 431")
            .http1(format!(
                "GET {{path}} HTTP/1.1\r\n{{to}}X-Long: {}\r\n\r\n",
                "v".repeat(70 * 1024)
            ))
            .expect(Nothing, &[Status(&[431])]),
    );
    rows.push(
        Row::new("RFC 6585 §5", "a response with a head of 100 KiB is a 502")
            .ask(get(&[]))
            .reply(answer(200, &[("X-Long", &"v".repeat(100 * 1024))], Content::Sized("ok")))
            .expect(Once(&[]), &[Status(&[502])]),
    );
    rows
}

/// Field lines of HTTP/1.1 that break the grammar.
fn grammar_http1() -> Vec<Row> {
    let mut rows = Vec::new();
    let bad: &[(&str, &[u8])] = &[
        ("no colon", b"no colon"),
        ("white space before the colon", b"X-A : 1"),
        ("a tab before the colon", b"X-A\t: 1"),
        ("an empty name", b": 1"),
        ("a space in the name", b"X A: 1"),
        ("a control character in the name", b"X\x01A: 1"),
        ("a byte above 127 in the name", b"X\xe9: 1"),
        ("a bracket in the name", b"X[A]: 1"),
        ("a NUL in the value", b"X-A: a\x00b"),
        ("a bare CR in the value", b"X-A: a\rb"),
        ("a CR before the end", b"X-A: a\r\r\nX-B: 1"),
        ("a bell in the value", b"X-A: a\x07b"),
        ("a DEL in the value", b"X-A: a\x7fb"),
        ("a fold", b"X-A: one\r\n two"),
        ("a fold with a tab", b"X-A: one\r\n\ttwo"),
    ];
    for (about, line) in bad {
        let request = [b"GET {path} HTTP/1.1\r\n{to}", *line, b"\r\n\r\n"].concat();
        rows.push(
            Row::new(
                "RFC 9112 §5",
                format!("a field line that breaks the grammar is a 400: {about}"),
            )
            .http1(request)
            .expect(Nothing, &[Status(&[400]), Closed]),
        );
    }
    rows.push(
        Row::new("RFC 9112 §2.2", "white space between request line and first field is a 400")
            .http1("GET {path} HTTP/1.1\r\n X-A: 1\r\n{to}\r\n")
            .expect(Nothing, &[Status(&[400]), Closed]),
    );
    for (about, text) in [
        ("an empty line before the request line is skipped", "\r\nGET {path} HTTP/1.1\r\n{to}\r\n"),
        ("LF ends a line", "GET {path} HTTP/1.1\nHost: {host}\nX-Row: {row}\n\n"),
    ] {
        rows.push(
            Row::new("RFC 9112 §2.2", about)
                .http1(text)
                .expect(Once(&[]), &[Status(&[200])])
                .or(Nothing, &[Status(&[400]), Closed])
                .left_lenient(
                    "RFC 9112 §2.2 allows a recipient both, and what goes on is written \
                     anew with CRLF",
                ),
        );
    }
    for (about, line) in [
        ("no version", "GET {path}"),
        ("a version that there is not", "GET {path} HTTP/2.7"),
        ("HTTP/0.9 with a version", "GET {path} HTTP/0.9"),
        ("a version in lower case", "GET {path} http/1.1"),
        ("two spaces", "GET  {path} HTTP/1.1"),
        ("a tab for a space", "GET\t{path} HTTP/1.1"),
        ("a space in the target", "GET {path} a HTTP/1.1"),
        ("a space behind the version", "GET {path} HTTP/1.1 "),
        ("a space before the method", " GET {path} HTTP/1.1"),
        ("a method that is no token", "G[T {path} HTTP/1.1"),
        ("no method", " {path} HTTP/1.1"),
        ("a NUL in the target", "GET {path}\x00 HTTP/1.1"),
        ("a CR in the target", "GET {path}\ra HTTP/1.1"),
    ] {
        rows.push(
            Row::new(
                "RFC 9112 §3",
                format!("a request line that breaks the grammar is a 400: {about}"),
            )
            .http1(format!("{line}\r\n{{to}}\r\n"))
            .expect(Nothing, &[Status(&[400, 505]), Closed]),
        );
    }
    for method in ["PROPFIND", "M-SEARCH", "get", "A!#$%&'*+-.^_`|~9"] {
        rows.push(
            Row::new(
                "RFC 9110 §9.1",
                format!("a method that is not known passes as it is written: {method}"),
            )
            .http1(format!("{method} {{path}} HTTP/1.1\r\n{{to}}\r\n"))
            .http2(vec![request_headers(method, &[], true)])
            .expect(
                Once(match method {
                    "PROPFIND" => &[Method("PROPFIND")],
                    "M-SEARCH" => &[Method("M-SEARCH")],
                    "get" => &[Method("get")],
                    _ => &[Method("A!#$%&'*+-.^_`|~9")],
                }),
                &[Status(&[200])],
            ),
        );
    }
    rows
}

/// Fields of HTTP/2 that make a request malformed (RFC 9113 §8.2, §8.3): the stream ends, the connection serves on.
fn grammar_http2() -> Vec<Row> {
    let mut rows = Vec::new();
    for (about, name, value) in [
        ("a name in upper case", "X-Upper", "1"),
        ("connection", "connection", "close"),
        ("connection: te", "connection", "te"),
        ("keep-alive", "keep-alive", "timeout=5"),
        ("proxy-connection", "proxy-connection", "keep-alive"),
        ("upgrade", "upgrade", "foo"),
        ("a space in a name", "x a", "1"),
        ("a colon in a name", "x:a", "1"),
        ("an empty name", "", "1"),
        ("a control character in a name", "x\x01a", "1"),
        ("a NUL in a value", "x-a", "a\x00b"),
        ("a LF in a value", "x-a", "a\nb"),
        ("a CR in a value", "x-a", "a\rb"),
        ("a request smuggled in a value", "x-a", "1\r\nX-B: 2"),
        ("a pseudo-header field that there is not", ":foo", "1"),
        ("a response's pseudo-header field", ":status", "200"),
        ("a pseudo-header field behind another field", ":path", "{path}"),
    ] {
        rows.push(
            Row::new("RFC 9113 §8.2.1", format!("a malformed field ends the stream: {about}"))
                .http2(vec![request_headers("GET", &[(name, value)], true)])
                .expect(Nothing, &[Refused]),
        );
    }
    for value in [" leading", "trailing ", "\ttab"] {
        rows.push(
            Row::new(
                "RFC 9113 §8.2.1",
                format!(
                    "white space at an end of a value is malformed, \
                     or none of it: {value:?}"
                ),
            )
            .http2(vec![request_headers("GET", &[("x-a", value)], true)])
            .over(ALL)
            .expect(Nothing, &[Refused])
            .or(Once(&[]), &[Status(&[200])])
            .left_lenient(
                "h2 keeps it; written in HTTP/1.1 it is white space around a value, \
                 so nothing is smuggled",
            ),
        );
    }
    for (about, fields) in [
        ("no :method", &[(":scheme", "http"), (":authority", "{host}"), (":path", "{path}")][..]),
        ("no :scheme", &[(":method", "GET"), (":authority", "{host}"), (":path", "{path}")][..]),
        ("no :path", &[(":method", "GET"), (":scheme", "http"), (":authority", "{host}")][..]),
        (
            "an empty :path",
            &[(":method", "GET"), (":scheme", "http"), (":authority", "{host}"), (":path", "")][..],
        ),
        (
            "an empty :method",
            &[(":method", ""), (":scheme", "http"), (":authority", "{host}"), (":path", "{path}")]
                [..],
        ),
        (
            "a :method that is no token",
            &[
                (":method", "GE T"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "a :method with a request in it",
            &[
                (":method", "GET / HTTP/1.1\r\nX: y"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "a :path without a slash",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "row-{row}"),
            ][..],
        ),
        (
            "a :path with a space",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path} HTTP/1.1\r\nX: y"),
            ][..],
        ),
        (
            "a :scheme that is none",
            &[
                (":method", "GET"),
                (":scheme", "ht tp"),
                (":authority", "{host}"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "two :path",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path}"),
                (":path", "/other"),
            ][..],
        ),
        (
            "two :method",
            &[
                (":method", "GET"),
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "a :path with a scheme",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "http://{host}{path}"),
            ][..],
        ),
        (
            "two :scheme",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "a request in :authority",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}\r\nX-A: 1"),
                (":path", "{path}"),
            ][..],
        ),
        (
            "two :authority",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "{host}"),
                (":authority", "other"),
                (":path", "{path}"),
            ][..],
        ),
    ] {
        let fields = [fields, &[("x-row", "{row}")]].concat();
        rows.push(
            Row::new(
                "RFC 9113 §8.3.1",
                format!("malformed pseudo-header fields end the stream: {about}"),
            )
            .http2(vec![headers(&fields, true)])
            .expect(Nothing, &[Refused]),
        );
    }
    for (about, name, value) in
        [("connection", "connection", "close"), ("a name in upper case", "X-Upper", "1")]
    {
        let row = Row::new(
            "RFC 9113 §5.4.2",
            format!("a malformed request ends its stream, and the next stream is served: {about}"),
        )
        .http2(vec![
            request_headers("GET", &[(name, value)], true),
            Step::NextStream,
            request_headers("GET", &[("x-second", "1")], true),
        ])
        .expect(Once(&[Has("x-second", "1")]), &[Refused, Of(1, &Status(&[200]))]);
        rows.push(if name == "connection" {
            row
        } else {
            row.or(Nothing, &[Refused, Of(1, &Refused)])
                .left_lenient("h2 ends the whole connection, which RFC 9113 §5.4.1 allows")
        });
    }
    rows.push(
        Row::new("RFC 9113 §8.1", "an upload with fields in both directions passes in one go")
            .ask(upload(&[("X-A", "1")]))
            .reply(answer(201, &[("X-B", "2")], Content::Streamed("made")))
            .expect(
                Once(&[Body("hello"), Only("x-a", "1")]),
                &[Status(&[201]), Body("made"), Only("x-b", "2")],
            ),
    );
    rows
}

//! What a request is for: its target, `Host` and `:authority` (RFC 9110 §7.1, §7.2; RFC 9112 §3; RFC 9113 §8.3.1).

use crate::conformance::check::Arrives::{Nothing, Once};
use crate::conformance::check::Check::{
    Authority, Body, Closed, Count, Lacks, Method, Refused, Status, Target,
};
use crate::conformance::row::{Content, Row, SERVICES, TO_HTTP1, TO_HTTP2, Way, ask, get};
use crate::conformance::script::headers;

/// The rows.
pub fn rows() -> Vec<Row> {
    [forms(), hosts(), own_listener(), authorities(), schemes()].concat()
}

/// The four forms of a target.
fn forms() -> Vec<Row> {
    let line = |about: &str, section: &'static str, line: &str| {
        Row::new(section, about).http1(format!("{line} HTTP/1.1\r\n{{to}}\r\n"))
    };
    let mut rows = vec![
        Row::new("RFC 9112 §3.2.1", "the origin form passes as it is written")
            .ask(get(&[]).path("{path}/%7e/a%2Fb/../c;p=1?q=a%20b&r=?/"))
            .expect(
                Once(&[Target("{path}/%7e/a%2Fb/../c;p=1?q=a%20b&r=?/"), Authority("{host}")]),
                &[Status(&[200])],
            ),
        Row::new(
            "RFC 9112 §3.2.1",
            "a query without a path's end and an empty query pass as they are written",
        )
        .ask(get(&[]).path("{path}?"))
        .expect(Once(&[Target("{path}?")]), &[Status(&[200])]),
        line(
            "the absolute form is in origin form at the last hop",
            "RFC 9112 §3.2.2",
            "GET http://{host}{path}?q=1",
        )
        .expect(Once(&[Target("{path}?q=1"), Authority("{host}")]), &[Status(&[200])]),
        line(
            "the absolute form has no case in its scheme",
            "RFC 9110 §4.2.3",
            "GET HTTP://{host}{path}",
        )
        .expect(Once(&[Target("{path}"), Authority("{host}")]), &[Status(&[200])]),
        line(
            "the absolute form without a path is / at the last hop",
            "RFC 9112 §3.2.1",
            "GET http://{host}",
        )
        .expect(Once(&[Target("/")]), &[Status(&[200])]),
        line(
            "the absolute form with a query and no path has a / before it",
            "RFC 9112 §3.2.1",
            "GET http://{host}?q=1",
        )
        .expect(Once(&[Target("/?q=1")]), &[Status(&[200])])
        .or(Nothing, &[Status(&[400])]),
        line(
            "OPTIONS of the absolute form without a path is * at the last hop",
            "RFC 9112 §3.2.4",
            "OPTIONS http://{host}",
        )
        .expect(Once(&[Method("OPTIONS"), Target("*"), Authority("{host}")]), &[Status(&[200])]),
        line(
            "OPTIONS of the absolute form with / stays /",
            "RFC 9112 §3.2.4",
            "OPTIONS http://{host}/",
        )
        .expect(Once(&[Method("OPTIONS"), Target("/")]), &[Status(&[200])]),
        line("OPTIONS * passes", "RFC 9112 §3.2.4", "OPTIONS *")
            .expect(Once(&[Method("OPTIONS"), Target("*")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "OPTIONS * passes from HTTP/2")
            .http2(vec![headers(
                &[
                    (":method", "OPTIONS"),
                    (":scheme", "http"),
                    (":authority", "{host}"),
                    (":path", "*"),
                    ("x-row", "{row}"),
                ],
                true,
            )])
            .expect(Once(&[Method("OPTIONS"), Target("*")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "* of another method than OPTIONS is malformed over HTTP/2")
            .http2(vec![headers(
                &[
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":authority", "{host}"),
                    (":path", "*"),
                    ("x-row", "{row}"),
                ],
                true,
            )])
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9112 §3.2.2", "the absolute form wins over Host")
            .http1(
                "GET http://{host}{path} HTTP/1.1\r\nHost: other.example\r\nX-Row: {row}\r\n\r\n",
            )
            .expect(Once(&[Target("{path}"), Authority("{host}")]), &[Status(&[200])]),
        Row::new("RFC 9110 §9.3.1", "the target of GET with content is what it was")
            .ask(ask("GET", &[]).path("{path}?q").with(Content::Sized("hello")))
            .expect(Once(&[Target("{path}?q"), Body("hello")]), &[Status(&[200])]),
        line("a fragment is no part of a target", "RFC 9112 §3.2.1", "GET {path}#top")
            .expect(Nothing, &[Status(&[400])])
            .or(Once(&[Target("{path}")]), &[Status(&[200])]),
    ];
    for target in ["GET *", "POST *", "HEAD *"] {
        rows.push(
            line(&format!("* is for OPTIONS alone: {target}"), "RFC 9112 §3.2.4", target)
                .expect(Nothing, &[Refused]),
        );
    }
    for target in ["GET static-one:80", "GET {host}:80", "POST {host}", "GET row-{row}"] {
        rows.push(
            line(
                &format!("the authority form is for CONNECT alone: {target}"),
                "RFC 9112 §3.2.3",
                target,
            )
            .expect(Nothing, &[Refused]),
        );
    }
    for target in [
        "GET http://",
        "GET http:///{path}",
        "GET http:{path}",
        "GET ://{host}{path}",
        "GET {path}\\\u{7f}",
    ] {
        rows.push(
            line(&format!("a target that is none is refused: {target:?}"), "RFC 9112 §3.2", target)
                .expect(Nothing, &[Refused]),
        );
    }
    rows.push(
        line("CONNECT with an origin form is refused", "RFC 9112 §3.2.3", "CONNECT {path}")
            .expect(Nothing, &[Refused]),
    );
    rows
}

/// `Host`, in HTTP/1.1.
fn hosts() -> Vec<Row> {
    let mut rows = Vec::new();
    for (about, lines) in [
        ("none", ""),
        ("two", "Host: {host}\r\nHost: {host}\r\n"),
        ("two that differ", "Host: {host}\r\nHost: other\r\n"),
        ("two in a list", "Host: {host}, other\r\n"),
        ("a space in it", "Host: a b\r\n"),
        ("a path in it", "Host: {host}/a\r\n"),
        ("userinfo in it", "Host: user:secret@{host}\r\n"),
        ("a port that is no number", "Host: static-one:http\r\n"),
        ("a port above 65535", "Host: static-one:65536\r\n"),
        ("a port of ten digits", "Host: static-one:9999999999\r\n"),
        ("a negative port", "Host: static-one:-1\r\n"),
        ("a bracket", "Host: [::1\r\n"),
        ("a question mark", "Host: {host}?\r\n"),
        ("a NUL", "Host: {host}\x00\r\n"),
        ("a scheme", "Host: http://{host}\r\n"),
        ("nothing in it", "Host:\r\n"),
    ] {
        rows.push(
            Row::new(
                "RFC 9112 §3.2",
                format!("a Host that is missing, double or invalid is a 400: {about}"),
            )
            .http1(format!("GET {{path}} HTTP/1.1\r\nX-Row: {{row}}\r\n{lines}\r\n"))
            .over(SERVICES)
            .expect(Nothing, &[Status(&[400])]),
        );
    }
    for (about, lines) in [
        ("none", ""),
        ("two", "Host: {host}\r\nHost: {host}\r\n"),
        ("a space in it", "Host: a b\r\n"),
        ("a path in it", "Host: a b/c\r\n"),
        ("a port above 65535", "Host: {host}:65536\r\n"),
    ] {
        rows.push(
            Row::new(
                "RFC 9112 §3.2",
                format!(
                    "beside the absolute form, too, a Host that is missing or invalid is a \
                     400: {about}"
                ),
            )
            .http1(format!("GET http://{{host}}{{path}} HTTP/1.1\r\nX-Row: {{row}}\r\n{lines}\r\n"))
            .expect(Nothing, &[Status(&[400])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §7.2", "a Host in upper case and with a port names the same service")
            .http1("GET {path} HTTP/1.1\r\nHost: STATIC-ONE.Mesh:80\r\nX-Row: {row}\r\n\r\n")
            .over(&[Way::StaticHttp1])
            .expect(Once(&[Count("host", 1)]), &[Status(&[200])]),
    );
    rows.push(
        Row::new(
            "RFC 9110 §7.2",
            "a name of the mesh that nobody offers is a 404, and nothing is dialled",
        )
        .http1("GET {path} HTTP/1.1\r\nHost: nobody.mesh\r\nX-Row: {row}\r\n\r\n")
        .over(&[Way::StaticHttp1])
        .expect(Nothing, &[Status(&[404])]),
    );
    rows.push(
        Row::new(
            "RFC 9110 §4.2.4",
            "a name that nobody offers, with credentials before it, is \
                                     refused without repeating them",
        )
        .http1(
            "GET http://user:secret@nobody.mesh{path} HTTP/1.1\r\nHost: nobody.mesh\r\n\
                    X-Row: {row}\r\n\r\n",
        )
        .over(&[Way::StaticHttp1])
        .expect(Nothing, &[Refused]),
    );
    rows.push(
        Row::new("RFC 9112 §3.2", "HTTP/1.0 without Host at the proxy's port names no service")
            .http1("GET {path} HTTP/1.0\r\nX-Row: {row}\r\n\r\n")
            .expect(Nothing, &[Status(&[400]), Closed]),
    );
    rows.push(
        Row::new("RFC 9112 §3.2.2", "HTTP/1.0 in absolute form needs no Host")
            .http1("GET http://{host}{path} HTTP/1.0\r\nX-Row: {row}\r\n\r\n")
            .expect(Once(&[Target("{path}"), Authority("{host}")]), &[Status(&[200]), Closed])
            .or(Nothing, &[Status(&[400]), Closed]),
    );
    rows
}

/// A listener that is for one service: whatever a request names, it is for that one.
fn own_listener() -> Vec<Row> {
    let row = |section: &'static str, about: &str, text: &str| {
        Row::new(section, format!("at a listener of its own: {about}"))
            .http1(text)
            .at_own_listener()
    };
    vec![
        row("RFC 9112 §3.2.1", "the origin form passes", "GET {path} HTTP/1.1\r\n{to}\r\n")
            .expect(Once(&[Target("{path}"), Authority("{host}")]), &[Status(&[200])]),
        row(
            "RFC 9110 §7.2",
            "another host's name passes to the service as it is written",
            "GET {path} HTTP/1.1\r\nHost: www.example.com:8080\r\nX-Row: {row}\r\n\r\n",
        )
        .expect(Once(&[Authority("www.example.com:8080")]), &[Status(&[200])]),
        row(
            "RFC 9112 §3.2",
            "HTTP/1.0 needs no Host",
            "GET {path} HTTP/1.0\r\nX-Row: {row}\r\n\r\n",
        )
        .expect(Once(&[Count("host", 1)]), &[Status(&[200]), Closed]),
        row(
            "RFC 9112 §3.2",
            "HTTP/1.1 without Host is a 400",
            "GET {path} HTTP/1.1\r\nX-Row: \
                                                                {row}\r\n\r\n",
        )
        .expect(Nothing, &[Status(&[400])]),
        row("RFC 9112 §3.2.4", "* is for OPTIONS alone", "GET * HTTP/1.1\r\n{to}\r\n")
            .expect(Nothing, &[Refused]),
        row("RFC 9110 §9.3.6", "CONNECT is refused", "CONNECT {host}:80 HTTP/1.1\r\n{to}\r\n")
            .expect(Nothing, &[Refused]),
        row(
            "RFC 9112 §6.1",
            "gzip before chunked is refused",
            "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n\
             0\r\n\r\n",
        )
        .expect(Nothing, &[Status(&[400, 501])]),
        row(
            "RFC 9110 §7.6.1",
            "fields of the hop end here",
            "GET {path} HTTP/1.1\r\n{to}Connection: x-hop\r\nX-Hop: 1\r\n\
             Evenkeel-Service: other\r\n\r\n",
        )
        .expect(Once(&[Lacks("x-hop"), Lacks("evenkeel-service")]), &[Status(&[200])]),
    ]
}

/// `:authority`, and `host` beside it.
fn authorities() -> Vec<Row> {
    let asked = |fields: &[(&str, &str)]| {
        let start = [(":method", "GET"), (":scheme", "http"), (":path", "{path}")];
        vec![headers(&[&start, fields, &[("x-row", "{row}")]].concat(), true)]
    };
    let mut rows = vec![
        Row::new("RFC 9113 §8.3.1", ":authority is Host for HTTP/1.1, once")
            .http2(asked(&[(":authority", "{host}")]))
            .over(TO_HTTP1)
            .expect(Once(&[Authority("{host}"), Count("host", 1)]), &[Status(&[200])]),
        Row::new(
            "RFC 9113 §8.3.1",
            ":authority is :authority for HTTP/2, and no host is beside it",
        )
        .http2(asked(&[(":authority", "{host}")]))
        .over(TO_HTTP2)
        .expect(Once(&[Authority("{host}"), Lacks("host")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "Host is :authority for HTTP/2, and no host is beside it")
            .http1("GET {path} HTTP/1.1\r\n{to}\r\n")
            .over(TO_HTTP2)
            .expect(Once(&[Authority("{host}"), Lacks("host")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "host without :authority serves in its place")
            .http2(asked(&[("host", "{host}")]))
            .expect(Once(&[Authority("{host}")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "host equal to :authority arrives once")
            .http2(asked(&[(":authority", "{host}"), ("host", "{host}")]))
            .expect(Once(&[Authority("{host}")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.3.1", "host unlike :authority is refused, or :authority wins")
            .http2(asked(&[(":authority", "{host}"), ("host", "other.example")]))
            .expect(Once(&[Authority("{host}")]), &[Status(&[200])])
            .or(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.3.1", "a second host is refused")
            .http2(asked(&[("host", "{host}"), ("host", "other.example")]))
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.3.1", "neither :authority nor host is refused")
            .http2(asked(&[]))
            .expect(Nothing, &[Refused]),
    ];
    for authority in [
        "user@static-one",
        "user:secret@static-one",
        "static-one:65536",
        "static-one:99999999",
        "static-one:port",
        "static one",
        "static-one/path",
        "",
    ] {
        rows.push(
            Row::new(
                "RFC 9113 §8.3.1",
                format!("an :authority that is none is refused: {authority:?}"),
            )
            .http2(asked(&[(":authority", authority)]))
            .over(SERVICES)
            .expect(Nothing, &[Refused]),
        );
    }
    for target in
        ["http://user:secret@{host}{path}", "http://user@{host}{path}", "http://{host}:65536{path}"]
    {
        rows.push(
            Row::new(
                "RFC 9110 §4.2.4",
                format!("an absolute form with an invalid authority is a 400: {target}"),
            )
            .http1(format!("GET {target} HTTP/1.1\r\n{{to}}\r\n"))
            .over(SERVICES)
            .expect(Nothing, &[Status(&[400])]),
        );
    }
    rows
}

/// Schemes that would promise what clear HTTP does not keep.
fn schemes() -> Vec<Row> {
    let mut rows = Vec::new();
    for scheme in ["https", "ftp", "HTTPS", "ws", "file"] {
        rows.push(
            Row::new(
                "RFC 9110 §4.2.2",
                format!("{scheme}:// for a service is not served in clear HTTP"),
            )
            .http1(format!("GET {scheme}://{{host}}{{path}} HTTP/1.1\r\n{{to}}\r\n"))
            .expect(Nothing, &[Status(&[400, 404, 421, 501, 502])]),
        );
    }
    for scheme in ["ftp", "ws", "file"] {
        rows.push(
            Row::new(
                "RFC 9113 §8.3.1",
                format!("the :scheme {scheme} for a service is not served as http"),
            )
            .http2(vec![headers(
                &[
                    (":method", "GET"),
                    (":scheme", scheme),
                    (":authority", "{host}"),
                    (":path", "{path}"),
                    ("x-row", "{row}"),
                ],
                true,
            )])
            .expect(Nothing, &[Status(&[400, 404, 421, 501, 502])])
            .or(Nothing, &[Refused]),
        );
    }
    rows
}

//! What an intermediary owes a message that it forwards: `Via`, `Max-Forwards`, loops, and the mesh's own port
//! (RFC 9110 §7.6, §9.3.6, §9.3.8).

use crate::conformance::check::Arrives::{Nothing, Once, Unfinished};
use crate::conformance::check::Check::{
    Body, Closed, Contains, Count, Has, Lacks, Method, Of, Only, Refused, Status, Target,
};
use crate::conformance::row::{Content, MESH, Row, SERVICES, Way, answer, ask, get};
use crate::conformance::script::{NO_ERROR, Step, data, headers, request_headers};

/// The rows.
pub fn rows() -> Vec<Row> {
    [via(), max_forwards(), connect(), mesh_port()].concat()
}

fn via() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "RFC 9110 §7.6.3",
            "a request gets a Via with the version in which it was received: HTTP/1.1",
        )
        .http1("GET {path} HTTP/1.1\r\n{to}\r\n")
        .expect(Once(&[Contains("via", "1.1 evenkeel")]), &[Status(&[200])]),
        Row::new(
            "RFC 9110 §7.6.3",
            "a request gets a Via with the version in which it was received: HTTP/1.0",
        )
        .http1("GET {path} HTTP/1.0\r\n{to}\r\n")
        .expect(Once(&[Contains("via", "1.0 evenkeel")]), &[Status(&[200])]),
        Row::new(
            "RFC 9110 §7.6.3",
            "a request gets a Via with the version in which it was received: HTTP/2",
        )
        .http2(vec![request_headers("GET", &[], true)])
        .expect(Once(&[Contains("via", "2")]), &[Status(&[200])]),
        Row::new("RFC 9110 §7.6.3", "a response from HTTP/1.1 gets a Via")
            .ask(get(&[]))
            .over(&[Way::StaticHttp1, Way::Passthrough])
            .expect(Once(&[]), &[Status(&[200]), Contains("via", "1.1 evenkeel")]),
        Row::new("RFC 9110 §7.6.3", "a response from HTTP/2 gets a Via")
            .ask(get(&[]))
            .over(&[Way::StaticHttp2])
            .expect(Once(&[]), &[Status(&[200]), Contains("via", "2")]),
        Row::new("RFC 9110 §7.6.3", "a response over the mesh gets a Via")
            .ask(get(&[]))
            .over(MESH)
            .expect(Once(&[]), &[Status(&[200]), Contains("via", "evenkeel")]),
        Row::new("RFC 9110 §7.6.3", "a Via of others keeps its place before ours")
            .ask(get(&[("Via", "1.0 fred, 1.1 p.example.net (Apache/1.1)")]))
            .reply(answer(200, &[("Via", "1.0 ricky")], Content::Sized("ok")))
            .expect(
                Once(&[
                    Contains("via", "1.0 fred, 1.1 p.example.net (Apache/1.1)"),
                    Contains("via", "evenkeel"),
                ]),
                &[Status(&[200]), Contains("via", "1.0 ricky"), Contains("via", "evenkeel")],
            ),
    ];
    for (about, value) in [
        ("alone", "1.1 evenkeel"),
        ("behind others in a list", "1.0 a, 1.1 evenkeel"),
        ("before others in a list", "1.1 evenkeel, 1.0 a"),
        ("with a comment", "1.1 evenkeel (a comment), 1.1 b"),
        ("with a protocol's name", "HTTP/1.1 evenkeel"),
        ("received over HTTP/2", "2 evenkeel, 1.1 b"),
        ("on a second line", "1.0 a\r\nVia: 1.1 evenkeel"),
    ] {
        rows.push(
            Row::new(
                "RFC 9110 §7.6.3",
                format!("a request that has passed here before is a loop: our Via {about}"),
            )
            .http1(format!("GET http://{{host}}{{path}} HTTP/1.1\r\n{{to}}Via: {value}\r\n\r\n"))
            .over(&[Way::Passthrough])
            .expect(Nothing, &[Status(&[508, 502, 400])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §7.6.3", "another's pseudonym that begins like ours is no loop")
            .ask(get(&[("Via", "1.1 evenkeelish, 1.1 not-evenkeel")]))
            .expect(Once(&[]), &[Status(&[200])]),
    );
    rows
}

fn max_forwards() -> Vec<Row> {
    let mut rows = Vec::new();
    for method in ["OPTIONS", "TRACE"] {
        rows.push(
            Row::new("RFC 9110 §7.6.2", format!("{method} with Max-Forwards: 0 is answered here"))
                .ask(ask(method, &[("Max-Forwards", "0")]))
                .expect(Nothing, &[Status(&[200, 204, 405, 501])]),
        );
        rows.push(
            Row::new("RFC 9110 §7.6.2", format!("{method} with Max-Forwards: 5 goes on with less"))
                .ask(ask(method, &[("Max-Forwards", "5")]))
                .over(&[Way::StaticHttp1, Way::StaticHttp2, Way::Passthrough])
                .expect(Once(&[Only("max-forwards", "4")]), &[Status(&[200])]),
        );
        rows.push(
            Row::new(
                "RFC 9110 §7.6.2",
                format!("{method} with Max-Forwards: 5 over the mesh goes on with less"),
            )
            .ask(ask(method, &[("Max-Forwards", "5")]))
            .over(MESH)
            .expect(Once(&[Only("max-forwards", "4")]), &[Status(&[200])])
            .or(Once(&[Only("max-forwards", "3")]), &[Status(&[200])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §7.6.2", "Max-Forwards of other methods passes as it is, or with less")
            .ask(get(&[("Max-Forwards", "0")]))
            .expect(Once(&[Only("max-forwards", "0")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §6.1",
            "both a length and Transfer-Encoding end the connection where the proxy answers by itself too",
        )
        .http1(
            "OPTIONS {path} HTTP/1.1\r\n{to}Max-Forwards: 0\r\nTransfer-Encoding: chunked\r\n\
             Content-Length: 5\r\n\r\n0\r\n\r\nGET {path}-smuggled HTTP/1.1\r\n{to}\r\n",
        )
        .methods(&["OPTIONS"])
        .expect(Nothing, &[Status(&[200]), Closed])
        .or(Nothing, &[Status(&[400]), Closed]),
    );
    rows.push(
        Row::new("RFC 9110 §9.3.7", "OPTIONS without Max-Forwards reaches the application")
            .ask(ask("OPTIONS", &[]))
            .expect(Once(&[Method("OPTIONS"), Lacks("max-forwards")]), &[Status(&[200])]),
    );
    rows
}

/// CONNECT opens a tunnel, and what is said in it arrives as it is.
fn connect() -> Vec<Row> {
    vec![
        Row::new("RFC 9110 §9.3.6", "CONNECT without a port is refused")
            .http1("CONNECT {host} HTTP/1.1\r\n{to}\r\n")
            .over(SERVICES)
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9110 §9.3.6", "CONNECT with a port that is none is refused")
            .http1("CONNECT static-one:65536 HTTP/1.1\r\n{to}\r\n")
            .over(SERVICES)
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9110 §9.3.6", "what follows CONNECT to a service reaches one instance")
            .http1(
                "CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n\
                 GET {path} HTTP/1.1\r\n{to}\r\n",
            )
            .methods(&["CONNECT", "GET"])
            .over(&[Way::StaticHttp1, Way::MeshHttp1])
            .expect(
                Once(&[Target("{path}"), Lacks("via")]),
                &[Status(&[200]), Lacks("content-length"), Of(1, &Body("ok"))],
            ),
        Row::new("RFC 9110 §9.3.6", "CONNECT with content is refused")
            .http1("CONNECT {host}:80 HTTP/1.1\r\n{to}Content-Length: 5\r\n\r\nhello")
            .over(SERVICES)
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.5", "CONNECT to a service over HTTP/2 reaches one instance")
            .http2(vec![
                headers(&[(":method", "CONNECT"), (":authority", "{host}:80")], false),
                data("GET {path} HTTP/1.1\r\n{to}\r\n", true),
            ])
            .over(&[Way::StaticHttp1, Way::MeshHttp1])
            .expect(Once(&[Target("{path}"), Lacks("via")]), &[Status(&[200])]),
        Row::new("RFC 9113 §8.5", "CONNECT over HTTP/2 with :path is malformed")
            .http2(vec![request_headers("CONNECT", &[], true)])
            .expect(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.5", "CONNECT over HTTP/2 reaches no application as a request")
            .http2(vec![headers(
                &[(":method", "CONNECT"), (":authority", "{host}"), ("x-row", "{row}")],
                false,
            )])
            .over(SERVICES)
            .expect(Nothing, &[Refused]),
        Row::new("RFC 8441 §4", "extended CONNECT that was not offered is refused")
            .http2(vec![headers(
                &[
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    (":scheme", "http"),
                    (":authority", "{host}"),
                    (":path", "{path}"),
                    ("x-row", "{row}"),
                ],
                false,
            )])
            .expect(Nothing, &[Refused]),
    ]
}

/// The port for other hosts, with the caller at another host's address.
fn mesh_port() -> Vec<Row> {
    let named: &[(&str, &str)] = &[("evenkeel-service", "{host}"), ("evenkeel-instance", "{host}")];
    vec![
        Row::new("Evenkeel: the mesh hop", "a member's request reaches the application")
            .at_mesh_port()
            .http2(vec![request_headers("GET", named, true)])
            .expect(
                Once(&[Lacks("evenkeel-service"), Lacks("evenkeel-instance")]),
                &[Status(&[200]), Body("ok")],
            ),
        Row::new("Evenkeel: the mesh hop", "a service that the host does not offer is a 421")
            .at_mesh_port()
            .http2(vec![request_headers(
                "GET",
                &[("evenkeel-service", "other"), ("evenkeel-instance", "other")],
                true,
            )])
            .expect(Nothing, &[Status(&[421])]),
        Row::new(
            "RFC 9110 §9.3.2",
            "at the mesh port, too, an answer of our own to HEAD has no body",
        )
        .at_mesh_port()
        .http2(vec![request_headers(
            "HEAD",
            &[("evenkeel-service", "other"), ("evenkeel-instance", "other")],
            true,
        )])
        .expect(Nothing, &[Status(&[421]), Body(""), Count("content-length", 1)]),
        Row::new(
            "RFC 9110 §9.3.6",
            "CONNECT at the mesh port without an instance is refused and reaches no \
             application",
        )
        .at_mesh_port()
        .http2(vec![headers(
            &[(":method", "CONNECT"), (":authority", "{host}:80"), ("x-row", "{row}")],
            false,
        )])
        .expect(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.5", "a member's CONNECT reaches its instance")
            .at_mesh_port()
            .http2(vec![
                headers(
                    &[&[(":method", "CONNECT"), (":authority", "x:80")][..], named].concat(),
                    false,
                ),
                data("GET {path} HTTP/1.1\r\n{to}\r\n", true),
            ])
            .over(&[Way::MeshHttp1])
            .expect(Once(&[Target("{path}"), Lacks("via")]), &[Status(&[200])]),
        Row::new(
            "RFC 9112 §3.2.3",
            "CONNECT in HTTP/1.1 at the mesh port is refused and reaches \
             no application",
        )
        .at_mesh_port()
        .http1(
            "CONNECT x:80 HTTP/1.1\r\n{to}Evenkeel-Service: {host}\r\n\
             Evenkeel-Instance: {host}\r\n\r\n",
        )
        .expect(Nothing, &[Refused]),
        Row::new("RFC 9113 §8.1", "at the mesh port, too, half a content is never whole")
            .at_mesh_port()
            .http2(vec![
                request_headers("POST", named, false),
                data("hello", false),
                Step::AwaitBody(5),
                Step::ResetStream(NO_ERROR),
            ])
            .expect(Unfinished, &[]),
        Row::new("RFC 9113 §8.2.2", "at the mesh port, too, transfer-encoding is malformed")
            .at_mesh_port()
            .http2(vec![request_headers(
                "GET",
                &[named, &[("transfer-encoding", "chunked")]].concat(),
                true,
            )])
            .expect(Nothing, &[Refused])
            .or(Nothing, &[Status(&[502])]),
        Row::new("RFC 9110 §7.6.1", "at the mesh port, too, fields of the hop end")
            .at_mesh_port()
            .http2(vec![request_headers(
                "GET",
                &[named, &[("proxy-authorization", "x"), ("x-kept", "1")]].concat(),
                true,
            )])
            .expect(Once(&[Lacks("proxy-authorization"), Has("x-kept", "1")]), &[Status(&[200])]),
    ]
}

//! gRPC over the proxy: its status is in trailers, or in a head that is all there is ("trailers-only"), and only its
//! own media types are gRPC (gRPC over HTTP/2, "Requests", "Responses").

use crate::conformance::check::Arrives::{Anything, Nothing, Once};
use crate::conformance::check::Check::{Body, Has, Method, Only, Refused, Status, Trailer};
use crate::conformance::row::{Row, TO_HTTP2, Way};
use crate::conformance::script::{Step, data, headers, request_headers};

/// The rows.
pub fn rows() -> Vec<Row> {
    let call = |media: &'static str| {
        vec![
            request_headers("POST", &[("content-type", media), ("te", "trailers")], false),
            data("\0\0\0\0\u{1}x", true),
        ]
    };
    let mut rows = Vec::new();
    for media in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "Application/gRPC",
    ] {
        rows.push(
            Row::new(
                "gRPC over HTTP/2: Responses",
                format!("a status in trailers passes: {media}"),
            )
            .http2(call(media))
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200"), ("content-type", "application/grpc")], false),
                data("\0\0\0\0\u{1}y", false),
                headers(&[("grpc-status", "0"), ("grpc-message", "")], true),
            ])
            .expect(
                Once(&[Method("POST"), Only("te", "trailers"), Body("\0\0\0\0\u{1}x")]),
                &[Status(&[200]), Body("\0\0\0\0\u{1}y"), Trailer("grpc-status", "0")],
            ),
        );
    }
    rows.push(
        Row::new(
            "gRPC over HTTP/2: Trailers-Only",
            "a status in a head that is all there is passes as it is",
        )
        .http2(call("application/grpc"))
        .reply_http2_steps(vec![
            Step::AwaitRequest,
            headers(
                &[
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", "5"),
                    ("grpc-message", "no%20such"),
                ],
                true,
            ),
        ])
        .expect(
            Once(&[]),
            &[
                Status(&[200]),
                Body(""),
                Only("grpc-status", "5"),
                Only("grpc-message", "no%20such"),
            ],
        ),
    );
    rows.push(
        Row::new("gRPC over HTTP/2: Responses", "a status in trailers behind no message passes")
            .http2(call("application/grpc"))
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200"), ("content-type", "application/grpc")], false),
                headers(&[("grpc-status", "14"), ("grpc-message", "later")], true),
            ])
            .expect(
                Once(&[]),
                &[Status(&[200]), Trailer("grpc-status", "14"), Trailer("grpc-message", "later")],
            ),
    );
    rows.push(
        Row::new(
            "gRPC over HTTP/2: Responses",
            "a status that comes before the request has ended passes",
        )
        .http2(vec![
            request_headers(
                "POST",
                &[("content-type", "application/grpc"), ("te", "trailers")],
                false,
            ),
            data("\0\0\0\0\u{1}x", false),
        ])
        .reply_http2_steps(vec![headers(
            &[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")],
            true,
        )])
        .expect(Anything, &[Status(&[200]), Only("grpc-status", "12")]),
    );
    rows.push(
        Row::new("gRPC over HTTP/2: Requests", "metadata passes, binary too")
            .http2(vec![request_headers(
                "POST",
                &[
                    ("content-type", "application/grpc"),
                    ("te", "trailers"),
                    ("x-bin", "AAEC"),
                    ("grpc-accept-encoding", "gzip"),
                ],
                true,
            )])
            .over(TO_HTTP2)
            .expect(
                Once(&[Only("x-bin", "AAEC"), Only("grpc-accept-encoding", "gzip")]),
                &[Status(&[200])],
            ),
    );
    for media in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpcish",
    ] {
        rows.push(
            Row::new(
                "gRPC-Web: not gRPC",
                format!(
                    "a media type that only begins like gRPC goes \
                     in HTTP/1.1: {media}"
                ),
            )
            .http1(format!(
                "POST {{path}} HTTP/1.1\r\n{{to}}Content-Type: {media}\r\n\
                 Content-Length: 5\r\n\r\nhello"
            ))
            .http2(vec![
                request_headers("POST", &[("content-type", media)], false),
                data("hello", true),
            ])
            .over(&[Way::StaticHttp1, Way::MeshHttp1, Way::MeshUndeclared, Way::Passthrough])
            .expect(Once(&[Body("hello")]), &[Status(&[200]), Body("ok")]),
        );
    }
    rows.push(
        Row::new(
            "gRPC over HTTP/2",
            "gRPC to an application that is declared to speak HTTP/1.1 \
             goes in HTTP/1.1, or is refused at once",
        )
        .http1(
            "POST {path} HTTP/1.1\r\n{to}Content-Type: application/grpc\r\n\
             Content-Length: 5\r\n\r\nhello",
        )
        .over(&[Way::StaticHttp1, Way::MeshHttp1])
        .expect(Once(&[Body("hello")]), &[Status(&[200])])
        .or(Nothing, &[Refused])
        .or(Nothing, &[Status(&[200]), Has("grpc-status", "12")]),
    );
    rows.push(
        Row::new(
            "gRPC over HTTP/2: Trailers-Only",
            "a service that nobody offers is a status, in a head that is all there is",
        )
        .http2(vec![headers(
            &[
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "nobody.mesh"),
                (":path", "{path}"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
            true,
        )])
        .over(TO_HTTP2)
        .expect(
            Nothing,
            &[
                Status(&[200]),
                Body(""),
                Only("content-type", "application/grpc"),
                Has("grpc-status", "12"),
            ],
        )
        .or(
            Nothing,
            &[
                Status(&[200]),
                Body(""),
                Only("content-type", "application/grpc"),
                Has("grpc-status", "14"),
            ],
        )
        .or(
            Nothing,
            &[
                Status(&[200]),
                Body(""),
                Only("content-type", "application/grpc"),
                Has("grpc-status", "5"),
            ],
        ),
    );
    rows
}

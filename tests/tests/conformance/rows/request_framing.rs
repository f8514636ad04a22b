//! Where a request ends (RFC 9112 §6, §7; RFC 9113 §8.1).

use crate::conformance::check::Arrives::{Anything, Nothing, Once, Unfinished};
use crate::conformance::check::Check::{
    Answers, Body, Closed, Has, Lacks, Method, Of, Only, Refused, Status, Target,
};
use crate::conformance::row::{Content, Row, ask, upload};
use crate::conformance::script::{
    CANCEL, INTERNAL_ERROR, NO_ERROR, Step, bytes, data, headers, request_headers,
};

/// The rows.
pub fn rows() -> Vec<Row> {
    [with_content(), lengths(), codings(), chunks(), cut_short(), streams()].concat()
}

/// Requests that must pass with all of their content.
fn with_content() -> Vec<Row> {
    let mut rows = Vec::new();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "GET"] {
        rows.push(
            Row::new("RFC 9110 §8.6", format!("{method} with a length keeps content and length"))
                .ask(ask(method, &[]).with(Content::Sized("hello")))
                .expect(Once(&[Body("hello"), Only("content-length", "5")]), &[Status(&[200])]),
        );
        rows.push(
            Row::new("RFC 9112 §6.3", format!("{method} without a length keeps its content"))
                .ask(ask(method, &[]).with(Content::Streamed("hello")))
                .expect(Once(&[Body("hello")]), &[Status(&[200])])
                .or(Nothing, &[Status(&[400, 411, 501])]),
        );
    }
    for content in [Content::Sized("hello"), Content::Streamed("hello")] {
        rows.push(
            Row::new("RFC 9110 §9.3.2", format!("HEAD with content keeps it: {content:?}"))
                .ask(ask("HEAD", &[]).with(content))
                .expect(Once(&[Method("HEAD"), Body("hello")]), &[Status(&[200]), Body("")])
                .or(Nothing, &[Status(&[400, 411, 501])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §8.6", "POST without content has length 0, or none, at the backend")
            .ask(ask("POST", &[]))
            .expect(Once(&[Body("")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new("RFC 9110 §8.6", "GET without content is sent none of the fields that frame one")
            .ask(ask("GET", &[]))
            .expect(
                Once(&[Body(""), Lacks("content-length"), Lacks("transfer-encoding")]),
                &[Status(&[200])],
            ),
    );
    rows.push(
        Row::new("RFC 9110 §8.6", "an explicit length of 0 is kept")
            .ask(ask("PUT", &[]).with(Content::Sized("")))
            .expect(Once(&[Body(""), Only("content-length", "0")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §7.1",
            "several chunks, extensions and upper-case sizes arrive as one content",
        )
        .http1(
            "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: chunked\r\n\r\n\
             5;name=value\r\nhello\r\n0A;q=\"a b\"\r\n, big worl\r\n1\r\nd\r\n000\r\n\r\n",
        )
        .expect(Once(&[Body("hello, big world")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new("RFC 9112 §7.1", "the name of the chunked coding has no case")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n\
                 0\r\n\r\n",
            )
            .expect(Once(&[Body("hello")]), &[Status(&[200])]),
    );
    rows
}

fn with_fields(about: &str, section: &'static str, fields: &str, content: &str) -> Row {
    Row::new(section, about).http1(format!("POST {{path}} HTTP/1.1\r\n{{to}}{fields}\r\n{content}"))
}

/// `Content-Length`, alone and beside `Transfer-Encoding`.
fn lengths() -> Vec<Row> {
    let mut rows = Vec::new();
    for (length, order) in [(0, "before"), (3, "before"), (11, "before"), (3, "behind")] {
        let fields = match order {
            "before" => format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
            _ => format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        };
        let content = "5\r\nhello\r\n0\r\n\r\nGET {path}-smuggled HTTP/1.1\r\n{to}\r\n";
        rows.push(
            with_fields(
                &format!(
                    "a length of {length} {order} Transfer-Encoding is removed, and the \
                     connection ends"
                ),
                "RFC 9112 §6.1",
                &fields,
                content,
            )
            .expect(Once(&[Body("hello"), Lacks("content-length")]), &[Status(&[200]), Closed])
            .or(Nothing, &[Status(&[400]), Closed]),
        );
    }
    for value in
        ["-1", "+5", "0x5", "5a", "5 5", "5.0", "", "18446744073709551621", "99999999999999999999"]
    {
        rows.push(
            with_fields(
                &format!("a length that is no number is refused: {value:?}"),
                "RFC 9112 §6.3",
                &format!("Content-Length: {value}\r\n"),
                "hello",
            )
            .expect(Nothing, &[Status(&[400, 413]), Closed]),
        );
        rows.push(
            Row::new(
                "RFC 9113 §8.1.1",
                format!("over HTTP/2 a length that is no number is refused: {value:?}"),
            )
            .http2(vec![
                request_headers("POST", &[("content-length", value)], false),
                data("hello", true),
            ])
            .expect(Unfinished, &[Refused]),
        );
    }
    for (fields, about) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "on two lines"),
        ("Content-Length: 5, 6\r\n", "in a list"),
        ("Content-Length: 5\r\nContent-Length: abc\r\n", "one of them no number"),
        ("Content-Length: 5, 5, 6\r\n", "the third in a list"),
    ] {
        rows.push(
            with_fields(
                &format!("lengths that differ are refused: {about}"),
                "RFC 9112 §6.3",
                fields,
                "hello!",
            )
            .expect(Nothing, &[Status(&[400]), Closed]),
        );
    }
    for (fields, about) in [
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "on two lines"),
        ("Content-Length: 5, 5\r\n", "in a list"),
        ("Content-Length: 5,5\r\n", "in a list without a space"),
    ] {
        rows.push(
            with_fields(
                &format!("equal lengths are one, or refused: {about}"),
                "RFC 9110 §8.6",
                fields,
                "hello",
            )
            .expect(Once(&[Body("hello"), Only("content-length", "5")]), &[Status(&[200])])
            .or(Nothing, &[Status(&[400]), Closed]),
        );
    }
    rows
}

/// Transfer codings other than chunked alone.
fn codings() -> Vec<Row> {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    [
        ("Transfer-Encoding: gzip, chunked\r\n", "gzip before chunked"),
        (
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "gzip before chunked on two lines",
        ),
        ("Transfer-Encoding: gzip\r\n", "gzip alone"),
        ("Transfer-Encoding: identity\r\n", "identity"),
        ("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "identity with a length"),
        ("Transfer-Encoding: identity, chunked\r\n", "identity before chunked"),
        ("Transfer-Encoding: chunked, chunked\r\n", "chunked twice"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "chunked on two lines"),
        ("Transfer-Encoding: chunked, identity\r\n", "chunked before identity"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "identity on a second line",
        ),
        ("Transfer-Encoding: chunked, gzip\r\n", "chunked not last"),
        ("Transfer-Encoding: xchunked\r\n", "a name that ends like chunked"),
        ("Transfer-Encoding: \"chunked\"\r\n", "a quoted name"),
        ("Transfer-Encoding: chunked;q=1\r\n", "a parameter on chunked"),
        ("Transfer-Encoding: \x0bchunked\r\n", "a vertical tab before the name"),
        ("Transfer-Encoding: chunked\x00\r\n", "a NUL behind the name"),
        ("Transfer-Encoding : chunked\r\n", "white space before the colon"),
        ("Transfer-Encoding:\r\n chunked\r\n", "a value on a continuation line"),
    ]
    .into_iter()
    .map(|(fields, about)| {
        with_fields(
            &format!("a transfer coding that is not understood is refused: {about}"),
            "RFC 9112 §6.1",
            fields,
            chunked,
        )
        .expect(Nothing, &[Status(&[400, 501]), Closed])
    })
    .chain([
        Row::new(
            "RFC 9112 §6.1",
            "HTTP/1.0 with Transfer-Encoding is faulty and its connection ends",
        )
        .http1(
            "POST {path} HTTP/1.0\r\n{to}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .expect(Nothing, &[Status(&[400, 501]), Closed])
        .or(Once(&[Body("hello")]), &[Status(&[200]), Closed]),
        Row::new("RFC 9113 §8.2.2", "transfer-encoding over HTTP/2 is malformed")
            .http2(vec![
                request_headers("POST", &[("transfer-encoding", "chunked")], false),
                data("5\r\nhello\r\n0\r\n\r\n", true),
            ])
            .expect(Unfinished, &[Refused]),
    ])
    .collect()
}

/// Errors of the chunked coding: what came before may have gone on, but never as a whole message.
fn chunks() -> Vec<Row> {
    [
        ("x\r\nhello\r\n0\r\n\r\n", "a size that is no number"),
        ("0x5\r\nhello\r\n0\r\n\r\n", "a size with 0x"),
        ("+5\r\nhello\r\n0\r\n\r\n", "a size with a sign"),
        ("-5\r\nhello\r\n0\r\n\r\n", "a negative size"),
        ("\r\nhello\r\n0\r\n\r\n", "an empty size"),
        ("ffffffffffffffff5\r\nhello\r\n0\r\n\r\n", "a size beyond 64 bits"),
        ("5 5\r\nhello\r\n0\r\n\r\n", "two sizes"),
        ("5\r\nhelloX0\r\n\r\n", "no CRLF behind the chunk"),
        ("4\r\nhello\r\n0\r\n\r\n", "a chunk longer than its size"),
        ("6\r\nhello\r\n0\r\n\r\n", "a chunk shorter than its size"),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", "LF in an extension"),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", "CR in an extension"),
        ("5\nhello\r\n0\r\n\r\n", "a size line that ends in LF"),
        ("5\r\nhello\n0\r\n\r\n", "a chunk that ends in LF"),
        ("5\r\nhello\r\n0\r\nbad trailer\r\n\r\n", "a trailer without a colon"),
        ("5\r\nhello\r\n0\r\nx-a : 1\r\n\r\n", "a trailer with white space before its colon"),
        ("5\r\nhello\r\n0\r\nx-a: 1\x00\r\n\r\n", "a trailer with a NUL"),
    ]
    .into_iter()
    .map(|(content, about)| {
        Row::new(
            "RFC 9112 §7.1",
            format!("a chunked content that breaks the grammar is never whole: {about}"),
        )
        .http1(format!(
            "POST {{path}} HTTP/1.1\r\n{{to}}Transfer-Encoding: chunked\r\n\r\n{content}"
        ))
        .methods(&["POST"])
        .expect(Unfinished, &[])
    })
    .chain(lenient_chunks())
    .collect()
}

/// What hyper's decoder of the chunked coding takes although the grammar has no room for it.
fn lenient_chunks() -> impl Iterator<Item = Row> {
    [
        ("5;a\x00b\r\nhello\r\n0\r\n\r\n", "NUL in an extension"),
        (
            "5\r\nhello\r\n0\r\n\nGET {path}-smuggled HTTP/1.1\r\n{to}\r\n",
            "an end that is LF, what follows being trailers",
        ),
    ]
    .into_iter()
    .map(|(content, about)| {
        Row::new("RFC 9112 §7.1", format!("a chunked content that is read all the same: {about}"))
            .http1(format!(
                "POST {{path}} HTTP/1.1\r\n{{to}}Transfer-Encoding: chunked\r\n\r\n{content}"
            ))
            .methods(&["POST"])
            .expect(Once(&[Body("hello")]), &[Status(&[200])])
            .left_lenient(
                "hyper; the next hop gets a framing of ours, so that no two hops can understand it differently",
            )
    })
}

/// Uploads whose sender goes away or errs in the middle.
fn cut_short() -> Vec<Row> {
    let mut rows = Vec::new();
    let head = "POST {path} HTTP/1.1\r\n{to}";
    for (framing, half) in
        [("Content-Length: 10", "hello"), ("Transfer-Encoding: chunked", "a\r\nhello")]
    {
        for (how, last) in [("closes", Step::Close), ("ends its side", Step::HalfClose)] {
            rows.push(
                Row::new(
                    "RFC 9112 §8",
                    format!("half a content with {framing}, then the caller {how}"),
                )
                .http1_steps(vec![
                    bytes(format!("{head}{framing}\r\n\r\n{half}")),
                    Step::AwaitBody(5),
                    last,
                ])
                .expect(Unfinished, &[]),
            );
        }
    }
    rows.push(
        Row::new("RFC 9112 §8", "all chunks but the last, then the caller ends its side")
            .http1_steps(vec![
                bytes(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
                Step::AwaitBody(5),
                Step::HalfClose,
            ])
            .expect(Unfinished, &[]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §8",
            "the last chunk but no end of the trailers, then the caller ends its side",
        )
        .http1_steps(vec![
            bytes(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")),
            Step::AwaitBody(5),
            Step::HalfClose,
        ])
        .expect(Unfinished, &[]),
    );
    for (name, code) in
        [("NO_ERROR", NO_ERROR), ("CANCEL", CANCEL), ("INTERNAL_ERROR", INTERNAL_ERROR)]
    {
        for (length, fields) in [("without", &[][..]), ("with", &[("content-length", "10")][..])] {
            rows.push(
                Row::new(
                    "RFC 9113 §8.1",
                    format!("half a content {length} a length, then RST_STREAM({name})"),
                )
                .http2(vec![
                    request_headers("POST", fields, false),
                    data("hello", false),
                    Step::AwaitBody(5),
                    Step::ResetStream(code),
                ])
                .expect(Unfinished, &[]),
            );
        }
        // Whether the end of the stream overtakes its content is a matter of luck: many streams, one connection.
        let mut many = Vec::new();
        for stream in 1..=STREAMS {
            many.extend([
                request_headers("POST", &[], false),
                Step::AwaitArrivals(stream),
                data("hello", false),
                Step::ResetStream(code),
            ]);
            if stream < STREAMS {
                many.push(Step::NextStream);
            }
        }
        rows.push(
            Row::new("RFC 9113 §8.1", format!("half a content and at once RST_STREAM({name})"))
                .http2(many)
                .expect(Unfinished, &[]),
        );
        rows.push(
            Row::new(
                "RFC 9113 §6.8",
                format!("half a content, GOAWAY({name}) and the end of the connection"),
            )
            .http2(vec![
                request_headers("POST", &[], false),
                data("hello", false),
                Step::AwaitBody(5),
                Step::GoAway(false, code),
                Step::Close,
            ])
            .expect(Unfinished, &[]),
        );
    }
    rows.push(
        Row::new("RFC 9113 §8.1", "half a content and the end of the connection")
            .http2(vec![
                request_headers("POST", &[], false),
                data("hello", false),
                Step::AwaitBody(5),
                Step::Close,
            ])
            .expect(Unfinished, &[]),
    );
    rows
}

/// Lengths that HTTP/2's frames contradict, and empty frames.
fn streams() -> Vec<Row> {
    let mut rows = Vec::new();
    for (length, text) in [("3", "hello"), ("10", "hello"), ("5", "")] {
        rows.push(
            Row::new(
                "RFC 9113 §8.1.1",
                format!("a length of {length} with {} bytes of DATA is malformed", text.len()),
            )
            .http2(vec![
                request_headers("POST", &[("content-length", length)], false),
                data(text, true),
            ])
            .expect(Unfinished, &[Refused]),
        );
    }
    rows.push(
        Row::new("RFC 9113 §8.1.1", "a length of 5 and END_STREAM on the head is malformed")
            .http2(vec![request_headers("POST", &[("content-length", "5")], true)])
            .expect(Unfinished, &[Refused]),
    );
    rows.push(
        Row::new("RFC 9113 §6.1", "an empty DATA frame with END_STREAM ends a content")
            .http2(vec![request_headers("POST", &[], false), data("hello", false), data("", true)])
            .expect(Once(&[Body("hello")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new("RFC 9113 §8.1.1", "lengths that differ on two lines are malformed")
            .http2(vec![
                request_headers("POST", &[("content-length", "5"), ("content-length", "6")], false),
                data("hello", true),
            ])
            .expect(Unfinished, &[Refused]),
    );
    rows.push(
        Row::new("RFC 9112 §9.3.2", "pipelined requests without content are answered in order")
            .http1(
                "GET {path} HTTP/1.1\r\n{to}X-N: 1\r\n\r\nHEAD {path} HTTP/1.1\r\n{to}X-N: 2\r\n\r\n\
                 GET {path} HTTP/1.1\r\n{to}X-N: 3\r\n\r\n\
                 GET {path} HTTP/1.1\r\n{to}Connection: close\r\n\r\n",
            )
            .expect(Anything, &[Answers(4), Status(&[200]), Body("ok"), Closed]),
    );
    rows.push(
        Row::new("RFC 9112 §9.3", "a content that reads like a length does not end the connection")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}X-N: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
                 17\r\n\r\nContent-Length: 5\r\n\r\n\r\n0\r\n\r\nGET {path} HTTP/1.1\r\n{to}\r\n",
            )
            .expect(Anything, &[Answers(2), Status(&[200]), Of(1, &Status(&[200]))]),
    );
    for method in ["GET", "DELETE"] {
        rows.push(
            Row::new("RFC 9112 §6.1", format!("a length beside Transfer-Encoding is removed from \
                                               {method}, too"))
                .http1(format!(
                    "{method} {{path}} HTTP/1.1\r\n{{to}}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                     5\r\nhello\r\n0\r\n\r\n"
                ))
                .expect(Once(&[Body("hello"), Lacks("content-length")]), &[Status(&[200]), Closed])
                .or(Nothing, &[Status(&[400, 501]), Closed]),
        );
    }
    rows.push(
        Row::new("RFC 9112 §9.3.2", "pipelined requests are answered in order")
            .http1(
                "POST {path} HTTP/1.1\r\n{to}Content-Length: 5\r\nX-N: 1\r\n\r\nhello\
                 HEAD {path} HTTP/1.1\r\n{to}X-N: 2\r\n\r\n\
                 POST {path} HTTP/1.1\r\n{to}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
                 GET {path} HTTP/1.1\r\n{to}Connection: close\r\n\r\n",
            )
            .methods(&["POST", "HEAD", "POST", "GET"])
            .expect(Anything, &[Answers(4), Status(&[200]), Closed, Has("content-length", "2")]),
    );
    rows.push(
        Row::new("RFC 9112 §9.6", "a caller that ends its side after a whole request is served")
            .http1_steps(vec![
                bytes("POST {path} HTTP/1.1\r\n{to}Content-Length: 5\r\n\r\nhello"),
                Step::HalfClose,
            ])
            .reply_http1_steps(vec![
                Step::AwaitCaller,
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ])
            .reply_http2_steps(vec![
                Step::AwaitCaller,
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("ok", true),
            ])
            .expect(Once(&[Body("hello")]), &[Status(&[200]), Body("ok")]),
    );
    rows.push(
        Row::new("RFC 9112 §9.6", "a caller that ends its side after a whole head is served")
            .http1_steps(vec![
                bytes("GET {path} HTTP/1.1\r\n{to}\r\n"),
                Step::AwaitArrivals(1),
                Step::HalfClose,
            ])
            .reply_http1_steps(vec![
                Step::AwaitCaller,
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ])
            .reply_http2_steps(vec![
                Step::AwaitCaller,
                headers(&[(":status", "200")], false),
                data("ok", true),
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("ok")]),
    );
    rows.push(
        Row::new("RFC 9113 §8.1", "trailers of a request without END_STREAM are malformed")
            .http2(vec![
                request_headers("POST", &[], false),
                data("hello", false),
                headers(&[("x-sum", "abc")], false),
            ])
            .expect(Unfinished, &[Refused]),
    );
    rows.push(
        Row::new(
            "RFC 9113 §8.1",
            "a pseudo-header field in a request's trailers is malformed, or left out",
        )
        .http2(vec![
            request_headers("POST", &[], false),
            data("hello", false),
            headers(&[(":path", "/other"), ("x-sum", "abc")], true),
        ])
        .expect(Unfinished, &[Refused])
        .or(Once(&[Target("{path}"), Body("hello")]), &[Status(&[200])]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §9.6",
            "a refusal before the end of the upload, and the end of the \
                                   connection, reaches the caller",
        )
        .ask(upload(&[]))
        .reply_http1_steps(vec![
            bytes("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"),
            Step::HalfClose,
        ])
        .expect(Anything, &[Status(&[413]), Body("no")]),
    );
    rows.push(
        Row::new(
            "RFC 9113 §8.1",
            "a response before the end of the upload is passed on, and the rest is not lost",
        )
        .ask(upload(&[]))
        .reply_http1_steps(vec![bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")])
        .expect(Once(&[Body("hello")]), &[Status(&[200]), Body("ok")]),
    );
    rows
}

/// Streams of a row that must not depend on luck.
const STREAMS: usize = 10;

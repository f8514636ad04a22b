//! Where a response ends (RFC 9112 §6.3; RFC 9113 §8.1), and that half of one never looks whole.

use crate::conformance::check::Arrives::{Anything, Once};
use crate::conformance::check::Check::{
    Answers, Body, Broken, Closed, Count, Has, Lacks, NoTrailer, Of, Only, Status,
};
use crate::conformance::row::{Ask, Content, Row, TO_HTTP1, answer, ask, get};
use crate::conformance::script::{
    CANCEL, INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM, Step, bytes, data, headers,
};

/// The rows.
pub fn rows() -> Vec<Row> {
    [whole(), lengths(), codings(), without_content(), cut_short_http1(), cut_short_http2()]
        .concat()
}

fn asked() -> Ask {
    get(&[])
}

/// A response that a backend of HTTP/1.1 writes as it stands.
fn written(section: &'static str, about: impl Into<String>, response: impl AsRef<[u8]>) -> Row {
    Row::new(section, about).ask(asked()).reply_http1(response)
}

/// Responses that must pass with all of their content.
fn whole() -> Vec<Row> {
    vec![
        Row::new("RFC 9110 §8.6", "a response with a length keeps content and length")
            .ask(asked())
            .reply(answer(200, &[], Content::Sized("hello")))
            .expect(Once(&[]), &[Status(&[200]), Body("hello"), Only("content-length", "5")]),
        Row::new("RFC 9112 §6.3", "a response without a length keeps its content")
            .ask(asked())
            .reply(answer(200, &[], Content::Streamed("hello")))
            .expect(Once(&[]), &[Status(&[200]), Body("hello"), Lacks("content-length")]),
        Row::new("RFC 9110 §8.6", "a response with a length of 0 keeps it")
            .ask(asked())
            .reply(answer(200, &[], Content::Sized("")))
            .expect(Once(&[]), &[Status(&[200]), Body(""), Only("content-length", "0")]),
        Row::new("RFC 9110 §15.5.5", "a status of 404 passes with its content")
            .ask(asked())
            .reply(answer(404, &[], Content::Sized("hello")))
            .expect(Once(&[]), &[Status(&[404]), Body("hello")]),
        Row::new("RFC 9110 §15", "a status that is not registered passes")
            .ask(asked())
            .reply(answer(299, &[], Content::Sized("hello")))
            .expect(Once(&[]), &[Status(&[299]), Body("hello")]),
        Row::new("RFC 9110 §15", "a status beyond 599 passes")
            .ask(asked())
            .reply(answer(799, &[], Content::Sized("hello")))
            .expect(Once(&[]), &[Status(&[799]), Body("hello")])
            .or(Once(&[]), &[Status(&[502])]),
        Row::new("RFC 9112 §6.3", "content up to the end of the connection is whole")
            .ask(asked())
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\n\r\nhello"),
                Step::AwaitHeard(5),
                Step::Close,
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("hello")]),
        Row::new("RFC 9112 §2.3", "an HTTP/1.0 response up to the end of the connection is whole")
            .ask(asked())
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello"),
                Step::Close,
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("hello"), Has("server", "old")]),
        written(
            "RFC 9112 §7.1",
            "several chunks, extensions and upper-case sizes arrive as one content",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0A\r\n\
             , big worl\r\n1\r\nd\r\n00\r\n\r\n",
        )
        .expect(Once(&[]), &[Status(&[200]), Body("hello, big world")]),
        written(
            "RFC 9112 §4",
            "a reason phrase may be empty",
            "HTTP/1.1 200 \r\nContent-Length: \
             2\r\n\r\nok",
        )
        .expect(Once(&[]), &[Status(&[200]), Body("ok")]),
        Row::new("RFC 9113 §6.1", "an empty DATA frame with END_STREAM ends a content")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("hello", false),
                data("", true),
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("hello")]),
        Row::new("RFC 9113 §8.1", "RST_STREAM(NO_ERROR) behind a whole response does not spoil it")
            .ask(ask("POST", &[]).with(Content::Streamed("hello")))
            .reply_http2_steps(vec![
                headers(&[(":status", "200")], false),
                data("ok", true),
                Step::ResetStream(NO_ERROR),
            ])
            .expect(Anything, &[Status(&[200]), Body("ok")]),
    ]
}

/// `Content-Length`, alone and beside `Transfer-Encoding`.
fn lengths() -> Vec<Row> {
    let mut rows = Vec::new();
    for (length, order) in [(0, "before"), (5, "before"), (20, "before"), (5, "behind")] {
        let (te, cl) = ("Transfer-Encoding: chunked\r\n", format!("Content-Length: {length}\r\n"));
        let fields = if order == "before" { cl + te } else { te.to_owned() + &cl };
        rows.push(
            written(
                "RFC 9112 §6.3",
                format!("a length of {length} {order} Transfer-Encoding is removed"),
                format!("HTTP/1.1 200 OK\r\n{fields}\r\nb\r\nhello world\r\n0\r\n\r\n"),
            )
            .expect(Once(&[]), &[Status(&[200]), Body("hello world"), Lacks("content-length")])
            .or(Once(&[]), &[Status(&[502])]),
        );
    }
    rows.push(
        Row::new(
            "RFC 9112 §6.3",
            "a length beside Transfer-Encoding in a response to HEAD, too, is removed",
        )
        .ask(ask("HEAD", &[]))
        .reply_http1("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
        .expect(Once(&[]), &[Status(&[200]), Body(""), Lacks("content-length")])
        .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new(
            "RFC 9110 §9.3.2",
            "an answer of our own to HEAD has the length of GET's, and no body",
        )
        .ask(ask("HEAD", &[]))
        .reply_http1_steps(vec![Step::AwaitRequest, Step::Close])
        .expect(Anything, &[Status(&[502]), Body(""), Count("content-length", 1)]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §6.1",
            "Transfer-Encoding in a response of HTTP/1.0 is read, or is a 502",
        )
        .ask(asked())
        .reply_http1_steps(vec![
            Step::AwaitRequest,
            bytes("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            Step::Close,
        ])
        .expect(Once(&[]), &[Status(&[200]), Body("hello")])
        .or(Once(&[]), &[Status(&[502])]),
    );
    for value in
        ["-1", "+5", "0x5", "5a", "", "18446744073709551621", "5, 6", "5\r\nContent-Length: 6"]
    {
        rows.push(
            written(
                "RFC 9112 §6.3",
                format!("a length that is no number, or two, is a 502: {value:?}"),
                format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nhello!"),
            )
            .expect(Once(&[]), &[Status(&[502])]),
        );
    }
    for value in ["5\r\nContent-Length: 5", "5, 5"] {
        rows.push(
            written(
                "RFC 9112 §6.3",
                format!("equal lengths are one, or a 502: {value:?}"),
                format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nhello"),
            )
            .expect(Once(&[]), &[Status(&[200]), Body("hello"), Only("content-length", "5")])
            .or(Once(&[]), &[Status(&[502])]),
        );
    }
    for (value, text) in
        [("3", "hello"), ("10", "hello"), ("-1", "hello"), ("abc", "hello"), ("5", "")]
    {
        rows.push(
            Row::new(
                "RFC 9113 §8.1.1",
                format!("a length of {value} with {} bytes of DATA is malformed", text.len()),
            )
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200"), ("content-length", value)], false),
                data(text, true),
            ])
            .expect(Once(&[]), &[Broken]),
        );
    }
    rows
}

/// Transfer codings other than chunked alone.
fn codings() -> Vec<Row> {
    let mut rows = Vec::new();
    for (fields, about) in [
        ("Transfer-Encoding: gzip, chunked", "gzip before chunked"),
        (
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            "gzip before chunked on two lines",
        ),
        ("Transfer-Encoding: gzip", "gzip alone"),
        ("Transfer-Encoding: identity", "identity"),
        ("Transfer-Encoding: identity\r\nContent-Length: 5", "identity with a length"),
        ("Transfer-Encoding: chunked, chunked", "chunked twice"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "chunked on two lines"),
        ("Transfer-Encoding: chunked, gzip", "chunked not last"),
        ("Transfer-Encoding: xchunked", "a name that ends like chunked"),
    ] {
        rows.push(
            Row::new(
                "RFC 9112 §6.1",
                format!("a response in a transfer coding that is not understood is a 502: {about}"),
            )
            .ask(asked())
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")),
                Step::Close,
            ])
            .expect(Once(&[]), &[Status(&[502])]),
        );
    }
    rows.push(
        Row::new("RFC 9113 §8.2.2", "transfer-encoding in a response over HTTP/2 is malformed")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200"), ("transfer-encoding", "chunked")], false),
                data("hello", true),
            ])
            .expect(Once(&[]), &[Broken]),
    );
    rows
}

/// Responses that have no content whatever their fields say, and the one behind them on the same connection.
fn without_content() -> Vec<Row> {
    let mut rows = Vec::new();
    for (fields, about) in [
        ("Content-Length: 5\r\n", "a length"),
        ("Transfer-Encoding: chunked\r\n", "Transfer-Encoding"),
        ("Content-Length: 0\r\n", "a length of 0"),
        ("", "nothing"),
    ] {
        rows.push(
            written(
                "RFC 9110 §8.6",
                format!("204 with {about} passes without length, coding and content"),
                format!("HTTP/1.1 204 No Content\r\n{fields}X-A: 1\r\n\r\n"),
            )
            .expect(
                Once(&[]),
                &[
                    Status(&[204]),
                    Body(""),
                    Lacks("content-length"),
                    Lacks("transfer-encoding"),
                    Has("x-a", "1"),
                ],
            )
            .or(Once(&[]), &[Status(&[502])]),
        );
    }
    rows.push(
        Row::new("RFC 9110 §15.3.5", "204 with content over HTTP/2 passes without it, or is a 502")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "204")], false),
                data("hello", true),
            ])
            .expect(Once(&[]), &[Status(&[204]), Body("")])
            .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new("RFC 9110 §8.6", "204 with a length over HTTP/2 passes without it, or is a 502")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "204"), ("content-length", "0")], true),
            ])
            .expect(Once(&[]), &[Status(&[204]), Body(""), Lacks("content-length")])
            .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new(
            "RFC 9110 §15.4.5",
            "304 keeps the length that a 200 would have, and has no content",
        )
        .ask(get(&[("If-None-Match", "\"a\"")]))
        .reply_http1("HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: \"a\"\r\n\r\n")
        .reply_http2_steps(vec![
            Step::AwaitRequest,
            headers(&[(":status", "304"), ("content-length", "500"), ("etag", "\"a\"")], true),
        ])
        .expect(
            Once(&[]),
            &[Status(&[304]), Body(""), Has("etag", "\"a\""), Only("content-length", "500")],
        )
        .or(Once(&[]), &[Status(&[304]), Body(""), Has("etag", "\"a\""), Lacks("content-length")]),
    );
    rows.push(
        Row::new("RFC 9110 §15.4.5", "304 with content over HTTP/2 passes without it, or is a 502")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "304")], false),
                data("hello", true),
            ])
            .expect(Once(&[]), &[Status(&[304]), Body("")])
            .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new("RFC 9110 §8.6", "a response to HEAD keeps the length that GET would have")
            .ask(ask("HEAD", &[]))
            .reply(answer(200, &[], Content::Sized("hello")))
            .expect(Once(&[]), &[Status(&[200]), Body(""), Only("content-length", "5")]),
    );
    rows.push(
        Row::new("RFC 9112 §6.3", "a response to HEAD with Transfer-Encoding has no content")
            .ask(ask("HEAD", &[]))
            .reply(answer(200, &[("X-A", "1")], Content::Streamed("hello")))
            .expect(Once(&[]), &[Status(&[200]), Body(""), Has("x-a", "1")]),
    );
    rows.push(
        Row::new(
            "RFC 9110 §9.3.2",
            "a response to HEAD with content over HTTP/2 passes without it, or is broken",
        )
        .ask(ask("HEAD", &[]))
        .reply_http2_steps(vec![
            Step::AwaitRequest,
            headers(&[(":status", "200")], false),
            data("hello", true),
        ])
        .expect(Once(&[]), &[Status(&[200]), Body("")])
        .or(Once(&[]), &[Broken]),
    );
    rows.push(
        Row::new("RFC 9112 §9.3.2", "a connection serves on behind 204, 304 and HEAD")
            .http1(
                "HEAD {path} HTTP/1.1\r\n{to}X-N: 1\r\n\r\nGET {path} HTTP/1.1\r\n{to}X-N: 2\r\n\
                 Connection: close\r\n\r\n",
            )
            .expect(Anything, &[Answers(2), Status(&[200]), Body(""), Of(1, &Body("ok")), Closed]),
    );
    rows.push(
        Row::new("RFC 9110 §15.3.6", "205 passes")
            .ask(asked())
            .reply(answer(205, &[], Content::Sized("")))
            .expect(Once(&[]), &[Status(&[205]), Body("")]),
    );
    rows
}

/// Responses of HTTP/1.1 that break off or break the grammar.
fn cut_short_http1() -> Vec<Row> {
    let mut rows = Vec::new();
    for (fields, half) in [
        ("Content-Length: 10", "hello"),
        ("Transfer-Encoding: chunked", "a\r\nhello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-A: 1\r\n"),
    ] {
        for waits in [true, false] {
            let wait = if waits { Step::AwaitHeard(5) } else { Step::AwaitRequest };
            let when = if waits { "then" } else { "and at once" };
            rows.push(
                Row::new(
                    "RFC 9112 §8",
                    format!(
                        "{fields} with {half:?}, {when} the end of the connection, is not whole"
                    ),
                )
                .ask(asked())
                .reply_http1_steps(vec![
                    Step::AwaitRequest,
                    bytes(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{half}")),
                    wait,
                    Step::Close,
                ])
                .expect(Once(&[]), &[Broken]),
            );
        }
    }
    rows.push(
        Row::new(
            "RFC 9112 §9.8",
            "to a caller of HTTP/1.0, that knows the end of a response by the connection's, half of one does not look whole",
        )
        .http1("GET {path} HTTP/1.0\r\n{to}\r\n")
        .reply_http1_steps(vec![
            Step::AwaitRequest,
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello"),
            Step::AwaitHeard(5),
            Step::Close,
        ])
        .expect(Once(&[]), &[Broken]),
    );
    for (content, about) in [
        ("x\r\nhello\r\n0\r\n\r\n", "a size that is no number"),
        ("-5\r\nhello\r\n0\r\n\r\n", "a negative size"),
        ("ffffffffffffffff5\r\nhello\r\n0\r\n\r\n", "a size beyond 64 bits"),
        ("4\r\nhello\r\n0\r\n\r\n", "a chunk longer than its size"),
        ("5\r\nhelloX0\r\n\r\n", "no CRLF behind the chunk"),
        ("5\r\nhello\r\n0\r\nno colon\r\n\r\n", "a trailer without a colon"),
    ] {
        rows.push(
            Row::new(
                "RFC 9112 §7.1",
                format!("a chunked response that breaks the grammar is not whole: {about}"),
            )
            .ask(asked())
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{content}")),
                Step::Close,
            ])
            .expect(Once(&[]), &[Broken]),
        );
    }
    rows.push(
        Row::new("RFC 9112 §7.1", "a chunked response that is read all the same: NUL in an extension")
            .ask(asked())
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\x00b\r\nhello\r\n0\r\n\r\n"),
                Step::Close,
            ])
            .expect(Once(&[]), &[Status(&[200]), Body("hello")])
            .left_lenient(
                "hyper; the caller gets a framing of ours, so that no two hops can understand it differently",
            ),
    );
    for (head, about) in [
        ("HTTP/1.1 abc OK\r\n\r\n", "a status that is no number"),
        ("HTTP/1.1 20 OK\r\n\r\n", "a status of two digits"),
        ("HTTP/1.1 099 Low\r\n\r\n", "a status below 100"),
        ("HTTP/9.9 200 OK\r\n\r\n", "a version that there is not"),
        ("SPDY/1.1 200 OK\r\n\r\n", "another protocol"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "a field without a colon"),
        ("HTTP/1.1 200 OK\r\nX-A: a\x00b\r\n\r\n", "a NUL in a value"),
        ("HTTP/1.1 200 OK\r\nX-A: a\rb\r\n\r\n", "a CR in a value"),
        ("HTTP/1.1 200 OK\r\nX A: 1\r\n\r\n", "a space in a name"),
        ("HTTP/1.1 200 OK\r\nX-A", "no end"),
        ("", "nothing"),
        ("garbage\r\n\r\n", "no HTTP at all"),
    ] {
        rows.push(
            Row::new("RFC 9110 §15.6.3", format!("a head that cannot be read is a 502: {about}"))
                .ask(ask("POST", &[]))
                .reply_http1_steps(vec![Step::AwaitRequest, bytes(head), Step::Close])
                .expect(Once(&[]), &[Status(&[502])]),
        );
    }
    rows.push(
        Row::new("RFC 9112 §5.2", "a field line that is folded becomes one line, or a 502")
            .ask(asked())
            .reply_http1("HTTP/1.1 200 OK\r\nX-A: one\r\n two\r\nContent-Length: 2\r\n\r\nok")
            .expect(Once(&[]), &[Status(&[200]), Body("ok"), Only("x-a", "one two")])
            .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new(
            "RFC 9112 §5.1",
            "white space before the colon of a response's field is removed, or it is a 502",
        )
        .ask(asked())
        .reply_http1("HTTP/1.1 200 OK\r\nX-A : one\r\nContent-Length: 2\r\n\r\nok")
        .expect(Once(&[]), &[Status(&[200]), Body("ok"), Only("x-a", "one")])
        .or(Once(&[]), &[Status(&[502])]),
    );
    rows.push(
        Row::new("RFC 9112 §9.2", "bytes behind a response are no response to anybody")
            .http1(
                "GET {path} HTTP/1.1\r\n{to}X-N: 1\r\n\r\nGET {path} HTTP/1.1\r\n{to}X-N: 2\r\n\
                 Connection: close\r\n\r\n",
            )
            .over(TO_HTTP1)
            .reply_http1_steps(vec![
                Step::AwaitRequest,
                bytes(
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 299 Injected\r\n\
                     Content-Length: 0\r\n\r\n",
                ),
                Step::Close,
            ])
            .expect(Anything, &[Answers(2), Status(&[200]), Of(1, &Status(&[200, 502]))]),
    );
    rows
}

/// Responses of HTTP/2 that end without END_STREAM, or break the grammar.
fn cut_short_http2() -> Vec<Row> {
    let mut rows = Vec::new();
    let codes = [("NO_ERROR", NO_ERROR), ("CANCEL", CANCEL), ("INTERNAL_ERROR", INTERNAL_ERROR)];
    for (name, code) in codes {
        for waits in [true, false] {
            let (wait, when) = match waits {
                true => (Step::AwaitHeard(5), "then"),
                false => (Step::AwaitRequest, "and at once"),
            };
            let begun = |last: Vec<Step>| {
                let mut steps = vec![
                    Step::AwaitRequest,
                    headers(&[(":status", "200")], false),
                    data("hello", false),
                ];
                steps.push(wait.clone());
                steps.extend(last);
                steps
            };
            rows.push(
                Row::new(
                    "RFC 9113 §8.1",
                    format!("half a content, {when} RST_STREAM({name}), is not whole"),
                )
                .ask(asked())
                .reply_http2_steps(begun(vec![Step::ResetStream(code)]))
                .expect(Once(&[]), &[Broken]),
            );
            for (seen, last) in [(true, "this"), (false, "no")] {
                rows.push(
                    Row::new(
                        "RFC 9113 §6.8",
                        format!(
                            "half a content, {when} GOAWAY({name}) with {last} stream and the \
                             end, is not whole"
                        ),
                    )
                    .ask(asked())
                    .reply_http2_steps(begun(vec![Step::GoAway(seen, code), Step::Close]))
                    .expect(Once(&[]), &[Broken])
                    .alone(),
                );
            }
        }
        rows.push(
            Row::new(
                "RFC 9113 §8.1",
                format!("RST_STREAM({name}) instead of a head is a 502 to a POST"),
            )
            .ask(ask("POST", &[]))
            .reply_http2_steps(vec![Step::AwaitRequest, Step::ResetStream(code)])
            .expect(Once(&[]), &[Status(&[502])]),
        );
        rows.push(
            Row::new(
                "RFC 9113 §8.1",
                format!("a head without END_STREAM and RST_STREAM({name}) is not whole"),
            )
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                Step::ResetStream(code),
            ])
            .expect(Once(&[]), &[Broken]),
        );
    }
    rows.push(
        Row::new("RFC 9113 §8.1", "half a content and the end of the connection is not whole")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("hello", false),
                Step::AwaitHeard(5),
                Step::Close,
            ])
            .expect(Once(&[]), &[Broken])
            .alone(),
    );
    for (about, step) in [
        ("REFUSED_STREAM", Step::ResetStream(REFUSED_STREAM)),
        ("GOAWAY below the stream", Step::GoAway(false, NO_ERROR)),
    ] {
        rows.push(
            Row::new(
                "RFC 9113 §8.7",
                format!("a request that was not processed is a failure, and of no other: {about}"),
            )
            .ask(ask("POST", &[]))
            .reply_http2_steps(vec![Step::AwaitRequest, step, Step::Close])
            .expect(Anything, &[Status(&[502, 503])])
            .alone(),
        );
    }
    for (fields, about) in [
        (&[("x-a", "1")][..], "no :status"),
        (&[(":status", "abc")][..], "a status that is no number"),
        (&[(":status", "200"), (":status", "201")][..], "two statuses"),
        (&[(":status", "200"), ("X-Upper", "1")][..], "a name in upper case"),
        (&[(":status", "200"), ("connection", "close")][..], "connection"),
        (&[(":status", "200"), ("keep-alive", "5")][..], "keep-alive"),
        (&[(":status", "200"), ("upgrade", "foo")][..], "upgrade"),
        (&[("x-a", "1"), (":status", "200")][..], "a pseudo-header field behind another"),
        (&[(":status", "200"), ("x-a", "a\nb")][..], "a LF in a value"),
        (&[(":status", "200"), ("x-a", "a\x00b")][..], "a NUL in a value"),
        (&[(":status", "200"), ("x a", "1")][..], "a space in a name"),
        (&[(":status", "101")][..], "101"),
    ] {
        rows.push(
            Row::new(
                "RFC 9113 §8.1.1",
                format!("a malformed head of a response is a 502: {about}"),
            )
            .ask(ask("POST", &[]))
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(fields, false),
                data("hello", true),
            ])
            .expect(Once(&[]), &[Status(&[502])])
            .alone(),
        );
    }
    rows.push(
        Row::new(
            "RFC 9113 §8.3",
            "a request's pseudo-header field in a response's head is malformed, or left out",
        )
        .ask(ask("POST", &[]))
        .reply_http2_steps(vec![
            Step::AwaitRequest,
            headers(&[(":status", "200"), (":path", "/")], false),
            data("hello", true),
        ])
        .expect(Once(&[]), &[Status(&[502])])
        .or(Once(&[]), &[Status(&[200]), Body("hello"), Lacks(":path")])
        .left_lenient("h2 drops the field, so nobody behind the proxy sees it")
        .alone(),
    );
    rows.push(
        Row::new("RFC 9113 §8.1", "trailers without END_STREAM are malformed")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("hello", false),
                headers(&[("x-t", "1")], false),
            ])
            .expect(Once(&[]), &[Broken]),
    );
    rows.push(
        Row::new("RFC 9113 §8.1", "a pseudo-header field in trailers is malformed, or left out")
            .ask(asked())
            .reply_http2_steps(vec![
                Step::AwaitRequest,
                headers(&[(":status", "200")], false),
                data("hello", false),
                headers(&[(":status", "200"), ("x-t", "1")], true),
            ])
            .expect(Once(&[]), &[Broken])
            .or(Once(&[]), &[Status(&[200]), Body("hello"), NoTrailer(":status")]),
    );
    rows
}

//! Frames of HTTP/2 that a peer must take as they are, and those that end a stream or the connection
//! (RFC 9113 §4 to §6).

use crate::conformance::check::Arrives::{Nothing, Once, Unfinished};
use crate::conformance::check::Check::{Body, Only, Refused, Status};
use crate::conformance::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, encode,
};
use crate::conformance::row::{Row, Way, get};
use crate::conformance::script::{Step, bytes, data, headers, request_headers};

/// The rows; the proxy's own side is the same for every backend, so two ways are enough.
pub fn rows() -> Vec<Row> {
    let over_two = |row: Row| row.over(&[Way::StaticHttp1, Way::MeshHttp2]);
    let own_side = [taken(), refused()].concat().into_iter().map(over_two);
    own_side.chain(from_backends()).collect()
}

/// A frame on the stream at hand.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Step {
    Step::Frame(kind, flags, None, payload.to_vec())
}

/// A frame on this stream.
fn frame_on(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Step {
    Step::Frame(kind, flags, Some(stream), payload.to_vec())
}

fn taken() -> Vec<Row> {
    let post = || request_headers("POST", &[], false);
    let row = |section: &'static str, about: &str, between: Vec<Step>| {
        let mut steps = vec![post()];
        steps.extend(between);
        steps.push(data("hello", true));
        Row::new(section, about)
            .http2(steps)
            .expect(Once(&[Body("hello")]), &[Status(&[200]), Body("ok")])
    };
    vec![
        row(
            "RFC 9113 §4.1",
            "a frame of a type that is not known is ignored",
            vec![frame(0x42, 0xff, b"?")],
        ),
        row("RFC 9113 §4.1", "flags that are not known are ignored", vec![frame(DATA, 0xe0, b"")]),
        row(
            "RFC 9113 §5.3",
            "a PRIORITY frame is ignored",
            vec![frame(PRIORITY, 0, &[0, 0, 0, 0, 7])],
        ),
        row(
            "RFC 9113 §6.5.2",
            "a setting that is not known is ignored",
            vec![frame_on(0, SETTINGS, 0, &[0x0f, 0xff, 0, 0, 0, 1])],
        ),
        row(
            "RFC 9113 §6.7",
            "a PING is answered and disturbs nothing",
            vec![frame_on(0, PING, 0, b"12345678")],
        ),
        row(
            "RFC 9113 §6.9",
            "credit for a stream is taken",
            vec![frame(WINDOW_UPDATE, 0, &[0, 0, 1, 0])],
        ),
        Row::new("RFC 9113 §6.1", "padding of DATA is no content")
            .http2(vec![post(), frame(DATA, PADDED | END_STREAM, b"\x04hello\0\0\0\0")])
            .expect(Once(&[Body("hello")]), &[Status(&[200])]),
        Row::new("RFC 9113 §6.10", "a header section in several CONTINUATION frames is one")
            .http2(vec![Step::Headers(
                [
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":authority", "{host}"),
                    (":path", "{path}"),
                    ("x-row", "{row}"),
                    ("x-last", "1"),
                    ("x-long", &"v".repeat(40_000)),
                ]
                .map(|(name, value)| (name.into(), value.into()))
                .to_vec(),
                true,
            )])
            .expect(Once(&[Only("x-last", "1")]), &[Status(&[200])]),
    ]
}

fn refused() -> Vec<Row> {
    let section = encode(&[(b"x-a".to_vec(), b"1".to_vec())]);
    [
        ("RFC 9113 §6.1", "DATA on stream 0", vec![frame_on(0, DATA, 0, b"x")]),
        ("RFC 9113 §6.1", "DATA before HEADERS", vec![frame(DATA, END_STREAM, b"x")]),
        ("RFC 9113 §6.2", "HEADERS on stream 0", vec![frame_on(0, HEADERS, END_HEADERS, &section)]),
        (
            "RFC 9113 §5.1.1",
            "HEADERS on an even stream",
            vec![frame_on(2, HEADERS, END_HEADERS, &section)],
        ),
        (
            "RFC 9113 §6.4",
            "RST_STREAM on an idle stream",
            vec![frame_on(9, RST_STREAM, 0, &[0; 4])],
        ),
        (
            "RFC 9113 §6.4",
            "RST_STREAM of a wrong length",
            vec![frame_on(9, RST_STREAM, 0, &[0; 3])],
        ),
        ("RFC 9113 §6.5", "SETTINGS of a wrong length", vec![frame_on(0, SETTINGS, 0, &[0; 5])]),
        ("RFC 9113 §6.5", "SETTINGS on a stream", vec![frame_on(1, SETTINGS, 0, &[])]),
        (
            "RFC 9113 §6.5.2",
            "a window beyond 2^31-1",
            vec![frame_on(0, SETTINGS, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])],
        ),
        (
            "RFC 9113 §6.5.2",
            "a frame size below 16384",
            vec![frame_on(0, SETTINGS, 0, &[0, 5, 0, 0, 0, 1])],
        ),
        (
            "RFC 9113 §6.6",
            "PUSH_PROMISE of a client",
            vec![frame(PUSH_PROMISE, END_HEADERS, &[0, 0, 0, 2])],
        ),
        ("RFC 9113 §6.7", "PING of a wrong length", vec![frame_on(0, PING, 0, b"1234567")]),
        (
            "RFC 9113 §6.9",
            "credit of 0 for the connection",
            vec![frame_on(0, WINDOW_UPDATE, 0, &[0; 4])],
        ),
        (
            "RFC 9113 §6.10",
            "CONTINUATION without HEADERS",
            vec![frame(CONTINUATION, END_HEADERS, &section)],
        ),
        (
            "RFC 9113 §6.10",
            "another frame within a header section",
            vec![frame(HEADERS, END_STREAM, &section), frame_on(0, PING, 0, b"12345678")],
        ),
        (
            "RFC 9113 §4.3",
            "a header section that HPACK cannot read",
            vec![frame(HEADERS, END_STREAM | END_HEADERS, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])],
        ),
        (
            "RFC 9113 §4.2",
            "a frame beyond the size that was agreed",
            vec![bytes([&[0x10, 0, 0, DATA, 0, 0, 0, 0, 1][..], &[0; 64]].concat())],
        ),
        ("RFC 9113 §3.4", "a second preface", vec![bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]),
    ]
    .into_iter()
    .map(|(section, about, steps)| {
        Row::new(section, format!("ends the connection: {about}"))
            .http2(steps)
            .expect(Nothing, &[Refused])
    })
    .chain([
        Row::new("RFC 9113 §6.9", "credit of 0 for a stream ends the stream")
            .http2(vec![request_headers("POST", &[], false), frame(WINDOW_UPDATE, 0, &[0; 4])])
            .expect(Unfinished, &[Refused]),
        Row::new(
            "RFC 9113 §5.1",
            "DATA behind the end of a stream ends it, and no second request comes of it",
        )
        .http2(vec![request_headers("POST", &[], true), frame(DATA, END_STREAM, b"more")])
        .expect(Once(&[Body("")]), &[])
        .or(Nothing, &[])
        .or(Unfinished, &[Refused]),
        Row::new("RFC 9113 §6.1", "padding longer than the frame ends the connection")
            .http2(vec![
                request_headers("POST", &[], false),
                frame(DATA, PADDED | END_STREAM, b"\x09hello"),
            ])
            .expect(Unfinished, &[Refused]),
    ])
    .collect()
}

/// What a backend of HTTP/2 may do beside its response.
fn from_backends() -> Vec<Row> {
    let head = || headers(&[(":status", "200")], false);
    [
        ("RFC 9113 §4.1", "a frame of a type that is not known", frame(0x42, 0xff, b"?")),
        ("RFC 9113 §6.7", "a PING", frame_on(0, PING, 0, b"12345678")),
        ("RFC 9113 §6.9", "credit", frame(WINDOW_UPDATE, 0, &[0, 0, 1, 0])),
        (
            "RFC 9113 §6.5.2",
            "a setting that is not known",
            frame_on(0, SETTINGS, 0, &[0x0f, 0xff, 0, 0, 0, 1]),
        ),
    ]
    .into_iter()
    .map(|(section, about, between)| {
        Row::new(
            section,
            format!("between a response's head and its content does no harm: {about}"),
        )
        .ask(get(&[]))
        .reply_http2_steps(vec![Step::AwaitRequest, head(), between, data("hello", true)])
        .expect(Once(&[]), &[Status(&[200]), Body("hello")])
    })
    .collect()
}

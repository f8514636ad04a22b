//! Heads and trailers on their way through.
//!
//! Bytes become a head the way hyper makes one, the head is received and sent on in both versions, and what was sent is
//! looked at as the next hop does: it must mean one thing, hold nothing that ended here, and say the same when it is
//! received again.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    VIA,
};
use http::request::Parts;
use http::uri::{self, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Frame;
use http_body_util::Full;

use crate::interim::{Interim, InterimCaller};
use crate::key::Keys;
use crate::link::Link;
use crate::message::framing::BodyLength;
use crate::message::headers::{self, Found, GRPC_TIMEOUT, HOPS, OUR_PREFIX};
use crate::message::hops::{self, ViaMark};
use crate::message::{self, deadline, target};
use crate::template::Template;

/// A request's head on its way from a caller to both kinds of next hop.
pub fn request_head(bytes: &[u8]) {
    let Some(parts) = parse_request(bytes, FIELDS_MAX) else { return };
    if parts.method == Method::CONNECT {
        return connect(&parts);
    }
    for fixed in [None, Some("pay")] {
        send_on(parts.clone(), fixed);
        if let Some(parts) = as_http2(parts.clone()) {
            send_on(parts, fixed);
        }
    }
}

/// A response's head on its way back, final or interim.
pub fn response_head(bytes: &[u8]) {
    let Some(mut response) = parse_response(bytes, FIELDS_MAX) else { return };
    let asked = response.headers().clone();
    if response.status().is_informational() {
        interim(response.status(), &asked);
    }
    let Ok(found) = message::answered(&mut response) else { return };
    headers::strip(response.headers_mut(), found);
    let came_in = response.version();
    hops::mark(response.headers_mut(), came_in, ViaMark::Mesh);
    let fields = response.headers();
    check_fields(fields);
    check_named(&asked, fields, &[VIA]);
    for name in [TE, CONNECTION, TRANSFER_ENCODING] {
        assert!(!fields.contains_key(&name), "{name} in {fields:?}");
    }
    if response.status() == StatusCode::NO_CONTENT {
        assert!(!fields.contains_key(CONTENT_LENGTH), "a length of nothing in {fields:?}");
    }

    let text = written(&format!("HTTP/1.1 {} ", response.status().as_str()), fields);
    let mut again = parse_response(&text, FIELDS_MAX + 1).expect("what is passed on can be read");
    let found = message::answered(&mut again).expect("and is accepted");
    headers::strip(again.headers_mut(), found);
    assert_eq!(again.status(), response.status());
    assert_eq!(comparable(again.headers()), comparable(fields), "it changes when it passes again");
}

/// The fields behind a body.
pub fn trailers(bytes: &[u8]) {
    let mut lines = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(bytes, &mut lines)
    else {
        return;
    };
    let Some(before) = fields(lines) else { return };
    let mut after = before.clone();
    message::trailers::filter(&mut after);
    check_fields(&after);
    for name in [CONNECTION, TE, TRANSFER_ENCODING, CONTENT_LENGTH, HOST] {
        assert!(!after.contains_key(&name), "{name} behind a body");
    }
    for name in before.keys() {
        let values = |fields: &HeaderMap| Vec::from_iter(fields.get_all(name).iter().cloned());
        let harmless =
            name.as_str().starts_with("x-") && !name.as_str().starts_with("x-forwarded-");
        if harmless || name.as_str() == "grpc-status" || after.contains_key(name) {
            assert_eq!(values(&after), values(&before), "{name}");
        }
    }
    assert!(after.keys().all(|name| before.contains_key(name)), "{after:?} of {before:?}");
    let again = message::trailers::pass(Frame::trailers(after.clone())).into_trailers();
    assert_eq!(again.expect("trailers stay trailers"), after);
}

fn connect(parts: &Parts) {
    let Ok(authority) = target::of_connect(parts) else { return };
    assert!(!authority.as_str().contains('@') && !authority.host().is_empty(), "{authority}");
    assert!(authority.port_u16().is_some_and(|port| port > 0), "{authority}");
}

/// The same request as a caller of HTTP/2 makes it.
fn as_http2(mut parts: Parts) -> Option<Parts> {
    let host = parts.headers.remove(HOST)?;
    let mut uri = uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(host.as_bytes().try_into().ok()?);
    uri.path_and_query = Some(parts.uri.path_and_query()?.clone());
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.version = Version::HTTP_2;
    Some(parts)
}

/// A request as it was received, and all that its attempts are made from.
struct Passing {
    template: Template,
    received: message::ReceivedRequest,
}

fn received(mut parts: Parts, fixed: Option<&str>) -> Option<Passing> {
    let found = headers::find(&parts.headers);
    let received = message::receive(&mut parts, found, fixed).ok()?;
    hops::mark(&mut parts.headers, parts.version, ViaMark::Mesh);
    let template = Template::new(parts, received.clone(), found, Keys::default(), Instant::now());
    Some(Passing { template, received })
}

fn send_on(mut parts: Parts, fixed: Option<&str>) {
    let asked = parts.headers.clone();
    if !message::may_go_on(&mut parts, headers::find(&asked)) {
        return;
    }
    let Some(passing) = received(parts, fixed) else { return };
    let target = &passing.received.target;
    let body = || match passing.received.length {
        BodyLength::Unstated | BodyLength::Known(0) => Full::default(),
        BodyLength::Known(_) | BodyLength::Chunked => Full::new(Bytes::from_static(b"x")),
    };
    for h2 in [false, true] {
        let sent = passing.template.addressed(body(), h2);
        check_sent(&sent, h2);
        check_named(
            &asked,
            sent.headers(),
            &[VIA, TE, CONNECTION, TRANSFER_ENCODING, GRPC_TIMEOUT],
        );
        let named = if h2 {
            sent.uri().authority().map(uri::Authority::as_str)
        } else {
            sent.headers().get(HOST).and_then(|host| host.to_str().ok())
        };
        assert_eq!(named, Some(target.authority.as_str()), "the host that is named");
        if let Some(told) = deadline::grpc_timeout(sent.headers()) {
            let asked = passing.received.grpc_timeout.expect("nobody asked for a timeout");
            assert!(told <= asked.max(std::time::Duration::from_nanos(1)), "{told:?} of {asked:?}");
        }

        let again = if h2 {
            sent.map(|_| ()).into_parts().0
        } else {
            let line = format!("{} {} HTTP/1.1", sent.method(), sent.uri());
            let text = written(&line, sent.headers());
            parse_request(&text, 2 * FIELDS_MAX)
                .unwrap_or_else(|| panic!("cannot be read: {:?}", String::from_utf8_lossy(&text)))
        };
        let (fields, mut uncounted) = (again.headers.clone(), asked.clone());
        uncounted.remove(HOPS);
        let passed =
            if fields.get_all(VIA).iter().count() > 1 { hops::passed(&uncounted).count } else { 0 };
        let again = received(again, None).expect("what is sent is accepted");
        let second = &again.received;
        assert_eq!(&second.target, target, "another target");
        assert_eq!(second.hops.count, passed + 1, "hops");
        assert_eq!(second.over_http2, h2);
        match passing.received.length {
            BodyLength::Chunked if h2 => assert_eq!(second.length, BodyLength::Unstated),
            length => assert_eq!(second.length, length),
        }
        let sent_again = again.template.addressed(body(), h2);
        assert_eq!(comparable(sent_again.headers()), comparable(&fields), "it changes on its way");
    }
}

fn check_sent(sent: &Request<Full<Bytes>>, h2: bool) {
    let fields = sent.headers();
    check_fields(fields);
    let value = |name: HeaderName| fields.get(name).map(HeaderValue::as_bytes);
    assert!(fields.get_all(TE).iter().count() <= 1 && value(TE).is_none_or(|te| te == b"trailers"));
    assert_eq!(sent.version() == Version::HTTP_2, h2);
    if h2 {
        for name in [CONNECTION, TRANSFER_ENCODING, HOST] {
            assert!(!fields.contains_key(&name), "{name} in HTTP/2: {fields:?}");
        }
        return;
    }
    let chunked = fields.get_all(TRANSFER_ENCODING).iter().count();
    assert!(chunked <= 1 && value(TRANSFER_ENCODING).is_none_or(|coding| coding == b"chunked"));
    assert!(chunked == 0 || !fields.contains_key(CONTENT_LENGTH), "two framings: {fields:?}");
    assert_eq!(fields.get_all(HOST).iter().count(), 1, "{fields:?}");
    let named = fields.get_all(CONNECTION).iter().count();
    assert!(named <= 1 && value(CONNECTION).is_none_or(|option| option == b"te"));
    assert_eq!(named == 1, fields.contains_key(TE), "{fields:?}");
}

/// What holds for every head and all trailers, whoever gets them.
fn check_fields(fields: &HeaderMap) {
    for (name, value) in fields {
        let unreadable = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        assert!(!value.as_bytes().iter().any(unreadable), "{name}: {value:?}");
        let name = name.as_str();
        assert!(!name.starts_with(OUR_PREFIX) && !ENDS_HERE.contains(&name), "{name} went on");
    }
    let lengths: Vec<_> = fields.get_all(CONTENT_LENGTH).iter().collect();
    assert!(lengths.len() <= 1, "{lengths:?}");
    for length in lengths {
        let digits = length.as_bytes();
        assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit), "{length:?}");
    }
}

/// What `Connection` named did not go on, but what frames, routes or is made anew (`ours`) may be there.
fn check_named(asked: &HeaderMap, sent: &HeaderMap, ours: &[HeaderName]) {
    let lines = asked.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    let options = lines.flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    for name in options.filter_map(|option| HeaderName::from_bytes(option).ok()) {
        if name != HOST && name != CONTENT_LENGTH && !ours.contains(&name) {
            assert!(!sent.contains_key(&name), "{name} went on, which its connection named");
        }
    }
}

/// An interim response as it is written to a caller of HTTP/1.1, in pieces.
fn interim(status: StatusCode, asked: &HeaderMap) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let link = Rc::new(Link::new(address, address, Instant::now()));
    link.request_begins(Found::default());
    Interim::new(InterimCaller::Http1(Rc::clone(&link)), false).pass(status, asked);
    let (mut text, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
    let written = link.poll_interim(&mut cx, |_, bytes| {
        let piece = &bytes[..bytes.len().min(7)];
        text.extend_from_slice(piece);
        Poll::Ready(Ok(piece.len()))
    });
    assert!(written.is_ready() && link.poll_interim_written(&cx).is_ready());
    if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
        return assert!(text.is_empty(), "{status} is not for the caller");
    }
    let passed = parse_response(&text, FIELDS_MAX).expect("an interim response that can be read");
    assert_eq!(passed.status(), status);
    check_fields(passed.headers());
    check_named(asked, passed.headers(), &[]);
    assert!(!passed.headers().contains_key(CONTENT_LENGTH), "RFC 9110 §8.6: no length in 1xx");
}

/// Without what differs by design between one passage and the next; values as a reader trims them.
fn comparable(fields: &HeaderMap) -> HeaderMap {
    let kept = fields.iter().filter(|(name, _)| **name != VIA && **name != GRPC_TIMEOUT);
    kept.map(|(name, value)| {
        let value = HeaderValue::from_bytes(value.as_bytes().trim_ascii());
        (name.clone(), value.expect("a part of a value is one"))
    })
    .collect()
}

fn written(line: &str, fields: &HeaderMap) -> Vec<u8> {
    let mut text = line.as_bytes().to_vec();
    for (name, value) in fields {
        text.extend_from_slice(
            &[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()].concat(),
        );
    }
    text.extend_from_slice(b"\r\n\r\n");
    text
}

fn parse_request(bytes: &[u8], max: usize) -> Option<Parts> {
    let mut lines = vec![httparse::EMPTY_HEADER; max];
    let mut head = httparse::Request::new(&mut lines);
    head.parse(bytes).ok()?.is_complete().then_some(())?;
    let request =
        Request::builder().method(head.method?).uri(head.path?).version(version(head.version?));
    let (mut parts, ()) = request.body(()).ok()?.into_parts();
    parts.headers = fields(head.headers)?;
    Some(parts)
}

fn parse_response(bytes: &[u8], max: usize) -> Option<Response<()>> {
    let mut lines = vec![httparse::EMPTY_HEADER; max];
    let mut head = httparse::Response::new(&mut lines);
    head.parse(bytes).ok()?.is_complete().then_some(())?;
    let response = Response::builder().status(head.code?).version(version(head.version?));
    let mut response = response.body(()).ok()?;
    *response.headers_mut() = fields(head.headers)?;
    Some(response)
}

fn fields(lines: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let field = |line: &httparse::Header<'_>| {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(line.value).ok()?))
    };
    lines.iter().map(field).collect()
}

fn version(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Fields of a head that is made up here.
const FIELDS_MAX: usize = 100;
/// Hop-by-hop fields that are never sent anew, as RFC 9110 §7.6.1 and §10.1.1 name them.
const ENDS_HERE: [&str; 6] = [
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "proxy-authenticate",
    "proxy-authorization",
    "expect",
];

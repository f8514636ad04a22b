//! Which fields may follow a body.
//!
//! A trailer comes when the message has long been framed, routed and authorised. One that would have taken part in that
//! is left out (RFC 9110 §6.5.1): a next hop that merges trailers into the head would decide anew. HTTP/2 has a second
//! reason: a connection-specific field there makes the message malformed, and its stream never ends well.
//! Everything else passes: applications' own, `grpc-status`, digests.

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::headers::OUR_PREFIX;

/// A frame of a body as it may go on.
pub fn pass(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            filter(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    }
}

/// Leaves out what may not follow a body.
pub fn filter(trailers: &mut HeaderMap) {
    if trailers.keys().all(|name| may_follow(name.as_str())) {
        return;
    }
    let passing = std::mem::take(trailers).into_iter().scan(None, |last, (name, value)| {
        // Of a field's further lines the map gives no name.
        *last = name.or_else(|| last.take());
        Some((last.clone(), value))
    });
    *trailers = passing
        .filter_map(|(name, value)| Some((name.filter(|name| may_follow(name.as_str()))?, value)))
        .fold(HeaderMap::new(), |mut kept, (name, value)| {
            kept.append(name, value);
            kept
        });
}

/// Whether a field, its name in lower case, may come after the body.
fn may_follow(name: &str) -> bool {
    let framed = name.starts_with("content-") && name != "content-digest";
    let routed = name.starts_with("x-forwarded-");
    !(framed || routed || name.starts_with(OUR_PREFIX) || FORBIDDEN.contains(&name))
}

/// By what they do: frame, belong to a connection, route, condition, authenticate, control a response.
const FORBIDDEN: [&str; 35] = [
    "transfer-encoding",
    "trailer",
    "te",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "host",
    "forwarded",
    "via",
    "max-forwards",
    "expect",
    "range",
    "grpc-timeout",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
    "authorization",
    "www-authenticate",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "cookie",
    "set-cookie",
    "age",
    "cache-control",
    "pragma",
    "expires",
    "date",
    "location",
    "retry-after",
    "vary",
    "proxy-status",
];

#[cfg(test)]
mod tests {
    use super::super::headers::tests::map;
    use super::*;

    #[test]
    fn what_frames_routes_or_speaks_for_a_host_does_not_follow_a_body() {
        for name in [
            "content-length",
            "content-type",
            "content-encoding",
            "transfer-encoding",
            "trailer",
            "te",
            "host",
            "connection",
            "keep-alive",
            "upgrade",
            "authorization",
            "set-cookie",
            "evenkeel-timeout",
            "evenkeel-failed",
            "max-forwards",
            "x-forwarded-for",
        ] {
            let mut trailers = map(&[("x-sum", "1"), (name, "x"), (name, "y"), ("x-sum", "2")]);
            filter(&mut trailers);
            assert_eq!(trailers, map(&[("x-sum", "1"), ("x-sum", "2")]), "{name}");
        }
    }

    #[test]
    fn what_sums_a_body_up_does() {
        let fields = [
            ("grpc-status", "0"),
            ("grpc-message", "fine"),
            ("content-digest", "sha-256=:x:"),
            ("etag", "\"7\""),
            ("server-timing", "db;dur=5"),
            ("authentication-info", "nextnonce=x"),
            ("x-checksum", "7"),
            ("evenkeelish", "1"),
        ];
        let mut trailers = map(&fields);
        filter(&mut trailers);
        assert_eq!(trailers, map(&fields));
    }

    #[test]
    fn data_passes_as_it_is_and_trailers_may_come_to_nothing() {
        let data = pass(Frame::data(Bytes::from_static(b"hello")));
        assert_eq!(data.into_data().unwrap(), "hello");
        let trailers = pass(Frame::trailers(map(&[("connection", "x")])));
        assert!(trailers.into_trailers().unwrap().is_empty());
    }
}

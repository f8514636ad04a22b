//! What a proxy does to a message's headers on the way through.
//!
//! Hop-by-hop fields end here (RFC 9110 §7.6.1), so do the names of ours that only hosts of the mesh may
//! send; everything else passes untouched and in order. One pass ([`find`]) tells whether there is anything to do.

use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, TE, TRANSFER_ENCODING, UPGRADE,
};

/// The remaining time of a request, milliseconds.
pub const TIMEOUT: HeaderName = HeaderName::from_static("evenkeel-timeout");
/// The service that a request on the mesh hop is for.
pub const SERVICE: HeaderName = HeaderName::from_static("evenkeel-service");
/// The instance that a request on the mesh hop is for.
pub const INSTANCE: HeaderName = HeaderName::from_static("evenkeel-instance");
/// On the mesh hop's response: the application never saw the request; the value says why.
pub const REFUSED: HeaderName = HeaderName::from_static("evenkeel-refused");
/// On the mesh hop's response: the receiving host failed after the application may have seen the request.
pub const FAILED: HeaderName = HeaderName::from_static("evenkeel-failed");
/// On the mesh hop's response: a limit of the receiving host refused the request. It is the answer, and says nothing about the instance.
pub const LIMITED: HeaderName = HeaderName::from_static("evenkeel-limited");
/// Asks how a request went; on its response, the answer.
pub const DEBUG: HeaderName = HeaderName::from_static("evenkeel-debug");
/// gRPC's own remaining time.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const OUR_PREFIX: &str = "evenkeel-";
/// More connection options than this in one message are an attack, not a message.
const CONNECTION_OPTIONS_MAX: usize = 32;

/// What a message's headers hold that somebody must look at, found in one pass: a look-up that finds nothing
/// costs a hash each, and the common message has none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// `connection: keep-alive` or `close`, which name no other field.
    pub connection: bool,
    /// Anything else that ends at this hop: hop-by-hop fields, `expect`, or a header of ours.
    pub ends_here: bool,
    /// `transfer-encoding`.
    pub chunked: bool,
    /// `content-type: application/grpc…`.
    pub grpc: bool,
    /// `evenkeel-timeout` or `grpc-timeout`.
    pub timeout: bool,
    /// `x-request-id`.
    pub request_id: bool,
    /// `cookie` more than once, as HTTP/2 may split it.
    pub split_cookie: bool,
    /// `retry-after`, `grpc-status` or `grpc-retry-pushback-ms`.
    pub verdict: bool,
    /// `evenkeel-refused` or `evenkeel-failed`.
    pub peers_failure: bool,
    /// `evenkeel-limited`.
    pub limited: bool,
    /// `evenkeel-debug`: the caller wants to know how its request went.
    pub debug: bool,
}

/// Looks at every header once.
pub fn find(headers: &HeaderMap) -> Found {
    let mut found = Found::default();
    let mut cookie = false;
    for (name, value) in headers {
        match *name {
            CONTENT_TYPE => found.grpc = value.as_bytes().starts_with(b"application/grpc"),
            TRANSFER_ENCODING => (found.chunked, found.ends_here) = (true, true),
            CONNECTION if is_plain(value) => found.connection = true,
            CONNECTION | UPGRADE | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION | TE | EXPECT => {
                found.ends_here = true;
            }
            COOKIE => found.split_cookie |= std::mem::replace(&mut cookie, true),
            RETRY_AFTER => found.verdict = true,
            _ => match name.as_str() {
                "keep-alive" | "proxy-connection" => found.ends_here = true,
                "grpc-timeout" => found.timeout = true,
                "grpc-status" | "grpc-retry-pushback-ms" => found.verdict = true,
                "x-request-id" => found.request_id = true,
                name if name.starts_with(OUR_PREFIX) => {
                    found.ends_here = true;
                    found.timeout |= name == TIMEOUT.as_str();
                    found.peers_failure |= name == REFUSED.as_str() || name == FAILED.as_str();
                    found.limited |= name == LIMITED.as_str();
                    found.debug |= name == DEBUG.as_str();
                }
                _ => {}
            },
        }
    }
    found
}

fn is_plain(connection: &HeaderValue) -> bool {
    let value = connection.as_bytes();
    value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
}

/// Removes what ends at this hop: what belongs to the sender's connection and not to the message, the
/// expectation that hyper answers itself, and every header of ours, since an application must not speak for a host.
pub fn strip(headers: &mut HeaderMap, found: Found) {
    if found.split_cookie {
        join_cookies(headers);
    }
    if !found.ends_here {
        // The usual case by far: nothing, or one field to remove.
        if found.connection {
            headers.remove(CONNECTION);
        }
        return;
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|option| option.trim().parse().ok())
            .filter(|name| !matches!(*name, HOST | TE))
            .take(CONNECTION_OPTIONS_MAX)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    let ends = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        EXPECT,
    ];
    for name in ends {
        headers.remove(name);
    }
    // `te: trailers` is end to end for gRPC; every other transfer coding is ours to negotiate.
    if headers.get(TE).is_some_and(|te| te.as_bytes() != b"trailers") {
        headers.remove(TE);
    }
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OUR_PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// One `cookie` field, as HTTP/1.1 wants it (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// The time the caller gives us, from `evenkeel-timeout` (milliseconds) and `grpc-timeout`; the shorter counts.
///
/// Values that cannot be read are ignored: a caller's mistake must not lengthen or end its request.
pub fn callers_timeout(headers: &HeaderMap) -> Option<Duration> {
    let ours = headers
        .get(TIMEOUT)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_millis);
    match (ours, grpc_timeout(headers)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// gRPC's `grpc-timeout`: at most eight digits and a unit.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// A duration as `evenkeel-timeout`: whole milliseconds, rounded up so that time left is never written as none.
pub fn timeout_value(left: Duration) -> HeaderValue {
    let ms = left.as_micros().div_ceil(1000);
    HeaderValue::from(u64::try_from(ms).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (k.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret, host"),
            ("keep-alive", "5"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("host", "a"),
            ("x-kept", "1"),
        ]);
        let found = find(&headers);
        strip(&mut headers, found);
        assert_eq!(headers, map(&[("host", "a"), ("x-kept", "1")]));
    }

    #[test]
    fn te_trailers_stays_for_grpc() {
        let mut headers = map(&[("te", "trailers"), ("connection", "te")]);
        let found = find(&headers);
        strip(&mut headers, found);
        assert_eq!(headers, map(&[("te", "trailers")]));
    }

    #[test]
    fn an_application_cannot_speak_for_a_host() {
        let mut headers =
            map(&[("evenkeel-service", "x"), ("evenkeel-refused", "y"), ("evenkeelish", "z")]);
        let found = find(&headers);
        strip(&mut headers, found);
        assert_eq!(headers, map(&[("evenkeelish", "z")]));
    }

    #[test]
    fn timeouts_are_read_and_the_shorter_counts() {
        let read = |pairs: &[(&str, &str)]| callers_timeout(&map(pairs));
        assert_eq!(read(&[("evenkeel-timeout", "250")]), Some(Duration::from_millis(250)));
        assert_eq!(read(&[("grpc-timeout", "2S")]), Some(Duration::from_secs(2)));
        assert_eq!(
            read(&[("grpc-timeout", "100m"), ("evenkeel-timeout", "7")]),
            Some(Duration::from_millis(7))
        );
        for bad in ["", "S", "123456789S", "1x", "-1S", "1\u{e9}"] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            assert_eq!(callers_timeout(&headers), None, "{bad:?}");
        }
        assert_eq!(read(&[("evenkeel-timeout", "soon")]), None);
    }

    #[test]
    fn a_split_cookie_is_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]);
        let found = find(&headers);
        strip(&mut headers, found);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn one_pass_finds_what_matters() {
        assert_eq!(
            find(&map(&[("host", "a"), ("accept", "*/*"), ("x-any", "1")])),
            Found::default()
        );
        let found =
            find(&map(&[("content-type", "application/grpc+proto"), ("grpc-timeout", "1S")]));
        assert_eq!(found, Found { grpc: true, timeout: true, ..Found::default() });
        let found = find(&map(&[("evenkeel-failed", "reset"), ("retry-after", "1")]));
        assert!(found.peers_failure && found.verdict && found.ends_here);
        for ends in [
            "connection",
            "keep-alive",
            "te",
            "expect",
            "upgrade",
            "proxy-connection",
            "evenkeel-x",
        ] {
            assert!(find(&map(&[(ends, "x")])).ends_here, "{ends}");
        }
        let plain = find(&map(&[("connection", "Keep-Alive")]));
        assert_eq!(plain, Found { connection: true, ..Found::default() });
    }

    #[test]
    fn time_left_rounds_up() {
        assert_eq!(timeout_value(Duration::from_micros(1)), "1");
        assert_eq!(timeout_value(Duration::from_millis(20)), "20");
    }
}

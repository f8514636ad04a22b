//! What a proxy does to a message's headers on the way through.
//!
//! Hop-by-hop fields end here (RFC 9110 §7.6.1), so do the names of ours that only hosts of the mesh may
//! send; everything else passes untouched and in order. The common request has no `Connection` header at all:
//! each removal is one failed look-up then, no allocation.

use std::time::Duration;

use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
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
/// gRPC's own remaining time.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const OUR_PREFIX: &str = "evenkeel-";
/// More connection options than this in one message are an attack, not a message.
const CONNECTION_OPTIONS_MAX: usize = 32;

/// Removes what belongs to the caller's connection and not to the message.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
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
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    // `te: trailers` is end to end for gRPC; every other transfer coding is ours to negotiate.
    if headers.get(TE).is_some_and(|te| te.as_bytes() != b"trailers") {
        headers.remove(TE);
    }
}

/// Removes every header of ours: an application may send `evenkeel-timeout`, which is read before this.
pub fn strip_ours(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(OUR_PREFIX)) {
        let ours: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(OUR_PREFIX)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
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

/// Whether the message is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
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
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("x-kept", "1")]));
    }

    #[test]
    fn te_trailers_stays_for_grpc() {
        let mut headers = map(&[("te", "trailers"), ("connection", "te")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers")]));
    }

    #[test]
    fn an_application_cannot_speak_for_a_host() {
        let mut headers =
            map(&[("evenkeel-service", "x"), ("evenkeel-refused", "y"), ("evenkeelish", "z")]);
        strip_ours(&mut headers);
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
    fn time_left_rounds_up() {
        assert_eq!(timeout_value(Duration::from_micros(1)), "1");
        assert_eq!(timeout_value(Duration::from_millis(20)), "20");
    }
}

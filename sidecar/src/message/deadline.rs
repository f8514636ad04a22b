//! The time that a caller gives a request, and how the next hop is told what is left of it.
//!
//! `evenkeel-timeout` bounds the wait for a response's head, as `policy.timeout` does; `grpc-timeout` the whole call, so it is
//! counted down from what the caller wrote and never from the policy: that would end streams.

use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

use super::headers::{GRPC_TIMEOUT, TIMEOUT};

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

/// A duration as `grpc-timeout`: in the finest unit that eight digits hold, rounded down so that it is never longer, but
/// never none, which gRPC does not know.
pub fn grpc_timeout_value(left: Duration) -> HeaderValue {
    let seconds = u128::from(left.as_secs());
    let units = [
        (left.as_nanos(), 'n'),
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (seconds, 'S'),
        (seconds / 60, 'M'),
    ];
    let fits = units.into_iter().find(|(n, _)| *n <= GRPC_DIGITS_MAX);
    let (n, unit) = fits.unwrap_or(((seconds / 3600).min(GRPC_DIGITS_MAX), 'H'));
    HeaderValue::from_str(&format!("{}{unit}", n.max(1))).expect("digits and a letter")
}

/// The largest number of eight digits.
const GRPC_DIGITS_MAX: u128 = 99_999_999;

#[cfg(test)]
mod tests {
    use super::super::headers::tests::map;
    use super::*;

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

    #[test]
    fn what_grpc_is_told_is_never_longer_than_what_is_left() {
        for (left, written) in [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(7), "7n"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_micros(100_000_999), "100000m"),
            (Duration::from_secs(2), "2000000u"),
            (Duration::from_hours(27), "97200000m"),
            (Duration::from_hours(28), "100800S"),
            (Duration::from_secs(99_999_999 * 60), "99999999M"),
            (Duration::from_secs(99_999_999 * 3600), "99999999H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(grpc_timeout_value(left), written, "{left:?}");
            let read = grpc_timeout(&map(&[("grpc-timeout", written)])).unwrap();
            assert!(read <= left.max(Duration::from_nanos(1)), "{left:?}");
        }
    }
}

//! Where a message's body ends, and what the next hop is told of it.
//!
//! [`settle`] reads `Transfer-Encoding` and `Content-Length` together and leaves a head in which at most one
//! length stands: what a message's sender, this proxy and the next hop each take for its end is then the same. A head that
//! could be read in two ways is refused, never mended: a hop that mends it in another way is how requests are smuggled.
//! The coding itself never passes; a next hop of HTTP/1.1 gets `chunked` anew where no length is known.
//!
//! hyper decodes a body before it is asked for here, by the same rules but more leniently: its server and its client take any
//! list that ends in `chunked` for chunked, and leave the other codings on the bytes.
//!
//! Sources: RFC 9112 §6, RFC 9110 §8.6, RFC 9113 §8.1.1.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};

use super::MessageError;
use super::headers::Found;

/// How the length of a message's body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// Neither length nor coding: the version's own rule says whether there is a body and where it ends.
    Unstated,
    /// `Transfer-Encoding: chunked`: known at its end.
    Chunked,
    /// `Content-Length`, in bytes.
    Known(u64),
}

/// What the lines of `Content-Length` say, as one pass over a head sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StatedLength {
    /// There is none.
    #[default]
    None,
    /// One line of digits.
    Once(u64),
    /// Anything else: several lines, a list, no number.
    Unclear,
}

impl StatedLength {
    /// One more line was seen.
    pub fn line(&mut self, value: &HeaderValue) {
        *self = match (*self, number(value.as_bytes())) {
            (StatedLength::None, Some(length)) => StatedLength::Once(length),
            _ => StatedLength::Unclear,
        };
    }
}

/// Reads how long the body is, and leaves at most one `Content-Length` and no `Transfer-Encoding`.
///
/// # Errors
/// The two fields do not say one thing, or name a coding other than `chunked`.
pub fn settle(headers: &mut HeaderMap, found: Found) -> Result<BodyLength, MessageError> {
    if found.coded {
        chunked_once(headers)?;
        headers.remove(TRANSFER_ENCODING);
        if found.length != StatedLength::None {
            // RFC 9112 §6.3: the coding overrides the length, which must not travel on.
            headers.remove(CONTENT_LENGTH);
        }
        return Ok(BodyLength::Chunked);
    }
    match found.length {
        StatedLength::None => Ok(BodyLength::Unstated),
        StatedLength::Once(length) => Ok(BodyLength::Known(length)),
        StatedLength::Unclear => {
            let length = merged(headers).ok_or(MessageError::Malformed(
                "Content-Length is not one number: send it once, in digits, as long as the body is",
            ))?;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            Ok(BodyLength::Known(length))
        }
    }
}

/// Whether a response never has a body, whatever its head says (RFC 9112 §6.3).
pub fn has_no_body(asked: &Method, status: StatusCode) -> bool {
    *asked == Method::HEAD || status == StatusCode::NOT_MODIFIED || has_no_length(status)
}

/// Whether a response may not even name a length (RFC 9110 §8.6); HEAD and 304 name that of what they stand for.
pub fn has_no_length(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status.is_informational()
}

/// What `Transfer-Encoding` says to the next hop of HTTP/1.1: set for every body whose length is not known, also that of a
/// GET, which hyper's client would take for none.
pub const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// The one coding that there may be is `chunked`, once.
fn chunked_once(headers: &HeaderMap) -> Result<(), MessageError> {
    let codings = || {
        let lines = headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
        lines.flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    };
    if codings().any(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        return Err(MessageError::NotImplemented(
            "Transfer-Encoding names a coding other than chunked: send the body with chunked alone, or with a Content-Length",
        ));
    }
    if codings().count() != 1 {
        return Err(MessageError::Malformed("Transfer-Encoding names chunked more than once"));
    }
    Ok(())
}

/// The number that all lines, and all members of lists in them, agree on.
fn merged(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let mut numbers = lines.flat_map(|line| line.split(|&byte| byte == b','));
    let length = number(numbers.next()?.trim_ascii())?;
    numbers.all(|other| number(other.trim_ascii()) == Some(length)).then_some(length)
}

/// Digits alone: no sign, no space, nothing past what a length can be.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::headers::{find, tests::map};
    use super::*;

    fn read(fields: &[(&str, &str)]) -> (Result<BodyLength, u16>, HeaderMap) {
        let mut headers = map(fields);
        let found = find(&headers);
        let length = settle(&mut headers, found).map_err(|error| match error {
            MessageError::Malformed(_) => 400,
            MessageError::NotImplemented(_) => 501,
        });
        (length, headers)
    }

    #[test]
    fn a_body_has_one_length_or_is_chunked() {
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        for (fields, expected, left) in [
            (&[][..], BodyLength::Unstated, None),
            (&[(CL, "5")], BodyLength::Known(5), Some("5")),
            (&[(CL, "0")], BodyLength::Known(0), Some("0")),
            (&[(CL, "5"), (CL, "5")], BodyLength::Known(5), Some("5")),
            (&[(CL, "5, 5,5")], BodyLength::Known(5), Some("5")),
            (&[(CL, "05"), (CL, "5")], BodyLength::Known(5), Some("5")),
            (&[(TE, "chunked")], BodyLength::Chunked, None),
            (&[(TE, " Chunked\t")], BodyLength::Chunked, None),
            (&[(TE, "chunked"), (CL, "5")], BodyLength::Chunked, None),
            (&[(CL, "5"), (CL, "6"), (TE, "chunked")], BodyLength::Chunked, None),
        ] {
            let (length, headers) = read(fields);
            assert_eq!(length, Ok(expected), "{fields:?}");
            let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
            assert_eq!(lengths, Vec::from_iter(left), "{fields:?}");
            assert!(!headers.contains_key(TRANSFER_ENCODING), "{fields:?}");
        }
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_refused() {
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        for (fields, status) in [
            (&[(TE, "gzip, chunked")][..], 501),
            (&[(TE, "gzip"), (TE, "chunked")], 501),
            (&[(TE, "identity")], 501),
            (&[(TE, "identity, chunked")], 501),
            (&[(TE, "chunked;q=1")], 501),
            (&[(TE, "")], 501),
            (&[(TE, "chunked,")], 501),
            (&[(TE, "chunked, chunked")], 400),
            (&[(TE, "chunked"), (TE, "chunked")], 400),
            (&[(CL, "5"), (CL, "6")], 400),
            (&[(CL, "5, 6")], 400),
            (&[(CL, "5,")], 400),
            (&[(CL, "")], 400),
            (&[(CL, "+5")], 400),
            (&[(CL, "-5")], 400),
            (&[(CL, "5 5")], 400),
            (&[(CL, "0x5")], 400),
            (&[(CL, "18446744073709551616")], 400),
        ] {
            assert_eq!(read(fields).0, Err(status), "{fields:?}");
        }
    }

    #[test]
    fn responses_without_a_body_are_known_by_method_and_status() {
        for (method, status, no_body, no_length) in [
            (Method::GET, 200, false, false),
            (Method::HEAD, 200, true, false),
            (Method::GET, 204, true, true),
            (Method::GET, 205, false, false),
            (Method::GET, 304, true, false),
            (Method::POST, 103, true, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(has_no_body(&method, status), no_body, "{method} {status}");
            assert_eq!(has_no_length(status), no_length, "{status}");
        }
    }
}

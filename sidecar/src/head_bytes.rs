//! What the head of a request of HTTP/1.1 said before hyper had it.
//!
//! RFC 9112 §6.1: a request with both a length and chunked coding may be an attempt at smuggling, and its connection is
//! to be closed after the response. hyper takes it as chunked and removes the length without a word, so the bytes are
//! looked at beside it. Heads may come together with bodies and with one another, in pieces cut anywhere, so what lies
//! between them is followed to its end: by its length, or chunk by chunk ([`ChunkedEnd`]). That nothing is in flight
//! says nothing about it: a response may come before its request's body has ended, and the next head before the response.
//!
//! Where heads and chunks end is read as hyper reads it, empty lines before a request and bare line feeds included.
//! Of what hyper refuses nothing follows, so nothing need be known.

use crate::message::framing::BodyLength;
use crate::pool::HEAD_MAX;

/// The bytes of a connection that no request has been made of yet.
#[derive(Debug, Default)]
pub struct HeadBytes {
    kept: Vec<u8>,
    /// What is still to come of the body before them.
    body: PendingBody,
    /// Where the next head begins is not known, and will not be.
    lost: bool,
}

#[derive(Debug, Default)]
enum PendingBody {
    #[default]
    None,
    Known(u64),
    Chunked(ChunkedEnd),
}

impl HeadBytes {
    /// Bytes came.
    pub fn read(&mut self, bytes: &[u8]) {
        let bytes = &bytes[self.body.pass(bytes)..];
        if self.lost || bytes.is_empty() {
            return;
        }
        if self.kept.len() + bytes.len() > KEPT_MAX {
            self.lose();
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }

    /// A request was made of the head, and its body is this long, if that is known. Whether the head may have had a
    /// length: where it is not known, it may.
    pub fn request_begins(&mut self, body: Option<BodyLength>) -> bool {
        let (Some(end), Some(body), false) = (head_end(&self.kept), body, self.lost) else {
            self.lose();
            return true;
        };
        let had_length = has_length(&self.kept[..end]);
        self.body = match body {
            BodyLength::Unstated => PendingBody::None,
            BodyLength::Known(length) => PendingBody::Known(length),
            BodyLength::Chunked => PendingBody::Chunked(ChunkedEnd::default()),
        };
        let passed = self.body.pass(&self.kept[end..]);
        self.kept.drain(..end + passed);
        had_length
    }

    /// Whether some of a head has come, or, where heads are not told from bodies any more, may have.
    pub fn has_begun(&self) -> bool {
        self.lost || self.kept.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// Whether the size of a chunk has more digits than one needs: zeros, which are read byte by byte and never end.
    pub fn has_padded_size(&self) -> bool {
        matches!(&self.body, PendingBody::Chunked(chunked) if chunked.digits > SIZE_DIGITS_MAX)
    }

    /// Whether the body of the last request has not come to its end, or, where that is not known, may not have.
    pub fn body_is_due(&self) -> bool {
        self.lost || !matches!(self.body, PendingBody::None)
    }

    fn lose(&mut self) {
        *self = HeadBytes { lost: true, ..HeadBytes::default() };
    }
}

impl PendingBody {
    /// How many of the bytes belong to it.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        match self {
            PendingBody::None => 0,
            PendingBody::Known(left) => {
                let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                if *left == 0 {
                    *self = PendingBody::None;
                }
                here
            }
            PendingBody::Chunked(chunked) => {
                let (passed, ended) = chunked.pass(bytes);
                if ended {
                    *self = PendingBody::None;
                }
                passed
            }
        }
    }
}

/// Finds where a chunked body ends (RFC 9112 §7.1); whether it is one is hyper's to say.
#[derive(Debug, Default)]
struct ChunkedEnd {
    part: ChunkedPart,
    size: u64,
    /// Digits of a size so far.
    digits: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ChunkedPart {
    /// The digits of a chunk's size.
    #[default]
    Size,
    /// What follows them on their line.
    Extension,
    Data,
    /// The line end behind the data.
    DataEnd,
    /// The beginning of a line behind the last chunk.
    TrailerStart,
    Trailer,
    TrailerFeed,
    /// The line feed of an empty line, with which the body ends.
    LastFeed,
}

impl ChunkedEnd {
    /// How many of the bytes belong to the body, and whether it ends with them.
    fn pass(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.part == ChunkedPart::Data {
                let here = (bytes.len() - at).min(usize::try_from(self.size).unwrap_or(usize::MAX));
                self.size -= here as u64;
                at += here;
                if self.size == 0 {
                    self.part = ChunkedPart::DataEnd;
                }
                continue;
            }
            at += 1;
            self.part = match (self.part, byte) {
                (ChunkedPart::LastFeed, _) => return (at, true),
                (ChunkedPart::Size | ChunkedPart::Extension, b'\n') if self.size > 0 => {
                    ChunkedPart::Data
                }
                (ChunkedPart::Size | ChunkedPart::Extension, b'\n') => ChunkedPart::TrailerStart,
                (ChunkedPart::Size, digit) => match char::from(digit).to_digit(16) {
                    Some(digit) => {
                        self.digits += 1;
                        if self.digits > SIZE_DIGITS_MAX {
                            return (bytes.len(), false);
                        }
                        self.size = self.size.saturating_mul(16).saturating_add(u64::from(digit));
                        ChunkedPart::Size
                    }
                    None => ChunkedPart::Extension,
                },
                (ChunkedPart::DataEnd, b'\n') => {
                    self.digits = 0;
                    ChunkedPart::Size
                }
                (ChunkedPart::TrailerStart, b'\r') => ChunkedPart::LastFeed,
                (ChunkedPart::TrailerStart, _) => ChunkedPart::Trailer,
                (ChunkedPart::Trailer, b'\r') => ChunkedPart::TrailerFeed,
                (ChunkedPart::TrailerFeed, _) => ChunkedPart::TrailerStart,
                (part, _) => part,
            };
        }
        (at, false)
    }
}

/// Behind the empty line that ends the first head; empty lines before it are none of its own (RFC 9112 §2.2).
fn head_end(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let mut lines = memchr::memchr_iter(b'\n', &bytes[start..]).map(|feed| start + feed + 1);
    lines.find_map(|line| match &bytes[line..] {
        [b'\n', ..] => Some(line + 1),
        [b'\r', b'\n', ..] => Some(line + 2),
        _ => None,
    })
}

/// Whether one of the lines behind the first is a length.
fn has_length(head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length:";
    memchr::memchr_iter(b'\n', head).any(|feed| {
        let line = &head[feed + 1..];
        line.get(..NAME.len()).is_some_and(|start| start.eq_ignore_ascii_case(NAME))
    })
}

/// Digits of a chunk's size: four times as many as a number of 64 bits has.
const SIZE_DIGITS_MAX: u32 = 64;
/// Some heads that came together.
const KEPT_MAX: usize = 2 * HEAD_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    const BOTH: &[u8] =
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n";
    const KNOWN: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n";

    const CODED: Option<BodyLength> = Some(BodyLength::Chunked);
    const NO_BODY: Option<BodyLength> = Some(BodyLength::Unstated);

    #[test]
    fn a_length_counts_in_the_head_that_it_stands_in() {
        let mut bytes = HeadBytes::default();
        bytes.read(CHUNKED);
        bytes.read(b"15\r\ncontent-length: 5\r\n\r\n\r\n0\r\n\r\n");
        assert!(!bytes.request_begins(CODED), "what its body says is no field");
        bytes.read(BOTH);
        assert!(bytes.request_begins(CODED));
        bytes.read(b"0\r\n\r\nGET / HTTP/1.1\r\ncontent-lengthy: 5\r\n\r\n");
        assert!(!bytes.request_begins(NO_BODY));
    }

    #[test]
    fn requests_that_come_together_are_told_apart_by_their_bodies() {
        let mut bytes = HeadBytes::default();
        let body = [b'x'; 40];
        bytes.read(&[b"GET / HTTP/1.1\r\n\r\n", KNOWN, &body[..30]].concat());
        assert!(!bytes.request_begins(NO_BODY));
        assert!(bytes.request_begins(Some(BodyLength::Known(40))) && bytes.body_is_due());
        bytes.read(&body[..10]);
        assert!(!bytes.body_is_due(), "all of it has come");
        bytes.read(CHUNKED);
        assert!(!bytes.request_begins(CODED));
        let chunks = b"3;x=\"\r\nabc\r\nA \r\n0123456789\r\n00\r\nx-sum: 1\r\nx: a\n\r\n\r\n";
        let all = [chunks, BOTH, b"0\r\n\r\n", CHUNKED].concat();
        for byte in all {
            bytes.read(&[byte]);
        }
        assert!(bytes.request_begins(CODED));
        assert!(!bytes.request_begins(CODED));
    }

    #[test]
    fn a_head_that_began_behind_a_body_is_known_from_its_beginning() {
        let (start, end) = BOTH.split_at(BOTH.len() - 9);
        for (head, body, length) in [
            (CHUNKED, &b"0\r\n\r\n"[..], BodyLength::Chunked),
            (KNOWN, &[b'x'; 40], BodyLength::Known(40)),
        ] {
            let mut bytes = HeadBytes::default();
            bytes.read(&[head, body, start].concat());
            bytes.request_begins(Some(length));
            bytes.read(&[end, b"x: y\r\n\r\n"].concat());
            assert!(bytes.request_begins(CODED), "{length:?}");
        }
    }

    #[test]
    fn a_body_that_outlasts_its_response_is_no_head() {
        let mut bytes = HeadBytes::default();
        bytes.read(KNOWN);
        assert!(bytes.request_begins(Some(BodyLength::Known(40))));
        bytes.read(b"0123456789012345678901234567890123456\n\r\n");
        bytes.read(BOTH);
        assert!(bytes.request_begins(CODED));
    }

    #[test]
    fn empty_lines_before_a_request_and_bare_line_feeds_do_not_hide_a_length() {
        for head in [
            "\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "\n\r\n\nPOST / HTTP/1.1\nContent-Length: 5\n\n",
            "POST / HTTP/1.1\nContent-Length: 5\n\r\n",
        ] {
            let mut bytes = HeadBytes::default();
            bytes.read(b"GET / HTTP/1.1\nx: y\n\n");
            bytes.read(&[head.as_bytes(), CHUNKED].concat());
            assert!(!bytes.request_begins(NO_BODY), "{head:?}");
            assert!(bytes.request_begins(NO_BODY), "{head:?}");
            assert!(!bytes.request_begins(CODED), "{head:?}");
        }
    }

    #[test]
    fn a_size_of_zeros_without_an_end_is_noticed_and_the_sizes_of_many_chunks_are_none() {
        let mut bytes = HeadBytes::default();
        bytes.read(CHUNKED);
        bytes.request_begins(CODED);
        bytes.read(&b"00000001\r\nx\r\n".repeat(100));
        assert!(!bytes.has_padded_size());
        for _ in 0..=SIZE_DIGITS_MAX {
            assert!(!bytes.has_padded_size());
            bytes.read(b"0");
        }
        assert!(bytes.has_padded_size());
    }

    #[test]
    fn what_is_not_known_may_have_a_length_and_what_is_kept_is_bounded() {
        let mut bytes = HeadBytes::default();
        for _ in 0..10 {
            bytes.read(&[b'a'; HEAD_MAX]);
        }
        assert!(bytes.kept.capacity() <= 2 * KEPT_MAX);
        assert!(bytes.request_begins(NO_BODY));
        let mut bytes = HeadBytes::default();
        bytes.read(CHUNKED);
        assert!(bytes.request_begins(None));
        bytes.read(CHUNKED);
        assert!(bytes.request_begins(CODED));
    }
}

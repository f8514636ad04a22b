//! What the head of a request of HTTP/1.1 said before hyper had it.
//!
//! RFC 9112 §6.1: a request with both a length and chunked coding may be an attempt at smuggling, and its connection is
//! to be closed after the response. hyper takes it as chunked and removes the length without a word, so the bytes are
//! looked at beside it. Heads may come together with bodies and with one another: what lies between them is skipped by
//! its length, and after a chunked body nothing is known until the connection was idle.

use crate::message::framing::BodyLength;
use crate::pool::HEAD_MAX;

/// The bytes of a connection that no request has been made of yet.
#[derive(Debug, Default)]
pub struct HeadBytes {
    kept: Vec<u8>,
    /// Of a body, still to come.
    skip: u64,
    /// Where the next head begins is not known.
    lost: bool,
}

impl HeadBytes {
    /// Bytes came. `idle`: no request is in flight, so that whatever comes begins one.
    pub fn read(&mut self, mut bytes: &[u8], idle: bool) {
        if idle && (self.lost || self.skip > 0) {
            *self = HeadBytes::default();
        }
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        bytes = &bytes[skipped..];
        if self.lost || bytes.is_empty() {
            return;
        }
        if self.kept.len() + bytes.len() > KEPT_MAX {
            self.lost = true;
            self.kept = Vec::new();
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }

    /// A request was made of the head, and its body is this long. Whether the head of one that is chunked may have had a
    /// length: where it is not known, it may.
    pub fn request_begins(&mut self, body: BodyLength) -> bool {
        let Some(end) = head_end(&self.kept).filter(|_| !self.lost) else {
            self.lost = true;
            return true;
        };
        let had_length = body == BodyLength::Chunked && has_length(&self.kept[..end]);
        self.kept.drain(..end);
        match body {
            BodyLength::Unstated => {}
            BodyLength::Known(length) => {
                let here = self.kept.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                self.kept.drain(..here);
                self.skip = length - here as u64;
            }
            BodyLength::Chunked => {
                self.lost = true;
                self.kept.clear();
            }
        }
        had_length
    }
}

/// Where the first head ends, behind its empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes)
        .find(|&at| bytes[at + 1..].starts_with(b"\r\n"))
        .map(|at| at + 1 + b"\r\n".len())
}

fn has_length(head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    head.split(|&byte| byte == b'\n')
        .any(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))
}

/// Some heads that came together.
const KEPT_MAX: usize = 2 * HEAD_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    const BOTH: &[u8] =
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n";
    const KNOWN: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n";

    #[test]
    fn a_length_counts_in_the_head_that_it_stands_in() {
        let mut bytes = HeadBytes::default();
        bytes.read(CHUNKED, true);
        bytes.read(b"1f\r\ncontent-length: 5\r\n\r\n", false);
        assert!(!bytes.request_begins(BodyLength::Chunked), "what its body says is no field");
        bytes.read(BOTH, true);
        assert!(bytes.request_begins(BodyLength::Chunked));
    }

    #[test]
    fn requests_that_come_together_are_told_apart_by_their_lengths() {
        let mut bytes = HeadBytes::default();
        let body = [b'x'; 40];
        bytes.read(&[b"GET / HTTP/1.1\r\n\r\n", KNOWN, &body[..30]].concat(), true);
        assert!(!bytes.request_begins(BodyLength::Unstated));
        assert!(!bytes.request_begins(BodyLength::Known(40)));
        bytes.read(&[&body[..10], CHUNKED].concat(), false);
        assert!(!bytes.request_begins(BodyLength::Chunked));
        bytes.read(CHUNKED, false);
        assert!(bytes.request_begins(BodyLength::Chunked), "where it begins is not known");
        bytes.read(CHUNKED, true);
        assert!(!bytes.request_begins(BodyLength::Chunked), "but after a rest it is");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut bytes = HeadBytes::default();
        for _ in 0..10 {
            bytes.read(&[b'a'; HEAD_MAX], false);
        }
        assert!(bytes.kept.capacity() <= 2 * KEPT_MAX);
        assert!(bytes.request_begins(BodyLength::Unstated));
    }
}

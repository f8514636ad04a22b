//! The requests of one connection of HTTP/1.1, in reads cut anywhere: whether each head's length was seen.
//!
//! The reference has the bytes of all reads in one buffer, takes heads off it with hyper's parser and bodies by their
//! framing, and knows the fields of each head. A response may be done before the next read or many reads later.

use std::iter::repeat;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

use crate::link::Link;
use crate::message::headers;

/// The first byte says how many bytes follow that each cut a read off the rest, which is what the caller sends.
pub fn requests_of_a_connection(bytes: &[u8]) {
    let Some((&reads, rest)) = bytes.split_first() else { return };
    let (cuts, mut stream) = rest.split_at(usize::from(reads).min(rest.len()));
    let cuts =
        cuts.iter().map(|&cut| Cut { bytes: usize::from(cut & 0x7f), answered: cut & 0x80 == 0 });
    let mut connection = Reference::new();
    for cut in cuts.chain(repeat(Cut { bytes: usize::MAX, answered: true })) {
        let (read, left) = stream.split_at(cut.bytes.min(stream.len()));
        stream = left;
        connection.link.read(read);
        connection.unread.extend_from_slice(read);
        if connection.go_on(cut.answered).is_none() || (stream.is_empty() && cut.answered) {
            return;
        }
    }
}

/// A read, and whether the request in flight is answered after it.
#[derive(Clone, Copy)]
struct Cut {
    bytes: usize,
    answered: bool,
}

struct Reference {
    link: Link,
    unread: Vec<u8>,
    stage: Stage,
}

enum Stage {
    Head,
    Known(u64),
    Chunked,
    /// The body is read, the response not yet written.
    Answering,
}

impl Reference {
    fn new() -> Reference {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let link = Link::new(address, address, Instant::now());
        Reference { link, unread: Vec::new(), stage: Stage::Head }
    }

    /// Goes as far as the bytes that are there allow; `None`: hyper would end the connection.
    fn go_on(&mut self, answered: bool) -> Option<()> {
        loop {
            self.stage = match self.stage {
                Stage::Head => match self.head()? {
                    Some(body) => body,
                    None => return Some(()),
                },
                Stage::Known(left) => {
                    let here = self.unread.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.unread.drain(..here);
                    match left - here as u64 {
                        0 => Stage::Answering,
                        left => {
                            self.stage = Stage::Known(left);
                            return Some(());
                        }
                    }
                }
                Stage::Chunked => match chunked_end(&self.unread)? {
                    Some(end) => {
                        self.unread.drain(..end);
                        Stage::Answering
                    }
                    None => return Some(()),
                },
                Stage::Answering if answered => {
                    self.link.request_ends(Instant::now());
                    Stage::Head
                }
                Stage::Answering => return Some(()),
            };
        }
    }

    /// A head, if it is all there, and what follows it.
    fn head(&mut self) -> Option<Option<Stage>> {
        let mut lines = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut lines);
        let httparse::Status::Complete(end) = head.parse(&self.unread).ok()? else {
            return Some(None);
        };
        let field = |line: &httparse::Header<'_>| {
            let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(line.value).ok()?))
        };
        let mut fields: HeaderMap = head.headers.iter().map(field).collect::<Option<_>>()?;
        let had_length = fields.contains_key(CONTENT_LENGTH);
        self.unread.drain(..end);
        let body = as_hyper_frames(&mut fields)?;
        self.link.request_begins(headers::find(&fields));
        assert_eq!(self.link.head_had_length(), had_length, "{fields:?}");
        Some(Some(body))
    }
}

/// What hyper's server takes for the body, and what it hides of the head in doing so.
fn as_hyper_frames(fields: &mut HeaderMap) -> Option<Stage> {
    if let Some(coding) = fields.get_all(TRANSFER_ENCODING).iter().next_back() {
        let last = coding.as_bytes().rsplit(|&byte| byte == b',').next()?.trim_ascii();
        let chunked = last.eq_ignore_ascii_case(b"chunked");
        fields.remove(CONTENT_LENGTH);
        return chunked.then_some(Stage::Chunked);
    }
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next().cloned() else { return Some(Stage::Answering) };
    let number = |value: &HeaderValue| -> Option<u64> {
        let digits = value.as_bytes();
        let text = std::str::from_utf8(digits).ok()?;
        digits.iter().all(u8::is_ascii_digit).then(|| text.parse().ok())?
    };
    let length = number(&first)?;
    lengths.all(|other| number(other) == Some(length)).then_some(())?;
    fields.insert(CONTENT_LENGTH, first);
    Some(Stage::Known(length))
}

/// Behind the last byte of a chunked body, if it is there; `None`: it is none.
fn chunked_end(bytes: &[u8]) -> Option<Option<usize>> {
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|end| end == b"\r\n");
        let Some(line) = line.map(|end| &bytes[at..at + end]) else { return Some(None) };
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let extension = line[digits..].trim_ascii_start();
        let spaced = matches!(line.get(digits), None | Some(b';' | b' ' | b'\t'));
        if !spaced
            || !(extension.is_empty() || extension.starts_with(b";"))
            || line.contains(&b'\n')
        {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        let Some(end) = at.checked_add(size).and_then(|end| bytes.get(end..end.checked_add(2)?))
        else {
            return Some(None);
        };
        (end == b"\r\n").then_some(())?;
        at += size + 2;
    }
    loop {
        let Some(feed) = bytes[at..].iter().position(|&byte| byte == b'\r') else {
            return Some(None);
        };
        match bytes.get(at + feed + 1) {
            None => return Some(None),
            Some(b'\n') => at += feed + 2,
            Some(_) => return None,
        }
        if feed == 0 {
            return Some(Some(at));
        }
    }
}

/// Fields of a head that is made up here.
const FIELDS_MAX: usize = 64;

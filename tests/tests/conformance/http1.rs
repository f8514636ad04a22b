//! HTTP/1.1 as RFC 9112 writes it, read without any leniency: what the proxy sends must be beyond doubt.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::conformance::message::{End, Field, Message, latin1, values};

/// Reads messages from one connection.
#[derive(Debug)]
pub struct Http1Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Reading past this is [`Stop::Silent`].
    pub deadline: Instant,
}

/// Why no more can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The other side ended the connection in order.
    Closed,
    /// The other side reset the connection: what came may not be all.
    Reset,
    /// Nothing came until the deadline.
    Silent,
    /// What came breaks the grammar.
    Malformed(String),
}

/// How the end of a message's content is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(usize),
    /// The chunked transfer coding.
    Chunked,
    /// The end of the connection.
    Close,
}

impl Http1Reader {
    /// Reads from this connection for at most so long.
    pub fn new(stream: TcpStream, patience: Duration) -> Http1Reader {
        Http1Reader { stream, buffer: Vec::new(), deadline: Instant::now() + patience }
    }

    /// The start line and the fields of the next head.
    pub fn head(&mut self) -> Result<(String, Vec<Field>), Stop> {
        let start = latin1(&self.line()?);
        Ok((start, self.section()?))
    }

    /// The next request's head.
    pub fn request_head(&mut self) -> Result<Message, Stop> {
        let (start, fields) = self.head()?;
        // An application that does not say what it speaks is asked; one of HTTP/1.1 hangs up.
        if start == "PRI * HTTP/2.0" {
            return Err(Stop::Closed);
        }
        let words: Vec<&str> = start.split(' ').collect();
        let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
            return Err(Stop::Malformed(format!("request line {start:?}")));
        };
        let authority = values(&fields, "host").join(", ");
        Ok(Message {
            method: method.into(),
            target: target.into(),
            authority,
            fields,
            ..Message::default()
        })
    }

    /// The next response's head.
    pub fn response_head(&mut self) -> Result<Message, Stop> {
        let (start, fields) = self.head()?;
        // A caller of HTTP/1.0 may be answered in its own version.
        let rest = start.strip_prefix("HTTP/1.1 ").or(start.strip_prefix("HTTP/1.0 "));
        let status = rest.and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| Stop::Malformed(format!("status line {start:?}")))?;
        Ok(Message { status, fields, ..Message::default() })
    }

    /// The content, piece by piece to `take`, then the trailer section.
    pub fn body(
        &mut self,
        framing: Framing,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<Field>, Stop> {
        match framing {
            Framing::Length(length) => self.exactly(length, take).map(|()| Vec::new()),
            Framing::Close => loop {
                take(&std::mem::take(&mut self.buffer));
                match self.fill() {
                    Ok(()) => {}
                    Err(Stop::Closed) => return Ok(Vec::new()),
                    Err(stop) => return Err(stop),
                }
            },
            Framing::Chunked => loop {
                let line = latin1(&self.line()?);
                let size = line.split(';').next().unwrap_or_default();
                let length = usize::from_str_radix(size, 16)
                    .map_err(|_| Stop::Malformed(format!("chunk size {line:?}")))?;
                if length == 0 {
                    return self.section();
                }
                self.exactly(length, take)?;
                if !self.line()?.is_empty() {
                    return Err(Stop::Malformed("a chunk is longer than its size".into()));
                }
            },
        }
    }

    /// Reads until the other side closes; whether it did, before the deadline, and what came.
    pub fn rest(&mut self) -> (bool, Vec<u8>) {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(stop) => {
                    let ended = matches!(stop, Stop::Closed | Stop::Reset);
                    return (ended, std::mem::take(&mut self.buffer));
                }
            }
        }
    }

    /// Fields up to the empty line.
    fn section(&mut self) -> Result<Vec<Field>, Stop> {
        let mut fields = Vec::new();
        loop {
            let line = latin1(&self.line()?);
            if line.is_empty() {
                return Ok(fields);
            }
            let field = line
                .split_once(':')
                .filter(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
            let (name, value) = field.ok_or_else(|| Stop::Malformed(format!("field {line:?}")))?;
            fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// One line without its CRLF; a CR or LF on its own, or a NUL, is none of ours to accept.
    fn line(&mut self) -> Result<Vec<u8>, Stop> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = self.buffer[looked_at..].windows(2).position(|two| two == b"\r\n") {
                let mut line: Vec<u8> = self.buffer.drain(..looked_at + at + 2).collect();
                line.truncate(looked_at + at);
                return match line.iter().find(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                    Some(_) => Err(Stop::Malformed(format!("line {:?}", latin1(&line)))),
                    None => Ok(line),
                };
            }
            looked_at = self.buffer.len().saturating_sub(1);
            self.fill()?;
        }
    }

    fn exactly(&mut self, length: usize, take: &mut dyn FnMut(&[u8])) -> Result<(), Stop> {
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let piece: Vec<u8> = self.buffer.drain(..left.min(self.buffer.len())).collect();
            left -= piece.len();
            take(&piece);
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Stop> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
            return Err(Stop::Silent);
        }
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(Stop::Closed),
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Stop::Silent),
            Err(_) => Err(Stop::Reset),
        }
    }
}

impl From<Stop> for Option<End> {
    fn from(stop: Stop) -> Option<End> {
        match stop {
            Stop::Closed | Stop::Reset => Some(End::Closed),
            Stop::Silent => None,
            Stop::Malformed(what) => Some(End::Malformed(what)),
        }
    }
}

/// The framing of a request.
pub fn request_framing(fields: &[Field]) -> Result<Framing, Stop> {
    framing(fields, Framing::Length(0))
}

/// The framing of a response to a request of this method.
pub fn response_framing(method: &str, response: &Message) -> Result<Framing, Stop> {
    let opens_tunnel = method == "CONNECT" && matches!(response.status, 200..=299);
    let bodiless =
        method == "HEAD" || opens_tunnel || matches!(response.status, 100..=199 | 204 | 304);
    if bodiless { Ok(Framing::Length(0)) } else { framing(&response.fields, Framing::Close) }
}

fn framing(fields: &[Field], otherwise: Framing) -> Result<Framing, Stop> {
    let codings = values(fields, "transfer-encoding");
    let lengths = values(fields, "content-length");
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(otherwise),
        ([], [length]) => {
            let digits = length.bytes().all(|b| b.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits);
            length.map(Framing::Length).ok_or_else(|| Stop::Malformed(format!("{lengths:?}")))
        }
        (["chunked"], []) => Ok(Framing::Chunked),
        _ => Err(Stop::Malformed(format!(
            "transfer-encoding {codings:?} with content-length {lengths:?}"
        ))),
    }
}

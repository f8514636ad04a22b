//! HTTP/2 by its frames (RFC 9113): a peer that can send what no library would.
//!
//! Fields are sent as literals without indexing, so that their bytes stand in the frame as they are written in a
//! row; what the proxy sends is decoded with a crate, since hyper's encoder uses all of HPACK.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::conformance::message::{Field, latin1};
use crate::conformance::script::Step;

/// What a client says first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Something that the other side did.
#[derive(Debug)]
pub enum Event {
    /// A header or trailer section, whole.
    Headers(u32, Vec<Field>, bool),
    /// A piece of content.
    Data(u32, Vec<u8>, bool),
    /// The end of a stream by RST_STREAM.
    Reset(u32, u32),
    /// GOAWAY.
    GoAway(u32),
    /// The end of the connection.
    Closed,
    /// Nothing until the deadline.
    Silent,
}

/// The half of a connection that reads; it answers SETTINGS and PING and gives credit for all it reads.
pub struct Http2Reader {
    stream: TcpStream,
    writer: Http2Writer,
    buffer: Vec<u8>,
    decoder: loona_hpack::Decoder<'static>,
    /// A header section whose CONTINUATION is still to come: its stream, whether it ends it, its bytes.
    section: Option<(u32, bool, Vec<u8>)>,
    /// Reading past this is [`Event::Silent`].
    pub deadline: Instant,
}

/// The half that writes; shared, since a script has a thread of its own.
#[derive(Debug, Clone)]
pub struct Http2Writer(Arc<Mutex<TcpStream>>);

impl Http2Reader {
    /// Reads from this connection for at most so long.
    pub fn new(stream: TcpStream, patience: Duration) -> Http2Reader {
        let writer = stream.try_clone().expect("a descriptor is free");
        Http2Reader {
            stream,
            writer: Http2Writer(Arc::new(Mutex::new(writer))),
            buffer: Vec::new(),
            decoder: loona_hpack::Decoder::new(),
            section: None,
            deadline: Instant::now() + patience,
        }
    }

    /// The half that writes.
    pub fn writer(&self) -> Http2Writer {
        self.writer.clone()
    }

    /// Reads the preface that a client sends first; false when it is something else.
    pub fn preface(&mut self) -> bool {
        while self.buffer.len() < PREFACE.len() {
            if self.fill().is_err() {
                return false;
            }
        }
        self.buffer.drain(..PREFACE.len()).as_slice() == PREFACE
    }

    /// The next thing that the other side does.
    pub fn event(&mut self) -> Event {
        loop {
            let (kind, flags, stream, payload) = match self.frame() {
                Ok(frame) => frame,
                Err(event) => return event,
            };
            let ends = flags & END_STREAM != 0;
            match kind {
                SETTINGS if flags & ACK == 0 => self.writer.frame(SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => self.writer.frame(PING, ACK, 0, &payload),
                RST_STREAM => return Event::Reset(stream, number(&payload)),
                GOAWAY => return Event::GoAway(number(payload.get(4..).unwrap_or_default())),
                DATA => {
                    self.give_credit(payload.len(), (!ends).then_some(stream));
                    return Event::Data(stream, unpad(payload, flags, false), ends);
                }
                HEADERS => self.section = Some((stream, ends, unpad(payload, flags, true))),
                CONTINUATION => {
                    if let Some((_, _, section)) = &mut self.section {
                        section.extend(payload);
                    }
                }
                _ => {}
            }
            if matches!(kind, HEADERS | CONTINUATION)
                && flags & END_HEADERS != 0
                && let Some((stream, ends, section)) = self.section.take()
            {
                let Ok(fields) = self.decoder.decode(&section) else { return Event::Closed };
                let fields =
                    fields.into_iter().map(|(name, value)| (latin1(&name), latin1(&value)));
                return Event::Headers(stream, fields.collect(), ends);
            }
        }
    }

    fn give_credit(&self, length: usize, stream: Option<u32>) {
        let length = u32::try_from(length).expect("a frame is shorter than 16 MiB");
        for stream in [Some(0), stream].into_iter().flatten().filter(|_| length > 0) {
            self.writer.frame(WINDOW_UPDATE, 0, stream, &length.to_be_bytes());
        }
    }

    fn frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>), Event> {
        self.at_least(9)?;
        let length = number(&[0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
        let (kind, flags) = (self.buffer[3], self.buffer[4]);
        let stream = number(&self.buffer[5..9]) & 0x7fff_ffff;
        self.at_least(9 + length)?;
        Ok((kind, flags, stream, self.buffer.drain(..9 + length).skip(9).collect()))
    }

    fn at_least(&mut self, length: usize) -> Result<(), Event> {
        while self.buffer.len() < length {
            self.fill()?;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Event> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
            return Err(Event::Silent);
        }
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(Event::Closed),
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Event::Silent),
            Err(_) => Err(Event::Closed),
        }
    }
}

impl Http2Writer {
    /// Says what a client says first.
    pub fn client_preface(&self) {
        self.write(PREFACE);
        self.frame(SETTINGS, 0, 0, &[]);
    }

    /// Says what a server says first.
    pub fn server_preface(&self) {
        self.frame(SETTINGS, 0, 0, &[]);
    }

    /// Does what a step of a script says, on this stream; false when it was not a step that writes.
    pub fn perform(&self, step: &Step, stream: u32) -> bool {
        match step {
            Step::Bytes(bytes) => self.write(bytes),
            Step::Headers(fields, end) => self.headers(stream, fields, *end),
            Step::Data(bytes, end) => self.frame(DATA, u8::from(*end), stream, bytes),
            Step::ResetStream(code) => self.frame(RST_STREAM, 0, stream, &code.to_be_bytes()),
            Step::GoAway(seen, code) => {
                let last = if *seen { stream } else { 0 };
                self.frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
            }
            Step::Frame(kind, flags, other, payload) => {
                self.frame(*kind, *flags, other.unwrap_or(stream), payload);
            }
            Step::HalfClose => self.shut(Shutdown::Write),
            Step::Close => self.shut(Shutdown::Both),
            _ => return false,
        }
        true
    }

    fn headers(&self, stream: u32, fields: &[(Vec<u8>, Vec<u8>)], end: bool) {
        let section = encode(fields);
        let pieces: Vec<&[u8]> = section.chunks(FRAME_SIZE).collect();
        let mut bytes = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let kind = if n == 0 { HEADERS } else { CONTINUATION };
            let first = if n == 0 { u8::from(end) } else { 0 };
            let last = if n + 1 == pieces.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, first | last, stream, piece));
        }
        self.write(&bytes);
    }

    fn frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload));
    }

    fn write(&self, bytes: &[u8]) {
        // A peer that has closed is no error: what counts is what it answered.
        let _ = self.0.lock().expect("nobody panics with it").write_all(bytes);
    }

    fn shut(&self, how: Shutdown) {
        let _ = self.0.lock().expect("nobody panics with it").shutdown(how);
    }
}

/// Fields as HPACK literals without indexing, without Huffman coding (RFC 7541 §6.2.2).
pub fn encode(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(text.len(), &mut block);
            block.extend_from_slice(text);
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn length(mut n: usize, block: &mut Vec<u8>) {
    let byte = |n: usize| u8::try_from(n).expect("it is below 256");
    if n < 127 {
        return block.push(byte(n));
    }
    block.push(127);
    n -= 127;
    while n >= 128 {
        block.push(byte(n % 128 + 128));
        n /= 128;
    }
    block.push(byte(n));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is shorter than 16 MiB");
    let head = [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

fn unpad(mut payload: Vec<u8>, flags: u8, may_have_priority: bool) -> Vec<u8> {
    if flags & PADDED != 0 && !payload.is_empty() {
        let padding = usize::from(payload.remove(0));
        payload.truncate(payload.len().saturating_sub(padding));
    }
    if may_have_priority && flags & PRIORITY_FIELDS != 0 {
        payload.drain(..5.min(payload.len()));
    }
    payload
}

fn number(bytes: &[u8]) -> u32 {
    bytes.get(..4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Types of frames (RFC 9113 §6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const PRIORITY: u8 = 2;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PUSH_PROMISE: u8 = 5;
/// See [`DATA`].
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const END_STREAM: u8 = 1;
const ACK: u8 = 1;
/// See [`END_STREAM`].
pub const END_HEADERS: u8 = 4;
/// See [`END_STREAM`].
pub const PADDED: u8 = 8;
const PRIORITY_FIELDS: u8 = 32;

/// The longest frame that a peer takes unless it says otherwise.
const FRAME_SIZE: usize = 16_384;

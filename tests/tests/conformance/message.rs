//! What was seen of a message, whichever version carried it.

use std::fmt;

/// A field: its name in lower case, its value with one character for each byte.
pub type Field = (String, String);

/// A request or a response as a peer saw it.
#[derive(Clone, Default)]
pub struct Message {
    /// A request's method.
    pub method: String,
    /// A request's target: what stands between method and version, or `:path`.
    pub target: String,
    /// A request's `:scheme` and `:authority`; over HTTP/1.1 the authority is in `Host`.
    pub scheme: String,
    /// See `scheme`.
    pub authority: String,
    /// A response's status.
    pub status: u16,
    /// The header section, in order, without pseudo-header fields.
    pub fields: Vec<Field>,
    /// As much of the content as came.
    pub body: Vec<u8>,
    /// The trailer section.
    pub trailers: Vec<Field>,
    /// How it ended; `None` while more may come.
    pub end: Option<End>,
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its framing says that this was all.
    Complete,
    /// The connection was closed or reset before.
    Closed,
    /// The stream was reset with this code before.
    StreamReset(u32),
    /// The connection was ended by GOAWAY with this code before.
    GoAway(u32),
    /// It broke the grammar.
    Malformed(String),
}

impl Message {
    /// Whether its framing says that all of it came.
    pub fn is_complete(&self) -> bool {
        self.end == Some(End::Complete)
    }

    /// All values of a field in the header section.
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.fields, name)
    }

    /// The values of an HTTP/2 header section put where they belong.
    pub fn from_http2(fields: Vec<Field>) -> Message {
        let mut message = Message::default();
        for (name, value) in fields {
            match name.as_str() {
                ":method" => message.method = value,
                ":path" => message.target = value,
                ":scheme" => message.scheme = value,
                ":authority" => message.authority = value,
                ":status" => message.status = value.parse().unwrap_or(0),
                _ => message.fields.push((name, value)),
            }
        }
        message
    }
}

/// All values of a field in a section.
pub fn values<'a>(section: &'a [Field], name: &str) -> Vec<&'a str> {
    section.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str()).collect()
}

/// Bytes with one character each, so that what is not UTF-8 can be compared and shown.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.method.is_empty() {
            write!(f, "{}", self.status)?;
        } else {
            write!(f, "{} {} {}", self.method, self.target, self.authority)?;
        }
        for (name, value) in self.fields.iter().take(FIELDS_SHOWN) {
            write!(f, " | {name}: {}", short(value))?;
        }
        if self.fields.len() > FIELDS_SHOWN {
            write!(f, " | … {} fields", self.fields.len())?;
        }
        write!(f, " | body {:?}", short(&latin1(&self.body)))?;
        if !self.trailers.is_empty() {
            write!(f, " | trailers {:?}", self.trailers)?;
        }
        match &self.end {
            Some(end) => write!(f, " | {end:?}"),
            None => write!(f, " | not ended"),
        }
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_SHOWN) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

/// Fields of one message that a failure shows.
const FIELDS_SHOWN: usize = 24;

/// Characters of one value that a failure shows.
const TEXT_SHOWN: usize = 160;

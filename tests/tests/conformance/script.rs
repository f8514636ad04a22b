//! What a raw peer does, step by step.
//!
//! Text in a script may name what differs between runs: `{path}` (a path of the run's own), `{host}` (the
//! authority of the service), `{row}` (the run's number, by which backends tell requests apart) and `{to}`,
//! the two header lines that nearly every HTTP/1.1 request has.

use crate::conformance::message::Field;

/// One step of a caller or of a backend. Headers and frames are for HTTP/2, on the stream that is at hand.
#[derive(Debug, Clone)]
pub enum Step {
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// A HEADERS frame, with CONTINUATION where it is long; whether it ends the stream.
    Headers(Vec<(Vec<u8>, Vec<u8>)>, bool),
    /// A DATA frame; whether it ends the stream.
    Data(Vec<u8>, bool),
    /// RST_STREAM with this code.
    ResetStream(u32),
    /// GOAWAY whose last stream is the one at hand (or, when false, none) with this code.
    GoAway(bool, u32),
    /// A frame of this type and these flags, on this stream (or the one at hand), with this payload.
    Frame(u8, u8, Option<u32>, Vec<u8>),
    /// What follows is on the caller's next stream.
    NextStream,
    /// Waits until the backend has the heads of so many requests.
    AwaitArrivals(usize),
    /// Waits until the backend has so many bytes of the content.
    AwaitBody(usize),
    /// Waits until the backend has the whole request, or its end.
    AwaitRequest,
    /// Waits until the caller has so many bytes of the content.
    AwaitHeard(usize),
    /// Waits until the caller has done all that its script says.
    AwaitCaller,
    /// Waits until the caller has an interim response (or a final one, which ends the script).
    AwaitInterim,
    /// Ends what this side sends: FIN.
    HalfClose,
    /// Closes the connection, and ends the script.
    Close,
}

/// What stands for the placeholders in one run.
#[derive(Debug, Clone)]
pub struct Names {
    /// The run's number.
    pub row: u32,
    /// The service's authority.
    pub host: String,
}

impl Names {
    /// A text with the placeholders replaced.
    pub fn fill(&self, text: &str) -> String {
        text.replace("{to}", "Host: {host}\r\nX-Row: {row}\r\n")
            .replace("{path}", "/row-{row}")
            .replace("{host}", &self.host)
            .replace("{row}", &self.row.to_string())
    }

    fn fill_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        // One character for each byte and back, so that bytes above 127 stay what they are.
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        self.fill(&text).chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
    }

    /// A script with the placeholders replaced.
    pub fn fill_script(&self, steps: &[Step]) -> Vec<Step> {
        let filled = steps.iter().map(|step| match step {
            Step::Bytes(bytes) => Step::Bytes(self.fill_bytes(bytes)),
            Step::Data(bytes, end) => Step::Data(self.fill_bytes(bytes), *end),
            Step::Headers(fields, end) => {
                let fill = |(name, value): &(Vec<u8>, Vec<u8>)| {
                    (self.fill_bytes(name), self.fill_bytes(value))
                };
                Step::Headers(fields.iter().map(fill).collect(), *end)
            }
            other => other.clone(),
        });
        filled.collect()
    }
}

/// A HEADERS step; whether it ends the stream.
pub fn headers(fields: &[(&str, &str)], end: bool) -> Step {
    let bytes = |text: &str| text.as_bytes().to_vec();
    Step::Headers(fields.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(), end)
}

/// A HEADERS step with a request's pseudo-header fields, the run's number, and these fields.
pub fn request_headers(method: &str, fields: &[(&str, &str)], end: bool) -> Step {
    let mut all = vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "{host}"),
        (":path", "{path}"),
        ("x-row", "{row}"),
    ];
    all.extend_from_slice(fields);
    headers(&all, end)
}

/// A DATA step; whether it ends the stream.
pub fn data(bytes: &str, end: bool) -> Step {
    Step::Data(bytes.as_bytes().to_vec(), end)
}

/// A step of bytes.
pub fn bytes(text: impl AsRef<[u8]>) -> Step {
    Step::Bytes(text.as_ref().to_vec())
}

/// Borrowed fields as owned ones.
pub fn owned(fields: &[(&str, &str)]) -> Vec<Field> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// RST_STREAM and GOAWAY codes (RFC 9113 §7).
pub const NO_ERROR: u32 = 0;
/// See [`NO_ERROR`].
pub const PROTOCOL_ERROR: u32 = 1;
/// See [`NO_ERROR`].
pub const INTERNAL_ERROR: u32 = 2;
/// See [`NO_ERROR`].
pub const REFUSED_STREAM: u32 = 7;
/// See [`NO_ERROR`].
pub const CANCEL: u32 = 8;

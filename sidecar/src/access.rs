//! The access log.
//!
//! A line is one JSON object on standard output, written by a thread of its own behind a bounded queue: a
//! reader that does not keep up costs lines (counted), never latency. Nothing is formatted or copied for a
//! request that is not logged.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use evenkeel_config::settings::Access;
use http::Method;
use http::header::HeaderValue;
use http::uri::PathAndQuery;
use serde::Serialize;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Where the access log goes.
#[derive(Debug)]
pub struct AccessLog {
    mode: AtomicU8,
    lines: Sender<Line>,
    dropped: prometheus::IntCounter,
}

impl AccessLog {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(mode: Access, dropped: prometheus::IntCounter) -> std::io::Result<AccessLog> {
        // Not the standard library's, which makes room for the whole queue at once: a megabyte that is hardly ever used.
        let (lines, queue) = channel(QUEUE_MAX);
        std::thread::Builder::new().name("access-log".into()).spawn(move || run(queue))?;
        let log = AccessLog { mode: AtomicU8::new(0), lines, dropped };
        log.set_mode(mode);
        Ok(log)
    }

    /// Which requests are logged from now on.
    pub fn set_mode(&self, mode: Access) {
        let mode = match mode {
            Access::Off => OFF,
            Access::Errors => ERRORS,
            Access::All => ALL,
        };
        self.mode.store(mode, Ordering::Relaxed);
    }

    /// Whether a request is logged.
    pub fn wants(&self, failed: bool) -> bool {
        match self.mode.load(Ordering::Relaxed) {
            ALL => true,
            ERRORS => failed,
            _ => false,
        }
    }

    /// Hands a line to the writer, or counts it as lost.
    pub fn write(&self, line: Line) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.dropped.inc();
        }
    }
}

fn run(mut queue: Receiver<Line>) {
    let mut out = std::io::stdout().lock();
    while let Some(line) = queue.blocking_recv() {
        // Standard output that is closed ends the log, not the proxy.
        if serde_json::to_writer(&mut out, &line).is_err() || out.write_all(b"\n").is_err() {
            return;
        }
    }
}

/// One request in the log.
#[derive(Debug, Serialize)]
pub struct Line {
    time_ms: u128,
    direction: &'static str,
    upstream: String,
    method: String,
    path: String,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    duration_us: u128,
    peer: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Line {
    /// A request that ended now.
    #[expect(
        clippy::too_many_arguments,
        reason = "a line has this many fields and is made in one place"
    )]
    pub fn new(
        direction: &'static str,
        upstream: &str,
        method: &Method,
        path: Option<&PathAndQuery>,
        status: u16,
        reason: Option<&'static str>,
        took: Duration,
        peer: SocketAddr,
        request_id: Option<&HeaderValue>,
    ) -> Line {
        Line {
            time_ms: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_millis()),
            direction,
            upstream: upstream.to_owned(),
            method: method.to_string(),
            path: path.map_or_else(String::new, ToString::to_string),
            status,
            reason,
            duration_us: took.as_micros(),
            peer,
            request_id: request_id.and_then(|id| id.to_str().ok()).map(String::from),
        }
    }

    /// A request to the proxy whose head could not be read.
    pub fn unreadable(status: u16, reason: &'static str, took: Duration, peer: SocketAddr) -> Line {
        Line {
            method: String::new(),
            ..Line::new("outbound", "", &Method::GET, None, status, Some(reason), took, peer, None)
        }
    }
}

const OFF: u8 = 0;
const ERRORS: u8 = 1;
const ALL: u8 = 2;
/// Lines that wait to be written.
const QUEUE_MAX: usize = 4096;

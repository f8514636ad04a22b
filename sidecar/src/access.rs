//! What is kept of each request: its counters, and its line in the access log.
//!
//! A line is one JSON object on standard output, written by a thread of its own behind a bounded queue: a
//! reader that does not keep up costs lines (counted), never latency. Nothing is formatted or copied for a
//! request that is not logged.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Instant, SystemTime};

use evenkeel_config::settings::Access;
use http::Method;
use http::uri::PathAndQuery;
use serde::Serialize;

use crate::metrics::UpstreamMetrics;

/// Where the access log goes.
#[derive(Debug)]
pub struct AccessLog {
    mode: AtomicU8,
    lines: SyncSender<Line>,
    dropped: prometheus::IntCounter,
}

impl AccessLog {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(mode: Access, dropped: prometheus::IntCounter) -> std::io::Result<AccessLog> {
        let (lines, queue) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(&queue))?;
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

    fn wants(&self, failed: bool) -> bool {
        match self.mode.load(Ordering::Relaxed) {
            ALL => true,
            ERRORS => failed,
            _ => false,
        }
    }
}

fn write(queue: &Receiver<Line>) {
    let mut out = std::io::stdout().lock();
    while let Ok(line) = queue.recv() {
        // Standard output that is closed ends the log, not the proxy.
        if serde_json::to_writer(&mut out, &line).is_err() || out.write_all(b"\n").is_err() {
            return;
        }
    }
}

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub struct Record {
    /// The worker's log and cells.
    pub shared: Arc<crate::worker::Shared>,
    /// Which worker.
    pub worker: usize,
    /// Counters of the upstream; none for a name that is not one.
    pub metrics: Option<Arc<UpstreamMetrics>>,
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// The upstream's name, or what the caller wrote.
    pub upstream: Arc<str>,
    /// The request's method.
    pub method: Method,
    /// The request's path and query.
    pub path: Option<PathAndQuery>,
    /// The caller's `x-request-id`.
    pub request_id: Option<http::HeaderValue>,
    /// Who asked.
    pub peer: SocketAddr,
    /// When its head was read.
    pub start: Instant,
    /// Of the response.
    pub status: u16,
}

#[derive(Debug, Serialize)]
struct Line {
    time_ms: u128,
    direction: &'static str,
    upstream: Arc<str>,
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

impl Record {
    /// The record, for whoever ends the request; what stays behind is not completed again.
    pub fn take(&mut self) -> Record {
        Record {
            shared: Arc::clone(&self.shared),
            worker: self.worker,
            metrics: self.metrics.take(),
            direction: self.direction,
            upstream: Arc::clone(&self.upstream),
            method: std::mem::take(&mut self.method),
            path: self.path.take(),
            request_id: self.request_id.take(),
            peer: self.peer,
            start: self.start,
            status: self.status,
        }
    }

    /// The request is over. `reason`: why it failed, if it did.
    pub fn complete(&mut self, now: Instant, reason: Option<&'static str>) {
        let took = now.saturating_duration_since(self.start);
        if let Some(metrics) = &self.metrics {
            metrics.of(self.worker).request(self.status, reason, took);
        }
        let access = &self.shared.access;
        if !access.wants(reason.is_some() || self.status >= 500) {
            return;
        }
        let line = Line {
            time_ms: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_millis()),
            direction: self.direction,
            upstream: Arc::clone(&self.upstream),
            method: self.method.to_string(),
            path: self.path.as_ref().map_or_else(String::new, ToString::to_string),
            status: self.status,
            reason,
            duration_us: took.as_micros(),
            peer: self.peer,
            request_id: self.request_id.as_ref().and_then(|id| id.to_str().ok()).map(String::from),
        };
        if let Err(TrySendError::Full(_)) = access.lines.try_send(line) {
            access.dropped.inc();
        }
    }
}

const OFF: u8 = 0;
const ERRORS: u8 = 1;
const ALL: u8 = 2;
/// Lines that wait to be written.
const QUEUE_MAX: usize = 4096;

//! Whether a request may be sent again: the one place that decides it.
//!
//! The promise behind it: a request that is not safe to repeat is executed at most once because of us. So what the application may have seen is
//! sent again only if the policy names it (`repeat.methods`, `repeat.grpc`) or it carries the key that its server
//! recognises (`repeat.key_header`); what it certainly has not seen (nothing sent, or the peer said so) may always be. A copy *beside* a
//! running attempt needs more: the policy must name the request. A key allows a retry in sequence only, since servers answer 409 to a
//! duplicate that arrives while the first is executed.
//!
//! Budgets and time are not decided here, nor whether an endpoint is left.

use std::time::Duration;

use evenkeel_config::policy::{Hedge, Mode, Repeat, Retry, RetryOn};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was sent: no connection, no place in a queue.
    NotSent,
    /// The peer said that the application never saw it: REFUSED_STREAM, GOAWAY below the stream, `evenkeel-refused`.
    Refused,
    /// The connection broke after something was sent and before the response's head.
    ResetBeforeHead,
    /// It broke after the head, which the caller may have seen.
    ResetAfterHead,
    /// A response.
    Response {
        /// Its status; of a gRPC response without messages, what [`grpc_as_http`] makes of its `grpc-status`.
        status: u16,
        /// Its `grpc-retry-pushback-ms`.
        pushback: Option<Pushback>,
    },
}

/// What a gRPC server says about retries (`grpc-retry-pushback-ms`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Not at all.
    Never,
    /// Not before.
    After(Duration),
}

impl Pushback {
    /// What the header's value says; negative or malformed means never (gRFC A6).
    #[must_use]
    pub fn parse(value: &[u8]) -> Pushback {
        let millis =
            std::str::from_utf8(value).ok().and_then(|text| text.trim().parse::<u64>().ok());
        millis.map_or(Pushback::Never, |millis| Pushback::After(Duration::from_millis(millis)))
    }
}

/// What of a request's body could be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none, or all of it is kept.
    Complete,
    /// What has come so far is kept, the rest is still to come.
    Partial,
    /// Some of it was passed on and not kept.
    Lost,
}

/// What matters about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The policy names it: [`is_safe`].
    pub safe: bool,
    /// It carries the policy's `key_header`.
    pub keyed: bool,
    /// What of its body could be sent again.
    pub body: Body,
    /// An upgrade, a stream of messages, server-sent events.
    pub streaming: bool,
    /// It came marked as a retry by the hop before.
    pub retry_of_retry: bool,
    /// Retries made so far.
    pub retries: u32,
}

/// Whether another attempt may follow one that ended so.
#[must_use]
pub fn may_retry(request: &Request, outcome: &Outcome, retry: &Retry) -> bool {
    if request.retries >= retry.max || request.body == Body::Lost {
        return false;
    }
    let on = |trigger: RetryOn| retry.when.contains(&trigger);
    // The application may have seen it: only what is licensed, nothing that streams, and no retry of a retry.
    let repeatable =
        (request.safe || request.keyed) && !request.streaming && !request.retry_of_retry;
    match *outcome {
        Outcome::NotSent => on(RetryOn::Connect),
        Outcome::Refused => on(RetryOn::Refused),
        Outcome::ResetBeforeHead => repeatable && on(RetryOn::Reset),
        Outcome::ResetAfterHead => false,
        Outcome::Response { pushback: Some(Pushback::Never), .. } => false,
        Outcome::Response { status, .. } => repeatable && on(RetryOn::Status(status)),
    }
}

/// Whether a copy may be sent beside a running attempt (or, in `observe`, would be).
#[must_use]
pub fn may_copy(request: &Request, hedge: &Hedge) -> bool {
    hedge.mode != Mode::Off
        && hedge.max > 0
        && request.safe
        && request.body == Body::Complete
        && !request.streaming
        && !request.retry_of_retry
}

/// Whether the policy says that a request may be executed twice. `grpc_path`: for gRPC, the request's path
/// (`/package.Service/Method`); then `repeat.grpc` decides and the HTTP method, always POST, does not.
#[must_use]
pub fn is_safe(repeat: &Repeat, method: &str, grpc_path: Option<&str>) -> bool {
    match grpc_path {
        Some(path) => {
            let name = path.strip_prefix('/').unwrap_or(path);
            repeat.grpc.iter().any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
        }
        None => repeat.methods.iter().any(|safe| safe == method),
    }
}

/// The HTTP status that `retry.when` would have to name for a gRPC status.
#[must_use]
pub fn grpc_as_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters, also none. Linear in time but for one position to go
/// back to, so a pattern full of `*` is no trap.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, matched)) = star {
            star = Some((at, matched + 1));
            p = at + 1;
            n = matched + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests;

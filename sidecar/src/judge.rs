//! What an attempt's end means: for its endpoint (a verdict), for the request (an outcome), and for the caller (an error).
//!
//! [`judge`] is the only place where statuses, resets and what a receiving host said are read. Whether the request may be sent again
//! is not decided here but in [`repeat`], from the outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::repeat::{self, Outcome, Pushback};
use evenkeel_balancer::{Hop, Ticket, Verdict};
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http_body::Body as _;
use tracing::{Level, debug};

use crate::attempt::{Ended, Story, Unsent, Won};
use crate::body::Replay;
use crate::error::{Error, GRPC_STATUS};
use crate::message::headers;
use crate::own;
use crate::pool::{DialError, SendError};
use crate::route::Upstream;

/// Why an attempt came to nothing.
pub struct Failed {
    /// For [`repeat::may_retry`].
    pub outcome: Outcome,
    /// For the caller, if there is no other attempt.
    pub error: Error,
    /// The application's own response, when that is the failure.
    pub response: Option<Box<Won>>,
}

impl Failed {
    /// Of two failures the one to tell: an application's response before anything of ours.
    pub fn worse(before: Option<Failed>, now: Failed) -> Failed {
        match before {
            Some(before) if before.response.is_some() && now.response.is_none() => before,
            _ => now,
        }
    }

    /// What the caller gets.
    pub fn give_up(self, body: Option<&Replay>, story: Story) -> Result<Won, Error> {
        match self.response {
            Some(won) => Ok(Won { story, ..*won }),
            None if body.is_some_and(Replay::broken) => Err(Error::CallerGone),
            None => Err(self.error),
        }
    }
}

/// What an attempt's end says of its endpoint and of the request.
pub fn judge(
    ended: Ended,
    ticket: Ticket,
    upstream: &Upstream,
    body: Option<&Replay>,
    now: Instant,
) -> Result<Won, Failed> {
    // Who it was is kept only for the log.
    let endpoint = tracing::enabled!(Level::DEBUG).then(|| Arc::clone(ticket.endpoint()));
    let judged = judged(ended, ticket, upstream, body, now);
    if let (Some(endpoint), Err(failed)) = (endpoint, &judged) {
        let spec = endpoint.spec();
        debug!(
            upstream = %upstream.name, instance = %spec.instance, dialled = %spec.dial,
            ejected = endpoint.ejected(now),
            "an attempt failed: {}", failed.error.detail()
        );
    }
    judged
}

fn judged(
    ended: Ended,
    mut ticket: Ticket,
    upstream: &Upstream,
    body: Option<&Replay>,
    now: Instant,
) -> Result<Won, Failed> {
    let failed = |outcome, error| Failed { outcome, error, response: None };
    let head = match ended {
        Ok(head) => head,
        Err(Unsent::Dial(DialError::CircuitOpen)) => {
            ticket.no_sample();
            return Err(failed(Outcome::NotSent, Error::CircuitOpen(upstream.name.to_string())));
        }
        Err(Unsent::Dial(DialError::OutOfDescriptors)) => {
            ticket.no_sample();
            return Err(failed(Outcome::NotSent, Error::OutOfDescriptors));
        }
        Err(Unsent::Dial(DialError::OwnListener)) => {
            ticket.head(now, Verdict::Absent);
            let error = Error::connect(&upstream.name, own::SERVICE_IS_OWN_LISTENER);
            return Err(failed(Outcome::NotSent, error));
        }
        Err(Unsent::Dial(DialError::Unreachable(what))) => {
            ticket.head(now, Verdict::Unreachable);
            return Err(failed(Outcome::NotSent, Error::connect(&upstream.name, what)));
        }
        Err(Unsent::Send(SendError::NotSent(_))) => {
            ticket.head(now, Verdict::Unreachable);
            return Err(failed(
                Outcome::NotSent,
                Error::connect(&upstream.name, "the connection closed before the request"),
            ));
        }
        Err(Unsent::Send(SendError::Unsendable(what))) => {
            ticket.no_sample();
            return Err(failed(Outcome::ResetAfterHead, Error::Unsendable(what)));
        }
        Err(Unsent::Send(SendError::Refused(what))) => {
            ticket.no_sample();
            return Err(failed(Outcome::Refused, Error::Refused(what)));
        }
        // HTTP/2 resets the stream when its caller's body breaks and does not say why.
        Err(Unsent::Send(SendError::Caller | SendError::Reset(_)))
            if body.is_some_and(Replay::broken) =>
        {
            ticket.no_sample();
            return Err(failed(Outcome::ResetAfterHead, Error::CallerGone));
        }
        Err(Unsent::Send(SendError::Unreadable)) => {
            ticket.no_sample();
            return Err(failed(Outcome::ResetAfterHead, Error::BadResponse(TOO_LARGE.to_owned())));
        }
        Err(Unsent::Send(SendError::Misread(what))) => {
            ticket.no_sample();
            return Err(failed(
                Outcome::ResetBeforeHead,
                Error::Reset(format!("{MISREAD}: {what}")),
            ));
        }
        Err(Unsent::Send(SendError::Reset(what) | SendError::NoHttp1(what))) => {
            ticket.head(now, Verdict::Reset);
            return Err(failed(Outcome::ResetBeforeHead, Error::Reset(what)));
        }
        Err(Unsent::Send(SendError::Caller)) => {
            ticket.no_sample();
            return Err(failed(Outcome::ResetAfterHead, Error::CallerGone));
        }
        // As a 500 of its own would, it speaks against the application; the request was executed all the same.
        Err(Unsent::Malformed(what)) => {
            ticket.head(now, Verdict::Failure);
            return Err(failed(Outcome::ResetAfterHead, Error::BadResponse(what.to_owned())));
        }
    };
    if head.found.peers_failure
        && ticket.endpoint().spec().hop == Hop::Mesh
        && let Some((outcome, verdict, error)) =
            peers_failure(&upstream.name, head.response.headers())
    {
        match verdict {
            Some(verdict) => ticket.head(now, verdict),
            None => ticket.no_sample(),
        }
        return Err(failed(outcome, error));
    }
    let status = head.response.status().as_u16();
    if head.found.limited && ticket.endpoint().spec().hop == Hop::Mesh {
        ticket.head(now, Verdict::Success);
        return Ok(Won { head, ticket, story: Story::default() });
    }
    // A body may break, and a gRPC status comes after it: the exchange says the rest when it ends.
    let answered = match head.response.body().is_end_stream() {
        true => Verdict::Success,
        false => Verdict::Undecided,
    };
    if status < 400 && !head.found.verdict {
        ticket.head(now, answered);
        return Ok(Won { head, ticket, story: Story::default() });
    }
    let grpc = head.response.headers().get(GRPC_STATUS).map(HeaderValue::as_bytes);
    let retry_after = || retry_after(head.response.headers());
    let verdict = match (status, grpc.map(grpc_verdict)) {
        (429 | 503, _) => Verdict::Overloaded { retry_after: retry_after() },
        (500.., _) => Verdict::Failure,
        (_, Some(Verdict::Overloaded { .. })) => Verdict::Overloaded { retry_after: retry_after() },
        (_, Some(verdict)) => verdict,
        (_, None) => answered,
    };
    ticket.head(now, verdict);
    if matches!(verdict, Verdict::Success | Verdict::Undecided) {
        return Ok(Won { head, ticket, story: Story::default() });
    }
    let pushback =
        head.response.headers().get(RETRY_PUSHBACK).map(|value| Pushback::parse(value.as_bytes()));
    let grpc = grpc.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    let status = grpc.map_or(status, repeat::grpc_as_http);
    let error = Error::Reset(format!("status {status}"));
    Err(Failed {
        outcome: Outcome::Response { status, pushback },
        error,
        response: Some(Box::new(Won { head, ticket, story: Story::default() })),
    })
}

/// What a gRPC status says of the endpoint that it comes from.
fn grpc_verdict(status: &[u8]) -> Verdict {
    match status {
        b"8" => Verdict::Overloaded { retry_after: None },
        b"13" | b"14" | b"15" => Verdict::Failure,
        _ => Verdict::Success,
    }
}

/// What the end of a gRPC response says of its endpoint. One without a status anywhere is none.
pub fn grpc_end(trailers: Option<&HeaderMap>) -> Verdict {
    let status = trailers.and_then(|trailers| trailers.get(GRPC_STATUS));
    status.map_or(Verdict::Failure, |status| grpc_verdict(status.as_bytes()))
}

/// What a receiving host says when it answers instead of its application; without a verdict where it says nothing of it.
fn peers_failure(service: &str, headers: &HeaderMap) -> Option<(Outcome, Option<Verdict>, Error)> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or("unreadable").to_owned();
    if let Some(why) = headers.get(headers::REFUSED).map(text) {
        // A limit of the host's is no failure of the instance.
        let verdict = match why.as_str() {
            "circuit_open" => Some(Verdict::Overloaded { retry_after: None }),
            // The application's own limit on streams or its goodbye, as from one that is asked directly, or our own message.
            "application" | "bad_request" => None,
            // Leaving or not: it takes no requests now, and the next one should go elsewhere.
            _ => Some(Verdict::Absent),
        };
        let error = match why.as_str() {
            "connect" => Error::connect(service, "the receiving host cannot reach its application"),
            _ => Error::Refused(why),
        };
        return Some((Outcome::Refused, verdict, error));
    }
    if let Some(why) = headers.get(headers::MALFORMED).map(text) {
        let verdict = (why != TOO_LARGE).then_some(Verdict::Failure);
        return Some((Outcome::ResetAfterHead, verdict, Error::BadResponse(why)));
    }
    match headers.get(headers::FAILED).map(text)?.as_str() {
        "timeout" => Some((
            Outcome::ResetAfterHead,
            Some(Verdict::Timeout),
            Error::Timeout("at the receiving host".into()),
        )),
        why => Some((
            Outcome::ResetBeforeHead,
            (why != MISREAD).then_some(Verdict::Reset),
            Error::Reset(format!("at the receiving host: {why}")),
        )),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Why a response that is beyond our limits is not passed on, here and from the receiving host.
pub const TOO_LARGE: &str =
    "its head is larger than 64 KiB, has more than 400 fields, or cannot be read";
/// How the receiving host says that an application speaks another HTTP than it was asked in.
pub const MISREAD: &str = "it speaks HTTP/2 only, as is known now; declare its protocol";
/// When a gRPC server wants to see the call again, if at all.
const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_of_a_grpc_call_is_its_status_wherever_it_stands() {
        let end = |status: &'static str| {
            let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
            grpc_end(Some(&trailers))
        };
        assert_eq!(
            (end("0"), end("5"), end("14")),
            (Verdict::Success, Verdict::Success, Verdict::Failure)
        );
        assert_eq!(end("8"), Verdict::Overloaded { retry_after: None });
        assert_eq!(grpc_end(Some(&HeaderMap::new())), Verdict::Failure);
        assert_eq!(grpc_end(None), Verdict::Failure);
    }
}

//! What a proxy does to a message: decided here for both directions and every hop, and nowhere else.
//!
//! [`receive`] reads a request's head, on whichever side it arrives, and [`answered`] a response's, from whichever
//! hop it comes. Both take off what ends at this hop and leave a head whose framing means one thing.
//! What the next hop's HTTP needs beyond that is added where the request for it is made (`template`).
//!
//! The folder holds functions over `http`'s types: no IO, no clock, nothing of ours beside the names of our headers.
//!
//! Sources: RFC 9110 §6 and §7, RFC 9112 §3 and §6, RFC 9113 §8.

pub mod deadline;
pub mod framing;
pub mod headers;
pub mod hops;
pub mod target;
pub mod trailers;

use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, MAX_FORWARDS};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode, Version};

use framing::{BodyLength, StatedLength};
use headers::Found;
use hops::Hops;
use target::RequestTarget;

/// Why a message may not be forwarded, in words for whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// It breaks a rule that keeps hops from understanding it differently: a 400, or a 502 for a response.
    Malformed(&'static str),
    /// It asks for what this proxy cannot do: a 501, or a 502 for a response.
    NotImplemented(&'static str),
}

/// What a request's head said, once what ends at this hop is taken off it.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// Whom and what it asks for.
    pub target: RequestTarget,
    /// Its caller speaks HTTP/2: as it came here, or to the host of ours that it came from.
    pub over_http2: bool,
    /// How the length of its body is known.
    pub length: BodyLength,
    /// The proxies of ours that it has passed.
    pub hops: Hops,
    /// The time its caller gives us, from `evenkeel-timeout` and `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// The time its caller gives the whole call, from `grpc-timeout` alone.
    pub grpc_timeout: Option<Duration>,
}

/// Reads a request's head and takes off what ends at this hop. `fixed`: the service of a listener of its own.
///
/// # Errors
/// The request may not be forwarded.
pub fn receive(
    parts: &mut Parts,
    found: Found,
    fixed: Option<&str>,
) -> Result<ReceivedRequest, MessageError> {
    let target = match parts.method {
        Method::CONNECT => tunnel_target(parts, found)?,
        _ => target::of(parts, fixed)?,
    };
    let headers = &mut parts.headers;
    if found.upgrade && headers::asks_for_websocket(headers) {
        return Err(MessageError::NotImplemented(SWITCH));
    }
    let length = framing::settle(headers, found)?;
    let hops = if found.hops { hops::passed(headers) } else { Hops::default() };
    let from_host = headers.contains_key(headers::SERVICE);
    let received = ReceivedRequest {
        target,
        over_http2: if from_host { hops.came_in_http2 } else { parts.version == Version::HTTP_2 },
        length,
        hops,
        timeout: if found.timeout { deadline::callers_timeout(headers) } else { None },
        grpc_timeout: if found.timeout { deadline::grpc_timeout(headers) } else { None },
    };
    headers::strip(headers, found);
    Ok(received)
}

/// The target of a CONNECT. It has no path: rules and routes for paths are asked with `/`.
fn tunnel_target(parts: &Parts, found: Found) -> Result<RequestTarget, MessageError> {
    let authority = target::of_connect(parts)?;
    // RFC 9110 §9.3.6 gives it no meaning, and who reads it as the tunnel's first bytes reads something else than who skips it.
    if found.coded || !matches!(found.length, StatedLength::None | StatedLength::Once(0)) {
        return Err(MessageError::Malformed("CONNECT has no content: send it in the tunnel"));
    }
    Ok(RequestTarget { authority, path: PathAndQuery::from_static("/") })
}

/// Reads a response's head as it comes from the hop that sent it.
///
/// # Errors
/// The response may not be passed on: its body could be taken for something else, or it switches the
/// connection to a protocol that nobody asked for (RFC 9110 §15.2.2).
pub fn answered<B>(response: &mut Response<B>) -> Result<Found, MessageError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(MessageError::Malformed("it switches protocols, which nobody asked for"));
    }
    let status = response.status();
    let headers = response.headers_mut();
    let found = headers::find(headers);
    framing::settle(headers, found)?;
    if found.length != StatedLength::None && framing::has_no_length(status) {
        headers.remove(http::header::CONTENT_LENGTH);
    }
    Ok(found)
}

/// As a plain GET it would get an answer that its caller cannot use, and no reason.
const SWITCH: &str = "it asks to go on as a WebSocket (Upgrade), which this proxy cannot pass on yet: \
    let the client reach the application directly, at an address from a look-up";

/// Whether a request may go on by its `Max-Forwards` (RFC 9110 §7.6.2), which OPTIONS and TRACE have; if so, with one less.
///
/// The calling host asks, and the receiving one does not: between them they are one proxy.
pub fn may_go_on(parts: &mut Parts, found: Found) -> bool {
    !found.max_forwards
        || !matches!(parts.method, Method::OPTIONS | Method::TRACE)
        || count_down(&mut parts.headers)
}

fn count_down(headers: &mut HeaderMap) -> bool {
    let digits = headers.get(MAX_FORWARDS).map(HeaderValue::as_bytes).unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return true;
    }
    let asked = digits
        .iter()
        .fold(0u32, |n, digit| n.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    let left = asked.checked_sub(1);
    if let Some(left) = left {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left));
    }
    left.is_some()
}

#[cfg(test)]
mod tests;

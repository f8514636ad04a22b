//! Why a request got an answer from us instead of from the application.
//!
//! Decides, in one exhaustive match, what each failure looks like to the caller (status, RFC 9209
//! `Proxy-Status` error type, gRPC status), in metrics (`reason`) and in the access log. A caller of gRPC gets
//! a trailers-only response, everyone else an RFC 9457 problem that says what to do next.
//!
//! Sources: RFC 9209 §2.3 (error types), RFC 9457, the gRPC HTTP/2 protocol's status mapping.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{HeaderName, Response, StatusCode};

use crate::body::Reply;
use crate::message::MessageError;
use crate::message::hops::HOPS_MAX;

/// A request that did not end with the application's own response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The caller named a service that the mesh does not know.
    UnknownService(String),
    /// Nobody has told this host yet of all services of the mesh, and this is none that it knows.
    NotTold(String),
    /// The service is known but nobody can take the request.
    NoEndpoint {
        /// The service.
        service: String,
        /// Which filter left nothing.
        why: &'static str,
    },
    /// A circuit limit of the upstream was reached.
    CircuitOpen(String),
    /// This process has no file descriptors left for another connection.
    OutOfDescriptors,
    /// Every endpoint that was tried could not be reached; nothing was sent.
    Connect {
        /// The service.
        service: String,
        /// What stood in the way.
        what: String,
    },
    /// The endpoint's host refused the request before its application saw it.
    Refused(String),
    /// The connection broke after the request was sent.
    Reset(String),
    /// No response head within the policy's or the caller's time.
    Timeout(String),
    /// The caller's message is not one that may be forwarded.
    BadRequest(&'static str),
    /// The message cannot be written in the protocol of where it is to go.
    Unsendable(String),
    /// The caller's message asks for what a proxy of ours does not do.
    NotImplemented(&'static str),
    /// The application's response is not one that may be passed on.
    BadResponse(String),
    /// The caller went away or broke its own upload.
    CallerGone,
    /// The request came back to where it was sent from.
    Loop,
    /// The request has passed too many hosts of ours to be anything but going round.
    TooManyHops,
    /// Passing requests on to names outside the mesh is switched off.
    PassthroughOff(String),
    /// A name outside the mesh that does not resolve or answer.
    Passthrough(String),
    /// A host of the mesh asked for a service that this host does not offer.
    Misdirected(String),
    /// The caller's address belongs to no live member.
    NotMember,
    /// A rule of `ratelimit.apply` refused it.
    Limited(Box<Limited>),
}

/// A limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// The resource.
    pub resource: String,
    /// Its capacity, in whole units.
    pub quota: u64,
    /// The time for which that is; `None`: it is held, not spent.
    pub window: Option<Duration>,
    /// When it would be worth trying again, if that is known.
    pub retry_after: Option<Duration>,
    /// Why this host could not let it go.
    pub cause: LimitCause,
}

/// Why a request may not draw on a resource now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitCause {
    /// What this host has of it is used up.
    #[default]
    Reached,
    /// This host has just begun to ask for it, or the hosts have not agreed yet who shares it: its part is to come.
    NotGrantedYet,
    /// The root of the resource does not answer, and the rule lets no more go meanwhile.
    RootSilent,
}

impl LimitCause {
    /// For `Proxy-Status`; empty where the reason says it all.
    fn detail(self) -> &'static str {
        match self {
            LimitCause::Reached => "",
            LimitCause::NotGrantedYet => "lease not granted yet",
            LimitCause::RootSilent => "root does not answer",
        }
    }
}

impl Limited {
    /// `Retry-After` (RFC 9110 §10.2.3), and `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers) where the limit is a rate.
    pub fn headers(&self, headers: &mut HeaderMap) {
        let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
        // Where nobody knows, a second: by then what hosts have may have changed.
        let retry_after = self.retry_after.map_or(1, seconds).max(1);
        headers.insert(RETRY_AFTER, HeaderValue::from(retry_after));
        let Some(window) = self.window else { return };
        let name: String = self
            .resource
            .chars()
            .filter(|c| (' '..='~').contains(c) && !matches!(c, '"' | '\\'))
            .collect();
        let policy = format!("\"{name}\";q={};w={}", self.quota, seconds(window).max(1));
        for (header, value) in [
            (HeaderName::from_static("ratelimit"), format!("\"{name}\";r=0;t={retry_after}")),
            (HeaderName::from_static("ratelimit-policy"), policy),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(header, value);
            }
        }
    }
}

impl Error {
    /// Nothing could be sent to any endpoint of this service.
    pub fn connect(service: &str, what: impl Into<String>) -> Error {
        Error::Connect { service: service.to_owned(), what: what.into() }
    }

    /// The label in `evenkeel_failures_total{reason}` and in the access log.
    pub fn reason(&self) -> &'static str {
        self.facts().reason
    }

    /// The status the caller sees (for gRPC it travels as a grpc-status).
    pub fn status(&self) -> StatusCode {
        self.facts().status
    }

    fn facts(&self) -> Facts {
        let f = |status, reason, proxy, grpc| Facts { status, reason, proxy, grpc };
        match self {
            Error::UnknownService(_) => {
                f(StatusCode::NOT_FOUND, "unknown_service", "destination_not_found", UNIMPLEMENTED)
            }
            Error::NotTold(_) => f(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_told",
                "destination_unavailable",
                UNAVAILABLE,
            ),
            Error::NoEndpoint { .. } => f(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_endpoint",
                "destination_unavailable",
                UNAVAILABLE,
            ),
            Error::CircuitOpen(_) => f(
                StatusCode::SERVICE_UNAVAILABLE,
                "circuit_open",
                "connection_limit_reached",
                UNAVAILABLE,
            ),
            Error::OutOfDescriptors => f(
                StatusCode::SERVICE_UNAVAILABLE,
                "out_of_descriptors",
                "connection_limit_reached",
                UNAVAILABLE,
            ),
            Error::Connect { .. } => {
                f(StatusCode::SERVICE_UNAVAILABLE, "connect", "connection_refused", UNAVAILABLE)
            }
            Error::Refused(_) => f(
                StatusCode::SERVICE_UNAVAILABLE,
                "refused",
                "destination_unavailable",
                UNAVAILABLE,
            ),
            Error::Reset(_) => {
                f(StatusCode::BAD_GATEWAY, "reset", "connection_terminated", UNAVAILABLE)
            }
            Error::Timeout(_) => f(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "http_response_timeout",
                DEADLINE_EXCEEDED,
            ),
            Error::BadRequest(_) => {
                f(StatusCode::BAD_REQUEST, "bad_request", "http_request_error", INTERNAL)
            }
            Error::Unsendable(_) => {
                f(StatusCode::BAD_REQUEST, "unsendable", "http_request_error", INTERNAL)
            }
            Error::NotImplemented(_) => f(
                StatusCode::NOT_IMPLEMENTED,
                "not_implemented",
                "http_request_error",
                UNIMPLEMENTED,
            ),
            Error::BadResponse(_) => {
                f(StatusCode::BAD_GATEWAY, "bad_response", "http_protocol_error", INTERNAL)
            }
            Error::CallerGone => {
                f(StatusCode::BAD_REQUEST, "caller_gone", "http_request_error", CANCELLED)
            }
            Error::Loop | Error::TooManyHops => {
                f(StatusCode::LOOP_DETECTED, "loop", "proxy_loop_detected", INTERNAL)
            }
            Error::PassthroughOff(_) => f(
                StatusCode::FORBIDDEN,
                "passthrough_off",
                "http_request_denied",
                PERMISSION_DENIED,
            ),
            Error::Passthrough(_) => {
                f(StatusCode::BAD_GATEWAY, "passthrough", "destination_unavailable", UNAVAILABLE)
            }
            Error::Misdirected(_) => f(
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                "destination_not_found",
                UNAVAILABLE,
            ),
            Error::Limited(_) => f(
                StatusCode::TOO_MANY_REQUESTS,
                "limited",
                "http_request_denied",
                RESOURCE_EXHAUSTED,
            ),
            Error::NotMember => {
                f(StatusCode::FORBIDDEN, "not_member", "http_request_denied", PERMISSION_DENIED)
            }
        }
    }

    /// What happened and what to do about it, for a person.
    pub fn detail(&self) -> String {
        match self {
            Error::UnknownService(name) => format!(
                "no host of the mesh offers a service named {name:?}; `evenkeel services` lists those that exist"
            ),
            Error::NotTold(name) => format!(
                "this host has just started and no other has told it yet which services there are, so {name:?} may be one: ask again in a moment; `/readyz` says when all are known"
            ),
            Error::NoEndpoint { service, why } => format!(
                "no instance of {service} can take the request ({why}); `evenkeel explain {service}` shows each one"
            ),
            Error::CircuitOpen(service) => {
                format!("too much is in flight to {service}; raise policy.circuit or add instances")
            }
            Error::OutOfDescriptors => {
                "this host has no file descriptors left for another connection; raise LimitNOFILE or ulimit -n".to_owned()
            }
            Error::Connect { service, what } => format!(
                "nothing was sent to {service}: {what}; `evenkeel endpoints {service}` shows who answers"
            ),
            Error::Refused(what) => format!(
                "the receiving host refused the request before the application saw it: {what}"
            ),
            Error::Reset(what) => format!(
                "the connection broke after the request was sent; it may have been executed, so it is sent again only where policy.repeat allows it: {what}"
            ),
            Error::Timeout(what) => {
                format!(
                    "no response in time: {what}; policy.timeout sets the limit, or the caller's evenkeel-timeout or grpc-timeout where that is shorter"
                )
            }
            Error::Unsendable(what) => format!(
                "the request cannot be written in the HTTP that the service speaks; send it as plain HTTP has it: {what}"
            ),
            Error::BadRequest(what) | Error::NotImplemented(what) => (*what).to_owned(),
            Error::BadResponse(what) => {
                format!("the application's response cannot be passed on: {what}")
            }
            Error::CallerGone => "the request's body ended before it was complete".to_owned(),
            Error::Loop => {
                "the request was addressed to this proxy itself; name a service in Host".to_owned()
            }
            Error::TooManyHops => format!(
                "the request has passed {HOPS_MAX} hosts of the mesh: some service's address leads back into the mesh; `evenkeel endpoints`, with the name of one, shows where its instances are"
            ),
            Error::PassthroughOff(host) => {
                format!("{host} is outside the mesh and outbound.passthrough is false")
            }
            Error::Passthrough(what) => format!("outside the mesh: {what}"),
            Error::Misdirected(service) => {
                format!(
                    "this host does not offer {service}; the caller's view of the mesh is being updated"
                )
            }
            Error::Limited(limited) => {
                let resource = &limited.resource;
                match limited.cause {
                    LimitCause::Reached => format!(
                        "the limit on {resource} is reached; `evenkeel quotas` shows who has how much of it"
                    ),
                    LimitCause::NotGrantedYet => format!(
                        "this host has been granted no lease on {resource} yet: it has just begun to ask, or the hosts are still agreeing on who shares the limits; try again in a moment, `evenkeel quotas` shows how far they are"
                    ),
                    LimitCause::RootSilent => format!(
                        "the root of {resource} does not answer, and what may go without it is used up; `evenkeel quotas` names the root, ratelimit.apply[].fail says what goes meanwhile"
                    ),
                }
            }
            Error::NotMember => {
                "the caller's address belongs to no live member of this mesh".to_owned()
            }
        }
    }

    /// The response the caller gets.
    ///
    /// `grpc`: the caller speaks gRPC and wants a trailers-only response. A request that is not understood also closes the connection.
    pub fn response(&self, grpc: bool) -> Response<Reply> {
        let facts = self.facts();
        let detail = self.detail();
        let mut response = Response::new(Reply::Empty);
        let headers = response.headers_mut();
        let more = match self {
            Error::Limited(limited) => limited.cause.detail(),
            _ => "",
        };
        headers.insert(PROXY_STATUS, proxy_status(facts.proxy, facts.reason, more));
        match self {
            Error::Limited(limited) => limited.headers(headers),
            Error::NotTold(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1));
            }
            _ => {}
        }
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(facts.grpc));
            if let Ok(message) = HeaderValue::from_str(&percent_encode(&detail)) {
                headers.insert(GRPC_MESSAGE, message);
            }
            return response;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(facts.status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let problem = serde_json::json!({
            "title": facts.status.canonical_reason().unwrap_or("Error"),
            "status": facts.status.as_u16(),
            "reason": facts.reason,
            "detail": detail,
        });
        *response.status_mut() = facts.status;
        *response.body_mut() = Reply::full(format!("{problem}\n").into());
        response
    }
}

impl From<MessageError> for Error {
    fn from(error: MessageError) -> Error {
        match error {
            MessageError::Malformed(what) => Error::BadRequest(what),
            MessageError::NotImplemented(what) => Error::NotImplemented(what),
        }
    }
}

struct Facts {
    status: StatusCode,
    reason: &'static str,
    proxy: &'static str,
    grpc: u16,
}

fn proxy_status(error: &'static str, reason: &'static str, more: &'static str) -> HeaderValue {
    let colon = if more.is_empty() { "" } else { ": " };
    HeaderValue::from_str(&format!("evenkeel; error={error}; details=\"{reason}{colon}{more}\""))
        .expect("static tokens are a valid header value")
}

/// gRPC's percent-encoding of `grpc-message`: printable ASCII but `%` stays.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => write!(out, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
    }
    out
}

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// The status of a gRPC call.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

const CANCELLED: u16 = 1;
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_the_service_and_its_reason() {
        let response = Error::UnknownService("paymnts".into()).response(false);
        assert_eq!(response.status(), 404);
        assert_eq!(
            response.headers()["proxy-status"],
            "evenkeel; error=destination_not_found; details=\"unknown_service\""
        );
        let Reply::Full(Some(body)) = response.into_body() else { panic!("a problem has a body") };
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["reason"], "unknown_service");
        assert!(problem["detail"].as_str().unwrap().contains("paymnts"));
    }

    #[test]
    fn the_command_to_go_on_with_can_be_copied() {
        let detail = Error::connect("payments", "connection refused").detail();
        assert!(detail.contains("`evenkeel endpoints payments`"), "{detail}");
    }

    #[test]
    fn a_name_that_may_exist_is_not_said_to_be_unknown() {
        let response = Error::NotTold("payments".into()).response(false);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &HeaderValue::from(1))
        );
    }

    #[test]
    fn grpc_gets_a_trailers_only_response() {
        let response = Error::Timeout("100 % späť".into()).response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        let message = response.headers()["grpc-message"].to_str().unwrap();
        assert!(message.contains("100 %25 sp%C3%A4%C5%A5"), "{message}");
    }

    #[test]
    fn a_limit_says_when_to_come_back() {
        let limited = Limited {
            resource: "db.\"payments\"".into(),
            quota: 500,
            window: Some(Duration::from_secs(1)),
            retry_after: Some(Duration::from_millis(1_200)),
            cause: LimitCause::Reached,
        };
        let response = Error::Limited(Box::new(limited.clone())).response(false);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["ratelimit"], "\"db.payments\";r=0;t=2");
        assert_eq!(response.headers()["ratelimit-policy"], "\"db.payments\";q=500;w=1");
        let held = Limited { window: None, retry_after: None, ..limited };
        let response = Error::Limited(Box::new(held)).response(true);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(!response.headers().contains_key("ratelimit"));
    }

    #[test]
    fn a_limit_that_was_not_granted_is_not_called_reached() {
        let said = |cause| {
            let limited = Limited {
                resource: "db".into(),
                quota: 500,
                window: Some(Duration::from_secs(1)),
                retry_after: None,
                cause,
            };
            let error = Error::Limited(Box::new(limited));
            let status = error.response(false).headers()["proxy-status"].clone();
            (error.detail(), status.to_str().unwrap().to_owned())
        };
        for (cause, words, details) in [
            (LimitCause::Reached, "is reached", "details=\"limited\""),
            (LimitCause::NotGrantedYet, "granted no lease", "\"limited: lease not granted yet\""),
            (LimitCause::RootSilent, "does not answer", "\"limited: root does not answer\""),
        ] {
            let (detail, status) = said(cause);
            assert!(detail.contains(words) && detail.contains("evenkeel quotas"), "{detail}");
            assert_eq!(detail.contains("is reached"), cause == LimitCause::Reached, "{detail}");
            assert!(status.ends_with(details), "{status}");
        }
    }

    #[test]
    fn a_bad_request_closes_the_connection() {
        for error in [Error::BadRequest("no host"), Error::NotImplemented("gzip")] {
            assert_eq!(error.response(false).headers()["connection"], "close");
        }
    }
}

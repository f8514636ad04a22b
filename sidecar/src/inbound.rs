//! A request of another host to an application on this one.
//!
//! Accepts requests only from addresses of live members (until certificates say who they are), only for
//! instances registered here, and sends them to the application once: whether a request may be sent again
//! is decided by the host that knows all endpoints. What goes wrong is told in `evenkeel-refused` (the
//! application never saw the request) or `evenkeel-failed` (it may have).
//!
//! A CONNECT is answered when its instance has accepted a connection; then its stream and that connection are one [tunnel](crate::tunnel).
//!
//! A caller's cancellation resets the stream, the stream's task drops [`handle`]'s future, and with it the connection to the
//! application closes.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use evenkeel_config::policy::Circuit;
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;

use crate::attempt::{self, Connection, Destination, Head};
use crate::body::{Body, ReceivedBody, Reply};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Target};
use crate::interim::Interim;
use crate::judge::{MISREAD, TOO_LARGE};
use crate::key::{self, Keys};
use crate::limit::{self, Asked};
use crate::link::Link;
use crate::message::headers::{self, Found};
use crate::message::{self, MessageError};
use crate::own;
use crate::pool::{Charge, DialError, SendError};
use crate::route::Local;
use crate::template::Template;
use crate::worker::{INBOUND, Worker};

/// Answers one request.
pub async fn handle(
    worker: &Rc<Worker>,
    link: &Rc<Link>,
    request: Request<ReceivedBody>,
    interim: Interim,
) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    let found = headers::find(&parts.headers);
    let mut exchange = Exchange::begin(worker, link, INBOUND, &parts, found, interim);
    match forward(worker, link, parts, body, found, &mut exchange).await {
        Ok(head) => {
            let idle_timeout = match head.connection {
                Connection::Tunnel(_) => TUNNEL_IDLE_TIMEOUT,
                Connection::H1(_) | Connection::H2(_) => IDLE_TIMEOUT,
            };
            exchange.respond(Answer { head, ticket: None, idle_timeout })
        }
        Err((error, told)) => {
            let grpc = found.grpc && matches!(told, Told::Limited);
            let mut response = exchange.fail(&error, grpc);
            let (name, why) = match told {
                Told::Refused(why) => (headers::REFUSED, why),
                Told::Failed(why) => (headers::FAILED, why),
                Told::Malformed(why) => (headers::MALFORMED, why),
                Told::Limited => (headers::LIMITED, "limited"),
            };
            response.headers_mut().insert(name, HeaderValue::from_static(why));
            response
        }
    }
}

/// How the calling host hears of a failure.
enum Told {
    /// It is the answer, and for no other instance to give: the limit is everyone's.
    Limited,
    /// The application never saw the request.
    Refused(&'static str),
    /// It may have.
    Failed(&'static str),
    /// It answered, but not so that it could be passed on.
    Malformed(&'static str),
}

async fn forward(
    worker: &Rc<Worker>,
    link: &Link,
    mut parts: http::request::Parts,
    body: ReceivedBody,
    found: Found,
    exchange: &mut Exchange,
) -> Result<Box<Head>, (Error, Told)> {
    let router = worker.router();
    if !router.members.contains_key(&link.peer.ip().to_canonical()) {
        return Err((Error::NotMember, Told::Refused("not_member")));
    }
    if worker.shared.refusing.load(Ordering::Relaxed) {
        return Err((Error::Refused("this host is draining".into()), Told::Refused("draining")));
    }
    let asked = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let service = asked(headers::SERVICE).unwrap_or_default();
    let local = asked(headers::INSTANCE)
        .and_then(|instance| router.local.get(instance))
        .filter(|local| *local.service == *service)
        .ok_or_else(|| (Error::Misdirected(service.to_owned()), Told::Refused("misdirected")))?;
    exchange.target = Target::Local(Arc::clone(&local.service));

    let received = message::receive(&mut parts, found, None).map_err(bad_request)?;
    let left = received.timeout;
    if !local.limits.is_empty() {
        let caller = link.peer.ip();
        let source = key::Source {
            headers: &parts.headers,
            path: received.target.path.path(),
            caller,
            host: router.host_at(caller),
        };
        let deadline = exchange.start + left.unwrap_or(IDLE_TIMEOUT);
        let asked = Asked { method: &parts.method, source, deadline };
        let places = Box::pin(limit::admit(&local.limits, asked)).await;
        exchange.places = places.map_err(|limited| (limited, Told::Limited))?;
    }
    let template = Template::new(parts, received, found, Keys::default(), exchange.start);
    let body = if template.opens_tunnel() {
        exchange.says_in_tunnel = Some(Box::new(body));
        Body::Empty
    } else {
        // A tunnel owes no answer that could be late.
        exchange.visit = local.watched.visit(Instant::now());
        if body.is_end_stream() { Body::Empty } else { Body::Stream(body) }
    };

    let sending = send(worker, local, &template, body, left, &exchange.interim);
    let sent = match left {
        None => sending.await,
        Some(left) => tokio::time::timeout_at((exchange.start + left).into(), sending)
            .await
            .unwrap_or_else(|_| {
                Err((
                    Error::Timeout(format!("{} did not answer", local.service)),
                    Told::Failed("timeout"),
                ))
            }),
    };
    if let (Ok(_), Some(visit)) = (&sent, &mut exchange.visit) {
        visit.head(Instant::now());
    }
    sent
}

async fn send(
    worker: &Rc<Worker>,
    local: &Local,
    template: &Template,
    body: Body,
    left: Option<Duration>,
    interim: &Interim,
) -> Result<Box<Head>, (Error, Told)> {
    let charge = Some(Charge { circuit: &local.circuit, limits: &CIRCUIT });
    let (address, protocol) = (local.address, local.protocol);
    let application = Destination { address, from: None, charge, protocol };
    let h2 = application.speaks_http2(worker, template).await;
    let request = template.handed_over(body, left, h2);
    let sent = attempt::once(worker, application, request, interim, false);
    sent.await.map_err(|unsent| match unsent {
        attempt::Unsent::Dial(DialError::Unreachable(what)) => {
            (Error::connect(&local.service, what), Told::Refused("connect"))
        }
        attempt::Unsent::Dial(DialError::OwnListener) => (
            Error::connect(&local.service, own::SERVICE_IS_OWN_LISTENER),
            Told::Refused(own::SERVICE_IS_OWN_LISTENER),
        ),
        attempt::Unsent::Dial(DialError::OutOfDescriptors) => {
            (Error::OutOfDescriptors, Told::Refused("circuit_open"))
        }
        attempt::Unsent::Dial(DialError::CircuitOpen) => {
            (Error::CircuitOpen(local.service.to_string()), Told::Refused("circuit_open"))
        }
        attempt::Unsent::Send(SendError::NotSent(_)) => (
            Error::connect(&local.service, "the application closed the connection at once"),
            Told::Refused("connect"),
        ),
        attempt::Unsent::Send(SendError::Unsendable(what)) => {
            (Error::Unsendable(what), Told::Failed("unsendable"))
        }
        attempt::Unsent::Send(SendError::Refused(what)) => {
            (Error::Refused(what), Told::Refused("application"))
        }
        attempt::Unsent::Send(SendError::Unreadable) => {
            (Error::BadResponse(TOO_LARGE.into()), Told::Malformed(TOO_LARGE))
        }
        attempt::Unsent::Send(SendError::Misread(what)) => {
            (Error::Reset(what), Told::Failed(MISREAD))
        }
        attempt::Unsent::Send(SendError::Reset(what) | SendError::NoHttp1(what)) => {
            (Error::Reset(what), Told::Failed("reset"))
        }
        attempt::Unsent::Send(SendError::Caller) => {
            (Error::CallerGone, Told::Failed("caller_gone"))
        }
        attempt::Unsent::Malformed(what) => {
            (Error::BadResponse(what.to_owned()), Told::Malformed(what))
        }
    })
}

/// What no host of ours sends; the application does not see it.
fn bad_request(error: MessageError) -> (Error, Told) {
    (error.into(), Told::Refused("bad_request"))
}

/// The calling host ends idle streams by its policy; this one only keeps a lost caller from holding one for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// A tunnel may be silent for longer than any policy of this host knows; the stream of a caller that is lost ends with its connection.
const TUNNEL_IDLE_TIMEOUT: Duration = Duration::MAX;
/// What other hosts may have open to one instance of this host: an application that hangs shall not take all descriptors.
const CIRCUIT: Circuit = Circuit { connections: 1024, pending: 1024, requests: 4096 };

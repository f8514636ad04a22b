//! Requests for names outside the mesh: so that `http_proxy` can point here for everything. A host of the mesh
//! (`host-a.node.mesh:9001`) is asked in the same way: it is no service, so there is nothing to choose.
//!
//! Nothing is balanced, repeated or hedged: the name is resolved, the request sent once in HTTP/1.1, and CONNECT
//! becomes a [tunnel](crate::tunnel). A request that is addressed to one of our own listeners would come back for ever and is
//! refused; so is one that already passed a proxy with our `Via` (RFC 9110 §7.6.3).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use evenkeel_config::settings::Protocol;
use http::Method;
use http::request::Parts;
use http::uri::Authority;
use http_body::Body as _;
use tokio::net::TcpStream;

use crate::attempt::{self, Head, Unsent};
use crate::body::{Body, ReceivedBody};
use crate::error::Error;
use crate::exchange::{Answer, Exchange};
use crate::judge::TOO_LARGE;
use crate::key::Keys;
use crate::link::Link;
use crate::message::ReceivedRequest;
use crate::message::headers::Found;
use crate::message::hops::{self, ViaMark};
use crate::pool::{DialError, SendError};
use crate::socket::Socket;
use crate::template::Template;
use crate::tunnel::TunnelEnd;
use crate::worker::{Shared, Worker};

/// Sends a request to a host outside the mesh, or to a host of the mesh at this address.
pub async fn forward(
    worker: &Rc<Worker>,
    link: &Link,
    ((mut parts, received), at): ((Parts, ReceivedRequest), Option<IpAddr>),
    body: ReceivedBody,
    found: Found,
    exchange: &Exchange,
) -> Result<Answer, Error> {
    if received.hops.went_outside {
        return Err(Error::Loop);
    }
    if parts.method == Method::CONNECT {
        return open(worker, link, &received.target.authority, at).await;
    }
    let address = resolve(&worker.shared, &received.target.authority, at, 80).await?;
    // A request that was not written for a proxy and goes to where it was sent is a loop even behind a redirect.
    if address == link.local {
        return Err(Error::Loop);
    }
    hops::mark(&mut parts.headers, parts.version, ViaMark::Outside);
    let template = Template::new(parts, received, found, Keys::default(), exchange.start);
    let body = if body.is_end_stream() { Body::Empty } else { Body::Stream(body) };
    let request = template.addressed(body, found.grpc);
    let limit = if request.body().is_end_stream() { HEAD_TIMEOUT } else { UPLOAD_TIMEOUT };
    let protocol = Some(if found.grpc { Protocol::Grpc } else { Protocol::Http });
    let outside = attempt::Destination { address, from: None, charge: None, protocol };
    let sending = attempt::once(worker, outside, request, &exchange.interim, false);
    let head = tokio::time::timeout(limit, sending)
        .await
        .map_err(|_| Error::Timeout(format!("{address} did not answer")))?
        .map_err(|unsent| match unsent {
            Unsent::Dial(DialError::Unreachable(what)) => Error::Passthrough(what),
            Unsent::Dial(DialError::OwnListener) => Error::Loop,
            Unsent::Dial(DialError::OutOfDescriptors) => Error::OutOfDescriptors,
            Unsent::Dial(DialError::CircuitOpen) => {
                Error::Passthrough("too many connections".into())
            }
            Unsent::Send(SendError::Unreadable) => Error::BadResponse(TOO_LARGE.into()),
            Unsent::Send(SendError::Unsendable(what)) => Error::Unsendable(what),
            Unsent::Send(
                SendError::Reset(what)
                | SendError::NoHttp1(what)
                | SendError::Misread(what)
                | SendError::Refused(what),
            ) => Error::Reset(what),
            Unsent::Send(SendError::NotSent(_)) => {
                Error::Passthrough(format!("{address} closed the connection"))
            }
            Unsent::Send(SendError::Caller) => Error::CallerGone,
            Unsent::Malformed(what) => Error::BadResponse(what.to_owned()),
        })?;
    Ok(Answer { head, ticket: None, idle_timeout: IDLE_TIMEOUT })
}

/// Opens a tunnel to a host outside the mesh. It may be silent for as long as its ends like.
async fn open(
    worker: &Worker,
    link: &Link,
    target: &Authority,
    at: Option<IpAddr>,
) -> Result<Answer, Error> {
    if !link.can_tunnel() {
        return Err(Error::BadRequest(
            "CONNECT to what is outside the mesh is served over HTTP/1.1 only",
        ));
    }
    let address = resolve(&worker.shared, target, at, 443).await?;
    let far = tokio::time::timeout(HEAD_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| Error::Timeout(format!("{address} did not accept")))?;
    let failed = |error| Error::Passthrough(format!("{address}: {error}"));
    let far = far.map_err(failed)?;
    if !worker.shared.descriptors.may_keep(&far) {
        return Err(Error::OutOfDescriptors);
    }
    let far = TunnelEnd::dialled(Socket::new(far).map_err(failed)?, None);
    Ok(Answer { head: Head::of_tunnel(far), ticket: None, idle_timeout: Duration::MAX })
}

async fn resolve(
    shared: &Shared,
    authority: &Authority,
    at: Option<IpAddr>,
    default_port: u16,
) -> Result<SocketAddr, Error> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(default_port);
    let address = match at.or_else(|| host.parse().ok()) {
        Some(ip) => SocketAddr::new(ip, port),
        None => shared.lookups.resolve(host, port).await.map_err(Error::Passthrough)?,
    };
    if address.ip().is_unspecified() || shared.own.has(address) {
        return Err(Error::Loop);
    }
    Ok(address)
}

const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// To a response's head when there is a body to send first.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

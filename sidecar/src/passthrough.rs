//! Requests for names outside the mesh: so that `http_proxy` can point here for everything.
//!
//! Nothing is balanced, repeated or hedged: the name is resolved, the request sent once in HTTP/1.1, and CONNECT
//! becomes a tunnel. A request that is addressed to one of our own listeners would come back for ever and is
//! refused; so is one that already passed a proxy with our `Via` (RFC 9110 §7.6.3).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http::header::{HeaderValue, VIA};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Response, StatusCode, Uri};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::attempt::{self, Unsent};
use crate::body::{Body, ReceivedBody, Reply};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Target};
use crate::headers::{self, Found};
use crate::interim::Interim;
use crate::key::Keys;
use crate::link::Link;
use crate::pool::{DialError, SendError};
use crate::route::Destination;
use crate::socket::Socket;
use crate::template::Template;
use crate::worker::{Shared, Worker};

/// Sends a request to a host outside the mesh.
pub async fn forward(
    worker: &Rc<Worker>,
    link: &Link,
    authority: Authority,
    mut parts: Parts,
    body: ReceivedBody,
    found: Found,
    interim: &Interim,
) -> Result<Answer, Error> {
    if parts.headers.get_all(VIA).iter().any(|via| via.as_bytes() == OUR_VIA.as_bytes()) {
        return Err(Error::Loop);
    }
    if parts.uri.scheme_str() == Some("https") {
        return Err(Error::BadRequest("https through a proxy goes by CONNECT"));
    }
    let address = resolve(&worker.shared, &authority, 80).await?;
    // A request that was not written for a proxy and goes to where it was sent is a loop even behind a redirect.
    if address == link.local {
        return Err(Error::Loop);
    }
    let grpc = found.grpc;
    headers::strip(&mut parts.headers, found);
    parts.headers.append(VIA, HeaderValue::from_static(OUR_VIA));
    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let keys = Keys::default();
    let template =
        Template { method: parts.method, path, authority, headers: parts.headers, grpc, keys };
    let body = if body.is_end_stream() { Body::Empty } else { Body::Stream(body) };
    let mut request = template.blank(body);
    template.address(&mut request, grpc);
    let limit = if request.body().is_end_stream() { HEAD_TIMEOUT } else { UPLOAD_TIMEOUT };
    let sending = attempt::once(worker, address, None, None, request, interim, false);
    let head = tokio::time::timeout(limit, sending)
        .await
        .map_err(|_| Error::Timeout(format!("{address} did not answer")))?
        .map_err(|unsent| match unsent {
            Unsent::Dial(DialError::Unreachable(what)) => Error::Passthrough(what),
            Unsent::Dial(DialError::CircuitOpen) => {
                Error::Passthrough("too many connections".into())
            }
            Unsent::Send(SendError::Unsendable(what)) => Error::Unsendable(what),
            Unsent::Send(SendError::Reset(what) | SendError::Refused(what)) => Error::Reset(what),
            Unsent::Send(SendError::NotSent(_)) => {
                Error::Passthrough(format!("{address} closed the connection"))
            }
            Unsent::Send(SendError::Caller) => Error::CallerGone,
        })?;
    Ok(Answer { head, ticket: None, idle_timeout: IDLE_TIMEOUT })
}

/// Opens a tunnel to a host outside the mesh; the connection becomes one when the response is written.
pub async fn connect(
    worker: &Rc<Worker>,
    link: &Link,
    mut exchange: Box<Exchange>,
    uri: &Uri,
) -> Response<Reply> {
    match dial(worker, link, &mut exchange, uri).await {
        Ok(far) => {
            link.tunnel(Tunnel { far, exchange });
            Response::new(Reply::Empty)
        }
        Err(error) => exchange.fail(&error, false),
    }
}

/// A connection to a host outside the mesh that an application's connection is joined to.
#[derive(Debug)]
pub struct Tunnel {
    far: Socket,
    exchange: Box<Exchange>,
}

impl Tunnel {
    /// Joins them until both ends have ended; `early`: what the application sent already.
    pub async fn run(mut self, mut near: impl AsyncRead + AsyncWrite + Unpin, early: &[u8]) {
        let joined = async {
            self.far.write_all(early).await?;
            tokio::io::copy_bidirectional(&mut near, &mut self.far).await
        };
        let broken = joined.await.is_err();
        self.exchange.tunnelled(StatusCode::OK.as_u16(), broken);
    }
}

async fn dial(
    worker: &Worker,
    link: &Link,
    exchange: &mut Exchange,
    uri: &Uri,
) -> Result<Socket, Error> {
    if !link.can_tunnel() {
        return Err(Error::BadRequest("CONNECT is served over HTTP/1.1 only"));
    }
    let target = uri.authority().ok_or(Error::BadRequest("CONNECT names no host and port"))?;
    exchange.target = Target::Foreign(target.as_str().into());
    let router = worker.router();
    match router.resolve(target.as_str()) {
        Destination::Foreign if router.passthrough => {}
        Destination::Foreign => return Err(Error::PassthroughOff(target.to_string())),
        Destination::Unknown(name) => return Err(Error::UnknownService(name)),
        Destination::Upstream(_) => {
            return Err(Error::BadRequest(
                "CONNECT is for hosts outside the mesh: ask for a service's name by plain HTTP, without TLS of your own",
            ));
        }
    }
    let address = resolve(&worker.shared, target, 443).await?;
    let far = tokio::time::timeout(HEAD_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| Error::Timeout(format!("{address} did not accept")))?;
    far.and_then(Socket::new).map_err(|error| Error::Passthrough(format!("{address}: {error}")))
}

async fn resolve(
    shared: &Shared,
    authority: &Authority,
    default_port: u16,
) -> Result<SocketAddr, Error> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(default_port);
    let address = match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => tokio::net::lookup_host((host, port))
            .await
            .ok()
            .and_then(|mut found| found.next())
            .ok_or_else(|| Error::Passthrough(format!("{host} does not resolve")))?,
    };
    if is_own(&shared.own.load(), shared.node_address, address) {
        return Err(Error::Loop);
    }
    Ok(address)
}

fn is_own(own: &[SocketAddr], node: IpAddr, address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    own.iter().any(|ours| {
        let here = ours.ip().is_unspecified() && (ip.is_loopback() || ip == node);
        ours.port() == address.port() && (ours.ip().to_canonical() == ip || here)
    }) || ip.is_unspecified()
}

const OUR_VIA: &str = "1.1 evenkeel";
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// To a response's head when there is a body to send first.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listeners_are_not_passed_through_to() {
        let own: Vec<SocketAddr> =
            vec!["127.0.0.1:7080".parse().unwrap(), "0.0.0.0:7110".parse().unwrap()];
        let node: IpAddr = "192.0.2.5".parse().unwrap();
        let is = |address: &str| is_own(&own, node, address.parse().unwrap());
        assert!(is("127.0.0.1:7080"));
        assert!(is("127.0.0.1:7110") && is("192.0.2.5:7110"));
        assert!(is("0.0.0.0:1"));
        assert!(!is("127.0.0.2:7080") && !is("192.0.2.6:7110"));
    }
}

//! A request of an application on this host, from its head to its response.
//!
//! Has its head [read](message::receive), decides whether the name it asks for is the mesh's, and hands the request to
//! [`attempt::send`] (a CONNECT to [`connect::open`]) or, for names outside the mesh, to [`passthrough`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::Hop;
use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;

use crate::attempt::{self, Deadline, Story, Won, connect};
use crate::body::{ReceivedBody, Replay, Reply};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Target};
use crate::interim::Interim;
use crate::key::{self, Keys};
use crate::limit::{self, Asked};
use crate::link::Link;
use crate::message::headers::{self, Found};
use crate::message::hops::{self, ViaMark};
use crate::message::{self, ReceivedRequest};
use crate::passthrough;
use crate::route::{Destination, Router};
use crate::template::Template;
use crate::worker::{OUTBOUND, Worker};

/// Answers one request. `fixed`: the service of a listener of its own.
pub async fn handle(
    worker: &Rc<Worker>,
    link: &Rc<Link>,
    fixed: Option<&str>,
    request: Request<ReceivedBody>,
    interim: Interim,
) -> Response<Reply> {
    let found = headers::find(request.headers());
    let suspect = found.coded && link.head_had_length();
    let mut response = answered(worker, link, fixed, request, found, interim).await;
    if suspect {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answered(
    worker: &Rc<Worker>,
    link: &Rc<Link>,
    fixed: Option<&str>,
    request: Request<ReceivedBody>,
    found: Found,
    interim: Interim,
) -> Response<Reply> {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(worker, link, OUTBOUND, &parts, found, interim);
    if parts.method == Method::CONNECT && fixed.is_some() {
        return exchange.fail(
            &Error::BadRequest("CONNECT is for outbound.listen, this is one service's listener"),
            false,
        );
    }
    let received = match message::receive(&mut parts, found, fixed) {
        Ok(received) => received,
        Err(refused) => return exchange.fail(&refused.into(), found.grpc),
    };
    if !message::may_go_on(&mut parts, found) {
        return answer(exchange, &parts.method);
    }
    let forwarding = forward(worker, link, fixed, (parts, received), body, found, &mut exchange);
    match forwarding.await {
        Ok(answer) => exchange.respond(answer),
        Err(error) => exchange.fail(&error, found.grpc),
    }
}

async fn forward(
    worker: &Rc<Worker>,
    link: &Link,
    fixed: Option<&str>,
    (mut parts, received): (Parts, ReceivedRequest),
    body: ReceivedBody,
    found: Found,
    exchange: &mut Exchange,
) -> Result<Answer, Error> {
    if received.hops.too_many() {
        return Err(Error::TooManyHops);
    }
    let authority = &received.target.authority;
    let router = router_for(worker, fixed.unwrap_or(authority.as_str())).await;
    let upstream = match fixed {
        Some(name) => match router.upstreams.get(name) {
            Some(upstream) => upstream,
            None if router.partial => return Err(Error::NotTold(name.to_owned())),
            None => return Err(Error::UnknownService(name.to_owned())),
        },
        None => match router.resolve(authority.as_str()) {
            Destination::Upstream(upstream) => upstream,
            Destination::NotTold(name) => {
                exchange.target = Target::Foreign(name.as_str().into());
                return Err(Error::NotTold(name));
            }
            Destination::Unknown(name) => {
                exchange.target = Target::Foreign(name.as_str().into());
                return Err(Error::UnknownService(name));
            }
            known @ (Destination::Host(_) | Destination::Foreign | Destination::ForeignSoFar) => {
                exchange.target = Target::Foreign(authority.as_str().into());
                if !router.passthrough {
                    return Err(Error::PassthroughOff(authority.to_string()));
                }
                let at = match known {
                    Destination::Host(address) => Some(address),
                    _ => None,
                };
                let request = (parts, received);
                return passthrough::forward(worker, link, (request, at), body, found, exchange)
                    .await;
            }
        },
    };
    exchange.target = Target::Upstream(Arc::clone(upstream));

    let path = received.target.path.path();
    let route = upstream.route(&parts.method, path);
    let asked = received.timeout;
    let timeout = asked.map_or(route.policy.timeout, |asked| asked.min(route.policy.timeout));
    let (start, hard) = (exchange.start, asked.is_some());
    let deadline = Deadline { start, at: start + timeout, hard };
    let source = key::Source {
        headers: &parts.headers,
        path,
        caller: link.peer.ip(),
        host: &worker.shared.node_name,
    };
    if !upstream.limits.is_empty() {
        let asked = Asked { method: &parts.method, source, deadline: deadline.at };
        // Seldom, and large: kept out of every other request.
        exchange.places = Box::pin(limit::admit(&upstream.limits, asked)).await?;
    }
    let keys = Keys::of(&route.policy, source);
    hops::mark(&mut parts.headers, parts.version, ViaMark::Mesh);
    let template = Template::new(parts, received, found, keys, exchange.start);
    let won = if template.opens_tunnel() {
        exchange.says_in_tunnel = Some(Box::new(body));
        let interim = &exchange.interim;
        // Seldom, and large: kept out of every other request.
        Box::pin(connect::open(worker, upstream, route, &template, deadline, interim)).await?
    } else {
        let body = (!body.is_end_stream()).then(|| {
            let (max, buffers) = (route.policy.max_body_buffer, Arc::clone(&worker.shared.buffers));
            Replay::new(body, max, buffers, exchange.start)
        });
        let interim = &exchange.interim;
        attempt::send(worker, upstream, route, &template, body, deadline, interim).await?
    };
    if found.debug {
        exchange.debug = Some(debug(&won));
    }
    Ok(Answer { head: won.head, ticket: Some(won.ticket), idle_timeout: route.policy.idle_timeout })
}

/// The router for a request to this host. Before all is known that the mesh has, one that knows the host is waited for,
/// for at most [`NOT_TOLD_MAX`].
pub async fn router_for(worker: &Worker, host: &str) -> Arc<Router> {
    let router = worker.router();
    if !router.partial {
        return router;
    }
    // Seldom, and large: kept out of every other request.
    Box::pin(async {
        let until = Instant::now() + NOT_TOLD_MAX;
        loop {
            let router = worker.router();
            let is_open =
                matches!(router.resolve(host), Destination::NotTold(_) | Destination::ForeignSoFar);
            if !is_open || Instant::now() >= until {
                return router;
            }
            // A router has no bell that rings when it changes, and a host starts seldom.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await
}

/// A request that its caller sent no further than to the first proxy (RFC 9110 §7.6.2), which is this one.
fn answer(exchange: Box<Exchange>, method: &Method) -> Response<Reply> {
    if *method == Method::TRACE {
        let refused = Error::NotImplemented(
            "TRACE ends here (Max-Forwards: 0) and a proxy's requests are not shown: send it further",
        );
        return exchange.fail(&refused, false);
    }
    exchange.answered(StatusCode::OK);
    Response::new(Reply::Empty)
}

/// How a request went, for who asked: a list of parameters (RFC 8941 §3.1.2 writes them so).
fn debug(won: &Won) -> HeaderValue {
    let (spec, Story { copy_won, copies, retries }) = (won.ticket.endpoint().spec(), won.story);
    let hop = match spec.hop {
        Hop::Direct => "direct",
        Hop::Mesh => "mesh",
    };
    let by = match (copy_won, retries) {
        (true, _) => "copy",
        (false, 0) => "first",
        (false, _) => "retry",
    };
    let text = format!(
        "instance={}; address={}; hop={hop}; zone={}; answered_by={by}; copies={copies}; retries={retries}",
        spec.instance,
        spec.address,
        spec.zone.as_deref().unwrap_or("none"),
    );
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

/// A request for a name that is not known yet waits for so long: as a rule a host is told of all within a second.
const NOT_TOLD_MAX: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

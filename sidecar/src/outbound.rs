//! A request of an application on this host, from its head to its response.
//!
//! Reads the authority the way RFC 9112 §3.2 and RFC 9113 §8.3.1 say (absolute form and `:authority` before
//! `Host`), decides whether the name is the mesh's, and hands the request to [`attempt::send`] or, for names
//! outside the mesh, to [`passthrough`].

use std::rc::Rc;
use std::sync::Arc;

use evenkeel_balancer::Hop;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Version};
use http_body::Body as _;

use crate::attempt::{self, Deadline, Story, Won};
use crate::body::{ReceivedBody, Replay, Reply};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Target};
use crate::headers::{self, Found};
use crate::interim::Interim;
use crate::key::{self, Keys};
use crate::limit::{self, Asked};
use crate::link::Link;
use crate::passthrough;
use crate::route::Destination;
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
    let (parts, body) = request.into_parts();
    let found = headers::find(&parts.headers);
    let mut exchange = Exchange::begin(worker, link, OUTBOUND, &parts, found, interim);
    if parts.method == Method::CONNECT && fixed.is_some() {
        return exchange.fail(
            &Error::BadRequest("CONNECT is for outbound.listen, this is one service's listener"),
            false,
        );
    }
    if parts.method == Method::CONNECT {
        return passthrough::connect(worker, link, exchange, &parts.uri).await;
    }
    let suspect = found.chunked && link.head_had_length();
    let mut response = match forward(worker, link, fixed, parts, body, found, &mut exchange).await {
        Ok(answer) => exchange.respond(answer),
        Err(error) => exchange.fail(&error, found.grpc),
    };
    if suspect {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn forward(
    worker: &Rc<Worker>,
    link: &Link,
    fixed: Option<&str>,
    mut parts: Parts,
    body: ReceivedBody,
    found: Found,
    exchange: &mut Exchange,
) -> Result<Answer, Error> {
    let authority = authority(&parts, fixed)?;
    let router = worker.router();
    let upstream = match fixed {
        Some(name) => {
            router.hosts.get(name).ok_or_else(|| Error::UnknownService(name.to_owned()))?
        }
        None => match router.resolve(authority.as_str()) {
            Destination::Upstream(upstream) => upstream,
            Destination::Unknown(name) => {
                exchange.target = Target::Foreign(name.as_str().into());
                return Err(Error::UnknownService(name));
            }
            Destination::Foreign => {
                exchange.target = Target::Foreign(authority.as_str().into());
                if !router.passthrough {
                    return Err(Error::PassthroughOff(authority.to_string()));
                }
                let interim = &exchange.interim;
                return passthrough::forward(worker, link, authority, parts, body, found, interim)
                    .await;
            }
        },
    };
    exchange.target = Target::Upstream(Arc::clone(upstream));

    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let route = upstream.route(&parts.method, path.path());
    let asked = if found.timeout { headers::callers_timeout(&parts.headers) } else { None };
    let timeout = asked.map_or(route.policy.timeout, |asked| asked.min(route.policy.timeout));
    let (start, hard) = (exchange.start, asked.is_some());
    let deadline = Deadline { start, at: start + timeout, hard };
    let source = key::Source {
        headers: &parts.headers,
        path: path.path(),
        caller: link.peer.ip(),
        host: &worker.shared.node_name,
    };
    if !upstream.limits.is_empty() {
        let asked = Asked { method: &parts.method, source, deadline: deadline.at };
        // Seldom, and large: kept out of every other request.
        exchange.places = Box::pin(limit::admit(&upstream.limits, asked)).await?;
    }
    let keys = Keys::of(&route.policy, source);
    headers::strip(&mut parts.headers, found);
    let body = (!body.is_end_stream()).then(|| {
        let (max, buffers) = (route.policy.max_body_buffer, Arc::clone(&worker.shared.buffers));
        Replay::new(body, max, buffers, exchange.start)
    });
    let template = Template {
        method: parts.method,
        path,
        authority,
        headers: parts.headers,
        grpc: found.grpc,
        keys,
    };
    let interim = &exchange.interim;
    let won = attempt::send(worker, upstream, route, &template, body, deadline, interim).await?;
    if found.debug {
        exchange.debug = Some(debug(&won));
    }
    Ok(Answer { head: won.head, ticket: Some(won.ticket), idle_timeout: route.policy.idle_timeout })
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

/// The authority that a request is for; on a service's own listener HTTP/1.0 may leave it out.
fn authority(parts: &Parts, fixed: Option<&str>) -> Result<Authority, Error> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::BadRequest("more than one Host header"));
    }
    if let Some(authority) = parts.uri.authority() {
        return Ok(authority.clone());
    }
    let host = host
        .map(HeaderValue::as_bytes)
        .or(fixed.filter(|_| parts.version < Version::HTTP_11).map(str::as_bytes));
    let host = host.ok_or(Error::BadRequest("no Host header: name a service in it"))?;
    Authority::try_from(host)
        .map_err(|_| Error::BadRequest("the Host header is not a host and port"))
}

//! A request of an application on this host, from its head to its response.
//!
//! Reads the authority the way RFC 9112 §3.2 and RFC 9113 §8.3.1 say (absolute form and `:authority` before
//! `Host`), decides whether the name is the mesh's, and hands the request to [`attempt::send`] or, for names
//! outside the mesh, to [`passthrough`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};

use crate::access::Record;
use crate::attempt::{self, Deadline, Template};
use crate::body::{Replay, Reply};
use crate::connection::Link;
use crate::error::Error;
use crate::headers;
use crate::passthrough;
use crate::route::Destination;
use crate::worker::{OUTBOUND, Worker};

/// Answers one request. `fixed`: the service of a listener of its own.
pub async fn handle(
    worker: &Rc<Worker>,
    link: &Link,
    fixed: Option<&str>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let start = Instant::now();
    let (parts, body) = request.into_parts();
    let grpc = headers::is_grpc(&parts.headers);
    let suspect = parts.headers.contains_key(TRANSFER_ENCODING) && link.head_had_length();
    let mut record = Record {
        shared: Arc::clone(&worker.shared),
        worker: worker.id,
        metrics: Some(Arc::clone(&worker.shared.other)),
        direction: "outbound",
        upstream: Arc::clone(&worker.shared.unnamed),
        method: parts.method.clone(),
        path: parts.uri.path_and_query().cloned(),
        request_id: parts.headers.get(REQUEST_ID).cloned(),
        peer: link.peer,
        start,
        status: 0,
    };
    let mut response = match forward(worker, link, fixed, parts, body, grpc, &mut record).await {
        Ok(response) => response,
        Err(error) => {
            record.status = error.status().as_u16();
            record.complete(Instant::now(), Some(error.reason()));
            error.response(grpc)
        }
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
    body: Incoming,
    grpc: bool,
    record: &mut Record,
) -> Result<Response<Reply>, Error> {
    let in_flight = worker.request(OUTBOUND);
    if parts.method == Method::CONNECT {
        let target = parts
            .uri
            .authority()
            .cloned()
            .ok_or(Error::BadRequest("CONNECT names no host and port"))?;
        return passthrough::connect(
            worker,
            in_flight,
            target,
            Request::from_parts(parts, body),
            record,
        )
        .await;
    }
    let authority = authority(&parts)?;
    let router = worker.router();
    let upstream = match fixed {
        Some(name) => {
            router.hosts.get(name).ok_or_else(|| Error::UnknownService(name.to_owned()))?
        }
        None => match router.resolve(authority.as_str()) {
            Destination::Upstream(upstream) => upstream,
            Destination::Unknown(name) => return Err(Error::UnknownService(name)),
            Destination::Foreign => {
                record.upstream = Arc::from(authority.as_str());
                if !router.passthrough {
                    return Err(Error::PassthroughOff(authority.to_string()));
                }
                return passthrough::forward(
                    worker, link, in_flight, authority, parts, body, record,
                )
                .await;
            }
        },
    };
    record.upstream = Arc::clone(&upstream.name);
    record.metrics = Some(Arc::clone(&upstream.metrics));

    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let route = upstream.route(&parts.method, path.path());
    let asked = headers::callers_timeout(&parts.headers);
    let timeout = asked.map_or(route.policy.timeout, |asked| asked.min(route.policy.timeout));
    let deadline = Deadline { at: record.start + timeout, hard: asked.is_some() };
    clean(&mut parts.headers);
    let body = (!body.is_end_stream()).then(|| {
        Replay::new(
            body,
            route.policy.max_body_buffer,
            Arc::clone(&worker.shared.buffers),
            record.start,
        )
    });
    let template = Template { method: parts.method, path, authority, headers: parts.headers, grpc };
    let won = attempt::send(worker, upstream, route, &template, body, deadline).await?;
    Ok(won.into_response(in_flight, record.take(), &route.policy))
}

/// What is left of a request's headers for the next hop.
pub fn clean(headers: &mut HeaderMap) {
    headers::strip_hop_by_hop(headers);
    headers::strip_ours(headers);
    // hyper has answered the expectation when the body is read.
    headers.remove(EXPECT);
}

/// The authority that a request is for.
pub fn authority(parts: &Parts) -> Result<Authority, Error> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::BadRequest("more than one Host header"));
    }
    if let Some(authority) = parts.uri.authority() {
        return Ok(authority.clone());
    }
    let host = host.ok_or(Error::BadRequest("no Host header: name a service in it"))?;
    Authority::try_from(host.as_bytes())
        .map_err(|_| Error::BadRequest("the Host header is not a host and port"))
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

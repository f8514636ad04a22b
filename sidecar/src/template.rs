//! A request as every attempt at it is made from: what the next hop's HTTP needs, and what hosts tell each other.

use std::time::Duration;

use evenkeel_balancer::{Endpoint, Hop};
use evenkeel_config::settings::Protocol;
use http::header::{HOST, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};

use crate::body::Body;
use crate::headers;
use crate::key::Keys;
use crate::route::Upstream;

/// A request as every attempt sends it.
#[derive(Debug)]
pub struct Template {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: PathAndQuery,
    /// The authority as the application wrote it.
    pub authority: Authority,
    /// End-to-end headers, `Host` among them.
    pub headers: HeaderMap,
    /// Whether it is gRPC's.
    pub grpc: bool,
    /// What decides where it may go.
    pub keys: Keys,
}

impl Template {
    /// The request for one endpoint.
    pub fn request(
        &self,
        upstream: &Upstream,
        endpoint: &Endpoint,
        body: Body,
        left: Option<Duration>,
    ) -> Request<Body> {
        let spec = endpoint.spec();
        let mut request = self.blank(body);
        if spec.hop == Hop::Mesh {
            let headers = request.headers_mut();
            if let Some(left) = left {
                headers.insert(headers::TIMEOUT, headers::timeout_value(left));
            }
            headers.insert(headers::SERVICE, name_value(&upstream.name));
            headers.insert(headers::INSTANCE, name_value(&spec.instance));
        }
        self.address(&mut request, spec.hop == Hop::Mesh || speaks_h2(spec.protocol, self.grpc));
        request
    }

    /// Method, headers and body, not yet addressed.
    pub fn blank(&self, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// Sets version, target and `Host` as the next hop's HTTP wants them.
    pub fn address(&self, request: &mut Request<Body>, h2: bool) {
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(self.path.clone());
        if h2 {
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(self.authority.clone());
        } else {
            // RFC 9112 §3.2.2: what the request line names counts, whatever `Host` said.
            let host = self.authority.as_str();
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            if request.headers().get(HOST).is_none_or(|named| named.as_bytes() != host.as_bytes())
                && let Ok(host) = HeaderValue::from_str(host)
            {
                request.headers_mut().insert(HOST, host);
            }
        }
        *request.uri_mut() =
            Uri::from_parts(uri).expect("a path, or all three parts, are a valid URI");
    }
}

/// Whether an application is spoken to in HTTP/2. One whose protocol is not known gets what its caller speaks.
pub fn speaks_h2(protocol: Option<Protocol>, grpc: bool) -> bool {
    match protocol {
        Some(Protocol::Http2 | Protocol::Grpc) => true,
        Some(Protocol::Http) => false,
        None => grpc,
    }
}

fn name_value(name: &str) -> HeaderValue {
    HeaderValue::from_str(name).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

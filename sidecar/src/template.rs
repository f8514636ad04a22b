//! A request as every attempt at it is made from: what the next hop's HTTP needs, and what hosts tell each other.
//!
//! What all attempts share stands in the head that [`receive`](crate::message::receive) left; what depends on the next hop is
//! added here: the version's way to name the target, framing where no length is known, joined cookies and
//! `te` for HTTP/1.1 or HTTP/2, and the time that is left when the attempt begins.

use std::time::{Duration, Instant};

use evenkeel_balancer::{Endpoint, Hop};
use http::header::{HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};
use hyper::body::Body as HttpBody;

use crate::body::Body;
use crate::key::Keys;
use crate::message::framing::{self, BodyLength};
use crate::message::headers::{self, Found};
use crate::message::hops::Hops;
use crate::message::{ReceivedRequest, deadline};
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
    /// Its caller speaks HTTP/2, or it is gRPC, which is spoken over that alone.
    pub wants_http2: bool,
    /// How the length of its body is known.
    pub length: BodyLength,
    /// Its caller takes trailers.
    pub takes_trailers: bool,
    /// It has more than one `cookie`.
    pub split_cookie: bool,
    /// The proxies of ours that it passed before this one.
    pub hops: Hops,
    /// When its caller's `grpc-timeout` is over.
    pub grpc_deadline: Option<Instant>,
    /// What decides where it may go.
    pub keys: Keys,
}

impl Template {
    /// A request that came at `start`, its head already [received](crate::message::receive).
    pub fn new(
        parts: Parts,
        received: ReceivedRequest,
        found: Found,
        keys: Keys,
        start: Instant,
    ) -> Template {
        Template {
            method: parts.method,
            path: received.target.path,
            authority: received.target.authority,
            headers: parts.headers,
            grpc: found.grpc,
            wants_http2: found.grpc || received.over_http2,
            length: received.length,
            takes_trailers: found.takes_trailers,
            split_cookie: found.split_cookie,
            hops: received.hops,
            grpc_deadline: received.grpc_timeout.and_then(|timeout| start.checked_add(timeout)),
            keys,
        }
    }

    /// It is a CONNECT.
    pub fn opens_tunnel(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// The request for one endpoint. `left`: until its response's head is due, if that is known. `h2`: it goes in HTTP/2.
    pub fn request(
        &self,
        upstream: &Upstream,
        endpoint: &Endpoint,
        body: Body,
        left: Option<Duration>,
        h2: bool,
    ) -> Request<Body> {
        let spec = endpoint.spec();
        let mesh = spec.hop == Hop::Mesh;
        let mut request = self.addressed(body, h2);
        let headers = request.headers_mut();
        if spec.node != 0 {
            // An instance of the mesh, on another host or on this one; others are nobody to tell.
            tell(headers, left, self.hops.value());
        }
        if mesh {
            headers.insert(headers::SERVICE, name_value(&upstream.name));
            headers.insert(headers::INSTANCE, name_value(&spec.instance));
        }
        request
    }

    /// The request for an application on this host that another host asks for.
    pub fn handed_over(&self, body: Body, left: Option<Duration>, h2: bool) -> Request<Body> {
        let mut request = self.addressed(body, h2);
        let counted = Hops { count: self.hops.count.saturating_sub(1), ..self.hops };
        tell(request.headers_mut(), left, counted.value());
        request
    }

    /// Method, headers and body, with version, target, `Host` and framing as the next hop's HTTP wants them.
    pub fn addressed<B: HttpBody>(&self, body: B, h2: bool) -> Request<B> {
        let chunked = !h2 && !matches!(self.length, BodyLength::Known(_)) && !body.is_end_stream();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(self.path.clone());
        if h2 {
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
            uri.authority = Some(self.authority.clone());
            if self.opens_tunnel() {
                // RFC 9113 §8.5.
                uri.path_and_query = None;
            } else {
                uri.scheme = Some(Scheme::HTTP);
            }
        } else {
            let headers = request.headers_mut();
            // RFC 9112 §3.2.2: what the request line names counts, whatever `Host` said.
            let host = self.authority.as_str();
            if headers.get(HOST).is_none_or(|named| named.as_bytes() != host.as_bytes())
                && let Ok(host) = HeaderValue::from_str(host)
            {
                headers.insert(HOST, host);
            }
            if self.split_cookie {
                headers::join_cookies(headers);
            }
            if chunked {
                headers.insert(TRANSFER_ENCODING, framing::CHUNKED);
            }
        }
        let version = request.version();
        if self.takes_trailers {
            headers::take_trailers(request.headers_mut(), version);
        }
        if let Some(at) = self.grpc_deadline {
            let left = at.saturating_duration_since(Instant::now());
            request.headers_mut().insert(headers::GRPC_TIMEOUT, deadline::grpc_timeout_value(left));
        }
        *request.uri_mut() = Uri::from_parts(uri)
            .expect("a path, an authority, or all three parts, are a valid URI");
        request
    }
}

/// Tells an instance of the mesh what time is left, so that it can hand that on, and how many hosts were passed.
fn tell(headers: &mut HeaderMap, left: Option<Duration>, hops: HeaderValue) {
    if let Some(left) = left {
        headers.insert(headers::TIMEOUT, deadline::timeout_value(left));
    }
    headers.insert(headers::HOPS, hops);
}

fn name_value(name: &str) -> HeaderValue {
    HeaderValue::from_str(name).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;
    use crate::message::headers::tests::map;

    fn template(fields: &[(&str, &str)]) -> Template {
        let request = Request::builder().method("GET").uri("/a").body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        parts.headers = map(&[&[("host", "pay")], fields].concat());
        let found = headers::find(&parts.headers);
        let received = message::receive(&mut parts, found, None).unwrap();
        Template::new(parts, received, found, Keys::default(), Instant::now())
    }

    #[test]
    fn each_version_gets_its_own_form_of_one_request() {
        let template = template(&[("cookie", "a"), ("cookie", "b"), ("te", "trailers")]);
        let http1 = template.addressed(Body::Empty, false);
        let expected =
            [("host", "pay"), ("cookie", "a; b"), ("te", "trailers"), ("connection", "te")];
        assert_eq!((http1.headers(), http1.uri()), (&map(&expected), &Uri::from_static("/a")));
        let http2 = template.addressed(Body::Empty, true);
        assert_eq!(http2.headers(), &map(&[("cookie", "a"), ("cookie", "b"), ("te", "trailers")]));
        assert_eq!(http2.uri(), &Uri::from_static("http://pay/a"));
    }

    #[test]
    fn the_time_of_a_grpc_call_shrinks_and_is_never_longer_than_asked() {
        let mut template = template(&[("grpc-timeout", "2S")]);
        let told = |template: &Template| {
            let request = template.addressed(Body::Empty, true);
            deadline::grpc_timeout(request.headers()).unwrap()
        };
        let (asked, first) = (Duration::from_secs(2), told(&template));
        assert!(first <= asked && first > asked / 2, "{first:?}");
        template.grpc_deadline = template.grpc_deadline.map(|at| at - asked / 2);
        assert!(told(&template) <= asked / 2, "an attempt a second later");
    }
}

//! Whose requests the control surfaces take (the HTTP catalogue and the admin listener), decided in one place, for
//! all of them, before anything is done.
//!
//! None of these listeners asks for a password: whoever reaches them is meant to ask. Three kinds of callers reach
//! them that are not meant.
//!
//! - **A page in a browser** on this host or in its network. What it sends to a foreign site carries `Origin`, or
//!   says in `Sec-Fetch-Site` that it does, and is refused. A site whose own name is made to resolve to this host
//!   (DNS rebinding) is no foreign site to the browser: it could read all answers. It gives itself away by the name
//!   in `Host`, so requests are only taken under names that nobody else can own: an address, a name without a dot,
//!   `.localhost` and `.internal` (both reserved), or `node.name`.
//! - **A request that came through a proxy**, ours or another: what is "only taken from the host itself" could be had
//!   from anywhere through a service that is registered on one of these listeners. Proxies say in `Via` and such that
//!   they passed a request on. What comes through the mesh comes from this very process, which never asks itself for
//!   anything; the control thread asks the kernel for that ([`crate::socket_owner`]), whatever the request looks like.
//! - **A request that two readers read differently**: several `Host` lines, a name with user information, bytes that
//!   are no name. Refused, as all that cannot be read is: the guard fails closed.
//!
//! A listener beyond loopback is for a network that may read all of it, under whatever name its scrapers and probes
//! know the host by: there `/livez`, `/readyz` and `/metrics` answer to any name. Reads may come through a proxy: a
//! dashboard is read so.
//!
//! Without a `Host` at all only HTTP/1.0 is served: browsers do not speak it, HAProxy's simplest health check does.
//!
//! Sources: RFC 9110 §7.2, RFC 9112 §3.2 (one `Host`, and 400 otherwise); Fetch Metadata Request Headers (W3C), §2.

use std::net::{IpAddr, Ipv6Addr};

use http::header::{FORWARDED, HOST, ORIGIN, VIA};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};

/// The guard of one listener.
#[derive(Debug, Clone)]
pub struct ControlGuard {
    /// `node.name`, a name that this host goes by.
    pub node_name: String,
    /// The listener stands on a loopback address.
    pub on_loopback: bool,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardRefusal {
    /// The caller's software: `Host` is missing, there twice, or is no name.
    UnreadableHost,
    /// It came under a name that is not this host's: DNS rebinding, or a name that only the caller's network knows.
    ForeignHost,
    /// A page in a browser sent it.
    FromPage,
    /// It would change something, and came through a proxy.
    FromProxy,
}

impl GuardRefusal {
    /// Status and text, for whoever asked.
    pub fn told(self) -> (StatusCode, &'static str) {
        match self {
            GuardRefusal::UnreadableHost => (
                StatusCode::BAD_REQUEST,
                "send one Host header with the name or address that this listener was called by",
            ),
            GuardRefusal::ForeignHost => (
                StatusCode::FORBIDDEN,
                "this listener answers to an address, a name without a dot or its node.name, not to other names: call it by one of these",
            ),
            GuardRefusal::FromPage => (
                StatusCode::FORBIDDEN,
                "no page in a browser may ask this: use `evenkeel`, or curl",
            ),
            GuardRefusal::FromProxy => (
                StatusCode::FORBIDDEN,
                "what changes something is not taken through a proxy or the mesh: ask this listener directly, from where it may be asked",
            ),
        }
    }
}

impl ControlGuard {
    /// Whether a request may be answered.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, request: &Parts) -> Result<(), GuardRefusal> {
        self.check_host(request)?;
        let reads = reads(&request.method);
        if from_page(&request.headers, reads) {
            return Err(GuardRefusal::FromPage);
        }
        if !reads && was_passed_on(&request.headers) {
            return Err(GuardRefusal::FromProxy);
        }
        Ok(())
    }

    fn check_host(&self, request: &Parts) -> Result<(), GuardRefusal> {
        let mut hosts = request.headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => Some(host.as_bytes()),
            (None, _) if request.version == Version::HTTP_10 => None,
            _ => return Err(GuardRefusal::UnreadableHost),
        };
        // A target in absolute form counts, and a name that it hides behind counts too.
        let target = request.uri.authority().map(|target| target.as_str().as_bytes());
        let probed = matches!(request.uri.path(), "/livez" | "/readyz" | "/metrics");
        for name in host.into_iter().chain(target) {
            let name = CallName::parse(name).ok_or(GuardRefusal::UnreadableHost)?;
            let any_name = probed && !self.on_loopback;
            if !any_name && !name.is_ours(&self.node_name) {
                return Err(GuardRefusal::ForeignHost);
            }
        }
        Ok(())
    }
}

/// Whether a request changes nothing.
pub fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether a page sent it. A link that somebody follows, to see the answer, is no page's request: the page cannot
/// read it.
fn from_page(headers: &HeaderMap, reads: bool) -> bool {
    let said = |name: &str, value: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|first| first == value) && values.next().is_none()
    };
    let followed = reads && said("sec-fetch-mode", "navigate");
    let by_site = headers.contains_key("sec-fetch-site") && !said("sec-fetch-site", "none");
    headers.contains_key(ORIGIN) || (by_site && !followed)
}

/// Whether a proxy says that it passed the request on.
fn was_passed_on(headers: &HeaderMap) -> bool {
    let says = |name: &str| name.starts_with("x-forwarded-") || name.starts_with("evenkeel-");
    headers.contains_key(VIA)
        || headers.contains_key(FORWARDED)
        || headers.keys().any(|name| says(name.as_str()))
}

/// The name or address that a caller used, without its port.
#[derive(Debug, PartialEq, Eq)]
enum CallName<'a> {
    Address(IpAddr),
    Name(&'a str),
}

impl<'a> CallName<'a> {
    /// RFC 3986 `host [ ":" port ]` and nothing else: no user information, no escapes.
    fn parse(text: &'a [u8]) -> Option<CallName<'a>> {
        let text = std::str::from_utf8(text).ok()?;
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            port.strip_prefix(':').map_or(port.is_empty(), is_port).then_some(())?;
            return address.parse().ok().map(|address: Ipv6Addr| CallName::Address(address.into()));
        }
        // Not as it should be written, but it cannot be mistaken for anything else.
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Some(CallName::Address(address.into()));
        }
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        is_port(port).then_some(())?;
        if let Ok(address) = name.parse::<IpAddr>() {
            return Some(CallName::Address(address));
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(of_name);
        name.split('.').all(is_label).then_some(CallName::Name(name))
    }

    /// Whether nobody else can own it. An address is named by whoever dials it: a page cannot make one mean something
    /// else.
    fn is_ours(&self, node_name: &str) -> bool {
        let CallName::Name(name) = self else { return true };
        let name = name.to_ascii_lowercase();
        !name.contains('.')
            || name.ends_with(".localhost")
            || name.ends_with(".internal")
            || name.eq_ignore_ascii_case(node_name)
    }
}

/// Empty, or a port's number.
fn is_port(text: &str) -> bool {
    text.is_empty()
        || (text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use GuardRefusal::{ForeignHost, FromPage, FromProxy, UnreadableHost};
    use http::Request;

    fn guard(on_loopback: bool) -> ControlGuard {
        ControlGuard { node_name: "host-a.example".to_owned(), on_loopback }
    }

    fn asked(method: &str, target: &str, headers: &[(&str, &[u8])]) -> Result<(), GuardRefusal> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard(true).check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn hosts_that_mean_this_one() {
        for (host, refused) in [
            ("127.0.0.1:7119", None),
            ("10.0.0.5", None),
            ("[::1]:7119", None),
            ("::1", None),
            ("localhost:7119", None),
            ("LOCALHOST", None),
            ("discovery", None),
            ("localhost:", None),
            ("my_host", None),
            ("host-a.example", None),
            ("Host-A.example.:7119", None),
            ("host.docker.internal:8500", None),
            ("app.localhost", None),
            ("evil.example:7119", Some(ForeignHost)),
            ("127.0.0.1.evil.example", Some(ForeignHost)),
            ("localhost.evil.example:7119", Some(ForeignHost)),
            ("internal.evil.example", Some(ForeignHost)),
            ("127.1", Some(ForeignHost)),
            ("", Some(UnreadableHost)),
            (".", Some(UnreadableHost)),
            (".localhost", Some(UnreadableHost)),
            ("evil.example@127.0.0.1", Some(UnreadableHost)),
            ("127.0.0.1:7119@evil.example", Some(UnreadableHost)),
            ("localhost, evil.example", Some(UnreadableHost)),
            ("localhost evil.example", Some(UnreadableHost)),
            ("localhost:70000", Some(UnreadableHost)),
            ("localhost:+80", Some(UnreadableHost)),
            ("localhost:80:80", Some(UnreadableHost)),
            ("[::1", Some(UnreadableHost)),
            ("[::1]x", Some(UnreadableHost)),
            ("[127.0.0.1]", Some(UnreadableHost)),
            ("evil.example/.localhost", Some(UnreadableHost)),
            ("evil.example%2elocalhost", Some(UnreadableHost)),
        ] {
            for method in ["GET", "PUT", "POST"] {
                let answer = asked(method, "/v1/self", &[("host", host.as_bytes())]);
                assert_eq!(answer.err(), refused, "{method} {host}");
            }
        }
    }

    #[test]
    fn a_host_that_cannot_be_read_is_refused() {
        let ours = ("host", &b"localhost"[..]);
        assert_eq!(asked("GET", "/", &[("host", b"evil\xff.example")]), Err(UnreadableHost));
        assert_eq!(asked("GET", "/", &[ours, ours]), Err(UnreadableHost));
        assert_eq!(asked("GET", "/", &[ours, ("host", b"evil.example")]), Err(UnreadableHost));
        assert_eq!(asked("GET", "/", &[]), Err(UnreadableHost));
        assert_eq!(asked("GET", "http://evil.example/", &[ours]), Err(ForeignHost));
        assert_eq!(asked("GET", "http://u@localhost/", &[ours]), Err(UnreadableHost));
        assert_eq!(asked("GET", "http://localhost/", &[ours]), Ok(()));
        let old = Request::builder().version(Version::HTTP_10).uri("/livez").body(()).unwrap();
        assert_eq!(guard(true).check(&old.into_parts().0), Ok(()));
    }

    #[test]
    fn beyond_loopback_probes_and_scrapers_use_any_name_and_nothing_else_does() {
        let named = |path: &str, host: &str| {
            let request = Request::builder().uri(path).header("host", host).body(()).unwrap();
            guard(false).check(&request.into_parts().0)
        };
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(named(path, "host-a.prod.example:7119"), Ok(()), "{path}");
            assert_eq!(named(path, "u@host-a.prod.example"), Err(UnreadableHost), "{path}");
            assert_eq!(asked("GET", path, &[("host", b"evil.example")]), Err(ForeignHost));
        }
        assert_eq!(named("/v1/members", "evil.example"), Err(ForeignHost));
    }

    #[test]
    fn pages_are_refused_and_tools_are_not() {
        let host = ("host", &b"localhost"[..]);
        for (method, header, value, refused) in [
            ("POST", "origin", &b"http://evil.example"[..], true),
            ("POST", "origin", b"null", true),
            ("POST", "origin", b"\xff", true),
            ("GET", "origin", b"http://evil.example", true),
            ("PUT", "sec-fetch-site", b"cross-site", true),
            ("POST", "sec-fetch-site", b"same-origin", true),
            ("GET", "sec-fetch-site", b"cross-site", true),
            ("GET", "sec-fetch-site", b"none", false),
            // As fetch() of Node.js sends it, which is no browser.
            ("POST", "sec-fetch-mode", b"cors", false),
            ("POST", "user-agent", b"curl/8", false),
        ] {
            let answer = asked(method, "/v1/limits/x/acquire", &[host, (header, value)]);
            assert_eq!(answer.err(), refused.then_some(FromPage), "{method} {header}");
        }
        let followed = [host, ("sec-fetch-site", b"cross-site"), ("sec-fetch-mode", b"navigate")];
        assert_eq!(asked("GET", "/metrics", &followed), Ok(()));
        assert_eq!(asked("POST", "/v1/limits/x/acquire", &followed), Err(FromPage));
    }

    #[test]
    fn what_a_proxy_passed_on_may_read_and_change_nothing() {
        let host = ("host", &b"localhost"[..]);
        for header in
            ["via", "forwarded", "x-forwarded-for", "evenkeel-timeout", "evenkeel-service"]
        {
            let passed_on = [host, (header, &b"1"[..])];
            assert_eq!(asked("PUT", "/v1/drain/host-b", &passed_on), Err(FromProxy), "{header}");
            assert_eq!(asked("GET", "/v1/members", &passed_on), Ok(()), "{header}");
        }
    }
}

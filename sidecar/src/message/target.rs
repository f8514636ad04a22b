//! Whom and what a request asks for.
//!
//! The authority is read the way RFC 9112 §3.2 and RFC 9113 §8.3.1 say: absolute form and `:authority` before `Host`. A target in a form
//! that its method does not have is refused, and so is every authority that two readers could take for different
//! ones: no host, a port that is none, userinfo (RFC 9110 §4.2.4: its presence is an error; it never travels
//! on and is never logged).

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Version};

use super::MessageError;
use super::MessageError::Malformed;

/// Whom and what a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTarget {
    /// The host and port, as the caller wrote them, without userinfo.
    pub authority: Authority,
    /// The path and query: a path, or `*` for OPTIONS of the server itself.
    pub path: PathAndQuery,
}

/// Reads the target of a request other than CONNECT.
///
/// `fixed`: the service of a listener of its own, where HTTP/1.0 may leave the authority out.
///
/// # Errors
/// It cannot be read in one way alone, or asks for what plain HTTP does not serve.
pub fn of(parts: &Parts, fixed: Option<&str>) -> Result<RequestTarget, MessageError> {
    let host = host(parts)?;
    if let Some(scheme) = parts.uri.scheme_str()
        && !scheme.eq_ignore_ascii_case("http")
    {
        return Err(Malformed(if scheme.eq_ignore_ascii_case("https") {
            "https is not served in clear: ask a service by http://, and a host outside the mesh by CONNECT"
        } else {
            "only http:// is served here"
        }));
    }
    let authority = match parts.uri.authority() {
        Some(_) if parts.uri.path_and_query().is_none() => {
            return Err(Malformed("a host and port alone is CONNECT's target: ask for a path"));
        }
        Some(authority) => checked(authority.clone())?,
        None => match (host, fixed) {
            (Some(host), _) => host,
            (None, Some(service)) => Authority::try_from(service)
                .map_err(|_| Malformed("the listener's service is not a host's name"))?,
            (None, None) => return Err(NO_HOST),
        },
    };
    Ok(RequestTarget { authority, path: path(parts)? })
}

/// Reads the target of CONNECT: a host and its port, and nothing else (RFC 9110 §9.3.6).
///
/// # Errors
/// It is anything else.
pub fn of_connect(parts: &Parts) -> Result<Authority, MessageError> {
    const WANTED: MessageError =
        Malformed("CONNECT names a host and its port, as in example.com:443");
    host(parts)?;
    let plain = parts.uri.scheme().is_none() && parts.uri.path_and_query().is_none();
    let target = parts.uri.authority().filter(|_| plain).ok_or(WANTED)?;
    let target = checked(target.clone())?;
    if target.port_u16().is_none_or(|port| port == 0) { Err(WANTED) } else { Ok(target) }
}

/// The `Host` field, which HTTP/1.1 must have even where the target names the host, and which is wrong where it is unreadable.
fn host(parts: &Parts) -> Result<Option<Authority>, MessageError> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let Some(host) = lines.next() else {
        return if parts.version == Version::HTTP_11 { Err(NO_HOST) } else { Ok(None) };
    };
    if lines.next().is_some() {
        return Err(Malformed("more than one Host header"));
    }
    let host = Authority::try_from(HeaderValue::as_bytes(host))
        .map_err(|_| Malformed("the Host header is not a host and port: name a service in it"))?;
    checked(host).map(Some)
}

/// The authority, if it is a host and perhaps a port.
fn checked(authority: Authority) -> Result<Authority, MessageError> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err(Malformed(
            "a user's name or password before the host is not accepted: send credentials in Authorization",
        ));
    }
    let host = authority.host();
    if host.is_empty() {
        return Err(Malformed("the host is empty: name a service in it"));
    }
    let port = &text[host.len()..];
    let digits = port.strip_prefix(':').unwrap_or(port);
    let fits = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.is_empty() || digits.parse::<u16>().is_ok())
        && (port.is_empty() || port.starts_with(':'));
    if fits { Ok(authority) } else { Err(Malformed("the port is not a number up to 65535")) }
}

/// The path as the next hop is asked for it (RFC 9112 §3.2.1 and §3.2.4).
fn path(parts: &Parts) -> Result<PathAndQuery, MessageError> {
    let Some(path) = parts.uri.path_and_query() else { return Ok(ROOT) };
    let text = path.as_str();
    if text == "*" && parts.method != Method::OPTIONS {
        return Err(Malformed("* is a target of OPTIONS alone: ask for a path"));
    }
    if text == "/" && parts.method == Method::OPTIONS && !has_written_path(parts) {
        return Ok(PathAndQuery::from_static("*"));
    }
    if text == "/" {
        // Not a copy: behind `http://host#fragment` it is empty and only reads as `/`, and would be sent as nothing.
        return Ok(ROOT);
    }
    if text.starts_with('/') || text == "*" {
        return Ok(path.clone());
    }
    PathAndQuery::try_from(format!("/{text}")).map_err(|_| Malformed("the target is not a path"))
}

/// Whether the `/` of a target is the caller's own.
///
/// `http` gives `http://host` the path of `http://host/`, and these are different things to OPTIONS alone. HTTP/1.1's target is
/// one text, so what the caller wrote stands right behind the authority, and what `http` added stands elsewhere.
fn has_written_path(parts: &Parts) -> bool {
    parts.version >= Version::HTTP_2
        || parts.uri.authority().is_none_or(|authority| {
            authority.as_str().as_bytes().as_ptr_range().end == parts.uri.path().as_ptr()
        })
}

const NO_HOST: MessageError = Malformed("no Host header: name a service in it");
const ROOT: PathAndQuery = PathAndQuery::from_static("/");

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, version: Version, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn read(method: &str, uri: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let target = of(&parts(method, uri, Version::HTTP_11, hosts), None);
        target.map(|target| format!("{} {}", target.authority, target.path)).map_err(text)
    }

    fn text(error: MessageError) -> &'static str {
        let (Malformed(text) | MessageError::NotImplemented(text)) = error;
        text
    }

    #[test]
    fn each_form_of_the_target_comes_to_an_authority_and_a_path() {
        for (method, uri, host, expected) in [
            ("GET", "/a?b", "pay", "pay /a?b"),
            ("GET", "/", "pay:80", "pay:80 /"),
            ("GET", "/", "pay:", "pay: /"),
            ("GET", "/", "[::1]:80", "[::1]:80 /"),
            ("GET", "http://pay/a", "other", "pay /a"),
            ("GET", "HTTP://pay:8080/a", "other", "pay:8080 /a"),
            ("GET", "http://pay", "pay", "pay /"),
            ("GET", "http://pay?q=1", "pay", "pay /?q=1"),
            ("OPTIONS", "*", "pay", "pay *"),
            ("OPTIONS", "http://pay", "pay", "pay *"),
            ("OPTIONS", "http://pay/", "pay", "pay /"),
            ("OPTIONS", "http://pay?q", "pay", "pay /?q"),
            ("OPTIONS", "/", "pay", "pay /"),
        ] {
            assert_eq!(read(method, uri, &[host]).as_deref(), Ok(expected), "{method} {uri}");
        }
    }

    #[test]
    fn a_target_that_can_be_read_in_two_ways_is_refused_and_says_what_to_do() {
        for (method, uri, hosts, says) in [
            ("GET", "/", &[][..], "no Host"),
            ("GET", "http://pay/", &[], "no Host"),
            ("GET", "/", &["pay", "pay"], "more than one Host"),
            ("GET", "/", &[""], "not a host"),
            ("GET", "http://pay/", &[""], "not a host"),
            ("GET", "http://pay/", &["a b/c"], "not a host"),
            ("GET", "/", &["a/b"], "not a host"),
            ("GET", "/", &[":80"], "empty"),
            ("GET", "/", &["pay:99999999"], "port"),
            ("GET", "/", &["pay:65536"], "port"),
            ("GET", "/", &["pay:http"], "port"),
            ("GET", "/", &["pay:+80"], "port"),
            ("GET", "http://pay:70000/", &["pay"], "port"),
            ("GET", "/", &["user:secret@pay"], "Authorization"),
            ("GET", "http://user:secret@pay/", &["pay"], "Authorization"),
            ("GET", "http://user@pay/", &["pay"], "Authorization"),
            ("GET", "*", &["pay"], "OPTIONS"),
            ("GET", "pay:80", &["pay"], "CONNECT"),
            ("OPTIONS", "pay:80", &["pay"], "CONNECT"),
            ("GET", "https://pay/", &["pay"], "CONNECT"),
            ("GET", "ftp://pay/", &["pay"], "http://"),
        ] {
            let refused = read(method, uri, hosts).unwrap_err();
            assert!(refused.contains(says), "{method} {uri} {hosts:?}: {refused}");
        }
        assert!(!read("GET", "/", &["user:secret@pay"]).unwrap_err().contains("secret"));
    }

    #[test]
    fn older_and_newer_versions_name_the_host_elsewhere() {
        let authority = |version, uri: &str, hosts: &[&str], fixed: Option<&str>| {
            let target = of(&parts("GET", uri, version, hosts), fixed);
            target.map(|target| target.authority.to_string()).map_err(text)
        };
        assert_eq!(authority(Version::HTTP_10, "http://pay/", &[], None).as_deref(), Ok("pay"));
        assert_eq!(authority(Version::HTTP_10, "/", &[], Some("pay")).as_deref(), Ok("pay"));
        assert!(authority(Version::HTTP_10, "/", &[], None).is_err());
        assert!(authority(Version::HTTP_11, "/", &[], Some("pay")).is_err());
        assert_eq!(authority(Version::HTTP_2, "http://pay/", &[], None).as_deref(), Ok("pay"));
        assert_eq!(authority(Version::HTTP_2, "/", &["pay"], None).as_deref(), Ok("pay"));
        let (mut h2, ()) = Request::options("http://pay").body(()).unwrap().into_parts();
        h2.version = Version::HTTP_2;
        assert_eq!(of(&h2, None).unwrap().path, "/", "HTTP/2 writes the asterisk itself");
        for scheme in ["https", "ftp"] {
            assert!(authority(Version::HTTP_2, &format!("{scheme}://pay/"), &[], None).is_err());
        }
    }

    #[test]
    fn a_fragment_behind_the_host_leaves_a_path_that_can_be_sent() {
        for (method, path) in [("GET", "/"), ("OPTIONS", "*")] {
            let target = of(&parts(method, "http://pay#x", Version::HTTP_11, &["pay"]), None);
            assert_eq!(http::Uri::from(target.unwrap().path).to_string(), path, "{method}");
        }
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        let read = |uri: &str| {
            of_connect(&parts("CONNECT", uri, Version::HTTP_11, &["x"])).map(|to| to.to_string())
        };
        assert_eq!(read("example.com:443").as_deref(), Ok("example.com:443"));
        assert_eq!(read("[::1]:443").as_deref(), Ok("[::1]:443"));
        for bad in [
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "example.com:https",
            "user:secret@example.com:443",
            "http://example.com:443/",
            "/",
            "*",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

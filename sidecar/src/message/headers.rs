//! What ends at this hop of a message's headers.
//!
//! Hop-by-hop fields do (RFC 9110 §7.6.1), and so do the names of ours that only hosts of the mesh may
//! send; everything else passes untouched and in order. One pass ([`find`]) tells whether there is anything to do.
//! How much work a head makes is bounded by its size, which the readers of both versions bound.

use http::Version;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};

use super::framing::StatedLength;

/// The remaining time of a request, milliseconds.
pub const TIMEOUT: HeaderName = HeaderName::from_static("evenkeel-timeout");
/// The service that a request on the mesh hop is for.
pub const SERVICE: HeaderName = HeaderName::from_static("evenkeel-service");
/// The instance that a request on the mesh hop is for.
pub const INSTANCE: HeaderName = HeaderName::from_static("evenkeel-instance");
/// On the mesh hop's response: the application never saw the request; the value says why.
pub const REFUSED: HeaderName = HeaderName::from_static("evenkeel-refused");
/// On the mesh hop's response: the receiving host failed after the application may have seen the request.
pub const FAILED: HeaderName = HeaderName::from_static("evenkeel-failed");
/// On the mesh hop's response: the application's own could not be passed on; the value says why.
pub const MALFORMED: HeaderName = HeaderName::from_static("evenkeel-malformed");
/// On the mesh hop's response: a limit of the receiving host refused the request. It is the answer, and says nothing about the instance.
pub const LIMITED: HeaderName = HeaderName::from_static("evenkeel-limited");
/// How many hosts of the mesh a request has passed; a caller can only overstate it.
pub const HOPS: HeaderName = HeaderName::from_static("evenkeel-hops");
/// Asks how a request went; on its response, the answer.
pub const DEBUG: HeaderName = HeaderName::from_static("evenkeel-debug");
/// gRPC's own remaining time.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// What the names of our headers begin with.
pub const OUR_PREFIX: &str = "evenkeel-";

/// What a message's headers hold that somebody must look at, found in one pass: a look-up that finds nothing
/// costs a hash each, and the common message has none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// `connection: keep-alive` or `close`, which name no other field.
    pub connection: bool,
    /// Anything else that ends at this hop: hop-by-hop fields, `expect`, or a header of ours.
    pub ends_here: bool,
    /// `transfer-encoding`.
    pub coded: bool,
    /// `content-length`.
    pub length: StatedLength,
    /// `te` with `trailers`: the sender takes trailers.
    pub takes_trailers: bool,
    /// gRPC's own content type.
    pub grpc: bool,
    /// `evenkeel-timeout` or `grpc-timeout`.
    pub timeout: bool,
    /// `via` or `evenkeel-hops`.
    pub hops: bool,
    /// `upgrade`, whether or not `connection` names it.
    pub upgrade: bool,
    /// `max-forwards`.
    pub max_forwards: bool,
    /// `x-request-id`.
    pub request_id: bool,
    /// `cookie` more than once, as HTTP/2 may split it.
    pub split_cookie: bool,
    /// `retry-after`, `grpc-status` or `grpc-retry-pushback-ms`.
    pub verdict: bool,
    /// `evenkeel-refused`, `evenkeel-failed` or `evenkeel-malformed`.
    pub peers_failure: bool,
    /// `evenkeel-limited`.
    pub limited: bool,
    /// `evenkeel-debug`: the caller wants to know how its request went.
    pub debug: bool,
}

/// Looks at every header once.
pub fn find(headers: &HeaderMap) -> Found {
    let mut found = Found::default();
    let mut cookie = false;
    for (name, value) in headers {
        match *name {
            CONTENT_TYPE => found.grpc = is_grpc(value),
            CONTENT_LENGTH => found.length.line(value),
            TRANSFER_ENCODING => (found.coded, found.ends_here) = (true, true),
            CONNECTION if is_plain(value) => found.connection = true,
            TE => {
                found.ends_here = true;
                found.takes_trailers |= names_trailers(value);
            }
            UPGRADE => (found.upgrade, found.ends_here) = (true, true),
            CONNECTION | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION | EXPECT => {
                found.ends_here = true;
            }
            COOKIE => found.split_cookie |= std::mem::replace(&mut cookie, true),
            RETRY_AFTER => found.verdict = true,
            VIA => found.hops = true,
            MAX_FORWARDS => found.max_forwards = true,
            _ => match name.as_str() {
                "keep-alive" | "proxy-connection" => found.ends_here = true,
                "grpc-timeout" => found.timeout = true,
                "grpc-status" | "grpc-retry-pushback-ms" => found.verdict = true,
                "x-request-id" => found.request_id = true,
                name if name.starts_with(OUR_PREFIX) => found.ours(name),
                _ => {}
            },
        }
    }
    found
}

impl Found {
    fn ours(&mut self, name: &str) {
        self.ends_here = true;
        self.timeout |= name == TIMEOUT.as_str();
        self.hops |= name == HOPS.as_str();
        self.peers_failure |= [REFUSED, FAILED, MALFORMED].iter().any(|failure| failure == name);
        self.limited |= name == LIMITED.as_str();
        self.debug |= name == DEBUG.as_str();
    }
}

/// Whether the caller asks to go on as a WebSocket (RFC 9110 §7.8): it cannot do without. Of other protocols, such as `h2c` or `TLS/1.2`, which
/// some clients offer with every request, nothing need come.
pub fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let names = |header: HeaderName, what: &[u8]| {
        let members = |value: &HeaderValue| {
            let mut members = value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            members.any(|member| member.eq_ignore_ascii_case(what))
        };
        headers.get_all(header).iter().any(members)
    };
    names(CONNECTION, b"upgrade") && names(UPGRADE, b"websocket")
}

fn is_plain(connection: &HeaderValue) -> bool {
    let value = connection.as_bytes();
    value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
}

/// `application/grpc`, alone or with a message format or parameters behind it. `application/grpc-web` is another protocol.
fn is_grpc(content_type: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let value = content_type.as_bytes();
    value.split_at_checked(GRPC.len()).is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(GRPC)
            && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
    })
}

/// RFC 9110 §10.1.4: a list of codings with weights, and the word `trailers`, which has none.
fn names_trailers(te: &HeaderValue) -> bool {
    let mut members = te.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    members.any(|member| member.eq_ignore_ascii_case(b"trailers"))
}

/// Removes what ends at this hop: what belongs to the sender's connection and not to the message, the
/// expectation that hyper answers itself, and every header of ours, since an application must not speak for a host.
pub fn strip(headers: &mut HeaderMap, found: Found) {
    if !found.ends_here {
        // The usual case by far: nothing, or one field to remove.
        if found.connection {
            headers.remove(CONNECTION);
        }
        return;
    }
    // The entry is taken out first, so that its options can be read while others are removed.
    if let http::header::Entry::Occupied(entry) = headers.entry(CONNECTION) {
        let options: Vec<HeaderValue> = entry.remove_entry_mult().1.collect();
        options.iter().flat_map(named_by).for_each(|name| {
            headers.remove(name);
        });
    }
    for name in ENDS_HERE {
        headers.remove(name);
    }
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OUR_PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The fields that a `Connection` line names as its connection's. What is no name among them hides no other, and
/// what frames or routes the message, or says which way it came, is never taken off by name (RFC 9110 §7.6.1).
fn named_by(options: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    options
        .as_bytes()
        .split(|&byte| byte == b',')
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH | TRANSFER_ENCODING | VIA))
}

/// One `cookie` field, as HTTP/1.1 wants it (RFC 9113 §8.2.3); none where none is left.
pub fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Says to the next hop that trailers are taken, as that hop's own connection says it (RFC 9110 §10.1.4).
pub fn take_trailers(headers: &mut HeaderMap, version: Version) {
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

const ENDS_HERE: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    EXPECT,
    TE,
];

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A head of these fields.
    pub fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (k.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    fn stripped(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = map(pairs);
        let found = find(&headers);
        strip(&mut headers, found);
        headers
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let headers = stripped(&[
            ("connection", "keep-alive, X-Secret, host"),
            ("keep-alive", "5"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("host", "a"),
            ("x-kept", "1"),
        ]);
        assert_eq!(headers, map(&[("host", "a"), ("x-kept", "1")]));
    }

    #[test]
    fn every_connection_option_counts_whatever_stands_beside_it() {
        let many: Vec<String> = (0..3000).map(|n| format!("x-{n}")).collect();
        let mut headers = map(&[("connection", "close"), ("x-last", "1"), ("x-kept", "1")]);
        headers.append(CONNECTION, HeaderValue::from_str(&many.join(",")).unwrap());
        headers.append(CONNECTION, HeaderValue::from_bytes(b"\xff,,@, \"x\", X-Last").unwrap());
        for name in &many {
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), "1".parse().unwrap());
        }
        let found = find(&headers);
        strip(&mut headers, found);
        assert_eq!(headers, map(&[("x-kept", "1")]));
    }

    #[test]
    fn what_frames_and_routes_and_the_way_it_came_are_not_taken_off_by_name() {
        let fields = [("host", "a"), ("content-length", "5"), ("via", "1.1 evenkeel")];
        let named = [("connection", "host, Content-Length, transfer-encoding, via")];
        assert_eq!(stripped(&[&fields[..], &named[..]].concat()), map(&fields));
    }

    #[test]
    fn te_ends_here_and_trailers_are_asked_for_anew() {
        for (lines, takes) in [
            (&["trailers"][..], true),
            (&["Trailers"], true),
            (&["gzip;q=0.5, trailers"], true),
            (&["gzip", "trailers"], true),
            (&["trailers", "gzip"], true),
            (&["gzip"], false),
            (&["xtrailers, trailersx"], false),
            (&[""], false),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| ("te", *line)).collect();
            assert_eq!(find(&map(&fields)).takes_trailers, takes, "{lines:?}");
            assert!(stripped(&fields).is_empty(), "{lines:?}");
        }
        let mut headers = HeaderMap::new();
        take_trailers(&mut headers, Version::HTTP_2);
        assert_eq!(headers, map(&[("te", "trailers")]));
        take_trailers(&mut headers, Version::HTTP_11);
        assert_eq!(headers, map(&[("te", "trailers"), ("connection", "te")]));
    }

    #[test]
    fn an_application_cannot_speak_for_a_host() {
        let headers =
            stripped(&[("evenkeel-service", "x"), ("evenkeel-refused", "y"), ("evenkeelish", "z")]);
        assert_eq!(headers, map(&[("evenkeelish", "z")]));
    }

    #[test]
    fn a_split_cookie_is_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]);
        assert!(find(&headers).split_cookie);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn cookies_that_ended_here_are_not_joined_to_an_empty_one() {
        let mut headers =
            stripped(&[("cookie", "a"), ("cookie", "b"), ("connection", "cookie, x")]);
        join_cookies(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn grpc_is_its_own_media_types_alone() {
        for (content_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpc-web-text", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(find(&map(&[("content-type", content_type)])).grpc, grpc, "{content_type}");
        }
    }

    #[test]
    fn one_pass_finds_what_matters() {
        assert_eq!(
            find(&map(&[("host", "a"), ("accept", "*/*"), ("x-any", "1")])),
            Found::default()
        );
        let found =
            find(&map(&[("content-type", "application/grpc+proto"), ("grpc-timeout", "1S")]));
        assert_eq!(found, Found { grpc: true, timeout: true, ..Found::default() });
        let found = find(&map(&[("evenkeel-failed", "reset"), ("retry-after", "1")]));
        assert!(found.peers_failure && found.verdict && found.ends_here);
        let found = find(&map(&[("content-length", "7"), ("via", "1.1 a"), ("max-forwards", "1")]));
        let length = StatedLength::Once(7);
        assert_eq!(found, Found { length, hops: true, max_forwards: true, ..Found::default() });
        for ends in [
            "connection",
            "keep-alive",
            "te",
            "expect",
            "upgrade",
            "proxy-connection",
            "evenkeel-x",
        ] {
            assert!(find(&map(&[(ends, "x")])).ends_here, "{ends}");
        }
        let plain = find(&map(&[("connection", "Keep-Alive")]));
        assert_eq!(plain, Found { connection: true, ..Found::default() });
    }
}

//! The forms of text: names, addresses, paths. For each, a parser that says what is wrong and a pattern for
//! the schema, which never refuses what the parser takes (the parser may refuse more).

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::glob;
use crate::policy::KeySource;
use crate::settings::Key;

/// `name` or `name.namespace` of a service, as those that register over HTTP may have them: what is accepted in one
/// place is accepted in the other, and can be looked up.
pub(crate) fn service(text: &str) -> Result<String, String> {
    if is_service_name(text) {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    if is_service_name(&lower) {
        return Err(format!("`{text}` must be lower case: `{lower}`"));
    }
    let hint = accepted_service_name(&lower)
        .map_or_else(String::new, |name| format!("; `{name}` would be one"));
    Err(format!(
        "`{text}` is not a service name: name or name.namespace, each of at most 63 of a-z, 0-9, `-` and `_`, not beginning with `-`{hint}"
    ))
}
pub(crate) const SERVICE: &str = r"^[a-z0-9_][a-z0-9_-]*(\.[a-z0-9_][a-z0-9_-]*)?$";

/// Whether this is `name` or `name.namespace` of a service: at most 63 lower-case letters, digits, `-` and `_` each, not
/// beginning with `-`. In the file, over HTTP, on the wire and in DNS alike.
#[must_use]
pub fn is_service_name(text: &str) -> bool {
    let is_part = |part: &str| {
        (1..=LABEL_MAX).contains(&part.len())
            && !part.starts_with('-')
            && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    text.split('.').count() <= 2 && text.split('.').all(is_part)
}

/// The same text with `-` for whatever may not be in a name, if that makes one.
fn accepted_service_name(lower: &str) -> Option<String> {
    let parts = lower.split('.').count();
    let allowed = |c: char| match c {
        'a'..='z' | '0'..='9' | '-' | '_' => c,
        '.' if parts <= 2 => c,
        _ => '-',
    };
    let name: String = lower.trim().chars().map(allowed).collect();
    Some(name.trim_matches('-').to_owned()).filter(|name| is_service_name(name))
}

/// One lower-case DNS label: the mesh's name.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let what = || format!("`{text}` is not a name: at most 63 of a-z, 0-9 and inner `-`");
    if is_label(text) { Ok(text.to_owned()) } else { Err(what()) }
}
pub(crate) const LABEL: &str = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";

/// Lower-case DNS labels with points between them.
pub(crate) fn domain(text: &str) -> Result<String, String> {
    if !text.split('.').all(is_label) {
        return Err(format!(
            "`{text}` is not a DNS domain such as mesh or mesh.example, in lower case"
        ));
    }
    if text.len() > DOMAIN_MAX {
        return Err(format!(
            "`{text}` has {} characters: at most {DOMAIN_MAX} leave room for every service's name before it",
            text.len()
        ));
    }
    Ok(text.to_owned())
}
pub(crate) const DOMAIN: &str = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";

/// A host's name, as hostnames are: wider than a DNS label, since nobody chooses it for us.
pub(crate) fn node(text: &str) -> Result<String, String> {
    let valid = (1..=NODE_NAME_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !valid {
        return Err(format!(
            "`{text}` is not a host's name: at most {NODE_NAME_MAX} of letters, digits, `-`, `_` and `.`"
        ));
    }
    if text.split('.').any(|part| part.len() > LABEL_MAX) {
        return Err(format!(
            "`{text}` is too long to be looked up: a name in DNS has at most {LABEL_MAX} characters between its points"
        ));
    }
    Ok(text.to_owned())
}
pub(crate) const NODE: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]*$";

/// What tells the instances on one host apart. It travels in a header and in paths of the HTTP API.
pub(crate) fn id(text: &str) -> Result<String, String> {
    let valid = (1..=ID_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'));
    let what = || {
        format!("`{text}` is not an id: at most {ID_MAX} of letters, digits, `-`, `_`, `.` and `:`")
    };
    if valid { Ok(text.to_owned()) } else { Err(what()) }
}
pub(crate) const ID: &str = r"^[A-Za-z0-9._:-]+$";

/// What look-ups show as it stands: tags, zones, values of `meta`.
pub(crate) fn free(text: &str) -> Result<String, String> {
    if text.len() > FREE_MAX {
        return Err(format!("longer than {FREE_MAX} bytes"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(format!("holds the control character {}", control.escape_unicode())),
        None => Ok(text.to_owned()),
    }
}
pub(crate) const FREE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// As [`free`], and not empty.
pub(crate) fn filled(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { free(text) }
}
pub(crate) const FILLED: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";

/// Which resources: an id or a glob. What matches no longer id than travels between hosts need not be longer.
pub(crate) fn pattern(text: &str) -> Result<String, String> {
    if glob::is_well_formed(text.as_bytes()) {
        return filled(text);
    }
    Err(format!("`{text}` is not a glob: close `[`, write `\\\\` for a backslash"))
}

/// A resource's id.
pub(crate) fn resource(text: &str) -> Result<String, String> {
    if text.contains(['*', '?', '[', '\\']) {
        return Err(format!("`{text}` is a glob: name one resource"));
    }
    if text.len() > ID_MAX {
        return Err(format!(
            "has {} bytes, at most {ID_MAX} are allowed: keys stand beside it",
            text.len()
        ));
    }
    filled(text)
}

/// A file or directory; empty is for the caller to judge.
pub(crate) fn file(text: &str) -> Result<String, String> {
    if text.contains('\0') { Err("holds a NUL character".to_owned()) } else { Ok(text.to_owned()) }
}
pub(crate) const FILE: &str = r"^[^\u0000]*$";

/// An IP address.
pub(crate) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is not an IP address such as 10.0.0.5 or fd00::5"))
}
pub(crate) const IP: &str = r"^[0-9A-Fa-f:.]+$";

/// Where to listen: an IP address and a port; port 0 lets the system choose.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':')
        && !port.is_empty()
        && port.chars().all(|c| c.is_ascii_digit())
    {
        return Err(format!("`{text}` has no IP address: write 127.0.0.1{text} or 0.0.0.0{text}"));
    }
    text.parse().map_err(|_| {
        format!(
            "`{text}` is not an IP address and a port such as 127.0.0.1:7080 or \"[fd00::5]:7080\""
        )
    })
}
pub(crate) const SOCKET: &str = r"^(\[[0-9A-Fa-f:.]+(%[0-9]+)?\]|[0-9.]+):[0-9]+$";

/// Whom to dial: as [`listen`], but neither port 0 nor "any address" can be dialled.
pub(crate) fn dial(text: &str) -> Result<SocketAddr, String> {
    let address = listen(text)?;
    if address.port() == 0 {
        return Err(format!("`{text}`: port 0 cannot be dialled"));
    }
    if address.ip().is_unspecified() {
        return Err(format!("`{text}`: {} cannot be dialled, name one address", address.ip()));
    }
    Ok(address)
}

/// `host:port`, the host an IP address or a DNS name.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    if text.parse::<SocketAddr>().is_ok() {
        return dial(text).map(|_| text.to_owned());
    }
    let name = |host: &str| {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        host.len() <= DOMAIN_MAX
            && host.split('.').all(is_label)
            // A last label of digits is a mistyped address (RFC 3696, section 2).
            && !host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    };
    match text.rsplit_once(':') {
        Some((host, port)) if name(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        None if name(text) || text.parse::<IpAddr>().is_ok() => {
            Err(format!("`{text}` has no port: write \"{text}:7111\""))
        }
        _ => Err(format!(
            "`{text}` is not a host and a port such as 10.0.0.6:7111 or seeds.example:7111"
        )),
    }
}
pub(crate) const HOST_PORT: &str = r"^(\[[0-9A-Fa-f:.]+(%[0-9]+)?\]|[A-Za-z0-9.-]+):[0-9]+$";

/// The name that a certificate must have.
pub(crate) fn tls_name(text: &str) -> Result<String, String> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let is_host = !text.is_empty() && text.len() <= DNS_NAME_MAX && text.bytes().all(is_name);
    match is_host || text.parse::<IpAddr>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not a host name or an IP address")),
    }
}
pub(crate) const TLS_NAME: &str = r"^[A-Za-z0-9._:-]+$";

/// The path that a check asks for.
pub(crate) fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("`{text}`: a path starts with `/`"));
    }
    match text
        .chars()
        .find(|c| !c.is_ascii_graphic() || matches!(c, '#' | '"' | '<' | '>' | '\\' | '^' | '`'))
    {
        Some(bad) => {
            Err(format!("`{text}`: `{}` must be percent-encoded in a path", bad.escape_default()))
        }
        None if text.len() > PATH_MAX => Err(format!("longer than {PATH_MAX} bytes")),
        None => Ok(text.to_owned()),
    }
}
pub(crate) const PATH: &str = r"^/[!-~]*$";

/// The path of a route: exact, or a prefix when it ends in `*`.
pub(crate) fn path_match(text: &str) -> Result<String, String> {
    let path = path(text)?;
    if path.contains('?') {
        return Err(format!("`{text}`: a route looks at the path only, never at what follows `?`"));
    }
    match path.find('*') {
        Some(star) if star + 1 < path.len() => {
            Err(format!("`{text}`: `*` stands at the end or nowhere"))
        }
        _ => Ok(path),
    }
}

/// An HTTP method. They are case-sensitive, and all that are registered are upper case.
pub(crate) fn method(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_ascii_lowercase()) {
        return Err(format!("`{text}` must be upper case: `{}`", text.to_ascii_uppercase()));
    }
    token(text, "an HTTP method such as GET")
}
pub(crate) const METHOD: &str = r"^[!#$%&'*+.^_`|~0-9A-Z-]+$";

/// A request header's name, in lower case from here on.
pub(crate) fn header(text: &str) -> Result<String, String> {
    token(text, "a header's name such as idempotency-key").map(|name| name.to_ascii_lowercase())
}
pub(crate) const HEADER: &str = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

/// What of a request makes a key; `None` for `none`.
pub(crate) fn key_source(text: &str) -> Result<Option<KeySource>, String> {
    let what = || {
        format!("`{text}` is none of header:NAME, cookie:NAME, path:N, address, identity and none")
    };
    let segment = |number: &str| {
        let decimal = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
        number.parse().ok().filter(|number| decimal && (1..=SEGMENT_MAX).contains(number))
    };
    match text.split_once(':') {
        Some(("header", name)) => Ok(Some(KeySource::Header(header(name)?))),
        Some(("cookie", name)) => {
            token(name, "a cookie's name such as session").map(KeySource::Cookie).map(Some)
        }
        Some(("path", number)) => match segment(number) {
            Some(number) => Ok(Some(KeySource::Path(number))),
            None => {
                Err(format!("`{text}`: a path's segments count from path:1 to path:{SEGMENT_MAX}"))
            }
        },
        None if text == "address" => Ok(Some(KeySource::Address)),
        None if text == "identity" => Ok(Some(KeySource::Identity)),
        None if text == "none" => Ok(None),
        _ => Err(what()),
    }
}
pub(crate) const KEY_SOURCE: &str =
    r"^(none|address|identity|path:[1-9][0-9]?|(header|cookie):[!#$%&'*+.^_`|~0-9A-Za-z-]+)$";

/// `package.Service/Method`, with `*` for any characters.
pub(crate) fn grpc(text: &str) -> Result<String, String> {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '*'))
    };
    let valid = text.len() <= FREE_MAX
        && text.split_once('/').is_some_and(|(service, method)| part(service) && part(method));
    let what =
        || format!("`{text}` is not a gRPC method such as shop.Catalog/Get or shop.Catalog/*");
    if valid { Ok(text.to_owned()) } else { Err(what()) }
}
pub(crate) const GRPC: &str = r"^[A-Za-z0-9._*]+/[A-Za-z0-9._*]+$";

/// A gossip key. What it says never shows the text: it may be a key with one character too many.
pub(crate) fn key(text: &str) -> Result<Key, String> {
    let make = "make one with `evenkeel keygen`";
    let bytes = STANDARD.decode(text).map_err(|_| format!("not base64: {make}"))?;
    let length = bytes.len();
    let key =
        <[u8; 32]>::try_from(bytes).map_err(|_| format!("{length} bytes instead of 32: {make}"))?;
    Ok(Key(key))
}
pub(crate) const KEY: &str = r"^[A-Za-z0-9+/]{43}=$";

pub(crate) const DURATION: &str = r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h)$";
pub(crate) const SHARE: &str = r"^[0-9]+(\.[0-9]+)?%$";
pub(crate) const SIZE: &str = r"^[0-9]+(\.[0-9]+)?(B|KB|MB|GB|KiB|MiB|GiB)$";
pub(crate) const AFTER: &str = r"^(p[0-9]+(\.[0-9]+)?|[0-9]+(\.[0-9]+)?(us|ms|s|m|h))$";
pub(crate) const FACTOR: &str = r"^([0-9]+(\.[0-9]+)?x|off)$";
pub(crate) const RETRY_ON: &str = r"^(connect|refused|reset|[1-5][0-9][0-9])$";

fn is_label(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 9110, section 5.6.2.
fn token(text: &str, what: &str) -> Result<String, String> {
    let valid = (1..=FREE_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c));
    if valid { Ok(text.to_owned()) } else { Err(format!("`{text}` is not {what}")) }
}

/// RFC 1035, section 2.3.4.
const LABEL_MAX: usize = 63;
/// Of a name without its last point: RFC 1035 counts 255 with that and the first length.
const DNS_NAME_MAX: usize = 253;
/// What stands before the domain at most: `name.namespace.service.mesh.`; hosts and addresses have less.
const BEFORE_DOMAIN_MAX: usize = 3 * (LABEL_MAX + 1) + "service.".len();
const DOMAIN_MAX: usize = DNS_NAME_MAX - BEFORE_DOMAIN_MAX;

/// Linux's hostnames have at most 64 characters; a record carries the name.
const NODE_NAME_MAX: usize = 64;
const ID_MAX: usize = 128;
const FREE_MAX: usize = 255;
const PATH_MAX: usize = 2048;
/// Segments of a path that are counted.
const SEGMENT_MAX: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_and_refuses() {
        type Check = fn(&str) -> Result<(), String>;
        let table: [(&str, Check, &[&str], &[&str]); 16] = [
            (
                "pattern",
                |t| pattern(t).map(drop),
                &["db", "db.*", "a/[^b]", "\\*"],
                &["", "[", "a\\", "a\n"],
            ),
            (
                "resource",
                |t| resource(t).map(drop),
                &["db", "db.payments", "a b", "ä/b"],
                &["", "db.*", "?", "[a]", "a\\", "a\0b"],
            ),
            (
                "service",
                |t| service(t).map(drop),
                &["a", "payments", "pay-1.shop", "9", "a_b", "_a", "a-"],
                &["", "-a", "a.b.c", "A", "a b", "a..b", ".", "a.", "ä"],
            ),
            (
                "domain",
                |t| domain(t).map(drop),
                &["mesh", "mesh.example"],
                &["", ".mesh", "mesh.", "Mesh", "me sh"],
            ),
            ("node", |t| node(t).map(drop), &["host-a", "Host_1.example"], &["", "-a", "a b", "ä"]),
            (
                "listen",
                |t| listen(t).map(drop),
                &["127.0.0.1:0", "0.0.0.0:80", "[::1]:80"],
                &[
                    "",
                    ":80",
                    "80",
                    "localhost:80",
                    "127.0.0.1",
                    "::1:80x",
                    "127.0.0.1:65536",
                    "9101:22",
                ],
            ),
            (
                "dial",
                |t| dial(t).map(drop),
                &["127.0.0.1:1"],
                &["127.0.0.1:0", "0.0.0.0:80", "[::]:80"],
            ),
            (
                "host_port",
                |t| host_port(t).map(drop),
                &["10.0.0.6:7111", "[fd00::1]:7111", "Seeds.example:7111", "localhost:1"],
                &[
                    "",
                    "seeds.example",
                    "10.0.0.6",
                    "10.0.0.300:7111",
                    "a:0",
                    "a:65536",
                    "a b:1",
                    "9101:22",
                    "0.0.0.0:7111",
                ],
            ),
            (
                "tls_name",
                |t| tls_name(t).map(drop),
                &["web.example", "a_b", "127.0.0.1", "::1"],
                &["", "a b", "a:1", "https://a", "ä"],
            ),
            (
                "path",
                |t| path(t).map(drop),
                &["/", "/healthz?full=1"],
                &["", "healthz", "/a b", "/ä", "/a#b"],
            ),
            (
                "path_match",
                |t| path_match(t).map(drop),
                &["/", "/v1/*", "/*"],
                &["v1", "*", "/a*b", "/a?b", "/**"],
            ),
            ("method", |t| method(t).map(drop), &["GET", "M-SEARCH"], &["", "get", "GE T"]),
            (
                "grpc",
                |t| grpc(t).map(drop),
                &["a.B/C", "*/Get*", "*/*"],
                &["", "a.B", "/C", "a/b/c", "a b/c"],
            ),
            (
                "key",
                |t| key(t).map(drop),
                &["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="],
                &["", "AAAA", "?", "<redacted>"],
            ),
            (
                "key_source",
                |t| key_source(t).map(drop),
                &["header:X-User", "cookie:s", "path:1", "path:32", "address", "identity", "none"],
                &[
                    "",
                    "header",
                    "header:",
                    "header:a b",
                    "cookie:a=b",
                    "path:0",
                    "path:01",
                    "path:33",
                    "path:+1",
                    "path:",
                    "address:1",
                    "Header:x",
                    "user",
                ],
            ),
            ("id", |t| id(t).map(drop), &["payments-1", "a:1"], &["", "a b", "a/b"]),
        ];
        for (name, check, good, bad) in table {
            for text in good {
                assert_eq!(check(text), Ok(()), "{name} {text:?}");
            }
            for text in bad {
                assert!(check(text).is_err(), "{name} takes {text:?}");
            }
        }
        assert_eq!(header("X-Idempotency"), Ok("x-idempotency".to_owned()));
        assert_eq!(key_source("header:X-A"), Ok(Some(KeySource::Header("x-a".to_owned()))));
        assert_eq!(key_source("cookie:Ab"), Ok(Some(KeySource::Cookie("Ab".to_owned()))));
    }

    #[test]
    fn no_name_is_longer_than_dns_can_say() {
        let of = |count: usize| "a".repeat(count);
        assert!(service(&format!("{}.{}", of(63), of(63))).is_ok());
        assert!(service(&of(64)).unwrap_err().contains("at most 63"));
        assert!(service(&format!("a.{}", of(64))).unwrap_err().contains("at most 63"));
        assert!(node(&of(63)).is_ok());
        assert!(node(&of(64)).unwrap_err().contains("at most 63"));
        let longest = format!("{}.{}", of(26), of(26));
        assert!(domain(&longest).is_ok());
        assert!(domain(&format!("{longest}a")).unwrap_err().contains("at most 53"));
        let name = format!("{0}.{0}.service.{0}.{longest}", of(63));
        assert_eq!(name.len(), DNS_NAME_MAX);
    }

    #[test]
    fn a_refused_key_is_not_shown() {
        let almost = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA==";
        assert!(!key(almost).expect_err("34 bytes").contains(almost));
    }
}

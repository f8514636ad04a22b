//! What a name means: a service, a host of the mesh, an address, or something of the world outside.
//!
//! Applications write a service in many ways (`payments`, `payments.shop`, `payments.mesh`,
//! `payments.service.mesh`, `payments.service.prod.mesh`, with a port, a trailing dot, in any case); all are read
//! here, once, for DNS and for the HTTP router alike, so that the two never disagree.
//! Nothing here looks at what exists: where a name can be read in two ways, the caller is told both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use evenkeel_config::is_service_name;

/// What the host of a request means to the HTTP router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// A service of the mesh, known or not: nobody else answers for this name.
    Service(String),
    /// Two labels outside the mesh's domain (`payments.shop`, `example.com`): the service if there is one, else foreign.
    ServiceOrForeign(String),
    /// A host of the mesh, by its name (`host-a.node.mesh`), lower case.
    Host(String),
    /// An address written as a name of the mesh (`0a000005.addr.mesh`).
    Address(IpAddr),
    /// An address, or a name outside the mesh.
    Foreign,
}

/// What a DNS name under the mesh's domain asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsName {
    /// The domain itself.
    Apex,
    /// A service: the labels before `service` (or before the domain), lower case, in order; the caller decides
    /// whether the first is a tag or the last a namespace.
    Service(Vec<String>),
    /// Nothing itself; below it stand all names of one kind: `service`, `node`, `addr`.
    Above,
    /// RFC 2782: `_service._tag` or `_service._tcp` (no tag), a namespace behind it.
    Rfc2782 {
        /// Without the underscore; `name` or `name.namespace`.
        service: String,
        /// Without the underscore; `None` for `_tcp`.
        tag: Option<String>,
    },
    /// A host of the mesh, by name.
    Node(String),
    /// An address in hexadecimal.
    Address(IpAddr),
    /// Under our domain, but nothing we know.
    Unknown,
    /// Not under our domain.
    Foreign,
}

/// Reads the host of a request (`Host`, `:authority`): `domain` is the mesh's domain, `dc` its name.
#[must_use]
pub fn service_of_host(host: &str, domain: &str, dc: &str) -> HostName {
    let host = without_port(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return HostName::Foreign;
    }
    let host = host.to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return HostName::Foreign;
    }
    if let Some(inner) = strip_domain(&host, &domain.to_ascii_lowercase()) {
        return match dns_name(host.split('.'), domain, dc) {
            DnsName::Service(labels) => HostName::Service(labels.join(".")),
            DnsName::Rfc2782 { service, tag: None } => HostName::Service(service),
            DnsName::Node(name) => HostName::Host(name),
            DnsName::Address(address) => HostName::Address(address),
            // Nobody offers these, and nobody else answers for them.
            DnsName::Rfc2782 { .. }
            | DnsName::Apex
            | DnsName::Above
            | DnsName::Unknown
            | DnsName::Foreign => HostName::Service(inner.to_owned()),
        };
    }
    if !is_service_name(&host) {
        return HostName::Foreign;
    }
    if host.contains('.') { HostName::ServiceOrForeign(host) } else { HostName::Service(host) }
}

/// Reads the labels of a DNS question, without the root, in any case.
#[must_use]
pub fn dns_name<'a>(labels: impl IntoIterator<Item = &'a str>, domain: &str, dc: &str) -> DnsName {
    let labels: Vec<String> = labels.into_iter().map(str::to_ascii_lowercase).collect();
    let domain = domain.to_ascii_lowercase();
    let domain: Vec<&str> = domain.split('.').collect();
    let Some(cut) = labels.len().checked_sub(domain.len()) else {
        return DnsName::Foreign;
    };
    if labels[cut..] != domain[..] {
        return DnsName::Foreign;
    }
    let inner = &labels[..cut];
    // `x.service.mesh` and `x.service.dc.mesh` mean the same.
    let inner = match inner {
        [rest @ .., kind, last]
            if last.eq_ignore_ascii_case(dc) && is_kind(kind) && !rest.is_empty() =>
        {
            &inner[..inner.len() - 1]
        }
        _ => inner,
    };
    match inner {
        [] => DnsName::Apex,
        [kind] if is_kind(kind) => DnsName::Above,
        [service, second, namespace @ .., kind]
            if kind == "service"
                && service.starts_with('_')
                && second.starts_with('_')
                && namespace.len() <= 1 =>
        {
            let tag = (second != "_tcp").then(|| second[1..].to_owned());
            let name = [&service[1..]].into_iter().chain(namespace.iter().map(String::as_str));
            DnsName::Rfc2782 { service: name.collect::<Vec<_>>().join("."), tag }
        }
        [rest @ .., kind] if kind == "service" && !rest.is_empty() => {
            DnsName::Service(rest.to_vec())
        }
        [rest @ .., kind] if kind == "node" && !rest.is_empty() => DnsName::Node(rest.join(".")),
        [hex, kind] if kind == "addr" => {
            parse_hex_address(hex).map_or(DnsName::Unknown, DnsName::Address)
        }
        [.., kind] if is_kind(kind) => DnsName::Unknown,
        labels => DnsName::Service(labels.to_vec()),
    }
}

/// `10.0.0.5` as `0a000005`, the form Consul uses in SRV targets.
#[must_use]
pub fn hex_address(address: IpAddr) -> String {
    use std::fmt::Write as _;
    let octets: &[u8] = match &address {
        IpAddr::V4(v4) => &v4.octets(),
        IpAddr::V6(v6) => &v6.octets(),
    };
    octets.iter().fold(String::with_capacity(32), |mut hex, octet| {
        let _ = write!(hex, "{octet:02x}");
        hex
    })
}

fn parse_hex_address(hex: &str) -> Option<IpAddr> {
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => Some(Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?).into()),
        _ => None,
    }
}

/// Whether all names under this label are of one kind.
pub(crate) fn is_kind(label: &str) -> bool {
    matches!(label, "service" | "node" | "addr")
}

fn strip_domain<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    host.strip_suffix(domain)?.strip_suffix('.').filter(|inner| !inner.is_empty())
}

/// `host`, `host:port`, `[v6]:port` without the port; a bare IPv6 address is left alone.
#[must_use]
pub fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host;
    }
    match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_requests() {
        let service = |name: &str| HostName::Service(name.to_owned());
        for (host, meaning) in [
            ("payments", service("payments")),
            ("Payments", service("payments")),
            ("payments:8080", service("payments")),
            ("payments.", service("payments")),
            ("payments.mesh", service("payments")),
            ("payments.mesh.:80", service("payments")),
            ("payments.service.mesh", service("payments")),
            ("payments.service.prod.mesh:80", service("payments")),
            ("payments.shop.mesh", service("payments.shop")),
            ("payments.shop.service.mesh", service("payments.shop")),
            ("PAYMENTS.SHOP.SERVICE.PROD.MESH", service("payments.shop")),
            ("_payments._tcp.service.mesh", service("payments")),
            ("_payments._tcp.shop.service.mesh:80", service("payments.shop")),
            ("Host-A.node.mesh:9001", HostName::Host("host-a".into())),
            ("host-a.example.node.prod.mesh", HostName::Host("host-a.example".into())),
            ("0a000005.addr.mesh:80", HostName::Address("10.0.0.5".parse().unwrap())),
            ("0a.addr.mesh", service("0a.addr")),
            ("service.mesh", service("service")),
            ("payments.shop", HostName::ServiceOrForeign("payments.shop".into())),
            ("example.com:443", HostName::ServiceOrForeign("example.com".into())),
            ("a.example.com", HostName::Foreign),
            ("10.0.0.1", HostName::Foreign),
            ("10.0.0.1:80", HostName::Foreign),
            ("[::1]:80", HostName::Foreign),
            ("::1", HostName::Foreign),
            ("localhost:3000", HostName::Foreign),
            ("", HostName::Foreign),
            (".", HostName::Foreign),
            ("mesh", service("mesh")),
            ("notmesh", service("notmesh")),
            ("pay ments", HostName::Foreign),
        ] {
            assert_eq!(service_of_host(host, "mesh", "prod"), meaning, "{host}");
        }
    }

    #[test]
    fn names_of_questions() {
        let service =
            |labels: &[&str]| DnsName::Service(labels.iter().map(|l| (*l).to_owned()).collect());
        for (name, meaning) in [
            ("mesh", DnsName::Apex),
            ("payments.service.mesh", service(&["payments"])),
            ("Payments.SERVICE.mesh", service(&["payments"])),
            ("v2.payments.service.mesh", service(&["v2", "payments"])),
            ("payments.service.prod.mesh", service(&["payments"])),
            ("payments.mesh", service(&["payments"])),
            ("payments.shop.mesh", service(&["payments", "shop"])),
            (
                "_payments._tcp.service.mesh",
                DnsName::Rfc2782 { service: "payments".into(), tag: None },
            ),
            (
                "_payments._v2.service.prod.mesh",
                DnsName::Rfc2782 { service: "payments".into(), tag: Some("v2".into()) },
            ),
            ("host-a.node.mesh", DnsName::Node("host-a".into())),
            ("host-a.example.node.prod.mesh", DnsName::Node("host-a.example".into())),
            ("0a000005.addr.prod.mesh", DnsName::Address("10.0.0.5".parse().unwrap())),
            ("0a00000.addr.mesh", DnsName::Unknown),
            (
                "_payments._tcp.shop.service.mesh",
                DnsName::Rfc2782 { service: "payments.shop".into(), tag: None },
            ),
            (
                "_payments._v2.shop.service.prod.mesh",
                DnsName::Rfc2782 { service: "payments.shop".into(), tag: Some("v2".into()) },
            ),
            ("service.mesh", DnsName::Above),
            ("Node.mesh", DnsName::Above),
            ("addr.mesh", DnsName::Above),
            ("x.service.other.mesh", service(&["x", "service", "other"])),
            ("example.com", DnsName::Foreign),
            ("amesh", DnsName::Foreign),
            ("", DnsName::Foreign),
        ] {
            assert_eq!(
                dns_name(name.split('.').filter(|l| !l.is_empty()), "mesh", "prod"),
                meaning,
                "{name}"
            );
        }
    }

    /// A name that an application registers may be written into a file, and the other way round.
    #[test]
    fn the_configuration_takes_the_same_service_names() {
        for name in [
            "web",
            "my_service",
            "_web",
            "web-",
            "-web",
            "web.shop",
            "web.my_shop",
            "a.b.c",
            "Web",
            "web shop",
            "web.",
            ".web",
            "w\u{e9}b",
            "0",
            &"x".repeat(63),
            &"x".repeat(64),
        ] {
            let text = format!("services: [{{name: \"{name}\", address: \"127.0.0.1:80\"}}]");
            let env = evenkeel_config::Environment::named("host-a");
            let taken = evenkeel_config::parse(&text, "t.yaml", &env);
            assert_eq!(taken.is_ok(), is_service_name(name), "{name}: {taken:?}");
        }
    }

    #[test]
    fn addresses_in_hexadecimal() {
        for address in ["10.0.0.5", "127.0.0.1", "::1", "2001:db8::5"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(parse_hex_address(&hex_address(address)), Some(address));
        }
    }
}

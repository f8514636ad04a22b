//! The addresses that we listen on, and whether any two of them meet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::model::File;
use crate::problem::Position;
use crate::report::{At, Report};
use crate::settings::{Key, Listen};

/// Every address we listen on.
pub(super) struct Listeners {
    pub gossip: Listen,
    pub data: Listen,
    pub outbound: Listen,
    pub http: Listen,
    pub dns: Listen,
    pub ratelimit: Listen,
    pub admin: Listen,
    /// All of them with the key's path and, when it is written, its place.
    pub all: Vec<(String, SocketAddr, Option<Position>)>,
}

impl Listeners {
    pub fn of(file: &File, keys: &Option<Vec<Key>>) -> Listeners {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        // On one machine hosts stand on different loopback addresses; each is reached at its own.
        let own =
            file.node.address.as_ref().map(|address| address.value).filter(IpAddr::is_loopback);
        let mesh = match keys {
            Some(keys) if keys.is_empty() => own.unwrap_or(loopback),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let mut all = Vec::new();
        let mut listen = |path: &str, written: &Option<At<SocketAddr>>, ip: IpAddr, port: u16| {
            let address =
                written.as_ref().map_or(SocketAddr::new(ip, port), |written| written.value);
            all.push((path.to_owned(), address, written.as_ref().map(|written| written.at)));
            Listen { address, explicit: written.is_some() }
        };
        let gossip = listen("mesh.gossip.listen", &file.mesh.gossip, mesh, 7111);
        let data = listen("mesh.data.listen", &file.mesh.data, mesh, 7110);
        let outbound = listen("outbound.listen", &file.outbound.listen, loopback, 7080);
        let http = listen("discovery.http", &file.discovery_http, loopback, 8500);
        let dns = listen("discovery.dns", &file.discovery_dns, loopback, 8600);
        let ratelimit = listen("ratelimit.listen", &file.ratelimit.listen, loopback, 7113);
        let admin = listen("admin.listen", &file.admin, loopback, 7119);
        for listener in &file.outbound.listeners {
            if let Some(At { value, at, path }) = &listener.listen {
                all.push((path.clone(), *value, Some(*at)));
            }
        }
        Listeners { gossip, data, outbound, http, dns, ratelimit, admin, all }
    }

    pub fn check_each_is_alone(&self, report: &Report) {
        for (index, (path, address, at)) in self.all.iter().enumerate() {
            for (other_path, other, other_at) in &self.all[..index] {
                if !overlap(*address, *other) {
                    continue;
                }
                // Shown at the later of the two; a default has no place, and two defaults never meet.
                let (at, path, other_path, other) = match (*at, *other_at) {
                    (Some(at), Some(other_at)) if at < other_at => {
                        (other_at, other_path, path, address)
                    }
                    (Some(at), _) => (at, path, other_path, other),
                    (None, Some(other_at)) => (other_at, other_path, path, address),
                    (None, None) => continue,
                };
                report.problem(at, &format!("{path}: {other_path} listens on {other} already"));
            }
        }
    }

    /// Which of our listeners somebody who dials `address` on this host would meet.
    pub fn met_at(&self, address: SocketAddr) -> Option<&str> {
        let meets = |ours: SocketAddr| {
            ours.port() == address.port()
                && (ours.ip() == address.ip()
                    || (ours.ip().is_unspecified() && address.ip().is_loopback()))
        };
        self.all.iter().find(|(_, ours, _)| meets(*ours)).map(|(path, ..)| path.as_str())
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_overlap_on_one_port_and_address() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert!(overlap(at("127.0.0.1:1"), at("127.0.0.1:1")));
        assert!(overlap(at("0.0.0.0:1"), at("127.0.0.1:1")));
        assert!(overlap(at("127.0.0.1:1"), at("[::]:1")));
        assert!(!overlap(at("127.0.0.1:1"), at("127.0.0.2:1")));
        assert!(!overlap(at("127.0.0.1:1"), at("127.0.0.1:2")));
        assert!(!overlap(at("127.0.0.1:0"), at("127.0.0.1:0")));
    }
}

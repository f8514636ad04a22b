//! Which upstream and which policy a request is for.
//!
//! A [`Router`] is an immutable snapshot: the control side builds a new one from the catalogue and the
//! configuration (see [`crate::upstreams`]) and the workers pick it up with their next request. What must survive a new
//! snapshot (load estimates, budgets, histograms) lives behind `Arc`s that successive snapshots share.
//!
//! The names an application may write for one service (`payments`, `payments.mesh`,
//! `payments.service.mesh`, each with a port) are resolved by one hash look-up of the host without its port;
//! only what misses is parsed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use evenkeel_balancer::{Balancer, Budget, Circuit, Endpoint, Hedger};
use evenkeel_config::policy::{Origins, Policy};
use evenkeel_config::settings::{Match, Protocol, Scout};
use evenkeel_discovery::names::{self, HostName};
use foldhash::HashMap;
use http::Method;

use crate::limit;
use crate::metrics::UpstreamMetrics;
use crate::scout::Watched;

/// Everything that decides where a request goes.
#[derive(Debug, Default)]
pub struct Router {
    /// Not all that the mesh has is known yet: a name that is not here may be one of its services.
    pub partial: bool,
    /// By every usual way to write the name, lower case, without a port.
    pub hosts: HashMap<Box<str>, Arc<Upstream>>,
    /// The mesh's DNS domain.
    pub domain: String,
    /// The mesh's name, `<dc>` in DNS.
    pub mesh: String,
    /// Requests for names outside the mesh pass through.
    pub passthrough: bool,
    /// Where a host stands, by its name in lower case; none of a name that several have.
    pub hosts_by_name: HashMap<Box<str>, IpAddr>,
    /// What this host offers, by instance id.
    pub local: HashMap<Box<str>, Local>,
    /// The mesh's live members: the name of the host at each address.
    pub members: std::collections::HashMap<IpAddr, Arc<str>>,
}

/// An instance on this host.
#[derive(Debug, Clone)]
pub struct Local {
    /// Its service.
    pub service: Arc<str>,
    /// The application.
    pub address: SocketAddr,
    /// What it speaks, if known.
    pub protocol: Option<Protocol>,
    /// How it answers scouts itself, if it does.
    pub scout: Option<Scout>,
    /// It takes requests: neither draining nor failing its check.
    pub serving: bool,
    /// What other hosts send it, for their scouts.
    pub watched: Arc<Watched>,
    /// What other hosts have open to it through this one.
    pub circuit: Arc<Circuit>,
    /// What requests to it draw on.
    pub limits: limit::Rules,
    /// The same instance as this host's own clients see it.
    pub direct: Option<Arc<Endpoint>>,
}

/// A service as this host's clients see it.
#[derive(Debug)]
pub struct Upstream {
    /// The service's name.
    pub name: Arc<str>,
    /// Which endpoint.
    pub balancer: Arc<Balancer>,
    /// How its static endpoints answer scouts, if they do.
    pub scout: Option<Scout>,
    /// Attempts beyond the first, over all routes.
    pub retries: Arc<Budget>,
    /// Its counters.
    pub metrics: Arc<UpstreamMetrics>,
    /// For requests that no route matches.
    pub default: Arc<Route>,
    /// First match wins.
    pub routes: Vec<(Match, Arc<Route>)>,
    /// Published routes that are too many to count.
    pub routes_left_out: usize,
    /// What its requests draw on.
    pub limits: limit::Rules,
}

/// A policy and what was learnt under it.
#[derive(Debug)]
pub struct Route {
    /// What to do.
    pub policy: Policy,
    /// Who said so, field by field.
    pub origins: Origins,
    /// Fields that `mesh.bounds` cut.
    pub bounded: BTreeSet<&'static str>,
    /// When a copy pays.
    pub hedger: Arc<Hedger>,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Destination<'a> {
    /// A service of the mesh or of the configuration.
    Upstream(&'a Arc<Upstream>),
    /// A host of the mesh, or an address written as a name of the mesh: dialled as what is outside is.
    Host(IpAddr),
    /// A mesh name that nobody offers.
    Unknown(String),
    /// A name that may be one of the mesh's: not all of them are known yet.
    NotTold(String),
    /// A name outside the mesh.
    Foreign,
    /// The same, unless it is a service's that is not known yet.
    ForeignSoFar,
}

impl Router {
    /// The destination of a request whose authority is `host`, with or without a port.
    pub fn resolve(&self, host: &str) -> Destination<'_> {
        let name = names::without_port(host);
        if let Some(upstream) = self.hosts.get(name) {
            return Destination::Upstream(upstream);
        }
        let unknown = |name| match self.partial {
            true => Destination::NotTold(name),
            false => Destination::Unknown(name),
        };
        match names::service_of_host(host, &self.domain, &self.mesh) {
            HostName::Service(name) => match self.hosts.get(name.as_str()) {
                Some(upstream) => Destination::Upstream(upstream),
                None => unknown(name),
            },
            HostName::ServiceOrForeign(name) => match self.hosts.get(name.as_str()) {
                Some(upstream) => Destination::Upstream(upstream),
                None if self.partial => Destination::ForeignSoFar,
                None => Destination::Foreign,
            },
            HostName::Host(name) => match self.hosts_by_name.get(name.as_str()) {
                Some(address) => Destination::Host(*address),
                None => unknown(format!("{name}.node")),
            },
            HostName::Address(address) => Destination::Host(address),
            HostName::Foreign => Destination::Foreign,
        }
    }

    /// The name of the member at an address; empty: there is none.
    pub fn host_at(&self, address: IpAddr) -> &str {
        self.members.get(&address.to_canonical()).map_or("", |name| name)
    }

    /// Tells every balancer that this process itself was stopped for a while.
    pub fn own_pause(&self, now: Instant) {
        for upstream in self.hosts.values() {
            upstream.balancer.own_pause(now);
        }
        self.local.values().for_each(|local| local.watched.own_pause(now));
    }
}

impl Upstream {
    /// The policy for a request.
    pub fn route(&self, method: &Method, path: &str) -> &Arc<Route> {
        self.routes
            .iter()
            .find(|(matches, _)| matched(matches, method, path))
            .map_or(&self.default, |(_, route)| route)
    }
}

/// Whether all that is given matches.
pub fn matched(matches: &Match, method: &Method, path: &str) -> bool {
    let method_fits = matches.method.as_deref().is_none_or(|m| m == method.as_str());
    let path_fits = matches.path.as_deref().is_none_or(|p| match p.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => p == path,
    });
    method_fits && path_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses_mean_what_they_mean_in_dns() {
        let address: IpAddr = "10.0.0.5".parse().unwrap();
        let router = Router {
            hosts_by_name: [("h1".into(), address)].into_iter().collect(),
            domain: "mesh".into(),
            mesh: "prod".into(),
            ..Router::default()
        };
        for host in ["h1.node.mesh:9001", "H1.node.prod.mesh", "0a000005.addr.mesh:80"] {
            let destination = router.resolve(host);
            assert!(matches!(destination, Destination::Host(ip) if ip == address), "{host}");
        }
        assert!(matches!(router.resolve("h2.node.mesh"), Destination::Unknown(_)));
        assert!(matches!(router.resolve("h1.node.example"), Destination::Foreign));
    }

    #[test]
    fn a_name_is_unknown_only_once_all_are_known() {
        let router = |partial| Router { partial, domain: "mesh".into(), ..Router::default() };
        for host in ["payments", "payments.mesh", "h1.node.mesh", "payments.shop.mesh:80"] {
            let early = router(true);
            assert!(matches!(early.resolve(host), Destination::NotTold(_)), "{host}");
            let told = router(false);
            assert!(matches!(told.resolve(host), Destination::Unknown(_)), "{host}");
        }
        assert!(matches!(router(true).resolve("payments.shop"), Destination::ForeignSoFar));
        assert!(matches!(router(true).resolve("www.example.com"), Destination::Foreign));
    }

    #[test]
    fn a_route_matches_exact_paths_prefixes_and_methods() {
        let of = |path: Option<&str>, method: Option<&str>| Match {
            path: path.map(String::from),
            method: method.map(String::from),
        };
        assert!(matched(&of(Some("/a"), None), &Method::GET, "/a"));
        assert!(!matched(&of(Some("/a"), None), &Method::GET, "/ab"));
        assert!(matched(&of(Some("/a*"), None), &Method::GET, "/ab"));
        assert!(!matched(&of(Some("/a*"), Some("POST")), &Method::GET, "/ab"));
        assert!(matched(&of(None, None), &Method::PUT, "/"));
    }
}

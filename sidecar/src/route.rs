//! Which upstream and which policy a request is for.
//!
//! A [`Router`] is an immutable snapshot: the control side builds a new one from the catalogue and the
//! configuration (see [`crate::upstreams`]) and the workers pick it up with their next request. What must survive a new
//! snapshot (load estimates, budgets, histograms) lives behind `Arc`s that successive snapshots share.
//!
//! The names an application may write for one service (`payments`, `payments.mesh`,
//! `payments.service.mesh`, each with a port) are resolved by one look-up of what is left without their usual endings;
//! only what misses is parsed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
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
use crate::upstream_state::UpstreamState;
use crate::upstream_table::UpstreamTable;

/// Everything that decides where a request goes.
#[derive(Debug, Default)]
pub struct Router {
    /// Not all that the mesh has is known yet: a name that is not here may be one of its services.
    pub partial: bool,
    /// By name, lower case.
    pub upstreams: UpstreamTable,
    /// The mesh's DNS domain.
    pub domain: String,
    /// The mesh's name, `<dc>` in DNS.
    pub mesh: String,
    /// Requests for names outside the mesh pass through.
    pub passthrough: bool,
    /// Where a host stands, by its name in lower case; none of a name that several have.
    pub hosts_by_name: Arc<HashMap<Box<str>, IpAddr>>,
    /// What this host offers, by instance id.
    pub local: Arc<HashMap<Box<str>, Local>>,
    /// The mesh's live members: the name of the host at each address.
    pub members: Arc<std::collections::HashMap<IpAddr, Arc<str>>>,
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
    /// Its instance id.
    pub id: Arc<str>,
    /// This host's own id.
    pub own: u64,
    /// Its service as this host's own clients see it.
    pub clients: Option<Arc<UpstreamState>>,
    /// See [`Local::direct`].
    pub seen: OnceLock<Option<Arc<Endpoint>>>,
}

/// A service as this host's clients see it.
#[derive(Debug)]
pub struct Upstream {
    /// The service's name.
    pub name: Arc<str>,
    /// Which endpoint, and what was learnt.
    pub state: Arc<UpstreamState>,
    /// How its static endpoints answer scouts, if they do.
    pub scout: Option<Scout>,
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
        if let Some(upstream) = self.upstreams.get(self.bare(names::without_port(host))) {
            return Destination::Upstream(upstream);
        }
        let unknown = |name| match self.partial {
            true => Destination::NotTold(name),
            false => Destination::Unknown(name),
        };
        match names::service_of_host(host, &self.domain, &self.mesh) {
            HostName::Service(name) => match self.upstreams.get(name.as_str()) {
                Some(upstream) => Destination::Upstream(upstream),
                None => unknown(name),
            },
            HostName::ServiceOrForeign(name) => match self.upstreams.get(name.as_str()) {
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

    /// Without what may stand behind a service's name: `.DOMAIN`, `.service.DOMAIN`, `.service.MESH.DOMAIN`.
    fn bare<'h>(&self, host: &'h str) -> &'h str {
        let without = |name: &'h str, last: &str| name.strip_suffix(last)?.strip_suffix('.');
        let Some(inner) = without(host, &self.domain) else { return host };
        let of_mesh = without(inner, &self.mesh).and_then(|inner| without(inner, "service"));
        of_mesh.or_else(|| without(inner, "service")).unwrap_or(inner)
    }

    /// Tells every balancer that this process itself was stopped for a while.
    pub fn own_pause(&self, now: Instant) {
        for used in self.upstreams.iter().filter_map(|upstream| upstream.state.used()) {
            used.balancer.own_pause(now);
        }
        self.local.values().for_each(|local| local.watched.own_pause(now));
    }
}

impl Local {
    /// The same instance as this host's own clients see it, once they use it.
    pub fn direct(&self) -> Option<&Endpoint> {
        let used = self.clients.as_ref()?.used()?;
        let is_this = |endpoint: &&Arc<Endpoint>| {
            let spec = endpoint.spec();
            spec.node == self.own && spec.instance == self.id && spec.address == self.address
        };
        let find = || used.balancer.endpoints().iter().find(is_this).map(Arc::clone);
        self.seen.get_or_init(find).as_deref()
    }
}

impl Upstream {
    /// Which endpoint.
    pub fn balancer(&self) -> &Balancer {
        &self.state.in_use().balancer
    }

    /// Attempts beyond the first, over all routes.
    pub fn retries(&self) -> &Budget {
        &self.state.in_use().retries
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<UpstreamMetrics> {
        &self.state.in_use().metrics
    }

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
            hosts_by_name: Arc::new([("h1".into(), address)].into_iter().collect()),
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

//! From the catalogue and the configuration to the router's next snapshot.
//!
//! Every service of the mesh is an upstream, and so is every `upstreams` entry with endpoints of its own. What was
//! learnt (estimates, budgets, histograms, counters) belongs to the name and outlives snapshots; a
//! service whose last instance went away stays known for [`GONE_KEPT`], so that its callers hear "no instance"
//! and not "no such service". Of such names [`GONE_MAX`] are kept: in a mesh in which services with names of their own come
//! and go (previews, jobs), what is gone must cost no more after a week than after an hour.
//!
//! What holds for an upstream is put together when something is said anew (by the file, by the hosts that offer the
//! service, by an operator's order) and shared by all snapshots until then. A change of the mesh costs what it changes: only
//! the upstreams whose view in the catalogue is another one are looked at, and the rest of the router is shared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use evenkeel_balancer::{Circuit, EndpointSpec, Hedger, Hop};
use evenkeel_config::settings::{self, Direction, Match, Settings};
use evenkeel_config::{Merged, Published};
use evenkeel_discovery::catalog::Catalog;
use evenkeel_discovery::{Instance, Instruction, NodeStatus, Order, ServiceView, Subject};
use tokio::sync::watch;

use crate::limit::{self, Limits};
use crate::metrics::UpstreamRegister;
use crate::quotas;
use crate::route::{Local, Route, Router, Upstream};
use crate::scout::Watched;
use crate::upstream_state::UpstreamState;
use crate::upstream_table::UpstreamTable;

/// The owner of what is learnt of every upstream; publishes the router.
#[derive(Debug)]
pub struct Upstreams {
    epoch: Instant,
    register: UpstreamRegister,
    router: Arc<ArcSwap<Router>>,
    /// Counts the times that the mesh called hosts down.
    hosts_lost: watch::Sender<u64>,
    limits: Arc<Limits>,
    known: BTreeMap<Arc<str>, Known>,
    /// Of those known, the ones that nobody offers any more: since when, and their names.
    gone: BTreeSet<(Instant, Arc<str>)>,
    table: UpstreamTable,
    members: Arc<HashMap<IpAddr, Arc<str>>>,
    hosts_by_name: Arc<foldhash::HashMap<Box<str>, IpAddr>>,
    local: Arc<foldhash::HashMap<Box<str>, Local>>,
    /// The services of which this host has instances.
    offered: BTreeSet<String>,
    /// This host's instances as others' scouts see them, by id and address.
    watched: BTreeMap<(String, SocketAddr), (Arc<Watched>, Arc<Circuit>)>,
    /// What the last router was made of.
    last: Option<(Arc<Settings>, Arc<Catalog>)>,
}

#[derive(Debug)]
struct Known {
    state: Arc<UpstreamState>,
    hedgers: Vec<(Match, Arc<Hedger>)>,
    default_hedger: Arc<Hedger>,
    gone_since: Option<Instant>,
    built: Option<Built>,
}

/// An upstream for the router, and what it was made of.
#[derive(Debug)]
struct Built {
    published: Option<Arc<Published>>,
    order: Option<Arc<Order>>,
    upstream: Arc<Upstream>,
}

impl Upstreams {
    /// Nothing is known yet; moments are counted from `epoch`.
    pub fn new(
        epoch: Instant,
        register: UpstreamRegister,
        router: Arc<ArcSwap<Router>>,
        hosts_lost: watch::Sender<u64>,
        limits: Arc<Limits>,
    ) -> Upstreams {
        Upstreams {
            epoch,
            register,
            router,
            hosts_lost,
            limits,
            known: BTreeMap::new(),
            gone: BTreeSet::new(),
            table: UpstreamTable::default(),
            members: Arc::default(),
            hosts_by_name: Arc::default(),
            local: Arc::default(),
            offered: BTreeSet::new(),
            watched: BTreeMap::new(),
            last: None,
        }
    }

    /// Publishes the router for this configuration and catalogue.
    pub fn publish(&mut self, now: Instant, settings: &Arc<Settings>, catalog: &Arc<Catalog>) {
        let last = self.last.replace((Arc::clone(settings), Arc::clone(catalog)));
        let before = last.filter(|(known, _)| Arc::ptr_eq(known, settings));
        let before = before.as_ref().map(|(_, catalog)| &**catalog);
        if before.is_none() {
            self.limits.follow(quotas::templates(&settings.ratelimit));
            self.known.values_mut().for_each(|known| known.built = None);
        }
        let configured: BTreeMap<&str, &settings::Upstream> =
            settings.upstreams.iter().map(|upstream| (upstream.name.as_str(), upstream)).collect();
        let changed: BTreeSet<Arc<str>> = match before {
            Some(before) => changed_names(before, catalog).map(Arc::from).collect(),
            None => {
                let named = configured.keys().copied();
                let offered = catalog.services.keys().map(String::as_str);
                let all = named.chain(offered).map(Arc::from);
                all.chain(self.known.keys().cloned()).collect()
            }
        };
        let other_hosts = before.is_none_or(|before| before.nodes_index != catalog.nodes_index);
        if other_hosts {
            // Before their endpoints go: requests may wait for them.
            self.mark_lost(catalog);
            self.name_hosts(catalog);
        }
        for name in &changed {
            self.update(now, settings, configured.get(&**name).copied(), catalog, name);
        }
        self.forget_gone(now);
        let is_ours = |name: &Arc<str>| {
            self.offered.contains(&**name)
                || catalog.service(name).is_some_and(|view| has_own(view, catalog.own))
        };
        if before.is_none_or(|before| before.own != catalog.own) || changed.iter().any(is_ours) {
            self.local = Arc::new(self.local(settings, catalog));
        }
        self.router.store(Arc::new(Router {
            partial: catalog.partial,
            upstreams: self.table.clone(),
            hosts_by_name: Arc::clone(&self.hosts_by_name),
            domain: settings.mesh.domain.clone(),
            mesh: settings.mesh.name.clone(),
            passthrough: settings.outbound.passthrough,
            local: Arc::clone(&self.local),
            members: Arc::clone(&self.members),
        }));
    }

    /// Takes over what is said of one upstream now. `configured`: by the file.
    fn update(
        &mut self,
        now: Instant,
        settings: &Settings,
        configured: Option<&settings::Upstream>,
        catalog: &Catalog,
        name: &Arc<str>,
    ) {
        // Endpoints of this file's own are not the mesh's service of that name.
        let fixed = configured.filter(|upstream| !upstream.endpoints.is_empty());
        let view = catalog.service(name).filter(|_| fixed.is_none());
        let is_there = configured.is_some() || view.is_some();
        if !is_there && !self.known.contains_key(name) {
            return;
        }
        let known = self
            .known
            .entry(Arc::clone(name))
            .or_insert_with(|| Known::new(self.epoch, &self.register, Arc::clone(name)));
        let specs = match (fixed, view) {
            (Some(upstream), _) => static_specs(upstream),
            (None, Some(view)) => mesh_specs(view, catalog.own, settings),
            (None, None) => Vec::new(),
        };
        known.state.update(now, specs, settings.node.zone.as_deref());
        match known.gone_since {
            Some(since) if is_there => {
                self.gone.remove(&(since, Arc::clone(name)));
                known.gone_since = None;
            }
            None if !is_there => {
                self.gone.insert((now, Arc::clone(name)));
                known.gone_since = Some(now);
            }
            _ => {}
        }
        let published = view.and_then(|view| view.policies.winner());
        let order = catalog.orders.get(&Subject::Override(name.to_string()));
        let rules = || {
            let apply = &settings.ratelimit.apply;
            self.limits.rules(Direction::Outbound, name, apply)
        };
        self.table.put(known.upstream(name, settings, published, order, self.epoch, rules));
    }

    /// Forgets the names that have been gone for long, and the oldest where there are too many.
    fn forget_gone(&mut self, now: Instant) {
        while let Some((since, _)) = self.gone.first()
            && (self.gone.len() > GONE_MAX || now.saturating_duration_since(*since) >= GONE_KEPT)
            && let Some((_, name)) = self.gone.pop_first()
        {
            self.known.remove(&name);
            self.table.remove(&name);
        }
    }

    /// Tells the balancers which hosts are called down, and the workers if any endpoint's is that was not.
    fn mark_lost(&self, catalog: &Catalog) {
        // Who is preserved may be there: it may be us who are cut off.
        let instances = catalog.services.values().flat_map(|view| &view.instances);
        let preserved: BTreeSet<u64> =
            instances.filter(|instance| instance.preserved).map(|i| i.node.id).collect();
        let is_down = |node: u64| {
            let status = catalog.nodes.get(&node).map(|node| node.status);
            matches!(status, Some(NodeStatus::Failed | NodeStatus::Dead))
                && !preserved.contains(&node)
        };
        let mut is_lost = false;
        for used in self.known.values().filter_map(|known| known.state.used()) {
            is_lost |= used.balancer.mark_lost(is_down);
        }
        if is_lost {
            self.hosts_lost.send_modify(|times| *times += 1);
        }
    }

    /// The names of the hosts that are up.
    fn name_hosts(&mut self, catalog: &Catalog) {
        let members = catalog
            .alive()
            .flat_map(|node| [(node.address.ip(), node), (node.mesh.ip(), node)])
            .map(|(ip, node)| (ip.to_canonical(), Arc::from(node.name.as_str())))
            .collect();
        let mut hosts_by_name = foldhash::HashMap::default();
        let mut shared_names = BTreeSet::new();
        for node in catalog.alive() {
            let name = node.name.to_ascii_lowercase().into_boxed_str();
            if hosts_by_name.insert(name.clone(), node.address.ip()).is_some() {
                shared_names.insert(name);
            }
        }
        hosts_by_name.retain(|name, _| !shared_names.contains(name));
        (self.members, self.hosts_by_name) = (Arc::new(members), Arc::new(hosts_by_name));
    }

    /// This host's own instances, as other hosts ask for them.
    fn local(
        &mut self,
        settings: &Settings,
        catalog: &Catalog,
    ) -> foldhash::HashMap<Box<str>, Local> {
        let views = || catalog.services.values().filter(|view| has_own(view, catalog.own));
        self.offered = views().map(|view| view.name.clone()).collect();
        let mut watched = BTreeMap::new();
        let mut local = foldhash::HashMap::default();
        for view in views() {
            let apply = &settings.ratelimit.apply;
            let limits = self.limits.rules(Direction::Inbound, &view.name, apply);
            let service: Arc<str> = Arc::from(view.name.as_str());
            let clients = self.known.get(&*service).map(|known| Arc::clone(&known.state));
            for instance in view.instances.iter().filter(|one| one.node.id == catalog.own) {
                let key = (instance.id.clone(), instance.address);
                let known = self.watched.remove(&key);
                let known =
                    known.unwrap_or_else(|| (Arc::new(Watched::new(self.epoch)), Arc::default()));
                watched.insert(key, known.clone());
                let configured = settings.services.iter().find(|service| service.id == instance.id);
                let instance_local = Local {
                    service: Arc::clone(&service),
                    address: instance.address,
                    protocol: instance.protocol,
                    scout: configured.and_then(|service| service.scout.clone()),
                    serving: instance.takes_requests(),
                    watched: known.0,
                    circuit: known.1,
                    limits: Arc::clone(&limits),
                    id: Arc::from(instance.id.as_str()),
                    own: catalog.own,
                    clients: clients.clone(),
                    seen: std::sync::OnceLock::new(),
                };
                local.insert(instance.id.clone().into_boxed_str(), instance_local);
            }
        }
        self.watched = watched;
        local
    }
}

impl Known {
    fn new(epoch: Instant, register: &UpstreamRegister, name: Arc<str>) -> Known {
        Known {
            state: Arc::new(UpstreamState::new(name, epoch, register.clone())),
            hedgers: Vec::new(),
            default_hedger: Arc::new(Hedger::new(epoch)),
            gone_since: None,
            built: None,
        }
    }

    /// The upstream as the router has it; a new one only if something is said anew.
    fn upstream(
        &mut self,
        name: &Arc<str>,
        settings: &Settings,
        published: Option<&Arc<Published>>,
        order: Option<&Arc<Order>>,
        epoch: Instant,
        limits: impl FnOnce() -> limit::Rules,
    ) -> Arc<Upstream> {
        if let Some(built) = &self.built
            && built.published.as_ref() == published
            && built.order.as_ref() == order
        {
            return Arc::clone(&built.upstream);
        }
        let overrides = order.and_then(|order| match &order.instruction {
            Instruction::Override(policy) => Some(&**policy),
            Instruction::Drain | Instruction::Undo => None,
        });
        let effective = settings.effective(name, published.map(|p| &**p), overrides);
        let learnt = std::mem::take(&mut self.hedgers);
        let mut routes = Vec::new();
        for (matches, merged) in effective.routes {
            // What was learnt of these requests is theirs whatever the policy says now.
            let known = self.hedgers.iter().chain(&learnt).find(|(known, _)| *known == matches);
            let hedger = known
                .map_or_else(|| Arc::new(Hedger::new(epoch)), |(_, hedger)| Arc::clone(hedger));
            self.hedgers.push((matches.clone(), Arc::clone(&hedger)));
            routes.push((matches, Arc::new(route(merged, hedger))));
        }
        let upstream = Arc::new(Upstream {
            name: Arc::clone(name),
            state: Arc::clone(&self.state),
            scout: settings
                .upstreams
                .iter()
                .find(|u| *u.name == **name)
                .and_then(|u| u.scout.clone()),
            default: Arc::new(route(effective.default, Arc::clone(&self.default_hedger))),
            routes,
            routes_left_out: effective.left_out,
            limits: limits(),
        });
        self.built = Some(Built {
            published: published.cloned(),
            order: order.cloned(),
            upstream: Arc::clone(&upstream),
        });
        upstream
    }
}

/// The services of which something was said anew between two catalogues.
fn changed_names<'c>(before: &'c Catalog, after: &'c Catalog) -> impl Iterator<Item = &'c str> {
    let services = differing(&before.services, &after.services, Arc::ptr_eq);
    let orders = differing(&before.orders, &after.orders, Arc::ptr_eq);
    let overridden = orders.into_iter().filter_map(|subject| match subject {
        Subject::Override(service) => Some(service),
        Subject::Drain(_) => None,
    });
    services.into_iter().chain(overridden).map(String::as_str)
}

/// The keys that are in one of two maps only, or with another value in each. One walk along both.
fn differing<'m, K: Ord, V>(
    before: &'m BTreeMap<K, V>,
    after: &'m BTreeMap<K, V>,
    is_same: impl Fn(&V, &V) -> bool,
) -> Vec<&'m K> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    let mut differ = Vec::new();
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return differ,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let old = order.is_le().then(|| before.next()).flatten();
        let new = order.is_ge().then(|| after.next()).flatten();
        match (old, new) {
            (Some((_, old)), Some((_, new))) if is_same(old, new) => {}
            (Some((key, _)), _) | (None, Some((key, _))) => differ.push(key),
            (None, None) => return differ,
        }
    }
}

fn has_own(view: &ServiceView, own: u64) -> bool {
    view.instances.iter().any(|instance| instance.node.id == own)
}

/// The endpoints of a service of the mesh.
fn mesh_specs(view: &ServiceView, own: u64, settings: &Settings) -> Vec<EndpointSpec> {
    // What is limited where it comes in is limited for this host's own applications too.
    let limited = settings
        .ratelimit
        .apply
        .iter()
        .any(|rule| rule.direction == Direction::Inbound && rule.service == view.name);
    let listening = view.instances.iter().filter(|instance| instance.listens());
    listening.map(|instance| spec_of(instance, own, limited)).collect()
}

fn route(merged: Merged, hedger: Arc<Hedger>) -> Route {
    let Merged { policy, origins, bounded } = merged;
    Route { policy, origins, bounded, hedger }
}

fn spec_of(instance: &Instance, own: u64, limited: bool) -> EndpointSpec {
    // Our own applications are reached without a hop, unless that is where they are limited.
    let here = instance.node.id == own && !limited;
    EndpointSpec {
        node: instance.node.id,
        instance: Arc::from(instance.id.as_str()),
        address: instance.address,
        dial: if here { instance.address } else { instance.node.mesh },
        hop: if here { Hop::Direct } else { Hop::Mesh },
        protocol: instance.protocol,
        weight: instance.weights.passing.into(),
        zone: instance.node.zone.as_deref().map(Arc::from),
        serving: instance.takes_requests(),
        preserved: instance.preserved,
    }
}

fn static_specs(upstream: &settings::Upstream) -> Vec<EndpointSpec> {
    let spec = |address: &SocketAddr| EndpointSpec {
        node: 0,
        instance: Arc::from(address.to_string()),
        address: *address,
        dial: *address,
        hop: Hop::Direct,
        protocol: upstream.protocol,
        weight: 1,
        zone: None,
        serving: true,
        preserved: false,
    };
    upstream.endpoints.iter().map(spec).collect()
}

/// How long the name of a service without instances is remembered.
const GONE_KEPT: Duration = Duration::from_secs(3600);
/// How many such names; past it the one that has been gone longest is forgotten.
const GONE_MAX: usize = 256;

#[cfg(test)]
mod tests;

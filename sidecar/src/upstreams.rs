//! From the catalogue and the configuration to the router's next snapshot.
//!
//! Every service of the mesh is an upstream, and so is every `upstreams` entry with endpoints of its own. What was
//! learnt (estimates, budgets, histograms, counters) belongs to the name and outlives snapshots; a
//! service whose last instance went away stays known for [`GONE_KEPT`], so that its callers hear "no instance"
//! and not "no such service".
//!
//! What holds for an upstream is put together when something is said anew (by the file, by the hosts that offer the
//! service, by an operator's order) and shared by all snapshots until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::{Balancer, Budget, Circuit, EndpointSpec, Hedger, Hop};
use evenkeel_config::settings::{self, Direction, Match, Settings};
use evenkeel_config::{Merged, Published};
use evenkeel_discovery::catalog::Catalog;
use evenkeel_discovery::{Instance, Instruction, NodeStatus, Order, Subject};

use crate::limit::{self, Limits};
use crate::metrics::UpstreamMetrics;
use crate::quotas;
use crate::route::{Local, Route, Router, Upstream};
use crate::scout::Watched;
use crate::worker::Shared;

/// The owner of what is learnt of every upstream; publishes the router.
#[derive(Debug)]
pub struct Upstreams {
    shared: Arc<Shared>,
    known: BTreeMap<String, Known>,
    /// Of the last router.
    settings: Option<Arc<Settings>>,
    /// This host's instances as others' scouts see them, by id and address.
    watched: BTreeMap<(String, SocketAddr), (Arc<Watched>, Arc<Circuit>)>,
    limits: Arc<Limits>,
    /// Of the services that this host offers.
    inbound: BTreeMap<String, limit::Rules>,
}

#[derive(Debug)]
struct Known {
    name: Arc<str>,
    balancer: Arc<Balancer>,
    retries: Arc<Budget>,
    metrics: Arc<UpstreamMetrics>,
    hedgers: Vec<(Match, Arc<Hedger>)>,
    default_hedger: Arc<Hedger>,
    specs: Vec<EndpointSpec>,
    seen: Instant,
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
    /// Nothing is known yet.
    pub fn new(shared: Arc<Shared>, limits: Arc<Limits>) -> Upstreams {
        Upstreams {
            shared,
            known: BTreeMap::new(),
            settings: None,
            watched: BTreeMap::new(),
            limits,
            inbound: BTreeMap::new(),
        }
    }

    /// Publishes the router for this configuration and catalogue.
    pub fn publish(&mut self, now: Instant, settings: &Arc<Settings>, catalog: &Catalog) {
        let is_same = self.settings.as_ref().is_some_and(|last| Arc::ptr_eq(last, settings));
        if !is_same {
            self.settings = Some(Arc::clone(settings));
            self.limits.follow(quotas::templates(&settings.ratelimit));
            self.inbound.clear();
        }
        let configured: BTreeMap<&str, &settings::Upstream> =
            settings.upstreams.iter().map(|upstream| (upstream.name.as_str(), upstream)).collect();
        let mut wanted: BTreeMap<&str, Vec<EndpointSpec>> = BTreeMap::new();
        for view in catalog.services.values() {
            // What is limited where it comes in is limited for this host's own applications too.
            let limited = settings
                .ratelimit
                .apply
                .iter()
                .any(|rule| rule.direction == Direction::Inbound && rule.service == view.name);
            let spec = |i: &Arc<Instance>| spec_of(i, catalog.own, limited);
            wanted.insert(
                &view.name,
                view.instances.iter().filter(|i| i.listens()).map(spec).collect(),
            );
        }
        for upstream in &settings.upstreams {
            if upstream.endpoints.is_empty() {
                wanted.entry(&upstream.name).or_default();
            } else {
                wanted.insert(&upstream.name, static_specs(upstream));
            }
        }
        let down: BTreeSet<u64> = catalog
            .nodes
            .values()
            .filter(|node| matches!(node.status, NodeStatus::Failed | NodeStatus::Dead))
            .map(|node| node.id)
            .collect();
        let mut is_lost = false;
        for known in self.known.values() {
            is_lost |= known.balancer.mark_lost(|node| down.contains(&node));
        }
        if is_lost {
            self.shared.hosts_lost.send_modify(|times| *times += 1);
        }
        for (name, specs) in wanted {
            let known = self
                .known
                .entry(name.to_owned())
                .or_insert_with(|| Known::new(&self.shared, name, now));
            known.seen = now;
            known.update(now, specs, settings.node.zone.as_deref());
        }
        self.known.retain(|_, known| now.saturating_duration_since(known.seen) < GONE_KEPT);
        for known in self.known.values_mut().filter(|known| known.seen != now) {
            known.update(now, Vec::new(), settings.node.zone.as_deref());
        }

        let mut hosts = foldhash::HashMap::default();
        for (name, known) in &mut self.known {
            if !is_same {
                known.built = None;
            }
            // Endpoints of this file's own are not the mesh's service of that name.
            let is_static = configured.get(name.as_str()).is_some_and(|u| !u.endpoints.is_empty());
            let published = catalog.service(name).filter(|_| !is_static);
            let published = published.and_then(|view| view.policies.winner());
            let order = catalog.orders.get(&Subject::Override(name.clone()));
            let rules = || {
                let apply = &settings.ratelimit.apply;
                self.limits.rules(Direction::Outbound, name, apply)
            };
            let upstream = known.upstream(settings, published, order, self.shared.epoch, rules);
            let (domain, mesh) = (&settings.mesh.domain, &settings.mesh.name);
            for host in [
                name.clone(),
                format!("{name}.{domain}"),
                format!("{name}.service.{domain}"),
                format!("{name}.service.{mesh}.{domain}"),
            ] {
                hosts.insert(host.into_boxed_str(), Arc::clone(&upstream));
            }
        }
        let members: HashMap<_, Arc<str>> = catalog
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
        let local = self.local(settings, catalog);
        self.shared.router.store(Arc::new(Router {
            partial: catalog.partial,
            hosts,
            hosts_by_name,
            domain: settings.mesh.domain.clone(),
            mesh: settings.mesh.name.clone(),
            passthrough: settings.outbound.passthrough,
            local,
            members,
        }));
    }

    /// This host's own instances, as other hosts ask for them.
    fn local(
        &mut self,
        settings: &Settings,
        catalog: &Catalog,
    ) -> foldhash::HashMap<Box<str>, Local> {
        let own = catalog
            .services
            .values()
            .flat_map(|view| &view.instances)
            .filter(|instance| instance.node.id == catalog.own);
        let mut watched = BTreeMap::new();
        let mut local = foldhash::HashMap::default();
        for instance in own {
            let key = (instance.id.clone(), instance.address);
            let known = self.watched.remove(&key);
            let known = known
                .unwrap_or_else(|| (Arc::new(Watched::new(self.shared.epoch)), Arc::default()));
            watched.insert(key, known.clone());
            let configured = settings.services.iter().find(|service| service.id == instance.id);
            let apply = &settings.ratelimit.apply;
            let limits = self.inbound.entry(instance.service.clone()).or_insert_with(|| {
                let service = &instance.service;
                self.limits.rules(Direction::Inbound, service, apply)
            });
            let limits = Arc::clone(limits);
            let clients = self.known.get(&instance.service);
            let direct = clients.and_then(|known| {
                let endpoints = known.balancer.endpoints();
                let is_this = |spec: &EndpointSpec| {
                    spec.node == catalog.own
                        && *spec.instance == *instance.id
                        && spec.address == instance.address
                };
                endpoints.iter().find(|endpoint| is_this(endpoint.spec())).map(Arc::clone)
            });
            let instance_local = Local {
                service: Arc::from(instance.service.as_str()),
                address: instance.address,
                protocol: instance.protocol,
                scout: configured.and_then(|service| service.scout.clone()),
                serving: instance.takes_requests(),
                watched: known.0,
                circuit: known.1,
                limits,
                direct,
            };
            local.insert(instance.id.clone().into_boxed_str(), instance_local);
        }
        self.watched = watched;
        local
    }
}

impl Known {
    fn new(shared: &Shared, name: &str, now: Instant) -> Known {
        let name: Arc<str> = Arc::from(name);
        Known {
            balancer: Arc::new(Balancer::new(shared.epoch)),
            retries: Arc::new(Budget::new(shared.epoch)),
            metrics: shared.metrics.upstream(Arc::clone(&name), "outbound"),
            hedgers: Vec::new(),
            default_hedger: Arc::new(Hedger::new(shared.epoch)),
            specs: Vec::new(),
            seen: now,
            built: None,
            name,
        }
    }

    fn update(&mut self, now: Instant, specs: Vec<EndpointSpec>, own_zone: Option<&str>) {
        if self.specs != specs {
            let left_out = self.balancer.update(now, specs.clone(), own_zone);
            if left_out > 0 {
                tracing::warn!(upstream = %self.name, left_out, "more instances than one upstream can have");
            }
            self.specs = specs;
        }
    }

    /// The upstream as the router has it; a new one only if something is said anew.
    fn upstream(
        &mut self,
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
        let effective = settings.effective(&self.name, published.map(|p| &**p), overrides);
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
            name: Arc::clone(&self.name),
            balancer: Arc::clone(&self.balancer),
            retries: Arc::clone(&self.retries),
            metrics: Arc::clone(&self.metrics),
            scout: settings
                .upstreams
                .iter()
                .find(|u| *u.name == *self.name)
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

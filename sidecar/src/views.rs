//! What the admin listener shows of the data plane: endpoints as the balancer sees them, and why a request goes
//! where it goes. Reads snapshots and atomics; changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use evenkeel_balancer::{Advice, EndpointReport, Wish, key_hash, repeat};
use evenkeel_config::policy::{Mode, Origin, Policy};
use evenkeel_config::ratelimit::{Apply, RateLimit};
use evenkeel_config::settings::{self, Match, Settings};
use evenkeel_discovery::catalog::{Catalog, CheckState, HOSTS_NAMED_MAX, PolicyVote};
use evenkeel_discovery::{Instance, Status, Subject};
use http::Method;

use crate::admin::report;
use crate::admin::{About, Views};
use crate::gossip::GossipHandle;
use crate::route::{Destination, Route, Router, Upstream, matched};
use crate::worker::Shared;

/// The views of a running host.
pub fn views(
    shared: &Arc<Shared>,
    settings: &Arc<ArcSwap<Settings>>,
    gossip: &GossipHandle,
    draining: &Arc<AtomicBool>,
    listeners: &Listeners,
) -> Views {
    let data = Arc::new(Data {
        router: Arc::clone(&shared.router),
        settings: Arc::clone(settings),
        gossip: gossip.clone(),
        draining: Arc::clone(draining),
    });
    let (endpoints, explain, shards) = (Arc::clone(&data), Arc::clone(&data), Arc::clone(&data));
    let (upstreams, config, ready) = (Arc::clone(&data), Arc::clone(&data), data);
    let listeners = Arc::clone(listeners);
    Views {
        endpoints: Box::new(move |service| endpoints.endpoints(service)),
        explain: Box::new(move |service, about| explain.explain(service, about)),
        shards: Box::new(move |service, about| shards.shards(service, about)),
        upstreams: Box::new(move || upstreams.upstreams()),
        config: Box::new(move || config.settings.load().to_effective_yaml()),
        ready: Box::new(move || ready.ready()),
        listeners: Box::new(move || BTreeMap::clone(&listeners.load())),
    }
}

/// Where this host listens, by configuration key: a reload may change it.
pub type Listeners = Arc<ArcSwap<BTreeMap<String, SocketAddr>>>;

struct Data {
    router: Arc<ArcSwap<Router>>,
    settings: Arc<ArcSwap<Settings>>,
    gossip: GossipHandle,
    draining: Arc<AtomicBool>,
}

impl Data {
    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("this host is going away".into());
        }
        self.gossip.ready()?;
        // What the workers take with their next request.
        if self.router.load().partial {
            return Err("joining: the services of the mesh are not all in the router yet".into());
        }
        Ok(())
    }

    fn endpoints(&self, service: &str) -> Option<serde_json::Value> {
        let router = self.router.load();
        let Destination::Upstream(upstream) = router.resolve(service) else { return None };
        let catalog = self.gossip.catalog();
        let endpoints = reports(upstream, &upstream.default.policy, None)
            .into_iter()
            .map(|(report, dial)| (instance_of(&catalog, &upstream.name, &report), report, dial))
            .map(|(instance, report, dial)| report::Endpoint {
                host: host_of(&catalog, &report.node),
                state: state(&report, instance),
                draining: instance.map_or_else(String::new, |one| drained(&catalog, one)),
                checks: instance.map_or_else(Vec::new, failing_checks),
                in_flight: u64::from(report.in_flight),
                latency_ms: report.latency_ms,
                stall_ms: report.stall_ms,
                ejected_ms: report.ejected_for_ms.map(|ms| ms as u64),
                ejections: report.ejections,
                address: report.address,
                dial: dial.to_string(),
                instance: report.id,
            })
            .collect();
        let balance = text(&fields(&upstream.default.policy), "balance");
        serde_json::to_value(report::Endpoints {
            service: upstream.name.to_string(),
            balance,
            endpoints,
        })
        .ok()
    }

    /// Their usable endpoints are those that failures have not ejected: nobody checks them.
    fn upstreams(&self) -> Vec<report::Service> {
        let (router, settings) = (self.router.load(), self.settings.load());
        let now = Instant::now();
        let named = settings.upstreams.iter().filter(|upstream| !upstream.endpoints.is_empty());
        let service = |configured: &settings::Upstream| {
            let Destination::Upstream(upstream) = router.resolve(&configured.name) else {
                return None;
            };
            // One that no request went to has ejected nobody.
            let ejected = upstream.state.used().map_or(0, |used| {
                used.balancer.endpoints().iter().filter(|endpoint| endpoint.ejected(now)).count()
            });
            let instances = configured.endpoints.len();
            Some(report::Service {
                name: configured.name.clone(),
                instances,
                usable: instances.saturating_sub(ejected),
                upstream: true,
                ..report::Service::default()
            })
        };
        named.filter_map(service).collect()
    }

    fn shards(&self, service: &str, about: &About) -> Option<Result<serde_json::Value, String>> {
        let router = self.router.load();
        let Destination::Upstream(upstream) = router.resolve(service) else { return None };
        let method = about.method.to_ascii_uppercase().parse::<Method>().ok()?;
        let policy = &upstream.route(&method, &about.path).policy;
        if policy.shard.key.is_none() {
            return Some(Err(format!(
                "{} has no shards for {method} {}: set policy.shard.key",
                upstream.name, about.path
            )));
        }
        let (catalog, values) = (self.gossip.catalog(), fields(policy));
        let key = about.key.clone().unwrap_or_default();
        let found = upstream.balancer().shard(key_hash(key.as_bytes()), policy.shard.size);
        let members = found.members.into_iter().map(|member| report::ShardMember {
            host: host_of(&catalog, &member.node),
            instance: member.id,
            address: member.address,
            zone: member.zone,
            serving: member.serving,
        });
        let report = report::Shards {
            service: upstream.name.to_string(),
            source: text(&values, "shard.key"),
            key,
            size: policy.shard.size,
            fallback: text(&values, "shard.fallback"),
            members: members.collect(),
            endpoints: found.endpoints,
            shards: found.shards,
            overlap: found.overlap,
            exact: found.exact,
        };
        Some(serde_json::to_value(report).map_err(|error| error.to_string()))
    }

    fn explain(&self, service: &str, about: &About) -> Option<serde_json::Value> {
        let router = self.router.load();
        let Destination::Upstream(upstream) = router.resolve(service) else { return None };
        let method = about.method.to_ascii_uppercase().parse::<Method>().ok()?;
        let path = &*about.path;
        let route = upstream.route(&method, path);
        let matched =
            upstream.routes.iter().position(|(_, candidate)| Arc::ptr_eq(candidate, route));
        let catalog = self.gossip.catalog();
        let explain = report::Explain {
            service: upstream.name.to_string(),
            method: method.to_string(),
            path: path.to_owned(),
            route: matched.map(|at| described(&upstream.routes[at].0)),
            repeat: repeatable(&route.policy, &method, path),
            limits: limits(&self.settings.load().ratelimit, &upstream.name, &method, path),
            endpoints: reports(upstream, &route.policy, about.key.as_deref())
                .into_iter()
                .map(|(report, dial)| {
                    (instance_of(&catalog, &upstream.name, &report), report, dial)
                })
                .map(|(instance, report, dial)| report::ExplainEndpoint {
                    host: host_of(&catalog, &report.node),
                    usable: report.verdicts.iter().all(|v| v.pass || v.filter == "slow_start"),
                    cost: report.cost_ms,
                    draining: instance.map_or_else(String::new, |one| drained(&catalog, one)),
                    checks: instance.map_or_else(Vec::new, failing_checks),
                    verdicts: report
                        .verdicts
                        .into_iter()
                        .map(|v| report::Verdict {
                            filter: v.filter.into(),
                            pass: v.pass,
                            reason: v.why,
                        })
                        .collect(),
                    address: dial.to_string(),
                    instance: report.id,
                })
                .collect(),
            policy: policy_fields(route),
            notes: said_elsewhere(upstream, &catalog)
                .into_iter()
                .chain(notes(route, &method, path))
                .collect(),
        };
        serde_json::to_value(explain).ok()
    }
}

fn reports(
    upstream: &Upstream,
    policy: &Policy,
    key: Option<&str>,
) -> Vec<(EndpointReport, SocketAddr)> {
    let dials = upstream.balancer().endpoints();
    let dials: Vec<SocketAddr> = dials.iter().map(|endpoint| endpoint.spec().dial).collect();
    let key = key.map(|key| key_hash(key.as_bytes()));
    let wish = Wish { shard: key, hash: key, ..Wish::FIRST };
    upstream.balancer().explain(Instant::now(), policy, &wish).into_iter().zip(dials).collect()
}

/// The name of the host with this id, in hexadecimal.
fn host_of(catalog: &Catalog, node: &str) -> String {
    u64::from_str_radix(node, 16)
        .ok()
        .and_then(|id| catalog.nodes.get(&id))
        .map_or_else(String::new, |node| node.name.clone())
}

/// The instance that an endpoint stands for; none: the file names it, or it has just gone.
fn instance_of<'c>(
    catalog: &'c Catalog,
    service: &str,
    report: &EndpointReport,
) -> Option<&'c Instance> {
    let node = u64::from_str_radix(&report.node, 16).ok()?;
    let instances = &catalog.service(service)?.instances;
    instances.iter().find(|one| one.node.id == node && one.id == report.id).map(Arc::as_ref)
}

/// Why the host of an instance drains: by whose order, or what its operator said. Empty: it does not.
fn drained(catalog: &Catalog, instance: &Instance) -> String {
    let node = &instance.node;
    if !node.draining {
        return String::new();
    }
    let subject = Subject::Drain(node.id);
    match catalog.orders.get(&subject) {
        Some(order) => {
            format!("its host drains, by order of {}", report::Order::of(&subject, order))
        }
        None if node.drain_reason.is_empty() => "its host drains: it is going away".to_owned(),
        None => format!("its host is in maintenance: {}", node.drain_reason),
    }
}

fn failing_checks(instance: &Instance) -> Vec<report::CheckResult> {
    let checks = instance.checks.iter().chain(&instance.node.checks);
    let failing = checks.filter(|check| check.status != Status::Passing);
    let result = |check: &CheckState| report::CheckResult {
        id: check.id.clone(),
        kind: check.kind.to_owned(),
        status: check.status.as_str().to_owned(),
        // Of maintenance there is nothing to see: an operator's reason stands in its notes.
        output: if check.kind == "maintenance" { &check.notes } else { &check.output }.clone(),
    };
    failing.map(result).collect()
}

/// The rules of this host's file about the service, each with whether it is about this request.
fn limits(
    ratelimit: &RateLimit,
    service: &str,
    method: &Method,
    path: &str,
) -> Vec<report::LimitRow> {
    let rules = ratelimit.apply.iter().filter(|rule| rule.service == service);
    let row = |rule: &Apply| {
        // The file was checked: there is one.
        let resource = ratelimit.find(rule.resource.as_bytes())?;
        Some(report::LimitRow {
            direction: rule.direction.name().to_owned(),
            resource: rule.resource.clone(),
            capacity: resource.capacity,
            per_s: resource.per.map(|per| per.as_secs_f64()),
            key: rule.key.as_ref().map(ToString::to_string),
            cost: rule.cost,
            wait_ms: u64::try_from(rule.wait.as_millis()).unwrap_or(u64::MAX),
            fail: rule.fail.name().to_owned(),
            mode: if rule.enforce { "enforce" } else { "observe" }.to_owned(),
            matches: matched(&rule.matches, method, path),
            requests: described(&rule.matches),
        })
    };
    rules.filter_map(row).collect()
}

/// The first filter that speaks against it names the state.
fn state(report: &EndpointReport, instance: Option<&Instance>) -> String {
    report.verdicts.iter().find(|verdict| !verdict.pass).map_or_else(
        || "usable".to_owned(),
        |verdict| match verdict.filter {
            "serving" => match instance {
                Some(instance) if instance.node.draining => "draining".to_owned(),
                Some(instance) => instance.status.as_str().to_owned(),
                None => "not serving".to_owned(),
            },
            "ejection" => "ejected".to_owned(),
            "hold" => "held off".to_owned(),
            "stall" => "silent".to_owned(),
            "scout" => "warned of by its scout".to_owned(),
            filter => filter.replace('_', " "),
        },
    )
}

fn described(matches: &Match) -> String {
    match (&matches.method, &matches.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "every request".to_owned(),
    }
}

fn repeatable(policy: &Policy, method: &Method, path: &str) -> String {
    if repeat::is_safe(&policy.repeat, method.as_str(), None) {
        return format!("{method} is in repeat.methods: it may be retried and hedged");
    }
    if repeat::is_safe(&policy.repeat, method.as_str(), Some(path)) {
        return "as gRPC it is in repeat.grpc: it may be retried and hedged".to_owned();
    }
    let key = policy.repeat.key_header.as_ref().map_or_else(String::new, |header| {
        format!(", and with a {header} header also after a reset")
    });
    format!(
        "{method} is not in repeat.methods: sent again only if no application saw it{key}; never hedged"
    )
}

fn notes(route: &Route, method: &Method, path: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let now = Instant::now();
    if let (Some(p50), Some(p99)) =
        (route.hedger.quantile(now, 50.0), route.hedger.quantile(now, 99.0))
    {
        notes.push(format!(
            "time to a response's head in the last 30 s: p50 {p50:.1?}, p99 {p99:.1?}"
        ));
    }
    let hedge = &route.policy.hedge;
    let may_copy = |grpc| repeat::is_safe(&route.policy.repeat, method.as_str(), grpc);
    if !may_copy(None) && !may_copy(Some(path)) {
        return notes;
    }
    if hedge.mode != Mode::Off {
        notes.push(match route.hedger.delay(now, hedge) {
            Some(delay) => format!("a copy is due after {delay:.1?}"),
            None => "no copies yet: 100 requests must show what is late".to_owned(),
        });
    }
    if let Some(Advice { p99, p999, extra, .. }) = route.hedger.advice(now, hedge) {
        notes.push(format!(
            "hedging would take p99 from {:.1?} to {:.1?} and p99.9 from {:.1?} to {:.1?} for {:.1} % more requests, if endpoints are slow one at a time; policy.hedge.mode: enforce does it",
            p99[0],
            p99[1],
            p999[0],
            p999[1],
            extra * 100.0
        ));
    }
    let counts = route.hedger.counts();
    if hedge.mode == Mode::Observe && counts.observed > 0 {
        notes.push(format!(
            "since the start hedging would have sent {} copies, about {} of them faster than what they copy",
            counts.observed, counts.observed_won
        ));
    }
    notes
}

fn policy_fields(route: &Route) -> Vec<report::PolicyField> {
    let values = fields(&route.policy);
    let origin = |field: &str, origin: &Origin| {
        let origin = serde_json::to_value(origin).ok();
        let origin = origin.and_then(|origin| origin.as_str().map(|o| o.replace('_', "-")));
        let bounded = if route.bounded.contains(field) { ", bounded" } else { "" };
        format!("{}{bounded}", origin.unwrap_or_default())
    };
    route
        .origins
        .iter()
        .map(|(field, said)| report::PolicyField {
            field: (*field).to_owned(),
            value: text(&values, field),
            origin: origin(field, said),
        })
        .collect()
}

/// What other hosts say of this service, where that needs a word: differences, what is not understood, orders.
fn said_elsewhere(upstream: &Upstream, catalog: &Catalog) -> Vec<String> {
    let mut notes = Vec::new();
    let name = upstream.name.to_string();
    if let Some(order) = catalog.orders.get(&Subject::Override(name.clone())) {
        notes.push(format!("override by {}", report::Order::of(&Subject::Override(name), order)));
    }
    let Some(view) = catalog.service(&upstream.name) else { return notes };
    let policies = &view.policies;
    if policies.published.len() > 1 {
        let votes: Vec<String> = policies.published.iter().map(vote).collect();
        notes.push(format!(
            "{} different policies are published, the first counts: {}; give the hosts the same services[].policy",
            votes.len(),
            votes.join("; ")
        ));
    }
    if policies.unusable > 0 {
        notes.push(format!(
            "the published policy of {} instances is missing or unreadable: they have no vote",
            policies.unusable
        ));
    }
    for skipped in policies.winner().map_or(&[][..], |policy| policy.skipped()) {
        notes.push(format!(
            "left out of the published policy, which a newer host may have written: {skipped}"
        ));
    }
    if upstream.routes_left_out > 0 {
        notes.push(format!(
            "{} published routes are left out: together with upstreams[].routes they are more than {}",
            upstream.routes_left_out,
            evenkeel_config::ROUTES_MAX
        ));
    }
    notes
}

fn vote(vote: &PolicyVote) -> String {
    let hosts = vote.hosts.join(", ");
    let more = if vote.hosts.len() >= HOSTS_NAMED_MAX { ", …" } else { "" };
    format!("{} of {} instances on {hosts}{more}", vote.policy.text(), vote.instances)
}

fn fields(policy: &Policy) -> serde_json::Value {
    serde_json::to_value(policy).unwrap_or_default()
}

fn text(values: &serde_json::Value, path: &str) -> String {
    let value = path.split('.').fold(values, |value, key| &value[key]);
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

//! From the file as it was written to [`Settings`]: defaults, and what takes two places of the file to see.
//!
//! Every check runs, whatever the others found. One that depends on a value which was refused says nothing:
//! a second message about the same mistake only hides the next one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::environment::{Environment, node_address};
use crate::forms;
use crate::key_file;
use crate::layer::PolicyLayer;
use crate::model::{CheckKeys, File, Keys, OutboundKeys, RouteKeys, ServiceKeys, UpstreamKeys};
use crate::policy::{Balance, Origin, Origins, Policy, ScoutMode, built_in_origins};
use crate::problem::Position;
use crate::published::{PUBLISHED_MAX, Published};
use crate::report::{At, Report};
use crate::settings::{
    Check, DataDir, Discovery, Key, Limits, Listen, Log, Match, Mesh, Node, Outbound, Service,
    ServiceListener, Settings, Shutdown, Upstream,
};

mod listeners;
mod ratelimit;

use listeners::Listeners;

/// The settings that a file means; usable only if nothing was reported. `base`: the file's directory.
pub(crate) fn settings(file: File, env: &Environment, base: &Path, report: &Report) -> Settings {
    let default = Settings::one_host(env);
    let keys = read_keys(&file.mesh.keys, base, report);
    let listeners = Listeners::of(&file, &keys);
    listeners.check_each_is_alone(report);
    check_exposure(&file, &keys, &listeners, report);
    check_others_reach_us(&file, &keys, &listeners, env, report);

    let limits = Limits {
        connections: file.limits.connections.unwrap_or(default.limits.connections),
        members: file.limits.members.unwrap_or(default.limits.members),
        records: file.limits.records.unwrap_or(default.limits.records),
        buffers: file.limits.buffers.unwrap_or(default.limits.buffers),
    };
    let layers = Layers { report, buffers: limits.buffers };
    let (mut policy, origins) =
        layers.lay(&file.policy, &default.policy, &default.origins, Origin::Host);
    file.mesh.bounds.hold(&mut policy, &origins);

    let written = file.node.address.as_ref().map(|address| address.value);
    check_node_address(&file, &listeners, report);
    let upstreams = upstreams(file.upstreams, &policy, &layers, &listeners, report);
    let dialled = node_address(written, listeners.data.address.ip(), env);
    let services = services(file.services, dialled, &layers, &listeners, report);

    Settings {
        node: Node {
            name: node_name(file.node.name, file.node.name_given, env, report),
            address: written,
            zone: file.node.zone,
            data_dir: data_dir(file.node.data_dir, base, env, report),
        },
        workers: file.workers,
        mesh: Mesh {
            name: file.mesh.name.unwrap_or(default.mesh.name),
            domain: file.mesh.domain.unwrap_or(default.mesh.domain),
            join: file.mesh.join.into_iter().map(|seed| seed.value).collect(),
            gossip: listeners.gossip,
            keys: keys.unwrap_or_default(),
            data: listeners.data,
            insecure: file.mesh.insecure.is_some_and(|insecure| insecure.value),
            bounds: file.mesh.bounds,
        },
        services,
        policy,
        origins,
        upstreams,
        outbound: outbound(file.outbound, listeners.outbound),
        discovery: Discovery { http: listeners.http, dns: listeners.dns },
        ratelimit: ratelimit::settings(
            file.ratelimit,
            listeners.ratelimit,
            &default.ratelimit,
            report,
        ),
        admin: listeners.admin,
        limits,
        shutdown: Shutdown {
            settle: file.settle.unwrap_or(default.shutdown.settle),
            timeout: file.shutdown_timeout.unwrap_or(default.shutdown.timeout),
        },
        log: Log {
            level: file.log.level.map_or(default.log.level, str::to_owned),
            json: file.log.json.unwrap_or(default.log.json),
            access: file.log.access.unwrap_or(default.log.access),
        },
    }
}

/// The keys of the list or of the key file; `None`: some are written and not usable, so nobody knows.
fn read_keys(written: &Keys, base: &Path, report: &Report) -> Option<Vec<Key>> {
    match written {
        Keys::None => Some(Vec::new()),
        Keys::Unusable => None,
        Keys::Given { keys, complete } => {
            for (index, key) in keys.iter().enumerate() {
                if keys[..index].iter().any(|earlier| earlier.value == key.value) {
                    key.problem(report, "this key stands there twice");
                }
            }
            complete.then(|| keys.iter().map(|key| key.value.clone()).collect())
        }
        Keys::File(path) => match key_file::read(&base.join(&path.value)) {
            Ok(found) => {
                if found.readable_by_all {
                    path.warning(
                        report,
                        &format!("everyone can read the keys: chmod 600 {}", path.value),
                    );
                }
                Some(found.keys)
            }
            Err(why) => {
                why.iter().for_each(|why| path.problem(report, why));
                None
            }
        },
    }
}

/// Without keys nobody else may reach us, and we reach nobody else.
fn check_exposure(file: &File, keys: &Option<Vec<Key>>, listeners: &Listeners, report: &Report) {
    let Some(keys) = keys else { return };
    let insecure = file.mesh.insecure.as_ref().filter(|insecure| insecure.value);
    if let Some(insecure) = insecure {
        if !keys.is_empty() {
            insecure.warning(report, "has no effect while there are keys: leave it out");
        }
        return;
    }
    if !keys.is_empty() {
        return;
    }
    const FIX: &str = "without keys: make one with `evenkeel keygen` and write it to mesh.gossip.keys on every host \
                       (or set mesh.insecure: true)";
    for (path, address, at) in &listeners.all {
        if let Some(at) = at
            && !address.ip().to_canonical().is_loopback()
        {
            report.problem(*at, &format!("{path}: others would reach {address} {FIX}"));
        }
    }
    for seed in &file.mesh.join {
        if !is_on_this_machine(&seed.value) {
            seed.problem(report, &format!("`{}` would be joined {FIX}", seed.value));
        }
    }
}

fn is_on_this_machine(seed: &str) -> bool {
    let host = seed.rsplit_once(':').map_or("", |(host, _)| host.trim_matches(['[', ']']));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Who joins others must be reached by them. `mesh.insecure` allows that and does not do it: without keys the defaults stay
/// loopback addresses.
fn check_others_reach_us(
    file: &File,
    keys: &Option<Vec<Key>>,
    listeners: &Listeners,
    env: &Environment,
    report: &Report,
) {
    let insecure = file.mesh.insecure.as_ref().is_some_and(|insecure| insecure.value);
    // What is not allowed is refused already.
    if !insecure && keys.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    let Some(seed) = file.mesh.join.iter().find(|seed| !is_on_this_machine(&seed.value)) else {
        return;
    };
    let mut missing = Vec::new();
    for (key, listen) in
        [("mesh.gossip.listen", listeners.gossip), ("mesh.data.listen", listeners.data)]
    {
        if listen.address.ip().to_canonical().is_loopback() {
            missing.push(format!("{key}: \"0.0.0.0:{}\"", listen.address.port()));
        }
    }
    let written = file.node.address.as_ref().map(|address| address.value);
    if node_address(written, Ipv4Addr::UNSPECIFIED.into(), env).is_loopback() {
        missing.push("node.address: an address of this host that others can dial".to_owned());
    }
    if !missing.is_empty() {
        let why = format!(
            "`{}` is on another machine and could not reach this one: write {}",
            seed.value,
            missing.join(", ")
        );
        seed.warning(report, &why);
    }
}

fn check_node_address(file: &File, listeners: &Listeners, report: &Report) {
    let (Some(address), data) = (&file.node.address, listeners.data.address.ip()) else {
        return;
    };
    if address.value.is_unspecified() || address.value.is_multicast() {
        address.problem(
            report,
            &format!("{} cannot be dialled: write one address of this host", address.value),
        );
    } else if !data.is_unspecified() && data != address.value {
        let why = "others dial it for requests, but mesh.data listens on";
        address.warning(report, &format!("{}: {why} {}", address.value, listeners.data.address));
    }
}

fn node_name(
    written: Option<At<String>>,
    given: bool,
    env: &Environment,
    report: &Report,
) -> String {
    if let Some(name) = written {
        return name.value;
    }
    if !given && let Err(why) = forms::node(&env.hostname) {
        report.problem(Position::START, &format!("node.name: write one, for the hostname {why}"));
    }
    env.hostname.clone()
}

fn data_dir(written: Option<String>, base: &Path, env: &Environment, report: &Report) -> DataDir {
    match written {
        Some(path) if path.is_empty() => DataDir::Nothing,
        Some(path) => DataDir::Path(base.join(path)),
        None => {
            if env.state_directory.is_none() {
                let why = "this system names no state directory, so identity, members and registrations do not \
                           outlive the process; write a directory, or \"\" if that is meant";
                report.warning(Position::START, &format!("node.data_dir: {why}"));
            }
            DataDir::Default
        }
    }
}

fn services(
    written: Vec<ServiceKeys>,
    dialled: IpAddr,
    layers: &Layers<'_>,
    listeners: &Listeners,
    report: &Report,
) -> Vec<Service> {
    let mut policies: BTreeMap<String, (Published, usize)> = BTreeMap::new();
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    let mut services = Vec::new();
    for service in written {
        let (Some(name), Some(address)) = (service.name, service.address) else {
            continue;
        };
        let id = service.id.as_ref().unwrap_or(&name);
        if let Some(line) = ids.insert(id.value.clone(), id.at.line) {
            let advice = if service.id.is_some() { "" } else { ": give each instance an `id`" };
            id.problem(
                report,
                &format!("`{}` is the id of the service in line {line} too{advice}", id.value),
            );
        }
        if let Some(listener) = listeners.met_at(address.value) {
            let why =
                format!("{} is our own {listener}: requests would go in a circle", address.value);
            address.problem(report, &why);
        }
        let advertise = match &service.advertise {
            Some(advertise) => {
                if advertise.value.ip().is_loopback() && !dialled.is_loopback() {
                    advertise.warning(report, "those on other hosts would be sent to themselves");
                }
                Some(advertise.value)
            }
            None if address.value.ip().is_loopback() && !dialled.is_loopback() => {
                let why = format!(
                    "{} is only reached through the mesh: look-ups by those without it will not find `{}`; \
                     `advertise` says where they may dial it",
                    address.value, name.value
                );
                address.warning(report, &why);
                None
            }
            None => Some(address.value),
        };
        let policy = service.policy.and_then(|policy| {
            published(&name.value, &policy, service.routes, layers, &mut policies)
        });
        services.push(Service {
            policy,
            id: id.value.clone(),
            name: name.value,
            address: address.value,
            advertise,
            protocol: service.protocol,
            tags: service.tags,
            meta: service.meta,
            check: service.check.and_then(check),
            scout: service.scout,
        });
    }
    services
}

/// What a service publishes. One host says one thing of a service, however many instances of it there are.
fn published(
    service: &str,
    said: &At<PolicyLayer>,
    routes: Vec<RouteKeys>,
    layers: &Layers<'_>,
    policies: &mut BTreeMap<String, (Published, usize)>,
) -> Option<Published> {
    let (below, origins) = (Policy::default(), built_in_origins());
    let (policy, _) = layers.lay(&said.value, &below, &origins, Origin::Published);
    let routes = layers.routes(routes, &policy);
    // To say nothing is not to have a vote.
    if said.value == PolicyLayer::default() && routes.is_empty() {
        return None;
    }
    let published = match Published::write(&said.value, &routes) {
        Ok(published) => published,
        Err(length) => {
            let why = format!(
                "with its routes {length} bytes are published, at most {PUBLISHED_MAX} are allowed"
            );
            said.problem(layers.report, &why);
            return None;
        }
    };
    match policies.get(service) {
        Some((earlier, line)) if *earlier != published => {
            let why = format!("another policy is said of `{service}` in line {line}");
            said.problem(layers.report, &why);
        }
        _ => _ = policies.insert(service.to_owned(), (published.clone(), said.at.line)),
    }
    Some(published)
}

fn check(written: CheckKeys) -> Option<Check> {
    Some(Check {
        kind: written.kind?,
        interval: written.interval.unwrap_or(Duration::from_secs(1)),
        timeout: written.timeout.unwrap_or(Duration::from_millis(500)),
        rise: written.rise.unwrap_or(2),
        fall: written.fall.unwrap_or(2),
    })
}

/// Lays policies over each other, and checks what each layer says against the rest of the file.
struct Layers<'a> {
    report: &'a Report,
    buffers: usize,
}

impl Layers<'_> {
    fn lay(
        &self,
        layer: &PolicyLayer,
        below: &Policy,
        origins: &Origins,
        origin: Origin,
    ) -> (Policy, Origins) {
        if let Some(size) = layer.max_body_buffer.as_ref().filter(|size| size.value > self.buffers)
        {
            size.problem(self.report, "is more than limits.buffers, which all requests share");
        }
        let (policy, origins) = layer.over(below, origins, origin);
        if policy.balance == Balance::Hash && policy.hash.key.is_none() {
            // Shown in the layer that made it so; those above repeat the mistake and not the message.
            const WHY: &str = "`balance: hash` takes a key: write hash: {key: \"header:x-user\"}";
            match (&layer.balance, &layer.hash_key) {
                (Some(balance), _) => balance.problem(self.report, WHY),
                (None, Some(key)) => key.problem(self.report, WHY),
                (None, None) => {}
            }
        }
        (policy, origins)
    }
}

impl Layers<'_> {
    /// The routes of a list that are usable, checked on what lies below them.
    fn routes(&self, written: Vec<RouteKeys>, below: &Policy) -> Vec<(Match, PolicyLayer)> {
        let mut routes: Vec<(Match, PolicyLayer)> = Vec::new();
        for route in written {
            self.lay(&route.policy, below, &Origins::new(), Origin::Route);
            let Some(matches) = route.matches else {
                continue;
            };
            for (index, (earlier, _)) in routes.iter().enumerate() {
                if *earlier == matches.value {
                    matches.problem(
                        self.report,
                        "an earlier route matches the same, so this one never would",
                    );
                } else if covers(earlier, &matches.value) {
                    let why = format!(
                        "routes[{index}] takes all of these requests, so this one never would"
                    );
                    matches.warning(self.report, &why);
                }
            }
            routes.push((matches.value, route.policy));
        }
        routes
    }
}

fn upstreams(
    written: Vec<UpstreamKeys>,
    host: &Policy,
    layers: &Layers<'_>,
    listeners: &Listeners,
    report: &Report,
) -> Vec<Upstream> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut upstreams = Vec::new();
    for upstream in written {
        check_endpoints(&upstream, listeners, report);
        let (policy, _) = layers.lay(&upstream.policy, host, &Origins::new(), Origin::Upstream);
        check_scouts(&upstream, &policy, report);
        let routes = layers.routes(upstream.routes, &policy);
        let Some(name) = upstream.name else { continue };
        if let Some(line) = names.insert(name.value.clone(), name.at.line) {
            name.problem(report, &format!("`{}` is the upstream in line {line} too", name.value));
        }
        upstreams.push(Upstream {
            name: name.value,
            endpoints: upstream.endpoints.iter().map(|endpoint| endpoint.value).collect(),
            protocol: upstream.protocol.as_ref().map(|protocol| protocol.value),
            scout: upstream.scout.as_ref().map(|scout| scout.value.clone()),
            said: upstream.policy,
            routes,
        });
    }
    upstreams
}

/// Whether every request that `later` matches is one that `earlier` matches.
fn covers(earlier: &Match, later: &Match) -> bool {
    let method = earlier.method.is_none() || earlier.method == later.method;
    let path = match (&earlier.path, &later.path) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(earlier), Some(later)) => match earlier.strip_suffix('*') {
            Some(prefix) => later.trim_end_matches('*').starts_with(prefix),
            None => earlier == later,
        },
    };
    method && path
}

fn check_endpoints(upstream: &UpstreamKeys, listeners: &Listeners, report: &Report) {
    let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for endpoint in &upstream.endpoints {
        let address = endpoint.value;
        if let Some(line) = seen.insert(address, endpoint.at.line) {
            endpoint.problem(report, &format!("{address} stands there already, in line {line}"));
        }
        if let Some(listener) = listeners.met_at(address) {
            endpoint.problem(
                report,
                &format!("{address} is our own {listener}: requests would go in a circle"),
            );
        }
    }
    if let Some(protocol) = &upstream.protocol
        && !upstream.has_endpoints
    {
        protocol.problem(report, "is for `endpoints`: a service of the mesh says its own");
    }
    if let Some(scout) = &upstream.scout
        && !upstream.has_endpoints
    {
        scout.problem(report, "is for `endpoints`: a service of the mesh is scouted at its host");
    }
}

/// Static endpoints are asked when the upstream says how and a policy when. One without the other is likely not meant.
fn check_scouts(upstream: &UpstreamKeys, policy: &Policy, report: &Report) {
    let asks = |layer: &PolicyLayer, below: &Policy| {
        let (policy, _) = layer.over(below, &Origins::new(), Origin::Upstream);
        policy.scouting() != ScoutMode::Off
    };
    match (&upstream.scout, &upstream.name) {
        (Some(scout), _) => {
            let mut layers = upstream.routes.iter().map(|route| &route.policy);
            if policy.scouting() == ScoutMode::Off && !layers.any(|layer| asks(layer, policy)) {
                let why = "nobody asks there: write `policy: {scout: {mode: pool}}` beside it";
                scout.warning(report, why);
            }
        }
        // A host's policy is for all its upstreams, and some cannot be asked.
        (None, Some(name))
            if upstream.has_endpoints && asks(&upstream.policy, &Policy::default()) =>
        {
            let why = "its policy asks endpoints how they are, and nothing says where: write \
                       `scout: {http: /scout}` or `scout: {tcp: 9999}` beside `endpoints`";
            name.warning(report, why);
        }
        _ => {}
    }
}

fn outbound(written: OutboundKeys, listen: Listen) -> Outbound {
    let listener = |listener: crate::model::ListenerKeys| {
        Some(ServiceListener { listen: listener.listen?.value, service: listener.service? })
    };
    Outbound {
        listen,
        passthrough: written.passthrough.unwrap_or(true),
        listeners: written.listeners.into_iter().filter_map(listener).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_covers_what_it_takes_away() {
        let route = |text: &str| {
            let (method, path) = text.split_once(' ').expect("two words");
            let said = |word: &str| (word != "any").then(|| word.to_owned());
            Match { method: said(method), path: said(path) }
        };
        let table = [
            ("any /a/*", "any /a/b", true),
            ("any /a/*", "GET /a/*", true),
            ("any /a*", "any /a/*", true),
            ("any /*", "POST /x", true),
            ("GET any", "GET /x", true),
            ("any /a/*", "any /a*", false),
            ("any /a/*", "any /a", false),
            ("GET /a", "any /a", false),
            ("GET /a", "POST /a", false),
            ("any /a", "any /a*", false),
            ("any /a", "GET any", false),
        ];
        for (earlier, later, expected) in table {
            assert_eq!(
                covers(&route(earlier), &route(later)),
                expected,
                "{earlier} before {later}"
            );
        }
    }
}

//! From the tree to the file as it was written ([`File`]): one function for each mapping of the file.
//!
//! Reports what can be seen at one place: unknown keys, wrong notations, what is missing inside one mapping.
//! What takes two places to see is `validate.rs`'s.

use crate::bounds::Bounds;
use crate::forms;
use crate::layer::PolicyLayer;
use crate::model::{
    ApplyKeys, CheckKeys, File, FloorKeys, Keys, LimitKeys, ListenerKeys, LogKeys, MeshKeys,
    NodeKeys, OutboundKeys, RateLimitKeys, ResourceKeys, RouteKeys, ServiceKeys, UpstreamKeys,
};
use crate::policy::{Balance, KeySource, Mode, ScoutMode, ShardFallback, Zone};
use crate::ratelimit::{Algorithm, Direction, Fail, Safe};
use crate::report::{At, Report};
use crate::section::Section;
use crate::settings::{Access, CheckKind, Match, Protocol, Scout};
use crate::tree::Node;

pub(crate) fn file(node: Option<&Node>, report: &Report) -> File {
    let root = Section::root(node, report);
    let discovery = root.section("discovery");
    let shutdown = root.section("shutdown");
    File {
        node: node_keys(&root.section("node")),
        workers: root.usize("workers"),
        mesh: mesh(&root.section("mesh"), report),
        services: sections(&root, "services", |service| self::service(service, report)),
        policy: policy(&root.section("policy")),
        upstreams: sections(&root, "upstreams", |upstream| self::upstream(upstream, report)),
        outbound: outbound(&root.section("outbound")),
        discovery_http: discovery.text("http", forms::listen),
        discovery_dns: discovery.text("dns", forms::listen),
        ratelimit: ratelimit(&root.section("ratelimit")),
        admin: root.section("admin").text("listen", forms::listen),
        limits: limits(&root.section("limits")),
        settle: shutdown.duration("settle"),
        shutdown_timeout: shutdown.duration("timeout"),
        log: log(&root.section("log")),
    }
}

/// Each mapping of a list of mappings.
fn sections<T>(parent: &Section<'_>, name: &str, read: impl Fn(&Section<'_>) -> T) -> Vec<T> {
    parent.items(name).unwrap_or_default().iter().map(|item| read(&item.section())).collect()
}

fn node_keys(node: &Section<'_>) -> NodeKeys {
    NodeKeys {
        name: node.text("name", forms::node),
        name_given: node.has("name"),
        address: node.text("address", forms::ip),
        zone: node.text("zone", forms::filled).map(|zone| zone.value),
        data_dir: node.text("data_dir", forms::file).map(|path| path.value),
    }
}

fn mesh(mesh: &Section<'_>, report: &Report) -> MeshKeys {
    let gossip = mesh.section("gossip");
    gossip.choice("profile", &["lan"], |name| name);
    MeshKeys {
        name: mesh.text("name", forms::label).map(|name| name.value),
        domain: mesh.text("domain", forms::domain).map(|domain| domain.value),
        join: mesh.texts("join", forms::host_port).unwrap_or_default(),
        gossip: gossip.text("listen", forms::listen),
        keys: keys(&gossip, report),
        data: mesh.section("data").text("listen", forms::listen),
        insecure: mesh.flag("insecure"),
        bounds: bounds(&mesh.section("bounds")),
    }
}

fn bounds(bounds: &Section<'_>) -> Bounds {
    let retry = bounds.section("retry");
    let hedge = bounds.section("hedge");
    let circuit = bounds.section("circuit");
    let methods = values(bounds.section("repeat").texts("methods", forms::method));
    let mode = hedge.choice("mode", &Mode::ALL, Mode::name).map(|mode| mode.value);
    let scout = bounds.section("scout");
    let scout_mode = scout.choice("mode", &ScoutMode::ALL, ScoutMode::name).map(|mode| mode.value);
    let body = bounds.size("max_body_buffer").map(|size| size.value);
    let default = Bounds::default();
    Bounds {
        timeout: bounds.duration("timeout").unwrap_or(default.timeout),
        idle_timeout: bounds.duration("idle_timeout").unwrap_or(default.idle_timeout),
        repeat_methods: methods.unwrap_or(default.repeat_methods),
        retry_max: retry.int("max").unwrap_or(default.retry_max),
        retry_budget: retry.share("budget").unwrap_or(default.retry_budget),
        hedge_mode: mode.unwrap_or(default.hedge_mode),
        hedge_min: hedge.duration("min").unwrap_or(default.hedge_min),
        hedge_budget: hedge.share("budget").unwrap_or(default.hedge_budget),
        hedge_max: hedge.int("max").unwrap_or(default.hedge_max),
        scout_mode: scout_mode.unwrap_or(default.scout_mode),
        scout_timeout: scout.duration("timeout").unwrap_or(default.scout_timeout),
        eject_max: bounds.section("eject").share("max").unwrap_or(default.eject_max),
        circuit_connections: circuit.int("connections").unwrap_or(default.circuit_connections),
        circuit_pending: circuit.int("pending").unwrap_or(default.circuit_pending),
        circuit_requests: circuit.int("requests").unwrap_or(default.circuit_requests),
        slow_start: bounds.duration("slow_start").unwrap_or(default.slow_start),
        max_body_buffer: body.unwrap_or(default.max_body_buffer),
    }
}

fn keys(gossip: &Section<'_>, report: &Report) -> Keys {
    let Some(value) = gossip.value("keys") else {
        return Keys::None;
    };
    if value.is_map() {
        let file = value.section();
        file.require("file");
        let path = file.text("file", forms::file);
        if let Some(empty) = path.as_ref().filter(|path| path.value.is_empty()) {
            empty.problem(report, "must not be empty");
        }
        return path.filter(|path| !path.value.is_empty()).map_or(Keys::Unusable, Keys::File);
    }
    let Some(items) = value.items() else {
        return Keys::Unusable;
    };
    if items.is_empty() {
        return Keys::None;
    }
    let keys: Vec<_> = items.iter().filter_map(|item| item.text(forms::key)).collect();
    let complete = keys.len() == items.len();
    Keys::Given { keys, complete }
}

fn service(service: &Section<'_>, report: &Report) -> ServiceKeys {
    service.require("name");
    service.require("address");
    ServiceKeys {
        name: service.text("name", forms::service),
        id: service.text("id", forms::id),
        address: service.text("address", forms::dial),
        advertise: service.text("advertise", forms::dial),
        protocol: service
            .choice("protocol", &Protocol::ALL, Protocol::name)
            .map(|protocol| protocol.value),
        tags: values(service.texts("tags", forms::filled)).unwrap_or_default(),
        meta: service.meta("meta", forms::free).into_iter().collect(),
        check: service.given("check").map(|check| self::check(&check, report)),
        scout: scout(service, report).map(|scout| scout.value),
        policy: published(service),
        routes: routes(service, report),
    }
}

/// What a service says of its policy; nothing unless it says something.
fn published(service: &Section<'_>) -> Option<At<PolicyLayer>> {
    let key = ["policy", "routes"].into_iter().find(|key| service.has(key))?;
    let value = policy(&service.section("policy"));
    Some(At { value, at: service.key_at(key), path: format!("{}.{key}", service.path) })
}

fn check(check: &Section<'_>, report: &Report) -> CheckKeys {
    let http = check.text("http", forms::path).map(|path| CheckKind::Http(path.value));
    let skip_verify = check.flag("tls_skip_verify").is_some_and(|flag| flag.value);
    let server_name = check.text("tls_server_name", forms::tls_name).map(|name| name.value);
    let https = check.text("https", forms::path).map(|path| CheckKind::Https {
        path: path.value,
        skip_verify,
        server_name,
    });
    let tcp = check.flag("tcp").map(|_| CheckKind::Tcp);
    let later = check.has("grpc") || check.has("ttl");
    let kinds: Vec<&str> =
        ["http", "https", "tcp"].into_iter().filter(|kind| check.has(kind)).collect();
    match kinds[..] {
        [_] => {}
        [first, second, ..] => report.problem(
            check.key_at(second),
            &format!("{}: `{first}` or `{second}`, not both", check.path),
        ),
        [] if later => {}
        [] => report.missing(
            check.at,
            &format!("{}: what to check is missing: `http: /healthz` or `tcp: true`", check.path),
        ),
    }
    for key in ["tls_skip_verify", "tls_server_name"] {
        if check.has(key) && !check.has("https") {
            let why = format!("{}.{key}: is for `https`: no other check speaks TLS", check.path);
            report.problem(check.key_at(key), &why);
        }
    }
    CheckKeys {
        kind: http.or(https).or(tcp),
        interval: check.duration("interval"),
        timeout: check.duration("timeout"),
        rise: check.int("rise"),
        fall: check.int("fall"),
    }
}

/// The scout port or path of an application.
fn scout(of: &Section<'_>, report: &Report) -> Option<At<Scout>> {
    let scout = of.given("scout")?;
    let http = scout.text("http", forms::path).map(|path| Scout::Http(path.value));
    let tcp = scout.int("tcp").and_then(|port| u16::try_from(port).ok()).map(Scout::Tcp);
    if scout.has("http") && scout.has("tcp") {
        report.problem(scout.key_at("tcp"), &format!("{}: `http` or `tcp`, not both", scout.path));
    } else if !scout.has("http") && !scout.has("tcp") {
        report.missing(
            scout.at,
            &format!("{}: whom to ask is missing: `http: /scout` or `tcp: 9999`", scout.path),
        );
    }
    let value = http.or(tcp)?;
    Some(At { value, at: of.key_at("scout"), path: scout.path.clone() })
}

fn upstream(upstream: &Section<'_>, report: &Report) -> UpstreamKeys {
    upstream.require("name");
    let endpoints = upstream.items("endpoints").unwrap_or_default();
    UpstreamKeys {
        name: upstream.text("name", forms::service),
        endpoints: endpoints.iter().filter_map(|item| item.text(forms::dial)).collect(),
        has_endpoints: !endpoints.is_empty(),
        protocol: upstream.choice("protocol", &Protocol::ALL, Protocol::name),
        scout: scout(upstream, report),
        policy: policy(&upstream.section("policy")),
        routes: routes(upstream, report),
    }
}

pub(crate) fn routes(parent: &Section<'_>, report: &Report) -> Vec<RouteKeys> {
    sections(parent, "routes", |route| self::route(route, report))
}

fn route(route: &Section<'_>, report: &Report) -> RouteKeys {
    route.require("match");
    let which = route.section("match");
    let path = which.text("path", forms::path_match).map(|path| path.value);
    let method = which.text("method", forms::method).map(|method| method.value);
    let said = which.has("path") || which.has("method");
    if route.has("match") && !said {
        report.missing(which.at, &format!("{}: `path` or `method` is missing", which.path));
    }
    let usable = path.is_some() == which.has("path")
        && method.is_some() == which.has("method")
        && which.is_understood()
        && said;
    let found =
        At { value: Match { path, method }, at: route.key_at("match"), path: which.path.clone() };
    RouteKeys { matches: usable.then_some(found), policy: policy(&route.section("policy")) }
}

pub(crate) fn policy(policy: &Section<'_>) -> PolicyLayer {
    let repeat = policy.section("repeat");
    let retry = policy.section("retry");
    let hedge = policy.section("hedge");
    let hash = policy.section("hash");
    let scout = policy.section("scout");
    let (shard, no_shard) = policy.section_or_word("shard");
    let eject = policy.section("eject");
    let (probation, no_probation) = policy.section_or_word("probation");
    let circuit = policy.section("circuit");
    let key_header = repeat.text("key_header", forms::header).map(|header| header.value);
    PolicyLayer {
        timeout: policy.duration("timeout"),
        idle_timeout: policy.duration("idle_timeout"),
        balance: policy.choice("balance", &Balance::ALL, Balance::name),
        hash_key: key_source(&hash),
        hash_bound: hash.decimal("bound"),
        repeat_methods: values(repeat.texts("methods", forms::method)),
        repeat_grpc: values(repeat.texts("grpc", forms::grpc)),
        repeat_key_header: key_header.map(|header| (header != "none").then_some(header)),
        retry_max: retry.int("max"),
        retry_budget: retry.share("budget"),
        retry_when: retry.retry_on("when"),
        hedge_mode: hedge.choice("mode", &Mode::ALL, Mode::name).map(|mode| mode.value),
        hedge_after: hedge.after("after"),
        hedge_min: hedge.duration("min"),
        hedge_budget: hedge.share("budget"),
        hedge_max: hedge.int("max"),
        scout_mode: scout.choice("mode", &ScoutMode::ALL, ScoutMode::name).map(|mode| mode.value),
        scout_timeout: scout.duration("timeout"),
        shard_key: shard
            .text("key", forms::key_source)
            .map(|key| key.value)
            .or(no_shard.then_some(None)),
        shard_size: shard.int("size"),
        shard_fallback: shard
            .choice("fallback", &ShardFallback::ALL, ShardFallback::name)
            .map(|fallback| fallback.value),
        zone: policy.choice("zone", &Zone::ALL, Zone::name).map(|zone| zone.value),
        eject_consecutive: eject.int("consecutive"),
        eject_base: eject.duration("base"),
        eject_max: eject.share("max"),
        probation_slower_than: probation.factor("slower_than").or(no_probation.then_some(None)),
        probation_min_requests: probation.int("min_requests"),
        panic: policy.share("panic"),
        circuit_connections: circuit.int("connections"),
        circuit_pending: circuit.int("pending"),
        circuit_requests: circuit.int("requests"),
        slow_start: policy.duration("slow_start"),
        max_body_buffer: policy.size("max_body_buffer"),
    }
}

/// A key that was refused counts as one: that it is missing would be a second message about the same mistake.
fn key_source(of: &Section<'_>) -> Option<At<Option<KeySource>>> {
    let refused =
        || At { value: Some(KeySource::Address), at: of.key_at("key"), path: String::new() };
    of.text("key", forms::key_source).or_else(|| of.has("key").then(refused))
}

fn outbound(outbound: &Section<'_>) -> OutboundKeys {
    let listener = |listener: &Section<'_>| {
        listener.require("listen");
        listener.require("service");
        ListenerKeys {
            listen: listener.text("listen", forms::listen),
            service: listener.text("service", forms::service).map(|service| service.value),
        }
    };
    OutboundKeys {
        listen: outbound.text("listen", forms::listen),
        passthrough: outbound.flag("passthrough").map(|flag| flag.value),
        listeners: sections(outbound, "listeners", listener),
    }
}

fn ratelimit(ratelimit: &Section<'_>) -> RateLimitKeys {
    RateLimitKeys {
        listen: ratelimit.text("listen", forms::listen),
        absent: ratelimit.duration("absent"),
        resources: sections(ratelimit, "resources", resource),
        apply: sections(ratelimit, "apply", apply),
    }
}

fn resource(resource: &Section<'_>) -> ResourceKeys {
    resource.require("match");
    resource.require("capacity");
    let floor = |floor: &Section<'_>| {
        floor.require("priority");
        floor.require("share");
        FloorKeys { priority: floor.signed("priority"), share: floor.share_at("share") }
    };
    let safe = match resource.amount_or_word("safe") {
        (Some(each), _) => Some(Safe::Each(each)),
        (None, Some("unlimited")) => Some(Safe::Unlimited),
        (None, _) => None,
    };
    let floors_at =
        At { value: (), at: resource.key_at("floors"), path: format!("{}.floors", resource.path) };
    ResourceKeys {
        pattern: resource.text("match", forms::pattern),
        capacity: resource.amount("capacity"),
        per: resource.duration("per"),
        per_given: resource.has("per"),
        burst: resource.amount("burst"),
        algorithm: resource
            .choice("algorithm", &Algorithm::ALL, Algorithm::name)
            .map(|algorithm| algorithm.value),
        lease: resource.duration_at("lease"),
        lease_given: resource.has("lease"),
        refresh: resource.duration_at("refresh"),
        learning: resource.duration_at("learning"),
        safe,
        floors: sections(resource, "floors", floor),
        floors_at,
    }
}

fn apply(apply: &Section<'_>) -> ApplyKeys {
    for required in ["direction", "service", "resource"] {
        apply.require(required);
    }
    let path = apply.text("path", forms::path_match).map(|path| path.value);
    let method = apply.text("method", forms::method).map(|method| method.value);
    let usable = path.is_some() == apply.has("path") && method.is_some() == apply.has("method");
    let direction = apply.choice("direction", &Direction::ALL, Direction::name);
    let mode = apply.choice("mode", &["enforce", "observe"], |name| name);
    ApplyKeys {
        direction: direction.map(|direction| direction.value),
        service: apply.text("service", forms::service).map(|service| service.value),
        matches: usable.then_some(Match { path, method }),
        resource: apply.text("resource", forms::resource),
        cost: apply.int_at("cost"),
        key: apply.text("key", forms::key_source).and_then(|key| key.value),
        wait: apply.duration_at("wait"),
        fail: apply.choice("fail", &Fail::ALL, Fail::name).map(|fail| fail.value),
        enforce: mode.map(|mode| mode.value == "enforce"),
    }
}

fn limits(limits: &Section<'_>) -> LimitKeys {
    LimitKeys {
        connections: limits.usize("connections"),
        members: limits.usize("members"),
        records: limits.usize("records"),
        buffers: limits.size("buffers").map(|size| size.value),
    }
}

fn log(log: &Section<'_>) -> LogKeys {
    let levels = ["error", "warn", "info", "debug", "trace"];
    LogKeys {
        level: log.choice("level", &levels, |name| name).map(|level| level.value),
        json: log
            .choice("format", &["text", "json"], |name| name)
            .map(|format| format.value == "json"),
        access: log.choice("access", &Access::ALL, Access::name).map(|access| access.value),
    }
}

fn values<T>(list: Option<Vec<At<T>>>) -> Option<Vec<T>> {
    list.map(|list| list.into_iter().map(|item| item.value).collect())
}

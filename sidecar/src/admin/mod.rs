//! The admin listener: whether this host is well, its numbers, and why it does what it does.
//!
//! `/livez`, `/readyz`, `/metrics`, `/config` (secrets left out), and below `/v1/` what the command line prints:
//! `status`, `self`, `members`, `services`, `endpoints/S`, `explain/S?path=&method=&key=`, `shards/S?key=`, `quotas`,
//! `events?after=`, `orders`. All of that reads; what changes something is in [`orders`]. Membership and
//! services come from the snapshot; what the data plane knows comes through [`Views`], so that this knows nothing of
//! it. Whose requests come this far is decided before, in [`crate::control_guard`].

pub mod orders;
pub mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use evenkeel_discovery::names::{HostName, service_of_host};
use evenkeel_discovery::{Catalog, Node, NodeStatus, Status, Subject};
use prometheus::{Encoder as _, TextEncoder};
use serde::Deserialize;

use crate::events::{Events, rfc3339};
use crate::gossip::GossipHandle;

/// What the rest of the program shows of itself.
pub struct Views {
    /// `/v1/endpoints/S`, in the shape of [`report::Endpoints`]; `None`: no such upstream.
    pub endpoints: Box<ViewOfService>,
    /// `/v1/explain/S` for a method and a path, in the shape of [`report::Explain`]; `None`: no such upstream.
    pub explain: Box<ViewOfRequest>,
    /// The upstreams whose endpoints this host's file names, as `/v1/services` shows them.
    pub upstreams: Box<dyn Fn() -> Vec<report::Service> + Send + Sync>,
    /// `/v1/shards/S` for a request's key, in the shape of [`report::Shards`]; `None`: no such upstream; an error: it has no shards.
    pub shards: Box<ViewOfShards>,
    /// The effective configuration, without secrets.
    pub config: Box<dyn Fn() -> String + Send + Sync>,
    /// Whether requests are served, or why not.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Every listener by configuration key, as bound.
    pub listeners: Box<dyn Fn() -> BTreeMap<String, SocketAddr> + Send + Sync>,
}

/// Of a service's name.
pub type ViewOfService = dyn Fn(&str) -> Option<serde_json::Value> + Send + Sync;

/// Of a service's name and a request to it.
pub type ViewOfRequest = dyn Fn(&str, &About) -> Option<serde_json::Value> + Send + Sync;

/// Of a service's name and a request to it.
pub type ViewOfShards =
    dyn Fn(&str, &About) -> Option<Result<serde_json::Value, String>> + Send + Sync;

/// The request that is asked about.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct About {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The value of the key that decides its shard, or its endpoint.
    pub key: Option<String>,
}

impl Default for About {
    fn default() -> Self {
        About { method: "GET".into(), path: "/".into(), key: None }
    }
}

/// What the routes answer from.
pub struct Admin {
    /// Membership and services.
    pub gossip: GossipHandle,
    /// The leases of this host.
    pub quotas: crate::quotas::QuotasHandle,
    /// What happened.
    pub events: Arc<Events>,
    /// Every number.
    pub metrics: prometheus::Registry,
    /// Where state is kept.
    pub data_dir: Option<String>,
    /// The file that the process was started with.
    pub file: Option<String>,
    /// When it was.
    pub started: Started,
    /// The rest of the program.
    pub views: Views,
}

/// When the process started, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// For how long it has run.
    pub mono: Instant,
    /// For people.
    pub wall: SystemTime,
}

impl Started {
    /// Now.
    pub fn now() -> Started {
        Started { mono: Instant::now(), wall: SystemTime::now() }
    }
}

type Ours = State<Arc<Admin>>;

/// The routes.
pub fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/v1/status", get(status))
        .route("/v1/self", get(myself))
        .route("/v1/members", get(members))
        .route("/v1/services", get(services))
        .route("/v1/endpoints/{service}", get(endpoints))
        .route("/v1/explain/{service}", get(explain))
        .route("/v1/shards/{service}", get(shards))
        .route("/v1/quotas", get(quotas))
        .route("/v1/events", get(events))
        .merge(orders::router(&admin))
        .fallback(unknown)
        .method_not_allowed_fallback(reads_only)
        .with_state(admin)
}

async fn ready(State(admin): Ours) -> Response {
    match readiness(&admin) {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

fn readiness(admin: &Admin) -> Result<(), String> {
    (admin.views.ready)()?;
    let catalog = admin.gossip.catalog();
    if catalog.nodes.get(&catalog.own).is_some_and(|node| node.draining) {
        return Err("draining".to_owned());
    }
    admin.gossip.ready()?;
    if admin.quotas.view().waiting {
        return Err("waiting to hear who shares the limits of ratelimit.resources".to_owned());
    }
    Ok(())
}

async fn metrics(State(admin): Ours) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&admin.metrics.gather(), &mut text) {
        Ok(()) => {
            ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(cause) => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("a metric cannot be written: {cause}"),
        ),
    }
}

async fn config(State(admin): Ours) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], (admin.views.config)()).into_response()
}

async fn myself(State(admin): Ours) -> Json<report::SelfReport> {
    let catalog = admin.gossip.catalog();
    let node = admin.gossip.node();
    let not_ready = readiness(&admin).err();
    Json(report::SelfReport {
        name: node.name.clone(),
        id: format!("{:016x}", catalog.own),
        address: node.address.ip(),
        mesh: catalog.mesh.clone(),
        domain: catalog.domain.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: not_ready.is_none(),
        not_ready,
        data_dir: admin.data_dir.clone(),
        listeners: (admin.views.listeners)(),
    })
}

async fn status(State(admin): Ours) -> Json<report::StatusReport> {
    let catalog = admin.gossip.catalog();
    let node = admin.gossip.node();
    let not_ready = readiness(&admin).err();
    let mut members = BTreeMap::new();
    for node in catalog.nodes.values() {
        *members.entry(state(node).to_owned()).or_default() += 1;
    }
    Json(report::StatusReport {
        name: node.name.clone(),
        id: format!("{:016x}", catalog.own),
        address: node.address.ip().to_string(),
        zone: node.zone.clone().unwrap_or_default(),
        mesh: catalog.mesh.clone(),
        version: node.version.clone(),
        ready: not_ready.is_none(),
        not_ready,
        started: rfc3339(admin.started.wall),
        uptime_s: admin.started.mono.elapsed().as_secs(),
        members,
        services: catalog.services.len(),
        configuration: admin.file.clone(),
        reload_refused: admin.events.last_refusal(),
        data_dir: admin.data_dir.clone(),
        listeners: (admin.views.listeners)(),
    })
}

async fn members(State(admin): Ours) -> Json<report::Members> {
    let catalog = admin.gossip.catalog();
    let mut instances: BTreeMap<u64, usize> = BTreeMap::new();
    for instance in catalog.services.values().flat_map(|view| &view.instances) {
        *instances.entry(instance.node.id).or_default() += 1;
    }
    let mut members: Vec<report::Member> = catalog
        .nodes
        .values()
        .map(|node| member(node, &catalog, instances.get(&node.id).copied().unwrap_or_default()))
        .collect();
    members.sort_by(|a, b| (!a.myself, &a.name, &a.id).cmp(&(!b.myself, &b.name, &b.id)));
    Json(report::Members { members })
}

fn member(node: &Node, catalog: &Catalog, instances: usize) -> report::Member {
    // Indices are unix microseconds, give or take.
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let for_ms = now_us.saturating_sub(node.index.into()) / 1000;
    report::Member {
        name: node.name.clone(),
        id: format!("{:016x}", node.id),
        address: node.address.ip().to_string(),
        gossip: node.address.to_string(),
        mesh: node.mesh.to_string(),
        zone: node.zone.clone().unwrap_or_default(),
        version: node.version.clone(),
        state: state(node).to_owned(),
        drained_by: catalog
            .orders
            .get(&Subject::Drain(node.id))
            .map(|order| report::Order::of(&Subject::Drain(node.id), order).to_string())
            .unwrap_or_default(),
        for_ms: u64::try_from(for_ms).unwrap_or_default(),
        instances,
        myself: node.id == catalog.own,
    }
}

fn state(node: &Node) -> &'static str {
    match node.status {
        NodeStatus::Alive if node.draining => "draining",
        NodeStatus::Alive => "alive",
        NodeStatus::Failed | NodeStatus::Dead => "failed",
        NodeStatus::Left => "left",
    }
}

async fn quotas(State(admin): Ours) -> Json<crate::quotas::report::View> {
    Json(crate::quotas::report::View::clone(&admin.quotas.view()))
}

async fn services(State(admin): Ours) -> Json<report::Services> {
    let catalog = admin.gossip.catalog();
    let mut services: Vec<report::Service> = catalog
        .services
        .values()
        .map(|view| {
            let count = |which: &dyn Fn(&evenkeel_discovery::Instance) -> bool| {
                view.instances.iter().filter(|instance| which(instance)).count()
            };
            let mut tags: Vec<String> =
                view.instances.iter().flat_map(|instance| instance.tags.clone()).collect();
            tags.sort();
            tags.dedup();
            report::Service {
                name: view.name.clone(),
                tags,
                instances: view.instances.len(),
                usable: count(&evenkeel_discovery::Instance::takes_requests),
                critical: count(&|instance| instance.status == Status::Critical),
                draining: count(&|instance| instance.node.draining),
                upstream: false,
            }
        })
        .collect();
    services.extend((admin.views.upstreams)());
    services.sort_by(|a, b| (&a.name, a.upstream).cmp(&(&b.name, b.upstream)));
    Json(report::Services { services })
}

async fn endpoints(State(admin): Ours, Path(service): Path<String>) -> Response {
    let name = canonical(&admin, &service);
    match (admin.views.endpoints)(&name) {
        Some(view) => Json(view).into_response(),
        None => no_such_service(&admin, &service),
    }
}

async fn explain(
    State(admin): Ours,
    Path(service): Path<String>,
    Query(about): Query<About>,
) -> Response {
    if let Some(refused) = not_a_method(&about) {
        return refused;
    }
    match (admin.views.explain)(&canonical(&admin, &service), &about) {
        Some(view) => Json(view).into_response(),
        None => no_such_service(&admin, &service),
    }
}

async fn shards(
    State(admin): Ours,
    Path(service): Path<String>,
    Query(about): Query<About>,
) -> Response {
    if let Some(refused) = not_a_method(&about) {
        return refused;
    }
    match (admin.views.shards)(&canonical(&admin, &service), &about) {
        Some(Ok(view)) => Json(view).into_response(),
        Some(Err(why)) => error(StatusCode::CONFLICT, &why),
        None => no_such_service(&admin, &service),
    }
}

fn not_a_method(about: &About) -> Option<Response> {
    let method = &about.method;
    method
        .parse::<Method>()
        .is_err()
        .then(|| error(StatusCode::BAD_REQUEST, &format!("{method:?} is not an HTTP method")))
}

/// From which event on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Since {
    /// The number of the last one that is known.
    after: u64,
}

async fn events(State(admin): Ours, Query(since): Query<Since>) -> Json<report::EventList> {
    let started = rfc3339(admin.started.wall);
    Json(report::EventList { started, events: admin.events.after(since.after) })
}

/// The service that a name as an application writes it means.
fn canonical(admin: &Admin, name: &str) -> String {
    let catalog = admin.gossip.catalog();
    match service_of_host(name, &catalog.domain, &catalog.mesh) {
        HostName::Service(service) | HostName::ServiceOrForeign(service) => service,
        HostName::Host(_) | HostName::Address(_) | HostName::Foreign => name.to_owned(),
    }
}

fn no_such_service(admin: &Admin, name: &str) -> Response {
    error(StatusCode::NOT_FOUND, &not_a_service(admin, name))
}

fn not_a_service(admin: &Admin, name: &str) -> String {
    let catalog = admin.gossip.catalog();
    let upstreams = (admin.views.upstreams)();
    let known = catalog.services.keys().chain(upstreams.iter().map(|upstream| &upstream.name));
    let known: BTreeSet<&str> = known.map(String::as_str).take(NAMES_SHOWN_MAX).collect();
    let known: Vec<&str> = known.into_iter().collect();
    let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
    format!(
        "no service {name:?}: no host that is up offers it and no upstream has that name. Known: {known}"
    )
}

async fn unknown(uri: Uri) -> Response {
    error(
        StatusCode::NOT_FOUND,
        &format!(
            "{} is not served here: there are /livez, /readyz, /metrics, /config and, below /v1/, status, self, members, services, endpoints/S, explain/S, shards/S, quotas, events, orders, override/S and drain/HOST",
            uri.path()
        ),
    )
}

async fn reads_only() -> Response {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "the admin listener answers GET, and PUT and DELETE of /v1/override/SERVICE and /v1/drain/HOST",
    )
}

/// An answer that is none, in the form that the command line reads.
pub fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(report::ErrorReport { error: text.to_owned() })).into_response()
}

/// How long an answer may take; all come from memory.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Names listed when one is not found.
const NAMES_SHOWN_MAX: usize = 20;

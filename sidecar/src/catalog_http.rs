//! The catalogue over HTTP, in the form that Consul's clients know: look-ups, blocking queries, registrations.
//!
//! What the JSON looks like, [`consul`] decides; this decides which paths exist, what the query's parameters mean
//! and which headers an answer carries (Consul's HTTP API documentation; clients fail without `X-Consul-Index`).
//! A parameter that would change the answer and that is not built is refused: an ignored filter sends requests
//! to the wrong instances. `/v1/kv` is refused with 501: Evenkeel is not a key-value store.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, put};
use evenkeel_discovery::Catalog;
use evenkeel_discovery::consul::{self, DecodeError, Filter};
use prometheus::{IntCounterVec, Opts};
use rand::Rng as _;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::admin::host_is_ours;
use crate::gossip::{ChangeError, GossipHandle};

/// The routes.
///
/// # Errors
/// When the metrics are registered already.
pub fn router(gossip: GossipHandle, metrics: &prometheus::Registry) -> prometheus::Result<Router> {
    let requests = IntCounterVec::new(
        Opts::new("evenkeel_catalog_requests_total", "Requests to the discovery HTTP listener."),
        &["code"],
    )?;
    metrics.register(Box::new(requests.clone()))?;
    let shared = Arc::new(Shared { gossip, requests });
    Ok(Router::new()
        .route("/v1/agent/self", get(agent_self))
        .route("/v1/agent/members", get(agent_members))
        .route("/v1/agent/services", get(agent_services))
        .route("/v1/agent/service/register", put(register))
        .route("/v1/agent/service/deregister/{*id}", put(deregister))
        .route("/v1/catalog/datacenters", get(datacenters))
        .route("/v1/catalog/nodes", get(catalog_nodes))
        .route("/v1/catalog/services", get(catalog_services))
        .route("/v1/catalog/service/{name}", get(catalog_service))
        .route("/v1/health/service/{name}", get(health_service))
        .route("/v1/status/leader", get(leader))
        .route("/v1/status/peers", get(peers))
        .route("/v1/kv", any(key_value))
        .route("/v1/kv/{*key}", any(key_value))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), counted))
        .with_state(shared))
}

/// How long a surface of this router must let an answer take: the longest wait and some.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(WAIT_MAX.as_secs() + WAIT_MAX.as_secs() / 16 + 10);

struct Shared {
    gossip: GossipHandle,
    requests: IntCounterVec,
}

type Ours = State<Arc<Shared>>;

async fn counted(State(shared): Ours, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    shared.requests.with_label_values(&[response.status().as_str()]).inc();
    response
}

async fn agent_self(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    Ok(answer(&query, 0, &consul::agent_self(&shared.gossip.catalog(), env!("CARGO_PKG_VERSION"))))
}

async fn agent_members(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    Ok(answer(&query, 0, &consul::agent_members(&shared.gossip.catalog())))
}

async fn agent_services(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    Ok(answer(&query, 0, &consul::agent_services(&shared.gossip.catalog())))
}

async fn datacenters(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    Ok(answer(&query, 0, &Value::from(vec![shared.gossip.catalog().mesh.clone()])))
}

/// There is no leader; clients only ask whether there is one. Everyone is as good: this host.
async fn leader(State(shared): Ours) -> Response {
    let query = Query::default();
    answer(&query, 0, &Value::from(shared.gossip.node().address.to_string()))
}

async fn peers(State(shared): Ours) -> Response {
    let catalog = shared.gossip.catalog();
    let addresses: Vec<String> = catalog.alive().map(|node| node.address.to_string()).collect();
    answer(&Query::default(), 0, &Value::from(addresses))
}

async fn catalog_nodes(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    let asked = |catalog: &Catalog| (catalog.nodes_index, consul::catalog_nodes(catalog));
    watched(&shared, &query, |catalog| catalog.nodes_index, asked).await
}

async fn catalog_services(State(shared): Ours, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    let asked = |catalog: &Catalog| (catalog.services_index, consul::catalog_services(catalog));
    watched(&shared, &query, |catalog| catalog.services_index, asked).await
}

async fn catalog_service(
    State(shared): Ours,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let filter = Filter { passing: false, tags: query.tags.clone() };
    let asked = |catalog: &Catalog| (catalog.service_index(&name), consul::catalog_service(catalog, &name, &filter));
    watched(&shared, &query, |catalog| catalog.service_index(&name), asked).await
}

async fn health_service(
    State(shared): Ours,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let filter = Filter { passing: query.passing, tags: query.tags.clone() };
    let asked = |catalog: &Catalog| (catalog.service_index(&name), consul::health_service(catalog, &name, &filter));
    watched(&shared, &query, |catalog| catalog.service_index(&name), asked).await
}

async fn register(State(shared): Ours, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    refuse_foreign_hosts(&shared, &headers)?;
    let node = shared.gossip.node().address.ip();
    let registration = consul::decode_registration(&body, node).map_err(|cause| {
        let status = match cause {
            DecodeError::NotBuiltYet(_) => StatusCode::NOT_IMPLEMENTED,
            DecodeError::Malformed(_) | DecodeError::Refused(_) => StatusCode::BAD_REQUEST,
        };
        Refusal(status, cause.to_string())
    })?;
    shared.gossip.register(registration).await?;
    Ok(StatusCode::OK.into_response())
}

async fn deregister(State(shared): Ours, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Refusal> {
    refuse_foreign_hosts(&shared, &headers)?;
    shared.gossip.deregister(id).await?;
    Ok(StatusCode::OK.into_response())
}

async fn key_value() -> Refusal {
    Refusal(
        StatusCode::NOT_IMPLEMENTED,
        "evenkeel is not a key-value store and will not become one: keep /v1/kv with Consul, etcd or Redis".to_owned(),
    )
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal(
        StatusCode::NOT_FOUND,
        format!(
            "evenkeel does not serve {}: of Consul's API it has agent/self, agent/members, agent/services, agent/service/register, agent/service/deregister/ID, catalog/datacenters, catalog/nodes, catalog/services, catalog/service/NAME, health/service/NAME and status/*, below /v1/",
            uri.path()
        ),
    )
}

async fn wrong_method(request: Request) -> Refusal {
    Refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} {}: look-ups are GET, register and deregister are PUT", request.method(), request.uri().path()),
    )
}

/// A page in a browser must not register services by a name that resolves to this host (DNS rebinding).
fn refuse_foreign_hosts(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if host.is_none_or(|host| host_is_ours(host, &shared.gossip.node().name)) {
        return Ok(());
    }
    Err(Refusal(
        StatusCode::FORBIDDEN,
        "registrations are taken from those who call this host by an address, localhost or its node.name".to_owned(),
    ))
}

/// A refusal in plain text, as Consul's are.
struct Refusal(StatusCode, String);

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1 + "\n").into_response()
    }
}

impl From<ChangeError> for Refusal {
    fn from(cause: ChangeError) -> Refusal {
        use evenkeel_discovery::RegisterError;
        let status = match &cause {
            ChangeError::Refused(RegisterError::NoSuchId(_)) => StatusCode::NOT_FOUND,
            ChangeError::Refused(RegisterError::TooMany) => StatusCode::INSUFFICIENT_STORAGE,
            ChangeError::Refused(RegisterError::Leaving) | ChangeError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            ChangeError::Refused(_) => StatusCode::BAD_REQUEST,
            ChangeError::Configured(_) => StatusCode::CONFLICT,
            ChangeError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, cause.to_string())
    }
}

/// Answers at once, or, to a blocking query, when `index` has risen above the query's or its time is over.
async fn watched(
    shared: &Shared,
    query: &Query,
    index: impl Fn(&Catalog) -> u64,
    asked: impl Fn(&Catalog) -> (u64, Value),
) -> Result<Response, Refusal> {
    if let Some(dc) = &query.dc
        && *dc != shared.gossip.catalog().mesh.to_ascii_lowercase()
    {
        // Consul's own words and status.
        return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter".to_owned()));
    }
    if query.index >= 1 {
        let mut changes = shared.gossip.changes();
        let jitter = rand::rngs::SmallRng::random_jitter(query.wait);
        let until = Instant::now() + query.wait + jitter;
        while index(&shared.gossip.catalog()) <= query.index {
            match timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
    }
    let (index, body) = asked(&shared.gossip.catalog());
    Ok(answer(query, index, &body))
}

fn answer(query: &Query, index: u64, body: &Value) -> Response {
    let text = if query.pretty { format!("{body:#}\n") } else { body.to_string() };
    let consistency = if query.stale { "stale" } else { "leader" };
    let headers = [
        ("x-consul-index", index.max(1).to_string()),
        ("x-consul-knownleader", "true".to_owned()),
        ("x-consul-lastcontact", "0".to_owned()),
        ("x-consul-effective-consistency", consistency.to_owned()),
        (CONTENT_TYPE.as_str(), "application/json".to_owned()),
    ];
    (headers, text).into_response()
}

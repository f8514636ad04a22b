//! Orders to the whole mesh: `PUT` and `DELETE` of `/v1/override/SERVICE` and `/v1/drain/HOST`, and `GET /v1/orders`.
//!
//! The only requests of the admin listener that change something, so they are taken from this host only, whatever the
//! listener's address is: a metrics port that a whole network can scrape must not be one that a whole network can
//! drain hosts with. Not from a browser nor through a proxy or a service of the mesh either: that
//! [`crate::control_guard`] and [`crate::control`] see to. A body is read by the same parser as the configuration
//! file, so what is accepted here is what would be accepted there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use evenkeel_config::{Published, duration};
use evenkeel_discovery::{Catalog, Instance, NodeStatus, ServiceView, Subject};
use serde::{Deserialize, Serialize};

use super::{Admin, Ours, canonical, error, not_a_service, reads_only, report};
use crate::control::Peer;
use crate::gossip::{ChangeError, OrderRequest};

/// The body of `PUT /v1/override/SERVICE`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideBody {
    /// Fields of a policy by their path, `hedge.mode`, each with a value as in the file.
    pub fields: Vec<(String, String)>,
    /// As in the file: `1h`.
    pub ttl: String,
}

/// The body of `PUT /v1/drain/HOST`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    /// As in the file: `1h`.
    pub ttl: String,
}

/// The routes, guarded.
pub(super) fn router(admin: &Arc<Admin>) -> Router<Arc<Admin>> {
    let guard = middleware::from_fn_with_state(Arc::clone(admin), operators_only);
    let changes = Router::new()
        .route("/v1/override/{service}", put(issue_override).delete(undo_override))
        .route("/v1/drain/{host}", put(issue_drain).delete(undo_drain))
        .route_layer(guard)
        .method_not_allowed_fallback(reads_only);
    Router::new().route("/v1/orders", get(orders)).merge(changes)
}

async fn operators_only(
    State(admin): Ours,
    peer: Option<Extension<Peer>>,
    request: Request,
    next: Next,
) -> Response {
    let own = admin.gossip.node().address.ip();
    if !peer.is_some_and(|Extension(Peer(peer))| is_this_host(peer.ip(), own)) {
        return error(
            StatusCode::FORBIDDEN,
            "what changes the mesh is only taken from the host itself: run `evenkeel` there",
        );
    }
    next.run(request).await
}

fn is_this_host(peer: IpAddr, own: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || peer == own.to_canonical()
}

async fn orders(State(admin): Ours) -> Json<report::Orders> {
    let catalog = admin.gossip.catalog();
    let order = |(subject, order): (&Subject, &Arc<evenkeel_discovery::Order>)| {
        let mut order = report::Order::of(subject, order);
        if let Subject::Drain(node) = subject
            && let Some(node) = catalog.nodes.get(node)
        {
            order.subject.clone_from(&node.name);
        }
        order
    };
    let orders = catalog.orders.iter().map(order).collect();
    Json(report::Orders { orders, notes: Vec::new() })
}

async fn issue_override(
    State(admin): Ours,
    Path(service): Path<String>,
    body: Bytes,
) -> Result<Json<report::Orders>, Refusal> {
    let body: OverrideBody = read(&body)?;
    let name = canonical(&admin, &service);
    if (admin.views.endpoints)(&name).is_none() {
        return Err(Refusal(StatusCode::NOT_FOUND, not_a_service(&admin, &service)));
    }
    let policy =
        Published::of_fields(&body.fields).map_err(|problems| wrong(problems.join("\n")))?;
    let request = OrderRequest::Override(name.clone(), Arc::new(policy), ttl(&body.ttl)?);
    issue(&admin, request, Subject::Override(name)).await
}

async fn undo_override(
    State(admin): Ours,
    Path(service): Path<String>,
) -> Result<Json<report::Orders>, Refusal> {
    let subject = Subject::Override(canonical(&admin, &service));
    issue(&admin, OrderRequest::Undo(subject.clone()), subject).await
}

async fn issue_drain(
    State(admin): Ours,
    Path(host): Path<String>,
    body: Bytes,
) -> Result<Json<report::Orders>, Refusal> {
    let body: DrainBody = read(&body)?;
    let node = node_of(&admin, &host)?;
    let catalog = admin.gossip.catalog();
    if catalog.nodes.get(&node).is_some_and(|node| node.status != NodeStatus::Alive) {
        return Err(wrong(format!("{host} is not up: no host chooses it")));
    }
    issue(&admin, OrderRequest::Drain(node, ttl(&body.ttl)?), Subject::Drain(node)).await
}

async fn undo_drain(
    State(admin): Ours,
    Path(host): Path<String>,
) -> Result<Json<report::Orders>, Refusal> {
    let subject = Subject::Drain(node_of(&admin, &host)?);
    issue(&admin, OrderRequest::Undo(subject.clone()), subject).await
}

/// Issues it and answers with what stands on the subject now.
async fn issue(
    admin: &Admin,
    request: OrderRequest,
    subject: Subject,
) -> Result<Json<report::Orders>, Refusal> {
    admin.gossip.order(request).await?;
    let catalog = admin.gossip.catalog();
    let order = catalog.orders.get(&subject).map(|order| report::Order::of(&subject, order));
    let notes = match subject {
        Subject::Drain(node) if order.is_some() => without(&catalog, node),
        Subject::Drain(_) | Subject::Override(_) => Vec::new(),
    };
    Ok(Json(report::Orders { orders: order.into_iter().collect(), notes }))
}

/// What it means to do without a host.
fn without(catalog: &Catalog, drained: u64) -> Vec<String> {
    let nowhere_else = catalog.services.values().filter(|service| {
        let mut here = service.instances.iter().filter(|i| i.node.id == drained);
        let elsewhere = |i: &&Arc<Instance>| i.node.id != drained && i.takes_requests();
        here.next().is_some() && !service.instances.iter().any(|i| elsewhere(&i))
    });
    let note = |service: &Arc<ServiceView>| {
        format!(
            "No other host serves {}: its requests go on going there, or fail where policy.panic is 0%",
            service.name
        )
    };
    nowhere_else.map(note).collect()
}

/// Why an order was not issued, and whose fault that is.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        error(self.0, &self.1)
    }
}

impl From<ChangeError> for Refusal {
    fn from(cause: ChangeError) -> Refusal {
        let status = match cause {
            ChangeError::NotOrdered(_) | ChangeError::Refused(_) | ChangeError::Configured(_) => {
                StatusCode::BAD_REQUEST
            }
            ChangeError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ChangeError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal(status, cause.to_string())
    }
}

fn wrong(text: String) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, text)
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|why| wrong(format!("the body is not as expected: {why}")))
}

fn ttl(text: &str) -> Result<Duration, Refusal> {
    duration(text).map_err(|why| wrong(format!("ttl: {why}")))
}

/// A host by its name or its id.
fn node_of(admin: &Admin, host: &str) -> Result<u64, Refusal> {
    let catalog = admin.gossip.catalog();
    let id = (host.len() == 16).then(|| u64::from_str_radix(host, 16).ok()).flatten();
    if let Some(id) = id.filter(|id| catalog.nodes.contains_key(id)) {
        return Ok(id);
    }
    // A host that lost its data directory is there twice: the one that is up is meant.
    let named: Vec<_> = catalog.nodes.values().filter(|node| node.name == host).collect();
    let up: Vec<_> = named.iter().filter(|node| node.status == NodeStatus::Alive).collect();
    match (&up[..], &named[..]) {
        ([one], _) => Ok(one.id),
        ([], [one]) => Ok(one.id),
        ([], []) => {
            let known: Vec<&str> =
                catalog.alive().map(|node| node.name.as_str()).take(HOSTS_SHOWN_MAX).collect();
            let why = format!("no host {host:?} in the mesh. Up are: {}", known.join(", "));
            Err(Refusal(StatusCode::NOT_FOUND, why))
        }
        _ => {
            let ids: Vec<String> = named.iter().map(|node| format!("{:016x}", node.id)).collect();
            let ids = ids.join(" and of ");
            let why = format!("{host:?} is the name of {ids}: say which by its id");
            Err(Refusal(StatusCode::CONFLICT, why))
        }
    }
}

/// Names listed when one is not found.
const HOSTS_SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_from_the_host_itself() {
        let own: IpAddr = [10, 0, 0, 5].into();
        for (peer, ours) in [
            ("127.0.0.1", true),
            ("127.0.9.3", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.5", true),
            ("::ffff:10.0.0.5", true),
            ("10.0.0.6", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_this_host(peer.parse().unwrap(), own), ours, "{peer}");
        }
    }
}

//! Look-ups: what is asked of the catalogue, and by which index a blocking query waits.
//!
//! A query about one service waits by that service's index, so that others' changes do not wake it. One about checks in
//! general, or about a host, waits by the index of all checks, and is answered no more than once in [`WIDE_PACE`]: it has the
//! whole mesh's changes, and clients take all of it again each time.

use std::time::Duration;

use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use evenkeel_discovery::Catalog;
use evenkeel_discovery::consul::{self, CheckStates, Selection};
use evenkeel_discovery::filter::FilteredEntry;
use serde_json::Value;

use super::blocking::{answer, watched};
use super::query::Query;
use super::{Ours, Refusal};
use crate::control::Peer;

/// Between two answers to one who watches the changes of all.
const WIDE_PACE: Duration = Duration::from_secs(1);

type Answered = Result<Response, Refusal>;
type Asker = Option<Extension<Peer>>;

pub(super) async fn agent_self(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let query = Query::parse(query.as_deref())?.without_filter()?;
    Ok(answer(&query, 0, &consul::agent_self(&shared.gossip.catalog(), env!("CARGO_PKG_VERSION"))))
}

pub(super) async fn agent_members(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let query = Query::parse(query.as_deref())?.without_filter()?;
    Ok(answer(&query, 0, &consul::agent_members(&shared.gossip.catalog())))
}

pub(super) async fn agent_services(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Service)?;
    Ok(answer(&query, 0, &consul::agent_services(&shared.gossip.catalog(), &selection)))
}

pub(super) async fn agent_service(
    State(shared): Ours,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?.without_filter()?;
    match consul::agent_service(&shared.gossip.catalog(), &id) {
        Some(service) => Ok(answer(&query, 0, &service)),
        // Consul's own words.
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("unknown service ID: {id}"))),
    }
}

pub(super) async fn agent_checks(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Check)?;
    Ok(answer(&query, 0, &consul::agent_checks(&shared.gossip.catalog(), &selection)))
}

pub(super) async fn datacenters(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let query = Query::parse(query.as_deref())?.without_filter()?;
    Ok(answer(&query, 0, &Value::from(vec![shared.gossip.catalog().mesh.clone()])))
}

/// There is no leader; clients only ask whether there is one. Everyone is as good: this host.
pub(super) async fn leader(State(shared): Ours) -> Response {
    let query = Query::default();
    answer(&query, 0, &Value::from(shared.gossip.node().address.to_string()))
}

pub(super) async fn peers(State(shared): Ours) -> Response {
    let catalog = shared.gossip.catalog();
    let addresses: Vec<String> = catalog.alive().map(|node| node.address.to_string()).collect();
    answer(&Query::default(), 0, &Value::from(addresses))
}

pub(super) async fn catalog_nodes(
    State(shared): Ours,
    peer: Asker,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Node)?;
    let body = |catalog: &Catalog| consul::catalog_nodes(catalog, &selection);
    watched(&shared, peer, &query, Duration::ZERO, |catalog| catalog.nodes_index, body).await
}

pub(super) async fn catalog_services(
    State(shared): Ours,
    peer: Asker,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    // `passing` means nothing here, as in Consul.
    let selection = Selection { passing: false, ..query.selection(FilteredEntry::Catalog)? };
    let body = |catalog: &Catalog| consul::catalog_services(catalog, &selection);
    watched(&shared, peer, &query, Duration::ZERO, |catalog| catalog.services_index, body).await
}

pub(super) async fn catalog_service(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let selection = Selection { passing: false, ..query.selection(FilteredEntry::Catalog)? };
    let index = |catalog: &Catalog| catalog.service_index(&name);
    let body = |catalog: &Catalog| consul::catalog_service(catalog, &name, &selection);
    watched(&shared, peer, &query, Duration::ZERO, index, body).await
}

pub(super) async fn health_service(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let selection = query.selection(FilteredEntry::Health)?;
    let index = |catalog: &Catalog| catalog.service_index(&name);
    let body = |catalog: &Catalog| consul::health_service(catalog, &name, &selection);
    watched(&shared, peer, &query, Duration::ZERO, index, body).await
}

pub(super) async fn health_checks(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let selection = query.selection(FilteredEntry::Check)?;
    let index = |catalog: &Catalog| catalog.service_index(&name);
    let body = |catalog: &Catalog| consul::health_checks(catalog, &name, &selection);
    watched(&shared, peer, &query, Duration::ZERO, index, body).await
}

pub(super) async fn health_node(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Check)?;
    let body = |catalog: &Catalog| consul::health_node(catalog, &name, &selection);
    watched(&shared, peer, &query, WIDE_PACE, |catalog| catalog.checks_index, body).await
}

pub(super) async fn health_state(
    State(shared): Ours,
    peer: Asker,
    Path(state): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let states = CheckStates::of(&state).ok_or_else(|| {
        let why = format!("no state {state:?}: ask for any, passing, warning or critical");
        Refusal(StatusCode::BAD_REQUEST, why)
    })?;
    let selection = query.selection(FilteredEntry::Check)?;
    let body = |catalog: &Catalog| consul::health_state(catalog, states, &selection);
    watched(&shared, peer, &query, WIDE_PACE, |catalog| catalog.checks_index, body).await
}

pub(super) async fn catalog_node(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Service)?;
    let body = |catalog: &Catalog| consul::catalog_node(catalog, &name, &selection);
    watched(&shared, peer, &query, WIDE_PACE, |catalog| catalog.checks_index, body).await
}

pub(super) async fn catalog_node_services(
    State(shared): Ours,
    peer: Asker,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let selection = query.selection(FilteredEntry::Service)?;
    let body = |catalog: &Catalog| consul::catalog_node_services(catalog, &name, &selection);
    watched(&shared, peer, &query, WIDE_PACE, |catalog| catalog.checks_index, body).await
}

//! Blocking queries: an answer that waits until it differs from the one that the client has.
//!
//! A host that has not heard of the whole mesh yet answers none of them: a client takes a list for the whole one, and
//! would drop what is not in it.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::extract::Extension;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use evenkeel_discovery::Catalog;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::query::Query;
use super::{Refusal, Shared};
use crate::control::Peer;

/// Answers at once, or, to a blocking query, when `index` has risen above the query's or its time is over, but not
/// before `pace` has gone by: what everybody's changes wake is not asked for at the rate of everybody's changes.
///
/// An index above all that this host has given out is another host's, whose clock is ahead: it is answered at once, with a
/// lower one, upon which clients begin anew. To wait until ours has risen above it would hide changes for as long.
pub(super) async fn watched(
    shared: &Shared,
    peer: Option<Extension<Peer>>,
    query: &Query,
    pace: Duration,
    index: impl Fn(&Catalog) -> u64,
    body: impl Fn(&Catalog) -> Value,
) -> Result<Response, Refusal> {
    if let Some(dc) = &query.dc
        && *dc != shared.gossip.catalog().mesh.to_ascii_lowercase()
    {
        // Consul's own words and status.
        return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter".to_owned()));
    }
    if shared.gossip.catalog().partial {
        let why = "this host has just started and no other has told it yet which services there are: ask again in a moment, or another host";
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
    }
    let is_known = query.index <= shared.gossip.catalog().index;
    let is_same = |catalog: &Catalog| is_known && index(catalog) <= query.index;
    if query.index >= 1 && (is_same(&shared.gossip.catalog()) || !pace.is_zero()) {
        let from = peer.map_or(Ipv4Addr::LOCALHOST.into(), |Extension(Peer(peer))| peer.ip());
        let place = shared.parked.try_enter(from).ok_or_else(|| {
            let why = "too many blocking queries wait for changes here: ask again in a second, or without ?index";
            Refusal(StatusCode::TOO_MANY_REQUESTS, why.to_owned())
        })?;
        place.kept();
        let mut changes = shared.gossip.changes();
        let began = Instant::now();
        let until = began + query.wait + jitter(query.wait);
        while is_same(&shared.gossip.catalog()) {
            match timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        tokio::time::sleep_until((began + pace).min(until)).await;
    }
    let catalog = shared.gossip.catalog();
    Ok(answer(query, index(&catalog), &body(&catalog)))
}

pub(super) fn answer(query: &Query, index: u64, body: &Value) -> Response {
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

/// Up to a sixteenth of the wait, so that clients that asked together do not come back together. The clock's
/// nanoseconds are random enough for that.
fn jitter(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    wait.mul_f64(SmallRng::seed_from_u64(nanos.into()).random::<f64>() / 16.0)
}

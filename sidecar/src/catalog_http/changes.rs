//! Changes that applications and deploy scripts make at their own host: registrations, reports on checks, maintenance.
//!
//! A host name as address is looked up here, once: the name of this host means its `node.address` (what its own resolver says of it
//! is often a loopback address that nobody else can dial), any other what the system's resolver says.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use evenkeel_discovery::consul::{self, DecodeError};
use evenkeel_discovery::{Health, NodeInfo, Status};
use serde::Deserialize;

use super::query::Query;
use super::{Ours, Refusal, Shared};
use crate::gossip::HealthChange;

/// For looking up a registered host name.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

type Answered = Result<Response, Refusal>;

pub(super) async fn register(State(shared): Ours, body: Bytes) -> Answered {
    let node = shared.gossip.node();
    let looked_up = match consul::host_to_look_up(&body) {
        Some(name) => Some(look_up(node, &name).await?),
        None => None,
    };
    let registration = consul::decode_registration(&body, node.address.ip(), looked_up)?;
    if shared.own.has(registration.address) {
        let why = format!(
            "{} is a listener of Evenkeel itself, and requests would go in a circle: register the application's own Address and Port. For a service that is only to be listed, such as what monitoring finds hosts by, leave Port out",
            registration.address
        );
        return Err(Refusal(StatusCode::BAD_REQUEST, why));
    }
    shared.gossip.register(registration).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn deregister(State(shared): Ours, Path(id): Path<String>) -> Answered {
    shared.gossip.deregister(id).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn register_check(State(shared): Ours, body: Bytes) -> Answered {
    let added = consul::decode_check_registration(&body)?;
    changed(&shared, HealthChange::AddCheck(Box::new(added))).await
}

pub(super) async fn deregister_check(State(shared): Ours, Path(id): Path<String>) -> Answered {
    changed(&shared, HealthChange::RemoveCheck(id)).await
}

pub(super) async fn pass_check(
    State(shared): Ours,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    noted(&shared, id, Status::Passing, query).await
}

pub(super) async fn warn_check(
    State(shared): Ours,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    noted(&shared, id, Status::Warning, query).await
}

pub(super) async fn fail_check(
    State(shared): Ours,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    noted(&shared, id, Status::Critical, query).await
}

async fn noted(shared: &Shared, id: String, status: Status, query: Option<String>) -> Answered {
    let query = Query::parse(query.as_deref())?;
    let output = query.note.unwrap_or_default();
    changed(shared, HealthChange::Report(id, Health { status, output })).await
}

/// The body of `PUT /v1/agent/check/update/{id}`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CheckReport {
    #[serde(alias = "status")]
    status: Status,
    #[serde(default, alias = "output")]
    output: String,
}

pub(super) async fn update_check(
    State(shared): Ours,
    Path(id): Path<String>,
    body: Bytes,
) -> Answered {
    let CheckReport { status, output } = serde_json::from_slice(&body).map_err(|cause| {
        let why = format!("request decode failed: {cause}; write {{\"Status\": \"passing\"}}");
        Refusal(StatusCode::BAD_REQUEST, why)
    })?;
    changed(&shared, HealthChange::Report(id, Health { status, output })).await
}

pub(super) async fn service_maintenance(
    State(shared): Ours,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered {
    let reason = maintenance(query.as_deref())?;
    changed(&shared, HealthChange::Maintenance(id, reason)).await
}

pub(super) async fn host_maintenance(State(shared): Ours, RawQuery(query): RawQuery) -> Answered {
    let reason = maintenance(query.as_deref())?;
    changed(&shared, HealthChange::HostMaintenance(reason)).await
}

/// The reason, if maintenance is to begin.
fn maintenance(query: Option<&str>) -> Result<Option<String>, Refusal> {
    let query = Query::parse(query)?;
    let enable = query.enable.ok_or_else(|| {
        let why = "Missing value for enable: write ?enable=true or ?enable=false";
        Refusal(StatusCode::BAD_REQUEST, why.to_owned())
    })?;
    Ok(enable.then(|| query.reason.unwrap_or_default()))
}

async fn changed(shared: &Shared, change: HealthChange) -> Answered {
    shared.gossip.change_health(change).await?;
    Ok(StatusCode::OK.into_response())
}

/// The address that a host name means.
async fn look_up(node: &NodeInfo, name: &str) -> Result<IpAddr, Refusal> {
    let own = node.address.ip();
    if name.eq_ignore_ascii_case(&node.name) {
        return Ok(own);
    }
    let refused = |why: String| {
        let advice = "register an IP address, or leave Address out for this host's";
        Refusal(StatusCode::BAD_REQUEST, format!("Address {name:?} {why}: {advice}"))
    };
    let found = tokio::time::timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host((name, 0)))
        .await
        .map_err(|_| refused(format!("was not found within {LOOK_UP_TIMEOUT:?}")))?
        .map_err(|cause| refused(format!("cannot be looked up ({cause})")))?;
    let mut found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    // Those of the family in which the mesh speaks first.
    found.sort_by_key(|ip| ip.is_ipv4() != own.is_ipv4());
    found.first().copied().ok_or_else(|| refused("has no address".to_owned()))
}

impl From<DecodeError> for Refusal {
    fn from(cause: DecodeError) -> Refusal {
        let status = match cause {
            DecodeError::NotBuilt(_) => StatusCode::NOT_IMPLEMENTED,
            DecodeError::Malformed(_) | DecodeError::Refused(_) => StatusCode::BAD_REQUEST,
        };
        Refusal(status, cause.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> NodeInfo {
        NodeInfo {
            id: 1,
            name: "host-a".into(),
            address: "10.0.0.5:7111".parse().unwrap(),
            mesh_port: 7110,
            zone: None,
            version: "0.1.0".into(),
        }
    }

    #[tokio::test]
    async fn names_and_what_they_mean() {
        let found = async |name: &str| look_up(&host(), name).await.map_err(|refusal| refusal.1);
        assert_eq!(found("Host-A").await, Ok("10.0.0.5".parse().unwrap()));
        assert_eq!(found("localhost").await, Ok("127.0.0.1".parse().unwrap()));
        let refused = found("nosuch.invalid").await.unwrap_err();
        assert!(refused.contains("register an IP address"), "{refused}");
    }

    #[test]
    fn maintenance_is_asked_for_in_so_many_words() {
        let reason = |query| maintenance(Some(query)).map_err(|refusal| refusal.0);
        assert_eq!(reason("enable=true&reason=new+disk"), Ok(Some("new disk".to_owned())));
        assert_eq!(reason("enable=true"), Ok(Some(String::new())));
        assert_eq!(reason("enable=false&reason=x"), Ok(None));
        assert_eq!(reason("reason=x"), Err(StatusCode::BAD_REQUEST));
    }
}

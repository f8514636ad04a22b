//! The catalogue over HTTP, in the form that Consul's clients know: look-ups, blocking queries, registrations.
//!
//! What the JSON looks like, [`consul`] decides; this decides which paths exist, what the query's parameters mean and
//! which headers an answer carries (Consul's HTTP API documentation; clients fail without `X-Consul-Index`). A
//! parameter that would change the answer and that is not built is refused: an ignored filter sends requests to the
//! wrong instances. Blocking queries hold a connection each for minutes: no more than [`PARKED_MAX`] wait at a time,
//! fewer than there are connections ([`crate::control`]), and whoever asks for one more is told to come back (429,
//! which clients of Consul know from its own limits). Answering it at once instead would make its client ask again at
//! once. Applications ask for limits here too ([`acquire`]), which is not Consul's. `/v1/kv` is refused with 501:
//! Evenkeel is not a key-value store.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, put};
use evenkeel_discovery::Catalog;
use evenkeel_discovery::consul::{self, DecodeError, Filter};
use prometheus::{IntCounterVec, Opts};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::control::Peer;
use crate::gossip::{ChangeError, GossipHandle};
use crate::limit::{Limits, acquire};
use crate::places::{PlaceCounters, Places};

/// The routes.
///
/// # Errors
/// When the metrics are registered already.
pub fn router(
    gossip: GossipHandle,
    limits: Arc<Limits>,
    metrics: &prometheus::Registry,
    counters: &PlaceCounters,
) -> prometheus::Result<Router> {
    let requests = IntCounterVec::new(
        Opts::new("evenkeel_catalog_requests_total", "Requests to the discovery HTTP listener."),
        &["code"],
    )?;
    metrics.register(Box::new(requests.clone()))?;
    let acquire = acquire::router(limits);
    let parked = Places::new(PARKED_MAX, PARKED_MAX, counters, "blocking queries");
    let shared = Arc::new(Shared { gossip, requests, parked });
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
        .with_state(shared)
        .merge(acquire))
}

/// How long a surface of this router must let an answer take: the longest wait and some.
pub const ANSWER_TIMEOUT: Duration =
    Duration::from_secs(WAIT_MAX.as_secs() + WAIT_MAX.as_secs() / 16 + 10);

struct Shared {
    gossip: GossipHandle,
    requests: IntCounterVec,
    /// Of blocking queries that wait.
    parked: Arc<Places>,
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

async fn agent_members(
    State(shared): Ours,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    Ok(answer(&query, 0, &consul::agent_members(&shared.gossip.catalog())))
}

async fn agent_services(
    State(shared): Ours,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
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

async fn catalog_nodes(
    State(shared): Ours,
    peer: Option<Extension<Peer>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    let asked = |catalog: &Catalog| (catalog.nodes_index, consul::catalog_nodes(catalog));
    watched(&shared, peer, &query, |catalog| catalog.nodes_index, asked).await
}

async fn catalog_services(
    State(shared): Ours,
    peer: Option<Extension<Peer>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref())?;
    let asked = |catalog: &Catalog| (catalog.services_index, consul::catalog_services(catalog));
    watched(&shared, peer, &query, |catalog| catalog.services_index, asked).await
}

async fn catalog_service(
    State(shared): Ours,
    peer: Option<Extension<Peer>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let filter = Filter { passing: false, tags: query.tags.clone() };
    let asked = |catalog: &Catalog| {
        (catalog.service_index(&name), consul::catalog_service(catalog, &name, &filter))
    };
    watched(&shared, peer, &query, |catalog| catalog.service_index(&name), asked).await
}

async fn health_service(
    State(shared): Ours,
    peer: Option<Extension<Peer>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let (query, name) = (Query::parse(query.as_deref())?, name.to_ascii_lowercase());
    let filter = Filter { passing: query.passing, tags: query.tags.clone() };
    let asked = |catalog: &Catalog| {
        (catalog.service_index(&name), consul::health_service(catalog, &name, &filter))
    };
    watched(&shared, peer, &query, |catalog| catalog.service_index(&name), asked).await
}

async fn register(State(shared): Ours, body: Bytes) -> Result<Response, Refusal> {
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

async fn deregister(State(shared): Ours, Path(id): Path<String>) -> Result<Response, Refusal> {
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
            "evenkeel does not serve {}: of Consul's API it has agent/self, agent/members, agent/services, agent/service/register, agent/service/deregister/ID, catalog/datacenters, catalog/nodes, catalog/services, catalog/service/NAME, health/service/NAME and status/*, below /v1/; besides, POST /v1/limits/RESOURCE/acquire",
            uri.path()
        ),
    )
}

async fn wrong_method(request: Request) -> Refusal {
    Refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} {}: look-ups are GET, register and deregister are PUT, acquire is POST",
            request.method(),
            request.uri().path()
        ),
    )
}

/// A refusal in plain text, as Consul's are.
struct Refusal(StatusCode, String);

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.0 == StatusCode::TOO_MANY_REQUESTS {
            return (self.0, [(RETRY_AFTER, "1")], self.1 + "\n").into_response();
        }
        (self.0, self.1 + "\n").into_response()
    }
}

/// A refusal of what is no request to any of the routes.
pub fn refuse(status: StatusCode, why: &str) -> Response {
    Refusal(status, why.to_owned()).into_response()
}

impl From<ChangeError> for Refusal {
    fn from(cause: ChangeError) -> Refusal {
        use evenkeel_discovery::RegisterError;
        let status = match &cause {
            ChangeError::Refused(RegisterError::NoSuchId(_)) => StatusCode::NOT_FOUND,
            ChangeError::Refused(RegisterError::TooMany) => StatusCode::INSUFFICIENT_STORAGE,
            ChangeError::Refused(RegisterError::Leaving) | ChangeError::Stopped => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ChangeError::Refused(_) | ChangeError::NotOrdered(_) => StatusCode::BAD_REQUEST,
            ChangeError::Configured(_) => StatusCode::CONFLICT,
            ChangeError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, cause.to_string())
    }
}

/// Answers at once, or, to a blocking query, when `index` has risen above the query's or its time is over.
async fn watched(
    shared: &Shared,
    peer: Option<Extension<Peer>>,
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
    if query.index >= 1 && index(&shared.gossip.catalog()) <= query.index {
        let from = peer.map_or(Ipv4Addr::LOCALHOST.into(), |Extension(Peer(peer))| peer.ip());
        let place = shared.parked.try_enter(from).ok_or_else(|| {
            let why = "too many blocking queries wait for changes here: ask again in a second, or without ?index";
            Refusal(StatusCode::TOO_MANY_REQUESTS, why.to_owned())
        })?;
        place.kept();
        let mut changes = shared.gossip.changes();
        let until = Instant::now() + query.wait + jitter(query.wait);
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

/// Up to a sixteenth of the wait, so that clients that asked together do not come back together. The clock's
/// nanoseconds are random enough for that.
fn jitter(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    wait.mul_f64(SmallRng::seed_from_u64(nanos.into()).random::<f64>() / 16.0)
}

/// What the query's parameters ask.
#[derive(Debug, PartialEq)]
struct Query {
    index: u64,
    wait: Duration,
    passing: bool,
    tags: Vec<String>,
    dc: Option<String>,
    stale: bool,
    pretty: bool,
}

impl Default for Query {
    fn default() -> Self {
        Query {
            index: 0,
            wait: WAIT_DEFAULT,
            passing: false,
            tags: Vec::new(),
            dc: None,
            stale: false,
            pretty: false,
        }
    }
}

impl Query {
    fn parse(query: Option<&str>) -> Result<Query, Refusal> {
        let bad = |text: String| Refusal(StatusCode::BAD_REQUEST, text);
        let (mut parsed, mut consistent) = (Query::default(), false);
        for (key, value) in pairs(query.unwrap_or_default()) {
            match key.as_str() {
                "index" => {
                    parsed.index =
                        value.parse().map_err(|_| bad(format!("Invalid index {value:?}")))?;
                }
                "wait" => {
                    let wait = go_duration(&value)
                        .ok_or_else(|| bad(format!("Invalid wait time {value:?}")))?;
                    // As Consul: no wait means the default.
                    parsed.wait = if wait.is_zero() { WAIT_DEFAULT } else { wait.min(WAIT_MAX) };
                }
                "passing" => {
                    parsed.passing = match value.as_str() {
                        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        _ => return Err(bad(format!("Invalid value for ?passing: {value:?}"))),
                    };
                }
                "tag" => parsed.tags.push(value),
                "dc" if !value.is_empty() => parsed.dc = Some(value.to_ascii_lowercase()),
                "stale" => parsed.stale = true,
                "consistent" => consistent = true,
                "pretty" => parsed.pretty = true,
                "filter" | "node-meta" if !value.is_empty() => {
                    return Err(Refusal(
                        StatusCode::NOT_IMPLEMENTED,
                        format!(
                            "not built yet: ?{key}. Use ?tag and ?passing, or filter the answer"
                        ),
                    ));
                }
                "ns" | "partition" | "peer" | "sg" if !matches!(value.as_str(), "" | "default") => {
                    return Err(bad(format!(
                        "?{key}={value}: a mesh has one namespace and no peers; leave it out"
                    )));
                }
                // Known and without effect here, or unknown: Consul ignores these too.
                _ => {}
            }
        }
        if parsed.stale && consistent {
            return Err(bad(
                "Cannot specify ?stale with ?consistent, conflicting semantics.".to_owned()
            ));
        }
        Ok(parsed)
    }
}

/// The pairs of a query string, decoded; a key without `=` has an empty value.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    })
}

/// Percent-decoding with `+` as a blank; what is not valid stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Go's durations: `10s`, `120000ms`, `1h2m3.5s`; a bare number is nanoseconds only if 0.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" || text.is_empty() {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// Of a blocking query that does not say.
const WAIT_DEFAULT: Duration = Duration::from_secs(300);

/// Blocking queries that wait at a time: a template that watches hundreds of services has room, and the other
/// connections can always ask.
const PARKED_MAX: usize = 384;

/// Of any blocking query.
const WAIT_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Query, StatusCode> {
        Query::parse(Some(query)).map_err(|refusal| refusal.0)
    }

    #[test]
    fn parameters_as_consuls_clients_send_them() {
        let query =
            parse("stale=&wait=120000ms&index=17&tag=a&tag=b%2Fc+d&passing=1&near=_agent&dc=Prod")
                .unwrap();
        let expected = Query {
            index: 17,
            wait: Duration::from_secs(120),
            passing: true,
            tags: vec!["a".into(), "b/c d".into()],
            dc: Some("prod".into()),
            stale: true,
            pretty: false,
        };
        assert_eq!(query, expected);
        for (query, passing) in
            [("", false), ("passing", true), ("passing=true", true), ("passing=false", false)]
        {
            assert_eq!(parse(query).unwrap().passing, passing, "{query}");
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for (query, status) in [
            ("passing=maybe", StatusCode::BAD_REQUEST),
            ("index=-1", StatusCode::BAD_REQUEST),
            ("wait=10", StatusCode::BAD_REQUEST),
            ("stale&consistent", StatusCode::BAD_REQUEST),
            ("ns=other", StatusCode::BAD_REQUEST),
            ("filter=Service.Tags+contains+x", StatusCode::NOT_IMPLEMENTED),
            ("node-meta=rack:1", StatusCode::NOT_IMPLEMENTED),
        ] {
            assert_eq!(parse(query).err(), Some(status), "{query}");
        }
    }

    #[test]
    fn waits() {
        for (text, ms) in [
            ("10s", Some(10_000)),
            ("120000ms", Some(120_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("0", Some(0)),
            ("", Some(0)),
            ("10", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("1e400h", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(go_duration(text), ms.map(Duration::from_millis), "{text}");
        }
        assert_eq!(parse("wait=24h").unwrap().wait, WAIT_MAX);
        assert_eq!(parse("wait=0s").unwrap().wait, WAIT_DEFAULT);
    }

    #[test]
    fn bytes_that_are_no_encoding_stay() {
        for (text, meaning) in [
            ("a%3Ab", "a:b"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%ff", "\u{fffd}"),
            ("é", "é"),
        ] {
            assert_eq!(decoded(text), meaning);
        }
    }
}

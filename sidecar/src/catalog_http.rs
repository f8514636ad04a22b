//! The catalogue over HTTP, in the form that Consul's clients know: look-ups, blocking queries, registrations.
//!
//! What the JSON looks like, [`evenkeel_discovery::consul`] decides; this decides which paths exist ([`paths`]: one table, also of what
//! is refused), what the query's parameters mean ([`query`]), when a blocking query is answered ([`blocking`]) and which headers an
//! answer carries (Consul's HTTP API documentation; clients fail without `X-Consul-Index`). Look-ups are in [`lookups`], changes in
//! [`changes`]. Blocking queries hold a connection each for minutes: no more than [`PARKED_MAX`] wait at a time,
//! fewer than there are connections ([`crate::control`]), and whoever asks for one more is told to come back (429,
//! which clients of Consul know from its own limits). Answering it at once instead would make its client ask again at
//! once. Applications ask for limits here too ([`acquire`]), which is not Consul's.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use prometheus::{IntCounterVec, Opts};

use crate::gossip::{ChangeError, GossipHandle};
use crate::limit::{Limits, acquire};
use crate::own::OwnListeners;
use crate::places::{PlaceCounters, Places};

mod blocking;
mod changes;
mod lookups;
mod paths;
mod query;

use query::WAIT_MAX;

/// The routes.
///
/// # Errors
/// When the metrics are registered already.
pub fn router(
    gossip: GossipHandle,
    limits: Arc<Limits>,
    own: Arc<OwnListeners>,
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
    let shared = Arc::new(Shared { gossip, own, requests, parked });
    let mut router = Router::new();
    for (path, method) in paths::CONSUL_PATHS.iter().filter_map(paths::ConsulPath::route) {
        router = router.route(path, method);
    }
    Ok(router
        .fallback(paths::refused)
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
    own: Arc<OwnListeners>,
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

async fn wrong_method(request: Request) -> Refusal {
    Refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} {}: look-ups are GET, changes are PUT, acquire is POST",
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
            ChangeError::Refused(RegisterError::NoSuchId(_) | RegisterError::NoSuchCheck(_)) => {
                StatusCode::NOT_FOUND
            }
            ChangeError::Refused(RegisterError::TooMany | RegisterError::MeshFull) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
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

/// Blocking queries that wait at a time: a template that watches hundreds of services has room, and the other
/// connections can always ask.
const PARKED_MAX: usize = 384;

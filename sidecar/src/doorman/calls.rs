//! Which calls are in progress, and how they ended: a limit on the first, a metric for the second.

use std::sync::Arc;

use http::Response;
use prometheus::{IntCounterVec, Opts};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;
use tonic::body::Body;

/// The calls of all connections.
#[derive(Clone)]
pub struct Calls {
    places: Arc<Semaphore>,
    ended: IntCounterVec,
}

impl Calls {
    /// None yet.
    pub fn registered(metrics: &prometheus::Registry) -> prometheus::Result<Calls> {
        let ended = IntCounterVec::new(
            Opts::new(
                "evenkeel_doorman_calls_total",
                "Calls of Doorman clients, by the gRPC status they were answered with.",
            ),
            &["method", "code"],
        )?;
        metrics.register(Box::new(ended.clone()))?;
        Ok(Calls { places: Arc::new(Semaphore::new(CALLS_MAX)), ended })
    }

    /// A place for one call, once there is one.
    pub async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// A call to this path was answered.
    pub fn count(&self, path: &str, answer: &Response<Body>) {
        let method = path.strip_prefix("/doorman.Capacity/");
        let method = method.filter(|method| METHODS.contains(method)).unwrap_or("other");
        // A refusal has its status in the head. What has none there went well; only a stream may still end otherwise.
        let status = answer.headers().get("grpc-status");
        let code = status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
        let code = CODES.get(code as usize).copied().unwrap_or("UNKNOWN");
        self.ended.with_label_values(&[method, code]).inc();
    }
}

/// What is counted by its name; the rest is for health checks and reflection.
const METHODS: [&str; 4] = ["Discovery", "GetCapacity", "GetServerCapacity", "ReleaseCapacity"];
/// By the number of the status.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Calls at a time, each with its request in memory; further ones wait.
const CALLS_MAX: usize = 1_024;

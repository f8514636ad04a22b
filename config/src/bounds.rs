//! The most that others may ask of this host's clients: `mesh.bounds`.
//!
//! A published policy and an operator's override come from other hosts. What they ask for costs this host memory,
//! connections and time, and sends the same request more than once; its own operator has the last word on that. A value
//! beyond its bound becomes the bound: the rest of the policy still counts, and `explain` says which fields it happened to.
//! What this host's own file says is not bounded.
//!
//! Most bounds are maxima. `hedge.min` is a minimum; `hedge.mode` is at most `off` < `observe` < `enforce`; of
//! `repeat.methods` what the bound names is left. By default that is what RFC 9110 calls idempotent, so that nobody makes POST
//! repeatable for a whole mesh by mistake. gRPC methods and the key header are not bounded: only a service knows its own.
//! What a policy does not say is not bounded either: it stays what this host's own file, or the built-in default, says. How an
//! endpoint is chosen (`balance`, `shard`, `hash`, `zone`, `probation`, `scout.mode`) has no bound.

use std::time::Duration;

use crate::layer::PolicyLayer;
use crate::policy::{Mode, Share};
use crate::report::At;

/// The most that a published policy or an override may ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// At most.
    pub timeout: Duration,
    /// At most.
    pub idle_timeout: Duration,
    /// Of these methods only.
    pub repeat_methods: Vec<String>,
    /// At most.
    pub retry_max: u32,
    /// At most.
    pub retry_budget: Share,
    /// At most, in the order off, observe, enforce.
    pub hedge_mode: Mode,
    /// At least.
    pub hedge_min: Duration,
    /// At most.
    pub hedge_budget: Share,
    /// At most.
    pub hedge_max: u32,
    /// At most: how long a request may wait for what a scout says.
    pub scout_timeout: Duration,
    /// At most.
    pub eject_max: Share,
    /// At most.
    pub circuit_connections: u32,
    /// At most.
    pub circuit_pending: u32,
    /// At most.
    pub circuit_requests: u32,
    /// At most.
    pub slow_start: Duration,
    /// At most.
    pub max_body_buffer: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(24 * 3600),
            repeat_methods: ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
                .map(String::from)
                .to_vec(),
            retry_max: 5,
            retry_budget: Share::percent(50),
            hedge_mode: Mode::Enforce,
            hedge_min: Duration::ZERO,
            hedge_budget: Share::percent(20),
            hedge_max: 3,
            scout_timeout: Duration::from_millis(10),
            eject_max: Share::percent(100),
            circuit_connections: 16_384,
            circuit_pending: 16_384,
            circuit_requests: 65_536,
            slow_start: Duration::from_secs(600),
            max_body_buffer: 1 << 20,
        }
    }
}

impl Bounds {
    /// The layer within the bounds, and the fields that were beyond them.
    pub(crate) fn apply(&self, layer: &PolicyLayer) -> (PolicyLayer, Vec<&'static str>) {
        let mut layer = layer.clone();
        let bounded = [
            ("timeout", at_most(&mut layer.timeout, self.timeout)),
            ("idle_timeout", at_most(&mut layer.idle_timeout, self.idle_timeout)),
            ("repeat.methods", only(&mut layer.repeat_methods, &self.repeat_methods)),
            ("retry.max", at_most(&mut layer.retry_max, self.retry_max)),
            ("retry.budget", at_most(&mut layer.retry_budget, self.retry_budget)),
            ("hedge.mode", at_most(&mut layer.hedge_mode, self.hedge_mode)),
            ("hedge.min", at_least(&mut layer.hedge_min, self.hedge_min)),
            ("hedge.budget", at_most(&mut layer.hedge_budget, self.hedge_budget)),
            ("hedge.max", at_most(&mut layer.hedge_max, self.hedge_max)),
            ("scout.timeout", at_most(&mut layer.scout_timeout, self.scout_timeout)),
            ("eject.max", at_most(&mut layer.eject_max, self.eject_max)),
            (
                "circuit.connections",
                at_most(&mut layer.circuit_connections, self.circuit_connections),
            ),
            ("circuit.pending", at_most(&mut layer.circuit_pending, self.circuit_pending)),
            ("circuit.requests", at_most(&mut layer.circuit_requests, self.circuit_requests)),
            ("slow_start", at_most(&mut layer.slow_start, self.slow_start)),
            ("max_body_buffer", at_most_at(&mut layer.max_body_buffer, self.max_body_buffer)),
        ];
        (layer, bounded.into_iter().filter(|(_, hit)| *hit).map(|(path, _)| path).collect())
    }
}

fn at_most<T: PartialOrd>(said: &mut Option<T>, bound: T) -> bool {
    match said {
        Some(value) if *value > bound => {
            *value = bound;
            true
        }
        _ => false,
    }
}

fn at_most_at<T: PartialOrd>(said: &mut Option<At<T>>, bound: T) -> bool {
    match said {
        Some(at) if at.value > bound => {
            at.value = bound;
            true
        }
        _ => false,
    }
}

fn at_least<T: PartialOrd>(said: &mut Option<T>, bound: T) -> bool {
    match said {
        Some(value) if *value < bound => {
            *value = bound;
            true
        }
        _ => false,
    }
}

fn only(said: &mut Option<Vec<String>>, bound: &[String]) -> bool {
    let Some(list) = said else { return false };
    let before = list.len();
    list.retain(|item| bound.contains(item));
    list.len() < before
}

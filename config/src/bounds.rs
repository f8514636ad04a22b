//! The most that others may ask of this host's clients: `mesh.bounds`.
//!
//! A published policy and an operator's override come from other hosts. What they ask for costs this host memory,
//! connections and time, and sends the same request more than once; its own operator has the last word on that. A value
//! beyond its bound becomes the bound: the rest of the policy still counts, and `explain` says which fields it happened to.
//!
//! The bounds hold for the result, not for what one layer says: whatever this host's own file does not say is within them, the
//! built-in value of a field that nobody names too. Else a service would get more by leaving a field out than by naming it.
//! What this host's own file says is not bounded: it is the same operator's word on something narrower.
//!
//! Most bounds are maxima. `hedge.min` is a minimum; `hedge.mode` is at most `off` < `observe` < `enforce`; of
//! `repeat.methods` what the bound names is left. By default that is what RFC 9110 calls idempotent, so that nobody makes POST
//! repeatable for a whole mesh by mistake. gRPC methods and the key header are not bounded: only a service knows its own. `scout.mode` is at
//! most `off` < `pool` < `before_each`; where it is `off`, `balance: scout`, which cannot do without scouts, becomes `p2c`. How an
//! endpoint is chosen otherwise (`balance`, `shard`, `hash`, `zone`, `probation`) has no bound.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::policy::{Balance, Mode, Origin, Origins, Policy, ScoutMode, Share, built_in_origins};

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
    /// At most, in the order off, pool, before each.
    pub scout_mode: ScoutMode,
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
            scout_mode: ScoutMode::BeforeEach,
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
    /// Brings every field that this host's own file does not say within its bound; returns those that were beyond it.
    pub(crate) fn hold(&self, policy: &mut Policy, origins: &Origins) -> BTreeSet<&'static str> {
        let mut hold = Hold { origins, bounded: BTreeSet::new() };
        let Policy { repeat, retry, hedge, circuit, .. } = policy;
        hold.only("repeat.methods", &mut repeat.methods, &self.repeat_methods);
        hold.at_most("retry.max", &mut retry.max, self.retry_max);
        hold.at_most("retry.budget", &mut retry.budget, self.retry_budget);
        hold.at_most("hedge.mode", &mut hedge.mode, self.hedge_mode);
        hold.at_least("hedge.min", &mut hedge.min, self.hedge_min);
        hold.at_most("hedge.budget", &mut hedge.budget, self.hedge_budget);
        hold.at_most("hedge.max", &mut hedge.max, self.hedge_max);
        hold.at_most("circuit.connections", &mut circuit.connections, self.circuit_connections);
        hold.at_most("circuit.pending", &mut circuit.pending, self.circuit_pending);
        hold.at_most("circuit.requests", &mut circuit.requests, self.circuit_requests);
        hold.at_most("timeout", &mut policy.timeout, self.timeout);
        hold.at_most("idle_timeout", &mut policy.idle_timeout, self.idle_timeout);
        hold.at_most("scout.mode", &mut policy.scout.mode, self.scout_mode);
        if self.scout_mode == ScoutMode::Off
            && policy.balance == Balance::Scout
            && hold.takes("balance")
        {
            policy.balance = Balance::P2c;
        }
        hold.at_most("scout.timeout", &mut policy.scout.timeout, self.scout_timeout);
        hold.at_most("eject.max", &mut policy.eject.max, self.eject_max);
        hold.at_most("slow_start", &mut policy.slow_start, self.slow_start);
        hold.at_most("max_body_buffer", &mut policy.max_body_buffer, self.max_body_buffer);
        hold.bounded
    }

    /// The fields whose built-in value is beyond its bound.
    pub(crate) fn tighter_than_built_in(&self) -> BTreeSet<&'static str> {
        self.hold(&mut Policy::default(), &built_in_origins())
    }
}

/// The fields that were bounded so far.
struct Hold<'o> {
    origins: &'o Origins,
    bounded: BTreeSet<&'static str>,
}

impl Hold<'_> {
    fn at_most<T: PartialOrd>(&mut self, path: &'static str, value: &mut T, bound: T) {
        if *value > bound && self.takes(path) {
            *value = bound;
        }
    }

    fn at_least<T: PartialOrd>(&mut self, path: &'static str, value: &mut T, bound: T) {
        if *value < bound && self.takes(path) {
            *value = bound;
        }
    }

    fn only(&mut self, path: &'static str, list: &mut Vec<String>, bound: &[String]) {
        if list.iter().any(|item| !bound.contains(item)) && self.takes(path) {
            list.retain(|item| bound.contains(item));
        }
    }

    /// Whether a value that is beyond its bound becomes the bound, which is noted.
    fn takes(&mut self, path: &'static str) -> bool {
        let said = self.origins.get(path);
        let own = matches!(said, Some(Origin::Host | Origin::Upstream | Origin::Route));
        !own && self.bounded.insert(path)
    }
}

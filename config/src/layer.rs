//! One layer of a policy: what one place of the file says, and how layers lie on each other.
//!
//! Field by field, nested fields too: `hedge: {mode: enforce}` in an upstream changes the mode and keeps the host's
//! `hedge.budget`. A list is one field: a later one replaces it whole, since nobody could take an element away
//! otherwise. Each field remembers the layer that set it. Which layers there are is in `merge`.

use std::time::Duration;

use crate::policy::{
    After, Balance, Factor, KeySource, Mode, Origin, Origins, Policy, RetryOn, ScoutMode,
    ShardFallback, Share, Zone,
};
use crate::report::At;

/// What one `policy:` of the file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PolicyLayer {
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub balance: Option<At<Balance>>,
    /// A value of `None`: `none` is written.
    pub hash_key: Option<At<Option<KeySource>>>,
    pub hash_bound: Option<Factor>,
    pub repeat_methods: Option<Vec<String>>,
    pub repeat_grpc: Option<Vec<String>>,
    /// `Some(None)`: `none` is written.
    pub repeat_key_header: Option<Option<String>>,
    pub retry_max: Option<u32>,
    pub retry_budget: Option<Share>,
    pub retry_when: Option<Vec<RetryOn>>,
    pub hedge_mode: Option<Mode>,
    pub hedge_after: Option<After>,
    pub hedge_min: Option<Duration>,
    pub hedge_budget: Option<Share>,
    pub hedge_max: Option<u32>,
    /// `Some(None)`: `none` is written.
    pub scout_mode: Option<ScoutMode>,
    pub scout_timeout: Option<Duration>,
    pub shard_key: Option<Option<KeySource>>,
    pub shard_size: Option<u32>,
    pub shard_fallback: Option<ShardFallback>,
    pub zone: Option<Zone>,
    pub eject_consecutive: Option<u32>,
    pub eject_base: Option<Duration>,
    pub eject_max: Option<Share>,
    /// `Some(None)`: `off` is written.
    pub probation_slower_than: Option<Option<Factor>>,
    pub probation_min_requests: Option<u32>,
    pub panic: Option<Share>,
    pub circuit_connections: Option<u32>,
    pub circuit_pending: Option<u32>,
    pub circuit_requests: Option<u32>,
    pub slow_start: Option<Duration>,
    pub max_body_buffer: Option<At<usize>>,
}

impl PolicyLayer {
    /// Lays this layer over what is below it.
    pub(crate) fn over(
        &self,
        below: &Policy,
        below_origins: &Origins,
        origin: Origin,
    ) -> (Policy, Origins) {
        let mut policy = below.clone();
        let mut origins = below_origins.clone();
        let Policy {
            timeout,
            idle_timeout,
            balance,
            hash,
            repeat,
            retry,
            hedge,
            scout,
            shard,
            zone,
            eject,
            probation,
            panic,
            circuit,
            slow_start,
            max_body_buffer,
        } = &mut policy;
        let body = self.max_body_buffer.as_ref().map(|size| size.value);
        let set = [
            put("timeout", self.timeout, timeout),
            put("idle_timeout", self.idle_timeout, idle_timeout),
            put("balance", self.balance.as_ref().map(|balance| balance.value), balance),
            put("hash.key", self.hash_key.as_ref().map(|key| key.value.clone()), &mut hash.key),
            put("hash.bound", self.hash_bound, &mut hash.bound),
            put("repeat.methods", self.repeat_methods.clone(), &mut repeat.methods),
            put("repeat.grpc", self.repeat_grpc.clone(), &mut repeat.grpc),
            put("repeat.key_header", self.repeat_key_header.clone(), &mut repeat.key_header),
            put("retry.max", self.retry_max, &mut retry.max),
            put("retry.budget", self.retry_budget, &mut retry.budget),
            put("retry.when", self.retry_when.clone(), &mut retry.when),
            put("hedge.mode", self.hedge_mode, &mut hedge.mode),
            put("hedge.after", self.hedge_after, &mut hedge.after),
            put("hedge.min", self.hedge_min, &mut hedge.min),
            put("hedge.budget", self.hedge_budget, &mut hedge.budget),
            put("hedge.max", self.hedge_max, &mut hedge.max),
            put("scout.mode", self.scout_mode, &mut scout.mode),
            put("scout.timeout", self.scout_timeout, &mut scout.timeout),
            put("shard.key", self.shard_key.clone(), &mut shard.key),
            put("shard.size", self.shard_size, &mut shard.size),
            put("shard.fallback", self.shard_fallback, &mut shard.fallback),
            put("zone", self.zone, zone),
            put("eject.consecutive", self.eject_consecutive, &mut eject.consecutive),
            put("eject.base", self.eject_base, &mut eject.base),
            put("eject.max", self.eject_max, &mut eject.max),
            put("probation.slower_than", self.probation_slower_than, &mut probation.slower_than),
            put("probation.min_requests", self.probation_min_requests, &mut probation.min_requests),
            put("panic", self.panic, panic),
            put("circuit.connections", self.circuit_connections, &mut circuit.connections),
            put("circuit.pending", self.circuit_pending, &mut circuit.pending),
            put("circuit.requests", self.circuit_requests, &mut circuit.requests),
            put("slow_start", self.slow_start, slow_start),
            put("max_body_buffer", body, max_body_buffer),
        ];
        origins.extend(set.into_iter().flatten().map(|path| (path, origin)));
        (policy, origins)
    }
}

/// Sets a field that the layer names, and says that it did.
fn put<T>(path: &'static str, said: Option<T>, field: &mut T) -> Option<&'static str> {
    *field = said?;
    Some(path)
}

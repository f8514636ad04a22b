//! The endpoints of one upstream: their set, what is learnt of them, and a pick. `choice` says how one is chosen.
//!
//! **Panic**: when fewer than `policy.panic` of the serving endpoints are in rotation, ejections and probation are ignored, because the few that are left would
//! drown; holds, bias and costs still steer away from what fails. When *no* endpoint serves, and `panic` is above 0, those that do not serve are used:
//! a draining instance still answers, and a check may be wrong. With `panic: 0%` both are [`NoEndpoint::Unhealthy`].
//!
//! **Shards**: with a key and `policy.shard`, candidates are the members of the key's shard alone, for retries and copies too. When none of
//! them is usable the request fails with [`NoEndpoint::Shard`], or goes to any endpoint, as `shard.fallback` says. Members that do not serve are
//! the last resort when no member serves, as in panic, unless the shard may widen.
//!
//! Orderings: relaxed; the snapshot of the set is published by `arc-swap` (release/acquire).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use arc_swap::ArcSwap;
use evenkeel_config::policy::{Balance, Policy, ShardFallback, Zone};
use rand::Rng;

use crate::choice::{Pick, Rotations};
use crate::circuit::Circuit;
use crate::ejection::Ejections;
use crate::endpoint::{Endpoint, EndpointSpec, State};
use crate::epoch::Epoch;
use crate::probation::{self, Probations};
use crate::scout::Pool;
use crate::set::{ENDPOINTS_MAX, Set};
use crate::ticket::Ticket;
use crate::zone::Spill;

/// The endpoints of one upstream and what is known of them; shared by all workers.
#[derive(Debug)]
pub struct Balancer {
    epoch: Epoch,
    set: ArcSwap<Set>,
    rotations: Rotations,
    circuit: Circuit,
    ejections: Arc<Ejections>,
    spill: Arc<Spill>,
    pub(crate) probations: Probations,
}

/// Which attempt of a request wants an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The first.
    First,
    /// Another after one that failed: where it was not yet, if possible.
    Retry,
    /// A copy beside one that has not answered: only where it was not yet.
    Hedge,
}

/// What a request wants of a choice.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Which attempt of it.
    pub attempt: Attempt,
    /// The serials of the endpoints that it was sent to before.
    pub tried: &'a [u64],
    /// The [hash](crate::key_hash) of its key for `policy.shard`. A request without the key has the hash of nothing, so that all such
    /// requests share one shard and do not reach into everybody's. Looked at only when the policy has shards.
    pub shard: Option<u64>,
    /// The [hash](crate::key_hash) of its key for `balance: hash`; `None`, without the key: two choices.
    pub hash: Option<u64>,
}

impl Wish<'static> {
    /// A first attempt of a request without keys.
    pub const FIRST: Wish<'static> =
        Wish { attempt: Attempt::First, tried: &[], shard: None, hash: None };
}

/// Why there is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// None is known.
    None,
    /// None is usable, and the policy forbids panic.
    Unhealthy,
    /// For a copy: no usable endpoint is left that this request has not tried.
    AllTried,
    /// No member of the key's shard is usable, and the policy does not let it widen.
    Shard,
    /// As many attempts are in flight as `circuit.requests` allows, or for a copy: as many copies as `hedge.budget` allows at once.
    CircuitOpen,
}

impl Balancer {
    /// A balancer without endpoints; moments are counted from `epoch`.
    #[must_use]
    pub fn new(epoch: Instant) -> Balancer {
        Balancer {
            epoch: Epoch::new(epoch),
            set: ArcSwap::default(),
            rotations: Rotations::default(),
            circuit: Circuit::default(),
            ejections: Arc::default(),
            spill: Arc::default(),
            probations: Probations::default(),
        }
    }

    /// Takes over the full set of endpoints. One caller at a time.
    ///
    /// What was learnt of an endpoint stays while its node, instance and address do. A new endpoint, and one that serves again,
    /// starts slowly if another that served before serves still. Of two with one identity the last counts; past
    /// [`ENDPOINTS_MAX`] the rest is left out. Returns how many were left out. `own_zone`: where this host stands.
    pub fn update(
        &self,
        now: Instant,
        mut specs: Vec<EndpointSpec>,
        own_zone: Option<&str>,
    ) -> usize {
        let now = self.epoch.moment(now);
        let before = self.set.load();
        let known: BTreeMap<_, _> =
            before.iter().map(|endpoint| (endpoint.spec.identity(), endpoint)).collect();
        // Sorting is stable, so that of two with one identity the last stays.
        specs.sort_by(|one, other| one.identity().cmp(&other.identity()));
        specs.dedup_by(|later, kept| {
            let same = later.identity() == kept.identity();
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        let left_out = specs.len().saturating_sub(ENDPOINTS_MAX);
        specs.truncate(ENDPOINTS_MAX);
        let serves_still = |spec: &EndpointSpec| {
            let before = known.get(&spec.identity());
            spec.in_service() && before.is_some_and(|endpoint| endpoint.spec.in_service())
        };
        let ramp_from = if specs.iter().any(serves_still) { now } else { 0 };
        let endpoints = specs.into_iter().map(|spec| match known.get(&spec.identity()) {
            Some(&endpoint) if endpoint.spec == spec => Arc::clone(endpoint),
            Some(endpoint) => {
                let state = Arc::clone(&endpoint.state);
                if spec.in_service() && !endpoint.spec.in_service() {
                    state.ramp_from.store(ramp_from, Relaxed);
                }
                Arc::new(Endpoint { spec, state })
            }
            None => {
                let attempts = Arc::clone(self.circuit.attempts());
                let ejections = Arc::clone(&self.ejections);
                let spill = Arc::clone(&self.spill);
                let state = Arc::new(State::new(self.epoch, ramp_from, attempts, ejections, spill));
                Arc::new(Endpoint { spec, state })
            }
        });
        let set = Arc::new(Set::new(endpoints.collect(), own_zone));
        self.recount(now, &set);
        self.set.store(set);
        left_out
    }

    /// Marks the endpoints of hosts that the mesh has called down, before [`Balancer::update`] leaves them out. Returns whether one of
    /// them was not marked before: whoever waits for it may want to go elsewhere.
    pub fn mark_lost(&self, is_down: impl Fn(u64) -> bool) -> bool {
        let mut is_news = false;
        for endpoint in self.set.load().iter() {
            let is_lost = is_down(endpoint.spec.node);
            is_news |= !endpoint.state.lost.swap(is_lost, Relaxed) && is_lost;
        }
        is_news
    }

    /// Chooses an endpoint for an attempt.
    ///
    /// # Errors
    /// When there is none to choose, see [`NoEndpoint`]; nothing has changed then.
    pub fn pick(
        &self,
        now: Instant,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
    ) -> Result<Ticket, NoEndpoint> {
        self.pick_among(now, rng, policy, wish, None)
    }

    /// As [`Balancer::pick`], for `balance: scout`: among the answers of a worker's scouts, if they give a choice.
    ///
    /// # Errors
    /// As for [`Balancer::pick`].
    pub fn pick_scouted(
        &self,
        now: Instant,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
        pool: &mut Pool,
    ) -> Result<Ticket, NoEndpoint> {
        self.pick_among(now, rng, policy, wish, Some(pool))
    }

    fn pick_among(
        &self,
        now: Instant,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
        pool: Option<&mut Pool>,
    ) -> Result<Ticket, NoEndpoint> {
        let set = self.set.load();
        if set.is_empty() {
            return Err(NoEndpoint::None);
        }
        let mut pool = pool.map(|pool| (now, pool));
        let now = self.epoch.moment(now);
        if self.ejections.is_stale(now) {
            self.recount(now, &set);
        }
        if self.probations.is_due(now) {
            self.probations.judge(now, &set, policy, self.ejections.out());
        }
        let (index, random) = self.choose(&set, now, rng, policy, wish, &mut pool)?;
        let attempts = self.circuit.attempts();
        if !attempts.try_enter(wish.attempt, policy.circuit.requests, policy.hedge.budget) {
            return Err(NoEndpoint::CircuitOpen);
        }
        let near = set.look(index).near;
        Ok(Ticket::new(&set[index], now, &policy.eject, random as u32, wish.attempt, near))
    }

    /// The index of the endpoint, and the number by which chance was decided.
    fn choose(
        &self,
        set: &Set,
        now: u64,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
        pool: &mut Option<(Instant, &mut Pool)>,
    ) -> Result<(usize, u64), NoEndpoint> {
        let random = rng.next_u64();
        let panic = self.panics(set, policy);
        let mut pick = Pick {
            set,
            few: None,
            now,
            attempt: wish.attempt,
            tried: wish.tried,
            panic,
            desperate: panic && set.serving() == 0,
            probation: probation::threshold(policy).is_some() && !panic,
            slow_start: policy.slow_start,
            nonce: random,
        };
        if let (Some(key), true) = (wish.shard, policy.shard.key.is_some()) {
            let few = set.shard(key, policy.shard.size);
            let widen = policy.shard.fallback == ShardFallback::Widen;
            pick.few = Some(few);
            pick.desperate = !widen
                && policy.panic.as_fraction() > 0.0
                && !few.iter().any(|index| set.look(index).serving);
            match self.choose_among(&pick, rng, policy, wish, pool) {
                Err(_) if widen && wish.attempt != Attempt::Hedge => {}
                Err(NoEndpoint::Unhealthy) => return Err(NoEndpoint::Shard),
                done => return done.map(|index| (index, random)),
            }
            pick.few = None;
            pick.desperate = panic && set.serving() == 0;
        }
        self.choose_among(&pick, rng, policy, wish, pool).map(|index| (index, random))
    }

    fn choose_among(
        &self,
        pick: &Pick<'_>,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
        pool: &mut Option<(Instant, &mut Pool)>,
    ) -> Result<usize, NoEndpoint> {
        if wish.attempt == Attempt::First
            && self.probations.out() > 0
            && probation::threshold(policy).is_some()
            && let Some(index) = self.probations.trial(
                pick.now,
                pick.set,
                pick.few.as_ref(),
                policy,
                (pick.nonce >> 32) as u32,
            )
        {
            return Ok(index);
        }
        if let (Some(key), Balance::Hash) = (wish.hash, policy.balance) {
            let usable = pick.set.serving().saturating_sub(self.out(policy));
            let (bound, in_flight) = (policy.hash.bound.times(), self.circuit.requests());
            return match pick.by_key(key, bound, in_flight, usable) {
                Some(index) => Ok(index),
                None => pick.two_of_the_best_rank(rng).map(|(index, _)| index),
            };
        }
        let stays = policy.zone == Zone::Prefer
            && wish.attempt == Attempt::First
            && pick.few.is_none()
            && pick.set.near().is_some()
            && !self.spill.spills(pick.now, pick.nonce as u32);
        if let Some((now, pool)) = pool
            && let Some(index) = pool.choose(*now, |index, serial| pick.takes(index, serial, stays))
        {
            return Ok(index);
        }
        let near = pick.set.near().filter(|_| stays);
        pick.choose(rng, policy.balance, near, &self.rotations)
    }

    /// The endpoints as they are now.
    #[must_use]
    pub fn endpoints(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// What is open towards this upstream.
    #[must_use]
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// This process itself stood still (its loop was late by more than 50 ms): what seemed silence of the endpoints was ours, so
    /// stall ages start again, and attempts begun before give no samples.
    pub fn own_pause(&self, now: Instant) {
        let now = self.epoch.moment(now);
        for endpoint in self.set.load().iter() {
            endpoint.state.stall.own_pause(now);
            endpoint.state.clean_since.fetch_max(now, Relaxed);
        }
    }

    pub(crate) fn moment(&self, now: Instant) -> u64 {
        self.epoch.moment(now)
    }

    /// Times that an endpoint was ejected, since the start.
    #[must_use]
    pub fn ejections_total(&self) -> u64 {
        self.ejections.total()
    }

    /// The share of first attempts that may leave this host's zone, while it is preferred and there is a choice: 1 when all endpoints
    /// are chosen among alike.
    #[must_use]
    pub fn spill(&self) -> f64 {
        self.spill.share()
    }

    /// Whether ejections are to be ignored.
    pub(crate) fn panics(&self, set: &Set, policy: &Policy) -> bool {
        let (serving, out) = (set.serving(), self.out(policy));
        let usable = serving.saturating_sub(out);
        let panic = policy.panic.as_fraction();
        if serving == 0 {
            panic > 0.0
        } else {
            out > 0 && f64::from(usable) < panic * f64::from(serving)
        }
    }

    /// How many that serve are kept out of rotation, by failures or slowness.
    fn out(&self, policy: &Policy) -> u32 {
        let probation = probation::threshold(policy).is_some();
        self.ejections.out() + if probation { self.probations.out() } else { 0 }
    }

    fn recount(&self, now: u64, set: &Set) {
        let serving = set.iter().filter(|endpoint| endpoint.spec.in_service());
        self.ejections.recount(now, serving.map(|endpoint| &endpoint.state.ejection));
    }
}

#[cfg(test)]
mod tests;

//! Choosing an endpoint: filters, then the policy's way of choosing, then a ticket.
//!
//! What may be chosen, best first (`Rank`):
//!
//! 1. *fresh*: serves, not ejected, not held (`Retry-After`, unreachable a moment ago), not tried by this request, and admitted by slow start;
//! 2. *starting*: as fresh, but slow start has not admitted it this time, or its weight is 0;
//! 3. *held*;
//! 4. *tried* by this request before: for a retry, after everything untried;
//! 5. *not serving* (draining, failing its check): only in panic.
//!
//! Among the fresh, an endpoint under suspicion (`stall`) is passed over a few times, whatever the policy's way of choosing.
//!
//! A copy goes only to 1 or 2, and always by [two choices](crate::p2c): it is sent because its twin may be stuck.
//! Rank 2 to 5 are reached only when a bounded number of draws found nothing better, by one scan of the set; a scan takes two at
//! random of the best rank there is. So a pick among healthy endpoints costs the same for ten as for a thousand.
//!
//! **Panic**: when fewer than `policy.panic` of the serving endpoints are not ejected, ejections are ignored, because the few that are left would
//! drown; holds, bias and costs still steer away from what fails. When *no* endpoint serves, and `panic` is above 0, those that do not serve are used:
//! a draining instance still answers, and a check may be wrong. With `panic: 0%` both are [`NoEndpoint::Unhealthy`].
//!
//! Orderings: relaxed; the snapshot of the set is published by `arc-swap` (release/acquire).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use evenkeel_config::policy::{Balance, Policy};
use rand::Rng;

use crate::circuit::Circuit;
use crate::ejection::Ejections;
use crate::endpoint::{Endpoint, EndpointSpec, State};
use crate::epoch::Epoch;
use crate::key::scramble;
use crate::p2c::{Load, is_suspect};
use crate::scout::Pool;
use crate::set::{ENDPOINTS_MAX, Look, Set};
use crate::ticket::Ticket;

/// The endpoints of one upstream and what is known of them; shared by all workers.
#[derive(Debug)]
pub struct Balancer {
    epoch: Epoch,
    set: ArcSwap<Set>,
    rotation: AtomicU64,
    circuit: Circuit,
    ejections: Arc<Ejections>,
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
            rotation: AtomicU64::new(0),
            circuit: Circuit::default(),
            ejections: Arc::default(),
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
            spec.serving && before.is_some_and(|endpoint| endpoint.spec.serving)
        };
        let ramp_from = if specs.iter().any(serves_still) { now } else { 0 };
        let endpoints = specs.into_iter().map(|spec| match known.get(&spec.identity()) {
            Some(&endpoint) if endpoint.spec == spec => Arc::clone(endpoint),
            Some(endpoint) => {
                let state = Arc::clone(&endpoint.state);
                if spec.serving && !endpoint.spec.serving {
                    state.ramp_from.store(ramp_from, Relaxed);
                }
                Arc::new(Endpoint { spec, state })
            }
            None => {
                let attempts = Arc::clone(self.circuit.attempts());
                let ejections = Arc::clone(&self.ejections);
                let state = Arc::new(State::new(self.epoch, ramp_from, attempts, ejections));
                Arc::new(Endpoint { spec, state })
            }
        });
        let set = Arc::new(Set::new(endpoints.collect(), own_zone));
        self.recount(now, &set);
        self.set.store(set);
        left_out
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
        let Wish { attempt, tried, .. } = *wish;
        let set = self.set.load();
        if set.is_empty() {
            return Err(NoEndpoint::None);
        }
        let instant = now;
        let now = self.epoch.moment(now);
        if self.ejections.is_stale(now) {
            self.recount(now, &set);
        }
        let random = rng.next_u64();
        let pick = Pick {
            set: &set,
            now,
            attempt,
            tried,
            panic: self.panics(&set, policy),
            slow_start: policy.slow_start,
            nonce: random,
        };
        let scouted =
            pool.and_then(|pool| pool.choose(instant, |index, serial| pick.is_well(index, serial)));
        let index = match (scouted, policy.balance) {
            (Some(index), _) => Ok(index),
            (None, Balance::P2c | Balance::Scout | Balance::Hash) => {
                pick.cheapest_of_a_few(rng, Load::by_latency)
            }
            _ if attempt == Attempt::Hedge => pick.cheapest_of_a_few(rng, Load::by_latency),
            (None, Balance::LeastRequest) => pick.cheapest_of_a_few(rng, Load::by_requests),
            (None, Balance::RoundRobin) => {
                pick.first_well(rng, |set, _| set.rotate(self.rotation.fetch_add(1, Relaxed)))
            }
            (None, Balance::Random) => pick.first_well(rng, Set::draw),
        }?;
        let attempts = self.circuit.attempts();
        if !attempts.try_enter(attempt, policy.circuit.requests, policy.hedge.budget) {
            return Err(NoEndpoint::CircuitOpen);
        }
        Ok(Ticket::new(&set[index], now, &policy.eject, random as u32, attempt))
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

    /// Whether ejections are to be ignored.
    pub(crate) fn panics(&self, set: &Set, policy: &Policy) -> bool {
        let (serving, out) = (set.serving(), self.ejections.out());
        let usable = serving.saturating_sub(out);
        let panic = policy.panic.as_fraction();
        if serving == 0 {
            panic > 0.0
        } else {
            out > 0 && f64::from(usable) < panic * f64::from(serving)
        }
    }

    fn recount(&self, now: u64, set: &Set) {
        let serving = set.iter().filter(|endpoint| endpoint.spec.serving);
        self.ejections.recount(now, serving.map(|endpoint| &endpoint.state.ejection));
    }
}

/// One choice.
struct Pick<'a> {
    set: &'a Set,
    now: u64,
    attempt: Attempt,
    tried: &'a [u64],
    panic: bool,
    slow_start: Duration,
    /// Decides, the same for all draws of this choice, which starting endpoints are admitted.
    nonce: u64,
}

/// How suitable an endpoint is; lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Fresh,
    Starting,
    Held,
    Tried,
    TriedHeld,
    NotServing,
    Out,
}

impl Pick<'_> {
    /// The cheaper of two fresh ones drawn at random; for a copy of four. Each suspect among them is one more draw.
    fn cheapest_of_a_few(
        &self,
        rng: &mut impl Rng,
        load: impl Fn(&State, u64, Attempt) -> Load,
    ) -> Result<usize, NoEndpoint> {
        let load = |index: usize| load(&self.set.look(index).state, self.now, self.attempt);
        let mut wanted = if self.attempt == Attempt::Hedge { CHOICES_FOR_A_COPY } else { 2 };
        let mut more = SUSPECTS_PASSED;
        let mut best: Option<(usize, Load)> = None;
        for _ in 0..DRAWS_MAX {
            let index = self.set.draw(rng.next_u64());
            if best.is_some_and(|(best, _)| best == index) || self.rank(index) != Rank::Fresh {
                continue;
            }
            let drawn = load(index);
            if best.is_none_or(|(_, best)| drawn.is_better_than(&best)) {
                best = Some((index, drawn));
            }
            if drawn.suspect && more > 0 {
                more -= 1;
            } else {
                wanted -= 1;
            }
            if wanted == 0 {
                break;
            }
        }
        if let Some((index, _)) = best {
            return Ok(index);
        }
        let (first, second) = self.two_of_the_best_rank(rng)?;
        let better = |second: &usize| load(*second).is_better_than(&load(first));
        Ok(second.filter(better).unwrap_or(first))
    }

    /// The first fresh one of a sequence of draws; a few suspects are passed over.
    fn first_well<R: Rng>(
        &self,
        rng: &mut R,
        draw: impl Fn(&Set, u64) -> usize,
    ) -> Result<usize, NoEndpoint> {
        let mut more = SUSPECTS_PASSED;
        for _ in 0..DRAWS_MAX {
            let index = draw(self.set, rng.next_u64());
            if self.rank(index) != Rank::Fresh {
                continue;
            }
            if more == 0
                || !is_suspect(self.set.look(index).state.stall.silence(self.now), self.attempt)
            {
                return Ok(index);
            }
            more -= 1;
        }
        self.two_of_the_best_rank(rng).map(|(first, _)| first)
    }

    /// Whether this is still the endpoint at that place, fresh and under no suspicion.
    fn is_well(&self, index: usize, serial: u64) -> bool {
        index < self.set.len()
            && self.set.look(index).state.serial == serial
            && self.rank(index) == Rank::Fresh
            && !is_suspect(self.set.look(index).state.stall.silence(self.now), self.attempt)
    }

    /// Looks at all: two different ones at random of the best rank there is.
    fn two_of_the_best_rank(
        &self,
        rng: &mut impl Rng,
    ) -> Result<(usize, Option<usize>), NoEndpoint> {
        let (mut best, mut found, mut chosen) = (Rank::Out, 0u64, [0usize; 2]);
        for index in 0..self.set.len() {
            let rank = self.rank(index);
            if rank > best || rank == Rank::Out {
                continue;
            }
            if rank < best {
                (best, found) = (rank, 0);
            }
            // Reservoir sampling of two.
            let place = if found < 2 { found } else { below(rng, found + 1) };
            if let Some(slot) = chosen.get_mut(place as usize) {
                *slot = index;
            }
            found += 1;
        }
        let last_resort =
            if self.attempt == Attempt::Hedge { Rank::Starting } else { Rank::NotServing };
        match found {
            0 => Err(NoEndpoint::Unhealthy),
            _ if best > last_resort => Err(NoEndpoint::AllTried),
            1 => Ok((chosen[0], None)),
            // The reservoir's places are in the order of the set until it overflows.
            _ if below(rng, 2) == 0 => Ok((chosen[1], Some(chosen[0]))),
            _ => Ok((chosen[0], Some(chosen[1]))),
        }
    }

    fn rank(&self, index: usize) -> Rank {
        let Look { state, serving, weighs } = self.set.look(index);
        if !serving {
            return if self.panic && self.set.serving() == 0 {
                Rank::NotServing
            } else {
                Rank::Out
            };
        }
        if state.ejection.is_out(self.now) && !self.panic {
            return Rank::Out;
        }
        let held = state.held(self.now);
        if self.tried.contains(&state.serial) {
            return if held { Rank::TriedHeld } else { Rank::Tried };
        }
        if held {
            return Rank::Held;
        }
        if !weighs || !self.admits(index, state) { Rank::Starting } else { Rank::Fresh }
    }

    /// Slow start: as many of the choices as the endpoint's share by now. One that is used although it is ejected has its full share.
    fn admits(&self, index: usize, state: &State) -> bool {
        if self.panic && state.ejection.is_out(self.now) {
            return true;
        }
        let share = state.ramp(self.now, self.slow_start);
        share >= 1.0
            || ((scramble(self.nonce ^ index as u64) >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// Evenly below `bound`, which is small.
fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// A copy is rare and must not land on another stuck endpoint: it looks at more of them.
const CHOICES_FOR_A_COPY: usize = 4;
/// So many suspects are passed over. Not all of them, whatever their number: when most endpoints are silent at once the cause is
/// likely to be elsewhere, and the rest must not be buried.
const SUSPECTS_PASSED: usize = 4;
/// After so many draws without a fresh endpoints the whole set is looked at. With half of a large set out that happens to
/// one pick in a thousand.
const DRAWS_MAX: usize = 12;

#[cfg(test)]
mod tests;

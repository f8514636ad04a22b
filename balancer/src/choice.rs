//! One choice: who may be chosen, best first, and how one of them is.
//!
//! What may be chosen, best first ([`Rank`]):
//!
//! 1. *fresh*: serves, not ejected, not held (`Retry-After`, unreachable a moment ago), not tried by this request, and admitted by slow start;
//! 2. *starting*: as fresh, but slow start has not admitted it this time, or its weight is 0;
//! 3. *slow*: [on probation](crate::probation);
//! 4. *held*;
//! 5. *tried* by this request before: for a retry, after everything untried;
//! 6. *preserved*: its host vanished, and it may be us who are cut off;
//! 7. *not serving* (draining, failing its check): only in panic.
//!
//! Among the fresh, an endpoint under suspicion (`stall`) is passed over a few times, whatever the policy's way of choosing.
//!
//! A copy goes only to 1 or 2, and always by [two choices](crate::p2c) or in the key's order: it is sent because its twin may be stuck.
//! Rank 2 to 7 are reached only when a bounded number of draws found nothing better, by one scan of the candidates; a scan takes two at
//! random of the best rank there is. So a pick among healthy endpoints costs the same for ten as for a thousand.
//!
//! Candidates are all endpoints of the upstream, or the members of a [shard](crate::shuffle_shard); a choice looks first at those in this
//! host's [zone](crate::zone), if it does not spill.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use evenkeel_config::policy::Balance;
use rand::Rng;

use crate::balancer::{Attempt, NoEndpoint};
use crate::endpoint::State;
use crate::key::scramble;
use crate::p2c::{Load, is_suspect};
use crate::rendezvous::Few;
use crate::set::{Draws, Look, Set};

/// One choice.
pub(crate) struct Pick<'a> {
    pub(crate) set: &'a Set,
    /// The candidates; `None`: all.
    pub(crate) few: Option<Few>,
    pub(crate) now: u64,
    pub(crate) attempt: Attempt,
    pub(crate) tried: &'a [u64],
    /// Ejections are ignored.
    pub(crate) panic: bool,
    /// What does not serve may be used as a last resort.
    pub(crate) desperate: bool,
    /// Who is on probation stays out.
    pub(crate) probation: bool,
    pub(crate) slow_start: Duration,
    /// Decides, the same for all draws of this choice, which starting endpoints are admitted.
    pub(crate) nonce: u64,
}

/// Where round robin stands. In one rotation for both the turns of all would be those that the zone left over, the same again and again.
#[derive(Debug, Default)]
pub(crate) struct Rotations {
    all: AtomicU64,
    near: AtomicU64,
}

/// How suitable an endpoint is; lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Fresh,
    Starting,
    Slow,
    Held,
    Tried,
    TriedHeld,
    Preserved,
    PreservedHeld,
    NotServing,
    Out,
}

impl Pick<'_> {
    /// An endpoint by the policy's way of choosing; first among those `near`, if they are preferred.
    pub(crate) fn choose(
        &self,
        rng: &mut impl Rng,
        balance: Balance,
        near: Option<&Draws>,
        rotations: &Rotations,
    ) -> Result<usize, NoEndpoint> {
        match balance {
            Balance::P2c | Balance::Hash | Balance::Scout => {
                self.cheapest(rng, near, Load::by_latency)
            }
            _ if self.attempt == Attempt::Hedge => self.cheapest(rng, near, Load::by_latency),
            Balance::LeastRequest => self.cheapest(rng, near, Load::by_requests),
            Balance::RoundRobin => self.first_well(rng, near, |from, _| {
                let all = std::ptr::eq(from, self.set.all());
                let rotation = if all { &rotations.all } else { &rotations.near };
                let turn = rotation.fetch_add(1, Relaxed);
                match &self.few {
                    None => from.rotate(turn),
                    Some(few) => few.at((turn % few.len() as u64) as usize),
                }
            }),
            Balance::Random => self.first_well(rng, near, |from, random| self.draw(from, random)),
        }
    }

    /// The cheaper of two.
    fn cheapest(
        &self,
        rng: &mut impl Rng,
        near: Option<&Draws>,
        load: impl Fn(&State, u64, Attempt) -> Load,
    ) -> Result<usize, NoEndpoint> {
        let load = |index: usize| load(&self.set.look(index).state, self.now, self.attempt);
        if let Some(near) = near
            && let Some((index, best)) = self.cheapest_of_a_few(rng, near, load)
            && !best.suspect
        {
            let other = self.draw(self.set.all(), rng.next_u64());
            let elsewhere =
                self.rank(other) == Rank::Fresh && load(other).is_much_better_than(&best);
            return Ok(if elsewhere { other } else { index });
        }
        if let Some((index, _)) = self.cheapest_of_a_few(rng, self.set.all(), load) {
            return Ok(index);
        }
        let (first, second) = self.two_of_the_best_rank(rng)?;
        let better = |second: &usize| load(*second).is_better_than(&load(first));
        Ok(second.filter(better).unwrap_or(first))
    }

    /// The cheaper of two fresh ones drawn at random; for a copy of four. Each suspect among them is one more draw.
    fn cheapest_of_a_few(
        &self,
        rng: &mut impl Rng,
        from: &Draws,
        load: impl Fn(usize) -> Load,
    ) -> Option<(usize, Load)> {
        let mut wanted = if self.attempt == Attempt::Hedge { CHOICES_FOR_A_COPY } else { 2 };
        let mut more = SUSPECTS_PASSED;
        let mut best: Option<(usize, Load)> = None;
        // Both of the usual two at once: in a large set neither is in the processor's cache, and so both are on their way together.
        let ahead = [rng.next_u64(), rng.next_u64()].map(|random| self.draw(from, random));
        for step in 0..DRAWS_MAX {
            let index = ahead.get(step).copied();
            let index = index.unwrap_or_else(|| self.draw(from, rng.next_u64()));
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
        best
    }

    /// The first fresh one of a sequence of draws; a few suspects are passed over.
    fn first_well<R: Rng>(
        &self,
        rng: &mut R,
        near: Option<&Draws>,
        draw: impl Fn(&Draws, u64) -> usize,
    ) -> Result<usize, NoEndpoint> {
        let mut more = SUSPECTS_PASSED;
        for step in 0..DRAWS_MAX {
            // The zone has the first half of the draws.
            let from = near.filter(|_| step < DRAWS_MAX / 2).unwrap_or(self.set.all());
            let index = draw(from, rng.next_u64());
            if self.rank(index) != Rank::Fresh {
                continue;
            }
            if more == 0 || !self.is_suspect(index) {
                return Ok(index);
            }
            more -= 1;
        }
        self.two_of_the_best_rank(rng).map(|(first, _)| first)
    }

    /// A candidate that a number spread evenly over all of `u64` stands for, by weight.
    #[inline]
    fn draw(&self, from: &Draws, random: u64) -> usize {
        match &self.few {
            None => from.draw(random),
            Some(few) => self.draw_of_few(few, random),
        }
    }

    fn draw_of_few(&self, few: &Few, random: u64) -> usize {
        let scaled = |by: u64| ((u128::from(random) * u128::from(by)) >> 64) as u64;
        let weights = || few.iter().map(|index| u64::from(self.set.look(index).weight));
        let total = if self.set.is_weighted() { weights().sum() } else { 0 };
        if total == 0 {
            return few.at(scaled(few.len() as u64) as usize);
        }
        let mut left = scaled(total);
        let place = weights().position(|weight| {
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        });
        few.at(place.unwrap_or(0))
    }

    /// All candidates.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = usize> {
        let count = self.few.as_ref().map_or(self.set.len(), Few::len);
        (0..count).map(|place| self.few.as_ref().map_or(place, |few| few.at(place)))
    }

    /// Looks at all candidates: two different ones at random of the best rank there is.
    pub(crate) fn two_of_the_best_rank(
        &self,
        rng: &mut impl Rng,
    ) -> Result<(usize, Option<usize>), NoEndpoint> {
        let (mut best, mut found, mut chosen) = (Rank::Out, 0u64, [0usize; 2]);
        for index in self.candidates() {
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

    /// Whether a candidate, still the one at that place, may be chosen without looking further; `near`: in this host's zone.
    pub(crate) fn takes(&self, index: usize, serial: u64, near: bool) -> bool {
        index < self.set.len()
            && self.set.look(index).state.serial == serial
            && (!near || self.set.look(index).near == Some(true))
            && self.few.as_ref().is_none_or(|few| few.contains(index))
            && self.rank(index) == Rank::Fresh
            && !self.is_suspect(index)
    }

    #[inline]
    pub(crate) fn is_suspect(&self, index: usize) -> bool {
        is_suspect(self.set.look(index).state.stall.silence(self.now), self.attempt)
    }

    #[inline]
    pub(crate) fn rank(&self, index: usize) -> Rank {
        let Look { state, serving, weight, .. } = self.set.look(index);
        // Most are: nothing has ever been held against it.
        if *serving && *weight > 0 && self.tried.is_empty() && state.is_clean() {
            return Rank::Fresh;
        }
        self.rank_in_full(state, *serving, *weight, index)
    }

    fn rank_in_full(&self, state: &State, serving: bool, weight: u32, index: usize) -> Rank {
        if !serving {
            let spec = &self.set[index].spec;
            if spec.preserved && spec.serving {
                // What was tried of these and failed comes after what was not.
                let failed = state.ejection.is_out(self.now)
                    || state.held(self.now)
                    || self.tried.contains(&state.serial);
                return if failed { Rank::PreservedHeld } else { Rank::Preserved };
            }
            return if self.desperate { Rank::NotServing } else { Rank::Out };
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
        if self.probation && state.on_probation.load(Relaxed) {
            return Rank::Slow;
        }
        if weight == 0 || !self.admits(index, state) { Rank::Starting } else { Rank::Fresh }
    }

    /// Slow start: as many of the choices as the endpoint's share by now. One that is used although it is ejected has its full share.
    #[inline]
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

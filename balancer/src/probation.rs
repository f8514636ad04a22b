//! Leaving out an endpoint that is slow, until it is well again.
//!
//! Two choices send a slow endpoint less, but not nothing, and the other ways of choosing do not notice at all. An endpoint goes **on
//! probation** when its typical latency is more than `probation.slower_than` times that of its peers, and is so again, [`LONG_ENOUGH`]
//! later, over [`ANSWERS_MORE`] further answers alone. Then it is chosen only when nothing better is left, and is **probed**: it gets copies of safe
//! requests whose answers nobody waits for, out of the hedge budget. It returns when the probes' answers are well below the threshold. Where
//! copies are not allowed (`hedge.mode` is not `enforce`, or no request may be copied), a few real requests are its probes: one of
//! [`TRIAL_ONE_OF`], and one each [`OVERDUE`] where that is seldom.
//!
//! - *Typical*: the moving average, over the last [`MEMORY`] answers, of the latency's logarithm. A long poll counts as one answer of a few octaves
//!   more; a mean would take it for a thousand answers. An attempt that was given up, because a copy won, counts with [`GIVEN_UP_TIMES`] the
//!   time for which it is known to have waited: else copies would hide who is slow.
//! - *Peers*: the median of those of the same zone that are in rotation and have `probation.min_requests` answers; of an even number the lower
//!   middle. So when all are slow together nobody is, and one that is fast (from a cache, or because it fails) accuses nobody: a
//!   majority does. Other zones are further away, which is no illness. Less than [`DIFFERENCE_MIN`] is never slow: that is network.
//! - *How many*: together with the ejected at most `eject.max` of those that serve, and never more than half; the slowest go first. Panic counts them as
//!   it counts the ejected: when too few are left all are used again.
//! - *How long*: at least [`STAY`] × 2ⁿ, n the times before this one, each [`FORGIVE`] in rotation taking one off. So one that turns
//!   slow again and again is in rotation ever less. On return it starts slowly, and is judged from nothing.
//!
//! Not with `balance: hash`, where endpoints serve different requests and cannot be compared.
//!
//! Ejection is for errors and knows after five of them; this is for what answers, late. The estimate of two choices (`peak_ewma`) would not do
//! instead: it is made to be nervous.
//!
//! Orderings: relaxed. The worker that finds a judgement due makes it; two that overlap would come to the same.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use evenkeel_config::policy::{Balance, Factor, Mode, Policy};

use crate::balancer::{Attempt, Balancer, Wish};
use crate::budget::Budget;
use crate::endpoint::State;
use crate::hedge::Hedger;
use crate::logarithm::{OCTAVE, log2};
use crate::rendezvous::Few;
use crate::set::Set;
use crate::ticket::Ticket;

/// What is known of one endpoint's slowness. Whether it is on probation stands in `State::on_probation`, where choices look.
#[derive(Debug, Default)]
pub(crate) struct Probation {
    /// The average logarithm in octaves as `f32` bits, then the answers counted.
    typical: AtomicU64,
    /// Found slow each time since then; 0: was not.
    slow_since: AtomicU64,
    /// Times on probation that still count: the exponent.
    recent: AtomicU32,
    /// When it last went on probation, or came back.
    turned: AtomicU64,
    /// When the next probe is due.
    probe_at: AtomicU64,
    total: AtomicU64,
}

impl Probation {
    /// An answer came after `latency_ns`; on probation fewer of them are remembered.
    pub(crate) fn answered(&self, latency_ns: u64, on_probation: bool) {
        let sample = log2(latency_ns) as f32 / OCTAVE as f32;
        let memory = if on_probation { MEMORY_OF_PROBES } else { MEMORY };
        let mut word = self.typical.load(Relaxed);
        loop {
            let (octaves, answers) = unpack(word);
            let weight = 1.0 / answers.saturating_add(1).min(memory) as f32;
            let next = pack(octaves + (sample - octaves) * weight, answers.saturating_add(1));
            match self.typical.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// An attempt was given up after `waited_ns` without an answer.
    pub(crate) fn given_up(&self, waited_ns: u64, on_probation: bool) {
        let (octaves, answers) = unpack(self.typical.load(Relaxed));
        let latency_ns = waited_ns.saturating_mul(GIVEN_UP_TIMES);
        if answers > 0 && log2(latency_ns) as f32 / OCTAVE as f32 > octaves {
            self.answered(latency_ns, on_probation);
        }
    }

    /// The typical latency, and from how many answers.
    pub(crate) fn typical(&self) -> (Duration, u32) {
        let (octaves, answers) = unpack(self.typical.load(Relaxed));
        (Duration::from_nanos(f64::from(octaves).exp2() as u64), answers)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    fn recent_at(&self, now: u64) -> u32 {
        let forgiven = now.saturating_sub(self.turned.load(Relaxed)) / FORGIVE;
        self.recent.load(Relaxed).saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// It was found slow: whether it is shows from answers that are yet to come.
    fn suspect(&self, now: u64) {
        self.slow_since.store(now, Relaxed);
        self.typical.store(0, Relaxed);
    }

    fn enter(&self, now: u64) {
        self.recent.store(self.recent_at(now).saturating_add(1), Relaxed);
        self.turned.store(now, Relaxed);
        self.probe_at.store(now, Relaxed);
        self.slow_since.store(0, Relaxed);
        self.typical.store(0, Relaxed);
        self.total.fetch_add(1, Relaxed);
    }

    /// Takes the probe that has been due since `at`; of two workers one gets it.
    fn takes_probe(&self, at: u64, now: u64) -> bool {
        self.probe_at
            .compare_exchange(at, now.saturating_add(PROBE_EVERY), Relaxed, Relaxed)
            .is_ok()
    }

    fn may_return(&self, now: u64) -> bool {
        let exponent = self.recent.load(Relaxed).saturating_sub(1).min(EXPONENT_MAX);
        now.saturating_sub(self.turned.load(Relaxed)) >= STAY << exponent
    }

    fn leave(&self, now: u64) {
        self.turned.store(now, Relaxed);
        self.typical.store(0, Relaxed);
    }
}

/// An upstream's endpoints on probation.
#[derive(Debug, Default)]
pub(crate) struct Probations {
    out: AtomicU32,
    judge_at: AtomicU64,
    /// When to look again for a probe that is due.
    probe_at: AtomicU64,
    /// When to look again for one that is overdue.
    trial_at: AtomicU64,
    entered: AtomicU64,
    left: AtomicU64,
    probes: AtomicU64,
    trials: AtomicU64,
}

/// What probation did since the upstream began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbationCounts {
    /// Endpoints on probation now.
    pub out: u32,
    /// Endpoints that went on probation.
    pub entered: u64,
    /// Endpoints that came back.
    pub left: u64,
    /// Copies sent as probes.
    pub probes: u64,
    /// Requests that were probes themselves.
    pub trials: u64,
}

impl Probations {
    #[inline]
    pub(crate) fn out(&self) -> u32 {
        self.out.load(Relaxed)
    }

    pub(crate) fn counts(&self) -> ProbationCounts {
        ProbationCounts {
            out: self.out(),
            entered: self.entered.load(Relaxed),
            left: self.left.load(Relaxed),
            probes: self.probes.load(Relaxed),
            trials: self.trials.load(Relaxed),
        }
    }

    /// Whether somebody may have to go or to return.
    #[inline]
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.judge_at.load(Relaxed)
    }

    /// Sends on probation who is slow, and takes back who is well. Where the policy has no probation nobody changes: another route's may.
    pub(crate) fn judge(&self, now: u64, set: &Set, policy: &Policy, ejected: u32) {
        let Some(slower_than) = threshold(policy) else { return };
        // Judging costs as much as there are endpoints.
        let every = JUDGE_EVERY * (1 + set.len() as u64 / 1_024);
        if !is_turn(&self.judge_at, now, every) {
            return;
        }
        let octaves_slower = (slower_than.times() as f32).log2();
        let peers = medians(set, policy.probation.min_requests);
        let mut slow: Vec<(f32, usize)> = Vec::new();
        let mut out = 0;
        for index in 0..set.len() {
            let look = set.look(index);
            let state = &*look.state;
            let probation = &state.probation;
            let (octaves, answers) = unpack(probation.typical.load(Relaxed));
            let Some(peers) = peers[set.zone(index)] else {
                // Nobody is left to be slower than.
                if state.on_probation.load(Relaxed) {
                    if probation.may_return(now) {
                        self.take_back(now, state);
                    } else {
                        out += u32::from(look.serving);
                    }
                }
                continue;
            };
            let is_slower =
                octaves > peers + octaves_slower && octaves.exp2() > peers.exp2() + DIFFERENCE_MIN;
            if state.on_probation.load(Relaxed) {
                let is_well = octaves <= peers + octaves_slower * RETURN
                    || octaves.exp2() <= peers.exp2() + DIFFERENCE_MIN;
                if answers >= PROBES_MIN && is_well && probation.may_return(now) {
                    self.take_back(now, state);
                } else {
                    out += u32::from(look.serving);
                }
                continue;
            }
            let since = probation.slow_since.load(Relaxed);
            let least = if since == 0 { policy.probation.min_requests } else { ANSWERS_MORE };
            if !look.serving || answers < least {
                continue;
            }
            if !is_slower {
                probation.slow_since.store(0, Relaxed);
            } else if since == 0 {
                probation.suspect(now);
            } else if now.saturating_sub(since) >= LONG_ENOUGH {
                slow.push((octaves, index));
            }
        }
        slow.sort_by(|one, other| other.0.total_cmp(&one.0));
        let share = (f64::from(set.serving()) * policy.eject.max.as_fraction()).ceil() as u32;
        let room = share.min(set.serving() / 2).saturating_sub(ejected + out);
        for &(_, index) in slow.iter().take(room as usize) {
            let state = &set.look(index).state;
            state.probation.enter(now);
            state.on_probation.store(true, Relaxed);
            self.entered.fetch_add(1, Relaxed);
            out += 1;
        }
        self.out.store(out, Relaxed);
    }

    fn take_back(&self, now: u64, state: &State) {
        if state.on_probation.swap(false, Relaxed) {
            state.probation.leave(now);
            state.estimate.forget();
            state.ramp_from.store(now, Relaxed);
            self.left.fetch_add(1, Relaxed);
        }
    }

    /// The endpoint whose probe has been due for longest, and since when; of those that are due for at least `overdue`, and only among the
    /// `few` of the request's shard: what one key breaks must not get out of its shard by a probe.
    fn due(&self, now: u64, set: &Set, few: Option<&Few>, overdue: u64) -> Option<(u64, usize)> {
        let due = |index: usize| {
            let look = set.look(index);
            let state = &look.state;
            let at = state.probation.probe_at.load(Relaxed);
            let usable = look.serving && !state.ejection.is_out(now) && !state.held(now);
            let waits = state.on_probation.load(Relaxed) && now >= at.saturating_add(overdue);
            (usable && waits).then_some((at, index))
        };
        match few {
            Some(few) => few.iter().filter_map(due).min(),
            None => (0..set.len()).filter_map(due).min(),
        }
    }

    /// The endpoint on probation that a real request is to probe. `random` is spread evenly over all of `u32`.
    pub(crate) fn trial(
        &self,
        now: u64,
        set: &Set,
        few: Option<&Few>,
        policy: &Policy,
        random: u32,
    ) -> Option<usize> {
        let lot = policy.hedge.mode != Mode::Enforce && random < u32::MAX / TRIAL_ONE_OF;
        // To look at a shard costs little, to look at all would cost too much for each request.
        if !lot && few.is_none() && !is_turn(&self.trial_at, now, TRIAL_LOOK_EVERY) {
            return None;
        }
        let (at, index) = self.due(now, set, few, if lot { 0 } else { OVERDUE })?;
        set.look(index).state.probation.takes_probe(at, now).then(|| {
            self.trials.fetch_add(1, Relaxed);
            index
        })
    }
}

impl Balancer {
    /// A ticket for a copy that probes an endpoint on probation, if one is due and the budgets of copies pay for it. To be asked beside
    /// a first attempt that [may be copied](crate::repeat::may_copy), with the same wish; nobody waits for the copy's answer, but its ticket is told of it.
    #[must_use = "dropping the ticket ends the probe"]
    pub fn probe_due(
        &self,
        now: Instant,
        policy: &Policy,
        wish: &Wish<'_>,
        hedger: &Hedger,
        retries: &Budget,
    ) -> Option<Ticket> {
        let on = threshold(policy).is_some() && policy.hedge.mode == Mode::Enforce;
        if !on || self.probations.out() == 0 {
            return None;
        }
        let (set, moment) = (self.endpoints(), self.moment(now));
        let few = wish
            .shard
            .filter(|_| policy.shard.key.is_some())
            .map(|key| set.shard(key, policy.shard.size));
        let every = PROBE_EVERY / u64::from(self.probations.out().max(1));
        if few.is_none() && !is_turn(&self.probations.probe_at, moment, every) {
            return None;
        }
        let (at, index) = self.probations.due(moment, &set, few.as_ref(), 0)?;
        if !hedger.try_probe(now, &policy.hedge, &policy.retry, retries) {
            return None;
        }
        let attempts = self.circuit().attempts();
        if !attempts.try_enter(Attempt::Hedge, policy.circuit.requests, policy.hedge.budget) {
            hedger.refund(now, retries);
            return None;
        }
        if !set.look(index).state.probation.takes_probe(at, moment) {
            // Another worker was quicker.
            attempts.leave(Attempt::Hedge);
            hedger.refund(now, retries);
            return None;
        }
        self.probations.probes.fetch_add(1, Relaxed);
        let near = set.look(index).near;
        Some(Ticket::new(&set[index], moment, &policy.eject, 0, Attempt::Hedge, near))
    }

    /// What probation did since the start.
    #[must_use]
    pub fn probations(&self) -> ProbationCounts {
        self.probations.counts()
    }
}

/// How many times as slow as its peers an endpoint has to be; `None`: there is no probation. With `balance: hash` there is none: whose keys
/// are costly is slow, and whoever got them instead would be next.
#[inline]
pub(crate) fn threshold(policy: &Policy) -> Option<Factor> {
    policy.probation.slower_than.filter(|_| policy.balance != Balance::Hash)
}

/// Whether what is done each `every` is due; of several workers one does it.
fn is_turn(at: &AtomicU64, now: u64, every: u64) -> bool {
    let due = at.load(Relaxed);
    now >= due && at.compare_exchange(due, now.saturating_add(every), Relaxed, Relaxed).is_ok()
}

/// Of each zone the median of those in rotation that can be judged, in octaves; `None` when there is none.
fn medians(set: &Set, min_requests: u32) -> Vec<Option<f32>> {
    let mut zones: Vec<Vec<f32>> = vec![Vec::new(); set.zones()];
    for index in 0..set.len() {
        let look = set.look(index);
        let (octaves, answers) = unpack(look.state.probation.typical.load(Relaxed));
        if look.serving && answers >= min_requests && !look.state.on_probation.load(Relaxed) {
            zones[set.zone(index)].push(octaves);
        }
    }
    let median = |mut peers: Vec<f32>| {
        let middle = peers.len().checked_sub(1)? / 2;
        let (_, median, _) = peers.select_nth_unstable_by(middle, f32::total_cmp);
        Some(*median)
    };
    zones.into_iter().map(median).collect()
}

fn pack(octaves: f32, answers: u32) -> u64 {
    (u64::from(octaves.to_bits()) << 32) | u64::from(answers)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// A second's pause, or a burst, is over before.
const LONG_ENOUGH: u64 = Duration::from_secs(2).as_nanos() as u64;
/// Those before may be from a time when all were slow.
const ANSWERS_MORE: u32 = 16;
/// What was longer without an answer than most, and was given up for another, would have taken much longer.
const GIVEN_UP_TIMES: u64 = 4;
/// Answers that the typical latency goes back; with exponential latencies its error is a quarter of an octave.
const MEMORY: u32 = 32;
const MEMORY_OF_PROBES: u32 = 8;
const PROBES_MIN: u32 = 4;
/// It returns below this part of the threshold, in octaves: below 2.1 times its peers' for 3 times.
const RETURN: f32 = 0.7;
/// In ns.
const DIFFERENCE_MIN: f32 = 1e6;
const JUDGE_EVERY: u64 = Duration::from_millis(250).as_nanos() as u64;
/// Between two probes of one endpoint.
const PROBE_EVERY: u64 = Duration::from_millis(250).as_nanos() as u64;
/// A two-hundredth of the requests does not show at the 99th percentile.
const TRIAL_ONE_OF: u32 = 200;
/// Where requests are few, or none of them may be copied, one is a probe this often.
const OVERDUE: u64 = Duration::from_secs(5).as_nanos() as u64;
const TRIAL_LOOK_EVERY: u64 = Duration::from_secs(1).as_nanos() as u64;
/// The shortest time on probation.
const STAY: u64 = Duration::from_secs(2).as_nanos() as u64;
/// 2 s × 2⁵ is about a minute.
const EXPONENT_MAX: u32 = 5;
const FORGIVE: u64 = Duration::from_secs(60).as_nanos() as u64;

#[cfg(test)]
mod tests;

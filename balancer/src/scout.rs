//! Scouts: what an endpoint's own host says of it, asked for before a request is sent there.
//!
//! A balancer learns of an endpoint by what its own requests come to, so each pause costs one of them. A scout is a question of a few bytes
//! whose answer ([`Report`]) says how busy the application is with *everybody's* requests, how long it takes, and whether it shows life. (LinkedIn's GC
//! scouts, QCon New York 2013, ask before each request; Prequal, NSDI 2024, asks beside them and keeps the answers, see [`Pool`].)
//!
//! What an answer, or its absence, changes here is the endpoint's silence (`stall`), so every way of choosing avoids it:
//!
//! - *alive* ends the silence, as a response's head does;
//! - *stalled*, and a scout that was **lost**, make it a suspect for [`SUSPECT_FOR`]: whoever asks is expected to ask again before that
//!   is over. So the memory of a pause ends with the pause and not when a guess at its length runs out;
//! - *draining* holds the endpoint for [`DRAINING_HOLD`]: the news by gossip takes longer than a datagram.
//!
//! A lost scout is evidence only where scouts are answered at all: not before the first answer, and no longer after [`LOST_MAX`] without one.
//! An older version, a firewall or a full queue must not look like a mesh of stopped processes, nor cost each request a timeout.
//!
//! Does not decide whom to ask, when, or how long to wait: that is the shell's.

mod pool;
mod served;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use evenkeel_config::policy::{Policy, Zone};
use rand::{Rng, RngExt as _};

pub use pool::Pool;
pub use served::{Served, Visit};

use crate::balancer::{Balancer, Wish};
use crate::endpoint::{Endpoint, State};
use crate::epoch::nanos;
use crate::explain::FilterVerdict;
use crate::stall::Silence;

/// What a scout found at an endpoint's host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Its host offers the instance.
    pub known: bool,
    /// Requests in flight at the application, whoever sent them.
    pub in_flight: u32,
    /// What the application takes to a response's head with about as many in flight; `None`: not known.
    pub latency: Option<Duration>,
    /// It has owed an answer for so long, and that is longer than usual.
    pub stalled: Option<Duration>,
    /// It answered the scout itself, or it owes no answer.
    pub alive: bool,
    /// Its host asks not to be chosen.
    pub draining: bool,
}

impl Report {
    /// Whether nothing speaks against sending a request there now.
    #[must_use]
    pub fn welcomes(&self) -> bool {
        self.known && !self.draining && self.stalled.is_none()
    }
}

impl Endpoint {
    /// A scout sent at `asked` was answered.
    pub fn scout_answered(&self, now: Instant, asked: Instant, report: &Report) {
        let state = &self.state;
        let (now, asked) = (state.epoch.moment(now), state.epoch.moment(asked));
        state.scouted.keep(now, report);
        if report.draining {
            state.retry_after.fetch_max(now.saturating_add(DRAINING_HOLD), Relaxed);
        }
        if let Some(age) = report.stalled {
            state.stall.found_silent(
                now.saturating_sub(nanos(age)).max(1),
                now.saturating_add(SUSPECT_FOR),
            );
        } else if report.alive {
            state.stall.found_alive(asked);
        }
    }

    /// A scout sent at `asked` was not answered in time.
    pub fn scout_lost(&self, now: Instant, asked: Instant) {
        let counts = self.answers_scouts(now);
        let state = &self.state;
        let (now, asked) = (state.epoch.moment(now), state.epoch.moment(asked));
        let _ = state.scouted.lost_since.compare_exchange(0, asked, Relaxed, Relaxed);
        if counts {
            state.stall.found_silent(asked, now.saturating_add(SUSPECT_FOR));
        }
    }

    /// Whether its host answers scouts, so that waiting for an answer is worth the time.
    #[must_use]
    pub fn answers_scouts(&self, now: Instant) -> bool {
        let scouted = &self.state.scouted;
        let lost_since = scouted.lost_since.load(Relaxed);
        let now = self.state.epoch.moment(now);
        scouted.answered.load(Relaxed) != 0
            && (lost_since == 0 || now.saturating_sub(lost_since) < LOST_MAX)
    }

    /// Whether a scout welcomed requests within this time, and nothing has spoken against it since.
    #[must_use]
    pub fn welcomed_within(&self, now: Instant, time: Duration) -> bool {
        let scouted = &self.state.scouted;
        let moment = self.state.epoch.moment(now);
        moment.saturating_sub(scouted.answered.load(Relaxed)) < nanos(time)
            && scouted.lost_since.load(Relaxed) == 0
            && !self.seems_silent(now)
            && self.last_report(now).is_some_and(|(report, _)| report.welcomes())
    }

    /// Whether it is under suspicion of having stopped, or due for a trial.
    #[must_use]
    pub fn seems_silent(&self, now: Instant) -> bool {
        let silence = self.state.stall.silence(self.state.epoch.moment(now));
        matches!(silence, Silence::Suspect { .. } | Silence::Trial { .. })
    }

    /// What the last scout found, and how long ago.
    #[must_use]
    pub fn last_report(&self, now: Instant) -> Option<(Report, Duration)> {
        let scouted = &self.state.scouted;
        let answered = scouted.answered.load(Relaxed);
        let age = self.state.epoch.moment(now).saturating_sub(answered);
        (answered != 0).then(|| (scouted.report(), Duration::from_nanos(age)))
    }
}

impl Balancer {
    /// Calls `ask` with up to `count` different serving endpoints that a request may go to, drawn at random by weight, the first in this host's zone;
    /// and with their places in the set and its size.
    pub fn scout_some(
        &self,
        rng: &mut impl Rng,
        policy: &Policy,
        wish: &Wish<'_>,
        count: usize,
        mut ask: impl FnMut(usize, &Arc<Endpoint>, usize),
    ) {
        let set = self.endpoints();
        let key = wish.shard.filter(|_| policy.shard.key.is_some() && !set.is_empty());
        let few = key.map(|key| set.shard(key, policy.shard.size));
        let mut asked = [usize::MAX; SCOUTED_MAX];
        let mut found = 0;
        for _ in 0..if set.is_empty() { 0 } else { DRAWS_MAX } {
            if found == count.min(SCOUTED_MAX) {
                return;
            }
            let near = set.near().filter(|_| found == 0 && policy.zone == Zone::Prefer);
            let index = match &few {
                Some(few) => few.at(rng.random_range(0..few.len())),
                None => near.unwrap_or(set.all()).draw(rng.next_u64()),
            };
            if set[index].spec.in_service() && !asked.contains(&index) {
                asked[found] = index;
                found += 1;
                ask(index, &set[index], set.len());
            }
        }
    }
}

/// What an operator reads of the last scout, if there was one. What it found has gone into the other verdicts; who has never answered
/// is used as if scouts were off.
pub(crate) fn verdict(state: &State, now: u64) -> Option<FilterVerdict> {
    let scouted = &state.scouted;
    let (answered, report) = (scouted.answered.load(Relaxed), scouted.report());
    let lost_since = scouted.lost_since.load(Relaxed);
    if answered == 0 {
        // Nobody asked it, or it was lost each time.
        return (lost_since != 0).then(|| {
            let asked_for = now.saturating_sub(lost_since) as f64 / 1e9;
            let why = format!(
                "has never answered one in time, in {asked_for:.1} s: is its scout port or path right, UDP open, `scout.timeout` long enough?"
            );
            FilterVerdict { filter: "scout", pass: true, why }
        });
    }
    let ago = now.saturating_sub(answered) as f64 / 1e6;
    let latency =
        report.latency.map_or_else(String::new, |latency| format!(", takes {latency:.1?}"));
    let against = match (report.known, report.draining, report.stalled) {
        (false, ..) => ", its host does not offer it".to_owned(),
        (_, true, _) => ", drains".to_owned(),
        (_, _, Some(age)) => format!(", has owed an answer for {age:.1?}"),
        _ => String::new(),
    };
    let silent = now.saturating_sub(lost_since);
    let lost = match silent as f64 / 1e6 {
        _ if lost_since == 0 => String::new(),
        _ if silent >= LOST_MAX => "; answers none any more, which no longer counts".to_owned(),
        ms => format!("; has answered none for {ms:.1} ms"),
    };
    let pass = if lost_since == 0 {
        report.welcomes() || now.saturating_sub(answered) >= DRAINING_HOLD
    } else {
        silent >= LOST_MAX
    };
    let why = format!("{ago:.1} ms ago: {} in flight{latency}{against}{lost}", report.in_flight);
    Some(FilterVerdict { filter: "scout", pass, why })
}

/// The last report and the moments (0: none) around it. A reader may see the load of one report and the verdict of the next: each
/// is a hint on its own.
#[derive(Debug, Default)]
pub(crate) struct Scouted {
    answered: AtomicU64,
    /// The first scout that was lost since the last answer.
    lost_since: AtomicU64,
    /// Requests in flight, then the latency in µs (0: not known).
    load: AtomicU64,
    /// The stall's age in µs (0: none), then the flags.
    verdict: AtomicU64,
}

impl Scouted {
    fn keep(&self, now: u64, report: &Report) {
        let micros = |duration: Option<Duration>| {
            duration.map_or(0, |d| u32::try_from(d.as_micros()).unwrap_or(u32::MAX).max(1))
        };
        let flags = u64::from(report.known)
            | u64::from(report.alive) << 1
            | u64::from(report.draining) << 2;
        let load = u64::from(report.in_flight) << 32 | u64::from(micros(report.latency));
        self.load.store(load, Relaxed);
        self.verdict.store(u64::from(micros(report.stalled)) << 8 | flags, Relaxed);
        self.lost_since.store(0, Relaxed);
        self.answered.store(now, Relaxed);
    }

    fn report(&self) -> Report {
        let (load, verdict) = (self.load.load(Relaxed), self.verdict.load(Relaxed));
        let duration = |micros: u64| (micros > 0).then(|| Duration::from_micros(micros));
        Report {
            known: verdict & 1 != 0,
            alive: verdict & 2 != 0,
            draining: verdict & 4 != 0,
            in_flight: (load >> 32) as u32,
            latency: duration(load & u64::from(u32::MAX)),
            stalled: duration(verdict >> 8),
        }
    }
}

/// Endpoints asked beside one request.
const SCOUTED_MAX: usize = 4;
const DRAWS_MAX: usize = 16;
/// A few times as long as the shell takes to ask again: a pause must not be forgotten because one answer was late.
const SUSPECT_FOR: u64 = 50_000_000;
/// The pauses that scouts are for are shorter; whoever answers no scout for longer has stopped answering scouts.
const LOST_MAX: u64 = 5_000_000_000;
/// By then its record says so, or another scout.
const DRAINING_HOLD: u64 = 1_000_000_000;

#[cfg(test)]
mod tests;

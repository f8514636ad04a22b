//! Whether one request may go now: a GCRA over one atomic.
//!
//! The generic cell rate algorithm (ITU-T I.371) is a token bucket written as one number: the theoretical arrival time (TAT), the
//! moment at which the bucket would be full again. At a pace of one unit each interval T with room for `burst` units, a request of
//! cost c may go if `max(TAT, now) − now + c·T ≤ burst·T`; then TAT moves c·T ahead.
//!
//! Invariant: of any window of length w, at most w/T + burst units are admitted (a request that costs more than the burst needs an
//! empty debt and leaves a longer one, so then the bound has its cost in place of the burst). A full bucket holds at least one unit.
//!
//! Why not a counter for each second: it admits twice the limit around the boundary. Why not a bucket with a refill timer: it needs
//! the timer, and two numbers that change together need a lock.
//!
//! A lease changes while requests run, and capacity moves between hosts. What may go at once stays the same number of *units*, as far as
//! the new burst has room for them: a raise brings a faster pace and no burst that another host has spent already, a cut forgives nothing,
//! and nobody waits out the debt of slow days in their pace. So over all hosts what may go at once never grows by moving. What was
//! reserved or cost more than the burst stays owed, in units too. From [`Pace::STOPPED`] a bucket starts empty. [`Bucket::set_pace`] orders
//! its writes so that a decision between them sees the larger debt. Orderings: relaxed, since the numbers guard no other memory.
//!
//! Why not the debt in units: a bucket that is raised from 10 to 50 of burst would have 40 at once that others have had.
//!
//! What it does not do: it does not queue. [`Bucket::reserve`] says when the request may go, and the caller waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::quantity::Micros;

/// How fast units come, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Ticks for one unit; [`CLOSED`], or 0 for no limit.
    interval: u64,
    /// Ticks that the debt may reach: the burst, and at least one unit.
    room: u64,
}

/// The request may not go now; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When it would be worth trying again if nobody else comes; `None`: not while the pace stays as it is.
    pub retry_after: Option<Duration>,
}

/// One limit, shared by all workers.
#[derive(Debug)]
pub struct Bucket {
    epoch: Instant,
    tat: AtomicU64,
    interval: AtomicU64,
    room: AtomicU64,
}

impl Pace {
    /// Without a limit.
    pub const UNLIMITED: Pace = Pace { interval: 0, room: 0 };
    /// Nothing goes.
    pub const STOPPED: Pace = Pace { interval: CLOSED, room: 0 };

    /// `limit` units in each `per`, of which `burst` may come at once. Slower than a unit in 26 days is stopped.
    #[must_use]
    pub fn new(limit: Micros, per: Duration, burst: Micros) -> Pace {
        if limit.is_zero() || per.is_zero() {
            return Pace::STOPPED;
        }
        let limit = u128::from(limit.micros());
        let scaled = per.as_nanos() * u128::from(TICKS_PER_NANO) * 1_000_000;
        // Rounded up: a pace that is a hair too slow never passes its limit.
        let interval = scaled.div_ceil(limit);
        if interval > u128::from(STEP_MAX) {
            return Pace::STOPPED;
        }
        let interval = interval as u64;
        let room = u128::from(interval) * u128::from(burst.micros()) / 1_000_000;
        let room = u64::try_from(room).unwrap_or(STEP_MAX).clamp(interval, STEP_MAX);
        Pace { interval, room }
    }

    /// Whether nothing goes at this pace.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        self.interval == CLOSED
    }

    /// The theoretical arrival time at another pace: the same number of units may go at once, but for what its room does not hold.
    pub(crate) fn move_debt(self, to: Pace, tat: u64, now: u64) -> u64 {
        let debt = tat.saturating_sub(now);
        let scaled = |ticks: u64| {
            let scaled = u128::from(ticks) * u128::from(to.interval) / u128::from(self.interval);
            u64::try_from(scaled).unwrap_or(STEP_MAX).min(STEP_MAX)
        };
        now + match (self.interval, to.interval) {
            // There is nothing to count units by.
            (_, 0 | CLOSED) => debt.min(STEP_MAX),
            (0, _) => 0,
            (CLOSED, _) => to.room.max(debt.min(STEP_MAX)),
            _ if debt > self.room => to.room + scaled(debt - self.room),
            _ => to.room.saturating_sub(scaled(self.room - debt)),
        }
    }

    /// Admits `cost` units at `now`, or says when they could be.
    #[inline]
    pub(crate) fn advance(
        self,
        tat: &AtomicU64,
        now: u64,
        cost: u32,
        patience: u64,
    ) -> Result<u64, Refused> {
        if self.interval == 0 {
            return Ok(0);
        }
        if self.interval == CLOSED {
            return Err(Refused { retry_after: None });
        }
        let step = self.interval.saturating_mul(u64::from(cost)).min(STEP_MAX);
        let needed = step.min(self.room);
        let mut current = tat.load(Relaxed);
        loop {
            let busy_until = current.max(now);
            let wait = (busy_until - now + needed).saturating_sub(self.room);
            if wait > patience {
                return Err(Refused { retry_after: Some(duration(wait)) });
            }
            match tat.compare_exchange_weak(current, busy_until + step, Relaxed, Relaxed) {
                Ok(_) => return Ok(wait),
                Err(other) => current = other,
            }
        }
    }
}

impl Bucket {
    /// A full bucket; moments are counted from `epoch`.
    #[must_use]
    pub fn new(epoch: Instant, pace: Pace) -> Bucket {
        Bucket {
            epoch,
            tat: AtomicU64::new(0),
            interval: AtomicU64::new(pace.interval),
            room: AtomicU64::new(pace.room),
        }
    }

    /// One that has been used.
    pub(crate) fn used(epoch: Instant, pace: Pace, tat: u64) -> Bucket {
        Bucket { tat: AtomicU64::new(tat), ..Bucket::new(epoch, pace) }
    }

    /// Takes `cost` units now or not at all.
    #[inline]
    pub fn try_acquire(&self, now: Instant, cost: u32) -> Result<(), Refused> {
        self.pace().advance(&self.tat, tick(self.epoch, now), cost, 0).map(|_| ())
    }

    /// Takes `cost` units and says how long to wait before they may be used, at most `patience` (and 26 days).
    pub fn reserve(
        &self,
        now: Instant,
        cost: u32,
        patience: Duration,
    ) -> Result<Duration, Refused> {
        let patience = ticks(patience).min(STEP_MAX);
        self.pace().advance(&self.tat, tick(self.epoch, now), cost, patience).map(duration)
    }

    /// Another pace from now on, at once. For one caller at a time: two that change it together may move the debt twice.
    pub fn set_pace(&self, now: Instant, pace: Pace) {
        let (old, now) = (self.pace(), tick(self.epoch, now));
        let move_debt = || {
            let _ =
                self.tat.try_update(Relaxed, Relaxed, |tat| Some(old.move_debt(pace, tat, now)));
        };
        let set_room = |ticks: u64| self.room.store(ticks, Relaxed);
        // At a slower pace the same units are more ticks. What is less counts first, what is more last.
        if pace.interval > old.interval {
            self.interval.store(pace.interval, Relaxed);
        }
        set_room(pace.room.min(old.room));
        move_debt();
        set_room(pace.room);
        self.interval.store(pace.interval, Relaxed);
    }

    /// What its theoretical arrival time would be at another pace.
    pub(crate) fn tat_at(&self, now: Instant, pace: Pace) -> u64 {
        self.pace().move_debt(pace, self.tat.load(Relaxed), tick(self.epoch, now))
    }

    /// The pace as it is now.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace { interval: self.interval.load(Relaxed), room: self.room.load(Relaxed) }
    }

    /// Whole units that could go at once, and how long until the bucket is full again: what `RateLimit` headers say.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> (u64, Duration) {
        let pace = self.pace();
        let debt = self.tat.load(Relaxed).saturating_sub(tick(self.epoch, now));
        match pace.interval {
            0 => (u64::MAX, Duration::ZERO),
            CLOSED => (0, duration(debt)),
            interval => (pace.room.saturating_sub(debt) / interval, duration(debt)),
        }
    }
}

/// The moment `now` in ticks since `epoch`.
#[inline]
pub(crate) fn tick(epoch: Instant, now: Instant) -> u64 {
    ticks(now.saturating_duration_since(epoch))
}

#[inline]
fn ticks(duration: Duration) -> u64 {
    let nanos = duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()));
    nanos.saturating_mul(TICKS_PER_NANO).min(TICK_MAX)
}

fn duration(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.div_ceil(TICKS_PER_NANO))
}

/// Fine enough that ten million units a second are off by less than 0.02 %, coarse enough for nine years.
const TICKS_PER_NANO: u64 = 64;
/// Later moments count as this one, so that a step can always be added.
const TICK_MAX: u64 = u64::MAX - 4 * STEP_MAX;
/// The longest debt of one request, and the slowest pace: 26 days. It keeps a mistaken cost from closing a bucket for good.
const STEP_MAX: u64 = 1 << 57;
/// The interval of a pace at which nothing goes.
const CLOSED: u64 = u64::MAX;

#[cfg(test)]
mod tests;

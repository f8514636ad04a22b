//! A route's recent latencies: a histogram of the last 20 to 30 seconds, and the quantile that a copy waits for.
//!
//! Three windows of 10 s, the running one included. Buckets are logarithmic with 32 steps an octave (an error of at most 3 %), from 1 µs to
//! 67 s. A sorted sample or a digest would be more exact and need a lock; a hedge's delay does not need more than 3 %.
//!
//! A window is cleared one turn before it is used, while nobody reads or writes it; so counting takes one relaxed increment. After
//! a silence several windows are cleared at once; a sample recorded by another worker at that moment may be lost, which only delays the
//! hundredth sample by one.
//!
//! The quantile is kept for [`REFRESH`] and computed anew by whoever asks then: summing 3 × 736 counters for each request would cost
//! more than the request.
//!
//! Orderings: relaxed; the cached word holds the quantile and which one it is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::epoch::nanos;

/// Latencies of the last 20 to 30 s.
#[derive(Debug)]
pub(crate) struct Latencies {
    windows: [Box<[AtomicU32]>; RING],
    /// The number of the running window, counted from the epoch.
    turn: AtomicU64,
    /// The cached quantile: its hundredths of a percent, then microseconds (0: too few samples).
    cached: AtomicU64,
    /// When the cached quantile is to be computed anew.
    refresh_at: AtomicU64,
}

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies {
            windows: std::array::from_fn(|_| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect()),
            turn: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            refresh_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, now: u64, latency: Duration) {
        let turn = self.turn_to(now);
        self.windows[(turn % RING as u64) as usize][bucket(latency)].fetch_add(1, Relaxed);
    }

    /// The latency that `percent` of the recent ones do not exceed; `None` below [`SAMPLES_MIN`] samples.
    pub(crate) fn quantile(&self, now: u64, percent: f64) -> Option<Duration> {
        let turn = self.turn_to(now);
        let counts = |bucket: usize| {
            (0..READ.min(turn + 1)).map(move |back| {
                self.windows[((turn - back) % RING as u64) as usize][bucket].load(Relaxed)
            })
        };
        let total: u64 = (0..BUCKETS).flat_map(counts).map(u64::from).sum();
        if total < SAMPLES_MIN {
            return None;
        }
        let wanted = ((total as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = (0..BUCKETS).find(|&bucket| {
            seen += counts(bucket).map(u64::from).sum::<u64>();
            seen >= wanted
        });
        Some(upper_bound(reached.unwrap_or(BUCKETS - 1)))
    }

    /// As [`Latencies::quantile`], at most [`REFRESH`] old.
    pub(crate) fn recent_quantile(&self, now: u64, percent: f64) -> Option<Duration> {
        let which = ((percent * 100.0) as u64) << MICROS_BITS;
        let cached = self.cached.load(Relaxed);
        let refresh_at = self.refresh_at.load(Relaxed);
        let fresh = now < refresh_at && cached & !MICROS_MASK == which;
        // Of the workers that find it old, one computes it.
        if fresh
            || self
                .refresh_at
                .compare_exchange(refresh_at, now.saturating_add(REFRESH), Relaxed, Relaxed)
                .is_err()
        {
            let micros = cached & MICROS_MASK;
            return (micros > 0 && cached & !MICROS_MASK == which)
                .then(|| Duration::from_micros(micros));
        }
        let quantile = self.quantile(now, percent);
        self.cached.store(
            which
                | quantile
                    .map_or(0, |quantile| (quantile.as_micros() as u64).clamp(1, MICROS_MASK)),
            Relaxed,
        );
        quantile
    }

    /// Makes the window of `now` the running one, clearing what is reused; returns its number.
    fn turn_to(&self, now: u64) -> u64 {
        let (wanted, mut turn) = (now / WINDOW_NS, self.turn.load(Relaxed));
        while turn < wanted {
            // The next window was cleared a turn ago, when this one began; past it nothing was.
            let stale = if turn + 1 == wanted {
                wanted + 1..=wanted + 1
            } else {
                wanted - READ + 1..=wanted + 1
            };
            if turn + 1 != wanted {
                let keep_from = turn; // windows up to `turn` are still valid where the ring still holds them
                stale.filter(|&window| window > keep_from).for_each(|window| self.clear(window));
            } else {
                stale.for_each(|window| self.clear(window));
            }
            match self.turn.compare_exchange(turn, wanted, Relaxed, Relaxed) {
                Ok(_) => return wanted,
                Err(current) => turn = current,
            }
        }
        turn
    }

    fn clear(&self, window: u64) {
        self.windows[(window % RING as u64) as usize]
            .iter()
            .for_each(|count| count.store(0, Relaxed));
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = (nanos(latency) / 1_000).min(MICROS_MAX) as u32;
    if micros < STEPS {
        return micros as usize;
    }
    let octave = micros.ilog2() - STEPS.ilog2();
    ((octave + 1) * STEPS + (micros >> octave) - STEPS) as usize
}

/// The longest latency that falls into the bucket.
fn upper_bound(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let steps = u64::from(STEPS);
    if bucket < steps {
        return Duration::from_micros(bucket + 1);
    }
    let (octave, step) = (bucket / steps - 1, bucket % steps);
    Duration::from_micros((steps + step + 1) << octave)
}

/// Fewer say nothing about a percentile.
pub(crate) const SAMPLES_MIN: u64 = 100;
const WINDOW_NS: u64 = 10_000_000_000;
/// Windows that count.
const READ: u64 = 3;
/// One more than count: the next, cleared ahead.
const RING: usize = READ as usize + 1;
const STEPS: u32 = 32;
/// 2²⁶ − 1 µs, about 67 s; longer counts as that.
const MICROS_MAX: u64 = (1 << 26) - 1;
const BUCKETS: usize = (STEPS * (26 - STEPS.ilog2() + 1)) as usize;
const REFRESH: u64 = 100_000_000;
const MICROS_BITS: u32 = 48;
const MICROS_MASK: u64 = (1 << MICROS_BITS) - 1;

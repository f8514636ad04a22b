//! A route's recent latencies: a histogram of the last 20 to 30 seconds, and the quantile that a copy waits for.
//!
//! Three windows of 10 s, the running one included. Buckets are logarithmic with 32 steps an octave (an error of at most 3 %), from 1 µs to
//! 67 s. A sorted sample or a digest would be more exact and need a lock; a hedge's delay does not need more than 3 %.
//!
//! A window is cleared one turn before it is used, while nobody reads or writes it; so counting takes one relaxed increment. After
//! a silence several windows are cleared at once; a sample recorded by another worker at that moment may be lost, which only delays the
//! hundredth sample by one.
//!
//! What is late is kept for [`REFRESH`] and computed anew by whoever asks then: summing 3 × 704 counters for each request would cost
//! more than the request.
//!
//! Orderings: relaxed; the cached word holds the quantile and which one it is.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::epoch::nanos;

/// Latencies of the last 20 to 30 s.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// Made by the first latency: most routes of most services are never used by a host.
    windows: OnceLock<[Box<[AtomicU32]>; RING]>,
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
            windows: OnceLock::new(),
            turn: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            refresh_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, now: u64, latency: Duration) {
        let turn = self.turn_to(now);
        let windows = self.windows.get_or_init(|| {
            std::array::from_fn(|_| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect())
        });
        windows[(turn % RING as u64) as usize][bucket(latency)].fetch_add(1, Relaxed);
    }

    /// The latency that `percent` of the recent ones do not exceed; `None` below [`SAMPLES_MIN`] samples.
    pub(crate) fn quantile(&self, now: u64, percent: f64) -> Option<Duration> {
        self.counts(now).map(|counts| counts.quantile(percent))
    }

    /// The latency from which on a request is late: the quantile, but at most [`MEDIANS_MAX`] times the median. At most [`REFRESH`] old.
    pub(crate) fn late_after(&self, now: u64, percent: f64) -> Option<Duration> {
        let which = ((percent.clamp(0.0, 100.0) * 100.0) as u64) << MICROS_BITS;
        let cached = self.cached.load(Relaxed);
        let refresh_at = self.refresh_at.load(Relaxed);
        let known = cached & !MICROS_MASK == which;
        let refresh = || {
            self.refresh_at.compare_exchange(
                refresh_at,
                now.saturating_add(REFRESH),
                Relaxed,
                Relaxed,
            )
        };
        // Of the workers that find it old, one computes it anew.
        if (known && now < refresh_at) || refresh().is_err() {
            let micros = cached & MICROS_MASK;
            return (known && micros > 0).then(|| Duration::from_micros(micros));
        }
        let late = self
            .counts(now)
            .map(|counts| counts.quantile(percent).min(counts.quantile(50.0) * MEDIANS_MAX));
        let micros = late.map_or(0, |late| (late.as_micros() as u64).clamp(1, MICROS_MASK));
        self.cached.store(which | micros, Relaxed);
        late
    }

    /// The recent ones; `None` below [`SAMPLES_MIN`].
    pub(crate) fn counts(&self, now: u64) -> Option<Counts> {
        let turn = self.turn_to(now);
        let windows = self.windows.get()?;
        let mut counts = [0u64; BUCKETS];
        for back in 0..READ.min(turn + 1) {
            let window = &windows[((turn - back) % RING as u64) as usize];
            for (sum, count) in counts.iter_mut().zip(window) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        let total = counts.iter().sum();
        (total >= SAMPLES_MIN).then_some(Counts { counts, total })
    }

    /// Makes the window of `now` the running one, clearing what is reused; returns its number.
    fn turn_to(&self, now: u64) -> u64 {
        let (wanted, mut turn) = (now / WINDOW_NS, self.turn.load(Relaxed));
        while turn < wanted {
            // The window after `turn` was cleared when `turn` began.
            let first = (turn + 2).max((wanted + 2).saturating_sub(RING as u64));
            for window in first..=wanted + 1 {
                let windows = self.windows.get();
                let reused = windows.map(|windows| &windows[(window % RING as u64) as usize]);
                reused.into_iter().flatten().for_each(|count| count.store(0, Relaxed));
            }
            match self.turn.compare_exchange(turn, wanted, Relaxed, Relaxed) {
                Ok(_) => return wanted,
                Err(current) => turn = current,
            }
        }
        turn
    }
}

/// The recent windows together.
pub(crate) struct Counts {
    counts: [u64; BUCKETS],
    pub(crate) total: u64,
}

impl Counts {
    /// The share of them that took longer, to the bucket's precision.
    pub(crate) fn share_above(&self, latency: Duration) -> f64 {
        let above: u64 = self.counts[bucket(latency).min(BUCKETS - 1) + 1..].iter().sum();
        above as f64 / self.total as f64
    }

    pub(crate) fn quantile(&self, percent: f64) -> Duration {
        let wanted = ((self.total as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        upper_bound(reached.unwrap_or(BUCKETS - 1))
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
pub(crate) fn upper_bound(bucket: usize) -> Duration {
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
/// What takes 16 times the median is late whatever the percentile says. An exponential distribution has its p99.9 at ten medians; beyond
/// that two kinds of answers are mixed, and if the slow kind is more than the percentile leaves over (replicas that
/// pause a tenth of the time, before anything is done about it), the percentile lies within the slow kind and would keep it there.
const MEDIANS_MAX: u32 = 16;
const WINDOW_NS: u64 = 10_000_000_000;
/// Windows that count.
const READ: u64 = 3;
/// One more than count: the next, cleared ahead.
const RING: usize = READ as usize + 1;
const STEPS: u32 = 32;
/// 2²⁶ − 1 µs, about 67 s; longer counts as that.
const MICROS_MAX: u64 = (1 << 26) - 1;
pub(crate) const BUCKETS: usize = (STEPS * (26 - STEPS.ilog2() + 1)) as usize;
const REFRESH: u64 = 100_000_000;
const MICROS_BITS: u32 = 48;
const MICROS_MASK: u64 = (1 << MICROS_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn filled(now: u64, micros: impl IntoIterator<Item = u64>) -> Latencies {
        let latencies = Latencies::new();
        micros.into_iter().for_each(|micros| latencies.record(now, Duration::from_micros(micros)));
        latencies
    }

    #[test]
    fn quantiles_are_within_three_percent() {
        let latencies = filled(S, (1..=10_000).map(|n| n * 10));
        for (percent, expected) in
            [(1.0, 1_000.0), (50.0, 50_000.0), (95.0, 95_000.0), (99.9, 99_900.0)]
        {
            let actual = latencies.quantile(S, percent).unwrap().as_micros() as f64;
            assert!((actual / expected - 1.0).abs() < 0.035, "p{percent}: {actual} for {expected}");
        }
    }

    #[test]
    fn a_hundred_samples_are_needed_and_are_forgotten_after_thirty_seconds() {
        let latencies = filled(S, std::iter::repeat_n(500, 99));
        assert_eq!(latencies.quantile(S, 50.0), None);
        assert_eq!(latencies.late_after(S, 95.0), None);
        latencies.record(S, Duration::from_micros(500));
        assert!(latencies.quantile(S, 50.0).is_some());
        assert!(latencies.quantile(29 * S, 50.0).is_some());
        assert_eq!(latencies.quantile(30 * S, 50.0), None);
        assert_eq!(latencies.quantile(1_000 * S, 50.0), None);
    }

    #[test]
    fn a_window_that_is_used_again_is_empty() {
        for gap in [10, 20, 30, 40, 70, 1_000] {
            let latencies = filled(S, std::iter::repeat_n(50_000, 1_000));
            for turn in 1..=4 {
                let now = S + turn * gap * S;
                (0..200).for_each(|_| latencies.record(now, Duration::from_micros(100)));
            }
            let p99 = latencies.quantile(S + 4 * gap * S, 99.0).unwrap();
            assert!(p99 < Duration::from_micros(110), "after gaps of {gap} s: {p99:?}");
        }
    }

    #[test]
    fn what_is_late_follows_the_percentile_asked_for_and_at_most_sixteen_medians() {
        let latencies = filled(S, (1..=1_000).map(|n| n * 10));
        let p95 = latencies.late_after(S, 95.0).unwrap();
        assert_eq!(Some(p95), latencies.quantile(S, 95.0));
        assert_eq!(
            latencies.late_after(S, 50.0),
            latencies.quantile(S, 50.0),
            "another percentile is not answered from the cache"
        );
        let stalling = filled(S, (0..1_000).map(|n| if n % 10 == 0 { 90_000 } else { 300 }));
        assert!(stalling.late_after(S, 95.0).unwrap() < Duration::from_millis(6));
    }

    #[test]
    fn what_is_late_is_refreshed() {
        let latencies = filled(S, std::iter::repeat_n(100, 100));
        let before = latencies.late_after(S, 95.0);
        (0..10_000).for_each(|_| latencies.record(S, Duration::from_micros(900)));
        assert_eq!(latencies.late_after(S + REFRESH - 1, 95.0), before);
        assert!(latencies.late_after(S + REFRESH, 95.0) > before);
    }

    proptest! {
        #[test]
        fn a_latency_is_below_its_buckets_bound(nanos in any::<u64>()) {
            let latency = Duration::from_nanos(nanos);
            let bound = upper_bound(bucket(latency));
            let micros = (nanos / 1_000).min(MICROS_MAX);
            prop_assert!(bound > Duration::from_micros(micros));
            prop_assert!(bound.as_micros() as u64 <= micros + micros / 16 + 1);
        }
    }
}

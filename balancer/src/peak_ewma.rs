//! How long an endpoint takes to answer: the peak-sensitive moving average of the time to the response's head.
//!
//! A sample above the estimate replaces it; a lower one pulls it down with weight 1 − e^(−Δt/τ), Δt since the sample before. So one
//! slow answer counts at once and many fast ones are needed to forget it. (Finagle's peak EWMA.) A plain average is the
//! obvious alternative: it needs several slow answers, each of them somebody's request, before it moves away.
//!
//! Invariants: the estimate is finite and above 0. Reading changes nothing; a reader sees the estimate *aged* by e^(−Δt/τ), so an
//! endpoint that was slow and is therefore not chosen becomes cheap enough to be tried again after τ·ln(how many times slower).
//! Failures are no samples: a fast error would make the worst endpoint look the best (see `endpoint::FailureBias`).
//!
//! Estimate and time of the last sample share one atomic, so a reader never sees one without the other. The time is kept in
//! ticks of 2²⁰ ns (about 1 ms) in 32 bits: below a tick, samples lower than the estimate change nothing, which loses only a random part of
//! them; an endpoint without samples for 26 to 52 days is read as if it had just answered.
//!
//! Orderings: relaxed; the word carries all it says.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// 0: no sample yet. Else the estimate in ns as `f32` bits, then the tick of the last sample.
#[derive(Debug, Default)]
pub(crate) struct PeakEwma(AtomicU64);

impl PeakEwma {
    /// An answer came at the moment `now` after `latency_ns`.
    pub(crate) fn observe(&self, now: u64, latency_ns: u64) {
        let sample = latency_ns.clamp(1, LATENCY_NS_MAX) as f32;
        let tick = tick(now);
        let mut word = self.0.load(Relaxed);
        loop {
            let next = match unpack(word) {
                Some((estimate, last)) if sample <= estimate => {
                    let weight = remaining(last, tick);
                    pack(
                        sample + (estimate - sample) * weight,
                        if weight < 1.0 { tick } else { last },
                    )
                }
                _ => pack(sample, tick),
            };
            if next == word {
                return;
            }
            match self.0.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// An attempt that has not been answered has waited for so long: a peak it is already, whatever it will be.
    pub(crate) fn observe_at_least(&self, now: u64, waited_ns: u64) {
        if unpack(self.0.load(Relaxed)).is_some_and(|(estimate, _)| waited_ns as f32 > estimate) {
            self.observe(now, waited_ns);
        }
    }

    /// The endpoint was asked and failed: its estimate does not age meanwhile, or it would look ever faster.
    pub(crate) fn refresh(&self, now: u64) {
        let word = self.0.load(Relaxed);
        if let Some((estimate, last)) = unpack(word) {
            let tick = tick(now);
            if remaining(last, tick) < 1.0 {
                // Lost to a sample of another worker at the same time: that one is as fresh.
                let _ = self.0.compare_exchange(word, pack(estimate, tick), Relaxed, Relaxed);
            }
        }
    }

    /// What was learnt no longer holds.
    pub(crate) fn forget(&self) {
        self.0.store(0, Relaxed);
    }

    /// The estimate in ns as the last sample left it, for people: aged, it would say that an endpoint nobody asks
    /// answers at once.
    /// `None` where the last sample is older than [`RECENT_TICKS`], or there is none.
    pub(crate) fn recent(&self, now: u64) -> Option<f32> {
        let (estimate, last) = unpack(self.0.load(Relaxed))?;
        let ticks = tick(now).wrapping_sub(last) as i32;
        (ticks < RECENT_TICKS).then_some(estimate)
    }

    /// The estimate in ns, aged to the moment `now`; `None` before the first sample.
    pub(crate) fn read(&self, now: u64) -> Option<f32> {
        let (estimate, last) = unpack(self.0.load(Relaxed))?;
        Some((estimate * remaining(last, tick(now))).max(1.0))
    }
}

fn pack(estimate: f32, tick: u32) -> u64 {
    (u64::from(estimate.to_bits()) << 32) | u64::from(tick)
}

fn unpack(word: u64) -> Option<(f32, u32)> {
    (word != 0).then(|| (f32::from_bits((word >> 32) as u32), word as u32))
}

fn tick(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// e^(−Δt/τ); 1 when `now` is not after `last`.
fn remaining(last: u32, now: u32) -> f32 {
    let ticks = now.wrapping_sub(last) as i32;
    let x = ticks as f32 * DECAY_PER_TICK;
    match ticks {
        ..=0 => 1.0,
        // Half a second: the series is exact to 2 in 100,000 and much cheaper.
        1..=512 => 1.0 - x + x * x * 0.5,
        _ => (-x).exp(),
    }
}

const TICK_BITS: u32 = 20;
/// τ = 10 s: long enough that an endpoint which is slow now and then is known for it, short enough that a recovered one is back
/// within a minute.
const DECAY_PER_TICK: f32 = (1u64 << TICK_BITS) as f32 / 10e9;
/// 30 s, three times τ: after that hardly anything is left of an estimate that comparisons use.
const RECENT_TICKS: i32 = (30_000_000_000u64 >> TICK_BITS) as i32;
/// An hour. Keeps the estimate finite whatever comes in.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    fn near(actual: Option<f32>, expected: f64) {
        let actual = f64::from(actual.expect("a sample was given"));
        assert!((actual - expected).abs() <= expected * 0.01, "{actual} is not near {expected}");
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let ewma = PeakEwma::default();
        assert_eq!(ewma.read(S), None);
        ewma.observe(S, 2 * MS);
        near(ewma.read(S), 2e6);
        ewma.observe(S + 10 * MS, 50 * MS);
        near(ewma.read(S + 10 * MS), 50e6);
        ewma.observe(S + 20 * MS, 2 * MS);
        near(ewma.read(S + 20 * MS), 50e6 - 48e6 * 0.001);
        ewma.observe(S + 20 * MS + 10 * S, 2 * MS);
        near(ewma.read(S + 20 * MS + 10 * S), 2e6 + 48e6 * (-1.0f64).exp());
    }

    #[test]
    fn reading_ages_but_changes_nothing() {
        let ewma = PeakEwma::default();
        ewma.observe(S, 8 * MS);
        for _ in 0..1_000 {
            near(ewma.read(11 * S), 8e6 * (-1.0f64).exp());
        }
        near(ewma.read(S), 8e6);
        ewma.observe(2 * S, 9 * MS);
        near(ewma.read(S), 9e6);
    }

    #[test]
    fn what_people_see_does_not_age_but_ends() {
        let ewma = PeakEwma::default();
        assert_eq!(ewma.recent(S), None);
        ewma.observe(S, 8 * MS);
        near(ewma.recent(S), 8e6);
        near(ewma.recent(30 * S), 8e6);
        assert_eq!(ewma.recent(32 * S), None);
        ewma.observe(32 * S, 2 * MS);
        assert!(ewma.recent(32 * S).is_some());
    }

    #[test]
    fn many_samples_within_a_tick_do_not_stop_the_decay() {
        let ewma = PeakEwma::default();
        ewma.observe(S, 100 * MS);
        let mut now = S;
        while now < 11 * S {
            now += 50_000;
            ewma.observe(now, MS);
        }
        near(ewma.read(now), 1e6 + 99e6 * (-1.0f64).exp());
    }

    proptest! {
        #[test]
        fn the_estimate_stays_finite_and_between_the_samples(samples in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50)) {
            let ewma = PeakEwma::default();
            let (mut lowest, mut highest) = (f32::MAX, 0.0f32);
            for (now, latency) in samples {
                ewma.observe(now, latency);
                let bounded = latency.clamp(1, LATENCY_NS_MAX) as f32;
                (lowest, highest) = (lowest.min(bounded), highest.max(bounded));
                let (estimate, _) = unpack(ewma.0.load(Relaxed)).expect("a sample was given");
                prop_assert!(estimate.is_finite() && estimate >= lowest * 0.999 && estimate <= highest, "{estimate} outside {lowest}..={highest}");
                let aged = ewma.read(now).expect("a sample was given");
                prop_assert!(aged >= 1.0 && aged <= estimate.max(1.0));
            }
        }
    }
}

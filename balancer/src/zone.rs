//! Preferring this host's zone: how much of the load stays, and how much goes elsewhere.
//!
//! Requests stay in the zone as long as that is not slower. The rest, the **spill**, chooses among all endpoints alike. Its share is not
//! computed from how many endpoints there are, as a control plane would: it is *felt*. Each tenth of a second the typical latency here and
//! elsewhere are compared, and the share grows while here is slower by more than a handicap, and shrinks while it is not. So it settles
//! where the zone takes what it can, whatever the reason that it can take no more: too few endpoints, slow ones, or the load of other clients,
//! which nobody tells us about.
//!
//! - *Typical* is the mean of the logarithm: some long polls, or one slow answer, hardly move it, a queue moves all answers.
//! - It is an *integral* of the difference and not the difference: that would need the zone to stay slower for as long as anything spills. Since it moves
//!   by little at a time, clients neither leave a failing zone nor return to it all at once.
//! - A little spills always ([`SHARE_MIN`]): else nobody would know how fast it is elsewhere.
//! - What cannot wait for the integral does not: when the candidate of the zone is silent, or would cost [`MUCH`] times what one drawn from all costs,
//!   the latter is taken. A zone that fails as a whole has no candidates, and all of its load goes evenly to the others.
//!
//! The latency that the network adds between zones is in the samples, so a fast service spills later than a slow one, as it should.
//!
//! Copies and retries are not bound to the zone: they look for independence of what failed.
//!
//! Orderings: relaxed; a tally's count and sum are one word. The worker that finds an adjustment due makes it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::logarithm::{OCTAVE, log2};

/// The share of an upstream's first attempts that leave the zone.
#[derive(Debug)]
pub(crate) struct Spill {
    near: Tally,
    far: Tally,
    due: AtomicU64,
    /// Of [`WHOLE`].
    share: AtomicU32,
}

impl Default for Spill {
    fn default() -> Self {
        Spill {
            near: Tally::default(),
            far: Tally::default(),
            due: AtomicU64::new(0),
            share: AtomicU32::new(SHARE_MIN),
        }
    }
}

impl Spill {
    /// An answer came, from the zone or from another.
    pub(crate) fn answered(&self, near: bool, latency_ns: u64) {
        if near { self.near.add(latency_ns) } else { self.far.add(latency_ns) }
    }

    /// Whether this choice spills; `random` is spread evenly over all of `u32`.
    #[inline]
    pub(crate) fn spills(&self, now: u64, random: u32) -> bool {
        if now >= self.due.load(Relaxed) {
            self.adjust(now);
        }
        random >> (32 - WHOLE.ilog2()) < self.share.load(Relaxed)
    }

    /// The share that spills.
    pub(crate) fn share(&self) -> f64 {
        f64::from(self.share.load(Relaxed)) / f64::from(WHOLE)
    }

    fn adjust(&self, now: u64) {
        let due = self.due.load(Relaxed);
        let next = now.saturating_add(EVERY);
        if now < due || self.due.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let (Some(near), Some(far)) = (self.near.mean(NEAR_MIN), self.far.mean(FAR_MIN)) else {
            return;
        };
        self.near.clear();
        self.far.clear();
        let slower = (near - far - HANDICAP).clamp(-SLOWER_MAX, SLOWER_MAX);
        let step = (slower * GAIN * f64::from(WHOLE)) as i32;
        let share = self.share.load(Relaxed).saturating_add_signed(step);
        self.share.store(share.clamp(SHARE_MIN, WHOLE), Relaxed);
    }
}

/// A count, then a sum of logarithms.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl Tally {
    /// Where no zone is preferred nobody takes stock: then it is full after a while, and stays so.
    fn add(&self, latency_ns: u64) {
        if self.0.load(Relaxed) & COUNT_MASK < COUNT_MAX {
            self.0.fetch_add((u64::from(log2(latency_ns)) << COUNT_BITS) | 1, Relaxed);
        }
    }

    /// In octaves, from `least` answers on.
    fn mean(&self, least: u64) -> Option<f64> {
        let word = self.0.load(Relaxed);
        let count = word & COUNT_MASK;
        (count >= least).then(|| (word >> COUNT_BITS) as f64 / count as f64 / f64::from(OCTAVE))
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

const WHOLE: u32 = 1 << 16;
/// A thirty-second: with three zones two percent of the requests leave theirs to look.
const SHARE_MIN: u32 = WHOLE / 32;
const EVERY: u64 = 100_000_000;
/// Answers of the zone, and of others, without which nothing is compared.
const NEAR_MIN: u64 = 50;
const FAR_MIN: u64 = 20;
/// In octaves: a fifth slower is as good as elsewhere.
const HANDICAP: f64 = 0.25;
/// A tenth of a second at twice as slow takes a twentieth of the load away.
const GAIN: f64 = 0.05;
/// In octaves.
const SLOWER_MAX: f64 = 2.0;
/// So many times as expensive as elsewhere is not waited for.
pub(crate) const MUCH: f32 = 16.0;
/// Of a tally; the sum of as many logarithms fits the rest.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Answers that a tally holds: as many more as there are workers may slip in.
const COUNT_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Ten adjustments with these latencies.
    fn second(spill: &Spill, from: u64, near_ns: u64, far_ns: u64) -> f64 {
        for step in 0..10 {
            (0..NEAR_MIN).for_each(|_| spill.answered(true, near_ns));
            (0..FAR_MIN).for_each(|_| spill.answered(false, far_ns));
            spill.spills(from + step * EVERY, 0);
        }
        spill.share()
    }

    #[test]
    fn it_grows_while_the_zone_is_slower_and_shrinks_while_it_is_not() {
        let spill = Spill::default();
        let least = spill.share();
        assert_eq!(second(&spill, 1_000 * MS, MS, MS), least);
        assert_eq!(second(&spill, 2_000 * MS, 110 * MS / 100, MS), least, "within the handicap");
        let grown = second(&spill, 3_000 * MS, 2 * MS, MS);
        assert!((0.2..0.6).contains(&grown), "{grown}");
        assert_eq!(second(&spill, 4_000 * MS, 16 * MS, MS), 1.0);
        let shrunk = second(&spill, 5_000 * MS, MS, MS);
        assert!((0.8..0.95).contains(&shrunk), "slowly: {shrunk}");
        (6..40).for_each(|at| _ = second(&spill, at * 1_000 * MS, MS, MS));
        assert_eq!(spill.share(), least);
    }

    #[test]
    fn few_answers_and_two_workers_change_nothing() {
        let spill = Spill::default();
        (0..1_000).for_each(|_| spill.answered(true, 100 * MS));
        (0..FAR_MIN - 1).for_each(|_| spill.answered(false, MS));
        spill.spills(1_000 * MS, 0);
        assert_eq!(spill.share(), Spill::default().share());
        spill.answered(false, MS);
        spill.spills(1_050 * MS, 0);
        assert_eq!(spill.share(), Spill::default().share(), "not due yet");
        spill.spills(1_100 * MS, 0);
        let once = spill.share();
        assert!(once > Spill::default().share());
        spill.spills(1_100 * MS, 0);
        assert_eq!(spill.share(), once);
    }

    /// Under `zone: any` answers are counted and nobody clears them.
    #[test]
    fn a_tally_that_nobody_clears_stays_right() {
        let tally = Tally::default();
        let largest = Tally::default();
        for _ in 0..COUNT_MAX + 5 {
            tally.add(4 * MS);
            largest.add(u64::MAX);
        }
        let octaves = tally.mean(NEAR_MIN).expect("many");
        assert!((octaves - (4.0 * MS as f64).log2()).abs() < 0.15, "{octaves}");
        assert!(largest.mean(NEAR_MIN).is_some_and(|octaves| octaves > 39.0), "no overflow");
        assert_eq!(tally.0.load(Relaxed) & COUNT_MASK, COUNT_MAX);
    }

    #[test]
    fn the_share_is_what_spills() {
        let spill = Spill::default();
        spill.share.store(WHOLE / 4, Relaxed);
        let spilt = (0..1u32 << 16).filter(|&step| spill.spills(1, step << 16)).count();
        assert_eq!(spilt, 1 << 14);
        spill.share.store(WHOLE, Relaxed);
        assert!(spill.spills(1, u32::MAX) && spill.spills(1, 0));
    }
}

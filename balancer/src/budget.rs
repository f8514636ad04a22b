//! How many extra attempts the requests of the last ten seconds pay for.
//!
//! Retries turn a brown-out into an outage: three layers that each try four times send 64 attempts. A budget ties them to the traffic: at
//! any moment, withdrawals of the last 10 s ≤ `share` of the requests of the last 10 s + a floor for quiet services.
//! (Finagle's retry budget.) A fixed number of retries for each request is the obvious alternative; it multiplies load exactly when
//! everything fails.
//!
//! Invariant, for any interval of 10 s that ends with a withdrawal: withdrawals in it ≤ share × requests in it + 10 × floor.
//! Time is cut into quarters of a second, and the running one is incomplete at both ends; so withdrawals are summed over 41 slots (at
//! least the last 10 s) and requests over 40 (at most the last 10 s). The price: at a steady rate a fortieth of the share stays unused.
//!
//! Orderings: relaxed. A withdrawal is written before it is checked and taken back when it was too much, so two workers cannot both
//! take the last one (both may be refused).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use evenkeel_config::policy::Share;

use crate::epoch::Epoch;

/// A budget, shared by all workers.
#[derive(Debug)]
pub struct Budget {
    epoch: Epoch,
    requests: Slots,
    withdrawals: Slots,
}

impl Budget {
    /// A budget without requests yet; moments are counted from `epoch`.
    #[must_use]
    pub fn new(epoch: Instant) -> Budget {
        Budget {
            epoch: Epoch::new(epoch),
            requests: Slots::default(),
            withdrawals: Slots::default(),
        }
    }

    /// A request came: its first attempt pays in.
    pub fn request(&self, now: Instant) {
        self.requests.add(self.tick(now));
    }

    /// One extra attempt, if the last 10 s pay for it.
    #[must_use]
    pub fn withdraw(&self, now: Instant, share: Share, floor_per_sec: u32) -> bool {
        let tick = self.tick(now);
        self.withdrawals.add(tick);
        let allowed = self.requests.sum(tick, WINDOW) as f64 * share.as_fraction()
            + f64::from(floor_per_sec) * WINDOW_SECS;
        let within = self.withdrawals.sum(tick, WINDOW + 1) as f64 <= allowed;
        if !within {
            self.withdrawals.take_back(tick);
        }
        within
    }

    /// Gives back a withdrawal that was not used.
    pub fn refund(&self, now: Instant) {
        self.withdrawals.take_back(self.tick(now));
    }

    /// Requests and withdrawals of the last 10 s.
    #[must_use]
    pub fn recent(&self, now: Instant) -> (u64, u64) {
        let tick = self.tick(now);
        (self.requests.sum(tick, WINDOW), self.withdrawals.sum(tick, WINDOW))
    }

    fn tick(&self, now: Instant) -> u32 {
        (self.epoch.moment(now) / TICK_NS) as u32
    }
}

/// Counts of the last ticks: each slot holds the tick it counts, then the count.
#[derive(Debug)]
struct Slots([AtomicU64; SLOTS]);

impl Default for Slots {
    fn default() -> Self {
        Slots(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Slots {
    fn add(&self, tick: u32) {
        let slot = self.slot(tick);
        let mut word = slot.load(Relaxed);
        loop {
            // A worker whose clock is a little behind adds to the newer tick that has the slot by now.
            let next = if is_before(stamp(word), tick) {
                pack(tick, 1)
            } else {
                pack(stamp(word), count(word).saturating_add(1))
            };
            match slot.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    fn take_back(&self, tick: u32) {
        let _ = self
            .slot(tick)
            .try_update(Relaxed, Relaxed, |word| (count(word) > 0).then(|| word - 1));
    }

    /// Of `tick` and those before it, `slots` in all.
    fn sum(&self, tick: u32, slots: usize) -> u64 {
        let words = self.0.iter().map(|slot| slot.load(Relaxed));
        words
            .filter(|&word| !is_before(stamp(word), tick.saturating_sub(slots as u32 - 1)))
            .map(|word| u64::from(count(word)))
            .sum()
    }

    fn slot(&self, tick: u32) -> &AtomicU64 {
        &self.0[tick as usize % SLOTS]
    }
}

fn is_before(stamp: u32, tick: u32) -> bool {
    stamp < tick
}

fn pack(tick: u32, count: u32) -> u64 {
    (u64::from(tick) << 32) | u64::from(count)
}

fn stamp(word: u64) -> u32 {
    (word >> 32) as u32
}

fn count(word: u64) -> u32 {
    word as u32
}

/// Requests pay for so long.
const WINDOW_SECS: f64 = 10.0;
/// The same in ticks.
const WINDOW: usize = 40;
const TICK_NS: u64 = 250_000_000;
const SLOTS: usize = WINDOW + 2;
/// The floor of a retry budget: a service with a request a minute may retry too.
pub const RETRY_FLOOR_PER_SEC: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_share_of_the_requests_and_no_more() {
        let t0 = start();
        let budget = Budget::new(t0);
        assert!(!budget.withdraw(t0, Share::percent(20), 0), "nothing was paid in");
        (0..100).for_each(|_| budget.request(t0));
        assert_eq!((0..100).filter(|_| budget.withdraw(t0, Share::percent(20), 0)).count(), 20);
        assert_eq!(budget.recent(t0), (100, 20));
        let later = t0 + Duration::from_secs(11);
        assert!(
            !budget.withdraw(later, Share::percent(20), 0),
            "requests of eleven seconds ago pay for nothing"
        );
        assert!(budget.withdraw(later, Share::percent(20), 1), "the floor pays");
    }

    #[test]
    fn the_floor_lets_a_quiet_service_retry() {
        let t0 = start();
        let budget = Budget::new(t0);
        assert_eq!(
            (0..1_000)
                .filter(|_| budget.withdraw(t0, Share::percent(20), RETRY_FLOOR_PER_SEC))
                .count(),
            100
        );
    }

    #[test]
    fn a_refund_can_be_withdrawn_again() {
        let t0 = start();
        let budget = Budget::new(t0);
        (0..20).for_each(|_| budget.request(t0));
        assert!(budget.withdraw(t0, Share::percent(5), 0));
        assert!(!budget.withdraw(t0, Share::percent(5), 0));
        budget.refund(t0);
        assert!(budget.withdraw(t0, Share::percent(5), 0));
    }

    #[test]
    fn at_a_steady_rate_nearly_all_of_the_share_can_be_used() {
        let t0 = start();
        let budget = Budget::new(t0);
        let mut used = 0;
        for request in 0..20_000u64 {
            let now = t0 + Duration::from_millis(5 * request);
            budget.request(now);
            used += u32::from(budget.withdraw(now, Share::percent(5), 0));
        }
        assert!((960..=1_000).contains(&used), "{used} of 1000");
    }

    proptest! {
        #[test]
        fn no_ten_seconds_exceed_the_budget(steps in prop::collection::vec((0u64..400, any::<bool>()), 1..2_000)) {
            let t0 = start();
            let budget = Budget::new(t0);
            let (mut now, mut requests, mut withdrawals) = (t0, Vec::new(), Vec::new());
            for (gap, extra) in steps {
                now += Duration::from_millis(gap);
                budget.request(now);
                requests.push(now);
                if extra && budget.withdraw(now, Share::percent(20), 0) {
                    withdrawals.push(now);
                    let recent = |moments: &[Instant]| moments.iter().filter(|&&moment| now - moment <= Duration::from_secs(10)).count() as f64;
                    prop_assert!(recent(&withdrawals) <= recent(&requests) * 0.2);
                }
            }
        }
    }
}

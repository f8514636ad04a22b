//! When a second copy of a request is worth sending, and whether it may be.
//!
//! A copy goes out when the first attempt has taken longer than most of this route's recent requests (`after: p95`), but never sooner than `hedge.min`: where
//! everything takes 0.2 ms, noise alone would make a twentieth of all requests late and eat the budget that the pauses need. (Dean and
//! Barroso, "The Tail at Scale": at the 95th percentile copies cost about 5 %.)
//!
//! More than 16 times the median is late in any case: where more requests stall than the percentile leaves over, the percentile
//! itself lies within the stalls.
//!
//! Two budgets bound it: its own (`hedge.budget`, a share of requests over 10 s, no floor) and the upstream's retry budget, because a copy
//! is an extra attempt like any other. So when all replicas are slow together, copies stop by themselves.
//!
//! **What is recorded**: for a request that succeeded, the time from the dispatch of the attempt that the copies stand beside to the winning head,
//! whichever attempt won. The winner's own time, the obvious choice, would be shorter whenever a copy wins: the slow tail would vanish from the histogram,
//! the percentile sink and ever more copies go out. Counted from the first dispatch a request that was hedged is at least as long as the
//! delay, so the percentile stays where it was. Failures are not recorded: an error's speed is not the service's.
//!
//! In `observe` mode nothing is sent: the own budget is drawn on as it would be, the retry budget is not, and a copy counts as won
//! when the head took longer than the delay plus the median.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use evenkeel_config::policy::{After, Hedge, Mode, Retry};

use crate::budget::{Budget, RETRY_FLOOR_PER_SEC};
use crate::epoch::Epoch;
use crate::latency::{Counts, Latencies};

/// The copies of one route of an upstream; shared by all workers.
#[derive(Debug)]
pub struct Hedger {
    epoch: Epoch,
    latencies: Latencies,
    budget: Budget,
    copies: AtomicU64,
    won: AtomicU64,
    refused: AtomicU64,
    observed: AtomicU64,
    observed_won: AtomicU64,
}

/// What a hedger did, or would have done, since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgeCounts {
    /// Copies allowed (`enforce`).
    pub copies: u64,
    /// Copies whose head came first and was a success (`enforce`).
    pub won: u64,
    /// Copies due that a budget refused (both modes).
    pub refused: u64,
    /// Copies that would have been sent (`observe`).
    pub observed: u64,
    /// Of these, copies that would have won (`observe`).
    pub observed_won: u64,
}

/// Whether a copy that is due goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum MayCopy {
    /// It is paid for.
    Yes,
    /// The policy only observes, and its own budget would have paid.
    Observed,
    /// A budget refused it, or copies are off.
    No,
}

impl Hedger {
    /// A hedger without samples; moments are counted from `epoch`.
    #[must_use]
    pub fn new(epoch: Instant) -> Hedger {
        Hedger {
            epoch: Epoch::new(epoch),
            latencies: Latencies::new(),
            budget: Budget::new(epoch),
            copies: AtomicU64::new(0),
            won: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            observed: AtomicU64::new(0),
            observed_won: AtomicU64::new(0),
        }
    }

    /// A request that may be copied came: it pays into the budget.
    pub fn request(&self, now: Instant) {
        self.budget.request(now);
    }

    /// How long to wait for a head before a copy, and again before the next; `None`: no copies, because they are off or fewer than 100
    /// requests of the last 20 to 30 s tell what is late. A fixed delay needs none.
    #[must_use]
    pub fn delay(&self, now: Instant, hedge: &Hedge) -> Option<Duration> {
        if hedge.mode == Mode::Off || hedge.max == 0 {
            return None;
        }
        let delay = match hedge.after {
            After::Fixed(delay) => delay,
            After::Percentile(percent) => {
                self.latencies.late_after(self.epoch.moment(now), percent)?
            }
        };
        Some(delay.max(hedge.min))
    }

    /// A request succeeded: `latency` from the dispatch of the attempt that copies may stand beside to the winning head.
    pub fn record(&self, now: Instant, latency: Duration) {
        self.latencies.record(self.epoch.moment(now), latency);
    }

    /// Whether a copy that is due goes out: only in `enforce`, and if both budgets pay. In `observe` it is counted.
    ///
    /// When it is refused, ask again after another delay: a request that is late for the second time needs the copy more than the
    /// others, most of which will have been answered by then.
    pub fn try_copy(
        &self,
        now: Instant,
        hedge: &Hedge,
        retry: &Retry,
        retries: &Budget,
    ) -> MayCopy {
        if hedge.mode == Mode::Off {
            return MayCopy::No;
        }
        if !self.budget.withdraw(now, hedge.budget, 0) {
            self.refused.fetch_add(1, Relaxed);
            return MayCopy::No;
        }
        if hedge.mode == Mode::Observe {
            self.observed.fetch_add(1, Relaxed);
            return MayCopy::Observed;
        }
        if !retries.withdraw(now, retry.budget, RETRY_FLOOR_PER_SEC) {
            self.budget.refund(now);
            self.refused.fetch_add(1, Relaxed);
            return MayCopy::No;
        }
        self.copies.fetch_add(1, Relaxed);
        MayCopy::Yes
    }

    /// A copy that [`Hedger::try_copy`] allowed was not sent after all (no endpoint was left for it, or too many are in flight): gives its
    /// budgets back. As after a refusal, ask again after another delay.
    pub fn not_sent(&self, now: Instant, retries: &Budget) {
        self.refund(now, retries);
        self.copies.fetch_sub(1, Relaxed);
    }

    /// Whether a copy may go out that probes an endpoint on probation: it draws on the same budgets.
    pub(crate) fn try_probe(
        &self,
        now: Instant,
        hedge: &Hedge,
        retry: &Retry,
        retries: &Budget,
    ) -> bool {
        if !self.budget.withdraw(now, hedge.budget, 0) {
            return false;
        }
        let paid = retries.withdraw(now, retry.budget, RETRY_FLOOR_PER_SEC);
        if !paid {
            self.budget.refund(now);
        }
        paid
    }

    /// A probe that [`Hedger::try_probe`] allowed was not sent after all.
    pub(crate) fn refund(&self, now: Instant, retries: &Budget) {
        self.budget.refund(now);
        retries.refund(now);
    }

    /// A copy's head won.
    pub fn copy_won(&self) {
        self.won.fetch_add(1, Relaxed);
    }

    /// In `observe`, for a request whose copy, due after `delay`, was [observed](MayCopy::Observed) then: its head took `latency` in all.
    pub fn observe(&self, now: Instant, delay: Duration, latency: Duration) {
        let usual = self.latencies.quantile(self.epoch.moment(now), 50.0).unwrap_or_default();
        if latency > delay.saturating_add(usual) {
            self.observed_won.fetch_add(1, Relaxed);
        }
    }

    /// The latency that `percent` of the requests of the last 20 to 30 s did not exceed; `None` below 100 of them.
    #[must_use]
    pub fn quantile(&self, now: Instant, percent: f64) -> Option<Duration> {
        self.latencies.quantile(self.epoch.moment(now), percent)
    }

    /// The latencies of the last 20 to 30 s; `None` below 100 of them.
    pub(crate) fn recent(&self, now: Instant) -> Option<Counts> {
        self.latencies.counts(self.epoch.moment(now))
    }

    /// What was done, or would have been, since the start.
    #[must_use]
    pub fn counts(&self) -> HedgeCounts {
        HedgeCounts {
            copies: self.copies.load(Relaxed),
            won: self.won.load(Relaxed),
            refused: self.refused.load(Relaxed),
            observed: self.observed.load(Relaxed),
            observed_won: self.observed_won.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_config::policy::Share;

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn policy(mode: Mode, after: After) -> Hedge {
        Hedge { mode, after, ..Hedge::default() }
    }

    #[test]
    fn the_delay_is_the_percentile_but_at_least_the_minimum() {
        let t0 = start();
        let hedger = Hedger::new(t0);
        let p95 = policy(Mode::Enforce, After::Percentile(95.0));
        (0..99).for_each(|_| hedger.record(t0, 8 * MS));
        assert_eq!(hedger.delay(t0, &p95), None, "not before 100 samples");
        hedger.record(t0, 8 * MS);
        let later = t0 + Duration::from_secs(1);
        let delay = hedger.delay(later, &p95).expect("100 samples");
        assert!((8 * MS..9 * MS).contains(&delay), "{delay:?}");
        assert_eq!(hedger.delay(later, &Hedge { min: 20 * MS, ..p95.clone() }), Some(20 * MS));
        assert_eq!(hedger.delay(later, &policy(Mode::Off, After::Fixed(MS))), None);
        assert_eq!(hedger.delay(later, &Hedge { max: 0, ..p95 }), None);
        assert_eq!(
            Hedger::new(t0).delay(t0, &policy(Mode::Observe, After::Fixed(5 * MS))),
            Some(5 * MS)
        );
    }

    #[test]
    fn both_budgets_must_pay_and_a_copy_that_is_not_sent_is_given_back() {
        let t0 = start();
        let (hedger, retries) = (Hedger::new(t0), Budget::new(t0));
        let (enforce, retry) = (
            policy(Mode::Enforce, After::Fixed(MS)),
            Retry { budget: Share::percent(0), ..Retry::default() },
        );
        (0..4_000).for_each(|_| hedger.request(t0));
        // 5 % of 4,000 are 200; the retry budget's floor pays for 100.
        let may = |hedger: &Hedger, retries: &Budget| {
            hedger.try_copy(t0, &enforce, &retry, retries) == MayCopy::Yes
        };
        let copies = (0..500).filter(|_| may(&hedger, &retries)).count();
        assert_eq!(copies, 100);
        assert_eq!(hedger.counts().refused, 400);
        hedger.not_sent(t0, &retries);
        assert!(may(&hedger, &retries));
        assert_eq!(hedger.counts().copies, 100);
        let own = Hedger::new(t0);
        (0..40).for_each(|_| own.request(t0));
        let fresh = Budget::new(t0);
        assert_eq!((0..10).filter(|_| may(&own, &fresh)).count(), 2, "the own budget has no floor");
    }

    #[test]
    fn observing_sends_nothing_and_leaves_the_retry_budget_alone() {
        let t0 = start();
        let (hedger, retries) = (Hedger::new(t0), Budget::new(t0));
        let observe = policy(Mode::Observe, After::Fixed(5 * MS));
        (0..100).for_each(|_| {
            hedger.request(t0);
            hedger.record(t0, 2 * MS);
        });
        for copy in 0..10 {
            let may = hedger.try_copy(t0, &observe, &Retry::default(), &retries);
            // 5 % of 100.
            assert_eq!(may, if copy < 5 { MayCopy::Observed } else { MayCopy::No });
        }
        assert_eq!(retries.recent(t0), (0, 0));
        hedger.observe(t0, 5 * MS, 6 * MS);
        hedger.observe(t0, 5 * MS, 50 * MS);
        let counts = hedger.counts();
        assert_eq!(
            (counts.copies, counts.observed, counts.refused, counts.observed_won),
            (0, 5, 5, 1)
        );
    }

    /// Recorded from the first dispatch, hedged requests keep the percentile where it was.
    #[test]
    fn copies_do_not_drag_the_percentile_down() {
        let t0 = start();
        let hedger = Hedger::new(t0);
        let p95 = policy(Mode::Enforce, After::Percentile(95.0));
        let mut delays = Vec::new();
        for request in 0..20_000u32 {
            let now = t0 + request * MS;
            let alone = Duration::from_micros(u64::from(request * 7_919 % 1_000) * 20);
            let delay = hedger.delay(now, &p95);
            hedger.record(now, delay.map_or(alone, |delay| alone.min(delay + MS)));
            delays.extend(delay);
        }
        let last = *delays.last().expect("there were samples");
        assert!((18 * MS..20 * MS).contains(&last), "p95 of 0 to 20 ms is 19 ms: {last:?}");
    }
}

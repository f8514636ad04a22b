//! What hedging would do for a route, estimated from requests that were not hedged: for the operator who has it on `observe` and wonders.
//!
//! A hedged request takes longer than `t` when each of its attempts does, the j-th copy being j delays younger. With the latencies of
//! different endpoints taken for independent that is P(L > t) · Π P(L > t − j · delay). Where the budget does not pay for every late
//! request, the others stay as they are.
//!
//! Independence is the assumption to know: it holds for pauses that strike one endpoint at a time, and is too hopeful where what is
//! slow is behind all of them. Then the real run differs, at the price of the budget and no more. Counting what single copies would have
//! won (`HedgeCounts::observed_won`), the obvious way, says nothing about a percentile.
//!
//! Only in `observe`: once copies are sent, the histogram no longer shows what is without them.

use std::time::{Duration, Instant};

use evenkeel_config::policy::{Hedge, Mode};
use serde::Serialize;

use crate::hedge::Hedger;
use crate::latency::{BUCKETS, Counts, upper_bound};

/// What hedging would change, as far as the last 20 to 30 s tell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Advice {
    /// Requests it is estimated from.
    pub requests: u64,
    /// When the first copy would go out.
    pub delay: Duration,
    /// Without copies, and with them.
    pub p99: [Duration; 2],
    /// Without copies, and with them.
    pub p999: [Duration; 2],
    /// Copies as a share of requests, at most `hedge.budget`.
    pub extra: f64,
}

impl Hedger {
    /// What `enforce` would do; `None` in any other mode than `observe`, and below 100 requests.
    #[must_use]
    pub fn advice(&self, now: Instant, hedge: &Hedge) -> Option<Advice> {
        if hedge.mode != Mode::Observe {
            return None;
        }
        let delay = self.delay(now, hedge)?;
        Some(estimate(&self.recent(now)?, delay, hedge))
    }
}

fn estimate(counts: &Counts, delay: Duration, hedge: &Hedge) -> Advice {
    // The j-th copy goes out if neither the first attempt nor an earlier copy was answered by then.
    let mut all_late = 1.0;
    let wanted: f64 = (1..=hedge.max)
        .map(|copy| {
            all_late *= counts.share_above(delay * copy);
            all_late
        })
        .sum();
    let budget = hedge.budget.as_fraction();
    let paid = if wanted > budget { budget / wanted } else { 1.0 };
    let hedged = |latency: Duration| {
        let copies: f64 = (1..=hedge.max)
            .map(|copy| latency.checked_sub(delay * copy).map_or(1.0, |l| counts.share_above(l)))
            .product();
        counts.share_above(latency) * (paid * copies + 1.0 - paid)
    };
    let quantile = |percent: f64| {
        let left = 1.0 - percent / 100.0;
        let reached = (0..BUCKETS).map(upper_bound).find(|latency| hedged(*latency) <= left);
        [counts.quantile(percent), reached.unwrap_or(upper_bound(BUCKETS - 1))]
    };
    Advice {
        requests: counts.total,
        delay,
        p99: quantile(99.0),
        p999: quantile(99.9),
        extra: wanted.min(budget),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_config::policy::Share;

    const MS: Duration = Duration::from_millis(1);

    /// The advice for a route where `slow` of 1,000 requests take 100 ms and the others 1 ms.
    fn advice(slow: u32, hedge: &Hedge) -> Option<Advice> {
        #[allow(clippy::disallowed_methods)]
        let start = Instant::now();
        let hedger = Hedger::new(start);
        for request in 0..1_000 {
            hedger.record(start, if request < slow { 100 * MS } else { MS });
        }
        hedger.advice(start, hedge)
    }

    fn near(actual: Duration, expected: Duration) -> bool {
        (actual.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() < 0.08
    }

    #[test]
    fn pauses_of_single_endpoints_are_worth_a_copy() {
        let advice = advice(20, &Hedge { max: 1, ..Hedge::default() }).unwrap();
        assert_eq!(advice.requests, 1_000);
        assert!(near(advice.p99[0], 100 * MS), "{advice:?}");
        assert!(near(advice.p99[1], advice.delay + MS), "{advice:?}");
        // Of the 2 % late, 2 % meet another: 0.04 % stay slow.
        assert!(near(advice.p999[1], advice.delay + MS), "{advice:?}");
        assert!((advice.extra - 0.02).abs() < 1e-9, "{advice:?}");
    }

    #[test]
    fn a_budget_that_is_too_small_leaves_the_tail_and_costs_no_more_than_itself() {
        let hedge = Hedge { budget: Share::percent(1), max: 1, ..Hedge::default() };
        let advice = advice(40, &hedge).unwrap();
        assert!(near(advice.p99[1], 100 * MS), "three quarters stay late: {advice:?}");
        assert!((advice.extra - 0.01).abs() < 1e-9, "{advice:?}");
    }

    #[test]
    fn a_second_copy_catches_who_meets_two_slow_ones() {
        let with = |max| advice(45, &Hedge { max, ..Hedge::default() }).unwrap();
        assert!(with(1).p999[1] > 90 * MS, "{:?}", with(1));
        assert!(with(2).p999[1] < 5 * MS, "{:?}", with(2));
        assert!(with(2).extra > with(1).extra);
    }

    #[test]
    fn there_is_advice_only_for_who_observes() {
        for mode in [Mode::Off, Mode::Enforce] {
            assert_eq!(advice(20, &Hedge { mode, ..Hedge::default() }), None);
        }
    }
}

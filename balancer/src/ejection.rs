//! Leaving out, for a while, an endpoint that errs.
//!
//! After `eject.consecutive` failures in a row (5xx, reset, unreachable, timeout; any success starts the count again) the endpoint is out
//! for base × 2ⁿ, n the ejections before this one, at most [`EJECTION_MAX`], times 1 to 1.25 at random so that the clients of one endpoint do not come back
//! together. Each [`FORGIVE`] without an ejection takes one off n.
//!
//! Its return is gradual: its share grows again as in slow start, and the first failure ejects it again (the count resumes one below
//! the threshold), the first success clears the count.
//!
//! At most `eject.max` of the serving endpoints are out at once, rounded up so that in a small set one can be; what exceeds it is
//! counted as a failure and nothing more. Panic (too few usable endpoints) is `Balancer::pick`'s: it ignores ejections, it does not end them.
//!
//! Follows Envoy's outlier detection and gRPC's A50 in kind; consecutive failures rather than a success rate, because the rate needs
//! volume that small services do not have, and slowness is the estimate's business, not ejection's.
//!
//! Orderings: relaxed. The count of ejected endpoints changes by read-modify-write, so the limit holds across workers; it is recounted
//! from the endpoints when an ejection ends and at least each [`RECOUNT`] while any is out, so a lost race heals.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use evenkeel_config::policy::{Eject, Share};

use crate::epoch::nanos;

/// One endpoint's failures and ejections.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Ejection {
    total: AtomicU64,
    consecutive: AtomicU32,
    /// Ejections that still count: the exponent.
    recent: AtomicU32,
    /// Out until then; 0: never was. Last: what is asked of every endpoint.
    until: AtomicU64,
}

impl Ejection {
    pub(crate) fn until(&self) -> u64 {
        self.until.load(Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    pub(crate) fn consecutive(&self) -> u32 {
        self.consecutive.load(Relaxed)
    }

    pub(crate) fn is_out(&self, now: u64) -> bool {
        now < self.until()
    }

    pub(crate) fn succeeded(&self) {
        if self.consecutive.load(Relaxed) != 0 {
            self.consecutive.store(0, Relaxed);
        }
    }

    /// Counts a failure; when that ejects the endpoint, says until when. `jitter` is random over all of `u32`.
    pub(crate) fn failed(
        &self,
        now: u64,
        eject: &Eject,
        jitter: u32,
        among: &Ejections,
    ) -> Option<u64> {
        let failures = self.consecutive.fetch_add(1, Relaxed).saturating_add(1);
        if eject.consecutive == 0
            || failures < eject.consecutive
            || self.is_out(now)
            || !among.try_add(eject.max)
        {
            return None;
        }
        let recent = self.recent_at(now);
        let base =
            nanos(eject.base).min(EJECTION_MAX).saturating_mul(1 << recent.min(EXPONENT_MAX));
        let jittered = base as f64 * (1.0 + JITTER * f64::from(jitter) / f64::from(u32::MAX));
        let until = now.saturating_add((jittered as u64).min(EJECTION_MAX));
        self.recent.store(recent.saturating_add(1), Relaxed);
        self.consecutive.store(eject.consecutive - 1, Relaxed);
        self.until.store(until, Relaxed);
        self.total.fetch_add(1, Relaxed);
        among.ends_at(until);
        Some(until)
    }

    fn recent_at(&self, now: u64) -> u32 {
        let forgiven = now.saturating_sub(self.until()) / FORGIVE;
        self.recent.load(Relaxed).saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

/// How many of an upstream's serving endpoints are out.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    out: AtomicU32,
    serving: AtomicU32,
    recount_at: AtomicU64,
    /// Since the upstream began, of endpoints that are gone too.
    total: AtomicU64,
}

impl Ejections {
    pub(crate) fn out(&self) -> u32 {
        self.out.load(Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Whether an ejection may have ended since the last count.
    pub(crate) fn is_stale(&self, now: u64) -> bool {
        self.out() > 0 && now >= self.recount_at.load(Relaxed)
    }

    /// Takes the count from the serving endpoints.
    pub(crate) fn recount<'a>(&self, now: u64, serving: impl Iterator<Item = &'a Ejection>) {
        let (mut count, mut out, mut next) = (0u32, 0u32, now.saturating_add(RECOUNT));
        for ejection in serving {
            count += 1;
            if ejection.is_out(now) {
                out += 1;
                next = next.min(ejection.until());
            }
        }
        self.serving.store(count, Relaxed);
        self.recount_at.store(next, Relaxed);
        self.out.store(out, Relaxed);
    }

    fn try_add(&self, max: Share) -> bool {
        let allowed = (f64::from(self.serving.load(Relaxed)) * max.as_fraction()).ceil() as u32;
        self.out.try_update(Relaxed, Relaxed, |out| (out < allowed).then(|| out + 1)).is_ok()
    }

    /// One more is out, until then.
    fn ends_at(&self, until: u64) {
        self.total.fetch_add(1, Relaxed);
        self.recount_at.fetch_min(until, Relaxed);
    }
}

/// The longest time out.
pub(crate) const EJECTION_MAX: u64 = Duration::from_secs(300).as_nanos() as u64;
const EXPONENT_MAX: u32 = 20;
const JITTER: f64 = 0.25;
/// A minute of good conduct takes one ejection off the exponent.
const FORGIVE: u64 = Duration::from_secs(60).as_nanos() as u64;
const RECOUNT: u64 = Duration::from_secs(1).as_nanos() as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn policy(consecutive: u32, base_secs: u64) -> Eject {
        Eject { consecutive, base: Duration::from_secs(base_secs), max: Share::percent(50) }
    }

    fn among(serving: usize, endpoints: &[Ejection], now: u64) -> Ejections {
        let ejections = Ejections::default();
        ejections.recount(now, endpoints.iter().take(serving));
        ejections
    }

    fn fail(
        ejection: &Ejection,
        times: u32,
        now: u64,
        eject: &Eject,
        among: &Ejections,
    ) -> Option<u64> {
        (0..times).fold(None, |until, _| ejection.failed(now, eject, 0, among).or(until))
    }

    #[test]
    fn five_failures_in_a_row_eject_and_a_success_between_does_not() {
        let (eject, endpoints) = (policy(5, 10), [Ejection::default(), Ejection::default()]);
        let among = among(2, &endpoints, S);
        assert_eq!(fail(&endpoints[0], 4, S, &eject, &among), None);
        endpoints[0].succeeded();
        assert_eq!(fail(&endpoints[0], 4, S, &eject, &among), None);
        assert_eq!(fail(&endpoints[0], 1, S, &eject, &among), Some(11 * S));
        assert!(endpoints[0].is_out(11 * S - 1) && !endpoints[0].is_out(11 * S));
    }

    #[test]
    fn it_doubles_up_to_the_maximum_and_one_failure_after_the_return_suffices() {
        let (eject, endpoints) = (policy(3, 10), [Ejection::default()]);
        let among = among(1, &endpoints, S);
        let mut now = S;
        let mut lengths = Vec::new();
        fail(&endpoints[0], 2, now, &eject, &among);
        for _ in 0..8 {
            let until = fail(&endpoints[0], 1, now, &eject, &among).expect("one failure suffices");
            lengths.push((until - now) / S);
            now = until;
            among.recount(now, endpoints.iter());
        }
        assert_eq!(lengths, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn good_conduct_is_forgiven_a_minute_at_a_time() {
        let (eject, endpoints) = (policy(1, 10), [Ejection::default()]);
        let among = among(1, &endpoints, S);
        let mut now = S;
        for _ in 0..3 {
            now = fail(&endpoints[0], 1, now, &eject, &among).expect("ejected");
            among.recount(now, endpoints.iter());
        }
        now += 2 * FORGIVE;
        let until = fail(&endpoints[0], 1, now, &eject, &among).expect("ejected");
        assert_eq!((until - now) / S, 20, "of three ejections two are forgiven");
    }

    #[test]
    fn at_most_the_share_is_out_but_at_least_one_can_be() {
        for (serving, allowed) in [(1, 1), (2, 1), (3, 2), (8, 4)] {
            let endpoints: Vec<Ejection> = (0..serving).map(|_| Ejection::default()).collect();
            let among = among(serving, &endpoints, S);
            let out = endpoints
                .iter()
                .filter(|endpoint| fail(endpoint, 1, S, &policy(1, 10), &among).is_some())
                .count();
            assert_eq!(out, allowed, "of {serving}");
            assert_eq!(among.out() as usize, allowed);
        }
        let endpoints = [Ejection::default()];
        let among = among(1, &endpoints, S);
        assert_eq!(fail(&endpoints[0], 100, S, &policy(0, 10), &among), None, "0 switches it off");
        let none = Eject { max: Share::percent(0), ..policy(1, 10) };
        assert_eq!(fail(&endpoints[0], 100, S, &none, &among), None, "0% allows none");
    }

    proptest! {
        #[test]
        fn an_ejection_never_exceeds_its_bounds(now in 1..u64::MAX / 2, base in any::<u32>(), jitter in any::<u32>(), times in 1u32..60) {
            let endpoints = [Ejection::default()];
            let among = among(1, &endpoints, now);
            let eject = Eject { consecutive: 1, base: Duration::from_millis(u64::from(base)), max: Share::percent(100) };
            let mut now = now;
            for _ in 0..times {
                if let Some(until) = endpoints[0].failed(now, &eject, jitter, &among) {
                    prop_assert!(until >= now && until - now <= EJECTION_MAX);
                    now = until;
                }
                among.recount(now, endpoints.iter());
            }
        }
    }
}

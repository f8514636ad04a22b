//! `balance: scout`: choosing among the answers of recent scouts, after Prequal (Wydrowski, Kleinberg et al., "Load is not what you should
//! balance: Introducing Prequal", NSDI 2024).
//!
//! A request sends a few scouts to endpoints drawn at random and chooses, without waiting for them, among the answers that earlier scouts
//! brought. **Hot-cold rule**: an endpoint with more requests in flight than the 0.84 quantile of the recent answers is hot; of the cold ones
//! the one with the lowest latency is chosen, and if all are hot the one with the fewest in flight. Requests in flight foretell
//! overload, latency tells fast hosts from slow ones while there is none.
//!
//! An answer grows stale, so it serves [`Pool::reuse`] requests at most, counts those that it sent there, and goes after [`AGE_MAX`]. With each request
//! the oldest and the worst go in turn: else the pool would fill up with endpoints nobody would choose.
//!
//! Where this differs from the paper, and why:
//! - the pool holds at most half as many answers as there are endpoints: at about as many, the best of the pool is the best of all, and
//!   clients with the same view rush to it together;
//! - one answer for an endpoint, the newest;
//! - at most [`SCOUTS_PER_SEC_MAX`] scouts, because here a scout costs a tenth of a small request; fewer where one costs more, as a request of its own
//!   does. Removal and reuse follow what is really sent.
//!
//! With fewer than two usable answers it chooses nothing, and two choices do.
//!
//! A pool belongs to one worker and one upstream and is no shared state.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use super::Report;

/// The answers that the requests of one worker to one upstream choose among.
#[derive(Debug)]
pub struct Pool {
    entries: Vec<Entry>,
    /// Requests in flight in the last answers, to tell hot from cold.
    loads: [u32; LOADS],
    answers: usize,
    /// Scouts that may be sent now, and since when that is so.
    tokens: f64,
    refilled: Option<Instant>,
    /// Scouts sent with a request, on average.
    rate: f64,
    removals: f64,
    remove_oldest: bool,
    age_of_choice: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    serial: u64,
    index: usize,
    in_flight: u32,
    latency: Option<Duration>,
    came: Instant,
    uses: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            entries: Vec::with_capacity(ENTRIES_MAX),
            loads: [0; LOADS],
            answers: 0,
            tokens: SCOUTS_BURST_MAX,
            refilled: None,
            rate: SCOUTS_PER_REQUEST,
            removals: 0.0,
            remove_oldest: false,
            age_of_choice: None,
        }
    }
}

impl Pool {
    /// A request comes: how many scouts go out with it, at most `most`. `cost`: of one, in datagrams.
    pub fn scouts_due(&mut self, now: Instant, most: usize, cost: f64) -> usize {
        let since = self.refilled.replace(now).unwrap_or(now);
        let gained = now.saturating_duration_since(since).as_secs_f64() * SCOUTS_PER_SEC_MAX;
        self.tokens = (self.tokens + gained).min(SCOUTS_BURST_MAX);
        let due = (self.tokens / cost).min(SCOUTS_PER_REQUEST).min(most as f64).floor();
        self.tokens -= due * cost;
        self.rate += (due - self.rate) / RATE_OVER;
        due as usize
    }

    /// A scout was answered by the endpoint at `index` of a set of `endpoints`.
    pub fn add(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        (index, serial): (usize, u64),
        endpoints: usize,
        report: &Report,
    ) {
        self.loads[self.answers % LOADS] = report.in_flight;
        self.answers += 1;
        self.entries.retain(|entry| entry.serial != serial);
        if !report.welcomes() {
            return;
        }
        let most = (endpoints / 2).clamp(2, ENTRIES_MAX);
        while self.entries.len() >= most {
            self.remove(Entry::oldest);
        }
        // 2.3 uses are two, and three in three of ten cases.
        let uses = self.reuse(endpoints, most) + rng.random::<f64>();
        self.entries.push(Entry {
            serial,
            index,
            in_flight: report.in_flight,
            latency: report.latency,
            came: now,
            uses: uses as u32,
        });
    }

    /// How many requests an answer serves: as many as keep the pool from running dry.
    fn reuse(&self, endpoints: usize, most: usize) -> f64 {
        let fresh = 1.0 - most as f64 / endpoints.max(1) as f64;
        let net = fresh * self.rate - self.rate / SCOUTS_PER_REQUEST;
        if net <= 0.0 { USES_MAX } else { ((1.0 + NET_GAIN) / net).clamp(1.0, USES_MAX) }
    }

    /// Chooses an endpoint by its index; `usable` says whether an index and serial still name one that a request may go to.
    pub(crate) fn choose(
        &mut self,
        now: Instant,
        usable: impl Fn(usize, u64) -> bool,
    ) -> Option<usize> {
        self.entries.retain(|entry| now.saturating_duration_since(entry.came) < AGE_MAX);
        let threshold = self.hot_above();
        let mut found = 0;
        let mut best: Option<(usize, Entry)> = None;
        for (at, entry) in self.entries.iter().enumerate() {
            if !usable(entry.index, entry.serial) {
                continue;
            }
            found += 1;
            if best.is_none_or(|(_, best)| entry.is_better_than(&best, threshold)) {
                best = Some((at, *entry));
            }
        }
        let chosen = best.filter(|_| found >= FOUND_MIN).map(|(at, chosen)| {
            let entry = &mut self.entries[at];
            entry.in_flight = entry.in_flight.saturating_add(1);
            entry.uses -= 1;
            if entry.uses == 0 {
                self.entries.swap_remove(at);
            }
            self.age_of_choice = Some(now.saturating_duration_since(chosen.came));
            chosen.index
        });
        self.removals += self.rate / SCOUTS_PER_REQUEST;
        if self.removals >= 1.0 {
            self.removals -= 1.0;
            self.remove_oldest = !self.remove_oldest;
            if self.remove_oldest {
                self.remove(Entry::oldest);
            } else {
                self.remove(|one, other| other.is_better_than(one, threshold));
            }
        }
        chosen
    }

    /// How old the answer was that the last request went by, if it went by one.
    #[must_use]
    pub fn age_of_choice(&mut self) -> Option<Duration> {
        self.age_of_choice.take()
    }

    /// Removes the entry that `rather` is true of against every other.
    fn remove(&mut self, rather: impl Fn(&Entry, &Entry) -> bool) {
        let first = self.entries.first().copied();
        let worst =
            first.map(|first| {
                let rest = self.entries.iter().enumerate().skip(1);
                rest.fold((0, first), |(at, worst), (other, entry)| {
                    if rather(entry, &worst) { (other, *entry) } else { (at, worst) }
                })
            });
        if let Some((at, _)) = worst {
            self.entries.swap_remove(at);
        }
    }

    /// The most requests in flight with which an endpoint is still cold.
    fn hot_above(&self) -> u32 {
        let known = self.answers.min(LOADS);
        let mut loads = self.loads;
        let loads = &mut loads[..known];
        if loads.is_empty() {
            return u32::MAX;
        }
        let at = ((known as f64 * HOT_QUANTILE).ceil() as usize).clamp(1, known) - 1;
        *loads.select_nth_unstable(at).1
    }
}

impl Entry {
    fn oldest(&self, other: &Entry) -> bool {
        self.came < other.came
    }

    /// Cold before hot; of two cold ones the faster, of two hot ones the less loaded. Whose latency is not known is compared by load.
    fn is_better_than(&self, other: &Entry, threshold: u32) -> bool {
        let (hot, other_hot) = (self.in_flight > threshold, other.in_flight > threshold);
        match (hot, other_hot, self.latency, other.latency) {
            (false, true, ..) => true,
            (true, false, ..) => false,
            (false, false, Some(latency), Some(other_latency)) if latency != other_latency => {
                latency < other_latency
            }
            _ => self.in_flight < other.in_flight,
        }
    }
}

/// Of the paper: r_probe, and one removed for so many.
const SCOUTS_PER_REQUEST: f64 = 3.0;
/// Of the paper: m.
const ENTRIES_MAX: usize = 16;
/// Of the paper: the oldest answer that is used.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Of the paper: Q_RIF = 2^-0.25.
const HOT_QUANTILE: f64 = 0.84;
/// Of the paper: δ, how much faster answers come than they are used up.
const NET_GAIN: f64 = 1.0;
/// With fewer the choice is no choice.
const FOUND_MIN: usize = 2;
/// An answer that served so many requests says more about them than about the endpoint.
const USES_MAX: f64 = 32.0;
/// Answers that the quantile is taken over.
const LOADS: usize = 64;
/// Of one worker to one upstream: about a hundredth of a core.
const SCOUTS_PER_SEC_MAX: f64 = 2_000.0;
const SCOUTS_BURST_MAX: f64 = 64.0;
/// The rate is an average over about so many requests.
const RATE_OVER: f64 = 64.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn report(in_flight: u32, latency_ms: u64) -> Report {
        let latency = Some(Duration::from_millis(latency_ms));
        Report { known: true, in_flight, latency, alive: true, ..Report::default() }
    }

    /// A pool of a set of 32 with these (in flight, latency in ms), endpoint i having serial 100 + i.
    fn pool(now: Instant, answers: &[(u32, u64)]) -> (Pool, SmallRng) {
        let (mut pool, mut rng) = (Pool::default(), SmallRng::seed_from_u64(1));
        for (index, &(in_flight, latency)) in answers.iter().enumerate() {
            let endpoint = (index, 100 + index as u64);
            pool.add(now, &mut rng, endpoint, 32, &report(in_flight, latency));
        }
        (pool, rng)
    }

    #[test]
    fn the_fastest_of_the_cold_else_the_least_loaded() {
        let t0 = start();
        type Row = (&'static str, &'static [(u32, u64)], usize);
        let table: [Row; 4] = [
            ("all alike in load: the fastest", &[(1, 9), (1, 4), (1, 7)], 1),
            (
                "the fastest is hot",
                &[(1, 9), (9, 1), (1, 7), (1, 8), (2, 9), (1, 9), (2, 9), (1, 9)],
                2,
            ),
            ("same latency: fewer in flight", &[(3, 5), (2, 5), (3, 5)], 1),
            ("only a little more in flight is not hot", &[(0, 20), (1, 20), (1, 3)], 2),
        ];
        for (name, answers, chosen) in table {
            let (mut pool, _) = pool(t0, answers);
            assert_eq!(pool.choose(t0, |_, _| true), Some(chosen), "{name}");
        }
    }

    #[test]
    fn when_all_are_hot_the_least_loaded() {
        let t0 = start();
        let (mut pool, _) = pool(t0, &[(1, 1); 8]);
        pool.entries.iter_mut().for_each(|entry| entry.in_flight += 5 + entry.index as u32);
        assert_eq!(pool.choose(t0, |_, _| true), Some(0));
    }

    #[test]
    fn fewer_than_two_usable_answers_choose_nothing() {
        let t0 = start();
        let (mut pool, _) = pool(t0, &[(1, 1), (1, 1), (1, 1)]);
        assert_eq!(pool.choose(t0, |index, _| index == 0), None);
        assert_eq!(Pool::default().choose(t0, |_, _| true), None);
        let (mut pool, _) = self::pool(t0, &[(1, 1), (1, 1), (1, 1)]);
        assert_eq!(pool.choose(t0 + AGE_MAX, |_, _| true), None, "all too old");
    }

    #[test]
    fn what_it_sent_there_counts_until_the_next_answer() {
        let t0 = start();
        let (mut pool, mut rng) = pool(t0, &[(1, 5), (1, 5), (1, 5), (1, 5)]);
        let mut seen: Vec<usize> = (0..3).filter_map(|_| pool.choose(t0, |_, _| true)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 3, "each request goes elsewhere: {seen:?}");
        pool.add(t0, &mut rng, (0, 100), 32, &report(0, 5));
        assert_eq!(pool.entries.iter().filter(|entry| entry.serial == 100).count(), 1);
    }

    #[test]
    fn who_does_not_welcome_requests_leaves_the_pool() {
        let t0 = start();
        for refusal in [
            Report { draining: true, ..report(0, 1) },
            Report { stalled: Some(MS), ..report(0, 1) },
            Report { known: false, ..report(0, 1) },
        ] {
            let (mut pool, mut rng) = pool(t0, &[(1, 1), (1, 2), (1, 3)]);
            pool.add(t0, &mut rng, (0, 100), 32, &refusal);
            assert_eq!(pool.choose(t0, |_, _| true), Some(1), "{refusal:?}");
        }
    }

    #[test]
    fn scouts_are_three_a_request_within_the_rate() {
        let t0 = start();
        let mut pool = Pool::default();
        let all = usize::MAX;
        assert_eq!(pool.scouts_due(t0, all, 1.0), 3);
        let sent: usize = (0..10_000)
            .map(|i| pool.scouts_due(t0 + Duration::from_micros(100 * i), all, 1.0))
            .sum();
        let most = SCOUTS_PER_SEC_MAX as usize;
        assert!((most - 100..=most + 64).contains(&sent), "{sent} in a second of 10,000 requests");
        let quiet: usize = (0..100)
            .map(|i| pool.scouts_due(t0 + Duration::from_millis(2_000 + 10 * i), all, 1.0))
            .sum();
        assert_eq!(quiet, 300);
        let dear: usize = (0..1_000)
            .map(|i| pool.scouts_due(t0 + Duration::from_millis(4_000 + i), all, 10.0))
            .sum();
        assert!(
            (most / 10 - 10..=most / 10 + 7).contains(&dear),
            "{dear} that cost ten in a second"
        );
    }

    /// One that is sent takes one of the rate, not the three that might have been.
    #[test]
    fn who_asks_for_one_takes_one() {
        let t0 = start();
        let mut pool = Pool::default();
        let sent: usize =
            (0..1_500).map(|i| pool.scouts_due(t0 + Duration::from_micros(667 * i), 1, 1.0)).sum();
        assert_eq!(sent, 1_500, "1,500 a second are within the rate");
        assert_eq!(pool.scouts_due(t0 + Duration::from_secs(2), 0, 1.0), 0);
    }

    proptest! {
        /// Whatever comes in which order: the pool stays within its size, chooses only what may be used and came lately.
        #[test]
        fn it_chooses_what_it_may(endpoints in 1..40usize, steps in prop::collection::vec((0..40usize, 0..20u32, 0..50u64, 0..60u64, any::<bool>()), 1..200)) {
            let (mut pool, mut rng) = (Pool::default(), SmallRng::seed_from_u64(7));
            let mut now = start();
            let mut last = std::collections::BTreeMap::new();
            for (index, in_flight, latency, wait, ask) in steps {
                now += Duration::from_millis(wait);
                let index = index % endpoints;
                if ask {
                    pool.add(now, &mut rng, (index, index as u64), endpoints, &report(in_flight, latency));
                    last.insert(index, now);
                    prop_assert!(pool.entries.len() <= (endpoints / 2).clamp(2, ENTRIES_MAX));
                } else if let Some(chosen) = pool.choose(now, |index, _| index % 2 == 0) {
                    prop_assert_eq!(chosen % 2, 0);
                    prop_assert!(now.saturating_duration_since(last[&chosen]) < AGE_MAX);
                }
            }
        }
    }
}

//! An instance of this host, as it is reported to the scouts of others: how busy it is, how long it takes, whether it has stopped.
//!
//! Counts what other hosts have forwarded to it. What this host's own clients send it directly is in an endpoint of theirs already and is
//! added when a report is made: one more count for each of those requests would be paid by hosts that nobody scouts.
//!
//! **Latency at this load.** A busy instance is slower, so the time it took when idle says little about the next request. Each answer is
//! remembered under the number of requests that were in flight when it began, and a report gives the mean of about the last eight
//! at the present number. (Prequal, NSDI 2024, §4.)
//!
//! **Stalled** is an instance that has owed an answer (`stall`) for longer than one request in a hundred takes, but at least
//! [`OVERDUE_MIN`]. When a trial is due it is not reported as stalled: somebody has to try it.
//!
//! Orderings: relaxed; each atomic is a number of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Report;
use crate::endpoint::Endpoint;
use crate::epoch::Epoch;
use crate::latency::Latencies;
use crate::stall::{Silence, Stall};

/// One instance of this host; shared by all workers and by whoever answers scouts.
#[derive(Debug)]
pub struct Served {
    epoch: Epoch,
    in_flight: AtomicU32,
    stall: Stall,
    usual: Latencies,
    by_load: [Recent; LOADS],
}

/// One request that another host has forwarded: in flight until dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the visit"]
pub struct Visit {
    served: Arc<Served>,
    started: u64,
    /// Others in flight when it began.
    load: u32,
    head_due: bool,
    trial: bool,
}

impl Served {
    /// Nothing is in flight and nothing known; moments are counted from `epoch`.
    #[must_use]
    pub fn new(epoch: Instant) -> Served {
        Served {
            epoch: Epoch::new(epoch),
            in_flight: AtomicU32::new(0),
            stall: Stall::default(),
            usual: Latencies::new(),
            by_load: Default::default(),
        }
    }

    /// A request goes to the application.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Visit {
        let started = self.epoch.moment(now);
        let load = self.in_flight.fetch_add(1, Relaxed);
        let trial = self.stall.dispatched(started);
        Visit { served: Arc::clone(self), started, load, head_due: true, trial }
    }

    /// What a scout hears. `direct`: the same instance as this host's own clients see it, if they do.
    #[must_use]
    pub fn report(&self, now: Instant, direct: Option<&Endpoint>) -> Report {
        let moment = self.epoch.moment(now);
        let own = self.in_flight.load(Relaxed);
        let stall = direct.map(|direct| &direct.state.stall);
        let overdue = self
            .usual
            .late_after(moment, OVERDUE_PERCENT)
            .map_or(OVERDUE_UNKNOWN, |late| late.max(OVERDUE_MIN));
        // Whatever either side still waits for: a head on the other side since then proves life.
        let ages =
            [(Some(&self.stall), stall), (stall, Some(&self.stall))].map(|(stall, other)| {
                let age = stall.and_then(|stall| match stall.silence(moment) {
                    Silence::Waiting { age_ns } | Silence::Suspect { age_ns } => Some(age_ns),
                    Silence::None | Silence::Trial { .. } => None,
                })?;
                Some(Duration::from_nanos(
                    other.map_or(age, |other| age.min(other.unheard_ns(moment))),
                ))
            });
        let stalled = ages.into_iter().flatten().filter(|age| *age > overdue).max();
        let owes = [Some(&self.stall), stall]
            .into_iter()
            .flatten()
            .any(|stall| stall.silence(moment) != Silence::None);
        Report {
            known: true,
            in_flight: own.saturating_add(direct.map_or(0, Endpoint::in_flight)),
            latency: self.latency(moment, own).or_else(|| direct?.latency(now)),
            stalled,
            alive: !owes,
            draining: false,
        }
    }

    /// This process itself stood still: what looked like silence was ours.
    pub fn own_pause(&self, now: Instant) {
        self.stall.own_pause(self.epoch.moment(now));
    }

    /// The mean at this load, else at the next one below or above that was seen lately.
    fn latency(&self, now: u64, load: u32) -> Option<Duration> {
        let at = place(load);
        let below = self.by_load[..=at].iter().rev();
        let mut near = below.chain(&self.by_load[at + 1..]);
        near.find_map(|recent| recent.read(now))
    }
}

impl Visit {
    /// The response's head came: the application lives. Only the first call counts.
    pub fn head(&mut self, now: Instant) {
        if !std::mem::take(&mut self.head_due) {
            return;
        }
        let served = &*self.served;
        let now = served.epoch.moment(now);
        let took = Duration::from_nanos(now.saturating_sub(self.started));
        served.stall.answered(now, self.started, self.trial);
        served.usual.record(now, took);
        served.by_load[place(self.load)].observe(now, took);
    }
}

impl Visit {
    /// The caller went away. Unless the head had been due for longer than it usually takes, that says nothing.
    pub fn gone(&mut self, now: Instant) {
        let served = &*self.served;
        let now = served.epoch.moment(now);
        let waited = Duration::from_nanos(now.saturating_sub(self.started));
        let usual = served.usual.quantile(now, 50.0).unwrap_or(OVERDUE_UNKNOWN / 2);
        if self.head_due && waited <= usual * 2 {
            self.head_due = false;
            served.stall.withdrawn(self.started);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.head_due {
            self.served.stall.given_up(self.started, self.trial);
        }
        let before = self.served.in_flight.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a visit left twice");
    }
}

/// The mean of about the last eight latencies: ns as `f32` bits, then the tick of the last one. 0: none.
#[derive(Debug, Default)]
struct Recent(AtomicU64);

impl Recent {
    fn observe(&self, now: u64, took: Duration) {
        let (sample, word) = ((took.as_nanos() as f32).max(1.0), self.0.load(Relaxed));
        let mean = match self.mean(word, now) {
            Some(mean) => mean + (sample - mean) / 8.0,
            None => sample,
        };
        // Of two workers at the same moment one sample is lost, which a mean does not mind.
        self.0.store(u64::from(mean.to_bits()) << 32 | u64::from(tick(now)), Relaxed);
    }

    fn read(&self, now: u64) -> Option<Duration> {
        self.mean(self.0.load(Relaxed), now).map(|ns| Duration::from_nanos(ns as u64))
    }

    fn mean(&self, word: u64, now: u64) -> Option<f32> {
        let fresh = tick(now).wrapping_sub(word as u32) as i32 <= RECENT_TICKS;
        (word != 0 && fresh).then(|| f32::from_bits((word >> 32) as u32))
    }
}

fn tick(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// Loads up to 7 have a place each, above that two share an octave's halves.
fn place(load: u32) -> usize {
    let place = match load {
        0..8 => load,
        _ => {
            let octave = load.ilog2();
            8 + (octave - 3) * 2 + (load >> (octave - 1) & 1)
        }
    };
    (place as usize).min(LOADS - 1)
}

/// Up to about 1,500 in flight are told apart.
const LOADS: usize = 24;
const TICK_BITS: u32 = 20;
/// About 5 s: older latencies are from another time.
const RECENT_TICKS: i32 = 5_000;
const OVERDUE_PERCENT: f64 = 99.0;
/// Below a millisecond noise looks like stalls.
const OVERDUE_MIN: Duration = Duration::from_millis(1);
/// Before a hundred answers tell what is usual.
const OVERDUE_UNKNOWN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    /// An instance that has answered 200 requests in 1 ms each, the last one at the moment returned.
    fn warm() -> (Arc<Served>, Instant) {
        let mut now = start();
        let served = Arc::new(Served::new(now));
        for _ in 0..200 {
            let mut visit = served.begin(now);
            now += MS;
            visit.head(now);
        }
        (served, now + Duration::from_secs(2))
    }

    #[test]
    fn an_answer_that_is_overdue_is_a_stall_until_any_head_or_a_trial() {
        let (served, t0) = warm();
        assert!(served.report(t0, None).alive, "it owes nothing");
        let lost = served.begin(t0);
        let report = served.report(t0 + MS / 2, None);
        assert_eq!((report.stalled, report.alive, report.in_flight), (None, false, 1));
        assert_eq!(served.report(t0 + 5 * MS, None).stalled, Some(5 * MS));
        drop(lost);
        let report = served.report(t0 + 20 * MS, None);
        assert_eq!(
            (report.stalled, report.in_flight),
            (Some(20 * MS), 0),
            "cancelled, not answered"
        );
        let report = served.report(t0 + 150 * MS, None);
        assert_eq!((report.stalled, report.alive), (None, false), "somebody has to try it");
        let mut trial = served.begin(t0 + 150 * MS);
        assert!(served.report(t0 + 151 * MS, None).stalled.is_some(), "one trial at a time");
        trial.head(t0 + 152 * MS);
        assert!(served.report(t0 + 152 * MS, None).alive);
    }

    #[test]
    fn who_goes_away_at_once_leaves_no_stall_and_who_waited_long_does() {
        let (served, t0) = warm();
        let mut hasty = served.begin(t0);
        hasty.gone(t0 + MS / 10);
        drop(hasty);
        let report = served.report(t0 + 20 * MS, None);
        assert_eq!((report.stalled, report.alive), (None, true));
        let mut patient = served.begin(t0 + 30 * MS);
        patient.gone(t0 + 40 * MS);
        drop(patient);
        assert_eq!(served.report(t0 + 50 * MS, None).stalled, Some(20 * MS));
    }

    #[test]
    fn nothing_is_a_stall_before_it_is_known_what_is_usual() {
        let t0 = start();
        let served = Arc::new(Served::new(t0));
        let _visit = served.begin(t0);
        assert_eq!(served.report(t0 + 50 * MS, None).stalled, None);
    }

    #[test]
    fn the_latency_is_that_of_the_load() {
        let t0 = start();
        let served = Arc::new(Served::new(t0));
        assert_eq!(served.report(t0, None).latency, None);
        let idle = |at: Instant, took| {
            let mut visit = served.begin(at);
            visit.head(at + took);
        };
        (0..50).for_each(|i| idle(t0 + i * 10 * MS, 2 * MS));
        let t1 = t0 + Duration::from_secs(1);
        let mut busy: Vec<Visit> = (0..20).map(|_| served.begin(t1)).collect();
        busy.iter_mut().for_each(|visit| visit.head(t1 + 40 * MS));
        let t2 = t1 + 50 * MS;
        let loaded = served.report(t2, None).latency.expect("it was seen");
        assert!(loaded > 30 * MS, "with twenty in flight: {loaded:?}");
        drop(busy);
        let free = served.report(t2, None).latency.expect("it was seen");
        assert!(free < 10 * MS, "with none: {free:?}");
        assert_eq!(served.report(t2 + Duration::from_secs(60), None).latency, None, "too old");
    }

    proptest! {
        #[test]
        fn more_load_never_has_an_earlier_place(load in any::<u32>(), more in any::<u32>()) {
            let (low, high) = (load.min(more), load.max(more));
            prop_assert!(place(low) <= place(high) && place(high) < LOADS);
        }

        #[test]
        fn in_flight_returns_to_zero_whatever_ends_when(steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 1..100)) {
            let t0 = start();
            let served = Arc::new(Served::new(t0));
            let mut visits: Vec<Visit> = Vec::new();
            for (step, (what, at)) in steps.into_iter().enumerate() {
                let now = t0 + MS * step as u32;
                match what {
                    0 => visits.push(served.begin(now)),
                    1 if !visits.is_empty() => { let at = at.index(visits.len()); visits[at].head(now) }
                    2 if !visits.is_empty() => drop(visits.swap_remove(at.index(visits.len()))),
                    _ => {}
                }
                prop_assert_eq!(served.report(now, None).in_flight as usize, visits.len());
            }
            drop(visits);
            prop_assert_eq!(served.report(t0, None).in_flight, 0);
        }
    }
}

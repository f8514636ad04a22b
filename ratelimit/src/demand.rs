//! How much is wanted: what was *offered*, whether or not it was let through.
//!
//! Demand measured as what was admitted can never exceed the lease, so a starved host looks content. And a rate taken as one over
//! the gap between requests is wrong for bursts and not a number for silence. So: units offered are counted in slots, and demand is the
//! count over a window divided by its length, in integers.
//!
//! The window is the time that the limit is for, but 1 s at least and 5 min at most ([`WINDOW`]): of a limit of three a minute a second would show
//! nothing most of the time. Two windows, and the larger estimate counts: this one, in eight slots, and its last quarter when that saw at least
//! [`QUICK_MIN`] units, so that a step is noticed at once and a pause of a moment gives nothing away. The running slot is left out until it is
//! complete. A host in its first window divides by the time it has, if that is a second or saw more than a few.
//!
//! Orderings: relaxed; each slot is one atomic that holds its number and its count, so a stale slot is never read as a fresh one.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::quantity::Micros;

/// Units offered lately, counted by all workers.
#[derive(Debug)]
pub struct Demand {
    epoch: Instant,
    slot_ns: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

impl Demand {
    /// Of a limit that is for so long. Nothing was offered before `epoch`.
    #[must_use]
    pub fn new(epoch: Instant, per: Duration) -> Demand {
        Demand {
            epoch,
            slot_ns: AtomicU64::new(slot_ns(per)),
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The limit is for so long from now on. If that is another window, counting begins anew.
    pub fn set_per(&self, per: Duration) {
        if self.slot_ns.swap(slot_ns(per), Relaxed) != slot_ns(per) {
            self.slots.iter().for_each(|slot| slot.store(0, Relaxed));
        }
    }

    /// A request for `cost` units came. Call it before asking whether it may go.
    #[inline]
    pub fn offer(&self, now: Instant, cost: u32) {
        let number = self.number(now);
        let slot = &self.slots[number as usize % SLOTS];
        let mut word = slot.load(Relaxed);
        loop {
            // A worker whose clock is a little behind adds to the newer slot that has the place by now. Much newer ones are of another window.
            let ahead = ((word >> 32) as u32).wrapping_sub(number);
            let next = if ahead <= SLOTS as u32 {
                word & !COUNT | (word & COUNT).saturating_add(u64::from(cost)).min(COUNT)
            } else {
                u64::from(number) << 32 | u64::from(cost)
            };
            match slot.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// Units offered in each `per`, now.
    #[must_use]
    pub fn in_each(&self, per: Duration, now: Instant) -> Micros {
        let per_ns = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let number = self.number(now);
        let complete = number - FIRST;
        let long = self.count(number, complete.min(SLOTS_IN_WINDOW));
        let quick = self.count(number, complete.min(QUICK));
        let slot_ns = self.slot_ns.load(Relaxed);
        let over = |count: u64, slots: u32| match slots {
            // Nothing is complete yet: what came so far came within a slot.
            0 => Micros::units(self.count(number + 1, 1)).part(per_ns, slot_ns),
            _ => Micros::units(count).part(per_ns, slot_ns * u64::from(slots)),
        };
        // In a long window the first few are chance too, and would count as many for long.
        let sofar = if complete == 0 { self.count(number + 1, 1) } else { long };
        let steady = if sofar < QUICK_MIN && slot_ns > SLOT_NS_MIN {
            over(sofar, SLOTS_IN_WINDOW)
        } else {
            over(long, complete.min(SLOTS_IN_WINDOW))
        };
        if quick < QUICK_MIN { steady } else { steady.max(over(quick, complete.min(QUICK))) }
    }

    /// Units in the `slots` slots before `number`.
    fn count(&self, number: u32, slots: u32) -> u64 {
        let words = self.slots.iter().map(|slot| slot.load(Relaxed));
        let recent = words
            .filter(|word| ((word >> 32) as u32) < number && (word >> 32) as u32 >= number - slots);
        recent.map(|word| word & COUNT).sum()
    }

    /// The running slot. Numbers begin at [`FIRST`], so that an empty slot's 0 is older than any.
    fn number(&self, now: Instant) -> u32 {
        let nanos = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        u32::try_from(nanos / self.slot_ns.load(Relaxed))
            .unwrap_or(u32::MAX / 2)
            .saturating_add(FIRST)
    }
}

fn slot_ns(per: Duration) -> u64 {
    let window = per.clamp(*WINDOW.start(), *WINDOW.end());
    (window.as_nanos() / u128::from(SLOTS_IN_WINDOW)) as u64
}

/// The shortest and the longest window.
pub const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
const SLOTS_IN_WINDOW: u32 = 8;
/// Of the shortest window.
const SLOT_NS_MIN: u64 = 125_000_000;
/// Slots of the quick window.
const QUICK: u32 = 2;
/// The quick window counts with at least so many units: fewer are chance.
const QUICK_MIN: u64 = 16;
/// A window, the running slot, and slack for workers whose clocks are behind.
const SLOTS: usize = 12;
/// Larger than any window.
const FIRST: u32 = 16;
/// The count's bits in a slot.
const COUNT: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn silence_is_nothing_and_bursts_are_what_they_are() {
        let t0 = start();
        let demand = Demand::new(t0, SECOND);
        assert_eq!(demand.in_each(SECOND, t0), Micros::ZERO);
        assert_eq!(demand.in_each(SECOND, t0 + millis(60_000)), Micros::ZERO);
        // Two requests at the same instant: one over the gap would be infinite.
        (0..2).for_each(|_| demand.offer(t0 + millis(60_000), 1));
        assert_eq!(demand.in_each(SECOND, t0 + millis(60_500)), Micros::units(2));
        assert_eq!(
            demand.in_each(SECOND, t0 + millis(62_000)),
            Micros::ZERO,
            "a window without requests is 0, not NaN"
        );
    }

    #[test]
    fn a_step_shows_within_a_quarter_of_a_second() {
        let t0 = start();
        let demand = Demand::new(t0, SECOND);
        (0..400).for_each(|i| demand.offer(t0 + millis(10_000 + i), 1));
        let seen = demand.in_each(SECOND, t0 + millis(10_376));
        assert_eq!(seen, Micros::units(1_000));
        assert_eq!(demand.in_each(SECOND, t0 + millis(60_000)), Micros::ZERO);
    }

    #[test]
    fn few_a_minute_are_seen_between_them_too() {
        let t0 = start();
        let minute = Duration::from_secs(60);
        let demand = Demand::new(t0, minute);
        let came = |second: u64| t0 + millis(second * 1_000);
        for second in 0..200 {
            if second % 20 == 0 {
                demand.offer(came(second), 1);
            }
            if second >= 60 {
                assert_eq!(demand.in_each(minute, came(second)), Micros::units(3), "at {second} s");
            }
        }
        assert_eq!(demand.in_each(Duration::from_secs(3_600), came(199)), Micros::units(180));
        assert_eq!(demand.in_each(minute, came(270)), Micros::ZERO);
        let day = Demand::new(t0, Duration::from_secs(86_400));
        day.offer(t0, 1);
        assert_eq!(day.in_each(minute, came(1)).micros(), 200_000, "one in five minutes");
        assert_eq!(day.in_each(minute, came(40)).micros(), 200_000);
        assert_eq!(
            day.in_each(minute, came(600)),
            Micros::ZERO,
            "it looks back no longer than 5 min"
        );
    }

    #[test]
    fn another_window_begins_anew() {
        let t0 = start();
        let demand = Demand::new(t0, Duration::from_secs(3_600));
        (0..10).for_each(|_| demand.offer(t0 + millis(60_000), 1));
        demand.set_per(SECOND);
        assert_eq!(demand.in_each(SECOND, t0 + millis(60_100)), Micros::ZERO);
        (0..100).for_each(|i| demand.offer(t0 + millis(61_000 + 10 * i), 1));
        assert_eq!(demand.in_each(SECOND, t0 + millis(62_000)), Micros::units(100));
        demand.set_per(SECOND);
        assert_eq!(demand.in_each(SECOND, t0 + millis(62_000)), Micros::units(100));
    }

    #[test]
    fn the_first_requests_of_a_host_count() {
        let t0 = start();
        let demand = Demand::new(t0, SECOND);
        (0..10).for_each(|_| demand.offer(t0 + millis(5), 3));
        assert_eq!(demand.in_each(SECOND, t0 + millis(6)), Micros::units(240));
        assert_eq!(demand.in_each(SECOND, t0 + millis(250)), Micros::units(120));
        assert_eq!(demand.in_each(SECOND, t0 + millis(1_001)), Micros::units(30));
    }

    proptest! {
        /// At a steady rate the estimate is that rate, to within the unit at each edge of the quick window.
        #[test]
        fn a_steady_rate_is_measured_without_bias(rate in 1u64..20_000, phase in 0u64..1_000_000) {
            let t0 = start();
            let demand = Demand::new(t0, SECOND);
            let gap = 1_000_000_000 / rate;
            for i in 0..3 * rate {
                demand.offer(t0 + Duration::from_nanos(phase + i * gap), 1);
            }
            let seen = demand.in_each(SECOND, t0 + millis(2_500)).as_f64();
            let actual = 1e9 / gap as f64;
            prop_assert!((seen - actual).abs() <= 4.0 + actual * 0.001, "{seen} for {actual}");
        }

        #[test]
        fn no_input_makes_it_absurd(offers in prop::collection::vec((0u64..3_000, any::<u32>()), 0..50)) {
            let t0 = start();
            let demand = Demand::new(t0, SECOND);
            let (mut now, mut total) = (t0, 0u128);
            for (gap, cost) in offers {
                now += millis(gap);
                demand.offer(now, cost);
                total += u128::from(cost);
                prop_assert!(u128::from(demand.in_each(SECOND, now).whole()) <= 8 * total);
            }
        }
    }
}

//! How many requests may be in flight: the same leases, spent by holding instead of by the second.
//!
//! A place is taken by [`Concurrency::try_enter`] and given back when its [`Place`] is dropped, however the request ended. The lease
//! sets the limit; a lease below what is in flight admits nobody until enough have left. A host cannot give back what is in use, so
//! [`Concurrency::close`] tells how far it may lower its lease.
//!
//! What is lent must not be in use, at that very moment: so a host [closes](Concurrency::close) its places while it decides what to lend or to give
//! back, and opens them with what is left. That lasts microseconds; who comes meanwhile tries again. The limit and those inside are one number, so
//! that nobody slips in between.
//!
//! Demand is the most that was in flight or refused at once since it was last read: a level, where a rate counts events.
//! Orderings: relaxed; the numbers guard no other memory, and entering is one read-modify-write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::quantity::Micros;

/// The places of one resource on this host, shared by all workers.
#[derive(Debug, Default)]
pub struct Concurrency {
    /// [`CLOSED`], the limit, and those inside, from the highest bit down.
    state: AtomicU64,
    /// The most that was wanted at once since it was last read.
    wanted: AtomicU32,
}

/// A place taken; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the place gives it back"]
pub struct Place(Arc<Concurrency>);

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    Full,
    /// For a moment nobody may say.
    Closed,
}

impl Concurrency {
    /// No places yet.
    #[must_use]
    pub fn new() -> Arc<Concurrency> {
        Arc::new(Concurrency::default())
    }

    /// As many places as `lease` has whole units, at once.
    pub fn set_limit(&self, lease: Micros) {
        let limit = limit_of(lease);
        self.state.update(Relaxed, Relaxed, |state| (state & !LIMIT) | limit);
    }

    /// A place, if one is free.
    ///
    /// # Errors
    /// Nobody entered.
    pub fn try_enter(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let entered = self.state.try_update(Relaxed, Relaxed, |state| {
            (state & CLOSED == 0 && inside(state) < state >> 32).then(|| state + 1)
        });
        let (Ok(before) | Err(before)) = entered;
        self.wanted.fetch_max(u32::try_from(inside(before) + 1).unwrap_or(u32::MAX), Relaxed);
        match entered {
            Ok(_) => Ok(Place(Arc::clone(self))),
            Err(state) if state & CLOSED != 0 => Err(NoPlace::Closed),
            Err(_) => Err(NoPlace::Full),
        }
    }

    /// Lets nobody in until it is opened; what those inside hold.
    pub fn close(&self) -> Micros {
        Micros::units(inside(self.state.fetch_or(CLOSED, Relaxed)))
    }

    /// Lets others in again, up to the limit or to `lease` if that is less.
    pub fn open(&self, lease: Micros) {
        let most = limit_of(lease);
        self.state.update(Relaxed, Relaxed, |state| {
            (state & !LIMIT & !CLOSED) | (state & LIMIT).min(most)
        });
    }

    /// The most that was wanted at once since the last call.
    #[must_use]
    pub fn take_wanted(&self) -> Micros {
        let now = u32::try_from(inside(self.state.load(Relaxed))).unwrap_or(u32::MAX);
        Micros::units(u64::from(self.wanted.swap(now, Relaxed).max(now)))
    }
}

fn inside(state: u64) -> u64 {
    state & INSIDE
}

/// In its place in the state.
fn limit_of(lease: Micros) -> u64 {
    (lease.whole().min(LIMIT >> 32)) << 32
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.0.state.fetch_sub(1, Relaxed);
        debug_assert!(inside(before) > 0, "left more often than entered");
    }
}

/// Nobody is let in.
const CLOSED: u64 = 1 << 63;
/// The bits of the limit, which are one fewer than those of the number inside: that never runs over.
const LIMIT: u64 = (1 << 63) - (1 << 32);
/// The bits of those inside.
const INSIDE: u64 = (1 << 32) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_so_many_places() {
        let places = Concurrency::new();
        assert_eq!(places.try_enter().err(), Some(NoPlace::Full), "none before the first lease");
        places.set_limit(Micros::from_micros(2_900_000).unwrap());
        let (first, second) = (places.try_enter().unwrap(), places.try_enter().unwrap());
        assert!(places.try_enter().is_err(), "2.9 units are two places");
        assert_eq!(places.take_wanted(), Micros::units(3), "the one that was refused counts");
        drop(first);
        assert_eq!(places.close(), Micros::units(1));
        assert_eq!(places.try_enter().err(), Some(NoPlace::Closed), "though one is free");
        places.open(Micros::MAX);
        let third = places.try_enter().unwrap();
        places.set_limit(Micros::units(1));
        drop(second);
        assert!(places.try_enter().is_err(), "a cut lets nobody in until enough have left");
        drop(third);
        let last = places.try_enter();
        assert!(last.is_ok());
        assert_eq!(places.take_wanted(), Micros::units(2));
        drop(last);
        assert_eq!(
            places.take_wanted(),
            Micros::units(1),
            "what was in flight when it was last read"
        );
        assert_eq!(places.take_wanted(), Micros::ZERO);
    }

    #[test]
    fn what_is_opened_again_is_no_more_than_what_is_left() {
        let places = Concurrency::new();
        places.set_limit(Micros::units(10));
        let one = places.try_enter().unwrap();
        assert_eq!(places.close(), Micros::units(1));
        places.set_limit(Micros::units(8));
        assert!(places.try_enter().is_err(), "a limit opens nothing");
        places.open(Micros::units(1));
        assert_eq!(places.try_enter().err(), Some(NoPlace::Full));
        places.set_limit(Micros::MAX);
        places.close();
        drop(one);
        assert_eq!(places.close(), Micros::ZERO, "those inside leave all the same");
        places.open(Micros::MAX);
        assert!(places.try_enter().is_ok());
    }
}

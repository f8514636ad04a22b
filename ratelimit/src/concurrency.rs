//! How many requests may be in flight: the same leases, spent by holding instead of by the second.
//!
//! A place is taken by [`Concurrency::try_enter`] and given back when its [`Place`] is dropped, however the request ended. The lease
//! sets the limit; a lease below what is in flight admits nobody until enough have left. A host cannot give back what is in use, so
//! [`Concurrency::held`] tells how far it may lower its lease.
//!
//! Demand is the most that was in flight or refused at once since it was last read: a level, where a rate counts events.
//! Orderings: relaxed; the numbers guard no other memory, and entering is one read-modify-write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::quantity::Micros;

/// The places of one resource on this host, shared by all workers.
#[derive(Debug, Default)]
pub struct Concurrency {
    inside: AtomicU32,
    limit: AtomicU32,
    /// The most that was wanted at once since it was last read.
    wanted: AtomicU32,
}

/// A place taken; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the place gives it back"]
pub struct Place(Arc<Concurrency>);

impl Concurrency {
    /// No places yet.
    #[must_use]
    pub fn new() -> Arc<Concurrency> {
        Arc::new(Concurrency::default())
    }

    /// As many places as `lease` has whole units, at once.
    pub fn set_limit(&self, lease: Micros) {
        self.limit.store(u32::try_from(lease.whole()).unwrap_or(u32::MAX), Relaxed);
    }

    /// A place, if one is free.
    #[must_use]
    pub fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit.load(Relaxed);
        let entered =
            self.inside.try_update(Relaxed, Relaxed, |inside| (inside < limit).then(|| inside + 1));
        let (Ok(before) | Err(before)) = entered;
        self.wanted.fetch_max(before.saturating_add(1), Relaxed);
        entered.is_ok().then(|| Place(Arc::clone(self)))
    }

    /// Places taken now.
    #[must_use]
    pub fn held(&self) -> Micros {
        Micros::units(u64::from(self.inside.load(Relaxed)))
    }

    /// The most that was wanted at once since the last call.
    #[must_use]
    pub fn take_wanted(&self) -> Micros {
        let inside = self.inside.load(Relaxed);
        Micros::units(u64::from(self.wanted.swap(inside, Relaxed).max(inside)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.0.inside.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "left more often than entered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_so_many_places() {
        let places = Concurrency::new();
        assert!(places.try_enter().is_none(), "none before the first lease");
        places.set_limit(Micros::from_micros(2_900_000).unwrap());
        let (first, second) = (places.try_enter().unwrap(), places.try_enter().unwrap());
        assert!(places.try_enter().is_none(), "2.9 units are two places");
        assert_eq!(places.take_wanted(), Micros::units(3), "the one that was refused counts");
        drop(first);
        assert_eq!(places.held(), Micros::units(1));
        let third = places.try_enter().unwrap();
        places.set_limit(Micros::units(1));
        drop(second);
        assert!(places.try_enter().is_none(), "a cut lets nobody in until enough have left");
        drop(third);
        let last = places.try_enter();
        assert!(last.is_some());
        assert_eq!(places.take_wanted(), Micros::units(2));
        drop(last);
        assert_eq!(
            places.take_wanted(),
            Micros::units(1),
            "what was in flight when it was last read"
        );
        assert_eq!(places.take_wanted(), Micros::ZERO);
    }
}

//! `balance: hash`: the same endpoint for the same key, as long as its load allows it.
//!
//! The first usable endpoint in the key's [order](crate::rendezvous) that has room. Room: fewer requests in flight than `hash.bound` × the mean, by
//! weight, rounded up; what does not fit goes to the next in the key's order, so a hot key spreads over as many endpoints as it needs and
//! comes back when it cools. (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads".) Without a bound one
//! hot key is one hot endpoint, which is why plain consistent hashing has a bad name.
//!
//! - A retry or a copy goes to the next in the order: the first is among those tried.
//! - What is ejected, on probation, held or under suspicion is passed over, and has its keys again when it is well. Others' keys stay.
//! - Zones are not looked at: they would send one key to different endpoints from different zones.
//!
//! The quick way looks at the beginning of the order, which is remembered, and takes the mean over all that serve. Only when no endpoint there
//! has room are all looked at: then the mean is over those that are usable, and one of them always has room.
//!
//! The mean is this client's own: hosts do not tell each other what they have in flight. Each keeps the bound, so all together do.

use std::sync::atomic::Ordering::Relaxed;

use crate::choice::{Pick, Rank};
use crate::key::scramble;
use crate::rendezvous::{Few, Highest, KEPT, score};
use crate::set::Set;

impl Set {
    /// All endpoints in the order of this key.
    pub(crate) fn order(&self, key: u64) -> Vec<usize> {
        let key = scramble(key ^ ORDERS);
        let mut order: Vec<(f64, usize)> = (0..self.len())
            .map(|index| (score(key, self.identity(index), self.unequal_weight(index)), index))
            .collect();
        order.sort_by(|one, other| other.0.total_cmp(&one.0));
        order.into_iter().map(|(_, index)| index).collect()
    }

    /// The first endpoints in the order of this key, scrambled.
    fn first_in_order(&self, key: u64) -> Few {
        self.memo().get(key, || {
            let mut highest = Highest::new(KEPT);
            for index in 0..self.len() {
                highest.add(score(key, self.identity(index), self.unequal_weight(index)), index);
            }
            Few::new(highest.best().iter().map(|&(_, index)| index))
        })
    }
}

impl Pick<'_> {
    /// The endpoint for this key; `None` when none is fresh. `in_flight` and `usable`: of the upstream, now.
    pub(crate) fn by_key(
        &self,
        key: u64,
        bound: f64,
        in_flight: u32,
        usable: u32,
    ) -> Option<usize> {
        let key = scramble(key ^ ORDERS);
        if self.few.is_none() {
            let mean = f64::from(in_flight + 1) / f64::from(usable.max(1));
            let serving = f64::from(self.set.serving().max(1));
            let share = |index| match self.set.unequal_weight(index) {
                None => 1.0,
                Some(weight) => f64::from(weight) * serving / self.set.weight_serving(),
            };
            let order = self.set.first_in_order(key);
            let has_room = |&index: &usize| {
                self.is_well(index) && self.load(index) < (bound * mean * share(index)).ceil()
            };
            if let Some(index) = order.iter().find(has_room) {
                return Some(index);
            }
        }
        self.by_key_among_all(key, bound)
    }

    fn by_key_among_all(&self, key: u64, bound: f64) -> Option<usize> {
        let fresh = || self.candidates().filter(|&index| self.rank(index) == Rank::Fresh);
        let (load, weight) = fresh().fold((1.0, 0.0), |(load, weight), index| {
            (load + self.load(index), weight + f64::from(self.set.look(index).weight))
        });
        let has_room = |index: usize| {
            self.load(index)
                < (bound * load * f64::from(self.set.look(index).weight) / weight).ceil()
        };
        let first = |indices: &mut dyn Iterator<Item = usize>| {
            let scored = indices.map(|index| {
                (score(key, self.set.identity(index), self.set.unequal_weight(index)), index)
            });
            scored.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, index)| index)
        };
        first(&mut fresh().filter(|&index| self.is_well(index) && has_room(index)))
            .or_else(|| first(&mut fresh().filter(|&index| has_room(index))))
    }

    fn is_well(&self, index: usize) -> bool {
        self.rank(index) == Rank::Fresh && !self.is_suspect(index)
    }

    fn load(&self, index: usize) -> f64 {
        f64::from(self.set.look(index).state.in_flight.load(Relaxed))
    }
}

const ORDERS: u64 = 0x6F72_6465_7273_0000;

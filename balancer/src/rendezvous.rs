//! A key's order of the endpoints: who comes first for it, on every host the same.
//!
//! Each endpoint has a number for each key, and the order is by these numbers (Thaler and Ravishankar, "A Name-Based Mapping Scheme for
//! Rendezvous"). An endpoint that comes or goes takes only its own place: the others keep theirs, which a table of residues or a
//! ring with few points does not give. With unequal weights the number is weight / −ln u, u evenly in 0 to 1: then an
//! endpoint is first for its weight's share of the keys.
//!
//! The number comes from the key and the endpoint's identity (node id, instance id, address) alone, through `key`'s functions, so that
//! hosts agree. With unequal weights a logarithm takes part, whose last bit may differ between machines; two
//! endpoints would have to be that close to change places for one key of many billions.
//!
//! Looking at all endpoints costs some nanoseconds for each; so the [`Memo`] keeps the beginnings of recent keys' orders. It belongs to one
//! snapshot of the set and goes with it. Workers share it without a lock: a slot's first word is the key, combined with the words that it
//! goes with, so a slot that two workers write at once belongs to no key and is simply computed again (Hyatt and Mann, "A Lockless
//! Transposition Table").

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::endpoint::EndpointSpec;
use crate::key::{key_hash, scramble};
use crate::set::ENDPOINTS_MAX;

/// Some endpoints of a set, best first, by their index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Few {
    members: [u16; FEW_MAX],
    count: u8,
}

impl Few {
    pub(crate) fn new(members: impl IntoIterator<Item = u16>) -> Few {
        let mut few = Few { members: [0; FEW_MAX], count: 0 };
        for (place, member) in few.members.iter_mut().zip(members) {
            *place = member;
            few.count += 1;
        }
        few
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// The endpoint at this place.
    pub(crate) fn at(&self, place: usize) -> usize {
        usize::from(self.members[place])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.members[..self.len()].iter().map(|&member| usize::from(member))
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.iter().any(|member| member == index)
    }
}

/// The number of an endpoint that all keys' numbers are made from.
pub(crate) fn identity_hash(spec: &EndpointSpec) -> u64 {
    let (node, instance, address) = spec.identity();
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&node.to_be_bytes());
    bytes.extend_from_slice(instance.as_bytes());
    // Cannot occur in an instance's id, so no two identities have the same bytes.
    bytes.push(0);
    bytes.extend_from_slice(address.to_string().as_bytes());
    key_hash(&bytes)
}

/// Where an endpoint stands in a key's order: higher comes first. `weight`: `None` when all are equal.
pub(crate) fn score(key: u64, identity: u64, weight: Option<u32>) -> f64 {
    // Above 0 and below 1.
    let even = ((scramble(key ^ identity) >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    match weight {
        None => even,
        Some(weight) => f64::from(weight) / -even.ln(),
    }
}

/// The highest numbers seen, and whose they are.
#[derive(Debug, Clone)]
pub(crate) struct Highest {
    best: Vec<(f64, u16)>,
    places: usize,
}

impl Highest {
    pub(crate) fn new(places: usize) -> Highest {
        Highest { best: Vec::with_capacity(places), places }
    }

    /// In the order of the set, so that of two with one number the first stays before the other.
    pub(crate) fn add(&mut self, score: f64, index: usize) {
        if self.best.len() == self.places {
            if self.best.last().is_none_or(|&(least, _)| score <= least) {
                return;
            }
            self.best.pop();
        }
        let place = self.best.partition_point(|&(other, _)| other >= score);
        self.best.insert(place, (score, index as u16));
    }

    /// Best first.
    pub(crate) fn best(&self) -> &[(f64, u16)] {
        &self.best
    }
}

/// The beginnings of recent keys' orders.
#[derive(Debug, Default)]
pub(crate) struct Memo(OnceLock<Box<[Slot]>>);

/// The key combined with the other words; these hold up to [`KEPT`] members, inverted, so that an empty slot is no order.
type Slot = [AtomicU64; 1 + WORDS];

impl Memo {
    /// At most [`KEPT`] members for this key: those known, or those that `compute` finds.
    pub(crate) fn get(&self, key: u64, compute: impl FnOnce() -> Few) -> Few {
        let slots = self.0.get_or_init(|| (0..SLOTS).map(|_| Slot::default()).collect());
        let slot = &slots[key as usize % SLOTS];
        let words: [u64; WORDS] = std::array::from_fn(|word| slot[1 + word].load(Relaxed));
        if words[0] != 0 && slot[0].load(Relaxed) == words.iter().fold(key, |tag, word| tag ^ word)
        {
            let lanes = words
                .iter()
                .flat_map(|word| (0..LANES).map(move |lane| (!word >> (16 * lane)) as u16));
            return Few::new(lanes.filter(|&lane| lane != NOBODY));
        }
        let few = compute();
        debug_assert!(few.len() <= KEPT);
        let lane = |place: usize| {
            if place < few.len() { few.members[place] } else { NOBODY }
        };
        let words: [u64; WORDS] = std::array::from_fn(|word| {
            !(0..LANES).fold(0, |packed, place| {
                packed | u64::from(lane(word * LANES + place)) << (16 * place)
            })
        });
        slot[0].store(words.iter().fold(key, |tag, word| tag ^ word), Relaxed);
        for (place, word) in slot[1..].iter().zip(words) {
            place.store(word, Relaxed);
        }
        few
    }
}

/// The largest shard.
pub(crate) const FEW_MAX: usize = 64;
/// Members that the memo keeps of a key's order.
pub(crate) const KEPT: usize = WORDS * LANES;
const WORDS: usize = 2;
const LANES: usize = 4;
/// Keys whose orders are kept: 24 KiB for an upstream that has keys.
const SLOTS: usize = 1_024;
/// No member: larger than any index.
const NOBODY: u16 = u16::MAX;
const _: () = assert!(ENDPOINTS_MAX <= NOBODY as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_memo_gives_back_what_was_computed() {
        let memo = Memo::default();
        for key in (0..5_000u64).map(scramble) {
            let members: Vec<u16> =
                (0..key % 9).map(|place| (key >> place) as u16 % 9_999).collect();
            let few = memo.get(key, || Few::new(members.clone()));
            assert_eq!(
                few.iter().collect::<Vec<_>>(),
                members.iter().map(|&m| usize::from(m)).collect::<Vec<_>>()
            );
            if !members.is_empty() {
                let again = memo.get(key, || panic!("it is known"));
                assert_eq!(again.iter().collect::<Vec<_>>(), few.iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_slot_with_another_keys_words_is_computed_again() {
        let memo = Memo::default();
        memo.get(1, || Few::new([7]));
        let slots = memo.0.get().expect("made");
        slots[1][1].store(!5, Relaxed);
        assert_eq!(memo.get(1, || Few::new([9])).at(0), 9);
    }

    #[test]
    fn first_places_follow_the_weights() {
        let weights = [1u32, 2, 5, 0];
        let mut firsts = [0u32; 4];
        for key in (0..40_000).map(scramble) {
            let mut highest = Highest::new(1);
            for (index, &weight) in weights.iter().enumerate() {
                highest.add(score(key, scramble(1_000 + index as u64), Some(weight)), index);
            }
            firsts[usize::from(highest.best()[0].1)] += 1;
        }
        for (first, weight) in firsts.iter().zip(weights) {
            let share = f64::from(*first) / 40_000.0;
            assert!((share - f64::from(weight) / 8.0).abs() < 0.01, "{firsts:?}");
        }
    }

    proptest! {
        #[test]
        fn the_highest_are_the_highest(scores in prop::collection::vec(0u8..50, 0..40), places in 1usize..10) {
            let mut highest = Highest::new(places);
            scores.iter().enumerate().for_each(|(index, &score)| highest.add(f64::from(score), index));
            let mut sorted: Vec<(u8, usize)> = scores.iter().copied().zip(0..).collect();
            sorted.sort_by_key(|&(score, index)| (std::cmp::Reverse(score), index));
            let expected: Vec<usize> = sorted.iter().take(places).map(|&(_, index)| index).collect();
            let found: Vec<usize> = highest.best().iter().map(|&(_, index)| usize::from(index)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

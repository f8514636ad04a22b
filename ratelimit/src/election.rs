//! Who is root of a resource, and what each host owns of it.
//!
//! **Root.** [`root_of`] is the live member with the highest hash of (resource, member): rendezvous hashing, so that a member that
//! comes or goes moves only the resources that it gains or loses. Hosts with different views may name different roots; that costs
//! utilisation for a while, never safety. Whatever else may one day decide who is root, this function's answer is the only place it enters.
//!
//! **Rights.** Under a roster (epoch, members, weights) host i owns C · weightᵢ / W. A host that knows several rosters of which the
//! oldest may still be in use owns the *least* of what they give it. A roster is *settled* once every member, old or new, has said
//! that it knows this roster and has lent no more than all rosters it knows give it. From then on older ones do not count.
//!
//! Why that is safe, if an epoch names one roster: let S be the latest settled epoch known to anybody. Every host has said that it knows
//! S, and forgets none (the oldest are merged into one that gives the least of them). So S is among
//! those of which it takes the least: each owns at most what S gives it, and these add up to C at most. It needs no agreement on
//! *when*; and a joiner, whom the old rosters give nothing, starts at nothing and gets its right when the others have made room.
//!
//! **Where it is only bounded.** A member that was removed without saying goodbye is waited for only as long as its loans can last. If it
//! is dead, nothing of it is in use by then. If it is alive behind a partition it goes on using its right, and then the sum is at most C +
//! the rights of the members so removed, for as long as they do not hear of it. Rosters made by two hosts for one epoch are outside of
//! the argument; so is a roster that says `settled` when it is not, or leaves out of `removed` who was a member.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::lease::DRIFT;
use crate::quantity::Micros;

/// Who owns the capacity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Roster {
    /// Rises with each change, from 1; an epoch names one roster.
    pub epoch: u64,
    /// Host to weight.
    pub members: BTreeMap<u64, u32>,
    /// Hosts that were members of an earlier roster and may not have heard of this one, and how long from here loans of theirs may last.
    pub removed: BTreeMap<u64, Duration>,
    /// Nobody uses an older one: the mesh's first, or one heard to be settled.
    pub settled: bool,
}

/// A roster that is not followed; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRoster {
    /// Not newer than what is known.
    Stale,
    /// More than [`MEMBERS_MAX`] members, with the removed.
    TooManyMembers,
}

/// The rosters that may still be in use somewhere, as one host sees them.
#[derive(Debug, Clone)]
pub struct Rosters {
    host: u64,
    /// What the host owns under each, by rising epoch.
    shares: VecDeque<Share>,
    /// The newest that is known only as part of the oldest share.
    merged: u64,
    /// The latest of the merged that was known to be settled; 0: none.
    merged_settled: u64,
    newest: Roster,
    /// When the newest was heard of.
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    epoch: u64,
    weight: u64,
    total: u64,
    /// What members before the host weigh, so that all rights make up the capacity exactly; `None`: of a merged roster.
    before: Option<u64>,
    settled: bool,
}

impl Share {
    fn of(self, capacity: Micros) -> Micros {
        match self.before {
            Some(before) => {
                let upto = capacity.part(before + self.weight, self.total);
                upto.minus(capacity.part(before, self.total))
            }
            None => capacity.part(self.weight, self.total),
        }
    }
}

/// The live member that is root of `resource`.
#[must_use]
pub fn root_of(resource: &[u8], live: impl IntoIterator<Item = u64>) -> Option<u64> {
    let seed = hash(resource);
    live.into_iter().max_by_key(|host| (mix(seed ^ mix(*host)), *host))
}

/// FNV-1a, on which all versions agree.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: hosts of all versions must agree, so no library's hash whose values may change.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Rosters {
    /// No roster is known to `host` yet: it owns nothing.
    #[must_use]
    pub fn new(host: u64) -> Rosters {
        Rosters {
            host,
            shares: VecDeque::new(),
            merged: 0,
            merged_settled: 0,
            newest: Roster::default(),
            since: None,
        }
    }

    /// A newer roster was heard of, or that a known one is settled.
    pub fn add(&mut self, now: Instant, roster: Roster) -> Result<(), BadRoster> {
        if self.newest.epoch >= roster.epoch {
            let known = self.shares.iter().position(|share| share.epoch == roster.epoch);
            let at = known.filter(|at| roster.settled && !self.shares[*at].settled);
            self.shares.drain(..at.ok_or(BadRoster::Stale)?);
            self.shares[0].settled = true;
            return Ok(());
        }
        if roster.members.len() + roster.removed.len() > MEMBERS_MAX {
            return Err(BadRoster::TooManyMembers);
        }
        if roster.settled {
            self.shares.clear();
        }
        if self.shares.len() == ROSTERS_MAX {
            self.merge_oldest();
        }
        self.shares.push_back(Share {
            epoch: roster.epoch,
            weight: roster.members.get(&self.host).copied().map_or(0, u64::from),
            total: roster.members.values().copied().map(u64::from).sum(),
            before: Some(roster.members.range(..self.host).map(|(_, w)| u64::from(*w)).sum()),
            settled: roster.settled,
        });
        self.newest = roster;
        self.since = Some(now);
        Ok(())
    }

    /// The newest epoch known; 0: none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.newest.epoch
    }

    /// The latest epoch known to be settled, where `heard` was heard to be. Of one that is not known here nothing follows.
    #[must_use]
    pub fn settled(&self, heard: u64) -> u64 {
        let known = self.shares.iter().filter(|share| share.settled || share.epoch == heard);
        known.map(|share| share.epoch).max().unwrap_or(0).max(self.merged_settled)
    }

    /// What the host owns of `capacity` where `settled` is known to be settled: the least of what the rosters from there on give it, and
    /// nothing if it does not know that one.
    #[must_use]
    pub fn right(&self, capacity: Micros, settled: u64) -> Micros {
        let merged = (1..=self.merged).contains(&settled);
        if !merged && !self.shares.iter().any(|share| share.epoch == settled) {
            return Micros::ZERO;
        }
        let counting = self.shares.iter().filter(|share| share.epoch >= settled);
        counting.map(|share| share.of(capacity)).min().unwrap_or(Micros::ZERO)
    }

    /// Who must have said that it is clear before the newest roster is settled: its members, and those removed as long as their loans may
    /// not have ended.
    pub fn awaited(&self, now: Instant) -> impl Iterator<Item = u64> {
        let known_for = self.since.map(|since| now.saturating_duration_since(since));
        let may_lend =
            move |lasts: Duration| known_for.is_none_or(|known| known <= lasts + lasts / DRIFT);
        let removed = self.newest.removed.iter().filter(move |(_, lasts)| may_lend(**lasts));
        self.newest.members.keys().chain(removed.map(|(host, _)| host)).copied()
    }

    /// Members of the newest roster.
    pub fn members(&self) -> impl Iterator<Item = u64> {
        self.newest.members.keys().copied()
    }

    /// Makes one of the two oldest rosters: it gives the less of what they give. Whichever of them is settled, the host owns no more than that
    /// one gives it.
    fn merge_oldest(&mut self) {
        let Some(oldest) = self.shares.pop_front() else { return };
        let Some(next) = self.shares.front_mut() else { return };
        self.merged = oldest.epoch;
        if u128::from(oldest.weight) * u128::from(next.total)
            < u128::from(next.weight) * u128::from(oldest.total)
        {
            (next.weight, next.total) = (oldest.weight, oldest.total);
        }
        next.before = None;
        if oldest.settled {
            // The one that it is merged into is not: a member that has not heard of it may still use more.
            self.merged_settled = oldest.epoch;
        }
    }
}

/// Most members of a roster, with the removed.
pub const MEMBERS_MAX: usize = 20_000;
/// Most rosters that are remembered one by one; older ones are merged.
pub const ROSTERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn roster(epoch: u64, members: &[(u64, u32)], removed: &[u64], settled: bool) -> Roster {
        Roster {
            epoch,
            members: members.iter().copied().collect(),
            removed: removed.iter().map(|host| (*host, LOANS)).collect(),
            settled,
        }
    }

    const C: Micros = Micros::units(100);
    const LOANS: Duration = Duration::from_secs(20);

    #[test]
    fn a_member_that_goes_moves_only_its_own_resources() {
        let resources: Vec<_> = (0..1_000u32).map(u32::to_be_bytes).collect();
        let roots = |live: &[u64]| -> Vec<u64> {
            resources
                .iter()
                .map(|resource| root_of(resource, live.iter().copied()).unwrap())
                .collect()
        };
        let (before, after) = (roots(&[1, 2, 3, 4, 5]), roots(&[1, 2, 4, 5]));
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == 3);
        }
        let third = before.iter().filter(|root| **root == 3).count();
        assert!((150..250).contains(&third), "{third} of 1000 on one of five");
        assert_eq!(root_of(b"db", []), None);
        assert_eq!(
            root_of(b"db", [7, 9, 11]),
            Some(7),
            "all versions agree: this value never changes"
        );
    }

    #[test]
    fn a_joiner_starts_at_nothing_and_the_others_make_room_first() {
        let t0 = start();
        let (mut old, mut joiner) = (Rosters::new(1), Rosters::new(3));
        assert_eq!(old.right(C, 0), Micros::ZERO, "without a roster nobody owns anything");
        old.add(t0, roster(1, &[(1, 1), (2, 1)], &[], true)).unwrap();
        assert_eq!(old.right(C, old.settled(0)), Micros::units(50));
        let second = roster(2, &[(1, 1), (2, 1), (3, 2)], &[], false);
        old.add(t0, second.clone()).unwrap();
        joiner.add(t0, second).unwrap();
        assert_eq!(old.right(C, 1), Micros::units(25), "less at once");
        assert_eq!(joiner.settled(0), 0);
        assert_eq!(joiner.right(C, 0), Micros::ZERO, "more only when it is settled");
        assert_eq!(joiner.right(C, 1), Micros::ZERO, "settled is one that it never knew");
        assert_eq!(joiner.awaited(t0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(joiner.right(C, 2), Micros::units(50));
        assert_eq!(old.add(t0, roster(2, &[], &[], false)), Err(BadRoster::Stale));
        assert_eq!(old.settled(u64::MAX), 1, "settled is one that it has not heard of");
    }

    #[test]
    fn a_leaver_makes_the_others_grow_only_when_it_is_settled() {
        let t0 = start();
        let mut rosters = Rosters::new(1);
        rosters.add(t0, roster(1, &[(1, 1), (2, 1)], &[], true)).unwrap();
        rosters.add(t0, roster(2, &[(1, 1)], &[2], false)).unwrap();
        assert_eq!(rosters.right(C, 1), Micros::units(50), "the other may not have heard of it");
        assert_eq!(rosters.right(C, 2), C);
        rosters.add(t0, roster(3, &[(1, 1), (3, 3)], &[2], false)).unwrap();
        assert_eq!(rosters.right(C, 1), Micros::units(25), "the least of 50, 100 and 25");
        assert_eq!(rosters.right(C, 2), Micros::units(25));
        assert_eq!(rosters.awaited(t0 + LOANS).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(
            rosters.awaited(t0 + LOANS * 2).collect::<Vec<_>>(),
            [1, 3],
            "dead by now, and its loans ended"
        );
    }

    #[test]
    fn a_known_roster_that_is_said_to_be_settled_puts_an_end_to_the_older_ones() {
        let t0 = start();
        let mut rosters = Rosters::new(1);
        rosters.add(t0, roster(1, &[(1, 1), (2, 9)], &[], true)).unwrap();
        let second = roster(2, &[(1, 1), (2, 1)], &[], false);
        rosters.add(t0, second.clone()).unwrap();
        rosters.add(t0, roster(3, &[(1, 3), (2, 1)], &[], false)).unwrap();
        assert_eq!(rosters.right(C, rosters.settled(0)), Micros::units(10));
        let settled = Roster { settled: true, ..second };
        rosters.add(t0, settled.clone()).unwrap();
        assert_eq!(rosters.right(C, rosters.settled(0)), Micros::units(50));
        assert_eq!(rosters.add(t0, settled), Err(BadRoster::Stale), "nothing new");
        assert_eq!(rosters.epoch(), 3);
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let t0 = start();
        let mut rosters = Rosters::new(1);
        let many = Roster {
            epoch: 1,
            members: (0..20_001).map(|host| (host, 1)).collect(),
            ..Roster::default()
        };
        assert_eq!(rosters.add(t0, many), Err(BadRoster::TooManyMembers));
    }

    #[test]
    fn rosters_beyond_the_limit_are_merged_and_none_is_forgotten() {
        let t0 = start();
        let mut rosters = Rosters::new(1);
        rosters.add(t0, roster(1, &[(1, 1), (2, 3)], &[], true)).unwrap();
        for epoch in 2..=1_000 {
            rosters.add(t0, roster(epoch, &[(1, 1), (2, 1)], &[], false)).unwrap();
        }
        assert_eq!(rosters.shares.len(), ROSTERS_MAX);
        assert_eq!(rosters.settled(0), 1, "and no other is taken to be settled for it");
        assert_eq!(
            rosters.right(C, rosters.settled(0)),
            Micros::units(25),
            "the first may still be in use"
        );
        assert_eq!(
            rosters.right(C, 700),
            Micros::units(25),
            "heard to be settled, and merged since"
        );
        assert_eq!(rosters.right(C, rosters.settled(1_000)), Micros::units(50));
        rosters.add(t0, roster(1_001, &[(1, 1)], &[], true)).unwrap();
        assert_eq!(rosters.right(C, rosters.settled(0)), C, "a settled one replaces them all");
    }
}

//! What each host offers: one record for each host, written by that host alone.
//!
//! A record is (generation, sequence, entries). The owner numbers its changes; a larger generation replaces
//! everything of a smaller one, within one generation the larger sequence is the later state. So there are no
//! clocks to agree on and no conflicts to resolve, and merging commutes, repeats harmlessly and never goes back.
//!
//! Withdrawn entries stay as tombstones, so that who has an older state hears of the withdrawal and not of everything.
//! They are never what a record is refused for: each holder keeps as many as there are entries
//! ([`WITHDRAWN_MIN`] at least) and forgets the oldest beyond that. A record whose tombstones up to a sequence (`gc`) are
//! forgotten is handed on whole to who has less than that. So an owner whose instances come and go all day costs its
//! readers what it offers, not what it has ever offered.
//!
//! Invariant: what is held of a foreign record is a state that its owner was in: all entries as of sequence `upto`.
//! A delta applies only to a state at least as late as its base; otherwise the gap is reported and the rest asked for.
//! A record of a host that is down is kept (hidden) for an hour, in case the host or the network comes back; then,
//! or when the host says goodbye, it is buried: a tombstone keeps that generation from rising again for a day.
//! An owner that meets a newer generation or a tombstone of its own jumps above it ([`Applied::OwnIsBehind`]).
//!
//! Who is up is not known here; see [`crate::membership`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_config::Published;

use crate::catalog::HostNotes;
use crate::discovery::DOWN_KEPT;
use crate::index::{Content, Index, PolicyHash, policy_hash, policy_key};
use crate::order::{Order, OrderBody, Subject};
use crate::record::{InstanceBody, NODE_KEY, NodeBody};
use crate::wire::{Delta, DeltaEntry, Extent};

use host_record::Entry;
pub(crate) use host_record::Record;

/// A buried generation is remembered for this long.
const TOMBSTONE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// A withdrawn entry of our own is remembered for this long at most; who missed it gets the whole record.
const WITHDRAWN_KEPT: Duration = Duration::from_secs(600);
/// Largest body of an entry taken from another host: room for fields that we do not know.
const ENTRY_MAX: usize = 16 * 1024;
/// So many withdrawn entries of a record are remembered, or as many as it has present ones if these are more.
const WITHDRAWN_MIN: usize = 256;
/// Most entries of one record that are present. Its owner keeps to it too, so that nobody refuses what it says.
pub(crate) const ENTRIES_OF_ONE_MAX: usize = 8192;

/// All records.
#[derive(Debug)]
pub(crate) struct Registry {
    own: u64,
    records: BTreeMap<u64, Record>,
    tombstones: BTreeMap<u64, Tombstone>,
    index: Index,
    /// When entries of our own were withdrawn, by sequence.
    withdrawn: BTreeMap<u64, Instant>,
    /// Entries of all records that are not withdrawn.
    present: usize,
    entries_max: usize,
    records_max: usize,
}

#[derive(Debug, Clone, Copy)]
struct Tombstone {
    generation: u64,
    since: Instant,
}

/// What became of a delta or a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing new in it.
    Unchanged,
    /// Taken: others may want it from `base` on.
    Changed(Changes),
    /// Something before it is missing: ask for what comes after this.
    Gap(Extent),
    /// Others have a later state of our own record than we do, of this generation: jump above it.
    OwnIsBehind(u64),
    /// Beyond a limit; nothing was taken.
    TooMany,
}

/// What a delta changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub base: u64,
    pub services: BTreeSet<String>,
    pub node: bool,
    /// Published policies came or went: so did what the host's instances say of theirs.
    pub policies: bool,
    pub orders: bool,
    pub notes: bool,
}

impl Registry {
    pub fn new(own: u64, generation: u64, records_max: usize, entries_max: usize) -> Self {
        Registry {
            own,
            records: BTreeMap::from([(own, Record::new(generation))]),
            tombstones: BTreeMap::new(),
            index: Index::default(),
            withdrawn: BTreeMap::new(),
            present: 0,
            entries_max,
            records_max: records_max.max(1),
        }
    }

    pub fn record(&self, node: u64) -> Option<&Record> {
        self.records.get(&node)
    }

    #[cfg(test)]
    pub fn nodes(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.records.iter().map(|(node, record)| (*node, record))
    }

    /// Host and id of each readable instance of a service.
    pub fn instances_of(
        &self,
        service: &str,
    ) -> impl Iterator<Item = (u64, &Arc<str>, &Arc<InstanceBody>)> {
        self.index.by_service.get(service).into_iter().flatten().filter_map(|(node, id)| {
            let entry = self.records.get(node)?.entries.get(id)?;
            Some((*node, id, entry.instance()?))
        })
    }

    /// The policy of this name that a host publishes, if it does so readably.
    pub fn policy_of(&self, node: u64, hash: &PolicyHash) -> Option<&Arc<Published>> {
        match &self.records.get(&node)?.entries.get(policy_key(hash).as_str())?.content {
            Content::Policy(policy) => Some(policy),
            _ => None,
        }
    }

    /// The notes in a host's record, by name.
    pub fn notes_of(&self, node: u64) -> HostNotes {
        let entries = self.records.get(&node).into_iter().flat_map(|record| &record.entries);
        let note = |(key, entry): (&Arc<str>, &Entry)| match &entry.content {
            Content::Note(body) => Some((key.chars().skip(1).collect(), Arc::clone(body))),
            _ => None,
        };
        entries.filter_map(note).collect()
    }

    /// The orders that count at this time, and when the next of all ends.
    pub fn standing(&self, wall_us: u64) -> (BTreeMap<Subject, Arc<Order>>, Option<u64>) {
        self.index.standing(wall_us)
    }

    /// Whether another host's newer order on the subject counts instead of our own.
    pub fn is_superseded(&self, subject: &Subject, order: &OrderBody, wall_us: u64) -> bool {
        self.index.is_superseded(self.own, subject, order.issued_us, wall_us)
    }

    /// When the newest order on a subject was issued, and when the last of all ends, whatever became of them.
    pub fn latest_on(&self, subject: &Subject) -> Option<(u64, u64)> {
        self.index.latest_on(subject)
    }

    /// The policies in our own record.
    pub fn own_policies(&self) -> impl Iterator<Item = PolicyHash> {
        let entries = self.records[&self.own].entries.values();
        entries.filter_map(|entry| match &entry.content {
            Content::Policy(policy) => Some(policy_hash(policy.text().as_bytes())),
            _ => None,
        })
    }

    /// The orders issued at this host.
    pub fn own_orders(&self) -> impl Iterator<Item = (&Subject, &Arc<OrderBody>)> {
        self.records[&self.own].orders()
    }

    /// The services that a host offers.
    pub fn services_of(&self, node: u64) -> BTreeSet<String> {
        self.records.get(&node).map_or_else(BTreeSet::new, Record::services)
    }

    /// Writes or withdraws an entry of our own record; returns what to tell the others.
    pub fn write(&mut self, now: Instant, key: &str, body: Option<Vec<u8>>) -> Changes {
        let record = self.records.get_mut(&self.own).expect("our own record is never removed");
        let mut changes = Changes { base: record.upto, ..Changes::default() };
        let known = record.entries.get(key);
        if known.map_or(body.is_none(), |entry| entry.body.as_deref() == body.as_deref()) {
            return changes;
        }
        let seq = record.upto + 1;
        if body.is_none() {
            self.withdrawn.insert(seq, now);
            // The record remembers no more than that.
            while self.withdrawn.len() > ENTRIES_OF_ONE_MAX {
                self.withdrawn.pop_first();
            }
        }
        let entry = DeltaEntry { key: Arc::from(key), seq, body: body.map(Arc::from) };
        let delta = Delta {
            node: self.own,
            generation: record.generation,
            base: record.upto,
            upto: seq,
            gc: record.gc,
            entries: vec![entry],
        };
        self.merge(delta, &mut changes);
        changes
    }

    /// Starts a new generation of our own record, with the same content. Returns `false` if it is no larger.
    pub fn jump(&mut self, generation: u64) -> bool {
        let record = self.records.get_mut(&self.own).expect("our own record is never removed");
        if generation <= record.generation {
            return false;
        }
        record.generation = generation;
        record.forget_withdrawn(u64::MAX);
        for (seq, entry) in (1..).zip(record.entries.values_mut()) {
            entry.seq = seq;
        }
        // Even an empty new generation is news.
        record.upto = (record.entries.len() as u64).max(1);
        record.gc = 0;
        self.withdrawn.clear();
        true
    }

    /// Moves our own record to another host id: this host continues under a new one.
    pub fn rename_own(&mut self, own: u64) -> BTreeSet<String> {
        let record = self.records.remove(&self.own).expect("our own record is never removed");
        let old = std::mem::replace(&mut self.own, own);
        let mut changes = Changes::default();
        for (key, entry) in &record.entries {
            self.index.unlist(old, key, &entry.content, &mut changes);
            self.index.list(own, key, &entry.content, &mut changes);
        }
        self.records.insert(own, record);
        changes.services
    }

    /// Takes what others say happened to a record.
    pub fn apply(&mut self, delta: Delta) -> Applied {
        if delta.node == self.own {
            return self.judge_own(delta.generation, delta.upto);
        }
        if self.tombstones.get(&delta.node).is_some_and(|t| t.generation >= delta.generation) {
            return Applied::Unchanged;
        }
        let (generation, upto) =
            self.records.get(&delta.node).map_or((0, 0), |r| (r.generation, r.upto));
        let is_new = delta.generation > generation;
        if delta.generation < generation || (!is_new && delta.upto <= upto) {
            return Applied::Unchanged;
        }
        if delta.base > if is_new { 0 } else { upto } {
            let upto = if is_new { 0 } else { upto };
            return Applied::Gap(Extent { node: delta.node, generation: delta.generation, upto });
        }
        let is_whole = is_new || delta.base == 0;
        if self.is_too_much(&delta, is_whole) {
            return Applied::TooMany;
        }
        let mut changes = Changes { base: if is_new { 0 } else { upto }, ..Changes::default() };
        if is_whole {
            self.clear(delta.node, &delta, &mut changes);
        }
        self.merge(delta, &mut changes);
        Applied::Changed(changes)
    }

    /// Takes a tombstone: this generation and all before it are gone for good.
    pub fn bury(&mut self, now: Instant, node: u64, generation: u64) -> Applied {
        if node == self.own {
            return self.judge_own(generation, u64::MAX);
        }
        if self.tombstones.get(&node).is_some_and(|t| t.generation >= generation) {
            return Applied::Unchanged;
        }
        if self.tombstones.len() >= 2 * self.records_max
            && let Some(oldest) =
                self.tombstones.iter().min_by_key(|(_, t)| t.since).map(|(node, _)| *node)
        {
            self.tombstones.remove(&oldest);
        }
        self.tombstones.insert(node, Tombstone { generation, since: now });
        let mut changes = Changes::default();
        if self.records.get(&node).is_some_and(|record| record.generation <= generation) {
            self.remove(node, &mut changes);
        }
        Applied::Changed(changes)
    }

    /// The host of this record went down or came back.
    pub fn set_down(&mut self, node: u64, since: Option<Instant>) {
        if let Some(record) = self.records.get_mut(&node).filter(|_| node != self.own) {
            record.down_since = since;
        }
    }

    /// Forgets what was kept long enough. Returns what that changed.
    pub fn expire(&mut self, now: Instant, wall_us: u64) -> Changes {
        let mut changes = Changes::default();
        let over = |since: Instant, kept: Duration| now.saturating_duration_since(since) >= kept;
        self.tombstones.retain(|_, tombstone| !over(tombstone.since, TOMBSTONE_KEPT));
        let gone: Vec<(u64, u64)> = self
            .records
            .iter()
            .filter(|(_, record)| record.down_since.is_some_and(|since| over(since, DOWN_KEPT)))
            // What was ordered there goes on counting.
            .filter(|(_, record)| !record.orders().any(|(_, order)| order.stands(wall_us)))
            .map(|(node, record)| (*node, record.generation))
            .collect();
        for (node, generation) in gone {
            if let Applied::Changed(buried) = self.bury(now, node, generation) {
                changes.services.extend(buried.services);
                changes.node |= buried.node;
                changes.orders |= buried.orders;
            }
        }
        let record = self.records.get_mut(&self.own).expect("our own record is never removed");
        while let Some((seq, since)) = self.withdrawn.first_key_value()
            && over(*since, WITHDRAWN_KEPT)
        {
            record.forget_withdrawn(*seq);
            self.withdrawn.pop_first();
        }
        changes
    }

    /// How much we have of a record; or its tombstone.
    pub fn extent(&self, node: u64) -> Option<Extent> {
        let buried = || {
            let tombstone = self.tombstones.get(&node)?;
            Some(Extent { node, generation: tombstone.generation, upto: Extent::TOMBSTONE })
        };
        self.records.get(&node).map(|record| record.extent(node)).or_else(buried)
    }

    /// How much we have of each record, tombstones included, by host.
    pub fn digest(&self) -> Vec<Extent> {
        let tombstone = |(node, t): (&u64, &Tombstone)| Extent {
            node: *node,
            generation: t.generation,
            upto: Extent::TOMBSTONE,
        };
        let record = |(node, r): (&u64, &Record)| r.extent(*node);
        self.tombstones.iter().map(tombstone).chain(self.records.iter().map(record)).collect()
    }

    /// What another host has that we lack.
    pub fn wants(&self, theirs: &[Extent]) -> Vec<Extent> {
        let lacking = |extent: &&Extent| {
            extent.upto != Extent::TOMBSTONE
                && extent.node != self.own
                && self
                    .tombstones
                    .get(&extent.node)
                    .is_none_or(|t| t.generation < extent.generation)
                && self.records.get(&extent.node).is_none_or(|r| {
                    extent.generation > r.generation
                        || (extent.generation == r.generation && extent.upto > r.upto)
                })
        };
        let want = |extent: &Extent| {
            let same = self.records.get(&extent.node).filter(|r| r.generation == extent.generation);
            Extent { upto: same.map_or(0, |r| r.upto), ..*extent }
        };
        theirs.iter().filter(lacking).map(want).collect()
    }

    /// What we have that another host lacks, and our tombstones that it does not know.
    pub fn surplus(&self, theirs: &[Extent]) -> (Vec<Delta>, Vec<Extent>) {
        let has: BTreeMap<u64, Extent> =
            theirs.iter().filter(|e| e.upto != Extent::TOMBSTONE).map(|e| (e.node, *e)).collect();
        let buried: BTreeMap<u64, u64> = theirs
            .iter()
            .filter(|e| e.upto == Extent::TOMBSTONE)
            .map(|e| (e.node, e.generation))
            .collect();
        let deltas = self
            .records
            .iter()
            .filter(|(node, record)| {
                buried.get(node).is_none_or(|generation| *generation < record.generation)
            })
            .filter_map(|(node, record)| {
                let known = has.get(node).copied().unwrap_or(Extent {
                    node: *node,
                    generation: 0,
                    upto: 0,
                });
                self.delta_for(known).filter(|_| record.upto > 0)
            })
            .collect();
        let tombstones = self
            .digest()
            .into_iter()
            .filter(|e| {
                e.upto == Extent::TOMBSTONE && buried.get(&e.node).is_none_or(|g| *g < e.generation)
            })
            .collect();
        (deltas, tombstones)
    }

    /// What comes after this much of a record, if we have more.
    pub fn delta_for(&self, known: Extent) -> Option<Delta> {
        let record = self.records.get(&known.node)?;
        let since = match known.generation.cmp(&record.generation) {
            std::cmp::Ordering::Greater => return None,
            std::cmp::Ordering::Equal => known.upto,
            std::cmp::Ordering::Less => 0,
        };
        (since < record.upto).then(|| record.delta(known.node, since))
    }

    /// Whether others have a later state of our own record than we do.
    pub fn judge_own(&self, generation: u64, upto: u64) -> Applied {
        let own = &self.records[&self.own];
        if generation > own.generation || (generation == own.generation && upto > own.upto) {
            Applied::OwnIsBehind(generation)
        } else {
            Applied::Unchanged
        }
    }

    /// Whether more is present after this delta than we take. What is withdrawn does not count, and neither does what a whole
    /// record replaces.
    fn is_too_much(&self, delta: &Delta, is_whole: bool) -> bool {
        let is_long = |entry: &DeltaEntry| entry.body.as_ref().is_some_and(|b| b.len() > ENTRY_MAX);
        if delta.entries.iter().any(is_long) {
            return true;
        }
        let Some(record) = self.records.get(&delta.node) else {
            let present = delta.entries.iter().filter(|entry| entry.body.is_some()).count();
            // One of them is what the host says of itself, which does not count.
            return self.records.len() >= self.records_max
                || !self.has_room(0, present.saturating_sub(1));
        };
        let before = record.present();
        if !is_whole && self.has_room(before, before + delta.entries.len()) {
            return false;
        }
        let mut said: BTreeMap<&str, bool> = BTreeMap::new();
        for entry in &delta.entries {
            *said.entry(&entry.key).or_default() |= entry.body.is_some();
        }
        let is_present = |key: &str| record.entries.get(key).is_some_and(|e| e.body.is_some());
        let stays =
            if is_whole { 0 } else { before - said.keys().filter(|k| is_present(k)).count() };
        let after = stays + said.values().filter(|is_there| **is_there).count();
        // A record that becomes smaller is taken, however many there are.
        after > before && !self.has_room(before, after)
    }

    /// Whether a record may have `after` entries where it has `before` now.
    fn has_room(&self, before: usize, after: usize) -> bool {
        after <= ENTRIES_OF_ONE_MAX && after - before.min(after) <= self.room()
    }

    /// How many more entries all records may have. What each host says of itself is not counted.
    pub fn room(&self) -> usize {
        (self.entries_max + self.records.len()).saturating_sub(self.present)
    }

    /// How many more entries our own record may have.
    pub fn own_room(&self) -> usize {
        let own = self.records[&self.own].present();
        self.room().min(ENTRIES_OF_ONE_MAX.saturating_sub(own))
    }

    /// Whether our own record has an entry of this key.
    pub fn has_own(&self, key: &str) -> bool {
        self.records[&self.own].entries.get(key).is_some_and(|entry| entry.body.is_some())
    }

    /// Drops what a whole record does not have any more; notes what is dropped.
    fn clear(&mut self, node: u64, whole: &Delta, changes: &mut Changes) {
        let kept: BTreeSet<&str> = whole.entries.iter().map(|entry| &*entry.key).collect();
        let Some(record) = self.records.get_mut(&node) else {
            return;
        };
        // What is still to be remembered is in the whole record.
        record.forget_withdrawn(u64::MAX);
        let dropped: Vec<Arc<str>> =
            record.entries.keys().filter(|key| !kept.contains(&***key)).cloned().collect();
        for key in dropped {
            if let Some(entry) = record.entries.remove(&key) {
                self.present -= 1;
                self.index.unlist(node, &key, &entry.content, changes);
            }
        }
        // The sequence starts over with a new generation: let every entry of the delta win.
        record.entries.values_mut().for_each(|entry| entry.seq = 0);
        record.generation = whole.generation;
        record.gc = 0;
        changes.node = true;
    }

    /// Takes entries that are known to follow what we have.
    fn merge(&mut self, delta: Delta, changes: &mut Changes) {
        let record = self.records.entry(delta.node).or_insert_with(|| {
            changes.node = true;
            Record::new(delta.generation)
        });
        record.upto = record.upto.max(delta.upto);
        if changes.node {
            record.upto = delta.upto;
        }
        for DeltaEntry { key, seq, body } in delta.entries {
            let known = record.entries.get(&key);
            if known.is_some_and(|known| known.seq >= seq) {
                continue;
            }
            let stood = known.is_some_and(|known| known.body.is_some());
            let was_withdrawn = known.filter(|known| known.body.is_none()).map(|known| known.seq);
            let is_same = known.is_some_and(|known| known.body == body);
            if let Some(before) = was_withdrawn {
                record.withdrawn.remove(&(before, Arc::clone(&key)));
            }
            if body.is_none() {
                record.withdrawn.insert((seq, Arc::clone(&key)));
            }
            if is_same {
                if let Some(known) = record.entries.get_mut(&key) {
                    known.seq = seq;
                }
                continue;
            }
            let mut body = body;
            let content = self.index.read(&key, &mut body);
            if &*key == NODE_KEY {
                record.node =
                    body.as_deref().and_then(|body| NodeBody::decode(body).ok()).map(Arc::new);
                changes.node = true;
            }
            if let Some(known) = known {
                self.index.unlist(delta.node, &key, &known.content, changes);
            }
            self.present = self.present + usize::from(body.is_some()) - usize::from(stood);
            self.index.list(delta.node, &key, &content, changes);
            record.entries.insert(key, Entry { seq, body, content });
        }
        if changes.policies {
            changes.services.extend(record.services());
        }
        record.forget_withdrawn(delta.gc);
        record.forget_withdrawn_beyond(WITHDRAWN_MIN.max(record.present()));
    }

    fn remove(&mut self, node: u64, changes: &mut Changes) {
        let Some(record) = self.records.remove(&node) else {
            return;
        };
        self.present -= record.present();
        changes.node = true;
        for (key, entry) in &record.entries {
            self.index.unlist(node, key, &entry.content, changes);
        }
    }
}

mod host_record;

#[cfg(test)]
mod tests;

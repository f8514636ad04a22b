//! One host's record as it is held: its entries, those of them that are withdrawn, and what of them may be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::index::Content;
use crate::order::{OrderBody, Subject};
use crate::record::{InstanceBody, NodeBody};
use crate::wire::{Delta, DeltaEntry, Extent};

/// One host's record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub generation: u64,
    pub upto: u64,
    pub(super) gc: u64,
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    /// Those of the entries that are withdrawn, by sequence.
    pub(super) withdrawn: BTreeSet<(u64, Arc<str>)>,
    /// What the host says of itself; `None` until it says so readably.
    pub node: Option<Arc<NodeBody>>,
    pub(super) down_since: Option<Instant>,
}

/// One entry of a record.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub seq: u64,
    /// `None`: it is withdrawn.
    pub body: Option<Arc<[u8]>>,
    pub content: Content,
}

impl Entry {
    pub fn instance(&self) -> Option<&Arc<InstanceBody>> {
        match &self.content {
            Content::Instance(instance) => Some(instance),
            _ => None,
        }
    }
}

impl Record {
    pub fn new(generation: u64) -> Self {
        Record {
            generation,
            upto: 0,
            gc: 0,
            entries: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            node: None,
            down_since: None,
        }
    }

    /// How much we have of it.
    pub fn extent(&self, node: u64) -> Extent {
        Extent { node, generation: self.generation, upto: self.upto }
    }

    /// All that is in it, as its owner encoded it; for comparing two holders.
    #[cfg(test)]
    pub fn bodies(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().filter_map(|(key, entry)| Some((&**key, entry.body.as_deref()?)))
    }

    pub fn services(&self) -> BTreeSet<String> {
        self.entries.values().filter_map(|entry| Some(entry.instance()?.service.clone())).collect()
    }

    pub fn orders(&self) -> impl Iterator<Item = (&Subject, &Arc<OrderBody>)> {
        self.entries.values().filter_map(|entry| match &entry.content {
            Content::Order(subject, order) => Some((subject, order)),
            _ => None,
        })
    }

    pub fn delta(&self, node: u64, since: u64) -> Delta {
        // Whoever has less than `gc` may have missed withdrawals that we forgot: give them everything.
        let base = if since < self.gc { 0 } else { since };
        let mut entries: Vec<DeltaEntry> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.seq > base)
            .map(|(key, entry)| DeltaEntry {
                key: Arc::clone(key),
                seq: entry.seq,
                body: entry.body.clone(),
            })
            .collect();
        entries.sort_by_key(|entry| entry.seq);
        Delta { node, generation: self.generation, base, upto: self.upto, gc: self.gc, entries }
    }

    /// How many entries are not withdrawn.
    pub fn present(&self) -> usize {
        self.entries.len() - self.withdrawn.len()
    }

    /// Drops what was withdrawn up to a sequence: whoever has less than that is given the whole record.
    pub fn forget_withdrawn(&mut self, upto: u64) {
        self.gc = self.gc.max(upto);
        while let Some((seq, _)) = self.withdrawn.first()
            && *seq <= upto
            && let Some((_, key)) = self.withdrawn.pop_first()
        {
            self.entries.remove(&key);
        }
    }

    /// Drops the oldest of what was withdrawn, until no more than so many are left.
    pub fn forget_withdrawn_beyond(&mut self, max: usize) {
        while self.withdrawn.len() > max
            && let Some((seq, _)) = self.withdrawn.first()
        {
            self.forget_withdrawn(*seq);
        }
    }
}

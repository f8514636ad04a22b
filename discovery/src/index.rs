//! What is in the records, by what readers ask for: the instances of a service, the policies that hosts publish, the
//! orders on a subject.
//!
//! A record's entry is told by its key: none is the host itself, one that begins with a control character is a
//! policy or an order, all others are instances. A kind that we do not know, or content that we cannot read, is kept and
//! passed on, and shows nowhere.
//!
//! A published policy is named by the first 16 bytes of its SHA-256, and an instance names the policy of its service that
//! way. Hosts with the same policy publish the same bytes, which are kept once. A text that does not fit its name is not
//! believed. The name is looked up in the record of the instance's own host only: what a host's instances mean then
//! depends on that host's record and on nothing else, in whatever order records arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use evenkeel_config::Published;
use sha2::{Digest as _, Sha256};

use crate::order::{Instruction, ORDER_MARK, Order, OrderBody, Subject};
use crate::record::InstanceBody;
use crate::registry::Changes;

/// Names a published policy: the first bytes of its SHA-256.
pub type PolicyHash = [u8; 16];

/// The first character of a policy's key in a record. No instance id has a control character.
const POLICY_MARK: char = '\u{1}';
/// The first character of a note's key.
const NOTE_MARK: char = '\u{3}';

/// What an entry of a record says.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Withdrawn, unreadable, of a kind that we do not know, or of the host itself.
    Other,
    Instance(Arc<InstanceBody>),
    Policy(Arc<Published>),
    Order(Subject, Arc<OrderBody>),
    /// Opaque: see [`Catalog::notes`](crate::Catalog::notes).
    Note(Arc<[u8]>),
}

/// By what readers ask for.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub by_service: BTreeMap<String, BTreeSet<(u64, Arc<str>)>>,
    pub orders: BTreeMap<Subject, BTreeMap<u64, Arc<OrderBody>>>,
    /// Of all records, for sharing. Those that are gone are swept out when it has [doubled](SWEEP_MIN) since the last time: to look
    /// at all of them for each new one would take as many looks as the square of them.
    policies: BTreeMap<PolicyHash, Weak<Published>>,
    /// So many make a sweep due.
    sweep_at: usize,
}

impl Index {
    /// Reads an entry, and replaces its bytes by those that are here already.
    pub fn read(&mut self, key: &str, body: &mut Option<Arc<[u8]>>) -> Content {
        let Some(bytes) = body else { return Content::Other };
        match key.chars().next() {
            None => Content::Other,
            Some(POLICY_MARK) => self.read_policy(key, bytes).map_or(Content::Other, |policy| {
                *bytes = Arc::from(Arc::clone(policy.text()));
                Content::Policy(policy)
            }),
            Some(ORDER_MARK) => Subject::of_key(key)
                .and_then(|subject| {
                    let order = OrderBody::decode(&subject, bytes).ok()?;
                    Some(Content::Order(subject, Arc::new(order)))
                })
                .unwrap_or(Content::Other),
            Some(NOTE_MARK) => Content::Note(Arc::clone(bytes)),
            Some(mark) if mark.is_control() => Content::Other,
            Some(_) => InstanceBody::decode(bytes)
                .map_or(Content::Other, |body| Content::Instance(Arc::new(body))),
        }
    }

    fn read_policy(&mut self, key: &str, bytes: &[u8]) -> Option<Arc<Published>> {
        let hash = policy_hash(bytes);
        if policy_key(&hash) != key {
            return None;
        }
        if let Some(known) = self.policies.get(&hash).and_then(Weak::upgrade) {
            return Some(known);
        }
        let policy = Arc::new(Published::read(std::str::from_utf8(bytes).ok()?)?);
        self.policies.insert(hash, Arc::downgrade(&policy));
        if self.policies.len() > self.sweep_at {
            self.policies.retain(|_, known| known.strong_count() > 0);
            self.sweep_at = SWEEP_MIN.max(2 * self.policies.len());
        }
        Some(policy)
    }

    /// An entry is there now.
    pub fn list(&mut self, node: u64, key: &Arc<str>, content: &Content, changes: &mut Changes) {
        match content {
            Content::Instance(instance) => {
                changes.services.insert(instance.service.clone());
                self.by_service
                    .entry(instance.service.clone())
                    .or_default()
                    .insert((node, Arc::clone(key)));
            }
            Content::Policy(_) => changes.policies = true,
            Content::Note(_) => changes.notes = true,
            Content::Order(subject, order) => {
                changes.orders = true;
                self.orders.entry(subject.clone()).or_default().insert(node, Arc::clone(order));
            }
            Content::Other => {}
        }
    }

    /// An entry is no longer there.
    pub fn unlist(&mut self, node: u64, key: &Arc<str>, content: &Content, changes: &mut Changes) {
        match content {
            Content::Instance(instance) => {
                changes.services.insert(instance.service.clone());
                remove(&mut self.by_service, &instance.service, |set| {
                    set.remove(&(node, Arc::clone(key)));
                    set.is_empty()
                });
            }
            Content::Policy(_) => changes.policies = true,
            Content::Note(_) => changes.notes = true,
            Content::Order(subject, _) => {
                changes.orders = true;
                remove(&mut self.orders, subject, |issuers| {
                    issuers.remove(&node);
                    issuers.is_empty()
                });
            }
            Content::Other => {}
        }
    }

    /// The orders that count at this time, and when the next of all ends.
    pub fn standing(&self, wall_us: u64) -> (BTreeMap<Subject, Arc<Order>>, Option<u64>) {
        let mut next: Option<u64> = None;
        let mut standing = BTreeMap::new();
        for (subject, issuers) in &self.orders {
            let orders = issuers.iter().filter(|(_, order)| order.stands(wall_us));
            next = orders.clone().map(|(_, order)| order.until_us).chain(next).min();
            let newest = orders.max_by_key(|(node, order)| (order.issued_us, !**node));
            if let Some((_, order)) = newest
                && order.instruction != Instruction::Undo
            {
                let OrderBody { instruction, issued_us, until_us, by } = OrderBody::clone(order);
                let order = Order { instruction, issued_us, until_us, by };
                standing.insert(subject.clone(), Arc::new(order));
            }
        }
        (standing, next)
    }

    /// Whether another host's newer order on the subject counts instead of the one that `own` issued then.
    pub fn is_superseded(&self, own: u64, subject: &Subject, issued_us: u64, wall_us: u64) -> bool {
        self.orders.get(subject).is_some_and(|issuers| {
            issuers.iter().any(|(node, order)| {
                *node != own && order.issued_us > issued_us && order.stands(wall_us)
            })
        })
    }

    /// When the newest order on a subject was issued, and when the last of all ends, whatever became of them.
    pub fn latest_on(&self, subject: &Subject) -> Option<(u64, u64)> {
        let orders = self.orders.get(subject)?;
        let issued = orders.values().map(|order| order.issued_us).max()?;
        let end = orders.values().map(|order| order.until_us).max()?;
        Some((issued, end))
    }
}

/// The table of policies may hold as many that are gone.
const SWEEP_MIN: usize = 64;

fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K, take: impl FnOnce(&mut V) -> bool) {
    if map.get_mut(key).is_some_and(take) {
        map.remove(key);
    }
}

/// Names this text.
pub(crate) fn policy_hash(text: &[u8]) -> PolicyHash {
    let digest = Sha256::digest(text);
    std::array::from_fn(|at| digest[at])
}

/// The key of a note in a record.
pub(crate) fn note_key(name: &str) -> String {
    format!("{NOTE_MARK}{name}")
}

/// The key of a policy in a record.
pub(crate) fn policy_key(hash: &PolicyHash) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::from(POLICY_MARK), |mut key, byte| {
        let _ = write!(key, "{byte:02x}");
        key
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_kept_once_and_forgotten_when_nobody_has_them() {
        let mut index = Index::default();
        let mut read = |number: u32| {
            let text = format!("{{\"policy\":{{\"timeout\":\"{}s\"}}}}", number + 1);
            let bytes: Arc<[u8]> = text.as_bytes().into();
            let key = policy_key(&policy_hash(&bytes));
            let content = index.read(&key, &mut Some(bytes));
            let Content::Policy(policy) = content else { panic!("{text} is a policy") };
            (policy, index.policies.len())
        };
        let kept: Vec<_> = (0..1_000).map(|number| read(number).0).collect();
        assert!(Arc::ptr_eq(&kept[7], &read(7).0), "the same bytes are one policy");
        // Many come and go: the table follows those that are there.
        let most = (1_000..20_000).map(|number| read(number).1).max();
        assert!(most.is_some_and(|most| (1_000..=2_010).contains(&most)), "{most:?}");
        assert!(Arc::ptr_eq(&kept[999], &read(999).0), "what somebody has stays");
    }
}

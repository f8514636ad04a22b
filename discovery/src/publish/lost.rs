//! What vanished with its host: instances that are shown as critical, for a while, to who asks for all of a service.
//!
//! Monitoring finds its targets by look-up and alerts when a target does not answer. If a killed host's instances left
//! every look-up at once, the target would be gone before the alert could fire. So they stay, as they were last seen, for
//! [`LOST_KEPT`] (after so long Consul reaps a failed host too), and leave earlier when their host comes back, says goodbye
//! afterwards, or when another one lives under its name or at its address. They are apart from the services' views: what
//! chooses an instance, and DNS, never see them. No more than [`LOST_MAX`] are kept; past it the oldest goes first.
//! They are not saved: a restarted host shows what is lost from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{Instance, Node};

/// Instances of a host that stopped answering are shown for so long.
pub const LOST_KEPT: Duration = Duration::from_secs(72 * 3600);

/// Instances that are kept so, of all services together.
const LOST_MAX: usize = 4096;

/// The instances that vanished, by service, and since when.
#[derive(Debug, Default)]
pub(super) struct Lost {
    by_service: BTreeMap<String, Vec<Arc<Instance>>>,
    /// Oldest first: when, whose, which.
    since: BTreeMap<(Instant, u64, String), String>,
}

impl Lost {
    /// An instance vanished with its host. Returns the services of those that had to make room.
    pub fn add(
        &mut self,
        now: Instant,
        index: u64,
        instance: &Instance,
        node: &Arc<Node>,
    ) -> BTreeSet<String> {
        let lost = Instance {
            node: Arc::clone(node),
            preserved: false,
            modify_index: index,
            ..Instance::clone(instance)
        };
        let service = lost.service.clone();
        self.retain_in(&service, |known| known.node.id != lost.node.id || known.id != lost.id);
        self.since.insert((now, lost.node.id, lost.id.clone()), service.clone());
        self.by_service.entry(service).or_default().push(Arc::new(lost));
        let mut forgotten = BTreeSet::new();
        while self.since.len() > LOST_MAX {
            forgotten.extend(self.forget_oldest());
        }
        forgotten
    }

    /// Those of a service.
    pub fn of(&self, service: &str) -> &[Arc<Instance>] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// Forgets those of a service that stood on such hosts.
    pub fn drop_of(&mut self, service: &str, is_such: impl Fn(u64) -> bool) {
        self.retain_in(service, |instance| !is_such(instance.node.id));
    }

    /// A host is up: forgets what stood on it, or on one of its name or address. Returns the services this changes.
    pub fn recover(&mut self, node: &Node) -> BTreeSet<String> {
        let is_replaced = |lost: &Instance| {
            lost.node.id == node.id
                || lost.node.address == node.address
                || lost.node.name.eq_ignore_ascii_case(&node.name)
        };
        let changed: BTreeSet<String> = self
            .by_service
            .iter()
            .filter(|(_, lost)| lost.iter().any(|instance| is_replaced(instance)))
            .map(|(service, _)| service.clone())
            .collect();
        for service in &changed {
            self.retain_in(service, |instance| !is_replaced(instance));
        }
        changed
    }

    /// Forgets what vanished long ago. Returns the services this changes.
    pub fn expire(&mut self, now: Instant) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        while let Some(((since, ..), _)) = self.since.first_key_value()
            && now.saturating_duration_since(*since) >= LOST_KEPT
        {
            changed.extend(self.forget_oldest());
        }
        changed
    }

    fn forget_oldest(&mut self) -> Option<String> {
        let ((_, host, id), service) = self.since.pop_first()?;
        self.retain_in(&service, |known| known.node.id != host || known.id != id);
        Some(service)
    }

    fn retain_in(&mut self, service: &str, keeps: impl Fn(&Instance) -> bool) {
        let Some(lost) = self.by_service.get_mut(service) else { return };
        let mut removed = BTreeSet::new();
        lost.retain(|instance| {
            let is_kept = keeps(instance);
            if !is_kept {
                removed.insert((instance.node.id, instance.id.clone()));
            }
            is_kept
        });
        if lost.is_empty() {
            self.by_service.remove(service);
        }
        if !removed.is_empty() {
            self.since.retain(|(_, host, id), of| {
                of.as_str() != service || !removed.contains(&(*host, id.clone()))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    fn instance(id: usize) -> Instance {
        let catalog = crate::sample::catalog();
        let payments = &catalog.services["payments"].instances[0];
        Instance { id: id.to_string(), ..Instance::clone(payments) }
    }

    #[test]
    fn the_oldest_makes_room_and_all_end_after_three_days() {
        let (mut lost, t0) = (Lost::default(), t0());
        let later = |n: usize| t0 + Duration::from_secs(n as u64);
        for n in 0..LOST_MAX {
            let one = instance(n);
            assert_eq!(lost.add(later(n), 1, &one, &one.node), BTreeSet::new());
        }
        let one = instance(LOST_MAX);
        let payments = BTreeSet::from(["payments".to_owned()]);
        assert_eq!(lost.add(later(LOST_MAX), 1, &one, &one.node), payments);
        assert_eq!(lost.of("payments").len(), LOST_MAX);
        assert!(lost.of("payments").iter().all(|instance| instance.id != "0"));

        assert_eq!(lost.expire(later(0) + LOST_KEPT), BTreeSet::new(), "0 made room before");
        assert_eq!(lost.expire(later(2) + LOST_KEPT), payments);
        assert_eq!(lost.of("payments").len(), LOST_MAX - 2);
        lost.expire(later(LOST_MAX) + LOST_KEPT);
        assert!(lost.of("payments").is_empty() && lost.since.is_empty());
    }

    #[test]
    fn who_takes_its_place_ends_it() {
        let one = instance(1);
        let node = &*one.node;
        let (id, elsewhere) = (99, "10.9.9.9:7111".parse().expect("an address"));
        for (what, next, is_kept) in [
            ("itself", Node::clone(node), false),
            ("one of its name", Node { id, address: elsewhere, ..node.clone() }, false),
            ("one at its address", Node { id, name: "new".into(), ..node.clone() }, false),
            ("another", Node { id, name: "new".into(), address: elsewhere, ..node.clone() }, true),
        ] {
            let mut lost = Lost::default();
            lost.add(t0(), 1, &one, &one.node);
            assert_eq!(lost.recover(&next).is_empty(), is_kept, "{what}");
            assert_eq!(lost.of("payments").len(), usize::from(is_kept), "{what}");
        }
    }
}

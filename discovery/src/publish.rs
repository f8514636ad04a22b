//! Builds the snapshot that readers see, from the registry and from who is up.
//!
//! Only what changed is rebuilt, and what turns out equal keeps its `Arc` and its index, so that a change that
//! changes nothing wakes nobody. Changes are collected for [`COALESCE`] before a snapshot is made: a joining
//! host brings thousands at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{
    Catalog, HOSTS_NAMED_MAX, HostNotes, Instance, Node, NodeStatus, Policies, PolicyVote,
    ServiceView,
};
use crate::index::PolicyHash;
use crate::order::{Order, Subject};
use crate::record::{InstanceBody, worst};
use crate::registry::Registry;

mod lost;

#[cfg(test)]
pub use lost::LOST_KEPT;
use lost::Lost;

/// A change is published at most this late.
const COALESCE: Duration = Duration::from_millis(20);

/// Indices are reserved on the disk this far ahead, in microseconds, so that few changes lead to a write.
const RESERVE_US: u64 = 600 * 1_000_000;

/// How a host shows in look-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// It is up.
    Up,
    /// It vanished together with many others: its instances stay, to be tried last.
    Preserved,
    /// It stopped answering.
    Failed,
    /// It stopped answering, and its process is gone for certain.
    Dead,
    /// It said goodbye.
    Left,
    /// Another process stands at its address now.
    Superseded,
    /// Not at all.
    Hidden,
}

/// The current snapshot, and what has changed since it was made.
#[derive(Debug)]
pub(crate) struct Publisher {
    catalog: Arc<Catalog>,
    services: BTreeSet<String>,
    nodes: BTreeSet<u64>,
    notes: BTreeSet<u64>,
    orders: bool,
    /// When the next order ends, in unix microseconds.
    orders_end: Option<u64>,
    lost: Lost,
    /// No index that was given out, in this life or the last, is above it.
    reserved: u64,
    due: Option<Instant>,
    /// All that the mesh knows was told once: the next snapshot has it.
    told: bool,
}

impl Publisher {
    /// `reserved` is that of the last life: indices go on above it, whatever the clock says.
    pub fn new(mesh: &str, domain: &str, own: u64, reserved: u64) -> Self {
        let catalog = Catalog {
            mesh: mesh.to_owned(),
            domain: domain.trim_end_matches('.').to_ascii_lowercase(),
            own,
            partial: true,
            index: reserved,
            services_index: reserved,
            nodes_index: reserved,
            checks_index: reserved,
            ..Catalog::default()
        };
        Publisher {
            catalog: Arc::new(catalog),
            services: BTreeSet::new(),
            nodes: BTreeSet::new(),
            notes: BTreeSet::new(),
            orders: false,
            orders_end: None,
            lost: Lost::default(),
            reserved,
            due: None,
            told: false,
        }
    }

    /// What the registry has now is all that there was to be told at this host's start.
    pub fn all_told(&mut self) {
        self.told = true;
    }

    /// No index that was given out is above it: to be saved for the next life.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// These services may have changed.
    pub fn touch_services(&mut self, now: Instant, services: impl IntoIterator<Item = String>) {
        let before = self.services.len();
        self.services.extend(services);
        if self.services.len() > before {
            self.due.get_or_insert(now + COALESCE);
        }
    }

    /// This host, and so everything that it offers, may have changed.
    pub fn touch_node(&mut self, now: Instant, node: u64, registry: &Registry) {
        self.nodes.insert(node);
        self.notes.insert(node);
        self.due.get_or_insert(now + COALESCE);
        self.touch_services(now, registry.services_of(node));
    }

    /// This host's notes may have changed.
    pub fn touch_notes(&mut self, now: Instant, node: u64) {
        self.notes.insert(node);
        self.due.get_or_insert(now + COALESCE);
    }

    /// Orders may have been issued, or have ended.
    pub fn touch_orders(&mut self, now: Instant) {
        self.orders = true;
        self.due.get_or_insert(now + COALESCE);
    }

    /// Forgets what vanished long ago.
    pub fn expire_lost(&mut self, now: Instant) {
        let forgotten = self.lost.expire(now);
        self.touch_services(now, forgotten);
    }

    /// When the next order ends, in unix microseconds, as of the last snapshot.
    pub fn orders_end(&self) -> Option<u64> {
        self.orders_end
    }

    /// Makes a new snapshot if anything changed; returns whether it did.
    pub fn publish(
        &mut self,
        now: Instant,
        own: u64,
        wall_ms: u64,
        registry: &Registry,
        visible: impl Fn(u64) -> Visible,
    ) -> bool {
        self.due = None;
        let wall_us = wall_ms.saturating_mul(1000);
        let orders = std::mem::take(&mut self.orders).then(|| self.take_orders(wall_us, registry));
        let last = &self.catalog;
        let index = (last.index + 1).max(wall_us);
        let mut next = Catalog { own, ..Catalog::clone(last) };
        let mut changed = own != last.own || (self.told && last.partial);
        next.partial &= !self.told;
        // Services of which something may have been lost, or found again.
        let mut lost_of = BTreeSet::new();
        if let Some(orders) = orders.filter(|orders| *orders != last.orders) {
            changed = true;
            next.orders = orders;
        }
        for id in std::mem::take(&mut self.nodes) {
            let ordered_away = next.orders.contains_key(&Subject::Drain(id));
            let node = node(id, index, registry, &visible, ordered_away, last.nodes.get(&id));
            if node.as_ref() != last.nodes.get(&id) {
                changed = true;
                next.nodes_index = index;
                next.checks_index = index;
                if let Some(node) = &node
                    && node.status == NodeStatus::Alive
                {
                    // Whoever lives under its name or at its address has taken the place of what was lost there.
                    lost_of.extend(self.lost.recover(node));
                }
                match node {
                    Some(node) => next.nodes.insert(id, node),
                    None => next.nodes.remove(&id),
                };
            }
        }
        for id in std::mem::take(&mut self.notes) {
            let is_up = matches!(visible(id), Visible::Up);
            let notes = if is_up { registry.notes_of(id) } else { HostNotes::new() };
            if last.notes.get(&id).map_or(notes.is_empty(), |known| **known == notes) {
                continue;
            }
            changed = true;
            if notes.is_empty() {
                next.notes.remove(&id);
            } else {
                next.notes.insert(id, Arc::new(notes));
            }
        }
        for name in std::mem::take(&mut self.services) {
            let known = last.services.get(&name);
            let view = view(&name, index, registry, &visible, &next.nodes, known);
            if let Some(known) = known {
                let gone = vanished(known, registry, &visible);
                for instance in gone {
                    let node = next.nodes.get(&instance.node.id).unwrap_or(&instance.node);
                    lost_of.extend(self.lost.add(now, index, instance, node));
                }
            }
            self.lost.drop_of(&name, |host| {
                !matches!(visible(host), Visible::Failed | Visible::Dead | Visible::Hidden)
            });
            lost_of.insert(name.clone());
            if view.as_ref() == known {
                continue;
            }
            changed = true;
            next.checks_index = index;
            if tags(view.as_ref()) != tags(known) || view.is_some() != known.is_some() {
                next.services_index = index;
            }
            match view {
                Some(view) => next.services.insert(name, view),
                None => next.services.remove(&name),
            };
        }
        for name in lost_of {
            changed |= self.show_lost(&mut next, index, name);
        }
        if changed {
            next.index = index;
            self.catalog = Arc::new(next);
            if index > self.reserved {
                self.reserved = index + RESERVE_US;
            }
        }
        changed
    }
}

impl Publisher {
    /// Shows what is lost of a service; whoever watches the service hears of a change by its index. Returns whether it is one.
    fn show_lost(&self, next: &mut Catalog, index: u64, name: String) -> bool {
        let lost = self.lost.of(&name);
        if lost == next.lost.get(&name).map_or(&[][..], Vec::as_slice) {
            return false;
        }
        next.checks_index = index;
        match next.services.get_mut(&name) {
            Some(view) => *view = Arc::new(ServiceView { index, ..ServiceView::clone(view) }),
            None => next.services_index = index,
        }
        match lost {
            [] => next.lost.remove(&name),
            lost => next.lost.insert(name, lost.to_vec()),
        };
        true
    }

    /// The orders that count now. Hosts on which that differs from the last snapshot are made anew, with all they offer.
    fn take_orders(&mut self, wall_us: u64, registry: &Registry) -> BTreeMap<Subject, Arc<Order>> {
        let (orders, end) = registry.standing(wall_us);
        self.orders_end = end;
        let before = &self.catalog.orders;
        let comes_or_goes =
            |subject: &&Subject| orders.contains_key(*subject) != before.contains_key(*subject);
        for subject in orders.keys().chain(before.keys()).filter(comes_or_goes) {
            if let Subject::Drain(node) = subject {
                self.nodes.insert(*node);
                self.services.extend(registry.services_of(*node));
            }
        }
        orders
    }
}

/// The host as readers see it; the known one if nothing changed.
fn node(
    id: u64,
    index: u64,
    registry: &Registry,
    visible: &impl Fn(u64) -> Visible,
    ordered_away: bool,
    known: Option<&Arc<Node>>,
) -> Option<Arc<Node>> {
    let status = match visible(id) {
        Visible::Up => NodeStatus::Alive,
        Visible::Preserved | Visible::Failed => NodeStatus::Failed,
        Visible::Dead => NodeStatus::Dead,
        Visible::Left => NodeStatus::Left,
        Visible::Superseded | Visible::Hidden => return None,
    };
    let mut node = match registry
        .record(id)
        .and_then(|record| Some((record.generation, record.node.as_ref()?)))
    {
        Some((generation, body)) => Node {
            id,
            name: body.name.clone(),
            address: body.address,
            mesh: body.mesh,
            zone: body.zone.clone(),
            generation,
            status,
            draining: body.draining || ordered_away,
            drain_reason: body.drain_reason.clone(),
            version: body.version.clone(),
            checks: body.checks.clone(),
            index,
        },
        // Its record is gone; who it was is still of interest for a while.
        None => Node { status, index, ..Node::clone(known?) },
    };
    if let Some(known) = known {
        node.index = known.index;
        if node == **known {
            return Some(Arc::clone(known));
        }
        node.index = index;
    }
    Some(Arc::new(node))
}

/// The service as readers see it; the known view if nothing changed.
fn view(
    name: &str,
    index: u64,
    registry: &Registry,
    visible: &impl Fn(u64) -> Visible,
    nodes: &BTreeMap<u64, Arc<Node>>,
    known: Option<&Arc<ServiceView>>,
) -> Option<Arc<ServiceView>> {
    let before: BTreeMap<(u64, &str), &Arc<Instance>> = known
        .map(|view| view.instances.iter().map(|i| ((i.node.id, &*i.id), i)).collect())
        .unwrap_or_default();
    let mut instances = Vec::new();
    let mut votes = Votes::default();
    for (host, id, body) in registry.instances_of(name) {
        let preserved = match visible(host) {
            Visible::Up => false,
            Visible::Preserved => true,
            Visible::Failed
            | Visible::Dead
            | Visible::Left
            | Visible::Superseded
            | Visible::Hidden => continue,
        };
        let Some(node) = nodes.get(&host) else {
            continue;
        };
        votes.count(registry, node, body);
        let known = before.get(&(host, &**id));
        let mut instance = Instance {
            node: Arc::clone(node),
            id: id.to_string(),
            service: body.service.clone(),
            address: body.address,
            advertise: body.advertise,
            tagged_addresses: body.tagged_addresses.clone(),
            enable_tag_override: body.enable_tag_override,
            protocol: body.protocol,
            tags: body.tags.clone(),
            meta: body.meta.clone(),
            weights: body.weights,
            status: body.status().max(worst(&node.checks)),
            checks: body.checks.clone(),
            preserved,
            create_index: known.map_or(index, |known| known.create_index),
            modify_index: known.map_or(index, |known| known.modify_index),
        };
        instances.push(match known {
            Some(known) if ***known == instance => Arc::clone(known),
            _ => {
                instance.modify_index = index;
                Arc::new(instance)
            }
        });
    }
    if instances.is_empty() {
        return None;
    }
    let policies = votes.counted();
    match known {
        Some(known) if known.instances == instances && known.policies == policies => {
            Some(Arc::clone(known))
        }
        _ => Some(Arc::new(ServiceView { name: name.to_owned(), index, instances, policies })),
    }
}

/// Instances of a view that are no longer to be seen because their host stopped answering.
fn vanished<'a>(
    known: &'a ServiceView,
    registry: &Registry,
    visible: &impl Fn(u64) -> Visible,
) -> Vec<&'a Arc<Instance>> {
    let hosts = |instance: &&Arc<Instance>| {
        matches!(visible(instance.node.id), Visible::Failed | Visible::Dead)
    };
    let mut gone: Vec<&Arc<Instance>> = known.instances.iter().filter(hosts).collect();
    if !gone.is_empty() {
        // What was withdrawn just before is not lost.
        let said: BTreeSet<(u64, &str)> =
            registry.instances_of(&known.name).map(|(host, id, _)| (host, &**id)).collect();
        gone.retain(|instance| said.contains(&(instance.node.id, &*instance.id)));
    }
    gone
}

/// Which policies the instances of a service vote for.
#[derive(Default)]
struct Votes {
    policies: BTreeMap<PolicyHash, PolicyVote>,
    unusable: usize,
}

impl Votes {
    fn count(&mut self, registry: &Registry, node: &Node, instance: &InstanceBody) {
        let Some(hash) = instance.policy else { return };
        let Some(policy) = registry.policy_of(node.id, &hash) else {
            self.unusable += 1;
            return;
        };
        let vote = self.policies.entry(hash).or_insert_with(|| PolicyVote {
            hash,
            policy: Arc::clone(policy),
            instances: 0,
            hosts: Vec::new(),
        });
        vote.instances += 1;
        if vote.hosts.len() < HOSTS_NAMED_MAX && !vote.hosts.contains(&node.name) {
            vote.hosts.push(node.name.clone());
        }
    }

    /// The same on every host that sees the same instances: no clock and no order of arrival decides.
    fn counted(self) -> Policies {
        let mut published: Vec<PolicyVote> = self.policies.into_values().collect();
        published.sort_by_key(|vote| (std::cmp::Reverse(vote.instances), vote.hash));
        Policies { published, unusable: self.unusable }
    }
}

fn tags(view: Option<&Arc<ServiceView>>) -> BTreeSet<&str> {
    view.into_iter()
        .flat_map(|view| &view.instances)
        .flat_map(|i| &i.tags)
        .map(String::as_str)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::{policy_hash, policy_key};
    use crate::record::{NODE_KEY, NodeBody};
    use crate::registration::Weights;
    use crate::wire::{Delta, Extent};

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    fn policy(which: u8) -> Vec<u8> {
        format!(r#"{{"policy":{{"timeout":"{}s"}}}}"#, which + 1).into_bytes()
    }

    /// The record of a host whose instances of `web` name these policies; `None`: no policy.
    fn record(host: u64, policies: &[Option<u8>]) -> Delta {
        let mut owner = Registry::new(host, 1, 10, 1000);
        let address = ([127, 0, 0, 1], 80).into();
        let node = NodeBody {
            name: format!("host-{host}"),
            address,
            mesh: address,
            zone: None,
            draining: false,
            drain_reason: String::new(),
            version: String::new(),
            checks: Vec::new(),
        };
        owner.write(t0(), NODE_KEY, Some(node.encode()));
        for (i, which) in (0..).zip(policies) {
            // Policy 3 is named and never sent.
            if let Some(text) = which.filter(|which| *which < 3).map(policy) {
                owner.write(t0(), &policy_key(&policy_hash(&text)), Some(text));
            }
            let body = InstanceBody {
                service: "web".into(),
                address,
                advertise: None,
                tagged_addresses: BTreeMap::new(),
                enable_tag_override: false,
                protocol: None,
                tags: Vec::new(),
                meta: BTreeMap::new(),
                weights: Weights::default(),
                checks: Vec::new(),
                policy: which.map(|which| policy_hash(&policy(which))),
            };
            owner.write(t0(), &format!("web-{i}"), Some(body.encode()));
        }
        owner.delta_for(Extent { node: host, generation: 0, upto: 0 }).expect("it is not empty")
    }

    fn policies(records: &[Delta], one_by_one: bool) -> Policies {
        let mut registry = Registry::new(99, 1, 10, 1000);
        let mut publisher = Publisher::new("m", "mesh", 99, 0);
        for record in records {
            registry.apply(record.clone());
            publisher.touch_node(t0(), record.node, &registry);
            if one_by_one {
                publisher.publish(t0(), 99, 1, &registry, |_| Visible::Up);
            }
        }
        publisher.publish(t0(), 99, 1, &registry, |_| Visible::Up);
        publisher.catalog().service("web").map(|view| view.policies.clone()).unwrap_or_default()
    }

    #[test]
    fn indices_do_not_go_back_when_the_clock_does_not_even_over_a_restart() {
        let web = |publisher: &Publisher| publisher.catalog().service_index("web");
        let mut registry = Registry::new(99, 1, 10, 1000);
        let mut publisher = Publisher::new("m", "mesh", 99, 0);
        let before = record(1, &[None]);
        let after = record(1, &[None, None]);
        registry.apply(before.clone());
        publisher.touch_node(t0(), 1, &registry);
        publisher.publish(t0(), 99, 5_000_000, &registry, |_| Visible::Up);
        let first = web(&publisher);
        assert_eq!(first, 5_000_000_000, "the clock's microseconds");
        registry.apply(after);
        publisher.touch_node(t0(), 1, &registry);
        publisher.publish(t0(), 99, 1, &registry, |_| Visible::Up);
        assert_eq!(web(&publisher), first + 1, "one above the last, with the clock at 1970");

        let saved = publisher.reserved();
        assert!(saved >= publisher.catalog().index);
        let mut registry = Registry::new(99, 1, 10, 1000);
        let mut next_life = Publisher::new("m", "mesh", 99, saved);
        assert!(web(&next_life) >= publisher.catalog().index, "while the service is not known yet");
        registry.apply(before);
        next_life.touch_node(t0(), 1, &registry);
        next_life.publish(t0(), 99, 1, &registry, |_| Visible::Up);
        assert!(web(&next_life) > publisher.catalog().index, "in the next life");
        assert!(next_life.reserved() > next_life.catalog().index, "and in the one after it");
    }

    proptest! {
        /// Whoever hears of the same instances, in whatever order, takes the same policy: that of most, then of the lowest hash.
        #[test]
        fn hosts_agree_on_the_policy_that_counts(
            hosts in prop::collection::vec(prop::collection::vec(prop::option::of(0..4u8), 0..5), 1..6),
            turn in any::<prop::sample::Index>(),
        ) {
            let mut records: Vec<Delta> =
                (1..).zip(&hosts).map(|(host, policies)| record(host, policies)).collect();
            let seen = policies(&records, false);
            let turn = turn.index(records.len());
            records.rotate_left(turn);
            prop_assert_eq!(&policies(&records, true), &seen);
            records.reverse();
            prop_assert_eq!(&policies(&records, true), &seen);

            let said: Vec<u8> = hosts.iter().flatten().flatten().copied().collect();
            let votes = |which: u8| said.iter().filter(|said| **said == which).count();
            let winner = (0..3u8)
                .filter(|which| votes(*which) > 0)
                .max_by_key(|which| (votes(*which), std::cmp::Reverse(policy_hash(&policy(*which)))));
            let text = |which: u8| String::from_utf8(policy(which)).expect("text");
            prop_assert_eq!(
                seen.winner().map(|policy| policy.text().to_string()),
                winner.map(text)
            );
            prop_assert_eq!(seen.unusable, votes(3));
        }
    }
}

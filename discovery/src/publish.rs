//! Builds the snapshot that readers see, from the registry and from who is up.
//!
//! Only what changed is rebuilt, and what turns out equal keeps its `Arc` and its index, so that a change that
//! changes nothing wakes nobody. Changes are collected for [`COALESCE`] before a snapshot is made: a joining
//! host brings thousands at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, Instance, Node, NodeStatus, ServiceView};
use crate::registry::Registry;

/// A change is published at most this late.
const COALESCE: Duration = Duration::from_millis(20);

/// How a host shows in look-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// It is up.
    Up,
    /// It vanished together with many others: its instances stay, to be tried last.
    Preserved,
    /// It stopped answering.
    Failed,
    /// It said goodbye.
    Left,
    /// Not at all.
    Hidden,
}

/// The current snapshot, and what has changed since it was made.
#[derive(Debug)]
pub(crate) struct Publisher {
    catalog: Arc<Catalog>,
    services: BTreeSet<String>,
    nodes: BTreeSet<u64>,
    due: Option<Instant>,
}

impl Publisher {
    pub fn new(mesh: &str, domain: &str, own: u64) -> Self {
        let catalog = Catalog {
            mesh: mesh.to_owned(),
            domain: domain.trim_end_matches('.').to_ascii_lowercase(),
            own,
            ..Catalog::default()
        };
        Publisher {
            catalog: Arc::new(catalog),
            services: BTreeSet::new(),
            nodes: BTreeSet::new(),
            due: None,
        }
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
        self.due.get_or_insert(now + COALESCE);
        self.touch_services(now, registry.services_of(node));
    }

    /// Makes a new snapshot if anything changed; returns whether it did.
    pub fn publish(
        &mut self,
        own: u64,
        wall_ms: u64,
        registry: &Registry,
        visible: impl Fn(u64) -> Visible,
    ) -> bool {
        self.due = None;
        let last = &self.catalog;
        let index = (last.index + 1).max(wall_ms.saturating_mul(1000));
        let mut next = Catalog { own, ..Catalog::clone(last) };
        let mut changed = own != last.own;
        for id in std::mem::take(&mut self.nodes) {
            let node = node(id, index, registry, &visible, last.nodes.get(&id));
            if node.as_ref() != last.nodes.get(&id) {
                changed = true;
                next.nodes_index = index;
                match node {
                    Some(node) => next.nodes.insert(id, node),
                    None => next.nodes.remove(&id),
                };
            }
        }
        for name in std::mem::take(&mut self.services) {
            let known = last.services.get(&name);
            let view = view(&name, index, registry, &visible, &next.nodes, known);
            if view.as_ref() == known {
                continue;
            }
            changed = true;
            if tags(view.as_ref()) != tags(known) || view.is_some() != known.is_some() {
                next.services_index = index;
            }
            match view {
                Some(view) => next.services.insert(name, view),
                None => next.services.remove(&name),
            };
        }
        if changed {
            next.index = index;
            self.catalog = Arc::new(next);
        }
        changed
    }
}

/// The host as readers see it; the known one if nothing changed.
fn node(
    id: u64,
    index: u64,
    registry: &Registry,
    visible: &impl Fn(u64) -> Visible,
    known: Option<&Arc<Node>>,
) -> Option<Arc<Node>> {
    let status = match visible(id) {
        Visible::Up => NodeStatus::Alive,
        Visible::Preserved | Visible::Failed => NodeStatus::Failed,
        Visible::Left => NodeStatus::Left,
        Visible::Hidden => return None,
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
            draining: body.draining,
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
    for (host, id, body) in registry.instances_of(name) {
        let preserved = match visible(host) {
            Visible::Up => false,
            Visible::Preserved => true,
            Visible::Failed | Visible::Left | Visible::Hidden => continue,
        };
        let Some(node) = nodes.get(&host) else {
            continue;
        };
        let known = before.get(&(host, &**id));
        let mut instance = Instance {
            node: Arc::clone(node),
            id: id.to_string(),
            service: body.service.clone(),
            address: body.address,
            advertise: body.advertise,
            protocol: body.protocol,
            tags: body.tags.clone(),
            meta: body.meta.clone(),
            weights: body.weights,
            status: body.status(),
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
    match known {
        Some(known) if known.instances == instances => Some(Arc::clone(known)),
        _ => Some(Arc::new(ServiceView { name: name.to_owned(), index, instances })),
    }
}

fn tags(view: Option<&Arc<ServiceView>>) -> BTreeSet<&str> {
    view.into_iter()
        .flat_map(|view| &view.instances)
        .flat_map(|i| &i.tags)
        .map(String::as_str)
        .collect()
}

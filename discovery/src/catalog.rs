//! The snapshot that readers see: every host of the mesh that is up and every instance of every service.
//!
//! Immutable and shared: DNS, the HTTP catalogue, the admin pages and the balancers hold the same `Arc`s. A
//! change replaces only the views it touches, so `Arc::ptr_eq` on a [`ServiceView`] says "nothing changed".
//! Indices are for blocking queries: for each service `max(last + 1, unix µs)`, so they never go backwards, are
//! never 0, survive a restart, and one service's churn does not wake the watchers of the others.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use evenkeel_config::Published;
use evenkeel_config::settings::Protocol;

use crate::health::Status;
use crate::index::PolicyHash;
use crate::order::{Order, Subject};
use crate::registration::{TaggedAddresses, Weights};

/// Everything that look-ups can answer, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The mesh's name; also Consul's datacenter and `<dc>` in DNS.
    pub mesh: String,
    /// The DNS domain answered here, lower case.
    pub domain: String,
    /// This host's own id: a key of `nodes`.
    pub own: u64,
    /// Nobody has told this host yet all that the mesh knows: what is not here may exist all the same. So a name that is
    /// not here is not unknown yet, and a list is not to be taken for the whole one.
    pub partial: bool,
    /// Hosts by id: those that are up, and for [`crate::discovery::DOWN_KEPT`] those that went away.
    pub nodes: BTreeMap<u64, Arc<Node>>,
    /// Services by name; only those with at least one instance on a host that is up.
    pub services: BTreeMap<String, Arc<ServiceView>>,
    /// Instances whose hosts stopped answering without a goodbye, by service, for three days: shown as
    /// critical to who asks for all instances, so that an alert on what is missing can fire; never chosen and never in DNS.
    pub lost: BTreeMap<String, Vec<Arc<Instance>>>,
    /// The orders that count, the newest on each subject.
    pub orders: BTreeMap<Subject, Arc<Order>>,
    /// What hosts that are up tell their like, by host.
    pub notes: BTreeMap<u64, Arc<HostNotes>>,
    /// Rises with every published change.
    pub index: u64,
    /// Rises when a host comes, goes or changes.
    pub nodes_index: u64,
    /// Rises when a service comes or goes, or its tags change.
    pub services_index: u64,
    /// Rises when any check of any host or instance may have changed.
    pub checks_index: u64,
}

/// What a host tells its like on other hosts, by name: opaque to discovery, written with
/// [`Discovery::note`](crate::Discovery::note).
pub type HostNotes = BTreeMap<Box<str>, Arc<[u8]>>;

/// One host of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Random, kept across restarts where there is a data directory.
    pub id: u64,
    /// For humans, and in `<name>.node.<domain>`.
    pub name: String,
    /// Its gossip: UDP and TCP.
    pub address: SocketAddr,
    /// Where it takes requests from other hosts.
    pub mesh: SocketAddr,
    /// Where it stands.
    pub zone: Option<String>,
    /// Of its record: a larger one replaces everything of a smaller one.
    pub generation: u64,
    /// Whether it can be reached.
    pub status: NodeStatus,
    /// It is not to be chosen: it is about to leave and says so, or an order says so ([`Catalog::orders`]).
    pub draining: bool,
    /// Why, if an operator of that host said so.
    pub drain_reason: String,
    /// Of the program that runs there; empty: it does not say.
    pub version: String,
    /// Of the host itself: they count for all its instances.
    pub checks: Vec<CheckState>,
    /// When it last changed.
    pub index: u64,
}

/// Whether a host can be reached, as far as this host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// It is up.
    Alive,
    /// It stopped answering.
    Failed,
    /// It stopped answering, and its process is gone for certain: several hosts found its port closed.
    Dead,
    /// It said goodbye.
    Left,
}

/// One service: all its instances on hosts that are up, whatever their health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// `name` or `name.namespace`.
    pub name: String,
    /// `max(last + 1, unix µs)` at its last change.
    pub index: u64,
    /// Ordered by node id, then instance id.
    pub instances: Vec<Arc<Instance>>,
    /// What the hosts of these instances say that clients should do.
    pub policies: Policies,
}

/// What the hosts of a service publish of its policy. Instances whose host says nothing have no vote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// Each different one. The first counts: that of most instances, then the one of the lowest hash.
    pub published: Vec<PolicyVote>,
    /// Instances whose policy cannot be had or read: they have no vote either.
    pub unusable: usize,
}

/// One published policy and who publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVote {
    /// Its name.
    pub hash: PolicyHash,
    /// What it says.
    pub policy: Arc<Published>,
    /// How many instances it is for.
    pub instances: usize,
    /// Names of their hosts, at most [`HOSTS_NAMED_MAX`].
    pub hosts: Vec<String>,
}

/// Hosts named for each published policy.
pub const HOSTS_NAMED_MAX: usize = 8;

/// One application process that offers a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The host it runs on; `node.mesh` is where requests go.
    pub node: Arc<Node>,
    /// Unique on its host.
    pub id: String,
    /// The service it offers.
    pub service: String,
    /// The application, as its own host reaches it.
    pub address: SocketAddr,
    /// Where look-ups send those who come without the mesh.
    pub advertise: Option<SocketAddr>,
    /// As registered.
    pub tagged_addresses: TaggedAddresses,
    /// As registered.
    pub enable_tag_override: bool,
    /// What the application speaks; `None`: told from the first bytes.
    pub protocol: Option<Protocol>,
    /// As registered.
    pub tags: Vec<String>,
    /// As registered.
    pub meta: BTreeMap<String, String>,
    /// As registered.
    pub weights: Weights,
    /// The worst of its checks and of its host's; passing if there are none.
    pub status: Status,
    /// Each of its own.
    pub checks: Vec<CheckState>,
    /// Its host vanished together with many others, so it may be this host that is cut off: try it last.
    pub preserved: bool,
    /// When it was first seen with this id on this generation of its host.
    pub create_index: u64,
    /// When it last changed.
    pub modify_index: u64,
}

/// One check of an instance or of a host, as published by that host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckState {
    /// `service:<id>` or `service:<id>:N`, if the registration says nothing else.
    pub id: String,
    /// For a human.
    pub name: String,
    /// `http`, `tcp`, `grpc`, `ttl`, or `maintenance` for what an operator said.
    pub kind: &'static str,
    /// As registered; of maintenance, the operator's reason.
    pub notes: String,
    /// What is published.
    pub status: Status,
    /// What the run that changed the status said.
    pub output: String,
}

impl Catalog {
    /// The service's view, by its exact lower-case name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceView>> {
        self.services.get(name)
    }

    /// The instances of the service on hosts that stopped answering.
    pub fn lost_instances(&self, name: &str) -> impl Iterator<Item = &Arc<Instance>> {
        self.lost.get(name).into_iter().flatten()
    }

    /// The index that a blocking query on this service starts from: its own, or that of the set of services while there is none.
    #[must_use]
    pub fn service_index(&self, name: &str) -> u64 {
        self.services.get(name).map_or(self.services_index, |view| view.index)
    }

    /// Hosts that are up.
    pub fn alive(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().filter(|node| node.status == NodeStatus::Alive)
    }

    /// Whether requests may come from this address: some live host of the mesh stands there.
    #[must_use]
    pub fn is_member_address(&self, address: IpAddr) -> bool {
        self.alive().any(|node| node.address.ip() == address || node.mesh.ip() == address)
    }
}

impl Policies {
    /// The one that counts.
    #[must_use]
    pub fn winner(&self) -> Option<&Arc<Published>> {
        self.published.first().map(|vote| &vote.policy)
    }
}

impl Instance {
    /// Whether look-ups name it: not critical, and its host is not draining.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.status != Status::Critical && !self.node.draining
    }

    /// Whether it listens anywhere: an instance registered without a port is only listed.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.address.port() != 0
    }
}

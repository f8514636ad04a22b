//! The file as it was written: every value read, nothing defaulted, nothing compared with anything else.
//!
//! Between the tree, where everything is text, and [`Settings`](crate::settings::Settings), where nothing is
//! missing any more. What a later check may have to point at keeps its place as an [`At`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bounds::Bounds;
use crate::layer::PolicyLayer;
use crate::policy::{KeySource, Share};
use crate::ratelimit::{Algorithm, Direction, Fail, Safe};
use crate::report::At;
use crate::settings::{Access, CheckKind, Key, Match, Protocol, Scout};

pub(crate) struct File {
    pub node: NodeKeys,
    pub workers: Option<usize>,
    pub mesh: MeshKeys,
    pub services: Vec<ServiceKeys>,
    pub policy: PolicyLayer,
    pub upstreams: Vec<UpstreamKeys>,
    pub outbound: OutboundKeys,
    pub discovery_http: Option<At<SocketAddr>>,
    pub discovery_dns: Option<At<SocketAddr>>,
    pub ratelimit: RateLimitKeys,
    pub admin: Option<At<SocketAddr>>,
    pub limits: LimitKeys,
    pub settle: Option<Duration>,
    pub shutdown_timeout: Option<Duration>,
    pub log: LogKeys,
}

pub(crate) struct NodeKeys {
    pub name: Option<At<String>>,
    /// Something stands there, usable or not.
    pub name_given: bool,
    pub address: Option<At<IpAddr>>,
    pub zone: Option<String>,
    pub data_dir: Option<String>,
}

pub(crate) struct MeshKeys {
    pub name: Option<String>,
    pub domain: Option<String>,
    pub join: Vec<At<String>>,
    pub gossip: Option<At<SocketAddr>>,
    pub keys: Keys,
    pub data: Option<At<SocketAddr>>,
    pub insecure: Option<At<bool>>,
    pub bounds: Bounds,
}

/// `mesh.gossip.keys`.
pub(crate) enum Keys {
    /// No key is written, or an empty list.
    None,
    /// `complete` unless one of them was refused: what depends on there being keys then says nothing.
    Given { keys: Vec<At<Key>>, complete: bool },
    /// In this file.
    File(At<String>),
    /// Written and unusable.
    Unusable,
}

pub(crate) struct ServiceKeys {
    pub name: Option<At<String>>,
    pub id: Option<At<String>>,
    pub address: Option<At<SocketAddr>>,
    pub advertise: Option<At<SocketAddr>>,
    pub protocol: Option<Protocol>,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
    pub check: Option<CheckKeys>,
    /// With its place; `None`: neither a policy nor routes are written.
    pub policy: Option<At<PolicyLayer>>,
    pub routes: Vec<RouteKeys>,
    pub scout: Option<Scout>,
}

pub(crate) struct CheckKeys {
    /// `None`: neither kind is usable, which was reported.
    pub kind: Option<CheckKind>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub rise: Option<u32>,
    pub fall: Option<u32>,
}

pub(crate) struct UpstreamKeys {
    pub name: Option<At<String>>,
    pub endpoints: Vec<At<SocketAddr>>,
    /// Some are written, usable or not.
    pub has_endpoints: bool,
    pub protocol: Option<At<Protocol>>,
    pub scout: Option<At<Scout>>,
    pub policy: PolicyLayer,
    pub routes: Vec<RouteKeys>,
}

pub(crate) struct RouteKeys {
    /// `None`: unusable, which was reported.
    pub matches: Option<At<Match>>,
    pub policy: PolicyLayer,
}

pub(crate) struct OutboundKeys {
    pub listen: Option<At<SocketAddr>>,
    pub passthrough: Option<bool>,
    pub listeners: Vec<ListenerKeys>,
}

pub(crate) struct ListenerKeys {
    pub listen: Option<At<SocketAddr>>,
    pub service: Option<String>,
}

pub(crate) struct RateLimitKeys {
    pub listen: Option<At<SocketAddr>>,
    pub absent: Option<Duration>,
    pub resources: Vec<ResourceKeys>,
    pub apply: Vec<ApplyKeys>,
}

pub(crate) struct ResourceKeys {
    pub pattern: Option<At<String>>,
    pub capacity: Option<At<f64>>,
    pub per: Option<Duration>,
    /// Something stands there, usable or not.
    pub per_given: bool,
    pub burst: Option<At<f64>>,
    pub algorithm: Option<Algorithm>,
    pub lease: Option<At<Duration>>,
    /// Something stands there, usable or not.
    pub lease_given: bool,
    pub refresh: Option<At<Duration>>,
    pub learning: Option<At<Duration>>,
    pub safe: Option<Safe>,
    pub floors: Vec<FloorKeys>,
    /// Where these stand.
    pub floors_at: At<()>,
}

pub(crate) struct FloorKeys {
    pub priority: Option<At<i64>>,
    pub share: Option<At<Share>>,
}

pub(crate) struct ApplyKeys {
    pub direction: Option<Direction>,
    pub service: Option<String>,
    /// `None`: unusable, which was reported.
    pub matches: Option<Match>,
    pub resource: Option<At<String>>,
    pub cost: Option<At<u32>>,
    pub key: Option<KeySource>,
    pub wait: Option<At<Duration>>,
    pub fail: Option<Fail>,
    pub enforce: Option<bool>,
}

pub(crate) struct LimitKeys {
    pub connections: Option<usize>,
    pub members: Option<usize>,
    pub records: Option<usize>,
    pub buffers: Option<usize>,
}

pub(crate) struct LogKeys {
    pub level: Option<&'static str>,
    pub json: Option<bool>,
    pub access: Option<Access>,
}

//! The file as it was written: every value read, nothing defaulted, nothing compared with anything else.
//!
//! Between the tree, where everything is text, and [`Settings`](crate::settings::Settings), where nothing is
//! missing any more. What a later check may have to point at keeps its place as an [`At`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bounds::Bounds;
use crate::layer::PolicyLayer;
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

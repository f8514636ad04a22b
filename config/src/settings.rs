//! The validated configuration: what the rest of the program reads.
//!
//! Parsed, not checked: an address is a [`SocketAddr`], a duration a [`Duration`], a policy a whole
//! [`Policy`]. A `Settings` that exists is usable; everything that could be wrong with the file was
//! reported, all at once, before one came to be.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::bounds::Bounds;
use crate::layer::PolicyLayer;
use crate::policy::{Origins, Policy};
use crate::published::Published;

pub use crate::ratelimit::{Algorithm, Apply, Direction, Fail, RateLimit, Resource, Safe};

/// The whole configuration of one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who this host is.
    pub node: Node,
    /// Worker threads; `None`: the CPU quota, at most 4.
    pub workers: Option<usize>,
    /// The mesh it belongs to.
    pub mesh: Mesh,
    /// What this host offers.
    pub services: Vec<Service>,
    /// This host's default policy (built-in defaults merged with `policy:`).
    pub policy: Policy,
    /// Where each field of `policy` came from.
    pub origins: Origins,
    /// Services found otherwise, or this client's own policy for a mesh service.
    pub upstreams: Vec<Upstream>,
    /// Where applications send requests.
    pub outbound: Outbound,
    /// Where applications look services up.
    pub discovery: Discovery,
    /// What all hosts share, and which requests draw on it.
    pub ratelimit: RateLimit,
    /// Where the operator looks.
    pub admin: Listen,
    /// Upper bounds.
    pub limits: Limits,
    /// How a host goes away.
    pub shutdown: Shutdown,
    /// What is written to the log.
    pub log: Log,
}

/// Who this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Default: the hostname.
    pub name: String,
    /// What others dial; `None`: the default route's source address, else 127.0.0.1.
    pub address: Option<IpAddr>,
    /// Where this host stands, published with its record.
    pub zone: Option<String>,
    /// `None`: keeps nothing.
    pub data_dir: DataDir,
}

/// Where the host keeps its identity, members and registrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// `$STATE_DIRECTORY`, else the XDG state directory, else nothing with a warning.
    Default,
    /// This directory.
    Path(PathBuf),
    /// Written as `""`: keep nothing.
    Nothing,
}

/// The mesh a host belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// Hosts of different meshes ignore each other; also Consul's datacenter.
    pub name: String,
    /// The DNS domain answered here.
    pub domain: String,
    /// `host:port` of other hosts' gossip; names are looked up again at every try.
    pub join: Vec<String>,
    /// Gossip's listener.
    pub gossip: Listen,
    /// 32-byte keys: the first sends, all receive. Empty: loopback only.
    pub keys: Vec<Key>,
    /// The listener for requests from other hosts.
    pub data: Listen,
    /// Allows other addresses than loopback without keys.
    pub insecure: bool,
    /// The most that others may ask of this host's clients.
    pub bounds: Bounds,
}

/// A gossip key; `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// A listener's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Where to listen.
    pub address: SocketAddr,
    /// Written in the file: a taken port is an error, where a default that is taken may be left out.
    pub explicit: bool,
}

/// What this host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `name` or `name.namespace`, lower case.
    pub name: String,
    /// Unique on this host; default: the name.
    pub id: String,
    /// The application.
    pub address: SocketAddr,
    /// Where look-ups send those who come without the mesh; `None`: not announced outside the mesh.
    pub advertise: Option<SocketAddr>,
    /// What the application speaks; `None`: told from the first bytes (HTTP/1.1 towards the application).
    pub protocol: Option<Protocol>,
    /// Shown by look-ups.
    pub tags: Vec<String>,
    /// Shown by look-ups.
    pub meta: std::collections::BTreeMap<String, String>,
    /// How its health is known; `None`: always passing.
    pub check: Option<Check>,
    /// What every client of the service is to do; `None`: nothing is said.
    pub policy: Option<Published>,
    /// How it answers scouts itself; `None`: it does not.
    pub scout: Option<Scout>,
}

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
}

impl Protocol {
    pub(crate) const ALL: [Protocol; 3] = [Protocol::Http, Protocol::Http2, Protocol::Grpc];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Grpc => "grpc",
        }
    }
}

/// How an application's health is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Between two checks.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Successes in a row that make it passing.
    pub rise: u32,
    /// Failures in a row that make it critical.
    pub fall: u32,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// GET this path: 2xx passes.
    Http(String),
    /// The same over TLS.
    Https {
        /// As of [`CheckKind::Http`].
        path: String,
        /// Whatever certificate is shown is taken.
        skip_verify: bool,
        /// Expected in the certificate; `None`: the service's address.
        server_name: Option<String>,
    },
    /// A connection passes.
    Tcp,
}

/// How an application answers scouts itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scout {
    /// GET this path of its own address: 2xx.
    Http(String),
    /// On this port of its own address a byte for each byte.
    Tcp(u16),
}

/// Services found otherwise, or this client's own policy for a mesh service.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// The service's name.
    pub name: String,
    /// `host:port` of each endpoint; empty: the mesh's own instances.
    pub endpoints: Vec<SocketAddr>,
    /// What the endpoints speak; `None`: HTTP/1.1.
    pub protocol: Option<Protocol>,
    /// How the endpoints answer scouts; `None`: they do not.
    pub scout: Option<Scout>,
    /// What it says; what holds is [`Settings::effective`].
    pub(crate) said: PolicyLayer,
    /// First match wins.
    pub(crate) routes: Vec<(Match, PolicyLayer)>,
}

/// Which requests a route is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The path: exact, or a prefix when it ends in `*`.
    pub path: Option<String>,
    /// The method, upper case.
    pub method: Option<String>,
}

/// Where applications send requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// The proxy's listener.
    pub listen: Listen,
    /// Requests for names outside the mesh pass through.
    pub passthrough: bool,
    /// Listeners for one service each.
    pub listeners: Vec<ServiceListener>,
}

/// A listener whose every request goes to one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceListener {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where its requests go.
    pub service: String,
}

/// Where applications look services up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Consul's HTTP API.
    pub http: Listen,
    /// DNS over UDP and TCP.
    pub dns: Listen,
}

/// Upper bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Accepted connections, each of outbound and inbound.
    pub connections: usize,
    /// Hosts of the mesh.
    pub members: usize,
    /// Service instances of the mesh.
    pub records: usize,
    /// Bytes of bodies kept for a repeat.
    pub buffers: usize,
}

/// How a host goes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// After announcing, requests are accepted for this long.
    pub settle: Duration,
    /// Then what is in flight has this long to finish.
    pub timeout: Duration,
}

/// What is written to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `error | warn | info | debug | trace`.
    pub level: String,
    /// JSON instead of text.
    pub json: bool,
    /// Which requests are logged.
    pub access: Access,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// None.
    Off,
    /// Those that failed.
    Errors,
    /// All.
    All,
}

impl Access {
    pub(crate) const ALL: [Access; 3] = [Access::Off, Access::Errors, Access::All];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Access::Off => "off",
            Access::Errors => "errors",
            Access::All => "all",
        }
    }
}

impl Settings {
    /// What an empty file means: a mesh of this host alone, on loopback addresses.
    #[must_use]
    pub fn one_host(env: &crate::environment::Environment) -> Settings {
        let listen =
            |port| Listen { address: SocketAddr::from(([127, 0, 0, 1], port)), explicit: false };
        Settings {
            node: Node {
                name: env.hostname.clone(),
                address: None,
                zone: None,
                data_dir: DataDir::Default,
            },
            workers: None,
            mesh: Mesh {
                name: "evenkeel".to_owned(),
                domain: "mesh".to_owned(),
                join: Vec::new(),
                gossip: listen(7111),
                keys: Vec::new(),
                data: listen(7110),
                insecure: false,
                bounds: Bounds::default(),
            },
            services: Vec::new(),
            policy: Policy::default(),
            origins: crate::policy::built_in_origins(),
            upstreams: Vec::new(),
            outbound: Outbound { listen: listen(7080), passthrough: true, listeners: Vec::new() },
            discovery: Discovery { http: listen(8500), dns: listen(8600) },
            ratelimit: RateLimit {
                listen: listen(7113),
                absent: Duration::from_secs(60),
                resources: Vec::new(),
                apply: Vec::new(),
            },
            admin: listen(7119),
            limits: Limits {
                connections: 10_000,
                members: 20_000,
                records: 200_000,
                buffers: 256 << 20,
            },
            shutdown: Shutdown { settle: Duration::from_secs(5), timeout: Duration::from_secs(30) },
            log: Log { level: "info".to_owned(), json: false, access: Access::Errors },
        }
    }
}

//! What goes into [`Discovery`](super::Discovery) and what comes out of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Found;

pub use crate::order::SavedOrder;
use crate::registration::RegisterError;
pub use crate::registration::{SavedCheck, SavedRegistration};

/// Hosts that went away are still listed (as failed or left, without instances) for this long.
pub const DOWN_KEPT: Duration = Duration::from_secs(3600);
/// The largest TCP frame, either way. The shell prefixes each with its length as a big-endian `u32` and refuses longer ones.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;
/// The largest datagram sent; longer ones received are refused.
pub const DATAGRAM_MAX: usize = 1200;
/// The longest note that a host may write into its record.
pub const NOTE_MAX: usize = 8 * 1024;
/// The longest message about quotas.
pub const QUOTA_MAX: usize = 1024;

/// Who this host is and which mesh it belongs to.
#[derive(Debug, Clone)]
pub struct Config {
    /// Hosts of different meshes ignore each other.
    pub mesh: String,
    /// The DNS domain answered here.
    pub domain: String,
    /// This host.
    pub node: NodeInfo,
    /// The first key sends, all receive. Empty: not sealed, only checksummed.
    pub keys: Vec<[u8; 32]>,
    /// How fast failures are found.
    pub profile: Profile,
    /// Upper bounds.
    pub limits: Limits,
}

/// What other hosts need to know of a host to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Random; that of [`Saved`] where there is one.
    pub id: u64,
    /// For humans, and in `<name>.node.<domain>`.
    pub name: String,
    /// What others dial for gossip, UDP and TCP.
    pub address: SocketAddr,
    /// The port of the mesh's data listener, at the same IP address.
    pub mesh_port: u16,
    /// Where it stands.
    pub zone: Option<String>,
    /// Of the program that runs there, for people: no decision depends on it.
    pub version: String,
}

/// How fast failures are found, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// One random host is probed this often.
    pub probe_period: Duration,
    /// A probe unanswered for this long is tried through others and over TCP. Less than half of the period.
    pub probe_rtt: Duration,
    /// A suspect has this long to refute; beyond a hundred hosts more: times log10 of their number, less one.
    pub suspicion: Duration,
    /// Changes are passed on this often.
    pub gossip: Duration,
}

impl Profile {
    /// Within a data centre.
    pub const LAN: Profile = Profile {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(200),
        suspicion: Duration::from_millis(2000),
        gossip: Duration::from_millis(100),
    };
}

/// Upper bounds on what other hosts can make this one remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Hosts of the mesh.
    pub members: usize,
    /// Service instances of the mesh, with each host's published policies and orders.
    pub records: usize,
}

/// What is kept across restarts; the shell writes it atomically to the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The host's id.
    pub node: u64,
    /// The last generation used.
    pub generation: u64,
    /// The last membership epoch used.
    pub epoch: u32,
    /// Hosts to try at the next start.
    pub members: Vec<SavedMember>,
    /// Instances registered through the HTTP API.
    pub registrations: Vec<SavedRegistration>,
    /// Orders issued at this host that have not ended.
    #[serde(default)]
    pub orders: Vec<SavedOrder>,
    /// Why instances of this host are in maintenance, by id; of the host itself under the empty id.
    #[serde(default)]
    pub maintenance: BTreeMap<String, String>,
    /// Checks of this host itself.
    #[serde(default)]
    pub host_checks: Vec<SavedCheck>,
    /// No index that this host gave out is above it.
    #[serde(default)]
    pub index: u64,
}

/// A host to try at the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMember {
    /// Its id.
    pub node: u64,
    /// Its gossip address.
    pub address: SocketAddr,
}

/// A datagram to send from the gossip socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// At most [`DATAGRAM_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// Names one dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// A TCP exchange to make: connect, send the request as one frame, read one frame, close; its end is told to [`Discovery::handle_response`](super::Discovery::handle_response).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// Names it.
    pub id: DialId,
    /// Where to.
    pub to: SocketAddr,
    /// The frame's content.
    pub request: Vec<u8>,
    /// For the whole exchange.
    pub timeout: Duration,
}

/// How a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialError {
    /// The address answered that nobody listens there (`ECONNREFUSED`): the host is there, its process is not.
    Refused,
    /// Anything else: says nothing about the process.
    Other,
}

/// What happened, for the shell to act on or to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Look the join names up (again) and call [`Discovery::join`](super::Discovery::join) with each address.
    ResolveJoin,
    /// [`Discovery::snapshot`](super::Discovery::snapshot) is a new one: publish it.
    SnapshotChanged,
    /// [`Discovery::saved`](super::Discovery::saved) differs from what was last asked for: write it soon.
    SaveDue,
    /// A host came up.
    NodeUp {
        /// Its id.
        node: u64,
        /// Its name, or its id in hexadecimal while its record is on its way.
        name: String,
    },
    /// A host went away.
    NodeDown {
        /// Its id.
        node: u64,
        /// Its name, or its id in hexadecimal.
        name: String,
        /// It said goodbye.
        left: bool,
    },
    /// The mesh took this host for dead; it has rejoined by itself.
    Refuted,
    /// Two hosts claim one gossip address, and it was dialled: the one that did not answer there is left out.
    AddressConflict {
        /// The host that is left out.
        loser: u64,
        /// The host that answers there.
        winner: u64,
        /// What both claim.
        address: SocketAddr,
    },
    /// Another host dialled the address that this one claims, and did not find it there. Told once for each finding.
    NotThere {
        /// This host's.
        address: SocketAddr,
        /// What is there.
        found: Found,
    },
    /// What a host offers was not taken, and is missing here, because the limit of records (or of hosts) is reached.
    RecordRefused {
        /// Its id.
        node: u64,
        /// Its name, or its id in hexadecimal.
        name: String,
    },
    /// An instance that was kept from an earlier life is not offered any more.
    NotRestored {
        /// Its id.
        id: String,
        /// Why.
        cause: RegisterError,
    },
    /// Another host says something about quotas; it has proved that it is there.
    Quota {
        /// Which.
        from: u64,
        /// What it handed to [`Discovery::send_quota`](super::Discovery::send_quota).
        bytes: Vec<u8>,
    },
    /// An instance was withdrawn because it had been critical for as long as its registration allows.
    Withdrawn {
        /// Its id.
        id: String,
        /// The check that was critical.
        check: String,
    },
    /// Another process uses this host's id (a copied data directory): this host continues under a new one.
    NewIdentity {
        /// The new id; [`Discovery::saved`](super::Discovery::saved) has it.
        node: u64,
    },
}

/// How far a host is on its way into the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// This address of `mesh.join` was not tried to its end yet.
    Joining(SocketAddr),
    /// All were tried, and nobody is up but this host.
    Alone,
    /// Others are up, but none of them has sent anything to the address that this host claims.
    Unseen,
    /// At the address that this host claims others found this instead.
    NotThere(Found),
    /// All that can be met was, and others see this host.
    Ready,
}

/// What was received, sent and refused since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// TCP exchanges begun by this host.
    pub dials: u64,
    /// Of these, failed.
    pub dials_failed: u64,
    /// TCP exchanges begun by others.
    pub requests: u64,
    /// Refused: shorter than an envelope or longer than allowed.
    pub refused_length: u64,
    /// Refused: not ours at all.
    pub refused_magic: u64,
    /// Refused: of a later protocol.
    pub refused_version: u64,
    /// Refused: of another mesh.
    pub refused_foreign_mesh: u64,
    /// Refused: sealed with a key that this host lacks, or sealed where this host has no keys, or the reverse.
    pub refused_key: u64,
    /// Refused: the seal does not fit: tampered with, or for another purpose.
    pub refused_seal: u64,
    /// Refused: the checksum does not fit (only without keys).
    pub refused_checksum: u64,
    /// Refused: seen before.
    pub refused_replay: u64,
    /// Refused: opened, but not understood.
    pub refused_malformed: u64,
    /// Refused: sealed as by this host itself.
    pub refused_own: u64,
    /// Refused: beyond the limit of members or records.
    pub refused_limit: u64,
    /// Registrations refused because this host offers as many as it may, or the mesh has as many records as it may.
    pub registrations_refused: u64,
    /// Senders asked to prove that they are there.
    pub challenges: u64,
    /// Packets for a host whose address is not known yet.
    pub unroutable: u64,
    /// Datagrams lost because the shell did not take them.
    pub datagrams_dropped: u64,
    /// Events lost because the shell did not take them.
    pub events_dropped: u64,
    /// How much slower than configured this host probes, because it seems to be the slow one (0 to 3).
    pub slowdown: u64,
}

impl Counters {
    /// All that was refused, by reason, for a labelled metric.
    #[must_use]
    pub fn refused(&self) -> [(&'static str, u64); 11] {
        [
            ("length", self.refused_length),
            ("magic", self.refused_magic),
            ("version", self.refused_version),
            ("foreign_mesh", self.refused_foreign_mesh),
            ("key", self.refused_key),
            ("seal", self.refused_seal),
            ("checksum", self.refused_checksum),
            ("replay", self.refused_replay),
            ("malformed", self.refused_malformed),
            ("own", self.refused_own),
            ("limit", self.refused_limit),
        ]
    }
}

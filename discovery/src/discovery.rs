//! The owner of everything that travels between hosts: membership, registry and the sealed envelope.
//!
//! One thread of the shell drives it:
//!
//! 1. bytes received go to [`Discovery::handle_datagram`], [`Discovery::handle_request`] and
//!    [`Discovery::handle_response`]; when [`Discovery::poll_timeout`] is due, [`Discovery::handle_timeout`];
//! 2. after each of these and after every other call that takes `&mut self`, drain [`Discovery::poll_transmit`],
//!    [`Discovery::poll_dial`] and [`Discovery::poll_event`] until they are empty.
//!
//! Read datagrams before timers when both are due: a late timer must not declare dead a host whose answer waits in the socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::health::Health;
use crate::registration::{RegisterError, Registration};

/// Hosts that went away are still listed (as failed or left, without instances) for this long.
pub const DOWN_KEPT: Duration = Duration::from_secs(3600);
/// The largest TCP frame, either way. The shell prefixes each with its length as a big-endian `u32` and refuses longer ones.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;
/// The largest datagram sent; longer ones received are refused.
pub const DATAGRAM_MAX: usize = 1200;

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
}

/// How fast failures are found, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// One random host is probed this often.
    pub probe_period: Duration,
    /// A probe unanswered for this long is tried through others and over TCP. Less than half of the period.
    pub probe_rtt: Duration,
    /// A suspect has this long to refute, times log10 of the number of hosts if that is more than 1.
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
    /// Service instances of the mesh.
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
    /// Instances registered through the HTTP API, as their encoded bodies in base-16.
    pub registrations: Vec<SavedRegistration>,
}

/// A host to try at the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMember {
    /// Its id.
    pub node: u64,
    /// Its gossip address.
    pub address: SocketAddr,
}

pub use crate::registration::SavedRegistration;

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

/// A TCP exchange to make: connect, send the request as one frame, read one frame, close; its end is told to [`Discovery::handle_response`].
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
    /// Look the join names up (again) and call [`Discovery::join`] with each address.
    ResolveJoin,
    /// [`Discovery::snapshot`] is a new one: publish it.
    SnapshotChanged,
    /// [`Discovery::saved`] differs from what was last asked for: write it soon.
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
    /// A newer host claims the same gossip address: the older one is left out. If it is this host, change `node.address` of one of them.
    AddressConflict {
        /// The host that is left out.
        loser: u64,
        /// The host that is kept.
        winner: u64,
        /// What both claim.
        address: SocketAddr,
    },
    /// Another process uses this host's id (a copied data directory): this host continues under a new one.
    NewIdentity {
        /// The new id; [`Discovery::saved`] has it.
        node: u64,
    },
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
}

/// Membership, registry and envelope of one host.
#[derive(Debug)]
pub struct Discovery {
    config: Config,
    catalog: Arc<Catalog>,
    counters: Counters,
}

impl Discovery {
    /// A host that is alone so far. `saved` is what [`Discovery::saved`] gave in an earlier life, `wall_ms` the unix
    /// time in milliseconds; `seed` and `salt` must come from the operating system's entropy (in simulations, from the run's seed).
    #[must_use]
    pub fn new(
        config: Config,
        saved: Option<Saved>,
        now: Instant,
        wall_ms: u64,
        seed: [u8; 32],
        salt: [u8; 16],
    ) -> Self {
        let _ = (saved, now, wall_ms, seed, salt);
        Discovery {
            config,
            catalog: Arc::default(),
            counters: Counters::default(),
        }
    }

    /// Asks the host at this address for all it knows, and tells it of us. A no-op for our own address and for one where a member is up already.
    pub fn join(&mut self, now: Instant, address: SocketAddr) {
        let _ = (now, address);
    }

    /// Takes one datagram.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        wall_ms: u64,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let _ = (now, wall_ms, from);
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.len() as u64;
    }

    /// Takes one TCP request frame; returns the response frame. `None`: close without an answer.
    pub fn handle_request(
        &mut self,
        now: Instant,
        wall_ms: u64,
        from: SocketAddr,
        request: &[u8],
    ) -> Option<Vec<u8>> {
        let _ = (now, wall_ms, from, request);
        self.counters.requests += 1;
        None
    }

    /// Takes the end of a dial: the response frame, or how it failed (a timeout is [`DialError::Other`]).
    pub fn handle_response(
        &mut self,
        now: Instant,
        wall_ms: u64,
        dial: DialId,
        response: Result<&[u8], DialError>,
    ) {
        let _ = (now, wall_ms, dial, response);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        let _ = (now, wall_ms);
    }

    /// When [`Discovery::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next TCP exchange to make.
    pub fn poll_dial(&mut self) -> Option<Dial> {
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Offers an instance, or replaces the one of the same id (its health is kept if its checks are the same).
    ///
    /// # Errors
    /// What is wrong with it; nothing changed.
    pub fn register(
        &mut self,
        now: Instant,
        wall_ms: u64,
        registration: Registration,
    ) -> Result<(), RegisterError> {
        let _ = (now, wall_ms);
        registration.validate()
    }

    /// Withdraws an instance.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn deregister(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
    ) -> Result<(), RegisterError> {
        let _ = (now, wall_ms);
        Err(RegisterError::NoSuchId(id.to_owned()))
    }

    /// Publishes the health of one check (by its index in [`Registration::checks`]) if its status changed.
    ///
    /// # Errors
    /// There is no instance of this id, or it has no such check.
    pub fn set_health(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
        check: usize,
        health: Health,
    ) -> Result<(), RegisterError> {
        let _ = (now, wall_ms, check, health);
        Err(RegisterError::NoSuchId(id.to_owned()))
    }

    /// Asks all hosts to stop (or start again) choosing this one.
    pub fn set_draining(&mut self, now: Instant, wall_ms: u64, draining: bool) {
        let _ = (now, wall_ms, draining);
    }

    /// Says goodbye to all: afterwards drain [`Discovery::poll_transmit`] once and stop. Nothing else is sent after that.
    pub fn leave(&mut self, now: Instant, wall_ms: u64) {
        let _ = (now, wall_ms);
    }

    /// What readers see. Changes are coalesced for at most 20 ms; [`Event::SnapshotChanged`] says when.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog)
    }

    /// What to keep across restarts.
    #[must_use]
    pub fn saved(&self) -> Saved {
        Saved {
            node: self.config.node.id,
            generation: 0,
            epoch: 0,
            members: Vec::new(),
            registrations: Vec::new(),
        }
    }

    /// This host's own registrations: after a restart those that were saved are among them, and their checks must be run.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        std::iter::empty()
    }

    /// What was received, sent and refused since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

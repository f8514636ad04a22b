//! What is shared between all hosts, and which requests draw on it.
//!
//! Plain data without "not said", as `policy` is. A [`Resource`] is the rules of the ids that its pattern matches; an [`Apply`] names
//! one id. Both stand in the file of each host: hosts that share a resource are to say the same of it, since each decides by its own file.

use std::time::Duration;

use crate::glob;
use crate::policy::KeySource;
use crate::settings::{Listen, Match};

/// Limits that hold for all hosts together.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimit {
    /// Leases for Doorman clients, gRPC.
    pub listen: Listen,
    /// A host that was not heard of for so long, and did not say goodbye, loses its part of every resource to the others.
    pub absent: Duration,
    /// Rules of resources: [`RateLimit::find`] says which count.
    pub resources: Vec<Resource>,
    /// Which requests draw on which resource.
    pub apply: Vec<Apply>,
}

impl RateLimit {
    /// The rules of a resource, if it is one.
    #[must_use]
    pub fn find(&self, id: &[u8]) -> Option<&Resource> {
        glob::first(&self.resources, |resource| &resource.pattern, name(id))
    }
}

/// The name of a resource is its id up to the first NUL byte, if there is one. So a rule with a key makes an id of each value, the name, NUL and the
/// value, and all of them follow the rules of the name, whatever bytes a value has: a `/` in it changes nothing.
#[must_use]
pub fn name(id: &[u8]) -> &[u8] {
    id.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The rules of the resources whose id the pattern matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// An id or a glob.
    pub pattern: String,
    /// How much there is, over all hosts.
    pub capacity: f64,
    /// In which time: the capacity is a rate. `None`: it is held, so many at once.
    pub per: Option<Duration>,
    /// How many may come at once beyond the rate, over all hosts; 0 without `per`.
    pub burst: f64,
    /// How it is shared.
    pub algorithm: Algorithm,
    /// What priorities are sure of: thousandths of the capacity, together at most 1,000; no priority twice.
    pub floors: Vec<(i64, u16)>,
    /// How long a Doorman client holds its lease: a second to an hour.
    pub lease: Duration,
    /// How often it comes back: a second to the lease.
    pub refresh: Duration,
    /// How long a host that has just started believes what such clients say they hold: at most the lease.
    pub learning: Duration,
    /// What may be used by those who reach nobody.
    pub safe: Safe,
}

/// How a resource is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// Everyone gets what he wants.
    None,
    /// Everyone gets what he wants, up to the capacity for each.
    Static,
    /// Equal shares, and what is left in proportion to what is lacking.
    ProportionalShare,
    /// Max-min fairness.
    #[default]
    FairShare,
}

impl Algorithm {
    pub(crate) const ALL: [Algorithm; 4] =
        [Algorithm::None, Algorithm::Static, Algorithm::ProportionalShare, Algorithm::FairShare];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::None => "none",
            Algorithm::Static => "static",
            Algorithm::ProportionalShare => "proportional_share",
            Algorithm::FairShare => "fair_share",
        }
    }

    /// Whether the capacity is divided among those who want it: the other two give each what he wants, whatever the rest have.
    #[must_use]
    pub fn shares(self) -> bool {
        matches!(self, Algorithm::ProportionalShare | Algorithm::FairShare)
    }
}

/// What may be used without a lease.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Safe {
    /// A host: the part that it owns. A Doorman client: the capacity divided by the known clients.
    #[default]
    Share,
    /// So much each; 0: nothing.
    Each(f64),
    /// Any amount.
    Unlimited,
}

/// Which requests draw on a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apply {
    /// At which of the two hosts.
    pub direction: Direction,
    /// Requests to this service.
    pub service: String,
    /// And of these those that match; nothing said: all.
    pub matches: Match,
    /// The resource's id. With a key, that of each value's own resource begins so.
    pub resource: String,
    /// What one request takes of it; 1 if the resource is held.
    pub cost: u32,
    /// Each value has a resource of its own.
    pub key: Option<KeySource>,
    /// How long a request may be held back instead of refused.
    pub wait: Duration,
    /// What goes while the resource's root does not answer.
    pub fail: Fail,
    /// Refuses; otherwise it counts what it would have refused.
    pub enforce: bool,
}

/// At which of the two hosts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The caller's: what is refused was never sent.
    Outbound,
    /// The application's: whoever calls.
    Inbound,
}

impl Direction {
    pub(crate) const ALL: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// What goes while the root does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fail {
    /// Everything.
    Open,
    /// What [`Safe`] says.
    #[default]
    Safe,
    /// Nothing.
    Closed,
}

impl Fail {
    pub(crate) const ALL: [Fail; 3] = [Fail::Open, Fail::Safe, Fail::Closed];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fail::Open => "open",
            Fail::Safe => "safe",
            Fail::Closed => "closed",
        }
    }
}

/// Most `resources`.
pub const RESOURCES_MAX: usize = 10_000;
/// Most `apply` rules.
pub const APPLY_MAX: usize = 1_000;
/// Most `floors` of a resource.
pub const FLOORS_MAX: usize = 8;
/// The longest lease: a capacity that is cut takes effect within a lease.
pub const LEASE_MAX: Duration = Duration::from_secs(3600);

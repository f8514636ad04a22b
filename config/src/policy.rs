//! What a client does with a request to an upstream: the effective policy, every field known.
//!
//! A [`Policy`] is plain data without `Option`s for "not said": the layers (built-in, host, published,
//! upstream, route) are merged field by field while the configuration is validated, so the request path
//! never asks "and if it is missing?". The other crates read these types and nothing else of the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

/// Which layer each field of a [`Policy`] came from, by the field's path such as `hedge.mode`. Holds every field.
pub type Origins = BTreeMap<&'static str, Origin>;

/// The layers of a policy; a later one wins, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody said otherwise.
    BuiltIn,
    /// `policy:` of this host's file.
    Host,
    /// `services[].policy` of the hosts that offer the service.
    Published,
    /// `services[].routes[].policy` of these hosts.
    PublishedRoute,
    /// `upstreams[].policy`.
    Upstream,
    /// `upstreams[].routes[].policy`.
    Route,
    /// An operator's `evenkeel override`.
    Override,
}

/// The origins of [`Policy::default`].
pub(crate) fn built_in_origins() -> Origins {
    FIELDS.iter().map(|path| (*path, Origin::BuiltIn)).collect()
}

/// Every field of a policy that a layer can set.
pub(crate) const FIELDS: [&str; 33] = [
    "timeout",
    "idle_timeout",
    "balance",
    "hash.key",
    "hash.bound",
    "repeat.methods",
    "repeat.grpc",
    "repeat.key_header",
    "retry.max",
    "retry.budget",
    "retry.when",
    "hedge.mode",
    "hedge.after",
    "hedge.min",
    "hedge.budget",
    "hedge.max",
    "scout.mode",
    "scout.timeout",
    "shard.key",
    "shard.size",
    "shard.fallback",
    "zone",
    "eject.consecutive",
    "eject.base",
    "eject.max",
    "probation.slower_than",
    "probation.min_requests",
    "panic",
    "circuit.connections",
    "circuit.pending",
    "circuit.requests",
    "slow_start",
    "max_body_buffer",
];

/// Everything that decides how one request is balanced, repeated, bounded and buffered.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// To the response's head, all attempts together.
    pub timeout: Duration,
    /// Between bytes of a body, and of an upgraded connection.
    pub idle_timeout: Duration,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// For [`Balance::Hash`].
    pub hash: Hash,
    /// Which requests may be sent twice at all.
    pub repeat: Repeat,
    /// Attempts in sequence.
    pub retry: Retry,
    /// Copies beside the first attempt.
    pub hedge: Hedge,
    /// Whether endpoints are asked how they are, before they get a request.
    pub scout: Scout,
    /// Which few of the endpoints a request may go to at all.
    pub shard: Shard,
    /// Whether endpoints of this host's zone come first.
    pub zone: Zone,
    /// When an endpoint that errs is left out for a while.
    pub eject: Eject,
    /// When an endpoint that is slower than its peers is left out until it is well again.
    pub probation: Probation,
    /// Below this share of usable endpoints all of them are used again.
    pub panic: Share,
    /// Limits on what is open towards one upstream.
    pub circuit: Circuit,
    /// A new endpoint's share of requests grows over this time.
    pub slow_start: Duration,
    /// Bytes of a request body kept so that it can be sent again.
    pub max_body_buffer: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(300),
            balance: Balance::P2c,
            hash: Hash::default(),
            repeat: Repeat::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            scout: Scout::default(),
            shard: Shard::default(),
            zone: Zone::Prefer,
            eject: Eject::default(),
            probation: Probation::default(),
            panic: Share::percent(50),
            circuit: Circuit::default(),
            slow_start: Duration::from_secs(10),
            max_body_buffer: 64 * 1024,
        }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The cheaper of two random endpoints by peak EWMA × requests in flight.
    P2c,
    /// The one of two random endpoints with fewer requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any, evenly.
    Random,
    /// The same one for the same key, as long as its load allows it.
    Hash,
    /// The best of those that scouts have asked lately.
    Scout,
}

impl Balance {
    pub(crate) const ALL: [Balance; 6] = [
        Balance::P2c,
        Balance::LeastRequest,
        Balance::RoundRobin,
        Balance::Random,
        Balance::Hash,
        Balance::Scout,
    ];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Balance::P2c => "p2c",
            Balance::LeastRequest => "least_request",
            Balance::RoundRobin => "round_robin",
            Balance::Random => "random",
            Balance::Hash => "hash",
            Balance::Scout => "scout",
        }
    }
}

/// What tells requests apart that are to go to the same endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The value of this request header, lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The n-th segment of the path, from 1.
    Path(u32),
    /// The address that the caller's connection comes from.
    Address,
    /// Who calls: the calling host, by its name.
    Identity,
}

/// Consistent hashing, when `balance` is [`Balance::Hash`].
#[derive(Debug, Clone, PartialEq)]
pub struct Hash {
    /// What of a request is hashed. Never `None` while `balance` is `hash`.
    pub key: Option<KeySource>,
    /// An endpoint with more than this many times the mean of requests in flight gets no more: the next in the key's order does.
    pub bound: Factor,
}

impl Default for Hash {
    fn default() -> Self {
        Hash { key: None, bound: Factor(1.25) }
    }
}

/// Asking endpoints how they are, before they get a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scout {
    /// Whether, and when. What counts is [`Policy::scouting`].
    pub mode: ScoutMode,
    /// An endpoint that has not answered by then is avoided.
    pub timeout: Duration,
}

impl Default for Scout {
    fn default() -> Self {
        Scout { mode: ScoutMode::Off, timeout: Duration::from_millis(1) }
    }
}

/// When scouts are sent; in the order of how much they cost a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScoutMode {
    /// Never.
    Off,
    /// A few beside each request, which does not wait for their answers.
    Pool,
    /// To the endpoint that was chosen, and its answer is waited for.
    BeforeEach,
}

impl ScoutMode {
    pub(crate) const ALL: [ScoutMode; 3] = [ScoutMode::Off, ScoutMode::Pool, ScoutMode::BeforeEach];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ScoutMode::Off => "off",
            ScoutMode::Pool => "pool",
            ScoutMode::BeforeEach => "before_each",
        }
    }
}

impl Policy {
    /// When scouts are sent: `balance: scout` cannot do without any.
    #[must_use]
    pub fn scouting(&self) -> ScoutMode {
        match (self.scout.mode, self.balance) {
            (ScoutMode::Off, Balance::Scout) => ScoutMode::Pool,
            (mode, _) => mode,
        }
    }
}

/// Shuffle sharding: the requests of one key go to a few endpoints only, so that what one key breaks does not break all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// What of a request decides its shard; `None`: no shards.
    pub key: Option<KeySource>,
    /// Endpoints in a shard.
    pub size: u32,
    /// What becomes of a request whose shard has no usable endpoint.
    pub fallback: ShardFallback,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { key: None, size: 4, fallback: ShardFallback::Fail }
    }
}

/// What becomes of a request whose shard has no usable endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardFallback {
    /// It fails: what broke the shard goes no further.
    Fail,
    /// It goes to any endpoint.
    Widen,
}

impl ShardFallback {
    pub(crate) const ALL: [ShardFallback; 2] = [ShardFallback::Fail, ShardFallback::Widen];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ShardFallback::Fail => "fail",
            ShardFallback::Widen => "widen",
        }
    }
}

/// Whether endpoints of this host's zone come first; without a zone of this host or of the endpoints it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// As long as they have capacity.
    Prefer,
    /// All alike.
    Any,
}

impl Zone {
    pub(crate) const ALL: [Zone; 2] = [Zone::Prefer, Zone::Any];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Zone::Prefer => "prefer",
            Zone::Any => "any",
        }
    }
}

/// Which requests may be sent twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// HTTP methods, upper case.
    pub methods: Vec<String>,
    /// gRPC methods as `package.Service/Method`, with `*`.
    pub grpc: Vec<String>,
    /// A request header, lower case, whose presence allows a retry in sequence, never a copy.
    pub key_header: Option<String>,
}

impl Default for Repeat {
    fn default() -> Self {
        Repeat {
            methods: ["GET", "HEAD", "OPTIONS", "TRACE"].map(String::from).to_vec(),
            grpc: Vec::new(),
            key_header: None,
        }
    }
}

/// Attempts in sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts after the first.
    pub max: u32,
    /// Retries as a share of requests over 10 s, beside a floor of 10 a second.
    pub budget: Share,
    /// What is worth another attempt.
    pub when: Vec<RetryOn>,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            max: 2,
            budget: Share::percent(20),
            when: vec![RetryOn::Connect, RetryOn::Refused, RetryOn::Reset, RetryOn::Status(503)],
        }
    }
}

/// What is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// The endpoint could not be reached: nothing was sent.
    Connect,
    /// The peer said that the application never saw the request.
    Refused,
    /// The connection broke before the response's head.
    Reset,
    /// A response with this status.
    Status(u16),
}

/// Copies beside the first attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Hedge {
    /// Off, counted only, or done.
    pub mode: Mode,
    /// How long to wait before a copy.
    pub after: After,
    /// Never sooner than this.
    pub min: Duration,
    /// Copies as a share of requests over 10 s.
    pub budget: Share,
    /// Copies beside the first attempt.
    pub max: u32,
}

impl Default for Hedge {
    fn default() -> Self {
        Hedge {
            mode: Mode::Observe,
            after: After::Percentile(95.0),
            min: Duration::from_millis(1),
            budget: Share::percent(5),
            max: 2,
        }
    }
}

/// How long to wait before a copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum After {
    /// A percentile (0 < p < 100) of this route's recent time to the response's head.
    Percentile(f64),
    /// A fixed time.
    Fixed(Duration),
}

/// Whether a mechanism acts; in the order of how much it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Neither acts nor counts.
    Off,
    /// Counts what it would have done.
    Observe,
    /// Acts.
    Enforce,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Off, Mode::Observe, Mode::Enforce];

    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Observe => "observe",
            Mode::Enforce => "enforce",
        }
    }
}

/// When an endpoint that errs is left out for a while.
#[derive(Debug, Clone, PartialEq)]
pub struct Eject {
    /// Failures in a row; 0 switches ejection off.
    pub consecutive: u32,
    /// The first time out; doubled for each ejection in a row.
    pub base: Duration,
    /// At most this share of the endpoints at once, rounded up to one.
    pub max: Share,
}

impl Default for Eject {
    fn default() -> Self {
        Eject { consecutive: 5, base: Duration::from_secs(10), max: Share::percent(50) }
    }
}

/// When an endpoint that is slower than its peers is left out until it is well again.
#[derive(Debug, Clone, PartialEq)]
pub struct Probation {
    /// How many times as slow as its peers; `None` switches probation off.
    pub slower_than: Option<Factor>,
    /// Recent answers without which an endpoint is not judged.
    pub min_requests: u32,
}

impl Default for Probation {
    fn default() -> Self {
        Probation { slower_than: Some(Factor(3.0)), min_requests: 50 }
    }
}

/// Limits on what is open towards one upstream, over all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// Open connections.
    pub connections: u32,
    /// Requests waiting for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
}

impl Default for Circuit {
    fn default() -> Self {
        Circuit { connections: 1024, pending: 1024, requests: 4096 }
    }
}

/// A share of a whole, written as `5%`: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// A share from whole percents; above 100 is 100.
    #[must_use]
    pub fn percent(percent: u32) -> Share {
        Share(f64::from(percent.min(100)) / 100.0)
    }

    /// A share from a fraction, `None` outside 0 to 1.
    #[must_use]
    pub fn fraction(fraction: f64) -> Option<Share> {
        (0.0..=1.0).contains(&fraction).then_some(Share(fraction))
    }

    /// The share as a fraction, 0 to 1.
    #[must_use]
    pub fn as_fraction(self) -> f64 {
        self.0
    }
}

/// How many times something, in steps of a thousandth: at least 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Factor(f64);

impl Factor {
    /// A factor from thousandths; below 1 is 1.
    #[must_use]
    pub fn thousandths(thousandths: u32) -> Factor {
        Factor(f64::from(thousandths.max(1_000)) / 1e3)
    }

    /// The factor, at least 1.
    #[must_use]
    pub fn times(self) -> f64 {
        self.0
    }
}

//! The shapes of the admin's answers, written by the host and read by the command line.
//!
//! Fields may be added; the command line fills what it does not get with defaults, so that the two can be of
//! different versions during an upgrade.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use evenkeel_discovery::{Instruction, Subject};
use serde::{Deserialize, Serialize};

/// `/v1/self`: this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SelfReport {
    /// `node.name`.
    pub name: String,
    /// The random id kept in the data directory, as hex.
    pub id: String,
    /// What others dial.
    pub address: IpAddr,
    /// `mesh.name`.
    pub mesh: String,
    /// `mesh.domain`.
    pub domain: String,
    /// This binary's version.
    pub version: String,
    /// Whether `/readyz` says yes, and why not.
    pub ready: bool,
    /// Why not ready.
    pub not_ready: Option<String>,
    /// Where it keeps its state.
    pub data_dir: Option<String>,
    /// Where it listens, by configuration key, after binding (port 0 is a real port here).
    pub listeners: BTreeMap<String, SocketAddr>,
}

/// `/v1/status`: this host at a glance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// `node.name`.
    pub name: String,
    /// The random id kept in the data directory, as hex.
    pub id: String,
    /// What others dial.
    pub address: String,
    /// Where it stands; empty: the file does not say.
    pub zone: String,
    /// `mesh.name`.
    pub mesh: String,
    /// Of the program.
    pub version: String,
    /// Whether `/readyz` says yes.
    pub ready: bool,
    /// Why it says no.
    pub not_ready: Option<String>,
    /// When the process started, UTC.
    pub started: String,
    /// For how long it has run, in seconds.
    pub uptime_s: u64,
    /// Hosts as this one sees them, itself among them, by state: `alive | draining | failed | left`.
    pub members: BTreeMap<String, usize>,
    /// Services with an instance on a host that is up.
    pub services: usize,
    /// The file it was started with.
    pub configuration: Option<String>,
    /// Why the last reload was refused; none: it was not, or there was none.
    pub reload_refused: Option<String>,
    /// Where it keeps its state.
    pub data_dir: Option<String>,
    /// Where it listens, by configuration key, after binding.
    pub listeners: BTreeMap<String, SocketAddr>,
}

/// `/v1/members`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Members {
    /// Every host known, oneself first, then by name.
    pub members: Vec<Member>,
}

/// One host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its id, as hex.
    pub id: String,
    /// What to dial.
    pub address: String,
    /// Where its gossip listens.
    pub gossip: String,
    /// Where it takes requests from other hosts.
    pub mesh: String,
    /// Where it stands.
    pub zone: String,
    /// Of the program that runs there; empty: it does not say.
    pub version: String,
    /// `alive | draining | failed | left`.
    pub state: String,
    /// The order to drain it, if there is one: by whom, until when.
    pub drained_by: String,
    /// For how long.
    pub for_ms: u64,
    /// Instances it offers.
    pub instances: usize,
    /// It is the one asked.
    pub myself: bool,
}

/// `/v1/services`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Services {
    /// Every service, by name.
    pub services: Vec<Service>,
}

/// One service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Tags of any instance.
    pub tags: Vec<String>,
    /// Instances on hosts that are up.
    pub instances: usize,
    /// Of them, those that requests may go to.
    pub usable: usize,
    /// Of them, those whose check fails.
    pub critical: usize,
    /// Of them, those on their way out.
    pub draining: usize,
    /// These are endpoints that `upstreams` of this host's file names, and not what hosts of the mesh offer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub upstream: bool,
}

/// `/v1/endpoints/S`: what the balancer sees.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// The service.
    pub service: String,
    /// `policy.balance`.
    pub balance: String,
    /// Every endpoint, usable or not.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The instance's id.
    pub instance: String,
    /// The host it runs on.
    pub host: String,
    /// The application's own address.
    pub address: String,
    /// What is dialled: the host's mesh port, or the application itself.
    pub dial: String,
    /// `usable`, or what the first filter against it is about: `critical`, `draining`, `ejected`, …
    pub state: String,
    /// Why its host drains; empty: it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub draining: String,
    /// Its checks that do not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// Requests in flight from this host.
    pub in_flight: u64,
    /// Peak EWMA of the time to the response's head; none: no answer in the last 30 s.
    pub latency_ms: Option<f64>,
    /// How long the requests in flight have been owed a head without any progress; none: nothing is owed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<f64>,
    /// How long it stays ejected.
    pub ejected_ms: Option<u64>,
    /// How often it was ejected.
    pub ejections: u64,
}

/// What one check of an instance saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckResult {
    /// Its id.
    pub id: String,
    /// `http | tcp | grpc | ttl`, or `maintenance` for what an operator said.
    pub kind: String,
    /// `warning | critical`.
    pub status: String,
    /// What it saw when it came to that, or why there is maintenance; empty: it has not run yet.
    pub output: String,
}

/// `/v1/explain/S`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Explain {
    /// The service.
    pub service: String,
    /// The request's method.
    pub method: String,
    /// The request's path.
    pub path: String,
    /// Which route matched; none: the upstream's own policy.
    pub route: Option<String>,
    /// Whether this request may be sent twice, and why.
    pub repeat: String,
    /// The rules of `ratelimit.apply` in this host's file that are about the service.
    pub limits: Vec<LimitRow>,
    /// Each endpoint with what each filter says of it, in the filters' order.
    pub endpoints: Vec<ExplainEndpoint>,
    /// Each field of the effective policy.
    pub policy: Vec<PolicyField>,
    /// Anything else worth saying, in sentences.
    pub notes: Vec<String>,
}

/// A rule of `ratelimit.apply`, with how much there is of its resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitRow {
    /// `outbound | inbound`.
    pub direction: String,
    /// The resource that it draws on.
    pub resource: String,
    /// All there is of that, over all hosts; of each value, where there is a key.
    pub capacity: f64,
    /// In which time, in seconds; `None`: it is held, not spent.
    pub per_s: Option<f64>,
    /// Each value of this has a resource of its own.
    pub key: Option<String>,
    /// What one request takes.
    pub cost: u32,
    /// For how long a request may be held back, in ms.
    pub wait_ms: u64,
    /// `open | safe | closed`: what goes while the root does not answer.
    pub fail: String,
    /// `enforce | observe`.
    pub mode: String,
    /// Whether the request that is asked about is among those it is for.
    pub matches: bool,
    /// Which requests it is for.
    pub requests: String,
}

/// One endpoint and the verdicts on it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainEndpoint {
    /// The instance's id.
    pub instance: String,
    /// The host it runs on.
    pub host: String,
    /// What is dialled.
    pub address: String,
    /// Whether it may be chosen.
    pub usable: bool,
    /// What it would cost to choose it, in ms times requests; lower is better. None where nothing is known of late, or
    /// costs do not decide.
    pub cost: Option<f64>,
    /// Why its host drains; empty: it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub draining: String,
    /// Its checks that do not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// What each filter says.
    pub verdicts: Vec<Verdict>,
}

/// What one filter says of one endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// The filter: `health`, `ejection`, `slow_start`, …
    pub filter: String,
    /// Whether it lets the endpoint through.
    pub pass: bool,
    /// Why, in a few words.
    pub reason: String,
}

/// `/v1/shards/S`: the shard of a key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Shards {
    /// The service.
    pub service: String,
    /// `policy.shard.key`.
    pub source: String,
    /// The key's value.
    pub key: String,
    /// `policy.shard.size`.
    pub size: u32,
    /// `policy.shard.fallback`.
    pub fallback: String,
    /// Its members, best first.
    pub members: Vec<ShardMember>,
    /// Endpoints of the service.
    pub endpoints: usize,
    /// Different shards there can be; none where weights or zones make some more likely than others.
    pub shards: Option<f64>,
    /// The share of other keys whose shard has 0, 1, … members in common with this one.
    pub overlap: Vec<f64>,
    /// Whether `overlap` was calculated; else it was counted over a sample of keys.
    pub exact: bool,
}

/// A member of a shard.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardMember {
    /// The instance's id.
    pub instance: String,
    /// The host it runs on.
    pub host: String,
    /// The application's own address.
    pub address: String,
    /// Where its host stands.
    pub zone: String,
    /// Neither draining nor failing its check.
    pub serving: bool,
}

/// One field of the effective policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyField {
    /// As written in the file: `retry.budget`.
    pub field: String,
    /// Its value, as written in the file.
    pub value: String,
    /// Who said so: `built-in`, `host`, `published`, `published-route`, `upstream`, `route`, `override`; with
    /// `, bounded` behind it where `mesh.bounds` has made less of it.
    pub origin: String,
}

/// `/v1/orders`, and the answer to each order: those that count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// Overrides, then drained hosts.
    pub orders: Vec<Order>,
    /// What else follows from the order that this answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One order to the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Order {
    /// `override | drain`.
    pub kind: String,
    /// The service or the host.
    pub subject: String,
    /// What an override says, as JSON.
    pub policy: String,
    /// The name of the host that it was issued at.
    pub by: String,
    /// When, UTC.
    pub issued: String,
    /// When it ends, UTC.
    pub until: String,
}

impl Order {
    /// The order as it is shown.
    pub fn of(subject: &Subject, order: &evenkeel_discovery::Order) -> Order {
        let at = |us: u64| crate::events::rfc3339(UNIX_EPOCH + Duration::from_micros(us));
        let (kind, subject) = match subject {
            Subject::Override(service) => ("override", service.clone()),
            Subject::Drain(node) => ("drain", format!("{node:016x}")),
        };
        let policy = match &order.instruction {
            Instruction::Override(policy) => policy.text().to_string(),
            Instruction::Drain | Instruction::Undo => String::new(),
        };
        Order {
            kind: kind.to_owned(),
            subject,
            policy,
            by: order.by.clone(),
            issued: at(order.issued_us),
            until: at(order.until_us),
        }
    }
}

/// Who, until when, and what.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {}", self.by, self.until)?;
        if self.policy.is_empty() { Ok(()) } else { write!(f, ": {}", self.policy) }
    }
}

/// `/v1/events`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventList {
    /// When the process started, UTC: another one counts its events anew.
    pub started: String,
    /// Oldest first.
    pub events: Vec<crate::events::Event>,
}

/// Any answer that is not a 200.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReport {
    /// What is wrong and what to do.
    pub error: String,
}

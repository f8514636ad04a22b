//! Quotas as an operator sees them: the body of the admin's `/v1/quotas`, and what `evenkeel quotas` prints.

use serde::{Deserialize, Serialize};

/// What this host knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Who shares the resources.
    pub roster: Option<Roster>,
    /// It has just begun and nobody has told it a roster: it owns nothing yet.
    #[serde(default)]
    pub waiting: bool,
    /// How many rows `ratelimit.resources` of this host's file has; `None`: a host of another version did not say.
    #[serde(default)]
    pub configured: Option<usize>,
    /// Those in use here, by id.
    pub resources: Vec<Resource>,
    /// What was refused or lost since the start.
    pub counters: Counters,
}

/// Who shares the resources.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Roster {
    /// Its number.
    pub epoch: u64,
    /// Nobody uses an older one.
    pub settled: bool,
    /// Names of the hosts; an id in hexadecimal where a name is not known.
    pub members: Vec<String>,
}

/// One resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// Its id, without the key.
    pub resource: String,
    /// The value of the key, if it has one.
    pub key: Option<String>,
    /// All there is.
    pub capacity: f64,
    /// In which time, in seconds; `None`: it is held, not spent.
    pub per_s: Option<f64>,
    /// The host that is its root.
    pub root: Option<String>,
    /// Whether that one answers.
    pub in_touch: bool,
    /// What this host and its clients want.
    pub wants: f64,
    /// What they have.
    pub has: f64,
    /// What this host owns of it.
    pub owns: f64,
    /// Doorman clients of this host, and what they have.
    pub clients: usize,
    /// What these have.
    pub clients_have: f64,
    /// Where this host is the root: for how long it has been, in seconds.
    pub root_for_s: Option<f64>,
    /// Where this host is the root: the hosts that ask it.
    pub hosts: Vec<Host>,
}

/// One host's part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub host: String,
    /// What it wants.
    pub wants: f64,
    /// What it has.
    pub has: f64,
}

/// What was refused or lost since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Messages of other hosts that were none.
    pub malformed: u64,
    /// Asks of other hosts about what is no resource here.
    pub refused: u64,
    /// Messages that were not sent or not read in time.
    pub dropped: u64,
}

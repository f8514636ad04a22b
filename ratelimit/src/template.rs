//! Which rules a resource follows: those of the first template equal to its name, else of the first whose glob matches it, in list order.
//!
//! What a glob matches is `evenkeel_config::glob`'s to say, so that a configuration is checked by the rule that is followed here. An id that no
//! template matches is no resource: the asker is told so.
//!
//! What counts of an id is its name, which ends at the first NUL byte: behind that stands a key, such as a tenant, whose resource follows the rules of the
//! name ([`ratelimit::name`]).

use std::time::Duration;

use evenkeel_config::{glob, ratelimit};

use crate::algorithm::{Algorithm, Floors};
use crate::bucket::Pace;
use crate::quantity::Micros;

/// The rules of the resources whose id it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// An id or a glob.
    pub pattern: String,
    /// How much there is in all.
    pub capacity: Micros,
    /// In which time: the capacity is a rate, or `None` if it is so many at once.
    pub per: Option<Duration>,
    /// How many may come at once beyond the rate, over all hosts.
    pub burst: Micros,
    /// How it is shared.
    pub algorithm: Algorithm,
    /// What priorities are sure of.
    pub floors: Floors,
    /// How long a Doorman client holds its lease, at most [`LEASE_LENGTH_MAX`].
    pub lease: Duration,
    /// How often it comes back.
    pub refresh: Duration,
    /// How long a host that has just started believes what such clients say they hold.
    pub learning: Duration,
    /// What a client may use that reaches nobody.
    pub safe: Safe,
}

/// What may be used without a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Safe {
    /// A host: its right. A Doorman client: the capacity divided by the known clients.
    #[default]
    Share,
    /// So much each.
    Each(Micros),
    /// Nothing.
    Stop,
    /// Any amount.
    Unlimited,
}

/// Templates in list order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Templates(Vec<Template>);

/// A template that cannot be followed; `at` counts from 0. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTemplate {
    /// Which.
    pub at: usize,
    /// Why.
    pub why: Why,
}

/// What is wrong with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The glob has an open class, an empty one, or a `\` at its end.
    Glob,
    /// `refresh` under a second, or `lease` under `refresh`.
    Refresh,
    /// `lease` over [`LEASE_LENGTH_MAX`].
    Lease,
    /// More than [`TEMPLATES_MAX`].
    TooMany,
}

impl Templates {
    /// Checked templates.
    pub fn new(templates: Vec<Template>) -> Result<Templates, BadTemplate> {
        if templates.len() > TEMPLATES_MAX {
            return Err(BadTemplate { at: TEMPLATES_MAX, why: Why::TooMany });
        }
        for (at, template) in templates.iter().enumerate() {
            template.check().map_err(|why| BadTemplate { at, why })?;
        }
        Ok(Templates(templates))
    }

    /// The rules of `id`, if it is a resource.
    #[must_use]
    pub fn find(&self, id: &[u8]) -> Option<&Template> {
        glob::first(&self.0, |template| &template.pattern, ratelimit::name(id))
    }
}

impl Template {
    fn check(&self) -> Result<(), Why> {
        if !glob::is_well_formed(self.pattern.as_bytes()) {
            return Err(Why::Glob);
        }
        if self.refresh < Duration::from_secs(1) || self.lease < self.refresh {
            return Err(Why::Refresh);
        }
        if self.lease > LEASE_LENGTH_MAX { Err(Why::Lease) } else { Ok(()) }
    }

    /// The pace of a host that has `lease` of the capacity: its burst is the same part of the whole burst. A resource that is not a rate has none.
    #[must_use]
    pub fn pace(&self, lease: Micros) -> Pace {
        let burst = self.burst.part(lease.micros(), self.capacity.micros());
        self.per.map_or(Pace::STOPPED, |per| Pace::new(lease, per, burst))
    }
}

impl std::fmt::Display for BadTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = match self.why {
            Why::Glob => "the pattern is not a glob: close `[`, write `\\\\` for a backslash",
            Why::Refresh => "refresh must be at least 1s and lease at least refresh",
            Why::Lease => "a lease lasts at most 1h",
            Why::TooMany => "too many resources: join some into a glob",
        };
        write!(f, "resources[{}]: {why}", self.at)
    }
}

impl std::error::Error for BadTemplate {}

/// Most templates.
pub const TEMPLATES_MAX: usize = ratelimit::RESOURCES_MAX;
/// A client's lease lasts at most so long.
pub const LEASE_LENGTH_MAX: Duration = ratelimit::LEASE_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn template(pattern: &str) -> Template {
        Template {
            pattern: pattern.to_owned(),
            capacity: Micros::units(100),
            per: Some(Duration::from_secs(1)),
            burst: Micros::units(10),
            algorithm: Algorithm::FairShare,
            floors: Floors::default(),
            lease: Duration::from_secs(20),
            refresh: Duration::from_secs(5),
            learning: Duration::from_secs(20),
            safe: Safe::Share,
        }
    }

    #[test]
    fn literals_come_before_globs_and_globs_in_order() {
        let order = ["db.*", "*", "db.a", "db.a*"].map(template);
        let templates = Templates::new(order.into()).unwrap();
        let found =
            |id: &str| templates.find(id.as_bytes()).map(|template| template.pattern.as_str());
        assert_eq!(found("db.a"), Some("db.a"));
        assert_eq!(found("db.ab"), Some("db.*"));
        assert_eq!(found("other"), Some("*"));
        assert_eq!(found("a/b"), None, "a path matches no `*`, and that is an answer, not a crash");
    }

    #[test]
    fn the_resource_of_a_key_follows_the_rules_of_its_name() {
        let templates = Templates::new(["db.a", "db.*"].map(template).into()).unwrap();
        let found = |id: &[u8]| templates.find(id).map(|template| template.pattern.as_str());
        assert_eq!(found(b"db.a\0tenant"), Some("db.a"));
        assert_eq!(found(b"db.a\0a/b\0\xff"), Some("db.a"), "a key has any bytes");
        assert_eq!(found(b"db.b\0"), Some("db.*"));
        assert_eq!(found(b"cache\0db.a"), None);
        assert_eq!(found(b"\0db.a"), None);
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let why = |change: &dyn Fn(&mut Template)| {
            let mut bad = template("db");
            change(&mut bad);
            Templates::new(vec![template("ok"), bad]).unwrap_err()
        };
        for pattern in ["[", "[]", "[a", "[a-]", "a\\", "[^]", "[-a]"] {
            assert_eq!(
                why(&|t| t.pattern = pattern.to_owned()),
                BadTemplate { at: 1, why: Why::Glob },
                "{pattern}"
            );
        }
        assert_eq!(why(&|t| t.refresh = Duration::from_millis(999)).why, Why::Refresh);
        assert_eq!(why(&|t| t.lease = Duration::from_secs(4)).why, Why::Refresh);
        assert_eq!(why(&|t| t.lease = Duration::from_secs(3601)).why, Why::Lease);
    }
}

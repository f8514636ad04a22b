//! Whether a request may go now: the rules of `ratelimit.apply`, decided on this host.
//!
//! A request asks each rule that matches it, in the file's order; a rule draws on a resource, or on one resource for each value of its key.
//! What this host has of them is set by [`crate::quotas`]; here it is only spent, without a lock and without asking anybody.
//!
//! - [`Resource`]: everything of one name. A key that nobody asks for leases of has this host's own part of its capacity and no more, in a table
//!   that does not grow; the first request beyond that asks for leases and waits a moment for them ([`FIRST_WAIT`]).
//! - [`Meter`]: what is leased of one resource: a bucket (or places, where the capacity is held and not spent), and the demand that
//!   the next leases are asked for.
//!
//! Invariants: a request is counted as demand before it is asked whether it may go, so demand is what is offered and not what is admitted. `mode: observe`
//! counts and never refuses or delays. What one rule has taken when a later one refuses is not given back: a refused request has cost something too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use evenkeel_config::policy::KeySource;
use evenkeel_config::settings::{Apply, Direction, Match};
use evenkeel_ratelimit::{Place, Templates};
use http::Method;
use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::sync::mpsc;

use crate::error::{Error, Limited};
use crate::key::Source;
use crate::route;

pub mod acquire;
mod resource;

pub use resource::{Meter, Patience, Refusal, Resource};

/// Every resource that this host's own requests draw on.
#[derive(Debug)]
pub struct Limits {
    resources: ArcSwap<BTreeMap<Arc<[u8]>, Arc<Resource>>>,
    templates: ArcSwap<Templates>,
    wanted: mpsc::Sender<Wanted>,
    requests: IntCounterVec,
}

/// Leases are wanted for a key of a resource.
#[derive(Debug)]
pub struct Wanted {
    /// The resource.
    pub resource: Arc<Resource>,
    /// The key; empty: none.
    pub key: Box<[u8]>,
}

/// One of `ratelimit.apply`.
#[derive(Debug)]
pub struct Rule {
    matches: Match,
    key: Option<KeySource>,
    cost: u32,
    wait: Duration,
    fail: evenkeel_ratelimit::Fail,
    enforce: bool,
    resource: Arc<Resource>,
    allowed: IntCounter,
    refused: IntCounter,
}

/// The rules for one service and direction.
pub type Rules = Arc<[Rule]>;

/// A request, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// What keys are taken from.
    pub source: Source<'a>,
    /// When its caller wants an answer.
    pub deadline: Instant,
}

impl Limits {
    /// No resource yet. What is wanted is told to `wanted`.
    ///
    /// # Errors
    /// A metric of this name is there already.
    pub fn new(
        wanted: mpsc::Sender<Wanted>,
        metrics: &prometheus::Registry,
    ) -> prometheus::Result<Limits> {
        let requests = IntCounterVec::new(
            Opts::new(
                "evenkeel_limit_requests_total",
                "Requests that a rule of ratelimit.apply decided on (would_refuse: mode observe), and what applications acquired.",
            ),
            &["direction", "upstream", "resource", "outcome"],
        )?;
        metrics.register(Box::new(requests.clone()))?;
        let (resources, templates) = (ArcSwap::default(), ArcSwap::default());
        Ok(Limits { resources, templates, wanted, requests })
    }

    /// Every resource, by name.
    pub fn resources(&self) -> Arc<BTreeMap<Arc<[u8]>, Arc<Resource>>> {
        self.resources.load_full()
    }

    /// The resource of this name.
    pub fn resource(&self, name: &[u8]) -> Option<Arc<Resource>> {
        self.resources.load().get(name).cloned()
    }

    /// The resource of this name, which comes into being if a template matches it and there is room for one that no rule names.
    pub fn resource_or_new(&self, name: &[u8]) -> Option<Arc<Resource>> {
        // What stands behind a NUL is a key.
        let is_name = (1..=NAME_MAX).contains(&name.len()) && !name.contains(&0);
        let may_begin = is_name && self.resources.load().len() < NAMES_MAX;
        if may_begin { self.named(name) } else { self.resource(name) }
    }

    fn named(&self, name: &[u8]) -> Option<Arc<Resource>> {
        if let Some(known) = self.resource(name) {
            return Some(known);
        }
        let templates = self.templates.load();
        let rules = templates.find(name)?;
        let name: Arc<[u8]> = Arc::from(name);
        let new = Arc::new(Resource::new(Arc::clone(&name), rules.clone(), self.wanted.clone()));
        self.resources.rcu(|known| {
            let mut next = BTreeMap::clone(known);
            next.entry(Arc::clone(&name)).or_insert_with(|| Arc::clone(&new));
            next
        });
        self.resource(&name)
    }

    /// Follows changed templates: resources whose rules changed are replaced, those without any go.
    pub fn follow(&self, templates: Templates) {
        self.resources.rcu(|known| {
            let next = known.iter().filter_map(|(name, resource)| {
                let rules = templates.find(name)?;
                let next = if *rules == *resource.rules() {
                    Arc::clone(resource)
                } else {
                    Arc::new(resource.under(rules.clone()))
                };
                Some((Arc::clone(name), next))
            });
            next.collect::<BTreeMap<_, _>>()
        });
        self.templates.store(Arc::new(templates));
    }

    /// The rules for a service, of those that the file has.
    pub fn rules(&self, direction: Direction, service: &str, apply: &[Apply]) -> Rules {
        let here =
            apply.iter().filter(|rule| rule.direction == direction && rule.service == service);
        here.filter_map(|rule| self.rule(rule)).collect()
    }

    /// An application has asked for some of a resource.
    fn acquired(&self, resource: &str, granted: bool) {
        let outcome = if granted { "allowed" } else { "refused" };
        self.requests.with_label_values(&["acquire", "", resource, outcome]).inc();
    }

    fn rule(&self, rule: &Apply) -> Option<Rule> {
        // The file was checked: there is a template.
        let resource = self.named(rule.resource.as_bytes())?;
        let direction = rule.direction.name();
        let counter = |outcome: &str| {
            let labels = [direction, &rule.service, &rule.resource, outcome];
            self.requests.with_label_values(&labels)
        };
        Some(Rule {
            matches: rule.matches.clone(),
            key: rule.key.clone(),
            cost: rule.cost,
            wait: rule.wait,
            fail: rule.fail,
            enforce: rule.enforce,
            resource,
            allowed: counter("allowed"),
            refused: counter(if rule.enforce { "refused" } else { "would_refuse" }),
        })
    }
}

/// Asks all rules that match; the places that the request holds until it ends.
///
/// # Errors
/// The first rule that refuses.
pub async fn admit(rules: &[Rule], asked: Asked<'_>) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    for rule in rules {
        if !route::matched(&rule.matches, asked.method, asked.source.path) {
            continue;
        }
        let key = rule.key.as_ref().and_then(|key| asked.source.value(key)).unwrap_or_default();
        let now = Instant::now();
        let resource = &rule.resource;
        let taken = if rule.enforce {
            let left = asked.deadline.saturating_duration_since(now);
            let patience = Patience { wait: rule.wait.min(left), first: FIRST_WAIT.min(left) };
            resource.acquire(now, &key, rule.cost, rule.fail, patience).await
        } else {
            resource.observe(now, &key, rule.cost, rule.fail)
        };
        match taken {
            Ok(place) => {
                rule.allowed.inc();
                places.extend(place);
            }
            Err(refusal) => {
                rule.refused.inc();
                if rule.enforce {
                    return Err(Error::Limited(Box::new(refusal.told(resource))));
                }
            }
        }
    }
    Ok(places)
}

impl Refusal {
    /// What the caller hears.
    pub fn told(self, resource: &Resource) -> Limited {
        let rules = resource.rules();
        Limited {
            resource: String::from_utf8_lossy(resource.name()).into_owned(),
            quota: rules.capacity.whole(),
            window: rules.per,
            retry_after: self.retry_after,
            cause: self.cause,
        }
    }
}

/// Most resources, beside those that rules name.
const NAMES_MAX: usize = 1_000;
/// Longest name of a resource: in an id, a key stands beside it.
pub const NAME_MAX: usize = 128;
/// The first request for a key that has used up this host's own part waits for leases so long.
pub const FIRST_WAIT: Duration = Duration::from_millis(200);

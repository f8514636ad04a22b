//! What is shared and who draws on it: defaults, and where one key contradicts another.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::glob;
use crate::model::{ApplyKeys, FloorKeys, RateLimitKeys, ResourceKeys};
use crate::nearest::nearest;
use crate::notation::{AsText, tenth};
use crate::ratelimit::{Algorithm, Apply, LEASE_MAX, RateLimit, Resource};
use crate::report::{At, Report};
use crate::settings::Listen;

pub(super) fn settings(
    written: RateLimitKeys,
    listen: Listen,
    default: &RateLimit,
    report: &Report,
) -> RateLimit {
    // Of those that are not usable otherwise too: a rule that names one of them is no second mistake.
    let named: Vec<Named> = written.resources.iter().filter_map(Named::of).collect();
    let all_named = named.len() == written.resources.len();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let resources = written.resources.into_iter().filter_map(|resource| {
        let pattern = resource.pattern.as_ref()?;
        if let Some(line) = lines.insert(pattern.value.clone(), pattern.at.line) {
            pattern.problem(report, &format!("`{}` stands in line {line} too", pattern.value));
        }
        self::resource(resource, report)
    });
    let resources = resources.collect();
    let mut rules: Vec<(Apply, usize)> = Vec::new();
    for apply in written.apply {
        check_resource(&apply, &named, all_named, report);
        let Some((rule, at)) = self::apply(apply, report) else { continue };
        let draws_twice = |(earlier, _): &&(Apply, usize)| {
            earlier.direction == rule.direction
                && earlier.service == rule.service
                && earlier.matches == rule.matches
                && earlier.resource == rule.resource
                && earlier.key == rule.key
        };
        if let Some((_, line)) = rules.iter().find(draws_twice) {
            at.problem(report, &format!("the rule in line {line} takes it of the same requests"));
        }
        rules.push((rule, at.at.line));
    }
    RateLimit {
        listen,
        absent: written.absent.unwrap_or(default.absent),
        resources,
        apply: rules.into_iter().map(|(rule, _)| rule).collect(),
    }
}

fn resource(written: ResourceKeys, report: &Report) -> Option<Resource> {
    if let Some(burst) = written.burst.as_ref().filter(|_| !written.per_given) {
        burst
            .problem(report, "is for a resource with `per`: what is held has no rate to go beyond");
    }
    let (lease, refresh, learning) = times(&written, report);
    let algorithm = written.algorithm.unwrap_or_default();
    let floors = floors(&written.floors, &written.floors_at, algorithm, report);
    let capacity = written.capacity?.value;
    let burst = written.burst.map_or_else(|| tenth(capacity), |burst| burst.value);
    Some(Resource {
        pattern: written.pattern?.value,
        capacity,
        burst: if written.per.is_some() { burst } else { 0.0 },
        per: written.per,
        algorithm,
        floors,
        lease,
        refresh,
        learning,
        safe: written.safe.unwrap_or_default(),
    })
}

/// The lease, the refresh interval and the learning time.
fn times(written: &ResourceKeys, report: &Report) -> (Duration, Duration, Duration) {
    let ResourceKeys { lease: said, lease_given, refresh, learning, .. } = written;
    let lease = said.as_ref().map_or(LEASE, |lease| lease.value);
    let possible = (REFRESH_MIN..=LEASE_MAX).contains(&lease);
    if let Some(said) = said.as_ref().filter(|_| !possible) {
        said.problem(report, "a lease lasts from 1s to 1h");
    }
    // Nothing is compared with a lease that was refused.
    let longer =
        |time: &At<Duration>| possible && said.is_some() == *lease_given && time.value > lease;
    if let Some(refresh) = refresh {
        if refresh.value < REFRESH_MIN {
            refresh.problem(report, "Doorman clients count in seconds: at least 1s");
        } else if longer(refresh) {
            let why =
                format!("the lease of {} would run out before: refresh sooner", AsText(lease));
            refresh.problem(report, &why);
        }
    }
    if let Some(learning) = learning.as_ref().filter(|learning| longer(learning)) {
        let why = format!("no lease is older than {}: nothing is left to learn", AsText(lease));
        learning.problem(report, &why);
    }
    let or =
        |time: &Option<At<Duration>>, default| time.as_ref().map_or(default, |time| time.value);
    // Whoever shortens the lease need not shorten the refresh too.
    (lease, or(refresh, REFRESH.min(lease)), or(learning, lease))
}

fn floors(
    written: &[FloorKeys],
    at: &At<()>,
    algorithm: Algorithm,
    report: &Report,
) -> Vec<(i64, u16)> {
    if !written.is_empty() && !algorithm.shares() {
        let why = format!("`{}` shares nothing out that a floor could protect", algorithm.name());
        at.problem(report, &why);
    }
    let mut floors: Vec<(i64, u16)> = Vec::new();
    for floor in written {
        let (Some(priority), Some(share)) = (&floor.priority, &floor.share) else { continue };
        if floors.iter().any(|(earlier, _)| *earlier == priority.value) {
            priority.problem(report, &format!("{} has a floor already", priority.value));
        }
        let thousandths = share.value.as_fraction() * 1e3;
        if (thousandths - thousandths.round()).abs() > 1e-6 {
            share.problem(report, "is finer than 0.1%");
        }
        floors.push((priority.value, thousandths.round() as u16));
    }
    let sum: u32 = floors.iter().map(|(_, floor)| u32::from(*floor)).sum();
    if sum > 1_000 {
        let sum = f64::from(sum) / 10.0;
        at.problem(report, &format!("add up to {sum}%, more than there is: lower one"));
    }
    floors
}

/// What a rule may name.
struct Named {
    pattern: String,
    /// It has no `per`.
    held: bool,
}

impl Named {
    fn of(resource: &ResourceKeys) -> Option<Named> {
        let pattern = resource.pattern.as_ref()?.value.clone();
        Some(Named { pattern, held: !resource.per_given })
    }
}

fn check_resource(apply: &ApplyKeys, named: &[Named], all_named: bool, report: &Report) {
    let Some(resource) = &apply.resource else { return };
    match glob::first(named, |known| &known.pattern, resource.value.as_bytes()) {
        Some(known) if known.held => {
            if let Some(cost) = apply.cost.as_ref().filter(|cost| cost.value != 1) {
                let why = format!(
                    "`{}` has no `per`, so a request holds one of it: leave `cost` out",
                    resource.value
                );
                cost.problem(report, &why);
            }
            if let Some(wait) = apply.wait.as_ref().filter(|wait| !wait.value.is_zero()) {
                let why =
                    format!("`{}` has no `per`: nobody knows when one is free", resource.value);
                wait.problem(report, &why);
            }
        }
        Some(_) => {}
        None if all_named => {
            let near = nearest(&resource.value, named.iter().map(|known| known.pattern.as_str()));
            let advice =
                near.map_or("add one".to_owned(), |near| format!("did you mean `{near}`?"));
            let why =
                format!("no `match` of ratelimit.resources matches `{}`; {advice}", resource.value);
            resource.problem(report, &why);
        }
        // The one that was meant may be among those that were refused.
        None => {}
    }
}

/// The rule, and where it names its resource.
fn apply(written: ApplyKeys, report: &Report) -> Option<(Apply, At<String>)> {
    if let Some(wait) = written.wait.as_ref().filter(|wait| wait.value > WAIT_MAX) {
        wait.problem(report, "is longer than 1s: what a host has may change within that time");
    }
    let resource = written.resource?;
    let rule = Apply {
        direction: written.direction?,
        service: written.service?,
        matches: written.matches?,
        resource: resource.value.clone(),
        cost: written.cost.map_or(1, |cost| cost.value),
        key: written.key,
        wait: written.wait.map_or(Duration::ZERO, |wait| wait.value),
        fail: written.fail.unwrap_or_default(),
        enforce: written.enforce.unwrap_or(true),
    };
    Some((rule, resource))
}

/// Doorman's defaults.
const LEASE: Duration = Duration::from_secs(20);
const REFRESH: Duration = Duration::from_secs(5);
/// Doorman's wire has whole seconds.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// A lease between hosts lasts so long: who waits longer may wait for what is somebody else's by then.
const WAIT_MAX: Duration = Duration::from_secs(1);

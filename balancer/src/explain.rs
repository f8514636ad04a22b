//! What an operator sees of a balancer: each endpoint and every filter's verdict, in the words of `pick`.
//!
//! Reads the same atomics as `pick`, changes none.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use evenkeel_config::policy::Policy;
use serde::Serialize;

use crate::balancer::Balancer;
use crate::endpoint::Hop;
use crate::scout;
use crate::set::Set;
use crate::stall::Silence;

/// An endpoint as `pick` sees it.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointReport {
    /// The instance's id.
    pub id: String,
    /// Its host's id in hexadecimal; empty: static.
    pub node: String,
    /// The application's own address.
    pub address: String,
    /// `direct` or `mesh`.
    pub hop: &'static str,
    /// Its share of draws, relative to the others'.
    pub weight: u32,
    /// Attempts from the moment of choice to the end of the body.
    pub in_flight: u32,
    /// Estimated time to a response's head.
    pub latency_ms: Option<f64>,
    /// How long it has owed an answer.
    pub stall_ms: Option<f64>,
    /// How much longer it is ejected.
    pub ejected_for_ms: Option<f64>,
    /// How often it was ejected.
    pub ejections: u64,
    /// Every filter's verdict, in order.
    pub verdicts: Vec<FilterVerdict>,
}

/// What one filter says of an endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct FilterVerdict {
    /// The filter.
    pub filter: &'static str,
    /// Whether it lets the endpoint through.
    pub pass: bool,
    /// Why, or what that means.
    pub why: String,
}

impl Balancer {
    /// Each endpoint, what is known of it, and whether each filter lets it through under this policy.
    #[must_use]
    pub fn explain(&self, now: Instant, policy: &Policy) -> Vec<EndpointReport> {
        let set = self.endpoints();
        let panic = self.panics(&set, policy);
        set.iter()
            .enumerate()
            .map(|(index, endpoint)| EndpointReport {
                id: endpoint.spec.instance.to_string(),
                node: if endpoint.spec.node == 0 {
                    String::new()
                } else {
                    format!("{:016x}", endpoint.spec.node)
                },
                address: endpoint.spec.address.to_string(),
                hop: match endpoint.spec.hop {
                    Hop::Direct => "direct",
                    Hop::Mesh => "mesh",
                },
                weight: endpoint.spec.weight,
                in_flight: endpoint.in_flight(),
                latency_ms: endpoint.latency(now).map(|latency| latency.as_secs_f64() * 1e3),
                stall_ms: endpoint.stall_age(now).map(|age| age.as_secs_f64() * 1e3),
                ejected_for_ms: endpoint.ejected_for(now).map(|left| left.as_secs_f64() * 1e3),
                ejections: endpoint.ejections(),
                verdicts: verdicts(&set, index, self.moment(now), policy, panic),
            })
            .collect()
    }
}

fn verdicts(set: &Set, index: usize, now: u64, policy: &Policy, panic: bool) -> Vec<FilterVerdict> {
    let endpoint = &set[index];
    let state = &*endpoint.state;
    let left_ms = |until: u64| until.saturating_sub(now) as f64 / 1e6;
    let verdict = |filter, pass, why| FilterVerdict { filter, pass, why };

    let serving = if endpoint.spec.serving {
        verdict("serving", true, "serves".into())
    } else {
        verdict(
            "serving",
            false,
            "drains or fails its check; used only if no endpoint serves".into(),
        )
    };
    let ejection = match (state.ejection.is_out(now), panic) {
        (false, _) => verdict(
            "ejection",
            true,
            format!(
                "{} failures in a row, ejected at {}",
                state.ejection.consecutive(),
                policy.eject.consecutive
            ),
        ),
        (true, true) => verdict(
            "ejection",
            true,
            "ejected, but too few endpoints are left (panic): used again".into(),
        ),
        (true, false) => verdict(
            "ejection",
            false,
            format!("ejected for failures, for another {:.0} ms", left_ms(state.ejection.until())),
        ),
    };
    let (retry_after, unreachable) = state.holds();
    let (typical, answers) = state.probation.typical();
    let shown = format!("typically {:.2} ms, of {answers} answers", typical.as_secs_f64() * 1e3);
    let probation = match (policy.probation.slower_than, state.on_probation.load(Relaxed)) {
        (None, _) => verdict("probation", true, "off".into()),
        (Some(_), false) if answers < policy.probation.min_requests => {
            verdict("probation", true, format!("too few answers to be judged; {shown}"))
        }
        (Some(_), false) => verdict("probation", true, shown),
        (Some(_), true) if panic => {
            verdict("probation", true, format!("slow, but too few are left (panic); {shown}"))
        }
        (Some(times), true) => verdict(
            "probation",
            false,
            format!("was slower than {times} times its peers; probes find it {shown}"),
        ),
    };
    let hold = if retry_after > now {
        verdict(
            "hold",
            false,
            format!(
                "asked to be left alone (Retry-After, or its host drains), for another {:.0} ms",
                left_ms(retry_after)
            ),
        )
    } else if unreachable > now {
        verdict(
            "hold",
            false,
            format!("could not be reached; next try in {:.0} ms", left_ms(unreachable)),
        )
    } else {
        verdict("hold", true, "none".into())
    };
    let share = state.ramp(now, policy.slow_start);
    let slow_start =
        verdict("slow_start", share >= 1.0, format!("{:.0} % of its share", share * 100.0));
    let stall = match state.stall.silence(now) {
        Silence::None => verdict("stall", true, "owes no answer".into()),
        Silence::Waiting { age_ns } => {
            verdict("stall", true, format!("has owed an answer for {:.1} ms", age_ns as f64 / 1e6))
        }
        Silence::Suspect { age_ns } => verdict(
            "stall",
            false,
            format!(
                "silent for {:.1} ms and given up once: chosen only against another such",
                age_ns as f64 / 1e6
            ),
        ),
        Silence::Trial { age_ns } => verdict(
            "stall",
            true,
            format!("silent for {:.1} ms; the next request is a trial", age_ns as f64 / 1e6),
        ),
    };
    let zone = match set.look(index).near {
        None => verdict("zone", true, "its zone or ours is not known".into()),
        Some(true) => verdict("zone", true, "stands in our zone".into()),
        Some(false) => verdict("zone", true, "stands in another zone".into()),
    };
    let mut verdicts = vec![serving, ejection, probation, hold, slow_start, stall, zone];
    verdicts.extend(scout::verdict(state, now));
    verdicts
}

//! What an operator sees of a balancer: each endpoint and every filter's verdict, in the words of `pick`.
//!
//! Reads the same atomics as `pick`, changes none.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use evenkeel_config::policy::{Balance, Policy, Zone};
use serde::Serialize;

use crate::balancer::{Attempt, Balancer, Wish};
use crate::endpoint::{Hop, State};
use crate::p2c::Load;
use crate::probation::threshold;
use crate::rendezvous::Few;
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
    /// Estimated time to a response's head, as the last answer left it; `None`: no answer in the last 30 s.
    pub latency_ms: Option<f64>,
    /// What it would cost a first attempt: the estimate (aged) or its silence, in ms, times what would be in flight,
    /// doubled for each recent failure. `None` where nothing was heard lately and it owes nothing, and where the policy
    /// does not go by costs.
    pub cost_ms: Option<f64>,
    /// How long it has owed an answer to what is in flight. A silence that outlived the last request shows in the `stall` verdict.
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
    /// Each endpoint, what is known of it, and whether each filter lets it through under this policy, for a request with these keys.
    #[must_use]
    pub fn explain(&self, now: Instant, policy: &Policy, wish: &Wish<'_>) -> Vec<EndpointReport> {
        let set = self.endpoints();
        let panic = self.panics(&set, policy);
        let keys = Keys {
            shard: policy.shard.key.is_some().then_some(wish.shard),
            members: wish.shard.map(|key| set.shard(key, policy.shard.size)),
            hash: (policy.balance == Balance::Hash).then_some(wish.hash),
            order: wish.hash.map(|key| set.order(key)).unwrap_or_default(),
        };
        let spill = (policy.zone == Zone::Prefer).then(|| self.spill());
        set.iter()
            .enumerate()
            .map(|(index, endpoint)| (index, endpoint, endpoint.in_flight()))
            .map(|(index, endpoint, in_flight)| EndpointReport {
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
                in_flight,
                latency_ms: endpoint.state.estimate.recent(self.moment(now)).map(in_ms),
                cost_ms: cost_ns(&endpoint.state, self.moment(now))
                    .filter(|_| matches!(policy.balance, Balance::P2c | Balance::Scout))
                    .map(in_ms),
                stall_ms: endpoint
                    .stall_age(now)
                    .filter(|_| in_flight > 0)
                    .map(|age| age.as_secs_f64() * 1e3),
                ejected_for_ms: endpoint.ejected_for(now).map(|left| left.as_secs_f64() * 1e3),
                ejections: endpoint.ejections(),
                verdicts: keys
                    .verdicts(index)
                    .chain(verdicts(&set, index, self.moment(now), policy, panic, spill))
                    .collect(),
            })
            .collect()
    }
}

/// What it would cost a first attempt, if what is known of it is recent.
fn cost_ns(state: &State, now: u64) -> Option<f32> {
    let silent = !matches!(state.stall.silence(now), Silence::None);
    let load = Load::by_latency(state, now, Attempt::First);
    load.cost_alone().filter(|_| silent || state.estimate.recent(now).is_some())
}

fn in_ms(ns: f32) -> f64 {
    f64::from(ns) / 1e6
}

/// What a request's keys say of the endpoints; the outer `None`: the policy does not look at that key.
struct Keys {
    shard: Option<Option<u64>>,
    members: Option<Few>,
    hash: Option<Option<u64>>,
    order: Vec<usize>,
}

impl Keys {
    fn verdicts(&self, index: usize) -> impl Iterator<Item = FilterVerdict> {
        let verdict = |filter, pass, why: String| FilterVerdict { filter, pass, why };
        let shard = match (self.shard, &self.members) {
            (None, _) => None,
            (Some(Some(_)), Some(few)) if few.contains(index) => {
                Some(verdict("shard", true, "in the shard of this key".into()))
            }
            (Some(Some(_)), Some(_)) => {
                Some(verdict("shard", false, "not in the shard of this key".into()))
            }
            _ => Some(verdict("shard", true, "the key decides: none was asked about".into())),
        };
        let hash = self.hash.map(|key| match key {
            None => verdict("hash", true, "the key decides: none was asked about".into()),
            Some(_) => {
                let place = self.order.iter().position(|&other| other == index).unwrap_or(0);
                verdict(
                    "hash",
                    place == 0,
                    format!("number {} in the order of this key", place + 1),
                )
            }
        });
        shard.into_iter().chain(hash)
    }
}

fn verdicts(
    set: &Set,
    index: usize,
    now: u64,
    policy: &Policy,
    panic: bool,
    spill: Option<f64>,
) -> Vec<FilterVerdict> {
    let endpoint = &set[index];
    let state = &*endpoint.state;
    let left_ms = |until: u64| until.saturating_sub(now) as f64 / 1e6;
    let verdict = |filter, pass, why| FilterVerdict { filter, pass, why };

    let serving = if endpoint.spec.preserved && endpoint.spec.serving {
        let why = "its host vanished together with many others: kept in case it is us who are cut off, and tried last";
        verdict("serving", false, why.into())
    } else if endpoint.spec.serving {
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
    let shown = match answers {
        0 => "none lately".to_owned(),
        _ => format!("typically {:.2} ms, of {answers} answers", typical.as_secs_f64() * 1e3),
    };
    let probation = match (threshold(policy), state.on_probation.load(Relaxed)) {
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
    } else if state.unproven.load(Relaxed) {
        verdict(
            "hold",
            false,
            "could not be reached; it is dialled again beside the requests until it can".into(),
        )
    } else if unreachable > now {
        verdict(
            "hold",
            false,
            format!("its host could not reach it; next try in {:.0} ms", left_ms(unreachable)),
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
            format!(
                "no answer since a request {:.1} ms ago; the next request is a trial",
                age_ns as f64 / 1e6
            ),
        ),
    };
    let zone = match (spill, set.look(index).near) {
        (None, _) => "all zones alike".to_owned(),
        (_, None) => "its zone or ours is not known".to_owned(),
        (_, Some(true)) => "stands in our zone, which comes first".to_owned(),
        (Some(share), Some(false)) => format!(
            "stands in another zone: {:.0} % of the first attempts choose among all zones",
            share * 100.0
        ),
    };
    // A preference, not a filter.
    let zone = verdict("zone", true, zone);
    let mut verdicts = vec![serving, ejection, probation, hold, slow_start, stall, zone];
    verdicts.extend(scout::verdict(state, now));
    verdicts
}

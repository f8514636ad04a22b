//! What is kept of an upstream from one router to the next, and when it begins to cost something.
//!
//! Every service of the mesh is an upstream of every host, and most hosts ever talk to a few of them. So what a name costs
//! before its first request is its name and its endpoints. The balancer, the budget and the counters, which are large
//! and are looked through at every scrape, are [made](UpstreamState::in_use) by the first request (or the first look of
//! an operator), on whatever worker that is, and go when the name is forgotten.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use evenkeel_balancer::{Balancer, Budget, EndpointSpec};

use crate::metrics::{UpstreamMetrics, UpstreamRegister};

/// What is kept of one upstream; all routers and workers share it.
#[derive(Debug)]
pub struct UpstreamState {
    name: Arc<str>,
    epoch: Instant,
    register: UpstreamRegister,
    wanted: Mutex<WantedEndpoints>,
    used: OnceLock<UsedUpstream>,
}

/// What the upstream's requests need and teach.
#[derive(Debug)]
pub struct UsedUpstream {
    /// Which endpoint.
    pub balancer: Balancer,
    /// Attempts beyond the first, over all routes.
    pub retries: Budget,
    /// Its counters.
    pub metrics: Arc<UpstreamMetrics>,
}

#[derive(Debug, Default)]
struct WantedEndpoints {
    specs: Vec<EndpointSpec>,
    /// Where this host stands.
    own_zone: Option<String>,
}

impl UpstreamState {
    /// Of a name without endpoints so far; moments are counted from `epoch`.
    pub fn new(name: Arc<str>, epoch: Instant, register: UpstreamRegister) -> UpstreamState {
        UpstreamState { name, epoch, register, wanted: Mutex::default(), used: OnceLock::new() }
    }

    /// Takes over the full set of endpoints.
    pub fn update(&self, now: Instant, specs: Vec<EndpointSpec>, own_zone: Option<&str>) {
        let mut wanted = self.wanted();
        if wanted.specs == specs {
            return;
        }
        *wanted = WantedEndpoints { specs, own_zone: own_zone.map(str::to_owned) };
        if let Some(used) = self.used.get() {
            self.hand_over(now, &wanted, &used.balancer);
        }
    }

    /// What its requests need; made if this is the first.
    pub fn in_use(&self) -> &UsedUpstream {
        if let Some(used) = self.used.get() {
            return used;
        }
        // Held until it is there: endpoints that change meanwhile are handed to it afterwards.
        let wanted = self.wanted();
        self.used.get_or_init(|| {
            let balancer = Balancer::new(self.epoch);
            self.hand_over(Instant::now(), &wanted, &balancer);
            UsedUpstream {
                balancer,
                retries: Budget::new(self.epoch),
                metrics: self.register.upstream(Arc::clone(&self.name), "outbound"),
            }
        })
    }

    /// What its requests have needed so far; `None`: there was none.
    pub fn used(&self) -> Option<&UsedUpstream> {
        self.used.get()
    }

    fn hand_over(&self, now: Instant, wanted: &WantedEndpoints, balancer: &Balancer) {
        let serving = wanted.specs.iter().filter(|spec| spec.serving).count();
        tracing::debug!(
            upstream = %self.name, endpoints = wanted.specs.len(), serving,
            "an upstream has other endpoints now"
        );
        let left_out = balancer.update(now, wanted.specs.clone(), wanted.own_zone.as_deref());
        if left_out > 0 {
            tracing::warn!(upstream = %self.name, left_out, "more instances than one upstream can have: offer the rest under another name");
        }
    }

    fn wanted(&self) -> MutexGuard<'_, WantedEndpoints> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use evenkeel_balancer::Hop;
    use std::net::SocketAddr;

    fn spec(port: u16) -> EndpointSpec {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        EndpointSpec {
            node: 1,
            instance: Arc::from(port.to_string()),
            address,
            dial: address,
            hop: Hop::Direct,
            protocol: None,
            weight: 1,
            zone: None,
            serving: true,
            preserved: false,
        }
    }

    #[test]
    fn a_name_costs_nothing_before_its_first_request_and_nothing_after_it_is_forgotten() {
        let metrics = Metrics::new(2).unwrap();
        let series = || {
            let families = metrics.registry.gather();
            families
                .iter()
                .flat_map(prometheus::proto::MetricFamily::get_metric)
                .filter(|m| !m.get_label().is_empty())
                .count()
        };
        let (register, now, before) = (metrics.register(), Instant::now(), series());
        let state = UpstreamState::new(Arc::from("web"), now, register);
        state.update(now, vec![spec(1), spec(2)], None);
        assert!(state.used().is_none());
        assert_eq!(series(), before);
        assert_eq!(state.in_use().balancer.endpoints().len(), 2, "what came before");
        state.update(now, vec![spec(3)], None);
        assert_eq!(state.in_use().balancer.endpoints().len(), 1, "what comes after");
        state.in_use().metrics.of(1).attempts[0].inc();
        assert!(series() > before);
        drop(state);
        assert_eq!(series(), before);
    }
}

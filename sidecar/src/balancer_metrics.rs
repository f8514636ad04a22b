//! What balancers decided, as metrics: read from their own counters at a scrape, so that it costs requests nothing.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use evenkeel_balancer::Balancer;
use prometheus::core::{Collector, Desc, Opts};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use crate::metrics;
use crate::route::{Router, Upstream};

/// Reads the balancers of the current router that requests have used.
pub struct BalancerMetrics {
    router: Arc<ArcSwap<Router>>,
    families: Vec<(Desc, Family)>,
}

/// The `kind` label of each series, if it has one, and its value.
type Series = Vec<(Option<&'static str>, f64)>;

struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// An upstream's series.
    read: fn(&Upstream, &Balancer, Instant) -> Series,
}

impl BalancerMetrics {
    /// Of all upstreams that the router has at a scrape and that were used.
    ///
    /// # Errors
    /// A name that Prometheus does not take.
    pub fn new(router: Arc<ArcSwap<Router>>) -> prometheus::Result<BalancerMetrics> {
        let described = families().into_iter().map(|family| {
            let opts =
                Opts::new(family.name, family.help).variable_label("upstream").variable_labels(
                    if family.name == PROBES { vec!["kind".into()] } else { Vec::new() },
                );
            Ok((prometheus::core::Describer::describe(&opts)?, family))
        });
        Ok(BalancerMetrics { router, families: described.collect::<prometheus::Result<_>>()? })
    }
}

impl Collector for BalancerMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (router, now) = (self.router.load(), Instant::now());
        // What no request has asked for has decided nothing.
        let mut upstreams: Vec<(&Arc<Upstream>, &Balancer)> = router
            .upstreams
            .iter()
            .filter_map(|upstream| Some((upstream, &upstream.state.used()?.balancer)))
            .collect();
        upstreams.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        let mut collected: Vec<MetricFamily> = self
            .families
            .iter()
            .map(|(_, family)| {
                let mut out = MetricFamily::default();
                out.set_name(family.name.into());
                out.set_help(family.help.into());
                out.set_field_type(family.kind);
                for (upstream, balancer) in &upstreams {
                    for (kind, value) in (family.read)(upstream, balancer, now) {
                        out.mut_metric().push(metric(&upstream.name, kind, family.kind, value));
                    }
                }
                out
            })
            .collect();
        collected.retain(|family| !family.get_metric().is_empty());
        collected
    }
}

fn metric(upstream: &str, kind: Option<&str>, of: MetricType, value: f64) -> Metric {
    let kind = kind.map(|kind| ("kind", kind));
    let labels: Vec<_> = kind.into_iter().chain([("upstream", upstream)]).collect();
    let series = if of == MetricType::COUNTER { metrics::counter } else { metrics::gauge };
    series(&labels, value)
}

fn families() -> [Family; 7] {
    let gauge = |name, help, read| Family { name, help, kind: MetricType::GAUGE, read };
    let counter = |name, help, read| Family { name, help, kind: MetricType::COUNTER, read };
    [
        gauge("evenkeel_endpoints", "Endpoints, usable or not.", |_, balancer, _| {
            one(balancer.endpoints().len() as f64)
        }),
        gauge(
            "evenkeel_endpoints_ejected",
            "Endpoints left out for failures now.",
            |_, balancer, now| {
                let endpoints = balancer.endpoints();
                one(endpoints.iter().filter(|endpoint| endpoint.ejected(now)).count() as f64)
            },
        ),
        counter(
            "evenkeel_ejections_total",
            "Times an endpoint was left out for failures.",
            |_, balancer, _| one(balancer.ejections_total() as f64),
        ),
        gauge(
            "evenkeel_endpoints_on_probation",
            "Endpoints left out for being slow now.",
            |upstream, balancer, _| {
                // Where nobody is judged any more, what was found last does not count.
                let judged = upstream.default.policy.probation.slower_than.is_some();
                one(f64::from(if judged { balancer.probations().out } else { 0 }))
            },
        ),
        counter(
            "evenkeel_probations_total",
            "Times an endpoint was left out for being slow.",
            |_, balancer, _| one(balancer.probations().entered as f64),
        ),
        counter(
            PROBES,
            "Requests that found out about endpoints on probation: copies nobody waited for, and real ones.",
            |_, balancer, _| {
                let counts = balancer.probations();
                vec![(Some("copy"), counts.probes as f64), (Some("trial"), counts.trials as f64)]
            },
        ),
        gauge(
            "evenkeel_zone_spill_ratio",
            "The share of first attempts that may leave this host's zone.",
            |_, balancer, _| one(balancer.spill()),
        ),
    ]
}

fn one(value: f64) -> Series {
    vec![(None, value)]
}

const PROBES: &str = "evenkeel_probes_total";

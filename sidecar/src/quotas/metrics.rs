//! Quotas as metrics, read from the last view at a scrape. Keys of one resource are added up: there may be thousands.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGauge, Opts};

use super::report::View;

/// Reads the view at a scrape.
pub struct QuotaMetrics {
    view: Arc<ArcSwap<View>>,
    amounts: Vec<GaugeVec>,
    rooted: GaugeVec,
    in_touch: GaugeVec,
    epoch: IntGauge,
    settled: IntGauge,
    messages: IntCounterVec,
}

/// What one resource amounts to, over its keys.
#[derive(Default)]
struct Sum {
    amounts: [f64; AMOUNTS.len()],
    rooted: f64,
    in_touch: bool,
}

const AMOUNTS: [(&str, &str); 6] = [
    ("evenkeel_quota_capacity", "Capacity of a resource in use; over its keys where it has any."),
    ("evenkeel_quota_wants", "What this host and its clients want of a resource."),
    ("evenkeel_quota_has", "What this host and its clients may use of a resource."),
    ("evenkeel_quota_owns", "What this host owns of a resource."),
    ("evenkeel_quota_clients", "Doorman clients of this host."),
    ("evenkeel_quota_clients_have", "What Doorman clients of this host have of a resource."),
];

impl QuotaMetrics {
    /// Of this view.
    ///
    /// # Errors
    /// A name that Prometheus does not take.
    pub fn new(view: Arc<ArcSwap<View>>) -> prometheus::Result<QuotaMetrics> {
        let by_resource =
            |(name, help): (&str, &str)| GaugeVec::new(Opts::new(name, help), &["resource"]);
        Ok(QuotaMetrics {
            view,
            amounts: AMOUNTS.into_iter().map(by_resource).collect::<prometheus::Result<_>>()?,
            rooted: by_resource((
                "evenkeel_quota_rooted",
                "Resources (keys of one, where it has any) that this host is root of.",
            ))?,
            in_touch: by_resource((
                "evenkeel_quota_in_touch",
                "Whether the root of a resource answers (of all keys, where it has any): 1 or 0.",
            ))?,
            epoch: IntGauge::new(
                "evenkeel_quota_roster_epoch",
                "The newest roster that this host knows; 0: none.",
            )?,
            settled: IntGauge::new(
                "evenkeel_quota_roster_settled",
                "Whether nobody uses an older roster than the newest: 1 or 0.",
            )?,
            messages: IntCounterVec::new(
                Opts::new(
                    "evenkeel_quota_messages_failed_total",
                    "Messages between hosts about quotas: malformed; refused: about no resource of this host; dropped: too many.",
                ),
                &["reason"],
            )?,
        })
    }

    fn collectors(&self) -> impl Iterator<Item = &dyn Collector> {
        let of_resources = self.amounts.iter().chain([&self.rooted, &self.in_touch]);
        let rest: [&dyn Collector; 3] = [&self.epoch, &self.settled, &self.messages];
        of_resources.map(|gauge| gauge as &dyn Collector).chain(rest)
    }
}

impl Collector for QuotaMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let view = self.view.load();
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for r in &view.resources {
            let sum =
                sums.entry(&r.resource).or_insert_with(|| Sum { in_touch: true, ..Sum::default() });
            let amounts = [r.capacity, r.wants, r.has, r.owns, r.clients as f64, r.clients_have];
            sum.amounts.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum += amount);
            sum.rooted += f64::from(u8::from(r.root_for_s.is_some()));
            sum.in_touch &= r.in_touch;
        }
        let of_resources = self.amounts.iter().chain([&self.rooted, &self.in_touch]);
        of_resources.for_each(GaugeVec::reset);
        for (resource, sum) in sums {
            for (gauge, amount) in self.amounts.iter().zip(sum.amounts) {
                gauge.with_label_values(&[resource]).set(amount);
            }
            self.rooted.with_label_values(&[resource]).set(sum.rooted);
            let in_touch = f64::from(u8::from(sum.in_touch));
            self.in_touch.with_label_values(&[resource]).set(in_touch);
        }
        let roster = view.roster.as_ref();
        self.epoch.set(roster.map_or(0, |roster| roster.epoch.cast_signed()));
        self.settled.set(roster.map_or(0, |roster| i64::from(roster.settled)));
        let counters = view.counters;
        for (reason, value) in [
            ("malformed", counters.malformed),
            ("refused", counters.refused),
            ("dropped", counters.dropped),
        ] {
            let counter = self.messages.with_label_values(&[reason]);
            counter.inc_by(value.saturating_sub(counter.get()));
        }
        self.collectors().flat_map(Collector::collect).collect()
    }
}

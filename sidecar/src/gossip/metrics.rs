//! Gossip's numbers in Prometheus's form: read at each scrape, nothing is counted twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use evenkeel_discovery::{Catalog, Counters, NodeStatus, Status, Subject};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// What the gossip thread leaves for a scrape.
pub struct Published {
    /// Its counters, after each round.
    pub counters: Mutex<Counters>,
    /// Datagrams that the socket did not take.
    pub unsent: AtomicU64,
    /// Messages about quotas that their thread did not read in time.
    pub unread: AtomicU64,
    /// The snapshot that readers see.
    pub catalog: Arc<ArcSwap<Catalog>>,
}

/// Collects from [`Published`].
pub struct GossipMetrics {
    published: Arc<Published>,
    datagrams: IntCounterVec,
    bytes: IntCounterVec,
    streams: IntCounterVec,
    refused: IntCounterVec,
    registrations_refused: IntCounter,
    oddities: IntCounterVec,
    dropped: IntCounterVec,
    slowdown: IntGauge,
    members: IntGaugeVec,
    instances: IntGaugeVec,
    services: IntGauge,
    orders: IntGaugeVec,
    conflicts: IntGaugeVec,
    unusable: IntGaugeVec,
    skipped: IntGaugeVec,
}

impl GossipMetrics {
    /// # Errors
    /// Never with the names below; the library checks them at run time.
    pub fn new(published: Arc<Published>) -> prometheus::Result<GossipMetrics> {
        let counter = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(GossipMetrics {
            published,
            datagrams: counter(
                "evenkeel_gossip_datagrams_total",
                "Gossip datagrams.",
                "direction",
            )?,
            bytes: counter(
                "evenkeel_gossip_datagram_bytes_total",
                "Bytes of gossip datagrams.",
                "direction",
            )?,
            streams: counter(
                "evenkeel_gossip_streams_total",
                "Gossip exchanges over TCP.",
                "kind",
            )?,
            refused: counter(
                "evenkeel_gossip_refused_total",
                "Gossip messages refused, by reason.",
                "reason",
            )?,
            registrations_refused: IntCounter::new(
                "evenkeel_registrations_refused_total",
                "Registrations refused at a limit: this host offers as many instances as one host may, or the mesh has as many records as limits.records allows.",
            )?,
            oddities: counter(
                "evenkeel_gossip_oddities_total",
                "Unknown senders asked to prove that they are there; packets for a host whose address is not known yet.",
                "kind",
            )?,
            dropped: counter(
                "evenkeel_gossip_dropped_total",
                "What this host itself lost: datagrams that found its queue full or that the socket did not take, messages about quotas that were not read in time, and events.",
                "what",
            )?,
            slowdown: IntGauge::new(
                "evenkeel_gossip_slowdown",
                "How much slower than usual this host probes, because it seems to be the slow one (0 to 3).",
            )?,
            members: IntGaugeVec::new(
                Opts::new("evenkeel_members", "Hosts of the mesh, this one included."),
                &["state"],
            )?,
            instances: IntGaugeVec::new(
                Opts::new("evenkeel_instances", "Instances of services on hosts that are up."),
                &["status"],
            )?,
            services: IntGauge::new(
                "evenkeel_services",
                "Services with an instance on a host that is up.",
            )?,
            orders: IntGaugeVec::new(
                Opts::new(
                    "evenkeel_orders",
                    "Orders of an operator that count: overrides, and hosts to be drained.",
                ),
                &["kind"],
            )?,
            conflicts: of_upstream(
                "evenkeel_policy_conflicts",
                "Different policies that the hosts of a service publish, where they differ; 0 where they agree.",
            )?,
            unusable: of_upstream(
                "evenkeel_policy_unusable_instances",
                "Instances whose published policy is missing or unreadable.",
            )?,
            skipped: of_upstream(
                "evenkeel_policy_skipped",
                "Keys, values and routes of a published policy that this host does not understand.",
            )?,
        })
    }

    fn read(&self) {
        let counters = *self.published.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let raise = |family: &IntCounterVec, label: &str, value: u64| {
            let counter = family.with_label_values(&[label]);
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        raise(&self.datagrams, "received", counters.datagrams_received);
        raise(&self.datagrams, "sent", counters.datagrams_sent);
        raise(&self.bytes, "received", counters.bytes_received);
        raise(&self.bytes, "sent", counters.bytes_sent);
        raise(&self.streams, "accepted", counters.requests);
        raise(&self.streams, "dialled", counters.dials);
        raise(&self.streams, "dial_failed", counters.dials_failed);
        for (reason, value) in counters.refused() {
            raise(&self.refused, reason, value);
        }
        let refused = &self.registrations_refused;
        refused.inc_by(counters.registrations_refused.saturating_sub(refused.get()));
        raise(&self.oddities, "challenge", counters.challenges);
        raise(&self.oddities, "unroutable", counters.unroutable);
        raise(&self.dropped, "queued", counters.datagrams_dropped);
        raise(&self.dropped, "unsent", self.published.unsent.load(Ordering::Relaxed));
        raise(&self.dropped, "unread", self.published.unread.load(Ordering::Relaxed));
        raise(&self.dropped, "event", counters.events_dropped);
        self.slowdown.set(i64::try_from(counters.slowdown).unwrap_or(i64::MAX));
        let catalog = self.published.catalog.load();
        for (label, status) in [
            ("alive", &[NodeStatus::Alive][..]),
            ("failed", &[NodeStatus::Failed, NodeStatus::Dead]),
            ("left", &[NodeStatus::Left]),
        ] {
            let count = catalog.nodes.values().filter(|node| status.contains(&node.status)).count();
            self.members.with_label_values(&[label]).set(gauge(count));
        }
        for status in [Status::Passing, Status::Warning, Status::Critical] {
            let instances = catalog.services.values().flat_map(|view| &view.instances);
            let count = instances.filter(|instance| instance.status == status).count();
            self.instances.with_label_values(&[status.as_str()]).set(gauge(count));
        }
        self.services.set(gauge(catalog.services.len()));
        let drains = catalog.orders.keys().filter(|subject| matches!(subject, Subject::Drain(_)));
        let drains = drains.count();
        self.orders.with_label_values(&["drain"]).set(gauge(drains));
        self.orders.with_label_values(&["override"]).set(gauge(catalog.orders.len() - drains));
        self.read_policies(&catalog);
    }

    /// Only of services whose hosts publish something.
    fn read_policies(&self, catalog: &Catalog) {
        for family in [&self.conflicts, &self.unusable, &self.skipped] {
            family.reset();
        }
        for (name, view) in &catalog.services {
            let policies = &view.policies;
            if policies.published.is_empty() && policies.unusable == 0 {
                continue;
            }
            let different = Some(policies.published.len()).filter(|different| *different > 1);
            let skipped = policies.winner().map_or(0, |policy| policy.skipped().len());
            self.conflicts.with_label_values(&[name]).set(gauge(different.unwrap_or(0)));
            self.unusable.with_label_values(&[name]).set(gauge(policies.unusable));
            self.skipped.with_label_values(&[name]).set(gauge(skipped));
        }
    }

    fn families(&self) -> [&dyn Collector; 15] {
        [
            &self.datagrams,
            &self.bytes,
            &self.streams,
            &self.refused,
            &self.registrations_refused,
            &self.oddities,
            &self.dropped,
            &self.slowdown,
            &self.members,
            &self.instances,
            &self.services,
            &self.orders,
            &self.conflicts,
            &self.unusable,
            &self.skipped,
        ]
    }
}

impl Collector for GossipMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.families().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.families().into_iter().flat_map(Collector::collect).collect()
    }
}

fn of_upstream(name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), &["upstream"])
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

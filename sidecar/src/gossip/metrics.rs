//! Gossip's numbers in Prometheus's form: read at each scrape, nothing is counted twice.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use evenkeel_discovery::{Catalog, Counters, NodeStatus, Status};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// What the gossip thread leaves for a scrape.
pub struct Published {
    /// Its counters, after each round.
    pub counters: Mutex<Counters>,
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
    oddities: IntCounterVec,
    slowdown: IntGauge,
    members: IntGaugeVec,
    instances: IntGaugeVec,
    services: IntGauge,
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
            oddities: counter(
                "evenkeel_gossip_oddities_total",
                "Unknown senders asked to prove that they are there; packets for a host whose address is not known yet.",
                "kind",
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
        raise(&self.oddities, "challenge", counters.challenges);
        raise(&self.oddities, "unroutable", counters.unroutable);
        self.slowdown.set(i64::try_from(counters.slowdown).unwrap_or(i64::MAX));
        let catalog = self.published.catalog.load();
        for (label, status) in [
            ("alive", NodeStatus::Alive),
            ("failed", NodeStatus::Failed),
            ("left", NodeStatus::Left),
        ] {
            let count = catalog.nodes.values().filter(|node| node.status == status).count();
            self.members.with_label_values(&[label]).set(gauge(count));
        }
        for status in [Status::Passing, Status::Warning, Status::Critical] {
            let instances = catalog.services.values().flat_map(|view| &view.instances);
            let count = instances.filter(|instance| instance.status == status).count();
            self.instances.with_label_values(&[status.as_str()]).set(gauge(count));
        }
        self.services.set(gauge(catalog.services.len()));
    }

    fn families(&self) -> [&dyn Collector; 9] {
        [
            &self.datagrams,
            &self.bytes,
            &self.streams,
            &self.refused,
            &self.oddities,
            &self.slowdown,
            &self.members,
            &self.instances,
            &self.services,
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

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

//! What is counted, and how it is read.
//!
//! A request counts into cells of its worker ([`Cells`]): plain loads and stores of atomics that nobody else
//! writes, resolved once when the upstream is first used, never looked up by label. A scrape sums the cells
//! of all workers. What happens seldom is counted in `prometheus` counters directly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::places::PlaceCounters;
use crate::tunnel::TunnelWay;

/// Every counter of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Connections closed at the limit.
    pub connections_refused: IntCounter,
    /// Connections that ended for want of a place on a listener of the control side.
    pub places: PlaceCounters,
    /// Connections to the mesh port from addresses of no member.
    pub strangers_refused: IntCounter,
    /// Times that accepting paused for want of file descriptors.
    pub accepts_paused: IntCounter,
    /// Times this process itself was not running.
    pub own_pauses: IntCounter,
    /// Request bodies that were not kept, at `limits.buffers`.
    pub bodies_refused: IntCounter,
    /// Requests of HTTP/2 whose large heads found no room.
    pub heads_refused: IntCounter,
    /// Access log lines that were lost.
    pub access_dropped: IntCounter,
    /// Datagrams that came as answers to scouts and were none of ours.
    pub scout_answers_refused: IntCounter,
    /// Whether the last reload was taken: 1 or 0.
    pub reload_successful: IntGauge,
    /// When a configuration was last taken, seconds since the epoch.
    pub reload_time: IntGauge,
    upstreams: UpstreamRegister,
}

/// Where the counters of upstreams are made and found again.
#[derive(Debug, Clone)]
pub struct UpstreamRegister {
    workers: usize,
    known: Arc<Mutex<Vec<Weak<UpstreamMetrics>>>>,
}

/// The counters of one upstream, or of the inbound side.
#[derive(Debug)]
pub struct UpstreamMetrics {
    name: Arc<str>,
    direction: &'static str,
    cells: Box<[Cells]>,
}

/// The counters of one upstream on one worker, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cells {
    /// By `Attempt as usize`: first, retry, hedge.
    pub attempts: [Count; 3],
    /// By `Hedges as usize`.
    pub hedges: [Count; 4],
    scouts: [Count; SCOUTS.len()],
    chosen: [Count; CHOSEN.len()],
    scout_ns: Count,
    age_ns: Count,
    responses: [Count; 5],
    failures: [Count; REASONS.len()],
    /// By another host, before the response had ended: a copy won there, or its caller went away.
    pub taken_back: Count,
    buckets: [Count; BUCKETS.len() + 1],
    seconds_ns: Count,
    tunnels_opened: Count,
    tunnels_ended: Count,
    /// By `TunnelWay as usize`.
    tunnel_bytes: [Count; TUNNEL_WAYS.len()],
}

/// What became of copies.
#[derive(Debug, Clone, Copy)]
pub enum Hedges {
    /// The copy's response was the one passed on.
    Won,
    /// Another response was.
    Lost,
    /// The budget did not allow it.
    Refused,
    /// `mode: observe`: a copy would have been due.
    Observed,
}

/// What became of scouts.
#[derive(Debug, Clone, Copy)]
pub enum Scouts {
    /// It was sent.
    Asked,
    /// It was answered in time.
    Answered,
    /// It was not.
    Lost,
    /// It was, after its time.
    Late,
    /// It could not be sent.
    Unsent,
}

/// Why a request went where it went, when scouts were asked for.
#[derive(Debug, Clone, Copy)]
pub enum Chosen {
    /// Its scout answered.
    Answered,
    /// A scout had answered a moment before.
    Known,
    /// It was the best of the pool.
    Pool,
    /// The others' scouts had not answered, or had spoken against them.
    Last,
    /// There was nothing to go by.
    Unscouted,
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`. Not a read-modify-write: only the cell's own worker writes it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Cells {
    /// A request ended with `status` (0: no response) after `took`; `reason`: why it failed, if it did.
    pub fn request(&self, status: u16, reason: Option<&'static str>, took: Duration) {
        self.ended(status, reason);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[BUCKETS.partition_point(|bound| *bound < ns)].inc();
        self.seconds_ns.add(ns);
    }

    /// A tunnel was opened.
    pub fn tunnel_opens(&self) {
        self.tunnels_opened.inc();
    }

    /// It ended; `reason`: why before its time, if so. How long it was open is no request's duration.
    pub fn tunnel_ends(&self, status: u16, reason: Option<&'static str>) {
        self.ended(status, reason);
        self.tunnels_ended.inc();
    }

    /// So many bytes went through a tunnel.
    pub fn tunnel_moved(&self, way: TunnelWay, bytes: usize) {
        self.tunnel_bytes[way as usize].add(bytes as u64);
    }

    fn ended(&self, status: u16, reason: Option<&'static str>) {
        if let Some(class) = (status / 100).checked_sub(1).filter(|class| *class < 5) {
            self.responses[usize::from(class)].inc();
        }
        if let Some(reason) = reason {
            let at = REASONS.iter().position(|r| *r == reason).unwrap_or(REASONS.len() - 1);
            self.failures[at].inc();
        }
    }
}

impl Cells {
    /// One more scout came to this.
    pub fn scouts(&self, what: Scouts) {
        self.scouts[what as usize].inc();
    }

    /// A scout was answered after so long.
    pub fn scout_seconds(&self, took: Duration) {
        self.scout_ns.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A first attempt was sent for this reason; the answer that it went by was so old.
    pub fn chosen(&self, why: Chosen, age: Duration) {
        self.chosen[why as usize].inc();
        self.age_ns.add(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl UpstreamMetrics {
    /// The cells of one worker.
    pub fn of(&self, worker: usize) -> &Cells {
        &self.cells[worker]
    }
}

impl Metrics {
    /// All counters at zero, for this many workers.
    ///
    /// # Errors
    /// None in practice: names are constants and registered once.
    pub fn new(workers: usize) -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let strangers = IntCounterVec::new(
            Opts::new(
                "evenkeel_strangers_refused_total",
                "Connections from addresses of no live member, closed before anything was read.",
            ),
            &["listener"],
        )?;
        registry.register(Box::new(strangers.clone()))?;
        let metrics = Metrics {
            places: PlaceCounters::registered(&registry)?,
            strangers_refused: strangers.with_label_values(&["mesh"]),
            accepts_paused: counter(
                "evenkeel_accepts_paused_total",
                "Times that a worker stopped accepting connections, because the file descriptors left are the control side's.",
            )?,
            connections_refused: counter(
                "evenkeel_connections_refused_total",
                "Accepted connections closed at limits.connections.",
            )?,
            own_pauses: counter(
                "evenkeel_own_pauses_total",
                "Times a worker was not running for more than 50 ms.",
            )?,
            bodies_refused: counter(
                "evenkeel_bodies_refused_total",
                "Request bodies not kept for a repeat, at limits.buffers.",
            )?,
            heads_refused: counter(
                "evenkeel_heads_refused_total",
                "Requests of HTTP/2 refused because the large heads of requests that wait had taken all room.",
            )?,
            access_dropped: counter(
                "evenkeel_access_log_dropped_total",
                "Access log lines lost to a slow reader.",
            )?,
            scout_answers_refused: counter(
                "evenkeel_scout_answers_refused_total",
                "Datagrams that came as answers to scouts and were none of ours.",
            )?,
            reload_successful: gauge(
                "evenkeel_config_last_reload_successful",
                "Whether the last configuration file was taken.",
            )?,
            reload_time: gauge(
                "evenkeel_config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken.",
            )?,
            upstreams: UpstreamRegister { workers, known: Arc::default() },
            registry,
        };
        let build = IntGauge::with_opts(
            Opts::new("evenkeel_build_info", "Always 1; the labels say what runs.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        metrics.registry.register(Box::new(build))?;
        metrics
            .registry
            .register(Box::new(Upstreams::new(Arc::clone(&metrics.upstreams.known))?))?;
        Ok(metrics)
    }

    /// For those who make counters later.
    pub fn register(&self) -> UpstreamRegister {
        self.upstreams.clone()
    }

    /// See [`UpstreamRegister::upstream`].
    pub fn upstream(&self, name: Arc<str>, direction: &'static str) -> Arc<UpstreamMetrics> {
        self.upstreams.upstream(name, direction)
    }
}

impl UpstreamRegister {
    /// Counters for an upstream (`outbound`) or for what other hosts ask of us (`inbound`); shown as long as somebody has them.
    pub fn upstream(&self, name: Arc<str>, direction: &'static str) -> Arc<UpstreamMetrics> {
        let cells = (0..self.workers).map(|_| Cells::default()).collect();
        let metrics = Arc::new(UpstreamMetrics { name, direction, cells });
        let mut upstreams = self.known.lock().expect("no thread panics while it holds this lock");
        upstreams.retain(|known| known.strong_count() > 0);
        upstreams.push(Arc::downgrade(&metrics));
        metrics
    }
}

/// Sums the workers' cells at a scrape.
struct Upstreams {
    known: Arc<Mutex<Vec<Weak<UpstreamMetrics>>>>,
    families: Vec<(Desc, Opts)>,
}

impl Upstreams {
    fn new(known: Arc<Mutex<Vec<Weak<UpstreamMetrics>>>>) -> prometheus::Result<Upstreams> {
        let families = FAMILIES
            .iter()
            .map(|(name, help, labels)| {
                let labels = labels.iter().map(|l| (*l).to_owned()).collect();
                let desc = Desc::new(
                    (*name).into(),
                    (*help).into(),
                    labels,
                    std::collections::HashMap::new(),
                )?;
                Ok((desc, Opts::new(*name, *help)))
            })
            .collect::<prometheus::Result<_>>()?;
        Ok(Upstreams { known, families })
    }
}

impl Collector for Upstreams {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let known: Vec<Arc<UpstreamMetrics>> = {
            let known = self.known.lock().expect("no thread panics while it holds this lock");
            known.iter().filter_map(Weak::upgrade).collect()
        };
        let mut families: Vec<MetricFamily> =
            self.families.iter().map(|(_, opts)| family(opts)).collect();
        for upstream in &known {
            let sum = |cell: &dyn Fn(&Cells) -> u64| upstream.cells.iter().map(cell).sum::<u64>();
            let base = [("direction", upstream.direction), ("upstream", &*upstream.name)];
            let mut push = |at: usize, label: (&str, &str), value: u64| {
                let labels: &[(&str, &str)] = if OUTBOUND_ONLY.contains(&at) {
                    &[base[1], label]
                } else {
                    &[base[0], base[1], label]
                };
                if value > 0 || at < 2 {
                    families[at].mut_metric().push(counter(labels, value as f64));
                }
            };
            for (at, class) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().enumerate() {
                push(0, ("code", class), sum(&|c| c.responses[at].value()));
            }
            // What has no name has no attempts: it passes through.
            if upstream.direction == "outbound" && !upstream.name.is_empty() {
                for (at, kind) in ["first", "retry", "hedge"].iter().enumerate() {
                    push(1, ("kind", kind), sum(&|c| c.attempts[at].value()));
                }
            }
            for (at, reason) in REASONS.iter().enumerate() {
                push(2, ("reason", reason), sum(&|c| c.failures[at].value()));
            }
            for (at, result) in ["won", "lost", "refused", "observed"].iter().enumerate() {
                push(3, ("result", result), sum(&|c| c.hedges[at].value()));
            }
            for (at, event) in SCOUTS.iter().enumerate() {
                push(5, ("event", event), sum(&|c| c.scouts[at].value()));
            }
            for (at, by) in CHOSEN.iter().enumerate() {
                push(6, ("by", by), sum(&|c| c.chosen[at].value()));
            }
            for (at, way) in TUNNEL_WAYS.iter().enumerate() {
                push(9, ("way", way), sum(&|c| c.tunnel_bytes[at].value()));
            }
            let opened = sum(&|c| c.tunnels_opened.value());
            if opened > 0 {
                let open = opened.saturating_sub(sum(&|c| c.tunnels_ended.value()));
                families[10].mut_metric().push(gauge(&base, open as f64));
            }
            let taken_back = sum(&|c| c.taken_back.value());
            if taken_back > 0 {
                families[8].mut_metric().push(counter(&[], taken_back as f64));
            }
            let counts: Vec<u64> =
                (0..=BUCKETS.len()).map(|at| sum(&|c| c.buckets[at].value())).collect();
            families[4].mut_metric().push(histogram(
                &base,
                &counts,
                sum(&|c| c.seconds_ns.value()),
            ));
            for (of, ns) in
                [("round_trip", sum(&|c| c.scout_ns.value())), ("age", sum(&|c| c.age_ns.value()))]
            {
                if ns > 0 {
                    let seconds = ns as f64 / 1e9;
                    families[7].mut_metric().push(counter(&[base[1], ("of", of)], seconds));
                }
            }
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn family(opts: &Opts) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(opts.name.clone());
    family.set_help(opts.help.clone());
    let kind = if opts.name.ends_with("_seconds") {
        prometheus::proto::MetricType::HISTOGRAM
    } else if opts.name.ends_with("_open") {
        prometheus::proto::MetricType::GAUGE
    } else {
        prometheus::proto::MetricType::COUNTER
    };
    family.set_field_type(kind);
    family
}

fn labels(pairs: &[(&str, &str)]) -> prometheus::proto::Metric {
    let pairs = pairs
        .iter()
        .map(|(name, value)| {
            let mut pair = prometheus::proto::LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        })
        .collect();
    prometheus::proto::Metric::from_label(pairs)
}

/// A counter's series.
pub fn counter(pairs: &[(&str, &str)], value: f64) -> prometheus::proto::Metric {
    let mut metric = labels(pairs);
    let mut counter = prometheus::proto::Counter::default();
    counter.set_value(value);
    metric.set_counter(counter);
    metric
}

/// A gauge's series.
pub fn gauge(pairs: &[(&str, &str)], value: f64) -> prometheus::proto::Metric {
    let mut metric = labels(pairs);
    let mut gauge = prometheus::proto::Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn histogram(pairs: &[(&str, &str)], counts: &[u64], sum_ns: u64) -> prometheus::proto::Metric {
    let mut metric = labels(pairs);
    let mut histogram = prometheus::proto::Histogram::default();
    let mut below = 0;
    let buckets = BUCKETS
        .iter()
        .zip(counts)
        .map(|(bound, count)| {
            below += count;
            let mut bucket = prometheus::proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e9);
            bucket.set_cumulative_count(below);
            bucket
        })
        .collect();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(sum_ns as f64 / 1e9);
    metric.set_histogram(histogram);
    metric
}

const FAMILIES: [(&str, &str, &[&str]); 11] = [
    (
        "evenkeel_responses_total",
        "Responses passed on, by status class.",
        &["direction", "upstream", "code"],
    ),
    ("evenkeel_attempts_total", "Attempts sent.", &["upstream", "kind"]),
    (
        "evenkeel_failures_total",
        "Requests that failed, by reason.",
        &["direction", "upstream", "reason"],
    ),
    ("evenkeel_hedges_total", "What became of copies.", &["upstream", "result"]),
    (
        "evenkeel_request_duration_seconds",
        "From a request's head to the end of its response.",
        &["direction", "upstream"],
    ),
    ("evenkeel_scouts_total", "What became of scouts.", &["upstream", "event"]),
    (
        "evenkeel_scout_choices_total",
        "First attempts under a policy with scouts, by what they went by.",
        &["upstream", "by"],
    ),
    (
        "evenkeel_scout_time_seconds_total",
        "Round trips of answered scouts, and ages of the answers that requests went by.",
        &["upstream", "of"],
    ),
    (
        "evenkeel_inbound_cancelled_total",
        "Requests that other hosts took back: attempts that lost, and those whose callers went away.",
        &[],
    ),
    (
        "evenkeel_tunnel_bytes_total",
        "Bytes that went through tunnels: out from who asked for one, and back.",
        &["direction", "upstream", "way"],
    ),
    ("evenkeel_tunnels_open", "Tunnels that are open.", &["direction", "upstream"]),
];

/// Families that have no direction: attempts, hedges and scouts.
const OUTBOUND_ONLY: [usize; 4] = [1, 3, 5, 6];

/// By `TunnelWay as usize`.
const TUNNEL_WAYS: [&str; 2] = ["out", "back"];

/// By `Scouts as usize`.
const SCOUTS: [&str; 5] = ["asked", "answered", "lost", "late", "unsent"];

/// By `Chosen as usize`.
const CHOSEN: [&str; 5] = ["answered", "known", "pool", "last", "unscouted"];

/// Upper bounds, nanoseconds.
const BUCKETS: [u64; 14] = [
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Every reason of [`crate::error::Error`], and of a response that broke.
const REASONS: [&str; 24] = [
    "limited",
    "unknown_service",
    "not_told",
    "no_endpoint",
    "circuit_open",
    "out_of_descriptors",
    "unsendable",
    "connect",
    "refused",
    "reset",
    "timeout",
    "bad_request",
    "not_implemented",
    "bad_response",
    "caller_gone",
    "loop",
    "passthrough_off",
    "passthrough",
    "misdirected",
    "not_member",
    "reset_after_head",
    "idle_timeout",
    "cancelled",
    "other",
];

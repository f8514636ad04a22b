//! An endpoint: an instance as the balancer sees it, and the atomics that survive while it stays.
//!
//! [`EndpointSpec`] is what discovery says; it is replaced whole. What was learnt ([`State`]: load, latency, silence, failures) belongs to
//! (node, instance, address) and is shared by the successive [`Endpoint`]s with that identity, so a changed tag or weight forgets nothing.
//!
//! Orderings: relaxed throughout. Each atomic is a number of its own; none publishes other memory. Read-modify-write where two
//! workers may meet (in-flight), plain stores where the last word is as good as any (moments).

use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use evenkeel_config::settings::Protocol;

use crate::circuit::Attempts;
use crate::ejection::{Ejection, Ejections};
use crate::epoch::Epoch;
use crate::peak_ewma::PeakEwma;
use crate::probation::Probation;
use crate::scout::Scouted;
use crate::stall::{Silence, Stall};
use crate::zone::Spill;

/// What is known of an endpoint from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// The id of its host; 0: a static endpoint.
    pub node: u64,
    /// The instance's id on its host.
    pub instance: Arc<str>,
    /// The application's own address; with `node` and `instance` the endpoint's identity.
    pub address: SocketAddr,
    /// What the client dials: the peer's mesh port, or the application itself.
    pub dial: SocketAddr,
    /// How it is reached.
    pub hop: Hop,
    /// What the configuration says it speaks.
    pub protocol: Option<Protocol>,
    /// Its share of draws, relative to the others'; 0: only when no other is usable.
    pub weight: u32,
    /// Where its host stands; `None`: nobody said.
    pub zone: Option<Arc<str>>,
    /// False while it drains or fails its check: then it is chosen only in panic, and after all others.
    pub serving: bool,
    /// Its host vanished together with many others, so that it may be us who are cut off: it is kept, to be tried last.
    pub preserved: bool,
}

impl EndpointSpec {
    /// Serves, as far as anybody knows.
    pub(crate) fn in_service(&self) -> bool {
        self.serving && !self.preserved
    }

    pub(crate) fn identity(&self) -> (u64, &str, SocketAddr) {
        (self.node, &self.instance, self.address)
    }
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The application itself.
    Direct,
    /// Through its host's Evenkeel.
    Mesh,
}

/// An endpoint of one upstream. The state stands first, on the cache line of the reference count: a ticket touches both.
#[derive(Debug)]
#[repr(C)]
pub struct Endpoint {
    pub(crate) state: Arc<State>,
    pub(crate) spec: EndpointSpec,
}

impl Endpoint {
    /// What is known of it from outside.
    #[must_use]
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// Unique among the endpoints of all upstreams of this process; the same as long as node, instance and address stay.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.state.serial
    }

    /// Attempts from the moment of choice to the end of the body.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Relaxed)
    }

    /// The estimated time to a response's head; `None` before the first one.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        self.state
            .estimate
            .read(self.state.epoch.moment(now))
            .map(|ns| Duration::from_nanos(ns as u64))
    }

    /// How long it has been silent: since the first dispatch after its last head. `None` when it owes no answer.
    #[must_use]
    pub fn stall_age(&self, now: Instant) -> Option<Duration> {
        match self.state.stall.silence(self.state.epoch.moment(now)) {
            Silence::None => None,
            Silence::Waiting { age_ns }
            | Silence::Suspect { age_ns }
            | Silence::Trial { age_ns } => Some(Duration::from_nanos(age_ns)),
        }
    }

    /// Whether failures keep it out of rotation.
    #[must_use]
    pub fn ejected(&self, now: Instant) -> bool {
        self.ejected_for(now).is_some()
    }

    /// For how long failures still keep it out of rotation.
    #[must_use]
    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        let left = self.state.ejection.until().saturating_sub(self.state.epoch.moment(now));
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// Takes it on to dial it until it can be reached again. `None`: it is reachable, as far as is known, or somebody does so already.
    #[must_use]
    pub fn redial(self: &Arc<Self>) -> Option<Redial> {
        let is_ours =
            self.state.unproven.load(Relaxed) && !self.state.redialling.swap(true, Relaxed);
        is_ours.then(|| Redial(Arc::clone(self)))
    }

    /// Whether its host is called down by the mesh: who may go elsewhere does not wait for it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state.lost.load(Relaxed)
    }

    /// Whether slowness keeps it out of rotation.
    #[must_use]
    pub fn on_probation(&self) -> bool {
        self.state.on_probation.load(Relaxed)
    }

    /// How often it went on probation since it was first seen.
    #[must_use]
    pub fn probations(&self) -> u64 {
        self.state.probation.total()
    }

    /// How often it was ejected since it was first seen.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.state.ejection.total()
    }
}

/// An endpoint that could not be dialled, and is dialled again beside the requests: none of them pays to find out that it is back. One
/// at a time for each endpoint; given up when dropped.
#[derive(Debug)]
pub struct Redial(Arc<Endpoint>);

impl Redial {
    /// Which.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }

    /// Whether it is still needed: no request has reached the endpoint meanwhile.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.0.state.unproven.load(Relaxed)
    }

    /// A connection was made.
    pub fn succeeded(self) {
        self.0.state.reached();
    }
}

impl Drop for Redial {
    fn drop(&mut self) {
        self.0.state.redialling.store(false, Relaxed);
    }
}

/// What was learnt of one endpoint. On cache lines of its own, because workers write here with every request. What a choice reads fills
/// one of them, from the end of `ejection` to the beginning of `stall`; before it stands what hardly changes, after it what ends an attempt.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct State {
    pub(crate) serial: u64,
    pub(crate) epoch: Epoch,
    /// Of the upstream: its attempts in flight.
    pub(crate) attempts: Arc<Attempts>,
    /// Of the upstream: how many of its endpoints are ejected.
    pub(crate) ejections: Arc<Ejections>,
    /// Of the upstream: how much of its load leaves the zone.
    pub(crate) spill: Arc<Spill>,
    pub(crate) ejection: Ejection,
    /// Until then a `Retry-After` asked to be left alone; 0: none.
    pub(crate) retry_after: AtomicU64,
    /// Until then it is taken to be still unreachable; 0: none. A success ends it.
    pub(crate) unreachable: AtomicU64,
    /// Since then its share grows (slow start); 0: it has its full share.
    pub(crate) ramp_from: AtomicU64,
    pub(crate) estimate: PeakEwma,
    pub(crate) bias: FailureBias,
    pub(crate) in_flight: AtomicU32,
    pub(crate) on_probation: AtomicBool,
    /// Could not be dialled, and no dial has succeeded since: no request is to find out.
    pub(crate) unproven: AtomicBool,
    pub(crate) stall: Stall,
    /// Attempts begun earlier give no samples: this process itself stood still.
    pub(crate) clean_since: AtomicU64,
    /// What its host said of it.
    pub(crate) scouted: Scouted,
    pub(crate) probation: Probation,
    /// Somebody dials it again and again.
    redialling: AtomicBool,
    /// Its host is called down.
    pub(crate) lost: AtomicBool,
}

const LINE: usize = 64;
const _: () = assert!(offset_of!(State, retry_after) == LINE + size_of::<u64>());
const _: () = assert!(offset_of!(State, stall) == 2 * LINE - size_of::<u64>());

impl State {
    pub(crate) fn new(
        epoch: Epoch,
        ramp_from: u64,
        attempts: Arc<Attempts>,
        ejections: Arc<Ejections>,
        spill: Arc<Spill>,
    ) -> State {
        State {
            serial: NEXT_SERIAL.fetch_add(1, Relaxed),
            epoch,
            in_flight: AtomicU32::new(0),
            on_probation: AtomicBool::new(false),
            unproven: AtomicBool::new(false),
            redialling: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            probation: Probation::default(),
            bias: FailureBias::default(),
            estimate: PeakEwma::default(),
            stall: Stall::default(),
            ejection: Ejection::default(),
            retry_after: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            ramp_from: AtomicU64::new(ramp_from),
            clean_since: AtomicU64::new(0),
            scouted: Scouted::default(),
            attempts,
            ejections,
            spill,
        }
    }

    /// Never ejected or held, not starting and not on probation: one question for all of these.
    #[inline]
    pub(crate) fn is_clean(&self) -> bool {
        let since = self.ejection.until()
            | self.retry_after.load(Relaxed)
            | self.unreachable.load(Relaxed)
            | self.ramp_from.load(Relaxed);
        since == 0 && !self.on_probation.load(Relaxed) && !self.unproven.load(Relaxed)
    }

    /// Asked to be left alone, or found unreachable: taken only when nothing better is there.
    pub(crate) fn held(&self, now: u64) -> bool {
        now < self.retry_after.load(Relaxed)
            || now < self.unreachable.load(Relaxed)
            || self.unproven.load(Relaxed)
    }

    /// It answered, or a connection to it was made.
    pub(crate) fn reached(&self) {
        if self.unreachable.load(Relaxed) != 0 {
            self.unreachable.store(0, Relaxed);
        }
        // By itself: another worker may have stored only one of the two yet.
        if self.unproven.load(Relaxed) {
            self.unproven.store(false, Relaxed);
        }
    }

    /// Until when a `Retry-After` and a failed connection hold it; in the past: they do not.
    pub(crate) fn holds(&self) -> (u64, u64) {
        (self.retry_after.load(Relaxed), self.unreachable.load(Relaxed))
    }

    /// The share of its draws that count, `RAMP_MIN` to 1, while it starts slowly.
    pub(crate) fn ramp(&self, now: u64, slow_start: Duration) -> f64 {
        let from = self.ramp_from.load(Relaxed);
        if from == 0 || slow_start.is_zero() {
            return 1.0;
        }
        let elapsed = Duration::from_nanos(now.saturating_sub(from));
        (elapsed.as_secs_f64() / slow_start.as_secs_f64()).clamp(RAMP_MIN, 1.0)
    }
}

/// Failures since the last success, at most [`BIAS_MAX`]: each doubles what the endpoint seems to cost, and each [`BIAS_FADES`] without
/// one more halves it again.
///
/// Errors are fast. Without a bias an endpoint that fails at once is always the least loaded and draws all traffic. The estimate of its
/// latency stays what successes made it, and one success ends the bias.
///
/// One word: the moment of the last failure, and in its [`BIAS_BITS`] low bits how many there are; 0: none.
#[derive(Debug, Default)]
pub(crate) struct FailureBias(AtomicU64);

impl FailureBias {
    /// Counts a failure and says how many there are in a row.
    pub(crate) fn failed(&self, now: u64) -> u32 {
        let failures = self.remaining(now).saturating_add(1).min(BIAS_MAX);
        self.0.store(now >> BIAS_BITS << BIAS_BITS | u64::from(failures), Relaxed);
        failures
    }

    pub(crate) fn clear(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    #[inline]
    pub(crate) fn factor(&self, now: u64) -> f32 {
        (1u32 << self.remaining(now)) as f32
    }

    #[inline]
    fn remaining(&self, now: u64) -> u32 {
        let word = self.0.load(Relaxed);
        if word == 0 {
            return 0;
        }
        let (last, failures) = (word >> BIAS_BITS << BIAS_BITS, word as u32 % (1 << BIAS_BITS));
        let faded = now.saturating_sub(last) / BIAS_FADES;
        failures.saturating_sub(u32::try_from(faded).unwrap_or(u32::MAX))
    }
}

/// Of the whole process, so that a serial names one endpoint whatever the upstream.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);
const BIAS_MAX: u32 = 5;
const BIAS_BITS: u32 = 3;
const BIAS_FADES: u64 = 5_000_000_000;
/// A starting endpoint gets at least a tenth of its share: with less, an idle upstream would never warm it.
const RAMP_MIN: f64 = 0.1;

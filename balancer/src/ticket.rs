//! A pick in flight: what an attempt owes the balancer, paid exactly once.
//!
//! Made by `Balancer::pick`, kept by whoever carries the attempt until the response's body has ended. Dropping it takes the attempt out of
//! in-flight, whatever became of it: end, error, cancellation, panic. It cannot be cloned, so it cannot be paid twice.
//! [`Ticket::head`] says how the attempt went; dropping it without is evidence that the endpoint owed an answer (see `stall`).
//! Where the head does not tell (a gRPC status comes after the messages, and any body may break) the head's time counts at once and
//! [`Ticket::end`] says the rest: an endpoint whose heads are quick and whose calls fail must not look like the best of all.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use evenkeel_config::policy::Eject;

use crate::balancer::Attempt;
use crate::endpoint::Endpoint;
use crate::epoch::nanos;

/// A pick in flight.
#[derive(Debug)]
#[must_use = "dropping the ticket ends the attempt"]
pub struct Ticket {
    endpoint: Arc<Endpoint>,
    started: u64,
    eject: Eject,
    jitter: u32,
    head_due: bool,
    /// The head came and left the outcome open.
    end_due: bool,
    sample: bool,
    /// It opens a tunnel.
    dials_only: bool,
    /// It tries an endpoint that had fallen silent.
    trial: bool,
    /// For so long it was without a head when that was longer than most; 0: it was not.
    late_ns: u64,
    attempt: Attempt,
    /// To an endpoint of this host's zone; `None`: zones are not known.
    near: Option<bool>,
}

/// How an attempt went, as far as its endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An answer that does not speak against the endpoint: everything but the below, 4xx included.
    Success,
    /// A head that leaves the outcome open: [`Ticket::end`] follows, unless the caller goes away first.
    Undecided,
    /// A 5xx, or a gRPC status that speaks against the endpoint.
    Failure,
    /// 429 or 503: it asks for less. Costs it like a failure, but never ejects it: that would only move the overload on.
    Overloaded {
        /// Its `Retry-After`: it is left alone that long, at most [`RETRY_AFTER_MAX`].
        retry_after: Option<Duration>,
    },
    /// No connection could be made: it is held until one can, see [`Endpoint::redial`].
    Unreachable,
    /// Its host is there and could not reach it: it is held for a moment.
    Absent,
    /// The connection broke before the head.
    Reset,
    /// No head in the time the request had.
    Timeout,
}

impl Ticket {
    /// The attempt has entered the circuit's attempts; the ticket leaves them.
    pub(crate) fn new(
        endpoint: &Arc<Endpoint>,
        now: u64,
        eject: &Eject,
        jitter: u32,
        attempt: Attempt,
        near: Option<bool>,
    ) -> Ticket {
        let state = &endpoint.state;
        state.in_flight.fetch_add(1, Relaxed);
        let trial = state.stall.dispatched(now);
        Ticket {
            endpoint: Arc::clone(endpoint),
            started: now,
            eject: eject.clone(),
            jitter,
            head_due: true,
            end_due: false,
            sample: true,
            dials_only: false,
            trial,
            late_ns: 0,
            attempt,
            near,
        }
    }

    /// Where the attempt goes.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The attempt goes out only now: until now its endpoint was being asked how it is (`scout`).
    pub fn sent(&mut self, now: Instant) {
        let state = &self.endpoint.state;
        state.stall.withdrawn(self.started);
        self.started = state.epoch.moment(now);
        // What the scout found may have ended the silence that this attempt began with.
        self.trial |= state.stall.dispatched(self.started);
    }

    /// The response's head came, or the attempt failed. Only the first call has an effect.
    pub fn head(&mut self, now: Instant, verdict: Verdict) {
        if !std::mem::take(&mut self.head_due) {
            return;
        }
        let state = &self.endpoint.state;
        let now = state.epoch.moment(now);
        match verdict {
            // The kernel accepts for a process that stands still, or that fails whatever it is asked.
            Verdict::Success | Verdict::Undecided if self.dials_only => state.reached(),
            Verdict::Success | Verdict::Undecided => {
                state.stall.answered(now, self.started, self.trial);
                if self.sample && self.started >= state.clean_since.load(Relaxed) {
                    let latency = now.saturating_sub(self.started);
                    state.estimate.observe(now, latency);
                    state.probation.answered(latency, state.on_probation.load(Relaxed));
                    if let Some(near) = self.near {
                        state.spill.answered(near, latency);
                    }
                }
                self.end_due = verdict == Verdict::Undecided;
                if verdict == Verdict::Success {
                    self.succeeded();
                }
                state.reached();
            }
            Verdict::Failure => {
                state.stall.answered(now, self.started, self.trial);
                self.failed(now);
            }
            Verdict::Overloaded { retry_after } => {
                state.stall.answered(now, self.started, self.trial);
                self.overloaded(now, retry_after);
            }
            Verdict::Unreachable | Verdict::Absent => {
                state.stall.withdrawn(self.started);
                let failures = self.failed(now);
                let wait = UNREACHABLE_BASE.saturating_mul(1 << failures.saturating_sub(1));
                let jittered =
                    wait.mul_f64(1.0 + 0.25 * f64::from(self.jitter) / f64::from(u32::MAX));
                state.unreachable.store(now.saturating_add(nanos(jittered)), Relaxed);
                state.unproven.store(verdict == Verdict::Unreachable, Relaxed);
            }
            Verdict::Reset => {
                state.stall.withdrawn(self.started);
                self.failed(now);
            }
            Verdict::Timeout => {
                state.stall.given_up(self.started, self.trial);
                self.failed(now);
            }
        }
    }

    /// No head within the time after which a copy is due (`Hedger::delay`), whether or not one is sent: until its next head the endpoint
    /// is under suspicion, so that others go elsewhere. Worth calling for requests that must not be copied, too.
    pub fn late(&mut self, now: Instant) {
        if self.head_due && self.sample {
            let state = &self.endpoint.state;
            let now = state.epoch.moment(now);
            self.late_ns = now.saturating_sub(self.started).max(1);
            state.stall.late(self.started);
            if self.started >= state.clean_since.load(Relaxed) {
                state.estimate.observe_at_least(now, now.saturating_sub(self.started));
            }
        }
    }

    /// The attempt opens a tunnel, and holds its place for as long as that is open. Its success says that the endpoint can be dialled: it ends
    /// the hold that a failed dial began, and is neither a latency, nor a sign of life, nor an answer that would end a run of failures.
    pub fn dials_only(&mut self) {
        self.no_sample();
        self.dials_only = true;
    }

    /// A stream or an upgrade: how long its head takes says nothing, and that it has not come neither.
    pub fn no_sample(&mut self) {
        if std::mem::take(&mut self.sample) {
            self.endpoint.state.stall.withdrawn(self.started);
        }
    }

    /// The caller went away before the head: unless the attempt was [late](Ticket::late), or had taken longer than the endpoint usually does,
    /// that says nothing about the endpoint. Not for attempts that lost against a copy: dropping them says what there is to say.
    pub fn caller_gone(&mut self, now: Instant) {
        if !self.head_due || !self.sample || self.late_ns > 0 {
            return;
        }
        let state = &self.endpoint.state;
        let now = state.epoch.moment(now);
        let usual = state.estimate.read(now).map_or(u64::MAX, |ns| ns as u64);
        if now.saturating_sub(self.started) <= usual {
            self.sample = false;
            state.stall.withdrawn(self.started);
        }
    }

    /// The body ended after a head that was [undecided](Verdict::Undecided), and this is the outcome; any other call has no effect.
    pub fn end(&mut self, now: Instant, verdict: Verdict) {
        if !std::mem::take(&mut self.end_due) {
            return;
        }
        let now = self.endpoint.state.epoch.moment(now);
        match verdict {
            Verdict::Success | Verdict::Undecided => self.succeeded(),
            Verdict::Overloaded { retry_after } => self.overloaded(now, retry_after),
            Verdict::Failure
            | Verdict::Unreachable
            | Verdict::Absent
            | Verdict::Reset
            | Verdict::Timeout => {
                self.failed(now);
            }
        }
    }

    fn succeeded(&self) {
        self.endpoint.state.ejection.succeeded();
        self.endpoint.state.bias.clear();
    }

    fn overloaded(&self, now: u64, retry_after: Option<Duration>) {
        let state = &self.endpoint.state;
        state.bias.failed(now);
        state.estimate.refresh(now);
        if let Some(wait) = retry_after {
            let until = now.saturating_add(nanos(wait.min(RETRY_AFTER_MAX)));
            state.retry_after.fetch_max(until, Relaxed);
        }
    }

    /// Counts a failure; returns how many there are in a row for the bias.
    fn failed(&self, now: u64) -> u32 {
        let state = &self.endpoint.state;
        let failures = state.bias.failed(now);
        state.estimate.refresh(now);
        if let Some(until) = state.ejection.failed(now, &self.eject, self.jitter, &state.ejections)
        {
            state.bias.clear();
            state.ramp_from.store(until, Relaxed);
        }
        failures
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let state = &self.endpoint.state;
        if self.head_due && self.sample {
            state.stall.given_up(self.started, self.trial);
            if self.late_ns > 0 && self.started >= state.clean_since.load(Relaxed) {
                state.probation.given_up(self.late_ns, state.on_probation.load(Relaxed));
            }
        }
        let before = state.in_flight.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a ticket left twice");
        state.attempts.leave(self.attempt);
    }
}

/// A `Retry-After` counts at most this long: a mistaken one must not take an instance away for an hour.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// After the first failed connection; doubled for each further failure, to 4 s at most (`endpoint::BIAS_MAX`).
const UNREACHABLE_BASE: Duration = Duration::from_millis(250);

//! What the attempts of one request have in common: the endpoints they may go to, what they may cost, and what is sent.
//!
//! The loop in [`attempt`](super) decides when; this says whether there is another attempt and where it goes. Each of the answers is paid for
//! when it is given: a copy from both budgets, a retry from its own, and what was paid for an attempt that has nowhere to go is given back.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::repeat::{self, Outcome, Pushback};
use evenkeel_balancer::{Attempt, Endpoint, MayCopy, NoEndpoint, RETRY_FLOOR_PER_SEC, Ticket};
use evenkeel_config::policy::ScoutMode;
use rand::RngExt as _;
use tracing::debug;

use super::{Deadline, Ended, attempt, no_endpoint, too_late};
use crate::body::{Body, Replay};
use crate::error::Error;
use crate::interim::Interim;
use crate::metrics::Hedges;
use crate::route::{Route, Upstream};
use crate::scout;
use crate::template::Template;
use crate::worker::Worker;

/// What is the same for all attempts of a request.
pub struct Sending<'r> {
    worker: &'r Rc<Worker>,
    upstream: &'r Arc<Upstream>,
    route: &'r Route,
    template: &'r Template,
    body: Option<&'r Replay>,
    /// Where 1xx go.
    interim: &'r Interim,
    /// Its method may be executed twice.
    safe: bool,
    /// It has the header that makes it repeatable in sequence.
    keyed: bool,
}

/// An attempt after one that failed.
pub struct Next {
    /// The load on its endpoint.
    pub ticket: Ticket,
    /// Before it is sent.
    pub wait: Duration,
    /// On a new connection: the endpoint is one that was tried.
    pub fresh: bool,
}

/// How an attempt begins.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// The first.
    AtOnce,
    /// Beside another.
    AsCopy,
    /// After one that failed.
    Again {
        /// Before it is sent.
        wait: Duration,
        /// On a new connection.
        fresh: bool,
    },
}

/// Why a copy that is due is not sent.
pub enum NoCopy {
    /// Ask again later.
    Now,
    /// There will be none for this request.
    AtAll,
    /// It would have been sent, but the policy only observes.
    Observed,
}

impl<'r> Sending<'r> {
    /// A request on its way to this upstream.
    pub fn new(
        worker: &'r Rc<Worker>,
        upstream: &'r Arc<Upstream>,
        route: &'r Route,
        template: &'r Template,
        body: Option<&'r Replay>,
        interim: &'r Interim,
    ) -> Sending<'r> {
        let repeat = &route.policy.repeat;
        let grpc_path = template.grpc.then(|| template.path.path());
        let has = |name: &String| template.headers.contains_key(name.as_str());
        Sending {
            // Nothing that its caller says is sent before a tunnel stands, so there is nothing to be executed twice.
            safe: template.opens_tunnel()
                || repeat::is_safe(repeat, template.method.as_str(), grpc_path),
            keyed: repeat.key_header.as_ref().is_some_and(has),
            worker,
            upstream,
            route,
            template,
            body,
            interim,
        }
    }

    /// Streams and requests that the hop before marked as retries cannot be told apart yet.
    fn facts(&self, retries: u32) -> repeat::Request {
        repeat::Request {
            safe: self.safe,
            keyed: self.keyed,
            body: body_state(self.body),
            streaming: false,
            retry_of_retry: false,
            retries,
        }
    }

    /// A body that is still coming may be complete when a copy is due: that is looked at then.
    pub fn may_copy(&self) -> bool {
        let request = repeat::Request { body: repeat::Body::Complete, ..self.facts(0) };
        repeat::may_copy(&request, &self.route.policy.hedge)
    }

    /// Whether an attempt may be given up because its endpoint's host is called down: it may be repeated, and somewhere else. One
    /// that the budget does not pay for goes on waiting: the host may be there after all.
    pub fn may_leave(&self, now: Instant, retries: u32) -> bool {
        let (policy, budget) = (&self.route.policy.retry, self.upstream.retries());
        let is_elsewhere = |endpoint: &Arc<Endpoint>| {
            let spec = endpoint.spec();
            spec.serving && !spec.preserved && !endpoint.is_lost()
        };
        let may = repeat::may_retry(&self.facts(retries), &Outcome::ResetBeforeHead, policy)
            && self.upstream.balancer().endpoints().iter().any(is_elsewhere)
            && budget.withdraw(now, policy.budget, RETRY_FLOOR_PER_SEC);
        if may {
            // The retry that follows at once takes it.
            budget.refund(now);
        }
        may
    }

    /// An endpoint for the first attempt, asked for by scouts where the policy wants that.
    ///
    /// # Errors
    /// What the caller is told: there is none, or the scouts took all the time there was.
    pub async fn first(&self, deadline: Deadline) -> Result<Ticket, Error> {
        let (upstream, policy) = (self.upstream, &self.route.policy);
        let picked = match policy.scouting() {
            ScoutMode::Off => self.pick(deadline.start, Attempt::First, &[]),
            // Seldom, and large: kept out of every other request.
            _ => {
                let wish = self.template.keys.wish(Attempt::First, &[]);
                let scouted = Box::pin(scout::first(self.worker, upstream, policy, wish));
                let picked = tokio::time::timeout_at(deadline.at.into(), scouted).await;
                picked.map_err(|_| too_late(upstream, deadline.start))?
            }
        };
        picked.map_err(|why| no_endpoint(upstream, why))
    }

    /// An endpoint for one more attempt.
    ///
    /// # Errors
    /// There is none.
    pub fn pick(&self, now: Instant, kind: Attempt, tried: &[u64]) -> Result<Ticket, NoEndpoint> {
        let wish = self.template.keys.wish(kind, tried);
        let mut rng = self.worker.rng.borrow_mut();
        self.upstream.balancer().pick(now, &mut *rng, &self.route.policy, &wish)
    }

    /// Sends it to an endpoint.
    pub fn begin(
        &self,
        endpoint: &Arc<Endpoint>,
        deadline: Deadline,
        start: Start,
    ) -> impl Future<Output = Ended> + use<'r> {
        // While the caller still sends its body the policy's time has not begun: the other side must not count it.
        let counts = deadline.hard || self.body.is_none_or(Replay::complete);
        let (template, upstream, body) = (self.template, self.upstream, again(self.body));
        let request = move |endpoint: &Endpoint, h2| {
            // As of when it goes out: it may have waited, or been asked what its application speaks.
            let left = counts.then(|| deadline.at.saturating_duration_since(Instant::now()));
            template.request(upstream, endpoint, body, left, h2)
        };
        let request = (template, request);
        let (policy, endpoint) = (&self.route.policy, Arc::clone(endpoint));
        let interim = match start {
            Start::AsCopy => self.interim.for_copy(),
            Start::AtOnce | Start::Again { .. } => self.interim.clone(),
        };
        attempt(self.worker, self.upstream, policy, endpoint, request, interim, start)
    }

    /// A copy is due: where it goes, if the budgets pay for it.
    ///
    /// # Errors
    /// It goes nowhere, and nothing was paid.
    pub fn copy(&self, now: Instant, tried: &[u64]) -> Result<Ticket, NoCopy> {
        let (policy, hedger, retries) =
            (&self.route.policy, &self.route.hedger, self.upstream.retries());
        let metrics = self.upstream.metrics().of(self.worker.id);
        match hedger.try_copy(now, &policy.hedge, &policy.retry, retries) {
            MayCopy::Yes => {}
            MayCopy::Observed => {
                metrics.hedges[Hedges::Observed as usize].inc();
                return Err(NoCopy::Observed);
            }
            MayCopy::No => {
                metrics.hedges[Hedges::Refused as usize].inc();
                return Err(NoCopy::Now);
            }
        }
        let picked = self.pick(now, Attempt::Hedge, tried).map_err(|why| {
            hedger.not_sent(now, retries);
            if why == NoEndpoint::CircuitOpen { NoCopy::Now } else { NoCopy::AtAll }
        });
        picked.inspect(|ticket| {
            metrics.attempts[Attempt::Hedge as usize].inc();
            debug!(
                upstream = %self.upstream.name, instance = %ticket.endpoint().spec().instance,
                "a copy is sent: no answer yet"
            );
        })
    }

    /// An attempt failed, and `left` is left of the request's time: the next, if there may be one. It is paid for only if there is.
    pub fn retry(
        &self,
        now: Instant,
        left: Duration,
        outcome: &Outcome,
        retries: u32,
        tried: &[u64],
    ) -> Option<Next> {
        let (policy, budget) = (&self.route.policy.retry, self.upstream.retries());
        let asked = match outcome {
            Outcome::Response { pushback: Some(Pushback::After(wait)), .. } => *wait,
            _ => Duration::ZERO,
        };
        let may = asked < left
            && repeat::may_retry(&self.facts(retries), outcome, policy)
            && budget.withdraw(now, policy.budget, RETRY_FLOOR_PER_SEC);
        if !may {
            debug!(
                upstream = %self.upstream.name, ?outcome, retries, safe = self.safe,
                "a request is not sent again: policy.repeat, policy.retry or its budget forbids it"
            );
            return None;
        }
        let next = self.pick(now, Attempt::Retry, tried).ok().and_then(|mut ticket| {
            let fresh = tried.contains(&ticket.endpoint().serial());
            let wait = if fresh && asked.is_zero() {
                backoff(&mut *self.worker.rng.borrow_mut(), retries + 1)
            } else {
                asked
            };
            // What we wait says nothing of the endpoint.
            if !wait.is_zero() {
                ticket.no_sample();
            }
            (wait < left).then_some(Next { ticket, wait, fresh })
        });
        match &next {
            Some(Next { ticket, wait, .. }) => {
                self.upstream.metrics().of(self.worker.id).attempts[Attempt::Retry as usize].inc();
                debug!(
                    upstream = %self.upstream.name, instance = %ticket.endpoint().spec().instance,
                    after = ?wait, retry = retries + 1,
                    "a request is sent again"
                );
            }
            None => {
                budget.refund(now);
                debug!(upstream = %self.upstream.name, "a request is not sent again: no endpoint is left for it in time");
            }
        }
        next
    }
}

fn again(body: Option<&Replay>) -> Body {
    body.map_or(Body::Empty, |body| Body::Replay(body.again()))
}

fn body_state(body: Option<&Replay>) -> repeat::Body {
    match body {
        None => repeat::Body::Complete,
        Some(body) if body.complete() => repeat::Body::Complete,
        Some(body) if body.replayable() => repeat::Body::Partial,
        Some(_) => repeat::Body::Lost,
    }
}

/// Before the same endpoint is tried again: 5 to 10 ms, doubled each time.
fn backoff(rng: &mut impl rand::Rng, retries: u32) -> Duration {
    let most = BACKOFF * 2u32.saturating_pow(retries.min(BACKOFF_DOUBLINGS_MAX));
    most.mul_f64(rng.random_range(0.5..1.0))
}

const BACKOFF: Duration = Duration::from_millis(5);
const BACKOFF_DOUBLINGS_MAX: u32 = 6;

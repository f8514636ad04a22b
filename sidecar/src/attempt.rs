//! One request's attempts, from the first to the response that the caller gets.
//!
//! [`send`] is the loop of the data plane: it picks an endpoint, sends, arms one timer for the next copy or the
//! deadline, and takes what comes first. A success ends it: the other attempts are dropped, which resets
//! their streams or closes their connections, through to the applications. A failure waits for the copies that are
//! still out; when none is, [`repeat::may_retry`] alone says whether the request may be sent again.
//!
//! Invariants: at most `1 + retry.max + hedge.max` attempts; a copy never goes to an endpoint this request
//! has tried; every [`Ticket`] ends once, at the end of the response's body ([`Exchange`](crate::exchange::Exchange)), with the
//! failure, or when its attempt is dropped.
//!
//! Sources: The Tail at Scale (hedged requests); RFC 9110 §9.2.2 (which requests may be repeated).

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use evenkeel_balancer::repeat::{self, Outcome, Pushback};
use evenkeel_balancer::{Attempt, Endpoint, Hop, NoEndpoint, RETRY_FLOOR_PER_SEC, Ticket, Verdict};
use evenkeel_config::policy::{Mode, Policy, ScoutMode};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use rand::RngExt as _;
use smallvec::SmallVec;

use crate::alarm::Alarm;
use crate::body::{Body, Replay};
use crate::error::Error;
use crate::headers::{self, Found};
use crate::judge::{Failed, judge};
use crate::metrics::Hedges;
use crate::pool::{Charge, DialError, H1, H2, SendError};
use crate::probe;
use crate::route::{Route, Upstream};
use crate::scout;
use crate::template::Template;
use crate::worker::Worker;

/// When a request must have its response's head.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// The caller's own limit; else the policy's, which begins anew while the caller is still sending its body.
    pub hard: bool,
}

/// Sends a request to an upstream until it has a response or may not be sent again.
///
/// # Errors
/// What the caller is told when there is no response of an application to pass on.
pub async fn send(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    route: &Arc<Route>,
    template: &Template,
    body: Option<Replay>,
    start: Instant,
    mut deadline: Deadline,
) -> Result<Won, Error> {
    let policy = &route.policy;
    let metrics = upstream.metrics.of(worker.id);
    let grpc_path = template.grpc.then(|| template.path.path());
    let safe = repeat::is_safe(&policy.repeat, template.method.as_str(), grpc_path);
    let keyed = policy
        .repeat
        .key_header
        .as_ref()
        .is_some_and(|name| template.headers.contains_key(name.as_str()));
    // Streams and requests that the hop before marked as retries cannot be told apart yet.
    let facts = |retries| repeat::Request {
        safe,
        keyed,
        body: body_state(body.as_ref()),
        streaming: false,
        retry_of_retry: false,
        retries,
    };
    // A body that is still coming may be complete when a copy is due: that is looked at then.
    let may_copy = repeat::may_copy(
        &repeat::Request { body: repeat::Body::Complete, ..facts(0) },
        &policy.hedge,
    );
    upstream.retries.request(start);
    route.hedger.request(start);
    let pick = |now, kind, tried: &[u64]| {
        let wish = template.keys.wish(kind, tried);
        upstream.balancer.pick(now, &mut *worker.rng.borrow_mut(), policy, &wish)
    };

    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let begin = |endpoint: &Arc<Endpoint>, deadline: Deadline, wait: Duration, fresh: bool| {
        // While the caller still sends its body the policy's time has not begun: the other side must not count it.
        let counts = deadline.hard || body.as_ref().is_none_or(Replay::complete);
        let left = counts.then(|| deadline.at.saturating_duration_since(Instant::now()));
        let request = template.request(upstream, endpoint, again(body.as_ref()), left);
        attempt(worker, upstream, policy, Arc::clone(endpoint), request, wait, fresh)
    };
    let wish = template.keys.wish(Attempt::First, &[]);
    let (ticket, mut dispatched) = match policy.scouting() {
        ScoutMode::Off => (pick(start, Attempt::First, &tried), start),
        // Seldom, and large: kept out of every other request.
        _ => {
            let scouted = Box::pin(scout::first(worker, upstream, policy, wish));
            let ticket = tokio::time::timeout_at(deadline.at.into(), scouted).await;
            (ticket.map_err(|_| too_late(upstream, start))?, Instant::now())
        }
    };
    let ticket = ticket.map_err(|why| no_endpoint(upstream, why))?;
    metrics.attempts[Attempt::First as usize].inc();
    tried.push(ticket.endpoint().serial());
    let mut first = pin!(Some(begin(ticket.endpoint(), deadline, Duration::ZERO, false)));
    let mut ticket = Waiting::new(ticket, start);
    if body.is_none()
        && may_copy
        && let Some(ticket) =
            upstream.balancer.probe_due(start, policy, &wish, &route.hedger, &upstream.retries)
    {
        let request = template.request(upstream, ticket.endpoint(), Body::Empty, None);
        probe::spawn(worker, upstream, route, ticket, request);
    }
    let mut copies: Vec<Copied<_>> = Vec::new();
    let mut story = Story::default();
    let mut failed: Option<Failed> = None;

    let delay = route.hedger.delay(start, &policy.hedge);
    let mut copy_at = delay.map(|delay| dispatched + delay);
    // Until a copy that could not be sent is asked for again: longer each time.
    let mut patience = delay.unwrap_or_default();
    let mut alarm = Alarm::new(&worker.alarms, earliest(copy_at, deadline.at));

    loop {
        let event = poll_fn(|cx| poll_event(cx, first.as_mut(), &mut copies, &mut alarm)).await;
        let now = Instant::now();
        let ended = !matches!(event, Event::Timer);
        match event {
            Event::Timer if now >= deadline.at => {
                if !deadline.hard
                    && body.as_ref().is_some_and(|b| b.arriving(now, policy.idle_timeout))
                {
                    deadline.at = now + policy.timeout;
                } else {
                    let waiting = std::iter::once(&mut ticket)
                        .chain(copies.iter_mut().map(|copy| &mut copy.ticket));
                    waiting.for_each(|waiting| waiting.timed_out(now, policy.timeout));
                    metrics.hedges[Hedges::Lost as usize].add(copies.len() as u64);
                    return Err(too_late(upstream, start));
                }
            }
            Event::Timer if copy_at.is_some_and(|at| now >= at) => {
                // Whether or not a copy goes out: who is this late is avoided until it answers.
                let waiting = std::iter::once(&mut ticket)
                    .chain(copies.iter_mut().map(|copy| &mut copy.ticket));
                waiting.filter_map(|w| w.ticket.as_mut()).for_each(|ticket| ticket.late(now));
                let again = delay.map(|delay| now + delay);
                let later = now + patience;
                copy_at = if !may_copy || story.copies >= policy.hedge.max {
                    None
                } else if body.as_ref().is_some_and(|body| !body.complete()) {
                    again
                } else if !route.hedger.try_copy(
                    now,
                    &policy.hedge,
                    &policy.retry,
                    &upstream.retries,
                ) {
                    let observed = policy.hedge.mode == Mode::Observe;
                    let what = if observed { Hedges::Observed } else { Hedges::Refused };
                    metrics.hedges[what as usize].inc();
                    patience *= 2;
                    (!observed).then_some(later)
                } else {
                    match pick(now, Attempt::Hedge, &tried) {
                        Ok(ticket) => {
                            story.copies += 1;
                            metrics.attempts[Attempt::Hedge as usize].inc();
                            tried.push(ticket.endpoint().serial());
                            let future =
                                Box::pin(begin(ticket.endpoint(), deadline, Duration::ZERO, false));
                            copies.push(Copied { ticket: Waiting::new(ticket, now), future });
                            again
                        }
                        Err(why) => {
                            route.hedger.not_sent(now, &upstream.retries);
                            patience *= 2;
                            (why == NoEndpoint::CircuitOpen).then_some(later)
                        }
                    }
                };
            }
            // An alarm far away rings before its time: it is armed again below.
            Event::Timer => {}
            Event::First(ended) => {
                first.set(None);
                match judge(ended, ticket.take(), upstream, body.as_ref(), now) {
                    Ok(won) => {
                        let latency = now.saturating_duration_since(dispatched);
                        route.hedger.record(now, latency);
                        if let Some(delay) =
                            delay.filter(|d| policy.hedge.mode == Mode::Observe && latency > *d)
                        {
                            route.hedger.observe(now, delay, latency);
                        }
                        metrics.hedges[Hedges::Lost as usize].add(copies.len() as u64);
                        return Ok(Won { story, ..won });
                    }
                    Err(why) => failed = Some(Failed::worse(failed, why)),
                }
            }
            Event::Copy(at, ended) => {
                let Copied { mut ticket, .. } = copies.swap_remove(at);
                match judge(ended, ticket.take(), upstream, body.as_ref(), now) {
                    Ok(won) => {
                        route.hedger.copy_won();
                        route.hedger.record(now, now.saturating_duration_since(dispatched));
                        metrics.hedges[Hedges::Won as usize].inc();
                        metrics.hedges[Hedges::Lost as usize].add(copies.len() as u64);
                        story.copy_won = true;
                        return Ok(Won { story, ..won });
                    }
                    Err(why) => {
                        metrics.hedges[Hedges::Lost as usize].inc();
                        failed = Some(Failed::worse(failed, why));
                    }
                }
            }
        }
        if ended
            && first.is_none()
            && let Some(why) = failed.take()
        {
            // Also while a copy is out: it may have gone to somebody who is silent.
            let asked = match why.outcome {
                Outcome::Response { pushback: Some(Pushback::After(wait)), .. } => wait,
                _ => Duration::ZERO,
            };
            let left = deadline.at.saturating_duration_since(now);
            let may = asked < left
                && repeat::may_retry(&facts(story.retries), &why.outcome, &policy.retry)
                && upstream.retries.withdraw(now, policy.retry.budget, RETRY_FLOOR_PER_SEC);
            let mut next = may.then(|| pick(now, Attempt::Retry, &tried).ok()).flatten();
            let same = next.as_ref().is_some_and(|next| tried.contains(&next.endpoint().serial()));
            let wait = if same && asked.is_zero() {
                backoff(&mut *worker.rng.borrow_mut(), story.retries + 1)
            } else {
                asked
            };
            // What we wait says nothing of the endpoint.
            if let Some(next) = next.as_mut().filter(|_| !wait.is_zero()) {
                next.no_sample();
            }
            let next = next.filter(|_| wait < left);
            if may && next.is_none() {
                upstream.retries.refund(now);
            }
            match next {
                Some(next) => {
                    story.retries += 1;
                    metrics.attempts[Attempt::Retry as usize].inc();
                    tried.push(next.endpoint().serial());
                    dispatched = now + wait;
                    first.set(Some(begin(next.endpoint(), deadline, wait, same)));
                    ticket = Waiting::new(next, dispatched);
                }
                None if copies.is_empty() => return why.give_up(body.as_ref(), story),
                None => failed = Some(why),
            }
        }
        alarm.set(earliest(copy_at, deadline.at));
    }
}

/// The response that is passed on, and who sent it.
#[derive(Debug)]
pub struct Won {
    /// The response.
    pub head: Box<Head>,
    /// The load on its endpoint.
    pub ticket: Ticket,
    /// How it came about.
    pub story: Story,
}

/// What became of a request before its response, for who asks (`evenkeel-debug`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Story {
    /// A copy won.
    pub copy_won: bool,
    /// Copies sent.
    pub copies: u32,
    /// Attempts after failures.
    pub retries: u32,
}

/// The connection that a response is coming from.
#[derive(Debug)]
pub enum Connection {
    /// Taken for this request alone.
    H1(H1),
    /// A stream's place on a shared one, held for its count.
    H2(#[expect(dead_code, reason = "held until the stream ends")] H2),
}

/// A response's head and the connection that its body comes on.
#[derive(Debug)]
pub struct Head {
    /// The response.
    pub response: Response<Incoming>,
    /// What its headers hold.
    pub found: Found,
    /// What its body comes on.
    pub connection: Connection,
}

impl Head {
    fn new(response: Response<Incoming>, connection: Connection) -> Box<Head> {
        Box::new(Head { found: headers::find(response.headers()), response, connection })
    }
}

/// How one attempt ended.
pub type Ended = Result<Box<Head>, Unsent>;

/// Why there is no response.
#[derive(Debug)]
pub enum Unsent {
    /// There was no connection.
    Dial(DialError),
    /// The connection gave none.
    Send(SendError),
}

enum Event {
    Timer,
    First(Ended),
    Copy(usize, Ended),
}

struct Copied<F> {
    ticket: Waiting,
    future: Pin<Box<F>>,
}

/// The ticket of an attempt that has not ended. Dropped with it when another attempt won or the caller went
/// away: how long the endpoint was silent is then all that is learnt.
struct Waiting {
    ticket: Option<Ticket>,
    since: Instant,
}

impl Waiting {
    fn new(ticket: Ticket, since: Instant) -> Waiting {
        Waiting { ticket: Some(ticket), since }
    }

    /// The request's time is over. That speaks against an endpoint only if it had the policy's: a copy that has
    /// just gone out, or a caller in a hurry, says nothing.
    fn timed_out(&mut self, now: Instant, timeout: Duration) {
        if let Some(mut ticket) = self.ticket.take() {
            if now.saturating_duration_since(self.since) >= timeout {
                ticket.head(now, Verdict::Timeout);
            } else {
                ticket.caller_gone(now);
            }
        }
    }

    fn take(&mut self) -> Ticket {
        self.ticket.take().expect("an attempt has one ticket and ends once")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.caller_gone(Instant::now());
        }
    }
}

fn poll_event<F: Future<Output = Ended>>(
    cx: &mut Context<'_>,
    first: Pin<&mut Option<F>>,
    copies: &mut [Copied<F>],
    alarm: &mut Alarm<'_>,
) -> Poll<Event> {
    if let Some(first) = first.as_pin_mut()
        && let Poll::Ready(ended) = first.poll(cx)
    {
        return Poll::Ready(Event::First(ended));
    }
    for (at, copy) in copies.iter_mut().enumerate() {
        if let Poll::Ready(ended) = copy.future.as_mut().poll(cx) {
            return Poll::Ready(Event::Copy(at, ended));
        }
    }
    alarm.poll(cx).map(|()| Event::Timer)
}

/// One attempt at one endpoint, up to the response's head.
async fn attempt(
    worker: &Rc<Worker>,
    upstream: &Upstream,
    policy: &Policy,
    endpoint: Arc<Endpoint>,
    request: Request<Body>,
    wait: Duration,
    fresh: bool,
) -> Ended {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let spec = endpoint.spec();
    let charge = Charge { balancer: &upstream.balancer, limits: &policy.circuit };
    once(worker, spec.dial, dial_from(worker, spec.hop), Some(charge), request, fresh).await
}

/// Peers know this host by its address.
pub fn dial_from(worker: &Worker, hop: Hop) -> Option<IpAddr> {
    (hop == Hop::Mesh).then_some(worker.shared.node_address)
}

/// Sends a request on a pooled connection; one that turns out dead before anything was sent is replaced once.
///
/// `from`: the local address to dial HTTP/2 peers from. `fresh`: on a new connection.
pub async fn once(
    worker: &Rc<Worker>,
    address: SocketAddr,
    from: Option<IpAddr>,
    charge: Option<Charge<'_>>,
    mut request: Request<Body>,
    mut fresh: bool,
) -> Ended {
    loop {
        let sent = if request.version() == Version::HTTP_2 {
            let mut h2 = worker.pool.h2(address, from, charge).await.map_err(Unsent::Dial)?;
            h2.send(request).await.map(|response| Head::new(response, Connection::H2(h2)))
        } else {
            let h1 = if fresh {
                worker.pool.dial_h1(address, charge).await
            } else {
                worker.pool.h1(address, charge).await
            };
            let mut h1 = h1.map_err(Unsent::Dial)?;
            h1.send(request).await.map(|response| Head::new(response, Connection::H1(h1)))
        };
        match sent {
            Err(SendError::NotSent(back)) if !fresh => (request, fresh) = (*back, true),
            sent => return sent.map_err(Unsent::Send),
        }
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

fn too_late(upstream: &Upstream, start: Instant) -> Error {
    let waited = start.elapsed();
    Error::Timeout(format!("{} did not answer within {waited:.1?}", upstream.name))
}

fn no_endpoint(upstream: &Upstream, why: NoEndpoint) -> Error {
    let service = upstream.name.to_string();
    match why {
        NoEndpoint::CircuitOpen => Error::CircuitOpen(service),
        NoEndpoint::None => Error::NoEndpoint { service, why: "it has none" },
        NoEndpoint::Unhealthy => Error::NoEndpoint { service, why: "none is healthy" },
        NoEndpoint::Shard => {
            Error::NoEndpoint { service, why: "none in the shard of this key is healthy" }
        }
        NoEndpoint::AllTried => Error::NoEndpoint { service, why: "all were tried" },
    }
}

fn earliest(copy_at: Option<Instant>, deadline: Instant) -> Instant {
    copy_at.map_or(deadline, |at| at.min(deadline))
}

/// Before the same endpoint is tried again: 5 to 10 ms, doubled each time.
fn backoff(rng: &mut impl rand::Rng, retries: u32) -> Duration {
    let most = BACKOFF * 2u32.saturating_pow(retries.min(BACKOFF_DOUBLINGS_MAX));
    most.mul_f64(rng.random_range(0.5..1.0))
}

const BACKOFF: Duration = Duration::from_millis(5);
const BACKOFF_DOUBLINGS_MAX: u32 = 6;

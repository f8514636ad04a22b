//! One request's attempts, from the first to the response that the caller gets.
//!
//! [`send`] is the loop of the data plane: it picks an endpoint, sends, arms one timer for the next copy or the
//! deadline, and takes what comes first. A success ends it: the other attempts are dropped, which resets
//! their streams or closes their connections, through to the applications. A failure waits for the copies that are
//! still out; when none is, [`may_retry`](evenkeel_balancer::repeat::may_retry) alone says whether the request may be sent again. What an attempt costs and where it goes
//! is in `sending`.
//!
//! Invariants: at most `1 + retry.max + hedge.max` attempts; a copy never goes to an endpoint this request
//! has tried; every [`Ticket`] ends once, at the end of the response's body ([`Exchange`](crate::exchange::Exchange)), with the
//! failure, or when its attempt is dropped.
//!
//! Sources: The Tail at Scale (hedged requests); RFC 9110 §9.2.2 (which requests may be repeated).

pub mod connect;
mod sending;

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use evenkeel_balancer::{Attempt, Endpoint, Hop, NoEndpoint, Ticket, Verdict};
use evenkeel_config::policy::{Policy, ScoutMode};
use evenkeel_config::settings::Protocol;
use h2::SendStream;
use http::header::{EXPECT, HeaderValue};
use http::{Method, Request, Response, Version};
use smallvec::SmallVec;
use tracing::debug;

use crate::alarm::Alarm;
use crate::body::{Body, ReceivedBody, Replay};
use crate::error::Error;
use crate::interim::Interim;
use crate::judge::{Failed, judge};
use crate::message::headers::Found;
use crate::message::{self, MessageError};
use crate::metrics::Hedges;
use crate::pool::{Charge, DialError, H1, H2, SendError};
use crate::probe;
use crate::redial;
use crate::route::{Route, Upstream};
use crate::template::Template;
use crate::tunnel::TunnelEnd;
use crate::worker::Worker;

use sending::{Next, NoCopy, Sending, Start};

/// When a request must have its response's head.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// When the request was read.
    pub start: Instant,
    /// The moment.
    pub at: Instant,
    /// The caller's own limit; else the policy's, which begins anew whenever the request's body goes on.
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
    mut deadline: Deadline,
    interim: &Interim,
) -> Result<Won, Error> {
    let (policy, metrics, start) =
        (&route.policy, upstream.metrics().of(worker.id), deadline.start);
    let request = Sending::new(worker, upstream, route, template, body.as_ref(), interim);
    let may_copy = request.may_copy();
    upstream.retries().request(start);
    route.hedger.request(start);

    let ticket = request.first(deadline).await?;
    // What the scouts took is not the application's time.
    let mut dispatched = match policy.scouting() {
        ScoutMode::Off => start,
        _ => Instant::now(),
    };
    metrics.attempts[Attempt::First as usize].inc();
    let mut tried: SmallVec<[u64; 4]> = SmallVec::from_slice(&[ticket.endpoint().serial()]);
    let mut first = pin!(Some(request.begin(ticket.endpoint(), deadline, Start::AtOnce)));
    let mut ticket = Waiting::new(ticket, start);
    let wish = template.keys.wish(Attempt::First, &[]);
    if body.is_none()
        && may_copy
        && let Some(ticket) =
            upstream.balancer().probe_due(start, policy, &wish, &route.hedger, upstream.retries())
    {
        probe::spawn(worker, upstream, route, ticket, template);
    }
    let mut copies: Vec<Copied<_>> = Vec::new();
    let mut story = Story::default();
    let mut failed: Option<Failed> = None;
    let mut observed = None;

    let delay = route.hedger.delay(start, &policy.hedge);
    let mut copy_at = delay.map(|delay| dispatched + delay);
    // Until a copy that could not be sent is asked for again: longer each time.
    let mut patience = delay.unwrap_or_default();
    let mut alarm = Alarm::new(&worker.alarms, earliest(copy_at, deadline.at));

    loop {
        let leaves = || ticket.is_lost() && request.may_leave(Instant::now(), story.retries);
        let event =
            poll_fn(|cx| poll_event(cx, first.as_mut(), leaves, &mut copies, &mut alarm)).await;
        let now = Instant::now();
        let ended = !matches!(event, Event::Timer);
        match event {
            Event::Timer if now >= deadline.at => {
                let due = body.as_ref().filter(|_| !deadline.hard);
                let due = due.map(|b| b.response_due(now, policy.timeout, policy.idle_timeout));
                if let Some(later) = due.filter(|&due| due > now) {
                    deadline.at = later;
                } else {
                    waiting(&mut ticket, &mut copies)
                        .for_each(|w| w.timed_out(now, policy.timeout));
                    metrics.hedges[Hedges::Lost as usize].add(copies.len() as u64);
                    return Err(too_late(upstream, start));
                }
            }
            Event::Timer => {
                // A copy is due. Whether or not a copy goes out: who is this late is avoided until it answers.
                waiting(&mut ticket, &mut copies).for_each(|waiting| waiting.late(now));
                let again = delay.map(|delay| now + delay);
                copy_at = if !may_copy || story.copies >= policy.hedge.max {
                    None
                } else if body.as_ref().is_some_and(|body| !body.complete()) {
                    again
                } else {
                    match request.copy(now, &tried) {
                        Ok(ticket) => {
                            story.copies += 1;
                            tried.push(ticket.endpoint().serial());
                            let future = request.begin(ticket.endpoint(), deadline, Start::AsCopy);
                            let (ticket, future) = (Waiting::new(ticket, now), Box::pin(future));
                            copies.push(Copied { ticket, future });
                            again
                        }
                        Err(NoCopy::Now) => {
                            let later = now + patience;
                            patience *= 2;
                            Some(later)
                        }
                        Err(NoCopy::AtAll) => None,
                        Err(NoCopy::Observed) => {
                            observed = Some(now.saturating_duration_since(dispatched));
                            None
                        }
                    }
                };
            }
            Event::First(ended) => {
                first.set(None);
                let ended = (ended, ticket.take());
                match settle(worker, upstream, policy, ended, body.as_ref(), now) {
                    Ok(won) => {
                        let latency = now.saturating_duration_since(dispatched);
                        route.hedger.record(now, latency);
                        if let Some(delay) = observed {
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
                let ended = (ended, ticket.take());
                match settle(worker, upstream, policy, ended, body.as_ref(), now) {
                    Ok(won) => {
                        route.hedger.copy_won();
                        route.hedger.record(now, now.saturating_duration_since(dispatched));
                        metrics.hedges[Hedges::Won as usize].inc();
                        metrics.hedges[Hedges::Lost as usize].add(copies.len() as u64);
                        story.copy_won = true;
                        debug!(upstream = %upstream.name, "a copy was answered first");
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
            let left = deadline.at.saturating_duration_since(now);
            match request.retry(now, left, &why.outcome, story.retries, &tried) {
                Some(Next { ticket: next, wait, fresh }) => {
                    story.retries += 1;
                    tried.push(next.endpoint().serial());
                    dispatched = now + wait;
                    first.set(Some(request.begin(
                        next.endpoint(),
                        deadline,
                        Start::Again { wait, fresh },
                    )));
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
    H2(H2),
    /// The far end of a tunnel that was asked for. It holds its connection, or its place on one, itself.
    Tunnel(Box<TunnelEnd>),
}

/// A response's head and the connection that its body comes on.
#[derive(Debug)]
pub struct Head {
    /// The response.
    pub response: Response<ReceivedBody>,
    /// What its headers hold.
    pub found: Found,
    /// What its body comes on.
    pub connection: Connection,
}

impl Head {
    /// A tunnel was opened.
    pub fn of_tunnel(end: TunnelEnd) -> Box<Head> {
        let response = Response::new(ReceivedBody::none());
        let connection = Connection::Tunnel(Box::new(end));
        Box::new(Head { response, found: Found::default(), connection })
    }

    /// What another host said to CONNECT.
    fn of_connect(
        response: Response<ReceivedBody>,
        sending: SendStream<Bytes>,
        connection: H2,
    ) -> Ended {
        if response.status().is_success() {
            let pipe = connection.into_pipe(response.into_body(), sending);
            return Ok(Head::of_tunnel(TunnelEnd::Stream(Box::new(pipe))));
        }
        Head::new(response, Connection::H2(connection))
    }

    fn new(mut response: Response<ReceivedBody>, connection: Connection) -> Ended {
        match message::answered(&mut response) {
            Ok(found) => Ok(Box::new(Head { response, found, connection })),
            Err(MessageError::Malformed(what) | MessageError::NotImplemented(what)) => {
                Err(Unsent::Malformed(what))
            }
        }
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
    /// There is one that may not be passed on.
    Malformed(&'static str),
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

    fn late(&mut self, now: Instant) {
        if let Some(ticket) = &mut self.ticket {
            ticket.late(now);
        }
    }

    /// Its endpoint's host is called down.
    fn is_lost(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.endpoint().is_lost())
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

/// The tickets of all attempts that are out.
fn waiting<'w, F>(
    first: &'w mut Waiting,
    copies: &'w mut [Copied<F>],
) -> impl Iterator<Item = &'w mut Waiting> {
    std::iter::once(first).chain(copies.iter_mut().map(|copy| &mut copy.ticket))
}

fn poll_event<F: Future<Output = Ended>>(
    cx: &mut Context<'_>,
    first: Pin<&mut Option<F>>,
    leaves: impl Fn() -> bool,
    copies: &mut [Copied<F>],
    alarm: &mut Alarm<'_>,
) -> Poll<Event> {
    if let Some(first) = first.as_pin_mut() {
        if let Poll::Ready(ended) = first.poll(cx) {
            return Poll::Ready(Event::First(ended));
        }
        if leaves() {
            let why = SendError::Reset("its host does not answer any more".to_owned());
            return Poll::Ready(Event::First(Err(Unsent::Send(why))));
        }
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
    (template, request): (&Template, impl FnOnce(&Endpoint, bool) -> Request<Body>),
    interim: Interim,
    start: Start,
) -> Ended {
    let mut fresh = false;
    if let Start::Again { wait, fresh: again } = start {
        fresh = again;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
    let destination = destination(worker, upstream, policy, &endpoint);
    let h2 = destination.speaks_http2(worker, template).await;
    once(worker, destination, request(&endpoint, h2), &interim, fresh).await
}

/// What an attempt's end [means](judge); an endpoint that could not be dialled is dialled again beside the requests from now on.
pub fn settle(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    policy: &Policy,
    (ended, ticket): (Ended, Ticket),
    body: Option<&Replay>,
    now: Instant,
) -> Result<Won, Failed> {
    let failed = ended.is_err().then(|| Arc::clone(ticket.endpoint()));
    let judged = judge(ended, ticket, upstream, body, now);
    // Whatever it was that spoke against connecting: nobody else would find out that it is over.
    if let Some(endpoint) = failed {
        redial::begin(worker, upstream, policy, &endpoint);
    }
    judged
}

/// How an endpoint is dialled: peers know this host by its address.
pub fn destination<'a>(
    worker: &Worker,
    upstream: &'a Upstream,
    policy: &'a Policy,
    endpoint: &Endpoint,
) -> Destination<'a> {
    let spec = endpoint.spec();
    Destination {
        address: spec.dial,
        from: (spec.hop == Hop::Mesh).then_some(worker.shared.node_address),
        charge: Some(Charge { circuit: upstream.balancer().circuit(), limits: &policy.circuit }),
        protocol: spec.protocol,
    }
}

/// Where a request is sent, and what a connection to it counts against.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// An application, or another host.
    pub address: SocketAddr,
    /// The local address to dial another host from; `None`: it is an application.
    pub from: Option<IpAddr>,
    /// Whose limits.
    pub charge: Option<Charge<'a>>,
    /// What it speaks, if it says so.
    pub protocol: Option<Protocol>,
}

impl Destination<'_> {
    /// Whether a request to it goes in HTTP/2.
    pub async fn speaks_http2(&self, worker: &Worker, template: &Template) -> bool {
        match (self.from, self.protocol) {
            (Some(_), _) => true,
            // To an application a tunnel is a connection, and what is spoken on it nobody's business.
            (None, _) if template.opens_tunnel() => false,
            (None, Some(Protocol::Http2 | Protocol::Grpc)) => true,
            (None, Some(Protocol::Http)) => false,
            (None, None) => worker.spoken.speaks_http2(self.address, template.wants_http2).await,
        }
    }

    /// The same without asking: what is not known is HTTP/1.1.
    pub fn is_known_to_speak_http2(&self, worker: &Worker) -> bool {
        match (self.from, self.protocol) {
            (Some(_), _) | (None, Some(Protocol::Http2 | Protocol::Grpc)) => true,
            (None, Some(Protocol::Http)) => false,
            (None, None) => worker.spoken.speaks_no_http1(self.address),
        }
    }

    /// What became of an attempt in HTTP/1.1, where that may not be what the application speaks.
    async fn without_http1(&self, worker: &Worker, error: SendError) -> SendError {
        let learns = self.protocol.is_none() && self.from.is_none();
        match error {
            SendError::NoHttp1(what) | SendError::Reset(what)
                if learns && worker.spoken.answered_no_http1(self.address).await =>
            {
                SendError::Misread(what)
            }
            SendError::NoHttp1(what) => SendError::Reset(what),
            error => error,
        }
    }
}

/// Sends a request on a pooled connection. One that turns out dead before anything was sent is replaced: in HTTP/1.1 once, by a
/// new one; in HTTP/2 as often as there are connections, since a peer that has reached their age tells all of them to go at once.
///
/// `fresh`: on a new connection, in HTTP/1.1.
///
/// A CONNECT goes to other hosts as it is; to an application a connection is dialled.
pub async fn once(
    worker: &Rc<Worker>,
    destination: Destination<'_>,
    mut request: Request<Body>,
    interim: &Interim,
    mut fresh: bool,
) -> Ended {
    let Destination { address, from, charge, .. } = destination;
    if interim.waits() {
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    let http2 = request.version() == Version::HTTP_2;
    let opens_tunnel = request.method() == Method::CONNECT;
    if opens_tunnel && !http2 {
        let dialled = worker.pool.dial_alone(address, charge).await;
        let (socket, guard) = dialled.map_err(Unsent::Dial)?;
        return Ok(Head::of_tunnel(TunnelEnd::dialled(socket, guard)));
    }
    let mut others = match http2 {
        true => worker.pool.h2_connections(address).max(1),
        false => usize::from(!fresh),
    };
    loop {
        let sent = if http2 {
            let mut h2 = worker.pool.h2(address, from, charge).await.map_err(Unsent::Dial)?;
            if opens_tunnel {
                let answered = h2.connect(request, interim).await;
                answered.map(|(response, sending)| Head::of_connect(response, sending, h2))
            } else {
                let answered = h2.send(request, interim).await;
                answered.map(|response| Head::new(response, Connection::H2(h2)))
            }
        } else {
            let h1 = if fresh {
                worker.pool.dial_h1(address, charge).await
            } else {
                worker.pool.h1(address, charge).await
            };
            let mut h1 = h1.map_err(Unsent::Dial)?;
            h1.send(request, interim).await.map(|response| Head::new(response, Connection::H1(h1)))
        };
        match sent {
            Err(SendError::NotSent(back)) if others > 0 => {
                others -= 1;
                (request, fresh) = (*back, true);
            }
            Ok(ended) => return ended,
            Err(error) => {
                let error = destination.without_http1(worker, error).await;
                return Err(Unsent::Send(error));
            }
        }
    }
}

fn too_late(upstream: &Upstream, start: Instant) -> Error {
    let waited = start.elapsed();
    Error::Timeout(format!("{} did not answer within {waited:.1?}", upstream.name))
}

fn no_endpoint(upstream: &Upstream, why: NoEndpoint) -> Error {
    debug!(upstream = %upstream.name, ?why, "a request finds no endpoint");
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

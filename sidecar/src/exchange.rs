//! One request and its response, from the request's head to the end of the response's body.
//!
//! An [`Exchange`] is made when a request is read and goes with it: while it waits it counts as in flight, once there
//! is a response it travels in its body and holds the connection and the ticket, and when it ends, it is counted and
//! logged, once, with the reason if it failed. However it ends (read to the end, broken, the caller gone
//! before or after the head), dropping it does the right thing. That of a CONNECT goes with its [tunnel](crate::tunnel).

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use evenkeel_balancer::{Hop, Ticket, Verdict, Visit};
use evenkeel_ratelimit::Place;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::Sleep;

use crate::access::Line;
use crate::attempt::{Connection, Head};
use crate::body::{ReceivedBody, Reply, UNREAD_MAX};
use crate::error::Error;
use crate::interim::Interim;
use crate::judge::grpc_end;
use crate::link::Link;
use crate::message::framing;
use crate::message::headers::{self, Found};
use crate::message::hops::{self, ViaMark};
use crate::metrics::Cells;
use crate::route::Upstream;
use crate::tunnel::{Tunnel, TunnelEnd, TunnelEnding, TunnelWay};
use crate::worker::{OUTBOUND, Worker};

/// A request that is being served.
#[derive(Debug)]
pub struct Exchange {
    worker: Rc<Worker>,
    link: Rc<Link>,
    /// [`OUTBOUND`] or [`crate::worker::INBOUND`].
    side: usize,
    /// When the request's head was read.
    pub start: Instant,
    /// Whom it is for.
    pub target: Target,
    method: Method,
    path: Option<PathAndQuery>,
    request_id: Option<HeaderValue>,
    status: u16,
    connection: Option<Connection>,
    ticket: Option<Ticket>,
    /// An application of this host that others' scouts ask for has it in hand.
    pub visit: Option<Visit>,
    idle_timeout: Duration,
    idle: Option<Pin<Box<Sleep>>>,
    moved: bool,
    /// What the end of the body says of its endpoint, as far as it is known: of a gRPC call that has no status yet, a failure.
    end: Verdict,
    ended: bool,
    /// How it went, for a caller who asked.
    pub debug: Option<HeaderValue>,
    /// What it holds of resources whose capacity is held.
    pub places: Vec<Place>,
    /// Where 1xx go, and the leave to send a body.
    pub interim: Interim,
    /// Of a CONNECT: what its caller says in the tunnel, where that comes on its request's stream.
    pub says_in_tunnel: Option<Box<ReceivedBody>>,
    /// It has become a tunnel.
    is_tunnel: bool,
}

/// Whom a request is for, as far as it is known.
#[derive(Debug)]
pub enum Target {
    /// Not known.
    None,
    /// One of our upstreams.
    Upstream(Arc<Upstream>),
    /// A service of this host.
    Local(Arc<str>),
    /// A name that is no upstream's: of a host outside the mesh, or one that nobody offers.
    Foreign(Box<str>),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Target::None => "",
            Target::Upstream(upstream) => &upstream.name,
            Target::Local(name) => name,
            Target::Foreign(name) => name,
        }
    }
}

/// A response to pass on.
#[derive(Debug)]
pub struct Answer {
    /// Its head, and the connection that its body comes on.
    pub head: Box<Head>,
    /// The load on the endpoint that sends it.
    pub ticket: Option<Ticket>,
    /// Between two frames of the body.
    pub idle_timeout: Duration,
}

impl Exchange {
    /// A request was read.
    pub fn begin(
        worker: &Rc<Worker>,
        link: &Rc<Link>,
        side: usize,
        parts: &Parts,
        found: Found,
        interim: Interim,
    ) -> Box<Exchange> {
        worker.request_begins();
        link.request_begins(found);
        worker.shared.in_flight[side].fetch_add(1, Ordering::Relaxed);
        Box::new(Exchange {
            worker: Rc::clone(worker),
            link: Rc::clone(link),
            side,
            start: Instant::now(),
            target: Target::None,
            method: parts.method.clone(),
            path: parts.uri.path_and_query().cloned(),
            request_id: if found.request_id {
                parts.headers.get("x-request-id").cloned()
            } else {
                None
            },
            status: 0,
            connection: None,
            ticket: None,
            visit: None,
            idle_timeout: Duration::MAX,
            idle: None,
            moved: false,
            end: Verdict::Success,
            ended: false,
            debug: None,
            places: Vec::new(),
            interim,
            says_in_tunnel: None,
            is_tunnel: false,
        })
    }

    /// The response that the caller gets; its body ends the exchange.
    pub fn respond(mut self: Box<Self>, answer: Answer) -> Response<Reply> {
        let Head { response, found, connection } = *answer.head;
        let connection = match connection {
            Connection::Tunnel(far) => return self.open(*far, answer.ticket, answer.idle_timeout),
            connection => connection,
        };
        let (mut parts, incoming) = response.into_parts();
        // An application of HTTP/1.0 is no reason to speak it to the caller.
        let came_in = std::mem::replace(&mut parts.version, Version::HTTP_11);
        headers::strip(&mut parts.headers, found);
        // The host that has it from the application says so; then the way between hosts is one proxy.
        match &answer.ticket {
            Some(ticket) if ticket.endpoint().spec().hop == Hop::Mesh => {}
            Some(_) => hops::mark(&mut parts.headers, came_in, ViaMark::Mesh),
            None if self.side == OUTBOUND => {
                hops::mark(&mut parts.headers, came_in, ViaMark::Outside);
            }
            None => hops::mark(&mut parts.headers, came_in, ViaMark::Mesh),
        }
        if let Some(debug) = self.debug.take() {
            parts.headers.insert(headers::DEBUG, debug);
        }
        self.status = parts.status.as_u16();
        self.connection = Some(connection);
        self.ticket = answer.ticket;
        if found.grpc {
            self.end = grpc_end(None);
        }
        self.idle_timeout = answer.idle_timeout;
        self.link.response_begins(answer.idle_timeout);
        self.interim.final_response();
        if incoming.is_end_stream() || framing::has_no_body(&self.method, parts.status) {
            self.finish();
            return Response::from_parts(parts, Reply::Empty);
        }
        Response::from_parts(parts, Reply::Stream(incoming, self))
    }

    /// The tunnel that the caller asked for is there: it takes the exchange over, and the caller's connection, or stream, once it is told.
    fn open(
        mut self: Box<Self>,
        far: TunnelEnd,
        ticket: Option<Ticket>,
        idle_timeout: Duration,
    ) -> Response<Reply> {
        let mut response = Response::new(Reply::Empty);
        if let Some(debug) = self.debug.take() {
            response.headers_mut().insert(headers::DEBUG, debug);
        }
        self.status = response.status().as_u16();
        self.ticket = ticket;
        self.link.response_begins(idle_timeout);
        // Nobody waits for an answer any more, so our own pauses hide none.
        self.worker.request_ends();
        self.is_tunnel = true;
        self.metrics().tunnel_opens();
        let link = Rc::clone(&self.link);
        let said = self.says_in_tunnel.take();
        let tunnel = Box::new(Tunnel::new(far, self, idle_timeout));
        match said {
            Some(said) if !link.can_tunnel() => {
                *response.body_mut() = Reply::Tunnel(tunnel, said.without_gate());
            }
            _ => link.tunnel(tunnel),
        }
        response
    }

    /// There is no response: what the caller is told instead.
    pub fn fail(mut self: Box<Self>, error: &Error, grpc: bool) -> Response<Reply> {
        self.status = error.status().as_u16();
        self.link.response_begins(UNREAD_MAX);
        self.complete(Some(error.reason()));
        // Nothing that an attempt left behind may ask for the body any more.
        self.interim.final_response();
        let response = error.response(grpc);
        if self.method == Method::HEAD { without_body(response) } else { response }
    }

    /// The caller gets an answer of ours, which is not a failure.
    pub fn answered(mut self: Box<Self>, status: StatusCode) {
        self.status = status.as_u16();
        self.complete(None);
    }

    /// So many bytes went through its tunnel.
    pub fn tunnel_moved(&self, way: TunnelWay, bytes: usize) {
        self.metrics().tunnel_moved(way, bytes);
    }

    /// Its tunnel has ended.
    pub fn tunnel_ends(&mut self, ending: TunnelEnding) {
        self.complete(match ending {
            TunnelEnding::Whole => None,
            TunnelEnding::NearBroke => Some(CANCELLED),
            TunnelEnding::FarBroke => Some("reset_after_head"),
            TunnelEnding::Idle => Some("idle_timeout"),
        });
    }

    /// The body has ended with these.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if self.end != Verdict::Success {
            self.end = grpc_end(Some(trailers));
        }
    }

    /// The body was read to its end: the connection can be used again.
    pub fn finish(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.end(Instant::now(), self.end);
        }
        self.complete(None);
        let connection = self.connection.take();
        match connection {
            Some(Connection::H1(h1)) => {
                h1.answer_ends(self.idle_timeout.min(UPLOAD_PATIENCE));
                match self.interim.gate() {
                    // A body that was never asked for still stands between the connection and its next request.
                    Some(gate) if gate.ended() => h1.close(),
                    _ => self.worker.pool.put_back(h1),
                }
            }
            Some(Connection::H2(h2)) => h2.answer_ends(self.idle_timeout.min(UPLOAD_PATIENCE)),
            Some(Connection::Tunnel(_)) | None => {}
        }
    }

    /// The body broke on the endpoint's side.
    pub fn broken(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.end(Instant::now(), Verdict::Reset);
        }
        self.connection = None;
        self.complete(Some("reset_after_head"));
    }

    /// Nothing has moved for the idle timeout. That speaks against the endpoint only if it `owes` bytes that it has announced: a
    /// watch that has nothing to say is no failure.
    pub fn idled(&mut self, owes: bool) {
        if owes {
            return self.broken();
        }
        self.connection = None;
        self.complete(Some("idle_timeout"));
    }

    /// How long the body may stand still.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// A frame passed.
    pub fn progress(&mut self) {
        self.moved = true;
    }

    /// Ready once nothing has passed for the idle timeout, of the answer or of an upload beside it. Armed only when a body makes
    /// the caller wait.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.idle_timeout;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if std::mem::take(&mut self.moved) {
            idle.as_mut().reset((Instant::now() + timeout).into());
        }
        loop {
            ready!(idle.as_mut().poll(cx));
            let uploads = match &self.connection {
                Some(Connection::H1(h1)) => h1.upload_moved(),
                Some(Connection::H2(h2)) => h2.upload_moved(),
                Some(Connection::Tunnel(_)) | None => false,
            };
            if !uploads {
                return Poll::Ready(());
            }
            idle.as_mut().reset((Instant::now() + timeout).into());
        }
    }

    /// Where it is counted.
    fn metrics(&self) -> &Cells {
        let shared = &self.worker.shared;
        let metrics = match &self.target {
            Target::Upstream(upstream) => upstream.metrics(),
            _ if self.side == OUTBOUND => &shared.other,
            _ => &shared.inbound,
        };
        metrics.of(self.worker.id)
    }

    /// Counts and logs it, the first time.
    fn complete(&mut self, reason: Option<&'static str>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.ticket = None;
        self.places = Vec::new();
        let now = Instant::now();
        if let Some(mut visit) = self.visit.take() {
            visit.gone(now);
        }
        let took = now.saturating_duration_since(self.start);
        self.link.request_ends(now);
        let shared = &self.worker.shared;
        shared.in_flight[self.side].fetch_sub(1, Ordering::Relaxed);
        if !self.is_tunnel {
            self.worker.request_ends();
        }
        let metrics = self.metrics();
        // From another host that is what becomes of every attempt that loses: nothing has failed.
        let failure = reason.filter(|reason| self.side == OUTBOUND || *reason != CANCELLED);
        if failure != reason {
            metrics.taken_back.inc();
        }
        if self.is_tunnel {
            metrics.tunnel_ends(self.status, failure);
        } else {
            metrics.request(self.status, failure, took);
        }
        if shared.access.wants(failure.is_some() || self.status >= 500) {
            shared.access.write(Line::new(
                if self.side == OUTBOUND { "outbound" } else { "inbound" },
                self.target.name(),
                &self.method,
                self.path.as_ref(),
                self.status,
                reason,
                took,
                self.link.peer,
                self.request_id.as_ref(),
            ));
        }
    }
}

/// An answer of ours to HEAD: the head that GET would have (RFC 9110 §9.3.2), and nothing behind it.
fn without_body(response: Response<Reply>) -> Response<Reply> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|&length| length > 0) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Reply::Empty)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.complete(Some(CANCELLED));
    }
}

/// The reason when the caller went away.
const CANCELLED: &str = "cancelled";

/// An upload that outlasted its answer may stand still for this long at most, also where no policy limits it: on the receiving host.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(300);

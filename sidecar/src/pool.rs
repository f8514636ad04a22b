//! The connections that one worker keeps open to endpoints.
//!
//! Decides which connection a request goes out on, when a new one is dialled and when an idle one is closed.
//! HTTP/1.1 connections are taken for one request at a time, the most recently used first, so that a burst's extra
//! ones grow old and are closed. HTTP/2 connections are shared: requests to a peer wait for one dial
//! instead of each starting its own. Another connection is opened for three reasons, each with a limit of its own: a
//! stream that carries much is on every one there is, so that small messages would wait behind it on the path; the
//! least busy carries [`STREAMS_SOFT_MAX`] streams (a connection is one lock and one TCP stream); or all carry as many as
//! the peer allows, so that who holds them all would keep everybody else out.
//!
//! Dead connections are found by their tasks, which read while idle, by pings between hosts and by the socket
//! ([`crate::socket`]); a request that meets one before it was sent comes back whole and goes out on another.
//!
//! A pool belongs to one worker and is never shared: hyper-util's pool takes one lock for all hosts.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evenkeel_balancer::{Circuit, Guard};
use foldhash::HashMap;
use h2::SendStream;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::body::{Body, ReceivedBody};
use crate::http2::client::{Http2Sender, StreamPlace, handshake};
use crate::http2::pipe::Http2Pipe;
use crate::http2::upkeep::Silence;
use crate::interim::Interim;
use crate::outflow::{Outflow, PacedBody};
use crate::socket::Socket;
use crate::tcp_options::resend_soon;
use crate::worker::Shared;

/// The connections of one worker.
#[derive(Debug)]
pub struct Pool {
    /// For what pays for windows that grow, which descriptors are left to others, and whom nobody dials.
    shared: Arc<Shared>,
    h1: RefCell<HashMap<SocketAddr, Vec<Idle>>>,
    h2: RefCell<HashMap<SocketAddr, Peer>>,
}

/// A connection for one request at a time; closed when dropped, kept when [put back](Pool::put_back).
#[derive(Debug)]
pub struct H1 {
    sender: http1::SendRequest<PacedBody<Body>>,
    outflow: Rc<Outflow>,
    /// Interim responses, from hyper's task to the request's.
    tell_interim: mpsc::Sender<(StatusCode, HeaderMap)>,
    interims: mpsc::Receiver<(StatusCode, HeaderMap)>,
    task: AbortHandle,
    address: SocketAddr,
}

/// A shared connection, in use by one stream.
#[derive(Debug)]
pub struct H2 {
    sender: Http2Sender,
    place: Rc<StreamPlace>,
}

#[derive(Debug)]
struct Idle {
    connection: H1,
    since: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    connections: Vec<Mux>,
    dialling: Option<watch::Receiver<Option<Result<(), DialError>>>>,
    /// When a dial last failed.
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Mux {
    sender: Http2Sender,
    streams: Rc<Cell<usize>>,
    idle_since: Cell<Option<Instant>>,
}

/// Why no connection could be had. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// The endpoint did not accept a connection.
    Unreachable(String),
    /// `policy.circuit.connections` or `.pending` was reached: ours, not the endpoint's fault.
    CircuitOpen,
    /// This process has no descriptors left but those that are kept for look-ups, gossip and the admin.
    OutOfDescriptors,
    /// The address is that of a listener of our own, which a request would come back from.
    OwnListener,
}

/// Whose connection limits a dial counts against.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// What is open to the upstream, or to an instance of this host.
    pub circuit: &'a Circuit,
    /// How much may be.
    pub limits: &'a evenkeel_config::policy::Circuit,
}

impl Charge<'_> {
    fn connection(&self) -> Result<Guard, DialError> {
        self.circuit.try_connection(self.limits.connections).ok_or(DialError::CircuitOpen)
    }

    fn pending(&self) -> Result<Guard, DialError> {
        self.circuit.try_pending(self.limits.pending).ok_or(DialError::CircuitOpen)
    }
}

impl Pool {
    /// Without connections.
    pub fn new(shared: Arc<Shared>) -> Pool {
        Pool { shared, h1: RefCell::default(), h2: RefCell::default() }
    }

    /// A connection to an HTTP/1.1 application: an idle one, else a new one.
    pub async fn h1(
        &self,
        address: SocketAddr,
        charge: Option<Charge<'_>>,
    ) -> Result<H1, DialError> {
        if let Some(connection) = self.take_idle(address) {
            return Ok(connection);
        }
        self.dial_h1(address, charge).await
    }

    /// A connection to an HTTP/1.1 application that was not used before.
    pub async fn dial_h1(
        &self,
        address: SocketAddr,
        charge: Option<Charge<'_>>,
    ) -> Result<H1, DialError> {
        let (socket, guard) = self.dial_alone(address, charge).await?;
        let outflow = socket.outflow();
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .max_header_size(HEAD_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|e| unreachable(address, &e))?;
        let writes = Rc::clone(&outflow);
        let task = tokio::task::spawn_local(async move {
            let mut connection = pin!(connection);
            poll_fn(|cx| {
                // Its errors reach whoever waits for a response on it.
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                writes.poll_stands_still(cx)
            })
            .await;
            // Until then the socket is open, whoever still has a use for it.
            drop(guard);
        });
        let task = task.abort_handle();
        let (tell_interim, interims) = mpsc::channel(INTERIMS_WAITING_MAX);
        Ok(H1 { sender, outflow, tell_interim, interims, task, address })
    }

    /// A connection of its own to an application, and its place in the circuit.
    pub async fn dial_alone(
        &self,
        address: SocketAddr,
        charge: Option<Charge<'_>>,
    ) -> Result<(Socket, Option<Guard>), DialError> {
        let _pending = charge.map(|c| c.pending()).transpose()?;
        let guard = charge.map(|c| c.connection()).transpose()?;
        Ok((self.dial(address, None).await?, guard))
    }

    fn take_idle(&self, address: SocketAddr) -> Option<H1> {
        let mut pools = self.h1.borrow_mut();
        let idle = pools.get_mut(&address)?;
        // From the most recently used on; one that was put back a moment ago may not be ready yet.
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let sender = &idle[at].connection.sender;
            if sender.is_closed() {
                idle.swap_remove(at);
            } else if sender.is_ready() {
                return Some(idle.remove(at).connection);
            }
        }
        None
    }

    /// Keeps a connection whose response was read to its end.
    pub fn put_back(&self, connection: H1) {
        if connection.sender.is_closed() {
            return;
        }
        let mut pools = self.h1.borrow_mut();
        let idle = pools.entry(connection.address).or_default();
        if idle.len() < IDLE_PER_ADDRESS_MAX {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// A stream's place on a connection to an HTTP/2 peer: a shared one with room, else a new one.
    ///
    /// `from`: the local address to dial from, by which peers know us.
    pub async fn h2(
        self: &Rc<Self>,
        address: SocketAddr,
        from: Option<IpAddr>,
        charge: Option<Charge<'_>>,
    ) -> Result<H2, DialError> {
        let mut waiting = None;
        loop {
            let mut dialled = {
                let mut peers = self.h2.borrow_mut();
                let peer = peers.entry(address).or_default();
                if !peer.wants_another() {
                    return peer.place().ok_or(DialError::CircuitOpen);
                }
                if peer.dialling.is_none() {
                    match charge.map(|c| c.connection()).transpose() {
                        Ok(guard) => {
                            let receiver = Rc::clone(self).start_dial(address, from, guard);
                            peer.dialling = Some(receiver);
                        }
                        // Busy connections are better than none.
                        Err(refused) => return peer.place().ok_or(refused),
                    }
                }
                // Only who has no connection with room waits for the dial.
                match &peer.dialling {
                    Some(dialling) if !peer.has_room() => dialling.clone(),
                    _ => return peer.place().ok_or(DialError::CircuitOpen),
                }
            };
            if waiting.is_none() {
                waiting = charge.map(|c| c.pending()).transpose()?;
            }
            // The dial is a task of its own: whoever waits may be cancelled without harm to the others.
            let outcome = match dialled.wait_for(Option::is_some).await {
                Ok(value) => value.clone().expect("waited for a value"),
                Err(_) => {
                    Err(DialError::Unreachable(format!("the dial of {address} was given up")))
                }
            };
            if let Err(error) = outcome {
                let mut peers = self.h2.borrow_mut();
                return peers.get_mut(&address).and_then(Peer::place).ok_or(error);
            }
        }
    }

    /// How many connections there are to an HTTP/2 peer; those that have ended may be among them.
    pub fn h2_connections(&self, address: SocketAddr) -> usize {
        self.h2.borrow().get(&address).map_or(0, |peer| peer.connections.len())
    }

    async fn dial(&self, address: SocketAddr, from: Option<IpAddr>) -> Result<Socket, DialError> {
        let failed = |error: io::Error| unreachable(address, &error);
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|_| DialError::OutOfDescriptors)?;
        if !self.shared.descriptors.may_keep(&socket) {
            return Err(DialError::OutOfDescriptors);
        }
        match from {
            Some(from) => {
                resend_soon(&socket).map_err(failed)?;
                socket.bind(SocketAddr::new(from, 0)).map_err(failed)?;
            }
            None if self.shared.own.has(address) => return Err(DialError::OwnListener),
            None => {}
        }
        let connected = tokio::time::timeout(DIAL_TIMEOUT, socket.connect(address)).await;
        let stream = connected.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
        stream.and_then(Socket::new).map_err(failed)
    }

    async fn dial_h2(
        &self,
        address: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<(Http2Sender, impl Future<Output = ()> + use<>), DialError> {
        let socket = self.dial(address, from).await?;
        let silence = if from.is_some() { Silence::IsDeath } else { Silence::IsPatience };
        let begun = handshake(socket, Arc::clone(&self.shared.buffers), silence).await;
        begun.map_err(|error| unreachable(address, &error))
    }

    fn start_dial(
        self: Rc<Self>,
        address: SocketAddr,
        from: Option<IpAddr>,
        guard: Option<Guard>,
    ) -> watch::Receiver<Option<Result<(), DialError>>> {
        let (tell, receiver) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let outcome = tokio::time::timeout(DIAL_TIMEOUT, self.dial_h2(address, from)).await;
            let late = || unreachable(address, &io::Error::from(io::ErrorKind::TimedOut));
            let outcome = outcome.unwrap_or_else(|_| Err(late()));
            let mut peers = self.h2.borrow_mut();
            let peer = peers.entry(address).or_default();
            peer.dialling = None;
            let told = match outcome {
                Ok((sender, connection)) => {
                    tokio::task::spawn_local(async move {
                        connection.await;
                        drop(guard);
                    });
                    peer.connections.push(Mux {
                        sender,
                        streams: Rc::default(),
                        idle_since: Cell::new(None),
                    });
                    Ok(())
                }
                Err(error) => {
                    peer.failed = Some(Instant::now());
                    Err(error)
                }
            };
            let _ = tell.send(Some(told));
        });
        receiver
    }

    /// Closes what has been idle too long; called about once a second.
    pub fn sweep(&self, now: Instant) {
        self.h1.borrow_mut().retain(|_, idle| {
            idle.retain(|i| {
                !i.connection.sender.is_closed()
                    && now.saturating_duration_since(i.since) < H1_IDLE_MAX
            });
            !idle.is_empty()
        });
        self.h2.borrow_mut().retain(|_, peer| {
            peer.connections.retain(|mux| {
                if mux.streams.get() > 0 {
                    mux.idle_since.set(None);
                } else if mux.idle_since.get().is_none() {
                    mux.idle_since.set(Some(now));
                }
                let idle = mux
                    .idle_since
                    .get()
                    .map_or(Duration::ZERO, |t| now.saturating_duration_since(t));
                !mux.sender.is_closed() && idle < H2_IDLE_MAX
            });
            !peer.connections.is_empty() || peer.dialling.is_some()
        });
    }
}

impl Peer {
    /// The connection that the next request goes out on: one with room, rather without a stream that carries much, and
    /// the least busy of these.
    fn best(&self) -> Option<&Mux> {
        let load = |mux: &&Mux| (mux.is_full(), mux.sender.is_bulky(), mux.streams.get());
        self.connections.iter().filter(|mux| !mux.sender.is_closed()).min_by_key(load)
    }

    /// Whether the best connection has room for another stream.
    fn has_room(&self) -> bool {
        self.best().is_some_and(|mux| !mux.is_full())
    }

    /// Whether another connection is to be opened.
    fn wants_another(&mut self) -> bool {
        self.connections.retain(|mux| !mux.sender.is_closed());
        let Some(best) = self.best() else { return true };
        let connections_max = if best.is_full() {
            CONNECTIONS_FULL_MAX
        } else if best.sender.is_bulky() {
            CONNECTIONS_BULKY_MAX
        } else if best.streams.get() >= STREAMS_SOFT_MAX {
            CONNECTIONS_BUSY_MAX
        } else {
            return false;
        };
        let failed_lately = self.failed.is_some_and(|failed| failed.elapsed() < DIAL_AGAIN);
        self.connections.len() < connections_max && !failed_lately
    }

    /// A place on the best connection.
    fn place(&mut self) -> Option<H2> {
        let mux = self.best()?;
        let place = Rc::new(StreamPlace::new(&mux.streams));
        Some(H2 { sender: mux.sender.clone(), place })
    }
}

impl Mux {
    /// Whether it carries as many streams as the peer takes.
    fn is_full(&self) -> bool {
        let streams = self.streams.get();
        streams >= STREAMS_FEW && streams >= self.sender.streams_max()
    }
}

/// What a request came to on a connection, before any response.
#[derive(Debug)]
pub enum SendError {
    /// The connection was dead before anything was sent: here is the request again.
    NotSent(Box<Request<Body>>),
    /// The request cannot be sent to this peer as it is, nor to any other of its kind. Nothing was sent.
    Unsendable(String),
    /// The peer said that it did not process the stream.
    Refused(String),
    /// The answer to a request of HTTP/1.1 is no HTTP/1.
    NoHttp1(String),
    /// The response is one that cannot be read here, its head larger than [`HEAD_MAX`] above all. It says nothing of the peer.
    Unreadable,
    /// The peer gave no answer to HTTP/1.1, and turns out to speak HTTP/2. It says nothing of the peer.
    Misread(String),
    /// The connection broke; the request may have been executed.
    Reset(String),
    /// The caller's own body broke.
    Caller,
}

impl H1 {
    /// Sends a request and waits for the response's head; 1xx before it go to `interim`.
    ///
    /// # Errors
    /// What became of the request when there is no response.
    pub async fn send(
        &mut self,
        request: Request<Body>,
        interim: &Interim,
    ) -> Result<Response<ReceivedBody>, SendError> {
        // Of a request before, whose response overtook it.
        while self.interims.try_recv().is_ok() {}
        let tell = self.tell_interim.clone();
        let mut request = request.map(|body| PacedBody::new(body, &self.outflow));
        hyper::ext::on_informational(&mut request, move |head| {
            // More than there is room for at once are lost: they are hints.
            let _ = tell.try_send((head.status(), head.headers().clone()));
        });
        let interims = &mut self.interims;
        let mut sent = pin!(self.sender.try_send_request(request));
        let sent = poll_fn(|cx| {
            let polled = sent.as_mut().poll(cx);
            while let Poll::Ready(Some((status, fields))) = interims.poll_recv(cx) {
                interim.pass(status, &fields);
            }
            polled
        });
        let response = sent.await.map_err(http1_error)?;
        Ok(response.map(ReceivedBody::http1))
    }
}

impl H1 {
    /// The answer has ended; an upload that outlasts it may stand still for this long.
    pub fn answer_ends(&self, patience: Duration) {
        self.outflow.answer_ends(patience);
    }

    /// Whether an upload beside the answer went on since this was last asked.
    pub fn upload_moved(&self) -> bool {
        self.outflow.moved()
    }

    /// Ends the connection, whatever is still to be written on it.
    pub fn close(self) {
        self.task.abort();
    }
}

impl Drop for H1 {
    fn drop(&mut self) {
        self.outflow.answer_is_given_up();
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.place.upload.answer_is_given_up();
    }
}

impl H2 {
    /// The answer has ended; an upload that outlasts it may stand still for this long.
    pub fn answer_ends(&self, patience: Duration) {
        self.place.upload.answer_ends(patience);
    }

    /// Whether an upload beside the answer went on since this was last asked.
    pub fn upload_moved(&self) -> bool {
        self.place.upload.moved()
    }

    /// Sends a request and waits for the response's head; 1xx before it go to `interim`. Dropping the future resets
    /// the stream.
    ///
    /// # Errors
    /// What became of the request when there is no response.
    pub async fn send(
        &mut self,
        request: Request<Body>,
        interim: &Interim,
    ) -> Result<Response<ReceivedBody>, SendError> {
        let response = self.sender.send(request, interim, &self.place).await?;
        Ok(response.map(ReceivedBody::http2))
    }

    /// Sends a CONNECT and waits for the response's head, beside which what is said in the tunnel goes out.
    ///
    /// # Errors
    /// What became of the request when there is no response.
    pub async fn connect(
        &mut self,
        request: Request<Body>,
        interim: &Interim,
    ) -> Result<(Response<ReceivedBody>, SendStream<Bytes>), SendError> {
        let (response, sending) = self.sender.connect(request, interim).await?;
        Ok((response.map(ReceivedBody::http2), sending))
    }

    /// Its stream as the end of a tunnel.
    pub fn into_pipe(self, receiving: ReceivedBody, sending: SendStream<Bytes>) -> Http2Pipe {
        Http2Pipe::new(receiving, sending, self.sender.windows(), Some(Rc::clone(&self.place)))
    }
}

fn http1_error(
    mut error: hyper::client::conn::TrySendError<Request<PacedBody<Body>>>,
) -> SendError {
    if let Some(request) = error.take_message() {
        return SendError::NotSent(Box::new(request.map(PacedBody::into_inner)));
    }
    let error = error.into_error();
    if find::<crate::body::BodyError>(&error).is_some() {
        return SendError::Caller;
    }
    if error.is_parse_too_large() {
        return SendError::Unreadable;
    }
    if error.is_parse() {
        return SendError::NoHttp1(error.to_string());
    }
    SendError::Reset(error.to_string())
}

fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref())
}

fn unreachable(address: SocketAddr, error: &dyn std::fmt::Display) -> DialError {
    DialError::Unreachable(format!("{address}: {error}"))
}

/// A dial that takes longer is a failure; the policy's timeout may end it sooner.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Shorter than the keep-alive of common servers (Node.js: 5 s), so that we close first and no request meets a closing one.
const H1_IDLE_MAX: Duration = Duration::from_secs(4);
/// Of a connection to a peer: as long as hosts keep alive by pings, and kernels by keepalives.
const H2_IDLE_MAX: Duration = Duration::from_secs(60);
const IDLE_PER_ADDRESS_MAX: usize = 256;
const STREAMS_SOFT_MAX: usize = 100;
/// Fewer streams than this are within what every peer takes, so that it need not be asked.
const STREAMS_FEW: usize = 2;
/// After a dial that failed, while other connections to the peer stand.
const DIAL_AGAIN: Duration = Duration::from_secs(2);
/// Connections to one peer, while the least busy carries [`STREAMS_SOFT_MAX`] streams.
const CONNECTIONS_BUSY_MAX: usize = 4;
/// Connections to one peer, while a stream that carries much is on each of them.
const CONNECTIONS_BULKY_MAX: usize = 8;
/// Connections to one peer, while none has room for another stream.
const CONNECTIONS_FULL_MAX: usize = 32;
/// Interim responses on their way between two tasks.
const INTERIMS_WAITING_MAX: usize = 8;
/// Of a message's head, in either direction.
pub const HEAD_MAX: usize = 64 * 1024;
/// Fields of a head of HTTP/1, in either direction. hyper sets up this many places for each head that it reads.
pub const FIELDS_MAX: usize = 400;

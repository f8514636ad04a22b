//! The connections that one worker keeps open to endpoints.
//!
//! Decides which connection a request goes out on, when a new one is dialled and when an idle one is closed.
//! HTTP/1.1 connections are taken for one request at a time, the most recently used first, so that a burst's extra
//! ones grow old and are closed. HTTP/2 connections are shared: requests to a peer wait for one dial
//! instead of each starting its own, and a second connection is opened only when the first carries
//! [`STREAMS_SOFT_MAX`] streams (h2 takes one lock for a connection).
//!
//! Dead connections are found by hyper's connection task, which reads while idle, by HTTP/2 pings and by
//! `TCP_USER_TIMEOUT`; a request that meets one before it was sent comes back whole and goes out on another.
//!
//! A pool belongs to one worker and is never shared: hyper-util's pool takes one lock for all hosts.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use evenkeel_balancer::{Balancer, Guard};
use foldhash::HashMap;
use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::body::Body;
use crate::socket::Socket;
use crate::worker::LocalExecutor;

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    h1: RefCell<HashMap<SocketAddr, Vec<Idle>>>,
    h2: RefCell<HashMap<SocketAddr, Peer>>,
}

/// A connection for one request at a time; closed when dropped, kept when [put back](Pool::put_back).
#[derive(Debug)]
pub struct H1 {
    sender: http1::SendRequest<Body>,
    address: SocketAddr,
    _guard: Option<Guard>,
}

/// A shared connection, in use by one stream.
#[derive(Debug)]
pub struct H2 {
    sender: http2::SendRequest<Body>,
    streams: Rc<Cell<usize>>,
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
    }
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
}

#[derive(Debug)]
struct Mux {
    sender: http2::SendRequest<Body>,
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
}

/// Whose connection limits a dial counts against.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// The upstream's balancer, which holds its circuit.
    pub balancer: &'a Balancer,
    /// The effective limits.
    pub limits: &'a evenkeel_config::policy::Circuit,
}

impl Charge<'_> {
    fn connection(&self) -> Result<Guard, DialError> {
        self.balancer
            .circuit()
            .try_connection(self.limits.connections)
            .ok_or(DialError::CircuitOpen)
    }

    fn pending(&self) -> Result<Guard, DialError> {
        self.balancer.circuit().try_pending(self.limits.pending).ok_or(DialError::CircuitOpen)
    }
}

impl Pool {
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
        let _pending = charge.map(|c| c.pending()).transpose()?;
        let guard = charge.map(|c| c.connection()).transpose()?;
        let stream = dial(address, None).await.map_err(|e| unreachable(address, &e))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(Socket(stream)))
            .await
            .map_err(|e| unreachable(address, &io::Error::other(e)))?;
        tokio::task::spawn_local(async move {
            // Its errors reach whoever waits for a response on it.
            let _ = connection.await;
        });
        Ok(H1 { sender, address, _guard: guard })
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
                if let Some(stream) = peer.place(STREAMS_SOFT_MAX) {
                    return Ok(stream);
                }
                match &peer.dialling {
                    Some(receiver) => receiver.clone(),
                    None => {
                        let guard = match charge.map(|c| c.connection()).transpose() {
                            Ok(guard) => guard,
                            // Busy connections are better than none.
                            Err(refused) => return peer.place(usize::MAX).ok_or(refused),
                        };
                        let receiver = Rc::clone(self).start_dial(address, from, guard);
                        peer.dialling = Some(receiver.clone());
                        receiver
                    }
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
                return peers
                    .get_mut(&address)
                    .and_then(|peer| peer.place(usize::MAX))
                    .ok_or(error);
            }
        }
    }

    fn start_dial(
        self: Rc<Self>,
        address: SocketAddr,
        from: Option<IpAddr>,
        guard: Option<Guard>,
    ) -> watch::Receiver<Option<Result<(), DialError>>> {
        let (tell, receiver) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let outcome = tokio::time::timeout(DIAL_TIMEOUT, handshake_h2(address, from)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let mut peers = self.h2.borrow_mut();
            let peer = peers.entry(address).or_default();
            peer.dialling = None;
            let told = match outcome {
                Ok((sender, connection)) => {
                    tokio::task::spawn_local(async move {
                        let _ = connection.await;
                        drop(guard);
                    });
                    peer.connections.push(Mux {
                        sender,
                        streams: Rc::default(),
                        idle_since: Cell::new(None),
                    });
                    Ok(())
                }
                Err(error) => Err(unreachable(address, &error)),
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
    /// The least busy connection, unless it carries `soft_max` streams and another may be opened.
    fn place(&mut self, soft_max: usize) -> Option<H2> {
        self.connections.retain(|mux| !mux.sender.is_closed());
        let mux = self.connections.iter().min_by_key(|mux| mux.streams.get())?;
        if mux.streams.get() >= soft_max && self.connections.len() < CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        mux.streams.set(mux.streams.get() + 1);
        Some(H2 { sender: mux.sender.clone(), streams: Rc::clone(&mux.streams) })
    }
}

/// What a request came to on a connection, before any response.
#[derive(Debug)]
pub enum SendError {
    /// The connection was dead before anything was sent: here is the request again.
    NotSent(Box<Request<Body>>),
    /// The peer said that it did not process the stream.
    Refused(String),
    /// The connection broke; the request may have been executed.
    Reset(String),
    /// The caller's own body broke.
    Caller,
}

impl H1 {
    /// Sends a request and waits for the response's head.
    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(send_error)
    }
}

impl H2 {
    /// Sends a request and waits for the response's head; dropping the future resets the stream.
    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(send_error)
    }
}

fn send_error(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> SendError {
    if let Some(request) = error.take_message() {
        return SendError::NotSent(Box::new(request));
    }
    let error = error.into_error();
    if find::<crate::body::BodyError>(&error).is_some() {
        return SendError::Caller;
    }
    if let Some(h2) = find::<h2::Error>(&error) {
        let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM) && h2.is_remote();
        // A stream that fails by the peer's GOAWAY stands above the last one that the peer took on.
        if refused || (h2.is_go_away() && h2.is_remote()) {
            return SendError::Refused(h2.to_string());
        }
    }
    SendError::Reset(error.to_string())
}

fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref())
}

async fn handshake_h2(
    address: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<(http2::SendRequest<Body>, http2::Connection<TokioIo<Socket>, Body, LocalExecutor>)>
{
    let stream = dial(address, from).await?;
    http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_MAX).expect("a small constant"))
        .handshake(TokioIo::new(Socket(stream)))
        .await
        .map_err(io::Error::other)
}

async fn dial(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = tokio::time::timeout(DIAL_TIMEOUT, socket.connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the dial"))??;
    prepare(&stream)?;
    Ok(stream)
}

/// The options of every connection that carries requests: no delay, and dead peers are noticed.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

fn unreachable(address: SocketAddr, error: &io::Error) -> DialError {
    DialError::Unreachable(format!("{address}: {error}"))
}

/// A dial that takes longer is a failure; the policy's timeout may end it sooner.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Unacknowledged bytes for this long: the connection is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two signs of life on a connection that is silent.
const KEEPALIVE: Duration = Duration::from_secs(15);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the keep-alive of common servers (Node.js: 5 s), so that we close first and no request meets a closing one.
const H1_IDLE_MAX: Duration = Duration::from_secs(4);
/// Of a connection to a peer, which both ends keep alive by pings.
const H2_IDLE_MAX: Duration = Duration::from_secs(60);
const IDLE_PER_ADDRESS_MAX: usize = 256;
const STREAMS_SOFT_MAX: usize = 100;
const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Of a message's head, in either direction.
pub const HEAD_MAX: usize = 64 * 1024;
/// HTTP/2 flow control on the mesh hop.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// HTTP/2 flow control on the mesh hop.
pub const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

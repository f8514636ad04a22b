//! One accepted connection, from its first bytes to its end.
//!
//! Decides which HTTP it speaks (HTTP/2 is told by its preface, so both share a port), and when it ends before
//! its peer ends it: a head that takes longer than [`HEAD_TIMEOUT`], no request for [`IDLE_MAX`], a drain. The
//! worker's sweep looks at all connections about once a second instead of arming two timers for each request.
//!
//! RFC 9112 §6.1: a request with both a length and chunked coding may be an attempt at smuggling. hyper takes it
//! as chunked and removes the length without a word, so the bytes of the head are kept until the request
//! is parsed ([`Link::head_had_length`]), and the connection is closed after the response.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::access::Line;
use crate::body::Reply;
use crate::error::Error;
use crate::listener::Role;
use crate::passthrough::Tunnel;
use crate::pool::{CONNECTION_WINDOW, HEAD_MAX, STREAM_WINDOW};
use crate::socket::Socket;
use crate::worker::{LocalExecutor, Worker};

/// What a connection's IO, its requests and the worker's sweep know of each other.
#[derive(Debug)]
pub struct Link {
    /// The other end.
    pub peer: SocketAddr,
    /// The end that was connected to.
    pub local: SocketAddr,
    /// When the first byte of a head that is not complete arrived.
    head_since: Cell<Option<Instant>>,
    /// When the last request ended, or the connection began.
    idle_since: Cell<Instant>,
    in_flight: Cell<usize>,
    /// A request was ever served.
    served: Cell<bool>,
    /// Since when the peer has not taken what we write.
    blocked_since: Cell<Option<Instant>>,
    head: RefCell<Vec<u8>>,
    /// More of the head went by than is kept.
    overflowed: Cell<bool>,
    keep_head: bool,
    ending: Cell<Ending>,
    waker: RefCell<Option<Waker>>,
    tunnel: RefCell<Option<Tunnel>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// Finish what is in flight, tell the peer, take nothing new.
    Graceful,
    /// Close now.
    Now,
}

impl Link {
    fn new(peer: SocketAddr, local: SocketAddr, keep_head: bool, now: Instant) -> Link {
        Link {
            peer,
            local,
            head_since: Cell::new(None),
            idle_since: Cell::new(now),
            in_flight: Cell::new(0),
            served: Cell::new(false),
            blocked_since: Cell::new(None),
            overflowed: Cell::new(false),
            head: RefCell::default(),
            keep_head,
            ending: Cell::new(Ending::No),
            waker: RefCell::new(None),
            tunnel: RefCell::new(None),
        }
    }

    /// Ends the connection once what is in flight is finished.
    pub fn drain(&self) {
        self.end(Ending::Graceful);
    }

    /// Closes a connection that is too slow or idle too long.
    pub fn sweep(&self, now: Instant) {
        let past = |since: Instant, max| now.saturating_duration_since(since) >= max;
        let silent = !self.served.get() && past(self.idle_since.get(), HEAD_TIMEOUT);
        let slow = self.head_since.get().is_some_and(|since| past(since, HEAD_TIMEOUT));
        let blocked = self.blocked_since.get().is_some_and(|since| past(since, BLOCKED_MAX));
        if slow || blocked || (silent && self.in_flight.get() == 0) {
            self.end(Ending::Now);
        } else if self.in_flight.get() == 0 && past(self.idle_since.get(), IDLE_MAX) {
            self.end(Ending::Graceful);
        }
    }

    /// Whether the connection can become a tunnel: one of HTTP/1.1 can.
    pub fn can_tunnel(&self) -> bool {
        self.keep_head
    }

    /// Once the response to CONNECT is written, the connection becomes this tunnel.
    pub fn tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// Whether the head that was just parsed had a `Content-Length` (or too much went by to tell).
    pub fn head_had_length(&self) -> bool {
        let head = self.head.borrow().to_ascii_lowercase();
        let has = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
        self.overflowed.get() || !has(b"transfer-encoding") || has(b"content-length")
    }

    /// A request was parsed.
    pub fn request_begins(&self) {
        self.served.set(true);
        self.head_since.set(None);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Its response is written, or never will be.
    pub fn request_ends(&self, now: Instant) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.head_since.set(None);
        self.idle_since.set(now);
    }

    /// What the peer was told when its connection ended with a head that could not be read, or (0) that never came to its end.
    fn refused_with(&self, error: Option<&hyper::Error>) -> Option<u16> {
        match error {
            // hyper does not say which of 414 and 431 it sent.
            Some(error) if error.is_parse_too_large() => Some(431),
            Some(error) => error.is_parse().then_some(400),
            None => {
                let late = self.ending.get() == Ending::Now && self.in_flight.get() == 0;
                (late && self.head_since.get().is_some()).then_some(0)
            }
        }
    }

    fn read(&self, bytes: &[u8]) {
        if self.in_flight.get() > 0 || bytes.is_empty() {
            return;
        }
        let mut head = self.head.borrow_mut();
        if self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
            head.clear();
            self.overflowed.set(false);
        }
        if self.keep_head && head.len() + bytes.len() <= HEAD_MAX {
            head.extend_from_slice(bytes);
        } else {
            self.overflowed.set(true);
        }
    }

    fn wrote(&self, blocked: bool) {
        match (blocked, self.blocked_since.get()) {
            (true, None) => self.blocked_since.set(Some(Instant::now())),
            (false, Some(_)) => self.blocked_since.set(None),
            _ => {}
        }
    }

    fn end(&self, how: Ending) {
        if self.ending.get() != Ending::Now {
            self.ending.set(how);
        }
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, role: Rc<Role>) {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    if crate::pool::prepare(&stream).is_err() {
        return;
    }
    let version = match &*role {
        Role::Inbound => Version::HTTP_2,
        Role::Outbound | Role::Service(_) => {
            match tokio::time::timeout(HEAD_TIMEOUT, sniff(&stream)).await {
                Ok(Ok(version)) => version,
                _ => return,
            }
        }
    };
    let link = Rc::new(Link::new(peer, local, version != Version::HTTP_2, Instant::now()));
    worker.links[crate::worker::side(&role)].borrow_mut().insert(&link);
    let io = TokioIo::new(Watched { stream: Socket(stream), link: Rc::clone(&link) });
    let service = service_fn({
        let (worker, link) = (Rc::clone(&worker), Rc::clone(&link));
        move |request| answer(Rc::clone(&worker), Rc::clone(&link), Rc::clone(&role), request)
    });
    if version == Version::HTTP_2 {
        let mut connection = pin!(
            http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                // After a pause of ours many streams are found opened and cancelled at once: no reason to end the others.
                .max_pending_accept_reset_streams(STREAMS_MAX as usize)
                .max_header_list_size(u32::try_from(HEAD_MAX).expect("a small constant"))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(io, service)
        );
        until_end(&link, |cx, graceful| {
            if graceful {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await;
        return;
    }
    let mut connection = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(io, service);
    let error = until_end(&link, |cx, graceful| {
        if graceful {
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    })
    .await;
    if let Some(status) = link.refused_with(error.as_ref()) {
        refused(&worker, &link, status);
    }
    let tunnel = link.tunnel.take();
    if let Some(tunnel) = tunnel {
        let parts = connection.into_parts();
        tunnel.run(parts.io.into_inner(), &parts.read_buf).await;
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Reply>, Infallible>>>>;

/// Boxed, each side at its own size: hyper moves the future about.
fn answer(
    worker: Rc<Worker>,
    link: Rc<Link>,
    role: Rc<Role>,
    request: Request<Incoming>,
) -> Answering {
    if matches!(*role, Role::Inbound) {
        return Box::pin(async move { Ok(crate::inbound::handle(&worker, &link, request).await) });
    }
    Box::pin(async move {
        let fixed = match &*role {
            Role::Service(name) => Some(&**name),
            _ => None,
        };
        Ok(crate::outbound::handle(&worker, &link, fixed, request).await)
    })
}

/// A head that could not be read is no request to us. hyper has answered it, with a status and nothing else; we count and log it.
fn refused(worker: &Worker, link: &Link, status: u16) {
    let shared = &worker.shared;
    let reason = Error::BadRequest("the head cannot be read").reason();
    let took = link.head_since.get().map_or(Duration::ZERO, |since| since.elapsed());
    shared.other.of(worker.id).request(status, Some(reason), took);
    if shared.access.wants(true) {
        shared.access.write(Line::unreadable(status, reason, took, link.peer));
    }
}

/// Polls a connection (its second argument: end gracefully) until it ends or its link says so; returns why it broke, if it did.
async fn until_end(
    link: &Link,
    mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<hyper::Result<()>>,
) -> Option<hyper::Error> {
    let mut told = false;
    std::future::poll_fn(|cx| {
        let graceful = match link.ending.get() {
            Ending::Now => return Poll::Ready(None),
            Ending::Graceful => !std::mem::replace(&mut told, true),
            Ending::No => false,
        };
        if let Poll::Ready(outcome) = poll(cx, graceful) {
            let broke = outcome.err();
            if let Some(error) = &broke {
                tracing::debug!(peer = %link.peer, %error, "connection ended");
            }
            return Poll::Ready(broke);
        }
        let mut waker = link.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    })
    .await
}

/// Tells HTTP/2 by its preface without taking a byte off the socket.
async fn sniff(stream: &TcpStream) -> io::Result<Version> {
    const PREFACE: &[u8] = b"PRI";
    let mut first = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut first).await?;
        if n == PREFACE.len() && first == PREFACE {
            return Ok(Version::HTTP_2);
        }
        if n == 0 || !PREFACE.starts_with(&first[..n]) {
            return Ok(Version::HTTP_11);
        }
        // The socket stays readable, so there is nothing to wait for but time.
        tokio::time::sleep(SNIFF_AGAIN).await;
    }
}

/// The socket, telling its link what it reads.
struct Watched {
    stream: Socket,
    link: Rc<Link>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() && self.link.keep_head {
            self.link.read(&buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.link.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.link.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The connections of a worker, for its sweep and its drain.
#[derive(Debug, Default)]
pub struct Links(Vec<std::rc::Weak<Link>>);

impl Links {
    fn insert(&mut self, link: &Rc<Link>) {
        self.0.push(Rc::downgrade(link));
    }

    /// Looks at every connection and forgets those that ended.
    pub fn sweep(&mut self, now: Instant) {
        self.0.retain(|link| link.upgrade().inspect(|link| link.sweep(now)).is_some());
    }

    /// Ends every connection gracefully.
    pub fn drain(&self) {
        self.0.iter().filter_map(std::rc::Weak::upgrade).for_each(|link| link.drain());
    }
}

/// A peer that takes nothing of what we write for this long is gone.
const BLOCKED_MAX: Duration = Duration::from_secs(300);
/// From a head's first byte to its last, and from a connection's beginning to its first request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a request; longer than clients keep idle connections.
const IDLE_MAX: Duration = Duration::from_secs(600);
const SNIFF_AGAIN: Duration = Duration::from_millis(5);
const STREAMS_MAX: u32 = 1000;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

//! One accepted connection, from its first bytes to its end.
//!
//! Decides which HTTP it speaks (HTTP/2 is told by its preface, so both share a port) and has its requests answered.
//! When it ends before its peer ends it, [`Link`] says.
//!
//! RFC 9112 §6.1: a request with both a length and chunked coding may be an attempt at smuggling. hyper takes it
//! as chunked and removes the length without a word, so the bytes of the head are kept until the request
//! is parsed ([`Link::head_had_length`]), and the connection is closed after the response.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::TryFutureExt as _;
use http::header::{EXPECT, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use crate::access::Line;
use crate::body::{ReceivedBody, Reply};
use crate::error::Error;
use crate::http2::server::{Http2Server, StreamEnd};
use crate::http2::upkeep::Silence;
use crate::interim::{Interim, InterimCaller};
use crate::link::{Ending, HEAD_TIMEOUT, Link};
use crate::listener::Role;
use crate::outflow::PacedBody;
use crate::pool::{FIELDS_MAX, HEAD_MAX};
use crate::socket::Socket;
use crate::tunnel::TunnelEnd;
use crate::waiting::{Arrival, STARTS_MAX, WaitingRequest, WaitingRequests};
use crate::worker::Worker;

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, role: Rc<Role>) {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let link = Rc::new(Link::new(peer, local, Instant::now()));
    worker.links[crate::worker::side(&role)].borrow_mut().insert(&link);
    let version = match &*role {
        Role::Inbound => Version::HTTP_2,
        Role::Outbound | Role::Service(_) => {
            let sniffing = tokio::time::timeout(HEAD_TIMEOUT, sniff(&stream));
            match unless_closed(&link, sniffing).await {
                Some(Ok(Ok(version))) => version,
                _ => return,
            }
        }
    };
    let Ok(socket) = Socket::new(stream) else { return };
    link.speaks(version);
    if version == Version::HTTP_2 {
        serve_http2(worker, link, socket, role).await;
    } else {
        serve_http1(worker, link, socket, role).await;
    }
}

async fn serve_http2(worker: Rc<Worker>, link: Rc<Link>, socket: Socket, role: Rc<Role>) {
    let watched = Watched { stream: socket.in_turns(), link: Rc::clone(&link) };
    let pulse = watched.stream.pulse();
    let silence = match *role {
        Role::Inbound => Silence::IsDeath,
        Role::Outbound | Role::Service(_) => Silence::IsPatience,
    };
    let buffers = Arc::clone(&worker.shared.buffers);
    let accepting = Http2Server::accept(watched, pulse.clone(), buffers, silence);
    let accepting = tokio::time::timeout(HEAD_TIMEOUT, accepting);
    let Some(Ok(Ok(mut connection))) = unless_closed(&link, accepting).await else { return };
    let mut waiting = WaitingRequests::new(Arc::clone(&worker.shared.buffers));
    until_end(&link, |cx, graceful| {
        if graceful {
            connection.drain();
        }
        pulse.begin_turn();
        while !pulse.is_turn_over()
            && let Poll::Ready(came) = connection.poll_request(cx)
        {
            let came = match came {
                Some(Ok(came)) => came,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            };
            link.stream_begins();
            match waiting.push(cx, came) {
                Arrival::Waits => {}
                Arrival::TakenBack => link.stream_ends(StreamEnd::TakenBack, Instant::now()),
                Arrival::Refused => {
                    worker.shared.metrics.heads_refused.inc();
                    link.stream_ends(StreamEnd::Answered, Instant::now());
                }
            }
        }
        for _ in 0..waiting.forget_taken_back(cx) {
            link.stream_ends(StreamEnd::TakenBack, Instant::now());
        }
        for _ in 0..STARTS_MAX {
            let Some(WaitingRequest { request, reply, head }) = waiting.next() else { break };
            let (worker, link, role) = (Rc::clone(&worker), Rc::clone(&link), Rc::clone(&role));
            tokio::task::spawn_local(async move {
                let interim = Interim::new(InterimCaller::Http2(reply.clone()), expects(&request));
                let answer = answer(
                    worker,
                    Rc::clone(&link),
                    role,
                    request.map(ReceivedBody::http2),
                    interim,
                );
                let end = reply.send(answer).await;
                drop(head);
                link.stream_ends(end, Instant::now());
            });
        }
        if !waiting.is_empty() {
            // The others have their turn first.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

async fn serve_http1(worker: Rc<Worker>, link: Rc<Link>, socket: Socket, role: Rc<Role>) {
    let outflow = socket.outflow();
    // An answer whose end nothing but the connection's end tells is on its way.
    let unframed = Cell::new(false);
    let io = TokioIo::new(Watched { stream: socket, link: Rc::clone(&link) });
    let service = service_fn(|request: Request<Incoming>| {
        let caller = match request.version() {
            Version::HTTP_11 => InterimCaller::Http1(Rc::clone(&link)),
            _ => InterimCaller::Nobody,
        };
        let interim = Interim::new(caller, expects(&request));
        let knows_chunks = request.version() >= Version::HTTP_11;
        let request = request.map(ReceivedBody::http1);
        let answer =
            answer(Rc::clone(&worker), Rc::clone(&link), Rc::clone(&role), request, interim);
        let (outflow, unframed) = (Rc::clone(&outflow), &unframed);
        answer.map_ok(move |answer| {
            unframed.set(!knows_chunks && answer.body().size_hint().exact().is_none());
            answer.map(|body| PacedBody::new(body, &outflow))
        })
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .max_header_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        // A caller that ends its side after a whole request still reads the response.
        .half_close(true)
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
    if unframed.get() && (error.is_some() || link.ending() == Ending::Now) {
        // It broke, and an orderly end would say that it was whole (RFC 9112 §9.8).
        connection.into_parts().io.into_inner().stream.resets_when_closed();
    } else if let Some(tunnel) = link.take_tunnel() {
        // What the link looks at in a connection is over: no head is read on it any more.
        let parts = connection.into_parts();
        let near = TunnelEnd::accepted(parts.io.into_inner().stream, parts.read_buf);
        // Boxed: seldom, and large in every connection else.
        Box::pin(tunnel.run(near)).await;
    } else if link.was_cut_short() {
        // What is still to be written of the answer hyper has written before it ended.
        // Boxed: seldom, and large in every connection else.
        link.lingers();
        let lingering = linger(connection.into_parts().io.into_inner());
        Box::pin(unless_closed(&link, lingering)).await;
    }
}

/// Ends our side, and takes what the peer was about to send: a socket that is closed with bytes unread is reset, and the
/// reset overtakes the answer on its way to a peer that reads only once it has written (RFC 9112 §9.6).
async fn linger(mut socket: Watched) {
    let mut taken = [0; 16 * 1024];
    let take = async {
        socket.shutdown().await?;
        while tokio::time::timeout(LINGER_IDLE_MAX, socket.read(&mut taken)).await?? > 0 {}
        io::Result::Ok(())
    };
    // However it ends, the connection is closed.
    let _ = tokio::time::timeout(LINGER_MAX, take).await;
}

/// Whether a request's sender waits for leave to send its body. One without a body has nothing to wait for (RFC 9110 §10.1.1).
fn expects<B: Body>(request: &Request<B>) -> bool {
    let continues = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    request.version() > Version::HTTP_10
        && request.headers().get(EXPECT).is_some_and(continues)
        && !request.body().is_end_stream()
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Reply>, Infallible>>>>;

/// Boxed, each side at its own size: the future is moved about.
fn answer(
    worker: Rc<Worker>,
    link: Rc<Link>,
    role: Rc<Role>,
    request: Request<ReceivedBody>,
    interim: Interim,
) -> Answering {
    let request = request.map(|body| body.of_caller(&link, interim.gate()));
    if matches!(*role, Role::Inbound) {
        return Box::pin(async move {
            Ok(crate::inbound::handle(&worker, &link, request, interim).await)
        });
    }
    Box::pin(async move {
        let fixed = match &*role {
            Role::Service(name) => Some(&**name),
            _ => None,
        };
        let response = crate::outbound::handle(&worker, &link, fixed, request, interim).await;
        poll_fn(|cx| link.poll_interim_written(cx)).await;
        Ok(response)
    })
}

/// A head that could not be read is no request to us. hyper has answered it, with a status and nothing else; we count and log it.
fn refused(worker: &Worker, link: &Link, status: u16) {
    let shared = &worker.shared;
    let reason = Error::BadRequest("the head cannot be read").reason();
    let took = link.head_took();
    shared.other.of(worker.id).request(status, Some(reason), took);
    if shared.access.wants(true) {
        shared.access.write(Line::unreadable(status, reason, took, link.peer));
    }
}

/// What comes of a part of a connection's life that knows no grace, unless the connection is to be closed before.
async fn unless_closed<F: Future>(link: &Link, part: F) -> Option<F::Output> {
    let mut part = pin!(part);
    poll_fn(|cx| {
        if link.ending() == Ending::Now {
            return Poll::Ready(None);
        }
        link.served_by(cx.waker());
        part.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Polls a connection (its second argument: end gracefully) until it ends or its link says so; returns why it broke, if it did.
async fn until_end<E: Display>(
    link: &Link,
    mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<Result<(), E>>,
) -> Option<E> {
    let mut told = false;
    poll_fn(|cx| {
        let graceful = match link.ending() {
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
        link.served_by(cx.waker());
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

impl Watched {
    /// An interim response that is half written comes before anything else.
    fn poll_begun_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.link.has_begun_interim() {
            return Poll::Ready(Ok(()));
        }
        let Watched { stream, link } = self;
        link.poll_interim(cx, |cx, bytes| {
            let polled = Pin::new(&mut *stream).poll_write(cx, bytes);
            link.wrote(polled.is_pending());
            polled
        })
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.link.read(&buf.filled()[before..]);
            if self.link.ending() == Ending::Now {
                // Nobody need look at what the connection is closed for.
                buf.set_filled(before);
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
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
        ready!(self.poll_begun_interim(cx))?;
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.link.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_begun_interim(cx))?;
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.link.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has written all that it had: the place for an interim response of ours. And it does so each
    /// time that it looks at a request in flight, while it does not read: the place to see that the peer has gone.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if me.link.is_busy()
            && !me.link.is_half_closed()
            && let Poll::Ready(ended) = me.stream.poll_ended(cx)
        {
            me.link.peer_ends(ended.is_err());
        }
        let (stream, link) = (&mut me.stream, &me.link);
        ready!(link.poll_interim(cx, |cx, bytes| {
            let polled = Pin::new(&mut *stream).poll_write(cx, bytes);
            link.wrote(polled.is_pending());
            polled
        }))?;
        Pin::new(&mut me.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const SNIFF_AGAIN: Duration = Duration::from_millis(5);
/// How long a peer that goes on sending after its answer is listened to, in all and while it is silent.
const LINGER_MAX: Duration = Duration::from_secs(10);
const LINGER_IDLE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::{HeaderMap, StatusCode};
    use tokio::net::TcpListener;

    use super::*;
    use crate::body::UNREAD_MAX;
    use crate::message::headers::Found;

    #[tokio::test]
    async fn a_peer_that_does_not_take_an_interim_response_has_no_longer_than_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let now = Instant::now();
        let link = Rc::new(Link::new(address, address, now));
        let socket = Socket::new(stream).unwrap();
        let mut watched = Watched { stream: socket, link: Rc::clone(&link) };
        let mut cx = Context::from_waker(Waker::noop());
        // The socket is full, of what nobody waits to be written behind.
        while Pin::new(&mut watched.stream).poll_write(&mut cx, &[0; 64 * 1024]).is_ready() {}
        link.request_begins(Found::default());
        link.interim(StatusCode::EARLY_HINTS, &HeaderMap::new());
        assert!(Pin::new(&mut watched).poll_flush(&mut cx).is_pending());
        link.sweep(now + 2 * UNREAD_MAX);
        assert_eq!(link.ending(), Ending::Now);
    }
}

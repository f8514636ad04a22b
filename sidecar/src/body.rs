//! The bodies that pass through: [`ReceivedBody`] as it comes in, [`Body`] towards an endpoint, [`Reply`] towards the caller.
//!
//! A request's body may have to be sent again: [`Replay`] hands the caller's stream to the first attempt and
//! keeps what went by, up to a limit for each request and one for all ([`Buffers`]). A later attempt starts
//! with what is kept and goes on with the caller's stream. Once the limits are passed the kept part is
//! dropped and only the attempt that is reading goes on: the request can no longer be repeated, which
//! [`Replay::replayable`] says. The same once nobody can send it again, because the [`Replay`] that the others are readers of is gone: a
//! stream that goes on for hours keeps nothing. Two attempts never read the caller's stream at once: a copy starts only when
//! [`Replay::complete`], and after a retry only the newest reader may read on, whatever an earlier upload still does.
//!
//! A [`Reply`] carries the exchange's end: whatever happens to the body (read to the end, broken, dropped), the
//! [`Exchange`] inside sees it exactly once.
//!
//! Everything lives on one worker, hence `Rc`.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

pub use crate::buffers::Buffers;
use crate::exchange::Exchange;
use crate::http2::receive::StreamBody;
use crate::interim::ContinueGate;
use crate::link::Link;
use crate::message::trailers;
use crate::tunnel::Tunnel;

/// The body of a message that is being received.
#[derive(Debug)]
pub struct ReceivedBody {
    source: BodySource,
    /// Its sender waits for leave to send it.
    gate: Option<Rc<ContinueGate>>,
    /// The connection that it comes on, of a caller.
    _due: Option<BodyDue>,
}

/// A caller's body that is still to come: its connection does not end before.
#[derive(Debug)]
struct BodyDue(Rc<Link>);

impl BodyDue {
    fn new(link: &Rc<Link>) -> BodyDue {
        link.bodies_due.set(link.bodies_due.get() + 1);
        BodyDue(Rc::clone(link))
    }
}

impl Drop for BodyDue {
    fn drop(&mut self) {
        self.0.bodies_due.set(self.0.bodies_due.get() - 1);
    }
}

#[derive(Debug)]
enum BodySource {
    Http1(Incoming),
    Http2(StreamBody),
    None,
}

impl ReceivedBody {
    /// The body of a message of HTTP/1.
    pub fn http1(body: Incoming) -> ReceivedBody {
        ReceivedBody { source: BodySource::Http1(body), gate: None, _due: None }
    }

    /// The body of a message of HTTP/2.
    pub fn http2(body: StreamBody) -> ReceivedBody {
        ReceivedBody { source: BodySource::Http2(body), gate: None, _due: None }
    }

    /// None.
    pub fn none() -> ReceivedBody {
        ReceivedBody { source: BodySource::None, gate: None, _due: None }
    }

    /// Its sender need not wait for leave any more.
    pub fn without_gate(self) -> ReceivedBody {
        ReceivedBody { gate: None, ..self }
    }

    /// It comes from a caller on this connection, which is given leave to send it by this gate, if it waits for that.
    pub fn of_caller(self, link: &Rc<Link>, gate: Option<&Rc<ContinueGate>>) -> ReceivedBody {
        let due = (!self.is_end_stream()).then(|| BodyDue::new(link));
        ReceivedBody { gate: gate.cloned(), _due: due, ..self }
    }

    /// Whether what was read so far is all of it, as far as that is known without reading on.
    fn is_read(&self) -> bool {
        match &self.source {
            // A length that has passed is the end; nothing can follow it.
            BodySource::Http1(body) => body.is_end_stream() || body.size_hint().exact() == Some(0),
            BodySource::Http2(body) => body.is_end_stream(),
            BodySource::None => true,
        }
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gate) = &self.gate {
            ready!(gate.poll_open(cx));
            self.gate = None;
        }
        match &mut self.source {
            BodySource::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(BodyError::Source))),
            BodySource::Http2(body) => Pin::new(body).poll_frame(cx),
            BodySource::None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Http1(body) => body.is_end_stream(),
            BodySource::Http2(body) => body.is_end_stream(),
            BodySource::None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Http1(body) => body.size_hint(),
            BodySource::Http2(body) => body.size_hint(),
            BodySource::None => SizeHint::with_exact(0),
        }
    }
}

/// A request's body on its way to an endpoint.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// The caller's stream, sent once.
    Stream(ReceivedBody),
    /// The caller's stream, kept so that it can be sent again.
    Replay(Replay),
}

/// Why a body ended before its time.
#[derive(Debug)]
pub enum BodyError {
    /// The message of HTTP/1 that it is read from broke.
    Source(hyper::Error),
    /// The stream of HTTP/2 that it is read from broke.
    Stream(h2::Error),
    /// Nothing came for `policy.idle_timeout`.
    Idle,
    /// The request was sent again, and that attempt reads the stream now.
    Superseded,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Source(error) => write!(f, "the sender's stream broke: {error}"),
            BodyError::Stream(error) => write!(f, "the sender's stream broke: {error}"),
            BodyError::Idle => f.write_str("no bytes within policy.idle_timeout"),
            BodyError::Superseded => f.write_str("a later attempt sends the request's body"),
        }
    }
}

impl std::error::Error for BodyError {}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Stream(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|f| f.map(trailers::pass)))
            }
            Body::Replay(replay) => replay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Stream(incoming) => incoming.is_end_stream(),
            Body::Replay(replay) => replay.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Stream(incoming) => incoming.size_hint(),
            Body::Replay(replay) => replay.size_hint(),
        }
    }
}

/// A request's body that is kept while it passes, for as long as the first of these lives; those that it gives out
/// ([`Replay::again`]) read it.
#[derive(Debug)]
pub struct Replay {
    kept: Rc<RefCell<Kept>>,
    reader: u32,
    next: usize,
    ended: bool,
}

#[derive(Debug)]
struct Kept {
    source: ReceivedBody,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    max: usize,
    complete: bool,
    /// The caller's stream broke: no attempt can be whole any more.
    broken: bool,
    /// Some of the body went by without being kept.
    lost: bool,
    /// The caller sent all of it.
    ended: bool,
    /// When the caller last sent some of it.
    moved: Instant,
    /// It is the caller that is waited for, not the endpoint.
    awaited: bool,
    /// The newest reader: only that one may read the caller's stream.
    newest: u32,
    /// How many of the chunks that one has read.
    read: usize,
    /// There will be no further attempt.
    settled: bool,
    buffers: Arc<Buffers>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.buffers.give_back(self.bytes);
    }
}

impl Replay {
    /// Keeps up to `max` bytes of `source`.
    pub fn new(source: ReceivedBody, max: usize, buffers: Arc<Buffers>, now: Instant) -> Replay {
        let kept = Kept {
            source,
            chunks: Vec::new(),
            trailers: None,
            bytes: 0,
            max,
            complete: false,
            broken: false,
            lost: false,
            ended: false,
            moved: now,
            awaited: true,
            newest: OWNER,
            read: 0,
            settled: false,
            buffers,
        };
        Replay { kept: Rc::new(RefCell::new(kept)), reader: OWNER, next: 0, ended: false }
    }

    /// A further reader, from the beginning. Only while [`Replay::replayable`].
    pub fn again(&self) -> Replay {
        let reader = {
            let mut kept = self.kept.borrow_mut();
            kept.newest += 1;
            kept.read = 0;
            kept.newest
        };
        Replay { kept: Rc::clone(&self.kept), reader, next: 0, ended: false }
    }

    /// Whether another attempt can still send the whole body.
    pub fn replayable(&self) -> bool {
        let kept = self.kept.borrow();
        !kept.lost && !kept.broken && kept.source.gate.as_ref().is_none_or(|gate| !gate.ended())
    }

    /// Whether the whole body is kept, so that a copy can be sent beside the first.
    pub fn complete(&self) -> bool {
        self.kept.borrow().complete
    }

    /// Whether the caller broke its own upload.
    pub fn broken(&self) -> bool {
        self.kept.borrow().broken
    }

    /// Until when the endpoint has time for the response's head: it is given `timeout` from the moment that the body last
    /// went on, and while it is the caller that is waited for, until that has sent nothing for `idle`.
    pub fn response_due(&self, now: Instant, timeout: Duration, idle: Duration) -> Instant {
        let kept = self.kept.borrow();
        let callers_turn = !kept.ended && !kept.broken && kept.awaited;
        if callers_turn && now.saturating_duration_since(kept.moved) < idle {
            return now + timeout;
        }
        kept.moved + timeout
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.kept.borrow_mut();
        if let Some(chunk) = kept.chunks.get(self.next) {
            self.next += 1;
            let chunk = chunk.clone();
            if self.reader == kept.newest {
                kept.read = self.next;
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if kept.complete {
            if !self.ended {
                self.ended = true;
                if let Some(trailers) = &kept.trailers {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
                }
            }
            return Poll::Ready(None);
        }
        if self.reader != kept.newest {
            // An upload that went on after its response came early: its request was sent again meanwhile.
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        kept.let_go_of_what_was_read();
        let polled = Pin::new(&mut kept.source).poll_frame(cx);
        kept.awaited = polled.is_pending();
        match ready!(polled) {
            Some(Ok(frame)) => {
                let frame = trailers::pass(frame);
                kept.moved = Instant::now();
                if let Some(data) = frame.data_ref() {
                    kept.keep(data);
                    self.next = kept.chunks.len();
                    kept.read = self.next;
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    self.ended = true;
                }
                // Not when the announced length has passed: in HTTP/2 trailers may still follow it.
                if frame.is_trailers() || kept.source.is_end_stream() {
                    kept.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                kept.broken = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                kept.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end(&self) -> bool {
        let kept = self.kept.borrow();
        if kept.complete {
            self.next >= kept.chunks.len() && (self.ended || kept.trailers.is_none())
        } else {
            kept.chunks.is_empty() && kept.source.is_end_stream()
        }
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let ahead: u64 = kept.chunks.iter().skip(self.next).map(|chunk| chunk.len() as u64).sum();
        if kept.complete {
            return SizeHint::with_exact(ahead);
        }
        let rest = kept.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(ahead + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(ahead + upper);
        }
        hint
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if self.reader == OWNER {
            let mut kept = self.kept.borrow_mut();
            kept.settled = true;
            kept.let_go_of_what_was_read();
        }
    }
}

impl Kept {
    fn keep(&mut self, data: &Bytes) {
        if self.lost || data.is_empty() {
            return;
        }
        let cost = data.len() + CHUNK_COST;
        if self.bytes + cost <= self.max + CHUNK_COST && self.buffers.take(cost) {
            self.bytes += cost;
            self.chunks.push(apart(data));
        } else {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.chunks = Vec::new();
        self.buffers.give_back(self.bytes);
        self.bytes = 0;
    }

    /// Keeps nothing any more, once what is kept has been sent and nobody is to send it again.
    fn let_go_of_what_was_read(&mut self) {
        if self.settled && !self.lost && !self.complete && self.read == self.chunks.len() {
            self.lose();
        }
    }

    fn finish(&mut self) {
        // A body that was lost cannot be complete: there is nothing to send a second time.
        self.complete = !self.lost;
        self.ended = true;
    }
}

/// Bytes that are going to be kept for a while: without the rest of the buffer that they were read into, where that is most of it.
pub fn apart(data: &Bytes) -> Bytes {
    if data.len() < APART_BELOW { Bytes::copy_from_slice(data) } else { data.clone() }
}

/// Of the buffers that connections are read into, which are of 16 KiB or more, a piece of this size is a good part.
const APART_BELOW: usize = 8 * 1024;
/// How long a caller may leave an answer of ours unread.
pub const UNREAD_MAX: Duration = Duration::from_secs(300);
/// The number of the [`Replay`] that gives out the readers, whose numbers are higher.
const OWNER: u32 = 0;
/// What a kept chunk costs beside its bytes.
const CHUNK_COST: usize = 64;

/// A response's body on its way to the caller.
#[derive(Debug)]
pub enum Reply {
    /// None.
    Empty,
    /// Ours: a problem.
    Full(Option<Bytes>),
    /// The endpoint's, with the exchange that ends when it does.
    Stream(ReceivedBody, Box<Exchange>),
    /// To a caller of HTTP/2: no body but the far end of a tunnel, which takes over its stream, and what the caller says on that.
    Tunnel(Box<Tunnel>, ReceivedBody),
}

impl Reply {
    /// A body of ours.
    pub fn full(bytes: Bytes) -> Reply {
        Reply::Full(Some(bytes))
    }

    /// How long the caller may leave it unread.
    pub fn patience(&self) -> Duration {
        match self {
            Reply::Empty | Reply::Full(_) | Reply::Tunnel(..) => UNREAD_MAX,
            Reply::Stream(_, exchange) => exchange.idle_timeout(),
        }
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Reply::Empty | Reply::Tunnel(..) => Poll::Ready(None),
            Reply::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Stream(incoming, exchange) => match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let frame = trailers::pass(frame);
                    exchange.progress();
                    if let Some(trailers) = frame.trailers_ref() {
                        exchange.trailers(trailers);
                    }
                    // Nobody asks again after the last frame.
                    if frame.is_trailers() || incoming.is_read() {
                        exchange.finish();
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(error))) => {
                    exchange.broken();
                    Poll::Ready(Some(Err(error)))
                }
                Poll::Ready(None) => {
                    exchange.finish();
                    Poll::Ready(None)
                }
                Poll::Pending if exchange.poll_idle(cx).is_ready() => {
                    exchange.idled(incoming.size_hint().exact().is_some());
                    Poll::Ready(Some(Err(BodyError::Idle)))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Empty => true,
            Reply::Full(bytes) => bytes.is_none(),
            Reply::Stream(incoming, _) => incoming.is_end_stream(),
            Reply::Tunnel(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Empty => SizeHint::with_exact(0),
            Reply::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Reply::Stream(incoming, _) => incoming.size_hint(),
            Reply::Tunnel(..) => SizeHint::default(),
        }
    }
}

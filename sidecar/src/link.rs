//! What an accepted connection's IO, its requests and the worker's sweep know of each other.
//!
//! Decides when a connection ends before its peer ends it: a head that takes longer than [`HEAD_TIMEOUT`], no request
//! for [`IDLE_MAX`], a peer that leaves a response unread for longer than its policy lets it stand still, a drain, or
//! more streams taken back than callers take back, or the size of a chunk that never ends. A graceful end is asked of the peer, and a peer need not do what it is
//! asked: [`GRACE_MAX`] later the connection is closed if nothing is owed on it. The worker's sweep looks at all connections about once a second
//! instead of arming two timers for each request.
//!
//! A stream that its peer resets before the response is work for nothing, and cheap to ask for ("rapid reset",
//! CVE-2023-44487). Callers do take requests back, a few at a time as copies lose, or all at once as an application
//! stops; so it is the rest that counts: when within [`TAKEN_BACK_WINDOW`] more than [`TAKEN_BACK_MAX`] streams and
//! more than half of all were taken back, the connection takes no more and ends with what it carries. A peer with a
//! reason loses nothing by it: it dials again. One that goes on is cut off as soon as it has taken back as many again,
//! which is more than it can have had under way when it was told.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, StatusCode, Version};

use crate::body::UNREAD_MAX;
use crate::head_bytes::HeadBytes;
use crate::http2::server::StreamEnd;
use crate::interim::INTERIMS_MAX;
use crate::message::framing::{BodyLength, StatedLength};
use crate::message::headers::Found;
use crate::socket_owner::SocketOwner;
use crate::tunnel::Tunnel;

mod links;

pub use links::Links;

/// An accepted connection.
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
    /// Streams of HTTP/2 whose answers are not written to their end.
    answering: Cell<usize>,
    /// Bodies of requests that are still to come, or to be read; some outlast the answer.
    pub bodies_due: Cell<usize>,
    /// A request was ever served.
    served: Cell<bool>,
    /// All is said, and it is only kept open so that the peer can read it.
    lingering: Cell<bool>,
    /// Since when the peer has not taken what we write, and how long it may.
    blocked_since: Cell<Option<Instant>>,
    blocked_max: Cell<Duration>,
    head: RefCell<HeadBytes>,
    /// The head of the request in flight may have had a length.
    had_length: Cell<bool>,
    http1: Cell<bool>,
    /// The peer has ended its side, and may still read ours: when it is looked whether it is there at all, and how long after the
    /// last look that is.
    half_closed: Cell<Option<(Instant, Duration)>>,
    /// A request waits for its response's head, so interim responses may come before it.
    head_due: Cell<bool>,
    /// Interim responses that wait for the connection to have written what came before, and who waits for them.
    interim: RefCell<BytesMut>,
    interim_waker: RefCell<Option<Waker>>,
    /// One of them is half written.
    interim_begun: Cell<bool>,
    /// Interim responses that the request in flight has had.
    interims: Cell<u32>,
    streams: Cell<StreamCounts>,
    ending: Cell<Ending>,
    /// Since when the sweep has known that it is to end gracefully, and nothing is owed.
    graceful_since: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
    tunnel: RefCell<Option<Box<Tunnel>>>,
}

/// Streams of a connection in the current window.
#[derive(Debug, Clone, Copy)]
struct StreamCounts {
    since: Instant,
    ended: u32,
    taken_back: u32,
}

/// How a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    No,
    /// Finish what is in flight, tell the peer, take nothing new.
    Graceful,
    /// Close now.
    Now,
}

impl Link {
    /// A connection that was just accepted; until it is known better, one of HTTP/1.1.
    pub fn new(peer: SocketAddr, local: SocketAddr, now: Instant) -> Link {
        Link {
            peer,
            local,
            head_since: Cell::new(None),
            idle_since: Cell::new(now),
            in_flight: Cell::new(0),
            answering: Cell::new(0),
            bodies_due: Cell::new(0),
            served: Cell::new(false),
            lingering: Cell::new(false),
            blocked_since: Cell::new(None),
            blocked_max: Cell::new(UNREAD_MAX),
            head: RefCell::default(),
            had_length: Cell::new(false),
            http1: Cell::new(true),
            half_closed: Cell::new(None),
            head_due: Cell::new(false),
            interim: RefCell::default(),
            interim_waker: RefCell::default(),
            interim_begun: Cell::new(false),
            interims: Cell::new(0),
            streams: Cell::new(StreamCounts { since: now, ended: 0, taken_back: 0 }),
            ending: Cell::new(Ending::No),
            graceful_since: Cell::new(None),
            waker: RefCell::new(None),
            tunnel: RefCell::new(None),
        }
    }

    /// What its peer speaks has been told from its first bytes.
    pub fn speaks(&self, version: Version) {
        self.http1.set(version != Version::HTTP_2);
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
        let blocked =
            self.blocked_since.get().is_some_and(|since| past(since, self.blocked_max.get()));
        if let Some((due, after)) = self.half_closed.get()
            && now >= due
            && self.in_flight.get() > 0
        {
            self.end_if_abandoned(now, (after * 2).min(LOOK_AFTER_MAX));
        }
        if slow || blocked || (silent && self.in_flight.get() == 0) {
            self.end(Ending::Now);
        } else if self.ending.get() == Ending::Graceful {
            // Counted from when nothing was owed any more.
            let since = self.graceful_since.get().filter(|_| !self.owes()).unwrap_or(now);
            self.graceful_since.set(Some(since));
            if past(since, GRACE_MAX) {
                self.end(Ending::Now);
            }
        } else if self.in_flight.get() == 0 && past(self.idle_since.get(), IDLE_MAX) {
            self.end(Ending::Graceful);
        }
    }

    /// Whether a request is being served or still comes, or some of an answer is still to be written.
    pub fn owes(&self) -> bool {
        let counts = [&self.in_flight, &self.answering, &self.bodies_due];
        counts.iter().any(|count| count.get() > 0)
            || self.blocked_since.get().is_some()
            || self.lingering.get()
    }

    /// Whether it could end now and nobody would miss anything: it has never been asked for anything, or has said all.
    fn knows_no_grace(&self) -> bool {
        self.lingering.get() || !self.served.get()
    }

    /// All is said; from now on it is only kept open so that the peer can read it.
    pub fn lingers(&self) {
        self.lingering.set(true);
    }

    /// How it is to end, as of now.
    pub fn ending(&self) -> Ending {
        self.ending.get()
    }

    /// Whether the connection can become a tunnel: one of HTTP/1.1 can.
    pub fn can_tunnel(&self) -> bool {
        self.http1.get()
    }

    /// Once the response to CONNECT is written, the connection becomes this tunnel.
    pub fn tunnel(&self, tunnel: Box<Tunnel>) {
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// The tunnel that it is to become: what comes from now on is no HTTP.
    pub fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.take().inspect(|_| {
            self.http1.set(false);
            *self.head.borrow_mut() = HeadBytes::default();
        })
    }

    /// Whether the head of the request in flight had a `Content-Length`, whatever hyper made of it; true where that is
    /// not known.
    pub fn head_had_length(&self) -> bool {
        self.had_length.get()
    }

    /// Whether the connection ended before all that its peer was going to send came: some of a body, or of a head that
    /// was refused.
    pub fn was_cut_short(&self) -> bool {
        let head = self.head.borrow();
        self.ending.get() != Ending::Now && (head.body_is_due() || head.has_begun())
    }

    /// A request was parsed.
    pub fn request_begins(&self, found: Found) {
        if self.http1.get() {
            let body = match found.length {
                _ if found.coded => Some(BodyLength::Chunked),
                StatedLength::None => Some(BodyLength::Unstated),
                StatedLength::Once(length) => Some(BodyLength::Known(length)),
                StatedLength::Unclear => None,
            };
            self.had_length.set(self.head.borrow_mut().request_begins(body));
        }
        self.served.set(true);
        self.head_due.set(true);
        self.interims.set(0);
        self.head_since.set(None);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// The response to the request in flight begins: no interim response can come before it any more. `unread_max`: how
    /// long the peer may leave it unread.
    pub fn response_begins(&self, unread_max: Duration) {
        // Others on the same connection may have longer, until their answers are written.
        let is_alone = self.in_flight.get() <= 1 && self.answering.get() <= 1;
        let others = if is_alone { Duration::ZERO } else { self.blocked_max.get() };
        self.blocked_max.set(unread_max.max(others));
        self.head_due.set(false);
    }

    /// Its response is written, or never will be.
    pub fn request_ends(&self, now: Instant) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.head_since.set(None);
        self.idle_since.set(now);
    }

    /// A stream of HTTP/2 is going to be answered.
    pub fn stream_begins(&self) {
        self.answering.set(self.answering.get() + 1);
    }

    /// A stream of HTTP/2 ended.
    pub fn stream_ends(&self, how: StreamEnd, now: Instant) {
        self.answering.set(self.answering.get() - 1);
        let mut counts = self.streams.get();
        if now.saturating_duration_since(counts.since) >= TAKEN_BACK_WINDOW {
            counts = StreamCounts { since: now, ended: 0, taken_back: 0 };
        }
        counts.ended += 1;
        counts.taken_back += u32::from(how == StreamEnd::TakenBack);
        self.streams.set(counts);
        let excessive = counts.taken_back > TAKEN_BACK_MAX && counts.taken_back > counts.ended / 2;
        if excessive && self.ending.get() != Ending::No {
            self.end(Ending::Now);
        } else if excessive {
            self.streams.set(StreamCounts { since: now, ended: 0, taken_back: 0 });
            tracing::warn!(
                peer = %self.peer, taken_back = counts.taken_back,
                "a connection ends: its peer takes back most of what it asks for; look what it gives up on, or why it floods"
            );
            self.end(Ending::Graceful);
        }
    }

    /// Writes an interim response of HTTP/1.1 before the response to the request in flight.
    pub fn interim(&self, status: StatusCode, fields: &HeaderMap) {
        let before = self.interims.replace(self.interims.get() + 1);
        if !self.head_due.get() || before >= INTERIMS_MAX {
            return;
        }
        let mut text = self.interim.borrow_mut();
        let reason = status.canonical_reason().unwrap_or_default();
        text.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in fields {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                text.extend_from_slice(part);
            }
        }
        text.extend_from_slice(b"\r\n");
        drop(text);
        self.wake();
    }

    /// Writes what interim responses wait; only between two messages.
    pub fn poll_interim(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let mut text = self.interim.borrow_mut();
        while !text.is_empty() {
            match write(cx, &text) {
                Poll::Ready(Ok(written)) => {
                    text.advance(written);
                    self.interim_begun.set(!text.is_empty());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Some(waker) = self.interim_waker.borrow_mut().take() {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether an interim response is half written.
    pub fn has_begun_interim(&self) -> bool {
        self.interim_begun.get()
    }

    /// Ready once no interim response waits: the final one must not overtake it.
    pub fn poll_interim_written(&self, cx: &Context<'_>) -> Poll<()> {
        if self.interim.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.interim_waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What the peer was told when its connection ended with a head that could not be read, or (0) that never came to its end.
    pub fn refused_with(&self, error: Option<&hyper::Error>) -> Option<u16> {
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

    /// For how long the head has been coming.
    pub fn head_took(&self) -> Duration {
        self.head_since.get().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Bytes came.
    pub fn read(&self, bytes: &[u8]) {
        if !self.http1.get() || bytes.is_empty() {
            return;
        }
        let mut head = self.head.borrow_mut();
        head.read(bytes);
        if head.has_padded_size() {
            tracing::debug!(peer = %self.peer, "a connection ends: the size of a chunk is padded without an end");
            self.end(Ending::Now);
        }
        // An upload may outlast its request's response: its bytes are no head.
        if self.in_flight.get() == 0 && self.head_since.get().is_none() && head.has_begun() {
            self.head_since.set(Some(Instant::now()));
        }
    }

    /// The peer has ended its side. It may have gone, or wait for the response (RFC 9112 §9.6): a caller on this machine
    /// that has closed its end is gone; of one elsewhere only a write can tell. `broken`: it ended both sides.
    pub fn peer_ends(&self, broken: bool) {
        let now = Instant::now();
        self.half_closed.set(Some((now, LOOK_AFTER)));
        if broken {
            self.end(Ending::Now);
        } else {
            self.end_if_abandoned(now, LOOK_AFTER);
        }
    }

    /// Whether the end of the peer's side is known.
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.get().is_some()
    }

    /// Whether a request of HTTP/1.1 is in flight, while which nobody else looks whether the peer is still there.
    pub fn is_busy(&self) -> bool {
        self.http1.get() && self.in_flight.get() > 0
    }

    /// A caller that is still there is looked at again later, less and less often: each look is a question to the kernel.
    fn end_if_abandoned(&self, now: Instant, again: Duration) {
        self.half_closed.set(Some((now + again, again)));
        let local = self.peer.ip().to_canonical() == self.local.ip().to_canonical()
            || self.peer.ip().is_loopback();
        if local && matches!(SocketOwner::is_held(self.peer, self.local), Ok(false)) {
            self.end(Ending::Now);
        }
    }

    /// Bytes were written, or (`blocked`) could not be.
    pub fn wrote(&self, blocked: bool) {
        match (blocked, self.blocked_since.get()) {
            (true, None) => self.blocked_since.set(Some(Instant::now())),
            (false, Some(_)) => self.blocked_since.set(None),
            _ => {}
        }
    }

    /// Remembers the task that serves it, to be woken when it is to end.
    pub fn served_by(&self, waker: &Waker) {
        let mut own = self.waker.borrow_mut();
        if !own.as_ref().is_some_and(|own| own.will_wake(waker)) {
            *own = Some(waker.clone());
        }
    }

    fn end(&self, how: Ending) {
        if self.ending.get() != Ending::Now {
            self.ending.set(how);
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// From a head's first byte to its last, and from a connection's beginning to its first request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a request; longer than clients keep idle connections.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long a peer that was told that its connection ends may keep it open with nothing on it.
const GRACE_MAX: Duration = Duration::from_secs(10);
/// After a caller has ended its side, and after each look whether it is there: twice as long each time.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(60);
/// Streams that a peer may take back within [`TAKEN_BACK_WINDOW`], however few it lets be answered.
const TAKEN_BACK_MAX: u32 = 1000;
const TAKEN_BACK_WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn link(now: Instant) -> Link {
        let address = "127.0.0.1:1".parse().unwrap();
        let link = Link::new(address, address, now);
        link.speaks(Version::HTTP_2);
        link
    }

    /// A stream that ends like this.
    fn stream(link: &Link, end: StreamEnd, now: Instant) {
        link.stream_begins();
        link.stream_ends(end, now);
    }

    #[test]
    fn who_takes_back_most_of_what_it_asks_is_told_to_go_and_a_hedging_peer_is_not() {
        let now = Instant::now();
        let hedging = link(now);
        for n in 0..100_000 {
            let end = if n % 3 == 0 { StreamEnd::TakenBack } else { StreamEnd::Answered };
            stream(&hedging, end, now);
        }
        assert_eq!(hedging.ending(), Ending::No);

        let slow = link(now);
        for n in 0..10 * TAKEN_BACK_MAX {
            let when = now + TAKEN_BACK_WINDOW * n / TAKEN_BACK_MAX;
            stream(&slow, StreamEnd::TakenBack, when);
        }
        assert_eq!(
            slow.ending(),
            Ending::No,
            "as many as callers give up on while an application is stopped"
        );

        let rapid = link(now);
        let more = || stream(&rapid, StreamEnd::TakenBack, now);
        (0..TAKEN_BACK_MAX).for_each(|_| more());
        assert_eq!(rapid.ending(), Ending::No);
        more();
        assert_eq!(rapid.ending(), Ending::Graceful);
        (0..TAKEN_BACK_MAX).for_each(|_| more());
        assert_eq!(rapid.ending(), Ending::Graceful, "so many may have been under way");
        more();
        assert_eq!(rapid.ending(), Ending::Now, "it does not do as it is told");
    }

    #[test]
    fn who_does_not_end_when_told_is_closed_once_nothing_is_owed() {
        let now = Instant::now();
        let link = link(now);
        link.request_begins(Found::default());
        link.stream_begins();
        link.drain();
        let mut later = now;
        let mut sweep_later = || {
            (0..2).for_each(|_| {
                link.sweep(later);
                later += GRACE_MAX;
            });
            link.ending()
        };
        assert_eq!(sweep_later(), Ending::Graceful, "a request is in flight");
        link.request_ends(now);
        assert_eq!(sweep_later(), Ending::Graceful, "the end of its answer is not written");
        link.stream_ends(StreamEnd::Answered, now);
        assert_eq!(sweep_later(), Ending::Now);
    }

    #[test]
    fn a_caller_that_has_ended_its_side_is_looked_at_less_and_less_often() {
        let now = Instant::now();
        let link = link(now);
        link.request_begins(Found::default());
        link.peer_ends(false);
        let mut looks = 0;
        for second in 1..=300 {
            let before = link.half_closed.get();
            link.sweep(now + Duration::from_secs(second));
            looks += u32::from(link.half_closed.get() != before);
        }
        assert!((5..=12).contains(&looks), "{looks}");
    }

    #[test]
    fn an_answer_that_is_still_being_written_keeps_the_time_it_has() {
        let now = Instant::now();
        let link = link(now);
        for unread_max in [UNREAD_MAX, Duration::from_secs(2)] {
            link.stream_begins();
            link.request_begins(Found::default());
            link.response_begins(unread_max);
            // Its endpoint has sent all of it; the caller has not got it yet.
            link.request_ends(now);
        }
        assert_eq!(link.blocked_max.get(), UNREAD_MAX);
    }

    #[test]
    fn interim_responses_are_written_between_messages_and_never_after_the_final_head() {
        let link = link(Instant::now());
        link.request_begins(Found::default());
        let fields = HeaderMap::from_iter([(http::header::LINK, "</a>".parse().unwrap())]);
        link.interim(StatusCode::EARLY_HINTS, &fields);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(link.poll_interim_written(&cx).is_pending());
        let mut written = Vec::new();
        // A socket that takes ten bytes at a time, and is full in between.
        let mut full = false;
        while link
            .poll_interim(&mut cx, |_, bytes| {
                full = !full;
                if !full {
                    return Poll::Pending;
                }
                written.extend_from_slice(&bytes[..bytes.len().min(10)]);
                Poll::Ready(Ok(bytes.len().min(10)))
            })
            .is_pending()
        {}
        assert_eq!(written, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        assert!(link.poll_interim_written(&cx).is_ready());
        link.response_begins(UNREAD_MAX);
        link.interim(StatusCode::EARLY_HINTS, &fields);
        let late = link.poll_interim(&mut cx, |_, _| panic!("it would stand after the final head"));
        assert!(late.is_ready());
    }
}

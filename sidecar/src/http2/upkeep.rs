//! What every HTTP/2 connection of ours needs besides its streams: to know that its peer lives, and windows that fit.
//!
//! There is one PING for both: it is sent when the connection begins, when a stream reads so fast that its window may be what it waits
//! for ([`WindowGrowth`]), and to another host of the mesh when nothing came from it for [`PING_INTERVAL`]. A host from which nothing came
//! for another interval while a PING is out is dead; whatever comes, not the answer alone, says that it lives, so a
//! full pipe is no death.
//!
//! Only hosts of ours are asked because they are silent. A server of gRPC as it comes, on whatever implementation, takes a PING
//! while nothing moves for an offence unless five minutes have passed since the last, and ends the connection with the third
//! (ENHANCE_YOUR_CALM, `too_many_pings`): a watch that is quiet for half a minute would be cut. It forgives all offences once it sends
//! a part of a message, so an application is measured only when more has come from it since its last answer ([`MEASURED_AGAIN`]).

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use h2::{Ping, PingPong};
use tokio::time::Sleep;

use super::PING_INTERVAL;
use super::receive::ArrivingBodies;
use super::window::{StreamProgress, WINDOW_BASE, WindowGrowth};
use crate::body::Buffers;
use crate::socket::Pulse;

/// The windows of one connection's streams, shared by all that read from it.
#[derive(Debug)]
pub struct StreamWindows {
    growth: RefCell<WindowGrowth>,
    /// A PING is worth sending.
    measure: Cell<bool>,
    /// The window has changed and the peer has not been told.
    untold: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Streams that carry much.
    bulky: Cell<u32>,
    arriving: ArrivingBodies,
    buffers: Arc<Buffers>,
}

/// One direction of one stream, as its connection sees it.
#[derive(Debug)]
pub struct StreamShare {
    windows: Rc<StreamWindows>,
    progress: StreamProgress,
    bytes: u64,
    received: bool,
}

impl StreamShare {
    /// A stream begins to be received.
    pub fn receiving(windows: &Rc<StreamWindows>) -> StreamShare {
        if windows.growth.borrow_mut().stream_begins() {
            windows.untold.set(true);
            windows.wake();
        }
        let mut share = StreamShare::sending(windows);
        share.received = true;
        share
    }

    /// A stream begins to be sent on.
    pub fn sending(windows: &Rc<StreamWindows>) -> StreamShare {
        let (windows, progress) = (Rc::clone(windows), StreamProgress::default());
        StreamShare { windows, progress, bytes: 0, received: false }
    }

    /// How many bytes were read from it, or written to it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes were read from it, or written to it.
    pub fn moved(&mut self, bytes: usize) {
        let before = self.bytes;
        self.bytes += bytes as u64;
        if before <= BULKY && self.bytes > BULKY {
            self.windows.bulky.set(self.windows.bulky.get() + 1);
        }
        if !self.received {
            return;
        }
        let mut growth = self.windows.growth.borrow_mut();
        let limited = growth.read(&mut self.progress, bytes);
        if limited && !self.windows.measure.get() && growth.due(Instant::now()) {
            drop(growth);
            self.windows.measure.set(true);
            self.windows.wake();
        }
    }
}

impl Drop for StreamShare {
    fn drop(&mut self) {
        if self.bytes > BULKY {
            self.windows.bulky.set(self.windows.bulky.get() - 1);
        }
        if self.received {
            self.windows.growth.borrow_mut().stream_ends();
        }
    }
}

impl StreamWindows {
    /// Whether a stream that carries much is among the connection's.
    pub fn is_bulky(&self) -> bool {
        self.bulky.get() > 0
    }

    /// The bodies that arrive.
    pub fn arriving(&self) -> &ArrivingBodies {
        &self.arriving
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for StreamWindows {
    fn drop(&mut self) {
        self.buffers.give_back(self.growth.borrow().paid());
    }
}

/// The upkeep of one connection; polled with it.
#[derive(Debug)]
pub struct Upkeep {
    windows: Rc<StreamWindows>,
    pings: PingPong,
    ping_is_out: bool,
    /// What had come when the last PING was answered.
    answered_at: u64,
    /// What had come when it was last taken from h2.
    taken_at: u64,
    pulse: Rc<Pulse>,
    /// Nothing came from the peer in the last interval.
    silent: bool,
    silence: Silence,
    tick: Pin<Box<Sleep>>,
}

/// What it means that a peer is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Another host: it is asked, and dead if it does not answer.
    IsDeath,
    /// A caller or an application, which may have nothing to say, read only when it likes, or be stopped: its kernel says whether it
    /// lives ([`crate::socket`]), and a request that waits for it has a time of its own.
    IsPatience,
}

impl Upkeep {
    /// A connection has just begun. `pings`: its own, which h2 gives out once. `pulse`: whether its socket reads.
    pub fn new(
        pings: PingPong,
        pulse: Rc<Pulse>,
        buffers: Arc<Buffers>,
        silence: Silence,
    ) -> Upkeep {
        let now = Instant::now();
        let windows = StreamWindows {
            growth: RefCell::new(WindowGrowth::new(now)),
            measure: Cell::new(true),
            untold: Cell::new(false),
            waker: RefCell::new(None),
            bulky: Cell::new(0),
            arriving: ArrivingBodies::default(),
            buffers,
        };
        Upkeep {
            windows: Rc::new(windows),
            pings,
            ping_is_out: false,
            answered_at: 0,
            taken_at: 0,
            pulse,
            silent: false,
            silence,
            tick: Box::pin(tokio::time::sleep(PING_INTERVAL)),
        }
    }

    /// For the connection's streams.
    pub fn windows(&self) -> &Rc<StreamWindows> {
        &self.windows
    }

    /// Does what is due. `set_windows` tells the peer a stream's window, unless it has not yet acknowledged the last one:
    /// then it is told later; and the connection's. Ready: the peer is dead; else the task is woken when something is due.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        set_windows: impl FnOnce(u32, u32) -> bool,
    ) -> Poll<()> {
        self.remember(cx);
        if self.pulse.bytes() - self.taken_at >= TAKEN_EVERY {
            self.taken_at = self.pulse.bytes();
            self.windows.arriving.take_all();
        }
        while self.tick.as_mut().poll(cx).is_ready() {
            // The timer's own clock, which stands still while a test holds it.
            let now = tokio::time::Instant::now().into_std();
            let due = self.tick.deadline().into_std();
            self.tick.as_mut().reset((now + PING_INTERVAL).into());
            // After a pause of our own what the peer sent meanwhile is still to be read.
            if self.pulse.take() || now.saturating_duration_since(due) > OWN_PAUSE {
                self.silent = false;
            } else if self.silence == Silence::IsDeath {
                if std::mem::replace(&mut self.silent, true) {
                    return Poll::Ready(());
                }
                self.ping();
            }
            let unused = self.windows.growth.borrow_mut().unused(now);
            if let Some(paid) = unused {
                self.windows.buffers.give_back(paid);
                self.windows.untold.set(true);
            }
        }
        if self.windows.measure.take() && self.may_measure() {
            self.ping();
        }
        if self.ping_is_out && self.pings.poll_pong(cx).is_ready() {
            self.ping_is_out = false;
            self.answered_at = self.pulse.bytes();
            let buffers = &self.windows.buffers;
            let pay = |bytes| buffers.take_half(bytes);
            if self.windows.growth.borrow_mut().answered(Instant::now(), pay) {
                self.windows.untold.set(true);
            }
        }
        if self.windows.untold.take() {
            let growth = self.windows.growth.borrow();
            let told = set_windows(growth.window(), growth.connection_window());
            self.windows.untold.set(!told);
        }
        Poll::Pending
    }

    fn may_measure(&self) -> bool {
        let came = self.pulse.bytes() - self.answered_at;
        self.silence == Silence::IsDeath || self.answered_at == 0 || came >= MEASURED_AGAIN
    }

    fn ping(&mut self) {
        if !self.ping_is_out && self.pings.send_ping(Ping::opaque()).is_ok() {
            self.ping_is_out = true;
            self.windows.growth.borrow_mut().sent(Instant::now());
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.windows.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

/// A stream that has carried this much in one direction is no small one: others had better not wait behind it.
const BULKY: u64 = 1024 * 1024;
/// Bytes that have to come from who is no host of ours between an answer and the next PING: more than the frames that are no part
/// of a message.
const MEASURED_AGAIN: u64 = WINDOW_BASE as u64 / 2;
/// Between two looks at what has come on streams that nobody reads: the smallest frames of so many bytes cost less than half of
/// [`FRAME_OVERHEAD_MAX`](super::FRAME_OVERHEAD_MAX).
const TAKEN_EVERY: u64 = 1024 * 1024;
/// A tick that comes this late says that we were paused ourselves.
const OWN_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http2::client::handshake;
    use crate::socket::Socket;

    /// Answers SETTINGS and PINGs and says nothing else; counts the PINGs.
    async fn quiet_peer(listener: TcpListener, pings: Rc<Cell<u32>>) {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; usize::from(head[2]) | usize::from(head[1]) << 8];
            stream.read_exact(&mut payload).await.unwrap();
            let is_ack = head[4] & 1 == 1;
            if matches!(head[3], 4 | 6) && !is_ack {
                pings.set(pings.get() + u32::from(head[3] == 6));
                let length = if head[3] == 6 { 8 } else { 0 };
                let answer = [&[0, 0, length, head[3], 1, 0, 0, 0, 0], &payload[..length.into()]];
                stream.write_all(&answer.concat()).await.unwrap();
            }
        }
    }

    /// How many PINGs a peer has within five minutes in which nothing else moves.
    async fn pings_in_quiet(silence: Silence) -> u32 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let pings = Rc::new(Cell::new(0));
        tokio::task::spawn_local(quiet_peer(listener, Rc::clone(&pings)));
        let refused = prometheus::IntCounter::new("refused", "refused").expect("a name");
        let buffers = Arc::new(Buffers::new(1 << 20, refused));
        let socket = Socket::new(stream).unwrap();
        let (_sender, serve) = handshake(socket, buffers, silence).await.unwrap();
        let serving = tokio::task::spawn_local(serve);
        for _ in 0..3000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            // What was sent has its time to be answered.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
        assert!(!serving.is_finished(), "it answers, so it lives");
        pings.get()
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn only_another_host_is_asked_because_it_is_silent() {
        // A server of gRPC ends the connection with the third.
        assert_eq!(pings_in_quiet(Silence::IsPatience).await, 1, "the first round trip");
        assert!(pings_in_quiet(Silence::IsDeath).await > 10);
    }
}

//! What every HTTP/2 connection of ours needs besides its streams: to know that its peer lives, and windows that fit.
//!
//! There is one PING for both: it is sent when the connection begins, when nothing came from the peer for [`PING_INTERVAL`], and when a stream
//! reads so fast that its window may be what it waits for ([`WindowGrowth`]). A peer from which nothing came for
//! another interval while a PING is out is dead; whatever comes, not the answer alone, says that it lives, so a full
//! pipe is no death.

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
use super::window::{StreamProgress, WindowGrowth};
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
    pulse: Rc<Pulse>,
    /// Nothing came from the peer in the last interval.
    silent: bool,
    silence: Silence,
    tick: Pin<Box<Sleep>>,
}

/// What it means that a peer answers no PING.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It is dead: another host, or an application that is waited for.
    IsDeath,
    /// It may be stopped, or read only when it likes, as callers do: its kernel says whether it lives ([`crate::socket`]).
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
            buffers,
        };
        Upkeep {
            windows: Rc::new(windows),
            pings,
            ping_is_out: false,
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

    /// Does what is due. `set_window` tells the peer a stream window, unless it has not yet acknowledged the last one:
    /// then it is told later. Ready: the peer is dead; else the task is woken when something is due.
    pub fn poll(&mut self, cx: &mut Context<'_>, set_window: impl FnOnce(u32) -> bool) -> Poll<()> {
        self.remember(cx);
        while self.tick.as_mut().poll(cx).is_ready() {
            let (now, due) = (Instant::now(), self.tick.deadline().into_std());
            self.tick.as_mut().reset((now + PING_INTERVAL).into());
            // After a pause of our own what the peer sent meanwhile is still to be read.
            if self.pulse.take() || now.saturating_duration_since(due) > OWN_PAUSE {
                self.silent = false;
            } else if std::mem::replace(&mut self.silent, true) && self.silence == Silence::IsDeath
            {
                return Poll::Ready(());
            } else {
                self.ping();
            }
            let unused = self.windows.growth.borrow_mut().unused(now);
            if let Some(paid) = unused {
                self.windows.buffers.give_back(paid);
                self.windows.untold.set(true);
            }
        }
        if self.windows.measure.take() {
            self.ping();
        }
        if self.ping_is_out && self.pings.poll_pong(cx).is_ready() {
            self.ping_is_out = false;
            let buffers = &self.windows.buffers;
            let pay = |bytes| buffers.take_window(bytes);
            if self.windows.growth.borrow_mut().answered(Instant::now(), pay) {
                self.windows.untold.set(true);
            }
        }
        if self.windows.untold.take() && !set_window(self.windows.growth.borrow().window()) {
            self.windows.untold.set(true);
        }
        Poll::Pending
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
/// A tick that comes this late says that we were paused ourselves.
const OWN_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

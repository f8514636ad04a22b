//! A TCP connection as HTTP is written to it and read from it.
//!
//! Two things are decided here (how soon a lost segment is sent again between hosts: [`crate::tcp_options`]).
//!
//! **What is written together**: hyper hands over a message's head and body as separate slices; for large bodies one
//! `writev` saves a copy, for the usual small ones copying them together and sending one slice is cheaper, in the
//! kernel above all.
//!
//! **When a silent peer is dead.** The kernel gives up after `TCP_USER_TIMEOUT` on a peer that acknowledges nothing,
//! but it counts the time that the peer's window is closed as well (tcp(7)): a reader that pauses longer would lose
//! its download. So while a write is blocked, the limit is moved ahead as long as acknowledgements keep coming: a
//! peer that does not read answers each probe of its window, and the limit itself makes the kernel probe before it
//! runs out. Who answers none for [`DEAD_AFTER`] is gone. How long a living peer may leave a write blocked is not
//! decided here but by who writes: a policy's `idle_timeout`.

use std::cell::Cell;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::frame_turns::FrameTurns;
use crate::outflow::Outflow;

/// A connection that carries requests.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    pulse: Rc<Pulse>,
    outflow: Rc<Outflow>,
    /// Reads in a row that had something.
    reads: u32,
    /// How much is read in a turn, of HTTP/2.
    turns: Option<FrameTurns>,
    /// Since when a write has been blocked, and when that is looked at next.
    blocked: Option<Blocked>,
}

#[derive(Debug)]
struct Blocked {
    since: Instant,
    look: Pin<Box<Sleep>>,
}

/// What has been read from a connection.
#[derive(Debug, Default)]
pub struct Pulse {
    felt: Cell<bool>,
    bytes: Cell<u64>,
    turn_over: Cell<bool>,
}

impl Pulse {
    /// Whether something was read since this was last asked.
    pub fn take(&self) -> bool {
        self.felt.take()
    }

    /// The connection has its turn: its task is polled anew.
    pub fn begin_turn(&self) {
        self.turn_over.set(false);
    }

    /// Whether others have their turn now. What the library has read already is left for the next.
    pub fn is_turn_over(&self) -> bool {
        self.turn_over.get()
    }

    /// How many bytes were read since the connection began.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

impl Socket {
    /// Sets the options of a connection that carries requests: nothing waits to be sent together, unsent bytes queue in
    /// the process and not in the kernel, and a dead peer is noticed.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
        socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        socket.set_tcp_keepalive(&keepalive)?;
        Ok(Socket {
            stream,
            pulse: Rc::default(),
            outflow: Rc::default(),
            reads: 0,
            turns: None,
            blocked: None,
        })
    }

    /// The same for frames of HTTP/2, which are read in turns with the others of a worker.
    pub fn in_turns(self) -> Socket {
        Socket { turns: Some(FrameTurns::new(Instant::now())), ..self }
    }

    /// Tells whether anything is read.
    pub fn pulse(&self) -> Rc<Pulse> {
        Rc::clone(&self.pulse)
    }

    /// Paces the bodies that are written to it.
    pub fn outflow(&self) -> Rc<Outflow> {
        Rc::clone(&self.outflow)
    }

    /// Ready once the peer has ended its side, or (an error) the connection, as far as can be seen without reading on;
    /// until then the task is woken when there is something to read.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut first = [0; 1];
        match ready!(self.stream.poll_peek(cx, &mut ReadBuf::new(&mut first))) {
            Ok(0) => Poll::Ready(Ok(())),
            // The next request is there already; what comes behind it cannot be seen.
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// When it is closed, its peer is told that it broke and not that it ended (RST), and what is still to be sent is not.
    pub fn resets_when_closed(&self) {
        // Fails only where the connection has ended.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// A write was tried: while it is blocked, the peer's death is told from its slowness.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.outflow.moves();
            if self.blocked.take().is_some_and(|blocked| blocked.since.elapsed() > LOOK_AGAIN) {
                // Fails only where the connection has ended, which the next read or write says.
                let _ = SockRef::from(&self.stream).set_tcp_user_timeout(Some(DEAD_AFTER));
            }
            return polled;
        }
        let blocked = self.blocked.get_or_insert_with(|| Blocked {
            since: Instant::now(),
            look: Box::pin(tokio::time::sleep(LOOK_AGAIN)),
        });
        while blocked.look.as_mut().poll(cx).is_ready() {
            if crate::tcp_options::since_last_ack(&self.stream)? < HEARD_WITHIN {
                let limit = blocked.since.elapsed() + HEARD_WITHIN;
                SockRef::from(&self.stream).set_tcp_user_timeout(Some(limit))?;
            }
            blocked.look.as_mut().reset((Instant::now() + LOOK_AGAIN).into());
        }
        polled
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let is_over = |turns: &mut FrameTurns| me.reads > 0 && turns.handled(Instant::now());
        if me.reads >= READS_MAX || me.turns.as_mut().is_some_and(is_over) {
            me.reads = 0;
            me.pulse.turn_over.set(true);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let piece = me.turns.as_ref().map_or(usize::MAX, FrameTurns::piece);
        let polled = if piece < buf.remaining() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(piece));
            let polled = Pin::new(&mut me.stream).poll_read(cx, &mut part);
            let came = part.filled().len();
            buf.advance(came);
            polled
        } else {
            Pin::new(&mut me.stream).poll_read(cx, buf)
        };
        if polled.is_ready() {
            me.pulse.felt.set(true);
            let came = buf.filled().len() - before;
            me.pulse.bytes.set(me.pulse.bytes.get() + came as u64);
            if let Some(turns) = &mut me.turns {
                turns.read(Instant::now(), me.reads == 0, came);
            }
            me.reads += 1;
        } else {
            me.reads = 0;
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let polled = match slices {
            [only] => stream.poll_write(cx, only),
            _ if length > TOGETHER_MAX => stream.poll_write_vectored(cx, slices),
            _ => {
                let mut together = [0; TOGETHER_MAX];
                let mut at = 0;
                for slice in slices {
                    together[at..at + slice.len()].copy_from_slice(slice);
                    at += slice.len();
                }
                stream.poll_write(cx, &together[..at])
            }
        };
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outflow.flushed();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Up to this many bytes are copied together.
const TOGETHER_MAX: usize = 2048;
/// Reads in a row before the others have their turn: what a peer sends in small pieces costs more to handle than to read.
const READS_MAX: u32 = 8;
/// A peer that acknowledges nothing for this long is dead, whether bytes are on their way or its window is closed.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// While a write is blocked: who has acknowledged something within this time lives, and for this long more. The
/// kernel probes a closed window before its limit runs out, so death is noticed within twice this.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// Between two looks at a blocked write.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Bytes that may wait in the kernel to be sent. More would only delay what is small behind what is large: frames of
/// other streams cannot pass what the kernel has.
const UNSENT_MAX: u32 = 128 * 1024;
/// Between two signs of life on a connection that is silent.
const KEEPALIVE: Duration = Duration::from_secs(10);

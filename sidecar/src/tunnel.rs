//! A tunnel: two connections joined, byte by byte, until both ends have ended.
//!
//! CONNECT opens one (RFC 9110 §9.3.6): to one instance of a service, or to a host outside the mesh. What is said in it is not looked
//! at, so nothing in it is balanced, repeated or hedged; what is decided here is that it ends as its ends do, and when it is ended.
//!
//! - **Each direction ends by itself.** FIN and END_STREAM are the same thing: the end of one side is passed on behind what came
//!   before it, and the other direction goes on for as long as it likes.
//! - **A reset is never an end.** RST and RST_STREAM are the same thing: whatever breaks one end breaks the other, and so does everything that ends
//!   a tunnel before its time: nothing said for `idle_timeout`, this process's end, a task that is dropped. An end that is dropped
//!   before it is whole resets its connection, so there is no way to forget it.
//! - **Back-pressure.** A direction holds one piece and reads the next when that is written. The directions do not wait for each other: an application that sends without reading,
//!   to a caller that does the same, must not lock both.
//! - **Idle** is a tunnel in which *neither* direction moved. One that is full because somebody does not read does not move either.
//!
//! Why not tokio's `copy_bidirectional`: it takes an error of one side for a reason to close the other, which reads as the end of
//! what was said, and knows no idle time.
//!
//! The ends are a socket or a stream of HTTP/2 ([`TunnelEnd`]), and that is all that a tunnel knows of them. Between hosts it is a stream of the shared connection.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use evenkeel_balancer::Guard;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::Instant;

use crate::exchange::Exchange;
use crate::http2::pipe::Http2Pipe;
use crate::socket::Socket;

/// One end of a tunnel. Dropped before both sides of it have ended it resets its connection.
#[derive(Debug)]
pub enum TunnelEnd {
    /// A connection that carries nothing else.
    Socket(SocketEnd),
    /// A stream of a connection of HTTP/2.
    Stream(Box<Http2Pipe>),
}

/// A TCP connection that a tunnel ends in.
#[derive(Debug)]
pub struct SocketEnd {
    socket: Socket,
    /// What was read from it before the tunnel began.
    early: Bytes,
    whole: bool,
    /// Of a connection that was dialled: its place in the circuit.
    _guard: Option<Guard>,
}

/// An end has broken.
#[derive(Debug)]
struct EndBroken;

/// The far end of a tunnel, and the exchange that ends with it.
#[derive(Debug)]
pub struct Tunnel {
    far: TunnelEnd,
    exchange: Box<Exchange>,
    idle_timeout: Duration,
}

/// Which way bytes go through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelWay {
    /// From who asked for it.
    Out,
    /// Towards who asked for it.
    Back,
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnding {
    /// Both sides have said that they have nothing more to say.
    Whole,
    /// The connection of who asked for it broke.
    NearBroke,
    /// The other one did.
    FarBroke,
    /// Nothing moved for too long.
    Idle,
}

impl Tunnel {
    /// A tunnel to this end. `idle_timeout`: how long it may stand still.
    pub fn new(far: TunnelEnd, exchange: Box<Exchange>, idle_timeout: Duration) -> Tunnel {
        Tunnel { far, exchange, idle_timeout }
    }

    /// Joins it with who asked for it, until both have ended.
    pub async fn run(self, near: TunnelEnd) {
        let Tunnel { far, mut exchange, idle_timeout } = self;
        let moved = |way, bytes| exchange.tunnel_moved(way, bytes);
        let ending = join(near, far, idle_timeout, moved).await;
        exchange.tunnel_ends(ending);
    }
}

/// Passes on what each end says to the other.
async fn join(
    mut near: TunnelEnd,
    mut far: TunnelEnd,
    idle_timeout: Duration,
    mut moved: impl FnMut(TunnelWay, usize),
) -> TunnelEnding {
    let (mut out, mut back) = (Flow::default(), Flow::default());
    let mut last_moved = Instant::now();
    let mut idle = pin!(tokio::time::sleep(idle_timeout));
    poll_fn(|cx| {
        let mut has_moved = false;
        let mut count = |way, bytes| {
            has_moved = true;
            moved(way, bytes);
        };
        let outwards = out.poll(cx, &mut near, &mut far, |bytes| count(TunnelWay::Out, bytes));
        if let Poll::Ready(Err(broke)) = outwards {
            return Poll::Ready(broke.ending(TunnelEnding::NearBroke, TunnelEnding::FarBroke));
        }
        let backwards = back.poll(cx, &mut far, &mut near, |bytes| count(TunnelWay::Back, bytes));
        if let Poll::Ready(Err(broke)) = backwards {
            return Poll::Ready(broke.ending(TunnelEnding::FarBroke, TunnelEnding::NearBroke));
        }
        if outwards.is_ready() && backwards.is_ready() {
            near.is_whole();
            far.is_whole();
            return Poll::Ready(TunnelEnding::Whole);
        }
        if near.poll_reset(cx).is_ready() {
            return Poll::Ready(TunnelEnding::NearBroke);
        }
        if far.poll_reset(cx).is_ready() {
            return Poll::Ready(TunnelEnding::FarBroke);
        }
        if has_moved {
            last_moved = Instant::now();
        }
        // One timer, looked at when it rings and not set anew with every piece.
        while idle.as_mut().poll(cx).is_ready() {
            let left = idle_timeout.saturating_sub(last_moved.elapsed());
            if left.is_zero() {
                return Poll::Ready(TunnelEnding::Idle);
            }
            idle.as_mut().reset(Instant::now() + left);
        }
        Poll::Pending
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read and not written.
    piece: Bytes,
    state: FlowState,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FlowState {
    #[default]
    Open,
    /// All was read.
    Read,
    /// The other side knows that it was all.
    Ended,
}

/// Which end of a direction broke.
enum FlowBroke {
    Source,
    Sink,
}

impl FlowBroke {
    fn ending(&self, source: TunnelEnding, sink: TunnelEnding) -> TunnelEnding {
        match self {
            FlowBroke::Source => source,
            FlowBroke::Sink => sink,
        }
    }
}

impl Flow {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TunnelEnd,
        to: &mut TunnelEnd,
        mut moved: impl FnMut(usize),
    ) -> Poll<Result<(), FlowBroke>> {
        loop {
            let before = self.piece.len();
            if before > 0 {
                ready!(to.poll_write(cx, &mut self.piece)).map_err(|EndBroken| FlowBroke::Sink)?;
                moved(before - self.piece.len());
                continue;
            }
            match self.state {
                FlowState::Open => match ready!(from.poll_read(cx)) {
                    Ok(Some(piece)) => self.piece = piece,
                    Ok(None) => self.state = FlowState::Read,
                    Err(EndBroken) => return Poll::Ready(Err(FlowBroke::Source)),
                },
                FlowState::Read => {
                    ready!(to.poll_end(cx)).map_err(|EndBroken| FlowBroke::Sink)?;
                    self.state = FlowState::Ended;
                    moved(0);
                }
                FlowState::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl TunnelEnd {
    /// A connection that was accepted, with what was read from it already.
    pub fn accepted(socket: Socket, early: Bytes) -> TunnelEnd {
        TunnelEnd::Socket(SocketEnd { socket, early, whole: false, _guard: None })
    }

    /// A connection that was dialled, with its place in the circuit.
    pub fn dialled(socket: Socket, guard: Option<Guard>) -> TunnelEnd {
        TunnelEnd::Socket(SocketEnd { socket, early: Bytes::new(), whole: false, _guard: guard })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, EndBroken>> {
        match self {
            TunnelEnd::Socket(end) => end.poll_read(cx),
            TunnelEnd::Stream(pipe) => pipe.poll_read(cx).map_err(|_| EndBroken),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), EndBroken>> {
        match self {
            TunnelEnd::Socket(end) => {
                let written = ready!(Pin::new(&mut end.socket).poll_write(cx, &bytes[..]));
                let written = written.map_err(|_| EndBroken)?;
                drop(bytes.split_to(written));
                Poll::Ready(Ok(()))
            }
            TunnelEnd::Stream(pipe) => pipe.poll_write(cx, bytes).map_err(|_| EndBroken),
        }
    }

    /// Says that nothing more comes.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndBroken>> {
        match self {
            TunnelEnd::Socket(end) => {
                Pin::new(&mut end.socket).poll_shutdown(cx).map_err(|_| EndBroken)
            }
            TunnelEnd::Stream(pipe) => Poll::Ready(pipe.end().map_err(|_| EndBroken)),
        }
    }

    /// Ready once it is reset, where that can be seen without reading or writing.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            TunnelEnd::Socket(_) => Poll::Pending,
            TunnelEnd::Stream(pipe) => pipe.poll_reset(cx),
        }
    }

    /// Both of its sides have ended.
    fn is_whole(&mut self) {
        match self {
            TunnelEnd::Socket(end) => end.whole = true,
            TunnelEnd::Stream(pipe) => pipe.is_whole(),
        }
    }
}

impl SocketEnd {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, EndBroken>> {
        if !self.early.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.early))));
        }
        // Made when it is needed and gone when nothing comes: most tunnels are silent most of the time.
        let mut piece = BytesMut::with_capacity(PIECE_MAX);
        let read = pin!(self.socket.read_buf(&mut piece)).poll(cx);
        let read = ready!(read).map_err(|_| EndBroken)?;
        Poll::Ready(Ok(match read {
            0 => None,
            // A small one would keep the whole of its room for as long as it waits.
            _ if read < PIECE_MAX / 4 => Some(Bytes::copy_from_slice(&piece)),
            _ => Some(piece.freeze()),
        }))
    }
}

impl Drop for SocketEnd {
    fn drop(&mut self) {
        if !self.whole {
            self.socket.resets_when_closed();
        }
    }
}

/// What a direction holds: as much as a frame of HTTP/2.
const PIECE_MAX: usize = 16 * 1024;

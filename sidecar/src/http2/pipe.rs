//! A stream of HTTP/2 as one end of a tunnel (RFC 9113 §8.5): DATA both ways, END_STREAM for FIN and RST_STREAM for RST.
//!
//! What is read is given back to the stream's window when it is taken, and nothing is taken before there is room for it on the
//! other side: who does not read holds a window's bytes and no more, as with any [body](super::receive). Room to send is asked for
//! only when there is something to send ([`super::send`]).
//!
//! A pipe that is dropped before [`Http2Pipe::is_whole`] resets its stream: half of what was said never passes for all of it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::client::StreamPlace;
use super::upkeep::{StreamShare, StreamWindows};
use crate::body::ReceivedBody;

/// Both directions of a stream that carries a tunnel.
#[derive(Debug)]
pub struct Http2Pipe {
    receiving: ReceivedBody,
    sending: SendStream<Bytes>,
    share: StreamShare,
    whole: bool,
    /// Of a stream that was opened here: its place among those of its connection.
    _place: Option<Rc<StreamPlace>>,
}

/// The stream was reset, or its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipeBroken;

impl Http2Pipe {
    /// A stream on which the answer to CONNECT has been sent, or has come.
    pub fn new(
        receiving: ReceivedBody,
        sending: SendStream<Bytes>,
        windows: &Rc<StreamWindows>,
        place: Option<Rc<StreamPlace>>,
    ) -> Http2Pipe {
        let share = StreamShare::sending(windows);
        Http2Pipe { receiving, sending, share, whole: false, _place: place }
    }

    /// The next bytes that its peer sent; `None`: it has ended its side. Frames other than DATA have no place on it.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, PipeBroken>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.receiving).poll_frame(cx)) else {
                return Poll::Ready(Ok(None));
            };
            let data = frame.map_err(|_| PipeBroken)?.into_data().map_err(|_| PipeBroken)?;
            if !data.is_empty() {
                return Poll::Ready(Ok(Some(data)));
            }
        }
    }

    /// Sends as much of the bytes as there is room for, at least one.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), PipeBroken>> {
        self.sending.reserve_capacity(bytes.len());
        while self.sending.capacity() == 0 {
            if !matches!(ready!(self.sending.poll_capacity(cx)), Some(Ok(_))) {
                return Poll::Ready(Err(PipeBroken));
            }
        }
        let part = bytes.split_to(bytes.len().min(self.sending.capacity()));
        self.share.moved(part.len());
        Poll::Ready(self.sending.send_data(part, false).map_err(|_| PipeBroken))
    }

    /// Ends this side.
    pub fn end(&mut self) -> Result<(), PipeBroken> {
        self.sending.send_data(Bytes::new(), true).map_err(|_| PipeBroken)
    }

    /// Ready once its peer has reset it, also while nothing is read or written.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sending.poll_reset(cx).map(drop)
    }

    /// Both sides have ended.
    pub fn is_whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Http2Pipe {
    fn drop(&mut self) {
        if !self.whole {
            self.sending.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

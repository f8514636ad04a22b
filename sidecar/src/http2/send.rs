//! A body on its way out on a stream.
//!
//! One chunk is taken from the body, room for it is waited for, and only then is the next one taken: who does not read
//! makes us hold one chunk. Room is asked for only when there is something to send: what is reserved and not used is
//! taken from the other streams of a peer whose connection window is small.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;
use tokio::time::Sleep;

use super::upkeep::{StreamShare, StreamWindows};
use crate::body::BodyError;

/// Sends a body to its end.
#[derive(Debug)]
pub struct SendBody<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Taken from the body, not sent; whether it is the last.
    chunk: Option<(Bytes, bool)>,
    /// How long the peer may leave no room.
    patience: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
    share: StreamShare,
}

/// Why a body was not sent to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendBodyError {
    /// It broke on the way to us; the stream is reset.
    Source,
    /// The peer reset the stream, or the connection ended.
    Stream,
    /// The peer left no room for too long; the stream is reset.
    Blocked,
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> SendBody<B> {
    /// Sends `body` on a stream whose head was sent. `patience`: how long the peer may leave no room for more.
    pub fn new(
        body: B,
        stream: SendStream<Bytes>,
        patience: Duration,
        windows: &Rc<StreamWindows>,
    ) -> SendBody<B> {
        let share = StreamShare::sending(windows);
        SendBody { body, stream, chunk: None, patience, blocked: None, share }
    }

    /// Sends of the chunk that was taken what there is room for. Whether that was the last of the body.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, SendBodyError>> {
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => {
                    return Poll::Ready(Err(SendBodyError::Stream));
                }
                Poll::Pending => {
                    let patience = self.patience;
                    let blocked =
                        self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(blocked.as_mut().poll(cx));
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(SendBodyError::Blocked));
                }
            }
        }
        self.blocked = None;
        let (mut data, last) = self.chunk.take().expect("only called with a chunk");
        let room = self.stream.capacity();
        if data.len() > room {
            // What h2 has beyond its room it would only keep.
            let part = data.split_to(room);
            self.chunk = Some((data, last));
            self.share.moved(part.len());
            return Poll::Ready(match self.stream.send_data(part, false) {
                Ok(()) => Ok(false),
                Err(_) => Err(SendBodyError::Stream),
            });
        }
        self.share.moved(data.len());
        let sent = self.stream.send_data(data, last);
        Poll::Ready(sent.map(|()| last).map_err(|_| SendBodyError::Stream))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendBodyError>> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(SendBodyError::Stream));
            }
            if self.chunk.is_some() {
                if ready!(self.poll_chunk(cx))? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    let ended = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(ended.map_err(|_| SendBodyError::Stream));
                }
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(SendBodyError::Source));
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() && !self.body.is_end_stream() => {}
                Ok(data) if data.is_empty() => {
                    let ended = self.stream.send_data(data, true);
                    return Poll::Ready(ended.map_err(|_| SendBodyError::Stream));
                }
                Ok(data) => {
                    self.stream.reserve_capacity(data.len());
                    self.chunk = Some((data, self.body.is_end_stream()));
                }
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    self.stream.reserve_capacity(0);
                    let sent = self.stream.send_trailers(trailers);
                    return Poll::Ready(sent.map_err(|_| SendBodyError::Stream));
                }
            }
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> Future for SendBody<B> {
    type Output = Result<(), SendBodyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_send(cx)
    }
}

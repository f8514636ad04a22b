//! A body on its way out on a stream.
//!
//! One chunk is taken from the body, room for it is waited for, and only then is the next one taken: who does not read
//! makes us hold one chunk. Room is asked for only when there is something to send: what is reserved and not used is
//! taken from the other streams of a peer whose connection window is small.
//!
//! Small chunks that are there together, or that come while there is no room, go out as one frame ([`GATHERED_MAX`]): each frame
//! costs its reader the same however little is in it. A small chunk that comes alone is sent at once.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body as HttpBody;
use tokio::time::Sleep;

use super::upkeep::{StreamShare, StreamWindows};
use crate::body::BodyError;

/// Sends a body to its end.
#[derive(Debug)]
pub struct SendBody<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Taken from the body, not sent.
    chunk: Bytes,
    /// What was taken behind it.
    behind: Option<Behind>,
    /// How long the peer may leave no room.
    patience: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
    share: StreamShare,
}

/// What follows a chunk.
#[derive(Debug)]
enum Behind {
    /// A chunk that is too large to be sent with it.
    Chunk(Bytes),
    /// The end.
    End,
    /// Trailers, and the end.
    Trailers(HeaderMap),
    /// Nothing: it broke on its way to us.
    Broken,
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
        SendBody { body, stream, chunk: Bytes::new(), behind: None, patience, blocked: None, share }
    }

    /// How many bytes it has sent.
    pub fn sent(&self) -> u64 {
        self.share.bytes()
    }

    /// Takes a chunk from the body, and what is small and there already behind it.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.behind.is_none() && self.chunk.len() < GATHERED_MAX {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return };
            let data = match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => return self.behind = Some(Behind::End),
                Some(Err(_)) => return self.behind = Some(Behind::Broken),
                Some(Ok(Ok(data))) => data,
                Some(Ok(Err(frame))) => {
                    self.behind = frame.into_trailers().ok().map(Behind::Trailers);
                    continue;
                }
            };
            if self.chunk.is_empty() {
                self.chunk = data;
            } else if data.len() < GATHERED_MAX {
                self.chunk = together(std::mem::take(&mut self.chunk), &data);
            } else {
                return self.behind = Some(Behind::Chunk(data));
            }
            if self.body.is_end_stream() {
                self.behind = Some(Behind::End);
            }
        }
    }

    /// Sends of the chunk that was taken what there is room for. Whether that was the last of the body.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, SendBodyError>> {
        self.stream.reserve_capacity(self.chunk.len());
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
        // What h2 has beyond its room it would only keep.
        let part = self.chunk.split_to(self.chunk.len().min(self.stream.capacity()));
        let last = self.chunk.is_empty() && matches!(self.behind, Some(Behind::End));
        self.share.moved(part.len());
        let sent = self.stream.send_data(part, last);
        Poll::Ready(sent.map(|()| last).map_err(|_| SendBodyError::Stream))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendBodyError>> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(SendBodyError::Stream));
            }
            self.gather(cx);
            if !self.chunk.is_empty() {
                if ready!(self.poll_chunk(cx))? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let sent = match self.behind.take() {
                None => return Poll::Pending,
                Some(Behind::Chunk(data)) => {
                    self.chunk = data;
                    self.behind = self.body.is_end_stream().then_some(Behind::End);
                    continue;
                }
                Some(Behind::End) => self.stream.send_data(Bytes::new(), true),
                Some(Behind::Trailers(trailers)) => {
                    self.stream.reserve_capacity(0);
                    self.stream.send_trailers(trailers)
                }
                Some(Behind::Broken) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(SendBodyError::Source));
                }
            };
            return Poll::Ready(sent.map_err(|_| SendBodyError::Stream));
        }
    }
}

/// Two small pieces as one. The first is added to where it is our own already, so that many are copied once.
pub fn together(first: Bytes, second: &[u8]) -> Bytes {
    let mut both = first.try_into_mut().unwrap_or_else(|shared| {
        let mut both = BytesMut::with_capacity(shared.len() + second.len());
        both.extend_from_slice(&shared);
        both
    });
    both.extend_from_slice(second);
    both.freeze()
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> Future for SendBody<B> {
    type Output = Result<(), SendBodyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_send(cx)
    }
}

/// Smaller pieces of a body are put together up to this many bytes.
pub const GATHERED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_not_copied_with_each_piece() {
        let read = Bytes::from(vec![b'x'; 100]);
        let mut all = read.slice(..1);
        let mut moves = 0;
        for _ in 1..GATHERED_MAX {
            let before = all.as_ptr();
            all = together(all, &read[..1]);
            moves += usize::from(all.as_ptr() != before);
        }
        assert_eq!(all, vec![b'x'; GATHERED_MAX]);
        assert!(moves <= 12, "its room doubles: {moves} moves");
    }
}

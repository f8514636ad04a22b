//! The body of a message that arrives on a stream.
//!
//! It ends with END_STREAM and nothing else (RFC 9113 §8.1): a reset, whatever its code, and the end of the connection
//! are errors, so that half a body never passes for a whole one. What is read is given back to the stream's window at
//! once: who does not read holds a window's bytes and no more.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::upkeep::{StreamShare, StreamWindows};
use crate::body::BodyError;

/// A body that arrives on a stream. Dropped before its end it resets the stream, unless the stream is still being sent on.
#[derive(Debug)]
pub struct StreamBody {
    stream: RecvStream,
    share: StreamShare,
    /// What the message's `content-length` leaves to come; h2 holds the peer to it.
    left: Option<u64>,
    data_ended: bool,
    ended: bool,
    /// The upload of the request that this answers. It goes on after an early answer, and ends with a broken one.
    upload: Option<AbortHandle>,
}

impl StreamBody {
    /// The body of the message with these header fields.
    pub fn new(stream: RecvStream, headers: &HeaderMap, windows: &Rc<StreamWindows>) -> StreamBody {
        let length =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        StreamBody {
            stream,
            share: StreamShare::receiving(windows),
            left: length,
            data_ended: false,
            ended: false,
            upload: None,
        }
    }

    /// The request's own body is still being sent by this task.
    pub fn set_upload(&mut self, upload: AbortHandle) {
        self.upload = Some(upload);
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if !self.ended
            && !self.stream.is_end_stream()
            && let Some(upload) = &self.upload
        {
            upload.abort();
        }
    }
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        while !me.data_ended {
            match ready!(me.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than came.
                    let _ = me.stream.flow_control().release_capacity(data.len());
                    me.share.moved(data.len());
                    me.left = me.left.map(|left| left.saturating_sub(data.len() as u64));
                    if data.is_empty() && !me.stream.is_end_stream() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Stream(error)))),
                None => me.data_ended = true,
            }
        }
        let trailers = ready!(me.stream.poll_trailers(cx));
        me.ended = trailers.is_ok();
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(BodyError::Stream(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

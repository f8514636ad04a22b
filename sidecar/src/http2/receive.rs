//! The body of a message that arrives on a stream.
//!
//! It ends with END_STREAM and nothing else (RFC 9113 §8.1): a reset, whatever its code, and the end of the connection
//! are errors, so that half a body never passes for a whole one. What is read is given back to the stream's window at
//! once: who does not read holds a window's bytes and no more.
//!
//! What nobody has read yet waits in h2 frame by frame, and a frame of one byte costs as much as one of a thousand: h2 counts
//! that for the whole connection and ends it, with everybody's streams, when it is too much. So a connection takes what waits
//! from it every so often ([`ArrivingBodies`]) and keeps it in pieces of a decent size, each stream's within its own window.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::send::{GATHERED_MAX, together};
use super::upkeep::{StreamShare, StreamWindows};
use crate::body::{BodyError, apart};

/// A body that arrives on a stream. Dropped before its end it resets the stream, once nothing is sent on that any more.
#[derive(Debug)]
pub struct StreamBody {
    arriving: Rc<RefCell<Arriving>>,
    share: StreamShare,
    /// What the message's `content-length` leaves to come; h2 holds the peer to it.
    left: Option<u64>,
    data_ended: bool,
    ended: bool,
}

/// The stream, and what was taken from it before anybody asked.
#[derive(Debug)]
struct Arriving {
    stream: RecvStream,
    taken: VecDeque<Bytes>,
    broke: Option<h2::Error>,
    /// Who waits for it.
    reader: Option<Waker>,
}

/// The bodies that arrive on one connection.
#[derive(Debug, Default)]
pub struct ArrivingBodies {
    bodies: RefCell<Vec<Weak<RefCell<Arriving>>>>,
}

impl ArrivingBodies {
    fn insert(&self, body: &Rc<RefCell<Arriving>>) {
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() == bodies.capacity() {
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Rc::downgrade(body));
    }

    /// Takes from h2 what has come on all streams, so that small frames are no longer counted.
    pub fn take_all(&self) {
        self.bodies.borrow_mut().retain(|body| {
            let body = body.upgrade();
            body.inspect(|body| body.borrow_mut().take()).is_some()
        });
    }
}

impl Arriving {
    fn take(&mut self) {
        let reader = self.reader.take();
        let mut cx = Context::from_waker(reader.as_ref().unwrap_or(Waker::noop()));
        let mut came_some = false;
        while self.broke.is_none()
            && let Poll::Ready(Some(came)) = self.stream.poll_data(&mut cx)
        {
            came_some = true;
            match came {
                Ok(data) => match self.taken.back_mut() {
                    Some(last) if last.len() + data.len() <= GATHERED_MAX => {
                        *last = together(std::mem::take(last), &data);
                    }
                    _ => self.taken.push_back(apart(&data)),
                },
                Err(error) => self.broke = Some(error),
            }
        }
        match reader {
            Some(reader) if came_some => reader.wake(),
            reader => self.reader = reader,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(data) = self.taken.pop_front() {
            return Poll::Ready(Some(Ok(data)));
        }
        if let Some(error) = self.broke.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = self.stream.poll_data(cx);
        if polled.is_ready() {
            self.reader = None;
        } else if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            self.reader = Some(cx.waker().clone());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.taken.is_empty() && self.broke.is_none() && self.stream.is_end_stream()
    }
}

impl StreamBody {
    /// The body of the message with these header fields.
    pub fn new(stream: RecvStream, headers: &HeaderMap, windows: &Rc<StreamWindows>) -> StreamBody {
        let length =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let ended = stream.is_end_stream();
        let arriving = Arriving { stream, taken: VecDeque::new(), broke: None, reader: None };
        let arriving = Rc::new(RefCell::new(arriving));
        if !ended {
            windows.arriving().insert(&arriving);
        }
        StreamBody {
            arriving,
            share: StreamShare::receiving(windows),
            left: length,
            data_ended: false,
            ended: false,
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
        let mut arriving = me.arriving.borrow_mut();
        while !me.data_ended {
            match ready!(arriving.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than came.
                    let _ = arriving.stream.flow_control().release_capacity(data.len());
                    me.share.moved(data.len());
                    me.left = me.left.map(|left| left.saturating_sub(data.len() as u64));
                    if data.is_empty() && !arriving.is_end_stream() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Stream(error)))),
                None => me.data_ended = true,
            }
        }
        let trailers = ready!(arriving.stream.poll_trailers(cx));
        me.ended = trailers.is_ok();
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(BodyError::Stream(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.arriving.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::sync::Arc;

    use http_body_util::BodyExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::body::Buffers;
    use crate::http2::server::Http2Server;
    use crate::http2::upkeep::Silence;
    use crate::http2::window::WINDOW_BASE;
    use crate::socket::Socket;

    /// POST / at `a`.
    const HEAD: &[u8] = &[0x83, 0x84, 0x86, 0x41, 1, b'a'];
    const STREAMS: u8 = 10;
    const BYTES: usize = WINDOW_BASE as usize - 1;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// What a client sends: on each stream a window of bytes, a frame for each.
    fn byte_by_byte() -> Vec<u8> {
        let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        all.extend(frame(4, 0, 0, b""));
        for stream in (0..STREAMS).map(|n| 2 * n + 1) {
            all.extend(frame(1, 4, stream, HEAD));
            all.extend(frame(0, 0, stream, b"x").repeat(BYTES - 1));
            all.extend(frame(0, 1, stream, b"x"));
        }
        all
    }

    #[tokio::test(flavor = "local")]
    async fn windows_of_tiny_frames_that_nobody_reads_do_not_end_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket::new(listener.accept().await.unwrap().0).unwrap();
        let (sent, pulse) = (byte_by_byte(), socket.pulse());
        let length = sent.len() as u64;
        tokio::task::spawn_local(async move {
            let _ = client.write_all(&sent).await;
            std::future::pending::<()>().await;
        });
        let refused = prometheus::IntCounter::new("refused", "refused").expect("a name");
        let buffers = Arc::new(Buffers::new(0, refused));
        let accepting =
            Http2Server::accept(socket, Rc::clone(&pulse), buffers, Silence::IsPatience);
        let mut server = accepting.await.unwrap();
        let mut requests = Vec::new();
        std::future::poll_fn(|cx| {
            while let Poll::Ready(request) = server.poll_request(cx) {
                requests.push(request.expect("it goes on").expect("it is not broken").request);
            }
            if pulse.bytes() < length { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        assert_eq!(requests.len(), usize::from(STREAMS));
        for request in requests {
            let mut reading = std::pin::pin!(request.into_body().collect());
            let body = std::future::poll_fn(|cx| {
                assert!(server.poll_request(cx).is_pending());
                reading.as_mut().poll(cx)
            });
            assert_eq!(body.await.expect("whole").to_bytes(), vec![b'x'; BYTES]);
        }
    }
}

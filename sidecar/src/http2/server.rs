//! Requests that arrive on a connection of HTTP/2: from applications, and from other hosts of the mesh.
//!
//! Each request is served by a task of its own. A stream that its peer resets before the response's head ends that
//! task, and with it whatever was done for the request; one that was reset before the task ran costs nothing more.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pipe::Http2Pipe;
use super::receive::StreamBody;
use super::send::SendBody;
use super::upkeep::{Silence, StreamWindows, Upkeep};
use super::window::{CONNECTION_WINDOW, WINDOW_BASE};
use super::{FRAME_OVERHEAD_MAX, SEND_BUFFER_MAX, STREAMS_MAX};
use crate::body::{Buffers, Reply};
use crate::interim::INTERIMS_MAX;
use crate::pool::HEAD_MAX;
use crate::socket::Pulse;
use crate::tunnel::TunnelEnd;

/// A connection whose peer sends requests.
pub struct Http2Server<T> {
    connection: h2::server::Connection<T, Bytes>,
    upkeep: Upkeep,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Http2Server<T> {
    /// Begins HTTP/2 on an accepted connection. `pulse`: whether it is read from. `silence`: what it means
    /// that the peer says nothing.
    ///
    /// # Errors
    /// The peer does not speak it, or closed the connection.
    pub async fn accept(
        socket: T,
        pulse: Rc<Pulse>,
        buffers: Arc<Buffers>,
        silence: Silence,
    ) -> Result<Http2Server<T>, h2::Error> {
        let mut connection = h2::server::Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            // After a pause of ours many streams are found opened and cancelled at once: no reason to end the others.
            .max_pending_accept_reset_streams(STREAMS_MAX as usize)
            .max_header_list_size(u32::try_from(HEAD_MAX).expect("a small constant"))
            .initial_window_size(WINDOW_BASE)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(FRAME_OVERHEAD_MAX)
            .max_send_buffer_size(SEND_BUFFER_MAX)
            .handshake::<_, Bytes>(socket)
            .await?;
        let pings = connection.ping_pong().expect("given out once");
        Ok(Http2Server { connection, upkeep: Upkeep::new(pings, pulse, buffers, silence) })
    }

    /// The next request; `None`: the connection has ended.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StreamRequest, h2::Error>>> {
        let connection = &mut self.connection;
        let set_windows = |stream, all| {
            connection.set_target_window_size(all);
            connection.set_initial_window_size(stream).is_ok()
        };
        if self.upkeep.poll(cx, set_windows).is_ready() {
            return Poll::Ready(None);
        }
        let accepted = ready!(self.connection.poll_accept(cx));
        Poll::Ready(accepted.map(|accepted| {
            accepted.map(|(request, reply)| {
                let (head, stream) = request.into_parts();
                let body = StreamBody::new(stream, &head.headers, self.upkeep.windows());
                let stream = Rc::new(RefCell::new(reply));
                let reply = StreamReply {
                    stream,
                    interims: Rc::default(),
                    windows: Rc::clone(self.upkeep.windows()),
                };
                StreamRequest { request: Request::from_parts(head, body), reply }
            })
        }))
    }

    /// Takes no further requests, and ends when those that are being served have ended.
    pub fn drain(&mut self) {
        self.connection.graceful_shutdown();
    }
}

/// A request and where its response goes.
#[derive(Debug)]
pub struct StreamRequest {
    /// The request.
    pub request: Request<StreamBody>,
    /// For its response.
    pub reply: StreamReply,
}

/// Where the response to one request goes.
#[derive(Debug, Clone)]
pub struct StreamReply {
    stream: Rc<RefCell<SendResponse<Bytes>>>,
    /// Interim responses that it has had.
    interims: Rc<Cell<u32>>,
    windows: Rc<StreamWindows>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// It had a response, whole or not.
    Answered,
    /// The peer reset it before the response's head.
    TakenBack,
}

impl StreamReply {
    /// Whether the peer has reset the stream.
    pub fn is_taken_back(&self, cx: &mut Context<'_>) -> bool {
        self.stream.borrow_mut().poll_reset(cx).is_ready()
    }

    /// Says that the request was not looked at and may be sent elsewhere.
    pub fn refuse(&self) {
        self.stream.borrow_mut().send_reset(h2::Reason::REFUSED_STREAM);
    }

    /// Sends an interim response.
    pub fn interim(&self, status: StatusCode, headers: &HeaderMap) {
        if self.interims.replace(self.interims.get() + 1) >= INTERIMS_MAX {
            return;
        }
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = headers.clone();
        // Fails where the stream has ended, which its own task is told.
        let _ = self.stream.borrow_mut().send_informational(head);
    }

    /// Sends the response that `handler` gives, unless the peer takes the request back first.
    pub async fn send(
        self,
        handler: impl Future<Output = Result<Response<Reply>, Infallible>>,
    ) -> StreamEnd {
        let response = {
            let mut handler = pin!(handler);
            let taken_back_or_answered = poll_fn(|cx| {
                if self.stream.borrow_mut().poll_reset(cx).is_ready() {
                    return Poll::Ready(None);
                }
                handler.as_mut().poll(cx).map(Some)
            });
            let Some(Ok(response)) = taken_back_or_answered.await else {
                return StreamEnd::TakenBack;
            };
            response
        };
        let (mut head, body) = response.into_parts();
        // What belongs to a connection of HTTP/1.1 has no place here (RFC 9113 §8.2.2).
        head.headers.remove(CONNECTION);
        crate::date::add(&mut head.headers);
        let ended = body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| !ended)
            && !head.headers.contains_key(CONTENT_LENGTH)
        {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let sent = self.stream.borrow_mut().send_response(Response::from_parts(head, ()), ended);
        match (sent, body) {
            (Ok(sending), Reply::Tunnel(tunnel, receiving)) => {
                let pipe = Http2Pipe::new(receiving, sending, &self.windows, None);
                // Boxed: seldom, and large in every stream else.
                Box::pin(tunnel.run(TunnelEnd::Stream(Box::new(pipe)))).await;
            }
            (Ok(stream), body) if !ended => {
                let patience = body.patience();
                let _ = SendBody::new(body, stream, patience, &self.windows).await;
            }
            (Ok(_), _) => {}
            (Err(error), _) => {
                tracing::debug!(%error, "a response could not be sent");
                self.stream.borrow_mut().send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
        StreamEnd::Answered
    }
}

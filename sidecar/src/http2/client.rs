//! Requests on a connection to an HTTP/2 peer: another host of the mesh, or an application.
//!
//! A request waits for the connection to be able to carry it; what cannot be sent comes back whole. From then on the
//! stream belongs to the future of [`Http2Sender::send`]: dropping it resets the stream. An early answer leaves the
//! upload running beside it, with the stream's [place](StreamPlace), until it stands still for too long or the answer is given up
//! ([`UploadWatch`]).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;

use super::receive::StreamBody;
use super::send::{SendBody, SendBodyError};
use super::upkeep::{Silence, StreamWindows, Upkeep};
use super::window::{CONNECTION_WINDOW, WINDOW_BASE};
use super::{FRAME_OVERHEAD_MAX, SEND_BUFFER_MAX};
use crate::body::{Body, Buffers};
use crate::interim::Interim;
use crate::pool::{HEAD_MAX, SendError};
use crate::socket::Socket;
use crate::upload::UploadWatch;

/// Sends requests on one connection; as many as there are clones at a time.
#[derive(Debug, Clone)]
pub struct Http2Sender {
    requests: SendRequest<Bytes>,
    windows: Rc<StreamWindows>,
    closed: Rc<Cell<bool>>,
}

/// A stream's place among those of its connection, held by whatever still comes or goes on it.
#[derive(Debug)]
pub struct StreamPlace {
    streams: Rc<Cell<usize>>,
    /// What of the request's body outlasts its answer.
    pub upload: UploadWatch,
}

impl StreamPlace {
    /// One more on a connection with so many.
    pub fn new(streams: &Rc<Cell<usize>>) -> StreamPlace {
        streams.set(streams.get() + 1);
        StreamPlace { streams: Rc::clone(streams), upload: UploadWatch::default() }
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
    }
}

/// Begins HTTP/2 on a connection. The future serves it and ends with it; it has to run beside the requests. `silence`: what it
/// means that the peer says nothing.
///
/// # Errors
/// The peer closed the connection.
pub async fn handshake(
    socket: Socket,
    buffers: Arc<Buffers>,
    silence: Silence,
) -> io::Result<(Http2Sender, impl Future<Output = ()>)> {
    let pulse = socket.pulse();
    let (requests, connection) = h2::client::Builder::new()
        .enable_push(false)
        // Until the peer says how many it takes.
        .initial_max_send_streams(STREAMS_UNTOLD_MAX)
        .initial_window_size(WINDOW_BASE)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(FRAME_OVERHEAD_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX).expect("a small constant"))
        .handshake::<_, Bytes>(socket.in_turns())
        .await
        .map_err(io::Error::other)?;
    let mut connection = connection;
    let pings = connection.ping_pong().expect("given out once");
    let mut upkeep = Upkeep::new(pings, pulse, buffers, silence);
    let sender = Http2Sender {
        requests,
        windows: Rc::clone(upkeep.windows()),
        closed: Rc::new(Cell::new(false)),
    };
    let closed = Rc::clone(&sender.closed);
    let serve = async move {
        poll_fn(|cx| {
            let set_windows = |stream, all| {
                connection.set_target_window_size(all);
                connection.set_initial_window_size(stream).is_ok()
            };
            if upkeep.poll(cx, set_windows).is_ready() {
                return Poll::Ready(());
            }
            Pin::new(&mut connection).poll(cx).map(|_| ())
        })
        .await;
        closed.set(true);
    };
    Ok((sender, serve))
}

impl Http2Sender {
    /// Whether the connection takes no further requests.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// How many requests the peer takes at a time.
    pub fn streams_max(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// Whether a stream that carries much is on it: small ones would wait behind it.
    pub fn is_bulky(&self) -> bool {
        self.windows.is_bulky()
    }

    /// Sends a request and waits for the response's head; 1xx before it go to `interim`.
    ///
    /// # Errors
    /// What became of the request when there is no response.
    pub async fn send(
        &mut self,
        request: Request<Body>,
        interim: &Interim,
        place: &Rc<StreamPlace>,
    ) -> Result<Response<StreamBody>, SendError> {
        if !self.takes_another().await {
            return Err(SendError::NotSent(Box::new(request)));
        }
        let (mut head, body) = request.into_parts();
        let exact = body.size_hint().exact();
        if let Some(length) = exact.filter(|&length| length > 0 || takes_body(&head.method))
            && !head.headers.contains_key(CONTENT_LENGTH)
        {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let ended = body.is_end_stream();
        // The connection is ready, so what fails here is the message.
        let (response, stream) = self
            .requests
            .send_request(Request::from_parts(head, ()), ended)
            .map_err(|error| SendError::Unsendable(error.to_string()))?;
        let mut upload =
            (!ended).then(|| Box::pin(SendBody::new(body, stream, BLOCKED_MAX, &self.windows)));
        let mut response = pin!(response);
        let answered =
            poll_fn(|cx| poll_answer(cx, response.as_mut(), &mut upload, interim)).await?;
        let (head, stream) = answered.into_parts();
        let body = StreamBody::new(stream, &head.headers, &self.windows);
        // A caller that waits for leave to send its body has had its answer instead.
        if let Some(upload) = upload.filter(|_| !interim.waits()) {
            tokio::task::spawn_local(outlast(upload, Rc::clone(place)));
        }
        Ok(Response::from_parts(head, body))
    }

    /// Sends a CONNECT and waits for the response's head. What is said in the tunnel goes out on the stream beside it; a response
    /// that opens none has a body, as others do.
    ///
    /// # Errors
    /// What became of the request when there is no response.
    pub async fn connect(
        &mut self,
        request: Request<Body>,
        interim: &Interim,
    ) -> Result<(Response<StreamBody>, SendStream<Bytes>), SendError> {
        if !self.takes_another().await {
            return Err(SendError::NotSent(Box::new(request)));
        }
        let (response, sending) = self
            .requests
            .send_request(request.map(drop), false)
            .map_err(|error| SendError::Unsendable(error.to_string()))?;
        let mut response = pin!(response);
        let answered = poll_fn(|cx| poll_answer(cx, response.as_mut(), &mut None, interim)).await?;
        let (head, stream) = answered.into_parts();
        let body = StreamBody::new(stream, &head.headers, &self.windows);
        Ok((Response::from_parts(head, body), sending))
    }

    /// Waits until the connection can carry a request; false: it takes none any more.
    async fn takes_another(&mut self) -> bool {
        let ready = poll_fn(|cx| self.requests.poll_ready(cx)).await.is_ok();
        self.closed.set(self.closed.get() || !ready);
        ready
    }

    /// The windows of its streams.
    pub fn windows(&self) -> &Rc<StreamWindows> {
        &self.windows
    }
}

/// Sends what is left of a request's body when its answer has begun.
async fn outlast(mut upload: Pin<Box<SendBody<Body>>>, place: Rc<StreamPlace>) {
    let mut sent = upload.sent();
    poll_fn(|cx| {
        if upload.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if std::mem::replace(&mut sent, upload.sent()) != sent {
            place.upload.moves();
        }
        place.upload.poll_stands_still(cx)
    })
    .await;
}

/// The head of the response, or why there will be none.
fn poll_answer(
    cx: &mut Context<'_>,
    mut response: Pin<&mut ResponseFuture>,
    upload: &mut Option<Pin<Box<SendBody<Body>>>>,
    interim: &Interim,
) -> Poll<Result<Response<h2::RecvStream>, SendError>> {
    while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
        interim.pass(head.status(), head.headers());
    }
    if let Poll::Ready(answered) = response.as_mut().poll(cx) {
        return Poll::Ready(answered.map_err(|error| broken(&error)));
    }
    let Some(sending) = upload else { return Poll::Pending };
    let sent = ready!(sending.as_mut().poll(cx));
    *upload = None;
    match sent {
        // Why the stream broke, the response says.
        Ok(()) | Err(SendBodyError::Stream) => Poll::Pending,
        Err(SendBodyError::Source) => Poll::Ready(Err(SendError::Caller)),
        Err(SendBodyError::Blocked) => {
            Poll::Ready(Err(SendError::Reset("it did not read the request's body".into())))
        }
    }
}

fn broken(error: &h2::Error) -> SendError {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM) && error.is_remote();
    // A stream that fails by the peer's GOAWAY stands above the last one that the peer took on.
    if refused || (error.is_go_away() && error.is_remote()) {
        return SendError::Refused(error.to_string());
    }
    // What h2 refused to read.
    if error.is_reset() && error.is_library() {
        return SendError::Unreadable;
    }
    SendError::Reset(error.to_string())
}

/// Whether a request without a body says so with a length (RFC 9110 §8.6).
fn takes_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Requests that are sent to a peer before it has said how many it takes.
const STREAMS_UNTOLD_MAX: usize = 100;
/// How long a peer may read nothing of a request's body. The request's own time is shorter as a rule.
const BLOCKED_MAX: std::time::Duration = std::time::Duration::from_secs(3600);

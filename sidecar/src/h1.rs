//! One HTTP/1.1 connection to an application, driven by the request that uses it.
//!
//! hyper's connection does its work when somebody polls it. The usual way, a task for each connection, costs every request
//! two hand-overs between tasks: the request there, the head back. Here whoever waits for the connection polls it:
//! [`H1::send`] until the head, [`H1::drive`] while the body streams, and [`H1::is_usable`] when it is put back and
//! while it is idle. A peer's close is found there, or by the next request before it is sent.
//!
//! Invariants: a connection is polled by one task at a time, and its wake-ups go to that task. An upload that outlives the
//! response's head gets a task, since it must go on whether or not the caller reads the response; such a connection is not
//! used again.

use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Waker};

use evenkeel_balancer::Guard;
use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use crate::body::Body;
use crate::pool::{HEAD_MAX, SendError, send_error};
use crate::socket::Socket;

type Connection = http1::Connection<TokioIo<Socket>, Body>;

/// A connection for one request at a time; closed when dropped.
#[derive(Debug)]
pub struct H1 {
    sender: http1::SendRequest<Body>,
    driver: Driver,
    /// Where it leads.
    pub address: SocketAddr,
    _guard: Option<Guard>,
}

/// Who polls the connection.
#[derive(Debug)]
enum Driver {
    /// Whoever uses it.
    User(Box<Connection>),
    /// A task, to the connection's end.
    Task,
    /// Nobody: it has ended.
    Ended,
}

impl H1 {
    /// Takes over a new connection.
    ///
    /// # Errors
    /// hyper's, none of which is known today.
    pub async fn new(
        stream: TcpStream,
        address: SocketAddr,
        guard: Option<Guard>,
    ) -> hyper::Result<H1> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(Socket(stream)))
            .await?;
        Ok(H1 { sender, driver: Driver::User(Box::new(connection)), address, _guard: guard })
    }

    /// Sends a request and waits for the response's head.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let (request, upload) = if request.body().is_end_stream() {
            (request, None)
        } else {
            let held = Rc::new(());
            let upload = Rc::downgrade(&held);
            (request.map(|body| body.held(held)), Some(upload))
        };
        let outcome = {
            let mut sending = pin!(unconstrained(self.sender.try_send_request(request)));
            poll_fn(|cx| {
                self.driver.drive(cx);
                // What it waits for comes out of the connection just polled, in this very task: nobody has to wake it.
                sending.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            })
            .await
        };
        if upload.is_some_and(|upload| upload.strong_count() > 0)
            && let Driver::User(connection) = std::mem::replace(&mut self.driver, Driver::Task)
        {
            tokio::task::spawn_local(async move {
                // Its errors reach whoever reads the response.
                let _ = connection.await;
            });
        }
        outcome.map_err(send_error)
    }

    /// Moves bytes; to be called before the response's body is polled.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        // Ready for the next request: all of this response was read.
        if !self.sender.is_ready() {
            self.driver.drive(cx);
        }
    }

    /// Whether it can carry another request, as far as the kernel has told us.
    pub fn is_usable(&mut self) -> bool {
        self.driver.drive(&mut Context::from_waker(Waker::noop()));
        matches!(self.driver, Driver::User(_)) && self.sender.is_ready()
    }
}

impl Driver {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Driver::User(connection) = self
            && Pin::new(connection).poll(cx).is_ready()
        {
            *self = Driver::Ended;
        }
    }
}

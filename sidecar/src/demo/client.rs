//! The load's HTTP/1.1 client: as many keep-alive connections to one sidecar as requests are in flight.
//!
//! A request takes an idle connection or opens another; it never waits for one, so the generator adds no
//! queue of its own (up to [`CONNECTIONS_MAX`], where it says so instead of waiting). It never repeats
//! anything: what fails is a failure that an application without retries would have seen.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Connections to one sidecar.
pub struct Client {
    target: SocketAddr,
    idle: RefCell<Vec<Idle>>,
    open: Cell<usize>,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Answered with something other than 2xx.
    Status(StatusCode),
    /// The sidecar could not be connected to.
    Connect,
    /// The connection broke before the answer was complete.
    Broken,
    /// No answer within [`REQUEST_TIMEOUT`].
    Timeout,
    /// More requests in flight than the generator has connections.
    TooManyInFlight,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Status(status) => write!(f, "answered {}", status.as_u16()),
            Failure::Connect => f.write_str("no connection"),
            Failure::Broken => f.write_str("connection broke"),
            Failure::Timeout => write!(f, "no answer in {} s", REQUEST_TIMEOUT.as_secs()),
            Failure::TooManyInFlight => write!(f, "over {CONNECTIONS_MAX} in flight"),
        }
    }
}

impl Client {
    /// A client of the sidecar at this address; connects when asked to send.
    pub fn new(target: SocketAddr) -> Client {
        Client { target, idle: RefCell::default(), open: Cell::new(0) }
    }

    /// Sends a request and reads its whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<(), Failure> {
        match tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(), Failure> {
        let mut connection = match self.take_idle() {
            Some(sender) => Open { sender: Some(sender), open: &self.open },
            None => self.connect().await?,
        };
        let sender = connection.sender.as_mut().expect("taken out only below");
        let response = sender.send_request(request).await.map_err(|_| Failure::Broken)?;
        let status = response.status();
        response.into_body().collect().await.map_err(|_| Failure::Broken)?;
        if let Some(sender) = connection.sender.take() {
            self.idle.borrow_mut().push(Idle { sender, since: Instant::now() });
            // Idle is still open.
            self.open.set(self.open.get() + 1);
        }
        if status.is_success() { Ok(()) } else { Err(Failure::Status(status)) }
    }

    /// The connection used last, so that those above the need grow old and are closed here, before the
    /// sidecar closes them under a request.
    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|idle| idle.since.elapsed() < IDLE_MAX && !idle.sender.is_closed());
        self.open.set(self.open.get() - (before - idle.len()));
        idle.pop().map(|idle| idle.sender)
    }

    async fn connect(&self) -> Result<Open<'_>, Failure> {
        if self.open.get() >= CONNECTIONS_MAX {
            return Err(Failure::TooManyInFlight);
        }
        self.open.set(self.open.get() + 1);
        let mut connection = Open { sender: None, open: &self.open };
        let stream = TcpStream::connect(self.target).await.map_err(|_| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Connect)?;
        tokio::task::spawn_local(async move {
            // Its error is the error of the request that was under way, reported there.
            let _ = driver.await;
        });
        connection.sender = Some(sender);
        Ok(connection)
    }
}

/// A connection in use; dropped with its sender in place, or without one, it is no longer open.
struct Open<'a> {
    sender: Option<SendRequest<Full<Bytes>>>,
    open: &'a Cell<usize>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

/// Longer than any pause and any answer of a working mesh.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const CONNECTIONS_MAX: usize = 256;

/// Shorter than servers keep an idle connection.
const IDLE_MAX: Duration = Duration::from_secs(3);

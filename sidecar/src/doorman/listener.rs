//! Connections of Doorman clients, each under the limits at the end of this file.
//!
//! HTTP/2 with prior knowledge, which is what gRPC without TLS is. hyper's connection directly, as on the other
//! listeners: tonic's server has no limit on connections, and like hyper waits for ever for the first bytes, which
//! are read here first. A client that holds a connection for days is welcome; one that does not answer pings any more
//! is not.
//!
//! When all places are taken, the connection goes that has been without a call for longest, silent ones with it
//! ([`Places`]): its client opens another one with its next call. A connection in a call is held to be slow, not
//! kept: a call of many streams that send their requests a byte at a time would keep a place for ever. Clients have
//! no share of their own here, because on loopback they are one source.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::Cursor;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;
use tracing::{debug, warn};

use super::calls::Calls;
use crate::places::{Place, PlaceCounters, Places};
use crate::worker::LocalExecutor;

/// The places of the listener.
pub fn places(counters: &PlaceCounters) -> Arc<Places> {
    Places::new(CONNECTIONS_MAX, CONNECTIONS_MAX, counters, "ratelimit.listen")
}

/// Accepts until it is dropped.
pub async fn serve(
    listener: StdTcpListener,
    routes: Routes,
    calls: Calls,
    places: Arc<Places>,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = places.enter(peer.ip()).await else { continue };
                let busy = Rc::new(Busy { place, calls: Cell::new(0) });
                let connection =
                    connection(stream, peer, routes.clone(), calls.clone(), Rc::clone(&busy));
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        () = connection => {}
                        () = busy.place.gives_way() => {
                            debug!(%peer, "a connection to ratelimit.listen gave way to a newer one");
                        }
                    }
                });
            }
            Err(cause) => {
                warn!(%cause, "ratelimit.listen: cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection's place and its calls in progress.
struct Busy {
    place: Place,
    calls: Cell<usize>,
}

/// One call in progress.
struct BusyCall(Rc<Busy>);

impl BusyCall {
    fn begin(busy: &Rc<Busy>) -> BusyCall {
        busy.calls.set(busy.calls.get() + 1);
        busy.place.slow();
        BusyCall(Rc::clone(busy))
    }
}

impl Drop for BusyCall {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
        if self.0.calls.get() == 0 {
            self.0.place.spare();
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    calls: Calls,
    busy: Rc<Busy>,
) {
    let _ = stream.set_nodelay(true);
    let (mut read, write) = stream.into_split();
    let mut preface = [0; PREFACE.len()];
    match timeout(PREFACE_TIMEOUT, read.read_exact(&mut preface)).await {
        Ok(Ok(_)) if preface == *PREFACE => {}
        _ => return debug!(%peer, "a connection to ratelimit.listen does not speak HTTP/2"),
    }
    let io = tokio::io::join(Cursor::new(preface).chain(read), write);
    let service = service_fn(move |request| {
        let call = BusyCall::begin(&busy);
        let answer = answered(routes.clone(), calls.clone(), request);
        async move {
            let answer = answer.await;
            drop(call);
            answer
        }
    });
    let ended = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(cause) = ended {
        debug!(%peer, %cause, "a connection to ratelimit.listen broke off");
    }
}

/// One call: its request is read, and its answer begins, within [`CALL_MAX`].
async fn answered(
    mut routes: Routes,
    calls: Calls,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if let Some(authority) = request.uri().authority().cloned() {
        request.extensions_mut().insert(authority);
    }
    let call = async {
        let _place = calls.place().await;
        routes.call(request).await
    };
    let answer = match timeout(CALL_MAX, call).await {
        Ok(Ok(answer)) => answer,
        Err(_) => {
            Status::deadline_exceeded("not done in time: ask again, or another host").into_http()
        }
    };
    calls.count(&path, &answer);
    Ok(answer)
}

/// RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Open connections; past it, the one without a call for longest gives way.
const CONNECTIONS_MAX: usize = 4_096;
/// Calls at a time on one of them.
const STREAMS_MAX: u32 = 64;
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// From the connection's opening to the end of the preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that is gone without a word is noticed after both.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const CALL_MAX: Duration = Duration::from_secs(10);
/// After a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

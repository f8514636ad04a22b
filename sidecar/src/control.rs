//! The control thread: the admin listener, the catalogue's HTTP listener and the health checks.
//!
//! One thread with a runtime of its own, so that a request for metrics never waits behind traffic nor traffic
//! behind it. Every connection is served under the limits below: nobody who can reach these listeners holds
//! more than [`CONNECTIONS_MAX`] connections, a slow header is cut off, a large body is refused.
//! hyper's connection directly instead of `axum::serve`, which has neither a header timeout nor a limit.

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Extension, Router};
use evenkeel_config::settings::Listen;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tracing::{debug, warn};

use crate::admin::orders::Peer;

/// The running thread. Dropping it stops everything on it and waits for that.
pub struct Control {
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

/// A listener and what answers on it.
pub struct Surface {
    /// For the log.
    pub name: &'static str,
    /// Bound already, so that a taken port is known before anything starts.
    pub listener: StdTcpListener,
    /// What answers.
    pub router: Router,
    /// The longest an answer may take: more than a minute where clients wait for changes.
    pub timeout: Duration,
}

/// Starts the thread: the surfaces are served and `beside` (the health checks) runs until it is dropped.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<F>(
    surfaces: Vec<Surface>,
    beside: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<Control>
where
    F: Future<Output = ()> + 'static,
{
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new().name("ek-control".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "the control thread cannot start"),
        };
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            for surface in surfaces {
                tokio::task::spawn_local(serve(surface, stopped.clone()));
            }
            tokio::task::spawn_local(beside());
            let mut stopped = stopped;
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        drop(local);
        runtime.shutdown_background();
    })?;
    Ok(Control { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(true);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds a listener whose default port may be taken by someone else (a Consul agent): then it is warned about and left out.
///
/// # Errors
/// The address was written in the configuration and cannot be used.
pub fn optional<S>(
    key: &str,
    listen: Listen,
    bind: impl FnOnce(SocketAddr) -> std::io::Result<S>,
) -> anyhow::Result<Option<S>> {
    match bind(listen.address) {
        Ok(bound) => Ok(Some(bound)),
        Err(cause) if listen.explicit => Err(anyhow::anyhow!(
            "{key} {}: {cause}. Is another process on this port? Stop it or set {key} to another address",
            listen.address
        )),
        Err(cause) => {
            warn!(
                address = %listen.address, %cause,
                "{key} is left out: its default address cannot be used. Set {key} to another address"
            );
            Ok(None)
        }
    }
}

/// Accepts under the limit until stopped.
async fn serve(surface: Surface, mut stopped: watch::Receiver<bool>) {
    let Surface { name, listener, router, timeout } = surface;
    let listener =
        match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
            Ok(listener) => listener,
            Err(cause) => return tracing::error!(name, %cause, "cannot serve"),
        };
    let router = router
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, router.clone(), stopped.clone());
                tokio::task::spawn_local(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(cause) => {
                warn!(name, %cause, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router.layer(Extension(Peer(peer))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        debug!(%peer, %cause, "a control connection broke off");
    }
}

/// Open connections for each surface.
const CONNECTIONS_MAX: usize = 512;

/// A registration is a few hundred bytes; the largest sensible one has many tags and checks.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// hyper's read buffer: the largest request head.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// From the connection's opening, or the last answer, to the end of the next head. Longer than the idle time
/// between two polls of the usual clients.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// After a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, put};
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as StdTcpStream;

    fn started() -> (Control, SocketAddr) {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/never", get(std::future::pending::<&'static str>))
            .route("/put", put(|body: String| async move { body.len().to_string() }));
        let surface =
            Surface { name: "test", listener, router, timeout: Duration::from_millis(100) };
        (start(vec![surface], || async {}).unwrap(), address)
    }

    fn exchanged(to: SocketAddr, request: &str) -> String {
        let mut stream = StdTcpStream::connect(to).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_are_answered_within_limits_and_nothing_after_the_end() {
        let (control, address) = started();
        let close = "host: x\r\nconnection: close\r\n";
        let hello = exchanged(address, &format!("GET / HTTP/1.1\r\n{close}\r\n"));
        assert!(hello.starts_with("HTTP/1.1 200") && hello.ends_with("hello"), "{hello}");
        let late = exchanged(address, &format!("GET /never HTTP/1.1\r\n{close}\r\n"));
        assert!(late.starts_with("HTTP/1.1 503"), "{late}");
        let large =
            format!("PUT /put HTTP/1.1\r\n{close}content-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
        assert!(exchanged(address, &large).starts_with("HTTP/1.1 413"));
        let malformed = exchanged(address, "GET\r\n\r\n");
        assert!(malformed.starts_with("HTTP/1.1 400"), "{malformed}");
        // An idle connection does not hold the end up.
        let idle = StdTcpStream::connect(address).unwrap();
        drop(control);
        drop(idle);
        assert!(StdTcpStream::connect(address).is_err(), "the listener is closed");
    }

    #[test]
    fn a_default_that_is_taken_is_left_out_and_a_written_one_is_an_error() {
        let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let left_out =
            optional("discovery.http", Listen { address, explicit: false }, StdTcpListener::bind);
        assert!(left_out.unwrap().is_none());
        let refused =
            optional("discovery.http", Listen { address, explicit: true }, StdTcpListener::bind);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("discovery.http") && text.contains(&address.to_string()), "{text}");
    }
}

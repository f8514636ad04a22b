//! The control thread: the admin listener, the catalogue's HTTP listener and the health checks.
//!
//! One thread with a runtime of its own, so that a request for metrics never waits behind traffic nor traffic
//! behind it. hyper's connection directly instead of `axum::serve`, which has neither a header timeout nor a limit.
//!
//! **The door stays open.** A listener has [`CONNECTIONS_MAX`] places, and a connection that waits for its client
//! (between two requests, in the middle of a head or a body, or because it takes no answer) gives its place to a
//! newcomer ([`crate::places`]). A request is read whole, within [`BODY_TIMEOUT`], before anything answers it, so a
//! place is only kept while *we* owe something: an answer from memory, a change that is being written, or a blocking
//! query, of which fewer are allowed than there are places ([`crate::catalog_http`]). So whoever asks `/livez`,
//! `/metrics` or for a service and speaks at once is answered, whatever others hold open.
//!
//! Whose requests are answered at all is [`ControlGuard`]'s to say, for every listener of this thread.

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use evenkeel_config::settings::Listen;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore, watch};
use tower::ServiceExt as _;
use tower_http::timeout::TimeoutLayer;
use tracing::{debug, warn};

use crate::control_guard::{self, ControlGuard, GuardRefusal};
use crate::places::{Place, PlaceCounters, Places};
use crate::socket_owner::SocketOwner;

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
    /// Whose requests it takes.
    pub guard: ControlGuard,
    /// How it says no, in the form of its other answers.
    pub refuse: fn(StatusCode, &str) -> Response,
}

/// Who asks, as this thread saw the connection: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Starts the thread: the surfaces are served and `beside` (the health checks) runs until it is dropped.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<F>(
    surfaces: Vec<Surface>,
    counters: &PlaceCounters,
    beside: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<Control>
where
    F: Future<Output = ()> + 'static,
{
    let (stop, stopped) = watch::channel(false);
    let surfaces: Vec<_> = surfaces
        .into_iter()
        .map(|surface| {
            let places = Places::new(CONNECTIONS_MAX, CONNECTIONS_MAX, counters, surface.name);
            (surface, places)
        })
        .collect();
    let thread = std::thread::Builder::new().name("ek-control".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "the control thread cannot start"),
        };
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            for (surface, places) in surfaces {
                tokio::task::spawn_local(serve(surface, places, stopped.clone()));
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

/// Binds a listener whose default port may be taken by someone else (a Consul agent): then it is warned about and
/// left out.
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

/// Accepts until stopped.
async fn serve(surface: Surface, places: Arc<Places>, mut stopped: watch::Receiver<bool>) {
    let Surface { name, listener, router, timeout, guard, refuse } = surface;
    let listener =
        match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
            Ok(listener) => listener,
            Err(cause) => {
                return tracing::error!(listener = name, %cause, "cannot serve: restart this host");
            }
        };
    let late = TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout);
    let answers = Rc::new(Answers {
        router: router.layer(late),
        guard,
        refuse,
        owner_lookups: Semaphore::new(1),
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = places.enter(peer.ip()).await else { continue };
                let connection =
                    connection(stream, peer, Rc::clone(&answers), place, stopped.clone());
                tokio::task::spawn_local(connection);
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
    answers: Rc<Answers>,
    place: Place,
    mut stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let caller = Rc::new(Caller { peer, local, place, is_this_process: OnceCell::new() });
    let service = service_fn({
        let caller = Rc::clone(&caller);
        move |request| answered(Rc::clone(&answers), Rc::clone(&caller), request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = caller.place.gives_way() => return debug!(%peer, "a control connection gave way to a newer one"),
        () = caller.place.waited(WAIT_MAX) => return,
        _ = stopped.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        debug!(%peer, %cause, "a control connection broke off");
    }
}

/// What answers on a listener.
struct Answers {
    router: Router,
    guard: ControlGuard,
    refuse: fn(StatusCode, &str) -> Response,
    owner_lookups: Semaphore,
}

/// One connection, and who is at its other end.
struct Caller {
    peer: SocketAddr,
    local: SocketAddr,
    place: Place,
    is_this_process: OnceCell<bool>,
}

impl Caller {
    /// Whether this process asks itself. What cannot be found out counts as yes.
    ///
    /// Finding out takes up to milliseconds of a processor, so one request after another does; who waits for that may have
    /// to give way.
    async fn is_this_process(&self, lookups: &Semaphore) -> bool {
        let (peer, local) = (self.peer, self.local);
        let look = async move {
            let _turn = lookups.acquire().await;
            let found = tokio::task::spawn_blocking(move || SocketOwner::of(peer, local)).await;
            match found {
                Ok(Ok(owner)) => owner == SocketOwner::ThisProcess,
                Ok(Err(cause)) => {
                    warn!(%cause, "what changes something is refused, because /proc does not say who asks: mount it");
                    true
                }
                Err(_) => true,
            }
        };
        *self.is_this_process.get_or_init(|| look).await
    }
}

/// Answers one request once all of it is there.
async fn answered(
    answers: Rc<Answers>,
    caller: Rc<Caller>,
    request: Request<Incoming>,
) -> Result<Response, std::convert::Infallible> {
    let (mut parts, body) = request.into_parts();
    let response = match received(&answers, &caller, &parts, body).await {
        Ok(body) => {
            caller.place.kept();
            parts.extensions.insert(Peer(caller.peer));
            let request = Request::from_parts(parts, Body::from(body));
            let Ok(response) = answers.router.clone().oneshot(request).await;
            response
        }
        Err((status, why)) => {
            debug!(peer = %caller.peer, %status, why, "a control request is refused");
            (answers.refuse)(status, why)
        }
    };
    caller.place.spare();
    Ok(response)
}

/// The body of a request that may be answered.
async fn received(
    answers: &Answers,
    caller: &Caller,
    parts: &Parts,
    body: Incoming,
) -> Result<Bytes, (StatusCode, &'static str)> {
    answers.guard.check(parts).map_err(GuardRefusal::told)?;
    let too_large = (StatusCode::PAYLOAD_TOO_LARGE, "a body may have 256 KiB");
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large);
    }
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(cause)) if cause.is::<LengthLimitError>() => return Err(too_large),
        Ok(Err(_)) => return Err((StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body did not come within 10 s")),
    };
    // Limits are spent by POST, thousands of times a second: there the headers have to do.
    let changes = !control_guard::reads(&parts.method) && parts.method != Method::POST;
    if changes && caller.is_this_process(&answers.owner_lookups).await {
        return Err(GuardRefusal::FromProxy.told());
    }
    Ok(body)
}

/// Open connections for each surface; past it, those that wait for their clients give way.
const CONNECTIONS_MAX: usize = 512;

/// A registration is a few hundred bytes; the largest sensible one has many tags and checks.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// hyper's read buffer: the largest request head.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// From a request's head to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Of a connection for its client: from its opening or its last answer to the end of the next request. Longer than
/// the idle time between two polls of the usual clients.
const WAIT_MAX: Duration = Duration::from_secs(90);

/// After a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;
    use axum::routing::{get, post, put};
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as StdTcpStream;

    fn started() -> (Control, SocketAddr) {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/never", get(std::future::pending::<&'static str>))
            .route("/put", put(|body: String| async move { body.len().to_string() }))
            .route("/post", post(|body: String| async move { body.len().to_string() }));
        let surface = Surface {
            name: "test",
            listener,
            router,
            timeout: Duration::from_millis(100),
            guard: ControlGuard { node_name: "host-a".to_owned(), on_loopback: true },
            refuse: |status, why| (status, why.to_owned()).into_response(),
        };
        let counters = PlaceCounters::registered(&prometheus::Registry::new()).unwrap();
        (start(vec![surface], &counters, || async {}).unwrap(), address)
    }

    /// Connects and says this, and no more.
    fn saying(to: SocketAddr, text: &str) -> StdTcpStream {
        let mut stream = StdTcpStream::connect(to).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    fn exchanged(to: SocketAddr, request: &str) -> String {
        let mut stream = saying(to, request);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn nobody_keeps_the_door_shut_by_saying_nothing_or_saying_it_slowly() {
        let (_control, address) = started();
        for held in [
            "",
            "GET / HTTP/1.1\r\nhost: x\r\n",
            "POST /post HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nslow",
            // Answered, and idle since.
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        ] {
            let open: Vec<_> = (0..CONNECTIONS_MAX).map(|_| saying(address, held)).collect();
            let hello =
                exchanged(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            assert!(hello.starts_with("HTTP/1.1 200"), "{held:?}: {hello}");
            drop(open);
        }
    }

    #[test]
    fn what_this_process_asks_itself_changes_nothing() {
        let (_control, address) = started();
        let body = "host: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
        let own = exchanged(address, &format!("PUT /put HTTP/1.1\r\n{body}"));
        assert!(own.starts_with("HTTP/1.1 403"), "{own}");
        let posted = exchanged(address, &format!("POST /post HTTP/1.1\r\n{body}"));
        assert!(posted.starts_with("HTTP/1.1 200"), "{posted}");
        let proxied = exchanged(address, &format!("POST /post HTTP/1.1\r\nvia: 1.1 x\r\n{body}"));
        assert!(proxied.starts_with("HTTP/1.1 403"), "{proxied}");
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
            format!("POST /post HTTP/1.1\r\n{close}content-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
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

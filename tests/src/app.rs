//! The application server behind the mesh: does exactly what a request asks for, and remembers it.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on one port, told apart by the preface. What it must never do is
//! forget an execution: a POST to the ledger is appended to a file in one `write` *before* it is answered,
//! so the record survives `kill -9` and an answer that nobody received. One thread, so that stopping it
//! (SIGSTOP) stops everything, as a garbage collection would.
//!
//! | request | what happens |
//! | --- | --- |
//! | `GET /?bytes=N` (any unknown path) | 200 and N bytes |
//! | `POST /ledger/ID`, `GET /ledger` | executes ID; all executed ids, one on a line |
//! | `/slow?ms=N` | answers after N ms; counted as cancelled when the caller goes first |
//! | `/status/N` | that status |
//! | `/stream?n=N&ms=M` | N chunks of a line each, M ms apart, then a trailer |
//! | `/echo` | the request's body and trailers, streamed back |
//! | `/early?status=N` | that status, before and without reading the body |
//! | `/hang` | never answers |
//! | `/reset?at=head`, `/reset?at=body` | closes the socket with RST before or after the response's head |
//! | `PUT /flaky?every=N` | from now on every Nth other request ends in RST; a POST to the ledger is executed first |
//! | `PUT /flaky?every=N&status=S` | from now on every Nth other request has that status, and nothing is executed |
//! | `PUT /delay?ms=N&places=P` | from now on every answer to a request that is counted comes N ms later; with P, so many at a time, the others wait their turn |
//! | `/headers` | the request's method, target and headers, as text |
//! | `/healthz`, `PUT /healthz?ok=false` | 200 or 503, and the switch |
//! | `/scout` | 200, and counted nowhere; on the scout port a byte for each byte |
//! | `/count` | `{"requests", "cancelled", "methods", "most"}`: without itself, the ledger's list and the health check; `most` were in flight at once |
//! | `/arrivals` | a line for each counted request: when it came, in microseconds since the start, and its `x-tenant` |

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on or the ledger's file cannot be opened.
pub fn run(
    address: SocketAddr,
    id: String,
    ledger: Option<PathBuf>,
    scout: Option<SocketAddr>,
) -> io::Result<()> {
    let app = Rc::new(App::new(id, ledger)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(address).await?;
        if let Some(scout) = scout {
            tokio::task::spawn_local(answer_scouts(TcpListener::bind(scout).await?));
        }
        println!("listening on {}", listener.local_addr()?);
        loop {
            // Running out of descriptors must not end the application: the connection is dropped instead.
            if let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(app.clone(), stream));
            }
        }
    })
}

struct App {
    id: HeaderValue,
    executed: RefCell<BTreeMap<String, u64>>,
    file: RefCell<Option<File>>,
    methods: RefCell<BTreeMap<Method, u64>>,
    cancelled: Cell<u64>,
    healthy: Cell<bool>,
    /// Every this many requests one ends in RST, or with this status; 0: none.
    flaky: Cell<(u64, Option<StatusCode>)>,
    /// Before each answer.
    delay: Cell<Duration>,
    /// How many requests are delayed at a time, and the turns of the others.
    places: RefCell<(usize, Arc<Semaphore>)>,
    seen: Cell<u64>,
    start: Instant,
    /// When counted requests came, and whose they were.
    arrivals: RefCell<VecDeque<(Duration, String)>>,
    in_flight: Cell<u64>,
    most_in_flight: Cell<u64>,
}

impl App {
    fn new(id: String, ledger: Option<PathBuf>) -> io::Result<App> {
        let mut executed = BTreeMap::new();
        let mut file = None;
        if let Some(path) = ledger {
            for line in std::fs::read_to_string(&path).unwrap_or_default().lines() {
                *executed.entry(line.to_owned()).or_default() += 1;
            }
            file = Some(OpenOptions::new().create(true).append(true).open(path)?);
        }
        let id = HeaderValue::try_from(id).map_err(io::Error::other)?;
        Ok(App {
            id,
            executed: RefCell::new(executed),
            file: RefCell::new(file),
            methods: RefCell::default(),
            cancelled: Cell::new(0),
            healthy: Cell::new(true),
            flaky: Cell::new((0, None)),
            delay: Cell::new(Duration::ZERO),
            places: RefCell::new((0, places(0))),
            seen: Cell::new(0),
            start: Instant::now(),
            arrivals: RefCell::default(),
            in_flight: Cell::new(0),
            most_in_flight: Cell::new(0),
        })
    }

    async fn answer(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        socket: Rc<socket2::Socket>,
    ) -> Result<Response<Body>, Reset> {
        let path = request.uri().path().to_owned();
        if path != "/echo" && path != "/early" {
            // A server that answers before it has read what it was sent must close the connection afterwards,
            // and the next request on it is lost: not what is tested here.
            while let Some(Ok(_)) = request.body_mut().frame().await {}
        }
        let (mut _in_flight, mut _place) = (None, None);
        if !matches!(
            (request.method(), path.as_str()),
            (_, "/healthz" | "/count" | "/arrivals" | "/flaky" | "/delay" | "/scout")
                | (&Method::GET, "/ledger")
        ) {
            _in_flight = Some(InFlight::new(&self));
            self.note_arrival(&request);
            *self.methods.borrow_mut().entry(request.method().clone()).or_default() += 1;
            self.seen.set(self.seen.get() + 1);
            let (every, instead) = self.flaky.get();
            if every > 0 && self.seen.get().is_multiple_of(every) {
                if let Some(instead) = instead {
                    let mut response = status(instead);
                    response.headers_mut().insert("x-app", self.id.clone());
                    return Ok(response);
                }
                // The worst moment: what was asked is done, and nobody is told.
                if let (&Method::POST, Some(id)) = (request.method(), path.strip_prefix("/ledger/"))
                {
                    let _ = self.execute(id);
                }
                let _ = socket.set_linger(Some(Duration::ZERO));
                return Err(Reset);
            }
            if !self.delay.get().is_zero() {
                let turn = self.places.borrow().1.clone().acquire_owned();
                _place = turn.await.ok();
                tokio::time::sleep(self.delay.get()).await;
            }
        }
        let mut response = match path.as_str() {
            "/ledger" => {
                let lines = self
                    .executed
                    .borrow()
                    .iter()
                    .map(|(id, n)| format!("{id} {n}\n"))
                    .collect::<String>();
                Response::new(full(lines))
            }
            "/slow" => {
                let guard = Cancelled::new(&self);
                tokio::time::sleep(Duration::from_millis(number(&request, "ms").unwrap_or(0)))
                    .await;
                guard.answered();
                Response::new(full("slow"))
            }
            "/hang" => {
                let _guard = Cancelled::new(&self);
                std::future::pending::<Infallible>().await;
                return Err(Reset);
            }
            "/stream" => {
                stream(number(&request, "n").unwrap_or(1), number(&request, "ms").unwrap_or(0))
            }
            "/echo" => Response::new(request.into_body().map_err(io::Error::other).boxed_unsync()),
            "/reset" => reset(&request, &socket)?,
            "/headers" => {
                let mut text =
                    format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
                for (name, value) in request.headers() {
                    text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
                }
                Response::new(full(text))
            }
            "/healthz" => {
                if request.method() == Method::PUT {
                    self.healthy
                        .set(!request.uri().query().unwrap_or_default().contains("ok=false"));
                }
                status(if self.healthy.get() {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                })
            }
            "/early" => status(code(&request).unwrap_or(StatusCode::OK)),
            "/flaky" => {
                self.flaky.set((number(&request, "every").unwrap_or(0), code(&request)));
                status(StatusCode::OK)
            }
            "/delay" => {
                self.delay.set(Duration::from_millis(number(&request, "ms").unwrap_or(0)));
                let most = number(&request, "places").unwrap_or(0) as usize;
                let mut now = self.places.borrow_mut();
                // Those who wait keep their turns while the number stays.
                if now.0 != most {
                    *now = (most, places(most));
                }
                status(StatusCode::OK)
            }
            "/count" => {
                let methods = self.methods.borrow();
                let by_method: BTreeMap<_, _> =
                    methods.iter().map(|(m, n)| (m.as_str(), *n)).collect();
                let requests: u64 = methods.values().sum();
                let cancelled = self.cancelled.get();
                let most = self.most_in_flight.get();
                let count = serde_json::json!({"requests": requests, "cancelled": cancelled, "methods": by_method, "most": most});
                Response::new(full(count.to_string()))
            }
            "/arrivals" => {
                let arrivals = self.arrivals.borrow();
                let line =
                    |(at, tenant): &(Duration, String)| format!("{} {tenant}\n", at.as_micros());
                Response::new(full(arrivals.iter().map(line).collect::<String>()))
            }
            _ => match (
                request.method(),
                path.strip_prefix("/ledger/"),
                path.strip_prefix("/status/"),
            ) {
                (&Method::POST, Some(id), _) => match self.execute(id) {
                    Ok(()) => Response::new(full(format!("{id}\n"))),
                    Err(error) => {
                        let mut failed = status(StatusCode::INTERNAL_SERVER_ERROR);
                        *failed.body_mut() = full(error.to_string());
                        failed
                    }
                },
                (_, _, Some(code)) => status(code.parse().unwrap_or(StatusCode::BAD_REQUEST)),
                _ => {
                    let length =
                        usize::try_from(number(&request, "bytes").unwrap_or(64)).unwrap_or(64);
                    Response::new(full(vec![b'x'; length.min(BODY_BYTES_MAX)]))
                }
            },
        };
        response.headers_mut().insert("x-app", self.id.clone());
        Ok(response)
    }

    /// Past the limit the oldest are forgotten.
    fn note_arrival(&self, request: &Request<Incoming>) {
        let mut arrivals = self.arrivals.borrow_mut();
        if arrivals.len() == ARRIVALS_MAX {
            arrivals.pop_front();
        }
        let tenant = request.headers().get("x-tenant").and_then(|value| value.to_str().ok());
        arrivals.push_back((self.start.elapsed(), tenant.unwrap_or_default().to_owned()));
    }

    fn execute(&self, id: &str) -> io::Result<()> {
        if let Some(file) = self.file.borrow_mut().as_mut() {
            file.write_all(format!("{id}\n").as_bytes())?;
        }
        *self.executed.borrow_mut().entry(id.to_owned()).or_default() += 1;
        Ok(())
    }
}

/// A byte for each byte, on the same thread as all else: while that stands still, no byte comes back.
async fn answer_scouts(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move {
            while stream.read_u8().await.is_ok() && stream.write_all(b"!").await.is_ok() {}
        });
    }
}

async fn serve(app: Rc<App>, stream: TcpStream) {
    let mut preface = [0; PREFACE.len()];
    let http2 = loop {
        match stream.peek(&mut preface).await {
            Ok(0) | Err(_) => return,
            Ok(n) if preface[..n] != PREFACE[..n] => break false,
            Ok(n) if n == PREFACE.len() => break true,
            // A part of the preface: `peek` returns at once until the rest is there.
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let _ = stream.set_nodelay(true);
    let Ok(stream) = stream.into_std() else { return };
    let Ok(socket) = stream.try_clone().map(|s| Rc::new(socket2::Socket::from(s))) else { return };
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| app.clone().answer(request, socket.clone()));
    // How a connection ends is the client's business: what was executed is in the ledger.
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(Local).serve_connection(io, service).await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.timer(TokioTimer::new()).serve_connection(io, service).await;
    }
}

fn stream(chunks: u64, ms: u64) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    tokio::task::spawn_local(async move {
        for n in 0..chunks {
            if n > 0 {
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            if sender.send_data(Bytes::from(format!("chunk {n}\n"))).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-chunks", HeaderValue::from(chunks));
        let _ = sender.send_trailers(trailers).await;
    });
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-chunks"));
    response
}

fn reset(request: &Request<Incoming>, socket: &socket2::Socket) -> Result<Response<Body>, Reset> {
    // Closing with a linger of zero sends RST; the socket closes when the connection's task ends.
    let _ = socket.set_linger(Some(Duration::ZERO));
    if !request.uri().query().unwrap_or_default().contains("at=body") {
        return Err(Reset);
    }
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    tokio::task::spawn_local(async move {
        let _ = sender.send_data(Bytes::from_static(b"the first half")).await;
        // The head and the first half should have left before the connection breaks.
        tokio::time::sleep(Duration::from_millis(20)).await;
        sender.abort(io::Error::from(io::ErrorKind::ConnectionReset));
    });
    Ok(Response::new(body.boxed_unsync()))
}

/// Counts a request whose caller went away before it was answered.
struct Cancelled<'a> {
    app: &'a App,
    answered: Cell<bool>,
}

impl<'a> Cancelled<'a> {
    fn new(app: &'a App) -> Self {
        Cancelled { app, answered: Cell::new(false) }
    }

    fn answered(&self) {
        self.answered.set(true);
    }
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if !self.answered.get() {
            self.app.cancelled.set(self.app.cancelled.get() + 1);
        }
    }
}

/// Counts a request from its arrival until it is answered or given up.
struct InFlight<'a>(&'a App);

impl<'a> InFlight<'a> {
    fn new(app: &'a App) -> Self {
        app.in_flight.set(app.in_flight.get() + 1);
        app.most_in_flight.set(app.most_in_flight.get().max(app.in_flight.get()));
        InFlight(app)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed as asked")
    }
}

impl std::error::Error for Reset {}

/// Runs hyper's HTTP/2 tasks on the one thread there is.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// 0: as many as come.
fn places(most: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(if most == 0 { Semaphore::MAX_PERMITS } else { most }))
}

fn number(request: &Request<Incoming>, key: &str) -> Option<u64> {
    let query = request.uri().query()?;
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

fn code(request: &Request<Incoming>) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(number(request, "status")?).ok()?).ok()
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response =
        Response::new(Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Arrivals that are remembered.
const ARRIVALS_MAX: usize = 1 << 20;

/// The largest body of `/?bytes=N`.
const BODY_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use crate::client::{self, Version, request};
    use crate::wait;

    use super::*;

    #[test]
    fn with_one_place_requests_take_turns() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::thread::spawn(move || run(address, "app".into(), None, None));
        let ask = |method, path| {
            client::send(address, Version::Http1, request(method, "app", path))
                .is_ok_and(|answer| answer.status.is_success())
        };
        wait::for_true("it answers", Duration::from_secs(10), || ask(Method::GET, "/healthz"));
        let three = || {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| assert!(ask(Method::GET, "/")));
                }
            });
            start.elapsed()
        };
        assert!(ask(Method::PUT, "/delay?ms=40&places=1"));
        assert!(three() >= Duration::from_millis(120), "one after the other");
        assert!(ask(Method::PUT, "/delay?ms=400"));
        let together = (0..5).map(|_| three()).min();
        assert!(together < Some(Duration::from_millis(800)), "{together:?}: at once");
    }
}

//! Requests at a fixed rate, whatever becomes of the earlier ones, none of them ever repeated.
//!
//! Open loop: every request has a moment at which it is due, and its latency counts from that moment, so a
//! pause of the mesh shows in full (a closed loop would stop asking during the pause and hide it). Connections
//! are kept alive and reused, last in first out; a request that finds none free opens one.
//!
//! A sample is what an application would have seen: a status and a whole body, or the reason why not. A body
//! that ends early is a failure even when the status was 200.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::client::{Version, http2_uri};
use crate::wait;

/// What to ask, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the requests go.
    pub to: SocketAddr,
    /// Their `Host`.
    pub host: String,
    /// What they speak.
    pub version: Version,
    /// GETs a second; their bodies are 64 B, 1 KiB and 16 KiB in turn.
    pub gets_per_sec: u32,
    /// POSTs a second, each with an id of its own to be executed.
    pub posts_per_sec: u32,
    /// Makes the ids of this load different from those of any other.
    pub ids: String,
    /// Their `x-tenant`; empty: none.
    pub tenant: String,
}

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The POST's id; `None` for a GET.
    pub id: Option<String>,
    /// When it was due, from the start of the load.
    pub due: Duration,
    /// From then to the last byte of the answer.
    pub latency: Duration,
    /// The answer, or why there is none.
    pub outcome: Result<Seen, String>,
}

/// The part of an answer that a test looks at.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The status.
    pub status: u16,
    /// `x-app`: which application answered.
    pub app: String,
    /// `Proxy-Status`: why the mesh answered itself.
    pub proxy_status: String,
}

impl Sample {
    /// A 2xx with its whole body.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|seen| (200..300).contains(&seen.status))
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    finished: Arc<AtomicU64>,
    thread: JoinHandle<Report>,
}

/// Everything a load saw.
#[derive(Debug)]
pub struct Report {
    /// In the order of completion.
    pub samples: Vec<Sample>,
}

impl Load {
    /// Starts asking, from a thread of its own.
    #[must_use]
    pub fn start(plan: Plan) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let finished = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), finished.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime for the load");
            tokio::task::LocalSet::new().block_on(&runtime, run(plan, stopped, counted))
        });
        Load { stop, finished, thread }
    }

    /// Waits until `more` further requests have finished, however.
    ///
    /// # Panics
    /// When they do not within half a minute more than they should need.
    pub fn after(&self, more: u64) {
        let goal = self.finished.load(Ordering::Relaxed) + more;
        wait::for_true(&format!("{more} more requests finish"), Duration::from_secs(60), || {
            self.finished.load(Ordering::Relaxed) >= goal
        });
    }

    /// Stops asking, waits for the last answers.
    ///
    /// # Panics
    /// When the load itself failed.
    #[must_use]
    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load's thread ends well")
    }
}

impl Report {
    /// The GETs.
    pub fn gets(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.id.is_none())
    }

    /// The POSTs.
    pub fn posts(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.id.is_some())
    }

    /// A quantile of the latency of the GETs that succeeded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let mut latencies: Vec<_> =
            self.gets().filter(|sample| sample.succeeded()).map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let at = ((latencies.len() as f64 * q) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(at).copied().unwrap_or_default()
    }

    /// No GET failed, and there were some.
    ///
    /// # Panics
    /// When one did; the first few are shown.
    pub fn assert_no_failed_get(&self) {
        assert_none_failed("GET", self.gets());
    }

    /// No POST failed, and there were some.
    ///
    /// # Panics
    /// When one did; the first few are shown.
    pub fn assert_no_failed_post(&self) {
        assert_none_failed("POST", self.posts());
    }
}

/// The most of these requests that were due and not yet answered at one moment.
pub fn most_at_once<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> usize {
    let ends = |sample: &Sample| [(sample.due, true), (sample.due + sample.latency, false)];
    let mut changes: Vec<_> = samples.into_iter().flat_map(ends).collect();
    // What ends when another begins was not there with it: `false` comes first.
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, begins) in changes {
        now = if begins { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}

fn assert_none_failed<'a>(what: &str, samples: impl Iterator<Item = &'a Sample>) {
    let samples: Vec<_> = samples.collect();
    assert!(!samples.is_empty(), "the load sent no {what}");
    let failed: Vec<_> = samples.iter().filter(|sample| !sample.succeeded()).collect();
    let shown = &failed[..failed.len().min(FAILURES_SHOWN)];
    assert!(failed.is_empty(), "{} of {} {what}s failed: {shown:#?}", failed.len(), samples.len());
}

async fn run(plan: Plan, stop: Arc<AtomicBool>, finished: Arc<AtomicU64>) -> Report {
    let (gets, posts) = (plan.gets_per_sec, plan.posts_per_sec);
    let client = Client { plan, idle: RefCell::default(), http2: tokio::sync::Mutex::default() };
    let run = Rc::new(Run {
        client,
        start: Instant::now(),
        stop,
        finished,
        in_flight: Cell::new(0),
        samples: RefCell::default(),
    });
    tokio::join!(pace(&run, gets, false), pace(&run, posts, true));
    while run.in_flight.get() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Report { samples: run.samples.take() }
}

struct Run {
    client: Client,
    start: Instant,
    stop: Arc<AtomicBool>,
    finished: Arc<AtomicU64>,
    in_flight: Cell<usize>,
    samples: RefCell<Vec<Sample>>,
}

async fn pace(run: &Rc<Run>, rate_per_sec: u32, posts: bool) {
    if rate_per_sec == 0 {
        return;
    }
    for number in 0_u32.. {
        let due = Duration::from_secs(1) * number / rate_per_sec;
        tokio::time::sleep_until((run.start + due).into()).await;
        if run.stop.load(Ordering::Relaxed) {
            return;
        }
        let id = posts.then(|| format!("{}-{number}", run.client.plan.ids));
        tokio::task::spawn_local(one(run.clone(), number, due, id));
    }
}

async fn one(run: Rc<Run>, number: u32, due: Duration, id: Option<String>) {
    run.in_flight.set(run.in_flight.get() + 1);
    let outcome = if run.in_flight.get() > IN_FLIGHT_MAX {
        Err(format!("{IN_FLIGHT_MAX} requests are unanswered"))
    } else {
        let limit = tokio::time::timeout(ANSWER_MAX, run.client.ask(number, id.as_deref())).await;
        limit.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}")))
    };
    let latency = run.start.elapsed().saturating_sub(due);
    run.samples.borrow_mut().push(Sample { id, due, latency, outcome });
    run.in_flight.set(run.in_flight.get() - 1);
    run.finished.fetch_add(1, Ordering::Relaxed);
}

struct Client {
    plan: Plan,
    idle: RefCell<Vec<http1::SendRequest<Full<Bytes>>>>,
    http2: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Client {
    async fn ask(&self, number: u32, id: Option<&str>) -> Result<Seen, String> {
        let size = BODY_SIZES[number as usize % BODY_SIZES.len()];
        let (builder, body, whole) = match id {
            Some(id) => {
                let body = Bytes::from(format!("execute {id} once"));
                (Request::post(format!("/ledger/{id}")), body, id.len() + 1)
            }
            None => (Request::get(format!("/?bytes={size}")), Bytes::new(), size),
        };
        let builder = match self.plan.tenant.as_str() {
            "" => builder,
            tenant => builder.header("x-tenant", tenant),
        };
        let request = builder.body(Full::new(body)).expect("a load's own request is well-formed");
        let (head, body, sender) = match self.plan.version {
            Version::Http1 => {
                let (response, sender) = self.send_http1(request).await?;
                let (head, body) = response.into_parts();
                (head, body, Some(sender))
            }
            Version::Http2 => {
                let (head, body) = self.send_http2(request).await?.into_parts();
                (head, body, None)
            }
        };
        let collected =
            body.collect().await.map_err(|error| format!("in the body: {}", causes(&error)))?;
        if let Some(sender) = sender.filter(|sender| !sender.is_closed()) {
            self.idle.borrow_mut().push(sender);
        }
        let text = |name: &str| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let length = collected.to_bytes().len();
        if head.status.is_success() && length != whole {
            return Err(format!("{length} of {whole} bytes came"));
        }
        Ok(Seen {
            status: head.status.as_u16(),
            app: text("x-app"),
            proxy_status: text("proxy-status"),
        })
    }

    async fn send_http1(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, http1::SendRequest<Full<Bytes>>), String> {
        let host = HeaderValue::try_from(&self.plan.host).expect("a host");
        request.headers_mut().insert("host", host);
        let ready = loop {
            match self.idle.borrow_mut().pop() {
                Some(sender) if sender.is_ready() => break Some(sender),
                Some(_) => {}
                None => break None,
            }
        };
        let mut sender = if let Some(sender) = ready {
            sender
        } else {
            let (sender, connection) =
                http1::handshake(self.connect().await?).await.map_err(|e| causes(&e))?;
            tokio::task::spawn_local(connection);
            sender
        };
        let response = sender.send_request(request).await.map_err(|e| causes(&e))?;
        Ok((response, sender))
    }

    async fn send_http2(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, String> {
        let host = HeaderValue::try_from(&self.plan.host).expect("a host");
        *request.uri_mut() = http2_uri(&host, request.uri()).map_err(|error| error.to_string())?;
        let mut sender = {
            // One connection for all: who comes while it is being opened waits for it.
            let mut connection = self.http2.lock().await;
            match connection.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => {
                    let io = self.connect().await?;
                    let opened =
                        http2::handshake(TokioExecutor::new(), io).await.map_err(|e| causes(&e))?;
                    tokio::task::spawn_local(opened.1);
                    connection.insert(opened.0).clone()
                }
            }
        };
        sender.ready().await.map_err(|e| causes(&e))?;
        sender.send_request(request).await.map_err(|e| causes(&e))
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, String> {
        let stream = TcpStream::connect(self.plan.to)
            .await
            .map_err(|error| format!("connecting: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(TokioIo::new(stream))
    }
}

/// An error with everything it came from: hyper's own text alone hides the reason.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// The bodies of the GETs.
const BODY_SIZES: [usize; 3] = [64, 1024, 16 * 1024];

/// More unanswered requests than any mesh here should leave: past it the load fails instead of growing.
const IN_FLIGHT_MAX: usize = 4000;

/// Longer than the mesh's own default timeout, so that it is the mesh that gives up.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Failed samples shown by an assertion.
const FAILURES_SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_at_once_are_counted_where_they_meet() {
        let ms = Duration::from_millis;
        let sample = |(due, latency): (u64, u64)| Sample {
            id: None,
            due: ms(due),
            latency: ms(latency),
            outcome: Err(String::new()),
        };
        let most = |times: &[(u64, u64)]| {
            most_at_once(&times.iter().copied().map(sample).collect::<Vec<_>>())
        };
        assert_eq!(most(&[]), 0);
        assert_eq!(most(&[(0, 10), (10, 10), (20, 1)]), 1, "one after the other");
        assert_eq!(most(&[(0, 100), (10, 20), (20, 20), (35, 10)]), 3);
    }
}

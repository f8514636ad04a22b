//! The load: requests sent at times fixed beforehand, whatever became of those before them.
//!
//! An open loop with Poisson arrivals for each arm and kind. Latency counts from the time a request was
//! *due*, so a generator or a mesh that falls behind shows in the figures instead of sending less
//! (coordinated omission). Due times come from a timer with the kernel's full resolution, because tokio's
//! own is in milliseconds. How late the generator itself was is measured too: on a machine that is too
//! small the figures say so.
//!
//! Everything runs on one thread of its own with one runtime; others see copies of its counters through a
//! watch. GETs before `measure_from` are sent under another name and are not counted. Percentiles are of
//! answered GETs; failed ones are counted, not timed (a fast error would flatter).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use super::arms::Arm;
use super::client::{Client, Failure};
use super::ledger::{self, Kind};

/// What to send, where and when.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The outbound listener of each arm's sidecar, in the order of [`Arm::ALL`].
    pub targets: [SocketAddr; Arm::ALL.len()],
    /// GETs a second through each arm.
    pub gets_per_sec: f64,
    /// POSTs a second through each arm.
    pub posts_per_sec: f64,
    /// What is due from here on counts; before it the load warms up.
    pub measure_from: Instant,
    /// How long the load goes on after that.
    pub measure: Duration,
    /// Equal seeds give equal due times.
    pub seed: u64,
}

/// The load's counters at one moment; the last ones are its result.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// In the order of [`Arm::ALL`].
    pub arms: [ArmProgress; Arm::ALL.len()],
    /// How late requests were sent, 99th of 100.
    pub late_p99: Duration,
}

/// One arm's counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct ArmProgress {
    /// GETs sent.
    pub gets_sent: u64,
    /// GETs without a 2xx.
    pub gets_failed: u64,
    /// POSTs sent, each with an id of its own.
    pub posts_sent: u64,
    /// POSTs answered with a 2xx.
    pub posts_ok: u64,
    /// POSTs answered otherwise or not at all.
    pub posts_failed: u64,
    /// Median of answered GETs; `None`: none yet.
    pub p50: Option<Duration>,
    /// 99th of 100.
    pub p99: Option<Duration>,
    /// 999th of 1,000.
    pub p999: Option<Duration>,
    /// For each whole second so far the 99th percentile of what was answered in it.
    pub p99_by_second: Vec<Option<Duration>>,
    /// Failures of GETs and POSTs by reason.
    pub failures: BTreeMap<Failure, u64>,
}

/// A load under way on its own thread.
pub struct Load {
    progress: watch::Receiver<Progress>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    /// Starts to send at once.
    pub fn start(plan: Plan) -> anyhow::Result<Load> {
        let (publish, progress) = watch::channel(Progress::default());
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime
                    .block_on(LocalSet::new().run_until(Generator::new(&plan).run(&plan, &publish)))
            })
            .context("cannot start the load's thread")?;
        Ok(Load { progress, thread })
    }

    /// The counters a moment ago.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Whether everything was sent and answered, or the load failed.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end, then the final counters.
    pub fn finish(self) -> anyhow::Result<Progress> {
        self.thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        Ok(self.progress.borrow().clone())
    }
}

struct Generator {
    streams: Vec<Stream>,
    arms: Vec<Rc<ArmState>>,
    lateness: Histogram<u64>,
}

/// The arrivals of one kind of request through one arm.
struct Stream {
    arm: Arm,
    kind: Kind,
    due: Instant,
    per_sec: f64,
    measured: bool,
    next_id: u64,
    random: SmallRng,
}

struct ArmState {
    client: Client,
    tally: RefCell<Tally>,
}

impl Generator {
    fn new(plan: &Plan) -> Generator {
        let now = Instant::now();
        let kinds = [(Kind::Get, plan.gets_per_sec), (Kind::Post, plan.posts_per_sec)];
        let streams = Arm::ALL
            .into_iter()
            .flat_map(|arm| kinds.map(|(kind, per_sec)| (arm, kind, per_sec)))
            .filter(|(_, _, per_sec)| *per_sec > 0.0)
            .enumerate()
            .map(|(index, (arm, kind, per_sec))| {
                let random = SmallRng::seed_from_u64(plan.seed ^ (index as u64 + 1));
                Stream { arm, kind, due: now, per_sec, measured: false, next_id: 0, random }
            })
            .collect();
        let arms = plan
            .targets
            .iter()
            .map(|target| {
                Rc::new(ArmState {
                    client: Client::new(*target),
                    tally: RefCell::new(Tally::new()),
                })
            })
            .collect();
        Generator { streams, arms, lateness: histogram() }
    }

    async fn run(mut self, plan: &Plan, publish: &watch::Sender<Progress>) -> anyhow::Result<()> {
        let timer = DueTimer::new()?;
        let end = plan.measure_from + plan.measure;
        let mut next_publish = Instant::now() + PUBLISH_EVERY;
        let mut in_flight = JoinSet::new();
        loop {
            let stream = self.streams.iter_mut().min_by_key(|stream| stream.due);
            let Some(stream) = stream.filter(|stream| stream.due < end) else {
                break;
            };
            timer.wait_until(stream.due).await?;
            let due = stream.due;
            let measured = due >= plan.measure_from;
            if measured {
                self.lateness.saturating_record(micros(due.elapsed()));
            }
            if measured && !stream.measured {
                // The ids that count begin at 0.
                (stream.measured, stream.next_id) = (true, 0);
            }
            let (arm, kind, id) = stream.advance();
            let state = Rc::clone(&self.arms[arm.index()]);
            let name = if measured { arm.name() } else { "warm-up" };
            let request = request(kind, name, id)?;
            let measured_from = measured.then_some(plan.measure_from);
            in_flight.spawn_local(exchange(state, request, kind, due, measured_from));
            while let Some(ended) = in_flight.try_join_next() {
                ended.context("a request's task failed")?;
            }
            if Instant::now() >= next_publish {
                next_publish += PUBLISH_EVERY;
                publish.send_replace(self.progress());
            }
        }
        // Each request has a timeout, so this ends.
        while let Some(ended) = in_flight.join_next().await {
            ended.context("a request's task failed")?;
        }
        for state in &self.arms {
            state.tally.borrow_mut().close_seconds_before(plan.measure.as_secs());
        }
        publish.send_replace(self.progress());
        Ok(())
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress {
            late_p99: Duration::from_micros(self.lateness.value_at_quantile(0.99)),
            ..Progress::default()
        };
        for (arm, state) in progress.arms.iter_mut().zip(&self.arms) {
            *arm = state.tally.borrow().progress();
        }
        progress
    }
}

impl Stream {
    /// The request that is due, after which the next one is.
    fn advance(&mut self) -> (Arm, Kind, u64) {
        let id = self.next_id;
        self.next_id += 1;
        // Exponential gaps; the argument of the logarithm is in (0, 1].
        let uniform: f64 = self.random.random_range(0.0..1.0);
        self.due += Duration::from_secs_f64(-(1.0 - uniform).ln() / self.per_sec);
        (self.arm, self.kind, id)
    }
}

fn request(kind: Kind, name: &str, id: u64) -> anyhow::Result<Request<Full<Bytes>>> {
    let builder = Request::builder()
        .method(kind.method())
        .uri(ledger::path(name, id))
        .header(HOST, "orders.mesh");
    let request = match kind {
        Kind::Get => builder.body(Full::default()),
        Kind::Post => builder.header(CONTENT_TYPE, "application/json").body(Full::from(POST_BODY)),
    };
    request.context("cannot build a request")
}

async fn exchange(
    state: Rc<ArmState>,
    request: Request<Full<Bytes>>,
    kind: Kind,
    due: Instant,
    measured_from: Option<Instant>,
) {
    let Some(measured_from) = measured_from else {
        let _ = state.client.send(request).await;
        return;
    };
    state.tally.borrow_mut().sent(kind);
    let result = state.client.send(request).await;
    let now = Instant::now();
    state.tally.borrow_mut().done(
        kind,
        result,
        now - due,
        now.saturating_duration_since(measured_from),
    );
}

/// One arm's counters.
struct Tally {
    counts: ArmProgress,
    latency: Histogram<u64>,
    second: u64,
    in_second: Vec<u64>,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            counts: ArmProgress::default(),
            latency: histogram(),
            second: 0,
            in_second: Vec::new(),
        }
    }

    fn sent(&mut self, kind: Kind) {
        match kind {
            Kind::Get => self.counts.gets_sent += 1,
            Kind::Post => self.counts.posts_sent += 1,
        }
    }

    /// `at`: the moment, counted from the start of measuring.
    fn done(&mut self, kind: Kind, result: Result<(), Failure>, took: Duration, at: Duration) {
        self.close_seconds_before(at.as_secs());
        match (kind, result) {
            (Kind::Get, Ok(())) => {
                self.latency.saturating_record(micros(took));
                self.in_second.push(micros(took));
            }
            (Kind::Post, Ok(())) => self.counts.posts_ok += 1,
            (kind, Err(failure)) => {
                match kind {
                    Kind::Get => self.counts.gets_failed += 1,
                    Kind::Post => self.counts.posts_failed += 1,
                }
                *self.counts.failures.entry(failure).or_default() += 1;
            }
        }
    }

    fn close_seconds_before(&mut self, second: u64) {
        while self.second < second {
            self.in_second.sort_unstable();
            // The smallest value that 99 % do not exceed.
            let rank = (self.in_second.len() * 99).div_ceil(100);
            let p99 = rank.checked_sub(1).map(|index| Duration::from_micros(self.in_second[index]));
            self.counts.p99_by_second.push(p99);
            self.in_second.clear();
            self.second += 1;
        }
    }

    fn progress(&self) -> ArmProgress {
        let at = |quantile| {
            let known = !self.latency.is_empty();
            known.then(|| Duration::from_micros(self.latency.value_at_quantile(quantile)))
        };
        ArmProgress { p50: at(0.5), p99: at(0.99), p999: at(0.999), ..self.counts.clone() }
    }
}

/// Waits for an instant with the kernel's resolution.
struct DueTimer(AsyncFd<OwnedFd>);

impl DueTimer {
    fn new() -> anyhow::Result<DueTimer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, flags).context("cannot create a timer")?;
        // Its successor is unsafe, for types that might change their descriptor: an `OwnedFd` never does.
        #[allow(deprecated)]
        let timer = AsyncFd::new(timer)?;
        Ok(DueTimer(timer))
    }

    async fn wait_until(&self, due: Instant) -> anyhow::Result<()> {
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            // Behind: still give the answers a turn.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let value = Timespec::try_from(wait).context("a due time out of range")?;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0u8; 8];
            let read =
                ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            // Not yet, in spite of readiness: wait on.
            if let Ok(result) = read {
                result?;
                return Ok(());
            }
        }
    }
}

/// Microseconds up to a minute, three digits: far more than a request may take.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are valid")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// A small order: 128 bytes.
const POST_BODY: &str = "{\"item\":\"keel, even\",\"quantity\":1,\"note\":\"an order that must be placed once, \
                         however often hosts stop, slow down or die\"  }";

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn failures_are_counted_and_not_timed() {
        let mut tally = Tally::new();
        for _ in 0..4 {
            tally.sent(Kind::Get);
        }
        for _ in 0..3 {
            tally.done(Kind::Get, Ok(()), ms(10), ms(1));
        }
        tally.done(Kind::Get, Err(Failure::Timeout), ms(5000), ms(1));
        tally.sent(Kind::Post);
        tally.done(Kind::Post, Err(Failure::Broken), ms(1), ms(1));
        let progress = tally.progress();
        assert_eq!((progress.gets_sent, progress.gets_failed), (4, 1));
        assert_eq!((progress.posts_sent, progress.posts_ok, progress.posts_failed), (1, 0, 1));
        assert_eq!(
            progress.failures.into_iter().collect::<Vec<_>>(),
            [(Failure::Broken, 1), (Failure::Timeout, 1)]
        );
        let p99 = progress.p99.expect("something was answered");
        assert!(p99 >= ms(10) && p99 < ms(11), "{p99:?}");
    }

    #[test]
    fn each_second_has_its_own_percentile_and_an_empty_one_has_none() {
        let mut tally = Tally::new();
        for value in 1..=200 {
            tally.done(Kind::Get, Ok(()), ms(value), ms(500));
        }
        tally.done(Kind::Get, Ok(()), ms(7), ms(2_100));
        tally.done(Kind::Get, Ok(()), ms(9), ms(3_000));
        let seconds = tally.progress().p99_by_second;
        assert_eq!(seconds, [Some(ms(198)), None, Some(ms(7))]);
    }

    #[test]
    fn arrivals_keep_the_rate_and_never_the_id() {
        let start = Instant::now();
        let mut stream = Stream {
            arm: Arm::P2c,
            kind: Kind::Post,
            due: start,
            per_sec: 200.0,
            measured: true,
            next_id: 0,
            random: SmallRng::seed_from_u64(3),
        };
        for expected in 0..20_000 {
            assert_eq!(stream.advance(), (Arm::P2c, Kind::Post, expected));
        }
        let seconds = (stream.due - start).as_secs_f64();
        assert!((97.0..103.0).contains(&seconds), "20,000 arrivals at 200/s took {seconds} s");
    }
}

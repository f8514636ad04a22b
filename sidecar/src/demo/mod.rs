//! `evenkeel demo`: what Evenkeel does, shown with real processes in half a minute.
//!
//! Three hosts offer six applications that are stopped again and again; four more hosts carry the same
//! load to them, each in its own way ([`arms`]), at the same time. Half-way one offering host is killed.
//! The figures are taken where an application would see them: latency at the load's own clock, from the
//! time a request was due; executions in the applications' ledgers; processor time from the kernel.
//!
//! It needs no root, no network and no other software, starts only processes that cannot outlive it, and
//! uses the same binary and files that an operator would.

mod application;
mod arms;
mod client;
mod ledger;
mod load;
mod mesh;
mod pauses;
mod process;
mod screen;
mod table;

pub use application::{ApplicationArgs, run_application};

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::arms::Arm;
use self::ledger::Ledgers;
use self::load::{Load, Plan, Progress};
use self::mesh::{KILLED, Mesh, SERVICE};
use self::pauses::Pauses;
use self::screen::{Frame, Screen};
use self::table::{Posts, Results, Row};

/// Shows four ways through the same failing applications side by side
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Keep the mesh running afterwards, until Ctrl-C, and its files for good
    #[arg(long)]
    keep: bool,
    /// GETs a second, each way
    #[arg(long, hide = true, default_value_t = 200.0, value_parser = rate)]
    gets: f64,
    /// POSTs a second, each way
    #[arg(long, hide = true, default_value_t = 25.0, value_parser = rate)]
    posts: f64,
    /// How long an application is stopped, in milliseconds; 0: never
    #[arg(long, hide = true, default_value_t = 100)]
    pause_ms: u64,
    /// How long an application takes for a request besides its own work, in microseconds
    #[arg(long, hide = true, default_value_t = 0)]
    service_time_us: u64,
    /// Makes arrivals and pauses the same again
    #[arg(long, hide = true)]
    seed: Option<u64>,
    /// Become `evenkeel run` with this file (how the demo starts its hosts)
    #[arg(long, hide = true, requires = "parent")]
    as_host: Option<PathBuf>,
    /// The demo's process id
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1.0..=RATE_MAX).contains(&rate) {
        Ok(rate)
    } else {
        Err(format!("not between 1 and {RATE_MAX}"))
    }
}

/// Runs the demo to its end, or until it is interrupted.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    if let (Some(config), Some(parent)) = (&args.as_host, args.parent) {
        return process::become_host(config, parent);
    }
    // One runtime on this thread, which starts the children and so must live as long as they.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let _mesh = tokio::select! {
            mesh = demonstrate(&args) => mesh?,
            signals = interrupted() => {
                signals?;
                bail!("interrupted: everything that was started is ended");
            }
        };
        if args.keep {
            interrupted().await?;
        }
        Ok(())
    })
}

async fn interrupted() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

/// Everything in order. What is started is ended by its guard, however this ends; the mesh is the caller's.
async fn demonstrate(args: &DemoArgs) -> anyhow::Result<Mesh> {
    let mut screen = Screen::new();
    let seed = args.seed.unwrap_or_else(seed_of_this_run);
    let length = Duration::from_secs(args.seconds);
    screen.say(&introduction(args))?;

    let mut mesh = Mesh::start(args.keep, args.service_time_us, seed).await?;
    let pauses = (args.pause_ms > 0)
        .then(|| Pauses::start(mesh.application_pids(), Duration::from_millis(args.pause_ms), seed))
        .transpose()
        .context("cannot start the pauses")?;
    let measure_from = Instant::now() + WARM_UP;
    let load = Load::start(Plan {
        targets: mesh.targets(),
        gets_per_sec: args.gets,
        posts_per_sec: args.posts,
        measure_from,
        measure: length,
        seed,
    })?;
    let mut watch = Watch::new(&mesh, measure_from, length);
    while !(watch.is_over() && load.is_finished()) {
        tokio::time::sleep(watch.until_next_step()).await;
        watch.step(&mut mesh, &load.progress())?;
        screen.draw(&watch.frame())?;
    }
    let progress = load.finish()?;
    drop(pauses);
    watch.finish(&progress)?;
    report(&mut screen, args, &mesh, &watch.results, &progress)?;
    match watch.results.executed_twice() {
        None => Ok(mesh),
        Some(arm) => bail!("a POST through {} was executed twice, which must never be", arm.name()),
    }
}

/// Follows the run: the killing, the processor time, the figures so far.
struct Watch {
    measure_from: Instant,
    length: Duration,
    ledgers: Ledgers,
    cpu_before: Option<[Duration; Arm::ALL.len()]>,
    cpu_used: [Duration; Arm::ALL.len()],
    over: bool,
    killed_at: Option<Duration>,
    progress: Progress,
    results: Results,
}

impl Watch {
    fn new(mesh: &Mesh, measure_from: Instant, length: Duration) -> Watch {
        let mut watch = Watch {
            measure_from,
            length,
            ledgers: Ledgers::new(mesh.ledgers()),
            cpu_before: None,
            cpu_used: Default::default(),
            over: false,
            killed_at: None,
            progress: Progress::default(),
            results: Results { rows: Vec::new(), late_p99: Duration::ZERO },
        };
        watch.results = watch.compute();
        watch
    }

    fn elapsed(&self) -> Option<Duration> {
        Instant::now().checked_duration_since(self.measure_from)
    }

    /// Whether the time to measure has passed.
    fn is_over(&self) -> bool {
        self.over
    }

    /// Until the view is drawn again, or the begin, the killing or the end of measuring if that is sooner.
    fn until_next_step(&self) -> Duration {
        let now = Instant::now();
        let moments =
            [Duration::ZERO, self.length / 2, self.length].map(|after| self.measure_from + after);
        let waits = moments.into_iter().filter(|moment| *moment > now).map(|moment| moment - now);
        waits.fold(REDRAW_EVERY, Duration::min)
    }

    fn step(&mut self, mesh: &mut Mesh, progress: &Progress) -> anyhow::Result<()> {
        mesh.check_running(self.killed_at.is_some())?;
        let Some(elapsed) = self.elapsed() else {
            return Ok(());
        };
        let cpu = mesh.client_cpu()?;
        let before = *self.cpu_before.get_or_insert(cpu);
        // After the load's end a host uses a little more, for itself only.
        if !self.over {
            self.cpu_used = std::array::from_fn(|index| cpu[index].saturating_sub(before[index]));
            self.over = elapsed >= self.length;
        }
        if self.killed_at.is_none() && elapsed >= self.length / 2 {
            mesh.kill_host();
            self.killed_at = Some(elapsed);
        }
        self.update(progress)
    }

    fn finish(&mut self, progress: &Progress) -> anyhow::Result<()> {
        self.update(progress)
    }

    fn update(&mut self, progress: &Progress) -> anyhow::Result<()> {
        self.ledgers.read_on().context("cannot read the applications' ledgers")?;
        self.progress = progress.clone();
        self.results = self.compute();
        Ok(())
    }

    fn compute(&self) -> Results {
        let rows = Arm::ALL.into_iter().map(|arm| {
            let load = &self.progress.arms[arm.index()];
            let executed = self.ledgers.counts(arm);
            let posts_sent = load.posts_sent;
            let requests = u32::try_from(load.gets_sent + load.posts_sent).unwrap_or(u32::MAX);
            Row {
                arm,
                p50: load.p50,
                p99: load.p99,
                p999: load.p999,
                sent: load.gets_sent,
                failed: load.gets_failed,
                extra: executed.extra_gets(load.gets_sent),
                cpu: self.cpu_used[arm.index()].checked_div(requests),
                posts: Posts {
                    sent: posts_sent,
                    ok: load.posts_ok,
                    failed: load.posts_failed,
                    once: executed.posts_once(posts_sent),
                    twice: executed.posts_twice(posts_sent),
                },
            }
        });
        Results { rows: rows.collect(), late_p99: self.progress.late_p99 }
    }

    fn frame(&self) -> Frame<'_> {
        Frame {
            elapsed: self.elapsed(),
            length: self.length,
            results: &self.results,
            p99_by_second: Arm::ALL.map(|arm| &*self.progress.arms[arm.index()].p99_by_second),
            killed_at: self.killed_at,
        }
    }
}

fn introduction(args: &DemoArgs) -> String {
    let text = format!(
        "Six applications on three hosts, each stopped for {} ms about once a second, as garbage collection \
         or a throttled processor would. Four ways through the mesh to them at the same time, {} GETs and {} \
         POSTs a second each. Half-way one of the three hosts is killed.",
        args.pause_ms, args.gets, args.posts
    );
    format!("{}\n", table::wrapped(&text))
}

fn report(
    screen: &mut Screen,
    args: &DemoArgs,
    mesh: &Mesh,
    results: &Results,
    progress: &Progress,
) -> anyhow::Result<()> {
    let p99_by_second = Arm::ALL.map(|arm| &*progress.arms[arm.index()].p99_by_second);
    let mut text = format!(
        "{}\n{}\n{}\n\n{}\n",
        results.table(),
        screen::chart(p99_by_second),
        results.verdict(),
        results.posts()
    );
    for arm in Arm::ALL {
        let failures = &progress.arms[arm.index()].failures;
        if !failures.is_empty() {
            let each = failures.iter().map(|(failure, count)| format!("{count} × {failure}"));
            let each = each.collect::<Vec<_>>().join(", ");
            text.push_str(&format!("Failures, {}: {each}\n", arm.title()));
        }
    }
    for remark in results.remarks() {
        text.push_str(&format!("\n{remark}\n"));
    }
    text.push_str(&format!("\n{}", next_steps(args, mesh)?));
    if args.json {
        text.push_str(&format!("\n{}", results.json()));
    }
    screen.say(&text)?;
    Ok(())
}

/// Three commands to try.
fn next_steps(args: &DemoArgs, mesh: &Mesh) -> anyhow::Result<String> {
    if !args.keep {
        return Ok(
            "`evenkeel demo --keep` leaves this mesh running and prints what to try with it."
                .to_owned(),
        );
    }
    let ports = mesh.client(Arm::Evenkeel).ports;
    let program = std::env::current_exe()?;
    Ok(format!(
        "The mesh runs on without {KILLED} until Ctrl-C, its files and logs are in\n{}. Try:\n\
         \x20 dig @{} -p {} {SERVICE}.service.mesh SRV\n\
         \x20 curl -H 'Host: {SERVICE}.mesh' http://{}/hello\n\
         \x20 {} explain {SERVICE} --admin {}",
        mesh.directory().display(),
        ports.dns.ip(),
        ports.dns.port(),
        ports.outbound,
        program.display(),
        ports.admin,
    ))
}

/// Different for each run and for demos started at the same time.
fn seed_of_this_run() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Only the low bits matter: they change fastest.
    since.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32)
}

/// Enough for a hundred samples and more: hedging waits for them.
const WARM_UP: Duration = Duration::from_secs(2);

const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Beyond this one generator thread is the bottleneck.
const RATE_MAX: f64 = 2_000.0;

//! Keeps the log from being filled: each call site may write so many lines, and what is left out is counted and said.
//!
//! Whoever can reach a listener can make a library repeat itself: h2 warns of each stray PING acknowledgement, and
//! 830 KiB of those made 300 MB of log. A level for each library would not do: what it says once is worth reading. So
//! each call site, which is a place in the source code and no message, has a bucket of lines. Libraries have a small
//! one, our own lines a large one, errors no larger one than others: the hundredth line of one kind within a second
//! tells nobody anything that its count would not.
//!
//! Nothing is lost silently: while lines are being left out, their number is said every [`TELL_INTERVAL`] on the
//! level of the lines themselves, and for the last time when the log ends. A thread of its own says it, because a
//! subscriber must not write lines while it is being asked about one.
//!
//! Call sites are part of the program, so the table of them needs no other limit. The access log has its own queue
//! and count ([`crate::access`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use prometheus::{IntCounter, IntCounterVec, Opts};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The layer that leaves lines out. It has to stand outside of the one that writes.
pub struct LineLimit(Arc<CallSites>);

/// The thread that says what was left out. Dropping it says the rest.
pub struct LeftOutLines {
    sites: Arc<CallSites>,
    thread: Option<JoinHandle<()>>,
    suppressed: IntCounterVec,
}

/// The layer, and what says how much it left out.
///
/// # Errors
/// The operating system gives no thread.
pub fn start() -> std::io::Result<(LineLimit, LeftOutLines)> {
    let suppressed = IntCounterVec::new(
        Opts::new(
            "evenkeel_log_lines_suppressed_total",
            "Lines of the log left out, because their call site wrote too many.",
        ),
        &["level"],
    )
    .expect("the name and its label are valid");
    let counters = LEVELS.map(|level| suppressed.with_label_values(&[level.as_str()]));
    let sites = Arc::new(CallSites { table: Mutex::default(), wake: Condvar::new(), counters });
    let telling = Arc::clone(&sites);
    let thread = std::thread::Builder::new().name("ek-log".into()).spawn(move || {
        while telling.wait() {
            telling.tell(Instant::now());
        }
    })?;
    let left_out = LeftOutLines { sites: Arc::clone(&sites), thread: Some(thread), suppressed };
    Ok((LineLimit(sites), left_out))
}

impl LeftOutLines {
    /// The number of lines left out so far, for `/metrics`.
    pub fn counter(&self) -> IntCounterVec {
        self.suppressed.clone()
    }
}

impl Drop for LeftOutLines {
    fn drop(&mut self) {
        self.sites.lock().ended = true;
        self.sites.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.sites.tell(Instant::now());
    }
}

impl<S: Subscriber> Layer<S> for LineLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.may_write(event.metadata(), Instant::now())
    }
}

/// What each call site has written.
struct CallSites {
    table: Mutex<CallSiteTable>,
    /// Something was left out for the first time since it was told, or the log ends.
    wake: Condvar,
    counters: [IntCounter; LEVELS.len()],
}

#[derive(Default)]
struct CallSiteTable {
    sites: HashMap<Identifier, CallSite>,
    /// Lines were left out that nobody was told of yet.
    untold: bool,
    ended: bool,
}

struct CallSite {
    metadata: &'static Metadata<'static>,
    /// Lines that it may write at once.
    allowance: f64,
    /// When that was so.
    at: Instant,
    /// Lines left out since it was last told.
    left_out: u64,
}

/// How many lines one call site may write: at once, and in the long run.
struct LineRate {
    burst: f64,
    per_sec: f64,
}

impl LineRate {
    fn of(metadata: &Metadata<'_>) -> &'static LineRate {
        if metadata.target().starts_with("evenkeel") { &OWN_LINES } else { &LIBRARY_LINES }
    }
}

impl CallSites {
    fn lock(&self) -> MutexGuard<'_, CallSiteTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_write(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        // What is left out is said here, once an interval for each call site.
        if metadata.target() == TOLD_AS {
            return true;
        }
        let rate = LineRate::of(metadata);
        let mut table = self.lock();
        let site = table.sites.entry(metadata.callsite()).or_insert(CallSite {
            metadata,
            allowance: rate.burst,
            at: now,
            left_out: 0,
        });
        let since = now.saturating_duration_since(site.at).as_secs_f64();
        site.allowance = since.mul_add(rate.per_sec, site.allowance).min(rate.burst);
        site.at = now;
        if site.allowance >= 1.0 {
            site.allowance -= 1.0;
            return true;
        }
        site.left_out += 1;
        if !std::mem::replace(&mut table.untold, true) {
            self.wake.notify_all();
        }
        drop(table);
        if let Some(at) = LEVELS.iter().position(|level| level == metadata.level()) {
            self.counters[at].inc();
        }
        false
    }

    /// Waits until there is something to say and it is time to say it; false: the log ends.
    fn wait(&self) -> bool {
        let idle = |table: &mut CallSiteTable| !table.ended && !table.untold;
        let table = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let more = |table: &mut CallSiteTable| !table.ended;
        let waited = self.wake.wait_timeout_while(table, TELL_INTERVAL, more);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Says how many lines each call site has left out since the last time.
    fn tell(&self, now: Instant) {
        let mut table = self.lock();
        table.untold = false;
        let told: Vec<(&'static Metadata<'static>, u64)> = table
            .sites
            .values_mut()
            .filter(|site| site.left_out > 0)
            .map(|site| (site.metadata, std::mem::take(&mut site.left_out)))
            .collect();
        // A call site that is silent again is forgotten: what it had left to write comes back with it.
        table.sites.retain(|_, site| now.saturating_duration_since(site.at) < FORGOTTEN_AFTER);
        drop(table);
        for (metadata, lines) in told {
            say(metadata, lines);
        }
    }
}

fn say(metadata: &Metadata<'_>, lines: u64) {
    let (target, file) = (metadata.target(), metadata.file().unwrap_or_default());
    // The path of a library begins with where it was built.
    let file = match file.rsplit_once("/src/") {
        Some((package, within)) => {
            format!("{}/src/{within}", package.rsplit('/').next().unwrap_or_default())
        }
        None => file.to_owned(),
    };
    let at = format!("{file}:{}", metadata.line().unwrap_or_default());
    macro_rules! say_at {
        ($level:expr) => {
            tracing::event!(
                target: TOLD_AS, $level, lines, of = target, at,
                "lines were left out: one place in the program wrote too many of a kind"
            )
        };
    }
    match *metadata.level() {
        Level::ERROR => say_at!(Level::ERROR),
        Level::WARN => say_at!(Level::WARN),
        Level::INFO => say_at!(Level::INFO),
        Level::DEBUG => say_at!(Level::DEBUG),
        Level::TRACE => say_at!(Level::TRACE),
    }
}

/// The target of the lines that say what was left out.
const TOLD_AS: &str = "evenkeel::log_limit";
/// How long it takes until it is said that lines are being left out, and between two times.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// Longer than the longest bucket takes to be full again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// A library says what went wrong once or twice; twenty call sites that a peer can make repeat themselves come to
/// some 250 MB a day.
const LIBRARY_LINES: LineRate = LineRate { burst: 10.0, per_sec: 1.0 };
/// More than a start says in one place (a line for each warning of a large configuration, and for each listener).
const OWN_LINES: LineRate = LineRate { burst: 200.0, per_sec: 10.0 };
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Lines;

        fn make_writer(&'a self) -> Lines {
            self.clone()
        }
    }

    impl Lines {
        fn count(&self, part: &str) -> usize {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().filter(|line| line.contains(part)).count()
        }
    }

    /// What is written while `work` runs, and once the log has ended.
    fn logged(work: impl FnOnce(&LeftOutLines)) -> Lines {
        let lines = Lines::default();
        let (limit, left_out) = start().unwrap();
        let writer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(lines.clone());
        let subscriber = tracing_subscriber::registry().with(limit).with(writer);
        tracing::subscriber::with_default(subscriber, || {
            work(&left_out);
            drop(left_out);
        });
        lines
    }

    #[test]
    fn a_line_that_a_library_repeats_is_bounded_and_counted_and_others_are_written() {
        let lines = logged(|left_out| {
            for _ in 0..5_000 {
                tracing::warn!(target: "h2::proto::ping_pong", "received PING ack that we never sent");
            }
            tracing::warn!(target: "h2::proto::streams", "something else");
            let warned = left_out.counter().with_label_values(&["WARN"]).get();
            assert!((4_980..=4_990).contains(&warned), "{warned}");
        });
        let written = lines.count("never sent");
        assert!((10..=20).contains(&written), "{written}");
        assert_eq!(lines.count("something else"), 1);
        assert_eq!(lines.count("of=\"h2::proto::ping_pong\""), 1);
        assert_eq!(lines.count("at=\"sidecar/src/log_limit.rs:"), 1);
        assert_eq!(lines.count(&format!("lines={}", 5_000 - written)), 1);
    }

    #[test]
    fn our_own_errors_are_bounded_too_and_their_number_is_said_as_an_error() {
        let lines = logged(|_| {
            for name in 0..1_000 {
                tracing::error!(target: "evenkeel::pool", name, "it broke");
            }
        });
        let written = lines.count("it broke");
        assert!((200..=300).contains(&written), "{written}");
        assert_eq!(lines.count("ERROR evenkeel::log_limit"), 1);
        assert_eq!(lines.count(&format!("lines={}", 1_000 - written)), 1);
    }

    #[test]
    fn a_bucket_fills_again() {
        let lines = logged(|_| tracing::warn!(target: "h2", "one"));
        assert_eq!(lines.count("one"), 1);
        let (limit, _left_out) = start().unwrap();
        let metadata = metadata();
        let t0 = Instant::now();
        let written =
            |at: Duration| (0..100).filter(|_| limit.0.may_write(metadata, t0 + at)).count();
        let second = Duration::from_secs(1);
        assert_eq!([0, 0, 1, 3, 1000].map(|at| written(at * second)), [10, 0, 1, 2, 10]);
    }

    /// The metadata of a call site of a library.
    fn metadata() -> &'static Metadata<'static> {
        use tracing::callsite::Callsite as _;
        static CALL_SITE: tracing::callsite::DefaultCallsite =
            tracing::callsite::DefaultCallsite::new(&METADATA);
        static METADATA: Metadata<'static> = tracing::metadata! {
            name: "test",
            target: "h2",
            level: Level::WARN,
            fields: &[],
            callsite: &CALL_SITE,
            kind: tracing::metadata::Kind::EVENT
        };
        CALL_SITE.metadata()
    }
}

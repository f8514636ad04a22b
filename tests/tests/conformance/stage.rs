//! The pair of hosts and the raw backends that a table runs against, and the running of it.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use evenkeel_tests::mesh::{Host, Lab, Setup};

use crate::conformance::backend::Backend;
use crate::conformance::caller::{Heard, call_http1, call_http2, connect};
use crate::conformance::check::{Arrives, CREDENTIALS, Check, breaches_of_heard, faults_of_heard};
use crate::conformance::message::{Message, latin1};
use crate::conformance::row::{Door, Row, Way};
use crate::conformance::run::{Run, Runs, STEP_MAX, within};
use crate::conformance::script::{Names, Step};

/// Two hosts of one mesh, callers on the first, and backends that both know.
pub struct Stage {
    /// The host of the callers.
    pub caller: Host,
    callee: Host,
    runs: Arc<Runs>,
    rows: AtomicU32,
    _backends: Vec<Backend>,
    /// Dropped last: the network is another's then.
    lab: Lab,
}

impl Stage {
    /// Starts hosts and backends and waits until every way is open.
    pub fn start() -> Stage {
        Stage::with("", "")
    }

    /// [`Stage::start`] with these upstreams and services beside its own.
    pub fn with(upstreams: &str, services: &str) -> Stage {
        let lab = Lab::new(2);
        let runs = Arc::new(Runs::default());
        let mut backends = Vec::new();
        for last in BACKENDS {
            for (port, http2) in [(PORT_HTTP1, false), (PORT_HTTP2, true)] {
                let address = SocketAddrV4::new(lab.ip(last), port);
                backends.push(Backend::start(address, http2, &runs));
            }
        }
        // Whatever a row does, the next one finds its backend in the balancer.
        let policy = "{timeout: 3s, retry: {max: 0}, eject: {consecutive: 0}}";
        let fill = |text: &str| {
            BACKENDS.iter().fold(text.to_owned(), |text, last| {
                text.replace(&format!("{{ip{last}}}"), &lab.ip(*last).to_string())
            })
        };
        let setup = |upstreams: String, services: String| Setup {
            join: vec![1, 2],
            policy: policy.into(),
            upstreams,
            services,
            more: "log: {level: warn}\n".into(),
            ..Setup::default()
        };
        let listeners =
            format!("[{{listen: \"{}:{PORT_LISTENER}\", service: static-one}}]", lab.ip(1));
        let mut hosts = lab.mesh(&[
            Setup { listeners, ..setup(fill(&format!("[{UPSTREAMS}{upstreams}]")), String::new()) },
            setup(String::new(), fill(&format!("[{SERVICES}{services}]"))),
        ]);
        let (callee, caller) = (hosts.pop().expect("two hosts"), hosts.pop().expect("two hosts"));
        let (rows, _backends) = (AtomicU32::new(1), backends);
        let stage = Stage { caller, callee, runs, rows, _backends, lab };
        for name in WAITED_FOR {
            stage.caller.wait_for_instances(name, 1);
        }
        stage
    }

    /// Runs every row over its ways, with callers of both versions where it has both.
    ///
    /// # Panics
    /// When a row does not hold; the message shows each that does not.
    pub fn run(mut self, rows: &[Row]) {
        let wanted = std::env::var("CONFORMANCE_ROW").unwrap_or_default();
        let rows: Vec<&Row> = rows.iter().filter(|row| row.about.contains(&wanted)).collect();
        let idle =
            rows.iter().find(|row| row.outcomes.is_empty() || Case::all_of(row).next().is_none());
        assert!(idle.is_none(), "a row that demands nothing or runs nowhere: {idle:?}");
        let cases: Vec<Case<'_>> = rows.iter().flat_map(|row| Case::all_of(row)).collect();
        let (alone, together): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.row.alone);
        let failures = Mutex::new(Vec::new());
        let note = |failure| failures.lock().expect("nobody panics with it").push(failure);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(case) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.run_case(case).into_iter().for_each(note);
                    }
                });
            }
        });
        alone.iter().filter_map(|case| self.run_case(case)).for_each(note);
        let mut failures = failures.into_inner().expect("nobody panics with it");
        failures.sort();
        failures.extend(self.runs.strays().iter().map(|stray| format!("to a backend: {stray}\n")));
        for host in [&mut self.caller, &mut self.callee] {
            assert!(host.process.ended().is_none(), "{} ended", host.name());
            let log = host.process.output().expect("its log can be read");
            assert!(!log.contains("panicked"), "{} panicked", host.name());
            if log.contains(CREDENTIALS) {
                failures.push(format!("RFC 9110 §4.2.4: {} logs credentials\n", host.name()));
            }
        }
        let (runs, count) = (cases.len(), failures.len());
        eprintln!("{} rows in {runs} runs, {count} failures", rows.len());
        assert!(failures.is_empty(), "{count} of {runs} runs failed\n\n{}", failures.join("\n"));
    }

    /// What went wrong, if anything did.
    fn run_case(&self, case: &Case<'_>) -> Option<String> {
        let (names, heard, arrivals) = self.exchange(case, self.host_of(case.way));
        let mut all_faults = Vec::new();
        for (arrives, checks) in &case.row.outcomes {
            let mut faults = arrives.faults(&arrivals, &names);
            faults.extend(faults_of_heard(&heard, checks, &names));
            // At the mesh port hosts tell each other what no application may hear.
            if case.row.door != Door::Mesh {
                faults.extend(breaches_of_heard(&heard));
            }
            if faults.is_empty() {
                return None;
            }
            all_faults.push(faults.join("; "));
        }
        let mut text = String::new();
        let caller = if case.http2 { "HTTP/2" } else { "HTTP/1.1" };
        let row = case.row;
        let _ = writeln!(
            text,
            "{}: {}\n  over {:?}, caller {caller}",
            row.section, row.about, case.way
        );
        let _ = writeln!(text, "  sent    {}", show(case.script()));
        let _ = writeln!(text, "  arrived {arrivals:?}");
        let _ = writeln!(
            text,
            "  heard   {:?} after interim {:?}, connection closed: {}",
            heard.answers, heard.interim, heard.closed
        );
        let _ = writeln!(text, "  wrong   {}", all_faults.join("\n  or      "));
        if let Some(reason) = row.left_lenient {
            let _ = writeln!(text, "  this row is laxer than the RFC: {reason}");
        }
        Some(text)
    }

    /// Does what a case says, to this authority; what was seen at its ends.
    pub fn exchange(&self, case: &Case<'_>, host: String) -> (Names, Heard, Vec<Message>) {
        let names = Names { row: self.rows.fetch_add(1, Ordering::Relaxed), host };
        let run = Arc::new(Run::new(names.clone(), case.row.reply.clone()));
        self.runs.add(Arc::clone(&run));
        let script = names.fill_script(case.script());
        let (to, from) = match case.row.door {
            Door::Proxy => (self.caller.outbound(), None),
            Door::Listener => (SocketAddrV4::new(self.caller.ip, PORT_LISTENER), None),
            Door::Mesh => (self.callee.data(), Some(self.caller.ip)),
        };
        let stream = connect(to, from);
        let until_closed = case
            .row
            .outcomes
            .iter()
            .any(|(_, checks)| checks.iter().any(|check| matches!(check, Check::Closed)));
        let methods: Vec<&str> = case.row.methods.iter().map(String::as_str).collect();
        let heard = if case.http2 {
            call_http2(stream, &run, &script, until_closed)
        } else {
            call_http1(stream, &run, &script, &methods, until_closed)
        };
        // What was passed on before the caller's end may still be on its way to the backend's notes.
        let must_arrive =
            case.row.outcomes.iter().all(|(arrives, _)| matches!(arrives, Arrives::Once(_)))
                && !case.row.outcomes.is_empty();
        within(STEP_MAX, || {
            let arrivals = run.arrivals();
            (!must_arrive || !arrivals.is_empty())
                && arrivals.iter().all(|message| message.end.is_some())
        });
        let arrivals = run.arrivals();
        (names, heard, arrivals)
    }

    fn host_of(&self, way: Way) -> String {
        match way {
            Way::StaticHttp1 => "static-one".into(),
            Way::StaticHttp2 => "static-two".into(),
            Way::MeshHttp1 => "mesh-one".into(),
            Way::MeshHttp2 => "mesh-two".into(),
            Way::MeshUndeclared => "mesh-any".into(),
            Way::MeshUndeclaredHttp2 => "mesh-any-two".into(),
            Way::Passthrough => format!("{}:{PORT_HTTP1}", self.lab.ip(BACKENDS[0])),
        }
    }
}

/// A row over one way, with a caller of one version.
pub struct Case<'a> {
    /// The row.
    pub row: &'a Row,
    /// The way.
    pub way: Way,
    /// Whether the caller speaks HTTP/2.
    pub http2: bool,
}

impl<'a> Case<'a> {
    /// All cases of a row.
    pub fn all_of(row: &'a Row) -> impl Iterator<Item = Case<'a>> {
        let versions = [(false, row.http1.is_some()), (true, row.http2.is_some())];
        row.ways().flat_map(move |way| {
            let present = versions.into_iter().filter(|(_, present)| *present);
            present.map(move |(http2, _)| Case { row, way, http2 })
        })
    }

    fn script(&self) -> &'a [Step] {
        let script = if self.http2 { &self.row.http2 } else { &self.row.http1 };
        script.as_deref().unwrap_or_default()
    }
}

fn show(script: &[Step]) -> String {
    let one = |step: &Step| match step {
        Step::Bytes(bytes) => format!("{:?}", cut(&latin1(bytes))),
        Step::Data(bytes, end) => format!("DATA({:?}, end {end})", cut(&latin1(bytes))),
        Step::Headers(fields, end) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{}: {}", latin1(name), cut(&latin1(value))))
                .collect();
            format!("HEADERS({}, end {end})", cut(&fields.join(" | ")))
        }
        step => format!("{step:?}"),
    };
    script.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_SHOWN) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

const UPSTREAMS: &str = "{name: static-one, endpoints: [\"{ip120}:9001\"], protocol: http}, \
    {name: static-two, endpoints: [\"{ip120}:9002\"], protocol: http2}";

const SERVICES: &str = "{name: mesh-one, address: \"{ip120}:9001\", protocol: http}, \
    {name: mesh-two, address: \"{ip120}:9002\", protocol: http2}, \
    {name: mesh-any, address: \"{ip120}:9001\"}, \
    {name: mesh-any-two, address: \"{ip120}:9002\"}";

/// The services whose instances a stage waits for.
const WAITED_FOR: [&str; 6] =
    ["static-one", "static-two", "mesh-one", "mesh-two", "mesh-any", "mesh-any-two"];

/// The last bytes of the backends' addresses.
const BACKENDS: [u8; 2] = [120, 121];

const PORT_HTTP1: u16 = 9001;
const PORT_HTTP2: u16 = 9002;
/// Where the caller's host listens for one service alone.
const PORT_LISTENER: u16 = 7081;

/// Rows at the same time: most of one is waiting for the other side.
const AT_ONCE: usize = 6;

/// Characters of one text that a failure shows.
const TEXT_SHOWN: usize = 600;

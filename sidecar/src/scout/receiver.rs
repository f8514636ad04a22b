//! Answers the scouts of other hosts: the thread `ek-scout`, on UDP, on the address and port of `mesh.data`.
//!
//! A thread of its own that reads atomics: a busy worker or a slow scrape must not make this host's applications look stopped. Asked for an instance
//! whose service has a scout port or path, it asks the application itself and answers when that has answered: an application that stands
//! still does not, which is the point. Else it answers at once, by the progress of what is in flight ([`Served`](evenkeel_balancer::Served)).
//!
//! Whom it answers: with keys whoever holds one, without keys the addresses of live members. At most [`PER_SEC_MAX`] scouts a second and
//! [`WAITING_MAX`] that wait for applications; the rest is dropped and counted, and looks to its sender like a lost datagram.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evenkeel_balancer::Report;
use evenkeel_config::settings::Scout;
use evenkeel_discovery::scout::{Answer, DATAGRAM_MAX, Question, Scouting};
use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::application::Application;
use super::asker::send_now;
use crate::route::Local;
use crate::worker::Shared;

/// The running thread. Dropping it stops it and waits for that.
#[derive(Debug)]
pub struct Receiver {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The socket, on the address that requests of other hosts come to.
///
/// # Errors
/// The port is taken.
pub fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    crate::port_pair::datagrams(address)
}

/// Starts the thread. `draining`: this host is going away.
///
/// # Errors
/// No thread, no entropy, or the metrics are registered already.
pub fn spawn(
    socket: std::net::UdpSocket,
    shared: Arc<Shared>,
    draining: Arc<AtomicBool>,
) -> io::Result<Receiver> {
    let scouting = shared.identity.scouting()?;
    let questions = Questions::registered(&shared.metrics.registry).map_err(io::Error::other)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("ek-scout".into()).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        let runtime = match built {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "scouts are not answered"),
        };
        let ended = runtime.block_on(async move {
            let answerer = Rc::new(Answerer {
                socket: UdpSocket::from_std(socket)?,
                scouting: RefCell::new(scouting),
                shared,
                draining,
                applications: RefCell::default(),
                waiting: Cell::new(0),
                questions,
            });
            tokio::select! {
                _ = stopped => io::Result::Ok(()),
                ended = answerer.run() => ended,
            }
        });
        if let Err(cause) = ended {
            tracing::error!(%cause, "scouts are not answered until a restart: other hosts use this one without them");
        }
    })?;
    Ok(Receiver { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Answerer {
    socket: UdpSocket,
    scouting: RefCell<Scouting>,
    shared: Arc<Shared>,
    draining: Arc<AtomicBool>,
    applications: RefCell<HashMap<(SocketAddr, Scout), Rc<Application>>>,
    waiting: Cell<usize>,
    questions: Questions,
}

impl Answerer {
    async fn run(self: &Rc<Self>) -> io::Result<()> {
        let mut datagram = [0; DATAGRAM_MAX + 1];
        let (mut second, mut left) = (Instant::now(), PER_SEC_MAX);
        loop {
            let (length, from) = match self.socket.recv_from(&mut datagram).await {
                Ok(received) => received,
                // An answer of ours that nobody took any more; the socket goes on.
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(cause) => return Err(cause),
            };
            let now = Instant::now();
            if now.saturating_duration_since(second) >= Duration::from_secs(1) {
                (second, left) = (now, PER_SEC_MAX);
            }
            if left == 0 {
                self.questions.limit.inc();
                continue;
            }
            left -= 1;
            self.question(&datagram[..length], from);
        }
    }

    fn question(self: &Rc<Self>, datagram: &[u8], from: SocketAddr) {
        let router = self.shared.router.load();
        if self.shared.identity.keys.is_empty()
            && !router.members.contains_key(&from.ip().to_canonical())
        {
            return self.questions.stranger.inc();
        }
        let read = self.scouting.borrow_mut().read_question(datagram);
        let Ok(Question { nonce, service, instance }) = read else {
            return self.questions.malformed.inc();
        };
        let local = router.local.get(&*instance).filter(|local| *local.service == *service);
        let Some(local) = local else {
            self.questions.unknown.inc();
            return self.answer(from, nonce, &Report::default());
        };
        local.watched.asked.store(true, Ordering::Relaxed);
        match &local.scout {
            None => {
                self.questions.answered.inc();
                self.answer(from, nonce, &self.report(local));
            }
            Some(scout) => self.ask_application(local, scout, from, nonce),
        }
    }

    fn report(&self, local: &Local) -> Report {
        let report = local.watched.served.report(Instant::now(), local.direct());
        let draining = self.draining.load(Ordering::Relaxed) || !local.serving;
        Report { draining, ..report }
    }

    fn ask_application(
        self: &Rc<Self>,
        local: &Local,
        scout: &Scout,
        from: SocketAddr,
        nonce: u64,
    ) {
        if self.waiting.get() >= WAITING_MAX {
            return self.questions.limit.inc();
        }
        let application = {
            let mut applications = self.applications.borrow_mut();
            if applications.len() >= APPLICATIONS_MAX {
                // Those that were reloaded away; the others open a connection again.
                applications.clear();
            }
            let key = (local.address, scout.clone());
            let new = || Rc::new(Application::new(local.address, scout.clone()));
            Rc::clone(applications.entry(key).or_insert_with(new))
        };
        self.waiting.set(self.waiting.get() + 1);
        let (this, local) = (Rc::clone(self), local.clone());
        tokio::task::spawn_local(async move {
            let lives = application.answers().await;
            this.waiting.set(this.waiting.get() - 1);
            if !lives {
                return this.questions.silent.inc();
            }
            this.questions.answered.inc();
            // It lives, whatever it still owes: that is slow, not stopped.
            let report = Report { alive: true, stalled: None, ..this.report(&local) };
            this.answer(from, nonce, &report);
        });
    }

    fn answer(&self, to: SocketAddr, nonce: u64, report: &Report) {
        let Report { known, in_flight, latency, stalled, alive, draining } = *report;
        let answer = Answer { nonce, known, alive, draining, in_flight, latency, stalled };
        let datagram = self.scouting.borrow_mut().answer(&answer);
        // One that cannot be sent now would be late afterwards.
        let _ = send_now(&self.socket, &datagram, to);
    }
}

/// `evenkeel_scout_questions_total{result}`, the handles resolved once.
struct Questions {
    answered: IntCounter,
    unknown: IntCounter,
    silent: IntCounter,
    malformed: IntCounter,
    stranger: IntCounter,
    limit: IntCounter,
}

impl Questions {
    fn registered(registry: &prometheus::Registry) -> prometheus::Result<Questions> {
        let opts = Opts::new(
            "evenkeel_scout_questions_total",
            "Scouts of other hosts: answered, or why not.",
        );
        let all = IntCounterVec::new(opts, &["result"])?;
        registry.register(Box::new(all.clone()))?;
        let of = |result: &str| all.with_label_values(&[result]);
        Ok(Questions {
            answered: of("answered"),
            unknown: of("unknown"),
            silent: of("silent"),
            malformed: of("malformed"),
            stranger: of("stranger"),
            limit: of("limit"),
        })
    }
}

/// A second's scouts take about a quarter of a core then.
const PER_SEC_MAX: u32 = 50_000;
/// Scouts that wait for an application's answer.
const WAITING_MAX: usize = 1024;
/// Twice as many as a configuration may have.
const APPLICATIONS_MAX: usize = 2000;

//! A worker's scouts: its socket, what it has asked and not been answered yet, and what it keeps of the answers.
//!
//! Everything happens on the worker's thread, and one task takes what arrives and what is due. Answers are taken before times: when this
//! process itself was late, the answers are in the socket already, and nobody must look silent for that.
//!
//! A scout without an answer in time makes its endpoint a suspect, and it is asked again every [`AGAIN_EVERY`], whether or not requests come, until it
//! shows life: so a pause costs one wait, not one for each guess at its end. An answer that is late still counts as one.
//!
//! An endpoint without a host of ours (a static one) is asked itself, on its scout port or path. This host's own instances
//! are asked like all others, by a datagram to ourselves: one way to be right about.
//!
//! Limits: [`OUTSTANDING_MAX`] scouts without an answer; beyond, none is sent, which looks like scouts being off.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use evenkeel_balancer::{Endpoint, Hop, Pool, Report, Wish};
use evenkeel_config::policy::{Balance, Policy};
use evenkeel_config::settings::{Key, Scout};
use evenkeel_discovery::scout::{Answer, DATAGRAM_MAX, Scouting};
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::net::UdpSocket;

use super::application::Application;
use crate::metrics::{Scouts, UpstreamMetrics};
use crate::route::Upstream;
use crate::timer::Timer;
use crate::worker::Worker;

/// As whom this host asks and answers.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The mesh's name.
    pub mesh: String,
    /// The first seals, all open.
    pub keys: Vec<Key>,
    /// This host's id when it started.
    pub node: u64,
    /// Where this host's own instances are asked for.
    pub own: SocketAddr,
}

impl Identity {
    /// One end of the conversation, with a salt of its own.
    ///
    /// # Errors
    /// No entropy.
    pub fn scouting(&self) -> io::Result<Scouting> {
        let keys: Vec<[u8; 32]> = self.keys.iter().map(|key| key.0).collect();
        Ok(Scouting::new(&self.mesh, &keys, self.node, crate::gossip::entropy()?))
    }
}

/// The scouts of one worker.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
    scouting: RefCell<Scouting>,
    rng: RefCell<SmallRng>,
    own: SocketAddr,
    outstanding: RefCell<HashMap<u64, Outstanding>>,
    due: RefCell<BTreeMap<When, Due>>,
    next_due: Cell<u64>,
    timer: Timer,
    /// Endpoints that are asked again and again until they show life.
    again: RefCell<HashSet<u64>>,
    pools: RefCell<HashMap<Arc<str>, Pool>>,
    applications: RefCell<HashMap<(SocketAddr, Scout), Rc<Application>>>,
}

/// When something is due, and a number of its own.
type When = (Instant, u64);

#[derive(Debug)]
struct Outstanding {
    about: About,
    /// When its time is over.
    timeout: When,
    /// The application itself was asked, not its host.
    direct: bool,
    at: Instant,
    lost: bool,
    waiter: Option<Waiter>,
}

/// What a scout is about.
#[derive(Debug, Clone)]
struct About {
    upstream: Arc<str>,
    metrics: Arc<UpstreamMetrics>,
    scout: Option<Scout>,
    endpoint: Arc<Endpoint>,
    timeout: Duration,
    /// Its place among so many endpoints, if the answer is for a pool.
    place: Option<(usize, usize)>,
}

#[derive(Debug)]
enum Waiter {
    Waits(Option<Waker>),
    Has(Option<Report>),
}

#[derive(Debug)]
enum Due {
    Timeout(u64),
    Forget(u64),
    Again(Box<About>, u32),
}

impl Asker {
    /// Opens the socket and starts the task. Datagrams leave from the address by which others know this host.
    ///
    /// # Errors
    /// No socket, timer or entropy.
    pub fn start(worker: &Rc<Worker>, from: IpAddr, identity: &Identity) -> io::Result<Rc<Asker>> {
        let socket = std::net::UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        let asker = Rc::new(Asker {
            socket: UdpSocket::from_std(socket)?,
            scouting: RefCell::new(identity.scouting()?),
            rng: RefCell::new(rand::make_rng()),
            own: identity.own,
            outstanding: RefCell::default(),
            due: RefCell::default(),
            next_due: Cell::new(0),
            timer: Timer::new()?,
            again: RefCell::default(),
            pools: RefCell::default(),
            applications: RefCell::default(),
        });
        tokio::task::spawn_local(run(Rc::clone(&asker), Rc::clone(worker)));
        Ok(asker)
    }

    /// Asks for one endpoint. `None`: it cannot be asked.
    pub fn ask(
        self: &Rc<Self>,
        worker: &Worker,
        upstream: &Upstream,
        endpoint: &Arc<Endpoint>,
        timeout: Duration,
        waits: bool,
    ) -> Option<Waiting> {
        let about = self.about(upstream, endpoint, timeout, None);
        let nonce = self.send(worker, about, waits)?;
        Some(Waiting { asker: Rc::clone(self), nonce })
    }

    /// Asks for some at random: as many as are due beside a request, at most `most`.
    pub fn ask_some(
        self: &Rc<Self>,
        worker: &Worker,
        upstream: &Upstream,
        policy: &Policy,
        wish: &Wish<'_>,
        most: usize,
    ) {
        let cost = if upstream.scout.is_some() { APPLICATION_COST } else { 1.0 };
        let due =
            self.with_pool(&upstream.name, |pool| pool.scouts_due(Instant::now(), most, cost));
        if due == 0 {
            return;
        }
        // An application says only that it lives: how busy it is we know better at the moment of the choice.
        let pooled = policy.balance == Balance::Scout && upstream.scout.is_none();
        let mut chosen: Vec<About> = Vec::with_capacity(due);
        let mut rng = self.rng.borrow_mut();
        upstream.balancer().scout_some(&mut *rng, policy, wish, due, |index, endpoint, of| {
            let place = pooled.then_some((index, of));
            chosen.push(self.about(upstream, endpoint, policy.scout.timeout, place));
        });
        drop(rng);
        for about in chosen {
            self.send(worker, about, false);
        }
    }

    /// The pool of an upstream.
    pub fn with_pool<T>(&self, upstream: &Arc<str>, with: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pools = self.pools.borrow_mut();
        if pools.len() >= POOLS_MAX && !pools.contains_key(upstream) {
            // Each fills again within a few requests.
            pools.clear();
        }
        with(pools.entry(Arc::clone(upstream)).or_default())
    }

    fn about(
        &self,
        upstream: &Upstream,
        endpoint: &Arc<Endpoint>,
        timeout: Duration,
        place: Option<(usize, usize)>,
    ) -> About {
        About {
            upstream: Arc::clone(&upstream.name),
            metrics: Arc::clone(upstream.metrics()),
            scout: upstream.scout.clone(),
            endpoint: Arc::clone(endpoint),
            timeout,
            place,
        }
    }

    fn send(self: &Rc<Self>, worker: &Worker, about: About, waits: bool) -> Option<u64> {
        let metrics = Arc::clone(&about.metrics);
        let sent = self.try_send(worker, about, waits);
        if sent.is_none() {
            metrics.of(worker.id).scouts(Scouts::Unsent);
        }
        sent
    }

    fn try_send(self: &Rc<Self>, worker: &Worker, about: About, waits: bool) -> Option<u64> {
        if self.outstanding.borrow().len() >= OUTSTANDING_MAX {
            return None;
        }
        let (nonce, now) = (self.rng.borrow_mut().next_u64(), Instant::now());
        let spec = about.endpoint.spec();
        let to = match spec.hop {
            Hop::Mesh => Some(spec.dial),
            Hop::Direct if spec.node != 0 => Some(self.own),
            Hop::Direct => None,
        };
        if let Some(to) = to {
            let mut scouting = self.scouting.borrow_mut();
            let question = scouting.ask(nonce, &about.upstream, &spec.instance)?;
            send_now(&self.socket, &question, to).ok()?;
        } else {
            self.ask_application(worker, nonce, spec.dial, about.scout.as_ref()?)?;
        }
        about.metrics.of(worker.id).scouts(Scouts::Asked);
        let timeout = self.later(now + about.timeout, Due::Timeout(nonce));
        let waiter = waits.then_some(Waiter::Waits(None));
        let direct = to.is_none();
        let outstanding = Outstanding { about, timeout, direct, at: now, lost: false, waiter };
        self.outstanding.borrow_mut().insert(nonce, outstanding);
        Some(nonce)
    }

    fn ask_application(
        self: &Rc<Self>,
        worker: &Worker,
        nonce: u64,
        address: SocketAddr,
        scout: &Scout,
    ) -> Option<()> {
        let key = (address, scout.clone());
        let application = {
            let mut applications = self.applications.borrow_mut();
            if applications.len() >= APPLICATIONS_MAX && !applications.contains_key(&key) {
                // Most are of endpoints that are gone; the others connect again.
                applications.clear();
            }
            let application = applications
                .entry(key)
                .or_insert_with(|| Rc::new(Application::new(address, scout.clone())));
            Rc::clone(application)
        };
        let (asker, worker_id) = (Rc::clone(self), worker.id);
        tokio::task::spawn_local(async move {
            if application.answers().await {
                asker.application_answered(worker_id, nonce);
            }
        });
        Some(())
    }

    fn later(&self, at: Instant, due: Due) -> When {
        let when = (at, self.next_due.get());
        self.next_due.set(when.1 + 1);
        self.due.borrow_mut().insert(when, due);
        self.timer.ring_at(at);
        when
    }

    /// It needs not be done: a timer that rings for nobody is dear (see [`alarm`](crate::alarm)).
    fn no_longer(&self, when: When) {
        let mut due = self.due.borrow_mut();
        due.remove(&when);
        self.timer.set(due.keys().next().map(|(at, _)| *at));
    }

    /// An application lives. How busy it is only we can tell, from what we have sent it: for who looks at the last answer (`explain`).
    fn application_answered(&self, worker: usize, nonce: u64) {
        let now = Instant::now();
        let report = self.outstanding.borrow().get(&nonce).map(|outstanding| {
            let endpoint = &outstanding.about.endpoint;
            Report {
                known: true,
                alive: true,
                in_flight: endpoint.in_flight(),
                latency: endpoint.latency(now),
                ..Report::default()
            }
        });
        if let Some(report) = report {
            self.answered(worker, now, nonce, true, &report);
        }
    }

    /// Its nonce says what it answers, not where it comes from: a host with several addresses answers from any of them.
    fn datagram(&self, worker: &Worker, datagram: &[u8]) {
        let read = self.scouting.borrow_mut().read_answer(datagram);
        let Ok(answer) = read else {
            worker.shared.metrics.scout_answers_refused.inc();
            return;
        };
        let Answer { nonce, known, alive, draining, in_flight, latency, stalled } = answer;
        let report = Report { known, alive, draining, in_flight, latency, stalled };
        if !self.answered(worker.id, Instant::now(), nonce, false, &report) {
            worker.shared.metrics.scout_answers_refused.inc();
        }
    }

    /// Takes an answer over, if it is to a question of ours.
    fn answered(
        &self,
        worker: usize,
        now: Instant,
        nonce: u64,
        direct: bool,
        report: &Report,
    ) -> bool {
        let mut table = self.outstanding.borrow_mut();
        // The network may have made two of one answer.
        let expected = |asked: &&mut Outstanding| {
            asked.direct == direct && !matches!(asked.waiter, Some(Waiter::Has(Some(_))))
        };
        let Some(outstanding) = table.get_mut(&nonce).filter(expected) else {
            return false;
        };
        let Outstanding { about, timeout, at, lost, waiter, .. } = outstanding;
        if !*lost {
            self.no_longer(*timeout);
        }
        about.endpoint.scout_answered(now, *at, report);
        let metrics = about.metrics.of(worker);
        metrics.scouts(if *lost { Scouts::Late } else { Scouts::Answered });
        metrics.scout_seconds(now.saturating_duration_since(*at));
        if let Some((index, of)) = about.place {
            let place = (index, about.endpoint.serial());
            let mut rng = self.rng.borrow_mut();
            self.with_pool(&about.upstream, |pool| pool.add(now, &mut *rng, place, of, report));
        }
        match waiter.replace(Waiter::Has(Some(*report))) {
            Some(Waiter::Waits(waker)) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            _ => drop(table.remove(&nonce)),
        }
        true
    }

    /// Does what is due; returns when something is again.
    fn expire(self: &Rc<Self>, worker: &Worker, now: Instant) {
        loop {
            let first = {
                let mut due = self.due.borrow_mut();
                match due.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    Some(entry) => return self.timer.ring_at(entry.key().0),
                    None => return,
                }
            };
            match first {
                Due::Timeout(nonce) => self.timed_out(worker, now, nonce),
                Due::Forget(nonce) => drop(self.outstanding.borrow_mut().remove(&nonce)),
                Due::Again(about, left) => self.ask_again(worker, now, *about, left),
            }
        }
    }

    fn timed_out(&self, worker: &Worker, now: Instant, nonce: u64) {
        let mut table = self.outstanding.borrow_mut();
        let Some(outstanding) = table.get_mut(&nonce) else { return };
        outstanding.lost = true;
        let Outstanding { about, at, waiter, .. } = outstanding;
        about.endpoint.scout_lost(now, *at);
        about.metrics.of(worker.id).scouts(Scouts::Lost);
        if let Some(Waiter::Waits(Some(waker))) = waiter.replace(Waiter::Has(None)) {
            waker.wake();
        }
        let mut again = self.again.borrow_mut();
        if about.endpoint.seems_silent(now)
            && again.len() < AGAIN_ENDPOINTS_MAX
            && again.insert(about.endpoint.serial())
        {
            let about = Box::new(About { place: None, ..about.clone() });
            self.later(now + AGAIN_EVERY, Due::Again(about, AGAIN_MAX));
        }
        self.later(now + FORGET_AFTER, Due::Forget(nonce));
    }

    fn ask_again(self: &Rc<Self>, worker: &Worker, now: Instant, about: About, left: u32) {
        if left == 0 || !about.endpoint.seems_silent(now) {
            self.again.borrow_mut().remove(&about.endpoint.serial());
            return;
        }
        self.send(worker, about.clone(), false);
        self.later(now + AGAIN_EVERY, Due::Again(Box::new(about), left - 1));
    }
}

/// Sends without waiting. Not by tokio's `try_send_to`, which refuses before its reactor has first looked at the socket.
///
/// # Errors
/// The send buffer is full, or the address is of the other family.
pub fn send_now(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    socket2::SockRef::from(socket).send_to(datagram, &to.into()).map(drop)
}

/// What has arrived, whether or not the runtime has heard of it: an answer that is there already is not late.
fn receive_now(socket: &UdpSocket, into: &mut [u8]) -> Option<usize> {
    (&mut &*socket2::SockRef::from(socket)).read(into).ok()
}

async fn run(asker: Rc<Asker>, worker: Rc<Worker>) {
    let mut datagram = [0; DATAGRAM_MAX + 1];
    loop {
        tokio::select! {
            biased;
            ready = asker.socket.readable() => if ready.is_err() { return },
            () = asker.timer.rings() => {}
        }
        let mut taken = 0;
        while taken < AT_ONCE_MAX {
            let Some(length) = receive_now(&asker.socket, &mut datagram) else { break };
            asker.datagram(&worker, &datagram[..length]);
            taken += 1;
        }
        if taken < AT_ONCE_MAX {
            // The runtime learns that nothing is left.
            let _ = asker
                .socket
                .try_recv(&mut datagram)
                .map(|length| asker.datagram(&worker, &datagram[..length]));
            asker.expire(&worker, Instant::now());
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// The answer to a scout: `None` without one in time.
#[derive(Debug)]
pub struct Waiting {
    asker: Rc<Asker>,
    nonce: u64,
}

impl Future for Waiting {
    type Output = Option<Report>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Report>> {
        let mut table = self.asker.outstanding.borrow_mut();
        match table.get_mut(&self.nonce).and_then(|asked| asked.waiter.as_mut()) {
            Some(Waiter::Waits(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Waiter::Has(report)) => Poll::Ready(*report),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut table = self.asker.outstanding.borrow_mut();
        let answered = |asked: &mut Outstanding| match asked.waiter.take() {
            Some(Waiter::Has(report)) => report.is_some(),
            _ => false,
        };
        // What is still outstanding, or was lost and may come late, stays for its endpoint's sake.
        if table.get_mut(&self.nonce).is_some_and(answered) {
            table.remove(&self.nonce);
        }
    }
}

/// Scouts of one worker that have not been answered.
const OUTSTANDING_MAX: usize = 4096;
/// A scout to an application itself, in datagrams: a request and a wake-up of its own.
const APPLICATION_COST: f64 = 10.0;
/// A later answer is no news.
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// A tenth of the shortest pause that matters.
const AGAIN_EVERY: Duration = Duration::from_millis(10);
/// Five seconds; then requests find out.
const AGAIN_MAX: u32 = 500;
const AGAIN_ENDPOINTS_MAX: usize = 32;
/// Datagrams taken before what is due is looked at.
const AT_ONCE_MAX: usize = 256;
const POOLS_MAX: usize = 1024;
/// Static endpoints that one worker keeps a connection for scouts to.
const APPLICATIONS_MAX: usize = 1024;

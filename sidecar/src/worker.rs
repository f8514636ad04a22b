//! A worker: one thread, one single-threaded runtime, everything of a request on it.
//!
//! A worker owns its connections, pools, generator and metric cells; nothing here is `Send` and no request
//! crosses a thread. What all workers share is in [`Shared`]: snapshots that the control side publishes and a few atomics.
//!
//! Once a second a worker sweeps its connections and pools. While requests are in flight it also watches
//! its own lag: after a pause of this process (not scheduled, stopped) every endpoint would look
//! stalled, so the balancers are told to forget what they saw meanwhile.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use foldhash::HashMap;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::access::AccessLog;
use crate::alarm::Alarms;
use crate::body::Buffers;
use crate::descriptors::Descriptors;
use crate::link::Links;
use crate::listener::Role;
use crate::lookups::Lookups;
use crate::metrics::{Metrics, UpstreamMetrics};
use crate::own::OwnListeners;
use crate::places::Places;
use crate::pool::Pool;
use crate::route::Router;
use crate::scout::{self, Asker};
use crate::spoken::SpokenProtocols;
use crate::strangers;

/// What the workers and the control side share.
#[derive(Debug)]
pub struct Shared {
    /// When the process began: the origin of the balancers' clocks.
    pub epoch: Instant,
    /// Who takes which request.
    pub router: Arc<ArcSwap<Router>>,
    /// Connections each worker serves.
    pub loads: Vec<AtomicUsize>,
    /// The limit on accepted connections of outbound, and of inbound.
    pub connections_max: AtomicUsize,
    /// Accepted connections: outbound, inbound.
    pub accepted: [AtomicUsize; 2],
    /// Those of inbound by the host that opened them.
    pub accepted_from: Mutex<HashMap<IpAddr, usize>>,
    /// Request bodies kept for a repeat.
    pub buffers: Arc<Buffers>,
    /// New requests from other hosts are told to go elsewhere.
    pub refusing: AtomicBool,
    /// Requests in flight of all workers: outbound, inbound.
    pub in_flight: [AtomicUsize; 2],
    /// Every counter.
    pub metrics: Metrics,
    /// Counts requests for names that are no upstream's.
    pub other: Arc<UpstreamMetrics>,
    /// Counts what other hosts ask of this one.
    pub inbound: Arc<UpstreamMetrics>,
    /// Where the access log goes.
    pub access: AccessLog,
    /// The address by which other hosts know us; the mesh hop is dialled from it.
    pub node_address: IpAddr,
    /// `node.name`: who calls, as long as there are no certificates.
    pub node_name: String,
    /// As whom this host asks and answers scouts.
    pub identity: scout::Identity,
    /// Where connections of hosts wait that no router knows.
    pub strangers: Arc<Places>,
    /// How many file descriptors there are.
    pub descriptors: Descriptors,
    /// Resolves names outside the mesh.
    pub lookups: Lookups,
    /// Counts the times that the mesh called hosts down: whoever waits for one may want to go elsewhere.
    pub hosts_lost: watch::Sender<u64>,
    /// Our own listeners, so that a request to ourselves is told apart from one that passes through.
    pub own: Arc<OwnListeners>,
}

/// One worker's state; lives on its thread.
#[derive(Debug)]
pub struct Worker {
    /// Which one, from 0.
    pub id: usize,
    /// What all share.
    pub shared: Arc<Shared>,
    /// Connections to endpoints.
    pub pool: Rc<Pool>,
    /// What applications speak that do not say it.
    pub spoken: SpokenProtocols,
    /// When requests are due.
    pub alarms: Rc<Alarms>,
    /// Its scouts, from the first request that sends any; `None`: they cannot be sent.
    asker: OnceCell<Option<Rc<Asker>>>,
    /// Decides among endpoints.
    pub rng: RefCell<SmallRng>,
    /// Accepted connections: outbound, inbound.
    pub links: [RefCell<Links>; 2],
    router: RefCell<Cache<Arc<ArcSwap<Router>>, Arc<Router>>>,
    busy: Cell<usize>,
    wake_lag: Notify,
}

/// What the control side or another worker asks of a worker.
#[derive(Debug)]
pub enum Order {
    /// Accept on this socket from now on.
    Listen(TcpListener, SocketAddr, Role),
    /// What is accepted on this address from now on is for this.
    Turn(SocketAddr, Role),
    /// Stop accepting on this address; what the kernel has queued is still served.
    Close(SocketAddr),
    /// Serve a connection that another worker accepted.
    Serve(std::net::TcpStream, Role, Counted),
    /// End the connections of this side gracefully.
    Drain(usize),
    /// Say on how many connections of this side something is still to be answered or written.
    CountOwing(usize, oneshot::Sender<usize>),
    /// End the thread.
    Stop,
}

/// The workers' inboxes.
#[derive(Debug, Clone)]
pub struct Inboxes(pub Vec<mpsc::Sender<Order>>);

/// Starts one worker's thread.
///
/// # Errors
/// The operating system gives no thread or no epoll.
pub fn spawn(
    id: usize,
    shared: Arc<Shared>,
    inboxes: Inboxes,
    inbox: mpsc::Receiver<Order>,
) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .build_local(tokio::runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(run(id, shared, inboxes, inbox)),
            Err(error) => {
                tracing::error!(%error, id, "worker has no runtime; raise the limit on open files");
                // Connections would be handed to it all the same.
                std::process::exit(1);
            }
        }
    })
}

async fn run(id: usize, shared: Arc<Shared>, inboxes: Inboxes, mut inbox: mpsc::Receiver<Order>) {
    let alarms = match Alarms::new(shared.epoch) {
        Ok(alarms) => Rc::new(alarms),
        Err(error) => {
            tracing::error!(%error, id, "worker has no timer; raise the limit on open files");
            std::process::exit(1);
        }
    };
    let worker = Rc::new(Worker {
        id,
        router: RefCell::new(Cache::new(Arc::clone(&shared.router))),
        pool: Rc::new(Pool::new(Arc::clone(&shared))),
        spoken: SpokenProtocols::default(),
        alarms,
        asker: OnceCell::new(),
        rng: RefCell::new(rand::make_rng()),
        links: Default::default(),
        busy: Cell::new(0),
        wake_lag: Notify::new(),
        shared,
    });
    tokio::task::spawn_local(watch_lag(Rc::clone(&worker)));
    tokio::task::spawn_local(crate::alarm::run(Rc::clone(&worker.alarms)));
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut open: Vec<OpenListener> = Vec::new();
    let mut hosts_lost = worker.shared.hosts_lost.subscribe();
    loop {
        tokio::select! {
            order = inbox.recv() => match order {
                Some(Order::Listen(listener, address, role)) => {
                    let opened = OpenListener::new(address, role);
                    open.push(opened.clone());
                    tokio::task::spawn_local(accept(Rc::clone(&worker), listener, opened, inboxes.clone()));
                }
                Some(Order::Turn(address, role)) => {
                    for opened in open.iter().filter(|opened| opened.address == address) {
                        opened.role.replace(Rc::new(role.clone()));
                    }
                }
                Some(Order::Close(address)) => open.retain(|opened| {
                    let keep = opened.address != address;
                    if !keep {
                        opened.close.notify_one();
                    }
                    keep
                }),
                Some(Order::Serve(stream, role, counted)) => {
                    if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                        serve(&worker, stream, Rc::new(role), counted);
                    }
                }
                Some(Order::Drain(side)) => worker.links[side].borrow().drain(),
                Some(Order::CountOwing(side, tell)) => {
                    // Who asked may have stopped waiting.
                    let _ = tell.send(worker.links[side].borrow().owing());
                }
                Some(Order::Stop) | None => return,
            },
            Ok(()) = hosts_lost.changed() => worker.alarms.wake_all(),
            _ = sweep.tick() => {
                let now = Instant::now();
                worker.links.iter().for_each(|links| links.borrow_mut().sweep(now));
                worker.pool.sweep(now);
            }
        }
    }
}

/// A socket that a worker accepts on.
#[derive(Debug, Clone)]
struct OpenListener {
    address: SocketAddr,
    /// Of what is accepted next.
    role: Rc<RefCell<Rc<Role>>>,
    close: Rc<Notify>,
}

impl OpenListener {
    fn new(address: SocketAddr, role: Role) -> OpenListener {
        let role = Rc::new(RefCell::new(Rc::new(role)));
        OpenListener { address, role, close: Rc::default() }
    }
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, opened: OpenListener, inboxes: Inboxes) {
    let close = &opened.close;
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::error!(listener = %opened.role.borrow(), %error, "cannot be polled: restart this host");
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = close.notified() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: others may end soon. Accepting again at once would only burn the CPU.
                tracing::warn!(listener = %opened.role.borrow(), %error, "cannot accept a connection; raise the limit on open files");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        tokio::select! {
            () = room_for(&worker, &stream) => {}
            () = close.notified() => return,
        }
        let role = Rc::clone(&opened.role.borrow());
        if *role == Role::Inbound && !worker.is_member(peer.ip()) {
            let (worker, role, inboxes) = (Rc::clone(&worker), Rc::clone(&role), inboxes.clone());
            tokio::task::spawn_local(async move {
                let known = || worker.is_member(peer.ip());
                match strangers::wait(stream, &worker.shared.strangers, known).await {
                    Some(stream) => take(&worker, stream, &role, &inboxes).await,
                    None => worker.shared.metrics.strangers_refused.inc(),
                }
            });
            continue;
        }
        take(&worker, stream, &role, &inboxes).await;
    }
}

/// Waits until the data plane may have one more descriptor: what is left is the control side's.
async fn room_for(worker: &Worker, stream: &tokio::net::TcpStream) {
    let shared = &worker.shared;
    if shared.descriptors.may_accept(stream) {
        return;
    }
    shared.metrics.accepts_paused.inc();
    tracing::warn!(
        "no connections are accepted until some end: the file descriptors that are left are kept for admin, \
         look-ups and gossip; raise the limit on open files"
    );
    while !shared.descriptors.has_room(stream) {
        // Callers that only keep a connection open make room, also for the dials of those that are served.
        let now = Instant::now();
        worker.links.iter().for_each(|links| {
            links.borrow().give_way(now);
        });
        tokio::time::sleep(ACCEPT_AGAIN).await;
    }
}

/// Serves a connection here or on a worker that serves fewer, if there may be one more.
async fn take(
    worker: &Rc<Worker>,
    stream: tokio::net::TcpStream,
    role: &Rc<Role>,
    inboxes: &Inboxes,
) {
    let (shared, side) = (&worker.shared, side(role));
    let Ok(peer) = stream.peer_addr() else { return };
    let connections_max = shared.connections_max.load(Ordering::Relaxed);
    if shared.accepted[side].load(Ordering::Relaxed) >= connections_max {
        let links = worker.links[side].borrow();
        if !links.give_way(Instant::now()) {
            return shared.metrics.connections_refused.inc();
        }
        links.hurry();
    }
    let host = (side == INBOUND).then(|| peer.ip());
    if host.is_some_and(|host| shared.connections_from(host) >= host_share(connections_max)) {
        return shared.metrics.connections_refused.inc();
    }
    let loads: Vec<usize> = shared.loads.iter().map(|load| load.load(Ordering::Relaxed)).collect();
    let taker = crate::listener::hand_over(worker.id, &loads);
    let counted = Counted::new(shared, taker, side, host);
    if taker == worker.id {
        serve(worker, stream, Rc::clone(role), counted);
    } else if let Ok(stream) = stream.into_std() {
        // A full inbox would lose the connection: wait for room.
        let _ = inboxes.0[taker].send(Order::Serve(stream, Role::clone(role), counted)).await;
    }
}

fn serve(worker: &Rc<Worker>, stream: tokio::net::TcpStream, role: Rc<Role>, counted: Counted) {
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        crate::connection::serve(worker, stream, role).await;
        drop(counted);
    });
}

/// Which side a role is on.
pub fn side(role: &Role) -> usize {
    match role {
        Role::Outbound | Role::Service(_) => OUTBOUND,
        Role::Inbound => INBOUND,
    }
}

/// A connection in the counts that limits and hand-over read, from the moment it is accepted.
#[derive(Debug)]
pub struct Counted {
    shared: Arc<Shared>,
    worker: usize,
    side: usize,
    /// Whose it is, if it is of another host.
    host: Option<IpAddr>,
}

impl Counted {
    fn new(shared: &Arc<Shared>, worker: usize, side: usize, host: Option<IpAddr>) -> Counted {
        shared.loads[worker].fetch_add(1, Ordering::Relaxed);
        shared.accepted[side].fetch_add(1, Ordering::Relaxed);
        if let Some(host) = host {
            *shared
                .accepted_from
                .lock()
                .expect("nobody panics with it")
                .entry(host)
                .or_default() += 1;
        }
        Counted { shared: Arc::clone(shared), worker, side, host }
    }
}

impl Shared {
    /// How many accepted connections are this host's.
    fn connections_from(&self, host: IpAddr) -> usize {
        let accepted = self.accepted_from.lock().expect("nobody panics with it");
        accepted.get(&host).copied().unwrap_or_default()
    }
}

/// How many of the connections of inbound one host may have: with all of them it would keep the others out.
fn host_share(connections_max: usize) -> usize {
    (connections_max / 4).max(HOST_SHARE_MIN).min(connections_max)
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.loads[self.worker].fetch_sub(1, Ordering::Relaxed);
        self.shared.accepted[self.side].fetch_sub(1, Ordering::Relaxed);
        if let Some(host) = self.host {
            let mut accepted = self.shared.accepted_from.lock().expect("nobody panics with it");
            if let Entry::Occupied(mut count) = accepted.entry(host) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

async fn watch_lag(worker: Rc<Worker>) {
    loop {
        if worker.busy.get() == 0 {
            worker.wake_lag.notified().await;
        }
        let before = Instant::now();
        tokio::time::sleep(LAG_INTERVAL).await;
        let now = Instant::now();
        if now.saturating_duration_since(before) > LAG_INTERVAL + LAG_MAX {
            worker.shared.metrics.own_pauses.inc();
            worker.router().own_pause(now);
        }
    }
}

impl Worker {
    /// The current router.
    pub fn router(&self) -> Arc<Router> {
        Arc::clone(self.router.borrow_mut().load())
    }

    /// Whether a live member of the mesh has this address.
    fn is_member(&self, address: IpAddr) -> bool {
        self.router().members.contains_key(&address.to_canonical())
    }

    /// Its scouts. Started with the first request whose policy asks for them: until then they cost nothing.
    pub fn asker(self: &Rc<Self>) -> Option<&Rc<Asker>> {
        let start = || {
            let started = Asker::start(self, self.shared.node_address, &self.shared.identity);
            started
                .inspect_err(|cause| {
                    tracing::error!(%cause, "no scouts can be sent, so requests go out without them; raise the limit on open files");
                })
                .ok()
        };
        self.asker.get_or_init(start).as_ref()
    }

    /// A request is being served: watch our own lag.
    pub fn request_begins(&self) {
        self.busy.set(self.busy.get() + 1);
        if self.busy.get() == 1 {
            self.wake_lag.notify_one();
        }
    }

    /// A request ended.
    pub fn request_ends(&self) {
        self.busy.set(self.busy.get() - 1);
    }
}

/// Runs hyper's HTTP/2 tasks on the worker that they belong to.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Of `Shared::accepted` and `Shared::in_flight`.
pub const OUTBOUND: usize = 0;
/// Of `Shared::accepted` and `Shared::in_flight`.
pub const INBOUND: usize = 1;
/// Orders that wait in a worker's inbox.
pub const INBOX_MAX: usize = 1024;
/// A host has this many connections to another where it is busy.
const HOST_SHARE_MIN: usize = 64;
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
const LAG_INTERVAL: Duration = Duration::from_millis(20);
const LAG_MAX: Duration = Duration::from_millis(50);
/// Tasks polled between two looks at the sockets.
const EVENT_INTERVAL: u32 = 61;

//! The workers and their listeners, as the control side starts, changes and ends them.
//!
//! Listeners outlive reloads: a changed configuration opens what is new and closes what is gone, and never
//! touches a socket that stays. A reload has two steps, so that it is taken whole or not at all: [`DataPlane::prepare`]
//! does all that can fail and changes nothing, [`DataPlane::take_over`] cannot fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evenkeel_config::settings::{self, Settings};
use tokio::sync::{mpsc, oneshot, watch};

use crate::access::AccessLog;
use crate::body::Buffers;
use crate::descriptors::Descriptors;
use crate::listener::{self, Role};
use crate::lookups::Lookups;
use crate::metrics::Metrics;
use crate::own::OwnListeners;
use crate::scout::Identity;
use crate::strangers;
use crate::tcp_options::resend_soon;
use crate::worker::{self, INBOUND, INBOX_MAX, Inboxes, OUTBOUND, Order, Shared};

/// One listener's sockets, a socket for each worker.
#[derive(Debug)]
pub struct Sockets {
    /// The address in use, after port 0 was given a port.
    pub address: SocketAddr,
    sockets: Vec<TcpListener>,
}

impl Sockets {
    /// Opens them.
    ///
    /// # Errors
    /// Names the address and what to do.
    pub fn open(what: &str, address: SocketAddr, workers: usize) -> anyhow::Result<Sockets> {
        Sockets::of(what, address, listener::open(address, workers))
    }

    /// What is accepted on them comes from other hosts: it has their options from its first packet on.
    ///
    /// # Errors
    /// The sockets are closed.
    pub fn between_hosts(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(resend_soon)
    }

    fn of(
        what: &str,
        address: SocketAddr,
        opened: io::Result<(SocketAddr, Vec<TcpListener>)>,
    ) -> anyhow::Result<Sockets> {
        let (address, sockets) = opened.map_err(|error| {
            let hint = bind_hint(&error);
            anyhow::anyhow!("cannot listen on {address} ({what}): {error}; {hint}")
        })?;
        Ok(Sockets { address, sockets })
    }
}

/// What an operator can do about a listener that cannot be opened.
pub fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process has it: stop that one (`ss -lntup` shows it) or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => "this host does not have that address",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: choose another or grant it"
        }
        _ => "see the error",
    }
}

/// The running workers.
#[derive(Debug)]
pub struct DataPlane {
    shared: Arc<Shared>,
    inboxes: Inboxes,
    threads: Vec<JoinHandle<()>>,
    /// Listeners for one service, with the address in use.
    services: BTreeMap<ServiceListener, SocketAddr>,
}

/// A listener for one service, as configured.
type ServiceListener = (SocketAddr, String);

/// What a configuration changes of the data plane while it runs, ready to be taken over. Dropped, it changes nothing.
#[derive(Debug)]
pub struct PreparedReload {
    limits: settings::Limits,
    access: settings::Access,
    opened: Vec<(ServiceListener, Sockets)>,
    /// Their address stays and is for another service now.
    turned: Vec<(ServiceListener, ServiceListener)>,
    closed: Vec<ServiceListener>,
}

/// How many workers the configuration asks for: what it says, else the CPU quota, at most four.
pub fn workers(settings: &Settings) -> usize {
    let quota = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    settings.workers.unwrap_or_else(|| quota().min(WORKERS_DEFAULT_MAX))
}

impl DataPlane {
    /// Starts the workers; nothing is accepted before [`DataPlane::listen`].
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub fn start(
        settings: &Settings,
        metrics: Metrics,
        node_address: IpAddr,
        identity: Identity,
    ) -> io::Result<DataPlane> {
        let count = workers(settings);
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            router: Arc::default(),
            accepted_from: Mutex::default(),
            loads: (0..count).map(|_| AtomicUsize::new(0)).collect(),
            connections_max: AtomicUsize::new(settings.limits.connections),
            accepted: Default::default(),
            buffers: Arc::new(Buffers::new(
                settings.limits.buffers,
                metrics.bodies_refused.clone(),
            )),
            refusing: AtomicBool::new(false),
            in_flight: Default::default(),
            other: metrics.upstream(Arc::from(""), "outbound"),
            inbound: metrics.upstream(Arc::from(""), "inbound"),
            access: AccessLog::start(settings.log.access, metrics.access_dropped.clone())?,
            node_address,
            node_name: settings.node.name.clone(),
            identity,
            strangers: strangers::waiting_room(&metrics.places),
            descriptors: Descriptors::raised(),
            lookups: Lookups::default(),
            hosts_lost: watch::Sender::new(0),
            own: Arc::new(OwnListeners::new(node_address)),
            metrics,
        });
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::channel(INBOX_MAX)).unzip();
        let inboxes = Inboxes(senders);
        let threads = receivers
            .into_iter()
            .enumerate()
            .map(|(id, inbox)| worker::spawn(id, Arc::clone(&shared), inboxes.clone(), inbox))
            .collect::<io::Result<_>>()?;
        Ok(DataPlane { shared, inboxes, threads, services: BTreeMap::new() })
    }

    /// Requests that pass through must not reach these listeners of ours: they take orders from this host, and what
    /// passes through comes from it.
    pub fn keep_from_callers(&self, listeners: impl Iterator<Item = SocketAddr>) {
        self.shared.own.add(&listeners.collect::<Vec<_>>());
    }

    /// What the workers and the control side share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Accepts on these sockets from now on.
    pub async fn listen(&self, sockets: Sockets, role: &Role) {
        let address = sockets.address;
        self.shared.own.add(&[address]);
        for (inbox, socket) in self.inboxes.0.iter().zip(sockets.sockets) {
            // A worker that is gone ends the process elsewhere.
            let _ = inbox.send(Order::Listen(socket, address, role.clone())).await;
        }
    }

    /// Does all that can fail of what a configuration changes while running: its new listeners are open afterwards, and
    /// nobody accepts on them yet. Nothing that runs is changed.
    ///
    /// # Errors
    /// A new listener cannot be opened. Those that could be are closed again.
    pub async fn prepare(&self, settings: &Settings) -> anyhow::Result<PreparedReload> {
        let wanted: BTreeSet<ServiceListener> =
            settings.outbound.listeners.iter().map(|l| (l.listen, l.service.clone())).collect();
        let mut closed: Vec<ServiceListener> =
            self.services.keys().filter(|known| !wanted.contains(known)).cloned().collect();
        let (mut opened, mut turned) = (Vec::new(), Vec::new());
        for new in wanted.into_iter().filter(|wanted| !self.services.contains_key(wanted)) {
            let same = |old: &ServiceListener| old.0 == new.0 && new.0.port() != 0;
            if let Some(at) = closed.iter().position(same) {
                turned.push((closed.swap_remove(at), new));
            } else {
                let sockets = self.open_new(new.0, &closed).await?;
                opened.push((new, sockets));
            }
        }
        let (limits, access) = (settings.limits.clone(), settings.log.access);
        Ok(PreparedReload { limits, access, opened, turned, closed })
    }

    /// Takes over what was prepared.
    pub async fn take_over(&mut self, prepared: PreparedReload) {
        let PreparedReload { limits, access, opened, turned, closed } = prepared;
        self.shared.connections_max.store(limits.connections, Ordering::Relaxed);
        self.shared.buffers.set_max(limits.buffers);
        self.shared.access.set_mode(access);
        for (new, sockets) in opened {
            let address = sockets.address;
            self.listen(sockets, &Role::Service(new.1.clone())).await;
            self.services.insert(new, address);
        }
        for (old, new) in turned {
            let address = self.services.remove(&old).expect("it was prepared from this table");
            self.order(|| Order::Turn(address, Role::Service(new.1.clone()))).await;
            self.services.insert(new, address);
        }
        for old in closed {
            let address = self.services.remove(&old).expect("it was prepared from this table");
            self.shared.own.remove(address);
            self.order(|| Order::Close(address)).await;
        }
    }

    /// Opens a listener. This process may have had its address until a moment ago, or for a moment more.
    async fn open_new(
        &self,
        address: SocketAddr,
        closing: &[ServiceListener],
    ) -> anyhow::Result<Sockets> {
        let (what, workers) = ("outbound.listeners", self.inboxes.0.len());
        let meets = |old: &ServiceListener| {
            let any = |address: SocketAddr| address.ip().is_unspecified();
            old.0.port() == address.port() && (any(old.0) || any(address))
        };
        if address.port() != 0 && closing.iter().any(meets) {
            return Sockets::of(what, address, listener::open_beside(address, workers));
        }
        let end = Instant::now() + REOPEN_MAX;
        loop {
            match Sockets::open(what, address, workers) {
                Err(_) if Instant::now() < end => tokio::time::sleep(DRAIN_POLL).await,
                opened => return opened,
            }
        }
    }

    /// The listeners for one service each, by their keys in the configuration that [`DataPlane::take_over`] has followed:
    /// where in the file, which service, and the address in use.
    pub fn services<'p>(
        &'p self,
        settings: &'p Settings,
    ) -> impl Iterator<Item = (String, SocketAddr)> + 'p {
        settings.outbound.listeners.iter().enumerate().filter_map(move |(at, listener)| {
            let address = self.services.get(&(listener.listen, listener.service.clone()))?;
            Some((format!("outbound.listeners[{at}] ({})", listener.service), *address))
        })
    }

    /// Ends the connections of other hosts gracefully, refuses their new requests, and waits until nothing
    /// of theirs is in flight or `timeout` is over.
    pub async fn drain_inbound(&self, timeout: Duration) {
        self.shared.refusing.store(true, Ordering::Relaxed);
        self.drain(INBOUND, timeout).await;
    }

    /// The same for the applications of this host.
    pub async fn drain_outbound(&self, timeout: Duration) {
        self.drain(OUTBOUND, timeout).await;
    }

    async fn drain(&self, side: usize, timeout: Duration) {
        let left = self.drained(side, timeout).await;
        if left > 0 {
            tracing::warn!(
                left,
                "requests were still in flight after shutdown.timeout and are cut off"
            );
        }
    }

    /// Asks the connections of a side to end, and waits until nothing is in flight on them and every answer is written, which it is
    /// only some time after its request has ended. On how many something is left after `timeout`.
    async fn drained(&self, side: usize, timeout: Duration) -> usize {
        let end = Instant::now() + timeout;
        self.order(|| Order::Drain(side)).await;
        loop {
            let in_flight = self.shared.in_flight[side].load(Ordering::Relaxed);
            let left = if in_flight > 0 { in_flight } else { self.owing(side).await };
            if left == 0 || Instant::now() >= end {
                return left;
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// On how many connections of a side something is still to be answered or written.
    async fn owing(&self, side: usize) -> usize {
        let mut owing = 0;
        for inbox in &self.inboxes.0 {
            let (tell, told) = oneshot::channel();
            // A worker that is gone owes nothing any more.
            let asked = inbox.send(Order::CountOwing(side, tell)).await;
            owing += if asked.is_ok() { told.await.unwrap_or(0) } else { 0 };
        }
        owing
    }

    /// Ends the workers. What came on connections that were accepted since the drain has `patience` to be answered.
    pub async fn stop(self, patience: Duration) {
        tokio::join!(self.drained(INBOUND, patience), self.drained(OUTBOUND, patience));
        self.order(|| Order::Stop).await;
        for thread in self.threads {
            // A worker that panicked has said so.
            let _ = thread.join();
        }
    }

    async fn order(&self, order: impl Fn() -> Order) {
        for inbox in &self.inboxes.0 {
            let _ = inbox.send(order()).await;
        }
    }
}

const WORKERS_DEFAULT_MAX: usize = 4;
/// The workers close a listener within this time of being told.
const REOPEN_MAX: Duration = Duration::from_secs(1);
const DRAIN_POLL: Duration = Duration::from_millis(20);

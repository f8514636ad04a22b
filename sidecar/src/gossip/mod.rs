//! Gossip's shell: a thread of its own that owns [`Discovery`], its sockets and its timers.
//!
//! Decides nothing about membership: it carries bytes, time and entropy in, and bytes, dials and events out.
//! A thread of its own, because a stall anywhere else (a request, a scrape, a disk) must not make this host look
//! dead to the others. Everyone else reads the published [`Catalog`] and talks to the thread through a bounded
//! queue of [`Command`]s; there is no lock around `Discovery` because there is no second owner.
//! Files are written by [`State`]'s thread, never here.

mod difference;
mod driver;
mod metrics;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use evenkeel_config::settings::{self, Settings};
use evenkeel_config::{Environment, Published};
use evenkeel_discovery::consul::CheckRegistration;
use evenkeel_discovery::registration::{
    Check, CheckKind, CheckTls, Origin, RegisterError, Registration, Weights,
};
use evenkeel_discovery::{
    Catalog, Config, Counters, Discovery, Health, Limits, NodeInfo, OrderError, Profile, Saved,
    Status, Subject,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use crate::checks::Verdict;
use crate::events::Events;
use crate::places::PlaceCounters;
use crate::state::State;

pub use crate::port_pair::PortPair as Sockets;

/// The running thread. Dropping it stops it without a goodbye and waits for that; say goodbye with
/// [`GossipHandle::leave`] first.
pub struct Gossip {
    handle: GossipHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the rest of the program holds of it.
#[derive(Clone)]
pub struct GossipHandle {
    /// This host, as it is told to others.
    node: Arc<NodeInfo>,
    catalog: Arc<ArcSwap<Catalog>>,
    changes: watch::Receiver<u64>,
    checks: watch::Receiver<Arc<Vec<(String, Check)>>>,
    joined: Arc<AtomicBool>,
    obstacle: Arc<ArcSwapOption<String>>,
    commands: mpsc::Sender<Command>,
}

/// Everything the thread needs.
pub struct GossipArgs<'a> {
    /// The validated configuration.
    pub settings: &'a Settings,
    /// What the system says about this host.
    pub env: &'a Environment,
    /// Bound already.
    pub sockets: Sockets,
    /// The port on which this host takes requests from others, after binding.
    pub mesh_port: u16,
    /// Where identity, members and registrations are kept.
    pub state: Arc<State>,
    /// Where happenings are noted.
    pub events: Arc<Events>,
    /// Where numbers are registered.
    pub metrics: &'a prometheus::Registry,
    /// Counts connections that found no place.
    pub counters: &'a PlaceCounters,
    /// Where messages of other hosts about quotas go.
    pub quotas_received: mpsc::Sender<(u64, Vec<u8>)>,
    /// Messages about quotas for other hosts.
    pub quotas_to_send: mpsc::Receiver<(u64, Vec<u8>)>,
}

/// What others ask the thread to do.
#[derive(Debug)]
pub enum Command {
    /// Offer an instance registered by the HTTP API.
    Register(Box<Registration>, oneshot::Sender<Result<(), ChangeError>>),
    /// Withdraw one.
    Deregister(String, oneshot::Sender<Result<(), ChangeError>>),
    /// Publish the result of a check.
    Health(Verdict),
    /// Change what the health of an instance of this host depends on, or report it.
    ChangeHealth(HealthChange, oneshot::Sender<Result<(), ChangeError>>),
    /// Ask all hosts to stop choosing this one, or to start again.
    Draining(bool),
    /// Offer exactly these of the configuration, besides what the HTTP API registered.
    Reconcile(Box<Offers>, oneshot::Sender<Result<(), ReconcileError>>),
    /// Write a note into this host's record, or take it back.
    Note(String, Option<Vec<u8>>),
    /// Issue an order to the mesh, or take one back.
    Order(Box<OrderRequest>, oneshot::Sender<Result<(), ChangeError>>),
    /// Say goodbye; the answer comes when it is said.
    Leave(oneshot::Sender<()>),
}

/// What applications and operators say of the health of this host and of its instances.
#[derive(Debug)]
pub enum HealthChange {
    /// An application reports on its check of this id, which has a TTL.
    Report(String, Health),
    /// One more check for an instance or for this host, or another one of the same id.
    AddCheck(Box<CheckRegistration>),
    /// No longer the check of this id.
    RemoveCheck(String),
    /// An instance of this id goes into maintenance for a reason, or comes out of it.
    Maintenance(String, Option<String>),
    /// This host does.
    HostMaintenance(Option<String>),
}

/// What the configuration offers.
#[derive(Debug)]
pub struct Offers {
    services: Vec<Registration>,
    /// What is said of each service's policy, by its name.
    policies: BTreeMap<String, Arc<Published>>,
}

/// An order of this host's operator.
#[derive(Debug)]
pub enum OrderRequest {
    /// Lay this over the policy of a service, for so long.
    Override(String, Arc<Published>, Duration),
    /// Do not choose this host, for so long.
    Drain(u64, Duration),
    /// Take back what was ordered on this.
    Undo(Subject),
}

/// Why an instance was not registered or deregistered, or an order not issued.
#[derive(Debug)]
pub enum ChangeError {
    /// The request is not acceptable. Nothing changed.
    Refused(RegisterError),
    /// The order is not acceptable. Nothing changed.
    NotOrdered(OrderError),
    /// The instance belongs to the configuration file. Nothing changed.
    Configured(String),
    /// Done, but not written to the data directory: a restart will not know it.
    NotKept(io::Error),
    /// The gossip thread has stopped: the process is ending. Nothing changed.
    Stopped,
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeError::Refused(cause) => cause.fmt(f),
            ChangeError::NotOrdered(cause) => cause.fmt(f),
            ChangeError::Configured(id) => write!(
                f,
                "instance {id:?} is named in this host's configuration file: change it there and reload, or use another ID"
            ),
            ChangeError::NotKept(cause) => {
                write!(
                    f,
                    "done, but it could not be written to node.data_dir, so a restart will forget it: {cause}"
                )
            }
            ChangeError::Stopped => f.write_str("this host is shutting down: use another host"),
        }
    }
}

impl std::error::Error for ChangeError {}

/// Why the services of a reloaded configuration are not offered. Nothing changed.
#[derive(Debug)]
pub enum ReconcileError {
    /// The instance of this id is not acceptable.
    NotOffered(String, RegisterError),
    /// The gossip thread has stopped: the process is ending.
    Stopped,
}

impl fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReconcileError::NotOffered(id, cause) => {
                write!(f, "services: the instance {id:?} cannot be offered: {cause}")
            }
            ReconcileError::Stopped => f.write_str("gossip has stopped: restart this host"),
        }
    }
}

impl std::error::Error for ReconcileError {}

/// Starts the thread. Members and registrations of an earlier life are read from `state`.
///
/// # Errors
/// No entropy, no thread, or the sockets cannot be used.
pub fn spawn(args: GossipArgs<'_>) -> io::Result<Gossip> {
    let GossipArgs { settings, env, sockets, mesh_port, state, events, metrics, .. } = args;
    let listens = sockets.local_addr()?;
    let saved: Option<Saved> = state.read(SAVED_FILE, |bytes| serde_json::from_slice(bytes));
    let node = NodeInfo {
        id: saved.as_ref().map_or_else(
            || Ok(u64::from_le_bytes(entropy()?)),
            |saved| io::Result::Ok(saved.node),
        )?,
        name: settings.node.name.clone(),
        address: advertised(settings, env, listens),
        mesh_port,
        zone: settings.node.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let config = Config {
        mesh: settings.mesh.name.clone(),
        domain: settings.mesh.domain.clone(),
        node: node.clone(),
        keys: settings.mesh.keys.iter().map(|key| key.0).collect(),
        profile: Profile::LAN,
        limits: Limits { members: settings.limits.members, records: settings.limits.records },
    };
    let (seed, salt) = (entropy()?, entropy()?);
    let (now, wall) = (std::time::Instant::now(), driver::wall_ms());
    let mut discovery = Discovery::new(config, saved, now, wall, seed, salt);
    if settings.mesh.join.is_empty() && !discovery.knows_others() {
        discovery.all_told(now, wall);
    }
    let catalog = Arc::new(ArcSwap::new(discovery.snapshot()));
    let (changed, changes) = watch::channel(0);
    let (publish_checks, checks) = watch::channel(driver::local_checks(&discovery));
    let partial = catalog.load().partial;
    let joined = Arc::new(AtomicBool::new(!partial));
    let obstacle = partial.then(|| Arc::new("joining".to_owned()));
    let obstacle = Arc::new(ArcSwapOption::new(obstacle));
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let published = Arc::new(metrics::Published {
        counters: Mutex::new(Counters::default()),
        unsent: AtomicU64::new(0),
        unread: AtomicU64::new(0),
        catalog: Arc::clone(&catalog),
    });
    metrics::GossipMetrics::new(Arc::clone(&published))
        .and_then(|collector| metrics.register(Box::new(collector)))
        .map_err(io::Error::other)?;
    let (stop, stopped) = oneshot::channel();
    let driver = driver::Driver {
        discovery,
        join: settings.mesh.join.clone(),
        offers: offers(settings, node.address.ip()),
        state,
        events,
        published,
        changed,
        checks: publish_checks,
        joined: Arc::clone(&joined),
        obstacle: Arc::clone(&obstacle),
        listens,
        udp: sockets.udp,
        quotas: args.quotas_received,
        places: stream::places(args.counters),
    };
    let quotas = args.quotas_to_send;
    let tcp = sockets.tcp;
    let thread = std::thread::Builder::new().name("ek-gossip".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "gossip cannot start"),
        };
        if let Err(cause) = runtime.block_on(driver.run(tcp, queue, quotas, stopped)) {
            tracing::error!(%cause, "gossip stopped: this host will be taken for dead. Restart it");
        }
        // A name look-up may still hang on its own thread.
        runtime.shutdown_background();
    })?;
    let handle =
        GossipHandle { node: Arc::new(node), catalog, changes, checks, joined, obstacle, commands };
    Ok(Gossip { handle, stop: Some(stop), thread: Some(thread) })
}

impl Gossip {
    /// What the rest of the program holds.
    #[must_use]
    pub fn handle(&self) -> &GossipHandle {
        &self.handle
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl GossipHandle {
    /// This host, as it is told to others. Its id may change while it runs, see [`Catalog::own`].
    #[must_use]
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }

    /// The latest snapshot, for a short look.
    #[must_use]
    pub fn catalog(&self) -> Guard<Arc<Catalog>> {
        self.catalog.load()
    }

    /// Where the latest snapshot is, for readers with a cache of their own.
    #[must_use]
    pub fn snapshots(&self) -> Arc<ArcSwap<Catalog>> {
        Arc::clone(&self.catalog)
    }

    /// Wakes after each new snapshot; the value counts them.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What is checked on this host, with the id of the instance that each is for (empty: it is for the host itself); wakes at each change.
    #[must_use]
    pub fn checks(&self) -> watch::Receiver<Arc<Vec<(String, Check)>>> {
        self.checks.clone()
    }

    /// Whether this host has met whom `mesh.join` names, they see it and one of them has told it which services there are;
    /// or it has no one to meet, or has tried for long enough to serve alone. Once it has, that stays.
    #[must_use]
    pub fn joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Whether this host is a working member of its mesh.
    ///
    /// # Errors
    /// Why it is not, for an operator.
    pub fn ready(&self) -> Result<(), String> {
        self.obstacle.load().as_ref().map_or(Ok(()), |why| Err(String::clone(why)))
    }

    /// Where commands go, for those who have many.
    #[must_use]
    pub fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// Offers an instance, on behalf of the HTTP API; returns when it is kept.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn register(&self, registration: Registration) -> Result<(), ChangeError> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Register(Box::new(registration), done)).await;
        answer.await.unwrap_or(Err(ChangeError::Stopped))
    }

    /// Withdraws an instance, on behalf of the HTTP API; returns when that is kept.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn deregister(&self, id: String) -> Result<(), ChangeError> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Deregister(id, done)).await;
        answer.await.unwrap_or(Err(ChangeError::Stopped))
    }

    /// Offers exactly the services of a reloaded configuration, besides what the HTTP API registered: all or none.
    ///
    /// # Errors
    /// One of them cannot be offered, or the thread has stopped.
    pub async fn reconcile(&self, settings: &Settings) -> Result<(), ReconcileError> {
        let (done, answer) = oneshot::channel();
        let offers = Box::new(offers(settings, self.node.address.ip()));
        self.ask(Command::Reconcile(offers, done)).await;
        answer.await.unwrap_or(Err(ReconcileError::Stopped))
    }

    /// Issues an order to the mesh, or takes one back; returns when it is kept.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn order(&self, request: OrderRequest) -> Result<(), ChangeError> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Order(Box::new(request), done)).await;
        answer.await.unwrap_or(Err(ChangeError::Stopped))
    }

    /// Asks all hosts to stop choosing this one, or to start again.
    pub async fn set_draining(&self, draining: bool) {
        self.ask(Command::Draining(draining)).await;
    }

    /// Writes a note into this host's record, or takes it back. Where too many commands wait the note is lost: whoever writes it says it again.
    pub fn note(&self, name: String, body: Option<Vec<u8>>) -> bool {
        self.commands.try_send(Command::Note(name, body)).is_ok()
    }

    /// Says goodbye to all; returns when it is said. Afterwards drop the [`Gossip`].
    pub async fn leave(&self) {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Leave(done)).await;
        let _ = answer.await;
    }

    /// Changes or reports the health of this host's instances. Only a report is answered before it is on the disk: it comes
    /// again soon.
    ///
    /// # Errors
    /// It was not accepted, or not kept.
    pub async fn change_health(&self, change: HealthChange) -> Result<(), ChangeError> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::ChangeHealth(change, done)).await;
        answer.await.unwrap_or(Err(ChangeError::Stopped))
    }

    async fn ask(&self, command: Command) {
        // A closed queue drops the command, and with it the channel of its answer.
        let _ = self.commands.send(command).await;
    }
}

fn offers(settings: &Settings, own: IpAddr) -> Offers {
    let policies = settings
        .services
        .iter()
        .filter_map(|service| Some((service.name.clone(), Arc::new(service.policy.clone()?))));
    Offers { services: registrations(settings, own), policies: policies.collect() }
}

/// What the configuration offers, as registrations. A loopback application without `advertise` is announced as it
/// is when this host itself stands on a loopback address.
fn registrations(settings: &Settings, own: IpAddr) -> Vec<Registration> {
    settings
        .services
        .iter()
        .map(|service| Registration {
            id: service.id.clone(),
            service: service.name.clone(),
            address: service.address,
            advertise: service.advertise.or_else(|| {
                (own.is_loopback() && service.address.ip().is_loopback()).then_some(service.address)
            }),
            tagged_addresses: BTreeMap::new(),
            enable_tag_override: false,
            protocol: service.protocol,
            tags: service.tags.clone(),
            meta: service.meta.clone(),
            weights: Weights::default(),
            checks: service.check.iter().map(|check| configured_check(service, check)).collect(),
            origin: Origin::Configuration,
        })
        .collect()
}

fn configured_check(service: &settings::Service, check: &settings::Check) -> Check {
    let authority = service.address.to_string();
    let get = |path: &str, tls| CheckKind::Http {
        authority: authority.clone(),
        path: path.to_owned(),
        method: "GET".to_owned(),
        headers: BTreeMap::new(),
        body: String::new(),
        tls,
    };
    Check {
        id: format!("service:{}", service.id),
        name: format!("Service '{}' check", service.name),
        notes: String::new(),
        kind: match &check.kind {
            settings::CheckKind::Http(path) => get(path, None),
            settings::CheckKind::Https { path, skip_verify, server_name } => {
                let server_name = server_name.clone();
                get(path, Some(CheckTls { server_name, skip_verify: *skip_verify }))
            }
            settings::CheckKind::Tcp => CheckKind::Tcp { authority, tls: None },
        },
        interval: check.interval,
        timeout: check.timeout,
        rise: check.rise,
        fall: check.fall,
        initial: Status::Critical,
        deregister_after: None,
    }
}

/// What others dial for gossip: `node.address`, else the address that gossip listens on, else what
/// [`Settings::node_address`] derives.
fn advertised(settings: &Settings, env: &Environment, listens: SocketAddr) -> SocketAddr {
    let listening = Some(listens.ip()).filter(|ip| !ip.is_unspecified());
    let ip = settings.node.address.or(listening).unwrap_or_else(|| settings.node_address(env));
    if listening.is_some_and(|listening| listening != ip) {
        warn!(
            listens = %listens, node_address = %ip,
            "gossip listens on one address and others are told to dial another: unless something translates, set mesh.gossip.listen and node.address to the same address"
        );
    }
    SocketAddr::new(ip, listens.port())
}

/// Random bytes of the kernel.
///
/// # Errors
/// When it gives none.
pub fn entropy<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if getrandom(&mut bytes, GetRandomFlags::empty())? == N {
        Ok(bytes)
    } else {
        Err(io::Error::other("the kernel gave too few random bytes"))
    }
}

/// Commands that may wait for the thread.
const COMMANDS_MAX: usize = 256;

/// [`Saved`] as JSON, in the data directory.
const SAVED_FILE: &str = "discovery.json";

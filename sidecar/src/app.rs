//! Builds everything, runs it, and ends it again: the one list of long-lived tasks.
//!
//! | thread | what runs on it |
//! | --- | --- |
//! | `worker-N` | requests: [`crate::data_plane`] |
//! | `ek-gossip` | membership and registry: [`crate::gossip`] |
//! | `ek-dns` | look-ups by DNS: [`crate::dns`] |
//! | `ek-scout` | answers scouts: [`crate::scout`] |
//! | `ek-quotas` | leases: [`crate::quotas`] |
//! | `ek-control` | catalogue, admin, checks: [`crate::control`]; Doorman clients: [`crate::doorman`] |
//! | `access-log` | the access log's writer: [`crate::access`] |
//! | `ek-log` | says what the log left out: [`crate::log_limit`] |
//! | main | signals, reloads, and the router's next snapshot: this file |
//!
//! Sockets are bound before anything starts, so that a taken port ends the process and not half of it.
//!
//! The router's next snapshot is published by a task beside all others, from the start to the very end ([`Publication`]):
//! whatever this host does meanwhile, going away included, its applications are served by what the mesh is now.
//!
//! A reload takes the whole file or none of it: first comes all that can fail, each step of which changes nothing
//! when it fails, then what cannot.
//!
//! Going away (SIGTERM or SIGINT; a second one skips the wait): announce it, go on serving for `shutdown.settle` while the
//! others stop choosing this host, end inbound connections gracefully, then the applications' own, then leave.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use evenkeel_config::settings::{self, Log, Mesh, Outbound, RateLimit, Settings};
use evenkeel_config::{Environment, Loaded};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::admin::Started;
use crate::balancer_metrics::BalancerMetrics;
use crate::control::{self, Surface};
use crate::control_guard::ControlGuard;
use crate::data_plane::{self, DataPlane, Sockets};
use crate::doorman::Doorman;
use crate::events::Events;
use crate::gossip::{self, Gossip, GossipArgs, GossipHandle};
use crate::limit::Limits;
use crate::listener::Role;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::quotas::{self, QuotasArgs, QuotasThread};
use crate::scout::{self, Identity};
use crate::state::State;
use crate::upstreams::Upstreams;
use crate::{admin, catalog_http, checks, dns, views};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What stops the process from starting, and what to do about it.
pub fn run(loaded: Loaded, file: Option<&Path>) -> anyhow::Result<()> {
    let started = Started::now();
    let logging = Logging::start(&loaded.settings.log)?;
    let settings = &loaded.settings;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        file = file.map_or_else(|| "(none)".to_owned(), |file| file.display().to_string()),
        host = settings.node.name,
        mesh = settings.mesh.name,
        "evenkeel starts"
    );
    logging.warn_of_environment();
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before anything else: a SIGHUP that comes early must not end the process.
        let signals = Signals::new()?;
        let (app, publication) = App::start(loaded.settings, logging, file, started).await?;
        tokio::select! {
            biased;
            () = app.run(signals, file) => Ok(()),
            stopped = publication.run() => stopped,
        }
    })
}

#[derive(PartialEq, Eq)]
enum Asked {
    End,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    async fn end(&mut self) {
        while self.next().await != Asked::End {
            warn!(
                "SIGHUP, but this host is going away: the configuration file is not read any more"
            );
        }
    }
}

/// Publishes the router, for as long as it runs.
struct Publication {
    upstreams: Upstreams,
    settings: Arc<ArcSwap<Settings>>,
    handle: GossipHandle,
    changes: watch::Receiver<u64>,
    /// Other settings are in effect: answered when the router goes by them.
    resettled: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Publication {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            let settled = tokio::select! {
                settled = self.resettled.recv() => settled,
                changed = self.changes.changed() => {
                    changed.context("gossip stopped: restart this host")?;
                    None
                }
                _ = sweep.tick() => None,
            };
            let settings = self.settings.load_full();
            self.upstreams.publish(Instant::now(), &settings, &self.handle.catalog());
            if let Some(settled) = settled {
                let _ = settled.send(());
            }
        }
    }
}

struct App {
    settings: Arc<ArcSwap<Settings>>,
    logging: Logging,
    metrics: Metrics,
    events: Arc<Events>,
    plane: DataPlane,
    handle: GossipHandle,
    /// Tells the [`Publication`] of other settings.
    resettle: mpsc::Sender<oneshot::Sender<()>>,
    draining: Arc<AtomicBool>,
    /// Where it listens now.
    listeners: views::Listeners,
    /// Those of them that no reload changes.
    fixed_listeners: BTreeMap<String, SocketAddr>,
    env: Environment,
    // Ended in this order when dropped: what answers first, gossip last.
    _scouts: scout::Receiver,
    _dns: Option<dns::Dns>,
    _control: control::Control,
    quotas: QuotasThread,
    gossip: Gossip,
}

impl App {
    async fn start(
        settings: Settings,
        logging: Logging,
        file: Option<&Path>,
        started: Started,
    ) -> anyhow::Result<(App, Publication)> {
        let env = Environment::from_os();
        let workers = data_plane::workers(&settings);
        let metrics = Metrics::new(workers)?;
        let registry = metrics.registry.clone();
        logging.register(&registry)?;
        let events = Arc::new(Events::default());

        let (mesh, scouts) = open_mesh(settings.mesh.data.address, workers)?;
        let outbound = Sockets::open("outbound.listen", settings.outbound.listen.address, workers)?;
        let gossip_sockets = gossip::Sockets::bind(settings.mesh.gossip.address)
            .map_err(|error| taken("mesh.gossip.listen", settings.mesh.gossip.address, &error))?;
        let admin_listener = TcpListener::bind(settings.admin.address)
            .map_err(|error| taken("admin.listen", settings.admin.address, &error))?;
        let dns_sockets =
            control::optional("discovery.dns", settings.discovery.dns, dns::Sockets::bind)?;
        let http = control::optional("discovery.http", settings.discovery.http, TcpListener::bind)?;
        let doorman =
            control::optional("ratelimit.listen", settings.ratelimit.listen, TcpListener::bind)?;

        let mut listeners = BTreeMap::from([
            (Role::Inbound.to_string(), mesh.address),
            (Role::Outbound.to_string(), outbound.address),
            ("mesh.gossip.listen".to_owned(), gossip_sockets.local_addr()?),
            ("admin.listen".to_owned(), admin_listener.local_addr()?),
        ]);

        let state = Arc::new(State::open(&settings.node.data_dir, &env)?);
        let data_dir = state.dir().map(|dir| dir.display().to_string());
        let (wanted, wants) = mpsc::channel(quotas::WANTED_MAX);
        let (quotas_received, received) = mpsc::channel(quotas::MESSAGES_MAX);
        let (send, quotas_to_send) = mpsc::channel(quotas::MESSAGES_MAX);
        let gossip = gossip::spawn(GossipArgs {
            settings: &settings,
            env: &env,
            sockets: gossip_sockets,
            mesh_port: mesh.address.port(),
            state: Arc::clone(&state),
            events: Arc::clone(&events),
            metrics: &registry,
            counters: &metrics.places,
            quotas_received,
            quotas_to_send,
        })?;
        let handle = gossip.handle().clone();
        let limits = Arc::new(Limits::new(wanted, &registry)?);
        let quotas = quotas::spawn(QuotasArgs {
            settings: Arc::new(settings.ratelimit.clone()),
            gossip: handle.clone(),
            received,
            send,
            limits: Arc::clone(&limits),
            wanted: wants,
            state,
            metrics: &registry,
        })?;
        let own = handle.node();
        let identity = Identity {
            mesh: settings.mesh.name.clone(),
            keys: settings.mesh.keys.clone(),
            node: own.id,
            own: SocketAddr::new(own.address.ip(), own.mesh_port),
        };
        let mut plane = DataPlane::start(&settings, metrics.clone(), own.address.ip(), identity)?;
        registry.register(Box::new(BalancerMetrics::new(Arc::clone(&plane.shared().router))?))?;
        let settings = Arc::new(settings);
        let (shared, register) = (plane.shared(), metrics.register());
        let (router, hosts_lost) = (Arc::clone(&shared.router), shared.hosts_lost.clone());
        let mut upstreams =
            Upstreams::new(shared.epoch, register, router, hosts_lost, Arc::clone(&limits));
        upstreams.publish(Instant::now(), &settings, &handle.catalog());
        plane.listen(mesh, &Role::Inbound).await;
        plane.listen(outbound, &Role::Outbound).await;
        let prepared = plane.prepare(&settings).await?;
        plane.take_over(prepared).await;

        let mut surfaces = Vec::new();
        if let Some(listener) = http {
            let address = listener.local_addr()?;
            listeners.insert("discovery.http".to_owned(), address);
            surfaces.push(Surface {
                name: "discovery.http",
                listener,
                router: catalog_http::router(
                    handle.clone(),
                    limits,
                    Arc::clone(&plane.shared().own),
                    &registry,
                    &metrics.places,
                )?,
                timeout: catalog_http::ANSWER_TIMEOUT,
                guard: guard(own.name.clone(), address),
                refuse: catalog_http::refuse,
            });
        }
        let dns = match dns_sockets {
            Some(sockets) => {
                listeners.insert("discovery.dns".to_owned(), sockets.local_addr()?);
                Some(dns::spawn(sockets, handle.snapshots(), &registry, &metrics.places)?)
            }
            None => None,
        };
        if let Some(listener) = &doorman {
            listeners.insert("ratelimit.listen".to_owned(), listener.local_addr()?);
        }
        let fixed_listeners = listeners.clone();
        listeners.extend(plane.services(&settings));
        for (listener, address) in &listeners {
            info!(listener, %address, "listening");
        }
        plane.keep_from_callers(fixed_listeners.values().copied());
        let listeners = Arc::new(ArcSwap::from_pointee(listeners));

        let settings = Arc::new(ArcSwap::new(settings));
        let doorman = doorman.map(|listener| {
            let (quotas, settings) = (quotas.handle().clone(), Arc::clone(&settings));
            Doorman::new(listener, quotas, settings, &registry, &metrics.places)
        });
        let doorman = doorman.transpose()?;
        let draining = Arc::new(AtomicBool::new(false));
        let scouts = scout::spawn(scouts, Arc::clone(plane.shared()), Arc::clone(&draining))?;
        let admin = admin::Admin {
            gossip: handle.clone(),
            quotas: quotas.handle().clone(),
            events: Arc::clone(&events),
            metrics: registry,
            data_dir,
            file: file.map(|file| file.display().to_string()),
            started,
            views: views::views(plane.shared(), &settings, &handle, &draining, &listeners),
        };
        let address = admin_listener.local_addr()?;
        surfaces.push(Surface {
            name: "admin",
            listener: admin_listener,
            router: admin::router(admin),
            timeout: admin::ANSWER_TIMEOUT,
            guard: guard(own.name.clone(), address),
            refuse: admin::error,
        });
        let (checks, commands) = (handle.checks(), handle.commands());
        let control = control::start(surfaces, &metrics.places, move || async {
            if let Some(doorman) = doorman {
                tokio::task::spawn_local(doorman.serve());
            }
            checks::run(checks, commands).await;
        })?;
        metrics.reload_successful.set(1);
        metrics.reload_time.set(unix_seconds());
        let (resettle, resettled) = mpsc::channel(1);
        let publication = Publication {
            upstreams,
            settings: Arc::clone(&settings),
            handle: handle.clone(),
            changes: handle.changes(),
            resettled,
        };
        let app = App {
            settings,
            logging,
            metrics,
            events,
            plane,
            handle,
            resettle,
            draining,
            listeners,
            fixed_listeners,
            env,
            _scouts: scouts,
            _dns: dns,
            _control: control,
            quotas,
            gossip,
        };
        Ok((app, publication))
    }

    async fn run(mut self, mut signals: Signals, file: Option<&Path>) {
        while signals.next().await == Asked::Reload {
            self.reload(file).await;
        }
        self.shut_down(signals).await;
    }

    /// Takes over a changed file, or says why the old one stays.
    async fn reload(&mut self, file: Option<&Path>) {
        let Some(file) = file else {
            return warn!(
                "SIGHUP, but this process was started without a configuration file: nothing to read"
            );
        };
        let loaded = match evenkeel_config::load(file, &self.env) {
            Ok(loaded) => loaded,
            Err(problems) => {
                let problems: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
                return self.refuse_reload(file, &problems);
            }
        };
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        let prepared = match self.plane.prepare(&loaded.settings).await {
            Ok(prepared) => prepared,
            Err(problem) => return self.refuse_reload(file, &[format!("{problem:#}")]),
        };
        if let Err(refused) = self.handle.reconcile(&loaded.settings).await {
            return self.refuse_reload(file, &[refused.to_string()]);
        }
        // From here on nothing fails.
        let old = self.settings.load_full();
        let changes = evenkeel_config::diff(&old, &loaded.settings);
        let restart: Vec<&str> =
            changes.iter().filter(|c| !c.live).map(|c| c.key.as_str()).collect();
        if !restart.is_empty() {
            warn!(
                keys = restart.join(", "),
                "these changes need a restart; the others are taken now"
            );
        }
        self.plane.take_over(prepared).await;
        self.logging.set(&loaded.settings.log);
        self.quotas.handle().follow(loaded.settings.ratelimit.clone()).await;
        self.settings.store(Arc::new(in_effect(&old, loaded.settings)));
        let (settled, in_router) = oneshot::channel();
        if self.resettle.send(settled).await.is_ok() {
            let _ = in_router.await;
        }
        self.metrics.reload_successful.set(1);
        self.metrics.reload_time.set(unix_seconds());
        let taken: Vec<&str> = changes.iter().filter(|c| c.live).map(|c| c.key.as_str()).collect();
        let mut said =
            if taken.is_empty() { "nothing changed".to_owned() } else { taken.join(", ") };
        if !restart.is_empty() {
            said = format!("{said}; after a restart: {}", restart.join(", "));
        }
        let mut listeners = self.fixed_listeners.clone();
        listeners.extend(self.plane.services(&self.settings.load()));
        self.listeners.store(Arc::new(listeners));
        self.events.reloaded(file, &said);
    }

    fn refuse_reload(&self, file: &Path, problems: &[String]) {
        self.metrics.reload_successful.set(0);
        self.events.reload_refused(file, problems);
    }

    async fn shut_down(self, mut signals: Signals) {
        let shutdown = self.settings.load().shutdown.clone();
        self.draining.store(true, Ordering::Relaxed);
        // Nobody has to hear of it on a mesh of one.
        let alone = self.handle.catalog().alive().count() <= 1;
        let settle = if alone { Duration::ZERO } else { shutdown.settle };
        info!(?settle, "going away: others are asked to stop choosing this host");
        self.handle.set_draining(true).await;
        let orderly = async {
            tokio::time::sleep(settle).await;
            let end = Instant::now() + shutdown.timeout;
            self.plane.drain_inbound(shutdown.timeout).await;
            self.plane
                .drain_outbound(end.saturating_duration_since(Instant::now()).max(DRAIN_MIN))
                .await;
        };
        let patience = tokio::select! {
            () = orderly => DRAIN_MIN,
            () = signals.end() => {
                warn!("told a second time: what is in flight is cut off");
                Duration::ZERO
            }
        };
        self.quotas.handle().leave().await;
        self.handle.leave().await;
        self.plane.stop(patience).await;
        drop(self.quotas);
        drop(self.gossip);
        info!("gone");
    }
}

/// Whose requests a listener at this address takes.
fn guard(node_name: String, address: SocketAddr) -> ControlGuard {
    ControlGuard { node_name, on_loopback: address.ip().to_canonical().is_loopback() }
}

/// The configuration that runs after a reload: what needs a restart stays as it was, so that what `/config` shows
/// and the router uses is what is in effect.
fn in_effect(old: &Settings, new: Settings) -> Settings {
    Settings {
        node: old.node.clone(),
        workers: old.workers,
        mesh: Mesh { bounds: new.mesh.bounds, ..old.mesh.clone() },
        outbound: Outbound { listen: old.outbound.listen, ..new.outbound },
        discovery: old.discovery.clone(),
        ratelimit: RateLimit { listen: old.ratelimit.listen, ..new.ratelimit },
        admin: old.admin,
        limits: settings::Limits {
            connections: new.limits.connections,
            buffers: new.limits.buffers,
            ..old.limits
        },
        log: Log { json: old.log.json, ..new.log },
        ..new
    }
}

/// The listeners for other hosts: requests over TCP, scouts over UDP, on one port.
fn open_mesh(address: SocketAddr, workers: usize) -> anyhow::Result<(Sockets, UdpSocket)> {
    let mut tries = if address.port() == 0 { PORT_TRIES_MAX } else { 1 };
    loop {
        tries -= 1;
        let mesh = Sockets::open("mesh.data.listen", address, workers)?;
        match scout::bind(mesh.address) {
            Ok(scouts) => {
                mesh.between_hosts()?;
                return Ok((mesh, scouts));
            }
            Err(error) if tries == 0 => {
                return Err(taken("mesh.data.listen, UDP", mesh.address, &error));
            }
            Err(_) => {}
        }
    }
}

fn taken(what: &str, address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let hint = data_plane::bind_hint(error);
    anyhow::anyhow!("cannot listen on {address} ({what}): {error}; {hint}")
}

fn unix_seconds() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs().try_into().unwrap_or(i64::MAX))
}

/// Times that port 0 is tried, until one is free for both TCP and UDP.
const PORT_TRIES_MAX: u32 = 50;
/// Names of services that are gone are forgotten some time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Applications are served at least this long after the last inbound request.
const DRAIN_MIN: Duration = Duration::from_secs(1);

//! Builds everything and ends it again: the one list of long-lived tasks.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use evenkeel_config::settings::Listen;
use evenkeel_config::{Environment, Loaded};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::control::{self, Surface};
use crate::events::Events;
use crate::gossip::{self, GossipArgs};
use crate::state::State;
use crate::{admin, catalog_http, checks, dns};

/// Runs until SIGTERM or SIGINT.
pub fn run(loaded: Loaded, file: Option<PathBuf>) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let settings = loaded.settings;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let env = Environment::from_os();
    let metrics = prometheus::Registry::new();
    let events = Arc::new(Events::default());
    let state = Arc::new(State::open(&settings.node.data_dir, &env)?);
    let data_dir = state.dir().map(|dir| dir.display().to_string());

    let sockets = gossip::Sockets::bind(settings.mesh.gossip.address)
        .with_context(|| format!("mesh.gossip.listen {}", settings.mesh.gossip.address))?;
    let mut listeners = BTreeMap::from([("gossip".to_owned(), sockets.local_addr()?)]);
    let gossip = gossip::spawn(GossipArgs {
        settings: &settings,
        env: &env,
        sockets,
        mesh_port: settings.mesh.data.address.port(),
        state,
        events: Arc::clone(&events),
        metrics: &metrics,
    })?;
    let handle = gossip.handle().clone();

    let dns_sockets =
        control::optional("discovery.dns", settings.discovery.dns, dns::Sockets::bind)?;
    let http = control::optional("discovery.http", settings.discovery.http, TcpListener::bind)?;
    let Listen { address, .. } = settings.admin;
    let admin_listener =
        TcpListener::bind(address).with_context(|| format!("admin.listen {address}"))?;
    listeners.insert("admin".to_owned(), admin_listener.local_addr()?);
    let mut surfaces = Vec::new();
    if let Some(listener) = http {
        listeners.insert("http".to_owned(), listener.local_addr()?);
        let router = catalog_http::router(handle.clone(), &metrics)?;
        surfaces.push(Surface {
            name: "discovery.http",
            listener,
            router,
            timeout: catalog_http::ANSWER_TIMEOUT,
        });
    }
    let _dns = match dns_sockets {
        Some(sockets) => {
            listeners.insert("dns".to_owned(), sockets.local_addr()?);
            Some(dns::spawn(sockets, handle.snapshots(), &metrics)?)
        }
        None => None,
    };
    for (name, address) in &listeners {
        info!(name, %address, "listening");
    }
    let effective = settings.to_effective_yaml();
    let address: SocketAddr = admin_listener.local_addr()?;
    let router = admin::router(
        admin::Admin {
            gossip: handle.clone(),
            events,
            metrics: metrics.clone(),
            data_dir,
            views: admin::Views {
                endpoints: Box::new(|_| None),
                explain: Box::new(|_, _, _| None),
                config: Box::new(move || effective.clone()),
                ready: Box::new(|| Ok(())),
                listeners: Box::new(move || listeners.clone()),
            },
        },
        address,
    );
    surfaces.push(Surface {
        name: "admin",
        listener: admin_listener,
        router,
        timeout: admin::ANSWER_TIMEOUT,
    });
    let (local, commands) = (handle.local(), handle.commands());
    let control = control::start(surfaces, move || checks::run(local, commands))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => match file.as_deref().map(|file| evenkeel_config::load(file, &env)) {
                    Some(Ok(loaded)) => handle.reconcile(&loaded.settings).await,
                    Some(Err(problems)) => warn!("the configuration is not reloaded:\n{problems}"),
                    None => {}
                },
            }
        }
        handle.set_draining(true).await;
        handle.leave().await;
        anyhow::Ok(())
    })?;
    drop(control);
    drop(gossip);
    Ok(())
}

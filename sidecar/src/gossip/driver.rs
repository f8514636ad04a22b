//! The loop of the gossip thread: waits for whatever comes first, lets `Discovery` handle it, carries out what it asks.
//!
//! Each round takes a bounded number of datagrams, then commands, then streams, then what is due, so that none of
//! them starves another; datagrams before timers, because a late timer must not declare dead a host whose answer
//! is already in the socket (after a pause of this process both are there at once).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use evenkeel_discovery::discovery::DATAGRAM_MAX;
use evenkeel_discovery::registration::{Check, Origin, Registration};
use evenkeel_discovery::{Discovery, Event, Health, RegisterError};
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::metrics::Published;
use super::stream::{self, Arrival};
use super::{ChangeError, Command, Offers, OrderRequest, ReconcileError, SAVED_FILE, difference};
use crate::checks::Verdict;
use crate::events::Events;
use crate::places::Places;
use crate::state::State;

mod health_change;
mod readiness;

use readiness::{ALONE_AFTER, elsewhere};

/// The thread's state.
pub(super) struct Driver {
    pub discovery: Discovery,
    /// `mesh.join`.
    pub join: Vec<String>,
    /// Of the configuration.
    pub offers: Offers,
    pub state: Arc<State>,
    pub events: Arc<Events>,
    pub published: Arc<Published>,
    pub changed: watch::Sender<u64>,
    pub checks: watch::Sender<Arc<Vec<(String, Check)>>>,
    pub joined: Arc<AtomicBool>,
    /// Why this host is not a working member of its mesh.
    pub obstacle: Arc<ArcSwapOption<String>>,
    /// Where the sockets listen.
    pub listens: SocketAddr,
    pub udp: std::net::UdpSocket,
    /// Where messages about quotas go.
    pub quotas: mpsc::Sender<(u64, Vec<u8>)>,
    /// For exchanges that others begin.
    pub places: Arc<Places>,
}

/// What the loop keeps beside `Discovery`.
struct Round {
    udp: UdpSocket,
    /// The address that dials come from: where others see this host.
    source: Option<IpAddr>,
    arrivals: mpsc::Sender<Arrival>,
    resolved: mpsc::Sender<Resolved>,
    memory: Arc<Semaphore>,
    /// Addresses of `mesh.join`, and whether the last try failed.
    seeds: BTreeMap<SocketAddr, bool>,
    /// Names of `mesh.join` that could not be looked up.
    unresolved: BTreeSet<String>,
    /// Names whose first look-up has not ended.
    looked_up_first: BTreeSet<String>,
    save_due: Option<Instant>,
    /// Changes that were handed to be written, and the last of them that is on the disk.
    changes: u64,
    kept: Arc<AtomicU64>,
    alone_at: Option<Instant>,
    /// The last registration was refused for want of room.
    was_full: bool,
}

/// The end of looking one join name up.
type Resolved = (String, io::Result<Vec<SocketAddr>>);

impl Driver {
    /// Runs until `stopped` closes.
    pub(super) async fn run(
        mut self,
        tcp: TcpListener,
        mut commands: mpsc::Receiver<Command>,
        mut quotas: mpsc::Receiver<(u64, Vec<u8>)>,
        mut stopped: oneshot::Receiver<()>,
    ) -> io::Result<()> {
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let udp = UdpSocket::from_std(self.udp.try_clone()?)?;
        let (arrivals, mut arrived) = mpsc::channel(ARRIVALS_MAX);
        let (resolved, mut addresses) = mpsc::channel(ARRIVALS_MAX);
        let is_member = stream::members_of(Arc::clone(&self.published.catalog));
        tokio::spawn(stream::accept(tcp, Arc::clone(&self.places), arrivals.clone(), is_member));
        let mut round = Round {
            udp,
            source: Some(self.listens.ip()).filter(|ip| !ip.is_unspecified()),
            arrivals,
            resolved,
            memory: stream::dial_memory(),
            seeds: BTreeMap::new(),
            unresolved: BTreeSet::new(),
            looked_up_first: self.join.iter().cloned().collect(),
            save_due: None,
            changes: 0,
            kept: Arc::default(),
            alone_at: self.discovery.snapshot().partial.then(|| Instant::now() + ALONE_AFTER),
            was_full: false,
        };
        let Offers { services, policies } = &mut self.offers;
        let offers =
            Offers { services: std::mem::take(services), policies: std::mem::take(policies) };
        self.reconcile(offers);
        self.save();
        let mut commands_open = true;
        loop {
            self.carry_out(&mut round);
            let due = [self.discovery.poll_timeout(), round.save_due, round.alone_at]
                .into_iter()
                .flatten()
                .min();
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                // Read below, in every round.
                readable = round.udp.readable() => readable?,
                command = commands.recv(), if commands_open => match command {
                    Some(command) => self.command(command, &mut round),
                    None => commands_open = false,
                },
                Some((to, bytes)) = quotas.recv() => {
                    self.discovery.send_quota(to, bytes);
                    for _ in 0..BATCH_MAX {
                        let Ok((to, bytes)) = quotas.try_recv() else { break };
                        self.discovery.send_quota(to, bytes);
                    }
                }
                Some(arrival) = arrived.recv() => self.arrival(arrival, &mut round),
                Some((name, found)) = addresses.recv() => self.resolved(name, found, &mut round),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.receive(&round.udp);
            self.due(&mut round);
        }
    }

    /// Takes the datagrams that are there, at most [`BATCH_MAX`].
    fn receive(&mut self, udp: &UdpSocket) {
        let mut buffer = [0; DATAGRAM_MAX + 1];
        for _ in 0..BATCH_MAX {
            match udp.try_recv_from(&mut buffer) {
                // One byte more than is allowed was read: `Discovery` refuses and counts it.
                Ok((length, from)) => {
                    self.discovery.handle_datagram(
                        Instant::now(),
                        wall_ms(),
                        from,
                        &buffer[..length],
                    );
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return,
                Err(cause) => return debug!(%cause, "gossip cannot receive"),
            }
        }
    }

    fn due(&mut self, round: &mut Round) {
        let now = Instant::now();
        if self.discovery.poll_timeout().is_some_and(|due| due <= now) {
            self.discovery.handle_timeout(now, wall_ms());
        }
        if round.save_due.is_some_and(|due| due <= now) {
            round.save_due = None;
            self.save();
        }
        if round.alone_at.is_some_and(|due| due <= now) {
            round.alone_at = None;
            self.stop_waiting(now);
        }
    }

    /// Sends, dials and publishes what `Discovery` wants after whatever was handled.
    fn carry_out(&mut self, round: &mut Round) {
        while let Some(transmit) = self.discovery.poll_transmit() {
            // A full buffer or an unreachable network loses the datagram, as the network itself may.
            if let Err(cause) = round.udp.try_send_to(&transmit.payload, transmit.to) {
                debug!(to = %transmit.to, %cause, "a gossip datagram was not sent");
                self.published.unsent.fetch_add(1, Ordering::Relaxed);
            }
        }
        while let Some(dial) = self.discovery.poll_dial() {
            tokio::spawn(stream::dial(
                dial,
                round.source,
                Arc::clone(&round.memory),
                round.arrivals.clone(),
            ));
        }
        while let Some(event) = self.discovery.poll_event() {
            self.event(event, round);
        }
        self.judge_readiness(round);
        *self.published.counters.lock().unwrap_or_else(PoisonError::into_inner) =
            self.discovery.counters();
    }

    fn event(&mut self, event: Event, round: &mut Round) {
        match event {
            Event::ResolveJoin => self.resolve_join(round),
            Event::SnapshotChanged => self.publish(),
            Event::SaveDue => round.save_due = round.save_due.or_else(|| Some(Instant::now() + SAVE_AFTER)),
            Event::NodeUp { node, name } => {
                self.events.info("member_up", name, format!("id {node:016x}"));
            }
            Event::NodeDown { node, name, left } => {
                // Its record may be gone before the event comes; the snapshot that readers see still has its name.
                let catalog = self.published.catalog.load();
                let name = catalog.nodes.get(&node).map_or(name, |known| known.name.clone());
                if left {
                    self.events.info("member_left", name, format!("said goodbye; id {node:016x}"));
                } else {
                    self.events.warn(
                        "member_down",
                        name,
                        format!("does not answer any more; id {node:016x}"),
                    );
                }
            }
            Event::Refuted => self.events.warn(
                "refuted",
                "this host",
                "the others took it for dead, and it has rejoined: was the process paused, or the network cut?",
            ),
            Event::AddressConflict { loser, winner, address } => self.events.warn(
                "address_conflict",
                address.to_string(),
                format!(
                    "two hosts claim this gossip address: {winner:016x} answers there and stays, {loser:016x} is left out. Unless it is one host that lost its data directory, change node.address of {loser:016x}"
                ),
            ),
            Event::NotThere { address, found } => self.events.warn(
                "not_at_address",
                address.to_string(),
                format!("{}. Others cannot reach this host: set node.address to an address of this host, and mesh.gossip.listen so that it is listened on", elsewhere(found)),
            ),
            // A full queue loses it, as the network may.
            Event::Quota { from, bytes } => {
                if self.quotas.try_send((from, bytes)).is_err() {
                    self.published.unread.fetch_add(1, Ordering::Relaxed);
                }
            }
            Event::Withdrawn { id, check } => {
                self.publish_checks();
                let why = format!("check {check} was critical for as long as its DeregisterCriticalServiceAfter allows");
                self.events.warn("deregistered", id, why);
            }
            Event::RecordRefused { node, name } => self.events.warn(
                "limit_reached",
                name,
                format!(
                    "what this host offers is not taken here and missing in look-ups (id {node:016x}): limits.records or limits.members is reached; raise it on every host. evenkeel_gossip_refused_total{{reason=\"limit\"}} counts on"
                ),
            ),
            Event::NotRestored { id, cause } => self.events.warn(
                "registration_refused",
                id,
                format!("was registered before the restart and is not offered any more: {cause}"),
            ),
            Event::NewIdentity { node } => {
                self.save();
                self.events.warn(
                    "new_identity",
                    format!("{node:016x}"),
                    "another process used this host's id (was a data directory copied?): this host continues under a new one",
                );
            }
        }
    }

    fn publish(&self) {
        let new = self.discovery.snapshot();
        let old = self.published.catalog.swap(Arc::clone(&new));
        difference::note(&old, &new, &self.events);
        self.changed.send_modify(|count| *count += 1);
    }

    fn save(&self) -> oneshot::Receiver<io::Result<()>> {
        let (failed, answer) = oneshot::channel();
        match serde_json::to_vec(&self.discovery.saved()) {
            Ok(bytes) => self.state.write(SAVED_FILE, bytes),
            Err(cause) => {
                let _ = failed.send(Err(cause.into()));
                answer
            }
        }
    }

    fn command(&mut self, command: Command, round: &mut Round) {
        let (now, wall) = (Instant::now(), wall_ms());
        match command {
            Command::Register(registration, done) => {
                // Clients that register again every few seconds change nothing. While the last change is not on the disk
                // (yet, or because it could not be written) what they ask for may not be either: it is written again.
                if self.discovery.registrations().any(|one| *one == *registration) {
                    match round.kept.load(Ordering::Relaxed) == round.changes {
                        true => drop(done.send(Ok(()))),
                        false => self.finish(Ok(()), done, round, |_| {}),
                    }
                    return;
                }
                let what = format!("{} at {}", registration.service, registration.address);
                let id = registration.id.clone();
                let result = match self.configured(&id) {
                    true => Err(ChangeError::Configured(id.clone())),
                    false => self
                        .discovery
                        .register(now, wall, *registration)
                        .map_err(ChangeError::Refused),
                };
                self.finish(result, done, round, |events| events.info("registered", id, what));
            }
            Command::Deregister(id, done) => {
                let result = match self.configured(&id) {
                    true => Err(ChangeError::Configured(id.clone())),
                    false => {
                        self.discovery.deregister(now, wall, &id).map_err(ChangeError::Refused)
                    }
                };
                self.finish(result, done, round, |events| {
                    events.info("deregistered", id, "by the HTTP API");
                });
            }
            Command::Health(verdict) => self.health(verdict),
            Command::ChangeHealth(change, done) => self.change_health(change, done, round),
            Command::Draining(draining) => {
                self.discovery.set_draining(now, wall, draining);
                let detail = if draining {
                    "asks all hosts to stop choosing it"
                } else {
                    "may be chosen again"
                };
                self.events.info("draining", "this host", detail);
            }
            Command::Reconcile(offers, done) => {
                let fits = self.discovery.check_offers(now, &offers.services, &offers.policies);
                let fits = fits.map_err(|(id, cause)| ReconcileError::NotOffered(id, cause));
                if fits.is_ok() {
                    self.reconcile(*offers);
                }
                let _ = done.send(fits);
            }
            Command::Note(name, body) => {
                if !self.discovery.note(now, wall, &name, body) {
                    warn!(
                        name,
                        "a note is too long for this host's record, or the mesh has as many records as limits.records allows: raise it on every host"
                    );
                }
            }
            Command::Order(request, done) => {
                let result = match *request {
                    OrderRequest::Override(service, policy, ttl) => {
                        self.discovery.override_policy(now, wall, &service, policy, ttl)
                    }
                    OrderRequest::Drain(node, ttl) => self.discovery.drain(now, wall, node, ttl),
                    OrderRequest::Undo(subject) => self.discovery.undo(now, wall, &subject),
                };
                // What it did shows in the next snapshot, and there it is noted.
                self.finish(result.map_err(ChangeError::NotOrdered), done, round, |_| {});
            }
            Command::Leave(done) => {
                self.discovery.leave(now, wall);
                self.carry_out(round);
                self.save();
                let _ = done.send(());
            }
        }
    }

    fn configured(&self, id: &str) -> bool {
        self.discovery
            .registrations()
            .any(|one| one.id == id && one.origin == Origin::Configuration)
    }

    /// Answers a change made by the HTTP API once it is on the disk.
    fn finish(
        &mut self,
        result: Result<(), ChangeError>,
        done: oneshot::Sender<Result<(), ChangeError>>,
        round: &mut Round,
        note: impl FnOnce(&Events),
    ) {
        if let Err(refused) = result {
            self.note_full(&refused, round);
            let _ = done.send(Err(refused));
            return;
        }
        round.was_full = false;
        note(&self.events);
        self.publish_checks();
        round.save_due = None;
        let kept = self.save();
        round.changes += 1;
        let (change, last) = (round.changes, Arc::clone(&round.kept));
        tokio::spawn(async move {
            let kept =
                kept.await.unwrap_or_else(|_| Err(io::Error::other("the writer has stopped")));
            if kept.is_ok() {
                // Written in order, and each time everything.
                last.fetch_max(change, Ordering::Relaxed);
            }
            let _ = done.send(kept.map_err(ChangeError::NotKept));
        });
    }

    /// Notes once, and not for each try, that a limit keeps applications from registering.
    fn note_full(&self, refused: &ChangeError, round: &mut Round) {
        let is_full = matches!(
            refused,
            ChangeError::Refused(RegisterError::TooMany | RegisterError::MeshFull)
        );
        if is_full && !std::mem::replace(&mut round.was_full, true) {
            self.events.warn("limit_reached", "registrations", refused.to_string());
        }
    }

    fn health(&mut self, verdict: Verdict) {
        let Verdict { instance, check, status, output } = verdict;
        let health = Health { status, output };
        if instance.is_empty() {
            // The check may have gone while it ran.
            let set = self.discovery.set_host_health(Instant::now(), wall_ms(), &check, health);
            if let Err(cause) = set {
                debug!(check, %cause, "the result of a check was not published");
            }
            return;
        }
        let index = self
            .discovery
            .registrations()
            .find(|one| one.id == instance)
            .and_then(|one| one.checks.iter().position(|known| known.id == check));
        // Its instance may have gone while the check ran.
        if let Some(index) = index {
            let set =
                self.discovery.set_health(Instant::now(), wall_ms(), &instance, index, health);
            if let Err(cause) = set {
                debug!(instance, check, %cause, "the result of a check was not published");
            }
        }
    }

    /// Makes the instances of the configuration exactly these, and what is published of their services.
    fn reconcile(&mut self, offers: Offers) {
        let (now, wall) = (Instant::now(), wall_ms());
        let Offers { services, policies } = offers;
        self.discovery.set_policies(now, wall, policies);
        let wanted: BTreeSet<&str> = services.iter().map(|service| service.id.as_str()).collect();
        let current: BTreeMap<String, Registration> =
            self.discovery.registrations().map(|one| (one.id.clone(), one.clone())).collect();
        for (id, one) in &current {
            if one.origin == Origin::Configuration
                && !wanted.contains(id.as_str())
                && let Err(cause) = self.discovery.deregister(now, wall, id)
            {
                warn!(id, %cause, "an instance of the old configuration was not withdrawn");
            }
        }
        for service in services {
            let (id, name) = (service.id.clone(), service.service.clone());
            match current.get(&id) {
                Some(same) if *same == service => continue,
                Some(other) if other.origin == Origin::Api => self.events.warn(
                    "registration_replaced",
                    id.clone(),
                    "was registered by the HTTP API and is now in the configuration file, which wins",
                ),
                _ => {}
            }
            if let Err(cause) = self.discovery.register(now, wall, service) {
                self.events.warn(
                    "registration_refused",
                    id,
                    format!("{name} in the configuration file: {cause}"),
                );
            }
        }
        self.publish_checks();
    }

    fn publish_checks(&self) {
        self.checks.send_replace(local_checks(&self.discovery));
    }

    fn arrival(&mut self, arrival: Arrival, round: &mut Round) {
        let (now, wall) = (Instant::now(), wall_ms());
        match arrival {
            Arrival::Request(from, request, answer) => {
                let _ = answer.send(self.discovery.handle_request(now, wall, from, &request));
            }
            Arrival::Response(id, to, result) => {
                if let Some(failing) = round.seeds.get_mut(&to) {
                    if result.is_err() && !*failing {
                        self.events.warn(
                            "join_failed",
                            to.to_string(),
                            "named by mesh.join, does not answer: is evenkeel running there, with the same mesh.name and a common key? Trying on",
                        );
                    }
                    *failing = result.is_err();
                }
                let response = result.as_ref().map(Vec::as_slice).map_err(|error| *error);
                self.discovery.handle_response(now, wall, id, response);
            }
        }
    }

    /// Looks every join name up, each on its own: one slow name must not hold up the others.
    fn resolve_join(&self, round: &Round) {
        for name in &self.join {
            let (name, resolved) = (name.clone(), round.resolved.clone());
            tokio::spawn(async move {
                let found =
                    match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(&name))
                        .await
                    {
                        Ok(found) => found.map(|addresses| addresses.take(ADDRESSES_MAX).collect()),
                        Err(_) => {
                            Err(io::Error::other(format!("no answer within {RESOLVE_TIMEOUT:?}")))
                        }
                    };
                let _ = resolved.send((name, found)).await;
            });
        }
    }

    fn resolved(&mut self, name: String, found: io::Result<Vec<SocketAddr>>, round: &mut Round) {
        round.looked_up_first.remove(&name);
        match found {
            Ok(addresses) => {
                round.unresolved.remove(&name);
                for address in addresses {
                    round.seeds.entry(address).or_insert(false);
                    self.discovery.join(Instant::now(), address);
                }
                // Names that move leave addresses behind.
                while round.seeds.len() > SEEDS_MAX {
                    round.seeds.pop_first();
                }
            }
            Err(cause) => {
                if round.unresolved.insert(name.clone()) {
                    self.events.warn(
                        "join_failed",
                        name,
                        format!("named by mesh.join, cannot be looked up: {cause}. Trying on"),
                    );
                }
            }
        }
    }
}

/// What is checked on this host, with the id of the instance that each is for; empty: it is for the host itself.
pub(super) fn local_checks(discovery: &Discovery) -> Arc<Vec<(String, Check)>> {
    Arc::new(discovery.checks().map(|(id, check)| (id.to_owned(), check.clone())).collect())
}

/// Unix time in milliseconds.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Datagrams taken in one round.
const BATCH_MAX: usize = 64;

/// Streams and look-ups whose end may wait for the loop.
const ARRIVALS_MAX: usize = 64;

/// Addresses of one join name.
const ADDRESSES_MAX: usize = 64;

/// Addresses of join names remembered, to tell of their failure once.
const SEEDS_MAX: usize = 1024;

/// For one look-up of one join name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes of members are gathered for this long before they are written.
const SAVE_AFTER: Duration = Duration::from_secs(1);

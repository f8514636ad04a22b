//! The loop of the quotas thread: waits for whatever comes first, lets [`Quotas`] and the [`Registrar`] handle it, carries out what they ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use evenkeel_config::settings::RateLimit;
use evenkeel_discovery::{Catalog, HostNotes};
use evenkeel_ratelimit::{
    BASE, Census, Event, Micros, Party, Quotas, Registrar, Roster, Spending, decode_rosters,
    encode_rosters,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use self::clients::{Clients, longest_lease};
use super::report::View;
use super::saved::{SAVED_FILE, Saved};
use super::{Command, Message, VIEW_EVERY, notes, split, templates, view};
use crate::gossip::GossipHandle;
use crate::limit::{Limits, Meter, Resource, Wanted};
use crate::state::State;

mod clients;

/// The thread's state.
pub(super) struct Owner {
    life: u64,
    settings: Arc<RateLimit>,
    quotas: Quotas,
    registrar: Registrar,
    census: Census,
    gossip: GossipHandle,
    send: mpsc::Sender<Message>,
    limits: Arc<Limits>,
    /// What is leased for this host's own requests, by id.
    leased: BTreeMap<Arc<[u8]>, Leased>,
    /// As they were when they were last told what this host owns.
    resources: Arc<BTreeMap<Arc<[u8]>, Arc<Resource>>>,
    /// Rosters or rules have changed since then.
    rights_changed: bool,
    /// The notes in this host's record, by name.
    written: BTreeMap<String, Vec<u8>>,
    state: Arc<State>,
    clients: Clients,
    /// Until when something may be lent for as long as Doorman clients hold it, here or to another host for its clients.
    long_loans: Option<Instant>,
    /// What is saved says so.
    saved_long: bool,
    view: Arc<ArcSwap<View>>,
    /// Where members were when they were last up.
    addresses: BTreeMap<u64, SocketAddr>,
    /// Until when long loans of an earlier life may run: the others have to count them too.
    earlier_loans: Option<Instant>,
    /// What hosts said in their notes when these were last read, and the newest roster among it; 0: none.
    told: BTreeMap<u64, (Arc<HostNotes>, u64)>,
    /// Leases for new keys that may be asked for in this second.
    new_leases: u32,
    /// When this host may take the mesh for one without a roster; `None`: it has not met the others.
    may_begin: Option<Instant>,
    dropped: u64,
    left: bool,
    started: Instant,
}

/// A meter, and what is asked for it.
struct Leased {
    resource: Arc<Resource>,
    key: Box<[u8]>,
    meter: Arc<Meter>,
    since: Instant,
    offered: Micros,
}

impl Owner {
    pub(super) fn new(
        life: u64,
        settings: Arc<RateLimit>,
        gossip: GossipHandle,
        limits: Arc<Limits>,
        state: Arc<State>,
        send: mpsc::Sender<Message>,
        view: Arc<ArcSwap<View>>,
    ) -> Owner {
        let now = Instant::now();
        let host = gossip.catalog().own;
        // What an earlier life has lent, and what its clients hold, counts until it has ended.
        let saved: Option<Saved> = state.read(SAVED_FILE, |bytes| serde_json::from_slice(bytes));
        let locked_until = saved.as_ref().filter(|saved| !saved.alone).map(|saved| {
            let clients = if saved.clients { longest_lease(&settings) } else { Duration::ZERO };
            now + BASE + clients
        });
        let earlier_loans = saved.as_ref().filter(|saved| saved.clients).and(locked_until);
        let met = gossip.joined() && locked_until.is_none();
        let rosters = saved.as_ref().and_then(|saved| BASE64.decode(&saved.rosters).ok());
        let rosters = rosters.and_then(|bytes| decode_rosters([&*bytes]).ok()).unwrap_or_default();
        let mut owner = Owner {
            life,
            quotas: Quotas::new(now, Party { host, life }, locked_until),
            registrar: Registrar::new(host),
            census: Census::default(),
            settings,
            gossip,
            send,
            limits,
            leased: BTreeMap::new(),
            resources: Arc::default(),
            rights_changed: true,
            written: BTreeMap::new(),
            state,
            clients: Clients::None,
            long_loans: earlier_loans,
            saved_long: false,
            view,
            addresses: BTreeMap::new(),
            earlier_loans,
            told: BTreeMap::new(),
            new_leases: NEW_LEASES_MAX,
            may_begin: met.then_some(now),
            dropped: 0,
            left: false,
            started: now,
        };
        owner.quotas.set_templates(now, templates(&owner.settings));
        owner.follow(now, rosters);
        owner.save(false);
        owner.show(now);
        owner
    }

    /// Runs until `stopped` closes.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut received: mpsc::Receiver<Message>,
        mut wanted: mpsc::Receiver<Wanted>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut changes: watch::Receiver<u64> = self.gossip.changes();
        let mut census = tokio::time::interval(CENSUS_EVERY);
        let mut second = tokio::time::interval(VIEW_EVERY);
        let mut demand = tokio::time::interval(DEMAND_EVERY);
        demand.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.carry_out();
            let announced = match &self.clients {
                Clients::Announced(at, _) => Some(*at),
                Clients::None | Clients::Some => None,
            };
            let due = self.quotas.poll_timeout().into_iter().chain(announced).min();
            let due = due.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                _ = &mut stopped => return,
                Some(command) = commands.recv() => {
                    self.command(command);
                    self.batch(|owner| commands.try_recv().map(|command| owner.command(command)).is_ok());
                }
                Some(message) = received.recv() => {
                    self.message(message);
                    self.batch(|owner| received.try_recv().map(|message| owner.message(message)).is_ok());
                }
                Some(wanted) = wanted.recv() => self.lease(wanted),
                changed = changes.changed() => match changed {
                    Ok(()) => self.take_census(),
                    // The process is ending.
                    Err(_) => return,
                },
                _ = census.tick() => self.take_census(),
                _ = demand.tick(), if !self.leased.is_empty() => self.measure(),
                _ = second.tick() => self.every_second(),
                () = tokio::time::sleep_until(due.into()) => {
                    self.quotas.handle_timeout(Instant::now());
                    if announced.is_some_and(|at| at <= Instant::now()) {
                        self.serve_clients();
                    }
                }
            }
        }
    }

    /// Takes what else has come of the same kind, for a while.
    fn batch(&mut self, mut next: impl FnMut(&mut Self) -> bool) {
        for _ in 0..BATCH_MAX {
            if !next(self) {
                return;
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Ask { .. } if !matches!(self.clients, Clients::Some) => {
                self.announce(now, command);
            }
            Command::Ask { client, requests, answer } => {
                let grants = requests
                    .iter()
                    .map(|(id, request)| self.quotas.handle_client(now, id, &client, *request));
                let grants: Vec<_> = grants.collect();
                let _ = answer.send(grants);
            }
            Command::Release { client, resources } => {
                for id in resources {
                    self.quotas.handle_release(now, &id, &client);
                }
            }
            Command::Follow(settings) => {
                self.quotas.set_templates(now, templates(&settings));
                self.settings = settings;
                self.rights_changed = true;
                self.take_census();
            }
            Command::Leave(done) => {
                self.left = true;
                self.leased.clear();
                let in_use: Vec<_> =
                    self.quotas.reports(now).map(|report| report.resource).collect();
                for id in in_use {
                    let _ = self.quotas.offer(now, &id, Micros::ZERO);
                }
                self.carry_out();
                // Then nobody holds anything of this host's when it comes again.
                let members = &self.registrar.newest().members;
                self.save(members.len() == 1 && self.long_loans.is_none());
                let _ = done.send(());
            }
        }
    }

    fn message(&mut self, (from, bytes): Message) {
        // A malformed one is counted there.
        let _ = self.quotas.handle_datagram(Instant::now(), from, &bytes);
    }

    /// A request wants leases for a key.
    fn lease(&mut self, Wanted { resource, key }: Wanted) {
        if !resource.is_told() {
            // Its first request: what this host owns may do. That is told after this.
            self.rights_changed = true;
            return;
        }
        let id = resource.id(&key);
        // Strangers can invent keys: beyond this they have this host's own part, all of them together where its table is full.
        let is_flood = self.new_leases == 0 || self.leased.len() >= LEASED_MAX;
        if self.left || is_flood || self.leased.contains_key(&id) {
            return;
        }
        self.new_leases -= 1;
        let now = Instant::now();
        // It has been asked for more than this host owns; how much more is not known yet.
        let right = self.quotas.unused_right(resource.rules());
        let first = right.plus(right).max(FIRST_WANTS);
        if self.quotas.offer(now, &id, first).is_ok()
            && let Some(spending) = self.quotas.spending(now, &id)
        {
            self.begin(now, id, resource, key, spending);
        }
    }

    fn begin(
        &mut self,
        now: Instant,
        id: Arc<[u8]>,
        resource: Arc<Resource>,
        key: Box<[u8]>,
        spending: Spending,
    ) {
        debug!(resource = %shown(&id), amount = spending.amount.as_f64(), "a resource is leased from now on");
        let meter = resource.lease(now, &key, spending);
        if resource.rules().per.is_none() {
            // It is in use: it has just been asked for, or told of.
            let _ = self.quotas.hold(now, &id, Arc::clone(meter.places()));
        }
        let leased = Leased { resource, key, meter, since: now, offered: Micros::ZERO };
        self.leased.insert(id, leased);
    }

    /// Asks for what requests have asked for.
    fn measure(&mut self) {
        let now = Instant::now();
        for (id, leased) in &mut self.leased {
            let rules = leased.resource.rules();
            let mut wants = leased.meter.wants(now, rules);
            let is_new = now.saturating_duration_since(leased.since) < FIRST_LASTS;
            if is_new || !leased.meter.is_idle(now) {
                // What was taken still weighs.
                wants = wants.max(FIRST_WANTS);
            } else if rules.per.is_some() && wants <= self.quotas.unused_right(rules) {
                // What this host owns is enough for it, and needs no lease.
                wants = Micros::ZERO;
            }
            if wants != leased.offered && self.quotas.offer(now, id, wants).is_ok() {
                leased.offered = wants;
            }
        }
    }

    /// Follows who is there, and writes rosters where it is this host's turn.
    fn take_census(&mut self) {
        let now = Instant::now();
        let catalog = Arc::clone(&self.gossip.catalog());
        if catalog.own != self.registrar.host() {
            self.begin_anew(now, catalog.own);
        }
        if self.settings.resources.is_empty() || self.left {
            self.write_notes(BTreeMap::new());
            return;
        }
        let mut news = false;
        for (host, notes) in &catalog.notes {
            if self.told.get(host).is_some_and(|(known, _)| Arc::ptr_eq(known, notes)) {
                continue;
            }
            let rosters = notes::read(notes);
            let newest = rosters.last().map_or(0, |roster| roster.epoch);
            self.told.insert(*host, (Arc::clone(notes), newest));
            news |= self.follow(now, rosters);
        }
        self.told.retain(|host, _| catalog.notes.contains_key(host));
        let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.gossip.joined() {
            // What the others know of rosters is still on its way.
            self.may_begin.get_or_insert(now + HEARING);
        }
        let mut census = notes::census(
            &catalog,
            self.may_begin.is_some_and(|at| at <= now),
            wall_s,
            self.settings.absent,
        );
        census.gone.extend(self.replaced(&catalog));
        census.present.insert(catalog.own);
        census.known.insert(catalog.own, self.registrar.newest().epoch);
        if self.registrar.write(now, &census) {
            self.hand_on_rosters(now);
            news = true;
        }
        if census.present != self.census.present {
            self.quotas.set_live(now, census.present.clone());
        }
        let mut written = BTreeMap::new();
        // What an earlier life has lent counts as well.
        let lent_before = self.earlier_loans.is_some_and(|until| now <= until);
        let has_clients = lent_before || !matches!(self.clients, Clients::None);
        let clients = if has_clients { longest_lease(&self.settings) } else { Duration::ZERO };
        let takes_part = notes::takes_part(self.registrar.newest().epoch, clients);
        written.insert(notes::TAKES_PART.to_owned(), takes_part);
        if self.registrar.is_registrar(&census) || self.is_the_only_one_to_tell(catalog.own) {
            written.extend(notes::rosters(&self.registrar.rosters()));
        }
        self.census = census;
        self.keep_long_loans(now);
        self.write_notes(written);
        if news {
            self.save(false);
            self.show(now);
        }
    }

    /// Members at whose address another host is up: processes without a data directory come again under another id.
    fn replaced(&mut self, catalog: &Catalog) -> BTreeSet<u64> {
        let up: BTreeMap<SocketAddr, u64> =
            catalog.alive().map(|node| (node.address, node.id)).collect();
        self.addresses.extend(up.iter().map(|(address, id)| (*id, *address)));
        let members = &self.registrar.newest().members;
        self.addresses
            .retain(|id, address| members.contains_key(id) || up.get(address) == Some(id));
        let is_replaced = |(id, address): &(&u64, &SocketAddr)| {
            up.get(*address).is_some_and(|other| other != *id) && members.contains_key(id)
        };
        self.addresses.iter().filter(is_replaced).map(|(id, _)| *id).collect()
    }

    /// Whether this host, which was the registrar, still has to say what the next one has not taken over.
    fn is_the_only_one_to_tell(&self, own: u64) -> bool {
        let tells = self.written.keys().any(|name| notes::is_roster(name));
        let newest = self.registrar.newest().epoch;
        let by_another = self.told.iter().any(|(host, (_, told))| *host != own && *told >= newest);
        tells && !by_another
    }

    fn write_notes(&mut self, notes: BTreeMap<String, Vec<u8>>) {
        if notes == self.written {
            return;
        }
        let gone = self.written.keys().filter(|name| !notes.contains_key(*name));
        let gone: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
        let new = notes.into_iter().filter(|(name, body)| self.written.get(name) != Some(body));
        let new: Vec<_> = new.map(|(name, body)| (name, Some(body))).collect();
        for (name, body) in gone.into_iter().chain(new) {
            if !self.gossip.note(name.clone(), body.clone()) {
                // The next census says it again.
                return;
            }
            match body {
                Some(body) => _ = self.written.insert(name, body),
                None => _ = self.written.remove(&name),
            }
        }
    }

    /// This host has another id from now on: what it had was the old one's.
    fn begin_anew(&mut self, now: Instant, host: u64) {
        self.life += 1;
        self.quotas = Quotas::new(now, Party { host, life: self.life }, None);
        self.quotas.set_templates(now, templates(&self.settings));
        self.registrar = Registrar::new(host);
        self.told.clear();
        self.addresses.clear();
        self.census = Census::default();
        for leased in std::mem::take(&mut self.leased).into_values() {
            leased.resource.forget(now, &leased.key);
        }
        self.rights_changed = true;
    }

    /// Sends and sets what follows from whatever was handled.
    fn carry_out(&mut self) {
        while let Some(transmit) = self.quotas.poll_transmit() {
            if self.send.try_send((transmit.to, transmit.bytes)).is_err() {
                self.dropped += 1;
            }
        }
        let now = Instant::now();
        while let Some(event) = self.quotas.poll_event() {
            match event {
                Event::Spend { resource, spending } => self.spend(now, resource, spending),
                Event::Forgotten { resource } => {
                    debug!(resource = %shown(&resource), "a resource is not leased any more");
                    if let Some(leased) = self.leased.remove(&resource) {
                        leased.resource.forget(now, &leased.key);
                    }
                }
            }
        }
        let resources = self.limits.resources();
        if self.rights_changed || !Arc::ptr_eq(&resources, &self.resources) {
            self.rights_changed = false;
            for (name, resource) in resources.iter() {
                self.move_meters(now, name, resource);
            }
            // What is in use already, by clients or by others' wants, is leased before anything of it is spent unasked.
            let in_use: Vec<_> = self.quotas.reports(now).map(|report| report.resource).collect();
            for id in in_use {
                if !self.leased.contains_key(&id)
                    && let Some(spending) = self.quotas.spending(now, &id)
                {
                    self.spend(now, id, spending);
                }
            }
            for resource in resources.values() {
                resource.set_own_part(now, self.quotas.unused_right(resource.rules()));
            }
            self.resources = resources;
        }
    }

    /// What requests may spend of a resource. Where a root has called for what is idle here, the key is leased from now on as well:
    /// what is lent cannot be spent besides.
    fn spend(&mut self, now: Instant, id: Arc<[u8]>, spending: Spending) {
        if let Some(leased) = self.leased.get(&id) {
            leased.meter.set(now, leased.resource.rules(), spending);
            return;
        }
        let (name, key) = split(&id);
        if let Some(resource) = self.limits.resource(name) {
            let key = Box::from(key);
            self.begin(now, id, resource, key, spending);
        }
    }

    /// The resource has other rules now: its meters follow them.
    fn move_meters(&mut self, now: Instant, name: &Arc<[u8]>, resource: &Arc<Resource>) {
        let of_it = self.leased.iter_mut().filter(|(id, leased)| {
            split(id).0 == &**name && !Arc::ptr_eq(&leased.resource, resource)
        });
        for (id, leased) in of_it {
            leased.resource = Arc::clone(resource);
            resource.adopt(&leased.key, &leased.meter);
            if let Some(spending) = self.quotas.spending(now, id) {
                leased.meter.set(now, resource.rules(), spending);
            }
        }
    }

    /// What is to be done once a second.
    fn every_second(&mut self) {
        let now = Instant::now();
        self.new_leases = NEW_LEASES_MAX;
        let have_clients = self.quotas.reports(now).any(|report| report.clients > 0);
        if matches!(self.clients, Clients::Some) && !have_clients {
            self.clients = Clients::None;
            self.take_census();
        }
        self.keep_long_loans(now);
        self.show(now);
    }

    fn show(&self, now: Instant) {
        let catalog = self.gossip.catalog();
        let waiting = !self.settings.resources.is_empty()
            && self.registrar.newest().epoch == 0
            && now < self.started + WAITING_MAX;
        let (dropped, configured) = (self.dropped, self.settings.resources.len());
        let view =
            view::of(now, &self.quotas, &self.registrar, &catalog, dropped, waiting, configured);
        self.view.store(Arc::new(view));
    }

    /// Follows rosters, in this order; whether any of that is new.
    fn follow(&mut self, now: Instant, rosters: Vec<Roster>) -> bool {
        if !self.registrar.heard(now, rosters) {
            return false;
        }
        self.hand_on_rosters(now);
        true
    }

    fn hand_on_rosters(&mut self, now: Instant) {
        for roster in self.registrar.rosters() {
            // What is known already changes nothing.
            let _ = self.quotas.set_roster(now, roster);
        }
        self.rights_changed = true;
    }

    fn save(&mut self, alone: bool) {
        self.saved_long = self.long_loans.is_some();
        let rosters = encode_rosters(&self.registrar.rosters(), usize::MAX).concat();
        let rosters = BASE64.encode(rosters);
        let saved = Saved { clients: self.saved_long, alone, rosters };
        if let Ok(bytes) = serde_json::to_vec(&saved) {
            // What cannot be written is reported where it is written.
            drop(self.state.write(SAVED_FILE, bytes));
        }
    }
}

/// An id for the log: its name, and the key behind a point.
fn shown(id: &[u8]) -> String {
    String::from_utf8_lossy(id).replace('\0', "·")
}

/// How often demand is measured: half of the shortest time in which a step shows.
const DEMAND_EVERY: Duration = Duration::from_millis(50);
/// A host that has just met the others hears within this time what they know.
const HEARING: Duration = Duration::from_secs(2);
/// Who has not heard of a roster for so long is as ready as it gets.
const WAITING_MAX: Duration = Duration::from_secs(20);
/// How often the registrar looks, beside each change.
const CENSUS_EVERY: Duration = Duration::from_secs(1);
/// Nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// A key that is leased anew wants this at least,
const FIRST_WANTS: Micros = Micros::units(1);
/// for so long: the request that it is leased for has not been counted yet.
const FIRST_LASTS: Duration = Duration::from_secs(1);
/// Keys leased at a time, and newly in a second.
const LEASED_MAX: usize = 4_000;
const NEW_LEASES_MAX: u32 = 200;
/// Messages or commands taken before anything else has its turn.
const BATCH_MAX: usize = 256;

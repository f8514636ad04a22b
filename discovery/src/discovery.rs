//! The owner of everything that travels between hosts: membership, registry and the sealed envelope.
//!
//! One thread of the shell drives it:
//!
//! 1. bytes received go to [`Discovery::handle_datagram`], [`Discovery::handle_request`] and
//!    [`Discovery::handle_response`]; when [`Discovery::poll_timeout`] is due, [`Discovery::handle_timeout`];
//! 2. after each of these and after every other call that takes `&mut self`, drain [`Discovery::poll_transmit`],
//!    [`Discovery::poll_dial`] and [`Discovery::poll_event`] until they are empty.
//!
//! Read datagrams before timers when both are due: a late timer must not declare dead a host whose answer waits in the socket.
//!
//! The parts know nothing of each other; here is what connects them: who came up is asked for its record, who went
//! down is hidden, what changed is told on, who does not answer is dialled. `discovery/` has one file for each
//! direction: `datagrams` and `exchanges` take what arrives, `joining` and `peers` follow who comes and goes, `addresses` who is
//! where, `offers` is this host's own record, with its health in `checks` and `host_checks`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use evenkeel_config::Published;

use crate::catalog::Catalog;
use crate::index::PolicyHash;
use crate::membership::{Membership, Note, Packet};
use crate::publish::Publisher;
use crate::refusal::Cases;
use crate::registration::Registration;
use crate::registry::Registry;
use crate::seal::{Channel, OVERHEAD, Refused, Sealer};
use crate::session::Sessions;
use crate::spread::{FANOUT, Spread};
use crate::wire::{Extent, Frame, Located};

mod addresses;
mod checks;
mod datagrams;
mod exchanges;
mod host_checks;
mod interface;
mod joining;
mod offers;
mod orders;
mod peers;

pub use addresses::Found;
pub use interface::*;

use datagrams::Allowance;
use exchanges::Outgoing;
use host_checks::HostChecks;
use joining::Seeds;
use offers::Offer;
use peers::Peers;

/// A host compares notes with a random other one this often.
const ANTI_ENTROPY: Duration = Duration::from_secs(10);
/// What is kept only for a while is looked through this often.
const EXPIRE: Duration = Duration::from_secs(30);
/// Gaps are collected this long before what is missing is fetched: often it is only late.
const FETCH: Duration = Duration::from_millis(30);
/// Hosts that something is fetched from at a time.
const FETCH_PEERS_MAX: usize = 16;
/// Generations are unix milliseconds; one beyond the year 2100 is damage that no host jumps above.
const GENERATION_MAX: u64 = 130 * 365 * 24 * 3600 * 1000;
/// Others ahead of us about ourselves more often than this within [`JUMP_WINDOW`]: another process lives under our id.
const JUMPS_MAX: usize = 3;
const JUMP_WINDOW: Duration = Duration::from_secs(300);
/// Datagrams that wait for the shell; beyond it they are lost, as the network may lose them.
const TRANSMITS_MAX: usize = 16 * 1024;
/// Events that wait for the shell; beyond it hosts come and go untold. A join to the largest mesh fits.
const EVENTS_MAX: usize = 64 * 1024;
/// A suspicion is told to so many, who may share it.
const ACCUSERS_TOLD: usize = 8;
/// A goodbye goes directly to at most so many hosts; the rest hear of it from them.
const LEAVE_FANOUT_MAX: usize = 1024;

/// Membership, registry and envelope of one host.
#[derive(Debug)]
pub struct Discovery {
    config: Config,
    rng: ChaCha8Rng,
    sealer: Sealer,
    sessions: Sessions,
    membership: Membership,
    registry: Registry,
    spread: Spread,
    /// Hosts to be told news, in random order.
    ring: Vec<u64>,
    publisher: Publisher,
    peers: Peers,
    cases: Cases,
    /// Suspects that are dialled again if their case is still open.
    recheck: Vec<(Instant, u64, u32)>,
    /// Who asked us to dial a suspect.
    askers: BTreeMap<u64, BTreeSet<u64>>,
    offers: BTreeMap<String, Offer>,
    /// What this host publishes of each service's policy, if it offers the service.
    policies: BTreeMap<String, (PolicyHash, Arc<Published>)>,
    draining: bool,
    /// Why instances of this host are in maintenance, by id; of the host itself under [`HOST_MAINTENANCE`](checks).
    maintenance: BTreeMap<String, String>,
    host_checks: HostChecks,
    dials: BTreeMap<DialId, Outgoing>,
    dial_seq: u64,
    /// What to fetch from whom.
    missing: BTreeMap<u64, BTreeMap<u64, Extent>>,
    jumps: VecDeque<Instant>,
    timers: Timers,
    /// Attempts to join since this host was last with others.
    join_attempts: u32,
    seeds: Seeds,
    /// Somebody has answered the question for everything.
    was_told: bool,
    /// What others found at our address instead of us.
    found_instead: Option<Found>,
    /// Hosts known from an earlier life.
    saved_members: Vec<SavedMember>,
    challenges: Allowance,
    transmits: VecDeque<Transmit>,
    dial_queue: VecDeque<Dial>,
    events: VecDeque<Event>,
    counters: Counters,
    /// When it was last told that a host's record was refused.
    refused_told: Option<Instant>,
    left: bool,
}

/// When what is due next.
#[derive(Debug)]
struct Timers {
    join: Instant,
    anti_entropy: Instant,
    expire: Instant,
    fetch: Option<Instant>,
    /// The next order ends.
    orders: Option<Instant>,
    /// A report that an application owes is due, or a critical instance is to be withdrawn: at the earliest.
    checks: Option<Instant>,
    /// Saved members may differ from what was last saved.
    save_members: Option<Instant>,
}

impl Discovery {
    /// A host that is alone so far. `saved` is what [`Discovery::saved`] gave in an earlier life, `wall_ms` the unix
    /// time in milliseconds; `seed` and `salt` must come from the operating system's entropy (in simulations, from the run's seed).
    #[must_use]
    pub fn new(
        config: Config,
        saved: Option<Saved>,
        now: Instant,
        wall_ms: u64,
        seed: [u8; 32],
        salt: [u8; 16],
    ) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let own = config.node.id;
        let saved = saved.filter(|saved| saved.node == own);
        let last_generation = saved.as_ref().map_or(0, |saved| saved.generation);
        let generation = wall_ms.max(last_generation + 1);
        let epoch = u32::try_from(wall_ms / 1000).unwrap_or(u32::MAX / 2);
        let epoch = epoch.max(saved.as_ref().map_or(0, |saved| saved.epoch.saturating_add(1)));
        let members_max = config.limits.members.max(1);
        let membership_rng = ChaCha8Rng::from_seed(rng.random());
        let mut discovery = Discovery {
            sealer: Sealer::new(&config.mesh, &config.keys, own, salt),
            sessions: Sessions::new(rng.random(), 2 * members_max, now),
            membership: Membership::new(own, epoch, config.profile, members_max, membership_rng),
            registry: Registry::new(own, generation, members_max + 1, config.limits.records),
            spread: Spread::new(now, config.profile.gossip, members_max),
            ring: Vec::new(),
            publisher: Publisher::new(
                &config.mesh,
                &config.domain,
                own,
                saved.as_ref().map_or(0, |saved| saved.index),
            ),
            peers: Peers::default(),
            cases: Cases::default(),
            recheck: Vec::new(),
            askers: BTreeMap::new(),
            offers: BTreeMap::new(),
            policies: BTreeMap::new(),
            draining: false,
            maintenance: saved.as_ref().map(|saved| saved.maintenance.clone()).unwrap_or_default(),
            host_checks: HostChecks::restored(now, saved.as_ref()),
            dials: BTreeMap::new(),
            dial_seq: 0,
            missing: BTreeMap::new(),
            jumps: VecDeque::new(),
            timers: Timers {
                join: now,
                anti_entropy: now + ANTI_ENTROPY,
                expire: now + EXPIRE,
                fetch: None,
                orders: None,
                checks: None,
                save_members: None,
            },
            join_attempts: 0,
            seeds: Seeds::default(),
            was_told: false,
            found_instead: None,
            saved_members: Vec::new(),
            challenges: Allowance::new(now),
            transmits: VecDeque::new(),
            dial_queue: VecDeque::new(),
            events: VecDeque::from([Event::SaveDue]),
            counters: Counters::default(),
            refused_told: None,
            left: false,
            config,
            rng,
        };
        discovery.learn_address(now, discovery.own_location());
        discovery.write_node(now);
        if let Some(saved) = saved {
            discovery.saved_members = saved.members.into_iter().take(peers::SAVED_MAX).collect();
            let own = discovery.config.node.address;
            for member in discovery.saved_members.iter().filter(|member| member.address != own) {
                discovery.seeds.remember(now, member.address);
            }
            for registration in saved.registrations {
                // What was acceptable once may not be to a later version.
                let registration = Registration::from(registration);
                let id = registration.id.clone();
                if let Err(cause) = discovery.register(now, wall_ms, registration) {
                    discovery.tell(Event::NotRestored { id, cause });
                }
            }
            discovery.restore_orders(now, wall_ms, saved.orders);
        }
        discovery.publish(now, wall_ms);
        discovery
    }

    /// Who this host is; its id changes with [`Event::NewIdentity`].
    #[must_use]
    pub fn node(&self) -> &NodeInfo {
        &self.config.node
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        if self.left {
            return;
        }
        self.membership.handle_timeout(now);
        self.pump(now);
        self.recheck_suspects(now);
        if self.timers.fetch.is_some_and(|at| at <= now) {
            self.timers.fetch = None;
            self.fetch_missing(now);
        }
        if self.timers.checks.is_some_and(|at| at <= now) {
            self.checks_due(now, wall_ms);
        }
        if self.timers.join <= now {
            self.try_to_join(now);
        }
        for address in self.seeds.due(now) {
            self.try_seed(now, address);
        }
        self.ask_again(now);
        if self.timers.anti_entropy <= now {
            self.timers.anti_entropy = now + self.jittered(ANTI_ENTROPY);
            self.compare_with_random_peer(now);
        }
        if self.timers.expire <= now {
            self.timers.expire = now + EXPIRE;
            self.expire(now, wall_ms);
        }
        if self.timers.orders.is_some_and(|at| at <= now) {
            self.timers.orders = None;
            self.expire_orders(now, wall_ms);
        }
        if self.timers.save_members.is_some_and(|at| at <= now) {
            self.timers.save_members = None;
            self.tell(Event::SaveDue);
        }
        if self.spread.due().is_some_and(|at| at <= now) {
            self.spread_news(now);
        }
        if self.publisher.due().is_some_and(|at| at <= now) {
            self.publish(now, wall_ms);
        }
    }

    /// When [`Discovery::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.left {
            return None;
        }
        let always = [self.timers.join, self.timers.anti_entropy, self.timers.expire];
        let sometimes = [
            self.membership.poll_timeout(),
            self.spread.due(),
            self.publisher.due(),
            self.timers.fetch,
            self.timers.orders,
            self.timers.checks,
            self.timers.save_members,
            self.seeds.poll_timeout(),
            self.ask_again_at(),
            self.recheck.iter().map(|(at, ..)| *at).min(),
        ];
        always.into_iter().chain(sometimes.into_iter().flatten()).min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front()?;
        self.counters.datagrams_sent += 1;
        self.counters.bytes_sent += transmit.payload.len() as u64;
        Some(transmit)
    }

    /// The next TCP exchange to make.
    pub fn poll_dial(&mut self) -> Option<Dial> {
        let dial = self.dial_queue.pop_front()?;
        self.counters.dials += 1;
        Some(dial)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Says goodbye to all: afterwards drain [`Discovery::poll_transmit`] once and stop. Nothing else is sent after that.
    pub fn leave(&mut self, now: Instant, wall_ms: u64) {
        if self.left {
            return;
        }
        let epoch = self.membership.epoch();
        let generation = self.generation();
        let own = self.config.node.id;
        let goodbye = [
            Frame::Gone { node: own, epoch, left: true },
            Frame::Have(Extent { node: own, generation, upto: Extent::TOMBSTONE }),
        ];
        for node in self.random_peers(LEAVE_FANOUT_MAX, &[]) {
            self.send(node, &goodbye);
        }
        self.membership.leave();
        self.dial_queue.clear();
        self.dials.clear();
        // No timer will do it any more.
        self.publish(now, wall_ms);
        self.left = true;
    }

    /// What readers see. Changes are coalesced for at most 20 ms; [`Event::SnapshotChanged`] says when.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Catalog> {
        Arc::clone(self.publisher.catalog())
    }

    /// What to keep across restarts.
    #[must_use]
    pub fn saved(&self) -> Saved {
        Saved {
            node: self.config.node.id,
            generation: self.generation(),
            epoch: self.membership.epoch(),
            members: self.members_to_save(),
            registrations: self.registrations_to_save(),
            orders: self.orders_to_save(),
            maintenance: self.maintenance.clone(),
            host_checks: self.host_checks.to_save(),
            index: self.publisher.reserved(),
        }
    }

    /// This host's own registrations: after a restart those that were saved are among them.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.offers.values().map(|offer| &offer.registration)
    }

    /// What was received, sent and refused since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { slowdown: self.membership.slowdown().into(), ..self.counters }
    }

    /// Acts on what membership said, until it says nothing more.
    fn pump(&mut self, now: Instant) {
        loop {
            let notes = self.membership.take_notes();
            let packets = self.membership.take_packets();
            if notes.is_empty() && packets.is_empty() {
                return;
            }
            for packet in packets {
                self.send_packet(packet);
            }
            for note in notes {
                match note {
                    Note::Up { node } => {
                        self.peer_up(now, node);
                        self.ask_whom_we_met(now, node);
                    }
                    Note::Down { node } => self.peer_down(now, node),
                    Note::Renewed { called_down } => {
                        // Who is not where it says knows why.
                        if called_down && self.found_instead.is_none() {
                            self.tell(Event::Refuted);
                        }
                        self.tell(Event::SaveDue);
                    }
                    Note::Overtaken => self.suspect_a_double(now),
                    Note::DeathDoubted { node, epoch } => self.dial_suspect(now, node, epoch, true),
                    Note::Accuse { node, epoch, incarnation } => {
                        for peer in self.random_peers(ACCUSERS_TOLD, &[node]) {
                            self.send(peer, &[Frame::Accused { node, epoch, incarnation }]);
                        }
                    }
                    Note::ProbeLate { node, epoch } => self.dial_suspect(now, node, epoch, true),
                    Note::Nag { node, epoch, incarnation } => {
                        self.send(node, &[Frame::Suspected { epoch, incarnation }]);
                    }
                }
            }
        }
    }

    fn send_packet(&mut self, packet: Packet) {
        let locations = packet.named.iter().filter_map(|node| self.peers.location(*node));
        let own = self.own_location();
        // Where we are comes first: by it the packet is judged.
        let frames = [
            Frame::Addresses(
                std::iter::once(own).chain(locations.filter(|l| l.generation > 0)).collect(),
            ),
            Frame::Membership(packet.bytes),
        ];
        self.send(packet.to, &frames);
    }

    /// Sends to a host, if we know where it is.
    fn send(&mut self, node: u64, frames: &[Frame]) {
        match self.peers.location(node) {
            Some(location) if node != self.config.node.id => self.send_to(location.address, frames),
            Some(_) => {}
            None => self.counters.unroutable += 1,
        }
    }

    /// Tells another host something about quotas; at most [`QUOTA_MAX`] bytes, longer messages are lost.
    pub fn send_quota(&mut self, to: u64, bytes: Vec<u8>) {
        if bytes.len() > QUOTA_MAX {
            self.counters.datagrams_dropped += 1;
        } else if !self.left {
            self.send(to, &[Frame::Quota(bytes)]);
        }
    }

    fn send_to(&mut self, to: SocketAddr, frames: &[Frame]) {
        let mut body = Vec::with_capacity(DATAGRAM_MAX - OVERHEAD);
        frames.iter().for_each(|frame| frame.encode(&mut body));
        debug_assert!(
            body.len() + OVERHEAD <= DATAGRAM_MAX,
            "a datagram of {} bytes",
            body.len() + OVERHEAD
        );
        let (payload, _) = self.sealer.seal(Channel::Datagram, &[], &body);
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back(Transmit { to, payload });
        } else {
            self.counters.datagrams_dropped += 1;
        }
    }

    /// Queues an event. What asks for something to be done once is queued once.
    fn tell(&mut self, event: Event) {
        let asks = matches!(event, Event::ResolveJoin | Event::SnapshotChanged | Event::SaveDue);
        if asks && self.events.contains(&event) {
            return;
        }
        if !asks && self.events.len() >= EVENTS_MAX {
            self.counters.events_dropped += 1;
            return;
        }
        self.events.push_back(event);
    }

    fn spread_news(&mut self, now: Instant) {
        if self.membership.up().is_empty() {
            self.spread.clear();
            return;
        }
        if !self.spread.begin(now) {
            return;
        }
        for node in self.next_in_ring(FANOUT) {
            let news = self.spread.fill(&self.registry, node, DATAGRAM_MAX - OVERHEAD);
            if !news.is_empty() {
                self.send(node, &news);
            }
        }
    }

    fn publish(&mut self, now: Instant, wall_ms: u64) {
        let own = self.config.node.id;
        let visible = |node| self.peers.visible(node, own, &self.membership);
        let reserved = self.publisher.reserved();
        if self.publisher.publish(now, own, wall_ms, &self.registry, visible) {
            self.tell(Event::SnapshotChanged);
        }
        if self.publisher.reserved() != reserved {
            self.tell(Event::SaveDue);
        }
        let left_us = |end: u64| end.saturating_sub(wall_ms.saturating_mul(1000));
        self.timers.orders =
            self.publisher.orders_end().map(|end| now + Duration::from_micros(left_us(end)));
    }

    fn expire(&mut self, now: Instant, wall_ms: u64) {
        self.expire_orders(now, wall_ms);
        self.publisher.expire_lost(now);
        let changes = self.registry.expire(now, wall_ms.saturating_mul(1000));
        self.publisher.touch_services(now, changes.services);
        for node in self.peers.expire(now, &self.membership, &self.registry) {
            self.publisher.touch_node(now, node, &self.registry);
        }
        self.dials.retain(|_, dial| dial.expires > now);
        self.askers.clear();
    }

    /// Up to `count` random hosts that are up.
    fn random_peers(&mut self, count: usize, except: &[u64]) -> Vec<u64> {
        let peers: Vec<u64> =
            self.membership.up().keys().copied().filter(|node| !except.contains(node)).collect();
        peers.sample(&mut self.rng, count).copied().collect()
    }

    /// The next hosts in turn to be told news: each once before any twice, so that a few copies reach many.
    fn next_in_ring(&mut self, count: usize) -> Vec<u64> {
        let mut next = Vec::new();
        while next.len() < count.min(self.membership.up().len()) {
            match self.ring.pop() {
                Some(node) if self.membership.up().contains_key(&node) && !next.contains(&node) => {
                    next.push(node);
                }
                Some(_) => {}
                None => self.ring = self.random_peers(usize::MAX, &[]),
            }
        }
        next
    }

    /// This long, give or take a fifth, so that hosts started together do not act together.
    fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(self.rng.random_range(0.8..1.2))
    }

    fn generation(&self) -> u64 {
        self.registry.record(self.config.node.id).map_or(0, |record| record.generation)
    }

    fn own_location(&self) -> Located {
        let NodeInfo { id, address, .. } = self.config.node;
        Located { node: id, generation: self.generation(), address }
    }

    fn count_refused(&mut self, refused: Refused) {
        let counter = match refused {
            Refused::Length => &mut self.counters.refused_length,
            Refused::Magic => &mut self.counters.refused_magic,
            Refused::Version => &mut self.counters.refused_version,
            Refused::ForeignMesh => &mut self.counters.refused_foreign_mesh,
            Refused::UnknownKey => &mut self.counters.refused_key,
            Refused::Seal => &mut self.counters.refused_seal,
            Refused::Checksum => &mut self.counters.refused_checksum,
        };
        *counter += 1;
    }
}

#[cfg(test)]
mod tests;

//! Which hosts are up: SWIM with suspicion, by foca, which nothing outside this module names.
//!
//! What is decided here is what foca leaves to its embedder. Identities are (node id, epoch); where a host is, is
//! known beside them. We own the timers and bend them:
//! a pause of this process delays every timer by the pause, so that answers that wait in the socket are read first;
//! the rest is in [`lifeguard`] and [`mod@suspicion`].
//!
//! A late probe is reported ([`Note::ProbeLate`]) so that it can be tried over TCP; success counts as an
//! acknowledgement ([`Membership::confirm_alive`]), several refused connections end it ([`Membership::declare_down`]).
//! Why foca and not our own SWIM: its dissemination and incarnation rules are proven; what it lacks fits around it.
//! "Down" is final for an epoch, so a host wrongly declared down takes a new epoch at once; its record is untouched.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

use foca::{Foca, Member, Message, NoCustomBroadcast, State, Timer};
use rand_chacha::ChaCha8Rng;

use crate::discovery::{DOWN_KEPT, Profile};
use crate::wire::Membered;

mod codec;
mod lifeguard;
mod runtime;
mod suspicion;

use codec::{Codec, decode_packet, encode_packet};
use lifeguard::Lifeguard;
use runtime::{Id, Outbox, Said};
use suspicion::Absent;

/// Most bytes of a membership packet; the rest of the datagram has the addresses of the hosts it names.
pub(crate) const PACKET_MAX: usize = 480;
/// Hosts that are known, up or down, for each that the limit allows to be up.
const KNOWN_PER_MEMBER: usize = 3;
/// Late timers beyond this mean that this process was paused.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// What was received during a pause has this long to be read before timers count again.
const PAUSE_GRACE: Duration = Duration::from_millis(20);
/// Hosts that are down are told so, and thereby a split mesh heals, this often, so many at a time.
const ANNOUNCE_DOWN: (Duration, usize) = (Duration::from_secs(3), 2);
/// More news than this in one exchange is a join or the end of a split: the others learn it by exchanges too.
const REBROADCAST_MAX: usize = 64;

/// What happened, for the owner to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// A host is up (again), or took a new epoch.
    Up { node: u64 },
    /// A host is down.
    Down { node: u64 },
    /// This host has a new epoch; `called_down`: because it was taken for dead.
    Renewed { called_down: bool },
    /// This host's id was seen with a later epoch: it took one above that. Another process may use the id.
    Overtaken,
    /// A host did not answer in time: try it over TCP.
    ProbeLate { node: u64, epoch: u32 },
    /// Others have this host for dead, but it spoke to us just now: dial it.
    DeathDoubted { node: u64, epoch: u32 },
    /// Tell this host that it is suspected.
    Nag { node: u64, epoch: u32, incarnation: u16 },
    /// Tell others that we suspect this host.
    Accuse { node: u64, epoch: u32, incarnation: u16 },
}

/// A packet to send.
#[derive(Debug)]
pub(crate) struct Packet {
    pub to: u64,
    pub bytes: Vec<u8>,
    /// Hosts named in it that are up.
    pub named: Vec<u64>,
}

/// Why a packet was not taken. No state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Not a packet.
    Malformed,
    /// Its source is not who sealed it, or is this host itself.
    Forged,
    /// There are as many hosts as the limit allows.
    TooMany,
}

/// The membership of one host.
pub(crate) struct Membership {
    foca: Foca<Id, Codec, ChaCha8Rng, NoCustomBroadcast>,
    profile: Profile,
    members_max: usize,
    timers: BTreeMap<(Instant, u64), Timer<Id>>,
    timer_seq: u64,
    /// The last call moved the timers: what is due next is done, however late.
    forgave: bool,
    outbox: Outbox,
    notes: Vec<Note>,
    packets: Vec<Packet>,
    /// Epochs of the hosts that are up.
    up: BTreeMap<u64, u32>,
    /// Hosts that are suspected for too long, while nobody else was heard either: not up here, not down for foca.
    absent: BTreeMap<u64, Absent>,
    /// When hosts that are up or absent last spoke to us.
    heard: BTreeMap<u64, Instant>,
    /// When another host's membership last reached us at our address.
    addressed: Option<Instant>,
    probe: Option<Probe>,
    lifeguard: Lifeguard,
    own_incarnation: u16,
    left: bool,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    target: Id,
    number: u8,
    acked: bool,
}

impl Membership {
    pub fn new(
        node: u64,
        epoch: u32,
        profile: Profile,
        members_max: usize,
        rng: ChaCha8Rng,
    ) -> Self {
        Membership {
            foca: Foca::new(Id { node, epoch }, foca_config(&profile, 1), rng, Codec),
            profile,
            members_max,
            timers: BTreeMap::new(),
            timer_seq: 0,
            forgave: false,
            outbox: Outbox::default(),
            notes: Vec::new(),
            packets: Vec::new(),
            up: BTreeMap::new(),
            absent: BTreeMap::new(),
            heard: BTreeMap::new(),
            addressed: None,
            probe: None,
            lifeguard: Lifeguard::default(),
            own_incarnation: 0,
            left: false,
        }
    }

    /// This host's epoch.
    pub fn epoch(&self) -> u32 {
        self.foca.identity().epoch
    }

    /// This host's incarnation, as last told.
    pub fn incarnation(&self) -> u16 {
        self.own_incarnation
    }

    /// Hosts that are up, with their epochs, without this one.
    pub fn up(&self) -> &BTreeMap<u64, u32> {
        &self.up
    }

    /// When another host's membership last reached this host at its address: then others see it.
    pub fn addressed_at(&self) -> Option<Instant> {
        self.addressed
    }

    /// How much slower than configured this host probes.
    pub fn slowdown(&self) -> u32 {
        self.lifeguard.slowdown()
    }

    /// All hosts known, without this one.
    pub fn members(&self) -> Vec<Membered> {
        self.foca
            .iter_membership_state()
            .filter(|member| member.id().node != self.foca.identity().node)
            .map(|member| Membered {
                node: member.id().node,
                epoch: member.id().epoch,
                incarnation: member.incarnation(),
                down: member.state() == State::Down,
            })
            .collect()
    }

    /// Takes a packet that `sender` sealed.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        sender: u64,
        bytes: &[u8],
    ) -> Result<(), NotTaken> {
        let (header, updates) = decode_packet(bytes).map_err(|_| NotTaken::Malformed)?;
        let own = *self.foca.identity();
        if header.src.node != sender || sender == own.node {
            return Err(NotTaken::Forged);
        }
        if self.left {
            return Ok(());
        }
        if self.is_beyond_limit(sender) {
            return Err(NotTaken::TooMany);
        }
        self.note_alive(header.src, header.src_incarnation);
        if header.dst.node == own.node {
            self.addressed = Some(now);
        }
        if header.dst.node == own.node && header.dst.epoch != own.epoch {
            // Meant for an earlier life of ours: let the sender know of this one. Or for a later one: then live that.
            if header.dst.epoch > own.epoch {
                self.renew_above(now, header.dst.epoch);
            }
            let _ = self.foca.announce(header.src, &mut self.outbox);
        }
        if let Message::Ack(number) = header.message
            && let Some(probe) = &mut self.probe
            && probe.target == header.src
            && probe.number == number
        {
            probe.acked = true;
        }
        let kept: Vec<Member<Id>> = updates
            .iter()
            .filter(|update| self.is_of_interest(update.id()))
            .filter(|update| !self.is_doubtful(now, update.id(), update.state()))
            .cloned()
            .collect();
        self.note_doubts(now, &updates);
        for update in updates.iter().filter(|update| update.state() == State::Alive) {
            self.note_alive(*update.id(), update.incarnation());
        }
        let above = self.own_epoch_above(updates.iter().map(Member::id));
        let result = if kept.len() == updates.len() {
            self.foca.handle_data(bytes, &mut self.outbox)
        } else {
            self.foca.handle_data(&encode_packet(&header, &kept), &mut self.outbox)
        };
        if let Some(epoch) = above {
            self.renew_above(now, epoch);
        }
        self.settle(now);
        result.map_err(|_| NotTaken::Malformed)
    }

    /// Takes what another host said over TCP.
    pub fn handle_members(&mut self, now: Instant, members: &[Membered]) {
        if self.left {
            return;
        }
        if let Some(epoch) =
            self.own_epoch_above(members.iter().map(Id::of).collect::<Vec<_>>().iter())
        {
            self.renew_above(now, epoch);
        }
        let mut updates = Vec::new();
        let mut newcomers = 0;
        for member in members {
            let id = Id::of(member);
            if !member.down {
                self.note_alive(id, member.incarnation);
            }
            let is_new = !self.up.contains_key(&id.node);
            if !self.is_of_interest(&id)
                || (is_new && self.up.len() + newcomers >= self.members_max)
            {
                continue;
            }
            let known = self.up.get(&id.node);
            let is_known = if member.down {
                known.is_none()
            } else {
                known == Some(&id.epoch) && member.incarnation == 0
            };
            let state = if member.down { State::Down } else { State::Alive };
            if is_known || self.is_doubtful(now, &id, state) {
                continue;
            }
            newcomers += usize::from(is_new && !member.down);
            updates.push(Member::new(id, member.incarnation, state));
        }
        let news = updates
            .iter()
            .filter(|u| (u.state() == State::Down) == self.up.contains_key(&u.id().node))
            .count();
        let broadcast = news <= REBROADCAST_MAX;
        let _ = self.foca.apply_many(updates.into_iter(), broadcast, &mut self.outbox);
        self.settle(now);
    }

    /// Tells foca of a host known from elsewhere (it spoke to us over TCP): it is up.
    pub fn handle_alive(&mut self, now: Instant, node: u64, epoch: u32, incarnation: u16) {
        self.note_alive(Id { node, epoch }, incarnation);
        self.heard_from(now, node);
        self.handle_members(now, &[Membered { node, epoch, incarnation, down: false }]);
    }

    /// Something arrived from this host: it is not dead, whoever suspects it.
    pub fn heard_from(&mut self, now: Instant, node: u64) {
        self.lifeguard.heard_from(node);
        if self.up.contains_key(&node) || self.absent.contains_key(&node) {
            self.heard.insert(node, now);
        }
    }

    /// This epoch of the host is over, for certain. Without `spread` only this host acts on it.
    pub fn declare_down(&mut self, now: Instant, node: u64, epoch: u32, spread: bool) {
        let id = Id { node, epoch };
        if self.left
            || node == self.foca.identity().node
            || self.up.get(&node).is_none_or(|known| *known > epoch)
        {
            return;
        }
        let down = Member::new(id, 0, State::Down);
        let _ = self.foca.apply_many(std::iter::once(down), spread, &mut self.outbox);
        if spread {
            let _ = self.foca.gossip(&mut self.outbox);
        }
        self.settle(now);
    }

    /// Nothing is sent or believed after that. The goodbye itself is the owner's: it reaches all, foca's only a few.
    pub fn leave(&mut self) {
        self.left = true;
        self.timers.clear();
        self.absent.clear();
        self.lifeguard.clear();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(((due, _), _)) = self.timers.first_key_value() else {
            return;
        };
        let late = now.saturating_duration_since(*due);
        if late > PAUSE_MIN && !self.forgave {
            self.forgave = true;
            let shift = late + PAUSE_GRACE;
            self.timers = std::mem::take(&mut self.timers)
                .into_iter()
                .map(|((at, seq), timer)| ((at + shift, seq), timer))
                .collect();
            return;
        }
        let mut fired = false;
        while let Some(((due, _), _)) = self.timers.first_key_value()
            && *due <= now
            && let Some((_, timer)) = self.timers.pop_first()
        {
            fired = true;
            self.fire(now, timer);
        }
        if fired {
            self.forgave = false;
        }
        self.notes.extend(self.lifeguard.nag(now));
        self.settle(now);
    }

    /// When [`Membership::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        let nag = self.lifeguard.poll_timeout();
        // Nagging needs a timer too, and a suspicion always has one.
        timer.map(|timer| nag.map_or(timer, |nag| nag.min(timer)))
    }

    /// What happened since the last call, in order.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// What is to be sent, in order.
    pub fn take_packets(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.packets)
    }

    fn fire(&mut self, now: Instant, timer: Timer<Id>) {
        match &timer {
            Timer::SendIndirectProbe { probed_id, .. }
                if self.probe.is_some_and(|probe| probe.target == *probed_id && !probe.acked) =>
            {
                self.notes.push(Note::ProbeLate { node: probed_id.node, epoch: probed_id.epoch });
            }
            Timer::ProbeRandomMember(_) if self.probe.take().is_some_and(|probe| probe.acked) => {
                self.lifeguard.reward();
            }
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                if !self.is_suspect(*member_id, *incarnation) {
                    // It refuted. Foca would leave it up, and yet tell it that it is down.
                    self.is_back(*member_id);
                    return;
                }
                if self.is_our_own_deafness(now, *member_id) {
                    self.schedule(now + self.suspicion(), timer);
                    return;
                }
                if self.lifeguard.is_reprieved(*member_id) {
                    self.schedule(now + self.suspicion() / 2, timer);
                    return;
                }
            }
            _ => {}
        }
        let _ = self.foca.handle_timer(timer, &mut self.outbox);
        self.settle(now);
    }

    /// Sorts out what foca said.
    fn settle(&mut self, now: Instant) {
        loop {
            let Outbox { sends, timers, notifications } = std::mem::take(&mut self.outbox);
            if sends.is_empty() && timers.is_empty() && notifications.is_empty() {
                break;
            }
            for (timer, after) in timers {
                self.take_timer(now, timer, after);
            }
            let mut resized = false;
            for notification in notifications {
                resized = true;
                self.take_notification(notification);
            }
            for (to, bytes) in sends {
                self.take_send(to, bytes);
            }
            if resized {
                let _ = self.foca.set_config(foca_config(&self.profile, self.up.len() + 1));
            }
        }
    }

    fn take_timer(&mut self, now: Instant, timer: Timer<Id>, after: Duration) {
        let after = match &timer {
            Timer::SendIndirectProbe { .. } | Timer::ProbeRandomMember(_) => {
                self.lifeguard.stretched(after)
            }
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                let (id, incarnation) = (*member_id, *incarnation);
                if self.lifeguard.suspect(now, id, incarnation) {
                    let Id { node, epoch } = id;
                    self.notes.push(Note::Accuse { node, epoch, incarnation });
                }
                self.lifeguard.time_to_refute(id, after)
            }
            _ => after,
        };
        self.schedule(now + after, timer);
    }

    fn schedule(&mut self, at: Instant, timer: Timer<Id>) {
        self.timer_seq += 1;
        self.timers.insert((at, self.timer_seq), timer);
    }

    fn take_notification(&mut self, notification: Said) {
        match notification {
            Said::Up(id) => {
                self.absent.remove(&id.node);
                self.up.insert(id.node, id.epoch);
                self.notes.push(Note::Up { node: id.node });
            }
            Said::Down(id) => {
                self.up.remove(&id.node);
                self.absent.remove(&id.node);
                self.heard.remove(&id.node);
                self.lifeguard.forget(id.node);
                self.notes.push(Note::Down { node: id.node });
            }
            Said::Renamed(id) => {
                self.is_back(id);
                if let Some(epoch) = self.up.get_mut(&id.node) {
                    *epoch = id.epoch;
                    self.lifeguard.forget(id.node);
                    self.notes.push(Note::Up { node: id.node });
                }
            }
            Said::Rejoined | Said::Overtaken => {
                let called_down = matches!(notification, Said::Rejoined);
                self.own_incarnation = 0;
                self.notes.push(Note::Renewed { called_down });
                if !called_down {
                    self.notes.push(Note::Overtaken);
                }
                // Foca waits for a message before it probes again; the others are still there.
                let _ = self.foca.apply_many(std::iter::empty(), false, &mut self.outbox);
            }
        }
    }

    fn take_send(&mut self, to: Id, bytes: Vec<u8>) {
        if to.node == self.foca.identity().node {
            return;
        }
        let Ok((header, updates)) = decode_packet(&bytes) else {
            return;
        };
        if header.src_incarnation > self.own_incarnation {
            // We had to refute: others do not hear us in time, so we may be the slow one.
            self.own_incarnation = header.src_incarnation;
            self.lifeguard.blame();
        }
        if let Message::Ping(number) = header.message {
            self.probe = Some(Probe { target: to, number, acked: false });
        }
        let mut named: BTreeSet<u64> =
            updates.iter().filter(|u| u.state() != State::Down).map(|u| u.id().node).collect();
        match header.message {
            Message::PingReq { target, .. } => _ = named.insert(target.node),
            Message::IndirectPing { origin, .. } => _ = named.insert(origin.node),
            Message::IndirectAck { target, .. } => _ = named.insert(target.node),
            _ => {}
        }
        self.packets.push(Packet { to: to.node, bytes, named: named.into_iter().collect() });
    }

    /// Takes an epoch above one that this host's id was seen with.
    fn renew_above(&mut self, now: Instant, epoch: u32) {
        let own = *self.foca.identity();
        if let Some(epoch) = epoch.checked_add(1).filter(|epoch| *epoch > own.epoch) {
            let _ = self.foca.change_identity(Id { epoch, ..own }, &mut self.outbox);
            self.outbox.notifications.push(Said::Overtaken);
            self.settle(now);
        }
    }

    fn own_epoch_above<'a>(&self, ids: impl Iterator<Item = &'a Id>) -> Option<u32> {
        let own = *self.foca.identity();
        ids.filter(|id| id.node == own.node && id.epoch > own.epoch).map(|id| id.epoch).max()
    }

    /// Not about an earlier or later life of ours, and not beyond the limit.
    fn is_of_interest(&self, id: &Id) -> bool {
        let own = self.foca.identity();
        if id.node == own.node { id.epoch == own.epoch } else { !self.is_beyond_limit(id.node) }
    }

    fn is_suspect(&self, id: Id, incarnation: u16) -> bool {
        let member = self.foca.iter_membership_state().find(|member| *member.id() == id);
        member.is_some_and(|m| m.state() == State::Suspect && m.incarnation() == incarnation)
    }

    /// More would be up than the limit allows, or more be remembered as down than is reasonable.
    fn is_beyond_limit(&self, node: u64) -> bool {
        if self.up.contains_key(&node) {
            return false;
        }
        let mut known = self.foca.iter_membership_state();
        self.up.len() >= self.members_max
            || (known.len() >= KNOWN_PER_MEMBER * self.members_max
                && !known.any(|member| member.id().node == node))
    }

    fn suspicion(&self) -> Duration {
        suspicion(&self.profile, self.up.len() + 1)
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("own", self.foca.identity())
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}

fn suspicion(profile: &Profile, size: usize) -> Duration {
    profile.suspicion.mul_f64(((size as f64).log10() - 1.0).max(1.0))
}

fn foca_config(profile: &Profile, size: usize) -> foca::Config {
    // Each change is told so often by each host that hears of it. With four times the logarithm, as SWIM's paper has it, one of
    // twenty hosts missed every fortieth death and learnt it by anti-entropy, ten seconds later.
    let transmissions = (7.0 * (size as f64 + 1.0).log10()).ceil().clamp(8.0, 40.0) as u8;
    let nonzero = |n| NonZeroUsize::new(n).expect("a constant above 0");
    foca::Config {
        probe_period: profile.probe_period,
        probe_rtt: profile.probe_rtt,
        num_indirect_probes: nonzero(3),
        max_transmissions: NonZeroU8::new(transmissions).expect("at least 8"),
        suspect_to_down_after: suspicion(profile, size),
        remove_down_after: Some(DOWN_KEPT),
        max_packet_size: nonzero(PACKET_MAX),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: Some(foca::PeriodicParams {
            frequency: ANNOUNCE_DOWN.0,
            num_members: nonzero(ANNOUNCE_DOWN.1),
        }),
        periodic_gossip: Some(foca::PeriodicParams {
            frequency: profile.gossip,
            num_members: nonzero(3),
        }),
    }
}

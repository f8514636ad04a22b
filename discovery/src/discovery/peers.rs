//! Who comes and goes, and where they are.
//!
//! Addresses are kept beside foca's identities: a host says where it is in its record and with what it sends,
//! and others pass that on. Two hosts at one address cannot both be there: `addresses` finds out which is.
//!
//! Self-preservation: if many hosts vanish at once without a goodbye, it may be us who are cut off; then their
//! instances stay in look-ups for a while, marked. A host whose port was found closed did not vanish: it is dead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::addresses::DoubtedClaims;
use super::joining::{JOIN_FIRST, JOIN_HEAL};
use super::{DOWN_KEPT, Discovery, Event, SavedMember};
use crate::membership::Membership;
use crate::publish::Visible;
use crate::registry::Registry;
use crate::wire::{Frame, Located};

/// Hosts that vanish within this time are counted together.
const VANISH_WINDOW: Duration = Duration::from_secs(60);
/// At least so many, and more than this share of all, make it suspicious.
const VANISH_MIN: usize = 3;
const VANISH_SHARE: f64 = 0.15;
/// How long the instances of vanished hosts stay.
const PRESERVED: Duration = Duration::from_secs(600);
/// A host found dead is announced directly to so many; the rest hear of it by gossip.
const GONE_FANOUT: usize = 64;
/// Departed hosts that are remembered, for each that the limit of members allows.
const DEPARTED_PER_MEMBER: usize = 2;
/// Saved members.
pub(super) const SAVED_MAX: usize = 64;
/// Members are saved at most this often.
const SAVE_MEMBERS: Duration = Duration::from_secs(5);

/// Where hosts are, and who is gone.
#[derive(Debug, Default)]
pub(super) struct Peers {
    locations: BTreeMap<u64, Located>,
    by_address: BTreeMap<SocketAddr, BTreeSet<u64>>,
    departed: BTreeMap<u64, Departed>,
    /// Claims to an address that somebody else has, or may have.
    pub(super) doubted: DoubtedClaims,
    /// Hosts that [`Event::NodeUp`] told of.
    told: BTreeSet<u64>,
    /// Hosts that vanished lately.
    vanished: VecDeque<(Instant, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Departed {
    since: Instant,
    left: bool,
    /// Its port was found closed.
    dead: bool,
    preserved_until: Option<Instant>,
}

impl Peers {
    pub fn location(&self, node: u64) -> Option<Located> {
        self.locations.get(&node).copied()
    }

    pub fn at(&self, address: SocketAddr) -> impl Iterator<Item = u64> {
        self.by_address.get(&address).into_iter().flatten().copied()
    }

    pub fn visible(&self, node: u64, own: u64, membership: &Membership) -> Visible {
        if node == own {
            return Visible::Up;
        }
        if self.doubted.is_left_out(node) {
            return Visible::Superseded;
        }
        if membership.up().contains_key(&node) {
            return Visible::Up;
        }
        match self.departed.get(&node) {
            None => Visible::Hidden,
            Some(departed) if departed.left => Visible::Left,
            Some(departed) if departed.preserved_until.is_some() => Visible::Preserved,
            Some(departed) if departed.dead => Visible::Dead,
            Some(_) => Visible::Failed,
        }
    }

    /// Where hosts were that are down and did not say goodbye.
    pub fn lost_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let lost = self.departed.iter().filter(|(_, departed)| !departed.left);
        lost.filter_map(|(node, _)| self.locations.get(node)).map(|location| location.address)
    }

    pub fn rename_own(&mut self, old: u64) {
        if let Some(location) = self.locations.remove(&old)
            && let Some(set) = self.by_address.get_mut(&location.address)
        {
            set.remove(&old);
        }
    }

    /// Forgets what was kept long enough; returns the hosts that this changes.
    pub fn expire(
        &mut self,
        now: Instant,
        membership: &Membership,
        registry: &Registry,
    ) -> Vec<u64> {
        let mut changed = Vec::new();
        self.departed.retain(|node, departed| {
            let keep = now.saturating_duration_since(departed.since) < DOWN_KEPT;
            if !keep {
                changed.push(*node);
            }
            if departed.preserved_until.is_some_and(|until| until <= now) {
                departed.preserved_until = None;
                changed.push(*node);
            }
            keep
        });
        let departed = &self.departed;
        let is_needed = |node: &u64| {
            membership.up().contains_key(node)
                || departed.contains_key(node)
                || registry.record(*node).is_some()
        };
        self.locations.retain(|node, _| is_needed(node));
        self.doubted.retain(|node| is_needed(&node));
        let locations = &self.locations;
        self.by_address.retain(|_, nodes| {
            nodes.retain(|node| locations.contains_key(node));
            !nodes.is_empty()
        });
        changed
    }

    /// There is no room for another host's location beside so many.
    pub(super) fn is_full(&self, max: usize, node: u64) -> bool {
        self.locations.len() >= max && !self.locations.contains_key(&node)
    }

    /// Notes where a host is; returns whether that is news.
    pub(super) fn locate(&mut self, new: Located) -> bool {
        match self.locations.get(&new.node) {
            Some(known) if known.generation > new.generation => return false,
            Some(known) if known.generation == new.generation && known.address == new.address => {
                return false;
            }
            // The owner fixes its address for a generation; a guess never replaces what it said.
            Some(known) if known.generation == new.generation && new.generation > 0 => {
                return false;
            }
            Some(known) => {
                if let Some(nodes) = self.by_address.get_mut(&known.address) {
                    nodes.remove(&new.node);
                }
            }
            None => {}
        }
        self.locations.insert(new.node, new);
        self.by_address.entry(new.address).or_default().insert(new.node);
        true
    }
}

impl Discovery {
    pub(super) fn peer_up(&mut self, now: Instant, node: u64) {
        if self.is_another_there(now, node) {
            // It is up by what others say; who stands at its address they may not have asked.
            self.ask_who_is_there(now, node);
            return;
        }
        self.inherit_address(now, node);
        let was_alone = self.peers.told.is_empty();
        self.peers.departed.remove(&node);
        self.peers.vanished.retain(|(_, vanished)| *vanished != node);
        self.registry.set_down(node, None);
        self.publisher.touch_node(now, node, &self.registry);
        if self.registry.record(node).is_none() {
            let whole = crate::wire::Extent { node, generation: 1, upto: 1 };
            self.note_missing(now, node, whole);
        }
        if self.peers.told.insert(node) {
            self.tell(Event::NodeUp { node, name: self.name_of(node) });
            self.save_members_later(now);
        }
        if was_alone {
            self.join_attempts = 0;
            self.timers.join = now + self.jittered(JOIN_HEAL);
            self.timers.anti_entropy = now + self.jittered(Duration::from_secs(1));
        }
    }

    pub(super) fn peer_down(&mut self, now: Instant, node: u64) {
        self.registry.set_down(node, Some(now));
        let departed = self.peers.departed.entry(node).or_insert(Departed {
            since: now,
            left: false,
            dead: false,
            preserved_until: None,
        });
        let vanished = !departed.left && !departed.dead && !self.peers.doubted.is_left_out(node);
        let left = departed.left;
        if vanished {
            self.preserve(now, node);
        }
        let departed_max = DEPARTED_PER_MEMBER * self.config.limits.members.max(1);
        if self.peers.departed.len() > departed_max
            && let Some(oldest) =
                self.peers.departed.iter().min_by_key(|(_, d)| d.since).map(|(node, _)| *node)
        {
            self.peers.departed.remove(&oldest);
            self.publisher.touch_node(now, oldest, &self.registry);
        }
        self.publisher.touch_node(now, node, &self.registry);
        if self.peers.told.remove(&node) {
            self.tell(Event::NodeDown { node, name: self.name_of(node), left });
            self.save_members_later(now);
        }
        if let Some(location) = self.peers.location(node) {
            self.seeds.lost(now, location.address);
        }
        self.make_room(now, node);
        if self.peers.told.is_empty() {
            self.join_attempts = 0;
            self.timers.join = now + self.jittered(JOIN_FIRST);
        }
    }

    /// A host is gone for certain: it said so, or its port is closed.
    pub(super) fn peer_gone(&mut self, now: Instant, node: u64, epoch: u32, left: bool) {
        let Some(known) = self.membership.up().get(&node).copied() else {
            self.peer_was_gone(now, node, left);
            return;
        };
        if known > epoch {
            return;
        }
        let departed = Departed { since: now, left, dead: !left, preserved_until: None };
        self.peers.departed.insert(node, departed);
        self.membership.declare_down(now, node, epoch, true);
    }

    /// A host that is down already turns out to have said goodbye, or to be dead for certain: it did not vanish.
    pub(super) fn peer_was_gone(&mut self, now: Instant, node: u64, left: bool) {
        if let Some(departed) = self.peers.departed.get_mut(&node) {
            departed.left |= left;
            departed.dead |= !left;
            departed.preserved_until = None;
            self.peers.vanished.retain(|(_, vanished)| *vanished != node);
            self.publisher.touch_node(now, node, &self.registry);
        }
    }

    /// We found out ourselves: tell the others at once.
    pub(super) fn announce_gone(&mut self, now: Instant, node: u64, epoch: u32) {
        self.peer_gone(now, node, epoch, false);
        for peer in self.random_peers(GONE_FANOUT, &[node]) {
            self.send(peer, &[Frame::Gone { node, epoch, left: false }]);
        }
    }

    fn preserve(&mut self, now: Instant, node: u64) {
        let vanished = &mut self.peers.vanished;
        while vanished
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > VANISH_WINDOW)
        {
            vanished.pop_front();
        }
        vanished.push_back((now, node));
        let all = self.membership.up().len() + vanished.len() + 1;
        if vanished.len() < VANISH_MIN || vanished.len() as f64 <= VANISH_SHARE * all as f64 {
            return;
        }
        for (at, node) in vanished.iter() {
            if let Some(departed) =
                self.peers.departed.get_mut(node).filter(|d| d.preserved_until.is_none())
            {
                departed.preserved_until = Some(*at + PRESERVED);
                self.publisher.touch_node(now, *node, &self.registry);
            }
        }
    }

    pub(super) fn members_to_save(&self) -> Vec<SavedMember> {
        let up = self.membership.up().keys().filter_map(|node| self.peers.location(*node));
        let current =
            up.map(|location| SavedMember { node: location.node, address: location.address });
        let earlier = self.saved_members.iter().copied();
        let mut members: Vec<SavedMember> = Vec::new();
        for member in current.chain(earlier) {
            if members.len() < SAVED_MAX
                && !members.iter().any(|known| known.address == member.address)
            {
                members.push(member);
            }
        }
        members
    }

    fn save_members_later(&mut self, now: Instant) {
        self.timers.save_members.get_or_insert(now + SAVE_MEMBERS);
    }

    pub(super) fn name_of(&self, node: u64) -> String {
        let body = self.registry.record(node).and_then(|record| record.node.as_ref());
        body.map_or_else(|| format!("{node:016x}"), |body| body.name.clone())
    }
}

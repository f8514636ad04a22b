//! Who is at an address: whoever answers there.
//!
//! A host says where it is, in its record and with what it sends; others pass that on. Such a claim may be wrong: an
//! address was copied with a configuration, a wiped host starts where its predecessor died a moment ago, an address
//! moved to another machine. No clock and no generation can tell which of two claims is right, but a dial can: the
//! answer is sealed to the very request, so who gives it is there now. Hence:
//!
//! - While nobody else who is up claims an address, who claims it is believed, provided that it speaks from that IP address.
//! - Where a host that is up holds the address already, or the speaker speaks from elsewhere, the address is dialled. Until it
//!   has answered, who was there first stays and the newcomer is left out.
//! - Who answers holds the address; all others that claim it are left out, without being called down to others: each host
//!   finds out by itself, since one may be deceived by its own path.
//! - A claim ends with its claimant: who goes away, or says that it is elsewhere, makes room.
//!
//! Who is not where it says is told so when it next asks for anything over TCP ([`Frame::NotThere`]): that is the only way
//! that leads to it. It says so to its operator, once, and is not ready.
//!
//! Not decided here: whether a host is alive ([`crate::membership`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::exchanges::Purpose;
use super::{Discovery, Event};
use crate::wire::{Frame, Located};

/// An address in doubt is dialled again after this, then twice as long each time.
const ASK_FIRST: Duration = Duration::from_secs(1);
/// At the longest.
const ASK_LAST: Duration = Duration::from_secs(30);
/// Hosts in doubt at a time; a claim beyond it stays left out.
const DOUBTS_MAX: usize = 1024;
/// Who was sent something by the membership of others within this time is where it says.
const SEEN_FRESH: Duration = Duration::from_secs(10);

/// Hosts whose address somebody else has, or may not be theirs.
#[derive(Debug, Default)]
pub(super) struct DoubtedClaims {
    /// Left out because another stands at their address.
    left_out: BTreeMap<u64, LeftOut>,
    /// Being asked for, or found elsewhere.
    doubts: BTreeMap<u64, Doubt>,
}

/// A host that is left out for another.
#[derive(Debug, Clone, Copy)]
struct LeftOut {
    holder: u64,
    /// [`Event::AddressConflict`] told of it.
    told: bool,
}

/// A claim that is being looked into.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    address: SocketAddr,
    asked: u32,
    ask_again: Instant,
    found: Option<Found>,
}

/// What a dial of a claimed address found instead of the claimant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This host answers there.
    Host(u64),
    /// Nothing answers there.
    Nobody,
}

impl DoubtedClaims {
    /// Who stands at this host's address instead of it.
    pub fn holder_instead_of(&self, node: u64) -> Option<u64> {
        self.left_out.get(&node).map(|left_out| left_out.holder)
    }

    /// Whether another host stands at this one's address.
    pub fn is_left_out(&self, node: u64) -> bool {
        self.left_out.contains_key(&node)
    }

    /// Forgets hosts that nobody needs to know any more.
    pub fn retain(&mut self, is_needed: impl Fn(u64) -> bool) {
        self.left_out.retain(|node, it| is_needed(*node) && is_needed(it.holder));
        self.doubts.retain(|node, _| is_needed(*node));
    }

    /// The host is elsewhere now: what was found out about its old address no longer counts.
    fn forget(&mut self, node: u64) -> bool {
        self.doubts.remove(&node);
        self.left_out.remove(&node).is_some()
    }

    fn leave_out(&mut self, node: u64, holder: u64) -> &mut LeftOut {
        let left_out = self.left_out.entry(node).or_insert(LeftOut { holder, told: false });
        if left_out.holder != holder {
            *left_out = LeftOut { holder, told: false };
        }
        left_out
    }

    /// When an address in doubt is to be dialled again, of hosts for which this says yes.
    fn due(&self, is_up: impl Fn(u64) -> bool) -> impl Iterator<Item = (u64, Instant)> {
        let open = |doubt: &Doubt| !matches!(doubt.found, Some(Found::Host(_)));
        let doubts = self.doubts.iter().filter(move |(node, doubt)| open(doubt) && is_up(**node));
        doubts.map(|(node, doubt)| (*node, doubt.ask_again))
    }
}

impl Discovery {
    /// Somebody says where a host is. With generation 0 it is a guess (where a datagram came from).
    pub(super) fn learn_address(&mut self, now: Instant, located: Located) {
        let own = self.config.node.id;
        if located.node == own && located != self.own_location() {
            return;
        }
        if self.peers.is_full(3 * self.config.limits.members.max(1), located.node) {
            self.counters.refused_limit += 1;
            return;
        }
        let before = self.peers.location(located.node).map(|known| known.address);
        if !self.peers.locate(located) || located.generation == 0 || located.node == own {
            return;
        }
        if before.is_some_and(|before| before != located.address)
            && self.peers.doubted.forget(located.node)
        {
            self.publisher.touch_node(now, located.node, &self.registry);
        }
        if let Some(holder) = self.holder_before(located.node) {
            self.leave_out(now, located.node, holder);
            if self.membership.up().contains_key(&located.node) {
                self.ask_who_is_there(now, located.node);
            }
        }
    }

    /// Whether a host that spoke to us, from this IP address, is where it says. If that is not known, it is found out.
    pub(super) fn is_credible(&mut self, now: Instant, node: u64, from: IpAddr) -> bool {
        let Some(location) = self.peers.location(node) else {
            return true;
        };
        let is_known = self.membership.up().contains_key(&node) || location.address.ip() == from;
        if self.is_another_there(now, node) || !is_known {
            self.ask_who_is_there(now, node);
            return false;
        }
        true
    }

    /// Whether a host stands at the address of this one, as far as is known: then this one is left out.
    pub(super) fn is_another_there(&mut self, now: Instant, node: u64) -> bool {
        match self.peers.doubted.holder_instead_of(node) {
            Some(holder) if self.stands(holder) => return true,
            // The holder is gone, and its claim with it.
            Some(_) => {
                self.peers.doubted.forget(node);
                self.publisher.touch_node(now, node, &self.registry);
            }
            None => {}
        }
        let Some(holder) = self.holder_before(node) else {
            return false;
        };
        self.leave_out(now, node, holder);
        true
    }

    /// Of hosts that went away and were at this one's address only this one is left.
    pub(super) fn inherit_address(&mut self, now: Instant, node: u64) {
        let Some(location) = self.peers.location(node) else { return };
        let gone: Vec<u64> = self
            .peers
            .at(location.address)
            .filter(|other| *other != node && !self.stands(*other))
            .collect();
        for other in gone {
            self.leave_out(now, other, node);
        }
    }

    /// A host went away: those that were left out for it have their turn.
    pub(super) fn make_room(&mut self, now: Instant, gone: u64) {
        let left_out = &self.peers.doubted.left_out;
        let heirs: Vec<u64> = left_out
            .iter()
            .filter(|(node, it)| it.holder == gone && self.membership.up().contains_key(node))
            .map(|(node, _)| *node)
            .collect();
        for heir in heirs {
            self.peers.doubted.forget(heir);
            self.peer_up(now, heir);
        }
    }

    /// This host answered at this address: it is there, and nobody else.
    pub(super) fn settle_address(&mut self, now: Instant, address: SocketAddr, there: u64) {
        let own = self.config.node.id;
        let claims: Vec<Located> = self
            .peers
            .at(address)
            .filter(|node| ![there, own].contains(node))
            .filter_map(|node| self.peers.location(node))
            .filter(|location| location.generation > 0)
            .collect();
        for claim in claims {
            if let Some(doubt) = self.peers.doubted.doubts.get_mut(&claim.node) {
                doubt.found = Some(Found::Host(there));
            }
            let epoch = self.membership.up().get(&claim.node).copied();
            let is_alive = epoch.is_some() || self.peers.doubted.doubts.contains_key(&claim.node);
            self.leave_out(now, claim.node, there);
            if let Some(epoch) = epoch {
                self.membership.declare_down(now, claim.node, epoch, false);
            }
            let left_out = self.peers.doubted.leave_out(claim.node, there);
            if is_alive && !std::mem::replace(&mut left_out.told, true) {
                self.tell(Event::AddressConflict { loser: claim.node, winner: there, address });
            }
        }
        if self.peers.location(there).is_some_and(|location| location.address == address)
            && self.peers.doubted.forget(there)
        {
            self.publisher.touch_node(now, there, &self.registry);
            if self.membership.up().contains_key(&there) {
                self.peer_up(now, there);
            }
        }
    }

    /// Nobody answered at the address that this host claims.
    pub(super) fn nobody_is_there(&mut self, node: u64, address: SocketAddr) {
        if let Some(doubt) = self.peers.doubted.doubts.get_mut(&node)
            && doubt.address == address
        {
            doubt.found = Some(Found::Nobody);
        }
    }

    /// Dials again, where hosts that the mesh has for up could not be told apart yet.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let up = self.membership.up();
        let due = self.peers.doubted.due(|node| up.contains_key(&node));
        let due: Vec<u64> = due.filter(|(_, at)| *at <= now).map(|(node, _)| node).collect();
        for node in due {
            self.ask_who_is_there(now, node);
        }
    }

    /// When [`Discovery::ask_again`] has something to do.
    pub(super) fn ask_again_at(&self) -> Option<Instant> {
        let up = self.membership.up();
        self.peers.doubted.due(|node| up.contains_key(&node)).map(|(_, at)| at).min()
    }

    /// What the asker is to be told of its own address.
    pub(super) fn not_there(&self, asker: u64) -> Option<Frame> {
        let doubt = self.peers.doubted.doubts.get(&asker)?;
        let holder = match doubt.found? {
            Found::Host(holder) => Some(holder),
            Found::Nobody => None,
        };
        Some(Frame::NotThere { address: doubt.address, holder })
    }

    /// Another host found somebody else, or nobody, at our address.
    pub(super) fn handle_not_there(
        &mut self,
        now: Instant,
        address: SocketAddr,
        holder: Option<u64>,
    ) {
        let is_seen = self
            .membership
            .addressed_at()
            .is_some_and(|at| now.saturating_duration_since(at) < SEEN_FRESH);
        if address != self.config.node.address || is_seen {
            return;
        }
        let found = holder.map_or(Found::Nobody, Found::Host);
        if self.found_instead.replace(found) != Some(found) {
            self.tell(Event::NotThere { address, found });
        }
        // Whoever was left out for our sake may be the one that is there.
        let own = self.config.node.id;
        self.make_room(now, own);
    }

    /// Another host's membership was taken: if it reached us at our address, we are there.
    pub(super) fn note_seen(&mut self, now: Instant) {
        if self.membership.addressed_at() == Some(now) {
            self.found_instead = None;
        }
    }

    /// Left out of look-ups from now on, for this other host.
    fn leave_out(&mut self, now: Instant, node: u64, holder: u64) {
        if self.peers.doubted.holder_instead_of(node) != Some(holder) {
            self.peers.doubted.leave_out(node, holder);
            self.publisher.touch_node(now, node, &self.registry);
        }
    }

    /// Another host that is up, and is not left out itself, and claims the address of this one.
    fn holder_before(&self, node: u64) -> Option<u64> {
        let location = self.peers.location(node).filter(|location| location.generation > 0)?;
        self.peers.at(location.address).find(|other| {
            let is_claim = || self.peers.location(*other).is_some_and(|it| it.generation > 0);
            *other != node && self.stands(*other) && is_claim()
        })
    }

    /// Whether this host is up and where it says, as far as is known.
    fn stands(&self, node: u64) -> bool {
        if node == self.config.node.id {
            return self.found_instead.is_none();
        }
        self.membership.up().contains_key(&node) && !self.peers.doubted.is_left_out(node)
    }

    pub(super) fn ask_who_is_there(&mut self, now: Instant, node: u64) {
        // A guess is no claim.
        let claim = self.peers.location(node).filter(|location| location.generation > 0);
        let Some(Located { address, .. }) = claim else { return };
        if address == self.config.node.address && self.found_instead.is_none() {
            // We are.
            let doubt = Doubt { address, asked: 0, ask_again: now, found: None };
            self.peers.doubted.doubts.entry(node).or_insert(doubt);
            self.settle_address(now, address, self.config.node.id);
            return;
        }
        let doubts = &mut self.peers.doubted.doubts;
        if doubts.len() >= DOUBTS_MAX && !doubts.contains_key(&node) {
            return;
        }
        let new = Doubt { address, asked: 0, ask_again: now, found: None };
        let doubt = doubts.entry(node).or_insert(new);
        if doubt.address != address {
            *doubt = new;
        }
        if doubt.ask_again > now {
            return;
        }
        doubt.ask_again = now + ASK_FIRST.saturating_mul(1 << doubt.asked.min(10)).min(ASK_LAST);
        doubt.asked = doubt.asked.saturating_add(1);
        self.dial(now, address, Purpose::Identify { node }, vec![Frame::Ping]);
    }
}

//! What arrives in datagrams, and what arrives in either way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Discovery, Event, FETCH, FETCH_PEERS_MAX};
use crate::membership::NotTaken;
use crate::refusal::Verdict;
use crate::registry::Applied;
use crate::seal::{Channel, Refused};
use crate::session::Standing;
use crate::wire::{Delta, Extent, Frame, Located};

/// Longer datagrams are not ours.
const RECEIVED_MAX: usize = 4096;
/// Challenges and their answers sent in a second; more strangers than that have to wait.
const CHALLENGES_PER_SEC_MAX: u32 = 2000;
/// Suspects that others asked us to dial, and who asked, for each.
const SUSPECTS_MAX: usize = 256;
const ASKERS_MAX: usize = 64;
/// More records than this in one message are what others know already: they are not passed on.
const NEWS_MAX: usize = 64;
/// Entries of one list of what is missing.
const MISSING_MAX: usize = 4096;

/// How many challenges and answers may still be sent in this second.
#[derive(Debug)]
pub(super) struct Allowance {
    since: Instant,
    left: u32,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Allowance { since: now, left: CHALLENGES_PER_SEC_MAX }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Allowance::new(now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl Discovery {
    /// Takes one datagram.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        wall_ms: u64,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.len() as u64;
        if self.left {
            return;
        }
        if datagram.len() > RECEIVED_MAX {
            self.count_refused(Refused::Length);
            return;
        }
        let Ok((sender, salt, counter, body, sub_key)) =
            self.open(Channel::Datagram, &[], datagram)
        else {
            return;
        };
        let Ok(frames) = Frame::decode_all(&body) else {
            self.counters.refused_malformed += 1;
            return;
        };
        match self.sessions.accept(now, sender, salt, counter, sub_key.clone()) {
            Standing::Fresh => self.answer_challenges(now, from, &frames),
            Standing::Replayed => {
                self.counters.refused_replay += 1;
                return;
            }
            Standing::Unproved => {
                self.answer_challenges(now, from, &frames);
                if !self.proves(now, sender, salt, &frames) {
                    self.challenge(now, from, sender, salt);
                    return;
                }
                self.sessions.prove(now, sender, salt, counter, sub_key);
            }
        }
        if self.peers.location(sender).is_none() {
            // A guess, until it says so itself.
            self.learn_address(now, Located { node: sender, generation: 0, address: from });
        }
        self.membership.heard_from(now, sender);
        self.handle_frames(now, wall_ms, sender, from, frames);
        self.pump(now);
    }

    /// Opens an envelope and counts why not.
    #[expect(
        clippy::type_complexity,
        reason = "what an envelope holds, taken apart at once by two callers"
    )]
    pub(super) fn open(
        &mut self,
        channel: Channel,
        binding: &[u8],
        envelope: &[u8],
    ) -> Result<(u64, crate::seal::Salt, u64, Vec<u8>, Option<crate::seal::SubKey>), ()> {
        let opened = self.sealer.header(envelope).and_then(|header| {
            let kept = self.sessions.sub_key(header.sender, header.salt);
            let (body, sub_key) = self.sealer.open(&header, channel, binding, envelope, kept)?;
            Ok((header.sender, header.salt, header.counter, body, sub_key))
        });
        match opened {
            Ok((sender, ..)) if sender == self.config.node.id => {
                self.counters.refused_own += 1;
                Err(())
            }
            Ok(opened) => Ok(opened),
            Err(refused) => {
                self.count_refused(refused);
                Err(())
            }
        }
    }

    /// Whether the sender says back what we asked it to.
    pub(super) fn proves(
        &self,
        now: Instant,
        sender: u64,
        salt: crate::seal::Salt,
        frames: &[Frame],
    ) -> bool {
        frames
            .iter()
            .any(|frame| matches!(frame, Frame::Echo(cookie) if self.sessions.is_cookie(now, sender, salt, *cookie)))
    }

    fn challenge(&mut self, now: Instant, to: SocketAddr, sender: u64, salt: crate::seal::Salt) {
        if self.challenges.take(now) {
            self.counters.challenges += 1;
            let cookie = self.sessions.cookie(now, sender, salt);
            self.send_to(to, &[Frame::Challenge(cookie)]);
        }
    }

    fn answer_challenges(&mut self, now: Instant, to: SocketAddr, frames: &[Frame]) {
        for frame in frames {
            if let Frame::Challenge(cookie) = frame
                && self.challenges.take(now)
            {
                self.send_to(to, &[Frame::Echo(*cookie)]);
            }
        }
    }

    /// Acts on what a proved sender said.
    pub(super) fn handle_frames(
        &mut self,
        now: Instant,
        wall_ms: u64,
        sender: u64,
        from: SocketAddr,
        frames: Vec<Frame>,
    ) {
        let deltas = frames.iter().filter(|frame| matches!(frame, Frame::Delta(_))).count();
        let is_news = deltas <= NEWS_MAX;
        for frame in frames {
            match frame {
                Frame::Addresses(list) => {
                    list.into_iter().for_each(|located| self.learn_address(now, located));
                }
                // What others have for alive on its word would be alive for nobody.
                Frame::Membership(_) if !self.is_credible(now, sender, from.ip()) => {}
                Frame::Membership(packet) => {
                    match self.membership.handle_packet(now, sender, &packet) {
                        Ok(()) => self.note_seen(now),
                        Err(NotTaken::Malformed | NotTaken::Forged) => {
                            self.counters.refused_malformed += 1;
                        }
                        Err(NotTaken::TooMany) => self.counters.refused_limit += 1,
                    }
                }
                Frame::Members(_) if self.not_there(sender).is_some() => {}
                Frame::Members(members) => self.membership.handle_members(now, &members),
                Frame::Delta(delta) => self.handle_delta(now, wall_ms, sender, delta, is_news),
                Frame::Have(extent) => self.handle_extents(now, wall_ms, sender, &[extent], true),
                Frame::Gone { node, epoch, left } => {
                    self.handle_gone(now, sender, node, epoch, left);
                }
                Frame::Confirm { node, epoch } => self.handle_confirm(now, sender, node, epoch),
                Frame::Verdict { node, epoch, refused } => {
                    self.handle_verdict(now, sender, node, epoch, refused);
                }
                Frame::Suspected { epoch, incarnation } => {
                    self.membership.handle_suspected(now, sender, epoch, incarnation);
                }
                Frame::Accused { node, epoch, incarnation } => {
                    self.membership.handle_accused(now, sender, node, epoch, incarnation);
                }
                Frame::Quota(bytes) => self.tell(Event::Quota { from: sender, bytes }),
                // Answered by the callers, who know where to.
                Frame::Challenge(_)
                | Frame::Echo(_)
                | Frame::Hello(_)
                | Frame::Join
                | Frame::Compare(_)
                | Frame::Equal
                | Frame::Ping
                | Frame::NotThere { .. }
                | Frame::Digest(_)
                | Frame::Wants(_) => {}
            }
        }
    }

    fn handle_delta(
        &mut self,
        now: Instant,
        wall_ms: u64,
        sender: u64,
        delta: Delta,
        is_news: bool,
    ) {
        let extent = Extent { node: delta.node, generation: delta.generation, upto: delta.upto };
        match self.registry.apply(delta) {
            Applied::Unchanged => {}
            Applied::Gap(_) => self.note_missing(now, sender, extent),
            Applied::OwnIsBehind(generation) => self.jump_above(now, wall_ms, generation),
            Applied::TooMany => self.refuse_record(now, extent.node),
            Applied::Changed(changes) => {
                if is_news {
                    let size = self.membership.up().len() + 1;
                    self.spread.push(now, extent.node, extent.generation, changes.base, size);
                }
                self.publisher.touch_services(now, changes.services);
                if changes.orders {
                    self.withdraw_orders(now, wall_ms);
                    self.publisher.touch_orders(now);
                }
                if changes.notes {
                    self.publisher.touch_notes(now, extent.node);
                }
                if changes.node {
                    self.publisher.touch_node(now, extent.node, &self.registry);
                    self.learn_from_record(now, extent.node);
                }
                if !self.membership.up().contains_key(&extent.node) {
                    self.registry.set_down(extent.node, Some(now));
                }
            }
        }
    }

    /// The sender has this much of these records: take tombstones, fetch what we lack.
    pub(super) fn handle_extents(
        &mut self,
        now: Instant,
        wall_ms: u64,
        sender: u64,
        extents: &[Extent],
        fetch: bool,
    ) {
        for extent in extents.iter().filter(|extent| extent.upto == Extent::TOMBSTONE) {
            match self.registry.bury(now, extent.node, extent.generation) {
                Applied::OwnIsBehind(generation) => self.jump_above(now, wall_ms, generation),
                Applied::Changed(changes) => {
                    self.publisher.touch_services(now, changes.services);
                    if changes.orders {
                        self.publisher.touch_orders(now);
                    }
                    self.publisher.touch_node(now, extent.node, &self.registry);
                    self.peer_was_gone(now, extent.node, true);
                    if changes.node {
                        let size = self.membership.up().len() + 1;
                        self.spread.push(now, extent.node, extent.generation, 0, size);
                    }
                }
                Applied::Unchanged | Applied::Gap(_) | Applied::TooMany => {}
            }
        }
        let own = self.config.node.id;
        for extent in extents.iter().filter(|e| e.node == own && e.upto != Extent::TOMBSTONE) {
            if let Applied::OwnIsBehind(generation) =
                self.registry.judge_own(extent.generation, extent.upto)
            {
                self.jump_above(now, wall_ms, generation);
            }
        }
        if fetch {
            for want in self.registry.wants(extents) {
                let upto = extents
                    .iter()
                    .find(|extent| extent.node == want.node)
                    .map_or(want.upto, |e| e.upto);
                self.note_missing(now, sender, Extent { upto, ..want });
            }
        }
    }

    /// `peer` has this much of a record, and we lack some of it: fetch it in a moment if it is still missing then.
    pub(super) fn note_missing(&mut self, now: Instant, peer: u64, extent: Extent) {
        if self.missing.len() >= FETCH_PEERS_MAX && !self.missing.contains_key(&peer) {
            return;
        }
        let list = self.missing.entry(peer).or_default();
        if list.len() < MISSING_MAX || list.contains_key(&extent.node) {
            list.insert(extent.node, extent);
        }
        self.timers.fetch.get_or_insert(now + FETCH);
    }

    fn learn_from_record(&mut self, now: Instant, node: u64) {
        let Some(record) = self.registry.record(node) else {
            return;
        };
        let Some(body) = &record.node else { return };
        let located = Located { node, generation: record.generation, address: body.address };
        self.learn_address(now, located);
    }

    fn handle_gone(&mut self, now: Instant, sender: u64, node: u64, epoch: u32, left: bool) {
        if node == self.config.node.id {
            // They are wrong: foca takes a new epoch when it hears so.
            let own = crate::wire::Membered { node, epoch, incarnation: 0, down: true };
            self.membership.handle_members(now, &[own]);
        } else if !left || sender == node {
            self.peer_gone(now, node, epoch, left);
        }
    }

    fn handle_confirm(&mut self, now: Instant, sender: u64, node: u64, epoch: u32) {
        if node == self.config.node.id {
            self.send(sender, &[Frame::Verdict { node, epoch, refused: false }]);
            return;
        }
        if self.membership.up().get(&node) == Some(&epoch) {
            let is_under_way = self.askers.contains_key(&node);
            if self.askers.len() >= SUSPECTS_MAX && !is_under_way {
                return;
            }
            let askers = self.askers.entry(node).or_default();
            if askers.len() < ASKERS_MAX {
                askers.insert(sender);
            }
            if !is_under_way {
                self.dial_suspect(now, node, epoch, false);
            }
        }
    }

    fn handle_verdict(&mut self, now: Instant, sender: u64, node: u64, epoch: u32, refused: bool) {
        if !self.cases.is_open(node, epoch) || sender == node && refused {
            return;
        }
        if !refused {
            self.cases.reached(node);
            self.membership.confirm_alive(now, node, epoch);
        } else if self.cases.refused(now, node, epoch, sender, false) == Verdict::Dead {
            self.announce_gone(now, node, epoch);
        }
    }
}

//! What is said over TCP: joining, comparing notes, fetching what is missing, and "are you there?".
//!
//! Each exchange is one frame there and one back. The answer is sealed to the very request, so it proves that the
//! other end is there now; a request from one not proved yet is answered by a challenge, and made again with the
//! answer to it. Records merge idempotently, so a request replayed within its session does nothing, and outside it is challenged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::{Dial, DialError, DialId, Discovery, FRAME_MAX};
use crate::refusal::{AGAIN, Verdict};
use crate::seal::{Channel, OVERHEAD, Refused};
use crate::session::Standing;
use crate::wire::{Delta, Extent, Frame, Hello, Located, Membered, encode_compressed};

/// "Are you there?" is answered within this, or not.
const PING_TIMEOUT: Duration = Duration::from_millis(600);
/// Other exchanges.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a join.
const COMPARE_SOON: Duration = Duration::from_secs(1);
/// Exchanges of ours under way.
const DIALS_MAX: usize = 128;
/// Bytes of deltas in one message, before compression; what is left out comes with the next comparison.
const DELTAS_MAX: usize = 16 * 1024 * 1024;
/// Hosts asked to confirm that a port is closed.
const CONFIRMERS: usize = 3;

/// An exchange of ours under way.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub purpose: Purpose,
    pub to: SocketAddr,
    pub expires: Instant,
    binding: [u8; 32],
    frames: Vec<Frame>,
    /// It has the answer to a challenge already.
    echoed: bool,
}

/// What an exchange is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Learn all that the other end knows.
    Join,
    /// Learn whether we know the same.
    Compare,
    /// Fetch or give.
    Trade,
    /// Find out whether a host is there; `own`: it is our own probe that failed.
    Ping { node: u64, epoch: u32, own: bool },
    /// Find out whether a host is at the address that it claims, or who is.
    Identify { node: u64 },
}

impl Discovery {
    /// Takes one TCP request frame; returns the response frame. `None`: close without an answer.
    pub fn handle_request(
        &mut self,
        now: Instant,
        wall_ms: u64,
        from: SocketAddr,
        request: &[u8],
    ) -> Option<Vec<u8>> {
        self.counters.requests += 1;
        if self.left {
            return None;
        }
        if request.len() > FRAME_MAX {
            self.count_refused(Refused::Length);
            return None;
        }
        let header =
            self.sealer.header(request).map_err(|refused| self.count_refused(refused)).ok()?;
        let (sender, salt, counter, body, sub_key) =
            self.open(Channel::Request, &[], request).ok()?;
        let Ok(frames) = Frame::decode_all(&body) else {
            self.counters.refused_malformed += 1;
            return None;
        };
        let binding = header.binding();
        if frames.contains(&Frame::Ping) {
            // Says no more than that we are here, so it needs no proof.
            return Some(self.respond(&binding, &[Frame::Hello(self.hello())]));
        }
        match self.sessions.accept(now, sender, salt, counter, sub_key.clone()) {
            Standing::Fresh => {}
            Standing::Replayed => {
                self.counters.refused_replay += 1;
                return None;
            }
            Standing::Unproved if self.proves(now, sender, salt, &frames) => {
                self.sessions.prove(now, sender, salt, counter, sub_key);
            }
            Standing::Unproved => {
                self.counters.challenges += 1;
                let cookie = self.sessions.cookie(now, sender, salt);
                return Some(self.respond(&binding, &[Frame::Challenge(cookie)]));
            }
        }
        let response = self.answer(now, wall_ms, sender, from, frames);
        self.pump(now);
        Some(self.respond(&binding, &response))
    }

    /// Takes the end of a dial: the response frame, or how it failed (a timeout is [`DialError::Other`]).
    pub fn handle_response(
        &mut self,
        now: Instant,
        wall_ms: u64,
        dial: DialId,
        response: Result<&[u8], DialError>,
    ) {
        let Some(outgoing) = self.dials.remove(&dial) else {
            return;
        };
        match response {
            Ok(envelope) => self.handle_answer(now, wall_ms, outgoing, envelope),
            Err(error) => {
                self.counters.dials_failed += 1;
                match outgoing.purpose {
                    Purpose::Ping { node, epoch, own } => {
                        self.handle_ping_failed(now, node, epoch, own, error);
                    }
                    Purpose::Identify { node } => self.nobody_is_there(node, outgoing.to),
                    Purpose::Join => self.join_failed(now, wall_ms, outgoing.to),
                    Purpose::Compare | Purpose::Trade => {}
                }
            }
        }
        self.pump(now);
    }

    /// Asks the host at this address for everything, and tells it whom we have met: two groups that meet here are one.
    pub(super) fn dial_join(&mut self, now: Instant, address: SocketAddr) {
        let mut frames = vec![Frame::Join, Frame::Digest(self.registry.digest())];
        if !self.membership.up().is_empty() {
            frames.extend(self.state(self.config.node.id));
            self.compare_soon(now);
        }
        frames.extend(self.own_delta().map(Frame::Delta));
        self.dial(now, address, Purpose::Join, frames);
    }

    /// What was learnt in one exchange others may lack: notes are compared before their turn.
    fn compare_soon(&mut self, now: Instant) {
        let soon = now + self.jittered(COMPARE_SOON);
        self.timers.anti_entropy = self.timers.anti_entropy.min(soon);
    }

    pub(super) fn compare_with_random_peer(&mut self, now: Instant) {
        let Some(peer) = self.random_peers(1, &[]).first().copied() else {
            return;
        };
        let Some(location) = self.peers.location(peer) else {
            return;
        };
        self.dial(now, location.address, Purpose::Compare, vec![Frame::Compare(self.root())]);
    }

    pub(super) fn fetch_missing(&mut self, now: Instant) {
        for (peer, extents) in std::mem::take(&mut self.missing) {
            let extents: Vec<Extent> = extents.into_values().collect();
            let wants = self.registry.wants(&extents);
            if let Some(location) = self.peers.location(peer)
                && !wants.is_empty()
            {
                self.dial(now, location.address, Purpose::Trade, vec![Frame::Wants(wants)]);
            }
        }
    }

    /// Asks a host that does not answer datagrams whether it is there.
    pub(super) fn dial_suspect(&mut self, now: Instant, node: u64, epoch: u32, own: bool) {
        if let Some(location) = self.peers.location(node) {
            self.dial(now, location.address, Purpose::Ping { node, epoch, own }, vec![Frame::Ping]);
        }
    }

    pub(super) fn recheck_suspects(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.recheck).into_iter().partition(|(at, ..)| *at <= now);
        self.recheck = later;
        let due: Vec<(Instant, u64, u32)> = due;
        for (_, node, epoch) in due {
            if self.cases.is_open(node, epoch) && self.membership.up().get(&node) == Some(&epoch) {
                self.dial_suspect(now, node, epoch, true);
            }
        }
    }

    pub(super) fn dial(
        &mut self,
        now: Instant,
        to: SocketAddr,
        purpose: Purpose,
        frames: Vec<Frame>,
    ) {
        self.dial_with(now, to, purpose, frames, None);
    }

    fn dial_with(
        &mut self,
        now: Instant,
        to: SocketAddr,
        purpose: Purpose,
        frames: Vec<Frame>,
        cookie: Option<[u8; 16]>,
    ) {
        if self.dials.len() >= DIALS_MAX || self.left {
            return;
        }
        let is_ping = matches!(purpose, Purpose::Ping { .. });
        let timeout = if is_ping { PING_TIMEOUT } else { EXCHANGE_TIMEOUT };
        let mut all = vec![Frame::Hello(self.hello())];
        all.extend(cookie.map(Frame::Echo));
        all.extend(frames.iter().cloned());
        let body = encode_bounded(&mut all);
        let (request, binding) = self.sealer.seal(Channel::Request, &[], &body);
        self.dial_seq += 1;
        let id = DialId(self.dial_seq);
        // Twice the time, for a shell that is slow to tell us.
        let expires = now + 2 * timeout;
        self.dials.insert(
            id,
            Outgoing { purpose, to, expires, binding, frames, echoed: cookie.is_some() },
        );
        self.dial_queue.push_back(Dial { id, to, request, timeout });
    }

    fn respond(&mut self, binding: &[u8; 32], frames: &[Frame]) -> Vec<u8> {
        let body = encode_bounded(&mut frames.to_vec());
        self.sealer.seal(Channel::Response, binding, &body).0
    }

    /// Acts on a proved request and says what to answer.
    fn answer(
        &mut self,
        now: Instant,
        wall_ms: u64,
        sender: u64,
        from: SocketAddr,
        frames: Vec<Frame>,
    ) -> Vec<Frame> {
        self.meet(now, sender, from, false, &frames);
        let asked = frames.clone();
        self.handle_frames(now, wall_ms, sender, from, frames);
        let mut answer = vec![Frame::Hello(self.hello())];
        answer.extend(self.not_there(sender));
        let their_digest: Vec<Extent> =
            asked.iter().filter_map(digest_of).flatten().copied().collect();
        self.handle_extents(now, wall_ms, sender, &their_digest, true);
        for frame in &asked {
            match frame {
                Frame::Join => {
                    self.compare_soon(now);
                    answer.extend(self.state(sender));
                    let (deltas, tombstones) = self.registry.surplus(&their_digest);
                    answer.push(Frame::Digest(tombstones));
                    answer.extend(deltas.into_iter().map(Frame::Delta));
                }
                Frame::Compare(root) if *root == self.root() => answer.push(Frame::Equal),
                Frame::Compare(_) => {
                    answer.extend(self.state(sender));
                    answer.push(Frame::Digest(self.registry.digest()));
                }
                Frame::Wants(wants) => {
                    let deltas = wants.iter().filter_map(|want| self.registry.delta_for(*want));
                    answer.extend(deltas.map(Frame::Delta));
                }
                _ => {}
            }
        }
        answer
    }

    fn handle_answer(&mut self, now: Instant, wall_ms: u64, outgoing: Outgoing, envelope: &[u8]) {
        let (purpose, to) = (outgoing.purpose, outgoing.to);
        if !self.takes_answer(now, wall_ms, outgoing, envelope) && purpose == Purpose::Join {
            self.join_failed(now, wall_ms, to);
        }
    }

    /// Acts on an answer; `false`: it is none that can be read.
    fn takes_answer(
        &mut self,
        now: Instant,
        wall_ms: u64,
        outgoing: Outgoing,
        envelope: &[u8],
    ) -> bool {
        if envelope.len() > FRAME_MAX {
            self.count_refused(Refused::Length);
            return false;
        }
        let Ok((sender, salt, counter, body, sub_key)) =
            self.open(Channel::Response, &outgoing.binding, envelope)
        else {
            return false;
        };
        let Ok(frames) = Frame::decode_all(&body) else {
            self.counters.refused_malformed += 1;
            return false;
        };
        self.sessions.prove(now, sender, salt, counter, sub_key);
        if let Some(cookie) = frames.iter().find_map(|frame| match frame {
            Frame::Challenge(cookie) => Some(*cookie),
            _ => None,
        }) {
            let is_first = !outgoing.echoed;
            if is_first {
                self.dial_with(now, outgoing.to, outgoing.purpose, outgoing.frames, Some(cookie));
            }
            return is_first;
        }
        self.meet(now, sender, outgoing.to, true, &frames);
        match outgoing.purpose {
            Purpose::Ping { node, epoch, .. } => {
                self.handle_pong(now, sender, node, epoch);
                return true;
            }
            Purpose::Identify { .. } => return true,
            Purpose::Join => self.seeds.met(outgoing.to),
            Purpose::Compare | Purpose::Trade => {}
        }
        for frame in &frames {
            if let Frame::NotThere { address, holder } = frame {
                self.handle_not_there(now, *address, *holder);
            }
        }
        let digest: Vec<Extent> = frames.iter().filter_map(digest_of).flatten().copied().collect();
        self.handle_frames(now, wall_ms, sender, outgoing.to, frames);
        self.handle_extents(now, wall_ms, sender, &digest, false);
        if outgoing.purpose == Purpose::Join {
            self.join_ended(now, wall_ms, true);
        }
        if outgoing.purpose == Purpose::Compare && !digest.is_empty() {
            self.trade(now, outgoing.to, &digest);
        }
        true
    }

    fn join_failed(&mut self, now: Instant, wall_ms: u64, address: SocketAddr) {
        self.seeds.failed(now, address, &mut self.rng);
        self.join_ended(now, wall_ms, false);
    }

    /// Gives what the other end lacks and asks for what we lack.
    fn trade(&mut self, now: Instant, to: SocketAddr, theirs: &[Extent]) {
        let wants = self.registry.wants(theirs);
        let (deltas, tombstones) = self.registry.surplus(theirs);
        let mut frames = self.state(self.config.node.id);
        frames.push(Frame::Wants(wants));
        frames.push(Frame::Digest(tombstones));
        frames.extend(deltas.into_iter().map(Frame::Delta));
        self.dial(now, to, Purpose::Trade, frames);
    }

    /// Somebody spoke to us over TCP: it is up, if it is where it says. `answered`: it did so at the address `from`.
    fn meet(
        &mut self,
        now: Instant,
        node: u64,
        from: SocketAddr,
        answered: bool,
        frames: &[Frame],
    ) {
        let hello = frames.iter().find_map(|frame| match frame {
            Frame::Hello(hello) => Some(*hello),
            _ => None,
        });
        let Some(Hello { epoch, incarnation, generation, address }) = hello else {
            return;
        };
        let address = if address.ip().is_unspecified() {
            SocketAddr::new(from.ip(), address.port())
        } else {
            address
        };
        self.learn_address(now, Located { node, generation, address });
        if answered {
            self.settle_address(now, from, node);
        }
        if !(answered && from == address || self.is_credible(now, node, from.ip())) {
            return;
        }
        self.membership.handle_alive(now, node, epoch, incarnation);
        if answered && !self.membership.up().contains_key(&node) {
            // It has been called down, which is final for its epoch: it takes another one when it hears so.
            self.send(node, &[Frame::Gone { node, epoch, left: false }]);
        }
    }

    fn handle_pong(&mut self, now: Instant, sender: u64, node: u64, epoch: u32) {
        let askers = self.askers.remove(&node).unwrap_or_default();
        if sender != node {
            // Somebody else is there now, and has been met.
            return;
        }
        self.cases.reached(node);
        self.membership.confirm_alive(now, node, epoch);
        for asker in askers {
            self.send(asker, &[Frame::Verdict { node, epoch, refused: false }]);
        }
    }

    fn handle_ping_failed(
        &mut self,
        now: Instant,
        node: u64,
        epoch: u32,
        own: bool,
        error: DialError,
    ) {
        let askers = self.askers.remove(&node).unwrap_or_default();
        if error != DialError::Refused || self.membership.up().get(&node) != Some(&epoch) {
            return;
        }
        for asker in askers {
            self.send(asker, &[Frame::Verdict { node, epoch, refused: true }]);
        }
        if !own {
            return;
        }
        match self.cases.refused(now, node, epoch, self.config.node.id, true) {
            Verdict::AskOthers => {
                for peer in self.random_peers(CONFIRMERS, &[node]) {
                    self.send(peer, &[Frame::Confirm { node, epoch }]);
                }
                self.recheck.push((now + AGAIN, node, epoch));
            }
            Verdict::Wait => {}
            Verdict::Dead => self.announce_gone(now, node, epoch),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            epoch: self.membership.epoch(),
            incarnation: self.membership.incarnation(),
            generation: self.generation(),
            address: self.config.node.address,
        }
    }

    /// Who is where, as we see it. Not what became of the receiver, if that is not where it says: it would take a new epoch
    /// each time it hears that it is down.
    fn state(&self, to: u64) -> Vec<Frame> {
        let mut members = self.membership.members();
        members.retain(|member| member.node != to || self.not_there(to).is_none());
        let locations = members.iter().filter_map(|member| self.peers.location(member.node));
        let addresses = locations.filter(|location| location.generation > 0).collect();
        vec![Frame::Addresses(addresses), Frame::Members(members)]
    }

    fn own_delta(&self) -> Option<Delta> {
        self.registry.delta_for(Extent { node: self.config.node.id, generation: 0, upto: 0 })
    }

    /// A hash over who is up and how much we have of each record: equal for hosts that know the same.
    fn root(&self) -> u64 {
        let own = Membered {
            node: self.config.node.id,
            epoch: self.membership.epoch(),
            incarnation: 0,
            down: false,
        };
        let mut up = self.membership.up().clone();
        up.insert(own.node, own.epoch);
        let mut hash = Sha256::new();
        for (node, epoch) in up {
            hash.update(node.to_be_bytes());
            hash.update(epoch.to_be_bytes());
        }
        for extent in self.registry.digest() {
            hash.update(extent.node.to_be_bytes());
            hash.update(extent.generation.to_be_bytes());
            hash.update(extent.upto.to_be_bytes());
        }
        let hash = hash.finalize();
        u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
    }
}

fn digest_of(frame: &Frame) -> Option<&Vec<Extent>> {
    match frame {
        Frame::Digest(extents) => Some(extents),
        _ => None,
    }
}

/// Encodes a message within [`FRAME_MAX`]: deltas beyond the limit are left out, whole, for the next comparison.
fn encode_bounded(frames: &mut Vec<Frame>) -> Vec<u8> {
    let mut budget = DELTAS_MAX;
    loop {
        let mut used = 0;
        frames.retain(|frame| match frame {
            Frame::Delta(delta) => {
                used += delta.encoded_len_max();
                used <= budget
            }
            _ => true,
        });
        let body = encode_compressed(frames);
        if body.len() + OVERHEAD <= FRAME_MAX || budget == 0 {
            return body;
        }
        budget /= 4;
    }
}

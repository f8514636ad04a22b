//! What is believed of suspects, by whom and when: where foca would believe anybody at once.
//!
//! "Down" is final for an epoch, and one host that is deaf, cut off or slow could say it of the whole mesh. So:
//!
//! - Hearsay is not believed of a host that spoke to us a moment ago: it is looked into ([`Note::DeathDoubted`]).
//! - Who hears nobody at all calls nobody down. What it suspects is absent, to it alone, and back as soon as it refutes; once
//!   others are heard again, it has one suspicion more to do so.
//! - Who is suspected by several hosts on their own account has less time to refute ([`super::lifeguard`]).

use std::time::{Duration, Instant};

use foca::{Header, Member, Message, State, Timer};

use super::codec::encode_packet;
use super::{Id, Membership, Note};

/// Who spoke to us within this time is not dead because others say so. Less than the shortest suspicion, so that a death that
/// others waited out is believed.
const HEARD_FRESH: Duration = Duration::from_millis(800);

/// A host that is suspected for too long, while nobody else was heard either.
#[derive(Debug, Clone, Copy)]
pub(super) struct Absent {
    pub epoch: u32,
    /// Nobody was heard from then on.
    since: Instant,
    /// Others were heard again: it has one more suspicion to refute.
    last_chance: bool,
}

impl Membership {
    /// Another host suspects this one: refute, and to its face, so that it need not wait to hear of it.
    pub fn handle_suspected(&mut self, now: Instant, by: u64, epoch: u32, incarnation: u16) {
        let own = *self.foca.identity();
        if self.left || own.epoch != epoch {
            return;
        }
        let suspect = Member::new(own, incarnation, State::Suspect);
        let _ = self.foca.apply_many(std::iter::once(suspect), false, &mut self.outbox);
        let absent = self.absent.get(&by).map(|absent| absent.epoch);
        if let Some(epoch) = self.up.get(&by).copied().or(absent) {
            // Whatever we send carries our incarnation.
            let _ = self.foca.announce(Id { node: by, epoch }, &mut self.outbox);
        }
        self.settle(now);
    }

    /// The host answered over TCP although its datagrams are missing: as good as an acknowledgement.
    pub fn confirm_alive(&mut self, now: Instant, node: u64, epoch: u32) {
        let Some(probe) = self.probe.filter(|p| p.target == Id { node, epoch } && !p.acked) else {
            return;
        };
        let incarnation = self
            .foca
            .iter_membership_state()
            .find(|member| *member.id() == probe.target)
            .map_or(0, Member::incarnation);
        let header = Header {
            src: probe.target,
            src_incarnation: incarnation,
            dst: *self.foca.identity(),
            message: Message::Ack(probe.number),
        };
        let _ = self.foca.handle_data(&encode_packet(&header, &[]), &mut self.outbox);
        if let Some(probe) = &mut self.probe {
            probe.acked = true;
        }
        self.settle(now);
    }

    /// Another host suspects this one too: the sooner it is believed.
    pub fn handle_accused(
        &mut self,
        now: Instant,
        by: u64,
        node: u64,
        epoch: u32,
        incarnation: u16,
    ) {
        let id = Id { node, epoch };
        if self.left || by == node || self.up.get(&node) != Some(&epoch) {
            return;
        }
        if self.lifeguard.accused(now, by, id, incarnation) {
            self.hasten(now, id, incarnation);
        }
    }

    /// Whether it may be us who hear nobody, so that this suspect is not to be called down yet; it is absent meanwhile.
    pub(super) fn is_our_own_deafness(&mut self, now: Instant, suspect: Id) -> bool {
        let Id { node, epoch } = suspect;
        let absent = self.absent.get(&node).filter(|absent| absent.epoch == epoch).copied();
        // One that is beyond the suspects that are kept was suspected for as long as a suspicion lasts.
        let known = absent.map(|it| it.since).or(self.lifeguard.suspected_since(suspect));
        let Some(since) = known.or_else(|| now.checked_sub(self.suspicion())) else {
            return false;
        };
        let others = self.heard.iter().filter(|(other, _)| **other != node).map(|(_, at)| *at);
        let is_deaf = others.max() < Some(since);
        if !is_deaf && absent.is_none_or(|absent| absent.last_chance) {
            return false;
        }
        let last_chance = !is_deaf;
        self.absent.insert(node, Absent { epoch, since: now, last_chance });
        if self.up.remove(&node).is_some() {
            self.notes.push(Note::Down { node });
        }
        true
    }

    /// An absent host refuted, or lives a new life.
    pub(super) fn is_back(&mut self, id: Id) {
        if self.absent.get(&id.node).is_some_and(|absent| absent.epoch <= id.epoch) {
            self.absent.remove(&id.node);
            self.up.insert(id.node, id.epoch);
            self.notes.push(Note::Up { node: id.node });
        }
    }

    /// A host was heard of at this incarnation: if it is suspected at an earlier one, that is over.
    pub(super) fn note_alive(&mut self, id: Id, incarnation: u16) {
        if self.lifeguard.refuted(id, incarnation) {
            self.is_back(id);
        }
    }

    /// Brings the end of a suspicion forward, as far as its accusers weigh.
    fn hasten(&mut self, now: Instant, id: Id, incarnation: u16) {
        let Some(since) = self.lifeguard.suspected_since(id) else { return };
        let due = since + self.lifeguard.time_to_refute(id, self.suspicion());
        let is_its = |timer: &Timer<Id>| matches!(timer, Timer::ChangeSuspectToDown { member_id, incarnation: of, .. } if *member_id == id && *of == incarnation);
        let key = self.timers.iter().find(|(_, timer)| is_its(timer)).map(|(key, _)| *key);
        if let Some(key) = key.filter(|(at, _)| *at > due)
            && let Some(timer) = self.timers.remove(&key)
        {
            self.schedule(due.max(now), timer);
        }
    }

    /// Whether somebody says that a host is down which spoke to us a moment ago.
    pub(super) fn is_doubtful(&self, now: Instant, id: &Id, state: State) -> bool {
        state == State::Down
            && self.up.get(&id.node).is_some_and(|epoch| *epoch >= id.epoch)
            && self
                .heard
                .get(&id.node)
                .is_some_and(|at| now.saturating_duration_since(*at) < HEARD_FRESH)
    }

    pub(super) fn note_doubts(&mut self, now: Instant, updates: &[Member<Id>]) {
        for update in updates {
            let Id { node, epoch } = *update.id();
            if self.up.get(&node) == Some(&epoch)
                && self.is_doubtful(now, update.id(), update.state())
            {
                self.notes.push(Note::DeathDoubted { node, epoch });
            }
        }
    }
}

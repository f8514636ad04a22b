//! How this host doubts: others while they seem dead, and itself while it seems to be the slow one.
//!
//! After Lifeguard (Dadgar, Phillips and Currey, 2018), fitted around foca: a host that was wrong about others, or
//! that had to refute what others believed of it, probes more slowly until its probes succeed again; a suspect is
//! told so directly, again and again, rather than left to hear it by gossip; and one that is heard from
//! while it is suspected gets more time. Not taken over: suspicion times that shrink as accusers agree.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Id, Note};

/// A suspect is told so this often.
const NAG: Duration = Duration::from_millis(200);
/// A suspect that is heard from gets half a suspicion more, at most this often: one that talks but cannot hear is of no use.
const EXTENSIONS_MAX: u8 = 4;
/// Probing is slowed down by at most 1 + this.
const HEALTH_MAX: u32 = 3;
/// Suspicions kept at a time; for those beyond it nobody is told.
const SUSPECTS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Lifeguard {
    suspects: BTreeMap<u64, Suspicion>,
    /// 0: as healthy as can be told.
    health: u32,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    epoch: u32,
    incarnation: u16,
    heard: bool,
    extensions: u8,
    nag_at: Instant,
}

impl Lifeguard {
    /// How much slower than configured this host probes.
    pub fn slowdown(&self) -> u32 {
        self.health
    }

    /// A time of the probe cycle, longer for a host that seems slow.
    pub fn stretched(&self, time: Duration) -> Duration {
        time * (1 + self.health)
    }

    /// A probe was answered.
    pub fn reward(&mut self) {
        self.health = self.health.saturating_sub(1);
    }

    /// We were wrong about somebody, or somebody about us.
    pub fn blame(&mut self) {
        self.health = (self.health + 1).min(HEALTH_MAX);
    }

    /// We suspect this host from now on.
    pub fn suspect(&mut self, now: Instant, id: Id, incarnation: u16) {
        let fresh =
            Suspicion { epoch: id.epoch, incarnation, heard: false, extensions: 0, nag_at: now };
        let known = self.suspects.get(&id.node).map(|s| (s.epoch, s.incarnation));
        if known != Some((id.epoch, incarnation)) && self.suspects.len() < SUSPECTS_MAX {
            self.suspects.insert(id.node, fresh);
        }
    }

    /// Something arrived from this host.
    pub fn heard_from(&mut self, node: u64) {
        if let Some(suspicion) = self.suspects.get_mut(&node) {
            suspicion.heard = true;
        }
    }

    /// A host was heard from, at this incarnation.
    pub fn heard(&mut self, id: Id, incarnation: u16) {
        let Some(suspicion) = self.suspects.get_mut(&id.node) else { return };
        suspicion.heard = true;
        if id.epoch > suspicion.epoch || incarnation > suspicion.incarnation {
            self.suspects.remove(&id.node);
            self.blame();
        }
    }

    /// Its time is over: whether it gets more because it was heard from. If not, it is no suspect any more.
    pub fn is_reprieved(&mut self, id: Id) -> bool {
        let Some(suspicion) = self.suspects.get_mut(&id.node).filter(|s| s.epoch == id.epoch)
        else {
            return false;
        };
        if std::mem::take(&mut suspicion.heard) && suspicion.extensions < EXTENSIONS_MAX {
            suspicion.extensions += 1;
            return true;
        }
        self.suspects.remove(&id.node);
        false
    }

    /// It is down, or lives a new life.
    pub fn forget(&mut self, node: u64) {
        self.suspects.remove(&node);
    }

    pub fn clear(&mut self) {
        self.suspects.clear();
    }

    /// The suspects that are to be told so now.
    pub fn nag(&mut self, now: Instant) -> Vec<Note> {
        let due = self.suspects.iter_mut().filter(|(_, suspicion)| suspicion.nag_at <= now);
        due.map(|(node, suspicion)| {
            suspicion.nag_at = now + NAG;
            Note::Nag { node: *node, epoch: suspicion.epoch, incarnation: suspicion.incarnation }
        })
        .collect()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.suspects.values().map(|suspicion| suspicion.nag_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { node: 1, epoch: 1 };

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_suspect_is_told_again_and_again() {
        let t0 = t0();
        let mut lifeguard = Lifeguard::default();
        lifeguard.suspect(t0, ID, 3);
        let nag = [Note::Nag { node: 1, epoch: 1, incarnation: 3 }];
        assert_eq!(lifeguard.nag(t0), nag);
        assert_eq!(lifeguard.nag(t0), []);
        assert_eq!(lifeguard.poll_timeout(), Some(t0 + NAG));
        lifeguard.suspect(t0 + NAG, ID, 3);
        assert_eq!(lifeguard.nag(t0 + NAG), nag);
        lifeguard.heard(ID, 4);
        assert_eq!(lifeguard.poll_timeout(), None, "it refuted");
        assert_eq!(lifeguard.slowdown(), 1, "we were wrong");
    }

    #[test]
    fn who_is_heard_from_gets_more_time_but_not_for_ever() {
        let t0 = t0();
        let mut lifeguard = Lifeguard::default();
        lifeguard.suspect(t0, ID, 0);
        for _ in 0..EXTENSIONS_MAX {
            lifeguard.heard(ID, 0);
            assert!(lifeguard.is_reprieved(ID));
        }
        lifeguard.heard(ID, 0);
        assert!(!lifeguard.is_reprieved(ID), "it talks, but it does not hear");
        lifeguard.suspect(t0, ID, 0);
        assert!(!lifeguard.is_reprieved(ID), "silent");
    }

    #[test]
    fn self_doubt_is_bounded_both_ways() {
        let mut lifeguard = Lifeguard::default();
        (0..10).for_each(|_| lifeguard.blame());
        assert_eq!(
            lifeguard.stretched(Duration::from_secs(1)),
            Duration::from_secs(1) * (1 + HEALTH_MAX)
        );
        (0..10).for_each(|_| lifeguard.reward());
        assert_eq!(lifeguard.stretched(Duration::from_secs(1)), Duration::from_secs(1));
    }
}

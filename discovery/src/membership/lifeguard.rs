//! How this host doubts: others while they seem dead, and itself while it seems to be the slow one.
//!
//! After Lifeguard (Dadgar, Phillips and Currey, 2018), fitted around foca: a host that was wrong about others, or
//! that had to refute what others believed of it, probes more slowly until its probes succeed again; a suspect is
//! told so directly, again and again, rather than left to hear it by gossip; one that is heard from
//! while it is suspected gets more time; and one that several hosts suspect on their own account gets less.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Id, Note};

/// A suspect is told so this often.
const NAG: Duration = Duration::from_millis(200);
/// One that is absent for longer than any suspicion lasts, only this often: it may be everybody.
const NAG_LATER: Duration = Duration::from_secs(2);
/// A suspect that is heard from gets half a suspicion more, at most this often: one that talks but cannot hear is of no use.
const EXTENSIONS_MAX: u8 = 4;
/// Probing is slowed down by at most 1 + this.
const HEALTH_MAX: u32 = 3;
/// Suspicions kept at a time; for those beyond it nobody is told.
const SUSPECTS_MAX: usize = 1024;

/// With so many accusers beside us a suspect has the least time to refute.
const ACCUSERS_ENOUGH: usize = 3;
/// The least time, of the whole.
const LEAST_SHARE: f64 = 0.5;
/// An accusation counts for this long.
const ACCUSATION_KEPT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Lifeguard {
    suspects: BTreeMap<u64, Suspicion>,
    /// What others say of hosts, which we may suspect already, or soon.
    accusations: BTreeMap<u64, Accusation>,
    /// 0: as healthy as can be told.
    health: u32,
}

#[derive(Debug)]
struct Accusation {
    epoch: u32,
    incarnation: u16,
    by: BTreeSet<u64>,
    last: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    epoch: u32,
    incarnation: u16,
    since: Instant,
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

    /// We suspect this host from now on; returns whether we did not before.
    pub fn suspect(&mut self, now: Instant, id: Id, incarnation: u16) -> bool {
        let fresh = Suspicion {
            epoch: id.epoch,
            incarnation,
            since: now,
            heard: false,
            extensions: 0,
            nag_at: now,
        };
        let known = self.suspects.get(&id.node).map(|s| (s.epoch, s.incarnation));
        let is_news = known != Some((id.epoch, incarnation)) && self.suspects.len() < SUSPECTS_MAX;
        if is_news {
            self.suspects.insert(id.node, fresh);
        }
        is_news
    }

    /// Since when we suspect this host.
    pub fn suspected_since(&self, id: Id) -> Option<Instant> {
        self.suspects.get(&id.node).filter(|s| s.epoch == id.epoch).map(|s| s.since)
    }

    /// Another host says that it suspects this one too. Returns whether that brings the end of our suspicion forward: not if it said
    /// so before, nor if the suspect got more time because it was heard from.
    pub fn accused(&mut self, now: Instant, by: u64, id: Id, incarnation: u16) -> bool {
        self.accusations.retain(|_, it| now.saturating_duration_since(it.last) < ACCUSATION_KEPT);
        if self.accusations.len() >= SUSPECTS_MAX && !self.accusations.contains_key(&id.node) {
            return false;
        }
        let new = || Accusation { epoch: id.epoch, incarnation, by: BTreeSet::new(), last: now };
        let accusation = self.accusations.entry(id.node).or_insert_with(new);
        if (accusation.epoch, accusation.incarnation) < (id.epoch, incarnation) {
            *accusation = new();
        }
        if (accusation.epoch, accusation.incarnation) == (id.epoch, incarnation)
            && accusation.by.len() < ACCUSERS_ENOUGH
        {
            accusation.last = now;
            let is_new = accusation.by.insert(by);
            let reprieved = self.suspects.get(&id.node).is_some_and(|s| s.extensions > 0);
            return is_new && !reprieved;
        }
        false
    }

    /// Of `whole`, how long a suspect has to refute: the less, the more hosts found on their own account that it does not
    /// answer, by the logarithm that Lifeguard takes.
    pub fn time_to_refute(&self, id: Id, whole: Duration) -> Duration {
        let Some(suspicion) = self.suspects.get(&id.node) else { return whole };
        let is_same = |it: &&Accusation| {
            (it.epoch, it.incarnation) == (suspicion.epoch, suspicion.incarnation)
        };
        let accusers = self.accusations.get(&id.node).filter(is_same).map_or(0, |it| it.by.len());
        let weight = (accusers as f64 + 1.0).ln() / (ACCUSERS_ENOUGH as f64 + 1.0).ln();
        whole.mul_f64(1.0 - (1.0 - LEAST_SHARE) * weight.min(1.0))
    }

    /// This host is alive at this incarnation, as itself or others say. Returns whether that ends a suspicion.
    pub fn refuted(&mut self, id: Id, incarnation: u16) -> bool {
        let is_older = |s: &Suspicion| id.epoch > s.epoch || incarnation > s.incarnation;
        let is_over = self.suspects.get(&id.node).is_some_and(is_older);
        if is_over {
            self.forget(id.node);
            self.blame();
        }
        is_over
    }

    /// Something arrived from this host.
    pub fn heard_from(&mut self, node: u64) {
        if let Some(suspicion) = self.suspects.get_mut(&node) {
            suspicion.heard = true;
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
        self.accusations.remove(&node);
    }

    pub fn clear(&mut self) {
        self.suspects.clear();
        self.accusations.clear();
    }

    /// The suspects that are to be told so now.
    pub fn nag(&mut self, now: Instant) -> Vec<Note> {
        let due = self.suspects.iter_mut().filter(|(_, suspicion)| suspicion.nag_at <= now);
        due.map(|(node, suspicion)| {
            let is_late = now.saturating_duration_since(suspicion.since) > NAG_LATER;
            suspicion.nag_at = now + if is_late { NAG_LATER } else { NAG };
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
        assert!(lifeguard.refuted(ID, 4));
        assert_eq!(lifeguard.poll_timeout(), None, "it refuted");
        assert_eq!(lifeguard.slowdown(), 1, "we were wrong");
    }

    #[test]
    fn the_more_accuse_the_sooner_it_is_believed_and_nobody_counts_twice() {
        let (t0, whole) = (t0(), Duration::from_secs(2));
        let mut lifeguard = Lifeguard::default();
        lifeguard.accused(t0, 7, ID, 3);
        assert!(lifeguard.suspect(t0, ID, 3));
        assert!(!lifeguard.suspect(t0, ID, 3), "no news");
        let times: Vec<Duration> = (7..20)
            .map(|by| {
                lifeguard.accused(t0, by, ID, 3);
                lifeguard.time_to_refute(ID, whole)
            })
            .collect();
        assert_eq!(
            times[0],
            whole.mul_f64(0.75),
            "the one accuser, whom we heard before we suspected"
        );
        assert!(times[1] < times[0] && times[2] < times[1]);
        assert!(times[2..].iter().all(|time| *time == whole / 2), "{times:?}");
        lifeguard.refuted(ID, 4);
        assert_eq!(lifeguard.suspected_since(ID), None, "others heard it refute");
        lifeguard.suspect(t0, ID, 4);
        lifeguard.accused(t0, 7, ID, 3);
        assert_eq!(lifeguard.time_to_refute(ID, whole), whole, "an old accusation");
    }

    #[test]
    fn who_is_heard_from_gets_more_time_but_not_for_ever() {
        let t0 = t0();
        let mut lifeguard = Lifeguard::default();
        lifeguard.suspect(t0, ID, 0);
        assert!(lifeguard.accused(t0, 7, ID, 0));
        assert!(!lifeguard.accused(t0, 7, ID, 0), "it has said so");
        for _ in 0..EXTENSIONS_MAX {
            lifeguard.heard_from(ID.node);
            assert!(lifeguard.is_reprieved(ID));
            assert!(!lifeguard.accused(t0, 8, ID, 0), "what it was given is not taken back");
        }
        lifeguard.heard_from(ID.node);
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

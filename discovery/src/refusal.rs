//! Whether a host that does not answer is dead for certain: several hosts found its port closed.
//!
//! A refused connection (`ECONNREFUSED`) is an answer: the host is there, and no process listens. That is far
//! stronger than silence, and far faster than waiting out a suspicion. But one observer may be deceived by a
//! firewall on its own path, so it takes two different ones, or, where nobody else can say, the same one
//! twice with [`AGAIN`] between. One that reached the suspect meanwhile ends the case.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Before the same observer counts a second time.
pub(crate) const AGAIN: Duration = Duration::from_millis(400);
/// A case without a verdict is dropped.
const EXPIRES: Duration = Duration::from_secs(3);
/// Cases open at a time; beyond it the suspicion has to run out.
const CASES_MAX: usize = 256;

/// The open cases, by suspect.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    cases: BTreeMap<u64, Case>,
}

#[derive(Debug)]
struct Case {
    epoch: u32,
    opened: Instant,
    refused_by: BTreeSet<u64>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The first refusal: ask others, and look again after [`AGAIN`].
    AskOthers,
    /// Nothing yet.
    Wait,
    /// It is dead.
    Dead,
}

impl Cases {
    /// `observer` found the port closed; `own`: it was this host.
    pub fn refused(
        &mut self,
        now: Instant,
        suspect: u64,
        epoch: u32,
        observer: u64,
        own: bool,
    ) -> Verdict {
        self.cases.retain(|_, case| now.saturating_duration_since(case.opened) < EXPIRES);
        if self.cases.get(&suspect).is_some_and(|case| case.epoch != epoch) {
            self.cases.remove(&suspect);
        }
        let Some(case) = self.cases.get_mut(&suspect) else {
            if self.cases.len() < CASES_MAX {
                let refused_by = BTreeSet::from([observer]);
                self.cases.insert(suspect, Case { epoch, opened: now, refused_by });
            }
            return Verdict::AskOthers;
        };
        let twice = own
            && case.refused_by.contains(&observer)
            && now.saturating_duration_since(case.opened) >= AGAIN;
        case.refused_by.insert(observer);
        if twice || case.refused_by.len() >= 2 {
            self.cases.remove(&suspect);
            Verdict::Dead
        } else {
            Verdict::Wait
        }
    }

    /// Someone reached it.
    pub fn reached(&mut self, suspect: u64) {
        self.cases.remove(&suspect);
    }

    /// Whether there is a case against this epoch of the host.
    pub fn is_open(&self, suspect: u64, epoch: u32) -> bool {
        self.cases.get(&suspect).is_some_and(|case| case.epoch == epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    #[test]
    fn two_observers_or_one_twice() {
        let t0 = t0();
        let mut cases = Cases::default();
        assert_eq!(cases.refused(t0, 9, 1, 1, true), Verdict::AskOthers);
        assert_eq!(cases.refused(t0, 9, 1, 2, false), Verdict::Dead);

        assert_eq!(cases.refused(t0, 9, 1, 1, true), Verdict::AskOthers);
        assert_eq!(cases.refused(t0 + AGAIN / 2, 9, 1, 1, true), Verdict::Wait, "too soon");
        assert_eq!(cases.refused(t0 + AGAIN, 9, 1, 1, true), Verdict::Dead);
    }

    #[test]
    fn who_reached_it_ends_the_case_and_a_new_life_is_a_new_case() {
        let t0 = t0();
        let mut cases = Cases::default();
        cases.refused(t0, 9, 1, 1, true);
        cases.reached(9);
        assert_eq!(cases.refused(t0, 9, 1, 2, false), Verdict::AskOthers);
        assert_eq!(cases.refused(t0, 9, 2, 1, true), Verdict::AskOthers, "another epoch");
        assert!(cases.is_open(9, 2) && !cases.is_open(9, 1));
        assert_eq!(
            cases.refused(t0 + EXPIRES, 9, 2, 3, false),
            Verdict::AskOthers,
            "the case had expired"
        );
    }
}

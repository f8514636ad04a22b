//! Whether an endpoint has fallen silent: what it is known by before anything completes.
//!
//! A paused process accepts connections and answers nothing. An average of completed requests learns of that only afterwards, and
//! when a copy elsewhere wins and the first attempt is cancelled, never. So the endpoint keeps two moments:
//!
//! - `since`: the first dispatch after the last head, while no head has come since. Its age is the **stall age**.
//! - `until`: set when an attempt is late, or was given up, and *no* head came since its dispatch, which makes the endpoint **suspect** until
//!   then. (A slow or queueing request at an endpoint that answers others is no evidence.)
//!
//! A head, whichever request it answers, proves the process alive and clears both. Therefore what was dispatched *before* the last
//! head never counts again: a long poll or a stream that waits for an hour makes its host look stalled only until the next
//! answer, and without a list of requests. (Counting what is awaited, the obvious way, would see an endless stall age there.)
//!
//! Nothing is avoided for long on this evidence. A **pause** after the first unanswered dispatch *one* request is let through as a
//! trial. How long the pause is each endpoint teaches: a trial that is given up doubles it (and starts it again), one that is
//! answered shortens it by a tenth, within [`PAUSE_MIN`] and [`PAUSE_MAX`]. So a process that stops for 200 ms at a time is left alone for about 200 ms,
//! at little more than one attempt each time, and a single slow answer costs its endpoint next to nothing. A fixed pause
//! is the obvious alternative: too short it sends several attempts into each stop, too long it wastes the endpoint afterwards.
//!
//! `heard`, the moment of the last head, tells a copy where life was seen last.
//!
//! Orderings: relaxed. The moments are hints; a race between a dispatch and a head at most forgets one unanswered dispatch, and
//! the next one is noted again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The moments (0: none) and the pause. First what is asked of every endpoint.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Stall {
    since: AtomicU64,
    until: AtomicU64,
    heard: AtomicU64,
    pause: AtomicU64,
}

impl Default for Stall {
    fn default() -> Self {
        Stall {
            since: AtomicU64::new(0),
            until: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            pause: AtomicU64::new(PAUSE_FIRST),
        }
    }
}

/// What the evidence says at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing was asked since the last head.
    None,
    /// Asked `age_ns` ago and not answered yet.
    Waiting { age_ns: u64 },
    /// An attempt is late or was given up without a head; asked first `age_ns` ago.
    Suspect { age_ns: u64 },
    /// Silent for `age_ns`, long enough that one request may try it again.
    Trial { age_ns: u64 },
}

impl Stall {
    pub(crate) fn silence(&self, now: u64) -> Silence {
        let since = self.since.load(Relaxed);
        if since == 0 {
            return Silence::None;
        }
        let until = self.until.load(Relaxed);
        let age_ns = now.saturating_sub(since);
        if now >= self.trial_at(since, until) {
            Silence::Trial { age_ns }
        } else if until != 0 {
            Silence::Suspect { age_ns }
        } else {
            Silence::Waiting { age_ns }
        }
    }

    /// How long ago the last head came, whether or not anything was asked since.
    pub(crate) fn unheard_ns(&self, now: u64) -> u64 {
        now.saturating_sub(self.heard.load(Relaxed))
    }

    /// A request goes out; says whether it is a trial. Of several workers one gets a trial that is due, the others see a suspect.
    pub(crate) fn dispatched(&self, now: u64) -> bool {
        let since = self.since.load(Relaxed);
        if since == 0 {
            self.since.store(now, Relaxed);
            return false;
        }
        let until = self.until.load(Relaxed);
        now >= self.trial_at(since, until)
            && self
                .until
                .compare_exchange(
                    until,
                    now.saturating_add(self.pause.load(Relaxed)),
                    Relaxed,
                    Relaxed,
                )
                .is_ok()
    }

    /// The attempt dispatched at `started` was answered, so the process lives.
    pub(crate) fn answered(&self, now: u64, started: u64, trial: bool) {
        self.heard.store(now, Relaxed);
        if self.since.load(Relaxed) != 0 {
            self.since.store(0, Relaxed);
            self.until.store(0, Relaxed);
        }
        let pause = self.pause.load(Relaxed);
        // An answer that was long in coming ended the silence: the pause was not too long.
        if trial && now.saturating_sub(started) < pause / 4 {
            self.pause.store((pause - pause / 10).max(PAUSE_MIN), Relaxed);
        }
    }

    /// The attempt dispatched at `started` has waited for longer than most do. Evidence only if no head came since then: else the
    /// process lives, and the attempt is slow or queues.
    pub(crate) fn late(&self, started: u64) {
        let since = self.since.load(Relaxed);
        if since != 0 && since <= started {
            let until = since.saturating_add(self.pause.load(Relaxed));
            let _ = self.until.compare_exchange(0, until, Relaxed, Relaxed);
        }
    }

    /// The attempt dispatched at `started` was given up without a head.
    pub(crate) fn given_up(&self, started: u64, trial: bool) {
        let since = self.since.load(Relaxed);
        if trial && since != 0 && since <= started {
            let pause = self.pause.load(Relaxed).saturating_mul(2).min(PAUSE_MAX);
            self.pause.store(pause, Relaxed);
            self.until.store(started.saturating_add(pause), Relaxed);
        } else {
            self.late(started);
        }
    }

    /// The attempt dispatched at `started` says nothing about silence: it never waited for a head, or not for long.
    pub(crate) fn withdrawn(&self, started: u64) {
        if self.until.load(Relaxed) == 0 {
            let _ = self.since.compare_exchange(started, 0, Relaxed, Relaxed);
        }
    }

    /// A scout found no life, and none came since `since`: under suspicion until `until`. Unless a head proved it wrong.
    pub(crate) fn found_silent(&self, since: u64, until: u64) {
        if self.heard.load(Relaxed) <= since {
            let _ = self.since.compare_exchange(0, since, Relaxed, Relaxed);
            self.until.fetch_max(until, Relaxed);
        }
    }

    /// A scout sent at `asked` found life: as a head does, this ends a silence that began before.
    pub(crate) fn found_alive(&self, asked: u64) {
        self.heard.fetch_max(asked, Relaxed);
        let since = self.since.load(Relaxed);
        if since != 0 && since <= asked {
            self.since.store(0, Relaxed);
            self.until.store(0, Relaxed);
        }
    }

    /// This process itself stood still: what looked like silence was ours. It counts anew.
    pub(crate) fn own_pause(&self, now: u64) {
        if self.since.load(Relaxed) != 0 {
            self.since.store(now, Relaxed);
            self.until.store(0, Relaxed);
        }
    }

    fn trial_at(&self, since: u64, until: u64) -> u64 {
        if until == 0 { since.saturating_add(self.pause.load(Relaxed)) } else { until }
    }
}

/// The first pause, before anything was learnt: garbage collection and CPU throttling stop a process for 10 to 200 ms.
const PAUSE_FIRST: u64 = 100_000_000;
/// Shorter ones cost attempts without giving anything back.
const PAUSE_MIN: u64 = 20_000_000;
/// An endpoint that never answers in time is tried at least this often.
const PAUSE_MAX: u64 = 2_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_unanswered_dispatch_counts_until_any_head() {
        let stall = Stall::default();
        assert_eq!(stall.silence(MS), Silence::None);
        assert!(!stall.dispatched(MS));
        stall.dispatched(2 * MS);
        assert_eq!(stall.silence(4 * MS), Silence::Waiting { age_ns: 3 * MS });
        stall.answered(5 * MS, 2 * MS, false);
        assert_eq!(
            stall.silence(50 * MS),
            Silence::None,
            "what was asked before the head counts no more: a long poll"
        );
    }

    #[test]
    fn a_late_attempt_makes_it_suspect_and_one_trial_ends_or_prolongs_it() {
        let stall = Stall::default();
        stall.dispatched(MS);
        stall.late(MS);
        assert_eq!(stall.silence(2 * MS), Silence::Suspect { age_ns: MS });
        let due = MS + PAUSE_FIRST;
        assert_eq!(stall.silence(due), Silence::Trial { age_ns: PAUSE_FIRST });
        assert!(stall.dispatched(due));
        assert!(!stall.dispatched(due), "one trial at a time");
        assert!(matches!(stall.silence(due + 1), Silence::Suspect { .. }));
        stall.given_up(due, true);
        let due = due + 2 * PAUSE_FIRST;
        assert!(matches!(stall.silence(due - 1), Silence::Suspect { .. }), "the pause has doubled");
        assert!(stall.dispatched(due));
        stall.answered(due + MS, due, true);
        assert_eq!(stall.silence(due + 2 * MS), Silence::None);
        assert_eq!(
            stall.pause.load(Relaxed),
            2 * PAUSE_FIRST - PAUSE_FIRST / 5,
            "and shrinks by a tenth"
        );
    }

    #[test]
    fn the_pause_stays_within_its_bounds() {
        let stall = Stall::default();
        let mut now = MS;
        stall.dispatched(now);
        stall.late(now);
        for _ in 0..20 {
            now += PAUSE_MAX;
            assert!(stall.dispatched(now), "tried at least each {PAUSE_MAX} ns");
            stall.given_up(now, true);
        }
        assert_eq!(stall.pause.load(Relaxed), PAUSE_MAX);
        for _ in 0..100 {
            now += PAUSE_MAX;
            stall.dispatched(now);
            stall.late(now);
            now += PAUSE_MAX;
            assert!(stall.dispatched(now));
            stall.answered(now + 1, now, true);
        }
        assert_eq!(stall.pause.load(Relaxed), PAUSE_MIN);
    }

    #[test]
    fn a_slow_request_at_an_endpoint_that_answers_others_is_no_evidence() {
        let stall = Stall::default();
        stall.dispatched(MS);
        stall.answered(2 * MS, MS, false);
        stall.dispatched(3 * MS);
        stall.late(MS);
        stall.given_up(MS, false);
        assert!(matches!(stall.silence(4 * MS), Silence::Waiting { .. }));
    }

    #[test]
    fn a_withdrawn_attempt_leaves_nothing_and_an_own_pause_starts_anew() {
        let stall = Stall::default();
        stall.dispatched(MS);
        stall.withdrawn(MS);
        assert_eq!(stall.silence(2 * MS), Silence::None);
        stall.dispatched(3 * MS);
        stall.withdrawn(4 * MS);
        assert!(
            matches!(stall.silence(5 * MS), Silence::Waiting { .. }),
            "another attempt still waits"
        );
        stall.late(3 * MS);
        stall.own_pause(200 * MS);
        assert_eq!(stall.silence(201 * MS), Silence::Waiting { age_ns: MS });
    }
}

//! Whether an endpoint has fallen silent: what it is known by before anything completes.
//!
//! A paused process accepts connections and answers nothing. An average of completed requests learns of that only afterwards, and
//! when a copy elsewhere wins and the first attempt is cancelled, never. So the endpoint keeps two moments:
//!
//! - `since`: the first dispatch after the last head, while no head has come since. Its age is the **stall age**.
//! - `until`: set when an attempt was given up without a head, which makes the endpoint **suspect** until then.
//!
//! A head, whichever request it answers, proves the process alive and clears both. Therefore what was dispatched *before* the last
//! head never counts again: a long poll or a stream that waits for an hour makes its host look stalled only until the next
//! answer, and without a list of requests. (Counting what is awaited, the obvious way, would see an endless stall age there.)
//!
//! Nothing is avoided for long on this evidence. From [`PAUSE_MIN`] after the first unanswered dispatch on, *one* request is let through
//! as a trial; taking it moves `until` on by as long as the silence has lasted, between [`PAUSE_MIN`] and [`PAUSE_MAX`]: a silence
//! of length L costs about 2 + log₂(L / PAUSE_MIN) attempts and the endpoint is back at most as long after its end as it lasted.
//!
//! Orderings: relaxed. The moments are hints; a race between a dispatch and a head at most forgets one unanswered dispatch, and
//! the next one is noted again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The two moments; 0: none.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    since: AtomicU64,
    until: AtomicU64,
}

/// What the evidence says at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing was asked since the last head.
    None,
    /// Asked `age_ns` ago and not answered yet.
    Waiting { age_ns: u64 },
    /// An attempt was given up without a head; asked first `age_ns` ago.
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
        if now >= until.max(since.saturating_add(PAUSE_MIN)) {
            Silence::Trial { age_ns }
        } else if until != 0 {
            Silence::Suspect { age_ns }
        } else {
            Silence::Waiting { age_ns }
        }
    }

    /// A request goes out. If a trial is due this is it: of several workers, one wins it and the others see a suspect.
    pub(crate) fn dispatched(&self, now: u64) {
        let since = self.since.load(Relaxed);
        if since == 0 {
            let _ = self.since.compare_exchange(0, now, Relaxed, Relaxed);
            return;
        }
        let until = self.until.load(Relaxed);
        if now >= until.max(since.saturating_add(PAUSE_MIN)) {
            let pause = now.saturating_sub(since).clamp(PAUSE_MIN, PAUSE_MAX);
            let _ = self.until.compare_exchange(until, now.saturating_add(pause), Relaxed, Relaxed);
        }
    }

    /// A head came: the process lives.
    pub(crate) fn answered(&self) {
        if self.since.load(Relaxed) != 0 {
            self.since.store(0, Relaxed);
            self.until.store(0, Relaxed);
        }
    }

    /// An attempt was given up without a head.
    pub(crate) fn given_up(&self) {
        let since = self.since.load(Relaxed);
        if since != 0 {
            let _ =
                self.until.compare_exchange(0, since.saturating_add(PAUSE_MIN), Relaxed, Relaxed);
        }
    }

    /// The attempt dispatched at `started` says nothing about silence: it never waited for a head, or not for long.
    pub(crate) fn withdrawn(&self, started: u64) {
        if self.until.load(Relaxed) == 0 {
            let _ = self.since.compare_exchange(started, 0, Relaxed, Relaxed);
        }
    }

    /// This process itself stood still: what looked like silence was ours. It counts anew.
    pub(crate) fn own_pause(&self, now: u64) {
        if self.since.load(Relaxed) != 0 {
            self.since.store(now, Relaxed);
            self.until.store(0, Relaxed);
        }
    }
}

/// No trial earlier than this after the first unanswered dispatch. Found by the simulation (`tests/simulation/pauses.rs`): garbage
/// collection and CPU throttling stop a process for 10 to 200 ms; trying again within a pause costs an extra request each time, and
/// leaving an endpoint out a little longer than it was silent costs next to nothing while others answer.
pub(crate) const PAUSE_MIN: u64 = 100_000_000;
/// And none later than this after the one before.
pub(crate) const PAUSE_MAX: u64 = 2_000_000_000;

//! How much may be open towards one upstream, over all workers: connections, requests waiting for one, requests in flight.
//!
//! Each is a gauge; the limit comes in with every question, because a reload may change it. A guard gives back on drop, so an
//! error or a cancellation on any path cannot leak a place.
//!
//! Why a hard limit beside load balancing: when every endpoint is slow, in-flight requests grow without bound in *this* process.
//! Past the limit new requests are refused at once, which costs the caller less than a queue that never empties.
//!
//! Orderings: all relaxed. A gauge guards a number, not other memory. `try_enter` is a read-modify-write, so two workers cannot
//! both take the last place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use evenkeel_config::policy::Share;

use crate::balancer::Attempt;

/// The gauges of one upstream.
#[derive(Debug, Default)]
pub struct Circuit {
    connections: Arc<Gauge>,
    pending: Arc<Gauge>,
    attempts: Arc<Attempts>,
}

impl Circuit {
    /// A place for one more open connection, unless `limit` are open.
    #[must_use]
    pub fn try_connection(&self, limit: u32) -> Option<Guard> {
        Guard::enter(&self.connections, limit)
    }

    /// A place for one more request that waits for a connection, unless `limit` wait.
    #[must_use]
    pub fn try_pending(&self, limit: u32) -> Option<Guard> {
        Guard::enter(&self.pending, limit)
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.0.load(Relaxed)
    }

    /// Requests waiting for a connection now.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.0.load(Relaxed)
    }

    /// Attempts in flight now: from the choice of an endpoint to the end of the body, copies and retries included.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.attempts.all.0.load(Relaxed)
    }

    /// Of these, copies.
    #[must_use]
    pub fn copies(&self) -> u32 {
        self.attempts.copies.0.load(Relaxed)
    }

    pub(crate) fn attempts(&self) -> &Arc<Attempts> {
        &self.attempts
    }
}

/// The attempts in flight. Tickets reach it through their endpoint, so it has no guard of its own: that would be two more
/// contended counts for each request.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    all: Gauge,
    copies: Gauge,
}

impl Attempts {
    /// One more: a first one if fewer than `limit` are in flight, a copy if moreover fewer than `share` of these are copies.
    ///
    /// A budget over ten seconds lets copies come in bursts, and a burst of copies into a busy service is what turns its queues
    /// into an outage. By Little's law a share of the attempts in flight is the same share of the load.
    pub(crate) fn try_enter(&self, attempt: Attempt, limit: u32, share: Share) -> bool {
        match attempt {
            Attempt::First => self.all.try_enter(limit),
            Attempt::Retry => self.all.try_enter(u32::MAX),
            Attempt::Hedge => {
                let in_flight = f64::from(self.all.0.load(Relaxed));
                let at_once = COPIES_MIN.saturating_add((in_flight * share.as_fraction()) as u32);
                let entered = self.copies.try_enter(at_once);
                if entered && !self.all.try_enter(limit) {
                    self.copies.leave();
                    return false;
                }
                entered
            }
        }
    }

    /// One less; `attempt` as when it entered.
    pub(crate) fn leave(&self, attempt: Attempt) {
        if attempt == Attempt::Hedge {
            self.copies.leave();
        }
        self.all.leave();
    }
}

/// A place taken in a gauge; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping the guard gives the place back"]
pub struct Guard(Arc<Gauge>);

impl Guard {
    fn enter(gauge: &Arc<Gauge>, limit: u32) -> Option<Guard> {
        gauge.try_enter(limit).then(|| Guard(Arc::clone(gauge)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// So many copies may be in flight however little else is.
const COPIES_MIN: u32 = 3;

/// A count of what is open.
#[derive(Debug, Default)]
struct Gauge(AtomicU32);

impl Gauge {
    /// One more, unless `limit` are inside.
    fn try_enter(&self, limit: u32) -> bool {
        self.0.try_update(Relaxed, Relaxed, |inside| (inside < limit).then(|| inside + 1)).is_ok()
    }

    fn leave(&self) {
        let before = self.0.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "left a gauge more often than entered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_a_dropped_guard_makes_room() {
        let circuit = Circuit::default();
        let first = circuit.try_connection(2);
        let second = circuit.try_connection(2);
        assert!(first.is_some() && second.is_some());
        assert!(circuit.try_connection(2).is_none());
        assert_eq!(circuit.connections(), 2);
        drop(first);
        assert_eq!(circuit.connections(), 1);
        let third = circuit.try_connection(2);
        assert!(third.is_some());
        assert!(circuit.try_connection(1).is_none(), "a lowered limit counts at once");
        drop((second, third));
        assert_eq!(circuit.connections(), 0);
        assert!(circuit.try_pending(0).is_none(), "a limit of none admits none");
        assert_eq!(circuit.pending(), 0);
    }
}

//! Whether this host is a working member of its mesh, and what it does when nobody answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use evenkeel_discovery::{Found, Readiness};

use super::{Driver, Round, wall_ms};

impl Driver {
    /// Whether this host is a member of the mesh by now; once it is, only that it is not at its address can change that.
    pub(super) fn judge_readiness(&mut self, round: &mut Round) {
        let readiness = self.discovery.readiness();
        let obstacle = match readiness {
            Readiness::NotThere(found) => Some(elsewhere(found)),
            _ if self.joined.load(Ordering::Relaxed) => None,
            _ if !round.looked_up_first.is_empty() => {
                Some("the names of mesh.join are still being looked up".to_owned())
            }
            Readiness::Joining(address) => Some(format!("{address} of mesh.join has not answered yet")),
            Readiness::Alone if round.alone_at.is_some() => {
                Some("no host of mesh.join, and none known from before, has answered yet".to_owned())
            }
            Readiness::Unseen => Some(
                "no other host has sent anything to node.address yet: is it where they reach this host?".to_owned(),
            ),
            Readiness::Ready if self.discovery.snapshot().partial => {
                Some("no other host has told yet which services the mesh has".to_owned())
            }
            Readiness::Alone | Readiness::Ready => {
                self.joined.store(true, Ordering::Relaxed);
                None
            }
        };
        if self.obstacle.load().as_deref() != obstacle.as_ref() {
            self.obstacle.store(obstacle.map(Arc::new));
        }
    }

    /// Nobody has told for long what the mesh has: from now on this host goes by what it knows.
    pub(super) fn stop_waiting(&mut self, now: Instant) {
        let was_partial = self.discovery.snapshot().partial;
        self.discovery.all_told(now, wall_ms());
        if self.discovery.readiness() == Readiness::Alone {
            self.events.warn(
                "alone",
                self.join.join(", "),
                format!("no host of mesh.join, and none known from before, has answered for {ALONE_AFTER:?}: serving alone and trying on"),
            );
        } else if was_partial {
            self.events.warn(
                "not_told",
                "this host",
                format!("others are up, and none has told for {ALONE_AFTER:?} which services the mesh has: serving by what is known. Is mesh.gossip reachable there over TCP?"),
            );
        }
    }
}

/// What was found at this host's address, for an operator.
pub(super) fn elsewhere(found: Found) -> String {
    match found {
        Found::Host(other) => {
            format!("another host ({other:016x}) answers at this host's node.address")
        }
        Found::Nobody => "nobody answers at this host's node.address".to_owned(),
    }
}

/// A host that can reach no other counts as joined after this long: the first host of a mesh must become ready too.
pub(super) const ALONE_AFTER: Duration = Duration::from_secs(10);

//! The cheaper of two: what an endpoint would cost the next request, compared in pairs.
//!
//! Cost = max(latency estimate, stall age) × (in flight + 1) × failure bias. Two endpoints are drawn at random and the cheaper gets the request:
//! nearly as good as the cheapest of all, in constant time, and many clients with the same view do not all rush to the
//! same one. (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; Finagle's peak EWMA.)
//!
//! - An endpoint under suspicion (`stall`) loses against one that is not, whatever they cost: its estimate is from before it fell silent.
//!   Against another suspect it is compared as usual, so a pause of *all* endpoints changes nothing.
//! - An endpoint that is due for a trial competes as if it were well, for first attempts only: a copy or a retry must not land on a guess.
//! - For a copy the time since the endpoint's last head counts as its stall age, whether or not anything was asked since: a copy goes where
//!   life was seen last. (Not for first attempts, which would all rush there.)
//! - An endpoint without samples is taken to be as fast as the one it is compared with, so load alone decides: it is neither
//!   flooded (as an estimate of 0 would have it) nor shunned (as a pessimistic constant would).

use std::sync::atomic::Ordering::Relaxed;

use crate::balancer::Attempt;
use crate::endpoint::State;
use crate::stall::Silence;
use crate::zone::MUCH;

/// What one endpoint would cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) suspect: bool,
    estimate: Option<f32>,
    age_ns: f32,
    factor: f32,
}

impl Load {
    /// By latency, silence and requests in flight.
    pub(crate) fn by_latency(state: &State, now: u64, attempt: Attempt) -> Load {
        let silence = state.stall.silence(now);
        let suspect = is_suspect(silence, attempt);
        let age_ns = match silence {
            _ if attempt == Attempt::Hedge => state.stall.unheard_ns(now),
            Silence::Waiting { age_ns } | Silence::Suspect { age_ns } => age_ns,
            Silence::Trial { age_ns } if suspect => age_ns,
            Silence::Trial { .. } | Silence::None => 0,
        };
        let estimate = state.estimate.read(now);
        Load { suspect, estimate, age_ns: age_ns as f32, factor: in_flight(state, now) }
    }

    /// By requests in flight alone.
    pub(crate) fn by_requests(state: &State, now: u64, attempt: Attempt) -> Load {
        let suspect = is_suspect(state.stall.silence(now), attempt);
        Load { suspect, estimate: None, age_ns: 0.0, factor: in_flight(state, now) }
    }

    /// Whether this one is to be preferred; with equal costs it is not.
    pub(crate) fn is_better_than(&self, other: &Load) -> bool {
        if self.suspect != other.suspect {
            return other.suspect;
        }
        self.cost(other) < other.cost(self)
    }

    /// Whether this one is not only better but not to be compared: the other one's zone does not make up for it.
    pub(crate) fn is_much_better_than(&self, other: &Load) -> bool {
        !self.suspect && self.cost(other) * MUCH < other.cost(self)
    }

    /// The cost in ns by itself, for people; `None` where only the other one's estimate would give one.
    pub(crate) fn cost_alone(&self) -> Option<f32> {
        let known = self.estimate.is_some() || self.age_ns > 0.0;
        known.then(|| self.estimate.unwrap_or_default().max(self.age_ns) * self.factor)
    }

    fn cost(&self, other: &Load) -> f32 {
        self.estimate.or(other.estimate).unwrap_or(1.0).max(self.age_ns) * self.factor
    }
}

/// Whether an endpoint so silent is a bad place for this attempt.
pub(crate) fn is_suspect(silence: Silence, attempt: Attempt) -> bool {
    match silence {
        Silence::None | Silence::Waiting { .. } => false,
        Silence::Suspect { .. } => true,
        Silence::Trial { .. } => attempt != Attempt::First,
    }
}

fn in_flight(state: &State, now: u64) -> f32 {
    (state.in_flight.load(Relaxed).saturating_add(1)) as f32 * state.bias.factor(now)
}

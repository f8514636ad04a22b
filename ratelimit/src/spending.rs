//! What a request may draw on while the root answers, and while it does not.
//!
//! A resource that is cut off from its root is not lost: the host has its right, which nobody else uses. Whether a caller may use that, more, or
//! nothing is the operator's choice for each rule ([`Fail`]), and for the resource ([`Safe`]). Only `open` and a `safe` amount above the right
//! can make hosts together pass the capacity; that is what they are for.

pub use evenkeel_config::ratelimit::Fail;

use crate::quantity::Micros;
use crate::template::Safe;

/// What a host itself may spend of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spending {
    /// Its right and what it borrowed, less what it lent and what its clients hold.
    pub amount: Micros,
    /// Whether the root answers, or has not yet had time to.
    pub in_touch: bool,
}

impl Spending {
    /// What goes: so much, or `None` for no limit.
    #[must_use]
    pub fn allows(self, fail: Fail, safe: Safe) -> Option<Micros> {
        match (self.in_touch, fail, safe) {
            (true, ..) | (false, Fail::Safe, Safe::Share) => Some(self.amount),
            (false, Fail::Open, _) | (false, Fail::Safe, Safe::Unlimited) => None,
            (false, Fail::Closed, _) | (false, Fail::Safe, Safe::Stop) => Some(Micros::ZERO),
            (false, Fail::Safe, Safe::Each(amount)) => Some(amount),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_choice_counts_only_while_the_root_does_not_answer() {
        let (right, each) = (Micros::units(25), Micros::units(10));
        for (fail, safe, alone) in [
            (Fail::Open, Safe::Share, None),
            (Fail::Open, Safe::Stop, None),
            (Fail::Safe, Safe::Share, Some(right)),
            (Fail::Safe, Safe::Each(each), Some(each)),
            (Fail::Safe, Safe::Stop, Some(Micros::ZERO)),
            (Fail::Safe, Safe::Unlimited, None),
            (Fail::Closed, Safe::Share, Some(Micros::ZERO)),
            (Fail::Closed, Safe::Unlimited, Some(Micros::ZERO)),
        ] {
            let spending = |in_touch| Spending { amount: right, in_touch };
            assert_eq!(spending(false).allows(fail, safe), alone, "{fail:?} {safe:?}");
            assert_eq!(spending(true).allows(fail, safe), Some(right), "{fail:?} {safe:?}");
        }
    }
}

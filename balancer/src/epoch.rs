//! Moments as integers: nanoseconds since the balancer began, so that a moment fits in an atomic.
//!
//! Invariant: a moment is never 0, so 0 can mean "none" in every atomic of this crate. Workers read their clocks apart from
//! one another, so `now` may step back a little from one call to the next: all differences saturate at nothing.

use std::time::{Duration, Instant};

/// Where counting starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(Instant);

impl Epoch {
    pub(crate) fn new(start: Instant) -> Epoch {
        Epoch(start)
    }

    /// The moment `now`, at least 1. Good for 584 years.
    pub(crate) fn moment(self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.0)).saturating_add(1)
    }
}

/// A duration in nanoseconds, as large as fits.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_moment_is_never_zero_and_earlier_than_the_epoch_is_the_epoch() {
        let start = Instant::now() + Duration::from_secs(60);
        let epoch = Epoch::new(start);
        assert_eq!(epoch.moment(start), 1);
        assert_eq!(epoch.moment(start - Duration::from_secs(1)), 1);
        assert_eq!(epoch.moment(start + Duration::from_nanos(5)), 6);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}

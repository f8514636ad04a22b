//! Waiting for a condition, never for time.

use std::time::{Duration, Instant};

/// Asks `condition` until it yields something, and says what was awaited if it never does.
///
/// # Panics
/// When nothing came within `limit`.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(STEP);
    }
}

/// [`until`] for a condition that is true or not.
pub fn for_true(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    until(what, limit, || condition().then_some(()));
}

/// Between two questions: short beside anything awaited here, long beside the cost of asking.
const STEP: Duration = Duration::from_millis(20);

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

/// The limit for what must come, on a machine that is slow or does much else. Where it comes nobody waits for so
/// long: a limit only ends a test that has failed.
pub const SOON: Duration = Duration::from_secs(60);

/// Between two questions: short beside anything awaited here, long beside the cost of asking.
const STEP: Duration = Duration::from_millis(20);

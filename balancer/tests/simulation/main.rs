//! The balancer in simulated time: what the tail becomes under pauses, slowness and death, and that faults end.
//!
//! Every run comes from a seed, which a failing assertion names. `EVENKEEL_SEEDS=N` runs N seeds instead of the fixed few.

mod backend;
mod faults;
mod load;
mod measured;
mod pauses;
mod scouts;
mod slow;
mod world;
mod zones;

/// The seeds to run: 1 to `count`, or to `EVENKEEL_SEEDS`.
pub fn seeds(count: u64) -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("EVENKEEL_SEEDS")
        .ok()
        .map(|text| text.parse().expect("EVENKEEL_SEEDS is a number"));
    1..=asked.unwrap_or(count)
}

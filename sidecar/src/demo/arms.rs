//! The four ways a request is carried, side by side: what they are called and what policy each one has.
//!
//! Every way is a whole `evenkeel` process of its own, so that its CPU can be measured and nothing that one
//! learns helps another. The first three switch off what they are the comparison without; the last one
//! changes a single default, `hedge.mode`, which is `observe` until an operator asks for more.

/// One way of carrying requests to the same six applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arm {
    /// One endpoint after the other; a failure is the caller's.
    RoundRobin,
    /// The same with the default retries.
    RoundRobinRetry,
    /// The cheaper of two random endpoints, with the default retries and ejection.
    P2c,
    /// The defaults, with hedging enforced.
    Evenkeel,
}

impl Arm {
    /// All four, in the order of the table.
    pub const ALL: [Arm; 4] = [Arm::RoundRobin, Arm::RoundRobinRetry, Arm::P2c, Arm::Evenkeel];

    /// The name in paths, ledgers, file names and `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Arm::RoundRobin => "round_robin",
            Arm::RoundRobinRetry => "round_robin_retry",
            Arm::P2c => "p2c",
            Arm::Evenkeel => "evenkeel",
        }
    }

    /// The name in the table, at most 22 columns.
    pub fn title(self) -> &'static str {
        match self {
            Arm::RoundRobin => "round robin",
            Arm::RoundRobinRetry => "round robin, retries",
            Arm::P2c => "two choices, retries",
            Arm::Evenkeel => "Evenkeel, hedging",
        }
    }

    /// The arm with this name.
    pub fn from_name(name: &str) -> Option<Arm> {
        Arm::ALL.into_iter().find(|arm| arm.name() == name)
    }

    /// The position in [`Arm::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The host's `policy:` as YAML.
    pub fn policy(self) -> &'static str {
        match self {
            Arm::RoundRobin => {
                "{balance: round_robin, retry: {max: 0}, hedge: {mode: \"off\"}, eject: {consecutive: 0}}"
            }
            Arm::RoundRobinRetry => {
                "{balance: round_robin, hedge: {mode: \"off\"}, eject: {consecutive: 0}}"
            }
            Arm::P2c => "{balance: p2c, hedge: {mode: \"off\"}}",
            Arm::Evenkeel => "{hedge: {mode: enforce}}",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_indices_match_the_table() {
        for (index, arm) in Arm::ALL.into_iter().enumerate() {
            assert_eq!(Arm::from_name(arm.name()), Some(arm));
            assert_eq!(arm.index(), index);
            assert!(arm.title().len() <= 22, "{} does not fit the table's column", arm.title());
        }
        assert_eq!(Arm::from_name("warm-up"), None);
    }
}

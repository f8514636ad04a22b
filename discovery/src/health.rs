//! When a check's results change the health that is published: so many successes in a row make an instance
//! passing, so many failures in a row make it critical.
//!
//! A single lost probe must not take an instance out of every look-up, and a single lucky one must not bring it
//! back: hence `rise` and `fall`, as in HAProxy. The machine is pure; running the check (HTTP, TCP) and keeping
//! its interval is the shell's work. Warnings (HTTP 429, as Consul has it) count as successes that publish
//! `warning`: the instance still takes requests.

use serde::{Deserialize, Serialize};

/// What is published about a check or an instance, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Takes requests.
    Passing,
    /// Takes requests, but its owner wants to be told.
    Warning,
    /// Takes none.
    Critical,
}

impl Status {
    /// Consul's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Passing => "passing",
            Status::Warning => "warning",
            Status::Critical => "critical",
        }
    }
}

/// The health of one check, with what the last run said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is published.
    pub status: Status,
    /// For a human: `HTTP GET …: 503`. Cut to [`OUTPUT_MAX`] bytes when published.
    pub output: String,
}

/// Longest output of a check that is published, in bytes.
pub const OUTPUT_MAX: usize = 256;

/// Turns the results of one check into its published status.
#[derive(Debug, Clone)]
pub struct RiseFall {
    status: Status,
    rise: u32,
    fall: u32,
    /// Results in a row that disagree with `status`.
    streak: u32,
}

impl RiseFall {
    /// A check that starts out as `initial`; `rise` and `fall` of 0 mean 1.
    #[must_use]
    pub fn new(initial: Status, rise: u32, fall: u32) -> Self {
        RiseFall { status: initial, rise: rise.max(1), fall: fall.max(1), streak: 0 }
    }

    /// What is published now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Takes the result of one run; returns the new status if it changed.
    pub fn report(&mut self, result: Status) -> Option<Status> {
        if result == self.status {
            self.streak = 0;
            return None;
        }
        let up = result != Status::Critical;
        let was_up = self.status != Status::Critical;
        // Between passing and warning nothing is at stake for requests: publish at once.
        if !(up && was_up) {
            self.streak += 1;
            let needed = if up { self.rise } else { self.fall };
            if self.streak < needed {
                return None;
            }
        }
        self.streak = 0;
        self.status = result;
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::{Critical, Passing, Warning};

    #[test]
    fn table_of_results_and_what_is_published() {
        for (name, initial, rise, fall, results, published) in [
            ("rises after two", Critical, 2, 2, vec![Passing, Passing], vec![None, Some(Passing)]),
            (
                "a failure between starts over",
                Critical,
                2,
                2,
                vec![Passing, Critical, Passing, Passing],
                vec![None, None, None, Some(Passing)],
            ),
            (
                "falls after three",
                Passing,
                1,
                3,
                vec![Critical, Critical, Critical],
                vec![None, None, Some(Critical)],
            ),
            (
                "one lost probe is nothing",
                Passing,
                2,
                2,
                vec![Critical, Passing, Critical, Passing],
                vec![None, None, None, None],
            ),
            (
                "warning is published at once",
                Passing,
                2,
                2,
                vec![Warning, Passing],
                vec![Some(Warning), Some(Passing)],
            ),
            (
                "warning counts as up",
                Critical,
                2,
                2,
                vec![Warning, Passing],
                vec![None, Some(Passing)],
            ),
            (
                "zero means one",
                Critical,
                0,
                0,
                vec![Passing, Critical],
                vec![Some(Passing), Some(Critical)],
            ),
        ] {
            let mut check = RiseFall::new(initial, rise, fall);
            let got: Vec<_> = results.into_iter().map(|r| check.report(r)).collect();
            assert_eq!(got, published, "{name}");
        }
    }
}

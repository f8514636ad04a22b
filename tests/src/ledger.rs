//! What clients were told against what applications did.
//!
//! The promise under test: a POST is executed at most once over all applications, whatever is killed, and one
//! that was answered with a 2xx exactly once. The applications' files are the truth: they outlive `kill -9`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::load::Report;

/// How often each id was executed, over all applications.
#[derive(Debug, Default, Clone)]
pub struct Ledger(BTreeMap<String, u64>);

/// How a load's POSTs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// POSTs sent.
    pub sent: usize,
    /// Answered with a 2xx (and executed once, or [`Ledger::check`] would not have returned).
    pub succeeded: usize,
    /// Without a 2xx, but executed: the caller was not told, and nothing was repeated.
    pub executed_untold: usize,
}

impl Ledger {
    /// Reads the applications' files; one that was never written counts as empty.
    #[must_use]
    pub fn read<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Ledger {
        let mut ledger = Ledger::default();
        for file in files {
            ledger.add(&std::fs::read_to_string(file).unwrap_or_default());
        }
        ledger
    }

    fn add(&mut self, text: &str) {
        for id in text.lines() {
            *self.0.entry(id.to_owned()).or_default() += 1;
        }
    }

    /// Compares with what the load's client saw.
    ///
    /// # Errors
    /// Every POST executed twice, every 2xx that was not executed, every id that nobody sent.
    pub fn compare(&self, report: &Report) -> Result<Tally, Vec<String>> {
        let mut offenders = Vec::new();
        let mut tally = Tally { sent: 0, succeeded: 0, executed_untold: 0 };
        let mut unknown = self.0.clone();
        for sample in report.posts() {
            let id = sample.id.as_deref().unwrap_or_default();
            let times = unknown.remove(id).unwrap_or(0);
            tally.sent += 1;
            tally.succeeded += usize::from(sample.succeeded());
            tally.executed_untold += usize::from(!sample.succeeded() && times == 1);
            if times > 1 || (sample.succeeded() && times == 0) {
                offenders.push(format!(
                    "{id}: executed {times} times, the caller saw {:?}",
                    sample.outcome
                ));
            }
        }
        offenders.extend(unknown.keys().map(|id| format!("{id}: executed, but never sent")));
        if offenders.is_empty() { Ok(tally) } else { Err(offenders) }
    }

    /// [`Ledger::compare`] as an assertion.
    ///
    /// # Panics
    /// When there are offenders, or the load sent no POST at all.
    #[must_use]
    pub fn check(&self, report: &Report) -> Tally {
        match self.compare(report) {
            Ok(tally) => {
                assert!(tally.sent > 0, "the load sent no POST");
                tally
            }
            Err(offenders) => panic!("POSTs: {} offenders: {offenders:#?}", offenders.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Sample, Seen};
    use std::time::Duration;

    fn post(id: &str, status: u16) -> Sample {
        let outcome = Ok(Seen { status, app: String::new(), proxy_status: String::new() });
        Sample { id: Some(id.into()), due: Duration::ZERO, latency: Duration::ZERO, outcome }
    }

    fn compare(executed: &str, samples: Vec<Sample>) -> Result<Tally, Vec<String>> {
        let mut ledger = Ledger::default();
        ledger.add(executed);
        ledger.compare(&Report { samples })
    }

    #[test]
    fn at_most_once_and_a_success_exactly_once() {
        let told = compare("a\nb\n", vec![post("a", 200), post("b", 502), post("c", 503)]);
        assert_eq!(told, Ok(Tally { sent: 3, succeeded: 1, executed_untold: 1 }));
        assert!(compare("a\na\n", vec![post("a", 200)]).is_err(), "executed twice");
        assert!(compare("", vec![post("a", 200)]).is_err(), "a 2xx never executed");
        assert!(compare("a\n", vec![]).is_err(), "never sent");
    }
}

//! What happened lately, for `evenkeel events`: the last [`EVENTS_MAX`] happenings, and each in the log.
//!
//! The log may be elsewhere or rotated away at 3 am; this is asked from the host itself. A ring, not a queue:
//! a flapping mesh costs the oldest entries, never memory.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

/// The ring. Shared by the threads that write to it; held only to push and to copy.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    events: VecDeque<Event>,
    /// Why the last reload was refused.
    refused: Option<String>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up from 1 for each process; a gap means that the ring has lost some.
    pub number: u64,
    /// UTC, RFC 3339 with milliseconds.
    pub at: String,
    /// Whether someone should look.
    pub severity: Severity,
    /// What kind of thing, as a word to filter by: `member_down`, `health_changed`, …
    pub kind: String,
    /// The host, service or address it is about.
    pub subject: String,
    /// What happened, in a sentence.
    pub detail: String,
}

/// Whether someone should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Worth a look.
    Warning,
}

impl Events {
    /// Notes something that is as it should be.
    pub fn info(&self, kind: &'static str, subject: impl Into<String>, detail: impl Into<String>) {
        let (subject, detail) = (subject.into(), detail.into());
        info!(kind, "{subject}: {detail}");
        self.push(Severity::Info, kind, subject, detail);
    }

    /// Notes something worth a look.
    pub fn warn(&self, kind: &'static str, subject: impl Into<String>, detail: impl Into<String>) {
        let (subject, detail) = (subject.into(), detail.into());
        warn!(kind, "{subject}: {detail}");
        self.push(Severity::Warning, kind, subject, detail);
    }

    /// A reload was refused, for these reasons: a line of the log for each of them, and one event.
    pub fn reload_refused(&self, file: &Path, problems: &[String]) {
        for problem in problems {
            error!(kind = RELOAD_REFUSED, "{problem}");
        }
        let (subject, all) = (file.display().to_string(), problems.join("; "));
        warn!(
            kind = RELOAD_REFUSED,
            "{subject}: the old configuration stays; problems: {}",
            problems.len()
        );
        self.ring().refused = Some(all.clone());
        self.push(Severity::Warning, RELOAD_REFUSED, subject, all);
    }

    /// A reload was taken, with these changes.
    pub fn reloaded(&self, file: &Path, changes: &str) {
        self.ring().refused = None;
        self.info("reloaded", file.display().to_string(), changes);
    }

    /// Why the last reload was refused; `None`: it was not.
    #[must_use]
    pub fn last_refusal(&self) -> Option<String> {
        self.ring().refused.clone()
    }

    /// A copy of what came after the event of this number (0: of all), oldest first.
    #[must_use]
    pub fn after(&self, number: u64) -> Vec<Event> {
        self.ring().events.iter().filter(|event| event.number > number).cloned().collect()
    }

    fn push(&self, severity: Severity, kind: &'static str, subject: String, detail: String) {
        let at = rfc3339(SystemTime::now());
        let mut ring = self.ring();
        ring.next += 1;
        let number = ring.next;
        if ring.events.len() == EVENTS_MAX {
            ring.events.pop_front();
        }
        ring.events.push_back(Event {
            number,
            at,
            severity,
            kind: kind.to_owned(),
            subject,
            detail,
        });
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// UTC with milliseconds: `2026-03-01T12:00:00.250Z`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a civil date (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms"): years begin in March.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

const RELOAD_REFUSED: &str = "reload_refused";

/// Events kept.
pub const EVENTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_go_first() {
        let events = Events::default();
        for n in 0..EVENTS_MAX + 3 {
            events.info("tested", n.to_string(), "x");
        }
        let all = events.after(0);
        assert_eq!(all.len(), EVENTS_MAX);
        assert_eq!(all.first().map(|event| (event.number, event.subject.as_str())), Some((4, "3")));
        assert_eq!(all.last().map(|event| event.number), Some(EVENTS_MAX as u64 + 3));
    }

    #[test]
    fn the_last_reload_counts() {
        let events = Events::default();
        let problems = ["a.yaml:1:1: x".to_owned(), "a.yaml:2:1: y".to_owned()];
        assert_eq!(events.last_refusal(), None);
        events.reload_refused(Path::new("a.yaml"), &problems);
        assert_eq!(events.last_refusal().as_deref(), Some("a.yaml:1:1: x; a.yaml:2:1: y"));
        events.info("member_up", "host-b", "x");
        assert!(events.last_refusal().is_some());
        events.reloaded(Path::new("a.yaml"), "nothing changed");
        assert_eq!(events.last_refusal(), None);
        assert_eq!(events.after(2).iter().map(|event| event.number).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_772_366_400_250, "2026-03-01T12:00:00.250Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(ms)), text);
        }
    }
}

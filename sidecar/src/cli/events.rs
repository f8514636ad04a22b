//! `evenkeel events`: what happened on the running host, one event a line, and with `--follow` what happens next.
//!
//! Lines and not a table: they come one by one, and what an event says has any length. Following asks again every
//! [`FOLLOW_EVERY`] for what came after the last event seen; a host that does not answer is asked on, because a
//! restart is what one may be watching. Whether it is still the same life of the process tells its start.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;

use super::args::{EventsArgs, Output};
use super::table::{Tone, printable};
use super::{client, print};
use crate::admin::report::EventList;
use crate::events::{Event, Severity};

/// Prints what happened, and goes on if that is asked for.
///
/// # Errors
/// The host does not answer the first time, or nobody reads any more.
pub fn events(args: &EventsArgs, colour: bool) -> anyhow::Result<()> {
    let admin = args.ask.admin();
    if !args.follow {
        return print(&super::show::asked(&args.ask, "/v1/events", |list: &EventList| {
            if list.events.is_empty() {
                "Nothing has happened since the host started.\n".to_owned()
            } else {
                list.events.iter().map(|event| line(event, colour)).collect()
            }
        })?);
    }
    let mut seen = Seen::default();
    let mut silent = false;
    loop {
        match client::get(&admin, &seen.path()) {
            Ok(body) => {
                let list: EventList = serde_json::from_slice(&body).with_context(|| {
                    format!("{admin} answered something else than an evenkeel: is --admin right?")
                })?;
                silent = false;
                if let Some(news) = seen.news(list) {
                    let mut text = String::new();
                    for event in &news {
                        match args.ask.output {
                            Output::Table => text.push_str(&line(event, colour)),
                            Output::Json => text = text + &serde_json::to_string(event)? + "\n",
                        }
                    }
                    if !text.is_empty() {
                        print(&text)?;
                    }
                } else {
                    // Another life of the process: from its first event on.
                    continue;
                }
            }
            Err(cause) if seen.life.is_none() => return Err(cause),
            Err(cause) if !silent => {
                silent = true;
                writeln!(std::io::stderr(), "evenkeel: {cause:#}. Asking on")?;
            }
            Err(_) => {}
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}

/// How far one has read.
#[derive(Debug, Default)]
struct Seen {
    /// When the process started, as it says; `None`: nothing was read yet.
    life: Option<String>,
    /// The number of the last event.
    last: u64,
}

impl Seen {
    fn path(&self) -> String {
        format!("/v1/events?after={}", self.last)
    }

    /// What is new; `None`: another process answered, ask again from the beginning.
    fn news(&mut self, list: EventList) -> Option<Vec<Event>> {
        let EventList { started, mut events } = list;
        let before = self.life.replace(started.clone());
        if before.is_some_and(|before| before != started) {
            self.last = 0;
            return None;
        }
        // A host of the first builds says all each time.
        events.retain(|event| event.number > self.last);
        self.last = events.last().map_or(self.last, |event| event.number);
        Some(events)
    }
}

fn line(event: &Event, colour: bool) -> String {
    let tone = if event.severity == Severity::Warning { Tone::Warn } else { Tone::Plain };
    let kind = format!("{:<KIND_WIDTH$}", printable(&event.kind));
    format!(
        "{}  {}  {}: {}\n",
        Tone::Dim.paint(&printable(&event.at), colour),
        tone.paint(&kind, colour),
        printable(&event.subject),
        printable(&event.detail.replace('\n', "; "))
    )
}

/// How often the host is asked for what is new.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// The longest kinds that come often.
const KIND_WIDTH: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    fn list(started: &str, numbers: &[u64]) -> EventList {
        let event = |number: &u64| Event {
            number: *number,
            at: "2026-03-01T12:00:00.250Z".into(),
            severity: Severity::Info,
            kind: "member_up".into(),
            subject: "host-b".into(),
            detail: "id\n00ff".into(),
        };
        EventList { started: started.into(), events: numbers.iter().map(event).collect() }
    }

    #[test]
    fn each_event_is_read_once_and_those_of_another_life_from_the_first() {
        let mut seen = Seen::default();
        assert_eq!(seen.path(), "/v1/events?after=0");
        assert_eq!(seen.news(list("monday", &[1, 2])).map(|news| news.len()), Some(2));
        assert_eq!(seen.path(), "/v1/events?after=2");
        assert_eq!(seen.news(list("monday", &[])).map(|news| news.len()), Some(0));
        assert_eq!(seen.path(), "/v1/events?after=2");
        // It has started again and had more events than were read of its former life.
        assert!(seen.news(list("tuesday", &[3])).is_none());
        assert_eq!(seen.path(), "/v1/events?after=0");
        assert_eq!(seen.news(list("tuesday", &[1, 2, 3])).map(|news| news.len()), Some(3));
    }

    #[test]
    fn an_event_is_one_line() {
        let event = &list("monday", &[1]).events[0];
        assert_eq!(
            line(event, false),
            "2026-03-01T12:00:00.250Z  member_up            host-b: id; 00ff\n"
        );
    }
}

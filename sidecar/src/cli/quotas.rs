//! `evenkeel quotas`: who wants how much of what, who has it, who is its root and since when.

use super::args::AskArgs;
use super::show::asked;
use super::table::{Cell, Table, Tone, age, paragraph, printable};
use crate::quotas::report::View;

/// What to print.
pub fn quotas(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/quotas", |view| shown(view, colour))
}

fn shown(view: &View, colour: bool) -> String {
    let say = |text: &str| paragraph("", text, Tone::Plain, colour);
    if view.configured == Some(0) && view.resources.is_empty() {
        return say(NO_LIMITS);
    }
    let mut out = match &view.roster {
        None => say(NO_ROSTER),
        Some(roster) => {
            let state = if roster.settled { "settled" } else { "being settled" };
            say(&format!(
                "Shared by {} (roster {}, {state})",
                roster.members.join(", "),
                roster.epoch
            ))
        }
    };
    if view.resources.is_empty() {
        out.push_str(&say(NOTHING_LEASED));
        out.push('\n');
        out.push_str(&paragraph("", WORDS, Tone::Dim, colour));
        return out;
    }
    out.push('\n');
    let columns = ["RESOURCE", "KEY", "CAPACITY", "ROOT", "WANTS", "HAS", "OWNS", "CLIENTS"];
    let mut table = Table::new(&columns);
    for resource in &view.resources {
        let (root, tone) = match (&resource.root, resource.in_touch) {
            (None, _) => ("none: not shared".to_owned(), Tone::Dim),
            (Some(root), true) => (root.clone(), Tone::Plain),
            (Some(root), false) => (format!("{root} (does not answer)"), Tone::Bad),
        };
        let short = resource.has < resource.wants;
        table.row(vec![
            Cell::text(&resource.resource),
            Cell::text(resource.key.as_deref().unwrap_or_default()),
            Cell::number(capacity(resource.capacity, resource.per_s)),
            Cell::text(root).tone(tone),
            Cell::number(amount(resource.wants)),
            Cell::number(amount(resource.has)).tone(if short { Tone::Warn } else { Tone::Plain }),
            Cell::number(amount(resource.owns)),
            Cell::number(resource.clients),
        ]);
    }
    out.push_str(&table.render(colour));
    for resource in &view.resources {
        let Some(since) = resource.root_for_s else { continue };
        let key = resource.key.as_ref().map_or_else(String::new, |key| format!(" [{key}]"));
        let since = age((since * 1000.0) as u64);
        let title = format!("{}{key}: this host has been root for {since}", resource.resource);
        out.push_str(&format!("\n{}\n", printable(&title)));
        let mut table = Table::new(&["HOST", "WANTS", "HAS"]);
        for host in &resource.hosts {
            table.row(vec![
                Cell::text(&host.host),
                Cell::number(amount(host.wants)),
                Cell::number(amount(host.has)),
            ]);
        }
        out.push_str(&table.render(colour));
    }
    out.push('\n');
    out.push_str(&paragraph("", WORDS, Tone::Dim, colour));
    out
}

/// How much there is of a resource: in which time, or at once.
pub fn capacity(units: f64, per_s: Option<f64>) -> String {
    match per_s {
        None => format!("{} at once", amount(units)),
        Some(1.0) => format!("{}/s", amount(units)),
        Some(seconds) => format!("{} per {seconds}s", amount(units)),
    }
}

const NO_LIMITS: &str = "No limits: this host's file has no ratelimit.resources, so no request is limited here. docs/ratelimit.md has an example.";
const NO_ROSTER: &str = "No roster yet: the hosts that share the limits are still agreeing on who they are, which takes some seconds after a start. Until then this host owns nothing, and limited requests are refused unless their rule says `fail: open`.";
const NOTHING_LEASED: &str = "No resource is leased at this host: what it is asked for is within what it owns, or nobody asks.";
const WORDS: &str = "The roster is the numbered list of hosts that share the limits; each owns an equal part of every resource. The root of a resource is the host of the roster that lends what others do not need of it.";

/// At most two decimal places, and none that say nothing.
fn amount(units: f64) -> String {
    let text = format!("{units:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quotas::report::{Host, Resource, Roster};

    #[test]
    fn the_root_of_a_resource_shows_who_has_how_much() {
        let resource = Resource {
            resource: "db.payments".into(),
            key: Some("acme".into()),
            capacity: 500.0,
            per_s: Some(1.0),
            root: Some("host-a".into()),
            in_touch: true,
            wants: 400.0,
            has: 250.004,
            owns: 166.666_666,
            root_for_s: Some(61.0),
            hosts: vec![Host { host: "host-b".into(), wants: 400.0, has: 249.99 }],
            ..Resource::default()
        };
        let roster =
            Roster { epoch: 7, settled: true, members: vec!["host-a".into(), "host-b".into()] };
        let view = View { roster: Some(roster), resources: vec![resource], ..View::default() };
        let text = shown(&view, false);
        let (text, words) = text.rsplit_once("\n\n").unwrap();
        assert!(words.starts_with("The roster is") && words.contains("The root"), "{words}");
        assert_eq!(
            text,
            "Shared by host-a, host-b (roster 7, settled)\n\
             \n\
             RESOURCE     KEY   CAPACITY  ROOT    WANTS  HAS    OWNS  CLIENTS\n\
             db.payments  acme     500/s  host-a    400  250  166.67        0\n\
             \n\
             db.payments [acme]: this host has been root for 1m1s\n\
             HOST    WANTS     HAS\n\
             host-b    400  249.99"
        );
    }

    #[test]
    fn a_host_without_limits_does_not_say_that_it_refuses() {
        let none = View { configured: Some(0), ..View::default() };
        let text = shown(&none, false);
        assert!(text.starts_with("No limits") && !text.contains("refused"), "{text}");
        // One of an older version does not say how many it has.
        let agreeing = shown(&View::default(), false);
        assert!(agreeing.starts_with("No roster yet"), "{agreeing}");
        let idle = Roster { epoch: 7, settled: true, members: vec!["host-a".into()] };
        let idle =
            shown(&View { configured: Some(1), roster: Some(idle), ..View::default() }, false);
        assert!(idle.contains("No resource is leased") && idle.contains("The root"), "{idle}");
    }
}

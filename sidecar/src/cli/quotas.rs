//! `evenkeel quotas`: who wants how much of what, who has it, who is its root and since when.

use super::args::AskArgs;
use super::show::asked;
use super::table::{Cell, Table, Tone, age, printable};
use crate::quotas::report::{Resource, View};

/// What to print.
pub fn quotas(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/quotas", |view| shown(view, colour))
}

fn shown(view: &View, colour: bool) -> String {
    let mut out = match &view.roster {
        None => "No roster yet: this host owns nothing, so that limited requests are refused (or go, by `fail: open`). It takes part when ratelimit.resources has something, and waits until it has met the others: some seconds after a start.\n".to_owned(),
        Some(roster) => {
            let state = if roster.settled { "settled" } else { "being settled" };
            let members = printable(&roster.members.join(", "));
            format!("Shared by {members} (roster {}, {state})\n", roster.epoch)
        }
    };
    if view.resources.is_empty() {
        out.push_str("No resource is leased at this host: what it is asked for is within what it owns, or nobody asks.\n");
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
            Cell::number(capacity(resource)),
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
    out
}

fn capacity(resource: &Resource) -> String {
    match resource.per_s {
        None => format!("{} at once", amount(resource.capacity)),
        Some(1.0) => format!("{}/s", amount(resource.capacity)),
        Some(seconds) => format!("{} per {seconds}s", amount(resource.capacity)),
    }
}

/// At most two decimal places, and none that say nothing.
fn amount(units: f64) -> String {
    let text = format!("{units:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quotas::report::{Host, Roster};

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
        assert_eq!(
            shown(&view, false),
            "Shared by host-a, host-b (roster 7, settled)\n\
             \n\
             RESOURCE     KEY   CAPACITY  ROOT    WANTS  HAS    OWNS  CLIENTS\n\
             db.payments  acme     500/s  host-a    400  250  166.67        0\n\
             \n\
             db.payments [acme]: this host has been root for 1m1s\n\
             HOST    WANTS     HAS\n\
             host-b    400  249.99\n"
        );
    }
}

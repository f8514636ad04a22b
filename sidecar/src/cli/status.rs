//! `evenkeel status`: who this host is, whether it is ready or why not, where it listens, whom it sees.

use super::args::AskArgs;
use super::show::asked;
use super::table::{Cell, Table, Tone, age, paragraph, printable};
use crate::admin::report::StatusReport;

/// What to print.
///
/// # Errors
/// The host does not answer.
pub fn status(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/status", |report| shown(report, colour))
}

fn shown(report: &StatusReport, colour: bool) -> String {
    let StatusReport { name, address, mesh, version, .. } = report;
    let title = format!("{name} at {address}, of the mesh {mesh}, evenkeel {version}");
    let mut out = paragraph("", &title, Tone::Plain, colour);
    let (ready, tone) = match &report.not_ready {
        None => ("yes".to_owned(), Tone::Good),
        Some(why) => (format!("no, {why}"), Tone::Bad),
    };
    let members = report.members.iter().map(|(state, count)| format!("{count} {state}"));
    let members: Vec<String> = members.collect();
    let file = report.configuration.as_deref().unwrap_or("none: every default");
    let data = report.data_dir.as_deref().unwrap_or("none: a restart forgets (node.data_dir)");
    let up =
        format!("{}, since {}", age(report.uptime_s.max(1).saturating_mul(1000)), report.started);
    let mut rows = vec![
        ("ready", ready, tone),
        ("up for", up, Tone::Plain),
        ("members", members.join(", "), Tone::Plain),
        ("services", report.services.to_string(), Tone::Plain),
        ("file", file.to_owned(), Tone::Plain),
        ("data", data.to_owned(), Tone::Plain),
        ("id", report.id.clone(), Tone::Dim),
    ];
    if !report.zone.is_empty() {
        rows.insert(1, ("zone", report.zone.clone(), Tone::Plain));
    }
    if let Some(refused) = &report.reload_refused {
        let mut why: String = refused.chars().take(REASONS_MAX).collect();
        if why.len() < refused.len() {
            why.push_str("… (evenkeel events has all)");
        }
        rows.push(("reload", format!("the last one was refused: {why}"), Tone::Bad));
    }
    for (what, text, tone) in rows {
        out.push_str(&paragraph(&format!("{what:<LEAD$}"), &text, tone, colour));
    }
    out.push('\n');
    let mut table = Table::new(&["LISTENER", "ADDRESS"]);
    for (key, address) in &report.listeners {
        table.row(vec![Cell::text(printable(key)), Cell::text(address.to_string())]);
    }
    out.push_str(&table.render(colour));
    out
}

const LEAD: usize = 10;
/// Characters shown of why a reload was refused: a file may be wrong from end to end.
const REASONS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_says_who_it_is_and_why_it_is_not_ready() {
        let report = StatusReport {
            name: "host-a".into(),
            address: "10.0.0.5".into(),
            mesh: "prod".into(),
            version: "0.1.0".into(),
            not_ready: Some("joining: no host of mesh.join has answered yet".into()),
            started: "2026-03-01T12:00:00.000Z".into(),
            uptime_s: 3_661,
            members: [("alive".to_owned(), 3), ("failed".to_owned(), 1)].into(),
            services: 2,
            configuration: Some("/etc/evenkeel/evenkeel.yaml".into()),
            listeners: [
                ("admin.listen".to_owned(), "127.0.0.1:7119".parse().unwrap()),
                ("outbound.listeners[0] (web)".to_owned(), "127.0.0.1:8200".parse().unwrap()),
            ]
            .into(),
            ..StatusReport::default()
        };
        let text = shown(&report, false);
        for line in [
            "host-a at 10.0.0.5, of the mesh prod, evenkeel 0.1.0",
            "ready     no, joining: no host of mesh.join has answered yet",
            "up for    1h1m, since 2026-03-01T12:00:00.000Z",
            "members   3 alive, 1 failed",
            "file      /etc/evenkeel/evenkeel.yaml",
            "LISTENER                     ADDRESS",
            "admin.listen                 127.0.0.1:7119",
            "outbound.listeners[0] (web)  127.0.0.1:8200",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
        let refused = StatusReport { reload_refused: Some("x ".repeat(5_000)), ..report.clone() };
        assert!(shown(&refused, false).lines().count() < 30);
        let ready = StatusReport { not_ready: None, ..report };
        assert!(shown(&ready, false).contains("ready     yes\n"));
    }
}

//! `evenkeel explain`: what would happen to one request, in at most 80 columns.
//!
//! An endpoint is a heading and a line for each filter, not a row of a table: what filters say are sentences. What
//! speaks against the endpoint is marked, and what its checks saw stands in full.

use std::fmt::Write as _;

use super::args::ExplainArgs;
use super::quotas::capacity;
use super::show::{against, asked, encoded};
use super::table::{Cell, Table, Tone, paragraph, printable};
use crate::admin::report::{Explain, ExplainEndpoint, LimitRow};

/// What to print.
///
/// # Errors
/// The host does not answer, or knows no such service.
pub fn explain(args: &ExplainArgs, colour: bool) -> anyhow::Result<String> {
    let path = format!(
        "/v1/explain/{}?path={}&method={}",
        encoded(&args.about.service),
        encoded(&args.path),
        encoded(&args.method)
    );
    let key = args.key.as_ref().map_or_else(String::new, |key| format!("&key={}", encoded(key)));
    asked(&args.about.ask, &(path + &key), |report| explained(report, colour))
}

fn explained(report: &Explain, colour: bool) -> String {
    let mut out = format!(
        "{} {} to {}\n",
        printable(&report.method),
        printable(&report.path),
        printable(&report.service)
    );
    let route = report.route.as_deref().unwrap_or("none matches: the policy of the upstream");
    out.push_str(&paragraph("route:  ", route, Tone::Plain, colour));
    out.push_str(&paragraph("repeat: ", &report.repeat, Tone::Plain, colour));
    for row in &report.limits {
        let tone = if row.matches { Tone::Plain } else { Tone::Dim };
        out.push_str(&paragraph("limit:  ", &limit(row), tone, colour));
    }
    for note in &report.notes {
        out.push_str(&paragraph("note:   ", note, Tone::Warn, colour));
    }
    out.push('\n');
    if report.endpoints.is_empty() {
        out.push_str("No endpoints: no host that is up offers this service.\n\n");
    }
    for endpoint in &report.endpoints {
        out.push_str(&verdicts(endpoint, colour));
    }
    if report.endpoints.iter().any(|endpoint| endpoint.cost.is_some()) {
        out.push_str(&paragraph("cost: ", COST, Tone::Dim, colour));
        out.push('\n');
    }
    if !report.policy.is_empty() {
        let mut table = Table::new(&["POLICY", "VALUE", "FROM"]).wrapping([1]);
        for field in &report.policy {
            let origin = if field.origin == "built-in" { Tone::Dim } else { Tone::Plain };
            table.row(vec![
                Cell::text(&field.field),
                Cell::text(&field.value),
                Cell::text(&field.origin).tone(origin),
            ]);
        }
        out.push_str(&table.render(colour));
    }
    out
}

/// One endpoint: who it is, and what each filter says of it.
fn verdicts(endpoint: &ExplainEndpoint, colour: bool) -> String {
    let ExplainEndpoint { instance, host, address, usable, cost, .. } = endpoint;
    let usable = if *usable {
        Tone::Good.paint("usable", colour)
    } else {
        Tone::Bad.paint("not usable", colour)
    };
    let on = if host.is_empty() { String::new() } else { format!(" on {}", printable(host)) };
    let cost = cost.map_or_else(String::new, |cost| format!(", cost {cost:.3}"));
    let mut out =
        format!("{}{on} at {}: {usable}{cost}\n", printable(instance), printable(address));
    for verdict in &endpoint.verdicts {
        let (mark, tone) = match (verdict.pass, verdict.filter.as_str()) {
            (true, _) => ("ok", Tone::Plain),
            // It gets some requests all the same.
            (false, "slow_start") => ("ok", Tone::Warn),
            (false, _) => ("no", Tone::Bad),
        };
        let mut lead = String::new();
        let _ = write!(lead, "  {mark}  {:<FILTER_WIDTH$}  ", printable(&verdict.filter));
        out.push_str(&paragraph(&lead, &verdict.reason, tone, colour));
        if verdict.filter == "serving" {
            for why in against(&endpoint.draining, &endpoint.checks) {
                let lead = " ".repeat(lead.chars().count());
                out.push_str(&paragraph(&lead, &why, Tone::Bad, colour));
            }
        }
    }
    out.push('\n');
    out
}

/// One rule of `ratelimit.apply`, as a sentence.
fn limit(row: &LimitRow) -> String {
    let each = row.key.as_ref().map_or_else(String::new, |key| format!(" for each {key}"));
    let at = match row.direction.as_str() {
        "inbound" => "inbound: at this host, of requests to its own instances",
        _ => "outbound: at this host, of what its applications send",
    };
    let mut text = format!("{}, {}{each}; {at}", row.resource, capacity(row.capacity, row.per_s));
    if row.cost != 1 {
        let _ = write!(text, "; a request costs {}", row.cost);
    }
    if row.mode == "observe" {
        text.push_str("; counts and refuses nobody (mode: observe)");
    }
    if !row.matches {
        let _ = write!(text, "; not this request, only {}", row.requests);
    }
    text
}

const COST: &str = "of two endpoints drawn at random the one that costs less gets the request. It is the latency in ms, which fades while nobody asks, or for how long an answer has been owed, times the requests in flight and this one, doubled for each recent failure. None is shown where nothing was heard in the last 30 s.";
/// The longest name of a filter.
const FILTER_WIDTH: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::table::WIDTH;
    use super::*;
    use crate::admin::report::{CheckResult, PolicyField, Verdict};

    fn report() -> Explain {
        let verdict = |filter: &str, pass, reason: &str| Verdict {
            filter: filter.into(),
            pass,
            reason: reason.into(),
        };
        Explain {
            service: "web".into(),
            method: "GET".into(),
            path: "/x".into(),
            route: Some("GET /x".into()),
            repeat: "GET is in repeat.methods: it may be retried and hedged".into(),
            limits: vec![LimitRow {
                direction: "outbound".into(),
                resource: "db.payments".into(),
                capacity: 500.0,
                per_s: Some(1.0),
                key: Some("header:x-tenant".into()),
                cost: 2,
                mode: "enforce".into(),
                matches: true,
                ..LimitRow::default()
            }],
            endpoints: vec![ExplainEndpoint {
                instance: "web-1".into(),
                host: "host-b".into(),
                address: "10.0.0.6:7110".into(),
                usable: false,
                cost: Some(1.5),
                verdicts: vec![
                    verdict("serving", false, "fails its check; used only if no endpoint serves"),
                    verdict("ejection", false, "5 failures in a row"),
                    verdict("slow_start", true, "100 % of its share"),
                ],
                checks: vec![CheckResult {
                    id: "service:web-1".into(),
                    kind: "http".into(),
                    status: "critical".into(),
                    output: "cannot connect to 127.0.0.1:9001: Connection refused (os error 111)".into(),
                }],
                ..ExplainEndpoint::default()
            }],
            policy: vec![PolicyField {
                field: "repeat.methods".into(),
                value: r#"["GET","HEAD","OPTIONS","TRACE","QUERY","PROPFIND","REPORT","SEARCH"]"#.into(),
                origin: "published-route, bounded".into(),
            }],
            notes: vec![
                "a copy is due after 3ms".into(),
                "hedging would take p99 from 100ms to 10ms and p99.9 from 200ms to 20ms for 1.0 % more requests".into(),
            ],
        }
    }

    #[test]
    fn an_explanation_shows_each_verdict_and_what_the_checks_saw() {
        let text = explained(&report(), false);
        for line in [
            "GET /x to web",
            "route:  GET /x",
            "limit:  db.payments, 500/s for each header:x-tenant; outbound: at this host, of",
            "        what its applications send; a request costs 2",
            "note:   a copy is due after 3ms",
            "web-1 on host-b at 10.0.0.6:7110: not usable, cost 1.500",
            "  no  serving     fails its check; used only if no endpoint serves",
            "  no  ejection    5 failures in a row",
            "  ok  slow_start  100 % of its share",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
        assert!(text.contains("Connection refused"), "{text}");
        assert!(text.contains("cost: of two endpoints"), "it says what a cost is: {text}");
    }

    #[test]
    fn an_explanation_fits_eighty_columns() {
        let mut report = report();
        report.notes.push("word ".repeat(100));
        report.endpoints[0].verdicts[1].reason = "because ".repeat(30);
        let text = explained(&report, false);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line:?} in\n{text}");
        }
    }

    #[test]
    fn a_limit_of_other_requests_says_so() {
        let row = LimitRow {
            direction: "inbound".into(),
            resource: "slots".into(),
            capacity: 40.0,
            cost: 1,
            mode: "observe".into(),
            requests: "POST /charge".into(),
            ..LimitRow::default()
        };
        assert_eq!(
            limit(&row),
            "slots, 40 at once; inbound: at this host, of requests to its own instances; counts and refuses nobody (mode: observe); not this request, only POST /charge"
        );
    }
}

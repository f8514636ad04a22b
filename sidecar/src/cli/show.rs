//! What a running host says, as tables.

use serde::de::DeserializeOwned;

use super::args::{AskArgs, ExplainArgs, Output, ServiceArgs, ShardsArgs};
use super::client;
use super::table::{Cell, Table, Tone, age, printable};
use crate::admin::report::{Endpoints, EventList, Explain, Member, Members, Services, Shards};
use crate::events::Severity;

/// Asks for `path` and returns what to print: the body as it is, or what `table` makes of it.
pub fn asked<T: DeserializeOwned>(
    ask: &AskArgs,
    path: &str,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let body = client::get(&ask.admin, path)?;
    if ask.output == Output::Json {
        let mut text = String::from_utf8_lossy(&body).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return Ok(text);
    }
    let report = serde_json::from_slice(&body).with_context(|| {
        format!("{} answered something else than an evenkeel: is --admin right?", ask.admin)
    })?;
    Ok(table(&report))
}

/// `evenkeel members`.
pub fn members(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/members", |report| members_table(report, colour))
}

/// `evenkeel services`.
pub fn services(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/services", |report| services_table(report, colour))
}

/// `evenkeel events`.
pub fn events(ask: &AskArgs, colour: bool) -> anyhow::Result<String> {
    asked(ask, "/v1/events", |report| events_table(report, colour))
}

/// `evenkeel endpoints SERVICE`.
pub fn endpoints(args: &ServiceArgs, colour: bool) -> anyhow::Result<String> {
    let path = format!("/v1/endpoints/{}", encoded(&args.service));
    asked(&args.ask, &path, |report| endpoints_table(report, colour))
}

/// `evenkeel explain SERVICE`.
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

/// `evenkeel shards SERVICE --key VALUE`.
pub fn shards(args: &ShardsArgs, colour: bool) -> anyhow::Result<String> {
    let path = format!(
        "/v1/shards/{}?key={}&path={}&method={}",
        encoded(&args.about.service),
        encoded(&args.key),
        encoded(&args.path),
        encoded(&args.method)
    );
    asked(&args.about.ask, &path, |report| sharded(report, colour))
}

fn members_table(report: &Members, colour: bool) -> String {
    let mut table = Table::new(&["NAME", "ADDRESS", "STATE", "FOR", "ZONE", "INSTANCES", "ID"]);
    for member in &report.members {
        let name = if member.myself {
            format!("{} (this host)", member.name)
        } else {
            member.name.clone()
        };
        table.row(vec![
            Cell::text(name),
            Cell::text(&member.address),
            Cell::text(shown_state(member)).tone(state_tone(&member.state)),
            Cell::number(age(member.for_ms)),
            Cell::text(&member.zone),
            Cell::number(member.instances),
            Cell::text(&member.id).tone(Tone::Dim),
        ]);
    }
    table.render(colour)
}

fn shown_state(member: &Member) -> String {
    if member.drained_by.is_empty() {
        member.state.clone()
    } else {
        format!("{} (by {})", member.state, member.drained_by)
    }
}

fn services_table(report: &Services, colour: bool) -> String {
    if report.services.is_empty() {
        return "No services: no host that is up offers any. Name them under `services:` in the configuration, or register them with PUT /v1/agent/service/register.\n".to_owned();
    }
    let mut table = Table::new(&["SERVICE", "USABLE", "INSTANCES", "CRITICAL", "DRAINING", "TAGS"]);
    for service in &report.services {
        let tone = match (service.usable, service.instances) {
            (0, _) => Tone::Bad,
            (usable, instances) if usable < instances => Tone::Warn,
            _ => Tone::Good,
        };
        table.row(vec![
            Cell::text(&service.name),
            Cell::number(service.usable).tone(tone),
            Cell::number(service.instances),
            Cell::number(service.critical).tone(if service.critical > 0 {
                Tone::Bad
            } else {
                Tone::Dim
            }),
            Cell::number(service.draining).tone(if service.draining > 0 {
                Tone::Warn
            } else {
                Tone::Dim
            }),
            Cell::text(service.tags.join(",")),
        ]);
    }
    table.render(colour)
}

fn endpoints_table(report: &Endpoints, colour: bool) -> String {
    let mut out =
        format!("{}, balance: {}\n", printable(&report.service), printable(&report.balance));
    if report.endpoints.is_empty() {
        out.push_str("No endpoints: no host that is up offers this service.\n");
        return out;
    }
    let mut table = Table::new(&[
        "INSTANCE",
        "HOST",
        "ADDRESS",
        "STATE",
        "IN FLIGHT",
        "LATENCY",
        "STALLED",
        "EJECTIONS",
    ]);
    for endpoint in &report.endpoints {
        let state = match endpoint.ejected_ms {
            Some(ms) if endpoint.state == "ejected" => format!("ejected for {}", age(ms)),
            _ => endpoint.state.clone(),
        };
        table.row(vec![
            Cell::text(&endpoint.instance),
            Cell::text(&endpoint.host),
            Cell::text(&endpoint.address),
            Cell::text(state).tone(state_tone(&endpoint.state)),
            Cell::number(endpoint.in_flight),
            Cell::number(
                endpoint.latency_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}ms")),
            ),
            endpoint.stall_ms.map_or_else(
                || Cell::number("-"),
                |ms| Cell::number(format!("{ms:.1}ms")).tone(stall_tone(ms)),
            ),
            Cell::number(endpoint.ejections).tone(if endpoint.ejections > 0 {
                Tone::Warn
            } else {
                Tone::Dim
            }),
        ]);
    }
    out.push_str(&table.render(colour));
    out
}

fn explained(report: &Explain, colour: bool) -> String {
    let mut out = format!(
        "{} {} to {}\n",
        printable(&report.method),
        printable(&report.path),
        printable(&report.service)
    );
    let route = report.route.as_deref().unwrap_or("none matches: the policy of the upstream");
    out.push_str(&format!("route:  {}\nrepeat: {}\n", printable(route), printable(&report.repeat)));
    for note in &report.notes {
        out.push_str(&format!("note:   {}\n", Tone::Warn.paint(&printable(note), colour)));
    }
    out.push('\n');
    if report.endpoints.is_empty() {
        out.push_str("No endpoints: no host that is up offers this service.\n");
    } else {
        let mut table =
            Table::new(&["INSTANCE", "HOST", "ADDRESS", "USABLE", "COST", "FILTER", "VERDICT"]);
        for endpoint in &report.endpoints {
            let usable = if endpoint.usable { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
            let mut lead = vec![
                Cell::text(&endpoint.instance),
                Cell::text(&endpoint.host),
                Cell::text(&endpoint.address),
                Cell::text(usable.0).tone(usable.1),
                Cell::number(
                    endpoint.cost.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.3}")),
                ),
            ];
            if endpoint.verdicts.is_empty() {
                table.row(lead.clone());
            }
            for verdict in &endpoint.verdicts {
                let mut row = std::mem::replace(&mut lead, vec![Cell::default(); 5]);
                row.push(Cell::text(&verdict.filter));
                row.push(Cell::text(&verdict.reason).tone(if verdict.pass {
                    Tone::Plain
                } else {
                    Tone::Bad
                }));
                table.row(row);
            }
        }
        out.push_str(&table.render(colour));
    }
    if !report.policy.is_empty() {
        out.push('\n');
        let mut table = Table::new(&["POLICY", "VALUE", "FROM"]);
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

fn sharded(report: &Shards, colour: bool) -> String {
    let mut out = format!(
        "{}, the shard of {} = {:?}: {} of {} endpoints; without a usable one: {}\n",
        printable(&report.service),
        printable(&report.source),
        report.key,
        report.members.len(),
        report.endpoints,
        printable(&report.fallback)
    );
    let mut table = Table::new(&["INSTANCE", "HOST", "ADDRESS", "ZONE", "SERVING"]);
    for member in &report.members {
        let serving = if member.serving { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
        table.row(vec![
            Cell::text(&member.instance),
            Cell::text(&member.host),
            Cell::text(&member.address),
            Cell::text(&member.zone),
            Cell::text(serving.0).tone(serving.1),
        ]);
    }
    out.push_str(&table.render(colour));
    out.push('\n');
    if let Some(shards) = report.shards {
        out.push_str(&format!("{shards} different shards\n"));
    }
    let counted = if report.exact { "" } else { ", counted over a sample" };
    let mut table = Table::new(&["MEMBERS IN COMMON", "OTHER KEYS"]);
    for (common, share) in report.overlap.iter().enumerate() {
        table.row(vec![
            Cell::number(common),
            Cell::number(format!("{:.2} %{counted}", share * 100.0)),
        ]);
    }
    out.push_str(&table.render(colour));
    out
}

fn events_table(report: &EventList, colour: bool) -> String {
    if report.events.is_empty() {
        return "Nothing has happened since the host started.\n".to_owned();
    }
    let mut table = Table::new(&["AT", "KIND", "SUBJECT", "WHAT"]);
    for event in &report.events {
        let tone = if event.severity == Severity::Warning { Tone::Warn } else { Tone::Plain };
        table.row(vec![
            Cell::text(&event.at).tone(Tone::Dim),
            Cell::text(&event.kind).tone(tone),
            Cell::text(&event.subject),
            Cell::text(event.detail.replace('\n', "; ")),
        ]);
    }
    table.render(colour)
}

fn state_tone(state: &str) -> Tone {
    match state {
        "alive" | "usable" | "passing" => Tone::Good,
        "failed" | "critical" | "ejected" => Tone::Bad,
        "left" => Tone::Dim,
        _ => Tone::Warn,
    }
}

fn stall_tone(ms: f64) -> Tone {
    match ms {
        ms if ms >= 100.0 => Tone::Bad,
        ms if ms >= 5.0 => Tone::Warn,
        _ => Tone::Dim,
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::{Endpoint, ExplainEndpoint, PolicyField, Service, Verdict};

    #[test]
    fn members_and_services_as_tables() {
        let member = Member {
            name: "host-a".into(),
            address: "10.0.0.5".into(),
            state: "alive".into(),
            for_ms: 61_000,
            instances: 2,
            id: "00ff".into(),
            myself: true,
            ..Member::default()
        };
        assert_eq!(
            members_table(&Members { members: vec![member] }, false),
            "NAME                ADDRESS   STATE   FOR  ZONE  INSTANCES  ID\n\
             host-a (this host)  10.0.0.5  alive  1m1s                2  00ff\n"
        );
        let service = Service {
            name: "web".into(),
            tags: vec!["v1".into(), "v2".into()],
            instances: 3,
            usable: 2,
            critical: 1,
            ..Service::default()
        };
        assert_eq!(
            services_table(&Services { services: vec![service] }, false),
            "SERVICE  USABLE  INSTANCES  CRITICAL  DRAINING  TAGS\n\
             web           2          3         1         0  v1,v2\n"
        );
    }

    #[test]
    fn only_what_is_in_flight_is_stalled() {
        let idle = Endpoint {
            instance: "web-1".into(),
            host: "host-b".into(),
            address: "10.0.0.6:80".into(),
            state: "usable".into(),
            latency_ms: Some(1.25),
            ..Endpoint::default()
        };
        let stuck = Endpoint { in_flight: 2, stall_ms: Some(120.0), ..idle.clone() };
        let report = Endpoints {
            service: "web".into(),
            balance: "p2c".into(),
            endpoints: vec![idle, stuck],
        };
        assert_eq!(
            endpoints_table(&report, false),
            "web, balance: p2c\n\
             INSTANCE  HOST    ADDRESS      STATE   IN FLIGHT  LATENCY  STALLED  EJECTIONS\n\
             web-1     host-b  10.0.0.6:80  usable          0   1.25ms        -          0\n\
             web-1     host-b  10.0.0.6:80  usable          2   1.25ms  120.0ms          0\n"
        );
    }

    #[test]
    fn an_explanation_shows_each_verdict_and_each_origin() {
        let verdict = |filter: &str, pass, reason: &str| Verdict {
            filter: filter.into(),
            pass,
            reason: reason.into(),
        };
        let explain = Explain {
            service: "web".into(),
            method: "GET".into(),
            path: "/x".into(),
            route: Some("GET /x".into()),
            repeat: "yes".into(),
            endpoints: vec![ExplainEndpoint {
                instance: "web-1".into(),
                host: "host-b".into(),
                address: "10.0.0.6:7110".into(),
                usable: false,
                cost: Some(1.5),
                verdicts: vec![
                    verdict("serving", true, "passing"),
                    verdict("ejection", false, "5 failures in a row"),
                ],
            }],
            policy: vec![PolicyField {
                field: "retry.max".into(),
                value: "2".into(),
                origin: "built-in".into(),
            }],
            notes: vec!["a copy is due after 3ms".into()],
        };
        let text = explained(&explain, false);
        for line in [
            "GET /x to web",
            "route:  GET /x",
            "note:   a copy is due after 3ms",
            "web-1     host-b  10.0.0.6:7110  no      1.500  serving   passing",
            "                                                ejection  5 failures in a row",
            "retry.max  2      built-in",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn an_answer_of_another_version_is_still_read() {
        let older: Endpoints = serde_json::from_str(
            r#"{"service": "web", "endpoints": [{"instance": "a", "new": 1}]}"#,
        )
        .unwrap();
        assert!(endpoints_table(&older, false).contains('a'));
        assert!(older.endpoints == [Endpoint { instance: "a".into(), ..Endpoint::default() }]);
    }

    #[test]
    fn names_in_a_path_are_encoded() {
        assert_eq!(encoded("a/b?c d%é"), "a%2Fb%3Fc%20d%25%C3%A9");
    }
}

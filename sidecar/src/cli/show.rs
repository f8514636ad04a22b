//! What a running host says, as tables.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::args::{AskArgs, Output, ServiceArgs, ShardsArgs};
use super::client;
use super::table::{Cell, Table, Tone, age, paragraph, printable};
use crate::admin::report::{CheckResult, Endpoint, Endpoints, Member, Members, Services, Shards};

/// Asks for `path` and returns what to print: the body as it is, or what `table` makes of it.
pub fn asked<T: DeserializeOwned>(
    ask: &AskArgs,
    path: &str,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let admin = ask.admin();
    let body = client::get(&admin, path)?;
    if ask.output == Output::Json {
        let mut text = String::from_utf8_lossy(&body).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return Ok(text);
    }
    let report = serde_json::from_slice(&body).with_context(|| {
        format!("{admin} answered something else than an evenkeel: is --admin right?")
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

/// `evenkeel endpoints SERVICE`.
pub fn endpoints(args: &ServiceArgs, colour: bool) -> anyhow::Result<String> {
    let path = format!("/v1/endpoints/{}", encoded(&args.service));
    asked(&args.ask, &path, |report| endpoints_table(report, colour))
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

/// Ids are 16 digits that nobody reads: they are shown where names do not tell the hosts apart, and are in the JSON.
fn members_table(report: &Members, colour: bool) -> String {
    let names: BTreeSet<&str> = report.members.iter().map(|member| member.name.as_str()).collect();
    let with_ids = names.len() < report.members.len();
    let with_zones = report.members.iter().any(|member| !member.zone.is_empty());
    let mut columns = vec!["NAME", "ADDRESS", "STATE", "FOR", "VERSION", "INSTANCES"];
    columns.extend(with_zones.then_some("ZONE"));
    columns.extend(with_ids.then_some("ID"));
    let mut table = Table::new(&columns);
    for member in &report.members {
        let name = if member.myself {
            format!("{} (this host)", member.name)
        } else {
            member.name.clone()
        };
        let version = if member.version.is_empty() { "-" } else { &member.version };
        let mut row = vec![
            Cell::text(name),
            Cell::text(&member.address),
            Cell::text(&member.state).tone(state_tone(&member.state)),
            Cell::number(age(member.for_ms)),
            Cell::text(version),
            Cell::number(member.instances),
        ];
        row.extend(with_zones.then(|| Cell::text(&member.zone)));
        row.extend(with_ids.then(|| Cell::text(&member.id).tone(Tone::Dim)));
        table.row(row);
    }
    let mut out = table.render(colour);
    for Member { name, drained_by, .. } in &report.members {
        if !drained_by.is_empty() {
            let text = format!("drains, by order of {drained_by}");
            out.push_str(&paragraph(&format!("{} ", printable(name)), &text, Tone::Warn, colour));
        }
    }
    out
}

fn services_table(report: &Services, colour: bool) -> String {
    if report.services.is_empty() {
        return paragraph(
            "",
            "No services: no host that is up offers any, and this host's file has no upstreams with endpoints. Name services under `services:` in the configuration, or register them with PUT /v1/agent/service/register at discovery.http.",
            Tone::Plain,
            colour,
        );
    }
    let mut table = Table::new(&["SERVICE", "USABLE", "INSTANCES", "CRITICAL", "DRAINING", "TAGS"])
        .wrapping([5]);
    let noted =
        |count: usize, tone| Cell::number(count).tone(if count > 0 { tone } else { Tone::Dim });
    for service in &report.services {
        let tone = match (service.usable, service.instances) {
            (0, _) => Tone::Bad,
            (usable, instances) if usable < instances => Tone::Warn,
            _ => Tone::Good,
        };
        let tags = if service.upstream {
            Cell::text("(upstreams of this host's file)").tone(Tone::Dim)
        } else {
            Cell::text(service.tags.join(","))
        };
        table.row(vec![
            Cell::text(&service.name),
            Cell::number(service.usable).tone(tone),
            Cell::number(service.instances),
            noted(service.critical, Tone::Bad),
            noted(service.draining, Tone::Warn),
            tags,
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
    // What says nothing of any of them is left out: a line is to fit a terminal.
    let any = |says: fn(&Endpoint) -> bool| report.endpoints.iter().any(says);
    let with_hosts = any(|endpoint| !endpoint.host.is_empty());
    let mut columns = vec!["INSTANCE"];
    columns.extend(with_hosts.then_some("HOST"));
    columns.extend(["ADDRESS", "STATE", "IN FLIGHT", "LATENCY"]);
    let mut table = Table::new(&columns).wrapping(0..=usize::from(with_hosts));
    for endpoint in &report.endpoints {
        let latency = endpoint.latency_ms.map_or_else(|| "-".to_owned(), short);
        let in_flight = match endpoint.stall_ms {
            Some(ms) => {
                Cell::number(format!("{} ({})", endpoint.in_flight, short(ms))).tone(stall_tone(ms))
            }
            None => Cell::number(endpoint.in_flight),
        };
        let mut row = vec![Cell::text(&endpoint.instance)];
        row.extend(with_hosts.then(|| Cell::text(&endpoint.host)));
        row.extend([
            Cell::text(&endpoint.address),
            Cell::text(&endpoint.state).tone(state_tone(&endpoint.state)),
            in_flight,
            Cell::number(latency),
        ]);
        table.row(row);
    }
    out.push_str(&table.render(colour));
    for endpoint in &report.endpoints {
        let Endpoint { instance, host, draining, checks, .. } = endpoint;
        let on = if host.is_empty() { instance.clone() } else { format!("{instance} on {host}") };
        if let Some(said) = ejections(endpoint) {
            out.push_str(&paragraph(&format!("{}: ", printable(&on)), &said, Tone::Warn, colour));
        }
        for why in against(draining, checks) {
            out.push_str(&paragraph(&format!("{}: ", printable(&on)), &why, Tone::Bad, colour));
        }
    }
    out
}

/// A time in at most three digits and a point.
fn short(ms: f64) -> String {
    match ms {
        ms if ms < 9.995 => format!("{ms:.2}ms"),
        ms if ms < 99.95 => format!("{ms:.1}ms"),
        ms if ms < 999.5 => format!("{ms:.0}ms"),
        ms => format!("{:.1}s", ms / 1000.0),
    }
}

/// That an endpoint is ejected, and how often it was.
fn ejections(endpoint: &Endpoint) -> Option<String> {
    let times = match endpoint.ejections {
        0 => return None,
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    Some(match endpoint.ejected_ms {
        Some(ms) if endpoint.state == "ejected" => {
            format!("ejected for another {}, {times} so far", age(ms))
        }
        _ => format!("was ejected {times}"),
    })
}

/// What speaks against an instance: that its host drains, and what each check saw that does not pass.
pub(super) fn against(draining: &str, checks: &[CheckResult]) -> Vec<String> {
    let saw = |check: &CheckResult| {
        let CheckResult { id, kind, status, output } = check;
        match (kind.as_str(), output.as_str()) {
            ("maintenance", "") => "in maintenance".to_owned(),
            ("maintenance", reason) => format!("in maintenance: {reason}"),
            (_, "") => format!("{status}: the {kind} check {id} has no result yet"),
            (_, output) => format!("{status}: the {kind} check {id} says: {output}"),
        }
    };
    let draining = (!draining.is_empty()).then(|| draining.to_owned());
    draining.into_iter().chain(checks.iter().map(saw)).collect()
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
    use crate::admin::report::Service;
    use crate::cli::table::WIDTH;

    #[test]
    fn members_and_services_as_tables() {
        let member = Member {
            name: "host-a".into(),
            address: "10.0.0.5".into(),
            state: "alive".into(),
            for_ms: 61_000,
            instances: 2,
            id: "00ff".into(),
            version: "0.1.0".into(),
            myself: true,
            ..Member::default()
        };
        let twins = Members { members: vec![member.clone(), member.clone()] };
        let twins = members_table(&twins, false);
        assert!(twins.contains("ID") && twins.contains("00ff"), "names do not tell: {twins}");
        let zoned = Member { zone: "east".into(), version: String::new(), ..member.clone() };
        let zoned = members_table(&Members { members: vec![zoned] }, false);
        assert!(zoned.contains("ZONE") && zoned.contains("  -  "), "{zoned}");
        assert_eq!(
            members_table(&Members { members: vec![member] }, false),
            "NAME                ADDRESS   STATE   FOR  VERSION  INSTANCES\n\
             host-a (this host)  10.0.0.5  alive  1m1s  0.1.0            2\n"
        );
        let service = Service {
            name: "web".into(),
            tags: vec!["v1".into(), "v2".into()],
            instances: 3,
            usable: 2,
            critical: 1,
            ..Service::default()
        };
        let from_file = Service {
            name: "db".into(),
            instances: 1,
            usable: 1,
            upstream: true,
            ..Service::default()
        };
        assert_eq!(
            services_table(&Services { services: vec![service, from_file] }, false),
            "SERVICE  USABLE  INSTANCES  CRITICAL  DRAINING  TAGS\n\
             web           2          3         1         0  v1,v2\n\
             db            1          1         0         0  (upstreams of this host's file)\n"
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
             INSTANCE  HOST    ADDRESS      STATE   IN FLIGHT  LATENCY\n\
             web-1     host-b  10.0.0.6:80  usable          0   1.25ms\n\
             web-1     host-b  10.0.0.6:80  usable  2 (120ms)   1.25ms\n"
        );
        let calm = Endpoints { endpoints: vec![report.endpoints[0].clone()], ..report };
        let failed = Endpoint { ejections: 2, host: String::new(), ..calm.endpoints[0].clone() };
        let failed = endpoints_table(&Endpoints { endpoints: vec![failed], ..calm }, false);
        assert!(
            failed.contains("web-1: was ejected 2 times") && !failed.contains("HOST"),
            "{failed}"
        );
    }

    #[test]
    fn times_are_short() {
        let said = [0.0, 1.254, 12.34, 120.4, 999.6, 12_345.6].map(short);
        assert_eq!(said, ["0.00ms", "1.25ms", "12.3ms", "120ms", "1.0s", "12.3s"]);
    }

    #[test]
    fn endpoints_fit_a_terminal_whatever_there_is_to_tell() {
        let worst = Endpoint {
            instance: "payments-eu-west-1a-00c0ffee".into(),
            host: "payments-host-17.rack-4.example".into(),
            address: "192.168.100.100:50051".into(),
            state: "ejected".into(),
            in_flight: 12,
            latency_ms: Some(12_345.67),
            stall_ms: Some(723.6),
            ejected_ms: Some(723_000),
            ejections: 11,
            draining: "its host is in maintenance: new disk".into(),
            ..Endpoint::default()
        };
        let report = Endpoints { endpoints: vec![worst], ..Endpoints::default() };
        let text = endpoints_table(&report, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("ejected for another 12m3s, 11 times so far"), "{text}");
    }

    #[test]
    fn what_a_check_saw_stands_below_the_table() {
        let check = |status: &str, output: &str| CheckResult {
            id: "service:web-1".into(),
            kind: "http".into(),
            status: status.into(),
            output: output.into(),
        };
        let sick = Endpoint {
            instance: "web-1".into(),
            host: "host-b".into(),
            state: "critical".into(),
            checks: vec![check("critical", "cannot connect to 127.0.0.1:9001: Connection refused")],
            ..Endpoint::default()
        };
        let new = Endpoint { checks: vec![check("critical", "")], ..sick.clone() };
        let drained =
            Endpoint { draining: "its host drains".into(), checks: Vec::new(), ..sick.clone() };
        let report = Endpoints {
            service: "web".into(),
            endpoints: vec![sick, new, drained],
            ..Default::default()
        };
        let text = endpoints_table(&report, false);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for sentence in [
            "web-1 on host-b: critical: the http check service:web-1 says: cannot connect to 127.0.0.1:9001: Connection refused",
            "web-1 on host-b: critical: the http check service:web-1 has no result yet",
            "web-1 on host-b: its host drains",
        ] {
            assert!(words.contains(sentence), "{sentence} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
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

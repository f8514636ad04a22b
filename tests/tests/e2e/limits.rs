//! What a caller sees of a limit: who is refused, how it is told, and what is spent or held meanwhile.
//!
//! The application counts: what was refused never came to it, and what came is within the limit. How several hosts share one is in
//! [`super::shares`], what is held and not spent in [`super::places`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Answer, Version, request};
use evenkeel_tests::load::{Load, Plan, Report};
use evenkeel_tests::mesh::{App, Host, Lab, Setup};
use evenkeel_tests::network::Network;
use evenkeel_tests::raw::{Raw, noise};
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::{Trio, payments};

/// A host whose applications call `db`, an application outside of the mesh, under these limits.
pub fn caller(app: &App, ratelimit: &str) -> Setup {
    Setup {
        upstreams: format!("[{{name: db, endpoints: [\"{}\"]}}]", app.address),
        ratelimit: ratelimit.into(),
        join: vec![1, 2],
        ..Setup::default()
    }
}

/// The same for a host that waits for no others.
pub fn alone(app: &App, ratelimit: &str) -> Setup {
    Setup { join: Vec::new(), ..caller(app, ratelimit) }
}

fn grpc(host: &Host, service: &str) -> Answer {
    let mut call = request(Method::POST, service, "/test.Echo/Unary");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    client::send(host.outbound().into(), Version::Http2, call).unwrap()
}

/// How many decisions the rules of these hosts have made.
fn decided<'h>(hosts: impl IntoIterator<Item = &'h Host>, outcome: &str) -> f64 {
    let of =
        |host: &Host| host.metrics().sum("evenkeel_limit_requests_total", &[("outcome", outcome)]);
    hosts.into_iter().map(of).sum()
}

/// A 429 of this resource, in full.
fn assert_refused(answer: &Answer, resource: &str, policy: &str) {
    assert_eq!(answer.status, 429, "{}", answer.text());
    let seconds: u64 = answer.header("retry-after").parse().expect("Retry-After in seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(answer.header("ratelimit"), format!("\"{resource}\";r=0;t={seconds}"));
    assert_eq!(answer.header("ratelimit-policy"), format!("\"{resource}\";{policy}"));
    let proxy_status = answer.header("proxy-status");
    assert!(proxy_status.contains("error=http_request_denied"), "{proxy_status}");
    assert!(proxy_status.contains("limited"), "{proxy_status}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let body = answer.json();
    assert_eq!((&body["status"], &body["reason"]), (&429.into(), &"limited".into()), "{body}");
    assert!(body["detail"].as_str().unwrap().contains(resource), "{body}");
}

/// Asks until it was refused so often, counting the others, and until the last refusal knows when to come back: the first may come before this
/// host has anything.
fn until_refused(times: usize, mut ask: impl FnMut() -> Answer) -> (usize, Vec<Answer>) {
    let (mut passed, mut refused) = (0, Vec::new());
    wait::for_true("the limit is reached", SOON, || {
        let answer = ask();
        match answer.status.as_u16() {
            200 => passed += 1,
            429 => refused.push(answer),
            _ => panic!("{}: {}", answer.status, answer.text()),
        }
        refused.len() >= times
            && refused.last().is_some_and(|last| !last.header("retry-after").is_empty())
    });
    (passed, refused)
}

fn an_outbound_limit_refuses_in_full_and_spares_the_application(workers: usize) {
    let limits = "resources: [{match: \"api.*\", capacity: 20, per: 10s, burst: 2}], \
         apply: [{direction: outbound, service: payments, path: \"/ledger/*\", method: POST, resource: api.charge}, \
                 {direction: outbound, service: payments-h2, path: \"/test.Echo/*\", resource: api.grpc}]";
    let trio =
        Trio::start(Lab::new(workers), &Setup { ratelimit: limits.into(), ..Setup::default() });
    trio.caller.wait_for_roster(3);
    let mut sent = 0;
    let start = Instant::now();
    let (passed, refused) = until_refused(10, || {
        sent += 1;
        let post = request(Method::POST, "payments", &format!("/ledger/{sent}"));
        client::send(trio.caller.outbound().into(), Version::Http1, post).unwrap()
    });
    let most = 3.0 + start.elapsed().as_secs_f64() * 2.0;
    assert!(passed >= 1 && passed as f64 <= most, "{passed} passed, {most} may");
    assert_refused(refused.last().unwrap(), "api.charge", "q=20;w=10");
    let posts_refused = refused.len() as f64;
    let executed: usize = trio
        .ledgers()
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap_or_default().lines().count())
        .sum();
    assert_eq!(executed, passed, "each that passed was executed once, and no other");
    // Another path or method is none of the limit's business.
    (0..20).for_each(|_| assert_eq!(trio.caller.get("payments", "/ledger/x").status, 200));

    let refused = wait::until("gRPC is refused", SOON, || {
        Some(grpc(&trio.caller, "payments-h2"))
            .filter(|answer| answer.trailer("grpc-status") == "8")
            .filter(|answer| !answer.header("retry-after").is_empty())
    });
    assert_eq!(refused.status, 200, "gRPC says it in grpc-status alone");
    assert!(
        refused.trailer("grpc-message").contains("api.grpc"),
        "{}",
        refused.trailer("grpc-message")
    );

    let metrics = trio.caller.metrics();
    let labels = [("direction", "outbound"), ("upstream", "payments"), ("reason", "limited")];
    assert_eq!(metrics.sum("evenkeel_failures_total", &labels), posts_refused);
    let rule = [("direction", "outbound"), ("resource", "api.charge")];
    let of = |outcome| {
        metrics.sum("evenkeel_limit_requests_total", &[rule[0], rule[1], ("outcome", outcome)])
    };
    assert_eq!((of("allowed"), of("refused")), (passed as f64, posts_refused));
    wait::for_true("the access log says so", SOON, || {
        let log = trio.caller.process.output().unwrap();
        log.lines().filter(|line| line.contains("\"reason\":\"limited\"")).count() >= 10
    });
}

fn an_inbound_limit_holds_for_everyone_and_is_not_tried_elsewhere(workers: usize) {
    let lab = Lab::new(workers);
    let apps: Vec<App> = [2, 3].map(|number| lab.app(number)).into();
    let limits = "resources: [{match: in, capacity: 20, per: 10s, burst: 2}], \
                  apply: [{direction: inbound, service: payments, path: \"/ledger/*\", resource: in}, \
                          {direction: inbound, service: payments-h2, resource: in}]";
    let offer = |app: &App| Setup {
        services: payments(app, ""),
        ratelimit: limits.into(),
        ..Setup::default()
    };
    let hosts = lab.mesh(&[Setup::default(), offer(&apps[0]), offer(&apps[1])]);
    hosts.iter().for_each(|host| host.wait_for_instances("payments", 2));
    hosts[1].wait_for_roster(2);
    let executed = || {
        let of = |app: &App| app.get("/ledger").text().lines().count();
        apps.iter().map(of).sum::<usize>()
    };
    let mut asked = 0;
    let mut post = |host: &Host| {
        asked += 1;
        let post = request(Method::POST, "payments", &format!("/ledger/{asked}"));
        client::send(host.outbound().into(), Version::Http1, post).unwrap()
    };
    let start = Instant::now();
    let (passed, refused) = until_refused(10, || post(&hosts[0]));
    assert_refused(refused.last().unwrap(), "in", "q=20;w=10");
    // The applications beside the instances draw on the same resource.
    let (beside, again) = until_refused(5, || post(&hosts[1]));
    assert_refused(again.last().unwrap(), "in", "q=20;w=10");
    let refused = (refused.len() + again.len()) as f64;
    let most = 4.0 + start.elapsed().as_secs_f64() * 2.0;
    assert!(((passed + beside) as f64) <= most, "{passed} and {beside} passed, {most} may");
    assert_eq!(executed(), passed + beside);

    // One decision for each request: none was sent to the other instance to try its luck.
    let retries = |host: &Host| host.metrics().sum("evenkeel_attempts_total", &[("kind", "retry")]);
    assert_eq!(hosts.iter().map(retries).sum::<f64>(), 0.0);
    let allowed = decided(&hosts, "allowed");
    assert_eq!((allowed, decided(&hosts, "refused")), ((passed + beside) as f64, refused));

    let refused = wait::until("gRPC is refused over the mesh", SOON, || {
        Some(grpc(&hosts[0], "payments-h2")).filter(|answer| answer.trailer("grpc-status") == "8")
    });
    assert_eq!(refused.status, 200);
}

fn each_tenant_has_a_limit_of_its_own_and_a_flood_of_invented_ones_is_bounded(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let limits = "resources: [{match: tenant, capacity: 50, per: 1s, burst: 5}], \
                  apply: [{direction: outbound, service: db, resource: tenant, key: \"header:x-tenant\"}]";
    let hosts = lab.mesh(&[caller(&app, limits), caller(&app, limits)]);
    hosts.iter().for_each(|host| host.wait_for_roster(2));
    let load = |host: &Host, tenant: &str, gets_per_sec| {
        let plan = host.load("db");
        Load::start(Plan { gets_per_sec, posts_per_sec: 0, tenant: tenant.into(), ..plan })
    };
    // acme asks both hosts for twice its limit, zeta one of them for nearly all of its own.
    let greedy = [load(&hosts[0], "acme", 50), load(&hosts[1], "acme", 50)];
    let modest = load(&hosts[0], "zeta", 40);
    wait::for_true("both are leased", SOON, || {
        leased(&hosts[0], "zeta") && leased(&hosts[1], "acme")
    });
    wait::for_true("and zeta has what it wants", SOON, || {
        has(&hosts[0], "tenant", Some("zeta")) >= 40.0
    });
    greedy.iter().for_each(|load| load.after(150));
    let _ = modest.finish();

    let before = memory_mib(&hosts[0]);
    // It has what it was measured to want, which for a moment may be a little less than it is. And where this
    // machine stands still for a moment, what is asked meanwhile comes at once and is more than its burst; but not
    // in each part of the flood.
    let mut refused_of = Vec::new();
    for part in 0..PARTS {
        let modest = load(&hosts[0], "zeta", 40);
        let flood = Raw::connect(hosts[0].outbound().into()).unwrap();
        let answered = invent_tenants(flood, part * FLOOD / PARTS..(part + 1) * FLOOD / PARTS);
        assert_eq!(answered, FLOOD / PARTS, "every one was answered");
        modest.after(40);
        let report = modest.finish();
        refused_of
            .push((report.gets().filter(|get| !get.succeeded()).count(), report.samples.len()));
    }
    let grown = memory_mib(&hosts[0]) - before;
    eprintln!("{FLOOD} tenants: {grown} MiB more; zeta was refused {refused_of:?}");
    assert!(refused_of.iter().any(|(refused, of)| refused * 10 <= *of), "{refused_of:?}");
    assert!(grown < 16.0, "{grown} MiB for {FLOOD} invented tenants");
    let known = hosts[0].quotas()["resources"].as_array().unwrap().len();
    assert!(known < FLOOD / 4, "{known} are leased");

    let reports: Vec<_> = greedy.into_iter().map(Load::finish).collect();
    let acme = app.arrivals().of("acme");
    let most = acme.most_within(Duration::from_secs(1));
    let may = 50 + 5 + late(50, &reports);
    assert!(most <= may, "{most} of acme's in a second, {may} may");
    assert!(acme.count() > 100, "{}", acme.count());
}

/// How many may come late: what the longest request was held up, others were as well, and came with those of a later second.
pub fn late(rate: usize, reports: &[Report]) -> usize {
    let admitted = reports.iter().flat_map(Report::gets).filter(|sample| sample.succeeded());
    let longest = admitted.map(|sample| sample.latency).max().unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let late = (rate as f64 * longest.as_secs_f64()).ceil() as usize;
    late
}

/// Whether leases are asked for this tenant.
fn leased(host: &Host, key: &str) -> bool {
    host.quotas()["resources"].as_array().unwrap().iter().any(|resource| resource["key"] == key)
}

/// What a host may use of a resource.
pub fn has(host: &Host, resource: &str, key: Option<&str>) -> f64 {
    let quotas = host.quotas();
    let mut found = quotas["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|known| known["resource"] == resource && known["key"].as_str() == key);
    found.next().map_or(0.0, |known| known["has"].as_f64().unwrap())
}

/// One request of each of these tenants, one after the other; how many were answered.
fn invent_tenants(mut raw: Raw, tenants: Range<usize>) -> usize {
    let mut answered = 0;
    for some in tenants.collect::<Vec<_>>().chunks(50) {
        let ask = |n: &usize| {
            format!("GET /?bytes=1 HTTP/1.1\r\nhost: db\r\nx-tenant: invented-{n}\r\n\r\n")
        };
        raw.say(some.iter().map(ask).collect::<String>());
        answered += raw.hear_responses(some.len(), SOON).responses();
    }
    answered
}

fn memory_mib(host: &Host) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Invented tenants.
const FLOOD: usize = 20_000;
/// They come in so many parts.
const PARTS: usize = 4;

fn a_request_waits_where_the_rule_lets_it_and_observe_refuses_nobody(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let limits = "resources: [{match: slow, capacity: 10, per: 1s, burst: 1}, {match: watched, capacity: 1, per: 1m, burst: 1}], \
         apply: [{direction: outbound, service: db, path: /wait, resource: slow, wait: 1s}, \
                 {direction: outbound, service: db, path: /watch, resource: watched, mode: observe}]";
    let hosts = lab.mesh(&[alone(&app, limits)]);
    let host = &hosts[0];
    host.wait_for_roster(1);
    let to: SocketAddr = host.outbound().into();
    let start = Instant::now();
    let enough = AtomicBool::new(false);
    let mut passed: Vec<Duration> = std::thread::scope(|scope| {
        // Six at a time wait 600 ms at most, and there is always a queue.
        let wait_in_turn = || {
            let mut passed = Vec::new();
            while !enough.load(Ordering::Relaxed) {
                let answer = client::get(to, "db", "/wait").unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                passed.push(start.elapsed());
            }
            passed
        };
        let waiting: Vec<_> = (0..6).map(|_| scope.spawn(wait_in_turn)).collect();
        wait::for_true("a caller in a hurry is told at once", SOON, || {
            let mut hasty = request(Method::GET, "db", "/wait");
            hasty.headers_mut().insert("evenkeel-timeout", "100".parse().unwrap());
            client::send(to, Version::Http1, hasty).unwrap().status == 429
        });
        wait::for_true("they take turns", SOON, || app.count().0 >= 12);
        enough.store(true, Ordering::Relaxed);
        waiting.into_iter().flat_map(|waiting| waiting.join().unwrap()).collect()
    });
    passed.sort_unstable();
    // One at once and ten a second: however late an answer was, none came before its turn.
    for (turn, at) in (0..).zip(&passed) {
        assert!(*at >= Duration::from_millis(100) * turn, "{turn}: {passed:?}");
    }

    (0..30).for_each(|_| assert_eq!(host.get("db", "/watch").status, 200));
    let would = decided(&hosts, "would_refuse");
    assert!(would >= 20.0, "{would} of 30 would have been refused");
    assert_eq!(
        host.metrics().sum(
            "evenkeel_limit_requests_total",
            &[("resource", "watched"), ("outcome", "refused")]
        ),
        0.0
    );
}

/// One of two hosts stops answering. Until the other has given it up, nobody decides who gets what, and `fail` says what goes.
/// A root that one host cannot hear is none to it, for as long as that lasts: the third host vouches for both.
fn without_a_root_fail_says_what_goes(workers: usize) {
    let test = format!("e2e::limits::workers_{workers}::without_a_root_fail_says_what_goes");
    let Some(network) = Network::own(&test) else { return };
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let rate = |name: &str, more: &str| {
        format!("{{match: {name}, capacity: 20, per: 1s, burst: 2{more}}}")
    };
    let rule = |name: &str, fail: &str| {
        format!(
            "{{direction: outbound, service: db, path: /{name}, resource: {name}, fail: {fail}}}"
        )
    };
    let limits = format!(
        "resources: [{}, {}, {}, {}], apply: [{}, {}, {}, {}]",
        rate("open", ""),
        rate("closed", ""),
        rate("safe", ""),
        rate("none", ", safe: 0"),
        rule("open", "open"),
        rule("closed", "closed"),
        rule("safe", "safe"),
        rule("none", "safe"),
    );
    let setup = Setup { join: vec![1, 2, 3], ..caller(&app, &limits) };
    let hosts = lab.mesh(&[setup.clone(), setup.clone(), setup]);
    hosts.iter().for_each(|host| host.wait_for_roster(3));
    let demand = |host: &Host, name: &str| -> Vec<u16> {
        (0..8).map(|_| host.get("db", &format!("/{name}")).status.as_u16()).collect()
    };
    let seen = |host: &Host, name: &str| {
        let quotas = host.quotas();
        let mut known = quotas["resources"].as_array().unwrap().iter();
        let known = known.find(|known| known["resource"] == name)?;
        Some((known["root"].as_str()?.to_owned(), known["in_touch"] == true))
    };
    for name in ["open", "closed", "safe", "none"] {
        let leased = |host: &Host| {
            demand(host, name);
            seen(host, name).filter(|(_, in_touch)| *in_touch).map(|(root, _)| root)
        };
        let root = wait::until("it is leased", SOON, || leased(&hosts[0]));
        let root = hosts.iter().position(|host| host.name() == root).expect("one of them is root");
        let (root, asker) = (&hosts[root], &hosts[(root + 1) % 3]);
        wait::for_true("it is leased here too", SOON, || {
            leased(asker).is_some_and(|found| found == root.name())
        });
        network.cut_between(asker.ip, root.ip);
        wait::for_true(&format!("{name} is decided alone"), SOON, || {
            let told = demand(asker, name);
            seen(asker, name).is_some_and(|(_, in_touch)| !in_touch)
                && match name {
                    "open" => told.iter().all(|status| *status == 200),
                    "closed" | "none" => told.iter().all(|status| *status == 429),
                    _ => true,
                }
        });
        if name == "safe" {
            // What this host owns: a third of 20 a second.
            let (start, mut passed) = (Instant::now(), 0);
            wait::for_true("a few pass", SOON, || {
                passed += demand(asker, name).iter().filter(|status| **status == 200).count();
                passed >= 4
            });
            let most = 3.0 + start.elapsed().as_secs_f64() * 20.0 / 3.0;
            assert!(passed as f64 <= most, "{passed} passed, {most} may");
        }
        network.heal_between(asker.ip, root.ip);
        let mut told = BTreeSet::new();
        wait::for_true("it is as before", SOON, || {
            told.extend(demand(asker, name));
            seen(asker, name).is_some_and(|(_, in_touch)| in_touch)
                && [200, 429].iter().all(|status| told.contains(status))
        });
    }
}

fn applications_acquire_and_operators_look_and_change(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let rules = "apply: [{direction: outbound, service: db, resource: jobs}]";
    let limits = |resources: &str| alone(&app, &format!("resources: [{resources}], {rules}"));
    let mut hosts = lab.mesh(&[limits(
        "{match: \"jobs*\", capacity: 2, per: 10s, burst: 2}, {match: places, capacity: 3}",
    )]);
    let host = &mut hosts[0];
    host.wait_for_roster(1);
    let acquire = |host: &Host, resource: &str| {
        let url = format!("http://{}/v1/limits/{resource}", host.discovery());
        let out = Command::new("curl").args(["-s", "-i", "-X", "POST", &url]).output();
        String::from_utf8(out.expect("curl is installed by `make test`").stdout).unwrap()
    };
    let no = acquire(host, "jobs/nightly/acquire");
    assert!(no.starts_with("HTTP/1.1 404"), "a glob's * does not cross a slash: {no}");
    let yes = acquire(host, "jobs/acquire");
    assert!(yes.starts_with("HTTP/1.1 200"), "{yes}");
    assert!(yes.contains("\"granted\":true") && yes.contains("\"resource\":\"jobs\""), "{yes}");
    let no = wait::until("the limit is reached", SOON, || {
        Some(acquire(host, "jobs/acquire")).filter(|told| told.starts_with("HTTP/1.1 429"))
    });
    let no = no.to_lowercase();
    for part in [
        "retry-after: ",
        "ratelimit: \"jobs\";r=0",
        "ratelimit-policy: \"jobs\";q=2;w=10",
        "\"reason\":\"limited\"",
    ] {
        assert!(no.contains(part), "{part} in {no}");
    }
    // Each key has a limit of its own.
    assert!(acquire(host, "jobs/acquire?key=acme").starts_with("HTTP/1.1 200"));
    let counted = |outcome| {
        let labels = [("direction", "acquire"), ("resource", "jobs"), ("outcome", outcome)];
        host.metrics().sum("evenkeel_limit_requests_total", &labels)
    };
    assert!(counted("allowed") >= 2.0 && counted("refused") >= 1.0);
    for (path, status) in [
        ("nosuch/acquire", 404),
        ("jobs", 404),
        ("jobs/acquire?cost=0", 400),
        ("jobs/acquire?cost=x", 400),
        ("jobs/acquire?nosuch=1", 400),
        ("places/acquire", 409),
    ] {
        let told = acquire(host, path);
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {told}");
    }
    let foreign = request(Method::POST, "evil.example", "/v1/limits/jobs/acquire");
    assert_eq!(client::send(host.discovery().into(), Version::Http1, foreign).unwrap().status, 403);

    wait::for_true("the limited resource shows", SOON, || {
        let _ = host.get("db", "/");
        has(host, "jobs", None) > 0.0
    });
    let shown = host.cli(&["quotas"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in
        ["Shared by host-1", "RESOURCE", "WANTS", "HAS", "jobs", "2 per 10s", "has been root for"]
    {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let json = host.cli(&["quotas", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["resources"][0]["resource"], "jobs", "{json}");
    assert_eq!(host.metrics().sum("evenkeel_quota_capacity", &[("resource", "jobs")]), 2.0);

    // A larger capacity counts at once, and so does the end of the limit. It is one that no machine asks for, one
    // after the other.
    host.reload(&limits("{match: jobs, capacity: 1000000, per: 1s}"));
    wait::for_true("fifty go at once", SOON, || (0..50).all(|_| host.get("db", "/").status == 200));
    assert!(acquire(host, "places/acquire").starts_with("HTTP/1.1 404"), "it is gone");
    host.reload(&alone(&app, "resources: [{match: other, capacity: 1}]"));
    wait::for_true("jobs is no resource any more", SOON, || {
        acquire(host, "jobs/acquire").starts_with("HTTP/1.1 404")
    });
    assert_eq!(host.get("db", "/").status, 200);
    wait::for_true("nothing of it is left", SOON, || {
        host.quotas()["resources"].as_array().unwrap().is_empty()
    });
}

fn strangers_at_the_port_for_leases_do_no_harm(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let limits = "resources: [{match: db, capacity: 1000, per: 1s}], \
                  apply: [{direction: outbound, service: db, resource: db}]";
    let hosts = lab.mesh(&[alone(&app, limits)]);
    let host = &hosts[0];
    host.wait_for_roster(1);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for seed in 0..40 {
        let mut raw = Raw::connect(host.leases().into()).unwrap();
        if seed % 2 == 0 {
            raw.say(preface);
        }
        raw.say(noise(seed, 1 + 200 * usize::try_from(seed).unwrap()));
        // A frame of the largest length that it can have.
        raw.say([0xff; 9]);
    }
    let mut http1 = Raw::connect(host.leases().into()).unwrap();
    http1.say("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    let heard = http1.hear(SOON);
    assert!(heard.closed, "{}", heard.text());
    // A message that says to be 4 GiB long, and one that is none.
    for body in [&b"\0\xff\xff\xff\xff"[..], b"\0\0\0\0\x03\xff\xff\xff", b""] {
        let call = http::Request::post("/doorman.Capacity/GetCapacity")
            .header("host", "leases")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(http_body_util::Full::new(bytes::Bytes::copy_from_slice(body)))
            .unwrap();
        let answer = client::send(host.leases().into(), Version::Http2, call).unwrap();
        assert_ne!(answer.trailer("grpc-status"), "0", "{body:?}");
    }
    assert_eq!(host.get("db", "/").status, 200);
    assert_eq!(host.ask_admin("/livez").unwrap().status, 200);
}

each_workers!(
    an_outbound_limit_refuses_in_full_and_spares_the_application,
    an_inbound_limit_holds_for_everyone_and_is_not_tried_elsewhere,
    each_tenant_has_a_limit_of_its_own_and_a_flood_of_invented_ones_is_bounded,
    a_request_waits_where_the_rule_lets_it_and_observe_refuses_nobody,
    without_a_root_fail_says_what_goes,
    applications_acquire_and_operators_look_and_change,
    strangers_at_the_port_for_leases_do_no_harm,
);

//! Where requests go and where not: shards, hashing, zones, probation, and what a caller hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;

use evenkeel_tests::client::{self, Answer, Version};
use evenkeel_tests::load::Load;
use evenkeel_tests::mesh::{App, Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::{HeaderValue, Method};

/// An upstream `catalog` of these applications, without hosts beside them.
fn catalog(apps: &[App], policy: &str) -> Setup {
    let endpoints: Vec<String> = apps.iter().map(|app| format!("\"{}\"", app.address)).collect();
    let endpoints = endpoints.join(", ");
    Setup {
        upstreams: format!("[{{name: catalog, endpoints: [{endpoints}], policy: {policy}}}]"),
        join: vec![1],
        ..Setup::default()
    }
}

fn ask(host: &Host, name: &'static str, value: &str) -> Answer {
    let mut request = client::request(Method::GET, "catalog.mesh", "/");
    request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    client::send(host.outbound().into(), Version::Http1, request).unwrap()
}

/// The applications that answered requests with this header.
fn answered_by(host: &Host, name: &'static str, value: &str) -> BTreeSet<String> {
    let answers = (0..ASKED).map(|_| ask(host, name, value));
    answers
        .map(|answer| {
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.header("x-app").to_owned()
        })
        .collect()
}

fn a_tenant_stays_in_its_shard_and_takes_nobody_down_with_it(workers: usize) {
    let lab = Lab::new(workers);
    let mut apps: Vec<App> = (1..=6).map(|number| lab.app(number)).collect();
    let policy = "{shard: {key: \"header:x-tenant\", size: 2}, hedge: {mode: off}}";
    let hosts = lab.mesh(&[catalog(&apps, policy), catalog(&apps, policy)]);
    let tenants: Vec<String> = (0..TENANTS).map(|tenant| format!("tenant-{tenant}")).collect();
    let mut shards: BTreeMap<&str, BTreeSet<String>> = tenants
        .iter()
        .map(|tenant| (&**tenant, answered_by(&hosts[0], "x-tenant", tenant)))
        .collect();
    for (tenant, shard) in &shards {
        assert!(shard.len() <= 2, "{tenant} reached {shard:?}");
        let elsewhere = answered_by(&hosts[1], "x-tenant", tenant);
        assert!(shard.union(&elsewhere).count() <= 2, "both hosts: {shard:?} {elsewhere:?}");
    }
    // Two choices may have met one member alone.
    for (tenant, shard) in &mut shards {
        let asked = hosts[0].cli(&["shards", "catalog", "--key", tenant, "--output", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
        let members = report["members"].as_array().unwrap().iter();
        let members: BTreeSet<String> = members
            .map(|member| {
                let address: std::net::SocketAddrV4 =
                    member["address"].as_str().unwrap().parse().unwrap();
                format!("app-{}", address.ip().octets()[3] - 100)
            })
            .collect();
        assert!(members.len() == 2 && members.is_superset(shard), "{tenant}: {report}");
        assert_eq!(report["shards"], 15.0, "6 over 2");
        *shard = members;
    }
    let used: BTreeSet<&String> = shards.values().flatten().collect();
    assert_eq!(used.len(), 6, "all applications are in some shard");

    // What tenant 0 sends kills its servers.
    let poisoned = shards[&*tenants[0]].clone();
    assert_eq!(poisoned.len(), 2);
    for app in &mut apps {
        if poisoned.contains(&format!("app-{}", app.address.ip().octets()[3] - 100)) {
            app.process.kill();
        }
    }
    let answer = ask(&hosts[0], "x-tenant", &tenants[0]);
    assert_eq!(answer.status, 503, "{}", answer.text());
    wait::for_true("all that there was is known to be gone, and the caller told", SOON, || {
        ask(&hosts[0], "x-tenant", &tenants[0]).text().contains("none in the shard of this key")
    });
    for (tenant, shard) in shards.iter().filter(|(_, shard)| **shard != poisoned) {
        for _ in 0..ASKED {
            let answer = ask(&hosts[0], "x-tenant", tenant);
            assert_eq!(answer.status, 200, "{tenant} in {shard:?}: {}", answer.text());
            assert!(shard.contains(answer.header("x-app")), "{tenant} left {shard:?}");
        }
    }
}

fn a_key_keeps_its_endpoint(workers: usize) {
    let lab = Lab::new(workers);
    let apps: Vec<App> = (1..=4).map(|number| lab.app(number)).collect();
    let policy = "{balance: hash, hash: {key: \"header:x-user\"}, hedge: {mode: off}}";
    let hosts = lab.mesh(&[catalog(&apps, policy)]);
    let mut used = BTreeSet::new();
    for user in 0..TENANTS {
        let apps = answered_by(&hosts[0], "x-user", &format!("user-{user}"));
        assert_eq!(apps.len(), 1, "one at a time: {apps:?}");
        used.extend(apps);
    }
    assert_eq!(used.len(), 4, "users are spread");
}

fn a_slow_application_is_on_probation_until_it_is_well(workers: usize) {
    let lab = Lab::new(workers);
    let apps: Vec<App> = (1..=4).map(|number| lab.app(number)).collect();
    // Endpoints are chosen in turn, so that nothing else avoids the slow one.
    let policy = "{balance: round_robin, hedge: {mode: enforce, after: 200ms}, probation: {slower_than: 3x, min_requests: 20}}";
    let hosts = lab.mesh(&[catalog(&apps, policy)]);
    let load = hosts[0].start_load("catalog.mesh");
    load.after(200);
    apps[1].set_delay(Duration::from_millis(80));
    let at = apps[1].address.to_string();
    let on_probation = || {
        let explain = hosts[0].ask_admin("/v1/explain/catalog").unwrap().json();
        let endpoints = explain["endpoints"].as_array().unwrap();
        let slow = endpoints.iter().find(|endpoint| endpoint["address"] == at).unwrap();
        let verdicts = slow["verdicts"].as_array().unwrap();
        let held = |verdict: &serde_json::Value| {
            verdict["filter"] == "probation" && verdict["pass"] == false
        };
        verdicts.iter().any(held)
    };
    wait::for_true("it is on probation", SOON, &on_probation);
    wait::for_true("it is counted", SOON, || {
        hosts[0].metrics().sum("evenkeel_endpoints_on_probation", &[]) >= 1.0
    });
    let asked = || apps.iter().map(|app| app.count().0).sum::<u64>();
    let (before, asked_before) = (apps[1].count().0, asked());
    load.after(300);
    let (probes, asked) = (apps[1].count().0 - before, asked() - asked_before);
    assert!(
        probes * 10 <= asked,
        "{probes} of {asked} requests reached it; in turn it were a fourth"
    );
    wait::for_true("it is probed", SOON, || apps[1].count().0 > before);
    apps[1].set_delay(Duration::ZERO);
    wait::for_true("it is back", SOON, || !on_probation());
    let before = apps[1].count().0;
    wait::for_true("it is used again", SOON, || apps[1].count().0 > before + 20);
    let report = Load::finish(load);
    report.assert_no_failed_get();
    report.assert_no_failed_post();
    assert!(hosts[0].metrics().sum("evenkeel_probes_total", &[("kind", "copy")]) >= 1.0);
}

fn the_own_zone_is_preferred_and_left_when_it_fails(workers: usize) {
    let lab = Lab::new(workers);
    let mut apps: Vec<App> = [1, 2].map(|number| lab.app(number)).into();
    let host = |zone: &str, app: Option<&App>| {
        Setup {
        services: app.map_or_else(String::new, |app| {
            format!("[{{name: catalog, address: \"{}\", check: {{http: /healthz, interval: 200ms, fall: 1, rise: 1}}}}]", app.address)
        }),
        zone: zone.to_owned(),
        // Without copies nobody is suspected of silence for being a little late.
        policy: "{hedge: {mode: off}}".into(),
        ..Setup::default()
    }
    };
    let hosts = lab.mesh(&[host("a", None), host("a", Some(&apps[0])), host("b", Some(&apps[1]))]);
    hosts[0].wait_for_instances("catalog", 2);
    let load = hosts[0].start_load("catalog.mesh");
    let counts = || (apps[0].count().0, apps[1].count().0);
    let mut before = counts();
    // A moment in which the near one is slow sends some away; but not always.
    let stay = (0..20).filter(|_| {
        load.after(150);
        let (near, far) = counts();
        let stay = near - before.0 > 4 * (far - before.1);
        before = (near, far);
        stay
    });
    assert_eq!(stay.take(3).count(), 3, "four of five stay in the own zone, unless it is slow");
    apps[0].process.kill();
    let far = apps[1].count().0;
    wait::for_true("the other zone takes over", SOON, || apps[1].count().0 > far + 100);
    let report = load.finish();
    report.assert_no_failed_get();
}

fn copies_that_the_budget_refuses_ask_ever_less_often(workers: usize) {
    let lab = Lab::new(workers);
    let apps = [lab.app(1), lab.app(2)];
    let policy = "{hedge: {mode: enforce, after: 1ms, budget: 0%}}";
    let hosts = lab.mesh(&[catalog(&apps, policy)]);
    assert_eq!(hosts[0].get("catalog.mesh", "/slow?ms=2000").status, 200);
    let refused = hosts[0].metrics().sum("evenkeel_hedges_total", &[("result", "refused")]);
    // After 1, 2, 4, … 1024 ms; each millisecond would be 2,000, and as many as this machine is on time for.
    assert!((3.0..=14.0).contains(&refused), "{refused}");
}

fn a_retry_that_was_not_sent_costs_no_budget(workers: usize) {
    let lab = Lab::new(workers);
    let setup = |endpoints: &[SocketAddrV4], policy: &str| {
        let endpoints: Vec<String> = endpoints.iter().map(|at| format!("\"{at}\"")).collect();
        let endpoints = endpoints.join(", ");
        let upstreams = format!("[{{name: catalog, endpoints: [{endpoints}], policy: {policy}}}]");
        Setup { upstreams, join: vec![1], ..Setup::default() }
    };
    // Each key has an endpoint of its own, which is ejected at once: a retry is allowed, and has nowhere to go.
    let nobody: Vec<SocketAddrV4> =
        (20_001..=20_250).map(|port| SocketAddrV4::new(lab.ip(200), port)).collect();
    let lonely = "{shard: {key: \"header:x-key\", size: 1}, eject: {consecutive: 1, base: 60s, max: 100%}, \
                   panic: 0%, retry: {max: 2, budget: 0%}, hedge: {mode: off}}";
    let mut host = lab.mesh(&[setup(&nobody, lonely)]).remove(0);
    for key in 0..400 {
        assert_eq!(ask(&host, "x-key", &key.to_string()).status, 503);
    }
    let attempts =
        |host: &Host, kind| host.metrics().sum("evenkeel_attempts_total", &[("kind", kind)]);
    assert!(attempts(&host, "first") > 120.0, "more than the floor of the budget pays for");
    assert_eq!(attempts(&host, "retry"), 0.0);
    // So all of it is there for those that can be sent.
    let app = lab.app(1);
    let plain = "{eject: {consecutive: 0}, retry: {max: 2, budget: 0%}, hedge: {mode: off}}";
    host.reload(&setup(&[app.address], plain));
    wait::for_true("the application is the endpoint", SOON, || {
        host.usable("catalog") == [app.address]
    });
    assert_eq!(host.get("catalog.mesh", "/status/503").status, 503);
    assert_eq!(attempts(&host, "retry"), 2.0);
}

fn explain_says_what_hedging_would_win_and_cost(workers: usize) {
    let lab = Lab::new(workers);
    let apps = [lab.app(1), lab.app(2)];
    let hosts = lab.mesh(&[catalog(&apps, "{hedge: {mode: observe, budget: 20%}}")]);
    for at in 0..180 {
        let path = if at % 36 == 35 { "/slow?ms=900" } else { "/" };
        assert_eq!(hosts[0].get("catalog.mesh", path).status, 200);
    }
    let shown = hosts[0].cli(&["explain", "catalog", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut notes = shown["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str());
    let sentence = notes.find_map(|note| note.strip_prefix("hedging would take p99 from "));
    let sentence = sentence.unwrap_or_else(|| panic!("no advice in\n{shown}"));
    let words: Vec<&str> = sentence.split(' ').collect();
    // On a fast machine less than one.
    let ms = |at: usize| {
        let number = |unit: &str| words[at].strip_suffix(unit)?.parse::<f64>().ok();
        let in_ms = [("ms", 1.0), ("µs", 0.001), ("s", 1000.0)];
        in_ms.iter().find_map(|(unit, ms)| Some(number(unit)? * ms)).expect(sentence)
    };
    assert!(ms(0) >= 890.0 && ms(2) < 450.0, "{sentence}");
    let extra = words.iter().position(|word| *word == "%").expect(sentence) - 1;
    let extra: f64 = words[extra].parse().expect(sentence);
    assert!(extra > 0.0 && extra <= 20.0, "within hedge.budget: {sentence}");
    assert!(sentence.ends_with("policy.hedge.mode: enforce does it"), "{sentence}");
}

fn a_caller_who_asks_is_told_how_it_went(workers: usize) {
    let lab = Lab::new(workers);
    let apps = [lab.app(1)];
    let hosts = lab.mesh(&[catalog(&apps, "{}")]);
    let told = ask(&hosts[0], "evenkeel-debug", "1").header("evenkeel-debug").to_owned();
    let address = format!("address={}", apps[0].address);
    for part in [&*address, "hop=direct", "answered_by=first", "copies=0", "retries=0"] {
        assert!(told.split("; ").any(|told| told == part), "{part} in {told}");
    }
    assert_eq!(hosts[0].get("catalog", "/").header("evenkeel-debug"), "", "nobody asked");
    let seen = client::send(hosts[0].outbound().into(), Version::Http1, {
        let mut request = client::request(Method::GET, "catalog.mesh", "/headers");
        request.headers_mut().insert("evenkeel-debug", HeaderValue::from_static("1"));
        request
    });
    assert!(!seen.unwrap().text().contains("evenkeel-debug"), "the application does not see it");
}

each_workers!(
    a_tenant_stays_in_its_shard_and_takes_nobody_down_with_it,
    a_key_keeps_its_endpoint,
    a_slow_application_is_on_probation_until_it_is_well,
    the_own_zone_is_preferred_and_left_when_it_fails,
    copies_that_the_budget_refuses_ask_ever_less_often,
    a_retry_that_was_not_sent_costs_no_budget,
    explain_says_what_hedging_would_win_and_cost,
    a_caller_who_asks_is_told_how_it_went,
);

/// Addresses, and so what the hashes say, differ from run to run: enough that none of six applications is without one.
const TENANTS: usize = 64;
/// Enough that two choices meet both members of a shard.
const ASKED: usize = 12;

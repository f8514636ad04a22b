//! What services publish and operators order, as the clients on other hosts see it.

use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Version};
use evenkeel_tests::mesh::{App, Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::Method;
use http_body_util::Full;

use super::faults::{after, check, finish, start_loads, wait_until_unused};
use super::trio::{Trio, payments};

/// Three hosts; the two that offer `payments` publish this policy.
fn publishing(caller: &Setup, policy: &str) -> Trio {
    Trio::start_with(Lab::new(1), caller, |app| offers(app, policy))
}

fn offers(app: &App, policy: &str) -> String {
    payments(app, &format!(", {policy}"))
}

/// A field of the policy for this path, as the host explains it: its value, and where it comes from.
fn explained(host: &Host, path: &str, field: &str) -> (String, String) {
    let answer = host.ask_admin(&format!("/v1/explain/payments?path={path}")).unwrap();
    let report = answer.json();
    let fields = report["policy"].as_array().unwrap();
    let found = fields.iter().find(|known| known["field"] == field);
    let found = found.unwrap_or_else(|| panic!("{field} in {report}"));
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("value"), text("origin"))
}

fn notes(host: &Host) -> String {
    host.ask_admin("/v1/explain/payments").unwrap().json()["notes"].to_string()
}

fn await_field(host: &Host, field: &str, value: &str, origin: &str) {
    let what = format!("{} has {field} {value} from {origin}", host.name());
    wait::for_true(&what, SOON, || {
        explained(host, "/", field) == (value.to_owned(), origin.to_owned())
    });
}

fn said(value: &str, origin: &str) -> (String, String) {
    (value.to_owned(), origin.to_owned())
}

#[test]
fn a_published_policy_is_obeyed_by_another_host_and_explained() {
    let caller = Setup {
        bounds: "{retry: {max: 1}, hedge: {mode: observe}}".into(),
        upstreams: "[{name: payments, policy: {panic: 20%}}]".into(),
        policy: "{timeout: 9s, panic: 10%}".into(),
        ..Setup::default()
    };
    let trio = publishing(
        &caller,
        "policy: {timeout: 300ms, panic: 30%, retry: {max: 4}, hedge: {mode: enforce, budget: 7%}}, \
         routes: [{match: {path: /slow}, policy: {timeout: 20s}}]",
    );
    let host = &trio.caller;
    await_field(host, "timeout", "300ms", "published");
    assert_eq!(explained(host, "/slow", "timeout"), said("20s", "published-route"));
    assert_eq!(explained(host, "/", "panic"), said("20%", "upstream"));
    assert_eq!(explained(host, "/", "retry.max"), said("1", "published, bounded"));
    assert_eq!(explained(host, "/", "hedge.mode"), said("observe", "published, bounded"));
    assert_eq!(explained(host, "/", "hedge.budget"), said("7%", "published"));
    assert_eq!(explained(host, "/", "idle_timeout"), said("5m", "built-in"));
    // And it is what happens.
    let start = Instant::now();
    assert_eq!(host.get("payments", "/hang").status, 504);
    assert!(start.elapsed() < Duration::from_secs(9), "its own timeout: {:?}", start.elapsed());
    assert_eq!(host.get("payments", "/slow?ms=1000").status, 200);
    // Another service of the same hosts publishes nothing.
    let other = host.ask_admin("/v1/explain/payments-h2").unwrap().text();
    assert!(!other.contains("published"), "{other}");
}

#[test]
fn a_published_policy_changes_while_everything_runs_and_differences_show() {
    let mut trio = publishing(&Setup::default(), "policy: {timeout: 3s}");
    await_field(&trio.caller, "timeout", "3s", "published");
    let conflicts =
        |host: &Host| host.metrics().sum("evenkeel_policy_conflicts", &[("upstream", "payments")]);
    assert_eq!(conflicts(&trio.caller), 0.0);
    let loads = start_loads(&trio.caller);
    for at in 0..2 {
        let services = offers(&trio.apps[at], "policy: {timeout: 4s}");
        trio.hosts[at].reload(&Setup { services, ..Setup::default() });
        if at == 0 {
            wait::for_true("the difference shows", SOON, || conflicts(&trio.caller) == 2.0);
            let notes = notes(&trio.caller);
            for part in ["2 different policies", "host-2", "host-3", "3s", "4s"] {
                assert!(notes.contains(part), "{part} in {notes}");
            }
            // One each: the lower hash counts, on every host alike.
            let counts = explained(&trio.caller, "/", "timeout");
            for host in &trio.hosts {
                wait::for_true("all agree on it", SOON, || {
                    explained(host, "/", "timeout") == counts
                });
            }
        }
    }
    await_field(&trio.caller, "timeout", "4s", "published");
    wait::for_true("no difference is left", SOON, || conflicts(&trio.caller) == 0.0);
    // Taken out again.
    for at in 0..2 {
        let services = payments(&trio.apps[at], "");
        trio.hosts[at].reload(&Setup { services, ..Setup::default() });
    }
    await_field(&trio.caller, "timeout", "15s", "built-in");
    after(&loads, 50);
    let report = finish(loads);
    check(&trio, &report);
    report.assert_no_failed_post();
    let events = trio.caller.ask_admin("/v1/events").unwrap().text();
    assert!(events.contains("policy_changed"), "{events}");
}

/// What a command prints; it must end well.
fn ordered(host: &Host, args: &[&str]) -> String {
    let output = host.cli(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn an_override_holds_everywhere_at_once_and_ends_by_itself() {
    let mut trio = publishing(&Setup::default(), "policy: {timeout: 9s, hedge: {mode: enforce}}");
    await_field(&trio.caller, "timeout", "9s", "published");
    let start = Instant::now();
    let told = ordered(
        &trio.hosts[1],
        &["override", "payments", "timeout=300ms", "hedge=off", "--ttl", "20s"],
    );
    assert!(told.contains("300ms") && told.contains("--undo"), "{told}");
    for host in std::iter::once(&trio.caller).chain(&trio.hosts) {
        await_field(host, "timeout", "300ms", "override");
    }
    assert_eq!(explained(&trio.caller, "/", "hedge.mode"), said("off", "override"));
    assert_eq!(trio.caller.get("payments", "/hang").status, 504);
    assert!(notes(&trio.caller).contains("override by host-3 until"), "{}", notes(&trio.caller));
    let metric = |host: &Host| host.metrics().sum("evenkeel_orders", &[("kind", "override")]);
    assert_eq!(metric(&trio.caller), 1.0);
    assert!(ordered(&trio.caller, &["override"]).contains("payments"));
    // Nobody has to do anything, and the host that issued it need not be there.
    trio.hosts[1].process.kill();
    await_field(&trio.caller, "timeout", "9s", "published");
    assert!(start.elapsed() >= Duration::from_secs(20), "it ended early: {:?}", start.elapsed());
    assert_eq!(explained(&trio.caller, "/", "hedge.mode"), said("enforce", "published"));
    assert_eq!(metric(&trio.caller), 0.0);
    let events = trio.caller.ask_admin("/v1/events").unwrap().text();
    for kind in ["override_issued", "override_ended"] {
        assert!(events.contains(kind), "{kind} in {events}");
    }
}

#[test]
fn an_override_can_be_taken_back_at_another_host_and_bad_ones_are_refused() {
    let trio = publishing(&Setup::default(), "policy: {timeout: 9s}");
    ordered(&trio.hosts[0], &["override", "payments", "timeout=1s"]);
    await_field(&trio.caller, "timeout", "1s", "override");
    ordered(&trio.caller, &["override", "payments", "--undo"]);
    for host in std::iter::once(&trio.caller).chain(&trio.hosts) {
        await_field(host, "timeout", "9s", "published");
    }
    for (args, told) in [
        (&["override", "payments", "tiemout=1s"][..], "did you mean `timeout`?"),
        (&["override", "payments", "timeout=soon"], "timeout: `soon`"),
        (&["override", "payments", "timeout"], "write a field and its value"),
        (&["override", "paymetns", "timeout=1s"], "no service \"paymetns\""),
        (&["override", "payments", "timeout=1s", "--ttl", "25h"], "at most 24h"),
        (&["override", "payments", "--undo"], "nothing to take back"),
        (&["drain", "host-9"], "no host \"host-9\""),
        (&["drain", "host-2", "--ttl", "never"], "ttl: `never`"),
    ] {
        let output = trio.caller.cli(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(told), "{args:?}: {told} in {error}");
    }
    // What a page in the operator's browser can send changes nothing.
    for (header, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")] {
        let request = http::Request::put("/v1/override/payments")
            .header("host", "admin")
            .header(header, value)
            .body(Full::from(r#"{"fields":[["timeout","1s"]],"ttl":"1h"}"#))
            .unwrap();
        let answer = client::send(trio.caller.admin().into(), Version::Http1, request).unwrap();
        assert_eq!(answer.status, 403, "{header}: {}", answer.text());
    }
    let orders = trio.caller.ask_admin("/v1/orders").unwrap().json();
    assert_eq!(orders["orders"], serde_json::json!([]));
}

fn a_drained_host_gets_no_requests_and_loses_none(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let loads = start_loads(&trio.caller);
    after(&loads, 100);
    assert!(trio.apps[0].count().0 > 0, "it is chosen before");
    let told = ordered(&trio.caller, &["drain", "host-2", "--ttl", "1m"]);
    assert!(!told.contains("No other host"), "{told}");
    for host in std::iter::once(&trio.caller).chain(&trio.hosts) {
        wait::for_true("nobody would choose it", SOON, || {
            host.usable("payments") == [trio.apps[1].address]
        });
    }
    wait_until_unused(&trio.caller, &trio.apps[0]);
    let before = trio.apps[0].count().0;
    after(&loads, 100);
    assert_eq!(trio.apps[0].count().0, before, "it is still asked");
    let members = ordered(&trio.hosts[1], &["members"]);
    let line = members.lines().find(|line| line.starts_with("host-2")).unwrap();
    assert!(line.contains("draining"), "{members}");
    assert!(members.contains("host-2 drains, by order of host-1 until"), "{members}");
    // Taken back at the host that it is about.
    ordered(&trio.hosts[0], &["drain", "host-2", "--undo"]);
    trio.caller.wait_for_instances("payments", 2);
    wait::for_true("it is asked again", SOON, || trio.apps[0].count().0 > before + 20);
    let report = finish(loads);
    check(&trio, &report);
    report.assert_no_failed_post();

    trio.hosts[0].process.kill();
    wait::for_true("it is down", SOON, || trio.caller.members().len() == 2);
    let refused = trio.caller.cli(&["drain", "host-2"]);
    assert!(!refused.status.success(), "nobody chooses it anyway");
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("host-2 is not up"), "{refused}");
    let told = ordered(&trio.caller, &["drain", "host-3"]);
    assert!(told.contains("No other host serves payments:"), "{told}");
}

each_workers!(a_drained_host_gets_no_requests_and_loses_none);

#[test]
fn no_caller_gets_to_the_admin_or_the_catalogue_through_the_proxy() {
    let lab = Lab::new(1);
    let host = lab.mesh(&[Setup { join: vec![1], ..Setup::default() }]).remove(0);
    let mapped = format!("[::ffff:{}]:{}", host.ip, host.admin().port());
    for name in [host.admin().to_string(), mapped, host.discovery().to_string()] {
        let request = client::request(Method::GET, &name, "/v1/self");
        let answer = client::send(host.outbound().into(), Version::Http1, request).unwrap();
        assert_eq!(answer.json()["reason"], "loop", "{name}: {}", answer.text());
    }
}

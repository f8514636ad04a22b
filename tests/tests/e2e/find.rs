//! Found by DNS and by HTTP, from every host, with the tools people have.

use std::collections::BTreeSet;
use std::process::Command;

use evenkeel_tests::client::{self, Version, get, request};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::Trio;

fn dig(host: &Host, args: &[&str]) -> String {
    let at = format!("@{}", host.ip);
    let out =
        Command::new("dig").args([&at, "-p", "8600", "+tries=1", "+time=5"]).args(args).output();
    let out = out.expect("dig is installed by `make test`");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

fn found_from_every_host_by_dns_and_http(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let addresses: BTreeSet<String> =
        trio.apps.iter().map(|app| app.address.ip().to_string()).collect();
    for host in std::iter::once(&trio.caller).chain(&trio.hosts) {
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(
                lines(&dig(host, &["+short", transport, "payments.service.mesh", "A"])),
                addresses
            );
        }
        assert_eq!(
            lines(&dig(host, &["+short", "PAYMENTS.Service.test.mesh"])),
            addresses,
            "case, datacenter"
        );

        let srv = dig(host, &["payments.service.mesh", "SRV"]);
        assert!(srv.contains("status: NOERROR") && srv.contains("ANSWER: 2"), "{srv}");
        assert_eq!(srv.matches(" 8000 ").count(), 2, "the port of each:\n{srv}");
        assert!(
            addresses.iter().all(|ip| srv.contains(ip)),
            "addresses in the additional section:\n{srv}"
        );

        let wrong_type = dig(host, &["payments.service.mesh", "AAAA"]);
        assert!(
            wrong_type.contains("status: NOERROR") && wrong_type.contains("ANSWER: 0"),
            "{wrong_type}"
        );
        assert!(wrong_type.contains("SOA"), "{wrong_type}");
        let unknown = dig(host, &["nosuch.service.mesh"]);
        assert!(unknown.contains("status: NXDOMAIN") && unknown.contains("SOA"), "{unknown}");
        let above = dig(host, &["service.test.mesh"]);
        assert!(above.contains("status: NOERROR") && above.contains("ANSWER: 0"), "{above}");
        let server = dig(host, &["+short", "mesh", "NS"]);
        let server = server.trim();
        assert_eq!(dig(host, &["+short", server]).trim(), host.ip.to_string(), "{server}");
        assert!(dig(host, &["+short", "mesh", "SOA"]).starts_with(server));
        let bufsize = dig(host, &["+bufsize=4096", "payments.service.mesh"]);
        assert!(bufsize.contains("EDNS: version: 0"), "{bufsize}");

        let ask = |path: &str| get(host.discovery().into(), "discovery", path).unwrap();
        let health = ask("/v1/health/service/payments?passing");
        assert!(health.header("x-consul-index").parse::<u64>().unwrap() >= 1);
        assert_eq!(health.json().as_array().unwrap().len(), 2);
        assert!(ask("/v1/catalog/services").json()["payments"].is_array());
        assert_eq!(ask("/v1/catalog/service/payments").json().as_array().unwrap().len(), 2);
        assert_eq!(ask("/v1/catalog/nodes").json().as_array().unwrap().len(), 3);
        assert_eq!(ask("/v1/catalog/service/nosuch").json(), serde_json::json!([]));
        let members = ask("/v1/agent/members").json();
        // Serf's status 1: alive.
        let alive = members.as_array().unwrap().iter().filter(|member| member["Status"] == 1);
        assert_eq!(alive.count(), 3, "{members}");
        assert_eq!(ask("/v1/agent/self").json()["Config"]["Datacenter"], "test");
    }
}

fn an_unhealthy_instance_leaves_the_lookups_and_comes_back(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    trio.apps[0].set_healthy(false);
    for host in std::iter::once(&trio.caller).chain(&trio.hosts) {
        host.wait_for_passing("payments", 1);
        host.wait_for_instances("payments", 1);
        assert_eq!(
            dig(host, &["+short", "payments.service.mesh"]).trim(),
            trio.apps[1].address.ip().to_string()
        );
    }
    for _ in 0..20 {
        assert_eq!(trio.caller.get("payments", "/").header("x-app"), "app-3");
    }
    // Without `passing` a look-up still shows it, as critical.
    let all =
        get(trio.caller.discovery().into(), "discovery", "/v1/health/service/payments").unwrap();
    assert!(all.text().contains("\"critical\""), "{}", all.text());
    trio.apps[0].set_healthy(true);
    trio.caller.wait_for_passing("payments", 2);
}

fn registered_and_deregistered_over_http(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let web = trio.lab.app(4);
    let put = |path: &str, body: String| {
        let head = http::Request::put(path).header("host", "discovery");
        let request = head.body(http_body_util::Full::new(body.into())).unwrap();
        client::send(trio.hosts[0].discovery().into(), Version::Http1, request).unwrap()
    };
    let ip = web.address.ip();
    let body = format!(
        r#"{{"name": "Web", "ID": "web-1", "Tags": ["v2"], "Address": "{ip}", "Port": 8000}}"#
    );
    assert_eq!(put("/v1/agent/service/register", body).status, 200);
    for host in [&trio.caller, &trio.hosts[1]] {
        host.wait_for_passing("web", 1);
        host.wait_for_instances("web", 1);
        assert_eq!(dig(host, &["+short", "v2.web.service.mesh"]).trim(), ip.to_string());
        assert_eq!(
            host.get("web", "/").header("x-app"),
            "app-4",
            "reached through the host that registered it"
        );
    }
    assert_eq!(put("/v1/agent/service/deregister/web-1", String::new()).status, 200);
    for host in [&trio.caller, &trio.hosts[1]] {
        host.wait_for_passing("web", 0);
    }
}

fn an_answer_too_long_for_udp_is_whole_over_tcp(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    for n in 1..=60 {
        let body = format!(
            r#"{{"Name": "many", "ID": "many-{n}", "Address": "{}", "Port": 9000}}"#,
            trio.lab.ip(n)
        );
        let head = http::Request::put("/v1/agent/service/register").header("host", "discovery");
        let request = head.body(http_body_util::Full::new(body.into())).unwrap();
        let answer =
            client::send(trio.hosts[1].discovery().into(), Version::Http1, request).unwrap();
        assert_eq!(answer.status, 200);
    }
    trio.caller.wait_for_passing("many", 60);
    let short = dig(&trio.caller, &["+noedns", "+ignore", "many.service.mesh"]);
    assert!(short.lines().any(|line| line.contains("flags:") && line.contains(" tc")), "{short}");
    // Without +ignore dig asks again over TCP.
    assert_eq!(lines(&dig(&trio.caller, &["+short", "+noedns", "many.service.mesh"])).len(), 60);
    // Who asks from this host gets what it offers to take, with one address for each SRV record; the last is OPT.
    let large = dig(&trio.caller, &["+bufsize=8192", "+ignore", "_many._tcp.service.mesh", "SRV"]);
    assert!(large.contains("ANSWER: 60") && large.contains("ADDITIONAL: 61"), "{large}");
    assert!(!large.lines().any(|l| l.contains("flags:") && l.contains(" tc")), "{large}");
}

fn the_proxy_takes_the_names_of_addresses_that_dns_answers(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    for app in &trio.apps {
        let hex: String =
            app.address.ip().octets().iter().map(|octet| format!("{octet:02x}")).collect();
        let name = format!("{hex}.addr.test.mesh");
        assert_eq!(dig(&trio.caller, &["+short", &name]).trim(), app.address.ip().to_string());
        let answer = trio.caller.get(&format!("{name}:{}", app.address.port()), "/");
        assert_eq!(answer.header("x-app"), app.id());
    }
    assert_eq!(trio.caller.get("_payments._tcp.service.mesh", "/").status, 200);
    // Nobody listens there: the host is known, and dialled.
    assert_eq!(trio.caller.get("host-2.node.mesh:1", "/").status, 502);
    assert_eq!(trio.caller.get("host-9.node.mesh:1", "/").status, 404);
}

fn the_command_line_shows_what_the_mesh_knows(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let run = |args: &[&str]| {
        let out = trio.caller.cli(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let members = run(&["members"]);
    assert!(["host-1", "host-2", "host-3"].iter().all(|name| members.contains(name)), "{members}");
    assert!(run(&["services"]).contains("payments"));
    let endpoints = run(&["endpoints", "payments"]);
    assert!(trio.hosts.iter().all(|host| endpoints.contains(&host.name())), "{endpoints}");
    assert!(run(&["explain", "payments"]).contains("timeout"));
    assert!(run(&["events"]).contains("host-2"));
    for what in [
        &["members"][..],
        &["services"],
        &["endpoints", "payments"],
        &["explain", "payments"],
        &["events"],
    ] {
        let text = run(&[what, &["--output", "json"]].concat());
        serde_json::from_str::<serde_json::Value>(&text)
            .unwrap_or_else(|error| panic!("{what:?}: {error}: {text}"));
    }
    let nowhere = Command::new(evenkeel_tests::process::program("evenkeel"))
        .args(["members", "--admin", &format!("{}:7119", trio.lab.ip(99))])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
}

fn a_member_that_leaves_is_gone_for_its_goodbye(workers: usize) {
    let mut trio = Trio::start(
        Lab::new(workers),
        &Setup { shutdown: "{settle: 100ms, timeout: 5s}".into(), ..Setup::default() },
    );
    trio.hosts[0].process.signal(rustix::process::Signal::TERM);
    assert!(trio.hosts[0].process.wait(SOON).success());
    for host in [&trio.caller, &trio.hosts[1]] {
        wait::for_true("the member that said goodbye is gone", SOON, || {
            host.members() == ["host-1", "host-3"] && host.passing("payments").len() == 1
        });
    }
    // Some hear the goodbye, others find the port closed before it comes to them.
    let hosts = [&trio.caller, &trio.hosts[1]];
    wait::for_true("it is told as a goodbye", SOON, || {
        hosts.iter().any(|host| host.has_event("member_left", "host-2"))
    });
    let missing = client::send(
        trio.caller.discovery().into(),
        Version::Http1,
        request(Method::GET, "discovery", "/v1/kv/x"),
    );
    assert_eq!(missing.unwrap().status, 501, "no key-value store is pretended");
}

each_workers!(
    found_from_every_host_by_dns_and_http,
    an_unhealthy_instance_leaves_the_lookups_and_comes_back,
    registered_and_deregistered_over_http,
    an_answer_too_long_for_udp_is_whole_over_tcp,
    the_proxy_takes_the_names_of_addresses_that_dns_answers,
    the_command_line_shows_what_the_mesh_knows,
    a_member_that_leaves_is_gone_for_its_goodbye,
);

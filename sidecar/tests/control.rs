//! The control side with the real binary and real clients (curl, dig): hosts on loopback addresses of their own
//! find each other, take registrations, answer look-ups, and forget each other when they should.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod host;

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use host::{Application, Host, eventually, output_of};
use serde_json::Value;

#[test]
fn what_is_registered_on_one_host_is_found_on_the_other() {
    let (a, b) = Host::pair("found");
    let application = Application::answering(200);
    let registered = b.put(
        "/v1/agent/service/register",
        &format!(
            r#"{{"Name": "web", "ID": "web:1", "Address": "{}", "Port": {}, "Tags": ["v2"],
                "Check": {{"HTTP": "http://{}/healthz", "Interval": "100ms", "Timeout": "1s"}}}}"#,
            application.address.ip(),
            application.address.port(),
            application.address,
        ),
    );
    assert_eq!(registered, (200, String::new()));

    eventually("the other host's DNS knows it", || {
        a.dig("web.service.mesh", "A") == [application.address.ip().to_string()]
    });
    assert_eq!(a.dig("web.mesh", "A"), [application.address.ip().to_string()]);
    assert_eq!(a.dig_tcp("v2.web.service.mesh", "A"), [application.address.ip().to_string()]);
    assert!(a.dig("v3.web.service.mesh", "A").is_empty());
    assert!(a.dig("nothing.service.mesh", "A").is_empty());
    let records = a.dig("web.service.mesh", "SRV");
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(records[0].starts_with(&format!("1 1 {} ", application.address.port())), "{records:?}");

    let healthy = a.get("/v1/health/service/web?passing&tag=v2");
    assert_eq!(healthy[0]["Service"]["ID"], "web:1");
    assert_eq!(healthy[0]["Service"]["Port"], application.address.port());
    assert_eq!(a.get("/v1/health/service/web?tag=v3"), Value::Array(Vec::new()));
    assert_eq!(a.get("/v1/catalog/services")["web"], serde_json::json!(["v2"]));
    assert_eq!(a.get("/v1/catalog/service/web")[0]["ServiceID"], "web:1");
    assert!(b.get("/v1/agent/services")["web:1"].is_object());
    assert!(
        a.get("/v1/agent/services").get("web:1").is_none(),
        "it is not registered on this host"
    );

    application.answer(503);
    eventually("a failing check takes it out", || a.dig("web.service.mesh", "A").is_empty());
    assert_eq!(a.get("/v1/health/service/web?passing"), Value::Array(Vec::new()));
    eventually("it is listed as critical", || {
        a.get("/v1/health/service/web")[0]["Checks"]
            .as_array()
            .is_some_and(|checks| checks.iter().any(|check| check["Status"] == "critical"))
    });
    application.answer(200);
    eventually("a passing check brings it back", || !a.dig("web.service.mesh", "A").is_empty());

    assert_eq!(b.put("/v1/agent/service/deregister/web%3A1", "").0, 200);
    eventually("it is withdrawn", || a.get("/v1/health/service/web") == Value::Array(Vec::new()));
    assert_eq!(b.put("/v1/agent/service/deregister/web:1", "").0, 404);
    let events = a.evenkeel(&["events"]);
    for kind in ["member_up", "instance_registered", "health_changed", "instance_gone"] {
        assert!(events.contains(kind), "{kind} in:\n{events}");
    }
}

#[test]
fn a_check_of_the_host_takes_all_it_offers_out_and_back() {
    let (a, mut b) = Host::pair("host-check");
    b.offer("web", "10.0.0.9", 80);
    eventually("it is found", || !a.dig("web.service.mesh", "A").is_empty());
    let check = r#"{"Name": "disk", "TTL": "10m", "Status": "passing", "Notes": "df /var"}"#;
    assert_eq!(b.put("/v1/agent/check/register", check).0, 200);
    eventually("it shows with the instance", || {
        a.get("/v1/health/service/web?passing")[0]["Checks"]
            .as_array()
            .is_some_and(|checks| checks.iter().any(|check| check["CheckID"] == "disk"))
    });
    assert_eq!(b.put("/v1/agent/check/fail/disk?note=full", "").0, 200);
    eventually("it is out of look-ups", || a.dig("web.service.mesh", "A").is_empty());
    assert_eq!(a.get("/v1/health/service/web?passing"), Value::Array(Vec::new()));
    assert_eq!(b.get("/v1/agent/checks")["disk"]["Output"], "full");
    assert_eq!(a.get("/v1/health/state/critical")[0]["CheckID"], "disk");
    assert!(
        a.evenkeel(&["explain", "web"]).contains("full"),
        "{}",
        a.evenkeel(&["explain", "web"])
    );

    b.kill();
    b.start();
    eventually("it is still known after a restart", || {
        b.get("/v1/agent/checks")["disk"].is_object()
    });
    assert_eq!(b.put("/v1/agent/check/pass/disk", "").0, 200);
    eventually("it is back", || !a.dig("web.service.mesh", "A").is_empty());
    // One that the host runs itself.
    let application = Application::answering(503);
    let check = format!(
        r#"{{"Name": "agent", "HTTP": "http://{}/healthz", "Interval": "100ms"}}"#,
        application.address
    );
    assert_eq!(b.put("/v1/agent/check/register", &check).0, 200);
    eventually("its result takes it out", || a.dig("web.service.mesh", "A").is_empty());
    assert_eq!(b.put("/v1/agent/check/deregister/agent", "").0, 200);
    eventually("it is back without the check", || !a.dig("web.service.mesh", "A").is_empty());
    assert_eq!(b.put("/v1/agent/check/deregister/agent", "").0, 404);
}

#[test]
fn what_a_killed_host_offered_is_chosen_by_no_look_up() {
    let (a, mut b) = Host::pair("killed");
    b.offer("web", "10.0.0.9", 80);
    eventually("it is found", || !a.dig("web.service.mesh", "A").is_empty());
    b.kill();
    // Five seconds are promised: `discovery/tests/simulation.rs` holds them, whose clock is not this machine's.
    eventually("its service is gone from DNS and from what is passing", || {
        a.dig("web.service.mesh", "A").is_empty()
            && a.get("/v1/health/service/web?passing") == Value::Array(Vec::new())
    });
    let lost = a.get("/v1/health/service/web");
    assert_eq!(lost[0]["Checks"][0]["Status"], "critical", "who watches it is told: {lost}");
    eventually("it is shown as failed", || a.evenkeel(&["members"]).contains("failed"));
    assert!(a.evenkeel(&["events"]).contains("member_down"));
}

#[test]
fn a_host_that_says_goodbye_is_gone_without_being_found_dead() {
    let (a, mut b) = Host::pair("goodbye");
    b.offer("web", "10.0.0.9", 80);
    eventually("it is found", || !a.dig("web.service.mesh", "A").is_empty());
    b.terminate();
    eventually("its service is gone", || a.dig("web.service.mesh", "A").is_empty());
    eventually("it is shown as left", || a.evenkeel(&["members"]).contains("left"));
    eventually("that is told", || a.evenkeel(&["events"]).contains("member_left"));
    assert_eq!(b.wait(), Some(0));
}

#[test]
fn a_restart_keeps_the_id_and_the_registrations() {
    let (a, mut b) = Host::pair("restart");
    b.offer("web", "10.0.0.9", 80);
    let id = b.admin("/v1/self")["id"].clone();
    assert!(id.as_str().is_some_and(|id| id != "0000000000000000"));
    b.kill();
    b.start();
    assert_eq!(b.admin("/v1/self")["id"], id);
    eventually("its registration is back, without anyone registering", || {
        a.get("/v1/health/service/web?passing")[0]["Service"]["ID"] == "web"
    });
    eventually("both know both", || a.alive() == 2 && b.alive() == 2);
}

#[test]
fn registrations_that_cannot_be_are_refused_with_a_reason() {
    let host = Host::alone("refused");
    for (body, status, says) in [
        ("{", 400, ""),
        (r#"{"Port": 80}"#, 400, ""),
        (r#"{"Name": "no spaces", "Port": 80}"#, 400, "name"),
        (r#"{"Name": "web", "Port": 80, "Check": {"Script": "true"}}"#, 501, "Script"),
    ] {
        let (found, text) = host.put("/v1/agent/service/register", body);
        assert_eq!(found, status, "{body}: {text}");
        assert!(text.contains(says), "{body}: {text}");
    }
    let (status, text) = host
        .put("/v1/agent/service/register", &format!(r#"{{"Name": "{}"}}"#, "x".repeat(300_000)));
    assert_eq!(status, 413, "{text}");
    assert_eq!(host.put("/v1/kv/key", "value").0, 501);
    assert_eq!(host.get("/v1/catalog/services"), serde_json::json!({}));
}

#[test]
fn a_blocking_query_wakes_at_a_change_of_its_service_alone() {
    let host = Host::alone("blocking");
    host.offer("web", "10.0.0.9", 80);
    host.offer("other", "10.0.0.9", 81);
    eventually("both are there", || {
        host.get("/v1/catalog/services").as_object().is_some_and(|all| all.len() == 2)
    });
    let index = host.header("/v1/health/service/web", "x-consul-index");
    let waiting = {
        let url = host.url(&format!("/v1/health/service/web?index={index}&wait=60s"));
        std::thread::spawn(move || {
            output_of(Command::new("curl").args(["-sS", "-i", "--max-time", "50", &url]))
        })
    };
    assert_eq!(host.put("/v1/agent/service/deregister/other", "").0, 200);
    eventually("the other service is gone", || {
        host.get("/v1/catalog/services").as_object().is_some_and(|all| all.len() == 1)
    });
    assert!(!waiting.is_finished(), "a change of another service must not wake it");
    host.offer_as("web", "web-2", "10.0.0.10", 80);
    let answer = waiting.join().unwrap();
    assert!(answer.contains("web-2"), "{answer}");
    let woken: u64 = host.header("/v1/health/service/web", "x-consul-index").parse().unwrap();
    assert!(woken > index.parse().unwrap());
    let at_once = host.get(&format!("/v1/health/service/web?index={woken}&wait=1ms"));
    assert_eq!(at_once.as_array().map(Vec::len), Some(2));
}

#[test]
fn garbage_on_the_gossip_port_is_counted_and_harmless() {
    let (a, b) = Host::pair("garbage");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = a.listener("mesh.gossip.listen");
    for datagram in [&b""[..], b"x", &[0xff; 200], &[0; 1200], &[7; 9000]] {
        socket.send_to(datagram, &target).unwrap();
    }
    for claim in [u32::MAX, 8 * 1024 * 1024, 3, 0] {
        let mut stream = std::net::TcpStream::connect(&target).unwrap();
        use std::io::Write as _;
        stream.write_all(&claim.to_be_bytes()).unwrap();
        let _ = stream.write_all(b"junk");
    }
    eventually("they are counted", || {
        let metrics = a.admin_text("/metrics");
        let refused =
            metrics.lines().filter(|line| line.starts_with("evenkeel_gossip_refused_total"));
        let counts = refused.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>() >= 5.0
    });
    b.offer("web", "10.0.0.9", 80);
    eventually("gossip goes on", || !a.dig("web.service.mesh", "A").is_empty());
}

#[test]
fn sealed_hosts_find_each_other_and_ignore_a_stranger() {
    let key = host::keygen();
    let a = Host::with("sealed", "", Some(&key), &[]);
    let b = Host::with("sealed", "", Some(&key), &[&a]);
    let stranger = Host::with("sealed", "", Some(&host::keygen()), &[&a]);
    assert_eq!(stranger.admin_status("/readyz"), 503);
    eventually("those with the key know each other", || a.alive() == 2 && b.alive() == 2);
    eventually("the stranger is told why", || {
        stranger.evenkeel(&["events"]).contains("join_failed")
    });
    assert_eq!(stranger.alive(), 1);
    assert_eq!(a.alive(), 2);
}

#[test]
fn a_configured_service_is_offered_checked_and_changed_by_a_reload() {
    let application = Application::answering(200);
    let service = |name: &str| {
        format!(
            "services:\n  - name: {name}\n    id: one\n    address: {}\n    check: {{http: /healthz, interval: 100ms}}\n",
            application.address
        )
    };
    let mut host = Host::with("configured", &service("first"), None, &[]);
    eventually("it passes", || !host.dig("first.service.mesh", "A").is_empty());
    let (status, text) = host.put("/v1/agent/service/deregister/one", "");
    assert_eq!(status, 409, "{text}");
    host.reconfigure(&service("second"));
    eventually("the new name is there, the old one gone", || {
        !host.dig("second.service.mesh", "A").is_empty()
            && host.dig("first.service.mesh", "A").is_empty()
    });
}

#[test]
fn ports_are_chosen_and_shown_and_a_taken_one_is_named() {
    let host = Host::alone("ports");
    let listeners = host.admin("/v1/self")["listeners"].clone();
    for name in ["mesh.gossip.listen", "discovery.http", "discovery.dns", "admin.listen"] {
        let address = listeners[name].as_str().unwrap_or_default().to_owned();
        assert!(!address.is_empty() && !address.ends_with(":0"), "{name} in {listeners}");
    }
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = Host::refused(&format!("discovery: {{http: \"{address}\"}}\n"));
    assert!(refused.contains("discovery.http") && refused.contains(&address), "{refused}");
}

#[test]
fn what_is_asked_for_twice_is_answered_when_it_is_on_the_disk() {
    let host = Host::alone("disk");
    host.offer("before", "10.0.0.1", 80);
    // A disk that takes nothing until somebody reads here, and cannot promise to keep it then.
    let pipe = host.state().join(".discovery.json.new");
    output_of(Command::new("mkfifo").arg(&pipe));
    let body = r#"{"Name": "web", "ID": "web", "Address": "10.0.0.2", "Port": 80}"#;
    let put = || host.put("/v1/agent/service/register", body).0;
    std::thread::scope(|scope| {
        let told = |what: &str| host.evenkeel(&["events"]).contains(what);
        let first = scope.spawn(put);
        eventually("the first is taken", || told("web at 10.0.0.2"));
        let second = scope.spawn(put);
        let after = scope.spawn(|| host.put("/v1/agent/service/deregister/before", "").0);
        eventually("what came after it is taken", || told("deregistered"));
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let reader =
            fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(&pipe).unwrap();
        for asked in [first, second, after] {
            assert_eq!(asked.join().unwrap(), 500, "it is not on the disk");
        }
        drop(reader);
    });
    fs::remove_file(&pipe).unwrap();
    assert_eq!(put(), 200);
    let kept = fs::read_to_string(host.state().join("discovery.json")).unwrap();
    assert!(kept.contains("10.0.0.2:80"), "{kept}");
}

#[test]
fn a_limit_that_keeps_a_registration_out_shows_at_the_host_that_was_asked() {
    let host = Host::with("full", "limits: {records: 2}\n", None, &[]);
    host.offer("one", "10.0.0.1", 80);
    host.offer("two", "10.0.0.1", 80);
    let body = r#"{"Name": "three", "Address": "10.0.0.1", "Port": 80}"#;
    for _ in 0..2 {
        let (status, why) = host.put("/v1/agent/service/register", body);
        assert_eq!(status, 507);
        assert!(why.contains("limits.records"), "{why}");
    }
    let events = host.evenkeel(&["events"]);
    assert_eq!(events.matches("limit_reached").count(), 1, "told once: {events}");
    assert!(host.admin_text("/metrics").contains("evenkeel_registrations_refused_total 2"));
    host.offer("one", "10.0.0.9", 80);
    assert_eq!(host.put("/v1/agent/service/deregister/two", "").0, 200);
    host.offer("three", "10.0.0.1", 80);
}

#[test]
fn a_registration_of_a_listener_of_evenkeels_is_refused() {
    let mut host = Host::alone("own");
    let register = |host: &Host, address: &str| {
        let (ip, port) = address.rsplit_once(':').unwrap();
        let body = format!(r#"{{"Name": "round", "Address": "{ip}", "Port": {port}}}"#);
        host.put("/v1/agent/service/register", &body)
    };
    let listeners = [
        "outbound.listen",
        "mesh.data.listen",
        "mesh.gossip.listen",
        "admin.listen",
        "discovery.http",
        "discovery.dns",
    ];
    for listener in listeners {
        let (status, text) = register(&host, &host.listener(listener));
        assert_eq!(status, 400, "{listener}: {text}");
        assert!(text.contains("register the application's own Address and Port"), "{text}");
    }
    // A listener that is newer than the registration: its requests say so.
    let free = TcpListener::bind((host.address(), 0)).unwrap().local_addr().unwrap().to_string();
    assert_eq!(register(&host, &free).0, 200);
    host.relisten(&format!("[{{listen: \"{free}\", service: other}}]"));
    let proxy = format!("http://{}/", host.listener("outbound.listen"));
    let ask = || {
        let curl = ["-sS", "--max-time", "20", "-H", "Host: round.mesh", "-w", "%{http_code}"];
        output_of(Command::new("curl").args(curl).arg(&proxy))
    };
    eventually("its requests are told", || {
        let told = ask();
        told.ends_with("503")
            && told.contains("register the application's own")
            && told.contains("evenkeel endpoints round")
    });
}

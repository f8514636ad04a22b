//! Drain, reload and restart: nothing is lost that nobody killed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Version, get};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::sockets;
use evenkeel_tests::wait::{self, SOON};
use rustix::process::Signal;

use super::faults::{after, check, finish, start_loads};
use super::trio::Trio;

const RELOADED: &str = "evenkeel_config_last_reload_successful";

fn draining_a_host_loses_nothing(workers: usize) {
    let setup = Setup { shutdown: "{settle: 2s, timeout: 10s}".into(), ..Setup::default() };
    let mut trio = Trio::start(Lab::new(workers), &setup);
    let loads = start_loads(&trio.caller);
    after(&loads, 150);
    let start = Instant::now();
    trio.hosts[0].process.signal(Signal::TERM);
    let status = trio.hosts[0].process.wait(SOON);
    assert!(status.success(), "a drained host ends well: {status}");
    assert!(start.elapsed() >= Duration::from_secs(2), "it went on accepting for shutdown.settle");
    wait::for_true("it has left the mesh", SOON, || trio.caller.members().len() == 2);
    // By its goodbye, unless its closed ports were found first.
    wait::for_true("that is told", SOON, || {
        ["member_left", "member_down"].iter().any(|kind| trio.caller.has_event(kind, "host-2"))
    });
    after(&loads, 100);
    trio.hosts[0].start_again();
    trio.caller.wait_for_instances("payments", 2);
    after(&loads, 100);
    let report = finish(loads);
    check(&trio, &report);
    report.assert_no_failed_post();
}

fn what_is_in_flight_finishes_before_a_drained_host_ends(workers: usize) {
    let setup = Setup { shutdown: "{settle: 100ms, timeout: 20s}".into(), ..Setup::default() };
    let mut trio = Trio::start(Lab::new(workers), &setup);
    let to = trio.caller.outbound();
    let slow: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || get(to.into(), "payments", "/slow?ms=3000").unwrap()))
        .collect();
    wait::for_true("both applications are busy", SOON, || {
        trio.apps.iter().all(|app| app.count().0 > 0)
    });
    wait::for_true("all have arrived", SOON, || {
        trio.apps.iter().map(|app| app.count().0).sum::<u64>() == 8
    });
    trio.hosts[0].process.signal(Signal::TERM);
    for answer in slow {
        let answer = answer.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(trio.hosts[0].process.wait(SOON).success());
    assert_eq!(
        trio.apps
            .iter()
            .map(evenkeel_tests::mesh::App::count)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (8, 0),
        "none was repeated"
    );
}

fn an_answer_that_its_caller_has_not_taken_is_written_before_a_drained_host_ends(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let upstreams = format!("[{{name: direct, endpoints: [\"{}\"]}}]", app.address);
    let mut host = lab.mesh(&[Setup { upstreams, ..Setup::default() }]).remove(0);
    // A caller of HTTP/2 that takes ten bytes of the twenty that it asks for: the proxy has had all of them then.
    let mut caller = Raw::connect(host.outbound().into()).unwrap();
    caller.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    caller.say(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x0a");
    let head = b"\x82\x86\x01\x06direct\x04\x0a/?bytes=20";
    caller.say([&[0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1], &head[..]].concat());
    let counted =
        || host.metrics().sum("evenkeel_responses_total", &[("upstream", "direct")]) == 1.0;
    wait::for_true("its request is over", SOON, counted);
    host.process.signal(Signal::TERM);
    let first = caller.hear(Duration::from_secs(2)).bytes;
    assert!(first.windows(9).any(|frame| frame == [0, 0, 10, 0, 0, 0, 0, 0, 1]), "{first:?}");
    // Room for the rest.
    caller.say(b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\x0a");
    let rest = caller.hear(Duration::from_secs(2)).bytes;
    assert!(rest.windows(9).any(|frame| frame == [0, 0, 10, 0, 1, 0, 0, 0, 1]), "{rest:?}");
    drop(caller);
    assert!(host.process.wait(SOON).success());
}

fn reloading_under_load_loses_nothing_and_keeps_the_listeners(workers: usize) {
    let lab = Lab::new(workers);
    let listeners = format!("[{{listen: \"{}:8200\", service: payments}}]", lab.ip(1));
    let setup = Setup { listeners, ..Setup::default() };
    let mut trio = Trio::start(lab, &setup);
    let sockets = |trio: &Trio| -> Vec<BTreeMap<_, _>> {
        let hosts = std::iter::once(&trio.caller).chain(&trio.hosts);
        hosts.map(|host| sockets::listening(host.process.pid())).collect()
    };
    let before = sockets(&trio);
    assert!(before[0].len() >= 5, "the listeners are seen: {:?}", before[0].keys());
    let loads = start_loads(&trio.caller);
    after(&loads, 100);

    for round in 1..=3 {
        let catalog =
            format!("[{{name: catalog-{round}, endpoints: [\"{}\"]}}]", trio.apps[0].address);
        let policy = format!(
            "{{timeout: {}s, balance: {}}}",
            10 + round,
            ["p2c", "round_robin", "least_request"][round - 1]
        );
        let new = Setup { upstreams: catalog, policy: policy.clone(), ..setup.clone() };
        trio.caller.reload(&new);
        for at in 0..2 {
            let services = super::trio::payments(&trio.apps[at], ", tags: [v2]");
            let other = Setup {
                services,
                policy: policy.clone(),
                listeners: String::new(),
                ..setup.clone()
            };
            trio.hosts[at].reload(&other);
        }
        wait::for_true("the new upstream is there", SOON, || {
            get(trio.caller.outbound().into(), &format!("catalog-{round}"), "/")
                .is_ok_and(|answer| answer.status == 200)
        });
        after(&loads, 50);
    }
    wait::for_true("the new tag is published", SOON, || {
        let found =
            get(trio.caller.discovery().into(), "discovery", "/v1/health/service/payments?tag=v2")
                .unwrap();
        found.json().as_array().unwrap().len() == 2
    });
    assert_eq!(trio.caller.metrics().sum(RELOADED, &[]), 1.0);
    after(&loads, 100);
    let report = finish(loads);
    check(&trio, &report);
    report.assert_no_failed_post();
    for (old, new) in before.iter().zip(sockets(&trio)) {
        assert_eq!(*old, new, "every listener is the same socket as before");
    }
}

fn a_bad_file_leaves_the_old_one_running_and_says_so(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let loads = start_loads(&trio.caller);
    after(&loads, 50);
    assert_eq!(trio.caller.metrics().sum(RELOADED, &[]), 1.0);
    for bad in ["policy: {timeout: soon, colour: red}\n", "policy: [\n", "polcy: {timeout: 1s}\n"] {
        trio.caller.reload(&Setup { more: bad.into(), ..Setup::default() });
        wait::for_true("the failed reload shows", SOON, || {
            trio.caller.metrics().sum(RELOADED, &[]) == 0.0
        });
        let log = trio.caller.process.output().unwrap();
        assert!(log.contains("evenkeel.yaml"), "the log names the file: {log}");
        trio.caller.reload(&Setup::default());
        wait::for_true("the good one is taken", SOON, || {
            trio.caller.metrics().sum(RELOADED, &[]) == 1.0
        });
    }
    let admin = trio.caller.ask_admin("/config").unwrap();
    assert_eq!(admin.status, 200);
    trio.caller.reload(&Setup {
        more: "policy: {timeout: soon, colour: red}\n".into(),
        ..Setup::default()
    });
    wait::for_true("the admin says what is wrong", SOON, || {
        let text = trio.caller.ask_admin("/v1/events").unwrap().text();
        text.contains("colour") && text.contains("timeout")
    });
    after(&loads, 50);
    let report = finish(loads);
    check(&trio, &report);
    report.assert_no_failed_post();
    // A good file with a change that cannot be taken while running: taken as far as it can be, the rest is named.
    trio.caller.reload(&Setup { mesh: "renamed".into(), ..Setup::default() });
    wait::for_true("what needs a restart is named", SOON, || {
        let log = trio.caller.process.output().unwrap();
        log.lines().any(|line| line.contains("restart") && line.contains("mesh.name"))
    });
    assert_eq!(trio.caller.members().len(), 3, "it is still in the mesh that it was started in");
}

/// Asks a listener of one service, on a connection that was opened before.
fn ask(mut stream: TcpStream, host: &str) -> String {
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn a_refused_reload_changes_nothing(workers: usize) {
    let lab = Lab::new(workers);
    let [stays, taken, free] = [8200, 8201, 8202].map(|port| SocketAddrV4::new(lab.ip(1), port));
    let listeners = |addresses: &[SocketAddrV4]| {
        let one = |address: &SocketAddrV4| format!("{{listen: \"{address}\", service: payments}}");
        format!("[{}]", addresses.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    let setup = Setup { listeners: listeners(&[stays]), ..Setup::default() };
    let mut trio = Trio::start(lab, &setup);
    let shown = |trio: &Trio| {
        let listeners = trio.caller.ask_admin("/v1/self").unwrap().json()["listeners"].take();
        let config = trio.caller.ask_admin("/config").unwrap().text();
        (listeners, config, sockets::listening(trio.caller.process.pid()))
    };
    let before = shown(&trio);
    let other = std::net::TcpListener::bind(taken).unwrap();
    trio.caller.reload(&Setup {
        listeners: listeners(&[taken, free]),
        services: "[{name: new, address: \"127.0.0.1:1\"}]".into(),
        more: "limits: {connections: 2}\n".into(),
        ..Setup::default()
    });
    wait::for_true("the reload is refused", SOON, || {
        trio.caller.metrics().sum(RELOADED, &[]) == 0.0
    });
    let file = trio.caller.config().display().to_string();
    wait::for_true("that is told", SOON, || trio.caller.has_event("reload_refused", &file));
    assert_eq!(shown(&trio), before);
    let held: Vec<_> = (0..8).map(|_| TcpStream::connect(stays).unwrap()).collect();
    for stream in held {
        let answer = ask(stream, "anything");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(TcpStream::connect(free).is_err(), "what could be opened is closed again");
    assert!(trio.caller.passing("new").is_empty());
    // As soon as it can be taken it is, whole.
    drop(other);
    trio.caller.reload(&Setup { listeners: listeners(&[taken, free]), ..Setup::default() });
    wait::for_true("the good one is taken", SOON, || {
        trio.caller.metrics().sum(RELOADED, &[]) == 1.0
    });
    for address in [taken, free] {
        let answer = ask(TcpStream::connect(address).unwrap(), "anything");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    wait::for_true("the old one is closed", SOON, || TcpStream::connect(stays).is_err());
}

fn a_listener_that_is_for_another_service_now_is_the_same_socket(workers: usize) {
    let lab = Lab::new(workers);
    let address = SocketAddrV4::new(lab.ip(1), 8200);
    let listeners = |of: &str| format!("[{{listen: \"{address}\", service: {of}}}]");
    let setup = Setup { listeners: listeners("payments"), ..Setup::default() };
    let mut trio = Trio::start(lab, &setup);
    let before = sockets::listening(trio.caller.process.pid());
    let early = TcpStream::connect(address).unwrap();
    let other = trio.lab.app(4);
    let upstreams = format!("[{{name: other, endpoints: [\"{}\"]}}]", other.address);
    trio.caller.reload(&Setup { listeners: listeners("other"), upstreams, ..setup });
    wait::for_true("it is for the other service", SOON, || {
        ask(TcpStream::connect(address).unwrap(), "anything").contains("app-4")
    });
    assert_eq!(sockets::listening(trio.caller.process.pid()), before);
    assert!(ask(early, "anything").starts_with("HTTP/1.1 200"), "who was there before is served");
    wait::for_true("it is shown so", SOON, || {
        let shown = trio.caller.ask_admin("/v1/self").unwrap().json();
        shown["listeners"]["outbound.listeners[0] (other)"] == address.to_string()
            && shown["listeners"]["outbound.listeners[0] (payments)"].is_null()
    });
}

fn a_host_that_goes_away_follows_the_mesh_to_the_last(workers: usize) {
    // Longer than anything here takes: the host ends with the test.
    let setup = Setup { shutdown: "{settle: 1h, timeout: 10s}".into(), ..Setup::default() };
    let mut trio = Trio::start(Lab::new(workers), &setup);
    trio.caller.process.signal(Signal::TERM);
    wait::for_true("it goes away", SOON, || {
        trio.caller.ask_admin("/readyz").is_some_and(|answer| answer.status == 503)
    });
    let web = trio.lab.app(4);
    let services = format!("[{{name: web, address: \"{}\"}}]", web.address);
    trio.hosts[0].reload(&Setup { services, ..setup });
    wait::for_true("its applications reach what has come", SOON, || {
        trio.caller.get("web", "/").status == 200
    });
    wait::for_true("and not what has gone", SOON, || {
        trio.caller.usable("payments") == [trio.apps[1].address]
    });
    trio.apps[0].process.kill();
    for _ in 0..20 {
        assert_eq!(trio.caller.get("payments", "/").status, 200);
    }
}

fn who_says_that_it_is_ready_knows_the_services(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    for round in 0..4 {
        trio.caller.process.kill();
        if round % 2 == 1 {
            std::fs::remove_dir_all(trio.lab.folder().join("host-1/data")).unwrap();
        }
        trio.caller.start_again();
        trio.caller.wait_until_ready();
        assert_eq!(trio.caller.get("payments", "/").status, 200, "round {round}");
        assert_eq!(trio.caller.passing("payments").len(), 2, "round {round}");
    }
}

/// All that a host has in its data directory, as text.
fn kept(lab: &Lab, number: u8) -> String {
    let folder = lab.folder().join(format!("host-{number}/data"));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
}

fn everyone_restarts_from_what_they_kept(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let web = trio.lab.app(4);
    let body = format!(
        r#"{{"Name": "web", "ID": "web-1", "Address": "{}", "Port": 8000}}"#,
        web.address.ip()
    );
    let head = http::Request::put("/v1/agent/service/register").header("host", "discovery");
    let request = head.body(http_body_util::Full::new(body.into())).unwrap();
    assert_eq!(
        client::send(trio.hosts[0].discovery().into(), Version::Http1, request).unwrap().status,
        200
    );
    trio.caller.wait_for_instances("web", 1);
    let identities = |host: &Host| -> BTreeMap<String, String> {
        let nodes = get(host.discovery().into(), "discovery", "/v1/catalog/nodes").unwrap().json();
        let pair = |node: &serde_json::Value| {
            (node["Node"].as_str().unwrap().into(), node["ID"].as_str().unwrap().into())
        };
        nodes.as_array().unwrap().iter().map(pair).collect()
    };
    let before = identities(&trio.caller);
    assert_eq!(before.len(), 3);
    // What a host remembers is written from time to time: it must be there before everything dies.
    wait::for_true("each has written where the others are", SOON, || {
        (1..=3).all(|number| {
            let kept = kept(&trio.lab, number);
            let mut others = (1..=3).filter(|other| *other != number);
            others.all(|other| kept.contains(&format!("{}:7111", trio.lab.ip(other))))
        })
    });

    // All at once, without a goodbye; then again with nobody to join: they know each other.
    let mut hosts: Vec<Host> = std::iter::once(trio.caller).chain(trio.hosts).collect();
    hosts.iter_mut().for_each(|host| host.process.kill());
    for (host, app) in hosts.iter_mut().zip([None, Some(&trio.apps[0]), Some(&trio.apps[1])]) {
        let services = app.map(|app| super::trio::payments(app, "")).unwrap_or_default();
        host.write(&Setup { join: Vec::new(), services, ..Setup::default() });
        host.start_again();
    }
    for host in &hosts {
        host.wait_until_ready();
        host.wait_for_members(3);
        host.wait_for_instances("payments", 2);
        host.wait_for_instances("web", 1);
    }
    assert_eq!(identities(&hosts[0]), before, "each is who it was");
    assert_eq!(hosts[0].get("web", "/").header("x-app"), "app-4");
    assert_eq!(hosts[0].get("payments", "/").status, 200);
}

each_workers!(
    draining_a_host_loses_nothing,
    what_is_in_flight_finishes_before_a_drained_host_ends,
    an_answer_that_its_caller_has_not_taken_is_written_before_a_drained_host_ends,
    reloading_under_load_loses_nothing_and_keeps_the_listeners,
    a_bad_file_leaves_the_old_one_running_and_says_so,
    a_refused_reload_changes_nothing,
    a_listener_that_is_for_another_service_now_is_the_same_socket,
    a_host_that_goes_away_follows_the_mesh_to_the_last,
    who_says_that_it_is_ready_knows_the_services,
    everyone_restarts_from_what_they_kept,
);

//! Who may make a host work: strangers at the ports between hosts, those who hold doors open, pages, and proxies.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Answer, Version};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::process::{self, Process};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::wait;
use http_body_util::Full;

use super::trio::Trio;

/// Longer than any of it takes, shorter than a time-out that would end what is held open.
const SOON: Duration = Duration::from_secs(8);

/// An HTTP/2 client's preface and SETTINGS, then as many acknowledgements of PINGs that nobody sent.
fn stray_pings(count: usize) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..count {
        bytes.extend(b"\0\0\x08\x06\x01\0\0\0\0stranger");
    }
    bytes
}

fn log_bytes(host: &Host) -> usize {
    host.process.output().unwrap().len()
}

fn strangers_are_turned_away_and_members_are_bounded(workers: usize) {
    let setup = Setup { more: "limits: {connections: 40}\n".into(), ..Setup::default() };
    let trio = Trio::start(Lab::new(workers), &setup);
    let (target, before) = (&trio.hosts[0], log_bytes(&trio.hosts[0]));
    let stranger = trio.lab.ip(60).into();
    let mut held: Vec<Raw> =
        (0..120).map(|_| Raw::connect_from(stranger, target.data().into()).unwrap()).collect();
    held.iter_mut().for_each(|stream| stream.say(stray_pings(100)));
    // Beside them a member, which speaks from the address of host 1.
    let member = trio.lab.ip(1).into();
    let mut flood = Raw::connect_from(member, target.data().into()).unwrap();
    flood.say(stray_pings(20_000));
    for _ in 0..20 {
        assert_eq!(trio.caller.get("payments", "/").status, 200);
    }
    for mut stream in held {
        assert!(stream.hear(SOON).closed, "a stranger is closed");
    }
    let count = |name: &str| target.metrics().sum(name, &[]);
    wait::for_true("strangers are counted", SOON, || {
        count("evenkeel_strangers_refused_total") == 120.0
    });
    assert_eq!(count("evenkeel_connections_refused_total"), 0.0, "and apart from others");
    wait::for_true("lines are left out", SOON, || {
        count("evenkeel_log_lines_suppressed_total") > 1_000.0
    });
    wait::for_true("and it is said how many", SOON, || {
        target.process.output().unwrap().contains("lines were left out")
    });
    let written = log_bytes(target) - before;
    assert!(written < 64 * 1024, "{written} bytes of log");
}

fn one_host_does_not_take_all_connections(workers: usize) {
    let setup = Setup { more: "limits: {connections: 400}\n".into(), ..Setup::default() };
    let trio = Trio::start(Lab::new(workers), &setup);
    let (target, member) = (&trio.hosts[0], trio.lab.ip(1).into());
    let mut held: Vec<Raw> =
        (0..450).filter_map(|_| Raw::connect_from(member, target.data().into()).ok()).collect();
    held.iter_mut().for_each(|stream| stream.say(stray_pings(0)));
    // A quarter is its own.
    wait::for_true("the rest is refused", SOON, || {
        target.metrics().sum("evenkeel_connections_refused_total", &[]) >= 340.0
    });
    for _ in 0..20 {
        assert_eq!(trio.hosts[1].get("payments", "/").status, 200, "another host is served");
    }
}

fn a_host_that_has_just_joined_is_served_at_once(workers: usize) {
    let lab = Lab::new(workers);
    let mut trio = Trio::start(lab, &Setup::default());
    for number in [4, 5, 6] {
        let host = trio.lab.host(number, &Setup { join: vec![2], ..Setup::default() });
        // Its first requests, as early as it can send them: to hosts that may not have heard of it.
        host.wait_for_instances("payments", 2);
        for _ in 0..10 {
            let post = http::Request::post("/echo").header("host", "payments");
            let post = post.body(Full::from("hello")).unwrap();
            let answer = client::send(host.outbound().into(), Version::Http1, post).unwrap();
            assert_eq!(answer.status, 200, "host-{number}: {}", answer.text());
        }
        trio.hosts.push(host);
    }
}

fn silent_connections_keep_no_host_from_joining(workers: usize) {
    let lab = Lab::new(workers);
    let first = lab.mesh(&[Setup::default()]).remove(0);
    let mut held = Vec::new();
    let mut hold = || {
        for n in 0..160_u8 {
            held.extend(Raw::connect_from(lab.ip(60 + n % 4).into(), first.gossip().into()));
        }
        held.drain(..held.len().saturating_sub(320));
    };
    hold();
    let host = lab.host(2, &Setup::default());
    let until = Instant::now() + SOON;
    while host.members().len() < 2 {
        assert!(Instant::now() < until, "it joins while others say nothing");
        hold();
    }
}

/// Holds so many connections to `to`, each after saying this.
fn hold(to: SocketAddr, count: usize, say: &str) -> Vec<Raw> {
    let mut held: Vec<Raw> = (0..count).map(|_| Raw::connect(to).unwrap()).collect();
    held.iter_mut().for_each(|stream| stream.say(say));
    held
}

fn health_and_look_ups_are_answered_whatever_is_held_open(workers: usize) {
    let lab = Lab::new(workers);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    let answers = |to: SocketAddr, path: &str| {
        let began = Instant::now();
        let answer = client::get(to, "localhost", path).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(began.elapsed() < SOON, "{path}");
    };
    // Waits for a change that does not come: of the index that there is.
    let index = client::get(host.discovery().into(), "x", "/v1/catalog/services").unwrap();
    let index = index.header("x-consul-index").to_owned();
    let query =
        format!("GET /v1/catalog/services?index={index}&wait=90s HTTP/1.1\r\nhost: x\r\n\r\n");
    for say in [
        "",
        "GET / HTTP/1.1\r\nhost: x\r\n",
        "PUT /v1/agent/service/register HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        &query,
    ] {
        // One after the other: this process has a limit on open files too.
        let held = hold(host.admin().into(), 560, say);
        for path in ["/livez", "/readyz", "/metrics"] {
            answers(host.admin().into(), path);
        }
        drop(held);
        let held = hold(host.discovery().into(), 560, say);
        answers(host.discovery().into(), "/v1/catalog/services");
        drop(held);
    }
    // Of more blocking queries than may wait, some are told to come back.
    let _held = hold(host.discovery().into(), 400, &query);
    let one_more = format!("/v1/catalog/services?index={index}&wait=1ms");
    wait::for_true("one more is told to come back", SOON, || {
        let answer = client::get(host.discovery().into(), "x", &one_more).unwrap();
        answer.status == 429 && answer.header("retry-after") == "1"
    });
}

fn callers_that_have_said_nothing_give_way(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let upstreams = format!("[{{name: direct, endpoints: [\"{}\"]}}]", app.address);
    let more = "limits: {connections: 20}\n".into();
    let host = lab.mesh(&[Setup { upstreams, more, ..Setup::default() }]).remove(0);
    let _silent: Vec<Raw> =
        (0..40).filter_map(|_| Raw::connect(host.outbound().into()).ok()).collect();
    // Sooner than silent ones are closed for their silence.
    wait::for_true("there is room", Duration::from_secs(6), || {
        client::get(host.outbound().into(), "direct", "/").is_ok_and(|answer| answer.status == 200)
    });
}

fn few_descriptors_leave_the_control_side_reachable(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let upstreams = format!("[{{name: direct, endpoints: [\"{}\"]}}]", app.address);
    let mut host = lab.mesh(&[Setup { upstreams, ..Setup::default() }]).remove(0);
    host.process.kill();
    let command = format!(
        "ulimit -n 200; exec '{}' run -c '{}'",
        process::program("evenkeel").display(),
        host.config().display()
    );
    let log = lab.folder().join("few.log");
    host.process = Process::start("few", Command::new("sh").args(["-c", &command]), &log);
    host.wait_until_ready();
    // Connections that cost the proxy a descriptor each.
    let mut held = hold(host.outbound().into(), 400, "GET /");
    for _ in 0..20 {
        assert_eq!(host.ask_admin("/livez").unwrap().status, 200);
        assert_eq!(
            client::get(host.discovery().into(), "x", "/v1/agent/self").unwrap().status,
            200
        );
    }
    assert!(host.metrics().sum("evenkeel_accepts_paused_total", &[]) > 0.0);
    let log = host.process.output().unwrap();
    assert!(log.contains("no connections are accepted until some end"), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
    held.clear();
    // Callers that ask once and stay leave descriptors for the dials of those that come after them.
    let idle = hold(host.outbound().into(), 280, "GET / HTTP/1.1\r\nhost: direct\r\n\r\n");
    wait::for_true("one more is served", SOON, || {
        client::get(host.outbound().into(), "direct", "/").is_ok_and(|answer| answer.status == 200)
    });
    drop(idle);
    wait::for_true("it accepts again", SOON, || {
        client::get(host.outbound().into(), "nobody", "/").is_ok_and(|answer| answer.status == 404)
    });
}

/// What a page in a browser can make it send, or a name that was made to resolve to this host.
fn as_page(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client::send(to, Version::Http1, request.body(Full::from("{}")).unwrap()).unwrap()
}

fn pages_may_neither_read_nor_spend(workers: usize) {
    let lab = Lab::new(workers);
    let setup = Setup {
        ratelimit: "resources: [{match: shared, capacity: 100, per: 1s}]".into(),
        ..Setup::default()
    };
    let host = lab.mesh(&[setup]).remove(0);
    let acquire = "/v1/limits/shared/acquire";
    let evil = ("host", "evil.example:8500");
    let ours = ("host", "localhost");
    for (to, method, path, headers) in [
        (host.discovery(), "GET", "/v1/catalog/services", vec![evil]),
        (host.discovery(), "GET", "/v1/agent/self", vec![("host", "localhost@evil.example")]),
        (host.discovery(), "POST", acquire, vec![evil]),
        (host.discovery(), "POST", acquire, vec![ours, ("origin", "http://localhost")]),
        (host.discovery(), "POST", acquire, vec![ours, ("sec-fetch-site", "cross-site")]),
        (host.discovery(), "PUT", "/v1/agent/service/register", vec![ours, ("origin", "null")]),
        (host.admin(), "GET", "/v1/members", vec![evil]),
        (host.admin(), "GET", "/metrics", vec![ours, ours]),
        (host.admin(), "PUT", "/v1/drain/host-1", vec![ours, ("via", "1.1 proxy")]),
    ] {
        let answer = as_page(to.into(), method, path, &headers);
        assert!(
            matches!(answer.status.as_u16(), 400 | 403),
            "{path} {headers:?}: {}",
            answer.text()
        );
    }
    let answer = as_page(host.discovery().into(), "POST", acquire, &[ours]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn orders_are_not_taken_through_a_service_of_the_mesh(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let (told, other) = (&trio.hosts[0], &trio.hosts[1]);
    for port in [told.admin(), told.discovery()] {
        let service = format!("s{}", port.port());
        let registration =
            format!(r#"{{"Name":"{service}","Address":"{}","Port":{}}}"#, port.ip(), port.port());
        let register = http::Request::put("/v1/agent/service/register").header("host", "localhost");
        let register = register.body(Full::from(registration)).unwrap();
        let answer = client::send(told.discovery().into(), Version::Http1, register).unwrap();
        assert_eq!(answer.status, 400, "{}", answer.text());
        // Nor does its name lead there, from the host itself or from another one.
        for caller in [told, &trio.caller] {
            for (path, body) in [
                (format!("/v1/drain/{}", other.name()), r#"{"ttl":"1m"}"#),
                ("/v1/agent/service/register".to_owned(), r#"{"Name":"evil","Port":1}"#),
            ] {
                let order = http::Request::put(path).header("host", &service);
                let order = order.body(Full::from(body)).unwrap();
                let answer = client::send(caller.outbound().into(), Version::Http1, order).unwrap();
                assert!(!answer.status.is_success(), "{} {}", answer.status, answer.text());
            }
        }
    }
    let orders = trio.caller.ask_admin("/v1/orders").unwrap().json();
    assert_eq!(orders["orders"], serde_json::json!([]));
    let direct = told.cli(&["drain", &other.name(), "--ttl", "1m"]);
    assert!(direct.status.success(), "{}", String::from_utf8_lossy(&direct.stderr));
}

each_workers!(
    strangers_are_turned_away_and_members_are_bounded,
    one_host_does_not_take_all_connections,
    a_host_that_has_just_joined_is_served_at_once,
    silent_connections_keep_no_host_from_joining,
    health_and_look_ups_are_answered_whatever_is_held_open,
    callers_that_have_said_nothing_give_way,
    few_descriptors_leave_the_control_side_reachable,
    pages_may_neither_read_nor_spend,
    orders_are_not_taken_through_a_service_of_the_mesh,
);

//! CONNECT to a service: one instance, whatever is said in the tunnel, and each end's end is the other's.
//!
//! `direct` is an upstream of the configuration, `local` an instance beside the caller, `far` one on another host.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::raw::noise;
use evenkeel_tests::raw_app::application;
use evenkeel_tests::wait::{self, SOON};
use rustix::process::Signal;
use socket2::SockRef;

use super::trio::Trio;

each_workers!(
    bytes_pass_both_ways_and_each_side_ends_by_itself,
    a_reset_of_one_end_is_a_reset_of_the_other,
    an_instance_that_cannot_be_dialled_is_left_for_another,
    a_dial_waits_for_no_host_that_is_lost,
    a_tunnel_that_nobody_can_take_is_refused_with_a_reason,
    a_tunnel_in_which_nothing_moves_is_ended,
    a_host_that_drains_lets_tunnels_end,
    a_tunnel_that_outlasts_the_drain_is_reset,
    a_tunnel_is_counted_for_as_long_as_it_is_open,
    requests_in_a_tunnel_go_to_one_instance,
    who_does_not_read_its_tunnel_stops_nobody_else,
    limits_hold_for_tunnels,
);

const WAYS: [&str; 3] = ["direct", "local", "far"];
const MIB: usize = 1024 * 1024;
/// For bytes that come at once; long, because other tests run beside this one.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends back what it reads, and `end` behind it.
fn echo(mut stream: TcpStream) {
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break drop(stream.write_all(b"end")),
            Ok(n) if stream.write_all(&piece[..n]).is_ok() => {}
            _ => break,
        }
    }
}

/// Two hosts, and one application that is reached in three ways.
struct Pair {
    caller: Host,
    other: Host,
    _lab: Lab,
}

impl Pair {
    fn start(lab: Lab, address: SocketAddrV4, setup: &Setup) -> Pair {
        let setup = Setup { join: vec![1, 2], ..setup.clone() };
        let caller = Setup {
            services: format!("[{{name: local, address: \"{address}\"}}]"),
            upstreams: format!("[{{name: direct, endpoints: [\"{address}\"]}}]"),
            ..setup.clone()
        };
        let services = format!("[{{name: far, address: \"{address}\"}}]");
        let mut hosts = lab.mesh(&[caller, Setup { services, ..setup }]);
        for service in ["local", "far"] {
            hosts[0].wait_for_instances(service, 1);
        }
        let other = hosts.pop().unwrap();
        Pair { caller: hosts.pop().unwrap(), other, _lab: lab }
    }

    fn of_echo(workers: usize, setup: &Setup) -> Pair {
        let lab = Lab::new(workers);
        let address = application(lab.ip(100), echo);
        Pair::start(lab, address, setup)
    }
}

/// Asks for a tunnel; the answer's head and body, or as much as came before the tunnel.
fn ask(host: &Host, authority: &str, fields: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(SocketAddr::from(host.outbound())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let mut answer = String::from_utf8(answer).unwrap();
    let length = answer.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    answer += &String::from_utf8(body).unwrap();
    (stream, answer)
}

fn open(host: &Host, name: &str) -> TcpStream {
    let (stream, answer) = ask(host, &format!("{name}:80"), "");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
    stream
}

/// Says something in an echoing tunnel and hears it.
fn talk(tunnel: &mut TcpStream, what: &str) {
    tunnel.write_all(what.as_bytes()).unwrap();
    let mut heard = vec![0; what.len()];
    tunnel.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), what);
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Reads until the end, which is none.
fn is_reset(stream: &mut TcpStream) -> bool {
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn bytes_pass_both_ways_and_each_side_ends_by_itself(workers: usize) {
    let pair = Pair::of_echo(workers, &Setup::default());
    let said = noise(1, 3 * MIB);
    for name in WAYS.into_iter().chain(["far.mesh", "far.service.mesh", "local.mesh"]) {
        let mut tunnel = open(&pair.caller, name);
        let (mut writing, all) = (tunnel.try_clone().unwrap(), said.clone());
        let writer = std::thread::spawn(move || {
            writing.write_all(&all).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        tunnel.read_to_end(&mut heard).unwrap();
        writer.join().unwrap();
        assert_eq!(heard.len(), said.len() + 3, "{name}");
        assert!(heard.starts_with(&said) && heard.ends_with(b"end"), "{name}");
    }
    // Where the instance is not asked for as one: it is outside the mesh then.
    let outside = pair.caller.endpoints("far")[0]["address"].as_str().unwrap().to_owned();
    let (mut tunnel, answer) = ask(&pair.caller, &outside, "");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    talk(&mut tunnel, "hello");

    // The other side first.
    let (tell, told) = mpsc::channel();
    let lab = Lab::new(workers);
    let ends_first = move |mut stream: TcpStream| {
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        let read = stream.read_to_end(&mut heard);
        tell.send(read.map(|_| heard.len())).unwrap();
    };
    let address = application(lab.ip(100), ends_first);
    let pair = Pair::start(lab, address, &Setup::default());
    for way in WAYS {
        let mut tunnel = open(&pair.caller, way);
        let mut heard = String::new();
        tunnel.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello", "{way}");
        tunnel.write_all(&said).unwrap();
        drop(tunnel);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap(), said.len(), "{way}");
    }
}

fn a_reset_of_one_end_is_a_reset_of_the_other(workers: usize) {
    let (tell, told): (Sender<bool>, Receiver<bool>) = mpsc::channel();
    let lab = Lab::new(workers);
    let address = application(lab.ip(100), move |mut stream: TcpStream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(&first).unwrap();
        match &first {
            b"r" => reset(stream),
            _ => tell.send(is_reset(&mut stream)).unwrap(),
        }
    });
    let pair = Pair::start(lab, address, &Setup::default());
    for way in WAYS {
        let mut tunnel = open(&pair.caller, way);
        tunnel.write_all(b"r").unwrap();
        assert!(is_reset(&mut tunnel), "{way}: the application's");
        let mut tunnel = open(&pair.caller, way);
        talk(&mut tunnel, "x");
        reset(tunnel);
        assert!(told.recv_timeout(PATIENCE).unwrap(), "{way}: the caller's");
    }
}

/// An address at which nobody listens.
fn closed(ip: Ipv4Addr) -> SocketAddrV4 {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    SocketAddrV4::new(ip, listener.local_addr().unwrap().port())
}

/// A mesh of two in which `half` has a living and a dead instance, in the configuration of the first host and on the second.
fn half_dead(workers: usize) -> Vec<Host> {
    let lab = Lab::new(workers);
    let (alive, dead) = (application(lab.ip(100), echo), closed(lab.ip(101)));
    // In turn, and without the memory that would spare the dead one: each tunnel has to find out.
    let policy = "{balance: round_robin, slow_start: 0s, eject: {consecutive: 0}}";
    let setup = Setup { join: vec![1, 2], policy: policy.into(), ..Setup::default() };
    let upstreams = format!(
        "[{{name: half-direct, endpoints: [\"{dead}\", \"{alive}\"]}}, {{name: dead-direct, endpoints: [\"{dead}\"]}}]"
    );
    let services = format!(
        "[{{name: half, id: dead, address: \"{dead}\"}}, {{name: half, id: alive, address: \"{alive}\"}}, \
          {{name: dead-far, address: \"{dead}\"}}]"
    );
    let hosts = lab.mesh(&[Setup { upstreams, ..setup.clone() }, Setup { services, ..setup }]);
    hosts[0].wait_for_instances("half", 2);
    hosts[0].wait_for_instances("dead-far", 1);
    std::mem::forget(lab);
    hosts
}

fn an_instance_that_cannot_be_dialled_is_left_for_another(workers: usize) {
    let hosts = half_dead(workers);
    for name in ["half-direct", "half"] {
        for _ in 0..10 {
            talk(&mut open(&hosts[0], name), "anybody there?");
        }
        let metrics = hosts[0].metrics();
        let of =
            |kind| metrics.sum("evenkeel_attempts_total", &[("upstream", name), ("kind", kind)]);
        assert_eq!(of("first"), 10.0, "{name}");
        assert!(of("retry") >= 1.0, "{name}: the dead one was never tried");
    }
}

fn a_dial_waits_for_no_host_that_is_lost(workers: usize) {
    let policy = "{balance: round_robin, slow_start: 0s, timeout: 60s}".to_owned();
    let mut trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    trio.hosts[1].process.signal(Signal::STOP);
    for _ in 0..6 {
        let mut tunnel = open(&trio.caller, "payments");
        tunnel.write_all(b"GET /status/204 HTTP/1.1\r\nHost: payments\r\n\r\n").unwrap();
        let mut status = [0; 12];
        tunnel.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 204");
    }
    trio.hosts[1].process.signal(Signal::CONT);
}

fn a_tunnel_that_nobody_can_take_is_refused_with_a_reason(workers: usize) {
    let hosts = half_dead(workers);
    for name in ["dead-direct", "dead-far"] {
        let (_, answer) = ask(&hosts[0], &format!("{name}:1"), "");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{name}: {answer}");
        let lower = answer.to_ascii_lowercase();
        assert!(lower.contains("proxy-status: evenkeel; error=connection_refused"), "{answer}");
        assert!(answer.contains("\"reason\":\"connect\""), "{name}: {answer}");
        assert!(answer.contains("evenkeel endpoints"), "it says what to do next: {answer}");
    }
    for (authority, fields, expected) in [
        ("nobody.mesh:80", "", "404"),
        ("half.mesh", "", "400"),
        ("half.mesh:0", "", "400"),
        ("half.mesh:80", "Content-Length: 5\r\n", "400"),
        ("half.mesh:80", "Transfer-Encoding: chunked\r\n", "400"),
    ] {
        let (_, answer) = ask(&hosts[0], authority, fields);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{authority}: {answer}");
    }
}

fn a_tunnel_in_which_nothing_moves_is_ended(workers: usize) {
    let (tell, told): (Sender<bool>, Receiver<bool>) = mpsc::channel();
    let lab = Lab::new(workers);
    // For half as long again as a tunnel may stand still, one direction moves.
    let address = application(lab.ip(100), move |mut stream: TcpStream| {
        for _ in 0..60 {
            stream.write_all(b".").unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        tell.send(is_reset(&mut stream)).unwrap();
    });
    let setup = Setup { policy: "{idle_timeout: 2s}".into(), ..Setup::default() };
    let pair = Pair::start(lab, address, &setup);
    for way in WAYS {
        let mut tunnel = open(&pair.caller, way);
        let mut all = [0; 60];
        tunnel.read_exact(&mut all).unwrap();
        assert!(is_reset(&mut tunnel), "{way}: what is cut off is not ended");
        assert!(told.recv_timeout(PATIENCE).unwrap(), "{way}: nor for the application");
        let failures = [("upstream", way), ("direction", "outbound"), ("reason", "idle_timeout")];
        wait::for_true("it is counted", SOON, || {
            pair.caller.metrics().sum("evenkeel_failures_total", &failures) == 1.0
        });
    }
}

fn a_host_that_drains_lets_tunnels_end(workers: usize) {
    let shutdown = "{settle: 0s, timeout: 60s}".to_owned();
    let mut pair = Pair::of_echo(workers, &Setup { shutdown, ..Setup::default() });
    let mut tunnel = open(&pair.caller, "far");
    talk(&mut tunnel, "before");
    pair.other.process.signal(Signal::TERM);
    wait::for_true("new ones are refused", SOON, || {
        let (_, answer) = ask(&pair.caller, "far:80", "");
        answer.starts_with("HTTP/1.1 503 ")
    });
    talk(&mut tunnel, "meanwhile");
    assert!(pair.other.process.ended().is_none(), "it waits for the tunnel");
    tunnel.shutdown(Shutdown::Write).unwrap();
    let mut last = String::new();
    tunnel.read_to_string(&mut last).unwrap();
    assert_eq!(last, "end");
    assert!(pair.other.process.wait(SOON / 2).success(), "and for nothing else");

    let mut tunnel = open(&pair.caller, "local");
    pair.caller.process.signal(Signal::TERM);
    talk(&mut tunnel, "meanwhile");
    drop(tunnel);
    assert!(pair.caller.process.wait(SOON / 2).success());
}

fn a_tunnel_that_outlasts_the_drain_is_reset(workers: usize) {
    let shutdown = "{settle: 0s, timeout: 1s}".to_owned();
    let mut pair = Pair::of_echo(workers, &Setup { shutdown, ..Setup::default() });
    let mut far = open(&pair.caller, "far");
    talk(&mut far, "before");
    pair.other.process.signal(Signal::TERM);
    assert!(is_reset(&mut far));
    let mut local = open(&pair.caller, "local");
    talk(&mut local, "before");
    pair.caller.process.signal(Signal::TERM);
    assert!(is_reset(&mut local));
}

fn a_tunnel_is_counted_for_as_long_as_it_is_open(workers: usize) {
    let setup = Setup { more: "log: {access: all}\n".into(), ..Setup::default() };
    let pair = Pair::of_echo(workers, &setup);
    let (mut tunnel, answer) =
        ask(&pair.caller, "far.mesh:443", "evenkeel-debug: 1\r\nx-request-id: 7f3a\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("hop=mesh") && answer.contains("instance=far"), "{answer}");
    talk(&mut tunnel, "twelve bytes");
    let outbound = [("direction", "outbound"), ("upstream", "far")];
    let inbound = [("direction", "inbound"), ("upstream", "")];
    let open = |host: &Host, labels| host.metrics().sum("evenkeel_tunnels_open", labels);
    assert_eq!(open(&pair.caller, &outbound), 1.0);
    assert_eq!(open(&pair.other, &inbound), 1.0);
    assert_eq!(pair.caller.endpoints("far")[0]["in_flight"], 1, "it is load");
    let logged = |host: &Host| {
        let output = host.process.output().unwrap();
        let lines = output.lines().filter(|line| line.contains("\"method\":\"CONNECT\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(logged(&pair.caller).is_empty(), "it has not ended");
    tunnel.shutdown(Shutdown::Write).unwrap();
    let mut end = String::new();
    tunnel.read_to_string(&mut end).unwrap();
    drop(tunnel);
    for (host, labels) in [(&pair.caller, &outbound), (&pair.other, &inbound)] {
        wait::for_true("it has ended", SOON, || open(host, labels) == 0.0);
        let metrics = host.metrics();
        for (way, bytes) in [("out", 12.0), ("back", 15.0)] {
            let labels = [labels[0], labels[1], ("way", way)];
            assert_eq!(metrics.sum("evenkeel_tunnel_bytes_total", &labels), bytes, "{way}");
        }
        let took = metrics.sum("evenkeel_request_duration_seconds_count", labels);
        assert_eq!(took, 0.0, "how long a tunnel was open is no request's time");
        assert_eq!(metrics.sum("evenkeel_failures_total", labels), 0.0);
        let ok = [labels[0], labels[1], ("code", "2xx")];
        assert_eq!(metrics.sum("evenkeel_responses_total", &ok), 1.0);
        wait::for_true("it is logged", SOON, || logged(host).len() == 1);
        let line: serde_json::Value = serde_json::from_str(&logged(host)[0]).unwrap();
        assert_eq!((&line["status"], &line["upstream"]), (&200.into(), &"far".into()));
        assert_eq!(line["request_id"], "7f3a");
        assert!(line["reason"].is_null() && line["duration_us"].is_number(), "{line}");
    }
    let endpoint = &pair.caller.endpoints("far")[0];
    assert_eq!(endpoint["in_flight"], 0);
    assert!(endpoint["latency_ms"].is_null(), "a dial is not an answer: {endpoint}");
}

fn requests_in_a_tunnel_go_to_one_instance(workers: usize) {
    let policy = "{balance: round_robin, slow_start: 0s}".to_owned();
    let trio = Trio::start(Lab::new(workers), &Setup { policy, ..Setup::default() });
    let mut seen = Vec::new();
    for _ in 0..4 {
        let mut tunnel = open(&trio.caller, "payments");
        let mut apps: Vec<String> = Vec::new();
        for _ in 0..10 {
            tunnel.write_all(b"GET /status/204 HTTP/1.1\r\nHost: payments\r\n\r\n").unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                tunnel.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
            apps.push(head.lines().find(|line| line.starts_with("x-app")).unwrap().to_owned());
        }
        apps.dedup();
        assert_eq!(apps.len(), 1, "{apps:?}");
        seen.append(&mut apps);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2, "tunnels are balanced: {seen:?}");
}

fn who_does_not_read_its_tunnel_stops_nobody_else(workers: usize) {
    let lab = Lab::new(workers);
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let address = application(lab.ip(100), move |mut stream: TcpStream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        if &first == b"e" {
            return echo(stream);
        }
        let piece = vec![b'x'; 64 * 1024];
        while stream.write_all(&piece).is_ok() {
            counted.fetch_add(piece.len(), Ordering::Relaxed);
        }
    });
    let pair = Pair::start(lab, address, &Setup::default());
    let mut stopped: Vec<TcpStream> = (0..4).map(|_| open(&pair.caller, "far")).collect();
    stopped.iter_mut().for_each(|tunnel| tunnel.write_all(b"f").unwrap());
    let mut before = usize::MAX;
    wait::for_true("nothing more of it is taken", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = sent.load(Ordering::Relaxed);
        now > 0 && std::mem::replace(&mut before, now) == now
    });
    assert!(before < 64 * MIB, "{before} bytes are held for who does not read");

    let mut other = open(&pair.caller, "far");
    other.write_all(b"e").unwrap();
    let said = noise(2, 8 * MIB);
    let (mut writing, all) = (other.try_clone().unwrap(), said.clone());
    let writer = std::thread::spawn(move || writing.write_all(&all).unwrap());
    let mut heard = vec![0; said.len()];
    other.read_exact(&mut heard).unwrap();
    writer.join().unwrap();
    assert!(heard == said);

    // They go on where they stopped.
    for tunnel in &mut stopped {
        let mut some = vec![0; 16 * MIB];
        tunnel.read_exact(&mut some).unwrap();
        assert!(some.iter().all(|byte| *byte == b'x'));
    }
}

fn limits_hold_for_tunnels(workers: usize) {
    let ratelimit = "resources: [{match: \"tunnels\", capacity: 2, per: 1h, burst: 2}], \
        apply: [{direction: outbound, service: far, resource: tunnels}]";
    let setup = Setup {
        policy: "{circuit: {requests: 1}}".into(),
        ratelimit: ratelimit.into(),
        ..Setup::default()
    };
    let pair = Pair::of_echo(workers, &setup);
    // Its ticket is held for as long as it is open.
    let mut first = open(&pair.caller, "direct");
    let (_, answer) = ask(&pair.caller, "direct:80", "");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("circuit_open"), "{answer}");
    talk(&mut first, "still");
    drop(first);
    wait::for_true("there is room again", SOON, || {
        ask(&pair.caller, "direct:80", "").1.starts_with("HTTP/1.1 200 ")
    });

    let statuses: Vec<String> = (0..20)
        .map(|_| ask(&pair.caller, "far:80", "").1.get(9..12).unwrap_or_default().to_owned())
        .collect();
    let limited = statuses.iter().filter(|status| *status == "429").count();
    assert!(limited >= 18, "{statuses:?}");
}

//! Bytes nobody invited: counted, answered or dropped, never a panic, and without any effect on the mesh.

use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;

use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::raw::{Heard, Raw, noise};
use evenkeel_tests::sockets;
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::Trio;

// 32 bytes each, base64.
const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
const OTHER_KEY: &str = "/////////////////////////////////////////w8=";

/// Everything the hosts have refused so far, of any kind.
fn refused(host: &Host) -> f64 {
    host.metrics().sum("evenkeel_gossip_refused_total", &[])
}

/// The mesh is whole, serves, and nobody has panicked.
fn assert_unharmed(trio: &mut Trio) {
    for host in std::iter::once(&mut trio.caller).chain(&mut trio.hosts) {
        assert!(host.process.ended().is_none(), "{} ended", host.name());
        let log = host.process.output().unwrap();
        assert!(!log.contains("panicked"), "{} panicked", host.name());
        assert_eq!(host.members(), ["host-1", "host-2", "host-3"]);
        assert_eq!(host.usable("payments").len(), 2);
        assert_eq!(host.get("payments", "/").status, 200);
    }
}

fn noise_on_every_port_has_no_effect(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let target = &trio.hosts[0];
    let before = refused(target);
    let sender = UdpSocket::bind((trio.lab.ip(60), 0)).unwrap();
    for seed in 0..400 {
        let bytes = noise(seed, usize::try_from(seed * 7 % 1400).unwrap());
        for to in [target.gossip(), target.data(), target.dns()] {
            let _ = sender.send_to(&bytes, to);
        }
    }
    wait::for_true("noise is counted", SOON, || refused(target) > before);
    for seed in 0..12 {
        for to in [
            target.gossip(),
            target.data(),
            target.dns(),
            target.outbound(),
            target.admin(),
            target.discovery(),
        ] {
            let mut stream = Raw::connect(to.into()).unwrap();
            stream.say(noise(seed, 3000));
            // Whatever it answers, it does not keep listening to this for ever; here it is enough that it lives.
            drop(stream);
        }
    }
    assert_unharmed(&mut trio);
}

/// What members send to the gossip address of a host that has just died, before they give it up.
fn overhear(at: SocketAddrV4) -> Vec<Vec<u8>> {
    let ear = UdpSocket::bind(at).unwrap();
    // Accepts without a word, so that nobody is told that the address is dead.
    let _streams = TcpListener::bind(at).unwrap();
    ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 2048];
    let mut heard = Vec::new();
    while heard.len() < 6 {
        let Ok((length, _)) = ear.recv_from(&mut buffer) else { break };
        heard.push(buffer[..length].to_vec());
    }
    heard
}

fn datagrams_repeated_or_mangled_have_no_effect(workers: usize) {
    for keys in [vec![], vec![KEY.to_owned()]] {
        let sealed = !keys.is_empty();
        let setup = Setup { keys, ..Setup::default() };
        let mut trio = Trio::start(Lab::new(workers), &setup);
        // Whoever asks between its death and our listening is told of it, and the others then believe it at once:
        // seldom, but so it is.
        let mut heard = (0..5).map(|_| {
            trio.hosts[0].process.kill();
            let heard = overhear(trio.hosts[0].gossip());
            trio.hosts[0].start_again();
            trio.hosts[0].wait_until_ready();
            trio.caller.wait_for_members(3);
            heard
        });
        let datagrams = heard.find(|heard| heard.len() >= 2);
        let datagrams = datagrams.expect("members probe a host that fell silent");
        for host in [&trio.caller, &trio.hosts[0], &trio.hosts[1]] {
            host.wait_for_members(3);
            host.wait_for_instances("payments", 2);
        }

        let sender = UdpSocket::bind((trio.lab.ip(60), 0)).unwrap();
        for target in [&trio.hosts[0], &trio.hosts[1]] {
            let before = refused(target);
            for datagram in &datagrams {
                for cut in 0..datagram.len() {
                    sender.send_to(&datagram[..cut], target.gossip()).unwrap();
                    let mut flipped = datagram.clone();
                    flipped[cut] ^= 0x10;
                    sender.send_to(&flipped, target.gossip()).unwrap();
                }
            }
            wait::for_true("mangled datagrams are counted", SOON, || refused(target) > before);
            if sealed {
                // Each as it was, but again and from elsewhere.
                let before = refused(target);
                for datagram in datagrams.iter().cycle().take(60) {
                    sender.send_to(datagram, target.gossip()).unwrap();
                }
                wait::for_true("replays are counted", SOON, || refused(target) > before);
            }
        }
        assert_unharmed(&mut trio);
    }
}

fn streams_repeated_or_mangled_have_no_effect(workers: usize) {
    for keys in [vec![], vec![KEY.to_owned()]] {
        let lab = Lab::new(workers);
        // Nobody is at number 50 but this listener: a host that joins introduces itself to it.
        let listener = TcpListener::bind((lab.ip(50), 7111)).unwrap();
        let heard = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let (mut stream, _) = listener.accept().unwrap();
            // What it says comes at once, when it comes; then it waits for an answer.
            stream.peek(&mut [0]).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
            bytes
        });
        let mut trio =
            Trio::start(lab, &Setup { keys, join: vec![1, 2, 3, 50], ..Setup::default() });
        let stream = heard.join().unwrap();
        assert!(stream.len() > 8, "a joining host says who it is: {stream:?}");
        let target = &trio.hosts[0];
        let before = refused(target);
        for cut in (0..stream.len()).step_by(stream.len().div_ceil(48).max(1)) {
            let mut flipped = stream.clone();
            flipped[cut] ^= 0x10;
            for bytes in [&stream[..cut], &flipped[..], &stream[..]] {
                Raw::connect(target.gossip().into()).unwrap().say(bytes);
            }
        }
        wait::for_true("they are counted", SOON, || refused(target) > before);
        assert_unharmed(&mut trio);
    }
}

fn hosts_of_another_mesh_or_with_another_key_stay_strangers(workers: usize) {
    let setup = Setup { keys: vec![KEY.into()], ..Setup::default() };
    let mut trio = Trio::start(Lab::new(workers), &setup);
    let before = refused(&trio.hosts[0]);
    let strangers = [
        Setup { mesh: "other".into(), join: vec![2], ..setup.clone() },
        Setup { keys: vec![OTHER_KEY.into()], join: vec![2], ..setup.clone() },
        Setup { keys: vec![], join: vec![2], ..setup.clone() },
    ];
    let strangers: Vec<Host> =
        (7..).zip(strangers).map(|(n, setup)| trio.lab.host(n, &setup)).collect();
    wait::for_true("the strangers knock", SOON, || refused(&trio.hosts[0]) >= before + 3.0);
    for stranger in &strangers {
        wait::for_true("the stranger knows itself", SOON, || {
            stranger.members() == [stranger.name()]
        });
        assert!(stranger.usable("payments").is_empty());
    }
    assert_unharmed(&mut trio);
}

fn malformed_requests_get_a_400_and_the_connection_ends(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let counted = |what: &[(&str, &str)]| {
        trio.caller.metrics().sum("evenkeel_failures_total", &[what, &[("upstream", "")]].concat())
    };
    assert_eq!(counted(&[]), 0.0);
    let ask = |bytes: &str| -> Heard {
        let mut stream = Raw::connect(trio.caller.outbound().into()).unwrap();
        stream.say(bytes);
        stream.hear(SOON)
    };
    let tail = "host: payments\r\n\r\n";
    for bad in [
        "GARBAGE\r\n\r\n".to_owned(),
        format!("GET\r\n{tail}"),
        format!("GET / HTTP/9.9\r\n{tail}"),
        format!("GET / HTTP/1.1\r\nno colon here\r\n{tail}"),
        format!("GET / HTTP/1.1\r\nspace : before colon\r\n{tail}"),
        format!("GET / HTTP/1.1\r\nbad\u{1}name: x\r\n{tail}"),
        format!("POST /echo HTTP/1.1\r\ncontent-length: twelve\r\n{tail}"),
        format!("POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n{tail}ab"),
        format!("POST /echo HTTP/1.1\r\ntransfer-encoding: gzip\r\n{tail}"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: payments\r\nhost: catalog\r\n\r\n".to_owned(),
    ] {
        let heard = ask(&bad);
        assert_eq!(heard.status(), 400, "{bad:?} → {:?}", heard.text());
        assert!(heard.closed, "the connection stays open after {bad:?}");
        assert_eq!(heard.responses(), 1);
    }
    // Limits: on the target, on one header, on their number.
    let long = "a".repeat(300_000);
    for (bad, allowed) in [
        (format!("GET /{long} HTTP/1.1\r\n{tail}"), [414, 431, 400]),
        (format!("GET / HTTP/1.1\r\nx-long: {long}\r\n{tail}"), [431, 400, 431]),
        (format!("GET / HTTP/1.1\r\n{}{tail}", "x-many: 1\r\n".repeat(3000)), [431, 400, 431]),
    ] {
        let heard = ask(&bad);
        assert!(allowed.contains(&heard.status()), "{} → {:?}", &bad[..40], heard.text());
        assert!(heard.closed);
    }
    // Whoever answers them: each is counted, as nothing else, and has a line in the access log.
    let lines = || -> Vec<String> {
        let log = trio.caller.process.output().unwrap();
        log.lines().filter(|line| line.contains("\"bad_request\"")).map(str::to_owned).collect()
    };
    wait::for_true("each is counted and logged", SOON, || {
        counted(&[("reason", "bad_request")]) >= 14.0 && lines().len() >= 14
    });
    assert_eq!((counted(&[]), lines().len()), (14.0, 14));
    let too_large = |line: &&String| line.contains("\"status\":431");
    assert_eq!(lines().iter().filter(too_large).count(), 3, "{:#?}", lines());
    assert_unharmed(&mut trio);
}

fn both_length_and_chunked_is_chunked_and_the_connection_ends(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: payments\r\n\r\n";
    for length in [0, 4, 11] {
        let mut stream = Raw::connect(trio.caller.outbound().into()).unwrap();
        stream.say(format!(
            "POST /echo HTTP/1.1\r\nhost: payments\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n{smuggled}"
        ));
        let heard = stream.hear(SOON);
        assert_eq!(heard.status(), 200, "{}", heard.text());
        assert!(heard.text().contains("hello"), "{}", heard.text());
        assert!(heard.closed, "the connection must not be used again (RFC 9112, 6.3)");
        assert_eq!(
            heard.responses(),
            1,
            "what followed was not taken for a request: {}",
            heard.text()
        );
    }
    let mut stream = Raw::connect(trio.caller.outbound().into()).unwrap();
    stream.say(
        "POST /headers HTTP/1.1\r\nhost: payments\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    let text = stream.hear(SOON).text();
    assert!(!text.contains("content-length: 3"), "the length is not passed on: {text}");
}

fn slow_headers_are_not_waited_for(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let mut slow: Vec<Raw> =
        (0..20).map(|_| Raw::connect(trio.caller.outbound().into()).unwrap()).collect();
    slow.iter_mut().for_each(|stream| stream.say("GET / HTTP/1.1\r\nhost: paym"));
    for mut stream in slow {
        let heard = stream.hear(Duration::from_secs(45));
        assert!(heard.closed, "a request that never ends keeps its connection");
        assert!([0, 408, 400].contains(&heard.status()), "{}", heard.text());
    }
    wait::for_true("each is counted", SOON, || {
        let labels = [("upstream", ""), ("reason", "bad_request")];
        trio.caller.metrics().sum("evenkeel_failures_total", &labels) == 20.0
    });
    assert_unharmed(&mut trio);
}

fn strangers_at_the_mesh_port_get_no_further(workers: usize) {
    let mut trio = Trio::start(Lab::new(workers), &Setup::default());
    let to: SocketAddr = trio.hosts[0].data().into();
    // Not a member's address: the mesh's own headers count for nothing, and nothing is forwarded.
    let before = trio.apps.iter().map(|app| app.count().0).sum::<u64>();
    for version in [Version::Http1, Version::Http2] {
        let mut forged = request(Method::GET, "payments", "/");
        forged.headers_mut().insert("evenkeel-service", "payments".parse().unwrap());
        forged.headers_mut().insert("evenkeel-instance", "payments".parse().unwrap());
        if let Ok(answer) = client::send(to, version, forged) {
            assert!(
                answer.status.is_client_error(),
                "{version:?}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    assert_eq!(trio.apps.iter().map(|app| app.count().0).sum::<u64>(), before);
    assert_unharmed(&mut trio);
}

fn connections_past_the_limit_do_not_bring_the_host_down(workers: usize) {
    let setup = Setup { more: "limits: {connections: 50}\n".into(), ..Setup::default() };
    let mut trio = Trio::start(Lab::new(workers), &setup);
    let many: Vec<_> =
        (0..200).filter_map(|_| Raw::connect(trio.caller.outbound().into()).ok()).collect();
    assert!(sockets::connections_to(trio.caller.outbound()) >= 50);
    assert_eq!(trio.caller.ask_admin("/livez").unwrap().status, 200);
    drop(many);
    wait::for_true("it serves again", SOON, || {
        client::get(trio.caller.outbound().into(), "payments", "/")
            .is_ok_and(|answer| answer.status == 200)
    });
    assert_unharmed(&mut trio);
}

each_workers!(
    noise_on_every_port_has_no_effect,
    datagrams_repeated_or_mangled_have_no_effect,
    streams_repeated_or_mangled_have_no_effect,
    hosts_of_another_mesh_or_with_another_key_stay_strangers,
    malformed_requests_get_a_400_and_the_connection_ends,
    both_length_and_chunked_is_chunked_and_the_connection_ends,
    slow_headers_are_not_waited_for,
    strangers_at_the_mesh_port_get_no_further,
    connections_past_the_limit_do_not_bring_the_host_down,
);

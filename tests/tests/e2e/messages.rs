//! What becomes of a message's head, framing and trailers on its way: raw bytes at both ends, over every kind of hop.
//!
//! `direct` is an upstream of the configuration, `local` an instance beside the caller, `far` one on another host. The tables of single
//! fields are in the product's own modules (`sidecar/src/message`); here is that every hop follows them.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use bytes::Bytes;
use evenkeel_tests::client::{self, Answer, Version, request};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::raw::{Heard, Raw};
use evenkeel_tests::raw_app::{PLAIN, RawApp};
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};

const WAYS: [&str; 3] = ["direct", "local", "far"];
const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];
/// On loopback, for an answer that comes at once.
const SILENCE: Duration = Duration::from_secs(5);

/// Two hosts, and one raw application that is reached in three ways.
struct Pair {
    caller: Host,
    app: RawApp,
    other: Host,
    lab: Lab,
}

impl Pair {
    fn start(workers: usize, policy: &str) -> Pair {
        let lab = Lab::new(workers);
        let app = RawApp::listen(lab.ip(100));
        let (address, round) = (app.address, SocketAddrV4::new(lab.ip(1), 7080));
        let setup = Setup { join: vec![1, 2], policy: policy.into(), ..Setup::default() };
        let caller = Setup {
            services: format!("[{{name: local, address: \"{address}\"}}]"),
            upstreams: format!("[{{name: direct, endpoints: [\"{address}\"]}}]"),
            ..setup.clone()
        };
        let other = Setup {
            services: format!(
                "[{{name: far, address: \"{address}\"}}, {{name: round, address: \"{round}\"}}]"
            ),
            ..setup
        };
        let mut hosts = lab.mesh(&[caller, other]);
        for service in ["local", "far", "round"] {
            hosts[0].wait_for_instances(service, 1);
        }
        let other = hosts.pop().unwrap();
        Pair { caller: hosts.pop().unwrap(), app, other, lab }
    }

    fn say(&self, bytes: impl AsRef<[u8]>) -> Heard {
        let mut stream = Raw::connect(self.caller.outbound().into()).unwrap();
        stream.say(bytes);
        stream.hear_responses(1, SILENCE)
    }

    fn get(&self, version: Version, service: &str) -> Answer {
        let get = request(Method::GET, service, "/");
        client::send(self.caller.outbound().into(), version, get).unwrap()
    }

    /// The one request that the application heard.
    fn heard(&self) -> String {
        let heard = self.app.heard();
        assert_eq!(heard.len(), 1, "{heard:#?}");
        heard[0].to_ascii_lowercase()
    }
}

fn a_response_is_neither_cut_nor_believed_whole(workers: usize) {
    let pair = Pair::start(workers, "");
    let chunks = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    for (way, version) in WAYS.into_iter().flat_map(|way| VERSIONS.map(|version| (way, version))) {
        for length in [0, 5, 11, 999] {
            pair.app.answer(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            ));
            let answer = pair.get(version, way);
            assert_eq!(answer.text(), "hello world", "{way} {version:?} {length}");
            assert_eq!(answer.header("content-length"), "", "{way} {version:?} {length}");
        }
        for codings in
            ["gzip, chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked"]
        {
            pair.app
                .answer(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {codings}\r\n\r\n{chunks}"));
            let answer = pair.get(version, way);
            assert_eq!(answer.status, 502, "{way} {version:?} {codings}: {}", answer.text());
            assert_eq!(answer.json()["reason"], "bad_response", "{way} {version:?} {codings}");
            assert_eq!(pair.app.heard().len(), 1, "it is nobody's to repeat");
        }
        for lengths in ["2\r\nContent-Length: 2", "2, 2"] {
            pair.app.answer(PLAIN.replace("Length: 2", &format!("Length: {lengths}")));
            let answer = pair.get(version, way);
            assert_eq!((answer.text().as_str(), answer.header("content-length")), ("ok", "2"));
            assert_eq!(answer.headers.get_all("content-length").iter().count(), 1);
        }
        pair.app.answer("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
        let answer = pair.get(version, way);
        assert_eq!((answer.status.as_u16(), answer.header("content-length")), (204, ""));
        pair.app.answer(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        );
        assert_eq!(pair.get(version, way).status, 502, "{way} {version:?}: nobody asked for 101");
    }
}

fn a_request_keeps_its_body_or_is_refused(workers: usize) {
    let pair = Pair::start(workers, "");
    for way in WAYS {
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
            pair.app.answer(PLAIN);
            pair.say(format!(
                "{method} / HTTP/1.1\r\nHost: {way}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            ));
            let heard = pair.heard();
            assert!(heard.contains("\r\ntransfer-encoding: chunked\r\n"), "{way}: {heard}");
            assert!(heard.ends_with("\r\n5\r\nhello\r\n0\r\n\r\n"), "{way}: {heard}");

            pair.app.answer(PLAIN);
            let asked = http::Request::builder().method(method).uri("/").header("host", way);
            let sent = client::send(
                pair.caller.outbound().into(),
                Version::Http2,
                asked.body(hello()).unwrap(),
            );
            assert_eq!(sent.unwrap().status, 200, "{way} {method}");
            assert!(pair.heard().contains("hello"), "{way} {method}: {}", pair.heard());
        }
        pair.app.answer(PLAIN);
        for (codings, status) in [
            ("gzip, chunked", 501),
            ("gzip\r\nTransfer-Encoding: chunked", 501),
            ("chunked, chunked", 400),
            ("chunked\r\nTransfer-Encoding: chunked", 400),
        ] {
            let heard = pair.say(format!(
                "POST / HTTP/1.1\r\nHost: {way}\r\nTransfer-Encoding: {codings}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            ));
            assert_eq!(heard.status(), status, "{way} {codings}: {}", heard.text());
            assert!(heard.text().contains("connection: close"), "{}", heard.text());
        }
        assert_eq!(pair.app.heard(), [""; 0], "the application saw none of them");
    }
}

/// A body whose length nobody knows before its end.
fn hello() -> Channel<Bytes, io::Error> {
    let (mut sender, body) = Channel::new(1);
    sender.try_send(Frame::data(Bytes::from_static(b"hello"))).unwrap();
    body
}

fn trailers_that_frame_route_or_speak_for_a_host_are_left_out(workers: usize) {
    let pair = Pair::start(workers, "");
    for way in WAYS {
        let started = std::time::Instant::now();
        pair.app.answer(PLAIN);
        let mut trailers = HeaderMap::new();
        for name in ["x-sum", "host", "content-length", "evenkeel-timeout", "authorization"] {
            trailers.insert(name, HeaderValue::from_static("7"));
        }
        let names = "x-sum, host, content-length, evenkeel-timeout, authorization";
        let body = Full::new(Bytes::from_static(b"hello"))
            .with_trailers(std::future::ready(Some(Ok(trailers))));
        let asked = http::Request::post("/").header("host", way).header("trailer", names);
        let to = pair.caller.outbound().into();
        client::send(to, Version::Http2, asked.body(body).unwrap()).unwrap();
        let heard = pair.heard();
        let (_, end) = heard.split_once("\r\n\r\n").unwrap();
        assert!(!end.contains("host") && !end.contains("evenkeel"), "{way}: {heard}");

        pair.app.answer(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n5\r\nhello\r\n0\r\n\
             X-Sum: 7\r\nContent-Length: 9\r\nConnection: close\r\nEvenkeel-Failed: reset\r\n\r\n"
        ));
        let answer = pair.get(Version::Http2, way);
        assert_eq!(answer.text(), "hello", "{way}");
        assert_eq!(answer.trailer("x-sum"), "7", "{way}");
        assert_eq!(answer.trailers.len(), 1, "{way}: {:?}", answer.trailers);
        assert!(started.elapsed() < SILENCE, "a trailer that HTTP/2 forbids must not hang");
    }
}

fn each_form_of_the_target_means_one_thing(workers: usize) {
    let pair = Pair::start(workers, "");
    for way in WAYS {
        pair.app.answer(PLAIN);
        for (line, hosts) in [
            ("GET *", "Host: {}\r\n"),
            ("GET {}:80", "Host: {}\r\n"),
            ("GET http://{}/", ""),
            ("GET http://{}/", "Host: a b/c\r\n"),
            ("GET http://{}/", "Host:\r\n"),
            ("GET /", "Host: {}:99999999\r\n"),
            ("GET /", "Host: {}:http\r\n"),
            ("GET /", "Host: user:secret@{}\r\n"),
            ("GET http://user:secret@{}/", "Host: {}\r\n"),
            ("GET https://{}/", "Host: {}\r\n"),
            ("GET ftp://{}/", "Host: {}\r\n"),
        ] {
            let heard = pair.say(format!("{line} HTTP/1.1\r\n{hosts}\r\n").replace("{}", way));
            assert_eq!(heard.status(), 400, "{line} {hosts}: {}", heard.text());
            assert!(!heard.text().contains("secret"), "{}", heard.text());
        }
        assert_eq!(pair.app.heard(), [""; 0], "the application saw none of them");
        for (asked, target) in [
            ("OPTIONS http://{} HTTP/1.1\r\nHost: {}\r\n\r\n", "options * http/1.1\r\n"),
            ("OPTIONS * HTTP/1.1\r\nHost: {}\r\n\r\n", "options * http/1.1\r\n"),
            ("OPTIONS http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n", "options / http/1.1\r\n"),
            ("GET http://{}?q HTTP/1.1\r\nHost: x\r\n\r\n", "get /?q http/1.1\r\n"),
        ] {
            pair.app.answer(PLAIN);
            assert_eq!(pair.say(asked.replace("{}", way)).status(), 200, "{asked}");
            assert!(pair.heard().starts_with(target), "{}", pair.heard());
            assert!(pair.heard().contains(&format!("\r\nhost: {way}\r\n")), "{}", pair.heard());
        }
    }
    let log = pair.caller.process.output().unwrap();
    assert!(!log.contains("secret"), "no password in the log: {log}");
}

fn proxies_say_that_they_were_passed(workers: usize) {
    let pair = Pair::start(workers, "");
    let outside = pair.app.address.to_string();
    for (way, mark) in
        WAYS.map(|way| (way, "evenkeel-mesh")).into_iter().chain([(&*outside, "evenkeel")])
    {
        for (version, received) in [(Version::Http1, "1.1"), (Version::Http2, "2")] {
            pair.app.answer(PLAIN);
            let answer = pair.get(version, way);
            let heard = pair.heard();
            let via: Vec<_> = heard.lines().filter(|line| line.starts_with("via:")).collect();
            assert_eq!(via, [format!("via: {received} {mark}")], "{way}");
            let via: Vec<_> = answer.headers.get_all("via").iter().collect();
            assert_eq!(via, [&*format!("1.1 {mark}")], "{way}: the hosts between are one proxy");
        }
        pair.app.answer(PLAIN);
        pair.say(format!("OPTIONS / HTTP/1.1\r\nHost: {way}\r\nMax-Forwards: 0\r\n\r\n"));
        let traced =
            pair.say(format!("TRACE / HTTP/1.1\r\nHost: {way}\r\nMax-Forwards: 0\r\n\r\n"));
        assert_eq!((traced.status(), pair.app.heard().len()), (501, 0), "{}", traced.text());
        pair.say(format!("TRACE / HTTP/1.1\r\nHost: {way}\r\nMax-Forwards: 5\r\n\r\n"));
        assert!(pair.heard().contains("\r\nmax-forwards: 4\r\n"), "{}", pair.heard());
    }
    // Outside the mesh once is enough, wherever in a list it stands; a service may be asked by a gateway behind another.
    for (host, via, status) in [
        (&*outside, "1.0 a, 1.1 evenkeel", 508),
        (&outside, "1.1 evenkeel-mesh", 200),
        ("far", "1.0 a, 1.1 evenkeel-mesh, 1.1 evenkeel", 200),
        ("far", &["1.1 evenkeel-mesh"; 16].join(", "), 508),
    ] {
        let heard = pair.say(format!("GET / HTTP/1.1\r\nHost: {host}\r\nVia: {via}\r\n\r\n"));
        assert_eq!(heard.status(), status, "{host} {via}: {}", heard.text());
    }
}

fn a_service_that_leads_back_to_us_ends(workers: usize) {
    let pair = Pair::start(workers, "");
    // Another host's listener: the count ends it. One of the host's own: it is not dialled.
    let answer = pair.get(Version::Http1, "round");
    assert_eq!(answer.status, 508, "{}", answer.text());
    // Neither a configuration may say so nor an application.
    for (host, service) in [(&pair.caller, "own-local"), (&pair.other, "own-far")] {
        let own = host.outbound();
        let registration = format!(
            "{{\"Name\": \"{service}\", \"Address\": \"{}\", \"Port\": {}}}",
            own.ip(),
            own.port()
        );
        let put = http::Request::put("/v1/agent/service/register")
            .header("host", host.discovery().to_string())
            .body(Full::new(Bytes::from(registration)));
        let told = client::send(host.discovery().into(), Version::Http1, put.unwrap()).unwrap();
        assert_eq!(told.status, 400, "{}", told.text());
        assert!(told.text().contains("register the application's own"), "{}", told.text());
    }
}

fn what_belongs_to_a_hop_stays_on_it(workers: usize) {
    let pair = Pair::start(workers, "");
    let options: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
    let named: String = options.iter().map(|name| format!("{name}: 1\r\n")).collect();
    for way in WAYS {
        pair.app.answer(PLAIN);
        pair.say(format!(
            "POST / HTTP/1.1\r\nHost: {way}\r\nConnection: {}, host, content-length\r\nContent-Length: 5\r\n\
             {named}TE: gzip\r\nTE: trailers\r\nEvenkeel-Service: x\r\n\r\nhello",
            options.join(",")
        ));
        let heard = pair.heard();
        assert!(!heard.contains("\r\nx-"), "{way}: {heard}");
        assert!(heard.contains("\r\ncontent-length: 5\r\n") && heard.ends_with("hello"), "{heard}");
        assert!(heard.contains("\r\nte: trailers\r\n") && heard.contains("\r\nconnection: te\r\n"));
        assert!(!heard.contains("evenkeel-service"), "{way}: {heard}");
    }
}

fn applications_are_told_the_time_that_is_left(workers: usize) {
    let pair = Pair::start(workers, "{timeout: 9s}");
    let field = |heard: &str, name: &str| -> Option<u64> {
        let value = heard.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        value.trim_end_matches(char::is_alphabetic).parse().ok()
    };
    for way in WAYS {
        pair.app.answer(PLAIN);
        pair.say(format!("GET / HTTP/1.1\r\nHost: {way}\r\nGrpc-Timeout: 2S\r\n\r\n"));
        let heard = pair.heard();
        let left = field(&heard, "grpc-timeout").unwrap();
        assert!(heard.contains("u\r\n") && (1..2_000_000).contains(&left), "{way}: {heard}");
        let told = field(&heard, "evenkeel-timeout");
        let hops = field(&heard, "evenkeel-hops");
        if way == "direct" {
            assert_eq!((told, hops), (None, None), "what is not of the mesh is told nothing of it");
        } else {
            assert!(told.is_some_and(|ms| ms <= 2_000), "{way}: {heard}");
            assert_eq!(hops, Some(1), "{way}: {heard}");
        }
        pair.app.answer(PLAIN);
        pair.get(Version::Http1, way);
        assert_eq!(field(&pair.heard(), "grpc-timeout"), None, "a policy's time is not a call's");
        assert!(field(&pair.heard(), "evenkeel-timeout").is_none_or(|ms| ms <= 9_000));
    }
}

fn grpc_web_is_not_grpc(workers: usize) {
    let pair = Pair::start(workers, "");
    for way in WAYS.into_iter().chain(["nobody"]) {
        pair.app.answer(PLAIN);
        let heard = pair.say(format!(
            "POST / HTTP/1.1\r\nHost: {way}\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: 0\r\n\r\n"
        ));
        let expected = if way == "nobody" { 404 } else { 200 };
        assert_eq!(heard.status(), expected, "{way}: {}", heard.text());
    }
}

fn connect_at_the_mesh_port_is_for_instances_alone(workers: usize) {
    let pair = Pair::start(workers, "");
    pair.app.answer(PLAIN);
    let mut stream =
        Raw::connect_from(pair.lab.ip(1).into(), SocketAddrV4::new(pair.lab.ip(2), 7110).into())
            .unwrap();
    stream.say(http2_connect("local"));
    let heard = stream.hear_text("misdirected", SILENCE);
    assert!(heard.text().contains("misdirected"), "{}", heard.text());
    assert_eq!(pair.app.heard(), [""; 0]);
}

/// The preface, SETTINGS, and HEADERS of `CONNECT x:80` for an instance, its fields as literals (RFC 7541 §6.2.2).
fn http2_connect(service: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "CONNECT"),
        (":authority", "x:80"),
        ("evenkeel-service", service),
        ("evenkeel-instance", service),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let length = u8::try_from(block.len()).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, length, 1, 4, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

each_workers!(
    a_response_is_neither_cut_nor_believed_whole,
    a_request_keeps_its_body_or_is_refused,
    trailers_that_frame_route_or_speak_for_a_host_are_left_out,
    each_form_of_the_target_means_one_thing,
    proxies_say_that_they_were_passed,
    a_service_that_leads_back_to_us_ends,
    what_belongs_to_a_hop_stays_on_it,
    applications_are_told_the_time_that_is_left,
    grpc_web_is_not_grpc,
    connect_at_the_mesh_port_is_for_instances_alone,
);

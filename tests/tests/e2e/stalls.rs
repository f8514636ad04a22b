//! One slow party must not stall the others: callers that do not read, applications that do not read, and readers that pause.
//!
//! All requests between two hosts share a few connections, so what one stream holds of a connection others lack. The
//! windows are shown here by what they are for; what they cost is `make bench-readers`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::mesh::{Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::trio::{Trio, payments};

each_workers!(
    callers_that_stop_reading_stop_nobody_else,
    an_application_that_reads_no_upload_stops_no_other,
    what_is_lost_between_hosts_is_sent_again_soon,
);

/// Far more than all windows and buffers between an application and its caller hold.
const LARGE: u64 = 64 * 1024 * 1024;
/// More than one connection's worth of streams that are stuck.
const STUCK: usize = 120;
/// What is stuck is stuck for half a minute and more; what is only slow on a slow machine is not.
const AT_ONCE: Duration = Duration::from_secs(10);

fn callers_that_stop_reading_stop_nobody_else(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let proxy: SocketAddr = trio.caller.outbound().into();
    let stuck: Vec<TcpStream> = (0..STUCK)
        .map(|_| {
            let mut stream = TcpStream::connect(proxy).unwrap();
            let get = format!("GET /?bytes={LARGE} HTTP/1.1\r\nHost: payments\r\n\r\n");
            stream.write_all(get.as_bytes()).unwrap();
            // The response has begun, and nobody reads on.
            assert_eq!(stream.peek(&mut [0; 1]).unwrap(), 1);
            stream
        })
        .collect();
    others_are_answered(proxy);
    drop(stuck);
}

fn an_application_that_reads_no_upload_stops_no_other(workers: usize) {
    let lab = Lab::new(workers);
    // It is connected to, and never looks at what it is sent.
    let deaf = TcpListener::bind((lab.ip(90), 0)).unwrap();
    let address = deaf.local_addr().unwrap();
    let trio = Trio::start_with(lab, &Setup::default(), |app| {
        let others = payments(app, "");
        let others = others.trim_end_matches(']');
        format!("{others}, {{name: deaf, address: \"{address}\", protocol: http}}]")
    });
    trio.caller.wait_for_instances("deaf", 2);
    let proxy: SocketAddr = trio.caller.outbound().into();
    let stuck: Vec<TcpStream> = (0..STUCK).map(|_| stuck_upload(proxy)).collect();
    others_are_answered(proxy);
    drop(stuck);
}

/// As `ss` says of the connections, with requests on them: a time-out of the kernel's own is 200 ms and the round trip.
fn what_is_lost_between_hosts_is_sent_again_soon(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let is_told = kernel() >= (6, 15);
    for (host, app) in trio.hosts.iter().zip(&trio.apps) {
        let (data, app) = (host.data().to_string(), app.address.to_string());
        let ends = [["dst", &*data], ["src", &*data]];
        wait::for_true("a connection each way has its round trip measured", SOON, || {
            assert_eq!(trio.caller.get("payments", "/").status, 200);
            let shortest = ends.map(|end| time_outs(end).into_iter().min());
            shortest.iter().all(|ms| ms.is_some_and(|ms| !is_told || ms < KERNELS_OWN_MS))
        });
        if !is_told {
            assert!(ends.iter().all(|&end| time_outs(end).iter().all(|&ms| ms >= KERNELS_OWN_MS)));
        }
        // Applications are not ours: they acknowledge when they like.
        let others = time_outs(["dst", &app]);
        assert!(others.iter().all(|&ms| ms >= KERNELS_OWN_MS), "{others:?}");
    }
}

/// In milliseconds, of the established connections that this filter finds.
fn time_outs(filter: [&str; 2]) -> Vec<u64> {
    let out = Command::new("ss").args(["-tinOH", "state", "established"]).args(filter).output();
    let out = String::from_utf8(out.expect("ss is installed by `make test`").stdout).unwrap();
    let time_out = |line: &str| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix("rto:"));
        // A fraction follows where it is short.
        found.and_then(|ms| ms.split('.').next()?.parse().ok())
    };
    out.lines().filter_map(time_out).collect()
}

/// The version of this machine's kernel, as far as it counts here.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The least that a kernel waits by itself before it sends something again.
const KERNELS_OWN_MS: u64 = 200;

/// Begins an upload and sends for as long as somebody takes it.
fn stuck_upload(proxy: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: deaf\r\nContent-Length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    // Blocked for so long: nobody takes more.
    let sent = stream.write_all(&vec![b'x'; usize::try_from(LARGE).unwrap()]);
    let blocked = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    assert!(sent.is_err_and(|error| blocked.contains(&error.kind())), "all of it was taken");
    stream
}

/// Small requests in both versions, and uploads, through the same hosts.
fn others_are_answered(proxy: SocketAddr) {
    for version in [Version::Http1, Version::Http2] {
        for _ in 0..20 {
            let begun = Instant::now();
            let get = request(Method::GET, "payments", "/?bytes=2000");
            assert_eq!(client::send(proxy, version, get).unwrap().body.len(), 2000);
            let upload = http_body_util::Full::from(vec![b'u'; 300_000]);
            let upload = request(Method::POST, "payments", "/echo").map(|_| upload);
            assert_eq!(client::send(proxy, version, upload).unwrap().body.len(), 300_000);
            let took = begun.elapsed();
            assert!(took < AT_ONCE, "{version:?}: {took:?} beside what is stuck");
        }
    }
}

#[test]
fn a_reader_that_pauses_gets_the_rest() {
    let trio = Trio::start(Lab::new(2), &Setup::default());
    let paused: Vec<TcpStream> = [trio.caller.outbound(), trio.hosts[0].outbound()]
        .into_iter()
        .map(|proxy| {
            let mut stream = TcpStream::connect(SocketAddr::from(proxy)).unwrap();
            let get = format!(
                "GET /?bytes={LARGE} HTTP/1.1\r\nHost: payments\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(get.as_bytes()).unwrap();
            assert_eq!(stream.peek(&mut [0; 1]).unwrap(), 1);
            stream
        })
        .collect();
    // Longer than the kernel waits for who is silent (TCP_USER_TIMEOUT): a closed window is no silence.
    std::thread::sleep(Duration::from_secs(40));
    for mut stream in paused {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let head = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(all.len() - head, usize::try_from(LARGE).unwrap());
    }
}

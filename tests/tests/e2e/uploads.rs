//! Uploads that take their time, or outlast their answer: who is still sending, or still being read, is not cut short.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::raw_app::application;
use evenkeel_tests::wait::{self, SOON};

each_workers!(
    an_upload_that_goes_on_has_its_time_and_one_that_stands_still_is_answered,
    an_upload_may_outlast_its_answer,
    a_caller_that_only_writes_hears_why_it_was_refused,
    a_request_that_waits_for_leave_is_sent_again_where_the_first_refuses,
    a_retry_is_told_the_time_that_is_left_when_it_goes_out,
    an_upload_that_stands_still_after_its_answer_is_ended,
    an_upload_that_outlasts_its_answer_keeps_its_connections_place,
    an_upload_ends_where_its_request_is_sent_again_elsewhere,
    an_upload_that_goes_on_keeps_its_answer_waiting,
    an_answer_that_says_nothing_more_speaks_against_nobody,
    bodies_of_calls_that_are_answered_are_kept_for_nobody,
);

const MIB: usize = 1024 * 1024;
/// Far more than all windows and buffers between a caller and an application hold.
const LARGE: usize = 32 * MIB;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Host 1 asks, and host 2 offers `service` at this address.
fn pair(lab: &Lab, service: &str, address: SocketAddrV4, policy: &str) -> Vec<Host> {
    let services = format!("[{{name: {service}, address: \"{address}\", protocol: http}}]");
    let offering = Setup { services, ..Setup::default() };
    let hosts = lab.mesh(&[Setup { policy: policy.into(), ..Setup::default() }, offering]);
    hosts.iter().for_each(|host| host.wait_for_instances(service, 1));
    hosts
}

/// Host 1 asks these two in turn, and the other one again where one refuses: as `direct`, its own upstream, and as `far`, which
/// host 2 offers.
fn in_turn(lab: &Lab, one: SocketAddrV4, other: SocketAddrV4) -> Vec<Host> {
    let policy = "{balance: round_robin, repeat: {methods: [POST]}, eject: {consecutive: 1000}, \
                  max_body_buffer: 64MiB}";
    let upstreams =
        format!("[{{name: direct, endpoints: [\"{one}\", \"{other}\"], protocol: http}}]");
    let services = format!(
        "[{{name: far, id: a, address: \"{one}\", protocol: http}}, \
         {{name: far, id: b, address: \"{other}\", protocol: http}}]"
    );
    let caller = Setup { policy: policy.into(), upstreams, ..Setup::default() };
    let hosts = lab.mesh(&[caller, Setup { services, ..Setup::default() }]);
    hosts[0].wait_for_instances("far", 2);
    hosts
}

/// Reads a head and a body of [`LARGE`] bytes at 10 MiB a second.
fn read_slowly(mut stream: TcpStream) {
    let (mut piece, mut read) = (vec![0; MIB], 0);
    while read < LARGE {
        let Ok(n @ 1..) = stream.read(&mut piece) else { return };
        read += n;
        std::thread::sleep(Duration::from_secs(1).mul_f64(n as f64 / (10 * MIB) as f64));
    }
    let _ = stream.write_all(ANSWER);
    let _ = stream.read(&mut piece);
}

/// Answers a head, and reads on.
fn answer_and_read_on(mut stream: TcpStream) {
    let mut piece = vec![0; 64 * 1024];
    let _ = stream.read(&mut piece);
    let _ = stream.write_all(ANSWER);
    while stream.read(&mut piece).is_ok_and(|n| n > 0) {}
}

fn upload(to: SocketAddrV4, service: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(SocketAddr::from(to)).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {service}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// The status that comes, 0 where none does.
fn status(stream: &mut TcpStream) -> u16 {
    let mut head = [0; 12];
    match stream.read_exact(&mut head) {
        Ok(()) => String::from_utf8_lossy(&head[9..]).parse().unwrap(),
        Err(_) => 0,
    }
}

fn an_upload_that_goes_on_has_its_time_and_one_that_stands_still_is_answered(workers: usize) {
    let lab = Lab::new(workers);
    let slow = application(lab.ip(90), read_slowly);
    let hosts = pair(&lab, "slow", slow, "{timeout: 2s}");
    let mut stream = upload(hosts[0].outbound(), "slow", LARGE);
    stream.write_all(&vec![b'x'; LARGE]).unwrap();
    assert_eq!(status(&mut stream), 200, "it went on all the time");

    let lab = Lab::new(workers);
    let deaf = application(lab.ip(90), |stream| {
        std::thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    let hosts = pair(&lab, "deaf", deaf, "{timeout: 2s}");
    let mut stream = upload(hosts[0].outbound(), "deaf", LARGE);
    let mut sending = stream.try_clone().unwrap();
    // Blocks until the answer has come and the connection is closed.
    std::thread::spawn(move || sending.write_all(&vec![b'x'; LARGE]));
    assert_eq!(status(&mut stream), 504, "nobody reads it");
}

fn an_upload_may_outlast_its_answer(workers: usize) {
    let lab = Lab::new(workers);
    let early = application(lab.ip(90), answer_and_read_on);
    let hosts = pair(&lab, "early", early, "{}");
    let mut stream = upload(hosts[0].outbound(), "early", 25);
    stream.write_all(b"x").unwrap();
    assert_eq!(status(&mut stream), 200);
    // Longer than a head may take: these are none.
    for _ in 0..24 {
        std::thread::sleep(Duration::from_millis(500));
        stream.write_all(b"x").unwrap();
    }
    let unreadable =
        || hosts[0].metrics().sum("evenkeel_failures_total", &[("reason", "bad_request")]);
    assert_eq!(unreadable(), 0.0, "an upload was taken for a head");
    let mut raw = Raw::connect(hosts[0].outbound().into()).unwrap();
    raw.say(b"POST / HTTP/9.9\r\n\r\n");
    wait::for_true("what is no head is counted", Duration::from_secs(8), || unreadable() == 1.0);
}

fn a_retry_is_told_the_time_that_is_left_when_it_goes_out(workers: usize) {
    let lab = Lab::new(workers);
    let (tell, heads) = mpsc::channel();
    // Wants to see the request again in half a second.
    let later = application(lab.ip(90), move |mut stream| {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            let _ = tell.send(String::from_utf8_lossy(&piece[..n]).into_owned());
            let _ = stream.write_all(
                b"HTTP/1.1 503 Later\r\nGrpc-Retry-Pushback-Ms: 500\r\nContent-Length: 0\r\n\r\n",
            );
        }
    });
    let hosts = pair(&lab, "later", later, "{timeout: 9s, retry: {max: 1}}");
    assert_eq!(hosts[0].get("later", "/").status, 503);
    let told = || -> u64 {
        let head = heads.recv_timeout(SOON).expect("both attempts arrive");
        let value = head.lines().find_map(|line| line.strip_prefix("evenkeel-timeout: "));
        value.expect("the time is told").trim_end_matches(char::is_alphabetic).parse().unwrap()
    };
    let (first, second) = (told(), told());
    assert!(second <= first - 500, "{first} and then {second}");
}

fn an_upload_that_stands_still_after_its_answer_is_ended(workers: usize) {
    let lab = Lab::new(workers);
    let (tell, ended) = mpsc::channel();
    let early = application(lab.ip(90), move |stream| {
        answer_and_read_on(stream);
        let _ = tell.send(());
    });
    let hosts = pair(&lab, "early", early, "{idle_timeout: 2s}");
    let mut stream = upload(hosts[0].outbound(), "early", 25);
    assert_eq!(status(&mut stream), 200);
    ended.recv_timeout(Duration::from_secs(60)).expect("the application's connection ends");
}

fn an_upload_that_outlasts_its_answer_keeps_its_connections_place(workers: usize) {
    let lab = Lab::new(workers);
    let early = application(lab.ip(90), answer_and_read_on);
    let upstreams = format!(
        "[{{name: early, endpoints: [\"{early}\"], policy: {{circuit: {{connections: 1}}}}}}]"
    );
    let host = lab.mesh(&[Setup { upstreams, ..Setup::default() }]).remove(0);
    let mut held = upload(host.outbound(), "early", 25);
    assert_eq!(status(&mut held), 200);
    let another = || status(&mut upload(host.outbound(), "early", 0));
    // Longer than a connection is kept that waits for its next request: this one does not.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(another(), 503, "its socket is open still");
    drop(held);
    wait::for_true("there is room again", SOON, || another() == 200);
}

/// Begins an answer at once, and ends it when `length` bytes have come.
fn answer_and_end_later(mut stream: TcpStream, length: usize) {
    let mut piece = vec![0; 64 * 1024];
    let _ = stream.read(&mut piece);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut read = 0;
    while read < length {
        let Ok(n @ 1..) = stream.read(&mut piece) else { return };
        read += n;
    }
    let _ = stream.write_all(b"4\r\ndone\r\n0\r\n\r\n");
}

fn an_upload_that_goes_on_keeps_its_answer_waiting(workers: usize) {
    let lab = Lab::new(workers);
    let early = application(lab.ip(90), |stream| answer_and_end_later(stream, 10));
    let policy = "{idle_timeout: 1s}";
    let upstreams = format!("[{{name: direct, endpoints: [\"{early}\"], policy: {policy}}}]");
    let services = format!("[{{name: far, address: \"{early}\", protocol: http}}]");
    let caller = Setup { policy: policy.into(), upstreams, ..Setup::default() };
    let hosts = lab.mesh(&[caller, Setup { services, ..Setup::default() }]);
    hosts[0].wait_for_instances("far", 1);
    for name in ["direct", "far"] {
        let mut raw = Raw::connect(hosts[0].outbound().into()).unwrap();
        raw.say(format!("POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 11\r\n\r\nx"));
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(300));
            raw.say("x");
        }
        let heard = raw.hear_text("done", SOON);
        assert!(heard.text().contains("done"), "{name}: {}", heard.text());
    }
}

fn an_answer_that_says_nothing_more_speaks_against_nobody(workers: usize) {
    let lab = Lab::new(workers);
    let watch = application(lab.ip(90), |stream| answer_and_end_later(stream, 1));
    let policy = "{idle_timeout: 200ms, eject: {consecutive: 2}}";
    let upstreams = format!("[{{name: watch, endpoints: [\"{watch}\"], policy: {policy}}}]");
    let host = lab.mesh(&[Setup { upstreams, ..Setup::default() }]).remove(0);
    for _ in 0..4 {
        let mut raw = Raw::connect(host.outbound().into()).unwrap();
        raw.say("GET / HTTP/1.1\r\nHost: watch\r\n\r\n");
        let heard = raw.hear(SOON);
        assert!(heard.closed && heard.status() == 200, "{}", heard.text());
    }
    assert_eq!(host.metrics().sum("evenkeel_ejections_total", &[]), 0.0);
    let idle = host.metrics().sum("evenkeel_failures_total", &[("reason", "idle_timeout")]);
    assert_eq!(idle, 4.0, "it is counted all the same");
}

fn bodies_of_calls_that_are_answered_are_kept_for_nobody(workers: usize) {
    const PART: usize = 40_000;
    let lab = Lab::new(workers);
    let early = application(lab.ip(90), answer_and_read_on);
    let upstreams = format!("[{{name: early, endpoints: [\"{early}\"]}}]");
    let more = "limits: {buffers: 100KiB}".into();
    let host = lab.mesh(&[Setup { upstreams, more, ..Setup::default() }]).remove(0);
    let under_way: Vec<TcpStream> = (0..6)
        .map(|_| {
            let mut stream = upload(host.outbound(), "early", 2 * PART);
            stream.write_all(&[b'x'; PART]).unwrap();
            assert_eq!(status(&mut stream), 200);
            stream
        })
        .collect();
    assert_eq!(host.metrics().sum("evenkeel_bodies_refused_total", &[]), 0.0);
    drop(under_way);
}

/// Reads a head and refuses, looks for the body later, and tells how much of it came.
fn refuse_and_read_later(mut stream: TcpStream, tell: &mpsc::Sender<usize>) {
    let mut piece = vec![0; 64 * 1024];
    if !stream.read(&mut piece).is_ok_and(|n| n > 0) {
        return;
    }
    let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    std::thread::sleep(Duration::from_secs(2));
    let mut read = 0;
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        read += n;
    }
    let _ = tell.send(read);
}

/// Reads a head and the body of [`LARGE`] bytes, and answers.
fn read_all(mut stream: TcpStream) {
    let (mut piece, mut read) = (vec![0; MIB], 0);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        read += n;
        if read >= LARGE {
            read = 0;
            let _ = stream.write_all(ANSWER);
        }
    }
}

fn an_upload_ends_where_its_request_is_sent_again_elsewhere(workers: usize) {
    let lab = Lab::new(workers);
    let (tell, came) = mpsc::channel();
    let refuses = application(lab.ip(90), move |stream| refuse_and_read_later(stream, &tell));
    let takes = application(lab.ip(91), read_all);
    let hosts = in_turn(&lab, refuses, takes);
    for name in ["direct", "far"] {
        for _ in 0..4 {
            let mut stream = upload(hosts[0].outbound(), name, LARGE);
            stream.write_all(&vec![b'x'; LARGE]).unwrap();
            assert_eq!(status(&mut stream), 200, "{name}");
        }
        let read = came.recv_timeout(SOON).expect("it was asked first at least once");
        assert!(read < LARGE, "{name}: all was sent to who had refused it");
    }
}

/// Reads a head, and answers this instead of giving leave to send a body.
fn refuse_from_the_head(mut stream: TcpStream) {
    let mut piece = vec![0; 64 * 1024];
    while stream.read(&mut piece).is_ok_and(|n| n > 0) {
        let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    }
}

/// Reads a head, gives leave to send the body, reads that and answers.
fn give_leave(mut stream: TcpStream) {
    let mut piece = vec![0; 64 * 1024];
    while stream.read(&mut piece).is_ok_and(|n| n > 0) {
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        let _ = stream.read(&mut piece);
        let _ = stream.write_all(ANSWER);
    }
}

fn a_request_that_waits_for_leave_is_sent_again_where_the_first_refuses(workers: usize) {
    let lab = Lab::new(workers);
    let refuses = application(lab.ip(90), refuse_from_the_head);
    let takes = application(lab.ip(91), give_leave);
    let hosts = in_turn(&lab, refuses, takes);
    for name in ["direct", "far"] {
        for _ in 0..4 {
            let mut raw = Raw::connect(hosts[0].outbound().into()).unwrap();
            raw.say(format!(
                "POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 5\r\n\
                 Expect: 100-continue\r\n\r\n"
            ));
            let heard = raw.hear_text("\r\n\r\n", SOON);
            assert_eq!(heard.status(), 100, "{name}: {}", heard.text());
            raw.say("hello");
            assert_eq!(raw.hear_text("ok", SOON).status(), 200, "{name}");
        }
    }
}

fn a_caller_that_only_writes_hears_why_it_was_refused(workers: usize) {
    let lab = Lab::new(workers);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    for _ in 0..10 {
        let mut stream = upload(host.outbound(), "nobody", 8 * MIB);
        stream.write_all(&vec![b'x'; 8 * MIB]).expect("what it sends is taken");
        assert_eq!(status(&mut stream), 404);
    }
    // So does one whose head is refused.
    let mut raw = Raw::connect(host.outbound().into()).unwrap();
    raw.say(b"POST / HTTP/9.9\r\nhost: nobody\r\n\r\n");
    raw.say(vec![b'x'; 4 * MIB]);
    assert_eq!(raw.hear(Duration::from_secs(5)).status(), 400);
}

//! A limit on how many are in flight at once: over two hosts it is one, and a place comes back however its request ends.

use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::mesh::{App, Lab, Setup};
use evenkeel_tests::raw::Raw;
use evenkeel_tests::wait::{self, SOON};
use http::Method;

use super::limits::{alone, caller};

fn what_is_held_is_bounded_over_hosts(workers: usize) {
    let lab = Lab::new(workers);
    let app = lab.app(1);
    let limits = "resources: [{match: places, capacity: 6}], \
                  apply: [{direction: outbound, service: db, resource: places}]";
    let hosts = lab.mesh(&[caller(&app, limits), caller(&app, limits)]);
    hosts.iter().for_each(|host| host.wait_for_roster(2));
    let loads: Vec<_> = hosts.iter().flat_map(|host| [host.outbound(); 8]).map(crowd).collect();
    wait::for_true("all places are taken", SOON, || app.most_in_flight() >= 6);
    wait::for_true("for a while", SOON, || app.count().0 > 300);
    let passed: usize = loads.into_iter().map(Crowd::finish).sum();
    assert!(passed > 200, "{passed}");
    assert_eq!(app.most_in_flight(), 6, "never more than there are places");
}

/// Asks one after the other, each held for a while.
struct Crowd {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<usize>,
}

fn crowd(to: std::net::SocketAddrV4) -> Crowd {
    let (stop, stopped) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut passed = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let answer = client::get(to.into(), "db", "/slow?ms=50").unwrap();
            assert!(matches!(answer.status.as_u16(), 200 | 429), "{}", answer.text());
            passed += usize::from(answer.status == 200);
        }
        passed
    });
    Crowd { stop, thread }
}

impl Crowd {
    fn finish(self) -> usize {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

fn places_come_back_however_a_request_ends(workers: usize) {
    let lab = Lab::new(workers);
    let mut app = lab.app(1);
    let limits = "resources: [{match: places, capacity: 3}], \
                  apply: [{direction: outbound, service: db, resource: places}]";
    // Longer than all that is done while the places are held.
    let hosts = lab.mesh(&[Setup { policy: "{timeout: 60s}".into(), ..alone(&app, limits) }]);
    let host = &hosts[0];
    host.wait_for_roster(1);
    let ask = |path: &str| client::get(host.outbound().into(), "db", path);
    let hang = || {
        let mut caller = Raw::connect(host.outbound().into()).unwrap();
        caller.say("GET /hang HTTP/1.1\r\nhost: db\r\n\r\n");
        caller
    };
    // Three places, and no fourth: after whatever came before.
    let check = |app: &App, what: &str| {
        let before = app.count().0;
        let held = [hang(), hang(), hang()];
        wait::for_true(&format!("three places are free {what}"), SOON, || {
            app.count().0 == before + 3
        });
        assert_eq!(ask("/").unwrap().status, 429, "{what}");
        assert_eq!(app.count().0, before + 3);
        drop(held);
        wait::for_true("the callers' end frees them", SOON, || ask("/").unwrap().status == 200);
    };
    check(&app, "at first");
    (0..10).for_each(|_| assert_eq!(ask("/status/500").unwrap().status, 500));
    (0..10).for_each(|_| assert_eq!(ask("/reset?at=head").unwrap().status, 502));
    (0..10).for_each(|_| assert!(ask("/reset?at=body").is_err()));
    let late = || {
        let mut late = request(Method::GET, "db", "/hang");
        late.headers_mut().insert("evenkeel-timeout", "300".parse().unwrap());
        client::send(host.outbound().into(), Version::Http1, late).unwrap().status
    };
    (0..3).for_each(|_| assert_eq!(late(), 504));
    check(&app, "after errors");
    app.process.kill();
    (0..10).for_each(|_| assert_eq!(ask("/").unwrap().status, 503));
    app.start_again();
    wait::for_true("it is tried again", SOON, || ask("/").unwrap().status == 200);
    check(&app, "after the application's end");
}

each_workers!(what_is_held_is_bounded_over_hosts, places_come_back_however_a_request_ends);

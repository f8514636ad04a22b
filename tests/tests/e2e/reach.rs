//! Reached each way an application can ask: by `Host`, as a proxy, by a listener, by static endpoints.

use std::collections::BTreeSet;
use std::process::Command;

use bytes::Bytes;
use evenkeel_tests::client::{self, Version, request};
use evenkeel_tests::load::most_at_once;
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::process::Process;
use evenkeel_tests::raw::Raw;
use evenkeel_tests::sockets;
use evenkeel_tests::wait::{self, SOON};
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::{BodyExt, Full};

use super::trio::Trio;

const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// Which applications answer some requests with this `Host`.
fn answering(host: &Host, version: Version, name: &str) -> BTreeSet<String> {
    let ask = || {
        let answer = client::send(
            host.outbound().into(),
            version,
            request(Method::GET, name, "/?bytes=100"),
        )
        .unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (200, 100),
            "{name}: {}",
            answer.text()
        );
        answer.header("x-app").to_owned()
    };
    (0..30).map(|_| ask()).collect()
}

/// In turn, so that a few requests show every endpoint; the default goes where answers come soonest.
fn in_turn() -> Setup {
    Setup { policy: "{balance: round_robin, slow_start: 0s}".into(), ..Setup::default() }
}

fn by_host_header_in_every_form(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &in_turn());
    let both = BTreeSet::from(["app-2".to_owned(), "app-3".to_owned()]);
    for version in VERSIONS {
        for name in [
            "payments",
            "payments.mesh",
            "payments.service.mesh",
            "payments.mesh:8443",
            "Payments.Mesh",
        ] {
            assert_eq!(answering(&trio.caller, version, name), both, "{version:?} {name}");
        }
        // Hosts that offer it reach it too, themselves included.
        assert_eq!(answering(&trio.hosts[0], version, "payments.mesh"), both);
    }
    // What the application sees is what was asked.
    let seen = trio.caller.get("payments.mesh", "/headers?a=b%20c").text();
    assert!(seen.starts_with("GET /headers?a=b%20c HTTP/1.1"), "{seen}");
    assert!(seen.lines().any(|line| line == "host: payments.mesh"), "{seen}");
}

fn as_a_proxy(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let proxy = format!("http://{}", trio.caller.outbound());
    let curl = |url: &str, more: &[&str]| {
        let out = Command::new("curl")
            .args(["-sS", "-m", "10", "-w", " %{http_code}", "-x", &proxy, url])
            .args(more)
            .output();
        let out = out.expect("curl is installed by `make test`");
        assert!(out.status.success(), "{url}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(curl("http://payments.mesh/?bytes=3", &[]).ends_with("xxx 200"));
    assert!(curl("http://payments/?bytes=3", &[]).ends_with("xxx 200"));
    assert_eq!(curl("http://payments.mesh/echo", &["-d", "some data"]), "some data 200");
    // A name outside the mesh passes through.
    let outside = trio.lab.app(9);
    let direct = curl(&format!("http://{}/?bytes=5", outside.address), &[]);
    assert_eq!(direct, "xxxxx 200");
    assert_eq!(outside.count().0, 1);
}

fn by_a_listener_and_by_static_endpoints(workers: usize) {
    let lab = Lab::new(workers);
    let fixed: Vec<_> = [5, 6].map(|number| lab.app(number)).into();
    let caller = Setup {
        listeners: format!(
            "[{{listen: \"{0}:8200\", service: payments}}, {{listen: \"{0}:8201\", service: catalog}}]",
            lab.ip(1)
        ),
        upstreams: format!(
            "[{{name: catalog, endpoints: [\"{}\", \"{}\"]}}]",
            fixed[0].address, fixed[1].address
        ),
        ..in_turn()
    };
    let trio = Trio::start(lab, &caller);
    let ask = |port: u16, version| {
        let to = (trio.caller.ip, port).into();
        let answer =
            client::send(to, version, request(Method::GET, "whatever.example", "/")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.header("x-app").to_owned()
    };
    for version in VERSIONS {
        let mesh: BTreeSet<_> = (0..30).map(|_| ask(8200, version)).collect();
        assert_eq!(mesh, BTreeSet::from(["app-2".into(), "app-3".into()]));
        let fixed: BTreeSet<_> = (0..30).map(|_| ask(8201, version)).collect();
        assert_eq!(fixed, BTreeSet::from(["app-5".into(), "app-6".into()]));
        assert_eq!(
            answering(&trio.caller, version, "catalog").len(),
            2,
            "static endpoints by Host"
        );
    }
}

fn bodies_of_every_kind_arrive_whole(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let to = trio.caller.outbound().into();
    for version in VERSIONS {
        let large = evenkeel_tests::raw::noise(7, 3 << 20);
        let echo = http::Request::post("/echo").header("host", "payments");
        let answer =
            client::send(to, version, echo.body(Full::new(Bytes::from(large.clone()))).unwrap())
                .unwrap();
        assert!(
            answer.body == large,
            "{version:?}: {} of {} bytes",
            answer.body.len(),
            large.len()
        );

        let head =
            client::send(to, version, request(Method::HEAD, "payments", "/?bytes=1000")).unwrap();
        assert_eq!(
            (head.status.as_u16(), head.body.len(), head.header("content-length")),
            (200, 0, "1000")
        );
        let empty =
            client::send(to, version, request(Method::GET, "payments", "/status/204")).unwrap();
        assert_eq!(empty.status, 204);
        assert_eq!(trio.caller.get("payments", "/?bytes=8000000").body.len(), 8_000_000);
    }
    // A stream is passed on as it comes, not collected first: this one does not end as long as anyone waits for it.
    let mut stream = Raw::connect(to).unwrap();
    stream.say("GET /stream?n=2&ms=1000000 HTTP/1.1\r\nhost: payments\r\n\r\n");
    let first = stream.hear_text("chunk 0", SOON).text();
    assert!(first.contains("chunk 0"), "{first}");
}

fn trailers_cross_the_mesh(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let to = trio.caller.outbound().into();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("42"));
    let body = Full::new(Bytes::from_static(b"data"))
        .with_trailers(std::future::ready(Some(Ok(trailers))));
    let echo = http::Request::post("/echo")
        .header("host", "payments-h2")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = client::send(to, Version::Http2, echo).unwrap();
    assert_eq!((answer.text().as_str(), answer.trailer("x-sum")), ("data", "42"), "there and back");
    let answer =
        client::send(to, Version::Http2, request(Method::GET, "payments-h2", "/stream?n=3&ms=1"))
            .unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.trailer("x-chunks")),
        ("chunk 0\nchunk 1\nchunk 2\n", "3")
    );
}

fn headers_of_the_hop_stay_on_the_hop(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let mut raw = Raw::connect(trio.caller.outbound().into()).unwrap();
    raw.say(
        "GET /headers HTTP/1.1\r\nhost: payments\r\nconnection: x-mine, close\r\nx-mine: 1\r\nx-kept: 2\r\n\
         keep-alive: timeout=5\r\nproxy-authorization: basic Zm9v\r\nevenkeel-service: other\r\n\
         x-request-id: abc\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    );
    let heard = raw.hear(SOON);
    let text = heard.text();
    assert_eq!(heard.status(), 200, "{text}");
    for kept in
        ["x-kept: 2", "x-request-id: abc", "traceparent: 00-0af7651916cd43dd8448eb211c80319c"]
    {
        assert!(text.contains(kept), "{kept} is missing: {text}");
    }
    for stripped in
        ["x-mine", "keep-alive: timeout=5", "proxy-authorization", "evenkeel-service: other"]
    {
        assert!(!text.contains(stripped), "{stripped} went on: {text}");
    }
}

fn nginx_behind_the_mesh_and_h2load_before_it(workers: usize) {
    let lab = Lab::new(workers);
    let (folder, address) = (lab.folder().to_owned(), lab.ip(110));
    std::fs::create_dir_all(folder.join("www")).unwrap();
    std::fs::write(folder.join("www/index.html"), "from nginx\n").unwrap();
    let conf = format!(
        "daemon off; master_process off; user root; pid {0}/nginx.pid; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {0}/t1; proxy_temp_path {0}/t2; fastcgi_temp_path {0}/t3;\n\
         uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5; keepalive_requests 100;\n\
         server {{ listen {address}:8080; root {0}/www; location = /healthz {{ return 200 \"ok\\n\"; }} }} }}\n",
        folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), conf).unwrap();
    let mut command = Command::new("nginx");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-c").arg(folder.join("nginx.conf"));
    command.arg("-p").arg(&folder).arg("-e").arg("stderr");
    let _nginx = Process::start("nginx", &mut command, &folder.join("nginx.log"));
    let listener = lab.ip(1);
    let caller = Setup {
        join: vec![1, 2],
        listeners: format!("[{{listen: \"{listener}:8200\", service: static}}]"),
        ..Setup::default()
    };
    let web = Setup {
        join: vec![1, 2],
        services: format!(
            "[{{name: static, address: \"{address}:8080\", protocol: http, check: {{http: /healthz, interval: 200ms, rise: 1}}}}]"
        ),
        ..Setup::default()
    };
    let hosts = lab.mesh(&[caller, web]);
    hosts[0].wait_for_instances("static", 1);
    assert_eq!(hosts[0].get("static.mesh", "/").text(), "from nginx\n");
    assert_eq!(hosts[0].get("static.mesh", "/nosuch").status, 404, "nginx's own 404 is passed on");

    // HTTP/2 and HTTP/1.1 before the mesh, HTTP/1.1 behind it; nginx closes a connection every 100 requests.
    for more in [&["-m", "10"][..], &["--h1"]] {
        let url = format!("http://{listener}:8200/");
        let out = Command::new("h2load")
            .args(["-n", "3000", "-c", "8", "-t", "1"])
            .args(more)
            .arg(url)
            .output();
        let out = String::from_utf8_lossy(&out.expect("h2load is installed by `make test`").stdout)
            .into_owned();
        assert!(out.contains("3000 succeeded, 0 failed, 0 errored"), "{out}");
        assert!(out.contains("status codes: 3000 2xx"), "{out}");
    }
}

fn few_connections_carry_many_requests(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    let load = trio.caller.start_load("payments");
    load.after(200);
    let most =
        trio.hosts.iter().map(|host| sockets::connections_to(host.data())).collect::<Vec<_>>();
    load.after(1000);
    let report = load.finish();
    report.assert_no_failed_get();
    // For each pair of hosts a few HTTP/2 connections for each worker, however many requests there were.
    for (host, before) in trio.hosts.iter().zip(most) {
        let after = sockets::connections_to(host.data());
        assert!(after >= 1, "requests do cross the mesh");
        assert!(
            before.max(after) <= 2 * workers,
            "{before}, then {after} connections to {}",
            host.name()
        );
    }
    // The connections that the applications hold are bounded by what was at work at once, in each worker, and one
    // is the health check's.
    let most = 1 + workers * most_at_once(&report.samples);
    for app in &trio.apps {
        let open = sockets::connections_to(app.address);
        assert!(open <= most, "{open} connections to an application, {most} may");
    }
}

fn an_idle_mesh_connection_survives_or_is_replaced(workers: usize) {
    let trio = Trio::start(Lab::new(workers), &Setup::default());
    assert_eq!(trio.caller.get("payments", "/").status, 200);
    let mut restarted = trio;
    // The pooled connections to this host die with it; the next requests must not notice.
    restarted.hosts[0].process.kill();
    restarted.hosts[0].start_again();
    restarted.hosts[0].wait_until_ready();
    restarted.caller.wait_for_instances("payments", 2);
    wait::for_true("the restarted host is used again", SOON, || {
        let answer = restarted.caller.get("payments", "/");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.header("x-app") == "app-2"
    });
}

each_workers!(
    by_host_header_in_every_form,
    as_a_proxy,
    by_a_listener_and_by_static_endpoints,
    bodies_of_every_kind_arrive_whole,
    trailers_cross_the_mesh,
    headers_of_the_hop_stay_on_the_hop,
    nginx_behind_the_mesh_and_h2load_before_it,
    few_connections_carry_many_requests,
    an_idle_mesh_connection_survives_or_is_replaced,
);

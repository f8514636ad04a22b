//! An unmodified gRPC pair (Python's grpcio) with the mesh between them.

use std::path::{Path, PathBuf};
use std::process::Command;

use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::process::Process;
use evenkeel_tests::wait::{self, SOON};
use serde_json::{Value, json};

/// The Python that `make test` has given grpcio.
pub fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("EVENKEEL_TEST_PYTHON") {
        return path.into();
    }
    // target/PROFILE/deps/e2e-0123 → target/venv/bin/python
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(3).unwrap().join("venv/bin/python");
    assert!(path.exists(), "{} is not there: `make test-setup` makes it", path.display());
    path
}

/// One of the scripts beside these tests.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grpc").join(name)
}

fn call(host: &Host, authority: &str, command: &[&str]) -> Value {
    let target = host.outbound().to_string();
    let out = Command::new(python())
        .arg(script("client.py"))
        .args([&target, authority])
        .args(command)
        .output();
    let out = out.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)))
}

fn start(lab: &Lab, policy: &str) -> (Vec<Host>, Process) {
    let address = format!("{}:50051", lab.ip(110));
    let mut command = Command::new(python());
    command.arg(script("server.py")).args([&address, "grpc-1"]);
    let server = Process::start("grpc server", &mut command, &lab.folder().join("grpc.log"));
    let caller = Setup { join: vec![1, 2], policy: policy.into(), ..Setup::default() };
    let other = Setup {
        join: vec![1, 2],
        services: format!(
            "[{{name: greeter, address: \"{address}\", protocol: grpc, check: {{tcp: true, interval: 200ms, rise: 1, fall: 1}}}}]"
        ),
        ..Setup::default()
    };
    let hosts = lab.mesh(&[caller, other]);
    hosts[0].wait_for_instances("greeter", 1);
    (hosts, server)
}

fn every_kind_of_call_crosses_the_mesh(workers: usize) {
    let lab = Lab::new(workers);
    let (hosts, _server) = start(&lab, "");
    let answers = call(&hosts[0], "greeter.mesh", &[]);
    assert_eq!(answers["unary"], "unary:hello", "{answers:#}");
    assert_eq!(answers["app"], "grpc-1", "trailing metadata");
    assert_eq!(answers["binary"], json!([0, 255]), "binary metadata");
    assert_eq!(answers["large"], 1_000_006);
    let items: Vec<String> = (0..20).map(|n| format!("item {n}")).collect();
    assert_eq!(answers["server_stream"], json!(items));
    assert_eq!(answers["client_stream"], "sum 1225");
    assert_eq!(answers["bidi"], json!(["pong 0", "pong 1", "pong 2", "pong 3", "pong 4"]));
    assert_eq!(answers["fails"]["code"], "FAILED_PRECONDITION");
    assert_eq!(answers["fails"]["details"], "not today");
    assert_eq!(answers["fails"]["trailers"]["x-why"], "because");
    assert_eq!(answers["unknown_method"]["code"], "UNIMPLEMENTED", "the application's own");
}

fn the_meshs_own_failures_have_a_grpc_status(workers: usize) {
    let lab = Lab::new(workers);
    let (hosts, mut server) = start(&lab, "{timeout: 3s}");
    let unknown = call(&hosts[0], "nosuch.mesh", &["unary"]);
    assert_eq!(unknown["code"], "UNIMPLEMENTED", "{unknown}");
    assert!(
        unknown["details"].as_str().unwrap().contains("nosuch"),
        "the message names it: {unknown}"
    );

    let late = call(&hosts[0], "greeter.mesh", &["slow:30:"]);
    assert_eq!(late["code"], "DEADLINE_EXCEEDED", "the policy's timeout: {late}");
    let late = call(&hosts[0], "greeter.mesh", &["slow:30:0.3"]);
    assert_eq!(late["code"], "DEADLINE_EXCEEDED", "the caller's: {late}");
    let in_time = call(&hosts[0], "greeter.mesh", &["slow:0.1:"]);
    assert_eq!(in_time["code"], "OK", "{in_time}");

    server.kill();
    let dead = call(&hosts[0], "greeter.mesh", &["unary"]);
    assert_eq!(dead["code"], "UNAVAILABLE", "nobody listens: {dead}");
    wait::for_true("its check fails", SOON, || hosts[0].usable("greeter").is_empty());
    let none = call(&hosts[0], "greeter.mesh", &["unary"]);
    assert_eq!(none["code"], "UNAVAILABLE", "no healthy endpoint: {none}");
}

each_workers!(every_kind_of_call_crosses_the_mesh, the_meshs_own_failures_have_a_grpc_status);

//! The command line as an operator and a newcomer use it: what they type first, what they are told, and whether what
//! is offered to them works. Against running hosts, whose own log is held to the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod host;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use host::{Application, Host, eventually, output_of};
use serde_json::Value;

fn evenkeel(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Without what the environment of this test may say.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(args).env_remove("EVENKEEL_ADMIN");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file in a directory of its own, which goes when the test does.
fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("evenkeel.yaml");
    fs::write(&path, content).unwrap();
    (directory, path)
}

/// An address where nothing listens.
fn closed() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn the_command_line_says_what_to_do_and_ends_with_the_right_status() {
    let closed = closed();
    let nobody = evenkeel(&["members", "--admin", &closed]);
    assert_eq!(nobody.status.code(), Some(1));
    let said = text(&nobody.stderr);
    assert!(said.contains(&closed) && said.contains("evenkeel run -c FILE"), "{said}");
    let (_directory, good) = file("node: {name: host-a}\n");
    let good = good.to_str().unwrap();
    for (args, status) in [
        (&["frobnicate"][..], 64),
        (&[], 64),
        (&["members", "--output", "yaml"], 64),
        (&["--help"], 0),
        (&["help"], 0),
        (&["help", "explain"], 0),
        (&["help", "frobnicate"], 64),
        (&["--version"], 0),
        (&["check"], 0),
        (&["check", good], 0),
        (&["check", "-c", good], 0),
        (&["check", good, "-c", good], 64),
        (&["check", "-c", "/nonexistent/evenkeel.yaml"], 78),
        (&["run", "-c", "/nonexistent/evenkeel.yaml"], 78),
        (&["completions", "bash"], 0),
        (&["keygen"], 0),
    ] {
        assert_eq!(evenkeel(args).status.code(), Some(status), "{args:?}");
    }
    assert!(text(&evenkeel(&["help"]).stdout).contains("explain"), "it lists what there is");
    assert!(text(&evenkeel(&["help", "explain"]).stdout).contains("--path"));
}

#[test]
fn check_names_every_problem_at_once() {
    let (_directory, bad) = file("node: {nam: x}\nmesh: {joyn: []}\n");
    let bad = evenkeel(&["check", bad.to_str().unwrap()]);
    assert_eq!(bad.status.code(), Some(78));
    let said = text(&bad.stderr);
    assert!(said.contains("evenkeel.yaml:1:") && said.contains("evenkeel.yaml:2:"), "{said}");
    assert_eq!(text(&bad.stdout), "");
}

#[test]
fn check_says_that_all_is_well_and_prints_the_whole_only_when_asked() {
    let key = host::keygen();
    let content = format!(
        "node: {{name: host-a, address: 192.0.2.1}}\nmesh: {{gossip: {{keys: [\"{key}\"]}}}}\n"
    );
    let (_directory, path) = file(&content);
    let path = path.to_str().unwrap();
    let well = evenkeel(&["check", path]);
    let said = text(&well.stdout);
    assert_eq!(said.lines().count(), 1, "{said}");
    let line = format!("{path}: all is well (host host-a of the mesh evenkeel)\n");
    assert_eq!(said, line);

    let printed = evenkeel(&["check", "--print", path]);
    let whole = text(&printed.stdout);
    assert!(whole.contains("idle_timeout") && whole.contains("host-a"), "{whole}");
    assert!(!whole.contains(&key), "a secret is shown: {whole}");
    assert!(!whole.contains("all is well"), "what is printed is YAML: {whole}");
    assert_eq!(text(&printed.stderr), line);

    let piped = |content: &str| {
        let mut check = command(&["check", "-c", "-"]);
        let pipes = check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut check = pipes.spawn().unwrap();
        check.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
        check.wait_with_output().unwrap()
    };
    let well = piped(&content);
    assert!(text(&well.stdout).starts_with("(standard input): all is well"), "{well:?}");
    let bad = piped("node: {nam: x}\n");
    assert_eq!(bad.status.code(), Some(78));
    assert!(text(&bad.stderr).contains("(standard input):1:8"), "{}", text(&bad.stderr));
}

#[test]
fn a_closed_pipe_ends_the_command_line_quietly() {
    let script = format!("{} completions bash | head -c 1", env!("CARGO_BIN_EXE_evenkeel"));
    let run = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!(text(&run.stderr), "");
    assert_eq!(run.status.code(), Some(0));
}

#[test]
fn the_environment_says_whom_to_ask_unless_it_is_typed() {
    let host = Host::alone("environment");
    let asked =
        |admin: &str, args: &[&str]| command(args).env("EVENKEEL_ADMIN", admin).output().unwrap();
    let named = asked(host.admin_address(), &["members"]);
    assert!(text(&named.stdout).contains(host.name()), "{named:?}");
    let typed = asked(&closed(), &["members", "--admin", host.admin_address()]);
    assert!(text(&typed.stdout).contains(host.name()), "what is typed wins: {typed:?}");
    let nobody = asked(&closed(), &["members"]);
    assert!(text(&nobody.stderr).contains("EVENKEEL_ADMIN"), "{nobody:?}");
    // A hint can be copied: it asks the same host.
    let drained = host.evenkeel(&["drain", host.name()]);
    let hint = format!("evenkeel drain {} --undo --admin {}", host.name(), host.admin_address());
    assert!(drained.contains(&hint), "{drained}");
    let drained = asked(host.admin_address(), &["drain", host.name()]);
    let said = text(&drained.stdout);
    assert!(said.ends_with(&format!("evenkeel drain {} --undo\n", host.name())), "{said}");
}

#[test]
fn a_host_shows_who_it_is_and_where_it_listens() {
    let (a, mut b) = Host::pair("status");
    let shown = a.evenkeel(&["status"]);
    for part in [
        &format!("{} at {}, of the mesh status", a.name(), a.address()),
        "ready     yes",
        "members   2 alive",
        "discovery.http",
        "mesh.data.listen",
        "mesh.gossip.listen",
        "outbound.listen",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let listens = shown.lines().find(|line| line.starts_with("admin.listen ")).unwrap_or_default();
    assert!(listens.ends_with(a.admin_address()), "{shown}");
    let json: Value = serde_json::from_str(&a.evenkeel(&["status", "--output", "json"])).unwrap();
    assert_eq!(json["name"], a.name());
    assert_eq!(json["ready"], true);
    assert_eq!(json["members"]["alive"], 2);
    assert!(json["uptime_s"].is_number() && json["started"].is_string(), "{json}");
    assert!(json["configuration"].as_str().is_some_and(|file| file.ends_with("evenkeel.yaml")));

    // Which version each runs, also of the other.
    let members = a.evenkeel(&["members"]);
    for name in [a.name(), b.name()] {
        let line = members.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains(env!("CARGO_PKG_VERSION")), "{members}");
    }
    b.kill();
    eventually("it is counted as failed", || a.admin("/v1/status")["members"]["failed"] == 1);
}

#[test]
fn the_log_begins_with_who_writes_it() {
    let more = "upstreams: [{name: a, endpoints: [\"127.0.0.1:1\"], scout: {http: /}}]\n";
    let host = Host::with("begins", more, None, &[]);
    let log = host.logged("");
    for part in
        ["evenkeel starts", env!("CARGO_PKG_VERSION"), "evenkeel.yaml", host.name(), "begins"]
    {
        assert!(log[0].contains(part), "{part} in {}", log[0]);
    }
    assert!(log.iter().skip(1).any(|line| line.contains("WARN")), "and then the warning: {log:?}");
    for key in ["mesh.data.listen", "mesh.gossip.listen", "outbound.listen", "admin.listen"] {
        assert!(
            !host.logged(&format!("listening listener=\"{key}\"")).is_empty(),
            "{key}: {log:?}"
        );
    }
}

#[test]
fn a_refused_reload_is_logged_a_line_a_problem() {
    let mut host = Host::alone("reloads");
    host.reconfigure("nosuch: 1\nlog: {level: loud}\n");
    eventually("it is refused", || !host.logged("the old configuration stays").is_empty());
    for problem in ["nosuch", "log.level"] {
        let lines = host.logged(problem);
        assert!(
            lines.iter().any(|line| line.contains("ERROR") && line.contains("evenkeel.yaml:")),
            "{problem}: {lines:?}"
        );
    }
    assert!(host.logged("").iter().all(|line| line.contains("evenkeel")), "each line is a line");
    let status = host.evenkeel(&["status"]);
    assert!(status.contains("the last one was refused"), "{status}");
    host.reconfigure("log: {level: info}\n");
    eventually("it is taken", || !host.evenkeel(&["status"]).contains("refused"));
}

#[test]
fn what_a_failing_check_saw_is_shown_with_the_endpoint() {
    let nobody = closed();
    let more = format!(
        "services:\n  - name: web\n    address: \"{nobody}\"\n    check: {{http: /healthz, interval: 100ms}}\n\
         ratelimit:\n  resources: [{{match: web.all, capacity: 500, per: 1s}}]\n  apply:\n\
         \x20   - {{direction: outbound, service: web, resource: web.all, key: \"header:x-tenant\"}}\n\
         \x20   - {{direction: inbound, service: web, path: /other, resource: web.all}}\n"
    );
    let host = Host::with("checks", &more, None, &[]);
    eventually("the check has run", || {
        host.evenkeel(&["endpoints", "web"]).contains("Connection refused")
    });
    let endpoints = host.evenkeel(&["endpoints", "web"]);
    assert!(endpoints.contains("critical") && endpoints.contains("service:web"), "{endpoints}");
    let json = host.admin("/v1/endpoints/web");
    let check = &json["endpoints"][0]["checks"][0];
    assert_eq!(check["status"], "critical", "{json}");
    assert!(check["output"].as_str().unwrap().contains("Connection refused"), "{json}");

    let explained = host.evenkeel(&["explain", "web"]);
    for part in ["Connection refused", "web.all, 500/s for each header:x-tenant", "only /other"] {
        let words = explained.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(part), "{part} in\n{explained}");
    }
    for line in explained.lines() {
        assert!(line.chars().count() <= 80, "{line:?} is too long in\n{explained}");
    }
    let json = host.admin("/v1/explain/web");
    assert_eq!(json["limits"][0]["matches"], true, "{json}");
    assert_eq!(json["limits"][1]["matches"], false, "{json}");
    assert_eq!(json["endpoints"][0]["checks"][0]["kind"], "http", "{json}");
}

#[test]
fn a_host_without_limits_says_so() {
    let host = Host::alone("no-limits");
    let shown = host.evenkeel(&["quotas"]);
    assert!(shown.contains("No limits") && !shown.contains("refused"), "{shown}");
}

#[test]
fn a_request_that_comes_before_the_leases_is_not_told_that_the_limit_is_reached() {
    let application = Application::answering(200);
    let more = format!(
        "upstreams: [{{name: db, endpoints: [\"{}\"]}}]\n\
         ratelimit:\n  resources: [{{match: db, capacity: 500, per: 1s}}]\n\
         \x20 apply: [{{direction: outbound, service: db, resource: db}}]\n",
        application.address
    );
    // While nobody of mesh.join answers, nobody has written who shares the limits.
    let mut gone = Host::alone("granted");
    gone.kill();
    let mut host = Host::with("granted", &more, None, &[&gone]);
    eventually("it is told so", || {
        let url = format!("http://{}/", host.listener("outbound.listen"));
        let answer = output_of(Command::new("curl").args(["-sSi", "-H", "Host: db.mesh", &url]));
        let is_told = answer.contains(" 429 ")
            && answer.contains("granted no lease on db")
            && answer.contains("details=\"limited: lease not granted yet\"");
        if !is_told {
            // It has waited for the others in vain meanwhile, and goes alone.
            host.kill();
            host.start();
        }
        is_told
    });
}

#[test]
fn upstreams_of_the_file_are_listed_among_the_services() {
    let application = Application::answering(200);
    let more = format!("upstreams: [{{name: db, endpoints: [\"{}\"]}}]\n", application.address);
    let listeners = "[{listen: \"127.0.0.1:0\", service: db}]";
    let host = Host::with_listeners("upstreams", &more, listeners);
    let services = host.evenkeel(&["services"]);
    let line = services.lines().find(|line| line.starts_with("db")).unwrap_or_default();
    assert!(line.contains("upstreams"), "{services}");
    let json = host.admin("/v1/services");
    assert_eq!(json["services"][0]["upstream"], true, "{json}");
    assert_eq!(json["services"][0]["usable"], 1, "{json}");
    let status = host.evenkeel(&["status"]);
    assert!(status.contains("outbound.listeners[0] (db)"), "{status}");
    let url = format!("http://{}/v1/explain/nosuch", host.admin_address());
    let refused = output_of(Command::new("curl").args(["-sS", &url]));
    assert!(refused.contains("Known: db"), "{refused}");
}

#[test]
fn events_are_followed_also_over_a_restart() {
    let mut host = Host::alone("follow");
    host.offer("first", "10.0.0.9", 80);
    let mut follow = command(&["events", "--follow", "--admin", host.admin_address()]);
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| _ = tell.send(line));
    });
    let until = |what: &str| {
        loop {
            let line = told.recv_timeout(Duration::from_secs(60)).expect(what);
            if line.contains(what) {
                return line;
            }
        }
    };
    until("first/first");
    host.offer("second", "10.0.0.9", 81);
    let line = until("second/second");
    assert!(line.contains("instance_registered"), "{line}");
    // On the same port: whoever follows goes on asking there.
    host.restart_at_the_same_admin();
    host.offer("third", "10.0.0.9", 82);
    until("third/third");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_level_debug_says_why_and_not_a_line_a_frame() {
    let nobody = closed();
    let more = format!(
        "log: {{level: debug}}\nupstreams: [{{name: db, endpoints: [\"{nobody}\", \"{}\"]}}]\n",
        closed()
    );
    let host = Host::with("debug", &more, None, &[]);
    let url = format!("http://{}/", host.listener("outbound.listen"));
    let asked = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: db.mesh", &url])
        .output()
        .unwrap();
    assert_eq!(text(&asked.stdout), "503");
    eventually("it says what failed, with whom", || {
        host.logged("an attempt failed")
            .iter()
            .any(|line| line.contains("db") && line.contains("127."))
    });
    assert!(!host.logged("a request is sent again").is_empty(), "{:?}", host.logged("DEBUG"));
    let of_libraries = host.logged("DEBUG");
    assert!(of_libraries.iter().all(|line| line.contains("DEBUG evenkeel")), "{of_libraries:?}");
}

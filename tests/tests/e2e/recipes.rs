//! The recipes of `docs/recipes.md`: what is printed there is what runs here, with the address of a test's host in
//! place of 127.0.0.1.
//!
//! Only for programs that `make test` installs; the pages say of each recipe when it was last run by hand.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Command;

use evenkeel_tests::client;
use evenkeel_tests::mesh::{App, Host, Lab, Setup};
use evenkeel_tests::process::Process;
use evenkeel_tests::wait::{self, SOON};

use super::trio::{Trio, payments};

/// The recipes' mesh: `hello` on two hosts, asked from a third.
fn mesh() -> Trio {
    let hello = |app: &App| {
        let check = "check: {http: /healthz, interval: 200ms, timeout: 2s, rise: 1, fall: 2}";
        let services = payments(app, "");
        let others = services.strip_suffix(']').unwrap();
        format!("{others}, {{name: hello, address: \"{}\", {check}}}]", app.address)
    };
    // In turn, so that a few requests show every instance.
    let caller =
        Setup { policy: "{balance: round_robin, slow_start: 0s}".into(), ..Setup::default() };
    let trio = Trio::start_with(Lab::new(1), &caller, hello);
    trio.caller.wait_for_passing("hello", 2);
    trio
}

/// The block of a page that is this file, for this host.
fn printed(page: &str, file: &str, host: &Host) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recipes").join(page);
    let text = fs::read_to_string(&page).unwrap();
    let block = text.split("```").find(|block| {
        let fence = block.lines().next().unwrap_or_default();
        fence.split_whitespace().nth(1) == Some(file)
    });
    let block = block.unwrap_or_else(|| panic!("{file} is in {}", page.display()));
    let (_, block) = block.split_once('\n').unwrap();
    block.replace("127.0.0.1", &host.ip.to_string())
}

/// Starts a program of the recipes with its file.
fn start(trio: &Trio, program: &str, text: &str, args: impl Fn(&Path, &mut Command)) -> Process {
    let file = trio.lab.folder().join(format!("{program}.conf"));
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    args(&file, &mut command);
    Process::start(program, &mut command, &trio.lab.folder().join(format!("{program}.log")))
}

/// Which applications answer at this port of the caller's host; none while one request of some fails.
fn answering(trio: &Trio, port: u16) -> BTreeSet<String> {
    let to: SocketAddr = SocketAddrV4::new(trio.caller.ip, port).into();
    let answers: Vec<_> = (0..20).map(|_| client::get(to, "anything.example", "/")).collect();
    let all_well = answers.iter().all(|a| a.as_ref().is_ok_and(|answer| answer.status == 200));
    if !all_well {
        return BTreeSet::new();
    }
    answers.into_iter().flatten().map(|answer| answer.header("x-app").to_owned()).collect()
}

fn wait_for(trio: &Trio, port: u16, apps: &[&str]) {
    let apps: BTreeSet<String> = apps.iter().map(|&app| app.to_owned()).collect();
    wait::for_true(&format!("{apps:?} answer at port {port}"), SOON, || {
        answering(trio, port) == apps
    });
}

#[test]
fn haproxy_by_look_up_and_by_proxy() {
    let trio = mesh();
    let text = printed("proxies.md", "haproxy.cfg", &trio.caller);
    let _haproxy = start(&trio, "haproxy", &text, |file, command| {
        command.arg("-db").arg("-f").arg(file);
    });
    wait_for(&trio, 8090, &["app-2", "app-3"]);
    wait_for(&trio, 8091, &["app-2", "app-3"]);
    trio.apps[0].set_healthy(false);
    wait_for(&trio, 8090, &["app-3"]);
    wait_for(&trio, 8091, &["app-3"]);
    trio.apps[0].set_healthy(true);
    wait_for(&trio, 8090, &["app-2", "app-3"]);
}

#[test]
fn nginx_by_proxy_and_by_look_up() {
    let trio = mesh();
    // The recipe's application listens on port 9000, a test's on 8000.
    let text = printed("proxies.md", "nginx.conf", &trio.caller).replace(":9000", ":8000");
    let _nginx = start(&trio, "nginx", &text, |file, command| {
        let pid = file.with_extension("pid");
        let global = format!("daemon off; master_process off; user root; pid {};", pid.display());
        command.args(["-e", "stderr", "-g", &global]).arg("-c").arg(file);
    });
    for port in [8092, 8093] {
        wait_for(&trio, port, &["app-2", "app-3"]);
    }
    trio.apps[1].set_healthy(false);
    for port in [8092, 8093] {
        wait_for(&trio, port, &["app-2"]);
    }
}

/// The addresses that a resolver on the caller's host gives for a name.
fn resolved(trio: &Trio, name: &str, kind: &str) -> BTreeSet<String> {
    let at = format!("@{}", trio.caller.ip);
    let question = [&*at, "-p", RESOLVER_PORT, "+short", "+tries=1", "+time=5", name, kind];
    let out = Command::new("dig").args(question).output();
    let out = out.expect("dig is installed by `make test`");
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// A resolver sends the mesh's names on, and hears of a change at once.
fn a_resolver_follows(trio: &Trio) {
    let addresses: Vec<String> = trio.apps.iter().map(|app| app.address.ip().to_string()).collect();
    let both: BTreeSet<String> = addresses.iter().cloned().collect();
    wait::for_true("both are resolved", SOON, || resolved(trio, "hello.service.mesh", "A") == both);
    let records = resolved(trio, "_hello._tcp.service.mesh", "SRV");
    assert_eq!(records.len(), 2, "{records:?}");
    trio.apps[0].set_healthy(false);
    wait::for_true("one is left", SOON, || {
        resolved(trio, "hello.service.mesh", "A") == BTreeSet::from([addresses[1].clone()])
    });
    trio.apps[0].set_healthy(true);
    wait::for_true("both are back", SOON, || resolved(trio, "hello.service.mesh", "A") == both);
}

#[test]
fn unbound_sends_the_meshs_names_on() {
    let trio = mesh();
    let text = printed("resolvers.md", "unbound.conf", &trio.caller);
    // Whoever starts it for a try has one of it: these may be several.
    let own = format!("port: {RESOLVER_PORT}\n    pidfile: \"\"\n    username: \"\"\n");
    let text = text.replace("port: 53\n", &own);
    let _unbound = start(&trio, "unbound", &text, |file, command| {
        command.arg("-d").arg("-c").arg(file);
    });
    a_resolver_follows(&trio);
}

#[test]
fn dnsmasq_sends_the_meshs_names_on() {
    let trio = mesh();
    let text = printed("resolvers.md", "dnsmasq.conf", &trio.caller);
    let text = text.replace("port=53\n", &format!("port={RESOLVER_PORT}\n"));
    let _dnsmasq = start(&trio, "dnsmasq", &text, |file, command| {
        command.args(["--keep-in-foreground", "--user=root", "--pid-file="]).arg("-C").arg(file);
    });
    a_resolver_follows(&trio);
}

/// In place of 53, which may be taken.
const RESOLVER_PORT: &str = "5300";

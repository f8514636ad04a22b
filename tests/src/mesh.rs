//! Hosts and applications of one test, on loopback addresses of its own.
//!
//! A [`Lab`] owns one network 127.0.N.0/24 (claimed by binding a port in it, so that tests in any number of
//! processes run side by side without a lock file that could go stale) and a temporary folder. Host i has the
//! address 127.0.N.i and the product's default ports on it; applications begin at .100. Applications and
//! clients find a host exactly as they would on a machine of its own.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::arrivals::Arrivals;
use crate::client::{self, Answer, Version};
use crate::load::{Load, Plan};
use crate::metrics::Metrics;
use crate::process::{self, Process, Watchdog};
use crate::wait;

/// The addresses and the folder of one test.
#[derive(Debug)]
pub struct Lab {
    net: u8,
    workers: usize,
    folder: TempDir,
    _watchdog: Watchdog,
    /// Held for as long as the network is ours.
    _claim: TcpListener,
}

/// What a test says about a host; the rest of its file is the same for all.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The mesh's name.
    pub mesh: String,
    /// Gossip keys, base64.
    pub keys: Vec<String>,
    /// Where it stands; empty: it does not say.
    pub zone: String,
    /// Numbers of the hosts it joins.
    pub join: Vec<u8>,
    /// The number of a host whose address it says is its own; `None`: it says the truth.
    pub says_it_is_at: Option<u8>,
    /// YAML, in one line, of `mesh.bounds`; empty leaves it out.
    pub bounds: String,
    /// YAML, in one line, of the key with the same name; empty leaves it out.
    pub services: String,
    /// As `services`.
    pub policy: String,
    /// As `services`.
    pub upstreams: String,
    /// As `services`, of `outbound.listeners`.
    pub listeners: String,
    /// As `services`, of `shutdown`.
    pub shutdown: String,
    /// The keys of `ratelimit` beside `listen`, without the braces around them; empty: none.
    pub ratelimit: String,
    /// Whole lines at the end of the file.
    pub more: String,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            mesh: "test".into(),
            keys: Vec::new(),
            zone: String::new(),
            join: vec![1, 2, 3],
            says_it_is_at: None,
            bounds: String::new(),
            services: String::new(),
            policy: String::new(),
            upstreams: String::new(),
            listeners: String::new(),
            shutdown: "{settle: 1s, timeout: 10s}".into(),
            ratelimit: String::new(),
            more: String::new(),
        }
    }
}

/// One `evenkeel run`.
#[derive(Debug)]
pub struct Host {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its process.
    pub process: Process,
    number: u8,
    workers: usize,
    folder: PathBuf,
}

/// One application.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Its process.
    pub process: Process,
    /// The file of the ids it has executed.
    pub ledger: PathBuf,
    id: String,
    log: PathBuf,
}

impl Lab {
    /// A network and a folder that no other test has, for hosts with this number of workers.
    ///
    /// # Panics
    /// When all 253 networks are taken, or there is no temporary folder.
    #[must_use]
    pub fn new(workers: usize) -> Lab {
        let first = std::process::id() % NETS;
        let claimed = (0..NETS).find_map(|i| {
            let net = u8::try_from(1 + (first + i) % NETS).ok()?;
            TcpListener::bind((Ipv4Addr::new(127, 0, net, 254), CLAIM_PORT))
                .ok()
                .map(|claim| (net, claim))
        });
        let (net, claim) = claimed.expect("one of the networks 127.0.N.0/24 is free");
        let folder = tempfile::Builder::new()
            .prefix("evenkeel-test-")
            .tempdir()
            .expect("a temporary folder");
        Lab { net, workers, folder, _watchdog: Watchdog::start(TEST_MAX), _claim: claim }
    }

    /// The address of host (or application) number `last`.
    #[must_use]
    pub fn ip(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.net, last)
    }

    /// The test's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts application `a`, `b`, … at 127.0.N.100:8000, .101, …, and waits until it answers.
    #[must_use]
    pub fn app(&self, number: u8) -> App {
        let id = format!("app-{number}");
        let address = SocketAddrV4::new(self.ip(100 + number), 8000);
        let ledger = self.folder.path().join(format!("{id}.ledger"));
        let log = self.folder.path().join(format!("{id}.log"));
        let process = start_app(&id, address, &ledger, &log);
        let app = App { address, process, ledger, id, log };
        app.wait_until_it_answers();
        app
    }

    /// Starts host `number` (1 to 99) without waiting for it.
    #[must_use]
    pub fn host(&self, number: u8, setup: &Setup) -> Host {
        let folder = self.folder.path().join(format!("host-{number}"));
        std::fs::create_dir_all(&folder).expect("a folder in the temporary one");
        let ip = self.ip(number);
        write_config(&folder, ip, number, self.workers, setup);
        let process = start_host(&folder, number);
        Host { ip, process, number, workers: self.workers, folder }
    }

    /// Starts hosts 1, 2, …, one for each setup, and waits until all are ready and know each other.
    #[must_use]
    pub fn mesh(&self, setups: &[Setup]) -> Vec<Host> {
        let hosts: Vec<Host> =
            (1..).zip(setups).map(|(number, setup)| self.host(number, setup)).collect();
        for host in &hosts {
            host.wait_until_ready();
        }
        for host in &hosts {
            host.wait_for_members(hosts.len());
        }
        hosts
    }
}

impl Host {
    /// Where applications send requests.
    #[must_use]
    pub fn outbound(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 7080)
    }

    /// Where other hosts send requests.
    #[must_use]
    pub fn data(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 7110)
    }

    /// Where other hosts gossip.
    #[must_use]
    pub fn gossip(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 7111)
    }

    /// Where the operator looks.
    #[must_use]
    pub fn admin(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 7119)
    }

    /// Where Doorman clients ask for leases.
    #[must_use]
    pub fn leases(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 7113)
    }

    /// Consul's HTTP API.
    #[must_use]
    pub fn discovery(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 8500)
    }

    /// DNS.
    #[must_use]
    pub fn dns(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 8600)
    }

    /// Its name in the mesh.
    #[must_use]
    pub fn name(&self) -> String {
        format!("host-{}", self.number)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("evenkeel.yaml")
    }

    /// Sends one `GET` as an application beside this host would.
    ///
    /// # Panics
    /// When no whole answer comes.
    #[must_use]
    pub fn get(&self, service: &str, path: &str) -> Answer {
        client::get(self.outbound().into(), service, path)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A load from an application beside this host: 200 GETs and 50 POSTs a second, HTTP/1.1.
    #[must_use]
    pub fn load(&self, service: &str) -> Plan {
        Plan {
            to: self.outbound().into(),
            host: service.into(),
            version: Version::Http1,
            gets_per_sec: 200,
            posts_per_sec: 50,
            ids: format!("{}-h1", self.name()),
            tenant: String::new(),
        }
    }

    /// [`Host::load`], started.
    #[must_use]
    pub fn start_load(&self, service: &str) -> Load {
        Load::start(self.load(service))
    }

    /// Asks the admin listener; `None` while it does not answer.
    #[must_use]
    pub fn ask_admin(&self, path: &str) -> Option<Answer> {
        client::get(self.admin().into(), "admin", path).ok()
    }

    /// A scrape.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let answer = self.ask_admin("/metrics").expect("the admin listener answers");
        assert_eq!(answer.status, 200, "/metrics");
        Metrics::parse(&answer.text())
    }

    /// Names of the living members it knows, itself among them; empty while it does not answer.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        let Some(answer) = self.ask_admin("/v1/members") else { return Vec::new() };
        let members = answer.json()["members"].take();
        let mut names: Vec<String> = members
            .as_array()
            .into_iter()
            .flatten()
            .filter(|member| member["state"] == "alive")
            .filter_map(|member| member["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Addresses of a service's passing instances, as a look-up over HTTP gives them.
    #[must_use]
    pub fn passing(&self, service: &str) -> Vec<SocketAddrV4> {
        let path = format!("/v1/health/service/{service}?passing");
        let answer = client::get(self.discovery().into(), "discovery", &path);
        let Some(answer) = answer.ok().filter(|answer| answer.status == 200) else {
            return Vec::new();
        };
        let mut found: Vec<SocketAddrV4> = answer
            .json()
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let ip = entry["Service"]["Address"].as_str()?.parse().ok()?;
                Some(SocketAddrV4::new(ip, u16::try_from(entry["Service"]["Port"].as_u64()?).ok()?))
            })
            .collect();
        found.sort();
        found
    }

    /// Addresses of the endpoints that its balancer would use for a service.
    #[must_use]
    pub fn usable(&self, service: &str) -> Vec<SocketAddrV4> {
        let usable = |endpoint: &serde_json::Value| {
            endpoint["state"] == "usable" || endpoint["state"] == "slow start"
        };
        let endpoints = self.endpoints(service).into_iter().filter(usable);
        let mut found: Vec<SocketAddrV4> =
            endpoints.filter_map(|endpoint| endpoint["address"].as_str()?.parse().ok()).collect();
        found.sort();
        found
    }

    /// The endpoints of a service as its balancer reports them; empty while it does not answer.
    #[must_use]
    pub fn endpoints(&self, service: &str) -> Vec<serde_json::Value> {
        let path = format!("/v1/endpoints/{service}");
        let Some(answer) = self.ask_admin(&path).filter(|answer| answer.status == 200) else {
            return Vec::new();
        };
        let mut report = answer.json();
        report["endpoints"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether it has noted an event of this kind about this host, service or address.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn has_event(&self, kind: &str, subject: &str) -> bool {
        let events = self.ask_admin("/v1/events").expect("the admin listener answers").json();
        let mut events = events["events"].as_array().expect("a list").iter();
        events.any(|event| event["kind"] == kind && event["subject"] == subject)
    }

    /// What it wants, has and owns of shared resources: the body of `/v1/quotas`.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn quotas(&self) -> serde_json::Value {
        let answer = self.ask_admin("/v1/quotas").expect("the admin listener answers");
        assert_eq!(answer.status, 200, "/v1/quotas");
        answer.json()
    }

    /// Waits until it knows that this many hosts share the resources, and that nobody goes by an older roster.
    pub fn wait_for_roster(&self, count: usize) {
        let what = format!("{} shares with {count} hosts", self.name());
        wait::for_true(&what, START_MAX, || {
            let roster = &self.quotas()["roster"];
            roster["settled"] == true
                && roster["members"].as_array().is_some_and(|m| m.len() == count)
        });
    }

    /// Waits for `/readyz`.
    pub fn wait_until_ready(&self) {
        wait::for_true(&format!("{} is ready", self.name()), START_MAX, || {
            self.ask_admin("/readyz").is_some_and(|answer| answer.status == 200)
        });
    }

    /// Waits until it counts this many living members.
    pub fn wait_for_members(&self, count: usize) {
        wait::for_true(&format!("{} knows {count} members", self.name()), START_MAX, || {
            self.members().len() == count
        });
    }

    /// Waits until its balancer would use this many instances.
    pub fn wait_for_instances(&self, service: &str, count: usize) {
        let what = format!("{} would use {count} × {service}", self.name());
        wait::for_true(&what, START_MAX, || self.usable(service).len() == count);
    }

    /// Waits until look-ups on this host give this many passing instances.
    pub fn wait_for_passing(&self, service: &str, count: usize) {
        let what = format!("{} finds {count} × {service}", self.name());
        wait::for_true(&what, START_MAX, || self.passing(service).len() == count);
    }

    /// Replaces its file. A running host may see that and reload.
    pub fn write(&self, setup: &Setup) {
        write_config(&self.folder, self.ip, self.number, self.workers, setup);
    }

    /// Replaces its file and asks it to read it (SIGHUP), without waiting for what comes of it.
    pub fn reload(&mut self, setup: &Setup) {
        self.write(setup);
        self.process.signal(Signal::HUP);
    }

    /// Starts it again, with the file and the data that its process left.
    pub fn start_again(&mut self) {
        self.process = start_host(&self.folder, self.number);
    }

    /// `evenkeel ARGS… --admin ADDR`, to its end.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> std::process::Output {
        let admin = self.admin().to_string();
        let mut command = Command::new(process::program("evenkeel"));
        command.args(args).args(["--admin", &admin]).output().expect("evenkeel starts")
    }
}

impl App {
    /// Its `x-app`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks it directly, past the mesh.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        client::get(self.address.into(), "app", path)
            .unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    /// Requests it has been given, and how many of the slow ones were cancelled.
    #[must_use]
    pub fn count(&self) -> (u64, u64) {
        let count = self.get("/count").json();
        (count["requests"].as_u64().unwrap_or(0), count["cancelled"].as_u64().unwrap_or(0))
    }

    /// Switches what `/healthz` answers.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn set_healthy(&self, ok: bool) {
        self.put(&format!("/healthz?ok={ok}"));
    }

    /// The requests that it was given, as it noted them when they came.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        Arrivals::parse(&self.get("/arrivals").text())
    }

    /// How many it has had in flight at once.
    #[must_use]
    pub fn most_in_flight(&self) -> u64 {
        self.get("/count").json()["most"].as_u64().unwrap_or(0)
    }

    /// From now on every `every`th request ends in RST, executed or not; 0 ends that.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn set_flaky(&self, every: u64) {
        self.put(&format!("/flaky?every={every}"));
    }

    /// From now on it executes nothing and answers 500, or does as ever.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn set_erring(&self, errs: bool) {
        self.put(&format!("/flaky?status=500&every={}", u8::from(errs)));
    }

    /// From now on each answer comes this much later.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn set_delay(&self, delay: Duration) {
        self.put(&format!("/delay?ms={}", delay.as_millis()));
    }

    fn put(&self, path: &str) {
        let request = client::request(Method::PUT, "app", path);
        client::send(self.address.into(), Version::Http1, request)
            .expect("the application answers");
    }

    /// Starts it again after its end, with the ledger it left.
    pub fn start_again(&mut self) {
        self.process = start_app(&self.id, self.address, &self.ledger, &self.log);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        wait::for_true(&format!("{} answers", self.id), START_MAX, || {
            client::get(self.address.into(), "app", "/count").is_ok()
        });
    }
}

fn start_app(id: &str, address: SocketAddrV4, ledger: &Path, log: &Path) -> Process {
    let mut command = Command::new(process::program("testapp"));
    let scout = SocketAddrV4::new(*address.ip(), SCOUT_PORT);
    command.arg(address.to_string()).arg(id).arg(ledger).arg(scout.to_string());
    Process::start(id, &mut command, log)
}

fn start_host(folder: &Path, number: u8) -> Process {
    let mut command = Command::new(process::program("evenkeel"));
    command.arg("run").arg("-c").arg(folder.join("evenkeel.yaml"));
    Process::start(&format!("host-{number}"), &mut command, &folder.join("log"))
}

fn write_config(folder: &Path, ip: Ipv4Addr, number: u8, workers: usize, setup: &Setup) {
    let [a, b, c, _] = ip.octets();
    let join = setup.join.iter().filter(|n| **n != number);
    let join: Vec<String> = join.map(|n| format!("\"{a}.{b}.{c}.{n}:7111\"")).collect();
    let keys: Vec<String> = setup.keys.iter().map(|key| format!("\"{key}\"")).collect();
    let keys =
        if keys.is_empty() { String::new() } else { format!(", keys: [{}]", keys.join(", ")) };
    let bounds = match setup.bounds.as_str() {
        "" => String::new(),
        bounds => format!("  bounds: {bounds}\n"),
    };
    let data_dir = folder.join("data");
    let zone =
        if setup.zone.is_empty() { String::new() } else { format!(", zone: {}", setup.zone) };
    let says = setup.says_it_is_at.unwrap_or(number);
    let mut text = format!(
        "node: {{name: host-{number}, address: {a}.{b}.{c}.{says}, data_dir: \"{}\"{zone}}}\n\
         workers: {workers}\n\
         mesh:\n  name: {}\n  join: [{}]\n  gossip: {{listen: \"{ip}:7111\"{keys}}}\n  data: {{listen: \"{ip}:7110\"}}\n{bounds}\
         discovery: {{http: \"{ip}:8500\", dns: \"{ip}:8600\"}}\n\
         admin: {{listen: \"{ip}:7119\"}}\n\
         outbound:\n  listen: \"{ip}:7080\"\n",
        data_dir.display(),
        setup.mesh,
        join.join(", "),
    );
    let parts = [
        ("  listeners", &setup.listeners),
        ("services", &setup.services),
        ("policy", &setup.policy),
        ("upstreams", &setup.upstreams),
        ("shutdown", &setup.shutdown),
    ];
    for (key, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
        text += &format!("{key}: {value}\n");
    }
    if !setup.ratelimit.is_empty() {
        text += &format!("ratelimit: {{listen: \"{ip}:7113\", {}}}\n", setup.ratelimit);
    }
    text += &setup.more;
    // Written beside and renamed: a watcher never sees half a file.
    let (path, new) = (folder.join("evenkeel.yaml"), folder.join("evenkeel.yaml.new"));
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, &path))
        .expect("the host's folder is writable");
}

/// Where each application answers scouts: a byte for a byte.
pub const SCOUT_PORT: u16 = 9999;

/// Networks 127.0.1.0/24 to 127.0.253.0/24.
const NETS: u32 = 253;

/// Whoever has it in a network owns the network.
const CLAIM_PORT: u16 = 7999;

/// For a process to start, and for news to spread, on a machine that does much else.
const START_MAX: Duration = wait::SOON;

/// The longest a test may take: several times what any does on a machine that does nothing else.
const TEST_MAX: Duration = Duration::from_secs(240);

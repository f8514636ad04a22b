//! Hosts as processes, each on a loopback address of its own, and an application with a health check.

#![allow(dead_code, reason = "each of the tests uses a part of it")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// One `evenkeel run`; killed when dropped.
pub struct Host {
    child: Option<Child>,
    directory: TempDir,
    name: String,
    address: Ipv4Addr,
    mesh: String,
    join: Vec<String>,
    key: Option<String>,
    /// `outbound.listeners`.
    service_listeners: String,
    /// Where its admin is to listen; 0: anywhere.
    admin_port: u16,
    /// Where its admin listens.
    admin: String,
    /// Where all of it listens, as the admin says.
    listeners: Value,
    /// What it has logged in this life.
    log: Arc<Mutex<Vec<String>>>,
}

impl Host {
    /// Two hosts that know each other.
    pub fn pair(mesh: &str) -> (Host, Host) {
        let a = Host::with(mesh, "", None, &[]);
        let b = Host::with(mesh, "", None, &[&a]);
        eventually("both know both", || a.alive() == 2 && b.alive() == 2);
        (a, b)
    }

    /// A mesh of one host.
    pub fn alone(mesh: &str) -> Host {
        Host::with(mesh, "", None, &[])
    }

    /// A host with this much more configuration, that joins these.
    pub fn with(mesh: &str, more: &str, key: Option<&str>, join: &[&Host]) -> Host {
        let mut host = Host::prepared(mesh, key, join);
        host.write(more);
        host.start();
        host
    }

    /// A host with this much more configuration, and listeners for one service each.
    pub fn with_listeners(mesh: &str, more: &str, listeners: &str) -> Host {
        let mut host = Host::prepared(mesh, None, &[]);
        host.service_listeners = listeners.to_owned();
        host.write(more);
        host.start();
        host
    }

    /// Opens other listeners for one service each, while it runs.
    pub fn relisten(&mut self, listeners: &str) {
        self.service_listeners = listeners.to_owned();
        self.reconfigure("");
    }

    fn prepared(mesh: &str, key: Option<&str>, join: &[&Host]) -> Host {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Host {
            child: None,
            directory: tempfile::tempdir().unwrap(),
            name: format!("host-{number}"),
            address: Ipv4Addr::new(127, 0, 9, number),
            mesh: mesh.to_owned(),
            join: join.iter().map(|other| other.listener("mesh.gossip.listen")).collect(),
            key: key.map(str::to_owned),
            service_listeners: "[]".to_owned(),
            admin_port: 0,
            admin: String::new(),
            listeners: Value::Null,
            log: Arc::default(),
        }
    }

    /// Its data directory.
    pub fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// The file that is its store of certificates; to be written before anything asks for it.
    pub fn authorities(&self) -> std::path::PathBuf {
        self.directory.path().join("authorities.pem")
    }

    /// What a host says that does not start with this configuration.
    pub fn refused(more: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("evenkeel.yaml");
        let text = "node: {data_dir: \"\"}\nmesh: {gossip: {listen: \"127.0.0.1:0\"}, data: {listen: \"127.0.0.1:0\"}}\nadmin: {listen: \"127.0.0.1:0\"}\noutbound: {listen: \"127.0.0.1:0\"}\n";
        fs::write(&file, format!("{text}{more}")).unwrap();
        let run = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .arg("run")
            .arg("-c")
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(1));
        String::from_utf8_lossy(&run.stderr).into_owned()
    }

    fn write(&self, more: &str) {
        let Host { directory, name, address, mesh, join, key, .. } = self;
        let (listeners, admin_port) = (&self.service_listeners, self.admin_port);
        let keys = key.as_ref().map_or(String::new(), |key| format!(", keys: [\"{key}\"]"));
        let state = directory.path().join("state");
        let text = format!(
            "node: {{name: {name}, data_dir: \"{}\"}}\n\
             mesh:\n  name: {mesh}\n  join: {join:?}\n  gossip: {{listen: \"{address}:0\"{keys}}}\n  data: {{listen: \"{address}:0\"}}\n\
             discovery: {{http: \"{address}:0\", dns: \"{address}:0\"}}\n\
             outbound: {{listen: \"{address}:0\", listeners: {listeners}}}\n\
             admin: {{listen: \"{address}:{admin_port}\"}}\n\
             shutdown: {{settle: 0ms, timeout: 1s}}\n\
             {more}",
            state.display(),
        );
        fs::write(directory.path().join("evenkeel.yaml"), text).unwrap();
    }

    /// Writes another configuration and has it read.
    pub fn reconfigure(&mut self, more: &str) {
        self.write(more);
        self.signal("HUP");
    }

    /// Starts the process and waits until it serves. The admin's port is read from the log.
    pub fn start(&mut self) {
        let file = self.directory.path().join("evenkeel.yaml");
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .arg("run")
            .arg("-c")
            .arg(&file)
            .env("NO_COLOR", "1")
            .env("SSL_CERT_FILE", self.authorities())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        self.child = Some(child);
        let (found, admin) = mpsc::channel();
        let name = self.name.clone();
        self.log = Arc::default();
        let kept = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line.clone());
                // Shown by the test runner when the test fails.
                println!("{name}: {line}");
                if let Some(address) =
                    line.split_once("listener=\"admin.listen\" address=").map(|(_, rest)| rest)
                {
                    let _ = found
                        .send(address.split_whitespace().next().unwrap_or_default().to_owned());
                }
            }
        });
        self.admin = admin.recv_timeout(PATIENCE).expect("the host says where its admin listens");
        eventually("the admin answers", || self.admin_status("/livez") == 200);
        self.listeners = self.admin("/v1/self")["listeners"].clone();
    }

    /// The lines of its log so far that contain this.
    pub fn logged(&self, what: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).cloned().collect()
    }

    /// Where its admin listens.
    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that others dial.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Ends it and starts it again, with its admin where it was and nothing else configured.
    pub fn restart_at_the_same_admin(&mut self) {
        let (_, port) = self.admin.rsplit_once(':').unwrap();
        self.admin_port = port.parse().unwrap();
        self.write("");
        self.kill();
        self.start();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.signal("TERM");
    }

    fn signal(&mut self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success()
        );
    }

    /// Its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.take().unwrap().wait().unwrap().code()
    }

    /// Registers an instance without a check.
    pub fn offer(&self, name: &str, address: &str, port: u16) {
        self.offer_as(name, name, address, port);
    }

    /// The same with an id of its own.
    pub fn offer_as(&self, name: &str, id: &str, address: &str, port: u16) {
        let body = format!(
            r#"{{"Name": "{name}", "ID": "{id}", "Address": "{address}", "Port": {port}}}"#
        );
        assert_eq!(self.put("/v1/agent/service/register", &body), (200, String::new()));
    }

    /// Hosts that are alive, as this one sees them.
    pub fn alive(&self) -> usize {
        let members = self.admin("/v1/members");
        members["members"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|member| member["state"] == "alive")
            .count()
    }

    /// Where this listener is bound.
    pub fn listener(&self, name: &str) -> String {
        self.listeners[name].as_str().unwrap().to_owned()
    }

    /// The catalogue's URL.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listener("discovery.http"))
    }

    /// GETs JSON from the catalogue.
    pub fn get(&self, path: &str) -> Value {
        let text = output_of(Command::new("curl").args([
            "-sS",
            "--fail-with-body",
            "--max-time",
            "20",
            &self.url(path),
        ]));
        serde_json::from_str(&text).unwrap()
    }

    /// One header of the catalogue's answer.
    pub fn header(&self, path: &str, name: &str) -> String {
        let format = format!("%header{{{name}}}");
        output_of(Command::new("curl").args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            &format,
            &self.url(path),
        ]))
    }

    /// PUTs to the catalogue: status and body.
    pub fn put(&self, path: &str, body: &str) -> (u16, String) {
        let url = self.url(path);
        let mut curl = Command::new("curl")
            .args(["-sS", "-X", "PUT", "--data-binary", "@-", "-w", "\n%{http_code}", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let put = curl.wait_with_output().unwrap();
        assert!(put.status.success(), "PUT {path}: {}", put.status);
        let text = String::from_utf8_lossy(&put.stdout);
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// GETs JSON from the admin listener.
    pub fn admin(&self, path: &str) -> Value {
        serde_json::from_str(&self.admin_text(path)).unwrap()
    }

    /// GETs text from the admin listener.
    pub fn admin_text(&self, path: &str) -> String {
        output_of(Command::new("curl").args(["-sS", &format!("http://{}{path}", self.admin)]))
    }

    /// The status with which the admin listener answers; 0: not at all.
    pub fn admin_status(&self, path: &str) -> u16 {
        let url = format!("http://{}{path}", self.admin);
        let asked = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url])
            .output()
            .unwrap();
        String::from_utf8_lossy(&asked.stdout).trim().parse().unwrap_or_default()
    }

    /// What the command line prints about this host.
    pub fn evenkeel(&self, args: &[&str]) -> String {
        output_of(
            Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).args(["--admin", &self.admin]),
        )
    }

    /// The answers to a question, one a line, over UDP.
    pub fn dig(&self, name: &str, kind: &str) -> Vec<String> {
        self.dig_with(name, kind, "+notcp")
    }

    /// The same over TCP.
    pub fn dig_tcp(&self, name: &str, kind: &str) -> Vec<String> {
        self.dig_with(name, kind, "+tcp")
    }

    fn dig_with(&self, name: &str, kind: &str, transport: &str) -> Vec<String> {
        let address: SocketAddr = self.listener("discovery.dns").parse().unwrap();
        let (at, port) = (format!("@{}", address.ip()), address.port().to_string());
        let text = output_of(Command::new("dig").args([
            &at,
            "-p",
            &port,
            "+short",
            "+timeout=5",
            transport,
            name,
            kind,
        ]));
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An HTTP server that answers everything with one status.
pub struct Application {
    /// Where it listens.
    pub address: SocketAddr,
    status: Arc<AtomicU16>,
}

impl Application {
    /// Starts it, on a thread that lives as long as the test.
    pub fn answering(status: u16) -> Application {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(AtomicU16::new(status));
        let shared = Arc::clone(&status);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.read(&mut [0; 1024]);
                let status = shared.load(Ordering::Relaxed);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Status\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
            }
        });
        Application { address, status }
    }

    /// From now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

/// A new key, from the command line.
pub fn keygen() -> String {
    output_of(Command::new(env!("CARGO_BIN_EXE_evenkeel")).arg("keygen")).trim().to_owned()
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command prints; it must succeed.
pub fn output_of(command: &mut Command) -> String {
    let run = command.output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    assert!(
        run.status.success(),
        "{command:?}: {}\n{}{}",
        run.status,
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    String::from_utf8_lossy(&run.stdout).into_owned()
}

/// How long a test waits for what must come, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU8 = AtomicU8::new(1);

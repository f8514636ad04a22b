//! The demo's mesh: three hosts that offer two applications each, and one client host for each arm.
//!
//! Hosts are `evenkeel run` processes with addresses of their own in one /24 of the loopback network
//! (127.x.y.0), so several demos run side by side and every port can be the default one. A demo holds its
//! /24 by listening on one port of it; a second demo that draws the same one draws again. A port that
//! something on this machine has taken on all addresses is avoided by taking a free one.
//!
//! Nothing here is special to the demo but the addresses: the files are what an operator would write.

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::arms::Arm;
use super::process::Process;

/// All processes of the demo and the directory they write to.
pub struct Mesh {
    // Dropped in this order: hosts, applications, the directory they write to, the claim on the addresses.
    offering: Vec<Host>,
    clients: Vec<Host>,
    applications: Vec<Process>,
    ledgers: Vec<PathBuf>,
    directory: Directory,
    service_time_us: u64,
    _claim: TcpListener,
}

/// One `evenkeel run`.
pub struct Host {
    /// The running process.
    pub process: Process,
    /// Where it listens.
    pub ports: Ports,
}

/// Where one host listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    gossip: SocketAddr,
    data: SocketAddr,
    /// The HTTP proxy for applications.
    pub outbound: SocketAddr,
    /// Consul's HTTP API.
    http: SocketAddr,
    /// DNS.
    pub dns: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
}

impl Mesh {
    /// Starts everything and waits until every host knows all hosts and every client all instances.
    pub async fn start(keep_files: bool, service_time_us: u64, seed: u64) -> anyhow::Result<Mesh> {
        let directory = Directory::create(keep_files)?;
        let (network, claim) = claim_network(seed)?;
        let offering = (0..OFFERING).map(|index| network.host(11 + index as u8));
        let offering = offering.map(Ports::find).collect::<anyhow::Result<Vec<Ports>>>()?;
        let clients = (0..Arm::ALL.len()).map(|index| network.host(21 + index as u8));
        let clients = clients.map(Ports::find).collect::<anyhow::Result<Vec<Ports>>>()?;
        let join: Vec<SocketAddr> = offering.iter().map(|ports| ports.gossip).collect();

        let mut mesh = Mesh {
            offering: Vec::new(),
            clients: Vec::new(),
            applications: Vec::new(),
            ledgers: Vec::new(),
            directory,
            service_time_us,
            _claim: claim,
        };
        for (index, ports) in offering.into_iter().enumerate() {
            let mut services = Vec::new();
            for application in 0..APPLICATIONS_PER_HOST {
                let number = index * APPLICATIONS_PER_HOST + application + 1;
                let id = format!("{SERVICE}-{number}");
                services.push((id.clone(), mesh.start_application(&id, ports.gossip.ip())?));
            }
            let name = offering_name(index);
            let text = config(&name, &ports, &join, &services, "{}");
            let host = mesh.start_host(&name, ports, &text)?;
            mesh.offering.push(host);
        }
        // Clients that join a whole mesh learn all instances at once: none has a slow start before others.
        mesh.wait_until_complete().await?;
        for (arm, ports) in Arm::ALL.into_iter().zip(clients) {
            let name = format!("client-{}", arm.name().replace('_', "-"));
            let text = config(&name, &ports, &join, &[], arm.policy());
            let host = mesh.start_host(&name, ports, &text)?;
            mesh.clients.push(host);
        }
        mesh.wait_until_complete().await?;
        Ok(mesh)
    }

    fn start_application(&mut self, id: &str, address: IpAddr) -> anyhow::Result<SocketAddr> {
        let ledger = self.directory.path.join(format!("{id}.ledger"));
        let listen = SocketAddr::new(address, 0);
        let (process, listens) =
            Process::application(&self.directory.path, id, listen, &ledger, self.service_time_us)?;
        self.applications.push(process);
        self.ledgers.push(ledger);
        Ok(listens)
    }

    fn start_host(&self, name: &str, ports: Ports, config: &str) -> anyhow::Result<Host> {
        let path = self.directory.path.join(format!("{name}.yaml"));
        std::fs::write(&path, config)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Host { process: Process::host(&self.directory.path, name, &path)?, ports })
    }

    /// The client host of an arm.
    pub fn client(&self, arm: Arm) -> &Host {
        &self.clients[arm.index()]
    }

    /// The outbound listener of each arm's host.
    pub fn targets(&self) -> [SocketAddr; Arm::ALL.len()] {
        Arm::ALL.map(|arm| self.client(arm).ports.outbound)
    }

    /// The applications' process ids.
    pub fn application_pids(&self) -> Vec<Pid> {
        self.applications.iter().map(Process::pid).collect()
    }

    /// The applications' ledgers.
    pub fn ledgers(&self) -> Vec<PathBuf> {
        self.ledgers.clone()
    }

    /// Where files and logs are.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Processor time each arm's host has used, in the order of [`Arm::ALL`].
    pub fn client_cpu(&self) -> anyhow::Result<[Duration; Arm::ALL.len()]> {
        let mut used = [Duration::ZERO; Arm::ALL.len()];
        for (used, host) in used.iter_mut().zip(&self.clients) {
            *used = host.process.cpu()?;
        }
        Ok(used)
    }

    /// Kills [`KILLED`] with SIGKILL; its applications go on running, unreachable through the mesh.
    pub fn kill_host(&mut self) {
        for host in &mut self.offering {
            if host.process.name() == KILLED {
                host.process.kill();
            }
        }
    }

    /// Fails if a process has ended that was not killed on purpose.
    pub fn check_running(&mut self, killed: bool) -> anyhow::Result<()> {
        let hosts = self.offering.iter_mut().chain(&mut self.clients).map(|host| &mut host.process);
        for process in hosts.chain(&mut self.applications) {
            if !(killed && process.name() == KILLED) {
                process.check_running()?;
            }
        }
        Ok(())
    }

    /// Waits until every host started so far knows all of them and all instances.
    async fn wait_until_complete(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            self.check_running(false)?;
            let Some(missing) = self.first_incomplete().await else {
                return Ok(());
            };
            if Instant::now() > deadline {
                bail!("the mesh did not come together in {} s: {missing}", START_MAX.as_secs());
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// What is missing still, at the first host that misses something.
    async fn first_incomplete(&self) -> Option<String> {
        let members = self.offering.len() + self.clients.len();
        let endpoints = format!("/v1/endpoints/{SERVICE}");
        let wanted = [
            ("/v1/members", "members", members),
            (&*endpoints, "endpoints", self.applications.len()),
        ];
        for host in self.offering.iter().chain(&self.clients) {
            for (path, what, wanted) in wanted {
                let known = count_of(host.ports.admin, path, what).await;
                if !matches!(known, Ok(count) if count == wanted) {
                    let known =
                        known.map_or_else(|error| format!("{error:#}"), |count| count.to_string());
                    let name = host.process.name();
                    return Some(format!(
                        "{name} should know {wanted} {what}, and says: {known}\n{}",
                        host.process.log_tail()
                    ));
                }
            }
        }
        None
    }
}

/// How many of these the admin API lists at this path.
async fn count_of(admin: SocketAddr, path: &str, what: &str) -> anyhow::Result<usize> {
    let body = tokio::time::timeout(LOOK_UP_MAX, http_get(admin, path));
    let body = body.await.context("no answer")??;
    let value: serde_json::Value = serde_json::from_slice(&body).context("not JSON")?;
    Ok(value[what].as_array().context("no list")?.len())
}

/// HTTP/1.0, so that the answer ends with the connection.
async fn http_get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = tokio::net::TcpStream::connect(address).await.context("no connection")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let end =
        answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")?;
    let status =
        String::from_utf8_lossy(&answer[..end]).lines().next().unwrap_or_default().to_owned();
    if status.split(' ').nth(1) != Some("200") {
        bail!("answered {status}");
    }
    Ok(answer.split_off(end + 4))
}

/// A /24 of the loopback network.
#[derive(Debug, Clone, Copy)]
struct Network(u8, u8);

impl Network {
    fn host(self, last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.0, self.1, last))
    }
}

/// Draws a /24 that no other demo holds, far from 127.0.0.0 and from the default virtual range.
fn claim_network(seed: u64) -> anyhow::Result<(Network, TcpListener)> {
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..CLAIM_TRIES {
        let network = Network(random.random_range(128..=250), random.random_range(0..=250));
        let address = SocketAddr::new(network.host(1), CLAIM_PORT);
        match TcpListener::bind(address) {
            Ok(claim) => return Ok((network, claim)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot listen on {address}: the demo needs Linux's loopback network 127.0.0.0/8")
                });
            }
        }
    }
    bail!(
        "port {CLAIM_PORT} is taken on every loopback address tried: find its owner with `ss -ltnp`"
    )
}

impl Ports {
    /// The default ports of this address, or free ones where something has taken them on all addresses.
    fn find(address: IpAddr) -> anyhow::Result<Ports> {
        let find = |port| find_port(address, port);
        Ok(Ports {
            gossip: find(7111)?,
            data: find(7110)?,
            outbound: find(7080)?,
            http: find(8500)?,
            dns: find(8600)?,
            admin: find(7119)?,
        })
    }
}

fn find_port(address: IpAddr, preferred: u16) -> anyhow::Result<SocketAddr> {
    for step in 0..PORT_TRIES {
        let Some(port) = preferred.checked_add(step * PORT_STEP) else {
            break;
        };
        let candidate = SocketAddr::new(address, port);
        if TcpListener::bind(candidate).is_ok() && UdpSocket::bind(candidate).is_ok() {
            return Ok(candidate);
        }
    }
    bail!(
        "no free port on {address}: {preferred} and {} others are taken; find their owner with `ss -lntup`",
        PORT_TRIES - 1
    )
}

/// The file of one host.
fn config(
    name: &str,
    ports: &Ports,
    join: &[SocketAddr],
    services: &[(String, SocketAddr)],
    policy: &str,
) -> String {
    let join: Vec<String> = join.iter().map(|address| format!("\"{address}\"")).collect();
    let mut text = format!(
        "node: {{name: {name}, address: {address}, data_dir: \"\"}}\n\
         workers: 1\n\
         mesh:\n\
         \x20 name: demo\n\
         \x20 join: [{join}]\n\
         \x20 gossip: {{listen: \"{gossip}\"}}\n\
         \x20 data: {{listen: \"{data}\"}}\n\
         outbound: {{listen: \"{outbound}\"}}\n\
         discovery: {{http: \"{http}\", dns: \"{dns}\"}}\n\
         admin: {{listen: \"{admin}\"}}\n\
         policy: {policy}\n",
        address = ports.gossip.ip(),
        join = join.join(", "),
        gossip = ports.gossip,
        data = ports.data,
        outbound = ports.outbound,
        http = ports.http,
        dns = ports.dns,
        admin = ports.admin,
    );
    if !services.is_empty() {
        text.push_str("services:\n");
    }
    for (id, address) in services {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  - {{name: {SERVICE}, id: {id}, address: \"{address}\", protocol: http}}"
        );
    }
    text
}

/// A directory of our own, removed at the end unless it is to be kept.
struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    fn create(keep: bool) -> anyhow::Result<Directory> {
        let base = std::env::temp_dir();
        for number in 0..DIRECTORY_TRIES {
            let path = base.join(format!("evenkeel-demo-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Directory { path, keep }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", path.display()));
                }
            }
        }
        bail!("{}/evenkeel-demo-* is full of old directories: remove them", base.display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is only a few small files in the temporary directory.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn offering_name(index: usize) -> String {
    format!("host-{}", char::from(b'a' + index as u8))
}

/// The service that all applications offer.
pub const SERVICE: &str = "orders";

/// The host that is killed half-way: neither the first nor a client.
pub const KILLED: &str = "host-b";

const OFFERING: usize = 3;
const APPLICATIONS_PER_HOST: usize = 2;

const CLAIM_PORT: u16 = 7118;
const CLAIM_TRIES: usize = 50;
const PORT_TRIES: u16 = 20;
/// Leads from one default port past the others.
const PORT_STEP: u16 = 1_013;
const DIRECTORY_TRIES: usize = 1_000;

/// Gossip takes about a second; a busy machine more.
const START_MAX: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(50);
const LOOK_UP_MAX: Duration = Duration::from_secs(2);
const ANSWER_MAX: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use evenkeel_config::policy::{Balance, Mode};
    use evenkeel_config::{Environment, parse};

    use super::*;

    fn ports() -> Ports {
        let at = |port| SocketAddr::from(([127, 130, 7, 21], port));
        Ports {
            gossip: at(7111),
            data: at(7110),
            outbound: at(7080),
            http: at(8500),
            dns: at(8600),
            admin: at(7119),
        }
    }

    #[test]
    fn every_host_file_is_valid_and_means_what_the_table_says() {
        let join = [SocketAddr::from(([127, 130, 7, 11], 7111))];
        let service = [("orders-1".to_owned(), SocketAddr::from(([127, 130, 7, 11], 40_000)))];
        for arm in Arm::ALL {
            let text = config("client", &ports(), &join, &service, arm.policy());
            let loaded = parse(&text, "client.yaml", &Environment::named("test"));
            let settings = loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}")).settings;
            assert_eq!(settings.services[0].address, service[0].1);
            assert_eq!(settings.outbound.listen.address, ports().outbound);
            let policy = settings.policy;
            let expected = match arm {
                Arm::RoundRobin => (Balance::RoundRobin, 0, Mode::Off, 0),
                Arm::RoundRobinRetry => (Balance::RoundRobin, 2, Mode::Off, 0),
                Arm::P2c => (Balance::P2c, 2, Mode::Off, 5),
                Arm::Evenkeel => (Balance::P2c, 2, Mode::Enforce, 5),
            };
            let found =
                (policy.balance, policy.retry.max, policy.hedge.mode, policy.eject.consecutive);
            assert_eq!(found, expected, "{}", arm.name());
        }
    }

    #[test]
    fn a_taken_port_is_avoided() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let taken = TcpListener::bind((address, 0)).expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let found = find_port(address, port).expect("not every other port is taken too");
        assert_ne!(found.port(), port);
    }

    #[test]
    fn two_demos_hold_different_networks() {
        let first = claim_network(7).expect("a network");
        let second = claim_network(7).expect("another network");
        assert_ne!(first.0.host(1), second.0.host(1));
    }
}

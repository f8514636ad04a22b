//! A mesh in a box: hosts that run [`Discovery`], a network that loses, delays, doubles and cuts, and a clock that
//! jumps from one thing to the next. Everything follows from the seed.
//!
//! Safety is checked after every step: no observer sees a generation go back, and what a host says of itself in its
//! own look-ups is what it registered.
#![expect(clippy::unwrap_used, reason = "a host that is asked runs; else the test is wrong")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_config::Published;
use evenkeel_discovery::{
    Config, Dial, DialError, DialId, Discovery, Event, Instruction, Limits, NodeInfo, Origin,
    Profile, Registration, Saved, Subject, Weights,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Unix time at which simulations begin.
const WALL_START_MS: u64 = 1_800_000_000_000;
/// Datagrams that wait in the socket of a paused process.
const SOCKET_MAX: usize = 512;

pub struct World {
    pub seed: u64,
    pub rng: ChaCha8Rng,
    start: Instant,
    pub now: Instant,
    pub hosts: Vec<Host>,
    pub network: Network,
    queue: BTreeMap<(Instant, u64), Delivery>,
    sequence: u64,
    /// Every datagram sent, if asked for: (from, to, bytes).
    pub recording: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    /// Told down although running: (when, observer, subject).
    pub downs: Vec<(Instant, usize, u64)>,
    pub keys: Vec<[u8; 32]>,
    pub steps: u64,
}

pub struct Host {
    pub id: u64,
    pub address: SocketAddr,
    /// `None`: no process.
    pub process: Option<Discovery>,
    /// Counts processes: what is addressed to an earlier one gets lost.
    life: u64,
    pub paused_until: Option<Instant>,
    waiting: VecDeque<Delivery>,
    /// The data directory.
    pub disk: Option<Saved>,
    pub keeps_data: bool,
    /// Join addresses as configured.
    pub join: Vec<SocketAddr>,
    /// What is registered here: instance id → service.
    pub offers: BTreeMap<String, String>,
    /// Largest generation seen of each host, in this life.
    seen: BTreeMap<u64, u64>,
    pub events: Vec<(Instant, Event)>,
    /// When its process wants to be woken.
    wake: Option<Instant>,
    /// How far its clock is behind.
    pub clock_behind: Duration,
}

pub struct Network {
    pub loss: f64,
    pub duplicate: f64,
    pub delay: (Duration, Duration),
    /// Directed: (from, to).
    pub cut: BTreeSet<(usize, usize)>,
    /// The same, for datagrams only.
    pub datagrams_cut: BTreeSet<(usize, usize)>,
}

impl Network {
    pub fn lan() -> Self {
        let delay = (Duration::from_micros(100), Duration::from_millis(1));
        Network {
            loss: 0.0,
            duplicate: 0.0,
            delay,
            cut: BTreeSet::new(),
            datagrams_cut: BTreeSet::new(),
        }
    }
}

fn timeout(seconds: u64) -> Arc<Published> {
    let text = format!(r#"{{"policy":{{"timeout":"{seconds}s"}}}}"#);
    Arc::new(Published::read(&text).unwrap())
}

enum Delivery {
    Datagram { from: SocketAddr, to: usize, bytes: Vec<u8> },
    Request { from: usize, from_life: u64, to: usize, dial: DialId, bytes: Vec<u8> },
    Response { to: usize, life: u64, dial: DialId, response: Result<Vec<u8>, DialError> },
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the beginning")]
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        World {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            start,
            now: start,
            hosts: Vec::new(),
            network: Network::lan(),
            queue: BTreeMap::new(),
            sequence: 0,
            recording: None,
            downs: Vec::new(),
            keys: Vec::new(),
            steps: 0,
        }
    }

    /// So many hosts, each told to join through the first, all knowing each other, each with an instance of its own and one of `shared`.
    pub fn with_mesh(seed: u64, hosts: usize) -> Self {
        let mut world = World::new(seed);
        for _ in 0..hosts {
            let host = world.add_host();
            world.start(host);
        }
        for host in 0..hosts {
            world.register(host, "own", &format!("own-{host}"));
            world.register(host, "shared", "shared");
        }
        world.converge(Duration::from_secs(20));
        world
    }

    pub fn add_host(&mut self) -> usize {
        let host = self.hosts.len();
        let address =
            SocketAddr::from(([127, 0, (host / 250) as u8, (host % 250) as u8 + 1], 7111));
        let join = self.hosts.first().map(|first| first.address).into_iter().collect();
        self.hosts.push(Host {
            id: self.rng.random(),
            address,
            process: None,
            life: 0,
            paused_until: None,
            waiting: VecDeque::new(),
            disk: None,
            keeps_data: true,
            join,
            offers: BTreeMap::new(),
            seen: BTreeMap::new(),
            events: Vec::new(),
            wake: None,
            clock_behind: Duration::ZERO,
        });
        host
    }

    /// Unix time by this host's clock.
    fn wall_of(&self, host: usize) -> u64 {
        self.wall_ms() - u64::try_from(self.hosts[host].clock_behind.as_millis()).unwrap()
    }

    pub fn wall_ms(&self) -> u64 {
        WALL_START_MS + u64::try_from((self.now - self.start).as_millis()).unwrap()
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn config(&self, host: usize) -> Config {
        Config {
            mesh: "sim".into(),
            domain: "mesh".into(),
            node: NodeInfo {
                id: self.hosts[host].id,
                name: format!("host-{host}"),
                address: self.hosts[host].address,
                mesh_port: 7110,
                zone: None,
                version: "0.1.0".into(),
            },
            keys: self.keys.clone(),
            profile: Profile::LAN,
            limits: Limits { members: 1000, records: 10_000 },
        }
    }

    /// Starts a process; without a data directory it is a host that nobody knows.
    pub fn start(&mut self, host: usize) {
        if !self.hosts[host].keeps_data {
            self.hosts[host].disk = None;
            self.hosts[host].id = self.rng.random();
        }
        let config = self.config(host);
        self.start_with(host, config);
    }

    pub fn start_with(&mut self, host: usize, config: Config) {
        let (now, wall, seed, salt) =
            (self.now, self.wall_of(host), self.rng.random(), self.rng.random());
        let it = &mut self.hosts[host];
        assert!(it.process.is_none(), "already running");
        it.process = Some(Discovery::new(config, it.disk.clone(), now, wall, seed, salt));
        it.life += 1;
        it.seen.clear();
        it.waiting.clear();
        it.paused_until = None;
        // What the API registered came back by itself.
        self.drain(host);
    }

    /// `kill -9`: the kernel closes its ports.
    pub fn kill(&mut self, host: usize) {
        self.hosts[host].process = None;
        self.hosts[host].waiting.clear();
        self.hosts[host].paused_until = None;
    }

    pub fn pause(&mut self, host: usize, duration: Duration) {
        self.hosts[host].paused_until = Some(self.now + duration);
    }

    pub fn leave(&mut self, host: usize) {
        let (now, wall) = (self.now, self.wall_of(host));
        self.hosts[host].process.as_mut().unwrap().leave(now, wall);
        self.drain(host);
        self.kill(host);
    }

    pub fn register(&mut self, host: usize, id: &str, service: &str) {
        let (now, wall) = (self.now, self.wall_ms());
        let registration = Registration {
            id: id.into(),
            service: service.into(),
            address: ([127, 0, 0, 1], 8080).into(),
            advertise: Some(SocketAddr::new(self.hosts[host].address.ip(), 8080)),
            tagged_addresses: BTreeMap::new(),
            enable_tag_override: false,
            protocol: None,
            tags: vec![],
            meta: BTreeMap::new(),
            weights: Weights::default(),
            checks: vec![],
            origin: Origin::Api,
        };
        self.hosts[host].process.as_mut().unwrap().register(now, wall, registration).unwrap();
        self.hosts[host].offers.insert(id.into(), service.into());
        self.drain(host);
    }

    pub fn deregister(&mut self, host: usize, id: &str) {
        let (now, wall) = (self.now, self.wall_ms());
        self.hosts[host].process.as_mut().unwrap().deregister(now, wall, id).unwrap();
        self.hosts[host].offers.remove(id);
        self.drain(host);
    }

    /// Has a host publish this timeout for a service.
    pub fn publish(&mut self, host: usize, service: &str, timeout_s: u64) {
        let (now, wall) = (self.now, self.wall_ms());
        let policies = [(service.to_owned(), timeout(timeout_s))].into();
        self.hosts[host].process.as_mut().unwrap().set_policies(now, wall, policies);
        self.drain(host);
    }

    /// Issues an override at a host: this timeout for a service.
    pub fn order(&mut self, host: usize, service: &str, timeout_s: u64, ttl: Duration) {
        let (now, wall) = (self.now, self.wall_ms());
        let process = self.hosts[host].process.as_mut().unwrap();
        process.override_policy(now, wall, service, timeout(timeout_s), ttl).unwrap();
        self.drain(host);
    }

    /// The timeout, as text, that all clients beside this host are asked to keep for a service: published, and by override.
    pub fn asked(&self, host: usize, service: &str) -> (Option<String>, Option<String>) {
        let catalog = self.hosts[host].process.as_ref().unwrap().snapshot();
        let text = |policy: &Published| policy.text().to_string();
        let published = catalog.service(service).and_then(|view| view.policies.winner().cloned());
        let order = catalog.orders.get(&Subject::Override(service.to_owned()));
        let instruction = order.map(|order| order.instruction.clone());
        let ordered = instruction.and_then(|instruction| match instruction {
            Instruction::Override(policy) => Some(text(&policy)),
            _ => None,
        });
        (published.map(|policy| text(&policy)), ordered)
    }

    /// Cuts a host off, both ways, as if its cable were pulled.
    pub fn isolate(&mut self, host: usize) {
        for other in 0..self.hosts.len() {
            self.network.cut.insert((host, other));
            self.network.cut.insert((other, host));
        }
    }

    /// Cuts the mesh in two.
    pub fn split(&mut self, at: usize) {
        for a in 0..at {
            for b in at..self.hosts.len() {
                self.network.cut.insert((a, b));
                self.network.cut.insert((b, a));
            }
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until the condition holds; returns how long that took, or `None` if it did not within `max`.
    pub fn wait(&mut self, max: Duration, condition: impl Fn(&World) -> bool) -> Option<Duration> {
        let begin = self.now;
        let end = self.now + max;
        if condition(self) || self.run_until(end, condition) {
            Some(self.now - begin)
        } else {
            None
        }
    }

    fn run_until(&mut self, end: Instant, condition: impl Fn(&World) -> bool) -> bool {
        while let Some(next) = self.next_time().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            if self.step() && condition(self) {
                return true;
            }
        }
        self.now = end;
        condition(self)
    }

    fn next_time(&self) -> Option<Instant> {
        let delivery = self.queue.first_key_value().map(|((at, _), _)| *at);
        let hosts = self.hosts.iter().filter_map(|host| match host.paused_until {
            Some(until) => Some(until),
            None => host.wake.filter(|_| host.process.is_some()),
        });
        hosts.chain(delivery).min()
    }

    /// Does what is due now; returns whether some host's snapshot changed.
    fn step(&mut self) -> bool {
        self.steps += 1;
        let mut changed = false;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= self.now) {
            let (_, delivery) = self.queue.pop_first().unwrap();
            changed |= self.deliver(delivery);
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].paused_until.is_some_and(|until| until <= self.now) {
                self.hosts[host].paused_until = None;
                // Datagrams before timers, as the shell does it.
                for delivery in std::mem::take(&mut self.hosts[host].waiting) {
                    changed |= self.deliver(delivery);
                }
            }
            let (now, wall) = (self.now, self.wall_of(host));
            let it = &mut self.hosts[host];
            if it.paused_until.is_none()
                && let Some(process) = &mut it.process
                && it.wake.is_some_and(|at| at <= now)
            {
                process.handle_timeout(now, wall);
                changed |= self.drain(host);
            }
        }
        changed
    }

    fn deliver(&mut self, delivery: Delivery) -> bool {
        let (Delivery::Datagram { to, .. }
        | Delivery::Request { to, .. }
        | Delivery::Response { to, .. }) = &delivery;
        let to = *to;
        let (now, wall) = (self.now, self.wall_of(to));
        if self.hosts[to].paused_until.is_some() {
            if self.hosts[to].waiting.len() < SOCKET_MAX {
                self.hosts[to].waiting.push_back(delivery);
            }
            return false;
        }
        match delivery {
            Delivery::Datagram { from, to, bytes } => {
                let Some(process) = &mut self.hosts[to].process else {
                    return false;
                };
                process.handle_datagram(now, wall, from, &bytes);
            }
            Delivery::Request { from, from_life, to, dial, bytes } => {
                let from_address = self.hosts[from].address;
                let response = match &mut self.hosts[to].process {
                    None => Err(DialError::Refused),
                    Some(process) => process
                        .handle_request(now, wall, from_address, &bytes)
                        .ok_or(DialError::Other),
                };
                if !self.network.cut.contains(&(to, from)) {
                    let at = now + self.delay();
                    self.enqueue(
                        at,
                        Delivery::Response { to: from, life: from_life, dial, response },
                    );
                }
            }
            Delivery::Response { to, life, dial, response } => {
                if self.hosts[to].life != life {
                    return false;
                }
                let Some(process) = &mut self.hosts[to].process else {
                    return false;
                };
                process.handle_response(
                    now,
                    wall,
                    dial,
                    response.as_deref().map_err(|error| *error),
                );
            }
        }
        self.drain(to)
    }

    /// Sends what the host wants sent, and looks at what it says; returns whether its snapshot changed.
    fn drain(&mut self, host: usize) -> bool {
        let mut changed = false;
        loop {
            let Some(process) = &mut self.hosts[host].process else {
                return changed;
            };
            let mut quiet = true;
            let mut transmits = Vec::new();
            while let Some(transmit) = process.poll_transmit() {
                transmits.push(transmit);
            }
            let mut dials = Vec::new();
            while let Some(dial) = process.poll_dial() {
                dials.push(dial);
            }
            let mut events = Vec::new();
            while let Some(event) = process.poll_event() {
                events.push(event);
            }
            for transmit in transmits {
                quiet = false;
                self.send(host, transmit.to, &transmit.payload);
            }
            for dial in dials {
                quiet = false;
                self.dial(host, dial);
            }
            for event in events {
                quiet = false;
                changed |= event == Event::SnapshotChanged;
                self.handle_event(host, event);
            }
            if quiet {
                let process = self.hosts[host].process.as_ref();
                self.hosts[host].wake = process.and_then(Discovery::poll_timeout);
                return changed;
            }
        }
    }

    fn handle_event(&mut self, host: usize, event: Event) {
        let now = self.now;
        match &event {
            Event::ResolveJoin => {
                for address in self.hosts[host].join.clone() {
                    self.hosts[host].process.as_mut().unwrap().join(now, address);
                }
            }
            Event::SaveDue if self.hosts[host].keeps_data => {
                self.hosts[host].disk = self.hosts[host].process.as_ref().map(Discovery::saved);
            }
            Event::SnapshotChanged => self.check_safety(host),
            Event::NodeDown { node, .. } => {
                let runs = self.hosts.iter().any(|h| h.id == *node && h.process.is_some());
                if runs {
                    self.downs.push((now, host, *node));
                }
            }
            Event::NewIdentity { node } => self.hosts[host].id = *node,
            _ => {}
        }
        self.hosts[host].events.push((now, event));
    }

    fn check_safety(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        let catalog = it.process.as_ref().unwrap().snapshot();
        for node in catalog.nodes.values() {
            let seen = it.seen.entry(node.id).or_insert(node.generation);
            assert!(
                node.generation >= *seen,
                "seed {}: host {host} sees {} go back",
                self.seed,
                node.name
            );
            *seen = node.generation;
        }
        let own = it.process.as_ref().unwrap().node().id;
        let registered: BTreeSet<(&str, &str)> = it
            .process
            .as_ref()
            .unwrap()
            .registrations()
            .map(|registration| (&*registration.id, &*registration.service))
            .collect();
        let shown: BTreeSet<(&str, &str)> = catalog
            .services
            .values()
            .flat_map(|view| &view.instances)
            .filter(|instance| instance.node.id == own)
            .map(|instance| (&*instance.id, &*instance.service))
            .collect();
        assert_eq!(
            registered, shown,
            "seed {}: host {host}'s own record was touched by others",
            self.seed
        );
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        assert!(bytes.len() <= evenkeel_discovery::discovery::DATAGRAM_MAX);
        let source = self.hosts[from].address;
        if let Some(recording) = &mut self.recording {
            recording.push((source, to, bytes.to_vec()));
        }
        let Some(to) = self.hosts.iter().position(|host| host.address == to) else {
            return;
        };
        if self.network.cut.contains(&(from, to))
            || self.network.datagrams_cut.contains(&(from, to))
        {
            return;
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.network.duplicate));
        for _ in 0..copies {
            if !self.rng.random_bool(self.network.loss) {
                let at = self.now + self.delay();
                self.enqueue(at, Delivery::Datagram { from: source, to, bytes: bytes.to_vec() });
            }
        }
    }

    fn dial(&mut self, from: usize, dial: Dial) {
        let life = self.hosts[from].life;
        let fails_at = self.now + dial.timeout;
        let failed =
            Delivery::Response { to: from, life, dial: dial.id, response: Err(DialError::Other) };
        // A second end of a dial is ignored, so the timeout may always come.
        self.enqueue(fails_at, failed);
        let Some(to) = self.hosts.iter().position(|host| host.address == dial.to) else {
            return;
        };
        if self.network.cut.contains(&(from, to)) {
            return;
        }
        // A handshake and the request: lost segments are sent again.
        let mut at = self.now + self.delay() * 3;
        if self.rng.random_bool(self.network.loss) {
            at += Duration::from_millis(200);
        }
        let request =
            Delivery::Request { from, from_life: life, to, dial: dial.id, bytes: dial.request };
        self.enqueue(at, request);
    }

    /// Puts bytes on the wire that no host sent.
    pub fn inject(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>) {
        let at = self.now + self.delay();
        self.enqueue(at, Delivery::Datagram { from, to, bytes });
    }

    fn delay(&mut self) -> Duration {
        let (min, max) = self.network.delay;
        self.rng.random_range(min..=max)
    }

    fn enqueue(&mut self, at: Instant, delivery: Delivery) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), delivery);
    }

    /// Hosts that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].process.is_some()).collect()
    }

    /// Names of the hosts whose instance of `service` this host's look-ups show.
    pub fn sees(&self, observer: usize, service: &str) -> BTreeSet<String> {
        let catalog = self.hosts[observer].process.as_ref().unwrap().snapshot();
        let view = catalog.service(service);
        view.into_iter()
            .flat_map(|view| &view.instances)
            .map(|instance| instance.node.name.clone())
            .collect()
    }

    /// All hosts that run see all that runs, and nothing else.
    pub fn is_converged(&self) -> bool {
        let running = self.running();
        let mut expected = BTreeSet::new();
        for host in &running {
            for (id, service) in &self.hosts[*host].offers {
                expected.insert((service.clone(), self.hosts[*host].id, id.clone()));
            }
        }
        let alive: BTreeSet<u64> = running.iter().map(|host| self.hosts[*host].id).collect();
        let snapshot = |host: usize| self.hosts[host].process.as_ref().unwrap().snapshot();
        let policies = |host: usize| -> Vec<_> {
            let catalog = snapshot(host);
            catalog.services.values().map(|view| view.policies.clone()).collect()
        };
        running.iter().all(|host| {
            let catalog = snapshot(*host);
            let shown: BTreeSet<_> = catalog
                .services
                .iter()
                .flat_map(|(name, view)| {
                    view.instances.iter().map(move |i| (name.clone(), i.node.id, i.id.clone()))
                })
                .collect();
            shown == expected
                && catalog.alive().map(|node| node.id).collect::<BTreeSet<_>>() == alive
                && catalog.orders == snapshot(running[0]).orders
                && policies(*host) == policies(running[0])
        })
    }

    /// Requires that everything converges within `max`; says what is missing if it does not.
    pub fn converge(&mut self, max: Duration) -> Duration {
        match self.wait(max, World::is_converged) {
            Some(took) => took,
            None => {
                let alive: BTreeSet<u64> =
                    self.running().iter().map(|host| self.hosts[*host].id).collect();
                for host in self.running() {
                    let process = self.hosts[host].process.as_ref().unwrap();
                    let catalog = process.snapshot();
                    let sees: BTreeSet<u64> = catalog.alive().map(|node| node.id).collect();
                    let instances: usize =
                        catalog.services.values().map(|view| view.instances.len()).sum();
                    eprintln!(
                        "host {host} ({:x}): {} up, missing {:x?}, too many {:x?}, {instances} instances, {:?}",
                        self.hosts[host].id,
                        sees.len(),
                        alive.difference(&sees).collect::<Vec<_>>(),
                        sees.difference(&alive).collect::<Vec<_>>(),
                        process.counters(),
                    );
                }
                panic!("seed {}: not converged within {max:?} at {:?}", self.seed, self.elapsed());
            }
        }
    }
}

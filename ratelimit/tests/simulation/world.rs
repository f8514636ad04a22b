//! Hosts, a network between them and simulated time.
//!
//! Every host runs its own [`Quotas`] and its own clock, which is up to half a per cent fast or slow. Messages take time, may be lost, come
//! twice and overtake each other; links may be cut in one direction. After every step the sum of what the hosts may spend is held
//! against the capacity: that is the invariant, and it is checked nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use evenkeel_ratelimit::{
    Algorithm, BASE, Claim, Floors, LEASE, Micros, Party, Quotas, Request, Roster, Safe, Template,
    Templates,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub const RESOURCE: &[u8] = b"db.payments";

/// The network's manners.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub delay: (Duration, Duration),
    /// Of a hundred messages.
    pub lost: u32,
    pub twice: u32,
}

pub const CALM: Network =
    Network { delay: (Duration::from_micros(200), Duration::from_millis(2)), lost: 0, twice: 0 };
pub const ROUGH: Network = Network {
    delay: (Duration::from_micros(200), Duration::from_millis(400)),
    lost: 20,
    twice: 20,
};

struct Host {
    quotas: Quotas,
    /// Nanoseconds of its clock for each thousand millions of ours.
    rate: u64,
    due: Option<Instant>,
}

/// A Doorman client of one host: it counts a lease from when it asked, and outlives its host.
struct Caller {
    host: u64,
    wants: Micros,
    has: Micros,
    until: Instant,
}

pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub rng: SmallRng,
    pub network: Network,
    capacity: Micros,
    hosts: BTreeMap<u64, Host>,
    /// Crashed hosts: the life they had, and when they died.
    dead: BTreeMap<u64, Instant>,
    callers: BTreeMap<u64, Caller>,
    /// The longest loan: with callers it is as long as their leases.
    longest: Duration,
    roster: Roster,
    lives: u64,
    wants: BTreeMap<u64, Micros>,
    flights: BTreeMap<(Instant, u64), (u64, u64, Vec<u8>)>,
    flown: u64,
    timers: BTreeSet<(Instant, u64)>,
    pub cut: BTreeSet<(u64, u64)>,
    /// What hosts that were removed while alive may use on top.
    pub allowance: Micros,
    pub seed: u64,
    /// How often the invariant was checked, and the most that was ever usable.
    pub checks: u64,
    pub most: Micros,
    pub check_every: u64,
}

fn template(capacity: Micros) -> Template {
    Template {
        pattern: "db.*".into(),
        capacity,
        per: Some(Duration::from_secs(1)),
        burst: Micros::ZERO,
        algorithm: Algorithm::FairShare,
        floors: Floors::default(),
        lease: Duration::from_secs(20),
        refresh: Duration::from_secs(5),
        learning: Duration::from_secs(20),
        safe: Safe::Share,
    }
}

impl World {
    /// `hosts` members of a first roster, none of whom ran before.
    pub fn new(hosts: u64, capacity: u64, network: Network, seed: u64) -> World {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let start = Instant::now();
        let members: BTreeMap<u64, u32> = (0..hosts).map(|host| (host, 1)).collect();
        let mut world = World {
            start,
            now: start,
            rng: SmallRng::seed_from_u64(seed),
            network,
            capacity: Micros::units(capacity),
            hosts: BTreeMap::new(),
            dead: BTreeMap::new(),
            callers: BTreeMap::new(),
            longest: BASE,
            roster: Roster { epoch: 1, members, settled: true, ..Roster::default() },
            lives: 0,
            wants: BTreeMap::new(),
            flights: BTreeMap::new(),
            flown: 0,
            timers: BTreeSet::new(),
            cut: BTreeSet::new(),
            allowance: Micros::ZERO,
            seed,
            checks: 0,
            most: Micros::ZERO,
            check_every: 1,
        };
        (0..hosts).for_each(|host| world.boot(host));
        world.see_all();
        world
    }

    /// Starts a host; if it ran before, it waits until the loans of that life have ended.
    pub fn boot(&mut self, host: u64) {
        self.lives += 1;
        let rate = self.rng.random_range(995_000_000..=1_005_000_000);
        let local = local(self.start, self.now, rate);
        // The longest loan, counted on a clock that may be slow.
        let locked = self.dead.remove(&host).map(|died| died + self.longest);
        let locked = locked
            .map(|until| local + until.saturating_duration_since(self.now) + self.longest / 50);
        let mut quotas = Quotas::new(local, Party { host, life: self.lives }, locked);
        quotas.set_templates(local, Templates::new(vec![template(self.capacity)]).unwrap());
        quotas.set_roster(local, self.roster.clone()).unwrap();
        self.hosts.insert(host, Host { quotas, rate, due: None });
        let wants = self.wants.get(&host).copied().unwrap_or_default();
        self.touch(host, |quotas, now| quotas.offer(now, RESOURCE, wants).unwrap());
    }

    /// A host is gone, with all that it knew.
    pub fn crash(&mut self, host: u64) {
        if let Some(gone) = self.hosts.remove(&host) {
            if let Some(due) = gone.due {
                self.timers.remove(&(due, host));
            }
            self.dead.insert(host, self.now);
        }
    }

    /// Everyone is told who lives.
    pub fn see_all(&mut self) {
        let live: BTreeSet<u64> = self.hosts.keys().copied().collect();
        for host in live.clone() {
            self.see(host, live.clone());
        }
    }

    /// One host is told who lives.
    pub fn see(&mut self, host: u64, live: BTreeSet<u64>) {
        self.touch(host, |quotas, now| quotas.set_live(now, live));
    }

    /// A new roster, heard of by `hearers`.
    pub fn roster(
        &mut self,
        members: impl IntoIterator<Item = u64>,
        hearers: impl IntoIterator<Item = u64>,
    ) {
        let members: BTreeMap<u64, u32> = members.into_iter().map(|host| (host, 1)).collect();
        let before = self.roster.members.keys().chain(self.roster.removed.keys()).copied();
        let removed = before.filter(|host| !members.contains_key(host));
        let removed = removed.map(|host| (host, self.longest)).collect();
        self.roster = Roster { epoch: self.roster.epoch + 1, members, removed, settled: false };
        for host in hearers {
            let roster = self.roster.clone();
            self.touch(host, |quotas, now| quotas.set_roster(now, roster).unwrap());
        }
    }

    pub fn want(&mut self, host: u64, wants: Micros) {
        self.wants.insert(host, wants);
        self.touch(host, |quotas, now| quotas.offer(now, RESOURCE, wants).unwrap());
    }

    /// A new client of `host`, that will ask when it is told to.
    pub fn caller(&mut self, host: u64, wants: Micros) {
        let id = self.callers.len() as u64;
        self.longest = BASE + template(self.capacity).lease;
        self.callers.insert(id, Caller { host, wants, has: Micros::ZERO, until: self.now });
    }

    /// Each client whose host is up asks it.
    pub fn call(&mut self) {
        for id in 0..self.callers.len() as u64 {
            let (now, Caller { host, wants, until, has }) = (self.now, &self.callers[&id]);
            let (host, has) = (*host, if *until >= now { *has } else { Micros::ZERO });
            let request =
                Request { claim: Claim { wants: *wants, subclients: 1, priority: 0 }, has };
            let mut granted = None;
            self.touch(host, |quotas, now| {
                granted = quotas.handle_client(now, RESOURCE, &id.to_be_bytes(), request).ok();
            });
            let lost = self.rng.random_range(0..100) < self.network.lost;
            if let (Some(grant), Some(caller), false) = (granted, self.callers.get_mut(&id), lost) {
                // Its clock may be slow, and whole seconds are all that Doorman's messages say.
                (caller.has, caller.until) = (grant.amount, now + grant.lease - grant.lease / 50);
            }
        }
        self.check();
    }

    /// What clients hold.
    pub fn called(&self) -> Micros {
        let held = self.callers.values().filter(|caller| caller.until >= self.now);
        Micros::from_u128(Micros::sum(held.map(|caller| caller.has)))
    }

    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = Micros::units(capacity);
        for host in self.ids() {
            let templates = Templates::new(vec![template(self.capacity)]).unwrap();
            self.touch(host, |quotas, now| quotas.set_templates(now, templates));
        }
    }

    pub fn ids(&self) -> Vec<u64> {
        self.hosts.keys().copied().collect()
    }

    pub fn spend(&self, host: u64) -> Micros {
        let Some(entry) = self.hosts.get(&host) else { return Micros::ZERO };
        let now = local(self.start, self.now, entry.rate);
        entry.quotas.spending(now, RESOURCE).map_or(Micros::ZERO, |spending| spending.amount)
    }

    pub fn right(&self, host: u64) -> Micros {
        let entry = &self.hosts[&host];
        let report = entry.quotas.reports(local(self.start, self.now, entry.rate)).next();
        report.map_or(Micros::ZERO, |report| report.right)
    }

    pub fn total(&self) -> Micros {
        let own = Micros::from_u128(Micros::sum(self.hosts.keys().map(|host| self.spend(*host))));
        own.plus(self.called())
    }

    /// The part of the capacity that goes to those who want it.
    pub fn utilisation(&self) -> f64 {
        let used = self
            .hosts
            .keys()
            .map(|host| self.spend(*host).min(self.wants.get(host).copied().unwrap_or_default()));
        Micros::from_u128(Micros::sum(used)).as_f64() / self.capacity.as_f64()
    }

    /// How far it is from `targets`: the part of what is due that is missing.
    pub fn missing(&self, targets: &BTreeMap<u64, Micros>) -> f64 {
        let due = Micros::sum(targets.values().copied());
        let missing =
            Micros::sum(targets.iter().map(|(host, target)| target.minus(self.spend(*host))));
        missing as f64 / due as f64
    }

    /// Runs for `span`.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        self.run_until(end, |_| false);
    }

    /// Runs until `done` or `end`; how long it took.
    pub fn run_until(&mut self, end: Instant, done: impl Fn(&World) -> bool) -> Option<Duration> {
        let began = self.now;
        let mut step = 0u64;
        loop {
            if step.is_multiple_of(self.check_every) && done(self) {
                return Some(self.now - began);
            }
            step += 1;
            let flight = self.flights.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().map(|(at, _)| *at);
            let Some(next) = flight.into_iter().chain(timer).min().filter(|next| *next <= end)
            else {
                self.now = end;
                self.check();
                return done(self).then(|| self.now - began);
            };
            self.now = self.now.max(next);
            if flight.is_some_and(|at| at <= next) {
                let (_, (from, to, bytes)) = self.flights.pop_first().unwrap();
                self.touch(to, |quotas, now| quotas.handle_datagram(now, from, &bytes).unwrap());
            } else if let Some((_, host)) = self.timers.pop_first() {
                self.touch(host, Quotas::handle_timeout);
            }
            if step.is_multiple_of(self.check_every) {
                self.check();
            }
        }
    }

    /// Does something to a host, then takes out what it has to say.
    fn touch(&mut self, id: u64, action: impl FnOnce(&mut Quotas, Instant)) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let now = local(self.start, self.now, host.rate);
        action(&mut host.quotas, now);
        if let Some(due) = host.due.take() {
            self.timers.remove(&(due, id));
        }
        if let Some(due) = host.quotas.poll_timeout() {
            let due = (self.now + due.saturating_duration_since(now))
                .max(self.now + Duration::from_micros(1));
            host.due = Some(due);
            self.timers.insert((due, id));
        }
        while host.quotas.poll_event().is_some() {}
        let mut said = Vec::new();
        while let Some(transmit) = host.quotas.poll_transmit() {
            said.push(transmit);
        }
        for transmit in said {
            self.fly(id, transmit.to, &transmit.bytes);
        }
    }

    fn fly(&mut self, from: u64, to: u64, bytes: &[u8]) {
        let copies = if self.rng.random_range(0..100) < self.network.twice { 2 } else { 1 };
        for _ in 0..copies {
            if self.cut.contains(&(from, to)) || self.rng.random_range(0..100) < self.network.lost {
                continue;
            }
            let (least, most) = self.network.delay;
            let delay = self.rng.random_range(least..=most);
            self.flown += 1;
            self.flights.insert((self.now + delay, self.flown), (from, to, bytes.to_vec()));
        }
    }

    fn check(&mut self) {
        self.checks += 1;
        let total = self.total();
        self.most = self.most.max(total);
        let bound = self.capacity.plus(self.allowance);
        assert!(
            total <= bound,
            "{}seed {}: {total} usable of {bound} after {:?}\nto repeat: EVENKEEL_SEED={} cargo test -p evenkeel-ratelimit --test simulation",
            self.state(),
            self.seed,
            self.now - self.start,
            self.seed
        );
    }

    /// Who has what, for the message of a failure.
    fn state(&self) -> String {
        let hosts = self.hosts.iter().map(|(host, entry)| {
            let now = local(self.start, self.now, entry.rate);
            let report = entry.quotas.reports(now).next();
            let report = report.map(|r| (r.right, r.has, r.clients_hold, r.clients));
            format!("host {host}: right, has, clients hold, clients: {report:?}\n")
        });
        let callers = self.callers.values().filter(|caller| caller.until >= self.now);
        let callers = callers.map(|caller| {
            format!("client of {}: {} for {:?}\n", caller.host, caller.has, caller.until - self.now)
        });
        hosts.chain(callers).collect()
    }

    /// After a cut of the capacity, what is out may be used until it ends.
    pub fn allow_what_is_out(&mut self) {
        self.allowance = self.total().minus(self.capacity);
    }
}

/// What a clock of this rate shows.
fn local(start: Instant, now: Instant, rate: u64) -> Instant {
    let elapsed = (now - start).as_nanos() * u128::from(rate) / 1_000_000_000;
    // Clocks begin apart.
    start + Duration::from_nanos(elapsed as u64) + LEASE * (rate % 97) as u32
}

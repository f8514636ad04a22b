//! A client, its upstream and the clock, in one thread and from one seed: the real balancer against simulated backends.
//!
//! The client does what the proxy does with a request: picks, waits for the head, sends a copy when one is due and allowed, retries what
//! may be retried, cancels the losers. Arrivals are open loop: a slow answer delays no other request.

mod scouting;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::repeat::{self, Body, Outcome};
use evenkeel_balancer::{
    Attempt, Balancer, Budget, Endpoint, EndpointSpec, Hedger, Hop, MayCopy, NoEndpoint,
    RETRY_FLOOR_PER_SEC, Redial, Ticket, Verdict, Visit, Wish, key_hash,
};
use evenkeel_config::policy::{After, Balance, Hedge, Mode, Policy, ScoutMode, Share};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::scouting::{Scouting, Step};
use crate::backend::{Backend, MS, S, Served, Service, US, exponential};
use crate::measured::Measured;

/// Before an endpoint that could not be dialled is dialled again; twice as long each time, up to the latter.
const REDIAL_FIRST: u64 = 250 * MS;
const REDIAL_LAST: u64 = S;

/// Two choices, copies sent.
pub fn hedged() -> Policy {
    let hedge = Hedge {
        mode: Mode::Enforce,
        after: After::Percentile(95.0),
        min: Duration::from_millis(1),
        budget: Share::percent(5),
        max: 2,
    };
    Policy { hedge, ..Policy::default() }
}

/// No copies.
pub fn unhedged(balance: Balance) -> Policy {
    Policy { balance, hedge: Hedge { mode: Mode::Off, ..Hedge::default() }, ..Policy::default() }
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Load {
    pub policy: Policy,
    pub rate_per_sec: u64,
    pub service: Service,
    /// Requests that arrive before are not measured.
    pub warm_up: u64,
    pub end: u64,
    /// Share of requests that the policy does not name as safe.
    pub unsafe_share: f64,
    /// Share of requests whose caller goes away within 2 ms.
    pub impatient_share: f64,
    /// Share of long polls: their head takes 2 s.
    pub long_poll_share: f64,
    /// Other clients' requests a second, to each of these backends.
    pub others: Vec<(usize, u64)>,
    /// Requests have keys: so many tenants, all alike.
    pub tenants: u64,
    /// A hedge's timer fires up to this much late.
    pub timer_slack: u64,
}

impl Load {
    pub fn new(policy: Policy, rate_per_sec: u64, service: Service, seconds: u64) -> Load {
        Load {
            policy,
            rate_per_sec,
            service,
            warm_up: 5 * S,
            end: (5 + seconds) * S,
            unsafe_share: 0.0,
            impatient_share: 0.0,
            long_poll_share: 0.0,
            others: Vec::new(),
            tenants: 0,
            timer_slack: 100 * US,
        }
    }
}

pub struct World {
    pub load: Load,
    pub rng: SmallRng,
    pub now: u64,
    start: Instant,
    pub balancer: Arc<Balancer>,
    pub retries: Budget,
    pub hedger: Hedger,
    pub backends: Vec<Backend>,
    pub known: BTreeSet<usize>,
    /// The zone of each backend; the client stands in `a`.
    pub zones: Vec<&'static str>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    requests: BTreeMap<u64, Request>,
    probes: BTreeMap<u64, Ticket>,
    redials: BTreeMap<u64, Redial>,
    scouting: Scouting,
    next_request: u64,
    recent_requests: VecDeque<u64>,
    recent_copies: VecDeque<u64>,
    pub result: Measured,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    CopyDue(u64),
    Ended(u64, usize, End),
    BodyEnded(u64),
    CallerGone(u64),
    Other(usize, u64),
    ProbeEnded(u64, End),
    /// Of an endpoint that could not be dialled; after how long the next.
    Redial(u64, u64),
    Scout(u64, Step),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Head,
    Error,
    Unreachable,
    Reset,
}

struct Request {
    arrived: u64,
    safe: bool,
    /// Its first attempt's head takes its time.
    long_poll: bool,
    /// The hash of its tenant.
    key: Option<u64>,
    attempts: Vec<Try>,
    tried: Vec<u64>,
    retries: u32,
    copies: u32,
    head: bool,
}

struct Try {
    backend: usize,
    ticket: Option<Sent>,
    started: u64,
    copy: bool,
}

/// An attempt in flight, as its client and its host count it.
struct Sent {
    ticket: Ticket,
    visit: Visit,
}

impl World {
    #[allow(clippy::disallowed_methods)]
    pub fn new(seed: u64, load: Load, backends: Vec<Backend>) -> World {
        let start = Instant::now();
        let mut world = World {
            rng: SmallRng::seed_from_u64(seed),
            now: 0,
            start,
            balancer: Arc::new(Balancer::new(start)),
            retries: Budget::new(start),
            hedger: Hedger::new(start),
            known: (0..backends.len()).collect(),
            zones: Vec::new(),
            scouting: Scouting::new(start, backends.len()),
            backends,
            events: BinaryHeap::new(),
            order: 0,
            requests: BTreeMap::new(),
            probes: BTreeMap::new(),
            redials: BTreeMap::new(),
            next_request: 0,
            recent_requests: VecDeque::new(),
            recent_copies: VecDeque::new(),
            result: Measured::default(),
            load,
        };
        world.update();
        world.schedule(1, Event::Arrive);
        for (backend, rate) in world.load.others.clone() {
            world.schedule(1, Event::Other(backend, rate));
        }
        world
    }

    pub fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    /// Tells the balancer of the known backends.
    pub fn update(&mut self) {
        let spec = |&backend: &usize| {
            let address = ([127, 0, 0, 1], 1_000 + backend as u16).into();
            EndpointSpec {
                node: 1,
                instance: Arc::from(format!("b{backend}")),
                address,
                dial: address,
                hop: Hop::Direct,
                protocol: None,
                weight: 1,
                zone: self.zones.get(backend).map(|zone| Arc::from(*zone)),
                serving: true,
                preserved: false,
            }
        };
        let specs = self.known.iter().map(spec).collect();
        self.balancer.update(self.instant(), specs, Some("a"));
    }

    /// Runs up to the moment `until`.
    pub fn run(&mut self, until: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= until) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = at;
            match event {
                Event::Arrive => self.arrive(),
                Event::Scout(scout, step) => self.scout(scout, step),
                Event::CopyDue(request) => self.copy_due(request),
                Event::Ended(request, attempt, end) => self.ended(request, attempt, end),
                Event::BodyEnded(request) => {
                    self.requests.remove(&request);
                }
                Event::CallerGone(request) => self.caller_gone(request),
                Event::Other(backend, rate) => self.other(backend, rate),
                Event::ProbeEnded(probe, end) => {
                    if let Some(mut ticket) = self.probes.remove(&probe) {
                        ticket.head(self.instant(), verdict(end));
                        self.redial(ticket.endpoint());
                    }
                }
                Event::Redial(redial, pause) => self.dial_again(redial, pause),
            }
        }
        self.now = until;
    }

    /// Runs to the end of the load and until the last request is over.
    pub fn finish(&mut self) -> Measured {
        self.run(self.load.end);
        self.run(self.load.end + 3_600 * S);
        assert!(self.requests.is_empty(), "{} requests never ended", self.requests.len());
        for endpoint in self.balancer.endpoints().iter() {
            assert_eq!(
                endpoint.in_flight(),
                0,
                "in-flight of {:?} must return to 0",
                endpoint.spec().instance
            );
        }
        assert_eq!((self.balancer.circuit().requests(), self.balancer.circuit().copies()), (0, 0));
        self.result.latencies.sort_unstable();
        self.result.clone()
    }

    /// A backend's process dies: what it was serving is reset.
    pub fn reset_all_at(&mut self, backend: usize) {
        let victims: Vec<(u64, usize)> = self
            .requests
            .iter()
            .flat_map(|(&id, request)| {
                request
                    .attempts
                    .iter()
                    .enumerate()
                    .map(move |(index, attempt)| (id, index, attempt))
            })
            .filter(|(_, _, attempt)| attempt.backend == backend && attempt.ticket.is_some())
            .map(|(id, index, _)| (id, index))
            .collect();
        for (request, attempt) in victims {
            self.schedule(self.now + HOP, Event::Ended(request, attempt, End::Reset));
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn arrive(&mut self) {
        if self.now < self.load.end {
            let gap = exponential(&mut self.rng, S / self.load.rate_per_sec);
            self.schedule(self.now + gap, Event::Arrive);
        } else {
            return;
        }
        let (now, id) = (self.instant(), self.next_request);
        self.next_request += 1;
        self.retries.request(now);
        let key = (self.load.tenants > 0)
            .then(|| key_hash(&self.rng.random_range(0..self.load.tenants).to_be_bytes()));
        let safe = !self.rng.random_bool(self.load.unsafe_share);
        self.requests.insert(
            id,
            Request {
                arrived: self.now,
                safe,
                long_poll: false,
                key,
                attempts: Vec::new(),
                tried: Vec::new(),
                retries: 0,
                copies: 0,
                head: false,
            },
        );
        if self.measures() {
            self.result.requests += 1;
        }
        if safe {
            self.hedger.request(now);
            self.recent_requests.push_back(self.now);
        }
        if self.rng.random_bool(self.load.impatient_share) {
            let patience = self.rng.random_range(0..2 * MS);
            self.schedule(self.now + patience, Event::CallerGone(id));
        }
        let long_poll = self.rng.random_bool(self.load.long_poll_share);
        self.requests.get_mut(&id).expect("it was just made").long_poll = long_poll;
        if self.load.policy.scouting() == ScoutMode::Off {
            let first = self.pick(id, Attempt::First);
            self.send_first(id, first);
        } else {
            self.scout_first(id);
        }
    }

    fn send_first(&mut self, id: u64, ticket: Result<Ticket, NoEndpoint>) {
        let Ok(ticket) = ticket else { return self.fail(id) };
        self.send(id, Attempt::First, ticket);
        let request = &self.requests[&id];
        if request.safe {
            self.probe(request.key);
        }
        if let Some(delay) = self.hedger.delay(self.instant(), &self.load.policy.hedge) {
            self.schedule_copy(id, delay);
        }
    }

    /// A copy to an endpoint on probation, if one is due. Nobody waits for it.
    fn probe(&mut self, key: Option<u64>) {
        let (now, policy) = (self.instant(), &self.load.policy);
        let wish = Wish { shard: key, hash: key, ..Wish::FIRST };
        let probe = self.balancer.probe_due(now, policy, &wish, &self.hedger, &self.retries);
        let Some(ticket) = probe else { return };
        assert!(ticket.endpoint().on_probation());
        let backend = usize::from(ticket.endpoint().spec().address.port()) - 1_000;
        let (at, end) =
            match self.backends[backend].serve(&mut self.rng, self.now + HOP, self.load.service) {
                Served::Head(at) => (at, End::Head),
                Served::Error(at) => (at, End::Error),
                Served::Refused => (self.now + HOP, End::Unreachable),
            };
        self.count_copy();
        self.result.attempts += u64::from(self.measures());
        self.order += 1;
        self.probes.insert(self.order, ticket);
        self.schedule(at + HOP, Event::ProbeEnded(self.order, end));
    }

    fn other(&mut self, backend: usize, rate: u64) {
        if self.now < self.load.end {
            let served = self.backends[backend].serve(&mut self.rng, self.now, self.load.service);
            if let Served::Head(ends) = served {
                self.count_other(backend, ends);
            }
            let gap = exponential(&mut self.rng, S / rate);
            self.schedule(self.now + gap, Event::Other(backend, rate));
        }
    }

    fn schedule_copy(&mut self, id: u64, delay: Duration) {
        let late = self.rng.random_range(0..=self.load.timer_slack);
        self.schedule(self.now + delay.as_nanos() as u64 + late, Event::CopyDue(id));
    }

    fn attempt(&mut self, id: u64, kind: Attempt) -> Result<(), NoEndpoint> {
        let ticket = self.pick(id, kind)?;
        self.send(id, kind, ticket);
        Ok(())
    }

    fn pick(&mut self, id: u64, kind: Attempt) -> Result<Ticket, NoEndpoint> {
        let (now, request) = (self.instant(), &self.requests[&id]);
        let wish =
            Wish { attempt: kind, tried: &request.tried, shard: request.key, hash: request.key };
        self.balancer.pick(now, &mut self.rng, &self.load.policy, &wish)
    }

    fn send(&mut self, id: u64, kind: Attempt, ticket: Ticket) {
        let request = &self.requests[&id];
        let long_poll = kind == Attempt::First && request.long_poll;
        let serial = ticket.endpoint().serial();
        assert!(
            kind != Attempt::Hedge || !request.tried.contains(&serial),
            "a copy went where the request was already"
        );
        let backend = usize::from(ticket.endpoint().spec().address.port()) - 1_000;
        let (at, end) =
            match self.backends[backend].serve(&mut self.rng, self.now + HOP, self.load.service) {
                Served::Head(at) if long_poll => (at + 2 * S, End::Head),
                Served::Head(at) => (at, End::Head),
                Served::Error(at) => (at, End::Error),
                Served::Refused => (self.now + HOP, End::Unreachable),
            };
        let measures = self.measures();
        let visit = self.scouting.visit(backend, self.start + Duration::from_nanos(self.now + HOP));
        let request = self.requests.get_mut(&id).expect("the request is there");
        request.tried.push(serial);
        request.attempts.push(Try {
            backend,
            ticket: Some(Sent { ticket, visit }),
            started: self.now,
            copy: kind == Attempt::Hedge,
        });
        let index = request.attempts.len() - 1;
        if measures {
            self.result.attempts += 1;
            if kind == Attempt::First {
                *self.result.firsts.entry(backend).or_default() += 1;
            }
        }
        self.schedule(at + HOP, Event::Ended(id, index, end));
    }

    fn copy_due(&mut self, id: u64) {
        let (now, policy) = (self.instant(), self.load.policy.clone());
        let Some(request) = self.requests.get_mut(&id) else { return };
        let waits = request.attempts.iter_mut().any(|attempt| attempt.ticket.is_some());
        request
            .attempts
            .iter_mut()
            .filter_map(|attempt| attempt.ticket.as_mut())
            .for_each(|sent| sent.ticket.late(now));
        if request.head
            || !waits
            || request.copies >= policy.hedge.max
            || !repeat::may_copy(&describe(request), &policy.hedge)
        {
            return;
        }
        self.result.copies_due += 1;
        let may = self.hedger.try_copy(now, &policy.hedge, &policy.retry, &self.retries);
        if may != MayCopy::Yes {
            // A request that is late for another delay deserves the copy more than one that is late for the first time.
            if let Some(delay) = self.hedger.delay(now, &policy.hedge) {
                self.schedule_copy(id, delay);
            }
            return;
        }
        if self.attempt(id, Attempt::Hedge).is_err() {
            self.hedger.not_sent(now, &self.retries);
            if let Some(delay) = self.hedger.delay(now, &policy.hedge) {
                self.schedule_copy(id, delay);
            }
            return;
        }
        self.count_copy();
        let request = self.requests.get_mut(&id).expect("the request is there");
        request.copies += 1;
        if let Some(delay) = self.hedger.delay(now, &policy.hedge) {
            self.schedule_copy(id, delay);
        }
    }

    /// No ten seconds may see more copies than their share of the requests.
    fn count_copy(&mut self) {
        if self.measures() {
            self.result.copies += 1;
        }
        self.recent_copies.push_back(self.now);
        let oldest = self.now.saturating_sub(10 * S);
        for recent in [&mut self.recent_copies, &mut self.recent_requests] {
            while recent.front().is_some_and(|&at| at < oldest) {
                recent.pop_front();
            }
        }
        let allowed =
            self.recent_requests.len() as f64 * self.load.policy.hedge.budget.as_fraction();
        assert!(
            self.recent_copies.len() as f64 <= allowed,
            "{} copies within 10 s, {allowed} allowed",
            self.recent_copies.len()
        );
    }

    fn ended(&mut self, id: u64, index: usize, end: End) {
        let now = self.instant();
        let Some(request) = self.requests.get_mut(&id) else { return };
        let attempt = &mut request.attempts[index];
        let Some(sent) = attempt.ticket.as_mut() else { return };
        if request.head {
            return;
        }
        sent.ticket.head(now, verdict(end));
        let endpoint = Arc::clone(sent.ticket.endpoint());
        if !matches!(end, End::Unreachable | End::Reset) {
            sent.visit.head(now - Duration::from_nanos(HOP));
        }
        if end == End::Head {
            self.won(id, index);
            return;
        }
        attempt.ticket = None;
        if end == End::Unreachable {
            self.redial(&endpoint);
        }
        let request = self.requests.get_mut(&id).expect("the request is there");
        if request.attempts.iter().any(|attempt| attempt.ticket.is_some()) {
            return; // a failure does not win: the others may still succeed
        }
        let outcome = match end {
            End::Unreachable => Outcome::NotSent,
            End::Reset => Outcome::ResetBeforeHead,
            _ => Outcome::Response { status: 503, pushback: None },
        };
        let retry = self.load.policy.retry.clone();
        let again = repeat::may_retry(&describe(request), &outcome, &retry)
            && self.retries.withdraw(now, retry.budget, RETRY_FLOOR_PER_SEC);
        request.retries += u32::from(again);
        if !again || self.attempt(id, Attempt::Retry).is_err() {
            self.fail(id);
        }
    }

    /// As the shell does it: no request finds out whether the endpoint is back.
    fn redial(&mut self, endpoint: &Arc<Endpoint>) {
        if let Some(redial) = endpoint.redial() {
            self.order += 1;
            self.redials.insert(self.order, redial);
            self.schedule(self.now + REDIAL_FIRST, Event::Redial(self.order, REDIAL_FIRST));
        }
    }

    fn dial_again(&mut self, id: u64, pause: u64) {
        let Some(redial) = self.redials.remove(&id) else { return };
        let backend = usize::from(redial.endpoint().spec().address.port()) - 1_000;
        if !self.known.contains(&backend) || !redial.is_needed() {
            return;
        }
        if self.backends[backend].is_down(self.now) {
            let pause = (2 * pause).min(REDIAL_LAST);
            self.redials.insert(id, redial);
            self.schedule(self.now + pause, Event::Redial(id, pause));
        } else {
            redial.succeeded();
        }
    }

    fn won(&mut self, id: u64, index: usize) {
        let (now, measures) = (self.instant(), self.measures());
        let request = self.requests.get_mut(&id).expect("the request is there");
        request.head = true;
        let copy = request.attempts[index].copy;
        // A copy is timed from the attempt it stands beside.
        let beside = request.attempts[..=index]
            .iter()
            .rev()
            .find(|attempt| !attempt.copy)
            .expect("the first is no copy");
        self.hedger.record(now, Duration::from_nanos(self.now - beside.started));
        if copy {
            self.hedger.copy_won();
        }
        for (other, attempt) in request.attempts.iter_mut().enumerate() {
            if other != index {
                attempt.ticket = None;
            }
        }
        if measures {
            self.result.latencies.push(self.now - request.arrived);
        }
        self.schedule(self.now + BODY, Event::BodyEnded(id));
    }

    fn fail(&mut self, id: u64) {
        if self.measures() {
            self.result.failed += 1;
        }
        self.requests.remove(&id);
    }

    fn caller_gone(&mut self, id: u64) {
        let now = self.instant();
        if let Some(mut request) = self.requests.remove(&id) {
            request
                .attempts
                .iter_mut()
                .filter_map(|attempt| attempt.ticket.as_mut())
                .for_each(|sent| sent.ticket.caller_gone(now));
        }
    }

    fn measures(&self) -> bool {
        self.now >= self.load.warm_up
    }
}

fn verdict(end: End) -> Verdict {
    match end {
        End::Head => Verdict::Success,
        End::Error => Verdict::Failure,
        End::Unreachable => Verdict::Unreachable,
        End::Reset => Verdict::Reset,
    }
}

fn describe(request: &Request) -> repeat::Request {
    repeat::Request {
        safe: request.safe,
        keyed: false,
        body: Body::Complete,
        streaming: false,
        retry_of_retry: false,
        retries: request.retries,
    }
}

/// One way through kernel and network, and the proxy's own work.
const HOP: u64 = 50 * US;
/// From the head to the end of the body.
const BODY: u64 = 20 * US;

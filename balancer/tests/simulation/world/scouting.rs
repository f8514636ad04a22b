//! Scouts in simulated time, as the proxy sends them: before a request, beside it, and again while there is no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_balancer::{Endpoint, NoEndpoint, Pool, Report, Served, Ticket, Visit, Wish};
use evenkeel_config::policy::{Balance, ScoutMode};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Event, HOP, World};
use crate::backend::MS;

/// What the client and the hosts know of scouts.
pub struct Scouting {
    /// The applications answer on scout ports; else their hosts judge by progress.
    pub ports: bool,
    /// Of a thousand datagrams so many are lost.
    pub lossy: u32,
    /// Scouts sent.
    pub sent: u64,
    pool: Pool,
    rng: SmallRng,
    served: Vec<Arc<Served>>,
    scouts: BTreeMap<u64, Scout>,
    again: BTreeSet<u64>,
    /// Other clients' requests, by when they end.
    others: BTreeMap<(u64, u64), Visit>,
}

struct Scout {
    backend: usize,
    endpoint: Arc<Endpoint>,
    at: Instant,
    place: Option<(usize, usize)>,
    report: Option<Report>,
    /// The request that waits for it, and whom else it has asked.
    request: Option<(u64, Ticket, Vec<u64>)>,
    again: u32,
    answered: bool,
}

/// What happens to a scout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Arrives,
    Comes,
    TimesOut,
    Again,
}

impl Scouting {
    pub fn new(start: Instant, backends: usize) -> Scouting {
        Scouting {
            ports: true,
            lossy: 0,
            sent: 0,
            pool: Pool::default(),
            rng: SmallRng::seed_from_u64(0),
            served: (0..backends).map(|_| Arc::new(Served::new(start))).collect(),
            scouts: BTreeMap::new(),
            again: BTreeSet::new(),
            others: BTreeMap::new(),
        }
    }

    pub fn visit(&self, backend: usize, now: Instant) -> Visit {
        self.served[backend].begin(now)
    }
}

impl World {
    /// Another client's request, which its host counts until it ends.
    pub(super) fn count_other(&mut self, backend: usize, ends: u64) {
        if self.load.policy.scouting() != ScoutMode::Off {
            let visit = self.scouting.visit(backend, self.instant());
            let number = self.scouting.others.len() as u64 + (self.now << 16);
            self.scouting.others.insert((ends, number), visit);
        }
    }

    fn end_others(&mut self) {
        while let Some(first) = self.scouting.others.first_entry() {
            let (at, _) = *first.key();
            if at > self.now {
                return;
            }
            first.remove().head(self.start + Duration::from_nanos(at));
        }
    }

    /// Scouts in another world than the usual one, where all answer on ports and nothing is lost.
    pub fn scouting(mut self, ports: bool, lossy: u32) -> World {
        (self.scouting.ports, self.scouting.lossy) = (ports, lossy);
        self
    }

    pub(super) fn scout_first(&mut self, id: u64) {
        let policy = self.load.policy.clone();
        let each = policy.scouting() == ScoutMode::BeforeEach;
        let pooled = policy.balance == Balance::Scout;
        let most = if each && !pooled { 1 } else { usize::MAX };
        let due = self.scouting.pool.scouts_due(self.instant(), most, 1.0);
        let mut chosen = Vec::new();
        self.balancer.scout_some(
            &mut self.rng,
            &policy,
            &Wish::FIRST,
            due,
            |index, endpoint, of| {
                chosen.push((Arc::clone(endpoint), pooled.then_some((index, of))));
            },
        );
        for (endpoint, place) in chosen {
            self.send_scout(endpoint, place, None, 0);
        }
        if each {
            return self.ask_first(id, Vec::new());
        }
        let ticket = self.pick_first(&[]);
        self.send_first(id, ticket);
    }

    fn pick_first(&mut self, asked: &[u64]) -> Result<Ticket, NoEndpoint> {
        let (now, policy) = (self.instant(), &self.load.policy);
        let wish = Wish { tried: asked, ..Wish::FIRST };
        if policy.balance == Balance::Scout {
            let pool = &mut self.scouting.pool;
            self.balancer.pick_scouted(now, &mut self.rng, policy, &wish, pool)
        } else {
            self.balancer.pick(now, &mut self.rng, policy, &wish)
        }
    }

    fn ask_first(&mut self, id: u64, asked: Vec<u64>) {
        let mut ticket = match self.pick_first(&asked) {
            Ok(ticket) => ticket,
            Err(none) => return self.send_first(id, Err(none)),
        };
        let (now, endpoint) = (self.instant(), Arc::clone(ticket.endpoint()));
        let last = asked.len() + 1 >= HOPS_MAX.min(self.backends.len())
            || asked.contains(&endpoint.serial());
        let known = endpoint.welcomed_within(now, Duration::from_millis(1));
        if last || known || !endpoint.answers_scouts(now) {
            if !known && !last {
                self.send_scout(endpoint, None, None, 0);
            }
            ticket.sent(now);
            return self.send_first(id, Ok(ticket));
        }
        self.send_scout(endpoint, None, Some((id, ticket, asked)), 0);
    }

    fn send_scout(
        &mut self,
        endpoint: Arc<Endpoint>,
        place: Option<(usize, usize)>,
        request: Option<(u64, Ticket, Vec<u64>)>,
        again: u32,
    ) {
        let (number, at) = (self.scouting.sent, self.instant());
        self.scouting.sent += 1;
        let backend = usize::from(endpoint.spec().address.port()) - 1_000;
        let scout =
            Scout { backend, endpoint, at, place, report: None, request, again, answered: false };
        self.scouting.scouts.insert(number, scout);
        let lossy = self.scouting.lossy;
        if self.scouting.rng.random_range(0..1_000) >= lossy {
            self.schedule(self.now + HOP, Event::Scout(number, Step::Arrives));
        }
        let timeout = self.load.policy.scout.timeout.as_nanos() as u64;
        self.schedule(self.now + timeout, Event::Scout(number, Step::TimesOut));
    }

    pub(super) fn scout(&mut self, number: u64, step: Step) {
        let now = self.instant();
        self.end_others();
        let Some(scout) = self.scouting.scouts.get_mut(&number) else { return };
        match step {
            Step::Arrives => {
                let report = self.scouting.served[scout.backend].report(now, None);
                let ports = self.scouting.ports;
                scout.report = Some(match ports {
                    true => Report { alive: true, stalled: None, ..report },
                    false => report,
                });
                let host = if self.backends[scout.backend].is_down(self.now) {
                    None
                } else {
                    Some(self.now)
                };
                let at = if ports { self.backends[scout.backend].answers(self.now) } else { host };
                let lost = self.scouting.rng.random_range(0..1_000) < self.scouting.lossy;
                if let Some(at) = at.filter(|_| !lost) {
                    self.schedule(at + HOP, Event::Scout(number, Step::Comes));
                }
            }
            Step::Comes => {
                scout.answered = true;
                let report = scout.report.take().expect("it was made when the scout arrived");
                scout.endpoint.scout_answered(now, scout.at, &report);
                let (request, serial) = (scout.request.take(), scout.endpoint.serial());
                if let Some((index, of)) = scout.place {
                    let Scouting { pool, rng, .. } = &mut self.scouting;
                    pool.add(now, rng, (index, serial), of, &report);
                }
                if let Some((id, mut ticket, asked)) = request {
                    if !self.requests.contains_key(&id) {
                        return;
                    }
                    if report.welcomes() {
                        ticket.sent(now);
                        self.send_first(id, Ok(ticket));
                    } else {
                        self.next(id, ticket, asked);
                    }
                }
            }
            Step::TimesOut if scout.answered => {}
            Step::TimesOut => {
                scout.endpoint.scout_lost(now, scout.at);
                let (endpoint, request) = (Arc::clone(&scout.endpoint), scout.request.take());
                if endpoint.seems_silent(now) && self.scouting.again.insert(endpoint.serial()) {
                    scout.again = AGAIN_MAX;
                    self.schedule(self.now + AGAIN_EVERY, Event::Scout(number, Step::Again));
                }
                if let Some((id, ticket, asked)) =
                    request.filter(|(id, ..)| self.requests.contains_key(id))
                {
                    self.next(id, ticket, asked);
                }
            }
            Step::Again => {
                let (endpoint, left) = (Arc::clone(&scout.endpoint), scout.again);
                if left == 0 || !endpoint.seems_silent(now) {
                    self.scouting.again.remove(&endpoint.serial());
                    return;
                }
                scout.again -= 1;
                self.send_scout(endpoint, None, None, 0);
                self.schedule(self.now + AGAIN_EVERY, Event::Scout(number, Step::Again));
            }
        }
    }

    fn next(&mut self, id: u64, mut ticket: Ticket, mut asked: Vec<u64>) {
        asked.push(ticket.endpoint().serial());
        ticket.no_sample();
        drop(ticket);
        self.ask_first(id, asked);
    }
}

const HOPS_MAX: usize = 4;
const AGAIN_EVERY: u64 = 10 * MS;
const AGAIN_MAX: u32 = 500;

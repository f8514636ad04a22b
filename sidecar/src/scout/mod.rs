//! Scouts' shell: asks the hosts of endpoints how they are, and answers the scouts of others.
//!
//! | file | what |
//! | --- | --- |
//! | this | what a request does with scouts, by its policy's mode |
//! | `asker` | a worker's socket, what it has asked and not been answered, and until when |
//! | `receiver` | the thread `ek-scout` that answers for this host's instances |
//! | `application` | asking an application itself, by its scout port or path |
//!
//! **`before_each`** (LinkedIn's GC scouts): the chosen endpoint is asked, and gets the request when it has answered; without an answer in time, or when the
//! answer speaks against it, the next is chosen, up to [`HOPS_MAX`], and **the last is tried whatever its scout says**: what is lost may be lost
//! near us. An answer no older than [`KNOWN_FOR`] is used again. Beside the chosen one another is asked at random and not waited for, so that most
//! pauses are known before a request meets them. An endpoint that has never answered a scout is asked, and not waited for.
//!
//! **`pool`** (Prequal): a few are asked beside each request, and none is waited for. A static endpoint says only that it lives, so no pool is kept of
//! those, and `balance: scout` is two choices among who is not silent.
//!
//! Only first attempts wait. A retry has waited already, and a copy is sent because somebody is late: both go by what is known by then,
//! which the scouts of all other requests have kept fresh.

mod application;
mod asker;
mod receiver;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evenkeel_balancer::{Endpoint, NoEndpoint, Pool, Served, Ticket, Visit, Wish};
use evenkeel_config::policy::{Balance, Policy, ScoutMode};
use smallvec::SmallVec;

use crate::metrics::Chosen;
use crate::route::Upstream;
use crate::worker::Worker;

pub use asker::{Asker, Identity};
pub use receiver::{Receiver, bind, spawn};

/// An instance of this host, as others' scouts see it. Counts nothing before the first scout asks for it.
#[derive(Debug)]
pub struct Watched {
    asked: AtomicBool,
    served: Arc<Served>,
}

impl Watched {
    /// Not asked for yet; moments are counted from `epoch`.
    pub fn new(epoch: Instant) -> Watched {
        Watched { asked: AtomicBool::new(false), served: Arc::new(Served::new(epoch)) }
    }

    /// A request of another host goes to it: to be counted, if anybody asks.
    pub fn visit(&self, now: Instant) -> Option<Visit> {
        self.asked.load(Ordering::Relaxed).then(|| self.served.begin(now))
    }

    /// This process itself stood still.
    pub fn own_pause(&self, now: Instant) {
        self.served.own_pause(now);
    }
}

/// Chooses the endpoint of a request's first attempt, where the policy asks for scouts.
///
/// # Errors
/// There is none to choose.
pub async fn first(
    worker: &Rc<Worker>,
    upstream: &Upstream,
    policy: &Policy,
    wish: Wish<'_>,
) -> Result<Ticket, NoEndpoint> {
    let pick = |wish: &Wish<'_>, asker: Option<&Rc<Asker>>| {
        let (now, mut rng) = (Instant::now(), worker.rng.borrow_mut());
        let pool = asker.filter(|_| policy.balance == Balance::Scout);
        match pool {
            Some(asker) => asker.with_pool(&upstream.name, |pool| {
                upstream.balancer().pick_scouted(now, &mut *rng, policy, wish, pool)
            }),
            None => upstream.balancer().pick(now, &mut *rng, policy, wish),
        }
    };
    let Some(asker) = worker.asker() else { return pick(&wish, None) };
    let each = policy.scouting() == ScoutMode::BeforeEach;
    let most = if each && policy.balance != Balance::Scout { BESIDE } else { usize::MAX };
    asker.ask_some(worker, upstream, policy, &wish, most);
    let metrics = upstream.metrics().of(worker.id);
    if !each {
        let ticket = pick(&wish, Some(asker))?;
        let age = asker.with_pool(&upstream.name, Pool::age_of_choice);
        metrics.chosen(
            if age.is_some() { Chosen::Pool } else { Chosen::Unscouted },
            age.unwrap_or_default(),
        );
        return Ok(ticket);
    }
    let mut asked: SmallVec<[u64; HOPS_MAX]> = wish.tried.into();
    loop {
        let mut held = Held(Some(pick(&Wish { tried: &asked, ..wish }, Some(asker))?));
        let now = Instant::now();
        let endpoint = held.endpoint();
        let last = asked.len() + 1 >= HOPS_MAX.min(upstream.balancer().endpoints().len())
            || asked.contains(&endpoint.serial());
        let fresh = endpoint.welcomed_within(now, KNOWN_FOR);
        if last && !asked.is_empty() || fresh {
            let age = endpoint.last_report(now).filter(|_| fresh).map(|(_, age)| age);
            let why = if fresh { Chosen::Known } else { Chosen::Last };
            metrics.chosen(why, age.unwrap_or_default());
            return Ok(held.sent(now));
        }
        let waits = endpoint.answers_scouts(now) && !last;
        let answer = asker.ask(worker, upstream, endpoint, policy.scout.timeout, waits);
        let Some(answer) = answer.filter(|_| waits) else {
            metrics.chosen(Chosen::Unscouted, Duration::ZERO);
            return Ok(held.sent(now));
        };
        if answer.await.is_some_and(|report| report.welcomes()) {
            metrics.chosen(Chosen::Answered, Duration::ZERO);
            return Ok(held.sent(Instant::now()));
        }
        asked.push(held.endpoint().serial());
    }
}

/// A ticket whose endpoint is being asked. Nothing was sent there, so dropping it says nothing about it.
struct Held(Option<Ticket>);

impl Held {
    fn endpoint(&self) -> &Arc<Endpoint> {
        self.0.as_ref().expect("taken only at the end").endpoint()
    }

    /// The request goes out.
    fn sent(&mut self, now: Instant) -> Ticket {
        let mut ticket = self.0.take().expect("taken only at the end");
        ticket.sent(now);
        ticket
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(ticket) = &mut self.0 {
            ticket.no_sample();
        }
    }
}

/// An answer is used again for so long.
const KNOWN_FOR: Duration = Duration::from_millis(1);
/// Endpoints that a request may be held up by, the last of which gets it.
const HOPS_MAX: usize = 4;
/// Others that are asked beside the chosen one, and not waited for.
const BESIDE: usize = 1;

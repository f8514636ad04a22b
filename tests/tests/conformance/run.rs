//! One row over one way: what its backend shall do and what it has seen.
//!
//! Rows share the hosts and the backends and run side by side. A request carries its run's number in `x-row` (and,
//! where nothing but the request line is left of it, in its path), by which the backend finds the run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::conformance::message::Message;
use crate::conformance::row::Reply;
use crate::conformance::script::{Names, Step};

/// One row over one way, with a caller of one version.
pub struct Run {
    /// What stands for the placeholders of its scripts.
    pub names: Names,
    reply: Reply,
    arrivals: Mutex<Vec<Arrival>>,
    heard: AtomicUsize,
    caller_done: AtomicBool,
}

/// A request that has reached a backend; it grows while it comes in.
pub type Arrival = Arc<Mutex<Message>>;

impl Run {
    /// A run that nobody has seen yet.
    pub fn new(names: Names, reply: Reply) -> Run {
        let (heard, caller_done) = (AtomicUsize::new(0), AtomicBool::new(false));
        Run { names, reply, arrivals: Mutex::default(), heard, caller_done }
    }

    /// Notes that the head of a request has reached a backend.
    pub fn arrived(&self, head: Message) -> Arrival {
        let arrival = Arc::new(Mutex::new(head));
        self.arrivals.lock().expect("nobody panics with it").push(Arc::clone(&arrival));
        arrival
    }

    /// What has reached a backend so far.
    pub fn arrivals(&self) -> Vec<Message> {
        let arrivals = self.arrivals.lock().expect("nobody panics with it");
        arrivals
            .iter()
            .map(|arrival| arrival.lock().expect("nobody panics with it").clone())
            .collect()
    }

    /// Notes that the caller has so many more bytes of content.
    pub fn heard(&self, bytes: usize) {
        self.heard.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the caller has done all that its script says.
    pub fn caller_is_done(&self) {
        self.caller_done.store(true, Ordering::Relaxed);
    }

    /// What a backend of HTTP/1.1 (or, when true, of HTTP/2) does with a request of this method.
    pub fn reply(&self, http2: bool, method: &str) -> Vec<Step> {
        self.names.fill_script(&self.reply.script(http2, method))
    }

    /// Waits as a step says; false when what it waits for did not come, or what came is broken.
    pub fn wait(&self, step: &Step, arrival: Option<&Arrival>) -> bool {
        let first = || self.arrivals().into_iter().next();
        let seen = || match arrival {
            Some(arrival) => Some(arrival.lock().expect("nobody panics with it").clone()),
            None => first(),
        };
        match step {
            Step::AwaitArrivals(count) => within(STEP_MAX, || {
                self.arrivals.lock().expect("nobody panics with it").len() >= *count
            }),
            Step::AwaitCaller => within(STEP_MAX, || self.caller_done.load(Ordering::Relaxed)),
            Step::AwaitBody(length) => {
                within(STEP_MAX, || seen().is_some_and(|message| message.body.len() >= *length))
            }
            Step::AwaitRequest => {
                within(STEP_MAX, || seen().is_some_and(|message| message.end.is_some()))
                    && seen().is_some_and(|message| message.is_complete())
            }
            Step::AwaitHeard(length) => {
                within(STEP_MAX, || self.heard.load(Ordering::Relaxed) >= *length)
            }
            _ => true,
        }
    }
}

/// All runs of a stage, for its backends.
#[derive(Default)]
pub struct Runs {
    by_row: Mutex<HashMap<u32, Arc<Run>>>,
    strays: Mutex<Vec<String>>,
}

impl Runs {
    /// Adds one.
    pub fn add(&self, run: Arc<Run>) {
        self.by_row.lock().expect("nobody panics with it").insert(run.names.row, run);
    }

    /// The run that a request belongs to.
    pub fn find(&self, head: &Message) -> Option<Arc<Run>> {
        let by_field = head.values("x-row").first().and_then(|row| row.parse().ok());
        let by_target = head
            .target
            .split_once("/row-")
            .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        let row: u32 = by_field.or(by_target)?;
        self.by_row.lock().expect("nobody panics with it").get(&row).cloned()
    }

    /// Notes that a backend was sent something that is no request of a run.
    pub fn stray(&self, what: String) {
        self.strays.lock().expect("nobody panics with it").push(what);
    }

    /// What backends were sent that is no request of a run.
    pub fn strays(&self) -> Vec<String> {
        self.strays.lock().expect("nobody panics with it").clone()
    }
}

/// Whether something became true in time.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// The longest that one step waits: a row that fails here says what it saw instead.
pub const STEP_MAX: Duration = Duration::from_secs(3);

const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

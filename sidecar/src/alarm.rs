//! When a request must be looked at again: the next copy, or the deadline.
//!
//! Nearly every request arms such a time and nearly every one ends before it comes. tokio's timers take a lock to
//! be armed and one to be forgotten, and write to an eventfd whenever one is armed before all others, which
//! at a hedge delay of a millisecond is every few requests. So a worker keeps its own: a ring of slots one
//! [`TICK`] wide, an entry is a waker in a slab, arming and forgetting are a push and a removal. One task
//! ([`run`]) sleeps until the next slot that is not empty.
//!
//! Times are rounded up to a tick. What lies beyond the ring is woken at its end and arms itself again: the
//! woken request looks at its clock in any case.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The times that a worker's requests wait for.
#[derive(Debug)]
pub struct Alarms {
    epoch: Instant,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<usize>>,
    ring: RefCell<Vec<Vec<(usize, u64)>>>,
    /// Everything before this tick has been woken.
    swept: Cell<u64>,
    /// The tick that [`run`] sleeps until.
    next: Cell<u64>,
    armed: Cell<usize>,
    sooner: Notify,
}

#[derive(Debug)]
struct Entry {
    /// Set apart from those that had its place before.
    generation: u64,
    waker: Option<Waker>,
}

impl Alarms {
    /// None armed.
    pub fn new(epoch: Instant) -> Alarms {
        Alarms {
            epoch,
            entries: RefCell::default(),
            free: RefCell::default(),
            ring: RefCell::new(vec![Vec::new(); SLOTS]),
            swept: Cell::new(0),
            next: Cell::new(u64::MAX),
            armed: Cell::new(0),
            sooner: Notify::new(),
        }
    }

    fn tick_of(&self, at: Instant) -> u64 {
        let ticks = at.saturating_duration_since(self.epoch).as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    fn arm(&self, at: Instant, waker: Waker) -> (usize, u64) {
        if self.armed.get() == 0 {
            // Nobody swept while nothing was armed.
            let elapsed = Instant::now().saturating_duration_since(self.epoch).as_millis();
            let passed = u64::try_from(elapsed).unwrap_or(u64::MAX) / TICK_MS;
            self.swept.set(self.swept.get().max(passed));
        }
        let first = self.swept.get();
        let tick = self.tick_of(at).clamp(first, first + SLOTS as u64 - 1);
        let mut entries = self.entries.borrow_mut();
        let id = self.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(Entry { generation: 0, waker: None });
            entries.len() - 1
        });
        let entry = &mut entries[id];
        entry.waker = Some(waker);
        let key = (id, entry.generation);
        self.ring.borrow_mut()[slot(tick)].push(key);
        self.armed.set(self.armed.get() + 1);
        if tick < self.next.get() {
            self.next.set(tick);
            self.sooner.notify_one();
        }
        key
    }

    fn forget(&self, (id, generation): (usize, u64)) -> Option<Waker> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(id).filter(|entry| entry.generation == generation)?;
        entry.generation += 1;
        self.free.borrow_mut().push(id);
        self.armed.set(self.armed.get() - 1);
        entry.waker.take()
    }

    /// Wakes everything up to `now`; returns the next slot with something in it.
    fn sweep(&self, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.epoch).as_millis();
        let until = u64::try_from(elapsed).unwrap_or(u64::MAX) / TICK_MS + 1;
        let from = self.swept.get();
        for tick in from..until.min(from + SLOTS as u64) {
            let mut due = std::mem::take(&mut self.ring.borrow_mut()[slot(tick)]);
            for key in due.drain(..) {
                if let Some(waker) = self.forget(key) {
                    waker.wake();
                }
            }
            // Its room is used again.
            let emptied = &mut self.ring.borrow_mut()[slot(tick)];
            if emptied.is_empty() {
                *emptied = due;
            }
        }
        self.swept.set(until.max(from));
        if self.armed.get() == 0 {
            // Only what was forgotten is left in the ring.
            self.ring.borrow_mut().iter_mut().for_each(Vec::clear);
            return None;
        }
        let ring = self.ring.borrow();
        (until..until + SLOTS as u64).find(|tick| !ring[slot(*tick)].is_empty())
    }
}

/// Wakes requests whose time has come, for as long as the worker runs.
pub async fn run(alarms: Rc<Alarms>) {
    loop {
        let next = alarms.sweep(Instant::now());
        alarms.next.set(next.unwrap_or(u64::MAX));
        let sooner = alarms.sooner.notified();
        match next {
            None => sooner.await,
            Some(tick) => {
                let due = alarms.epoch + Duration::from_millis(tick.saturating_mul(TICK_MS));
                tokio::select! {
                    () = sooner => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                }
            }
        }
    }
}

/// One request's next time.
#[derive(Debug)]
pub struct Alarm<'a> {
    alarms: &'a Alarms,
    at: Instant,
    key: Option<(usize, u64)>,
}

impl<'a> Alarm<'a> {
    /// Rings at `at`.
    pub fn new(alarms: &'a Alarms, at: Instant) -> Alarm<'a> {
        Alarm { alarms, at, key: None }
    }

    /// Rings at another time instead.
    pub fn set(&mut self, at: Instant) {
        if at != self.at || self.key.is_none() {
            self.at = at;
            self.disarm();
        }
    }

    /// Ready when it has rung, at or (beyond the ring) before its time: the caller looks at its clock.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        match self.key {
            None => {
                self.key = Some(self.alarms.arm(self.at, cx.waker().clone()));
                Poll::Pending
            }
            Some((id, generation)) => {
                let rung = self.alarms.entries.borrow()[id].generation != generation;
                if rung {
                    self.key = None;
                    return Poll::Ready(());
                }
                Poll::Pending
            }
        }
    }

    fn disarm(&mut self) {
        if let Some(key) = self.key.take() {
            drop(self.alarms.forget(key));
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.disarm();
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

const TICK_MS: u64 = 1;
const TICK: Duration = Duration::from_millis(TICK_MS);
/// The ring is this many ticks long.
const SLOTS: usize = 256;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn rings(alarms: &Alarms, after: Duration) -> impl Future<Output = Duration> {
        let start = Instant::now();
        let mut alarm = Alarm::new(alarms, start + after);
        std::future::poll_fn(move |cx| {
            if start.elapsed() >= after {
                return Poll::Ready(start.elapsed());
            }
            if alarm.poll(cx).is_ready() && start.elapsed() < after {
                alarm.set(start + after);
                assert!(alarm.poll(cx).is_pending());
            }
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn times_within_and_beyond_the_ring_come_and_forgotten_ones_leave_nothing() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let alarms = Rc::new(Alarms::new(Instant::now()));
                tokio::task::spawn_local(run(Rc::clone(&alarms)));
                for ms in [0, 1, 3, 300, 600] {
                    let after = Duration::from_millis(ms);
                    let took = rings(&alarms, after).await;
                    assert!(
                        took >= after && took < after + Duration::from_secs(2),
                        "{ms}: {took:?}"
                    );
                }
                for _ in 0..10_000 {
                    let mut alarm = Alarm::new(&alarms, Instant::now() + Duration::from_secs(9));
                    let poll = std::future::poll_fn(|cx| Poll::Ready(alarm.poll(cx)));
                    assert!(pin!(poll).await.is_pending());
                }
                assert_eq!(alarms.armed.get(), 0);
                assert!(alarms.entries.borrow().len() < 10, "places are used again");
            })
            .await;
    }

    #[test]
    fn an_alarm_that_was_forgotten_does_not_wake_who_has_its_place() {
        let start = Instant::now();
        let alarms = Alarms::new(start);
        let first = alarms.arm(start + Duration::from_millis(2), Waker::noop().clone());
        assert!(alarms.forget(first).is_some());
        let second = alarms.arm(start + Duration::from_millis(50), Waker::noop().clone());
        assert_eq!(first.0, second.0, "the place is used again");
        alarms.sweep(start + Duration::from_millis(10));
        assert_eq!(alarms.armed.get(), 1, "the second still waits");
        alarms.sweep(start + Duration::from_millis(60));
        assert_eq!(alarms.armed.get(), 0);
        assert!(alarms.forget(second).is_none());
    }
}

//! When a request must be looked at again: the next copy, or the deadline.
//!
//! Nearly every request arms such a time and nearly every one ends before it comes. tokio's timers take a lock to be armed and one to
//! be forgotten, write to an eventfd whenever one is armed before all others, which at a hedge delay of a few milliseconds is most of
//! the time, and come a millisecond or two late. So a worker keeps its own: who waits, in the order of the times, and one [`Timer`].
//!
//! **The timer rings for nobody** when it was set for a request that has been answered. To a worker that is asleep that costs ten times as
//! much as setting it anew, and one with little to do sleeps between any two requests: so while fewer than [`FEW`] wait, the timer follows each
//! that is forgotten. With more, the worker is awake before it rings, and setting it for each would be a system call for each; and a ring further
//! away than [`SOON`] is rare: so then it is left.
//!
//! Times are rounded up to a [`TICK`], so that requests that came together are woken together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::timer::Timer;

/// The times that a worker's requests wait for.
#[derive(Debug)]
pub struct Alarms {
    epoch: Instant,
    timer: Timer,
    waiting: RefCell<BTreeMap<Key, Waker>>,
    armed: Cell<u64>,
    /// Everything before this tick has been woken.
    swept: Cell<u64>,
}

/// A tick, and a number of its own.
type Key = (u64, u64);

impl Alarms {
    /// None armed.
    ///
    /// # Errors
    /// No descriptor is left for the timer.
    pub fn new(epoch: Instant) -> io::Result<Alarms> {
        Ok(Alarms {
            epoch,
            timer: Timer::new()?,
            waiting: RefCell::default(),
            armed: Cell::new(0),
            swept: Cell::new(0),
        })
    }

    fn arm(&self, at: Instant, waker: Waker) -> Key {
        let tick = self.since(at).div_ceil(TICK_NANOS).max(self.swept.get());
        let key = (tick, self.armed.get());
        self.armed.set(key.1 + 1);
        self.waiting.borrow_mut().insert(key, waker);
        self.timer.ring_at(self.begins(tick));
        key
    }

    fn forget(&self, key: Key) {
        let mut waiting = self.waiting.borrow_mut();
        let waker = waiting.remove(&key);
        if waiting.len() < FEW && self.timer.rings_before(Instant::now() + SOON) {
            self.timer.set(self.next(&waiting));
        }
        drop((waiting, waker));
    }

    /// Wakes everything up to `now`.
    fn sweep(&self, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        self.swept.set(self.swept.get().max(self.since(now) / TICK_NANOS + 1));
        while let Some(due) = waiting.first_entry().filter(|first| self.has_rung(*first.key())) {
            due.remove().wake();
        }
        self.timer.set(self.next(&waiting));
    }

    /// Wakes all that wait, before their time: something happened that they look at whenever they are awake.
    pub fn wake_all(&self) {
        self.waiting.borrow().values().for_each(Waker::wake_by_ref);
    }

    fn has_rung(&self, (tick, _): Key) -> bool {
        tick < self.swept.get()
    }

    fn next(&self, waiting: &BTreeMap<Key, Waker>) -> Option<Instant> {
        waiting.first_key_value().map(|((tick, _), _)| self.begins(*tick))
    }

    fn since(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    fn begins(&self, tick: u64) -> Instant {
        self.epoch + Duration::from_nanos(tick.saturating_mul(TICK_NANOS))
    }
}

/// Wakes requests whose time has come, for as long as the worker runs.
pub async fn run(alarms: Rc<Alarms>) {
    loop {
        alarms.timer.rings().await;
        // What has arrived goes first: when this process was late, nobody else must look it.
        tokio::task::yield_now().await;
        alarms.sweep(Instant::now());
    }
}

/// One request's next time.
#[derive(Debug)]
pub struct Alarm<'a> {
    alarms: &'a Alarms,
    at: Instant,
    key: Option<Key>,
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

    /// Ready when it has rung.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let key = *self.key.get_or_insert_with(|| self.alarms.arm(self.at, cx.waker().clone()));
        if self.alarms.has_rung(key) {
            self.key = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn disarm(&mut self) {
        if let Some(key) = self.key.take() {
            self.alarms.forget(key);
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Copies are worth less the later they go.
const TICK: Duration = Duration::from_micros(250);
const TICK_NANOS: u64 = TICK.as_nanos() as u64;
/// As many wait when a worker has enough to do.
const FEW: usize = 16;
/// Twenty rings a second cost nothing.
const SOON: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    async fn local(test: impl AsyncFnOnce(Rc<Alarms>)) {
        let alarms = Rc::new(Alarms::new(Instant::now()).unwrap());
        tokio::task::LocalSet::new()
            .run_until(async {
                tokio::task::spawn_local(run(Rc::clone(&alarms)));
                test(Rc::clone(&alarms)).await;
            })
            .await;
    }

    async fn rings(alarms: &Alarms, after: Duration) -> Duration {
        let start = Instant::now();
        let mut alarm = Alarm::new(alarms, start + after);
        std::future::poll_fn(|cx| alarm.poll(cx)).await;
        start.elapsed()
    }

    async fn arms(alarm: &mut Alarm<'_>) {
        let poll = std::future::poll_fn(|cx| Poll::Ready(alarm.poll(cx)));
        assert!(pin!(poll).await.is_pending());
    }

    #[tokio::test]
    async fn it_rings_when_its_time_has_come() {
        local(async |alarms| {
            for micros in [0, 100, 1_000, 3_100, 300_000] {
                let after = Duration::from_micros(micros);
                let took = rings(&alarms, after).await;
                assert!(took >= after && took < after + Duration::from_secs(2), "{took:?}");
            }
            let all = [9, 2, 5, 5].map(|ms| {
                let alarms = Rc::clone(&alarms);
                tokio::task::spawn_local(async move {
                    rings(&alarms, Duration::from_millis(ms)).await >= Duration::from_millis(ms)
                })
            });
            for one in all {
                assert!(one.await.unwrap(), "none rings early");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn it_can_be_set_anew_before_and_after_it_has_rung() {
        local(async |alarms| {
            let (start, ms) = (Instant::now(), Duration::from_millis(1));
            let mut alarm = Alarm::new(&alarms, start + 60_000 * ms);
            arms(&mut alarm).await;
            for after in [20 * ms, 30 * ms] {
                alarm.set(start + after);
                arms(&mut alarm).await;
                std::future::poll_fn(|cx| alarm.poll(cx)).await;
                assert!(start.elapsed() >= after);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn the_forgotten_leave_nothing_and_the_timer_follows_who_is_left() {
        let alarms = Alarms::new(Instant::now()).unwrap();
        let at = |ms| alarms.epoch + Duration::from_millis(ms);
        let armed = async |ms: std::ops::Range<u64>| {
            let mut all: Vec<_> = ms.map(|ms| Alarm::new(&alarms, at(ms))).collect();
            for alarm in &mut all {
                arms(alarm).await;
            }
            all
        };
        let mut few = armed(10_000..10_004).await;
        assert_eq!(alarms.timer.set_to(), Some(at(10_000)));
        drop(few.remove(0));
        assert_eq!(alarms.timer.set_to(), Some(at(10_000)), "far away");
        // Past, however slow this machine is: and so within reach.
        let mut near = armed(0..3).await;
        drop(near.remove(1));
        assert_eq!(alarms.timer.set_to(), Some(at(0)), "another was the first");
        drop(near.remove(0));
        assert_eq!(alarms.timer.set_to(), Some(at(2)));
        drop(near);
        assert_eq!(alarms.timer.set_to(), Some(at(10_001)));
        let mut many = armed(0..2 * FEW as u64).await;
        drop(many.remove(0));
        assert_eq!(alarms.timer.set_to(), Some(at(0)), "it rings for nobody, once");
        alarms.sweep(at(0));
        assert_eq!(alarms.timer.set_to(), Some(at(1)));
        drop((few, many));
        assert_eq!(alarms.timer.set_to(), None);
        assert!(alarms.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_woken_whoever_is_forgotten() {
        local(async |alarms| {
            for many in [3, 3 * FEW as u64] {
                let start = Instant::now();
                let at = |ms| start + Duration::from_millis(ms);
                let mut all: Vec<_> = (5..5 + many).map(|ms| Alarm::new(&alarms, at(ms))).collect();
                for alarm in &mut all {
                    arms(alarm).await;
                }
                drop(all.remove(0));
                drop(all.remove(all.len() / 2));
                for alarm in &mut all {
                    std::future::poll_fn(|cx| alarm.poll(cx)).await;
                    assert!(Instant::now() >= alarm.at);
                }
            }
        })
        .await;
    }
}

//! A precise timer, for waits of a millisecond.
//!
//! tokio's timers tick once a millisecond, so a scout's `timeout: 1ms` would be one to two, and the difference
//! is the tail that scouts and copies are there to cut. The kernel's timer (timerfd) is precise to some ten microseconds, and one system call sets it.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The timer.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
    rings_at: Cell<Option<Instant>>,
}

impl Timer {
    /// Set to nothing.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Its successor is unsafe, for types that might change their descriptor: an `OwnedFd` never does.
        #[allow(deprecated)]
        let fd = AsyncFd::new(fd)?;
        Ok(Timer { fd, rings_at: Cell::new(None) })
    }

    /// Rings at `at`, unless it is set to ring sooner.
    pub fn ring_at(&self, at: Instant) {
        if self.rings_at.get().is_none_or(|set| at < set) {
            self.set(Some(at));
        }
    }

    /// Rings at this time, whatever it was set to; `None`: not at all.
    pub fn set(&self, at: Option<Instant>) {
        if self.rings_at.replace(at) == at {
            return;
        }
        let value = at.map_or_else(Timespec::default, |at| {
            // Zero would disarm it.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        let set = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once);
        debug_assert!(set.is_ok(), "a descriptor of ours and a time within bounds: {set:?}");
    }

    /// Whether it is set, and to before `at`.
    pub fn rings_before(&self, at: Instant) -> bool {
        self.rings_at.get().is_some_and(|set| set < at)
    }

    /// When it rings.
    #[cfg(test)]
    pub fn set_to(&self) -> Option<Instant> {
        self.rings_at.get()
    }

    /// Waits until it has rung; then it is set to nothing. It may ring for a time that it was set to before, so the caller looks at its clock.
    pub async fn rings(&self) {
        // The descriptor is watched for edges: each time that it rings is one, whether or not it was read.
        match self.fd.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is ending.
            Err(_) => std::future::pending().await,
        }
        self.rings_at.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_once_at_the_soonest_time_and_can_be_set_again() {
        let timer = Timer::new().unwrap();
        for ms in [3, 1, 0] {
            let start = Instant::now();
            timer.ring_at(start + Duration::from_secs(60));
            timer.ring_at(start + Duration::from_millis(ms));
            timer.ring_at(start + Duration::from_secs(30));
            timer.rings().await;
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(ms) && took < Duration::from_secs(5), "{took:?}");
        }
        let again = tokio::time::timeout(Duration::from_millis(20), timer.rings()).await;
        assert!(again.is_err(), "it was set to nothing");
        timer.ring_at(Instant::now() + Duration::from_millis(1));
        timer.set(None);
        let none = tokio::time::timeout(Duration::from_millis(20), timer.rings()).await;
        assert!(none.is_err(), "it was taken back");
        // It rang, the runtime has seen that, and nobody asked before it was set again.
        timer.ring_at(Instant::now());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let later = Instant::now() + Duration::from_millis(20);
        timer.set(Some(later));
        while Instant::now() < later {
            timer.rings().await;
        }
    }
}

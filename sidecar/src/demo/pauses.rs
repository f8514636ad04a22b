//! Stops each application 100 ms about once a second at random: what garbage collection, a throttled
//! processor or a noisy neighbour does to a service.
//!
//! One thread, with its own seeded generator for each application, so that a run can be repeated. It
//! signals processes by id: the guards of the processes outlive this thread (it is joined when its guard
//! is dropped), so an id is never another process's. Whatever ends the thread, every application runs
//! again afterwards.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};

/// Pauses going on; dropping it lets every application run again.
pub struct Pauses {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pauses {
    /// Starts to stop the processes with these ids for `length` each time.
    pub fn start(pids: Vec<Pid>, length: Duration, seed: u64) -> std::io::Result<Pauses> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("pauses".into()).spawn(move || {
            let mut schedule = Schedule::new(pids.len(), length, seed, Instant::now());
            loop {
                let event = schedule.next_event();
                let wait = event.at.saturating_duration_since(Instant::now());
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
                let signal = if event.stop { Signal::STOP } else { Signal::CONT };
                // Fails only for a process that is gone, which needs no pause.
                let _ = kill_process(pids[event.index], signal);
            }
            for pid in pids {
                let _ = kill_process(pid, Signal::CONT);
            }
        })?;
        Ok(Pauses { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has nothing left to undo here.
            let _ = thread.join();
        }
    }
}

/// When which application is stopped and runs again.
struct Schedule {
    applications: Vec<Upcoming>,
    length: Duration,
}

struct Upcoming {
    at: Instant,
    stop: bool,
    random: SmallRng,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    at: Instant,
    index: usize,
    stop: bool,
}

impl Schedule {
    fn new(count: usize, length: Duration, seed: u64, now: Instant) -> Schedule {
        let applications = (0..count as u64)
            .map(|index| {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(index));
                let first = now + PERIOD.mul_f64(random.random_range(0.0..1.0));
                Upcoming { at: first, stop: true, random }
            })
            .collect();
        Schedule { applications, length }
    }

    /// The earliest event. The gap between the end of a pause and the next one is uniform, 0.4 to 1.6 of
    /// what makes the mean period one second.
    fn next_event(&mut self) -> Event {
        let (index, upcoming) = self
            .applications
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, upcoming)| upcoming.at)
            .expect("there is at least one application");
        let event = Event { at: upcoming.at, index, stop: upcoming.stop };
        upcoming.at += if event.stop {
            self.length
        } else {
            PERIOD.saturating_sub(self.length).mul_f64(upcoming.random.random_range(0.4..1.6))
        };
        upcoming.stop = !event.stop;
        event
    }
}

/// From the start of one pause to the start of the next, on average.
const PERIOD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_application_is_stopped_about_once_a_second_for_the_given_time() {
        let start = Instant::now();
        let length = Duration::from_millis(100);
        let mut schedule = Schedule::new(6, length, 1, start);
        let mut stopped_at = [None; 6];
        let mut pauses = [0u32; 6];
        let mut last = start;
        loop {
            let event = schedule.next_event();
            assert!(event.at >= last, "events come in order");
            last = event.at;
            if last > start + Duration::from_secs(100) {
                break;
            }
            if event.stop {
                assert_eq!(stopped_at[event.index].replace(event.at), None);
                pauses[event.index] += 1;
            } else {
                let since = stopped_at[event.index].take().expect("it was stopped before");
                assert_eq!(event.at - since, length);
            }
        }
        for count in pauses {
            assert!((85..=115).contains(&count), "{count} pauses in 100 s");
        }
    }

    #[test]
    fn one_seed_gives_one_schedule() {
        let start = Instant::now();
        let events = |seed| {
            let mut schedule = Schedule::new(3, Duration::from_millis(100), seed, start);
            (0..50)
                .map(|_| schedule.next_event())
                .map(|event| (event.at, event.index))
                .collect::<Vec<_>>()
        };
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }
}

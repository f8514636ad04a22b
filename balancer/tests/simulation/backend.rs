//! An application process in simulated time: it queues, serves, pauses, slows down, errs and dies.

use rand::{Rng, RngExt};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000_000_000;

/// How long a request takes to serve, apart from queueing.
#[derive(Debug, Clone, Copy)]
pub enum Service {
    /// Always the same, give or take a tenth.
    Steady(u64),
    /// Exponential with this mean.
    Exponential(u64),
}

impl Service {
    pub fn sample(self, rng: &mut impl Rng) -> u64 {
        match self {
            Service::Steady(ns) => (ns as f64 * rng.random_range(0.9..1.1)) as u64,
            Service::Exponential(mean) => exponential(rng, mean),
        }
    }
}

/// What a request finds at a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A head at that moment.
    Head(u64),
    /// A 5xx at that moment.
    Error(u64),
    /// Nobody listens.
    Refused,
}

/// One application process with `threads` that serve in the order of arrival.
#[derive(Debug, Clone)]
pub struct Backend {
    free_at: Vec<u64>,
    /// From, to; in order, apart.
    pauses: Vec<(u64, u64)>,
    /// From, to, times slower.
    pub slow: Vec<(u64, u64, f64)>,
    /// Share of requests that get a fast error, from, to.
    pub errs: Vec<(u64, u64, f64)>,
    /// From, to: nobody listens.
    pub down: Vec<(u64, u64)>,
    /// Requests that reached it, cancelled ones included.
    pub served: u64,
}

impl Backend {
    pub fn new(threads: usize) -> Backend {
        Backend {
            free_at: vec![0; threads],
            pauses: Vec::new(),
            slow: Vec::new(),
            errs: Vec::new(),
            down: Vec::new(),
            served: 0,
        }
    }

    /// Pauses of `length`, the starts of one after the other `every` apart on average, until `end`.
    pub fn pause_at_random(&mut self, rng: &mut impl Rng, length: u64, every: u64, end: u64) {
        let mut at = exponential(rng, every - length);
        while at < end {
            self.pauses.push((at, at + length));
            at += length + exponential(rng, every - length);
        }
    }

    /// One more pause, after those before it.
    pub fn pause(&mut self, from: u64, to: u64) {
        assert!(self.pauses.last().is_none_or(|&(_, end)| end <= from));
        self.pauses.push((from, to));
    }

    pub fn is_awake_from(&self, at: u64) -> bool {
        self.pauses.last().is_none_or(|&(_, end)| end <= at)
    }

    /// When a byte that arrives at `at` is answered by the process itself, or that nobody is there.
    pub fn answers(&self, at: u64) -> Option<u64> {
        let pause = self.pauses.iter().find(|(from, to)| (*from..*to).contains(&at));
        (!self.is_down(at)).then(|| pause.map_or(at, |(_, to)| *to))
    }

    pub fn is_down(&self, at: u64) -> bool {
        self.down.iter().any(|&(from, to)| (from..to).contains(&at))
    }

    pub fn serve(&mut self, rng: &mut impl Rng, at: u64, service: Service) -> Served {
        if self.is_down(at) {
            return Served::Refused;
        }
        self.served += 1;
        let factor = self
            .slow
            .iter()
            .filter(|(from, to, _)| (*from..*to).contains(&at))
            .map(|slow| slow.2)
            // Of several at once the worst: fifty times fifty times slower answers when everybody has gone home.
            .fold(1.0, f64::max);
        let work = (service.sample(rng) as f64 * factor) as u64;
        let errs = self
            .errs
            .iter()
            .filter(|(from, to, _)| (*from..*to).contains(&at))
            .map(|errs| errs.2)
            .sum::<f64>();
        if rng.random_bool(errs.min(1.0)) {
            return Served::Error(self.run(at, 50 * US));
        }
        let thread = (0..self.free_at.len())
            .min_by_key(|&thread| self.free_at[thread])
            .expect("it has threads");
        let finish = self.run(at.max(self.free_at[thread]), work);
        self.free_at[thread] = finish;
        Served::Head(finish)
    }

    /// When work begun at `from` is done, standing still during pauses.
    fn run(&self, from: u64, work: u64) -> u64 {
        let mut done = from + work;
        for &(start, end) in &self.pauses[self.pauses.partition_point(|&(_, end)| end <= from)..] {
            if start >= done {
                break;
            }
            done += end - start.max(from);
        }
        done
    }
}

pub fn exponential(rng: &mut impl Rng, mean: u64) -> u64 {
    (-(1.0 - rng.random::<f64>()).ln() * mean as f64) as u64
}

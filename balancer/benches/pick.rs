//! What a pick costs among 10, 100 and 1,000 endpoints: at most 150 ns, and about the same for all.
//!
//! Measured in CPU time of the thread, so that a busy machine does not blur it. `alone` is the choice, `to_its_end` the ticket's whole life with head and end. Every endpoint is warm (all have estimates). `pick_half_ejected` shows the price of drawing again.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use evenkeel_balancer::{Balancer, EndpointSpec, Hop, Verdict, Wish};
use evenkeel_config::policy::{Balance, Mode, Policy, Share};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::time::{ClockId, clock_gettime};

/// How long a head takes.
const HEAD: Duration = Duration::from_micros(500);

/// Picks measured at once: the clock itself takes longer than a pick.
const BATCH: u64 = 200;

fn balancer(start: Instant, count: u16) -> Balancer {
    let balancer = Balancer::new(start);
    let spec = |index: u16| {
        let address = ([127, 0, 0, 1], 1_000 + index).into();
        EndpointSpec {
            node: 0,
            instance: Arc::from(format!("b{index}")),
            address,
            dial: address,
            hop: Hop::Direct,
            protocol: None,
            weight: 1,
            zone: None,
            serving: true,
        }
    };
    balancer.update(start, (0..count).map(spec).collect(), None);
    balancer
}

/// Picks once and lets it succeed after `latency`.
fn succeed(
    balancer: &Balancer,
    now: Instant,
    rng: &mut SmallRng,
    policy: &Policy,
    latency: Duration,
) {
    let ticket = balancer.pick(now, rng, policy, &Wish::FIRST);
    let mut ticket = ticket.expect("all endpoints serve");
    ticket.head(now + latency, Verdict::Success);
}

fn picks(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    for balance in [Balance::P2c, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let mut policy = Policy { balance, ..Policy::default() };
        policy.hedge.mode = Mode::Off;
        let mut group = criterion.benchmark_group(format!("pick_{balance:?}").to_lowercase());
        for count in [10, 100, 1_000] {
            let balancer = balancer(start, count);
            let mut rng = SmallRng::seed_from_u64(1);
            let mut now = start;
            (0..20 * u32::from(count)).for_each(|_| {
                now += Duration::from_micros(50);
                succeed(&balancer, now, &mut rng, &policy, HEAD);
            });
            group.bench_function(BenchmarkId::new("alone", count), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    let mut left = iterations;
                    let mut tickets = Vec::with_capacity(BATCH as usize);
                    while left > 0 {
                        let batch = left.min(BATCH);
                        let started = CpuTime.start();
                        for _ in 0..batch {
                            now += Duration::from_micros(50);
                            let now = black_box(now);
                            tickets.push(balancer.pick(now, &mut rng, &policy, &Wish::FIRST));
                        }
                        spent += CpuTime.end(started);
                        for ticket in tickets.drain(..) {
                            ticket.expect("all serve").head(now + HEAD, Verdict::Success);
                        }
                        left -= batch;
                    }
                    spent
                });
            });
            group.bench_function(BenchmarkId::new("to_its_end", count), |bencher| {
                bencher.iter(|| {
                    now += Duration::from_micros(50);
                    succeed(&balancer, black_box(now), &mut rng, &policy, HEAD);
                });
            });
        }
        group.finish();
    }
}

fn picks_half_ejected(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let mut policy =
        Policy { balance: Balance::Random, panic: Share::percent(0), ..Policy::default() };
    policy.eject.base = Duration::from_secs(300);
    let mut group = criterion.benchmark_group("pick_half_ejected");
    for count in [10, 100, 1_000] {
        let balancer = balancer(start, count);
        let mut rng = SmallRng::seed_from_u64(1);
        // Half of the endpoints fail until they are out.
        let endpoints = balancer.endpoints();
        let bad: Vec<u64> = endpoints
            .iter()
            .take(usize::from(count) / 2)
            .map(|endpoint| endpoint.serial())
            .collect();
        while endpoints.iter().filter(|endpoint| endpoint.ejected(start)).count() < bad.len() {
            let ticket = balancer.pick(start, &mut rng, &policy, &Wish::FIRST);
            let mut ticket = ticket.expect("the other half serves");
            let fails = bad.contains(&ticket.endpoint().serial());
            ticket.head(start, if fails { Verdict::Failure } else { Verdict::Success });
        }
        policy.balance = Balance::P2c;
        let mut now = start;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                now += Duration::from_nanos(10);
                succeed(&balancer, black_box(now), &mut rng, &policy, HEAD);
            });
        });
        policy.balance = Balance::Random;
    }
    group.finish();
}

/// The CPU time of this thread, shown as times are.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = picks, picks_half_ejected
}
criterion_main!(benches);

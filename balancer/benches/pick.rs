//! What a pick costs among 10, 100 and 1,000 endpoints: at most 150 ns, and about the same for all.
//!
//! Measured in CPU time of the thread, so that a busy machine does not blur it. `alone` is the choice, `to_its_end` the ticket's whole life with head and end. Every endpoint is warm (all have estimates). `pick_half_ejected` shows the price of drawing again, `pick_by_…` that of keys and zones (a ticket's whole life).

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use evenkeel_balancer::{Balancer, EndpointSpec, Hop, Verdict, Wish, key_hash};
use evenkeel_config::policy::{Balance, KeySource, Mode, Policy, Share};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::time::{ClockId, clock_gettime};

/// How long a head takes.
const HEAD: Duration = Duration::from_micros(500);

/// Picks measured at once, and then ended: about as many as a busy worker has in flight.
const BATCH: u64 = 50;

/// Endpoints in so many zones, of which the first is ours; 0: zones are not known.
fn balancer(start: Instant, count: u16, zones: u16) -> Balancer {
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
            zone: (zones > 0).then(|| Arc::from(format!("z{}", index % zones))),
            serving: true,
            preserved: false,
        }
    };
    balancer.update(start, (0..count).map(spec).collect(), Some("z0"));
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
            let balancer = balancer(start, count, 0);
            let mut rng = SmallRng::seed_from_u64(1);
            let mut now = start;
            (0..20 * u32::from(count)).for_each(|_| {
                now += Duration::from_micros(50);
                succeed(&balancer, now, &mut rng, &policy, HEAD);
            });
            group.bench_function(BenchmarkId::new("alone", count), |bencher| {
                bencher.iter_custom(|iterations| {
                    let (mut spent, clock) = (Duration::ZERO, CpuTime::clock());
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
                        spent += CpuTime.end(started).saturating_sub(clock);
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

/// With keys, and with zones: `one_key` is remembered, of `many_keys` each is looked up anew.
fn picks_by_key(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let plain = Policy::default();
    let mut sharded = plain.clone();
    sharded.shard.key = Some(KeySource::Address);
    let mut hashed = Policy { balance: Balance::Hash, ..plain.clone() };
    hashed.hash.key = Some(KeySource::Address);
    for (name, policy, zones) in [("shard", &sharded, 0), ("hash", &hashed, 0), ("zone", &plain, 3)]
    {
        let mut group = criterion.benchmark_group(format!("pick_by_{name}"));
        for count in [10, 100, 1_000] {
            let balancer = balancer(start, count, zones);
            let mut rng = SmallRng::seed_from_u64(1);
            let (mut now, mut request) = (start, 0u64);
            let keys: &[(&str, u64)] =
                if zones > 0 { &[("alone", 1)] } else { &[("one_key", 1), ("many_keys", 1 << 40)] };
            for &(keys, different) in keys {
                group.bench_function(BenchmarkId::new(keys, count), |bencher| {
                    bencher.iter(|| {
                        now += Duration::from_micros(50);
                        request += 1;
                        let key = Some(key_hash(&(request % different).to_be_bytes()));
                        let wish = Wish { shard: key, hash: key, ..Wish::FIRST };
                        let ticket = balancer.pick(black_box(now), &mut rng, policy, &wish);
                        ticket.expect("all endpoints serve").head(now + HEAD, Verdict::Success);
                    });
                });
            }
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
        let balancer = balancer(start, count, 0);
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

impl CpuTime {
    /// What asking twice costs, which is as much as several picks.
    fn clock() -> Duration {
        let mut spans: Vec<_> = (0..1_001).map(|_| CpuTime.end(CpuTime.start())).collect();
        spans.sort_unstable();
        spans[500]
    }
}

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
    targets = picks, picks_by_key, picks_half_ejected
}
criterion_main!(benches);

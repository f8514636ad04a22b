//! What it costs to share: 10,000 clients in at most 1 ms, 50,000 refreshes of Doorman clients a second, and a root's round.
//!
//! Measured in CPU time of the thread, so that a busy machine does not blur it.

mod cpu_time;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::CpuTime;
use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel_ratelimit::{
    Algorithm, Allocation, Ask, Claim, Floors, Loan, Micros, Party, Request, Root, Rosters, Store,
    Terms, Word,
};

const CLIENTS: u32 = 10_000;

fn claim(index: u32) -> Claim {
    // Wants in no order, from a fifth to twice the fair share.
    let wants = 200 + u64::from(index.wrapping_mul(2_654_435_761) % 1_800);
    Claim { wants: Micros::units(wants), subclients: 1 + index % 3, priority: 0 }
}

fn allocations(criterion: &mut Criterion<CpuTime>) {
    let claims: Vec<Claim> = (0..CLIENTS).map(claim).collect();
    let capacity = Micros::units(1_000 * u64::from(CLIENTS));
    let mut group = criterion.benchmark_group("allocate_10000");
    for algorithm in [Algorithm::FairShare, Algorithm::ProportionalShare] {
        group.bench_function(format!("{algorithm:?}"), |bencher| {
            bencher.iter(|| {
                let allocation =
                    Allocation::new(algorithm, capacity, black_box(&claims), &Floors::default());
                Micros::sum(claims.iter().map(|claim| allocation.grant(*claim)))
            });
        });
    }
    group.finish();
}

fn refreshes(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let floors = Floors::default();
    let capacity = Micros::units(1_000 * u64::from(CLIENTS));
    let terms = Terms {
        algorithm: Algorithm::FairShare,
        floors: &floors,
        capacity,
        own: Claim { wants: Micros::ZERO, subclients: 1, priority: 0 },
        right: capacity,
        lease: Duration::from_secs(20),
    };
    let mut store = Store::new(start);
    let (mut now, mut index) = (start, 0);
    criterion.bench_function("refresh_among_10000", |bencher| {
        bencher.iter(|| {
            // 50,000 a second.
            now += Duration::from_micros(20);
            index = (index + 1) % CLIENTS;
            let request = Request { claim: claim(index), has: Micros::units(500) };
            store.ask(now, &index.to_be_bytes(), request, terms, |_, _, wanted| Some((wanted, now)))
        });
    });
}

/// A round in which every host has asked: to hear them all, decide, and answer.
fn rounds(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let (resource, rosters): (Arc<[u8]>, _) = (Arc::from(*b"db"), Rosters::new(0));
    let mut group = criterion.benchmark_group("root_round");
    for hosts in [100, 1_000, 10_000] {
        let mut root = Root::new(Arc::clone(&resource), Party { host: 0, life: 1 }, start, start);
        root.set_rules(
            start,
            Algorithm::FairShare,
            Micros::units(1_000 * u64::from(hosts)),
            &Floors::default(),
            false,
        );
        let (mut now, mut number) = (start, 0);
        group.bench_function(hosts.to_string(), |bencher| {
            bencher.iter(|| {
                now += Duration::from_millis(250);
                number += 1;
                for host in 0..hosts {
                    let ask = Ask {
                        resource: Arc::clone(&resource),
                        life: 1,
                        number,
                        stamp: 0,
                        root_life: 0,
                        echo: 0,
                        wants: vec![claim(host)],
                        own: Micros::units(1_000),
                        pledge: Loan::default(),
                        word: Word::default(),
                        extra: Duration::ZERO,
                        epoch: 0,
                        clear: true,
                        settled: 0,
                    };
                    root.handle_ask(now, u64::from(host), ask, &rosters);
                }
                now += Duration::from_millis(250);
                root.handle_timeout(now, &rosters);
                let answers = std::iter::from_fn(|| root.poll_transmit()).count();
                assert_eq!(answers, hosts as usize, "everyone is answered");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = allocations, refreshes, rounds
}
criterion_main!(benches);

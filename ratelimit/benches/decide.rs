//! What one decision costs: at most 50 ns, without allocation.
//!
//! Measured in CPU time of the thread, so that a busy machine does not blur it. A decision is what a request pays: its demand is
//! counted, then it is admitted or refused. Allocations are counted by the allocator itself, and one fails the run.

mod cpu_time;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cpu_time::CpuTime;
use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel_ratelimit::{Bucket, Demand, KeyTable, Micros, Pace};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches one atomic.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn pace() -> Pace {
    Pace::new(Micros::units(1_000_000), Duration::from_secs(1), Micros::units(100))
}

fn decisions(criterion: &mut Criterion<CpuTime>) {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let mut group = criterion.benchmark_group("decide");
    for (name, gap) in [("admitted", 2_000), ("refused", 1)] {
        let (bucket, demand) =
            (Bucket::new(start, pace()), Demand::new(start, Duration::from_secs(1)));
        let mut now = start;
        let mut decide = || {
            now += Duration::from_nanos(gap);
            demand.offer(black_box(now), 1);
            bucket.try_acquire(now, 1).is_ok()
        };
        without_allocation(&mut decide);
        group.bench_function(name, |bencher| bencher.iter(&mut decide));
    }
    let table = KeyTable::new(start, pace(), 100_000, 1);
    let mut now = start;
    let mut key = 0u32;
    let mut decide = || {
        now += Duration::from_nanos(20);
        key = key.wrapping_add(7_919) % 100_000;
        table.try_acquire(black_box(now), &key.to_be_bytes(), 1).is_ok()
    };
    without_allocation(&mut decide);
    group.bench_function("by_key_of_100000", |bencher| bencher.iter(&mut decide));
    group.finish();
}

fn without_allocation(decide: &mut impl FnMut() -> bool) {
    let before = ALLOCATIONS.load(Relaxed);
    (0..100_000).for_each(|_| {
        black_box(decide());
    });
    assert_eq!(ALLOCATIONS.load(Relaxed), before, "a decision allocated");
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = decisions
}
criterion_main!(benches);

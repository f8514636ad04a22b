use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn per_second(limit: u64, burst: u64) -> Pace {
    Pace::new(Micros::units(limit), SECOND, Micros::units(burst))
}

fn burst(bucket: &Bucket, now: Instant) -> usize {
    (0..10_000).take_while(|_| bucket.try_acquire(now, 1).is_ok()).count()
}

#[test]
fn a_burst_then_one_each_interval() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(100, 20));
    assert_eq!(burst(&bucket, t0), 20);
    assert_eq!(
        bucket.try_acquire(t0, 1),
        Err(Refused { retry_after: Some(Duration::from_millis(10)) })
    );
    assert_eq!(burst(&bucket, t0 + Duration::from_millis(9)), 0);
    assert_eq!(burst(&bucket, t0 + Duration::from_millis(10)), 1);
    assert_eq!(burst(&bucket, t0 + Duration::from_secs(100)), 20, "idle time fills it, once");
    assert_eq!(bucket.remaining(t0 + Duration::from_secs(100)), (0, Duration::from_millis(200)));
}

#[test]
fn ends_of_the_scale() {
    let t0 = start();
    assert_eq!(burst(&Bucket::new(t0, Pace::UNLIMITED), t0), 10_000);
    let stopped = Bucket::new(t0, per_second(0, 20));
    assert_eq!(stopped.try_acquire(t0, 1), Err(Refused { retry_after: None }));
    assert_eq!(burst(&Bucket::new(t0, per_second(5, 0)), t0), 1, "a bucket holds at least one");
    let tiny = Pace::new(
        Micros::from_micros(1).unwrap(),
        Duration::from_secs(3600 * 24 * 365),
        Micros::ZERO,
    );
    assert!(tiny.is_stopped());
    let fast = Bucket::new(t0, Pace::new(Micros::MAX, SECOND, Micros::MAX));
    assert_eq!(burst(&fast, t0), 10_000);
    let far = t0 + Duration::from_secs(1 << 33);
    assert!(
        Bucket::new(t0, per_second(1, 1)).try_acquire(far, u32::MAX).is_ok(),
        "no overflow after centuries"
    );
}

#[test]
fn a_cost_above_the_burst_needs_a_full_bucket_and_leaves_a_long_debt() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(10, 5));
    assert!(bucket.try_acquire(t0, 20).is_ok());
    let refused = bucket.try_acquire(t0, 1).unwrap_err();
    assert_eq!(
        refused.retry_after,
        Some(Duration::from_millis(1_600)),
        "20 − 5 + 1 units at 10 a second"
    );
    assert!(bucket.try_acquire(t0 + Duration::from_secs(2), 6).is_ok(), "the debt is paid");
    assert!(bucket.try_acquire(t0 + Duration::from_secs(2), 6).is_err());
}

#[test]
fn waiting_takes_places_in_order_and_no_longer_than_allowed() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(10, 1));
    let waits: Vec<_> = (0..4).map(|_| bucket.reserve(t0, 1, Duration::from_millis(250))).collect();
    let ok = |millis| Ok(Duration::from_millis(millis));
    assert_eq!(waits[..3], [ok(0), ok(100), ok(200)]);
    assert_eq!(waits[3], Err(Refused { retry_after: Some(Duration::from_millis(300)) }));
    assert_eq!(
        bucket.reserve(t0 + Duration::from_millis(100), 1, SECOND),
        ok(200),
        "what was refused took no place"
    );
}

#[test]
fn a_cut_forgives_nothing() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(100, 50));
    assert!(bucket.try_acquire(t0, 70).is_ok());
    bucket.set_pace(t0, per_second(10, 5));
    let owed = Duration::from_secs(2);
    assert_eq!(burst(&bucket, t0 + owed), 0, "20 units beyond the burst are owed");
    assert_eq!(burst(&bucket, t0 + owed + Duration::from_millis(101)), 1);

    let half_full = Bucket::new(t0, per_second(100, 50));
    assert!(half_full.try_acquire(t0, 25).is_ok());
    half_full.set_pace(t0, per_second(60, 30));
    assert_eq!(burst(&half_full, t0), 25);
    let full = Bucket::new(t0, per_second(100, 50));
    full.set_pace(t0, per_second(60, 30));
    assert_eq!(burst(&full, t0), 30, "there is no room for more");
}

#[test]
fn a_raise_brings_no_burst_and_waits_out_no_old_debt() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(10, 5));
    assert_eq!(burst(&bucket, t0), 5);
    bucket.set_pace(t0, per_second(100, 50));
    assert_eq!(burst(&bucket, t0), 0, "what moves here has been spent elsewhere");
    assert_eq!(burst(&bucket, t0 + Duration::from_millis(100)), 10, "at the new pace");

    let slow =
        Bucket::new(t0, Pace::new(Micros::units(1), Duration::from_secs(1_000), Micros::ZERO));
    assert!(slow.try_acquire(t0, 1).is_ok());
    slow.set_pace(t0, per_second(100, 10));
    assert_eq!(burst(&slow, t0 + Duration::from_millis(10)), 1, "not after a thousand seconds");

    let stopped = Bucket::new(t0, per_second(1, 1));
    stopped.set_pace(t0, Pace::STOPPED);
    stopped.set_pace(t0, per_second(100, 10));
    assert_eq!(burst(&stopped, t0), 0);
    assert_eq!(burst(&stopped, t0 + Duration::from_millis(51)), 5);
}

#[test]
fn many_workers_take_no_more_than_one() {
    let t0 = start();
    let bucket = Bucket::new(t0, per_second(1_000, 1_000));
    let taken: usize = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4).map(|_| scope.spawn(|| burst(&bucket, t0))).collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    assert_eq!(taken, 1_000);
}

proptest! {
    /// Admitted units of every window that ends with an admission, against rate × length + burst.
    #[test]
    fn no_window_passes_the_limit(
        limit in 1u64..2_000, depth in 0u64..50,
        steps in prop::collection::vec((0u64..20_000, 1u32..4), 1..300),
    ) {
        let t0 = start();
        let bucket = Bucket::new(t0, per_second(limit, depth));
        let (mut now, mut admitted) = (t0, Vec::new());
        for (gap, cost) in steps {
            now += Duration::from_micros(gap);
            while bucket.try_acquire(now, cost).is_ok() {
                admitted.push((now, u64::from(cost)));
            }
            let mut units = 0;
            for (at, cost) in admitted.iter().rev() {
                units += cost;
                let bound = limit as f64 * (now - *at).as_secs_f64() + depth.max(3) as f64 + 1e-6;
                prop_assert!(units as f64 <= bound, "{units} in {:?}", now - *at);
            }
        }
    }

    /// Capacity moves to and fro between two hosts, whose parts of the burst are at least one unit: together they never admit more
    /// than the capacity and the burst, in no window.
    #[test]
    fn what_moves_admits_nothing_extra(
        steps in prop::collection::vec((0u64..=100, 0u64..200, 0u32..40, 0u32..40), 1..60),
    ) {
        let t0 = start();
        let part = |percent: u64| per_second(percent * 5, percent / 2);
        let buckets = [Bucket::new(t0, part(50)), Bucket::new(t0, part(50))];
        let (mut now, mut admitted) = (t0, Vec::new());
        for (percent, millis, one, other) in steps {
            now += Duration::from_millis(millis);
            buckets[0].set_pace(now, part(percent));
            buckets[1].set_pace(now, part(100 - percent));
            for (bucket, tries) in buckets.iter().zip([one, other]) {
                let units = (0..tries).filter(|_| bucket.try_acquire(now, 1).is_ok()).count();
                admitted.push((now, units as f64));
            }
            let mut units = 0.0;
            for (at, more) in admitted.iter().rev() {
                units += more;
                let bound = 500.0 * (now - *at).as_secs_f64() + 50.0 + 1.0;
                prop_assert!(units <= bound, "{units} in {:?}", now - *at);
            }
        }
    }

    /// With room for two, so that what comes a hair early is not put off to the next arrival.
    #[test]
    fn a_steady_flood_gets_all_of_the_limit(limit in 1u64..100_000) {
        let t0 = start();
        let bucket = Bucket::new(t0, per_second(limit, 2));
        let gap = SECOND / (4 * limit as u32);
        let admitted = (0..4 * limit.min(5_000)).filter(|i| bucket.try_acquire(t0 + gap * (*i as u32), 1).is_ok()).count();
        let expected = limit.min(5_000);
        prop_assert!(admitted as u64 + 1 + expected / 50 >= expected, "{admitted} of {expected}");
    }
}

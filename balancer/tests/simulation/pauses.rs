//! Replicas that stop for a moment: what copies and the memory of silence are for.
//!
//! Six backends, each stopped for 100 ms about once a second, so that a tenth of all requests would meet one, at 200 requests a second.

use evenkeel_config::policy::{Balance, Policy};
use rand::{SeedableRng, rngs::SmallRng};

use crate::backend::{Backend, MS, S, Service, US};
use crate::measured::{Measured, Summary};
use crate::seeds;
use crate::world::{Load, World, hedged, unhedged};

const STEADY: Service = Service::Steady(200 * US);
const SECONDS: u64 = 30;

/// `count` backends, each stopped for `length` about every `every`.
fn pausing(seed: u64, load: &Load, count: usize, length: u64, every: u64) -> Measured {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut backends = vec![Backend::new(4); count];
    for backend in &mut backends {
        backend.pause_at_random(&mut rng, length, every, load.end);
    }
    World::new(seed, load.clone(), backends).finish()
}

fn six_pausing(name: &str, load: &Load, count: u64, length: u64, every: u64) -> Summary {
    let runs: Vec<Measured> =
        seeds(count).map(|seed| pausing(seed, load, 6, length, every)).collect();
    Summary::of(name, &runs)
}

#[test]
fn a_tenth_of_the_time_paused_does_not_show_at_three_percent_extra() {
    let load = Load::new(hedged(), 200, STEADY, SECONDS);
    let summary = six_pausing("hedged p2c", &load, 20, 100 * MS, S);
    assert!(summary.p99.1 <= 1.6, "{summary:?}");
    assert!(summary.p999.1 <= 3.0, "{summary:?}");
    assert!(summary.extra.0 <= 3.0 && summary.extra.1 <= 4.0, "{summary:?}");
    assert_eq!(summary.failed, 0);
}

#[test]
fn without_copies_it_shows() {
    for balance in [Balance::Random, Balance::RoundRobin, Balance::LeastRequest, Balance::P2c] {
        let load = Load::new(unhedged(balance), 200, STEADY, SECONDS);
        let summary = six_pausing(&format!("{balance:?} without copies"), &load, 3, 100 * MS, S);
        assert!(summary.p99.0 > 50.0, "the pauses must hurt, or nothing is shown: {summary:?}");
        assert!(summary.extra.1 == 0.0);
    }
}

#[test]
fn copies_work_with_every_way_of_choosing() {
    for balance in [Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let load = Load::new(Policy { balance, ..hedged() }, 200, STEADY, SECONDS);
        let summary = six_pausing(&format!("hedged {balance:?}"), &load, 5, 100 * MS, S);
        assert!(
            summary.p99.1 <= 3.0 && summary.p999.0 <= 10.0 && summary.extra.1 <= 5.0,
            "{summary:?}"
        );
    }
}

#[test]
fn short_and_long_pauses() {
    let pauses = [
        (10 * MS, S),
        (30 * MS, S),
        (50 * MS, S),
        (200 * MS, 2 * S),
        (200 * MS, 5 * S),
        (500 * MS, 5 * S),
        (2 * S, 20 * S),
    ];
    for (length, every) in pauses {
        let load = Load::new(hedged(), 200, STEADY, 40);
        let name = format!("{} ms every {} s", length / MS, every / S);
        let summary = six_pausing(&name, &load, 2, length, every);
        assert!(
            summary.p99.1 <= 3.0 && summary.p999.0 <= 10.0 && summary.extra.1 <= 4.0,
            "{name}: {summary:?}"
        );
    }
}

#[test]
fn longer_service_times_gain_too() {
    for mean in [200 * US, MS, 5 * MS, 20 * MS, 50 * MS] {
        let run = |name: &str, policy: Policy| {
            let load = Load::new(policy, 200, Service::Exponential(mean), SECONDS);
            six_pausing(
                &format!("{name}, service {} ms", mean as f64 / MS as f64),
                &load,
                3,
                100 * MS,
                S,
            )
        };
        let (with, without) = (run("copies", hedged()), run("none", unhedged(Balance::P2c)));
        assert!(
            with.p99.0 < without.p99.0 && with.extra.1 <= 5.0,
            "service {mean} ns: {with:?} against {without:?}"
        );
    }
}

#[test]
fn what_surrounds_a_request_does_not_spoil_it() {
    let plain = Load::new(hedged(), 200, STEADY, SECONDS);
    let disturbed = [
        ("timers up to 1 ms late", Load { timer_slack: MS, ..plain.clone() }, 99.9),
        ("callers that go away", Load { impatient_share: 0.05, ..plain.clone() }, 99.9),
        ("long polls", Load { long_poll_share: 0.005, ..plain.clone() }, 99.0),
        // These have no copies: they are among the slowest twentieth themselves.
        ("a twentieth may not be repeated", Load { unsafe_share: 0.05, ..plain }, 99.0),
    ];
    for (name, load, up_to) in disturbed {
        let summary = six_pausing(name, &load, 5, 100 * MS, S);
        assert!(summary.p99.1 <= 3.0 && summary.extra.1 <= 5.0, "{name}: {summary:?}");
        assert!(up_to < 99.9 || summary.p999.0 <= 10.0, "{name}: {summary:?}");
    }
}

#[test]
fn rare_pauses_among_many_cost_next_to_nothing() {
    let load = Load::new(hedged(), 2_000, STEADY, 10);
    let runs: Vec<Measured> =
        seeds(3).map(|seed| pausing(seed, &load, 16, 200 * MS, 5 * S)).collect();
    let summary = Summary::of("16 backends, 200 ms every 5 s, 2000/s", &runs);
    assert!(summary.p999.1 <= 20.0 && summary.extra.1 <= 1.0, "{summary:?}");
}

/// All replicas stop together: no copy can help, so the budget bounds them and the tail is what it is without.
#[test]
fn when_all_stop_together_copies_do_no_harm() {
    let run = |seed: u64, policy: Policy, busy: bool| {
        let (rate, service) =
            if busy { (600, Service::Exponential(20 * MS)) } else { (200, STEADY) };
        let load = Load::new(policy, rate, service, 20);
        let mut backends = vec![Backend::new(4); 6];
        for second in 1..25 {
            let at = second * S + (seed * 77 % 500) * MS;
            backends.iter_mut().for_each(|backend| backend.pause(at, at + 100 * MS));
        }
        World::new(seed, load, backends).finish()
    };
    for busy in [false, true] {
        let all = |policy: Policy| {
            seeds(5).map(|seed| run(seed, policy.clone(), busy)).collect::<Vec<_>>()
        };
        let with = Summary::of(&format!("all stop together, busy: {busy}, copies"), &all(hedged()));
        let without = Summary::of(
            &format!("all stop together, busy: {busy}, none"),
            &all(unhedged(Balance::P2c)),
        );
        assert!(with.extra.1 <= 5.0, "{with:?}");
        assert!(with.p99.0 <= 1.02 * without.p99.0, "{with:?} against {without:?}");
    }
}

/// Half of the replicas stop together: there is somewhere to go, and the budget is enough for what was caught.
#[test]
fn when_half_stop_together_the_others_answer() {
    let run = |seed: u64, policy: Policy| {
        let load = Load::new(policy, 200, STEADY, SECONDS);
        let mut backends = vec![Backend::new(4); 6];
        for second in 1..35 {
            let at = second * S + (seed * 77 % 500) * MS;
            backends[..3].iter_mut().for_each(|backend| backend.pause(at, at + 100 * MS));
        }
        World::new(seed, load, backends).finish()
    };
    let all = |policy: Policy| seeds(5).map(|seed| run(seed, policy.clone())).collect::<Vec<_>>();
    let with = Summary::of("half stop together, copies", &all(hedged()));
    let without = Summary::of("half stop together, none", &all(unhedged(Balance::P2c)));
    assert!(without.p99.0 > 20.0, "the pauses must hurt, or nothing is shown: {without:?}");
    assert!(with.p99.1 <= 3.0 && with.extra.1 <= 3.0, "{with:?}");
}

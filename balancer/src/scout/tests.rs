use super::*;
use crate::endpoint::{EndpointSpec, Hop};
use evenkeel_config::policy::Balance;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

const MS: Duration = Duration::from_millis(1);

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn alive() -> Report {
    Report { known: true, alive: true, ..Report::default() }
}

/// A balancer with this many endpoints, and a moment long after they have started.
fn balancer(endpoints: u16) -> (Balancer, Instant) {
    let t0 = start();
    let balancer = Balancer::new(t0);
    let spec = |number: u16| {
        let address = ([127, 0, 0, 1], 1_000 + number).into();
        EndpointSpec {
            node: 1,
            instance: Arc::from(format!("i{number}")),
            address,
            dial: address,
            hop: Hop::Mesh,
            protocol: None,
            weight: 1,
            zone: None,
            serving: true,
            preserved: false,
        }
    };
    balancer.update(t0, (0..endpoints).map(spec).collect(), None);
    (balancer, t0 + Duration::from_secs(60))
}

/// How many of a hundred first attempts go to the endpoint at `index`; none of them is sent.
fn drawn(balancer: &Balancer, now: Instant, index: usize) -> usize {
    let mut rng = SmallRng::seed_from_u64(3);
    let serial = balancer.endpoints()[index].serial();
    let mut pick = |_: &i32| {
        let picked = balancer.pick(now, &mut rng, &Policy::default(), &Wish::FIRST);
        let mut ticket = picked.expect("some endpoint serves");
        ticket.no_sample();
        ticket.endpoint().serial() == serial
    };
    (0..100).filter(|n| pick(n)).count()
}

#[test]
fn who_has_never_answered_is_told_and_used_all_the_same() {
    let (balancer, t0) = balancer(2);
    balancer.endpoints()[0].scout_lost(t0, t0);
    let later = t0 + Duration::from_secs(2);
    let reports = balancer.explain(later, &Policy::default(), &Wish::FIRST);
    let said = |index: usize| {
        let report: &crate::EndpointReport = &reports[index];
        report.verdicts.iter().find(|verdict| verdict.filter == "scout")
    };
    let first = said(0).expect("it was asked");
    assert!(first.pass && first.why.contains("never answered one in time, in 2.0 s"), "{first:?}");
    assert!(said(1).is_none(), "nobody asked it");
    assert!(drawn(&balancer, later, 0) > 20);
}

#[test]
fn a_report_comes_back_as_it_was_kept() {
    let reports = [
        alive(),
        Report {
            known: true,
            in_flight: 7,
            latency: Some(Duration::from_micros(1_234)),
            ..Report::default()
        },
        Report { known: true, stalled: Some(250 * MS), draining: true, ..Report::default() },
        Report { in_flight: u32::MAX, latency: Some(Duration::from_secs(4_000)), ..alive() },
    ];
    for report in reports {
        let scouted = Scouted::default();
        scouted.keep(1, &report);
        assert_eq!(scouted.report(), report);
    }
}

#[test]
fn a_lost_scout_is_evidence_only_where_scouts_are_answered() {
    let (balancer, t0) = balancer(4);
    let endpoint = Arc::clone(&balancer.endpoints()[0]);
    endpoint.scout_lost(t0 + MS, t0);
    assert!(!endpoint.answers_scouts(t0 + MS) && drawn(&balancer, t0 + MS, 0) > 10, "a firewall");

    endpoint.scout_answered(t0 + 2 * MS, t0 + 2 * MS, &alive());
    assert!(endpoint.answers_scouts(t0 + 2 * MS));
    endpoint.scout_lost(t0 + 11 * MS, t0 + 10 * MS);
    assert!(endpoint.seems_silent(t0 + 11 * MS));
    assert_eq!(drawn(&balancer, t0 + 11 * MS, 0), 0, "it has stopped");

    // Asked again every ten milliseconds and never answered: after five seconds it does not count any more.
    for ms in (20..6_000).step_by(10) {
        endpoint.scout_lost(t0 + (ms + 1) * MS, t0 + ms * MS);
    }
    let later = t0 + 6_200 * MS;
    assert!(!endpoint.answers_scouts(later));
    assert!(drawn(&balancer, later, 0) >= 1, "a request tries it, whatever scouts say");
}

#[test]
fn life_ends_a_suspicion_at_once() {
    let (balancer, t0) = balancer(4);
    let endpoint = Arc::clone(&balancer.endpoints()[0]);
    endpoint.scout_answered(t0, t0, &alive());
    endpoint.scout_lost(t0 + 2 * MS, t0 + MS);
    // An answer to a question from before says nothing about now.
    endpoint.scout_answered(t0 + 3 * MS, t0 + MS / 2, &alive());
    assert!(endpoint.seems_silent(t0 + 3 * MS));
    endpoint.scout_answered(t0 + 12 * MS, t0 + 11 * MS, &alive());
    assert!(!endpoint.seems_silent(t0 + 12 * MS));
    assert!(drawn(&balancer, t0 + 12 * MS, 0) > 10);
}

#[test]
fn a_head_is_stronger_evidence_than_a_lost_scout() {
    let (balancer, t0) = balancer(1);
    let endpoint = Arc::clone(&balancer.endpoints()[0]);
    endpoint.scout_answered(t0, t0, &alive());
    let mut rng = SmallRng::seed_from_u64(1);
    let mut ticket = balancer
        .pick(t0 + MS, &mut rng, &Policy::default(), &Wish::FIRST)
        .expect("one endpoint serves");
    ticket.head(t0 + 3 * MS, crate::Verdict::Success);
    endpoint.scout_lost(t0 + 4 * MS, t0 + 2 * MS);
    assert!(!endpoint.seems_silent(t0 + 4 * MS), "the datagram was lost, not the process");
}

#[test]
fn stalled_is_avoided_and_draining_is_held() {
    let (balancer, t0) = balancer(4);
    let (stalled, draining) = {
        let set = balancer.endpoints();
        (Arc::clone(&set[0]), Arc::clone(&set[1]))
    };
    stalled.scout_answered(t0, t0, &Report { stalled: Some(40 * MS), ..alive() });
    draining.scout_answered(t0, t0, &Report { draining: true, ..alive() });
    assert_eq!((drawn(&balancer, t0, 0), drawn(&balancer, t0, 1)), (0, 0));
    assert_eq!(stalled.stall_age(t0), Some(40 * MS));
    let later = t0 + Duration::from_secs(2);
    assert!(drawn(&balancer, later, 1) > 10, "held for a second");
}

#[test]
fn a_fresh_welcome_is_used_again_unless_something_spoke_against_it_since() {
    let (balancer, t0) = balancer(1);
    let endpoint = Arc::clone(&balancer.endpoints()[0]);
    assert!(!endpoint.welcomed_within(t0, MS), "never asked");
    endpoint.scout_answered(t0, t0, &alive());
    assert!(endpoint.welcomed_within(t0 + MS / 2, MS));
    assert!(!endpoint.welcomed_within(t0 + MS, MS), "too old");
    for (name, report) in [
        ("draining", Report { draining: true, ..alive() }),
        ("stalled", Report { stalled: Some(MS), ..alive() }),
        ("unknown", Report::default()),
    ] {
        endpoint.scout_answered(t0 + 2 * MS, t0 + 2 * MS, &report);
        assert!(!endpoint.welcomed_within(t0 + 2 * MS, MS), "{name}");
    }
    endpoint.scout_answered(t0 + 3 * MS, t0 + 3 * MS, &alive());
    endpoint.scout_lost(t0 + 3 * MS, t0 + 3 * MS);
    assert!(!endpoint.welcomed_within(t0 + 3 * MS, MS), "another was lost");
}

#[test]
fn scouts_go_to_different_endpoints_that_serve() {
    let (balancer, _) = balancer(5);
    let mut rng = SmallRng::seed_from_u64(9);
    for count in [0, 1, 3, 4, 9] {
        for _ in 0..100 {
            let mut asked = Vec::new();
            balancer.scout_some(
                &mut rng,
                &Policy::default(),
                &Wish::FIRST,
                count,
                |index, endpoint, of| {
                    assert_eq!((of, endpoint.serial()), (5, balancer.endpoints()[index].serial()));
                    asked.push(index);
                },
            );
            let number = asked.len();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), number);
            assert!(number <= count.min(SCOUTED_MAX));
        }
    }
    let nobody = Balancer::new(start());
    nobody.scout_some(&mut rng, &Policy::default(), &Wish::FIRST, 3, |_, _, _| {
        panic!("there is nobody to ask")
    });
}

#[test]
fn a_pool_chooses_only_what_a_request_may_go_to() {
    let (balancer, t0) = balancer(8);
    let policy = Policy { balance: Balance::Scout, ..Policy::default() };
    let mut rng = SmallRng::seed_from_u64(4);
    let set = balancer.endpoints();
    let fill = |pool: &mut Pool, rng: &mut SmallRng| {
        for (index, latency) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
            let report = Report { latency: Some(latency * MS), ..alive() };
            pool.add(t0, rng, (index, set[index].serial()), set.len(), &report);
        }
    };
    let chosen = |wish: &Wish<'_>, rng: &mut SmallRng| {
        let mut pool = Pool::default();
        fill(&mut pool, rng);
        let mut ticket =
            balancer.pick_scouted(t0, rng, &policy, wish, &mut pool).expect("all serve");
        ticket.no_sample();
        let serial = ticket.endpoint().serial();
        (set.iter().position(|endpoint| endpoint.serial() == serial), pool.age_of_choice())
    };
    assert_eq!(chosen(&Wish::FIRST, &mut rng), (Some(0), Some(Duration::ZERO)));
    let tried = [set[0].serial()];
    assert_eq!(chosen(&Wish { tried: &tried, ..Wish::FIRST }, &mut rng).0, Some(1));
    set[1].scout_answered(t0, t0, &Report { stalled: Some(MS), ..alive() });
    assert_eq!(chosen(&Wish { tried: &tried, ..Wish::FIRST }, &mut rng).0, Some(2));
    // With one answer left there is no choice among them.
    set[2].scout_answered(t0, t0, &Report { draining: true, ..alive() });
    assert_eq!(chosen(&Wish { tried: &tried, ..Wish::FIRST }, &mut rng).1, None);
    // A set that has changed: what stood at those places is not there any more.
    balancer.update(t0, set.iter().skip(4).map(|endpoint| endpoint.spec().clone()).collect(), None);
    let mut pool = Pool::default();
    fill(&mut pool, &mut rng);
    let ticket = balancer.pick_scouted(t0, &mut rng, &policy, &Wish::FIRST, &mut pool);
    assert!(ticket.is_ok() && pool.age_of_choice().is_none());
}

#[test]
fn an_attempt_that_waited_for_its_scout_counts_from_when_it_is_sent() {
    let (balancer, t0) = balancer(1);
    let endpoint = Arc::clone(&balancer.endpoints()[0]);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut ticket =
        balancer.pick(t0, &mut rng, &Policy::default(), &Wish::FIRST).expect("one serves");
    endpoint.scout_answered(t0 + MS, t0, &alive());
    assert_eq!(endpoint.stall_age(t0 + MS), None, "it has shown life");
    ticket.sent(t0 + MS);
    assert_eq!(endpoint.stall_age(t0 + 4 * MS), Some(3 * MS), "and owes an answer again");
    ticket.head(t0 + 5 * MS, crate::Verdict::Success);
    assert_eq!(endpoint.latency(t0 + 5 * MS), Some(4 * MS), "the wait for the scout was ours");
}

proptest! {
    /// Whatever scouts say in whatever order, an endpoint that shows life is not silent, and one that never answered is not judged.
    #[test]
    fn the_last_word_counts(words in prop::collection::vec((0..4u8, 1..30u32), 1..60)) {
        let (balancer, mut now) = balancer(2);
        let endpoint = Arc::clone(&balancer.endpoints()[0]);
        let mut answered = false;
        for (word, wait) in words {
            let asked = now;
            now += MS * wait;
            match word {
                0 => endpoint.scout_lost(now, asked),
                1 => endpoint.scout_answered(now, asked, &Report { stalled: Some(MS * wait), alive: false, ..alive() }),
                2 => endpoint.scout_answered(now, asked, &Report { alive: false, ..alive() }),
                _ => endpoint.scout_answered(now, asked, &alive()),
            }
            answered |= word != 0;
            prop_assert!(word != 3 || !endpoint.seems_silent(now));
            prop_assert!(answered || !endpoint.seems_silent(now));
            prop_assert!(!(answered && word == 0) || endpoint.seems_silent(now) || !endpoint.answers_scouts(now));
        }
    }
}

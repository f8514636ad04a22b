use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel_config::policy::{Hedge, Mode, Share};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::endpoint::Hop;
use crate::ticket::Verdict;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// A balancer, its clock and its generator.
struct Bench {
    balancer: Balancer,
    now: Instant,
    rng: SmallRng,
    policy: Policy,
}

fn spec(index: u16) -> EndpointSpec {
    let address: SocketAddr = ([127, 0, 0, 1], 1_000 + index).into();
    EndpointSpec {
        node: 1,
        instance: Arc::from(format!("i{index}")),
        address,
        dial: address,
        hop: Hop::Direct,
        protocol: None,
        weight: 1,
        zone: None,
        serving: true,
        preserved: false,
    }
}

impl Bench {
    #[allow(clippy::disallowed_methods)]
    fn new(count: u16, balance: Balance) -> Bench {
        let now = Instant::now();
        let hedge = Hedge { mode: Mode::Enforce, ..Hedge::default() };
        let policy = Policy { balance, hedge, ..Policy::default() };
        let bench =
            Bench { balancer: Balancer::new(now), now, rng: SmallRng::seed_from_u64(7), policy };
        bench.balancer.update(now, (0..count).map(spec).collect(), None);
        bench
    }

    fn pick(&mut self, attempt: Attempt, tried: &[u64]) -> Result<Ticket, NoEndpoint> {
        let wish = Wish { attempt, tried, ..Wish::FIRST };
        self.balancer.pick(self.now, &mut self.rng, &self.policy, &wish)
    }

    fn first(&mut self) -> Ticket {
        self.pick(Attempt::First, &[]).expect("there is an endpoint")
    }

    fn update(&self, specs: Vec<EndpointSpec>) {
        self.balancer.update(self.now, specs, None);
    }

    fn serial(&self, index: usize) -> u64 {
        self.balancer.endpoints()[index].serial()
    }

    /// Picks until the endpoint comes, and lets it end with the verdict.
    fn end_at(&mut self, index: usize, verdict: Verdict) {
        let others: Vec<u64> = (0..self.balancer.endpoints().len())
            .filter(|&other| other != index)
            .map(|other| self.serial(other))
            .collect();
        let mut ticket = self.pick(Attempt::Retry, &others).expect("it is untried");
        assert_eq!(ticket.endpoint().serial(), self.serial(index));
        ticket.head(self.now, verdict);
    }

    /// How often each endpoint is picked in `count` picks that end at once.
    fn spread(&mut self, count: u32) -> BTreeMap<u16, u32> {
        let mut spread = BTreeMap::new();
        for _ in 0..count {
            let ticket = self.first();
            *spread.entry(ticket.endpoint().spec().address.port() - 1_000).or_default() += 1;
        }
        spread
    }
}

const ALL: [Balance; 4] =
    [Balance::P2c, Balance::LeastRequest, Balance::RoundRobin, Balance::Random];

#[test]
fn without_endpoints_there_is_none() {
    let mut bench = Bench::new(0, Balance::P2c);
    assert_eq!(bench.pick(Attempt::First, &[]).err(), Some(NoEndpoint::None));
    bench.update(vec![spec(1)]);
    assert!(bench.pick(Attempt::First, &[]).is_ok());
}

#[test]
fn in_flight_counts_from_the_choice_to_the_drop_whatever_happens() {
    for balance in ALL {
        let mut bench = Bench::new(3, balance);
        let tickets: Vec<Ticket> = (0..30).map(|_| bench.first()).collect();
        let in_flight = |bench: &Bench| {
            bench.balancer.endpoints().iter().map(|endpoint| endpoint.in_flight()).sum::<u32>()
        };
        assert_eq!((in_flight(&bench), bench.balancer.circuit().requests()), (30, 30));
        for (index, mut ticket) in tickets.into_iter().enumerate() {
            match index % 4 {
                0 => ticket.head(bench.now, Verdict::Success),
                1 => ticket.head(bench.now, Verdict::Reset),
                2 => ticket.no_sample(),
                _ => {}
            }
            ticket.head(bench.now, Verdict::Failure);
        }
        assert_eq!((in_flight(&bench), bench.balancer.circuit().requests()), (0, 0));
    }
}

#[test]
fn round_robin_is_exactly_fair_and_skips_what_is_out() {
    let mut bench = Bench::new(4, Balance::RoundRobin);
    assert!(bench.spread(400).values().all(|&count| count == 100));
    (0..5).for_each(|_| bench.end_at(2, Verdict::Failure));
    let spread = bench.spread(300);
    assert!(!spread.contains_key(&2) && spread.values().all(|&count| count == 100), "{spread:?}");
}

#[test]
fn weights_decide_how_often_each_is_drawn() {
    for balance in [Balance::RoundRobin, Balance::Random] {
        let mut bench = Bench::new(0, balance);
        bench.update(
            (0..3)
                .map(|index| EndpointSpec { weight: [0, 1, 3][usize::from(index)], ..spec(index) })
                .collect(),
        );
        let spread = bench.spread(4_000);
        assert!(!spread.contains_key(&0), "a weight of 0 is not drawn while others are usable");
        assert!((2_900..=3_100).contains(&spread[&2]), "{balance:?}: {spread:?}");
        bench.update(vec![EndpointSpec { weight: 0, ..spec(0) }]);
        assert!(bench.pick(Attempt::First, &[]).is_ok(), "but when it is the only one");
    }
}

#[test]
fn two_choices_go_where_it_is_cheaper() {
    let mut bench = Bench::new(2, Balance::P2c);
    bench.end_at(0, Verdict::Success);
    for (index, latency) in [(0, 50), (1, 2)] {
        let other = bench.serial(1 - index);
        let mut ticket = bench.pick(Attempt::Retry, &[other]).unwrap();
        ticket.head(bench.now + latency * MS, Verdict::Success);
    }
    bench.now += 50 * MS;
    let spread = bench.spread(100);
    assert!(spread[&1] >= 95, "{spread:?}");
}

#[test]
fn without_samples_the_load_decides() {
    for balance in [Balance::P2c, Balance::LeastRequest] {
        let mut bench = Bench::new(4, balance);
        let tickets: Vec<Ticket> = (0..400).map(|_| bench.first()).collect();
        for endpoint in bench.balancer.endpoints().iter() {
            assert!(
                (90..=110).contains(&endpoint.in_flight()),
                "{balance:?}: {}",
                endpoint.in_flight()
            );
        }
        drop(tickets);
    }
}

#[test]
fn a_copy_goes_only_where_the_request_was_not() {
    for balance in ALL {
        let mut bench = Bench::new(3, balance);
        let mut tried = Vec::new();
        let mut tickets = Vec::new();
        for _ in 0..3 {
            let ticket = bench.pick(Attempt::Hedge, &tried).expect("one is untried");
            assert!(!tried.contains(&ticket.endpoint().serial()));
            tried.push(ticket.endpoint().serial());
            tickets.push(ticket);
        }
        assert_eq!(bench.pick(Attempt::Hedge, &tried).err(), Some(NoEndpoint::AllTried));
        let retry = bench.pick(Attempt::Retry, &tried).expect("a retry takes a tried one again");
        assert!(tried.contains(&retry.endpoint().serial()));
        let untried = tried.pop().expect("three were tried");
        for _ in 0..20 {
            assert_eq!(
                bench.pick(Attempt::Retry, &tried).unwrap().endpoint().serial(),
                untried,
                "but prefers an untried one"
            );
        }
    }
}

#[test]
fn copies_are_bounded_by_what_is_in_flight() {
    let mut bench = Bench::new(10, Balance::P2c);
    let firsts: Vec<Ticket> = (0..40).map(|_| bench.first()).collect();
    let copies: Vec<Ticket> =
        std::iter::from_fn(|| bench.pick(Attempt::Hedge, &[]).ok()).take(100).collect();
    assert_eq!(copies.len(), 5, "three and a twentieth of forty");
    assert_eq!(bench.pick(Attempt::Hedge, &[]).err(), Some(NoEndpoint::CircuitOpen));
    drop((firsts, copies));
    assert_eq!((bench.balancer.circuit().requests(), bench.balancer.circuit().copies()), (0, 0));
}

#[test]
fn the_circuit_refuses_first_attempts_and_copies_not_retries() {
    let mut bench = Bench::new(3, Balance::P2c);
    bench.policy.circuit.requests = 2;
    let _tickets = [bench.first(), bench.first()];
    assert_eq!(bench.pick(Attempt::First, &[]).err(), Some(NoEndpoint::CircuitOpen));
    assert_eq!(bench.pick(Attempt::Hedge, &[]).err(), Some(NoEndpoint::CircuitOpen));
    assert!(bench.pick(Attempt::Retry, &[]).is_ok(), "what has begun may go on");
    assert_eq!(bench.balancer.circuit().copies(), 0);
}

#[test]
fn what_does_not_serve_is_used_only_when_nothing_serves() {
    for balance in ALL {
        let mut bench = Bench::new(0, balance);
        bench.update(vec![
            spec(0),
            EndpointSpec { serving: false, ..spec(1) },
            EndpointSpec { serving: false, ..spec(2) },
        ]);
        assert_eq!(bench.spread(50), BTreeMap::from([(0, 50)]));
        bench.update((0..3).map(|index| EndpointSpec { serving: false, ..spec(index) }).collect());
        assert_eq!(bench.spread(100).len(), 3, "panic");
        bench.policy.panic = Share::percent(0);
        assert_eq!(bench.pick(Attempt::First, &[]).err(), Some(NoEndpoint::Unhealthy));
    }
}

#[test]
fn panic_ignores_ejections_when_too_few_are_left() {
    let mut bench = Bench::new(4, Balance::Random);
    bench.policy.eject.max = Share::percent(100);
    (0..2).for_each(|index| (0..5).for_each(|_| bench.end_at(index, Verdict::Failure)));
    assert_eq!(bench.spread(100).len(), 2, "half are left: no panic yet");
    (0..5).for_each(|_| bench.end_at(2, Verdict::Failure));
    assert_eq!(bench.spread(200).len(), 4, "a quarter is left");
    bench.policy.panic = Share::percent(0);
    assert_eq!(bench.spread(100).len(), 1);
    (0..5).for_each(|_| bench.end_at(3, Verdict::Failure));
    assert_eq!(bench.pick(Attempt::First, &[]).err(), Some(NoEndpoint::Unhealthy));
    bench.now += 20 * S;
    assert!(bench.pick(Attempt::First, &[]).is_ok(), "ejections end");
}

#[test]
fn retry_after_is_honoured_within_bounds_and_never_ejects() {
    let mut bench = Bench::new(2, Balance::Random);
    for _ in 0..20 {
        bench.end_at(0, Verdict::Overloaded { retry_after: Some(Duration::from_secs(3_600)) });
    }
    assert_eq!(bench.balancer.endpoints()[0].ejections(), 0);
    assert_eq!(bench.spread(50), BTreeMap::from([(1, 50)]));
    let other = bench.serial(1);
    assert_eq!(
        bench.pick(Attempt::Hedge, &[other]).err(),
        Some(NoEndpoint::AllTried),
        "no copy to the overloaded"
    );
    assert!(
        bench.pick(Attempt::Retry, &[other]).is_ok(),
        "a retry may, when nothing else is untried"
    );
    bench.now += crate::ticket::RETRY_AFTER_MAX;
    assert_eq!(bench.spread(50).len(), 2);
}

#[test]
fn an_unreachable_endpoint_is_left_alone_at_once_and_a_success_ends_it() {
    let mut bench = Bench::new(2, Balance::Random);
    bench.end_at(0, Verdict::Unreachable);
    assert_eq!(bench.spread(50), BTreeMap::from([(1, 50)]));
    bench.end_at(0, Verdict::Success);
    assert_eq!(bench.spread(50).len(), 2);
    bench.end_at(0, Verdict::Absent);
    assert_eq!(bench.spread(50), BTreeMap::from([(1, 50)]));
    bench.now += S;
    assert_eq!(
        bench.spread(50).len(),
        2,
        "its host could not reach it: tried again after a moment"
    );
}

#[test]
fn no_request_finds_out_whether_an_endpoint_can_be_dialled_again() {
    let mut bench = Bench::new(2, Balance::P2c);
    bench.end_at(0, Verdict::Unreachable);
    bench.now += 3_600 * S;
    assert_eq!(bench.spread(50), BTreeMap::from([(1, 50)]), "however long ago that was");
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    let redial = endpoint.redial().expect("it has to be dialled");
    assert!(endpoint.redial().is_none(), "by one at a time");
    drop(redial);
    let redial = endpoint.redial().expect("the one before gave up");
    assert!(redial.is_needed());
    redial.succeeded();
    assert_eq!(bench.spread(50).len(), 2);
    assert!(endpoint.redial().is_none(), "nothing is held against it");
    // Where nothing else is left the requests try themselves, and the first that gets through ends it.
    (0..2).for_each(|index| bench.end_at(index, Verdict::Unreachable));
    let redial = endpoint.redial().expect("it has to be dialled");
    bench.first().head(bench.now, Verdict::Success);
    bench.end_at(0, Verdict::Success);
    assert!(!redial.is_needed());
}

#[test]
fn what_is_preserved_is_tried_last_but_before_what_does_not_serve() {
    for balance in ALL {
        let mut bench = Bench::new(0, balance);
        let preserved = |index| EndpointSpec { preserved: true, ..spec(index) };
        bench.update(vec![spec(0), preserved(1), preserved(2)]);
        assert_eq!(bench.spread(50), BTreeMap::from([(0, 50)]), "{balance:?}");
        assert_eq!(
            bench.pick(Attempt::Hedge, &[bench.serial(0)]).err(),
            Some(NoEndpoint::AllTried),
            "no copy goes there"
        );
        let again = bench.pick(Attempt::Retry, &[bench.serial(0)]).expect("one was tried");
        assert_eq!(again.endpoint().serial(), bench.serial(0), "rather the same once more");
        drop(again);
        bench.policy.panic = Share::percent(0);
        bench.update(vec![EndpointSpec { serving: false, ..spec(0) }, preserved(1), preserved(2)]);
        let two = bench.serial(2);
        bench
            .pick(Attempt::Retry, &[two])
            .expect("there is one")
            .head(bench.now, Verdict::Unreachable);
        assert_eq!(bench.spread(50), BTreeMap::from([(2, 50)]), "one of them failed");
        let one = Arc::clone(&bench.balancer.endpoints()[1]);
        one.redial().expect("it has to be dialled").succeeded();
        let spread = bench.spread(100);
        assert_eq!(spread.keys().copied().collect::<Vec<_>>(), [1, 2], "{balance:?}");
    }
}

#[test]
fn endpoints_of_a_host_that_is_called_down_are_lost_until_it_is_back() {
    let bench = Bench::new(2, Balance::P2c);
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    assert!(!bench.balancer.mark_lost(|_| false) && !endpoint.is_lost());
    assert!(bench.balancer.mark_lost(|node| node == 1) && endpoint.is_lost());
    assert!(!bench.balancer.mark_lost(|node| node == 1), "no news");
    assert!(!bench.balancer.mark_lost(|_| false) && !endpoint.is_lost());
}

#[test]
fn fast_failures_cost_instead_of_attracting() {
    for balance in [Balance::P2c, Balance::LeastRequest] {
        let mut bench = Bench::new(2, balance);
        bench.policy.eject.consecutive = 0;
        (0..2).for_each(|index| bench.end_at(index, Verdict::Success));
        bench.end_at(0, Verdict::Failure);
        let spread = bench.spread(100);
        assert!(spread[&1] >= 95, "{balance:?}: {spread:?}");
    }
}

#[test]
fn what_was_learnt_stays_while_the_identity_does() {
    let mut bench = Bench::new(3, Balance::P2c);
    let ticket = bench.first();
    let (serial, index) =
        (ticket.endpoint().serial(), ticket.endpoint().spec().address.port() - 1_000);
    let mut specs: Vec<EndpointSpec> = (0..3).map(spec).collect();
    specs[usize::from(index)].weight = 5;
    bench.update(specs.clone());
    let endpoint = Arc::clone(&bench.balancer.endpoints()[usize::from(index)]);
    assert_eq!((endpoint.serial(), endpoint.in_flight(), endpoint.spec().weight), (serial, 1, 5));
    drop(ticket);
    assert_eq!(endpoint.in_flight(), 0, "a ticket from before the update ends in the same count");
    specs[usize::from(index)].address = ([127, 0, 0, 2], 1).into();
    bench.update(specs);
    assert!(
        bench.balancer.endpoints().iter().all(|endpoint| endpoint.serial() != serial),
        "another address is another endpoint"
    );
}

#[test]
fn duplicates_and_too_many_endpoints_are_left_out() {
    let bench = Bench::new(0, Balance::P2c);
    bench.update(vec![spec(1), EndpointSpec { weight: 9, ..spec(1) }]);
    let set = bench.balancer.endpoints();
    assert_eq!((set.len(), set[0].spec().weight), (1, 9), "the last counts");
    let many = (0..ENDPOINTS_MAX as u64 + 3).map(|node| EndpointSpec { node, ..spec(1) }).collect();
    assert_eq!(bench.balancer.update(bench.now, many, None), 3);
    assert_eq!(bench.balancer.endpoints().len(), ENDPOINTS_MAX);
}

#[test]
fn a_wholly_new_set_does_not_start_slowly() {
    let mut bench = Bench::new(2, Balance::Random);
    bench.update((2..6).map(spec).collect());
    assert_eq!(bench.spread(100).len(), 4);
    let set = bench.balancer.endpoints();
    assert!(set.iter().all(|endpoint| endpoint.state.ramp_from.load(Relaxed) == 0));
    bench.now += S;
    bench.update((2..7).map(spec).collect());
    let set = bench.balancer.endpoints();
    let ramping: Vec<bool> =
        set.iter().map(|endpoint| endpoint.state.ramp_from.load(Relaxed) != 0).collect();
    assert_eq!(ramping, [false, false, false, false, true]);
}

#[test]
fn an_own_pause_spoils_no_estimate() {
    let mut bench = Bench::new(1, Balance::P2c);
    let mut ticket = bench.first();
    bench.now += 300 * MS;
    bench.balancer.own_pause(bench.now);
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    assert_eq!(endpoint.stall_age(bench.now), Some(Duration::ZERO));
    ticket.head(bench.now, Verdict::Success);
    assert_eq!(endpoint.latency(bench.now), None, "the time was ours");
}

#[test]
fn an_idle_endpoint_shows_neither_a_latency_nor_a_cost() {
    let mut bench = Bench::new(1, Balance::P2c);
    let shown = |bench: &Bench| {
        let report = bench.balancer.explain(bench.now, &bench.policy, &Wish::FIRST).remove(0);
        (report.latency_ms, report.cost_ms)
    };
    assert_eq!(shown(&bench), (None, None));
    let mut ticket = bench.first();
    bench.now += 4 * MS;
    ticket.head(bench.now, Verdict::Success);
    assert_eq!(shown(&bench), (Some(4.0), Some(8.0)), "one in flight, and one that would be");
    drop(ticket);
    bench.now += 20 * S;
    let (latency, cost) = shown(&bench);
    assert_eq!(latency, Some(4.0), "what it was, not what is left of it for comparisons");
    assert!(cost.is_some_and(|cost| cost < 1.0), "which is little: {cost:?}");
    bench.now += 20 * S;
    assert_eq!(shown(&bench), (None, None), "nobody has asked it for 40 s");
}

#[test]
fn a_caller_that_goes_away_early_says_nothing_about_the_endpoint() {
    let mut bench = Bench::new(1, Balance::P2c);
    let mut ticket = bench.first();
    ticket.head(bench.now + 10 * MS, Verdict::Success);
    drop(ticket);
    bench.now += 20 * MS;
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    let mut ticket = bench.first();
    ticket.caller_gone(bench.now + 2 * MS);
    drop(ticket);
    assert_eq!(endpoint.stall_age(bench.now), None);
    let mut ticket = bench.first();
    ticket.caller_gone(bench.now + 30 * MS);
    drop(ticket);
    assert!(endpoint.stall_age(bench.now + 31 * MS).is_some(), "it had waited longer than usual");
}

/// An operator would look for the request that has been stuck for an hour.
#[test]
fn an_endpoint_without_requests_is_not_shown_as_stalled() {
    let mut bench = Bench::new(1, Balance::P2c);
    let shown = |bench: &Bench| {
        let report = bench.balancer.explain(bench.now, &bench.policy, &Wish::FIRST).remove(0);
        (report.in_flight, report.stall_ms)
    };
    let ticket = bench.first();
    bench.now += 40 * MS;
    assert_eq!(shown(&bench), (1, Some(40.0)));
    // A copy won.
    drop(ticket);
    bench.now += 3600 * S;
    assert!(bench.balancer.endpoints()[0].stall_age(bench.now).is_some(), "it never answered");
    assert_eq!(shown(&bench), (0, None));
}

#[test]
fn explain_names_every_filter() {
    let mut bench = Bench::new(3, Balance::P2c);
    (0..5).for_each(|_| bench.end_at(0, Verdict::Failure));
    bench.end_at(1, Verdict::Overloaded { retry_after: Some(S) });
    let reports = bench.balancer.explain(bench.now, &bench.policy, &Wish::FIRST);
    let failing = |index: usize| -> Vec<&str> {
        reports[index]
            .verdicts
            .iter()
            .filter(|verdict| !verdict.pass)
            .map(|verdict| verdict.filter)
            .collect()
    };
    assert_eq!(failing(0), ["ejection", "slow_start"]);
    assert_eq!(failing(1), ["hold"]);
    assert!(failing(2).is_empty());
    let json = serde_json::to_value(&reports[0]).unwrap();
    assert_eq!(json["id"], "i0");
    assert!(json["ejected_for_ms"].as_f64().unwrap() > 9_000.0);
}

/// Four workers and a changing set at once: the shared counts end where they began.
#[test]
fn workers_share_it_without_losing_count() {
    let bench = Bench::new(6, Balance::P2c);
    let (balancer, policy, start) = (&bench.balancer, &bench.policy, bench.now);
    let first_endpoints = balancer.endpoints();
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(worker);
                let mut held = Vec::new();
                let hedge = Wish { attempt: Attempt::Hedge, ..Wish::FIRST };
                for step in 0..5_000u32 {
                    let now = start + step * MS / 10;
                    held.extend(balancer.pick(now, &mut rng, policy, &Wish::FIRST));
                    if step % 3 == 0 {
                        held.extend(balancer.pick(now, &mut rng, policy, &hedge));
                    }
                    if held.len() > 20 {
                        let mut ticket = held.swap_remove(step as usize % held.len());
                        let failed = step % 50 == 0;
                        ticket.head(now, if failed { Verdict::Failure } else { Verdict::Success });
                    }
                }
            });
        }
        for step in 0..200u16 {
            balancer.update(
                start,
                (0..6).filter(|index| index % 5 != step % 5).map(spec).collect(),
                None,
            );
        }
    });
    assert_eq!((balancer.circuit().requests(), balancer.circuit().copies()), (0, 0));
    let endpoints = balancer.endpoints();
    assert!(
        endpoints.iter().chain(first_endpoints.iter()).all(|endpoint| endpoint.in_flight() == 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of operations: counts return to nothing, estimates stay finite, a copy never repeats an endpoint.
    #[test]
    fn any_sequence_keeps_the_invariants(seed in any::<u64>(), steps in prop::collection::vec((0u8..12, any::<u16>(), 0u64..3_000_000_000), 1..200)) {
        let mut bench = Bench::new(5, ALL[(seed % 4) as usize]);
        bench.rng = SmallRng::seed_from_u64(seed);
        let mut tickets: Vec<Ticket> = Vec::new();
        for (step, value, gap) in steps {
            // Clocks of different workers: now and then a step back.
            bench.now = if value % 7 == 0 { bench.now.checked_sub(Duration::from_nanos(gap % 1_000)).unwrap_or(bench.now) } else { bench.now + Duration::from_nanos(gap / 100) };
            let chosen = usize::from(value) % tickets.len().max(1);
            match step {
                0..=3 => tickets.extend(bench.pick(Attempt::First, &[])),
                4 | 5 => {
                    let tried: Vec<u64> = tickets.iter().map(|ticket| ticket.endpoint().serial()).take(usize::from(value) % 4).collect();
                    let attempt = if step == 4 { Attempt::Hedge } else { Attempt::Retry };
                    if let Ok(ticket) = bench.pick(attempt, &tried) {
                        prop_assert!(attempt == Attempt::Retry || !tried.contains(&ticket.endpoint().serial()));
                        tickets.push(ticket);
                    }
                }
                6 | 7 if !tickets.is_empty() => {
                    let verdicts = [Verdict::Success, Verdict::Failure, Verdict::Reset, Verdict::Timeout, Verdict::Unreachable, Verdict::Overloaded { retry_after: Some(Duration::MAX) }];
                    tickets[chosen].head(bench.now, verdicts[usize::from(value) % verdicts.len()]);
                }
                8 if !tickets.is_empty() => tickets[chosen].late(bench.now),
                9 if !tickets.is_empty() => drop(tickets.swap_remove(chosen)),
                10 => bench.update((0..8).filter(|bit| value & (1 << bit) != 0).map(|index| EndpointSpec { serving: value & (256 << index) == 0, ..spec(index) }).collect()),
                _ => bench.balancer.own_pause(bench.now),
            }
            for endpoint in bench.balancer.endpoints().iter() {
                let latency = endpoint.latency(bench.now).unwrap_or_default();
                prop_assert!(latency <= Duration::from_secs(3_600));
                prop_assert!(endpoint.ejected_for(bench.now).unwrap_or_default() <= Duration::from_secs(301));
            }
        }
        prop_assert_eq!(bench.balancer.circuit().requests() as usize, tickets.len());
        let endpoints: Vec<Arc<Endpoint>> = tickets.iter().map(|ticket| Arc::clone(ticket.endpoint())).collect();
        drop(tickets);
        prop_assert!(endpoints.iter().all(|endpoint| endpoint.in_flight() == 0));
        prop_assert_eq!((bench.balancer.circuit().requests(), bench.balancer.circuit().copies()), (0, 0));
    }
}

mod keys;

#[test]
fn an_attempt_that_was_held_up_and_then_not_made_leaves_no_silence() {
    let mut bench = Bench::new(1, Balance::P2c);
    let mut ticket = bench.first();
    bench.now += MS;
    ticket.sent(bench.now);
    ticket.no_sample();
    drop(ticket);
    assert_eq!(bench.balancer.endpoints()[0].stall_age(bench.now + S), None);
}

#[test]
fn ejections_are_counted_of_endpoints_that_are_gone_too() {
    let mut bench = Bench::new(3, Balance::P2c);
    for _ in 0..bench.policy.eject.consecutive {
        bench.end_at(0, Verdict::Failure);
    }
    assert_eq!(bench.balancer.ejections_total(), 1);
    bench.update((1..3).map(spec).collect());
    assert_eq!(bench.balancer.ejections_total(), 1);
}

#[test]
fn an_endpoint_whose_heads_are_quick_and_whose_calls_fail_is_ejected() {
    let mut bench = Bench::new(3, Balance::P2c);
    let ejected = |bench: &Bench| bench.balancer.endpoints()[0].ejected(bench.now);
    let call = |bench: &mut Bench, end: Verdict| {
        let others = [bench.serial(1), bench.serial(2)];
        let mut ticket = bench.pick(Attempt::Retry, &others).expect("it is untried");
        ticket.head(bench.now, Verdict::Undecided);
        ticket.end(bench.now, end);
        ticket.end(bench.now, Verdict::Success);
    };
    for _ in 0..4 {
        call(&mut bench, Verdict::Failure);
    }
    call(&mut bench, Verdict::Success);
    for _ in 0..4 {
        call(&mut bench, Verdict::Reset);
    }
    assert!(!ejected(&bench), "a call that went well lies between them");
    call(&mut bench, Verdict::Failure);
    assert!(ejected(&bench), "five in a row, though each of their heads was an answer");
}

#[test]
fn a_tunnel_is_load_and_says_of_its_endpoint_only_that_it_can_be_dialled() {
    let mut bench = Bench::new(1, Balance::P2c);
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    let mut answered = bench.first();
    bench.now += 100 * MS;
    answered.head(bench.now, Verdict::Success);
    drop(answered);
    (0..4).for_each(|_| bench.end_at(0, Verdict::Failure));
    let mut waiting = bench.first();
    bench.now += 50 * MS;
    waiting.late(bench.now);
    assert!(endpoint.seems_silent(bench.now));

    let mut tunnel = bench.first();
    tunnel.dials_only();
    bench.now += MS;
    let latency = endpoint.latency(bench.now);
    tunnel.head(bench.now, Verdict::Success);
    assert_eq!(endpoint.latency(bench.now), latency, "a dial is not an answer's time");
    assert!(endpoint.seems_silent(bench.now), "a process that stands still is dialled as well");
    assert_eq!(endpoint.in_flight(), 2, "it is load for as long as it is open");
    bench.end_at(0, Verdict::Failure);
    assert!(endpoint.ejected(bench.now), "five failures in a row, whatever could be dialled");
    drop(tunnel);
    assert_eq!(endpoint.in_flight(), 1);
}

#[test]
fn a_tunnel_that_opens_ends_the_hold_of_a_failed_dial() {
    let mut bench = Bench::new(1, Balance::P2c);
    let endpoint = Arc::clone(&bench.balancer.endpoints()[0]);
    bench.end_at(0, Verdict::Unreachable);
    let redial = endpoint.redial().expect("it could not be dialled");
    let mut tunnel = bench.first();
    tunnel.dials_only();
    tunnel.head(bench.now, Verdict::Undecided);
    assert!(!redial.is_needed());
}

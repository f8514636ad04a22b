use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn units(units: u64) -> Micros {
    Micros::units(units)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A host with this much for its clients.
struct Host {
    store: Store,
    capacity: Micros,
    algorithm: Algorithm,
}

impl Host {
    fn new(t0: Instant, capacity: u64) -> Host {
        Host { store: Store::new(t0), capacity: units(capacity), algorithm: Algorithm::FairShare }
    }

    fn try_ask(
        &mut self,
        now: Instant,
        id: &[u8],
        wants: Micros,
        has: Micros,
    ) -> Result<Micros, StoreFull> {
        let floors = Floors::default();
        let claim = |wants| Claim { wants, subclients: 1, priority: 0 };
        let terms = Terms {
            algorithm: self.algorithm,
            floors: &floors,
            capacity: self.capacity,
            own: claim(Micros::ZERO),
            right: self.capacity,
            lease: secs(20),
        };
        let capacity = self.capacity;
        let request = Request { claim: claim(wants), has };
        let until = now + secs(20);
        let granted = self.store.ask(now, id, request, terms, |others, shown, wanted| {
            let covered = others.plus(shown) <= capacity;
            covered.then(|| (wanted.min(capacity.minus(others)), until))
        });
        granted.map(|(amount, _)| amount)
    }

    fn ask(&mut self, now: Instant, id: &str, wants: u64, has: u64) -> Micros {
        self.try_ask(now, id.as_bytes(), units(wants), units(has)).unwrap()
    }
}

#[test]
fn clients_settle_at_their_shares_within_two_refreshes() {
    let t0 = start();
    let mut host = Host::new(t0, 100);
    let clients = [("a", 5), ("b", 5), ("c", 25), ("d", 30), ("e", 40)];
    let mut has = [Micros::ZERO; 5];
    for round in 0..3 {
        for (index, (id, wants)) in clients.into_iter().enumerate() {
            let now = t0 + secs(5 * round) + Duration::from_millis(index as u64);
            has[index] = host.try_ask(now, id.as_bytes(), units(wants), has[index]).unwrap();
        }
        assert!(host.store.held() <= units(100));
    }
    let expected = [5.0, 5.0, 25.0, 30.0, 35.0];
    for (has, expected) in has.into_iter().zip(expected) {
        assert!((has.as_f64() - expected).abs() < 0.1, "{has} for {expected}");
    }
}

#[test]
fn a_cut_waits_for_the_holders_and_nothing_becomes_negative() {
    let t0 = start();
    let mut host = Host::new(t0, 100);
    assert_eq!(host.ask(t0, "a", 90, 0), units(90));
    host.capacity = units(10);
    let early = host.ask(t0 + secs(1), "b", 50, 0);
    assert_eq!(early, Micros::ZERO, "over-committed: nothing, not less than nothing");
    let a = host.ask(t0 + secs(2), "a", 90, 90);
    assert!(a < units(5), "{a}");
    assert_eq!(
        host.ask(t0 + secs(3), "b", 50, 0),
        Micros::ZERO,
        "the answer may have been lost: it has not shown it"
    );
    host.try_ask(t0 + secs(7), b"a", units(90), a).unwrap();
    assert!(host.ask(t0 + secs(8), "b", 50, 0) > units(4));
    assert!(host.store.held() <= units(10));
}

#[test]
fn of_several_newcomers_each_gets_something_before_the_others_have_come_back() {
    let t0 = start();
    let mut host = Host::new(t0, 100);
    host.ask(t0, "a", 500, 0);
    assert!(host.ask(t0 + secs(1), "b", 500, 0) > Micros::ZERO);
    host.ask(t0 + secs(5), "a", 500, 99);
    assert!(host.ask(t0 + secs(6), "c", 500, 0) > Micros::ZERO, "b has not come back yet");
}

/// As Doorman's clients expect it: what a host that draws nothing itself has is theirs to the last.
#[test]
fn nothing_is_kept_back_once_all_have_come_back() {
    let t0 = start();
    let mut host = Host::new(t0, 110);
    for round in 0..3 {
        for (index, id) in ["a", "b"].into_iter().enumerate() {
            let now = t0 + secs(5 * round) + Duration::from_millis(index as u64);
            let has = if round == 0 { 0 } else { 55 };
            host.ask(now, id, 200, has);
        }
    }
    let now = t0 + secs(15);
    assert_eq!(host.ask(now, "a", 200, 55), units(55));
    assert_eq!(host.ask(now, "b", 200, 55), units(55));
    // Who comes then waits for the others, as there; and who goes leaves nothing behind that is kept.
    assert_eq!(host.ask(now, "c", 200, 0), Micros::ZERO);
    host.store.release(b"c");
    host.store.release(b"b");
    assert!(host.store.keeps_back(Claim { wants: units(1), subclients: 1, priority: 0 }));
    host.ask(now + secs(5), "a", 200, 55);
    assert!(!host.store.keeps_back(Claim { wants: Micros::ZERO, subclients: 1, priority: 0 }));
}

#[test]
fn leases_run_out_and_are_released() {
    let t0 = start();
    let mut host = Host::new(t0, 100);
    host.ask(t0, "dead", 99, 0);
    host.ask(t0 + secs(1), "quits", 1, 0);
    assert_eq!((host.store.len(), host.store.next_end()), (2, Some(t0 + secs(20))));
    host.store.release(b"quits");
    host.store.release(b"never known");
    host.store.expire(t0 + secs(20));
    assert_eq!(host.store.len(), 1, "to the end");
    host.store.expire(t0 + secs(20) + Duration::from_nanos(1));
    assert_eq!((host.store.len(), host.store.held()), (0, Micros::ZERO));
}

#[test]
fn while_learning_claims_are_believed_up_to_the_right() {
    let t0 = start();
    let mut host = Host::new(t0 + secs(20), 100);
    host.store.learning_until = t0 + secs(20);
    assert_eq!(host.ask(t0, "a", 90, 60), units(60), "what it has, neither more nor nothing");
    assert_eq!(host.ask(t0, "liar", 900, 900), units(40), "an over-claim is cut to what there is");
    assert_eq!(host.ask(t0, "third", 10, 10), Micros::ZERO);
    assert!(host.ask(t0 + secs(20), "a", 90, 60) < units(60), "then the shares count");
}

#[test]
fn a_full_store_refuses_newcomers_and_serves_those_it_knows() {
    let t0 = start();
    let mut host = Host::new(t0, 1_000_000);
    for id in 0..CLIENTS_MAX as u32 {
        assert!(host.try_ask(t0, &id.to_be_bytes(), units(1), Micros::ZERO).is_ok());
    }
    assert_eq!(host.try_ask(t0, b"one too many", units(1), Micros::ZERO), Err(StoreFull));
    assert_eq!(host.try_ask(t0, &7u32.to_be_bytes(), units(2), units(1)), Ok(units(2)));
    assert!(
        host.try_ask(t0 + secs(21), b"one too many", units(1), Micros::ZERO).is_ok(),
        "those run out go first"
    );
    assert_eq!(host.store.len(), 1);
}

#[test]
fn the_algorithms_without_a_common_limit_set_nothing_aside() {
    let t0 = start();
    let mut host = Host::new(t0, 10);
    host.algorithm = Algorithm::Static;
    assert_eq!((host.ask(t0, "a", 50, 0), host.ask(t0, "b", 7, 0)), (units(10), units(7)));
    host.algorithm = Algorithm::None;
    assert_eq!(host.ask(t0 + secs(1), "a", 50, 0), units(50));
}

proptest! {
    /// Clients that lie, forget, repeat and vanish: together they never hold more than there is.
    #[test]
    fn held_is_what_was_set_aside(
        steps in vec((0u8..12, 0..=Micros::MAX.micros(), 0..200_000_000u64, 0u64..9, any::<bool>()), 1..200),
    ) {
        let t0 = start();
        let mut host = Host::new(t0, 100);
        host.store.learning_until = t0 + secs(10);
        let mut now = t0;
        for (client, wants, has, gap, release) in steps {
            now += secs(gap);
            if release {
                host.store.release(&[client]);
                continue;
            }
            let wants = Micros::from_micros(wants).unwrap();
            let grant = host.try_ask(now, &[client], wants, Micros::from_micros(has).unwrap()).unwrap();
            prop_assert!(grant <= wants);
            prop_assert!(host.store.held() <= units(100));
            let sum = Micros::sum(host.store.clients().map(|(_, _, has)| has));
            prop_assert_eq!(sum, u128::from(host.store.held().micros()));
            prop_assert_eq!(host.store.ends.len(), host.store.len());
            let wanted = Micros::sum(host.store.clients().map(|(_, wants, _)| wants));
            prop_assert_eq!(host.store.bands.get(&0).map_or(0, |band| band.0), wanted);
        }
    }
}

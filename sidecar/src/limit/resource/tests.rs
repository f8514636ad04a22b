//! What a request may spend, who is asked for more, and what a refusal says.

use evenkeel_ratelimit::{Algorithm, Floors};

use super::*;

fn rules(per: Option<Duration>) -> Template {
    Template {
        pattern: "db".into(),
        capacity: Micros::units(100),
        per,
        burst: Micros::units(10),
        algorithm: Algorithm::FairShare,
        floors: Floors::default(),
        lease: Duration::from_secs(20),
        refresh: Duration::from_secs(5),
        learning: Duration::from_secs(20),
        safe: Safe::Share,
    }
}

fn resource(rules: Template) -> (Arc<Resource>, mpsc::Receiver<Wanted>) {
    let (wanted, wants) = mpsc::channel(10);
    (Arc::new(Resource::new(Arc::from(&b"db"[..]), rules, wanted)), wants)
}

fn rate() -> Template {
    rules(Some(Duration::from_secs(1)))
}

fn has(units: u64) -> Spending {
    Spending { amount: Micros::units(units), in_touch: true }
}

const NOW: Patience = Patience { wait: Duration::ZERO, first: FIRST_WAIT };

#[tokio::test]
async fn a_key_has_this_hosts_part_first_and_leases_when_that_is_used_up() {
    let (resource, mut wants) = resource(rate());
    let now = Instant::now();
    resource.set_own_part(now, Micros::units(50));
    // The burst of half of the capacity.
    for _ in 0..5 {
        assert!(matches!(resource.acquire(now, b"a", 1, Fail::Safe, NOW).await, Ok(None)));
    }
    assert!(wants.try_recv().is_err(), "nobody was asked");
    let owner = async {
        let wanted = wants.recv().await.unwrap();
        assert_eq!(*wanted.key, *b"a");
        wanted.resource.lease(Instant::now(), &wanted.key, has(90));
    };
    let (taken, ()) = tokio::join!(resource.acquire(now, b"a", 1, Fail::Safe, NOW), owner);
    assert!(taken.is_ok(), "it waited for the leases, and for its turn");
    let meter = resource.meter(b"a").unwrap();
    assert!(!meter.wants(Instant::now(), resource.rules()).is_zero(), "it is measured now");
    assert!(resource.acquire(now, b"b", 1, Fail::Safe, NOW).await.is_ok(), "b has its own part");
    assert!(resource.meter(b"b").is_none());
    resource.forget(now, b"a");
    assert!(resource.meter(b"a").is_none());
}

#[tokio::test]
async fn what_was_taken_stays_taken_when_a_key_is_leased_or_rules_change() {
    let (resource, _wants) = resource(rate());
    let now = Instant::now();
    resource.set_own_part(now, Micros::units(50));
    assert!(resource.acquire(now, b"a", 25, Fail::Safe, NOW).await.is_ok());
    // As when a root calls for what is idle here.
    let meter = resource.lease(now, b"a", has(100));
    assert_eq!(meter.bucket.try_acquire(now, 1).unwrap_err().retry_after.unwrap().as_millis(), 210);

    // And as when it wants nothing back.
    resource.forget(now, b"a");
    assert!(resource.observe(now, b"a", 1, Fail::Safe).is_err());

    assert!(resource.acquire(now, b"b", 5, Fail::Safe, NOW).await.is_ok());
    let resource = Arc::new(resource.under(Template { burst: Micros::units(40), ..rate() }));
    resource.set_own_part(now, Micros::units(50));
    assert!(resource.observe(now, b"b", 1, Fail::Safe).is_err(), "a reload brings nothing");
    assert!(resource.observe(now, b"c", 5, Fail::Safe).is_ok());
    assert!(resource.observe(now, b"c", 1, Fail::Safe).is_err(), "nor for others");
}

#[tokio::test]
async fn a_burst_comes_with_the_first_part_alone() {
    let (resource, _wants) = resource(rate());
    let now = Instant::now();
    let most = |key: &[u8]| {
        (0..100).take_while(|_| resource.observe(now, key, 1, Fail::Safe).is_ok()).count()
    };
    // Before there is a roster nobody owns anything.
    resource.set_own_part(now, Micros::ZERO);
    assert_eq!(most(b"a"), 0);
    resource.set_own_part(now, Micros::units(50));
    assert_eq!(most(b"a"), 5);
    resource.set_own_part(now, Micros::ZERO);
    resource.set_own_part(now, Micros::units(100));
    assert_eq!((most(b"a"), most(b"b")), (0, 0));
}

#[tokio::test]
async fn without_an_answer_the_first_request_is_refused_after_a_moment() {
    let (resource, _wants) = resource(rate());
    let now = Instant::now();
    let refused = resource.acquire(now, b"", 1, Fail::Open, NOW).await.unwrap_err();
    assert!(now.elapsed() >= FIRST_WAIT);
    assert_eq!(refused.retry_after, Some(FIRST_WAIT));
    assert_eq!(refused.cause, LimitCause::NotGrantedYet);
    assert!(resource.observe(Instant::now(), b"", 1, Fail::Open).is_err());
}

#[tokio::test]
async fn a_refusal_says_whether_the_limit_is_reached_or_not_granted_yet() {
    let (resource, _wants) = resource(rate());
    let now = Instant::now();
    let refused = async || {
        let patience = Patience { wait: Duration::ZERO, first: Duration::ZERO };
        let taken = resource.acquire(now, b"", 11, Fail::Closed, patience).await;
        taken.unwrap_err().cause
    };
    assert_eq!(refused().await, LimitCause::NotGrantedYet, "nobody has told what it owns");
    resource.set_own_part(now, Micros::ZERO);
    let meter = resource.lease(now, b"", Spending { amount: Micros::ZERO, in_touch: true });
    assert_eq!(refused().await, LimitCause::NotGrantedYet, "the root has not answered yet");
    meter.set(now, resource.rules(), has(1));
    assert_eq!(refused().await, LimitCause::Reached);
    meter.set(now, resource.rules(), Spending { in_touch: false, ..has(1) });
    assert_eq!(refused().await, LimitCause::RootSilent);
}

#[tokio::test]
async fn a_request_waits_as_long_as_it_may_and_no_longer() {
    let (resource, _wants) = resource(rate());
    let now = Instant::now();
    // It owned nothing until now.
    resource.set_own_part(now, Micros::ZERO);
    resource.lease(now, b"", has(20));
    let refused = resource.acquire(now, b"", 1, Fail::Safe, NOW).await.unwrap_err();
    let wait = refused.retry_after.unwrap();
    assert!(wait > Duration::from_millis(20) && wait < Duration::from_millis(60), "{wait:?}");
    assert!(resource.acquire(now, b"", 1, Fail::Safe, Patience { wait, ..NOW }).await.is_ok());
    assert!(now.elapsed() >= wait);
}

#[tokio::test]
async fn alone_a_request_goes_or_not_as_its_rule_says() {
    for (fail, safe, goes) in [
        (Fail::Open, Safe::Stop, true),
        (Fail::Closed, Safe::Unlimited, false),
        (Fail::Safe, Safe::Unlimited, true),
        (Fail::Safe, Safe::Stop, false),
        (Fail::Safe, Safe::Each(Micros::units(1000)), true),
        (Fail::Safe, Safe::Share, false),
    ] {
        let (resource, _wants) = resource(Template { safe, ..rate() });
        let alone = Spending { amount: Micros::ZERO, in_touch: false };
        resource.lease(Instant::now(), b"", alone);
        let patience = Patience { wait: Duration::from_millis(500), ..NOW };
        let now = Instant::now();
        let taken = resource.acquire(now, b"", 1, fail, patience).await;
        assert_eq!(taken.is_ok(), goes, "{fail:?} {safe:?}");
        let meter = resource.meter(b"").unwrap();
        assert!(!meter.wants(Instant::now(), resource.rules()).is_zero(), "demand is counted");
    }
}

#[tokio::test]
async fn places_are_held_and_given_back() {
    let (resource, _wants) = resource(rules(None));
    let meter = resource.lease(Instant::now(), b"", has(2));
    let take = || resource.acquire(Instant::now(), b"", 1, Fail::Safe, NOW);
    let (first, second) = (take().await.unwrap(), take().await.unwrap());
    assert!(first.is_some() && second.is_some());
    assert!(take().await.is_err());
    drop(first);
    assert!(take().await.is_ok());

    // Whoever comes while it is decided what is lent waits for that moment, and is not refused.
    let held = meter.places().close();
    assert_eq!(held, Micros::units(1));
    let (taken, ()) = tokio::join!(take(), async {
        tokio::time::sleep(CLOSED_WAIT * 3).await;
        meter.places().open(Micros::MAX);
    });
    assert!(taken.is_ok());
}

#[test]
fn ids_fit_and_long_keys_stay_apart() {
    let (resource, _wants) = resource(rate());
    let long = |last: u8| [vec![b'x'; 1_000], vec![last]].concat();
    let (one, two) = (long(1), long(2));
    let (one, two) = (resource.fitting(&one), resource.fitting(&two));
    assert_ne!(one, two);
    assert_eq!(resource.id(&one).len(), RESOURCE_ID_MAX);
    assert_eq!(&*resource.id(&resource.fitting(b"acme")), b"db\0acme");
    assert_eq!(&*resource.id(b""), b"db");
}

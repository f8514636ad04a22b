use std::time::Duration;

use super::*;
use crate::algorithm::{Algorithm, Claim, Floors};
use crate::client::BASE;
use crate::concurrency::Concurrency;
use crate::lease::{Loan, Word};
use crate::template::Safe;
use crate::wire::{Answer, Ask};

const DB: &[u8] = b"db";

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

fn templates(algorithm: Algorithm) -> Templates {
    let template = |pattern: &str| Template {
        pattern: pattern.into(),
        capacity: units(100),
        per: Some(secs(1)),
        burst: Micros::ZERO,
        algorithm,
        floors: Floors::default(),
        lease: secs(20),
        refresh: secs(5),
        learning: secs(20),
        safe: Safe::Share,
    };
    Templates::new(vec![template("*")]).unwrap()
}

/// Host 1 of hosts 1 to `hosts`.
fn quotas(now: Instant, hosts: u64) -> Quotas {
    let mut quotas = Quotas::new(now, Party { host: 1, life: 7 }, None);
    quotas.set_templates(now, templates(Algorithm::FairShare));
    let members = (1..=hosts).map(|host| (host, 1)).collect();
    quotas
        .set_roster(now, Roster { epoch: 1, members, settled: true, ..Roster::default() })
        .unwrap();
    quotas.set_live(now, (1..=hosts).collect());
    quotas
}

fn request(wants: Micros) -> Request {
    Request { claim: Claim { wants, subclients: 1, priority: 0 }, has: Micros::ZERO }
}

fn amount(quotas: &Quotas, now: Instant, id: &[u8]) -> Option<Micros> {
    quotas.spending(now, id).map(|spending| spending.amount)
}

fn run(quotas: &mut Quotas, now: &mut Instant, span: Duration) {
    let end = *now + span;
    while let Some(next) = quotas.poll_timeout().filter(|next| *next <= end) {
        *now = (*now).max(next);
        quotas.handle_timeout(*now);
        while quotas.poll_transmit().is_some() {}
    }
    *now = end;
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

fn ask(resource: &[u8], number: u64) -> Ask {
    Ask {
        resource: resource.into(),
        life: 1,
        number,
        stamp: 0,
        root_life: 7,
        echo: 0,
        wants: vec![Claim { wants: units(10), subclients: 1, priority: 0 }],
        own: units(50),
        pledge: Loan { seq: number, amount: units(50), lasts: secs(2) },
        word: Word::default(),
        extra: Duration::ZERO,
        epoch: 1,
        clear: true,
        settled: 1,
    }
}

fn answer(number: u64, host_life: u64, echo: u64) -> Answer {
    Answer {
        resource: DB.into(),
        life: 9,
        number,
        stamp: 0,
        host_life,
        echo,
        lease: Loan { seq: number, amount: units(40), lasts: secs(1) },
        keep: units(40),
        call: Micros::ZERO,
        word: Word::default(),
        extra: Duration::ZERO,
        settled: 1,
    }
}

#[test]
fn one_host_alone_has_everything_and_is_its_own_root() {
    let mut now = start();
    let mut quotas = quotas(now, 1);
    quotas.offer(now, DB, units(1_000)).unwrap();
    run(&mut quotas, &mut now, secs(10));
    let told = std::iter::from_fn(|| quotas.poll_event()).last();
    let spending = Spending { amount: units(100), in_touch: true };
    assert_eq!(told, Some(Event::Spend { resource: DB.into(), spending }));
    let report = quotas.reports(now).next().unwrap();
    assert_eq!((report.root, report.in_touch, report.has), (Some(1), true, units(100)));
    assert_eq!(report.serves.unwrap().hosts[0].wants, units(1_000));
}

#[test]
fn a_host_that_reaches_nobody_says_so_and_keeps_its_right() {
    let mut now = start();
    let mut quotas = quotas(now, 4);
    // A root elsewhere, that never answers.
    let id = (0..9u8).map(|id| vec![b'r', id]).find(|id| root_of(id, 1..=4) != Some(1)).unwrap();
    quotas.offer(now, &id, units(1_000)).unwrap();
    assert_eq!(
        quotas.spending(now, &id),
        Some(Spending { amount: units(25), in_touch: true }),
        "not before it had time"
    );
    run(&mut quotas, &mut now, BASE + secs(1));
    let told = std::iter::from_fn(|| quotas.poll_event()).last();
    let spending = Spending { amount: units(25), in_touch: false };
    assert_eq!(told, Some(Event::Spend { resource: Arc::from(id), spending }));
}

#[test]
fn clients_and_the_host_itself_share() {
    let mut now = start();
    let mut quotas = quotas(now, 1);
    quotas.offer(now, DB, units(60)).unwrap();
    for round in 0..3 {
        for client in [b"a", b"b"] {
            let has = if round == 0 { Micros::ZERO } else { units(33) };
            let grant = quotas
                .handle_client(now, DB, client, Request { has, ..request(units(60)) })
                .unwrap();
            assert_eq!((grant.lease, grant.refresh), (secs(20), secs(5)));
        }
        run(&mut quotas, &mut now, secs(5));
    }
    let held = quotas.reports(now).next().unwrap().clients_hold;
    assert!((65.0..67.0).contains(&held.as_f64()), "two of three: {held}");
    assert_eq!(amount(&quotas, now, DB), Some(units(100).minus(held)));
    quotas.handle_release(now, DB, b"a");
    assert!(amount(&quotas, now, DB).unwrap() > units(60));
    run(&mut quotas, &mut now, secs(30));
    assert_eq!(amount(&quotas, now, DB), Some(units(100)), "the other did not come back");
}

#[test]
fn what_requests_hold_is_not_lent_to_others() {
    let mut now = start();
    let mut quotas = quotas(now, 2);
    let id = (0..9u8).map(|id| vec![b'r', id]).find(|id| root_of(id, [1, 2]) == Some(2)).unwrap();
    quotas.offer(now, &id, units(40)).unwrap();
    let places = Concurrency::new();
    places.set_limit(units(50));
    let held: Vec<_> = (0..40).map(|_| places.try_enter().unwrap()).collect();
    quotas.hold(now, &id, Arc::clone(&places)).unwrap();
    let call = Answer {
        resource: Arc::from(&id[..]),
        call: units(50),
        lease: Loan::default(),
        ..answer(1, 7, 0)
    };
    quotas.handle_datagram(now, 2, &bytes(&Message::Answer(call))).unwrap();
    run(&mut quotas, &mut now, Duration::from_millis(300));
    let pledged = quotas.resources[&id[..]].client.ledger().lent(now, Party { host: 2, life: 9 });
    assert_eq!(pledged, units(10), "40 of 50 are held");
    assert!(places.try_enter().is_err(), "and the other ten are lent from the same moment on");
    drop(held);
    assert!(places.try_enter().is_ok());
}

#[test]
fn what_is_not_shared_needs_no_root() {
    let now = start();
    let mut quotas = quotas(now, 4);
    for (algorithm, expected) in [(Algorithm::Static, units(100)), (Algorithm::None, Micros::MAX)] {
        quotas.set_templates(now, templates(algorithm));
        quotas.offer(now, DB, units(1)).unwrap();
        assert_eq!(amount(&quotas, now, DB), Some(expected));
        assert_eq!(quotas.poll_transmit(), None);
    }
    let grant = quotas.handle_client(now, DB, b"c", request(units(500))).unwrap();
    assert_eq!(grant.amount, units(500));
}

#[test]
fn ids_are_bytes_of_any_kind_up_to_a_limit() {
    let now = start();
    let mut quotas = quotas(now, 1);
    let longest: Vec<u8> = (0..=255).map(|byte| if byte == b'/' { 0 } else { byte }).collect();
    assert!(quotas.handle_client(now, &longest, &longest, request(units(1))).is_ok());
    let long = [0xff; RESOURCE_ID_MAX + 1];
    assert_eq!(quotas.handle_client(now, &long, b"c", request(units(1))), Err(AskError::IdTooLong));
    assert_eq!(quotas.handle_client(now, DB, &long, request(units(1))), Err(AskError::IdTooLong));
    assert_eq!(quotas.offer(now, &long, units(1)), Err(AskError::IdTooLong));
    assert_eq!(quotas.offer(now, b"a/b", units(1)), Err(AskError::UnknownResource));
}

#[test]
fn resources_are_bounded_and_those_out_of_use_make_room() {
    let mut now = start();
    let mut quotas = quotas(now, 1);
    for id in 0..RESOURCES_MAX as u32 {
        quotas.offer(now, format!("r{id}").as_bytes(), units(1)).unwrap();
    }
    assert_eq!(quotas.offer(now, b"one too many", units(1)), Err(AskError::TooManyResources));
    quotas.offer(now, b"r7", Micros::ZERO).unwrap();
    run(&mut quotas, &mut now, secs(3));
    assert_eq!(quotas.offer(now, b"one too many", units(1)), Ok(()));
    assert_eq!(amount(&quotas, now, b"r7"), None);
    let forgotten = std::iter::from_fn(|| quotas.poll_event())
        .any(|event| event == Event::Forgotten { resource: b"r7"[..].into() });
    assert!(forgotten);
}

#[test]
fn a_resource_without_a_template_is_forgotten_when_its_loans_have_ended() {
    let mut now = start();
    let mut quotas = quotas(now, 2);
    let id = (0..9u8).map(|id| vec![b'r', id]).find(|id| root_of(id, [1, 2]) == Some(2)).unwrap();
    quotas.offer(now, &id, units(1)).unwrap();
    let call = Answer {
        resource: Arc::from(&id[..]),
        call: units(40),
        lease: Loan::default(),
        ..answer(1, 7, 0)
    };
    quotas.handle_datagram(now, 2, &bytes(&Message::Answer(call))).unwrap();
    run(&mut quotas, &mut now, Duration::from_millis(300));
    assert_eq!(amount(&quotas, now, &id), Some(units(10)), "40 are pledged");
    quotas.set_templates(now, Templates::default());
    assert_eq!(quotas.offer(now, &id, units(1)), Err(AskError::UnknownResource));
    assert_eq!(
        quotas.handle_client(now, &id, b"c", request(units(1))),
        Err(AskError::UnknownResource)
    );
    // It comes back: what is pledged still is.
    quotas.set_templates(now, templates(Algorithm::FairShare));
    quotas.offer(now, &id, units(1)).unwrap();
    assert_eq!(amount(&quotas, now, &id), Some(units(10)));
    quotas.set_templates(now, Templates::default());
    run(&mut quotas, &mut now, BASE + secs(1));
    assert_eq!((amount(&quotas, now, &id), quotas.poll_timeout()), (None, None));
}

#[test]
fn what_is_no_message_changes_nothing() {
    let now = start();
    let mut quotas = quotas(now, 2);
    assert_eq!(quotas.handle_datagram(now, 2, &[1, 200, 3]), Err(Malformed));
    let foreign = bytes(&Message::Ask(ask(b"a/b", 1)));
    assert_eq!(quotas.handle_datagram(now, 2, &foreign), Ok(()));
    let late = bytes(&Message::Answer(answer(1, 7, 0)));
    assert_eq!(quotas.handle_datagram(now, 2, &late), Ok(()));
    assert_eq!(quotas.counters(), Counters { malformed: 1, refused: 1, dropped: 0 });
    assert_eq!(
        (quotas.reports(now).count(), quotas.poll_timeout(), quotas.poll_transmit()),
        (0, None, None)
    );
}

#[test]
fn answers_to_another_life_from_the_future_or_again_are_not_listened_to() {
    let now = start() + secs(1);
    let mut quotas = quotas(now, 2);
    quotas.offer(now, DB, units(1_000)).unwrap();
    let mut hear = |answer: Answer| {
        quotas.handle_datagram(now, 2, &bytes(&Message::Answer(answer))).unwrap();
        amount(&quotas, now, DB).unwrap()
    };
    let right = units(50);
    assert_eq!(hear(answer(1, 6, 0)), right, "another life of this host");
    assert_eq!(hear(answer(1, 7, u64::MAX / 2)), right, "an answer to what was not asked yet");
    assert_eq!(hear(answer(2, 7, 0)), units(90));
    assert_eq!(
        hear(Answer {
            lease: Loan { seq: 9, amount: units(99), lasts: secs(1) },
            ..answer(1, 7, 0)
        }),
        units(90),
        "late"
    );
    assert_eq!(
        hear(Answer { settled: u64::MAX, ..answer(3, 7, 0) }),
        units(90),
        "settled is nothing that we know"
    );
}

#[test]
fn a_pledge_counts_only_for_the_life_and_from_the_moment_it_names() {
    let mut now = start();
    let mut quotas = quotas(now, 2);
    quotas.offer(now, DB, units(1_000)).unwrap();
    run(&mut quotas, &mut now, secs(1));
    let mut pledged = |ask: Ask| {
        quotas.handle_datagram(now, 2, &bytes(&Message::Ask(ask))).unwrap();
        quotas.resources[DB]
            .root_ledger()
            .map_or(Micros::ZERO, |ledger| ledger.borrowed(now, Party { host: 2, life: 1 }))
    };
    let echo = |millis: u64| millis * 1_000_000;
    assert_eq!(pledged(Ask { root_life: 6, echo: echo(900), ..ask(DB, 1) }), Micros::ZERO);
    assert_eq!(
        pledged(Ask { echo: echo(900_000), ..ask(DB, 2) }),
        Micros::ZERO,
        "it was not said yet"
    );
    let short = Loan { seq: 3, amount: units(50), lasts: Duration::from_millis(500) };
    assert_eq!(
        pledged(Ask { echo: echo(400), pledge: short, ..ask(DB, 3) }),
        Micros::ZERO,
        "it ended on the way"
    );
    assert_eq!(pledged(Ask { echo: echo(900), ..ask(DB, 4) }), units(50));
}

#[test]
fn a_root_that_wants_nothing_lends_what_it_owns_too() {
    let mut now = start();
    let mut quotas = quotas(now, 2);
    let names = (0u32..).map(|number| format!("db{number}").into_bytes());
    let id = names.into_iter().find(|id| root_of(id, [1, 2]) == Some(1)).unwrap();
    for number in 1..=20 {
        let wants = vec![Claim { wants: units(100), subclients: 1, priority: 0 }];
        let asks = Ask { wants, pledge: Loan::default(), ..ask(&id, number) };
        quotas.handle_datagram(now, 2, &bytes(&Message::Ask(asks))).unwrap();
        run(&mut quotas, &mut now, Duration::from_millis(100));
    }
    let left = amount(&quotas, now, &id).unwrap();
    assert!(left < units(1), "{left}: the other needs it");
}

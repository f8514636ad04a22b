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

const HOST: Party = Party { host: 1, life: 1 };
const ROOT: Party = Party { host: 2, life: 1 };
const OTHER: Party = Party { host: 3, life: 1 };

fn owner(right: u64) -> Ledger {
    let mut ledger = Ledger::new(None, 0);
    ledger.set_right(units(right));
    ledger
}

fn lend(ledger: &mut Ledger, now: Instant, to: Party, amount: u64, lasts: Duration) -> Loan {
    let mut room = ledger.room(now, now + lasts);
    ledger.lend(&mut room, to, units(amount), now + lasts)
}

fn give_back(ledger: &mut Ledger, now: Instant, from: Party, keep: u64) {
    let mut room = ledger.room(now, now);
    ledger.give_back(&mut room, from, units(keep));
}

#[test]
fn nobody_lends_more_than_he_has() {
    let t0 = start();
    let mut host = owner(10);
    assert_eq!(lend(&mut host, t0, ROOT, 7, secs(2)).amount, units(7));
    assert_eq!(lend(&mut host, t0, OTHER, 7, secs(2)).amount, units(3), "a right is pledged once");
    assert_eq!(host.usable(t0), Micros::ZERO);
    assert_eq!(host.usable(t0 + secs(3)), units(10), "loans end by themselves");
}

#[test]
fn no_lease_outlives_its_pledge() {
    let t0 = start();
    let mut root = Ledger::new(None, 0);
    root.handle_loan(t0, HOST, Loan { seq: 1, amount: units(8), lasts: secs(2) }, t0);
    let end = secs(2) - secs(2) / DRIFT;
    assert_eq!(
        lend(&mut root, t0, OTHER, 8, secs(2)).amount,
        Micros::ZERO,
        "it would end after its pledge"
    );
    let loan = lend(&mut root, t0, OTHER, 8, end);
    assert_eq!(loan, Loan { seq: 1, amount: units(8), lasts: end });
    let later = t0 + secs(1);
    let again = lend(&mut root, later, OTHER, 8, end);
    assert_eq!(
        again,
        Loan { seq: 1, amount: units(8), lasts: end - secs(1) },
        "not prolonged while the pledge is not"
    );
    root.handle_loan(later, HOST, Loan { seq: 2, amount: units(8), lasts: secs(2) }, later);
    assert_eq!(lend(&mut root, later, OTHER, 8, end).lasts, end);
}

#[test]
fn a_loan_is_counted_by_the_lender_until_the_borrower_shows_that_it_is_not_used() {
    let t0 = start();
    let (mut root, mut host) = (owner(10), Ledger::new(None, 0));
    let first = lend(&mut root, t0, HOST, 10, secs(2));
    host.handle_loan(t0, ROOT, first, t0);
    let word = host.word(t0, ROOT);
    give_back(&mut host, t0, ROOT, 4);
    assert_eq!(host.usable(t0), units(4));
    assert_eq!(root.lent(t0, HOST), units(10), "its word is on the way");
    // The word crosses a new statement: the host may hear that and count all of it again.
    let second = lend(&mut root, t0, HOST, 10, secs(2));
    root.handle_word(HOST, host.word(t0, ROOT));
    assert_eq!(root.lent(t0, HOST), units(10));
    host.handle_loan(t0, ROOT, second, t0);
    give_back(&mut host, t0, ROOT, 4);
    root.handle_word(HOST, host.word(t0, ROOT));
    assert_eq!(root.lent(t0, HOST), units(4));
    // What comes late changes nothing.
    host.handle_loan(t0, ROOT, first, t0);
    root.handle_word(HOST, word);
    assert_eq!((host.usable(t0), root.lent(t0, HOST)), (units(4), units(4)));
}

#[test]
fn a_borrower_counts_from_when_it_asked() {
    let t0 = start();
    let mut host = Ledger::new(None, 0);
    let heard = t0 + Duration::from_millis(700);
    host.handle_loan(heard, ROOT, Loan { seq: 1, amount: units(5), lasts: secs(1) }, t0);
    assert_eq!(host.usable(t0 + Duration::from_millis(980)), units(5));
    assert_eq!(
        host.usable(t0 + Duration::from_millis(990)),
        Micros::ZERO,
        "and a little less, should its clock be slow"
    );
}

#[test]
fn what_backs_a_loan_is_not_given_back() {
    let t0 = start();
    let mut root = Ledger::new(None, 0);
    root.handle_loan(t0, HOST, Loan { seq: 1, amount: units(8), lasts: secs(4) }, t0);
    lend(&mut root, t0, OTHER, 5, secs(2));
    give_back(&mut root, t0, HOST, 0);
    assert_eq!(root.borrowed(t0, HOST), units(5));
    give_back(&mut root, t0 + secs(3), HOST, 0);
    assert_eq!(root.borrowed(t0 + secs(3), HOST), Micros::ZERO);
}

#[test]
fn a_right_that_shrinks_prolongs_nothing_until_it_fits() {
    let t0 = start();
    let mut host = owner(10);
    let loan = lend(&mut host, t0, ROOT, 9, secs(2));
    host.set_right(units(6));
    let same = lend(&mut host, t0 + secs(1), ROOT, 9, secs(2));
    assert_eq!((same.seq, same.amount, same.lasts), (loan.seq, units(9), secs(1)));
    assert!(!host.fits(t0 + secs(1), units(6)));
    assert_eq!(host.usable(t0 + secs(1)), Micros::ZERO);
    assert!(host.fits(t0 + secs(3), units(6)));
    assert_eq!(lend(&mut host, t0 + secs(3), ROOT, 9, secs(2)).amount, units(6));
}

#[test]
fn an_earlier_lifes_loans_lock_the_right() {
    let t0 = start();
    let mut host = Ledger::new(Some(t0 + secs(2)), 0);
    host.set_right(units(10));
    assert_eq!(host.usable(t0), Micros::ZERO);
    assert_eq!(lend(&mut host, t0, ROOT, 5, secs(9)).amount, Micros::ZERO);
    assert_eq!(host.usable(t0 + secs(2)), Micros::ZERO, "to the end");
    assert_eq!(host.usable(t0 + secs(3)), units(10));
}

/// Until 20 s from now, or 5 s at least.
fn reserve(
    ledger: &mut Ledger,
    now: Instant,
    others: u64,
    shown: u64,
    wanted: u64,
) -> Option<(Micros, Duration)> {
    let granted = ledger.reserve(
        now,
        units(others),
        units(shown),
        units(wanted),
        now + secs(5),
        now + secs(20),
    );
    granted.map(|(amount, end)| (amount, end - now))
}

#[test]
fn what_clients_hold_is_not_lent_away() {
    let t0 = start();
    let mut host = owner(10);
    assert_eq!(reserve(&mut host, t0, 0, 0, 4), Some((units(4), secs(20))));
    assert_eq!(lend(&mut host, t0, ROOT, 10, secs(2)).amount, units(6));
    assert_eq!(reserve(&mut host, t0, 4, 0, 5), Some((Micros::ZERO, secs(20))), "nothing is left");
    assert_eq!(
        reserve(&mut host, t0, 1, 0, 5),
        Some((units(3), secs(20))),
        "the first holds one by now"
    );
    assert_eq!(reserve(&mut host, t0, 1, 3, 2), Some((units(2), secs(20))));
    assert_eq!(lend(&mut host, t0, ROOT, 10, secs(2)).amount, units(6), "it may still use three");
}

#[test]
fn a_promise_to_a_client_ends_with_what_backs_it() {
    let t0 = start();
    let mut host = owner(2);
    host.handle_loan(t0, ROOT, Loan { seq: 1, amount: units(5), lasts: secs(1) }, t0);
    assert_eq!(host.usable(t0), units(7));
    assert_eq!(
        reserve(&mut host, t0, 0, 0, 7),
        Some((units(2), secs(20))),
        "five are borrowed for a moment"
    );
    host.handle_loan(t0, ROOT, Loan { seq: 2, amount: units(5), lasts: secs(16) }, t0);
    assert_eq!(reserve(&mut host, t0, 0, 0, 7), Some((units(7), secs(16) - secs(16) / DRIFT)));
    let later = t0 + secs(12);
    assert_eq!(
        reserve(&mut host, later, 0, 7, 7),
        None,
        "seven are out, and two are held for so long"
    );
    let (granted, _) = reserve(&mut host, t0 + secs(17), 0, 0, 7).unwrap();
    assert_eq!(granted, units(2), "they ran out");
}

#[test]
fn what_requests_in_flight_hold_is_neither_lent_nor_given_back() {
    let t0 = start();
    let mut host = owner(10);
    host.handle_loan(t0, ROOT, Loan { seq: 1, amount: units(5), lasts: secs(4) }, t0);
    host.set_in_use(units(12));
    give_back(&mut host, t0, ROOT, 0);
    assert_eq!(host.usable(t0), units(12));
    host.set_in_use(units(3));
    give_back(&mut host, t0, ROOT, 0);
    assert_eq!(host.usable(t0), units(10));
    assert_eq!(lend(&mut host, t0, ROOT, 10, secs(2)).amount, units(7));
}

#[test]
fn what_clients_hold_of_an_earlier_life_may_be_prolonged_and_no_more() {
    let t0 = start();
    let mut host = Ledger::new(Some(t0 + secs(22)), 0);
    host.set_right(units(10));
    assert_eq!(reserve(&mut host, t0, 0, 8, 9), Some((units(8), secs(20))));
    assert_eq!(reserve(&mut host, t0, 8, 3, 3), None, "more than it ever owned");
    assert_eq!(
        lend(&mut host, t0 + secs(23), ROOT, 9, secs(2)).amount,
        units(9),
        "they did not come back"
    );
}

#[test]
fn an_old_statement_is_not_taken_for_a_new_one_after_the_loan_ended() {
    let t0 = start();
    let (mut root, mut host) = (owner(10), Ledger::new(None, 0));
    let long = lend(&mut root, t0, HOST, 10, secs(8));
    host.handle_loan(t0, ROOT, long, t0);
    give_back(&mut host, t0, ROOT, 0);
    root.handle_word(HOST, host.word(t0, ROOT));
    let short = lend(&mut root, t0, HOST, 1, secs(1));
    host.handle_loan(t0, ROOT, short, t0);
    let later = t0 + secs(2);
    root.expire(later);
    host.expire(later);
    host.handle_loan(t0, ROOT, long, t0);
    assert_eq!((host.usable(later), root.lent(later, HOST)), (Micros::ZERO, Micros::ZERO));
}

#[test]
fn a_statement_said_again_after_the_borrower_thought_it_over_is_not_new() {
    let t0 = start();
    let (mut root, mut host) = (owner(10), Ledger::new(None, 0));
    host.handle_loan(t0, ROOT, lend(&mut root, t0, HOST, 10, secs(64)), t0);
    give_back(&mut host, t0, ROOT, 0);
    let word = host.word(t0, ROOT);
    // For the borrower it ended a second earlier than for the lender, who says it again.
    let late = t0 + Duration::from_millis(63_500);
    root.expire(late);
    host.expire(late);
    host.handle_loan(late, ROOT, root.loan(late, HOST), late);
    root.handle_word(HOST, word);
    assert_eq!((host.usable(late), root.lent(late, HOST)), (Micros::ZERO, Micros::ZERO));
}

#[test]
fn what_clients_hold_counts_until_it_ends() {
    let t0 = start();
    let mut host = owner(10);
    let end = t0 + secs(20);
    let granted = host.reserve(t0, Micros::ZERO, Micros::ZERO, units(8), end, end);
    assert_eq!(granted, Some((units(8), end)));
    assert!(
        host.fits(t0, units(8)) && !host.fits(t0, units(5)),
        "not clear with half of its right"
    );
    assert!(host.fits(end + secs(1), units(5)), "their leases have ended");
}

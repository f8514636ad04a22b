//! Every order of events among two hosts and two roots, within bounds: the ledgers of production, driven by a model checker.
//!
//! The model leaves out what decides (who is root, how much is fair) and allows everything instead: any party may lend to any, ask back or
//! give back at any moment, as its ledger lets it. So what holds here holds for every policy, for roots that disagree, and for views of
//! the mesh that are wrong. Messages, once sent, may be delivered at any later moment, in any order, any number of times, or never: that is
//! loss, delay, duplication, reordering and partition at once. Parties crash and come back. Clocks differ by as much as is allowed.
//!
//! Two things must always hold: what all may use is no more than the capacity, and no right is pledged twice. A checker that finds nothing
//! proves little, so each rule of the protocol is broken in turn, and each of these mutants must be found out.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use evenkeel_ratelimit::{Ledger, Loan, Micros, Party, Word};
use stateright::{Checker, Model, Property};

/// Hosts 0 and 1 own one unit each; 2 and 3 are roots.
const PARTIES: usize = 4;
const CAPACITY: u64 = 2;
const UNIT: Duration = Duration::from_secs(64);
/// A pledge lasts two ticks, a lease one.
const LENGTHS: [u32; 2] = [1, 2];
/// Long enough for a pledge, and a lease on it, to end.
const TICKS: u32 = 3;
const SECOND: Duration = Duration::from_secs(1);

/// A rule of the protocol, broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// None is.
    Faithful,
    /// A lender that asks a loan back counts it as given back at once.
    ReleasedEarly,
    /// A root takes pledges to last a tick longer than they do, so leases outlive them.
    LeaseOutlivesPledge,
    /// A borrower counts a loan from when the statement arrives.
    CountedFromReceipt,
    /// An old statement that comes again is taken for a new one.
    StaleBelieved,
    /// A borrower's word counts, whichever statement it is about.
    WordForAnyStatement,
    /// A host that comes back uses its right at once.
    RestartForgets,
    /// A clock is slower than allowed.
    SlowClock,
    /// A host lends its right to each root.
    PledgedTwice,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Content {
    Loan { loan: Loan, asked: Instant },
    Word(Word),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Message {
    from: Party,
    to: Party,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    tick: u32,
    ledgers: Vec<Ledger>,
    lives: Vec<u64>,
    /// All that was ever sent, in no order.
    sent: BTreeSet<Message>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Tick,
    Lend {
        from: usize,
        to: usize,
        ticks: u32,
    },
    /// The lender wants it back. (Faithfully that changes nothing until the borrower has given it back.)
    AskBack {
        from: usize,
        to: usize,
    },
    GiveBack {
        from: usize,
        to: usize,
    },
    Deliver(Message),
    Restart(usize),
}

struct Protocol {
    mutant: Mutant,
    start: Instant,
    roots: Range<usize>,
    messages: usize,
}

impl Protocol {
    fn new(mutant: Mutant, roots: Range<usize>, messages: usize) -> Protocol {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let start = Instant::now();
        Protocol { mutant, start, roots, messages }
    }

    /// What a party's clock shows: those of odd parties are slow, by as much as is allowed.
    fn now(&self, state: &State, party: usize) -> Instant {
        let slow = match self.mutant {
            Mutant::SlowClock => 2,
            _ => 64,
        };
        let elapsed = UNIT * state.tick;
        let elapsed = if party % 2 == 1 { elapsed - elapsed / slow } else { elapsed };
        self.start + SECOND * (1_000 * (party as u32 + 1)) + elapsed
    }

    fn party(state: &State, index: usize) -> Party {
        Party { host: index as u64, life: state.lives[index] }
    }

    fn right(party: usize) -> Micros {
        Micros::units(u64::from(party < 2))
    }

    fn usable(&self, state: &State) -> u128 {
        Micros::sum((0..PARTIES).map(|party| state.ledgers[party].usable(self.now(state, party))))
    }

    fn lend(&self, state: &mut State, from: usize, to: usize, ticks: u32) {
        let (now, other) = (self.now(state, from), Self::party(state, to));
        let until = now + UNIT * ticks;
        let ledger = &mut state.ledgers[from];
        let amount = ledger.lent(now, other).plus(Micros::units(1));
        let loan = if self.mutant == Mutant::PledgedTwice && from < 2 {
            let mut other_pledges = ledger.clone();
            (2..PARTIES).filter(|root| *root != to).for_each(|root| {
                let seq = other_pledges.loan(now, Self::party(state, root)).seq;
                other_pledges
                    .handle_word(Self::party(state, root), Word { seq, amount: Micros::ZERO });
            });
            let mut room = other_pledges.room(now, until);
            let loan = other_pledges.lend(&mut room, other, amount, until);
            state.ledgers[from] = other_pledges;
            loan
        } else {
            let mut room = ledger.room(now, until);
            ledger.lend(&mut room, other, amount.min(Micros::units(1)), until)
        };
        if loan.amount.is_zero() {
            return;
        }
        // The worst case: the borrower asked in this very moment.
        let asked = self.now(state, to);
        self.send(state, from, to, Content::Loan { loan, asked });
    }

    fn give_back(&self, state: &mut State, from: usize, to: usize) {
        let (now, lender) = (self.now(state, from), Self::party(state, to));
        let ledger = &mut state.ledgers[from];
        let mut room = ledger.room(now, now);
        ledger.give_back(&mut room, lender, Micros::ZERO);
        let word = ledger.word(now, lender);
        if word.seq > 0 {
            self.send(state, from, to, Content::Word(word));
        }
    }

    fn send(&self, state: &mut State, from: usize, to: usize, content: Content) {
        let message =
            Message { from: Self::party(state, from), to: Self::party(state, to), content };
        state.sent.insert(message);
    }

    fn deliver(&self, state: &mut State, message: Message) {
        let Message { from, to, content } = message;
        let party = to.host as usize;
        if Self::party(state, party) != to {
            return;
        }
        let now = self.now(state, party);
        match content {
            Content::Loan { mut loan, mut asked } => {
                let ledger = &mut state.ledgers[party];
                match self.mutant {
                    Mutant::CountedFromReceipt => asked = now,
                    Mutant::LeaseOutlivesPledge if party >= 2 => loan.lasts += UNIT,
                    Mutant::StaleBelieved => loan.seq = ledger.word(now, from).seq + 1,
                    _ => {}
                }
                ledger.handle_loan(now, from, loan, asked);
            }
            Content::Word(mut word) => {
                let ledger = &mut state.ledgers[party];
                if self.mutant == Mutant::WordForAnyStatement {
                    word.seq = ledger.loan(now, from).seq;
                }
                ledger.handle_word(from, word);
            }
        }
    }

    /// Its loans are forgotten. A host waits until those that it may have lent have ended.
    fn restart(&self, state: &mut State, party: usize) {
        let longest = LENGTHS[LENGTHS.len() - 1];
        let locked = self.now(state, party) + UNIT * longest;
        let locked = (self.mutant != Mutant::RestartForgets).then_some(locked);
        state.lives[party] += 1;
        state.ledgers[party] = Ledger::new(locked, 0);
        state.ledgers[party].set_right(Self::right(party));
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let ledger = |party| {
            let mut ledger = Ledger::new(None, 0);
            ledger.set_right(Self::right(party));
            ledger
        };
        vec![State {
            tick: 0,
            ledgers: (0..PARTIES).map(ledger).collect(),
            lives: vec![1; PARTIES],
            sent: BTreeSet::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.tick < TICKS {
            actions.push(Action::Tick);
        }
        actions.extend(state.sent.iter().cloned().map(Action::Deliver));
        if state.lives.iter().sum::<u64>() == PARTIES as u64 {
            actions.extend((0..2).chain(self.roots.clone()).map(Action::Restart));
        }
        if state.sent.len() >= self.messages {
            return;
        }
        for host in 0..2 {
            for root in self.roots.clone() {
                for (from, to) in [(host, root), (root, host)] {
                    // Pledges are longer than leases; both lengths for leases let some be too long for their pledge.
                    let lengths = if from < 2 { &LENGTHS[1..] } else { &LENGTHS[..] };
                    actions.extend(lengths.iter().map(|ticks| Action::Lend {
                        from,
                        to,
                        ticks: *ticks,
                    }));
                    actions.push(Action::GiveBack { from, to });
                    if self.mutant == Mutant::ReleasedEarly {
                        actions.push(Action::AskBack { from, to });
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => state.tick += 1,
            Action::Lend { from, to, ticks } => self.lend(&mut state, from, to, ticks),
            Action::AskBack { from, to } => {
                let (now, other) = (self.now(&state, from), Self::party(&state, to));
                let seq = state.ledgers[from].loan(now, other).seq;
                state.ledgers[from].handle_word(other, Word { seq, amount: Micros::ZERO });
            }
            Action::GiveBack { from, to } => self.give_back(&mut state, from, to),
            Action::Deliver(message) => self.deliver(&mut state, message),
            Action::Restart(party) => self.restart(&mut state, party),
        }
        for party in 0..PARTIES {
            let now = self.now(&state, party);
            state.ledgers[party].expire(now);
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "all may use no more than there is",
                |protocol: &Protocol, state: &State| {
                    protocol.usable(state) <= u128::from(Micros::units(CAPACITY).micros())
                },
            ),
            Property::always("no right is pledged twice", |protocol: &Protocol, state: &State| {
                (0..2).all(|host| {
                    state.ledgers[host].fits(protocol.now(state, host), Protocol::right(host))
                })
            }),
            Property::sometimes(
                "a host uses what another owns",
                |protocol: &Protocol, state: &State| {
                    state.ledgers[0].usable(protocol.now(state, 0)) == Micros::units(2)
                },
            ),
            Property::sometimes("a loan comes back", |protocol: &Protocol, state: &State| {
                let (now, root) = (protocol.now(state, 0), protocol.roots.start);
                let word = state.ledgers[0].word(now, Protocol::party(state, root));
                // The root has what the host gave back, and the host what it owns.
                word.seq > 0
                    && word.amount.is_zero()
                    && state.ledgers[0].usable(now) == Micros::units(1)
                    && state.ledgers[root].usable(protocol.now(state, root)) == Micros::units(1)
            }),
        ]
    }
}

fn holds(roots: Range<usize>, messages: usize, states_min: usize) {
    let checker =
        Protocol::new(Mutant::Faithful, roots, messages).checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} of them different",
        checker.state_count(),
        checker.unique_state_count()
    );
    assert!(checker.unique_state_count() >= states_min, "it looked at too little to mean anything");
    checker.assert_properties();
}

#[test]
fn roots_that_disagree_never_pass_the_capacity() {
    holds(2..4, 3, 100_000);
}

#[test]
fn one_root_whose_clock_is_fast_never_passes_the_capacity() {
    holds(2..3, 4, 100_000);
}

#[test]
fn one_root_whose_clock_is_slow_never_passes_the_capacity() {
    holds(3..4, 4, 100_000);
}

/// Each mutant breaks `property` within the bounds.
fn is_found(mutant: Mutant, property: &'static str, messages: usize) {
    let checker = Protocol::new(mutant, 2..4, messages)
        .checker()
        .threads(2)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let trace =
        checker.discovery(property).unwrap_or_else(|| panic!("{mutant:?} was not found out"));
    println!("{mutant:?}: {:?}", trace.into_actions());
}

const CAPACITY_HOLDS: &str = "all may use no more than there is";

#[test]
fn mutant_a_pledge_is_released_early() {
    is_found(Mutant::ReleasedEarly, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_a_lease_outlives_its_pledge() {
    is_found(Mutant::LeaseOutlivesPledge, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_a_holder_counts_from_receipt() {
    is_found(Mutant::CountedFromReceipt, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_an_old_statement_is_taken_for_a_new_one() {
    is_found(Mutant::StaleBelieved, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_a_word_counts_for_any_statement() {
    is_found(Mutant::WordForAnyStatement, CAPACITY_HOLDS, 5);
}

#[test]
fn mutant_a_restarted_host_uses_its_right_at_once() {
    is_found(Mutant::RestartForgets, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_a_clock_is_slower_than_allowed() {
    is_found(Mutant::SlowClock, CAPACITY_HOLDS, 4);
}

#[test]
fn mutant_a_right_is_pledged_twice() {
    // The ledger of this mutant forgets the other pledge, so it shows in what all may use.
    is_found(Mutant::PledgedTwice, CAPACITY_HOLDS, 4);
}

//! Capacity lent for a while: what each side of a lease may count on, and the ledger that keeps anyone from lending what he has not.
//!
//! **The problem.** A resource has capacity C, shared by hosts that cannot agree on anything while the network is broken. Each host owns a
//! right, and the rights add up to at most C. Rights move only by *loans*: a host lends to a root what it does not need (a *pledge*), a
//! root lends on what was pledged to it (a *lease*), a host lends on to Doorman clients. If at every moment, for each loan, the lender's
//! count of it is at least the borrower's, and nobody lends more than he has, then what all may use together is at most the sum of the
//! rights. No agreement on who is root enters into that: roots that disagree hold different loans. So no consensus is needed for
//! safety; it would be needed only to take a right from someone who does not answer (see `election`).
//!
//! **A loan** is a numbered statement by its lender: this much, until then.
//! 1. *Only the lender raises it* (more, or longer), by a new statement that is at least what he counts already. He counts it from when
//!    he sends it; the borrower from when it arrives.
//! 2. *Only the borrower lowers it*, by his word: "having heard statement n, I count this much". He stops counting before he sends it; the
//!    lender when it arrives, and only if n is his latest statement (the borrower may yet hear a later one, and count that).
//! 3. *It ends by itself.* The lender counts it for its length from when he sent the statement. The borrower counts from when he sent the
//!    message that the statement answers, which was earlier, whatever the delay; and an [`DRIFT`]th less, because clocks run at
//!    different speeds. Clocks are never compared.
//!
//! Every rule is conservative when messages are lost (the lender counts too long), duplicated or reordered (numbers only rise).
//!
//! **The ledger** lends until t only while all that is lent now, with the new loan, is at most what it holds until t or longer
//! ([`Room`]). Then everything lent is covered at any later moment τ: take the last loan made among those alive at τ; when it was made,
//! all of them were counted, against holdings that reach τ; and holdings are given back only under the same condition.
//! Loans that cannot be covered so are not prolonged, and run out.
//!
//! The obvious alternative is one server that grants leases out of C, and an election that gives two such servers during a
//! partition, and 2 C. What this file does not do: it decides neither how much to lend nor to whom.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::quantity::Micros;

/// One side of a loan: a host, and which life of its process. Another life knows nothing of the loans of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party {
    /// The host.
    pub host: u64,
    /// Differs each time its process starts.
    pub life: u64,
}

/// A lender's statement as it travels: the length counts from the message that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Loan {
    /// Rises with every statement of a lender.
    pub seq: u64,
    /// How much.
    pub amount: Micros,
    /// For how long.
    pub lasts: Duration,
}

/// A borrower's word: having heard statement `seq`, it counts `amount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Word {
    /// The latest statement that was heard.
    pub seq: u64,
    /// How much of it is still wanted.
    pub amount: Micros,
}

/// One side's count of a loan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Count {
    seq: u64,
    amount: Micros,
    until: Instant,
    /// No statement so far can have an end later than this, on its lender's clock either. Forgotten earlier, a repetition of an old
    /// one would be taken for a new one.
    remember: Instant,
}

impl Count {
    fn at(&self, moment: Instant) -> Micros {
        if self.until >= moment { self.amount } else { Micros::ZERO }
    }
}

/// What one party owns, has borrowed and has lent of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ledger {
    right: Micros,
    /// An earlier life may have lent the right until then.
    locked_until: Option<Instant>,
    /// What Doorman clients hold, and until when at the latest.
    reserved: Option<(Micros, Instant)>,
    /// What is held by requests in flight, who give it back when they end.
    in_use: Micros,
    lent: BTreeMap<Party, Count>,
    borrowed: BTreeMap<Party, Count>,
    seq: u64,
}

/// What may still be lent until one moment; made by [`Ledger::room`] and used up loan by loan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    now: Instant,
    until: Instant,
    /// Held until then or longer.
    held: u128,
    /// Lent now, for however long.
    lent: u128,
}

impl Room {
    /// How much more may be lent.
    #[must_use]
    pub fn free(&self) -> Micros {
        Micros::from_u128(self.held.saturating_sub(self.lent))
    }

    /// Whether all that is lent is held for so long. If not, nothing is prolonged.
    #[must_use]
    pub fn covers(&self) -> bool {
        self.lent <= self.held
    }

    /// Until when.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }
}

impl Ledger {
    /// Owns nothing yet. What it comes to own is not touched before `locked_until`: so long may an earlier life have lent it. Statements
    /// are numbered from above `seq`, which must be more than any earlier ledger of this life used.
    #[must_use]
    pub fn new(locked_until: Option<Instant>, seq: u64) -> Ledger {
        Ledger { locked_until, seq, ..Ledger::default() }
    }

    /// Owns `right` from now on. If more is lent than that, nothing is prolonged until it fits.
    pub fn set_right(&mut self, right: Micros) {
        self.right = right;
    }

    /// Requests in flight hold so much, where a resource is held and not spent: it is neither lent nor given back. (A lease that runs out under
    /// them is passed by what they hold, until they end.)
    pub fn set_in_use(&mut self, in_use: Micros) {
        self.in_use = in_use;
    }

    /// What it owns.
    #[must_use]
    pub fn owned(&self) -> Micros {
        self.right
    }

    /// What it owns and may touch.
    #[must_use]
    pub fn right(&self, now: Instant) -> Micros {
        if self.is_locked(now) { Micros::ZERO } else { self.right }
    }

    /// What may be used now: owned and borrowed, less what is lent to other parties. What clients hold is part of it.
    #[must_use]
    pub fn usable(&self, now: Instant) -> Micros {
        let held = self.held(now, now);
        Micros::from_u128(held.saturating_sub(sum(&self.lent, now)))
    }

    /// Whether what is lent, to hosts and to clients, and what requests hold fits into `right`, as if nothing were borrowed.
    #[must_use]
    pub fn fits(&self, now: Instant, right: Micros) -> bool {
        let clients = self.reserved.filter(|(_, end)| *end >= now);
        let clients = clients.map_or(0, |(amount, _)| u128::from(amount.micros()));
        let in_use = u128::from(self.in_use.micros());
        sum(&self.lent, now) + clients + in_use <= u128::from(right.micros())
    }

    /// What may be lent from now until `until`; beyond the latest end of what is lent already, so that it also says what may be given back.
    #[must_use]
    pub fn room(&self, now: Instant, until: Instant) -> Room {
        let ends =
            self.lent.values().filter(|count| !count.at(now).is_zero()).map(|count| count.until);
        let reserved = self.reserved.filter(|(amount, end)| *end >= now && !amount.is_zero());
        let until = ends.chain(reserved.map(|(_, end)| end)).fold(until, Instant::max);
        let reserved = reserved.map_or(0, |(amount, _)| u128::from(amount.micros()));
        let in_use = u128::from(self.in_use.micros());
        let lent = sum(&self.lent, now) + reserved + in_use;
        Room { now, until, held: self.held(now, until), lent }
    }

    /// Lends `to` this much until `until` (at most the room's), as far as there is room. It never lends less than before.
    pub fn lend(&mut self, room: &mut Room, to: Party, amount: Micros, until: Instant) -> Loan {
        debug_assert!(until <= room.until, "the room is for loans that end earlier");
        let before = self.lent.get(&to).copied();
        let counted = before.map_or(Micros::ZERO, |count| count.at(room.now));
        let more = amount.minus(counted).min(room.free());
        if room.covers() && !counted.plus(more).is_zero() {
            let until =
                before.filter(|_| !counted.is_zero()).map_or(until, |count| count.until.max(until));
            room.lent += u128::from(more.micros());
            self.seq += 1;
            let amount = counted.plus(more);
            self.lent.insert(to, Count { seq: self.seq, amount, until, remember: until });
        }
        self.loan(room.now, to)
    }

    /// The latest statement to `to`, once more.
    #[must_use]
    pub fn loan(&self, now: Instant, to: Party) -> Loan {
        let Some(count) = self.lent.get(&to) else { return Loan::default() };
        Loan {
            seq: count.seq,
            amount: count.at(now),
            lasts: count.until.saturating_duration_since(now),
        }
    }

    /// What is lent to `to`, counted by us.
    #[must_use]
    pub fn lent(&self, now: Instant, to: Party) -> Micros {
        self.lent.get(&to).map_or(Micros::ZERO, |count| count.at(now))
    }

    /// A borrower's word on what we lent.
    pub fn handle_word(&mut self, from: Party, word: Word) {
        if let Some(count) = self.lent.get_mut(&from)
            && count.seq == word.seq
        {
            count.amount = count.amount.min(word.amount);
        }
    }

    /// A lender's statement, in answer to a message that we sent at `asked`.
    pub fn handle_loan(&mut self, now: Instant, from: Party, loan: Loan, asked: Instant) {
        let lasts = loan.lasts.min(LOAN_MAX);
        let until = asked + (lasts - lasts / DRIFT);
        let count = self.borrowed.entry(from).or_insert(Count {
            seq: 0,
            amount: Micros::ZERO,
            until: asked,
            remember: asked,
        });
        if loan.seq > count.seq {
            // The new statement is at least the old one, also in its end, which we may know more exactly from the old one.
            let until = if count.amount.is_zero() { until } else { until.max(count.until) };
            // The lender sent it before now, and its clock may be slow.
            let remember = count.remember.max(now + lasts + lasts / DRIFT * 2);
            *count = Count { seq: loan.seq, amount: loan.amount, until, remember };
        }
    }

    /// What is borrowed from `from`, counted by us.
    #[must_use]
    pub fn borrowed(&self, now: Instant, from: Party) -> Micros {
        self.borrowed.get(&from).map_or(Micros::ZERO, |count| count.at(now))
    }

    /// Gives back what is borrowed from `from` down to `keep`, as far as what we lent stays covered.
    pub fn give_back(&mut self, room: &mut Room, from: Party, keep: Micros) {
        let Some(count) = self.borrowed.get_mut(&from) else { return };
        if !room.covers() {
            return;
        }
        let counts = count.at(room.until);
        let excess = count.at(room.now).minus(keep);
        // What ends before the room does is not counted in it, and nothing that is lent relies on it.
        let excess = if counts.is_zero() { excess } else { excess.min(room.free()) };
        room.held -= u128::from(if counts.is_zero() { 0 } else { excess.micros() });
        count.amount = count.at(room.now).minus(excess);
    }

    /// Our word on what is borrowed from `from`.
    #[must_use]
    pub fn word(&self, now: Instant, from: Party) -> Word {
        let Some(count) = self.borrowed.get(&from) else { return Word::default() };
        Word { seq: count.seq, amount: count.at(now) }
    }

    /// Sets aside for one of its clients, of whom the `others` may hold so much and this one has `shown` that it holds so much: what it gets of
    /// `wanted`, and until when (between `soonest` and `latest`: a promise ends with what backs it). `None`: what is out already is more
    /// than is held for so long, so nothing is promised or prolonged. While the right is locked, what clients hold of the earlier life may
    /// be prolonged, as far as the right will back it.
    pub fn reserve(
        &mut self,
        now: Instant,
        others: Micros,
        shown: Micros,
        wanted: Micros,
        soonest: Instant,
        latest: Instant,
    ) -> Option<(Micros, Instant)> {
        let ends = self.borrowed.values().map(|count| count.until);
        let ends = ends.filter(|end| (soonest..latest).contains(end)).chain([latest]);
        let end = ends.max_by_key(|end| (self.held(now, *end), *end)).expect("there is the latest");
        let before = self.reserved.filter(|(_, end)| *end >= now).map(|(_, end)| end);
        let out = others.plus(shown);
        self.reserved = Some((out, before.unwrap_or(now)));
        let room = self.room(now, end);
        let (covers, free) = match self.is_locked(now) {
            true => (out <= self.right, Micros::ZERO),
            false => (room.covers(), room.free()),
        };
        if !covers {
            return None;
        }
        let granted = wanted.min(shown.plus(free));
        let end_of_all = before.map_or(end, |before| before.max(end));
        self.reserved = Some((others.plus(shown.max(granted)), end_of_all));
        Some((granted, end))
    }

    /// What it has for its dealings with `party`: its right, less what it lent to others. What it borrowed from others comes on top, but
    /// not for long enough to deal with it.
    #[must_use]
    pub fn own_towards(&self, now: Instant, party: Option<Party>) -> Micros {
        let others = self.lent.iter().filter(|(other, _)| Some(**other) != party);
        let lent = Micros::sum(others.map(|(_, count)| count.at(now)));
        self.right(now).minus(Micros::from_u128(lent))
    }

    /// Parties with whom a loan is open.
    #[must_use]
    pub fn open(&self, now: Instant) -> usize {
        let open = |side: &BTreeMap<Party, Count>| {
            side.values().filter(|count| !count.at(now).is_zero()).count()
        };
        open(&self.lent) + open(&self.borrowed)
    }

    /// When the next loan ends, or the right is unlocked.
    #[must_use]
    pub fn next_end(&self, now: Instant) -> Option<Instant> {
        let counts = self.lent.values().chain(self.borrowed.values());
        let ends = counts.filter(|count| !count.at(now).is_zero()).map(|count| count.until);
        ends.chain(self.locked_until.filter(|until| *until >= now)).min()
    }

    /// Forgets loans that have ended, with every statement about them.
    pub fn expire(&mut self, now: Instant) {
        self.lent.retain(|_, count| count.remember >= now);
        self.borrowed.retain(|_, count| count.remember >= now);
    }

    /// Whether nothing is open and nothing needs to be remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lent.is_empty() && self.borrowed.is_empty()
    }

    /// Whether an earlier life may still have lent the right.
    #[must_use]
    pub fn is_locked(&self, now: Instant) -> bool {
        self.locked_until.is_some_and(|until| now <= until)
    }

    fn held(&self, now: Instant, until: Instant) -> u128 {
        u128::from(self.right(now).micros()) + sum(&self.borrowed, until)
    }
}

fn sum(side: &BTreeMap<Party, Count>, moment: Instant) -> u128 {
    Micros::sum(side.values().map(|count| count.at(moment)))
}

/// A borrower's clock may run slower than its lender's by one part in so many.
pub const DRIFT: u32 = 64;
/// The longest loan: a longer one counts as this.
pub const LOAN_MAX: Duration = Duration::from_secs(2 * 3600);

#[cfg(test)]
mod tests;

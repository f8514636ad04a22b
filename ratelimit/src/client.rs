//! What a host does about one resource: it tells the root what it wants, lends what it is called to lend, and uses what it has.
//!
//! Invariants: what it may use ([`Client::usable`]) is its right and what it borrowed, less what it lent; never more. It keeps at least
//! one [`RESERVE`]th of its right, so a host that was idle is never at nothing when its first request comes. It speaks to one
//! root at a time; loans to and from a former root run out by themselves, and meanwhile count as they are.
//!
//! So there is no fallback to write: a host that reaches nobody gets its loans back as they end, within [`BASE`] (longer where Doorman clients
//! need long leases), and then has its right, which is the safe capacity. It borrows only while it is in touch.
//!
//! A host that wants nothing, and has lent nothing, is silent until a root summons it. Any other asks every [`REFRESH`], and at once when its wants change by much, when it gave something back, or when it is called to lend:
//! that ask is what acknowledges a push. Loss is repaired by the next refresh.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::algorithm::BANDS_MAX;
use crate::election::Rosters;
use crate::lease::{LOAN_MAX, Ledger, Party};
use crate::quantity::Micros;
use crate::wire::{Answer, Ask, Wants};

/// One host's side of one resource.
#[derive(Debug, Clone)]
pub struct Client {
    resource: Arc<[u8]>,
    me: Party,
    /// Stamps count from here.
    epoch: Instant,
    ledger: Ledger,
    /// Who to ask.
    root: Option<u64>,
    contact: Option<Contact>,
    /// Since when it asks without an answer; `None`: all is answered, or it has nothing to ask.
    waiting: Option<Instant>,
    /// The number of the last message of each root that was listened to.
    heard: BTreeMap<Party, u64>,
    wants: Vec<Wants>,
    extra: Duration,
    roster: u64,
    settled: u64,
    heard_settled: u64,
    whole: bool,
    /// A root wants to hear from it even if it wants nothing.
    summoned: bool,
    /// Its last ask said that it wants nothing.
    said_nothing: bool,
    number: u64,
    last_ask: Option<Instant>,
    ask_at: Option<Instant>,
    asks: VecDeque<(u64, Ask)>,
}

/// The root as it last answered.
#[derive(Debug, Clone, Copy)]
struct Contact {
    party: Party,
    stamp: u64,
    call: Micros,
    extra: Duration,
}

impl Client {
    /// Alone so far. `epoch` is one for the whole life of the process: stamps and numbers count from there. `locked_until`: so long an earlier life of this host may have lent its right; `None` if there was none.
    #[must_use]
    pub fn new(
        resource: Arc<[u8]>,
        me: Party,
        epoch: Instant,
        now: Instant,
        locked_until: Option<Instant>,
    ) -> Client {
        Client {
            resource,
            me,
            epoch,
            ledger: Ledger::new(locked_until, stamp(epoch, now)),
            root: None,
            contact: None,
            waiting: None,
            heard: BTreeMap::new(),
            wants: Vec::new(),
            extra: Duration::ZERO,
            roster: 0,
            settled: 0,
            heard_settled: 0,
            whole: false,
            summoned: false,
            said_nothing: true,
            number: 0,
            last_ask: None,
            ask_at: None,
            asks: VecDeque::new(),
        }
    }

    /// What may be used now.
    #[must_use]
    pub fn usable(&self, now: Instant) -> Micros {
        self.ledger.usable(now)
    }

    /// The resource's id.
    #[must_use]
    pub fn resource(&self) -> Arc<[u8]> {
        Arc::clone(&self.resource)
    }

    /// What it wants, in all bands.
    #[must_use]
    pub fn wants(&self) -> Micros {
        Micros::from_u128(Micros::sum(self.wants.iter().map(|wants| wants.wants)))
    }

    /// What it owns, even while an earlier life may have lent it.
    #[must_use]
    pub fn owned(&self) -> Micros {
        self.ledger.owned()
    }

    /// What it owns and may touch.
    #[must_use]
    pub fn right(&self, now: Instant) -> Micros {
        self.ledger.right(now)
    }

    /// Whether a root answers: what it was asked for [`BASE`] and longer ago is answered. Who has nothing to ask is in touch.
    #[must_use]
    pub fn in_touch(&self, now: Instant) -> bool {
        self.waiting.is_none_or(|since| now.saturating_duration_since(since) <= BASE)
    }

    /// Whether it knows a roster, and no earlier life may have lent what it owns.
    #[must_use]
    pub fn has_begun(&self, now: Instant) -> bool {
        self.roster > 0 && !self.ledger.is_locked(now)
    }

    /// Whether it may be forgotten: nothing is wanted and no loan is remembered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.wants.iter().all(|wants| wants.wants.is_zero()) && self.ledger.is_empty()
    }

    /// Who is asked.
    #[must_use]
    pub fn root(&self) -> Option<u64> {
        self.root
    }

    /// The ledger, for those who show it or check it.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The latest epoch heard to be settled.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Takes its right from the rosters; call it after each change of these, of the capacity, and after each answer.
    pub fn set_right(&mut self, now: Instant, rosters: &Rosters, capacity: Micros) {
        self.settled = self.settled.max(rosters.settled(self.heard_settled));
        let changed = self.roster != rosters.epoch();
        self.roster = rosters.epoch();
        self.ledger.set_right(rosters.right(capacity, self.settled));
        if changed {
            self.ask_soon(now);
        }
    }

    /// Its capacity is held in whole units: it is called to lend all that it does not need.
    pub fn set_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Asks `root` from now on; `None`: there is none, or this resource is not shared.
    pub fn set_root(&mut self, now: Instant, root: Option<u64>) {
        if self.root != root {
            self.root = root;
            self.contact = None;
            self.ask_at = None;
            self.ask_soon(now);
        }
    }

    /// What it wants from now on, by band; bands beyond [`BANDS_MAX`] count to the last.
    pub fn set_wants(&mut self, now: Instant, mut wants: Vec<Wants>) {
        while wants.len() > BANDS_MAX {
            let beyond = wants.pop().expect("more than BANDS_MAX");
            let last = wants.last_mut().expect("more than BANDS_MAX");
            last.wants = last.wants.plus(beyond.wants);
            last.subclients = last.subclients.saturating_add(beyond.subclients);
        }
        let before = self.wants();
        self.wants = wants;
        if is_material(before, self.wants()) {
            self.ask_soon(now);
        }
    }

    /// Whether a root wants to hear from it even if it wants nothing.
    pub fn set_summoned(&mut self, now: Instant, summoned: bool) {
        if summoned && !self.summoned {
            self.ask_soon(now);
        }
        self.summoned = summoned;
    }

    /// Its own clients hold leases for so long: loans to it should last for that.
    pub fn set_extra(&mut self, extra: Duration) {
        self.extra = extra.min(LOAN_MAX - BASE);
    }

    /// Requests in flight hold so much: see [`Ledger::set_in_use`].
    pub fn set_in_use(&mut self, in_use: Micros) {
        self.ledger.set_in_use(in_use);
    }

    /// Sets aside for a client: see [`Ledger::reserve`].
    pub fn reserve(
        &mut self,
        now: Instant,
        out: (Micros, Micros),
        wanted: Micros,
        soonest: Instant,
        latest: Instant,
    ) -> Option<(Micros, Instant)> {
        self.ledger.reserve(now, out.0, out.1, wanted, soonest, latest)
    }

    /// A root said something.
    pub fn handle_answer(&mut self, now: Instant, from: u64, answer: &Answer) {
        let party = Party { host: from, life: answer.life };
        let asked = self.epoch + Duration::from_nanos(answer.echo);
        if answer.host_life != self.me.life
            || asked > now
            || self.heard.get(&party).is_some_and(|last| *last >= answer.number)
        {
            return;
        }
        if self.heard.len() >= ROOTS_MAX && !self.heard.contains_key(&party) {
            let ledger = &self.ledger;
            self.heard.retain(|party, _| {
                !ledger.lent(now, *party).is_zero() || !ledger.borrowed(now, *party).is_zero()
            });
            if self.heard.len() >= ROOTS_MAX {
                return;
            }
        }
        self.heard.insert(party, answer.number);
        self.ledger.handle_loan(now, party, answer.lease, asked);
        self.ledger.handle_word(party, answer.word);
        self.heard_settled = answer.settled;
        let before = self.ledger.borrowed(now, party);
        let mut room = self.ledger.room(now, now);
        self.ledger.give_back(&mut room, party, answer.keep);
        if self.root == Some(from) {
            self.waiting = None;
            self.contact = Some(Contact {
                party,
                stamp: answer.stamp,
                call: answer.call,
                extra: answer.extra,
            });
            let pledged = self.ledger.lent(now, party);
            let called = answer.call > pledged && is_material(pledged, answer.call);
            if called || is_material(before, self.ledger.borrowed(now, party)) {
                self.ask_soon(now);
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ledger.expire(now);
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask(now);
        }
    }

    /// When [`Client::handle_timeout`] is next due.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        // Just after an end, so that the loan has ended then.
        let end = self.ledger.next_end(now).map(|end| end + Duration::from_nanos(1));
        let patience = self.waiting.map(|since| since + BASE + Duration::from_nanos(1));
        let touch = patience.filter(|_| self.in_touch(now));
        self.ask_at.into_iter().chain(end).chain(touch).min()
    }

    /// The next message, and the host to which it goes.
    pub fn poll_transmit(&mut self) -> Option<(u64, Ask)> {
        self.asks.pop_front()
    }

    fn ask_soon(&mut self, now: Instant) {
        if self.root.is_some() {
            let at = self.last_ask.map_or(now, |last| now.max(last + SPACING));
            self.ask_at = Some(self.ask_at.map_or(at, |earlier| earlier.min(at)));
        }
    }

    fn ask(&mut self, now: Instant) {
        let silent = self.is_idle() && self.said_nothing && !self.summoned;
        let Some(root) = self.root.filter(|_| !silent) else {
            (self.ask_at, self.waiting) = (None, None);
            return;
        };
        self.said_nothing = self.wants().is_zero();
        let stamp = stamp(self.epoch, now);
        self.number = stamp.max(self.number + 1);
        self.last_ask = Some(now);
        self.waiting.get_or_insert(now);
        self.ask_at = Some(now + REFRESH);
        let party = self.contact.map(|contact| contact.party);
        let ask = Ask {
            resource: Arc::clone(&self.resource),
            life: self.me.life,
            number: self.number,
            stamp,
            root_life: party.map_or(0, |party| party.life),
            echo: self.contact.map_or(0, |contact| contact.stamp),
            wants: self.wants.clone(),
            own: self.ledger.own_towards(now, party),
            pledge: self.contact.map_or_else(Default::default, |contact| self.pledge(now, contact)),
            word: party.map_or_else(Default::default, |party| self.ledger.word(now, party)),
            extra: self.extra,
            epoch: self.roster,
            clear: !self.ledger.is_locked(now) && self.ledger.fits(now, self.ledger.right(now)),
            settled: self.settled,
        };
        // One is enough: the newer says all that the older did.
        self.asks.clear();
        self.asks.push_back((root, ask));
    }

    /// Lends what is called for, and prolongs it while anything is.
    fn pledge(&mut self, now: Instant, contact: Contact) -> crate::lease::Loan {
        if contact.call.is_zero() {
            return self.ledger.loan(now, contact.party);
        }
        let right = self.ledger.right(now);
        let reserve = if self.whole { Micros::ZERO } else { right.part(1, RESERVE) };
        let most = right.minus(reserve);
        let until = now + BASE + contact.extra;
        let mut room = self.ledger.room(now, until);
        self.ledger.lend(&mut room, contact.party, contact.call.min(most), until)
    }
}

/// The moment `now` as it travels, in nanoseconds.
pub(crate) fn stamp(epoch: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_nanos() as u64
}

/// Whether a change is worth a message of its own; smaller ones wait for the refresh.
pub(crate) fn is_material(before: Micros, after: Micros) -> bool {
    let change = before.minus(after).max(after.minus(before));
    change > before.max(after).part(1, 32)
}

/// A host asks this often.
pub const REFRESH: Duration = Duration::from_millis(250);
/// A pledge lasts so long, and longer where the root asks for it. Leases are shorter by two refreshes and their delays, twice over.
pub const BASE: Duration = Duration::from_secs(2);
/// Asks of one resource are at least so far apart.
const SPACING: Duration = Duration::from_millis(5);
/// A host keeps one part in so many of its right, whatever it is called to lend.
pub(crate) const RESERVE: u64 = 128;
/// Roots with which loans may be open; a further one is not listened to until one has ended.
const ROOTS_MAX: usize = 8;

//! What a root does about one resource: it hears what hosts want and own, decides what each should have, and moves the difference.
//!
//! Nothing is stored here that is not also known elsewhere: a root that dies is replaced by one that knows nothing and learns with the first
//! round of asks. It needs no learning mode, because it can lend only what has been pledged to *it*.
//!
//! **What it decides.** Of K, all that the hosts it hears say they own (but no more than the capacity), the algorithm gives each host a target. A host
//! below its target *needs* the difference; one above has it to *spare*. Hosts are called to pledge just as much of what they can spare as
//! is needed; so in balanced overload nothing moves at all, and a root that fails then is not missed.
//!
//! **How it moves.** What hosts own is never taken: they are called to pledge (`call`), and lend. What is pledged and free is lent on, in
//! proportion where it does not suffice. A lease above its need is asked back (`keep`); it counts as lent until the host has shown a smaller one
//! or it has ended. A pledge above its call is released when it is free. All of it passes through the [`Ledger`], which is where it is safe.
//!
//! Changes are gathered ([`SPACING`]), then sent at once to everyone whom they concern by more than a few per cent; the rest hears with
//! its next refresh. Where there is too little for all, members that do not take part are summoned: they own something that they do not want.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::algorithm::{Algorithm, Allocation, Claim, Floors};
use crate::client::{RESERVE, is_material, stamp};
use crate::election::Rosters;
use crate::lease::{Ledger, Loan, Party, Room};
use crate::quantity::Micros;
use crate::quotas::HostShare;
use crate::wire::{Answer, Ask, Message, Wants};

/// One root of one resource.
#[derive(Debug, Clone)]
pub struct Root {
    resource: Arc<[u8]>,
    me: Party,
    /// Stamps count from here.
    epoch: Instant,
    algorithm: Algorithm,
    capacity: Micros,
    floors: Floors,
    /// The capacity is held in whole units.
    whole: bool,
    ledger: Ledger,
    holders: BTreeMap<Party, Holder>,
    settling: Settling,
    number: u64,
    since: Option<Instant>,
    last_settle: Option<Instant>,
    settle_at: Option<Instant>,
    summoned: Option<Instant>,
    outbox: VecDeque<(u64, Message)>,
}

/// A host as it last asked.
#[derive(Debug, Clone)]
struct Holder {
    heard: Instant,
    number: u64,
    stamp: u64,
    wants: Vec<Wants>,
    own: Micros,
    extra: Duration,
    /// It asked and was not answered yet.
    due: bool,
    /// What it was last called to pledge, and to keep of its lease.
    called: Micros,
    keeps: Micros,
}

/// What a holder should have.
struct Aim {
    party: Party,
    target: Micros,
    need: Micros,
    call: Micros,
}

/// Whether the newest roster is settled.
#[derive(Debug, Clone, Default)]
struct Settling {
    /// The newest roster, and who is clear for it.
    epoch: u64,
    clear: BTreeSet<u64>,
    settled: u64,
}

impl Root {
    /// Knows nobody yet. `epoch` is one for the whole life of the process.
    #[must_use]
    pub fn new(resource: Arc<[u8]>, me: Party, epoch: Instant, now: Instant) -> Root {
        Root {
            resource,
            me,
            epoch,
            algorithm: Algorithm::default(),
            capacity: Micros::ZERO,
            floors: Floors::default(),
            whole: false,
            ledger: Ledger::new(None, stamp(epoch, now)),
            holders: BTreeMap::new(),
            settling: Settling::default(),
            number: 0,
            since: None,
            last_settle: None,
            settle_at: None,
            summoned: None,
            outbox: VecDeque::new(),
        }
    }

    /// Shares out so much in this way from now on; `whole`: in whole units.
    pub fn set_rules(
        &mut self,
        now: Instant,
        algorithm: Algorithm,
        capacity: Micros,
        floors: &Floors,
        whole: bool,
    ) {
        self.whole = whole;
        if (self.algorithm, self.capacity, &self.floors) != (algorithm, capacity, floors) {
            (self.algorithm, self.capacity, self.floors) = (algorithm, capacity, floors.clone());
            self.settle_soon(now);
        }
    }

    /// A host asked. Of more hosts than [`HOLDERS_MAX`] the newcomers are not heard: they keep their right.
    pub fn handle_ask(&mut self, now: Instant, from: u64, ask: Ask, rosters: &Rosters) {
        let party = Party { host: from, life: ask.life };
        if self.holders.get(&party).is_some_and(|holder| holder.number >= ask.number)
            || (self.holders.len() >= HOLDERS_MAX && !self.holders.contains_key(&party))
        {
            return;
        }
        let asked = self.epoch + Duration::from_nanos(ask.echo);
        if ask.root_life == self.me.life && asked <= now {
            self.ledger.handle_loan(now, party, ask.pledge, asked);
            self.ledger.handle_word(party, ask.word);
        }
        self.settling.handle(from, &ask, rosters);
        let told = self.holders.get(&party).map(|holder| (holder.called, holder.keeps));
        let (called, keeps) = told.unwrap_or_default();
        let Ask { number, stamp, wants, own, extra, .. } = ask;
        self.holders.insert(
            party,
            Holder { heard: now, number, stamp, wants, own, extra, due: true, called, keeps },
        );
        self.since.get_or_insert(now);
        self.settle_soon(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant, rosters: &Rosters) {
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle(now, rosters);
        }
    }

    /// When [`Root::handle_timeout`] is next due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.settle_at
    }

    /// The next message, and the host to which it goes.
    pub fn poll_transmit(&mut self) -> Option<(u64, Message)> {
        self.outbox.pop_front()
    }

    /// Whether nobody has asked for a while, so that it may be dropped: nothing is lost but loans that it would let run out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.ledger.is_empty()
    }

    /// Since when it is asked.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Hosts that it hears.
    pub fn holders(&self, now: Instant) -> impl Iterator<Item = HostShare> {
        self.holders.iter().map(move |(party, holder)| {
            let has = holder.own.plus(self.ledger.lent(now, *party));
            let has = has.minus(self.ledger.borrowed(now, *party));
            HostShare { host: party.host, wants: holder.total_wants(), has }
        })
    }

    /// The ledger, for those who show it or check it.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn settle_soon(&mut self, now: Instant) {
        let apart = SPACING + SPACING_EACH * self.holders.len() as u32;
        let at = self.last_settle.map_or(now, |last| now.max(last + apart));
        self.settle_at = Some(self.settle_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn settle(&mut self, now: Instant, rosters: &Rosters) {
        self.last_settle = Some(now);
        self.settle_at = None;
        self.ledger.expire(now);
        self.holders.retain(|_, holder| now.saturating_duration_since(holder.heard) <= HEARD);
        if let Some(oldest) = self.holders.values().map(|holder| holder.heard).min() {
            // Whoever falls silent is noticed then.
            self.settle_at = Some(oldest + HEARD + Duration::from_nanos(1));
        }
        let extra = self.holders.values().map(|holder| holder.extra).max().unwrap_or_default();
        self.settling.judge(now, rosters);

        let aims = self.aims();
        self.summon(now, &aims, rosters);
        let mut room = self.ledger.room(now, now + LEASE + extra);
        let long = room.covers();
        if !long {
            room = self.ledger.room(now, now + LEASE);
        }
        let wanted = aims.iter().map(|aim| {
            let raise = aim.need.minus(self.ledger.lent(now, aim.party));
            let release = self.ledger.borrowed(now, aim.party).minus(aim.call);
            u128::from(raise.micros()) + u128::from(release.micros())
        });
        let share = Share { wanted: wanted.sum(), free: u128::from(room.free().micros()) };
        for aim in aims {
            self.answer(now, &aim, &share, &mut room, long, extra);
        }
    }

    /// Members that do not speak to us, because they want nothing, are asked to: where there is too little for all, since they own
    /// something; and while a roster is not settled, since they must say that they are clear for it.
    fn summon(&mut self, now: Instant, aims: &[Aim], rosters: &Rosters) {
        let wanted = Micros::sum(self.holders.values().map(Holder::total_wants));
        let shared = Micros::sum(aims.iter().map(|aim| aim.target));
        let recently =
            self.summoned.is_some_and(|at| now.saturating_duration_since(at) < SUMMON_EVERY);
        if recently || (wanted <= shared && self.settling.is_settled()) {
            return;
        }
        self.summoned = Some(now);
        let heard: BTreeSet<u64> = self.holders.keys().map(|party| party.host).collect();
        for host in rosters.awaited(now).filter(|host| !heard.contains(host)) {
            self.outbox.push_back((host, Message::Summon(Arc::clone(&self.resource))));
        }
    }

    /// What each should have.
    fn aims(&self) -> Vec<Aim> {
        let owned = Micros::from_u128(Micros::sum(self.holders.values().map(|holder| holder.own)));
        let claims: Vec<Claim> =
            self.holders.values().flat_map(|holder| holder.wants.iter().copied()).collect();
        let allocation =
            Allocation::new(self.algorithm, owned.min(self.capacity), &claims, &self.floors);
        let mut targets: Vec<Micros> = self
            .holders
            .values()
            .map(|holder| {
                let target = Micros::sum(holder.wants.iter().map(|wants| allocation.grant(*wants)));
                Micros::from_u128(target)
            })
            .collect();
        if self.whole {
            round(&mut targets, owned.min(self.capacity));
        }
        let mut aims: Vec<_> = self
            .holders
            .iter()
            .zip(targets)
            .map(|((party, holder), target)| {
                let reserve = if self.whole { Micros::ZERO } else { holder.own.part(1, RESERVE) };
                let keeps = target.max(reserve);
                Aim {
                    party: *party,
                    target,
                    need: target.minus(holder.own),
                    call: holder.own.minus(keeps),
                }
            })
            .collect();
        let needed = Micros::sum(aims.iter().map(|aim| aim.need));
        let spare = Micros::sum(aims.iter().map(|aim| aim.call));
        if needed < spare {
            for aim in &mut aims {
                let part = (u128::from(aim.call.micros()) * needed).div_ceil(spare);
                aim.call = Micros::from_u128(part);
            }
        }
        aims
    }

    /// Tells a host what concerns it, if it asked or it is worth a push. Only what is told is done.
    fn answer(
        &mut self,
        now: Instant,
        aim: &Aim,
        share: &Share,
        room: &mut Room,
        long: bool,
        extra: Duration,
    ) {
        let Some(holder) = self.holders.get_mut(&aim.party) else { return };
        let (lent, pledged) =
            (self.ledger.lent(now, aim.party), self.ledger.borrowed(now, aim.party));
        let raised = lent.plus(share.of(aim.need.minus(lent)));
        let kept = pledged.minus(share.of(pledged.minus(aim.call)));
        let has = aim.target.max(holder.own);
        let matters =
            |before: Micros, after: Micros| is_material(has.plus(before), has.plus(after));
        let lowered = aim.need < lent && matters(lent, aim.need) && matters(holder.keeps, aim.need);
        let push = lowered
            || matters(lent, raised)
            || matters(pledged, kept)
            || (aim.call > holder.called && matters(holder.called, aim.call));
        if !holder.due && !push {
            return;
        }
        let lease = if lent > aim.need && is_material(lent, aim.need) {
            // Asked back: a new statement now would cross the host's word.
            self.ledger.loan(now, aim.party)
        } else {
            let until = now + LEASE + if long { holder.extra } else { Duration::ZERO };
            self.ledger.lend(room, aim.party, raised, until)
        };
        self.ledger.give_back(room, aim.party, kept);
        (holder.called, holder.keeps) = (aim.call, aim.need);
        holder.due = false;
        let echo = holder.stamp;
        self.send(now, aim, lease, echo, extra);
    }

    fn send(&mut self, now: Instant, aim: &Aim, lease: Loan, echo: u64, extra: Duration) {
        let stamp = stamp(self.epoch, now);
        self.number = stamp.max(self.number + 1);
        let answer = Answer {
            resource: Arc::clone(&self.resource),
            life: self.me.life,
            number: self.number,
            stamp,
            host_life: aim.party.life,
            echo,
            lease,
            keep: aim.need,
            call: aim.call,
            word: self.ledger.word(now, aim.party),
            extra,
            settled: self.settling.settled,
        };
        self.outbox.push_back((aim.party.host, Message::Answer(answer)));
    }
}

/// What is free, and what all would like of it.
struct Share {
    wanted: u128,
    free: u128,
}

/// Makes shares of `total` whole: each is rounded down, and the units that this leaves go to the largest remainders.
fn round(shares: &mut [Micros], total: Micros) {
    let all = Micros::from_u128(Micros::sum(shares.iter().copied())).min(total);
    // What is a hair below a unit, for rights are rounded down, is one.
    let all = all.plus(HAIR).whole();
    let mut by_remainder: Vec<(u64, usize)> = Vec::with_capacity(shares.len());
    let mut given = 0;
    for (at, share) in shares.iter_mut().enumerate() {
        let whole = Micros::units(share.whole());
        given += share.whole();
        by_remainder.push((share.minus(whole).micros(), at));
        *share = whole;
    }
    by_remainder.retain(|(remainder, _)| *remainder > 0);
    by_remainder.sort_by_key(|(remainder, at)| (std::cmp::Reverse(*remainder), *at));
    let left = usize::try_from(all.saturating_sub(given)).unwrap_or(usize::MAX);
    for (_, at) in by_remainder.into_iter().take(left) {
        shares[at] = shares[at].plus(Micros::units(1));
    }
}

impl Share {
    fn of(&self, amount: Micros) -> Micros {
        if self.wanted <= self.free {
            return amount;
        }
        Micros::from_u128(u128::from(amount.micros()) * self.free / self.wanted)
    }
}

impl Holder {
    fn total_wants(&self) -> Micros {
        Micros::from_u128(Micros::sum(self.wants.iter().map(|wants| wants.wants)))
    }
}

impl Settling {
    fn handle(&mut self, from: u64, ask: &Ask, rosters: &Rosters) {
        self.follow(rosters);
        self.settled = self.settled.max(rosters.settled(ask.settled));
        if ask.epoch == self.epoch && ask.clear {
            self.clear.insert(from);
        }
    }

    /// Settled is the newest roster if everyone who is awaited has said to be clear for it.
    fn judge(&mut self, now: Instant, rosters: &Rosters) {
        self.follow(rosters);
        self.settled = self.settled.max(rosters.settled(0));
        let mut awaited = rosters.awaited(now);
        if self.epoch > self.settled && awaited.all(|host| self.clear.contains(&host)) {
            self.settled = self.epoch;
        }
    }

    fn is_settled(&self) -> bool {
        self.settled >= self.epoch
    }

    fn follow(&mut self, rosters: &Rosters) {
        if self.epoch != rosters.epoch() {
            self.epoch = rosters.epoch();
            self.clear.clear();
        }
    }
}

/// A lease lasts so long, and longer for a host that asks for it.
pub const LEASE: Duration = Duration::from_secs(1);
/// A host that is not heard for so long takes no part: four refreshes.
const HEARD: Duration = Duration::from_secs(1);
/// Decisions of one resource are at least so far apart,
const SPACING: Duration = Duration::from_millis(5);
/// and for each host that takes part this much more, so that a large mesh does not keep its root busy with one resource.
const SPACING_EACH: Duration = Duration::from_micros(20);
/// As much as rounding can take from a sum of rights that make whole units.
const HAIR: Micros = Micros::tiny(1_000);
/// Members that are not heard are asked for what they own at most this often.
const SUMMON_EVERY: Duration = Duration::from_millis(500);
/// Most hosts that one root serves.
pub const HOLDERS_MAX: usize = 20_000;

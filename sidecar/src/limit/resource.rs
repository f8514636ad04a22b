//! One resource on this host, as requests draw on it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use evenkeel_ratelimit::{
    Bucket, Concurrency, Demand, Fail, KeyTable, Micros, NoPlace, Pace, Place, RESOURCE_ID_MAX,
    Safe, Spending, Template,
};
use tokio::sync::{mpsc, watch};

use super::{FIRST_WAIT, Wanted};
use crate::error::LimitCause;

/// A resource, with all its keys.
#[derive(Debug)]
pub struct Resource {
    name: Arc<[u8]>,
    rules: Template,
    /// What is leased, by key; the empty key where there are none.
    meters: Arc<ArcSwap<Meters>>,
    /// All other keys: each has what this host owns of it. Not for what is held.
    own_part: Arc<ArcSwap<KeyTable>>,
    /// What this host owns is known.
    told: AtomicBool,
    /// It has owned something since the process began.
    has_owned: Arc<AtomicBool>,
    /// Something became leased.
    changed: Arc<watch::Sender<()>>,
    wanted: mpsc::Sender<Wanted>,
}

type Meters = HashMap<Arc<[u8]>, Arc<Meter>, foldhash::fast::RandomState>;

/// What this host has of one resource, and how much it is asked for.
#[derive(Debug)]
pub struct Meter {
    bucket: Bucket,
    places: Arc<Concurrency>,
    demand: Demand,
    /// No root answers: what goes is for `fail` to say.
    alone: AtomicBool,
    /// Something of it may be spent here, at whatever pace.
    granted: AtomicBool,
}

/// How long a request may be held back.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For its turn.
    pub wait: Duration,
    /// For the first leases of a key, at most [`FIRST_WAIT`].
    pub first: Duration,
}

/// The request may not go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// When it would be worth trying again; `None`: nobody knows.
    pub retry_after: Option<Duration>,
    /// Why not.
    pub cause: LimitCause,
}

impl Refusal {
    /// The resource is used up.
    fn reached(retry_after: Option<Duration>) -> Refusal {
        Refusal { retry_after, cause: LimitCause::Reached }
    }
}

impl Resource {
    /// Nothing is leased, and this host owns nothing, until it is told otherwise.
    pub fn new(name: Arc<[u8]>, rules: Template, wanted: mpsc::Sender<Wanted>) -> Resource {
        // The seed keeps strangers from aiming at one place; it need not be secret from ourselves.
        let seed = foldhash::fast::RandomState::default();
        let seed = std::hash::BuildHasher::hash_one(&seed, 0u64);
        let own_part = KeyTable::new(Instant::now(), Pace::STOPPED, KEYS, seed);
        Resource {
            name,
            rules,
            meters: Arc::default(),
            own_part: Arc::new(ArcSwap::from_pointee(own_part)),
            told: AtomicBool::new(false),
            has_owned: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
            wanted,
        }
    }

    /// The same resource under other rules: what is leased goes on, and nothing that was taken is forgotten.
    pub fn under(&self, rules: Template) -> Resource {
        Resource {
            rules,
            meters: Arc::clone(&self.meters),
            own_part: Arc::clone(&self.own_part),
            told: AtomicBool::new(self.is_told()),
            has_owned: Arc::clone(&self.has_owned),
            changed: Arc::clone(&self.changed),
            ..Resource::new(Arc::clone(&self.name), self.rules.clone(), self.wanted.clone())
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<[u8]> {
        &self.name
    }

    /// Its rules.
    pub fn rules(&self) -> &Template {
        &self.rules
    }

    /// The id under which leases of a key are asked for.
    pub fn id(&self, key: &[u8]) -> Arc<[u8]> {
        match key {
            [] => Arc::clone(&self.name),
            key => Arc::from([&self.name, &b"\0"[..], key].concat()),
        }
    }

    /// The key as it fits in an id: two long ones are still two.
    fn fitting<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        let room = RESOURCE_ID_MAX.saturating_sub(self.name.len() + 1);
        if key.len() <= room {
            return Cow::Borrowed(key);
        }
        let hash = evenkeel_balancer::key_hash(key).to_be_bytes();
        let head = &key[..room.saturating_sub(hash.len())];
        Cow::Owned([head, &hash].concat())
    }

    /// Takes `cost`, or waits for it no longer than `patience`. What is held is given back by dropping the place.
    ///
    /// # Errors
    /// Nothing was taken.
    pub async fn acquire(
        self: &Arc<Self>,
        now: Instant,
        key: &[u8],
        cost: u32,
        fail: Fail,
        patience: Patience,
    ) -> Result<Option<Place>, Refusal> {
        let key = &*self.fitting(key);
        let taken = self.take(now, key, cost, fail, patience).await;
        taken.map_err(|refusal| Refusal { cause: self.cause(key), ..refusal })
    }

    /// Why nothing is left of a key.
    fn cause(&self, key: &[u8]) -> LimitCause {
        let Some(meter) = self.meter(key) else { return LimitCause::NotGrantedYet };
        let stopped = self.rules.safe == Safe::Stop;
        match (meter.granted.load(Relaxed), meter.alone.load(Relaxed)) {
            (false, true) if stopped => LimitCause::RootSilent,
            (false, _) => LimitCause::NotGrantedYet,
            (true, true) => LimitCause::RootSilent,
            (true, false) => LimitCause::Reached,
        }
    }

    async fn take(
        self: &Arc<Self>,
        now: Instant,
        key: &[u8],
        cost: u32,
        fail: Fail,
        patience: Patience,
    ) -> Result<Option<Place>, Refusal> {
        if let Some(meter) = self.meter(key) {
            let drawn = self.draw(&meter, now, cost, fail, patience.wait).await;
            // It may have been forgotten in this very moment.
            if drawn.is_ok() || self.meter(key).is_some_and(|known| Arc::ptr_eq(&known, &meter)) {
                return drawn;
            }
        }
        if self.spend_own_part(now, key, cost) {
            return Ok(None);
        }
        let mut changed = self.changed.subscribe();
        let end = now + patience.first;
        if !self.is_told() {
            // It has just come into being.
            self.want(key);
            let told = changed.wait_for(|_| self.is_told());
            let _ = tokio::time::timeout_at(end.into(), told).await;
            if self.spend_own_part(now, key, cost) {
                return Ok(None);
            }
        }
        self.want(key);
        loop {
            if let Some(meter) = self.meter(key) {
                return self.draw_first(&meter, cost, fail, patience.wait, end).await;
            }
            if tokio::time::timeout_at(end.into(), changed.changed()).await.is_err() {
                return Err(Refusal::reached(Some(FIRST_WAIT)));
            }
        }
    }

    /// Draws on what has just been leased: more of it is on its way.
    async fn draw_first(
        &self,
        meter: &Meter,
        cost: u32,
        fail: Fail,
        wait: Duration,
        end: Instant,
    ) -> Result<Option<Place>, Refusal> {
        loop {
            let now = Instant::now();
            let left = end.saturating_duration_since(now);
            let drawn = self.draw(meter, now, cost, fail, wait.max(left)).await;
            // A place may be lent within a moment; a turn at a rate was waited for.
            if drawn.is_ok() || self.rules.per.is_some() || left.is_zero() {
                return drawn;
            }
            tokio::time::sleep(LENDING.min(left)).await;
        }
    }

    /// As [`Resource::acquire`], but nobody is held back.
    ///
    /// # Errors
    /// It would have been refused.
    pub fn observe(
        self: &Arc<Self>,
        now: Instant,
        key: &[u8],
        cost: u32,
        fail: Fail,
    ) -> Result<Option<Place>, Refusal> {
        let key = &*self.fitting(key);
        let Some(meter) = self.meter(key) else {
            if self.spend_own_part(now, key, cost) {
                return Ok(None);
            }
            self.want(key);
            return Err(Refusal::reached(None));
        };
        if let Some(decided) = self.decided_alone(&meter, now, cost, fail) {
            return decided;
        }
        match self.rules.per {
            None => meter.enter(),
            Some(_) => meter.bucket.try_acquire(now, cost).map(|()| None).map_err(Refusal::from),
        }
    }

    async fn draw(
        &self,
        meter: &Meter,
        now: Instant,
        cost: u32,
        fail: Fail,
        patience: Duration,
    ) -> Result<Option<Place>, Refusal> {
        if let Some(decided) = self.decided_alone(meter, now, cost, fail) {
            return decided;
        }
        if self.rules.per.is_none() {
            return meter.enter_soon().await;
        }
        let wait = meter.bucket.reserve(now, cost, patience)?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(None)
    }

    /// Counts the demand. Where no root answers, `fail` may say what goes, whatever the bucket has.
    fn decided_alone(
        &self,
        meter: &Meter,
        now: Instant,
        cost: u32,
        fail: Fail,
    ) -> Option<Result<Option<Place>, Refusal>> {
        meter.demand.offer(now, cost);
        if !meter.alone.load(Relaxed) {
            return None;
        }
        // The bucket has what the resource itself says; here only whether it is asked.
        let alone = Spending { amount: Micros::ZERO, in_touch: false };
        match (alone.allows(fail, self.rules.safe), fail, self.rules.safe) {
            (None, ..) => Some(Ok(None)),
            (Some(_), Fail::Closed, _) | (Some(_), Fail::Safe, Safe::Stop) => {
                Some(Err(Refusal::reached(None)))
            }
            (Some(_), ..) => None,
        }
    }

    /// Whether it is known what this host owns.
    pub fn is_told(&self) -> bool {
        self.told.load(Relaxed)
    }

    fn spend_own_part(&self, now: Instant, key: &[u8], cost: u32) -> bool {
        self.rules.per.is_some()
            && self.is_told()
            && self.own_part.load().try_acquire(now, key, cost).is_ok()
    }

    fn want(self: &Arc<Self>, key: &[u8]) {
        // A full queue: others of this key, or the next request, will ask again.
        let _ = self.wanted.try_send(Wanted { resource: Arc::clone(self), key: Box::from(key) });
    }

    /// What is leased of a key.
    pub fn meter(&self, key: &[u8]) -> Option<Arc<Meter>> {
        self.meters.load().get(key).cloned()
    }

    /// A key is leased from now on, at this pace. What it has taken of this host's own part stays taken, but for requests that are
    /// decided in this very moment.
    pub fn lease(&self, now: Instant, key: &[u8], spending: Spending) -> Arc<Meter> {
        let meter =
            Arc::new(Meter::new(now, self.own_part.load().bucket(now, key), self.rules.per));
        meter.set(now, &self.rules, spending);
        self.insert(key, &meter);
        meter
    }

    /// A meter that is there already is this resource's from now on.
    pub fn adopt(&self, key: &[u8], meter: &Arc<Meter>) {
        meter.demand.set_per(self.rules.per.unwrap_or_default());
        if self.meter(key).is_none_or(|known| !Arc::ptr_eq(&known, meter)) {
            self.insert(key, meter);
        }
    }

    fn insert(&self, key: &[u8], meter: &Arc<Meter>) {
        self.meters.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.insert(Arc::from(key), Arc::clone(meter));
            next
        });
        self.changed.send_replace(());
    }

    /// A key is not leased any more: it has this host's own part again, and of that what it had left, but for requests that are decided in
    /// this very moment.
    pub fn forget(&self, now: Instant, key: &[u8]) {
        if let Some(meter) = self.meter(key) {
            self.own_part.load().put_back(now, key, &meter.bucket);
        }
        self.meters.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.remove(key);
            next
        });
    }

    /// What this host owns of each key that is not leased. The first time with all of its burst, afterwards with what there was.
    pub fn set_own_part(&self, now: Instant, right: Micros) {
        let (known, pace) = (self.own_part.load(), self.rules.pace(right));
        if known.pace() != pace {
            let first = !self.has_owned.swap(true, Relaxed);
            let next = if first { known.full_at(pace) } else { known.at_pace(now, pace) };
            self.own_part.store(Arc::new(next));
        }
        if !self.told.swap(true, Relaxed) {
            self.changed.send_replace(());
        }
    }
}

impl Meter {
    fn new(now: Instant, bucket: Bucket, per: Option<Duration>) -> Meter {
        Meter {
            bucket,
            places: Concurrency::new(),
            demand: Demand::new(now, per.unwrap_or_default()),
            alone: AtomicBool::new(false),
            granted: AtomicBool::new(false),
        }
    }

    /// What may be spent from now on.
    pub fn set(&self, now: Instant, rules: &Template, spending: Spending) {
        let amount = match rules.safe {
            Safe::Each(each) if !spending.in_touch => each,
            _ => spending.amount,
        };
        self.bucket.set_pace(now, rules.pace(amount));
        self.places.set_limit(amount);
        self.alone.store(!spending.in_touch, Relaxed);
        self.granted.store(!amount.is_zero(), Relaxed);
    }

    /// What it is asked for, in the unit of the capacity.
    pub fn wants(&self, now: Instant, rules: &Template) -> Micros {
        match rules.per {
            None => self.places.take_wanted(),
            Some(per) => self.demand.in_each(per, now),
        }
    }

    /// Whether nothing that was taken still weighs: as good as a new one.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.bucket.remaining(now).1.is_zero()
    }

    /// What requests take of it, where it is held.
    pub fn places(&self) -> &Arc<Concurrency> {
        &self.places
    }

    fn enter(&self) -> Result<Option<Place>, Refusal> {
        self.places.try_enter().map(Some).map_err(|_| Refusal::reached(None))
    }

    /// As `enter`, but while the places are closed it tries again.
    async fn enter_soon(&self) -> Result<Option<Place>, Refusal> {
        for _ in 0..CLOSED_TRIES {
            match self.places.try_enter() {
                Ok(place) => return Ok(Some(place)),
                Err(NoPlace::Full) => break,
                Err(NoPlace::Closed) => tokio::time::sleep(CLOSED_WAIT).await,
            }
        }
        self.enter()
    }
}

impl From<evenkeel_ratelimit::Refused> for Refusal {
    fn from(refused: evenkeel_ratelimit::Refused) -> Refusal {
        Refusal::reached(refused.retry_after)
    }
}

/// Keys of one resource that have a bucket of their own without a lease: 16 bytes each.
const KEYS: usize = 1024;
/// A place that is lent comes within a few of these.
const LENDING: Duration = Duration::from_millis(5);
/// Places are closed for microseconds; a request that meets that tries again so often,
const CLOSED_TRIES: usize = 20;
/// after so long.
const CLOSED_WAIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;

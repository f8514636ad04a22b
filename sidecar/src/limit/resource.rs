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
mod tests {
    use super::*;
    use evenkeel_ratelimit::{Algorithm, Floors};

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
        assert!(
            resource.acquire(now, b"b", 1, Fail::Safe, NOW).await.is_ok(),
            "b has its own part"
        );
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
        assert_eq!(
            meter.bucket.try_acquire(now, 1).unwrap_err().retry_after.unwrap().as_millis(),
            210
        );

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
}

//! One limit for each key (tenant, header value, path), in memory that never grows.
//!
//! A key hashes to a set of [`WAYS`] places. A place whose theoretical arrival time has passed is a full bucket, which is what an
//! unknown key has too: so idle keys need no eviction, their places are simply taken, and forgetting them changes no decision.
//! After a raise of the pace no bucket is full at first ([`crate::Bucket`] says why), those of unknown keys neither: they all owe
//! the same, and a place that owes no more is idle.
//!
//! When all places of a set are busy, the key shares one of [`SHARED`] buckets with others in the same plight: together they get one
//! key's pace. So a flood of invented keys neither grows the table nor passes unlimited, and a key that has its place keeps its own pace.
//! Refusing newcomers would let the flood lock out tenants; admitting them would make the limit optional.
//!
//! Invariant: at most `pace` for each key, but for a race of two keys over one idle place, which lets each go ahead by one request.
//! Lock-free: a place is two atomics. Hashing is seeded, so that strangers cannot aim at one set. Two keys with one 64-bit hash share a bucket.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::bucket::{Bucket, Pace, Refused, tick};

/// Buckets of one pace, by key.
#[derive(Debug)]
pub struct KeyTable {
    epoch: Instant,
    pace: Pace,
    seed: u64,
    /// The theoretical arrival time of a key that is not known.
    unknown: u64,
    places: Box<[Place]>,
    shared: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct Place {
    /// The key's hash; 0: nobody's.
    key: AtomicU64,
    tat: AtomicU64,
}

impl KeyTable {
    /// Room for about `keys` busy keys, at least eight and at most [`KEYS_MAX`].
    #[must_use]
    pub fn new(epoch: Instant, pace: Pace, keys: usize, seed: u64) -> KeyTable {
        let places = keys.clamp(WAYS, KEYS_MAX).next_power_of_two();
        KeyTable {
            epoch,
            pace,
            seed,
            unknown: 0,
            places: (0..places).map(|_| Place::default()).collect(),
            shared: (0..SHARED).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// An unused table of the same size at another pace.
    #[must_use]
    pub fn full_at(&self, pace: Pace) -> KeyTable {
        KeyTable::new(self.epoch, pace, self.places.len(), self.seed)
    }

    /// The same keys at another pace, as a [`Bucket`] changes its own. What is taken of the old table meanwhile is not counted.
    #[must_use]
    pub fn at_pace(&self, now: Instant, pace: Pace) -> KeyTable {
        let now = tick(self.epoch, now);
        let moved = |tat: u64| self.pace.move_debt(pace, tat.max(self.unknown), now);
        let place = |place: &Place| {
            let tat = AtomicU64::new(moved(place.tat.load(Relaxed)));
            Place { key: AtomicU64::new(place.key.load(Relaxed)), tat }
        };
        let shared = |tat: &AtomicU64| AtomicU64::new(moved(tat.load(Relaxed)));
        KeyTable {
            pace,
            unknown: moved(0),
            places: self.places.iter().map(place).collect(),
            shared: self.shared.iter().map(shared).collect(),
            ..*self
        }
    }

    /// The pace of each key.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Takes `cost` units of `key`'s limit now or not at all.
    pub fn try_acquire(&self, now: Instant, key: &[u8], cost: u32) -> Result<(), Refused> {
        let now = tick(self.epoch, now);
        let tat = self.bucket_of(self.hash(key), now);
        self.pace.advance(tat, now, cost, 0).map(|_| ())
    }

    /// A bucket of its own for this key, with what it has now.
    #[must_use]
    pub fn bucket(&self, now: Instant, key: &[u8]) -> Bucket {
        let tat = self.bucket_of(self.hash(key), tick(self.epoch, now));
        Bucket::used(self.epoch, self.pace, tat.load(Relaxed))
    }

    /// The key had a bucket of its own until now, and has what it has left there: less if its place owes more.
    pub fn put_back(&self, now: Instant, key: &[u8], bucket: &Bucket) {
        let tat = bucket.tat_at(now, self.pace);
        self.bucket_of(self.hash(key), tick(self.epoch, now)).fetch_max(tat, Relaxed);
    }

    /// The key's place, or what it shares.
    fn bucket_of(&self, hash: u64, now: u64) -> &AtomicU64 {
        let shared = &self.shared[hash as usize % SHARED];
        self.place(hash, now.max(self.unknown)).unwrap_or(shared)
    }

    /// Keys that have used some of their limit and not yet got it back.
    #[must_use]
    pub fn busy(&self, now: Instant) -> usize {
        let idle = tick(self.epoch, now).max(self.unknown);
        self.places.iter().filter(|place| place.tat.load(Relaxed) > idle).count()
    }

    /// The place that has this key, else an idle one of its set, taken for it: one that owes no more than up to `idle`.
    fn place(&self, hash: u64, idle: u64) -> Option<&AtomicU64> {
        let sets = self.places.len() / WAYS;
        // The low bits choose the shared bucket.
        let first = (hash >> 16) as usize % sets * WAYS;
        let set = &self.places[first..first + WAYS];
        if let Some(own) = set.iter().find(|place| place.key.load(Relaxed) == hash) {
            return Some(&own.tat);
        }
        for place in set.iter().filter(|place| place.tat.load(Relaxed) <= idle) {
            let before = place.key.load(Relaxed);
            match place.key.compare_exchange(before, hash, Relaxed, Relaxed) {
                Ok(_) => return Some(&place.tat),
                Err(winner) if winner == hash => return Some(&place.tat),
                Err(_) => {}
            }
        }
        None
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(key);
        hasher.finish().max(1)
    }
}

/// Most keys that a table has room for.
pub const KEYS_MAX: usize = 1 << 20;
/// Places in which a key may be.
const WAYS: usize = 8;
/// Buckets for keys without a place.
const SHARED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::quantity::Micros;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn table(epoch: Instant, limit: u64, keys: usize) -> KeyTable {
        let pace = Pace::new(Micros::units(limit), Duration::from_secs(1), Micros::units(limit));
        KeyTable::new(epoch, pace, keys, 7)
    }

    fn admitted(table: &KeyTable, now: Instant, key: &[u8], tries: usize) -> usize {
        (0..tries).filter(|_| table.try_acquire(now, key, 1).is_ok()).count()
    }

    #[test]
    fn each_key_has_its_own_limit() {
        let t0 = start();
        let table = table(t0, 10, 1_000);
        assert_eq!(admitted(&table, t0, b"a", 100), 10);
        assert_eq!(admitted(&table, t0, b"b", 100), 10);
        assert_eq!(admitted(&table, t0, b"", 100), 10, "the empty key is a key");
        assert_eq!(admitted(&table, t0, &[0xff; 10_000], 100), 10, "of any bytes");
        assert_eq!(table.busy(t0), 4);
        assert_eq!(admitted(&table, t0 + Duration::from_millis(100), b"a", 100), 1);
        assert_eq!(table.busy(t0 + Duration::from_secs(3)), 0);
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_those_that_have_a_place_keep_it() {
        let t0 = start();
        let table = table(t0, 10, 1_024);
        assert_eq!(admitted(&table, t0, b"tenant", 5), 5);
        let flood: usize =
            (0..100_000u32).map(|key| admitted(&table, t0, &key.to_be_bytes(), 1)).sum();
        let bound = 1_024 + SHARED * 10;
        assert!(flood <= bound, "{flood} of 100000 invented keys passed, at most {bound} may");
        assert!(flood > 1_024, "newcomers are limited together, not locked out");
        assert_eq!(admitted(&table, t0, b"tenant", 100), 5, "the rest of its own limit");
    }

    #[test]
    fn idle_keys_make_room() {
        let t0 = start();
        let table = table(t0, 10, 64);
        (0..1_000u32).for_each(|key| {
            let now = t0 + Duration::from_secs(2 * u64::from(key));
            assert_eq!(
                admitted(&table, now, &key.to_be_bytes(), 100),
                10,
                "key {key} got a place of its own"
            );
        });
    }

    #[test]
    fn keys_keep_what_they_have_when_the_pace_changes() {
        let t0 = start();
        let slow = table(t0, 10, 64);
        assert_eq!(admitted(&slow, t0, b"a", 4), 4);
        let pace =
            |limit| Pace::new(Micros::units(limit), Duration::from_secs(1), Micros::units(limit));
        let fast = slow.at_pace(t0, pace(100));
        assert_eq!(admitted(&fast, t0, b"a", 100), 6);
        assert_eq!(admitted(&fast, t0, b"unknown", 100), 10, "no burst is new for it either");
        assert_eq!(fast.busy(t0), 2);
        let soon = t0 + Duration::from_millis(100);
        assert_eq!(admitted(&fast, soon, b"a", 100), 10, "at the new pace");
        assert_eq!(admitted(&fast, soon, b"other", 100), 20);
        let again = fast.at_pace(soon, pace(5));
        assert_eq!(admitted(&again, soon, b"a", 100), 0);
        assert_eq!(admitted(&again, soon, b"one more", 100), 5, "there is room for so much");
        let stopped = again.at_pace(soon, Pace::STOPPED).at_pace(soon, pace(100));
        assert_eq!(admitted(&stopped, soon, b"the last", 100), 0);
    }

    #[test]
    fn a_key_takes_what_it_has_to_a_bucket_of_its_own() {
        let t0 = start();
        let table = table(t0, 10, 64);
        table.try_acquire(t0, b"a", 25).unwrap();
        let bucket = table.bucket(t0, b"a");
        let refused = bucket.try_acquire(t0, 1).unwrap_err();
        assert_eq!(refused.retry_after, Some(Duration::from_millis(1_600)), "25 − 10 + 1");
        assert_eq!(table.bucket(t0, b"unknown").remaining(t0).0, 10);

        let bucket = table.bucket(t0, b"b");
        bucket.set_pace(
            t0,
            Pace::new(Micros::units(100), Duration::from_secs(1), Micros::units(100)),
        );
        let later = t0 + Duration::from_millis(50);
        bucket.try_acquire(later, 12).unwrap();
        table.put_back(later, b"b", &bucket);
        assert_eq!(admitted(&table, later, b"b", 100), 3, "10 and 5 that came, less 12");
    }

    #[test]
    fn workers_that_race_for_one_key_share_its_limit() {
        let t0 = start();
        let table = table(t0, 1_000, 64);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| admitted(&table, t0, b"a", 1_000))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }
}

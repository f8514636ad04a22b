//! The places of one listener: how many connections it has at a time, and who gives way when there are no more.
//!
//! A limit alone is a door that anybody can keep shut: whoever holds all places, with connections that say nothing,
//! or say it slowly, keeps everyone else out for as long as a time-out lasts. So a newcomer is let in as long as
//! somebody's place is of less use:
//!
//! - A place is **spare** while its connection waits for its client between two requests (or for the first), and on
//!   the control listeners
//!   also for the rest of a head, of a body, or for the client to take an answer. It gives way to anyone.
//! - A place is **slow** while a message is on its way that cannot be asked for again for nothing. It gives way after
//!   [`SLOW_MIN`], and only to a source that
//!   holds fewer places, or to its own.
//! - A place is **kept** while we owe its client an answer. It never gives way; what bounds it is how long we take.
//!
//! Of those that would give way, the one goes whose source holds the most places, and of that source's the one that
//! has waited longest. So whoever takes many competes with itself. A source is an address (of IPv6 the network of a
//! host, /64). On loopback all processes are one source: nothing tells them apart that a process could not change at
//! no cost. There the rule is only that what waits gives way to what asks, which keeps every door open: a newcomer is
//! served as long as it speaks at once.
//!
//! Some listeners know who comes: on the gossip port the members of the mesh, and whoever has shown the key. Their places
//! never give way to strangers, and take those of strangers that are not kept at once: a door that strangers must be
//! able to knock at is not one that they can shut.
//!
//! Where every place is kept, newcomers wait in the kernel's backlog, as they would without this. A source may be
//! held to fewer than all places (`each_max`); what it opens beyond them takes the place of another one of its own or
//! is closed.
//!
//! Not by user or process (`SO_PEERCRED` is for Unix sockets, and looking a TCP socket's owner up costs more than
//! serving it).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::sync::Notify;
use tokio::time::timeout;

/// The places of one listener.
#[derive(Debug)]
pub struct Places {
    max: usize,
    each_max: usize,
    table: Mutex<PlaceTable>,
    freed: Notify,
    gave_way: IntCounter,
    turned_away: IntCounter,
}

#[derive(Debug, Default)]
struct PlaceTable {
    next: u64,
    taken: BTreeMap<u64, TakenPlace>,
}

#[derive(Debug)]
struct TakenPlace {
    source: IpAddr,
    is_known: bool,
    usage: PlaceUse,
    give_way: Arc<Notify>,
}

/// Of what use a place is right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlaceUse {
    Spare(Instant),
    Slow(Instant),
    Kept,
}

/// One connection's place. Dropping it frees it.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    id: u64,
    give_way: Arc<Notify>,
}

/// Why a newcomer was given no place.
#[derive(Debug, PartialEq, Eq)]
enum NoPlace {
    /// Every place is kept: one may be free soon.
    Full,
    /// Its source has as many as one source may have.
    SourceFull,
}

impl Places {
    /// `max` places, of which one source may have `each_max`.
    pub fn new(
        max: usize,
        each_max: usize,
        counters: &PlaceCounters,
        listener: &str,
    ) -> Arc<Places> {
        Arc::new(Places {
            max,
            each_max,
            table: Mutex::default(),
            freed: Notify::new(),
            gave_way: counters.0.with_label_values(&[listener, "gave_way"]),
            turned_away: counters.0.with_label_values(&[listener, "source_full"]),
        })
    }

    /// A place for a newcomer, as soon as there is one; `None`: its source has too many.
    pub async fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        self.enter_as(from, false).await
    }

    /// The same for one who comes before strangers.
    pub async fn enter_known(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        self.enter_as(from, true).await
    }

    async fn enter_as(self: &Arc<Self>, from: IpAddr, is_known: bool) -> Option<Place> {
        loop {
            match self.take(from, is_known, Instant::now()) {
                Ok(place) => return Some(place),
                Err(NoPlace::SourceFull) => return None,
                // A slow one may give way in a moment although none is freed.
                Err(NoPlace::Full) => drop(timeout(SLOW_MIN, self.freed.notified()).await),
            }
        }
    }

    /// A place that is free now, or would be of more use to a newcomer.
    pub fn try_enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        self.take(from, false, Instant::now()).ok()
    }

    fn take(
        self: &Arc<Self>,
        from: IpAddr,
        is_known: bool,
        now: Instant,
    ) -> Result<Place, NoPlace> {
        let source = source_of(from);
        let mut table = self.lock();
        let held = table.taken.values().filter(|taken| taken.source == source).count();
        if held >= self.each_max || table.taken.len() >= self.max {
            let own_only = held >= self.each_max && self.each_max < self.max;
            let Some(victim) = table.victim(source, is_known, own_only, now) else {
                if own_only {
                    self.turned_away.inc();
                    return Err(NoPlace::SourceFull);
                }
                return Err(NoPlace::Full);
            };
            let gone = table.taken.remove(&victim).expect("it was found a moment ago");
            gone.give_way.notify_one();
            self.gave_way.inc();
        }
        let (id, give_way) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        let (usage, given) = (PlaceUse::Spare(now), Arc::clone(&give_way));
        let taken = TakenPlace { source, is_known, usage, give_way: given };
        table.taken.insert(id, taken);
        drop(table);
        Ok(Place { places: Arc::clone(self), id, give_way })
    }

    fn lock(&self) -> MutexGuard<'_, PlaceTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PlaceTable {
    /// Who gives way to a newcomer from `source`.
    fn victim(&self, source: IpAddr, is_known: bool, own_only: bool, now: Instant) -> Option<u64> {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        self.taken.values().for_each(|taken| *held.entry(taken.source).or_default() += 1);
        let newcomers = held.get(&source).copied().unwrap_or_default();
        let gives_way = |taken: &TakenPlace| match taken.usage {
            _ if own_only && taken.source != source => None,
            _ if taken.is_known && !is_known => None,
            PlaceUse::Spare(since) => Some(since),
            PlaceUse::Slow(since) if is_known && !taken.is_known => Some(since),
            PlaceUse::Slow(since) => {
                let fewer = taken.source == source || held[&taken.source] > newcomers + 1;
                (fewer && now.saturating_duration_since(since) >= SLOW_MIN).then_some(since)
            }
            PlaceUse::Kept => None,
        };
        self.taken
            .iter()
            .filter_map(|(id, taken)| Some((*id, taken, gives_way(taken)?)))
            .max_by_key(|(_, taken, since)| {
                let waited = now.saturating_duration_since(*since);
                (!taken.is_known, held[&taken.source], waited)
            })
            .map(|(id, ..)| id)
    }
}

impl Place {
    /// The connection waits for its client, from now on.
    pub fn spare(&self) {
        self.set(PlaceUse::Spare(Instant::now()));
    }

    /// A message is on its way, from now on.
    pub fn slow(&self) {
        self.set(PlaceUse::Slow(Instant::now()));
    }

    /// The client waits for us.
    pub fn kept(&self) {
        self.set(PlaceUse::Kept);
    }

    /// Who has it is no stranger, from now on.
    pub fn known(&self) {
        if let Some(taken) = self.places.lock().taken.get_mut(&self.id) {
            taken.is_known = true;
        }
    }

    /// Returns when the place was given to somebody else: the connection has to end.
    pub async fn gives_way(&self) {
        self.give_way.notified().await;
    }

    /// Returns when the connection has waited for its client for so long.
    pub async fn waited(&self, max: Duration) {
        loop {
            let since = match self.places.lock().taken.get(&self.id).map(|taken| taken.usage) {
                Some(PlaceUse::Spare(since) | PlaceUse::Slow(since)) => since,
                Some(PlaceUse::Kept) | None => Instant::now(),
            };
            if since.elapsed() >= max {
                return;
            }
            tokio::time::sleep_until((since + max).into()).await;
        }
    }

    fn set(&self, usage: PlaceUse) {
        if let Some(taken) = self.places.lock().taken.get_mut(&self.id) {
            taken.usage = usage;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may have been given away.
        self.places.lock().taken.remove(&self.id);
        self.places.freed.notify_one();
    }
}

/// `evenkeel_connections_closed_total`: connections that ended for want of a place.
#[derive(Debug, Clone)]
pub struct PlaceCounters(IntCounterVec);

impl PlaceCounters {
    /// All at zero.
    ///
    /// # Errors
    /// A metric of this name is there already.
    pub fn registered(metrics: &prometheus::Registry) -> prometheus::Result<PlaceCounters> {
        let closed = IntCounterVec::new(
            Opts::new(
                "evenkeel_connections_closed_total",
                "Connections closed for want of a place: they gave way to newer ones, or their source had too many.",
            ),
            &["listener", "reason"],
        )?;
        metrics.register(Box::new(closed.clone()))?;
        Ok(PlaceCounters(closed))
    }
}

/// What counts as one source: an address, or the /64 that one host of IPv6 has to itself.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

/// A message that is on its way for less than this is not slow yet: half a round trip around the world and a lost
/// packet.
const SLOW_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max: usize, each_max: usize) -> Arc<Places> {
        let counters = PlaceCounters::registered(&prometheus::Registry::new()).unwrap();
        Places::new(max, each_max, &counters, "test")
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    impl Place {
        fn was_given_away(&self) -> bool {
            !self.places.lock().taken.contains_key(&self.id)
        }

        fn set_at(&self, usage: PlaceUse) {
            self.set(usage);
        }
    }

    #[test]
    fn who_has_waited_longest_gives_way_and_who_is_being_answered_does_not() {
        let (places, t0) = (places(3, 3), Instant::now());
        let second = Duration::from_secs(1);
        let held: Vec<Place> =
            (0..3).map(|n| places.take(address(1), false, t0 + n * second).unwrap()).collect();
        held[0].kept();
        let newcomer = places.take(address(1), false, t0 + 9 * second).unwrap();
        let gone: Vec<bool> = held.iter().map(Place::was_given_away).collect();
        assert_eq!(gone, [false, true, false]);
        held[2].kept();
        newcomer.kept();
        for n in [1, 2] {
            assert!(matches!(places.take(address(n), false, t0 + 10 * second), Err(NoPlace::Full)));
        }
        drop(newcomer);
        assert!(places.take(address(2), false, t0 + 10 * second).is_ok());
    }

    #[test]
    fn who_holds_most_gives_way_first() {
        let (places, t0) = (places(4, 4), Instant::now());
        let oldest = places.take(address(1), false, t0).unwrap();
        let many: Vec<Place> = (0..3)
            .map(|n| places.take(address(2), false, t0 + Duration::from_secs(1 + n)).unwrap())
            .collect();
        let _newcomer = places.take(address(3), false, t0 + Duration::from_secs(9)).unwrap();
        assert!(!oldest.was_given_away());
        assert!(many[0].was_given_away() && !many[1].was_given_away());
    }

    #[test]
    fn a_message_on_its_way_gives_way_after_a_while_to_those_who_hold_fewer() {
        let (places, t0) = (places(3, 3), Instant::now());
        let soon = t0 + Duration::from_millis(900);
        let late = t0 + Duration::from_millis(1_100);
        let one = places.take(address(1), false, t0).unwrap();
        let many: Vec<Place> =
            (0..2).map(|_| places.take(address(2), false, t0).unwrap()).collect();
        for place in many.iter().chain([&one]) {
            place.set_at(PlaceUse::Slow(t0));
        }
        assert!(matches!(places.take(address(3), false, soon), Err(NoPlace::Full)));
        let third = places.take(address(3), false, late).unwrap();
        third.set_at(PlaceUse::Slow(late));
        assert_eq!(many.iter().filter(|place| place.was_given_away()).count(), 1);
        // Now everyone has one: nobody gives way to a fourth.
        let later = late + Duration::from_secs(5);
        assert!(matches!(places.take(address(4), false, later), Err(NoPlace::Full)));
        assert!(places.take(address(1), false, later).is_ok(), "to its own");
    }

    #[test]
    fn one_source_has_no_more_than_its_share() {
        let (places, now) = (places(8, 2), Instant::now());
        let network = |last: &str| format!("2001:db8:0:1::{last}").parse().unwrap();
        let held: Vec<Place> =
            ["1", "2"].map(|last| places.take(network(last), false, now).unwrap()).into();
        held.iter().for_each(Place::kept);
        assert!(matches!(places.take(network("3"), false, now), Err(NoPlace::SourceFull)));
        let other = places.take("2001:db8:0:2::1".parse().unwrap(), false, now);
        assert!(other.is_ok());
        held[1].spare();
        assert!(places.take(network("3"), false, now).is_ok());
        assert!(held[1].was_given_away());
        assert_eq!(places.gave_way.get() + places.turned_away.get(), 2);
    }

    #[test]
    fn who_is_known_comes_before_strangers_whatever_they_do() {
        let (places, t0) = (places(3, 3), Instant::now());
        let strangers: Vec<Place> =
            (1..=3).map(|n| places.take(address(n), false, t0).unwrap()).collect();
        strangers.iter().for_each(|place| place.set_at(PlaceUse::Slow(t0)));
        strangers[0].kept();
        assert!(matches!(places.take(address(9), false, t0), Err(NoPlace::Full)));
        let member = places.take(address(9), true, t0).unwrap();
        let another = places.take(address(9), true, t0).unwrap();
        assert!(!strangers[0].was_given_away(), "it is owed an answer");
        assert!(strangers[1].was_given_away() && strangers[2].was_given_away());
        let late = t0 + Duration::from_secs(60);
        strangers[0].known();
        strangers[0].set_at(PlaceUse::Slow(t0));
        assert!(matches!(places.take(address(5), false, late), Err(NoPlace::Full)));
        assert!(places.take(address(9), true, late).is_ok(), "spare ones of its own");
        assert!(member.was_given_away() != another.was_given_away());
    }

    #[tokio::test]
    async fn a_newcomer_waits_for_a_place_that_is_kept() {
        let places = places(1, 1);
        let held = places.enter(address(1)).await.unwrap();
        held.kept();
        let waiting = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.enter(address(2)).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert!(waiting.await.unwrap());
    }
}

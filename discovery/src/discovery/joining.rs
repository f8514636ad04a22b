//! Through whom this host joins: each address is tried until it has been met.
//!
//! Hosts that start together and name one other each form one mesh only if nobody gives up on its own name as soon as it has met
//! somebody else: the names are the edges of a graph, and the mesh is what they connect. So each address of `mesh.join`,
//! and for a while each member of an earlier life, has tries of its own, at rising intervals, until it
//! answers. What has been met is membership's from then on.
//!
//! A host that has just started knows nothing but itself, and for a moment its snapshot says of the whole mesh that it is
//! not there. So the snapshot is marked as partial until somebody has answered the question for everything. To have met
//! others by their datagrams is not enough: those bring news, not what has been there for long. Who is not told yet
//! therefore asks also those whom it has met, whether it was told to join them or not.
//!
//! A name may move to another address: an address that is not named any more is forgotten unmet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::exchanges::Purpose;
use super::{Discovery, Event, Readiness};
use crate::spread::FANOUT;

/// A lonely host tries to join after this, then twice as long each time.
pub(super) const JOIN_FIRST: Duration = Duration::from_millis(500);
/// At the longest.
pub(super) const JOIN_LAST: Duration = Duration::from_secs(30);
/// With others around, the join addresses are still tried this often, so that a split mesh heals.
pub(super) const JOIN_HEAL: Duration = Duration::from_secs(60);
/// After the first failure; then twice as long each time.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// At the longest, while it may yet come: hosts that start together are all up within minutes.
const RETRY_SOON: Duration = Duration::from_secs(5);
/// So many tries may follow each other that fast.
const SOON_MAX: u32 = 60;
/// From then on.
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A try is given up for lost after this, and another one made.
const TRY_LOST: Duration = Duration::from_secs(10);
/// An address that nobody named for this long is forgotten; names are looked up again more often.
const NAMED_KEPT: Duration = Duration::from_secs(180);
/// Members of an earlier life are tried for this long.
const EARLIER_KEPT: Duration = Duration::from_secs(60);
/// Addresses kept; those beyond it are tried whenever they are named.
const SEEDS_MAX: usize = 1024;

/// The addresses, and how far each is.
#[derive(Debug, Default)]
pub(super) struct Seeds(BTreeMap<SocketAddr, Seed>);

#[derive(Debug, Clone, Copy)]
struct Seed {
    /// Named by the configuration, not remembered from an earlier life.
    named: bool,
    met: bool,
    /// Tries that have failed.
    failures: u32,
    next: Instant,
    until: Instant,
}

impl Seeds {
    /// The configuration names this address. Returns whether it is to be tried now.
    pub fn name(&mut self, now: Instant, address: SocketAddr) -> bool {
        let is_new = !self.0.contains_key(&address);
        if is_new && self.0.len() >= SEEDS_MAX {
            return true;
        }
        let seed = self.entry(now, address);
        seed.named = true;
        seed.until = now + NAMED_KEPT;
        seed.met || seed.next <= now
    }

    /// A member of an earlier life was at this address.
    pub fn remember(&mut self, now: Instant, address: SocketAddr) {
        if self.0.len() < SEEDS_MAX {
            self.entry(now, address).until = now + EARLIER_KEPT;
        }
    }

    fn entry(&mut self, now: Instant, address: SocketAddr) -> &mut Seed {
        let new = Seed { named: false, met: false, failures: 0, next: now, until: now };
        self.0.entry(address).or_insert(new)
    }

    /// A try begins.
    pub fn trying(&mut self, now: Instant, address: SocketAddr) {
        if let Some(seed) = self.0.get_mut(&address) {
            seed.next = now + TRY_LOST;
        }
    }

    /// It answered, or is known to be up.
    pub fn met(&mut self, address: SocketAddr) {
        if let Some(seed) = self.0.get_mut(&address) {
            seed.met = true;
        }
    }

    /// The host that was met there is down: whoever starts there next is to be told of us soon, for it may know nobody.
    pub fn lost(&mut self, now: Instant, address: SocketAddr) {
        if let Some(seed) = self.0.get_mut(&address).filter(|seed| seed.named && seed.met) {
            (seed.met, seed.failures, seed.next) = (false, 1, now + RETRY_FIRST);
        }
    }

    /// A try failed.
    pub fn failed(&mut self, now: Instant, address: SocketAddr, rng: &mut ChaCha8Rng) {
        if let Some(seed) = self.0.get_mut(&address) {
            let most = if seed.failures < SOON_MAX { RETRY_SOON } else { RETRY_LAST };
            let pause = RETRY_FIRST.saturating_mul(1 << seed.failures.min(10)).min(most);
            seed.failures = seed.failures.saturating_add(1);
            seed.next = now + pause.mul_f64(rng.random_range(0.8..1.2));
        }
    }

    /// Those to be tried now; forgets those that are no longer named.
    pub fn due(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.0.retain(|_, seed| seed.until > now);
        let due = self.0.iter().filter(|(_, seed)| !seed.met && seed.next <= now);
        due.map(|(address, _)| *address).collect()
    }

    /// When [`Seeds::due`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter(|seed| !seed.met).map(|seed| seed.next).min()
    }

    /// Named addresses of which nothing is known yet: no try has ended.
    pub fn untried(&self) -> impl Iterator<Item = SocketAddr> {
        let untried = self.0.iter().filter(|(_, it)| it.named && !it.met && it.failures == 0);
        untried.map(|(address, _)| *address)
    }
}

impl Discovery {
    /// The configuration names this address to join through: the host there is asked for all it knows, and told of us; if it
    /// does not answer, again and again until it does. A no-op for our own address and, once somebody has told us all, for
    /// one where a member is up already.
    pub fn join(&mut self, now: Instant, address: SocketAddr) {
        if !self.left && address != self.config.node.address && self.seeds.name(now, address) {
            self.try_seed(now, address);
        }
    }

    pub(super) fn try_seed(&mut self, now: Instant, address: SocketAddr) {
        // Whatever comes of it: a time that is past and stays so would be due for ever.
        self.seeds.trying(now, address);
        if self.peers.at(address).any(|node| self.membership.up().contains_key(&node)) {
            self.seeds.met(address);
            if !self.is_partial() {
                return;
            }
        }
        let is_under_way =
            self.dials.values().any(|dial| dial.to == address && dial.purpose == Purpose::Join);
        if !self.left && address != self.config.node.address && !is_under_way {
            self.dial_join(now, address);
        }
    }

    /// A try to join has ended; `answered`: with all that the host there knows. What we were told is all once each named address has
    /// been tried: hosts that started a moment ago know no more than we do, and one of the others may.
    pub(super) fn join_ended(&mut self, now: Instant, wall_ms: u64, answered: bool) {
        self.was_told |= answered;
        if self.was_told && self.seeds.untried().next().is_none() {
            self.all_told(now, wall_ms);
        }
    }

    /// All that the mesh had to tell at this host's start has been told, or there is nobody to tell it: from the next
    /// snapshot on, which is made at once, what is not in it does not exist ([`Catalog::partial`](crate::Catalog::partial)).
    /// The answer of a host that was asked for everything does the same.
    pub fn all_told(&mut self, now: Instant, wall_ms: u64) {
        if self.is_partial() {
            self.publisher.all_told();
            self.publish(now, wall_ms);
        }
    }

    fn is_partial(&self) -> bool {
        self.publisher.catalog().partial
    }

    /// Whether there are hosts of an earlier life to be asked.
    #[must_use]
    pub fn knows_others(&self) -> bool {
        !self.saved_members.is_empty()
    }

    /// This host is up. As long as nobody has told us all and nobody is being asked, it is asked.
    pub(super) fn ask_whom_we_met(&mut self, now: Instant, node: u64) {
        let is_asking = self.dials.values().any(|dial| dial.purpose == Purpose::Join);
        if self.is_partial()
            && !is_asking
            && let Some(location) = self.peers.location(node)
        {
            self.try_seed(now, location.address);
        }
    }

    /// What this host still waits for before it can serve as a member of the mesh.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        if let Some(found) = self.found_instead {
            return Readiness::NotThere(found);
        }
        if let Some(address) = self.seeds.untried().next() {
            return Readiness::Joining(address);
        }
        if self.membership.up().is_empty() {
            return Readiness::Alone;
        }
        if self.membership.addressed_at().is_none() { Readiness::Unseen } else { Readiness::Ready }
    }

    pub(super) fn try_to_join(&mut self, now: Instant) {
        self.tell(Event::ResolveJoin);
        if !self.membership.up().is_empty() && !self.is_partial() {
            self.timers.join = now + self.jittered(JOIN_HEAL);
            return;
        }
        let backoff = JOIN_FIRST.saturating_mul(1 << self.join_attempts.min(10)).min(JOIN_LAST);
        self.join_attempts = self.join_attempts.saturating_add(1);
        self.timers.join = now + self.jittered(backoff);
        let known: Vec<SocketAddr> = self.peers.lost_addresses().collect();
        let saved = self.saved_members.iter().map(|member| member.address);
        let mut addresses: Vec<SocketAddr> = known.into_iter().chain(saved).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.shuffle(&mut self.rng);
        // Whoever is up was met by chance, and has not been asked yet.
        let up = self.random_peers(1, &[]);
        let up = up.into_iter().filter_map(|node| self.peers.location(node));
        addresses.splice(0..0, up.map(|location| location.address));
        for address in addresses.into_iter().take(FANOUT) {
            self.try_seed(now, address);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, host], 7111))
    }

    #[test]
    fn an_address_is_tried_until_it_is_met_ever_more_rarely() {
        let (start, mut rng) = (t0(), ChaCha8Rng::seed_from_u64(1));
        let mut seeds = Seeds::default();
        let (mut now, mut tries) = (start, 0);
        assert!(seeds.name(now, address(1)));
        while now < start + Duration::from_secs(600) {
            // The name is looked up now and then, which brings no try forward.
            seeds.name(now, address(1));
            for due in seeds.due(now) {
                seeds.trying(now, due);
                seeds.failed(now, due, &mut rng);
                tries += 1;
                assert!(seeds.poll_timeout().unwrap() <= now + RETRY_LAST.mul_f64(1.2));
            }
            now = seeds.poll_timeout().unwrap();
        }
        assert!((70..100).contains(&tries), "{tries}");
        seeds.met(address(1));
        assert_eq!(seeds.poll_timeout(), None);
        assert!(seeds.name(now, address(1)), "who was met and is away again: whenever it is named");
    }

    #[test]
    fn only_what_is_named_is_waited_for_and_only_until_its_first_try() {
        let (now, mut rng) = (t0(), ChaCha8Rng::seed_from_u64(1));
        let mut seeds = Seeds::default();
        seeds.name(now, address(1));
        seeds.remember(now, address(2));
        assert_eq!(seeds.untried().collect::<Vec<_>>(), [address(1)]);
        seeds.failed(now, address(1), &mut rng);
        assert_eq!(seeds.untried().count(), 0);
        let later = now + EARLIER_KEPT;
        assert_eq!(seeds.due(later), [address(1)], "an earlier life is over");
        assert_eq!(seeds.due(now + NAMED_KEPT), [], "and so is a name that moved on");
    }

    #[test]
    fn a_try_that_is_lost_is_made_again() {
        let now = t0();
        let mut seeds = Seeds::default();
        seeds.name(now, address(1));
        seeds.trying(now, address(1));
        assert_eq!(seeds.due(now), []);
        assert_eq!(seeds.due(now + TRY_LOST), [address(1)]);
    }
}

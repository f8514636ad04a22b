//! The Doorman clients of one resource on this host: who holds what until when, and what each gets when it asks.
//!
//! Such a client polls: it asks, says what it has, gets a lease, and comes back after the refresh interval. What it holds is counted
//! until it shows less or its lease has run out, whatever the shares would be now; so a cut never makes anything negative, it waits.
//!
//! Invariants: what all clients hold is at most what was set aside for them; 0 ≤ grant ≤ wants; at most [`CLIENTS_MAX`] clients, of
//! whom those that have run out go first. One answer costs O(log n): the shares of all are worked out again at most every
//! millisecond for each thousand clients, and between that a claim is answered from the last [`Allocation`].
//!
//! One part in [`NEWCOMERS`] is not shared out while who is here still changes, so that of several newcomers the next gets something before
//! the others have come back; once all have come back since the last of them, it is shared out too. A host that draws on the
//! resource itself always keeps it, for its own. **Learning**: a host that has just started believes what clients say they have, up to the host's right, until the
//! longest lease of its earlier life has run out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::algorithm::{Algorithm, Allocation, Claim, Floors, SUBCLIENTS_MAX};
use crate::quantity::Micros;

/// The clients of one resource.
#[derive(Debug)]
pub struct Store {
    clients: BTreeMap<Arc<[u8]>, Entry>,
    /// Who runs out when.
    ends: BTreeSet<(Instant, Arc<[u8]>)>,
    held: u128,
    /// Sums of wants and of sub-clients, by band.
    bands: BTreeMap<i64, (u128, u64)>,
    allocation: Allocation,
    counted_at: Option<Instant>,
    learning_until: Instant,
    /// Counts newcomers.
    newcomers: u64,
    /// Clients that have come back since the last newcomer.
    came_back: usize,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What it wants, for how many, how urgently.
    pub claim: Claim,
    /// What it says it has.
    pub has: Micros,
}

/// How the host shares.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What priorities are sure of.
    pub floors: &'a Floors,
    /// What there is for the clients and for what the host itself wants.
    pub capacity: Micros,
    /// What the host itself wants.
    pub own: Claim,
    /// What the host owns: what learning may believe together.
    pub right: Micros,
    /// How long a lease lasts.
    pub lease: Duration,
}

/// All [`CLIENTS_MAX`] places are taken by leases that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFull;

#[derive(Debug, Clone, Copy)]
struct Entry {
    claim: Claim,
    /// The band in whose sum it is.
    band: i64,
    has: Micros,
    until: Instant,
    /// How many newcomers there had been when it last came back; `None`: it never did.
    came_back: Option<u64>,
}

impl Store {
    /// Without clients. Leases of an earlier life run until `learning_until` at the latest.
    #[must_use]
    pub fn new(learning_until: Instant) -> Store {
        Store {
            clients: BTreeMap::new(),
            ends: BTreeSet::new(),
            held: 0,
            bands: BTreeMap::new(),
            allocation: Allocation::new(Algorithm::None, Micros::ZERO, &[], &Floors::default()),
            counted_at: None,
            learning_until,
            newcomers: 0,
            came_back: 0,
        }
    }

    /// A client asks; its lease, and until when it lasts. `set_aside(others, shown, wanted)` sets aside for it, where the other clients hold
    /// so much and this one has shown that it holds so much, and says what it could and until when; `None`: nothing, not even what the
    /// client holds already. Then that is not prolonged.
    pub fn ask(
        &mut self,
        now: Instant,
        id: &[u8],
        request: Request,
        terms: Terms<'_>,
        set_aside: impl FnOnce(Micros, Micros, Micros) -> Option<(Micros, Instant)>,
    ) -> Result<(Micros, Instant), StoreFull> {
        self.expire(now);
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(id) {
            return Err(StoreFull);
        }
        let shown = self.shown(now, id, request, terms.right);
        let latest = now + terms.lease;
        let until = self.clients.get(id).map_or(latest, |entry| entry.until);
        let claim = request.claim;
        let band = terms.floors.band(claim.priority);
        let is_newcomer = !self.clients.contains_key(id);
        if is_newcomer {
            self.newcomers += 1;
            self.came_back = 0;
        }
        let came_back = (!is_newcomer).then_some(self.newcomers);
        self.put(id, Entry { claim, band, has: shown, until, came_back });
        self.count(now, terms);
        let target = if self.is_learning(now) && !shown.is_zero() {
            shown.min(claim.wants)
        } else {
            self.allocation.grant(claim)
        };
        let others = Micros::from_u128(self.held - u128::from(shown.micros()));
        let (granted, end) = match terms.algorithm {
            Algorithm::None | Algorithm::Static => (target, latest),
            _ => set_aside(others, shown, target).unwrap_or((shown.min(target), until)),
        };
        // Of a cut the client may never hear: it counts when the client shows it.
        let entry =
            Entry { claim, band, has: shown.max(granted), until: until.max(end), came_back };
        self.put(id, entry);
        Ok((granted, end))
    }

    /// A client gives everything back.
    pub fn release(&mut self, id: &[u8]) {
        if let Some(entry) = self.clients.remove(id) {
            self.ends.remove(&(entry.until, Arc::from(id)));
            self.take_out(entry);
        }
    }

    /// Those whose leases have run out are gone.
    pub fn expire(&mut self, now: Instant) {
        while let Some((until, id)) = self.ends.first().cloned()
            && until < now
        {
            self.ends.pop_first();
            if let Some(entry) = self.clients.remove(&id) {
                self.take_out(entry);
            }
        }
    }

    /// Whether a part is kept back for newcomers, or, where it draws, for this host itself.
    pub(crate) fn keeps_back(&self, own: Claim) -> bool {
        !own.wants.is_zero() || self.came_back < self.clients.len()
    }

    /// What all clients hold.
    #[must_use]
    pub fn held(&self) -> Micros {
        Micros::from_u128(self.held)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// What they want, by the band of their priority: the sum of wants, and of those for whom they speak.
    #[must_use]
    pub fn wants(&self) -> Vec<Claim> {
        let bands = self.bands.iter().map(|(priority, (wants, clients))| Claim {
            wants: Micros::from_u128(*wants),
            subclients: u32::try_from(*clients).unwrap_or(u32::MAX).min(SUBCLIENTS_MAX),
            priority: *priority,
        });
        bands.collect()
    }

    /// When the next lease runs out.
    #[must_use]
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Each client: id, what it wants, what it has.
    pub fn clients(&self) -> impl Iterator<Item = (&[u8], Micros, Micros)> {
        self.clients.iter().map(|(id, entry)| (&**id, entry.claim.wants, entry.has))
    }

    fn is_learning(&self, now: Instant) -> bool {
        now < self.learning_until
    }

    /// What the client holds: what we granted or less, if it shows so. While learning, what it says of our earlier life.
    fn shown(&self, now: Instant, id: &[u8], request: Request, right: Micros) -> Micros {
        match self.clients.get(id) {
            Some(entry) => entry.has.min(request.has),
            None if self.is_learning(now) => request.has.min(right.minus(self.held())),
            None => Micros::ZERO,
        }
    }

    fn put(&mut self, id: &[u8], entry: Entry) {
        let id: Arc<[u8]> =
            self.clients.get_key_value(id).map_or_else(|| Arc::from(id), |(id, _)| Arc::clone(id));
        let band = self.bands.entry(entry.band).or_default();
        band.0 += u128::from(entry.claim.wants.micros());
        band.1 += u64::from(entry.claim.subclients.max(1));
        self.came_back += usize::from(entry.came_back == Some(self.newcomers));
        self.held += u128::from(entry.has.micros());
        self.ends.insert((entry.until, Arc::clone(&id)));
        if let Some(before) = self.clients.insert(Arc::clone(&id), entry) {
            if before.until != entry.until {
                self.ends.remove(&(before.until, id));
            }
            self.take_out(before);
        }
    }

    /// Takes an entry that is no longer there out of the sums.
    fn take_out(&mut self, entry: Entry) {
        self.came_back -= usize::from(entry.came_back == Some(self.newcomers));
        self.held -= u128::from(entry.has.micros());
        if let Some(band) = self.bands.get_mut(&entry.band) {
            band.0 -= u128::from(entry.claim.wants.micros());
            band.1 -= u64::from(entry.claim.subclients.max(1));
            if band.1 == 0 {
                self.bands.remove(&entry.band);
            }
        }
    }

    /// Works the shares out again, if it was long enough ago.
    fn count(&mut self, now: Instant, terms: Terms<'_>) {
        let apart = COUNT_EACH * self.clients.len() as u32;
        if self.counted_at.is_some_and(|at| now.saturating_duration_since(at) < apart) {
            return;
        }
        self.counted_at = Some(now);
        let claims: Vec<Claim> =
            self.clients.values().map(|entry| entry.claim).chain([terms.own]).collect();
        let shared = match terms.algorithm {
            Algorithm::None | Algorithm::Static => terms.capacity,
            _ if self.keeps_back(terms.own) => {
                terms.capacity.minus(terms.capacity.part(1, NEWCOMERS))
            }
            _ => terms.capacity,
        };
        self.allocation = Allocation::new(terms.algorithm, shared, &claims, terms.floors);
    }
}

/// Most clients of one resource on one host.
pub const CLIENTS_MAX: usize = 100_000;
/// One part in so many is kept back, see [`Store::keeps_back`].
pub(crate) const NEWCOMERS: u64 = 128;
/// The shares are worked out again after so long for each client.
const COUNT_EACH: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests;

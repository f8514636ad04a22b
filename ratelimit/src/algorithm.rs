//! How a capacity is shared out among those who want it.
//!
//! The four algorithms are Doorman's. [`Algorithm::FairShare`] is max-min fairness weighted by sub-clients, computed exactly (the water
//! level is a fraction; sorting by wants for each sub-client finds it in O(n log n)), where Doorman redistributes twice and stops
//! short. [`Algorithm::ProportionalShare`] follows Doorman's formula: everyone gets an equal share or less, and what the modest leave
//! goes to the others in proportion to what they lack.
//!
//! Invariants: 0 ≤ grant ≤ wants; with the two shares Σ grants ≤ capacity. Integers throughout, rounded down: of a capacity less
//! than two millionths for each sub-client stay undistributed.
//!
//! **Bands.** With floors configured, claims are put in bands by priority: each band is first given its floor as far as it wants it,
//! the rest goes to the bands from the highest priority down, and inside a band the algorithm decides. Without floors priorities
//! are ignored, as Doorman ignores them: its clients send some, and an upgrade must not make them starve one another.
//!
//! The result is not a list of grants but a [`Rule`] for each band, so that one more claim is answered in O(log bands) until the next
//! allocation. Such an answer may not fit beside the leases that are out: who grants it checks that.

pub use evenkeel_config::ratelimit::Algorithm;

use crate::quantity::Micros;

/// What one client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// How much.
    pub wants: Micros,
    /// How many clients speak through it: its weight. 0 counts as 1, more than [`SUBCLIENTS_MAX`] as that.
    pub subclients: u32,
    /// Larger is more important.
    pub priority: i64,
}

/// The part of the capacity that a priority is sure of, in thousandths, by rising priority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Floors(Vec<(i64, u16)>);

/// Floors that cannot be kept; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFloors {
    /// Together more than the whole.
    MoreThanAll,
    /// A priority is named twice.
    Twice(i64),
    /// More than [`BANDS_MAX`].
    TooMany,
}

/// What each band may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// By rising priority; the first also answers what is below it.
    bands: Vec<(i64, Rule)>,
}

/// What a claim gets inside a band.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// All that it wants.
    AsWanted,
    /// At most so much.
    AtMost(Micros),
    /// At most `capacity / weights` for each sub-client.
    Level { capacity: u128, weights: u128 },
    /// An equal share, and `left / lacking` of what it wants above that.
    Proportional { capacity: u128, weights: u128, left: u128, lacking: u128 },
}

impl Allocation {
    /// Shares `capacity` out among `claims`.
    #[must_use]
    pub fn new(
        algorithm: Algorithm,
        capacity: Micros,
        claims: &[Claim],
        floors: &Floors,
    ) -> Allocation {
        if floors.0.is_empty() {
            let rule = Rule::new(algorithm, u128::from(capacity.micros()), claims);
            return Allocation { bands: vec![(i64::MIN, rule)] };
        }
        let mut bands: Vec<_> = floors
            .0
            .iter()
            .map(|&(priority, floor)| Band::new(priority, capacity, floor))
            .collect();
        for claim in claims {
            let index =
                bands.partition_point(|band| band.priority <= claim.priority).saturating_sub(1);
            bands[index].claims.push(*claim);
        }
        let wanted = |band: &Band| Micros::sum(band.claims.iter().map(|claim| claim.wants));
        bands.iter_mut().for_each(|band| band.capacity = band.floor.min(wanted(band)));
        let mut rest =
            u128::from(capacity.micros()) - bands.iter().map(|band| band.capacity).sum::<u128>();
        for band in bands.iter_mut().rev() {
            let more = rest.min(wanted(band) - band.capacity);
            band.capacity += more;
            rest -= more;
        }
        let rules = bands
            .iter()
            .map(|band| (band.priority, Rule::new(algorithm, band.capacity, &band.claims)));
        Allocation { bands: rules.collect() }
    }

    /// What `claim` gets.
    #[must_use]
    pub fn grant(&self, claim: Claim) -> Micros {
        let index = self
            .bands
            .partition_point(|(priority, _)| *priority <= claim.priority)
            .saturating_sub(1);
        self.bands[index].1.grant(claim)
    }
}

struct Band {
    priority: i64,
    floor: u128,
    capacity: u128,
    claims: Vec<Claim>,
}

impl Band {
    fn new(priority: i64, capacity: Micros, floor: u16) -> Band {
        let floor = u128::from(capacity.part(u64::from(floor), 1_000).micros());
        Band { priority, floor, capacity: 0, claims: Vec::new() }
    }
}

impl Rule {
    fn new(algorithm: Algorithm, capacity: u128, claims: &[Claim]) -> Rule {
        match algorithm {
            Algorithm::None => Rule::AsWanted,
            Algorithm::Static => Rule::AtMost(Micros::from_u128(capacity)),
            _ if Micros::sum(claims.iter().map(|claim| claim.wants)) <= capacity => Rule::AsWanted,
            Algorithm::ProportionalShare => Rule::proportional(capacity, claims),
            Algorithm::FairShare => Rule::level(capacity, claims),
        }
    }

    /// Takes the modest out one after the other; what remains is shared equally by the rest.
    fn level(capacity: u128, claims: &[Claim]) -> Rule {
        // Wants for each sub-client, 2³² for a unit step: two different fractions differ by at least 1/SUBCLIENTS_MAX².
        let key = |claim: &Claim| (u128::from(claim.wants.micros()) << 32) / claim.weight();
        let mut order: Vec<_> = claims.iter().map(|claim| (key(claim), *claim)).collect();
        order.sort_unstable_by_key(|(key, _)| *key);
        let (mut capacity, mut weights) =
            (capacity, claims.iter().map(Claim::weight).sum::<u128>());
        for (_, claim) in order {
            let wants = u128::from(claim.wants.micros());
            if wants * weights > capacity * claim.weight() {
                break;
            }
            capacity -= wants;
            weights -= claim.weight();
        }
        Rule::Level { capacity, weights: weights.max(1) }
    }

    fn proportional(capacity: u128, claims: &[Claim]) -> Rule {
        let weights = claims.iter().map(Claim::weight).sum::<u128>().max(1);
        let (mut left, mut lacking) = (0, 0);
        for claim in claims {
            let (equal, wants) =
                (capacity * claim.weight() / weights, u128::from(claim.wants.micros()));
            left += equal.saturating_sub(wants);
            lacking += wants.saturating_sub(equal);
        }
        Rule::Proportional { capacity, weights, left, lacking: lacking.max(1) }
    }

    fn grant(self, claim: Claim) -> Micros {
        let wants = u128::from(claim.wants.micros());
        let grant = match self {
            Rule::AsWanted => wants,
            Rule::AtMost(most) => u128::from(most.micros()),
            Rule::Level { capacity, weights } => capacity * claim.weight() / weights,
            Rule::Proportional { capacity, weights, left, lacking } => {
                let equal = capacity * claim.weight() / weights;
                equal + wants.saturating_sub(equal) * left / lacking
            }
        };
        Micros::from_u128(grant.min(wants))
    }
}

impl Claim {
    fn weight(&self) -> u128 {
        u128::from(self.subclients.clamp(1, SUBCLIENTS_MAX))
    }
}

impl Floors {
    /// Checked floors, in thousandths of the capacity by priority.
    pub fn new(floors: impl IntoIterator<Item = (i64, u16)>) -> Result<Floors, BadFloors> {
        let mut floors: Vec<_> = floors.into_iter().collect();
        floors.sort_unstable();
        if floors.len() > BANDS_MAX {
            return Err(BadFloors::TooMany);
        }
        if floors.iter().map(|(_, floor)| u32::from(*floor)).sum::<u32>() > 1_000 {
            return Err(BadFloors::MoreThanAll);
        }
        match floors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(BadFloors::Twice(pair[0].0)),
            None => Ok(Floors(floors)),
        }
    }

    /// The band of a priority, as the priority that stands for it.
    #[must_use]
    pub fn band(&self, priority: i64) -> i64 {
        let index = self.0.partition_point(|(band, _)| *band <= priority).saturating_sub(1);
        self.0.get(index).map_or(0, |(band, _)| *band)
    }
}

impl std::fmt::Display for BadFloors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadFloors::MoreThanAll => {
                write!(f, "the floors add up to more than the capacity: lower one")
            }
            BadFloors::Twice(priority) => write!(f, "priority {priority} has two floors: keep one"),
            BadFloors::TooMany => {
                write!(f, "more than {BANDS_MAX} floors: join neighbouring priorities")
            }
        }
    }
}

impl std::error::Error for BadFloors {}

/// Most priorities with a floor.
pub const BANDS_MAX: usize = evenkeel_config::ratelimit::FLOORS_MAX;
/// Most clients that one speaks for.
pub const SUBCLIENTS_MAX: u32 = 1 << 16;

#[cfg(test)]
mod tests;

//! The endpoints of an upstream at one moment: an immutable snapshot, and how an index is drawn from it.
//!
//! Draws follow the endpoints' weights in constant time whatever their number (Vose's alias method); with equal weights no
//! table is kept. The obvious alternative, a list in which an endpoint stands as often as its weight says, grows with the weights.
//!
//! The endpoints of this host's zone have draws of their own, if there are others beside them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::endpoint::{Endpoint, State};
use crate::rendezvous::{Memo, identity_hash};

/// The endpoints of an upstream at one moment, ordered by node, instance and address.
#[derive(Debug, Default)]
pub struct Set {
    endpoints: Box<[Arc<Endpoint>]>,
    /// Of each endpoint what a choice looks at, close together: what it does not choose it never touches.
    looks: Box<[Look]>,
    /// Of each endpoint the number that [rendezvous](crate::rendezvous) goes by.
    identities: Box<[u64]>,
    all: Draws,
    /// `None`: none that serves stands in this host's zone, or all of them do.
    near: Option<Draws>,
    zones: usize,
    serving: u32,
    weight_serving: f64,
    memo: Memo,
}

impl Deref for Set {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }
}

impl Set {
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>, own_zone: Option<&str>) -> Set {
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.spec.weight).collect();
        let mut zones: BTreeMap<Option<&str>, u16> = BTreeMap::new();
        let looks: Box<[Look]> = endpoints
            .iter()
            .map(|endpoint| {
                let next = zones.len() as u16;
                let zone = endpoint.spec.zone.as_deref();
                let near = own_zone.and_then(|own| zone.map(|zone| zone == own));
                Look::at(endpoint, *zones.entry(zone).or_insert(next), near)
            })
            .collect();
        let serving = || looks.iter().filter(|look| look.serving);
        let near: Vec<u32> = (0..looks.len())
            .filter(|&index| looks[index].near == Some(true))
            .filter(|&index| looks[index].serving && looks[index].weight > 0)
            .map(|index| index as u32)
            .collect();
        let apart = !near.is_empty() && looks.iter().any(|look| look.near != Some(true));
        Set {
            identities: endpoints.iter().map(|endpoint| identity_hash(&endpoint.spec)).collect(),
            all: Draws::new(&weights, None),
            near: apart.then(|| {
                let weights: Vec<u32> = near.iter().map(|&index| weights[index as usize]).collect();
                Draws::new(&weights, Some(near.into_boxed_slice()))
            }),
            zones: zones.len(),
            serving: u32::try_from(serving().count()).unwrap_or(u32::MAX),
            weight_serving: serving().map(|look| f64::from(look.weight)).sum(),
            memo: Memo::default(),
            looks,
            endpoints: endpoints.into_boxed_slice(),
        }
    }

    /// How many serve.
    #[must_use]
    pub fn serving(&self) -> u32 {
        self.serving
    }

    /// The weights of those that serve, together.
    pub(crate) fn weight_serving(&self) -> f64 {
        self.weight_serving
    }

    /// Draws from all.
    #[inline]
    pub(crate) fn all(&self) -> &Draws {
        &self.all
    }

    /// Draws from those in this host's zone.
    #[inline]
    pub(crate) fn near(&self) -> Option<&Draws> {
        self.near.as_ref()
    }

    /// What a choice looks at.
    #[inline]
    pub(crate) fn look(&self, index: usize) -> &Look {
        &self.looks[index]
    }

    pub(crate) fn identity(&self, index: usize) -> u64 {
        self.identities[index]
    }

    #[inline]
    pub(crate) fn is_weighted(&self) -> bool {
        self.all.aliases.is_some()
    }

    /// `None` when all weights are equal.
    pub(crate) fn unequal_weight(&self, index: usize) -> Option<u32> {
        self.is_weighted().then(|| self.looks[index].weight)
    }

    /// The number of the endpoint's zone, below [`Set::zones`].
    pub(crate) fn zone(&self, index: usize) -> usize {
        usize::from(self.looks[index].zone)
    }

    /// Different zones; endpoints whose zone is not known count as one.
    pub(crate) fn zones(&self) -> usize {
        self.zones
    }

    pub(crate) fn memo(&self) -> &Memo {
        &self.memo
    }
}

/// Draws of an index, by weight.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    count: u32,
    /// `None`: of all.
    indices: Option<Box<[u32]>>,
    /// `None`: all weights are equal.
    aliases: Option<Box<[Alias]>>,
}

impl Draws {
    fn new(weights: &[u32], indices: Option<Box<[u32]>>) -> Draws {
        Draws { count: weights.len() as u32, indices, aliases: aliases(weights) }
    }

    /// The index that a number spread evenly over all of `u64` stands for, by weight. There must be one.
    #[inline]
    pub(crate) fn draw(&self, random: u64) -> usize {
        let scaled = u128::from(random) * u128::from(self.count);
        let column = (scaled >> 64) as usize;
        let place = match &self.aliases {
            None => column,
            Some(aliases) if (scaled as u64) < aliases[column].keep => column,
            Some(aliases) => aliases[column].other as usize,
        };
        self.indices.as_ref().map_or(place, |indices| indices[place] as usize)
    }

    /// The index at place `cursor` of a rotation in which each endpoint comes as often as its weight says.
    pub(crate) fn rotate(&self, cursor: u64) -> usize {
        match (&self.aliases, &self.indices) {
            (None, None) => (cursor % u64::from(self.count)) as usize,
            (None, Some(indices)) => indices[(cursor % u64::from(self.count)) as usize] as usize,
            // Multiples of the golden ratio, modulo 1, fill an interval as evenly as any sequence can.
            (Some(_), _) => self.draw(cursor.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        }
    }
}

/// What a choice looks at.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) state: Arc<State>,
    /// 0: not chosen by draws.
    pub(crate) weight: u32,
    zone: u16,
    /// In this host's zone; `None`: its zone or ours is not known.
    pub(crate) near: Option<bool>,
    pub(crate) serving: bool,
}

impl Look {
    fn at(endpoint: &Arc<Endpoint>, zone: u16, near: Option<bool>) -> Look {
        Look {
            state: Arc::clone(&endpoint.state),
            weight: endpoint.spec.weight,
            zone,
            near,
            serving: endpoint.spec.in_service(),
        }
    }
}

/// A column of the alias table: below `keep` the column's own index, else the other.
#[derive(Debug, Clone, Copy)]
struct Alias {
    keep: u64,
    other: u32,
}

/// The table for these weights; `None` when all are equal.
fn aliases(weights: &[u32]) -> Option<Box<[Alias]>> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let count = weights.len() as u128;
    let total: u128 = weights.iter().copied().map(u128::from).sum();
    // Column heights in units where every column is `total` high.
    let mut heights: Vec<u128> = weights.iter().map(|&weight| u128::from(weight) * count).collect();
    let mut table: Vec<Alias> =
        (0..weights.len()).map(|index| Alias { keep: u64::MAX, other: index as u32 }).collect();
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (index, height) in heights.iter().enumerate() {
        match height.cmp(&total) {
            Ordering::Less => low.push(index),
            Ordering::Greater => high.push(index),
            Ordering::Equal => {}
        }
    }
    while let (Some(short), Some(tall)) = (low.pop(), high.pop()) {
        table[short] = Alias {
            keep: ((heights[short] << 64) / total).min(u128::from(u64::MAX)) as u64,
            other: tall as u32,
        };
        heights[tall] -= total - heights[short];
        match heights[tall].cmp(&total) {
            Ordering::Less => low.push(tall),
            Ordering::Greater => high.push(tall),
            Ordering::Equal => {}
        }
    }
    Some(table.into_boxed_slice())
}

/// More endpoints than this are left out of an upstream, the last in order first.
pub const ENDPOINTS_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The share of draws that each index gets, exactly.
    fn shares(weights: &[u32]) -> Vec<f64> {
        let count = weights.len() as f64;
        let Some(table) = aliases(weights) else { return vec![1.0 / count; weights.len()] };
        let mut shares = vec![0.0; weights.len()];
        for (index, alias) in table.iter().enumerate() {
            let keep = alias.keep as f64 / u64::MAX as f64;
            shares[index] += keep / count;
            shares[alias.other as usize] += (1.0 - keep) / count;
        }
        shares
    }

    #[test]
    fn equal_weights_need_no_table() {
        assert!(
            aliases(&[]).is_none() && aliases(&[0, 0]).is_none() && aliases(&[7, 7, 7]).is_none()
        );
    }

    proptest! {
        #[test]
        fn draws_follow_the_weights(weights in prop::collection::vec(0u32..1_000, 1..40)) {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            prop_assume!(total > 0.0);
            for (share, &weight) in shares(&weights).iter().zip(&weights) {
                prop_assert!((share - f64::from(weight) / total).abs() < 1e-9, "{share} for {weight} of {total}");
            }
        }

        #[test]
        fn extreme_weights_do_not_overflow(weights in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(u32::MAX)], 2..20)) {
            if weights.iter().any(|&weight| weight > 0) {
                prop_assert!((shares(&weights).iter().sum::<f64>() - 1.0).abs() < 1e-9);
            }
        }
    }
}

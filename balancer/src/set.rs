//! The endpoints of an upstream at one moment: an immutable snapshot, and how an index is drawn from it.
//!
//! Draws follow the endpoints' weights in constant time whatever their number (Vose's alias method); with equal weights no
//! table is kept. The obvious alternative, a list in which an endpoint stands as often as its weight says, grows with the weights.

use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;

use crate::endpoint::{Endpoint, State};

/// The endpoints of an upstream at one moment, ordered by node, instance and address.
#[derive(Debug, Default)]
pub struct Set {
    endpoints: Box<[Arc<Endpoint>]>,
    /// Of each endpoint what a choice looks at, close together: what it does not choose it never touches.
    looks: Box<[Look]>,
    /// `None`: all weights are equal.
    aliases: Option<Box<[Alias]>>,
    serving: u32,
    own_zone: Option<Arc<str>>,
}

impl Deref for Set {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }
}

impl Set {
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>, own_zone: Option<&str>) -> Set {
        let serving = endpoints.iter().filter(|endpoint| endpoint.spec.serving).count();
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.spec.weight).collect();
        Set {
            aliases: aliases(&weights),
            looks: endpoints.iter().map(Look::at).collect(),
            endpoints: endpoints.into_boxed_slice(),
            serving: u32::try_from(serving).unwrap_or(u32::MAX),
            own_zone: own_zone.map(Arc::from),
        }
    }

    /// How many serve.
    #[must_use]
    pub fn serving(&self) -> u32 {
        self.serving
    }

    /// Whether the endpoint stands in this host's zone; `None` when either zone is not known.
    pub(crate) fn is_near(&self, endpoint: &Endpoint) -> Option<bool> {
        Some(self.own_zone.as_deref()? == endpoint.spec.zone.as_deref()?)
    }

    /// What a choice looks at.
    pub(crate) fn look(&self, index: usize) -> &Look {
        &self.looks[index]
    }

    /// The index that a number spread evenly over all of `u64` stands for, by weight. The set must not be empty.
    pub(crate) fn draw(&self, random: u64) -> usize {
        let scaled = u128::from(random) * self.endpoints.len() as u128;
        let index = (scaled >> 64) as usize;
        match &self.aliases {
            None => index,
            Some(aliases) if (scaled as u64) < aliases[index].keep => index,
            Some(aliases) => aliases[index].other as usize,
        }
    }

    /// The index at place `cursor` of a rotation in which each endpoint comes as often as its weight says.
    pub(crate) fn rotate(&self, cursor: u64) -> usize {
        match self.aliases {
            None => (cursor % self.endpoints.len() as u64) as usize,
            // Multiples of the golden ratio, modulo 1, fill an interval as evenly as any sequence can.
            Some(_) => self.draw(cursor.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        }
    }
}

/// What a choice looks at.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) state: Arc<State>,
    pub(crate) serving: bool,
    /// Chosen by draws at all.
    pub(crate) weighs: bool,
}

impl Look {
    fn at(endpoint: &Arc<Endpoint>) -> Look {
        Look {
            state: Arc::clone(&endpoint.state),
            serving: endpoint.spec.serving,
            weighs: endpoint.spec.weight > 0,
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
pub const ENDPOINTS_MAX: usize = 65_536;

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

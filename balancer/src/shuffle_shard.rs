//! Shuffle shards: the few endpoints that a key's requests may go to.
//!
//! Two keys seldom have the same few, so what one key breaks (a request that kills its server, a tenant that floods) breaks
//! for others only a part of theirs, and a retry within their shard finds the rest. With 8 endpoints and shards of 2 there are 28 shards: a
//! tenant that takes down both of its endpoints takes down 1/28 of the others, and a plain partition into 4 would take down a quarter.
//! (MacCárthaigh, "Shuffle Sharding", and Route 53 Infima.)
//!
//! - **Members** come from the key's [order](crate::rendezvous) over the *full* set, ill or not: chosen among the healthy ones, the shards of
//!   an ill endpoint would move, and carry to healthy endpoints what made it ill.
//! - **Zones**: the first of each zone, best first, then the second of each, and so on, so a shard spans as many zones as it can. In
//!   a zone with fewer endpoints each stands in more shards.
//! - **At most one member changes** when an endpoint comes or goes: whoever leaves a zone's order moves those behind up by one, which lets in
//!   the best that was left out, wherever it stands, and nobody else. (A limit for each zone, the obvious way, would change with the
//!   number of zones and move many.)
//!
//! How the members are chosen among for one request is `choice`'s. Zones are not preferred within a shard.

use serde::Serialize;

use crate::balancer::Balancer;
use crate::key::scramble;
use crate::rendezvous::{FEW_MAX, Few, Highest, KEPT, score};
use crate::set::Set;

impl Set {
    /// The members of a key's shard, best first.
    pub(crate) fn shard(&self, key: u64, size: u32) -> Few {
        let (order, size) = self.shard_order(key, size);
        if size > KEPT {
            return self.compute_shard(order, size);
        }
        self.memo().get(order, || self.compute_shard(order, size))
    }

    /// As [`Set::shard`], for keys that no request will have: the memo keeps those of requests.
    fn shard_unkept(&self, key: u64, size: u32) -> Few {
        let (order, size) = self.shard_order(key, size);
        self.compute_shard(order, size)
    }

    /// The key of the order that the shard is the head of, and how many can be in it.
    fn shard_order(&self, key: u64, size: u32) -> (u64, usize) {
        let size = (size as usize).min(FEW_MAX).min(self.len());
        // Shards of another size are others, and have nothing to do with where `balance: hash` sends the key.
        (scramble(key ^ SHARDS ^ size as u64), size)
    }

    fn compute_shard(&self, key: u64, size: usize) -> Few {
        let mut zones = vec![Highest::new(size); self.zones()];
        for index in 0..self.len() {
            let score = score(key, self.identity(index), self.unequal_weight(index));
            zones[self.zone(index)].add(score, index);
        }
        let mut members: Vec<(f64, u16)> = Vec::with_capacity(size + self.zones());
        let mut tier = 0;
        while members.len() < size {
            let from = members.len();
            members.extend(zones.iter().filter_map(|zone| zone.best().get(tier)));
            members[from..]
                .sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
            members.truncate(size);
            tier += 1;
        }
        Few::new(members.into_iter().map(|(_, index)| index))
    }
}

/// A key's shard, and what it shares with those of other keys.
#[derive(Debug, Clone, Serialize)]
pub struct ShardReport {
    /// The instances in it, best first.
    pub members: Vec<ShardMember>,
    /// Endpoints of the upstream.
    pub endpoints: usize,
    /// Different shards that there can be; `None` where weights or zones make some of them more likely than others.
    pub shards: Option<f64>,
    /// The share of other keys whose shard has so many members in common with this one: 0, 1, … all.
    pub overlap: Vec<f64>,
    /// Whether `overlap` was calculated; else it was counted over a sample of keys.
    pub exact: bool,
}

/// A member of a shard.
#[derive(Debug, Clone, Serialize)]
pub struct ShardMember {
    /// The instance's id.
    pub id: String,
    /// Its host's id in hexadecimal; empty: static.
    pub node: String,
    /// The application's own address.
    pub address: String,
    /// Where its host stands; empty: not known.
    pub zone: String,
    /// Whether it serves.
    pub serving: bool,
}

impl Balancer {
    /// The shard of the key with this [hash](crate::key_hash), for shards of `size`.
    #[must_use]
    pub fn shard(&self, key: u64, size: u32) -> ShardReport {
        let set = self.endpoints();
        let few = set.shard_unkept(key, size);
        let exact = set.zones() <= 1 && !set.is_weighted();
        let members = few.iter().map(|index| {
            let spec = &set[index].spec;
            ShardMember {
                id: spec.instance.to_string(),
                node: if spec.node == 0 { String::new() } else { format!("{:016x}", spec.node) },
                address: spec.address.to_string(),
                zone: spec.zone.as_deref().unwrap_or_default().to_owned(),
                serving: spec.serving,
            }
        });
        ShardReport {
            members: members.collect(),
            endpoints: set.len(),
            shards: exact.then(|| choose(set.len(), few.len())),
            overlap: if exact {
                hypergeometric(set.len(), few.len())
            } else {
                sampled(&set, &few, size)
            },
            exact,
        }
    }
}

/// The share of equally likely shards of `size` among `count` that have 0, 1, … members in common with one of them.
fn hypergeometric(count: usize, size: usize) -> Vec<f64> {
    let all = choose(count, size);
    (0..=size)
        .map(|common| choose(size, common) * choose(count - size, size - common) / all)
        .collect()
}

/// n over k; 0 when k > n.
fn choose(n: usize, k: usize) -> f64 {
    if k > n {
        return 0.0;
    }
    let product: f64 =
        (0..k.min(n - k)).map(|step| (n - step) as f64 / (step + 1) as f64).product();
    // A whole number, as long as a float holds one.
    if product < 1e15 { product.round() } else { product }
}

fn sampled(set: &Set, few: &Few, size: u32) -> Vec<f64> {
    let mut overlap = vec![0.0; few.len() + 1];
    for other in 0..SAMPLES {
        let shard = set.shard_unkept(scramble(other), size);
        overlap[shard.iter().filter(|&member| few.contains(member)).count()] +=
            1.0 / SAMPLES as f64;
    }
    overlap
}

/// Keys that a report counts over: one part in a thousand is seen.
const SAMPLES: u64 = 4_096;
const SHARDS: u64 = 0x7368_6172_6473_0000;

#[cfg(test)]
mod tests;

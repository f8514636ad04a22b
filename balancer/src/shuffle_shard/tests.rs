use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::endpoint::{EndpointSpec, Hop};

fn spec(index: u16, zone: Option<&str>, weight: u32) -> EndpointSpec {
    let address = ([10, 0, (index >> 8) as u8, index as u8], 80).into();
    EndpointSpec {
        node: u64::from(index) + 1,
        instance: Arc::from("i"),
        address,
        dial: address,
        hop: Hop::Mesh,
        protocol: None,
        weight,
        zone: zone.map(Arc::from),
        serving: true,
        preserved: false,
    }
}

#[allow(clippy::disallowed_methods)]
fn balancer(specs: Vec<EndpointSpec>) -> Balancer {
    let start = Instant::now();
    let balancer = Balancer::new(start);
    balancer.update(start, specs, None);
    balancer
}

fn plain(count: u16) -> Balancer {
    balancer((0..count).map(|index| spec(index, None, 1)).collect())
}

/// The members of a key's shard, by node.
fn members(balancer: &Balancer, key: u64, size: u32) -> BTreeSet<u64> {
    let set = balancer.endpoints();
    set.shard(key, size).iter().map(|index| set[index].spec.node).collect()
}

#[test]
fn a_poison_tenant_takes_down_one_in_28_of_the_others() {
    let balancer = plain(8);
    let report = balancer.shard(crate::key_hash(b"poison"), 2);
    assert_eq!((report.members.len(), report.shards, report.exact), (2, Some(28.0), true));
    let all: f64 = report.overlap.iter().sum();
    assert!(
        (all - 1.0).abs() < 1e-12 && (report.overlap[2] - 1.0 / 28.0).abs() < 1e-12,
        "{report:?}"
    );

    // Counted, with tenants as they are named.
    let poisoned = members(&balancer, crate::key_hash(b"poison"), 2);
    let tenants = 28_000;
    let (mut down, mut seen) = (0, BTreeSet::new());
    for tenant in 0..tenants {
        let shard = members(&balancer, crate::key_hash(format!("tenant-{tenant}").as_bytes()), 2);
        assert_eq!(shard.len(), 2);
        down += u32::from(shard == poisoned);
        seen.insert(shard);
    }
    assert_eq!(seen.len(), 28, "every shard has tenants");
    assert!((900..=1_100).contains(&down), "{down} of {tenants}, 1000 is a 28th");
}

#[test]
fn a_key_has_the_same_shard_on_every_host() {
    // Known answers: a release that answers otherwise would send tenants elsewhere than its neighbours do.
    let of = |size, zones: bool| {
        let zone = |index: u16| zones.then_some(if index < 3 { "a" } else { "b" });
        let balancer = balancer((0..12).map(|index| spec(index, zone(index), 1)).collect());
        let set = balancer.endpoints();
        set.shard(crate::key_hash(b"tenant-1"), size)
            .iter()
            .map(|index| set[index].spec.node)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(4, false), [11, 4, 6, 8]);
    assert_eq!(of(4, true), [11, 1, 4, 2]);
    assert_eq!(of(9, false).len(), 9, "past what is remembered");
}

#[test]
fn members_come_from_as_many_zones_as_there_are() {
    let zones = ["a", "a", "a", "a", "a", "a", "b", "b", "b", "c"];
    let balancer =
        balancer((0..10).map(|index| spec(index, Some(zones[usize::from(index)]), 1)).collect());
    let set = balancer.endpoints();
    for key in (0..500).map(scramble) {
        for (size, expected) in [(1, 1), (2, 2), (3, 3), (4, 3), (10, 3), (64, 3)] {
            let shard = set.shard(key, size);
            let spans: BTreeSet<usize> = shard.iter().map(|index| set.zone(index)).collect();
            assert_eq!((shard.len(), spans.len()), ((size as usize).min(10), expected));
        }
    }
    assert!(!balancer.shard(1, 4).exact);
    let sampled = balancer.shard(1, 4).overlap;
    assert!((sampled.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{sampled:?}");
}

#[test]
fn weights_decide_how_many_shards_an_endpoint_is_in() {
    let balancer =
        balancer((0..10).map(|index| spec(index, None, if index == 0 { 3 } else { 1 })).collect());
    let shards = |node: u64| {
        (0..20_000).map(scramble).filter(|&key| members(&balancer, key, 1).contains(&node)).count()
            as f64
            / 20_000.0
    };
    assert!((shards(1) - 0.25).abs() < 0.02 && (shards(2) - 1.0 / 12.0).abs() < 0.02);
}

/// What a report says of equal weights is what the shards are.
#[test]
fn the_overlap_is_what_is_counted() {
    let balancer = plain(20);
    let (report, set) = (balancer.shard(7, 4), balancer.endpoints());
    let counted = sampled(&set, &set.shard(7, 4), 4);
    for (said, counted) in report.overlap.iter().zip(&counted) {
        assert!((said - counted).abs() < 0.03, "{:?} against {counted:?}", report.overlap);
    }
    assert_eq!(report.shards, Some(4_845.0));
    assert_eq!(plain(3).shard(7, 4).overlap, [0.0, 0.0, 0.0, 1.0], "all of three are one shard");
    assert_eq!(balancer_of_none().shard(7, 4).members.len(), 0);
}

fn balancer_of_none() -> Balancer {
    plain(0)
}

proptest! {
    #[test]
    fn at_most_one_member_changes_when_an_endpoint_comes_or_goes(
        zones in prop::collection::vec(0u8..4, 1..40), weights in prop::collection::vec(1u32..4, 40),
        gone in any::<prop::sample::Index>(), key in any::<u64>(), size in 1u32..12,
    ) {
        let names = [None, Some("a"), Some("b"), Some("c")];
        let specs: Vec<_> = zones.iter().enumerate().map(|(index, &zone)| {
            spec(index as u16, names[usize::from(zone)], weights[index])
        }).collect();
        let mut fewer = specs.clone();
        let left = fewer.remove(gone.index(specs.len()));
        let (before, after) = (members(&balancer(specs), key, size), members(&balancer(fewer), key, size));
        let lost: Vec<_> = before.difference(&after).collect();
        let come = after.difference(&before).count();
        prop_assert!(lost.iter().all(|&&node| node == left.node) && come <= lost.len(), "{before:?} → {after:?}");
        prop_assert_eq!(before.len(), (size as usize).min(zones.len()));
    }

    #[test]
    fn health_does_not_move_a_shard(key in any::<u64>(), ill in prop::collection::vec(any::<bool>(), 12)) {
        let specs = |ill: &[bool]| (0..12u16).map(|index| EndpointSpec {
            serving: !ill[usize::from(index)], ..spec(index, None, 1)
        }).collect();
        prop_assert_eq!(members(&balancer(specs(&[false; 12])), key, 3), members(&balancer(specs(&ill)), key, 3));
    }
}

/// A report looks at thousands of keys that no request has: what is kept of those that requests have must survive it.
#[test]
fn a_report_takes_no_place_in_the_memo() {
    let balancer = balancer((0..8).map(|index| spec(index, None, 1 + u32::from(index))).collect());
    let set = balancer.endpoints();
    let report = balancer.shard(7, 2);
    assert!(!report.exact, "weights differ, so that it is counted over a sample");
    let (order, size) = set.shard_order(7, 2);
    let mut computed = false;
    let few = set.memo().get(order, || {
        computed = true;
        set.compute_shard(order, size)
    });
    assert!(computed, "the report has kept it");
    let nodes = |few: &Few| few.iter().map(|index| set[index].spec.address.to_string()).collect();
    let reported: Vec<String> = report.members.iter().map(|one| one.address.clone()).collect();
    let (kept, asked): (Vec<String>, Vec<String>) = (nodes(&few), nodes(&set.shard(7, 2)));
    assert_eq!((&reported, &reported), (&kept, &asked), "and says what requests do");
    // Whatever another report looks at, this one stays.
    assert_eq!(balancer.shard(8, 2).members.len(), 2);
    set.memo().get(order, || panic!("it was kept"));
}

//! What hosts say about quotas in their records: that they take part, which roster they know, and, the registrar, the rosters.

use std::collections::BTreeMap;
use std::time::Duration;

use evenkeel_discovery::discovery::NOTE_MAX;
use evenkeel_discovery::{Catalog, HostNotes, Node, NodeStatus, Subject};
use evenkeel_ratelimit::{Census, Roster, decode_rosters, encode_rosters};

/// The note of who takes part: the newest roster that it knows, and how long its clients hold their leases.
pub const TAKES_PART: &str = "quota";
/// The notes of the registrar: its rosters, in parts.
const ROSTER: &str = "roster/";

/// A host that has just come has so long to say that it takes part.
const DECLINES_S: u64 = 10;

/// What stands in that note.
pub fn takes_part(epoch: u64, clients: Duration) -> Vec<u8> {
    let clients = u32::try_from(clients.as_millis()).unwrap_or(u32::MAX);
    [&epoch.to_be_bytes()[..], &clients.to_be_bytes()].concat()
}

fn read_takes_part(note: &[u8]) -> Option<(u64, Duration)> {
    let (epoch, rest) = note.split_first_chunk()?;
    let clients = u32::from_be_bytes(*rest.first_chunk()?);
    Some((u64::from_be_bytes(*epoch), Duration::from_millis(clients.into())))
}

/// Names and bodies of the registrar's notes. Names have a fixed width, so that they stand in order.
pub fn rosters(rosters: &[Roster]) -> BTreeMap<String, Vec<u8>> {
    let parts = encode_rosters(rosters, NOTE_MAX);
    (0..).zip(parts).map(|(part, body): (u32, _)| (format!("{ROSTER}{part:04}"), body)).collect()
}

/// The rosters that a host tells; none if it does not, or not readably.
pub fn read(notes: &HostNotes) -> Vec<Roster> {
    let parts = notes.iter().filter(|(name, _)| name.starts_with(ROSTER));
    decode_rosters(parts.map(|(_, body)| &**body)).unwrap_or_default()
}

/// Whether a note is one of the registrar's.
pub fn is_roster(name: &str) -> bool {
    name.starts_with(ROSTER)
}

/// Who is there, by the catalogue.
pub fn census(catalog: &Catalog, may_begin: bool, wall_s: u64, absent: Duration) -> Census {
    let (mut known, mut clients) = (BTreeMap::new(), BTreeMap::new());
    for (host, notes) in &catalog.notes {
        let note = notes.get(TAKES_PART).and_then(|note| read_takes_part(note));
        let Some((epoch, lease)) = note else { continue };
        known.insert(*host, epoch);
        if !lease.is_zero() {
            clients.insert(*host, lease);
        }
    }
    let ended = |status| matches!(status, NodeStatus::Left | NodeStatus::Dead);
    // Up for a while, and it does not say that it takes part: it was told not to. Indices are unix microseconds.
    let declines = |host: &u64, node: &Node| {
        let for_s = wall_s.saturating_sub(node.index / 1_000_000);
        node.status == NodeStatus::Alive && !known.contains_key(host) && for_s >= DECLINES_S
    };
    let gone = catalog
        .nodes
        .iter()
        .filter(|(host, node)| ended(node.status) || declines(host, node))
        .map(|(host, _)| *host);
    // Who drains a host that is not up says that it is not behind a partition.
    let is_up = |host| catalog.nodes.get(host).is_some_and(|n| n.status == NodeStatus::Alive);
    let drained = catalog.orders.keys().filter_map(|subject| match subject {
        Subject::Drain(host) if !is_up(host) => Some(*host),
        Subject::Drain(_) | Subject::Override(_) => None,
    });
    Census {
        gone: gone.chain(drained).collect(),
        present: known.keys().copied().collect(),
        known,
        may_begin,
        clients,
        absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_discovery::{Instruction, Order};
    use std::sync::Arc;

    #[test]
    fn who_is_not_up_is_gone_once_an_operator_says_so() {
        let node = |id: u64, status| Node {
            id,
            name: format!("host-{id}"),
            address: ([127, 0, 0, 1], 7111).into(),
            mesh: ([127, 0, 0, 1], 7110).into(),
            zone: None,
            generation: 1,
            status,
            draining: false,
            index: 0,
        };
        let statuses =
            [NodeStatus::Alive, NodeStatus::Failed, NodeStatus::Failed, NodeStatus::Left];
        let nodes = (1..).zip(statuses).map(|(id, status)| (id, Arc::new(node(id, status))));
        let drained =
            Order { instruction: Instruction::Drain, issued_us: 1, until_us: 2, by: String::new() };
        let drained = Arc::new(drained);
        // The last one is not even known.
        let orders = [1, 3, 9].map(|id| (Subject::Drain(id), Arc::clone(&drained)));
        let takes_part = Arc::from(takes_part(7, Duration::ZERO));
        let notes = HostNotes::from([(Box::from(TAKES_PART), takes_part)]);
        let catalog = Catalog {
            nodes: nodes.collect(),
            orders: orders.into_iter().collect(),
            notes: BTreeMap::from([(1, Arc::new(notes))]),
            ..Catalog::default()
        };
        let census = census(&catalog, true, 100, Duration::from_secs(60));
        assert_eq!(census.gone.into_iter().collect::<Vec<_>>(), [3, 4, 9]);
        assert_eq!(census.present.into_iter().collect::<Vec<_>>(), [1]);
    }
}

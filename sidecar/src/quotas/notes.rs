//! What hosts say about quotas in their records: that they take part, which roster they know, and, the registrar, the rosters.

use std::collections::BTreeMap;
use std::time::Duration;

use evenkeel_discovery::discovery::NOTE_MAX;
use evenkeel_discovery::{Catalog, HostNotes, Node, NodeStatus};
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
    Census {
        gone: gone.collect(),
        present: known.keys().copied().collect(),
        known,
        may_begin,
        clients,
        absent,
    }
}

//! What hosts say about quotas in their records: that they take part, which roster they know, and, the registrar, the rosters.

use std::collections::BTreeMap;
use std::time::Duration;

use evenkeel_discovery::discovery::NOTE_MAX;
use evenkeel_discovery::{Catalog, HostNotes, Node, NodeStatus};
use evenkeel_ratelimit::{Census, Roster, decode_rosters, encode_rosters};

/// The note of who takes part: the newest roster that it knows.
pub const KNOWN: &str = "quota";
/// The notes of the registrar: its rosters, in parts.
const ROSTER: &str = "roster/";

/// A host that has just come has so long to say that it takes part.
const DECLINES_S: u64 = 10;

/// The newest roster known, as it stands in the note.
pub fn known(epoch: u64) -> Vec<u8> {
    epoch.to_be_bytes().to_vec()
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
pub fn census(
    catalog: &Catalog,
    may_begin: bool,
    wall_s: u64,
    absent: Duration,
    loans_last: Duration,
) -> Census {
    let known: BTreeMap<u64, u64> = catalog
        .notes
        .iter()
        .filter_map(|(host, notes)| {
            let epoch = notes.get(KNOWN)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))?;
            Some((*host, epoch))
        })
        .collect();
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
        absent,
        loans_last,
    }
}

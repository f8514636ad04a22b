//! Which news of records go into the next datagrams: an epidemic on our own queue.
//!
//! One item for each host whose record changed, however often it changed: what is sent is made from the record at
//! the moment of sending, from the oldest base on that is still queued. Each host passes news on [`copies`] times,
//! freshest first, under a rate limit. What does not fit a datagram is announced by how much there is, and fetched
//! over TCP. Not foca's broadcasts: those get only the space that membership leaves, and cost O(backlog) for each packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::registry::Registry;
use crate::wire::{Extent, Frame};

/// Hosts that get news at a time.
pub(crate) const FANOUT: usize = 3;
/// The first copies wait this long, to travel together.
const FIRST: Duration = Duration::from_millis(5);
/// Most bytes of news a second, and at once.
const BYTES_PER_SEC: f64 = 256.0 * 1024.0;
const BURST: f64 = 64.0 * 1024.0;

/// The queue of news.
#[derive(Debug)]
pub(crate) struct Spread {
    items: BTreeMap<u64, Item>,
    interval: Duration,
    due: Option<Instant>,
    tokens: f64,
    refilled: Instant,
    /// Most items; beyond it anti-entropy has to do.
    max: usize,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    generation: u64,
    base: u64,
    left: u32,
}

impl Spread {
    pub fn new(now: Instant, interval: Duration, max: usize) -> Self {
        Spread { items: BTreeMap::new(), interval, due: None, tokens: BURST, refilled: now, max }
    }

    /// There is news of this host's record since `base`.
    pub fn push(&mut self, now: Instant, node: u64, generation: u64, base: u64, size: usize) {
        if self.items.len() >= self.max && !self.items.contains_key(&node) {
            return;
        }
        let item = self.items.entry(node).or_insert(Item { generation, base, left: 0 });
        if item.generation == generation {
            item.base = item.base.min(base);
        } else {
            *item = Item { generation, base, left: 0 };
        }
        item.left = copies(size);
        let first = now + FIRST;
        self.due = Some(self.due.map_or(first, |due| due.min(first)));
    }

    /// There is nobody to tell: who joins is told everything.
    pub fn clear(&mut self) {
        self.items.clear();
        self.due = None;
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a round: whether there is anything to send, and the bytes to send it in.
    pub fn begin(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * BYTES_PER_SEC).min(BURST);
        self.refilled = now;
        self.items.retain(|_, item| item.left > 0);
        self.due = (!self.items.is_empty()).then(|| now + self.interval);
        !self.items.is_empty() && self.tokens > 0.0
    }

    /// News for one host, at most `room` bytes, freshest first; counts them as sent.
    pub fn fill(&mut self, registry: &Registry, to: u64, room: usize) -> Vec<Frame> {
        let mut order: Vec<(u32, u64)> = self
            .items
            .iter()
            .filter(|(node, item)| **node != to && item.left > 0)
            .map(|(node, item)| (item.left, *node))
            .collect();
        order.sort_by_key(|(left, node)| (std::cmp::Reverse(*left), *node));
        let mut frames = Vec::new();
        let mut used = 0;
        for (_, node) in order {
            let Some(item) = self.items.get_mut(&node) else {
                continue;
            };
            let Some(frame) = news(registry, node, *item, room) else {
                item.left = 0;
                continue;
            };
            let len = match &frame {
                Frame::Delta(delta) => delta.encoded_len_max(),
                _ => HAVE_LEN,
            };
            if used + len > room {
                break;
            }
            used += len;
            item.left -= 1;
            frames.push(frame);
        }
        self.tokens -= used as f64;
        frames
    }
}

const HAVE_LEN: usize = 2 + 8 + 2 * 10;

/// The delta, or how much there is if it is larger than a datagram, or that the record was buried.
fn news(registry: &Registry, node: u64, item: Item, room: usize) -> Option<Frame> {
    let extent = registry.extent(node)?;
    if extent.upto == Extent::TOMBSTONE {
        return Some(Frame::Have(extent));
    }
    let delta =
        registry.delta_for(Extent { node, generation: item.generation, upto: item.base })?;
    Some(if delta.encoded_len_max() <= room { Frame::Delta(delta) } else { Frame::Have(extent) })
}

/// How often each host passes news on: to everyone while that is cheap, else to enough that all hear it with near certainty.
fn copies(size: usize) -> u32 {
    if size <= 10 { 6 } else { 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    #[test]
    fn changes_of_one_record_travel_together_and_so_many_times() {
        let t0 = t0();
        let mut registry = Registry::new(1, 1, 10, 100);
        let mut spread = Spread::new(t0, Duration::from_millis(100), 10);
        for key in ["a", "b", "c"] {
            let changes = registry.write(t0, key, Some(vec![1]));
            spread.push(t0, 1, 1, changes.base, 3);
        }
        let mut sent = 0;
        let mut now = t0;
        while spread.begin(now) {
            for frame in spread.fill(&registry, 2, 1000) {
                let Frame::Delta(delta) = frame else { panic!("a small delta is sent whole") };
                assert_eq!((delta.base, delta.upto, delta.entries.len()), (0, 3, 3));
                sent += 1;
            }
            now += Duration::from_millis(100);
        }
        assert_eq!(sent, copies(3));
        assert_eq!(spread.due(), None, "an empty queue wants no wake-up");
    }

    #[test]
    fn what_does_not_fit_is_announced() {
        let t0 = t0();
        let mut registry = Registry::new(1, 1, 10, 100);
        let mut spread = Spread::new(t0, Duration::from_millis(100), 10);
        registry.write(t0, "a", Some(vec![1; 2000]));
        spread.push(t0, 1, 1, 0, 3);
        assert!(spread.begin(t0));
        assert_eq!(
            spread.fill(&registry, 2, 1000),
            [Frame::Have(Extent { node: 1, generation: 1, upto: 1 })]
        );
        assert_eq!(spread.fill(&registry, 1, 1000), [], "nobody is told of itself");
    }

    #[test]
    fn the_rate_is_limited() {
        let t0 = t0();
        let mut registry = Registry::new(1, 1, 10, 100);
        let mut spread = Spread::new(t0, Duration::from_millis(100), 10);
        registry.write(t0, "a", Some(vec![1; 900]));
        let mut bytes = 0;
        for _ in 0..10_000 {
            spread.push(t0, 1, 1, 0, 3);
            if !spread.begin(t0) {
                break;
            }
            bytes += spread.fill(&registry, 2, 1000).len() * 900;
        }
        assert!(bytes as f64 <= BURST, "{bytes}");
        assert!(spread.begin(t0 + Duration::from_secs(1)));
    }
}

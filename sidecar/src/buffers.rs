//! The memory that bodies, windows and heads of all connections share: `limits.buffers`.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of request bodies kept and of larger windows offered by the whole process, and their limit; beside them, up to half as
/// much, those of large heads: a request is not refused because copies of others are kept.
#[derive(Debug)]
pub struct Buffers {
    used: AtomicUsize,
    heads: AtomicUsize,
    max: AtomicUsize,
    /// Bodies that found no room.
    refused: prometheus::IntCounter,
}

impl Buffers {
    /// At most `max` bytes.
    pub fn new(max: usize, refused: prometheus::IntCounter) -> Buffers {
        Buffers {
            used: AtomicUsize::new(0),
            heads: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
            refused,
        }
    }

    /// Changes the limit; what is kept stays.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes room for a piece of a body that is kept; what finds none is counted.
    pub fn take(&self, bytes: usize) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= max;
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.refused.inc();
        }
        fits
    }

    /// Takes room for a large head that waits.
    pub fn take_for_head(&self, bytes: usize) -> bool {
        let max = self.max.load(Ordering::Relaxed) / 2;
        let fits = self.heads.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= max;
        if !fits {
            self.heads.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back what a head had.
    pub fn head_is_gone(&self, bytes: usize) {
        self.heads.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes room for a larger window ([`crate::http2::window`]). Up to half of all, so that bodies have the rest.
    pub fn take_half(&self, bytes: usize) -> bool {
        let max = self.max.load(Ordering::Relaxed) / 2;
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= max;
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_takes_none_and_is_counted() {
        let refused = prometheus::IntCounter::new("refused", "refused").expect("a name");
        let buffers = Buffers::new(100, refused.clone());
        assert!(buffers.take(60) && !buffers.take(41) && buffers.take(40));
        buffers.give_back(40);
        assert!(buffers.take(40), "what was refused took nothing");
        buffers.set_max(50);
        assert!(!buffers.take(1), "a smaller limit holds for what comes");
        assert_eq!(refused.get(), 2);
    }
}

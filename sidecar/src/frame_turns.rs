//! How much of a connection of HTTP/2 is read before the others of its worker have their turn.
//!
//! What a frame costs has little to do with its length: fifteen bytes of SETTINGS can walk over a thousand streams. h2 handles
//! all that a read gives it before anybody else runs, so the reads are what can be held: a turn ends [`TURN_MAX`] after
//! its first read, and where the handling of one read alone takes longer, the next reads are half as large, and so on
//! until it does not. A connection whose frames cost no more than their bytes never sees any of it.
//!
//! Not for HTTP/1.1, where the time between two reads is an application's.

use std::time::{Duration, Instant};

/// The turns of one connection.
#[derive(Debug)]
pub struct FrameTurns {
    began: Instant,
    /// When something was last read, and how much.
    read_at: Instant,
    bytes: usize,
    piece: usize,
}

impl FrameTurns {
    /// Of a connection that begins.
    pub fn new(now: Instant) -> FrameTurns {
        FrameTurns { began: now, read_at: now, bytes: 0, piece: PIECE_MAX }
    }

    /// How many bytes may be read at once.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// So many bytes were read; `first`: with them a turn begins.
    pub fn read(&mut self, now: Instant, first: bool, bytes: usize) {
        if first {
            self.began = now;
        }
        (self.read_at, self.bytes) = (now, bytes);
    }

    /// What was read last has been handled. Whether the turn is over.
    pub fn handled(&mut self, now: Instant) -> bool {
        let took = now.saturating_duration_since(self.read_at);
        if took > TURN_MAX {
            self.piece = (self.bytes.min(self.piece) / 2).max(PIECE_MIN);
        } else if took < TURN_MAX / 2 {
            self.piece = (self.piece * 2).min(PIECE_MAX);
        }
        now.saturating_duration_since(self.began) >= TURN_MAX
    }
}

/// How long the frames of one connection are handled before the others have their turn.
const TURN_MAX: Duration = Duration::from_micros(250);
/// Bytes that are read at once: at least one frame of each kind that can be costly, at most as much as h2 has room for.
const PIECE_MIN: usize = 512;
const PIECE_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// How long one turn of a connection takes whose peer always has more to say, at so much for each byte.
    fn turn(turns: &mut FrameTurns, now: &mut Instant, cost: Duration) -> Duration {
        let began = *now;
        let mut first = true;
        loop {
            let bytes = turns.piece().min(16 * 1024);
            turns.read(*now, first, bytes);
            first = false;
            *now += cost * u32::try_from(bytes).unwrap();
            if turns.handled(*now) {
                return *now - began;
            }
        }
    }

    #[test]
    fn costly_frames_are_read_in_small_pieces_and_cheap_ones_as_they_come() {
        let mut now = Instant::now();
        let mut turns = FrameTurns::new(now);
        let (costly, cheap) = (MICROSECOND, Duration::from_nanos(1));
        let first = turn(&mut turns, &mut now, costly);
        for _ in 0..10 {
            turn(&mut turns, &mut now, costly);
        }
        let later = turn(&mut turns, &mut now, costly);
        assert!(first > 50 * TURN_MAX && later < 3 * TURN_MAX, "{first:?}, {later:?}");
        for _ in 0..2 {
            turn(&mut turns, &mut now, cheap);
        }
        assert_eq!(turns.piece(), PIECE_MAX);
    }
}

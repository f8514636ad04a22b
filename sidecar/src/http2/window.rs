//! How much a peer may send on one stream before we read it: small, until a stream shows that it needs more.
//!
//! A reader that pauses leaves a whole window of bytes in our memory, and hundreds may pause at once, so the window
//! begins at [`WINDOW_BASE`]. One round trip can carry no more than a window, so a fast reader behind a long path
//! needs a larger one. Whether it does is measured, not guessed: when a stream has read half a window, a PING is sent,
//! and what the fastest stream reads until it comes back is its rate. The window that the rate needs is twice that
//! rate times the shortest round trip seen lately: the shortest, because a queue that we fill ourselves makes the
//! measured one longer and would let the window feed on itself. So the first PING goes out with the connection, before
//! anything queues: a thousand downloads that begin at once are no long path. A slow reader never grows a window, however
//! much is waiting for it.
//!
//! HTTP/2 has one such number for all streams of a connection (SETTINGS_INITIAL_WINDOW_SIZE), so a window that grew
//! for one stream is an offer to all the others. What all of them together could then leave unread beyond the base is
//! paid for from `limits.buffers` before the window grows; when more streams come than were paid for it shrinks, and
//! it goes back to the base when nobody has needed it for [`UNUSED_AFTER`].
//!
//! Why not what hyper does (`adaptive_window`): it gives the connection the window of one stream, so a reader that
//! pauses stops the others. Why not the connection's window as the limit: it has no owner; whoever does not read holds
//! it, and everybody waits. It is larger than what all streams together can use, so that only their own windows count
//! ([`WindowGrowth::connection_window`]). It is not endless: a peer may keep to a larger window until it has acknowledged a
//! smaller one (RFC 9113 §6.5.3), which it may never do.
//!
//! Source: the estimator is gRPC's and hyper's idea of a bandwidth-delay product by PING; flow control is RFC 9113 §5.2.

use std::time::{Duration, Instant};

use super::STREAMS_MAX;

/// The window of a connection's streams, and what is known of who needs it.
#[derive(Debug)]
pub struct WindowGrowth {
    window: u32,
    streams: u32,
    /// Bytes of `limits.buffers` that were paid for what is beyond the base.
    paid: usize,
    /// The shortest round trip, let to grow by an eighth with each that is measured.
    round_trip: Duration,
    /// When the PING was sent that is out.
    measuring: Option<Instant>,
    measured: u64,
    /// What the fastest stream has read since the last measurement.
    fastest: u32,
    /// When a measurement was last of use, and the soonest that it is worth the next one.
    needed_at: Instant,
    next_at: Instant,
    patience: Duration,
}

/// What one stream has read since the connection's last measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamProgress {
    measured: u64,
    bytes: u32,
}

impl WindowGrowth {
    /// A connection that has just begun.
    pub fn new(now: Instant) -> WindowGrowth {
        WindowGrowth {
            window: WINDOW_BASE,
            streams: 0,
            paid: 0,
            round_trip: Duration::MAX,
            measuring: None,
            measured: 1,
            fastest: 0,
            needed_at: now,
            next_at: now,
            patience: PATIENCE_MIN,
        }
    }

    /// The window that the connection's streams should have.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// The window that the connection itself should have: what as many streams as there may be can use of theirs, before
    /// our first SETTINGS is acknowledged too, and twice what is paid for, because windows shrink by halves.
    pub fn connection_window(&self) -> u32 {
        let streams = self.streams.max(STREAMS_MAX).next_power_of_two() as usize;
        let all = streams * WINDOW_UNTOLD as usize + 2 * self.paid;
        u32::try_from(all).unwrap_or(u32::MAX).min(CONNECTION_WINDOW_MAX)
    }

    /// What is paid for from `limits.buffers`; whoever ends the connection gives it back.
    pub fn paid(&self) -> usize {
        self.paid
    }

    /// A stream began. Whether the windows have changed: a stream's has shrunk, so that all of them stay within what is
    /// paid for, or the connection's is larger.
    pub fn stream_begins(&mut self) -> bool {
        self.streams += 1;
        let room = WINDOW_BASE + to_window(self.paid / self.streams as usize);
        // Not for each stream: a change of the setting costs a frame and a walk over all streams.
        let shrinks = self.window > WINDOW_BASE && self.window / 2 >= room;
        if shrinks {
            self.window = room;
        }
        shrinks || self.streams > STREAMS_MAX && (self.streams - 1).is_power_of_two()
    }

    /// A stream ended.
    pub fn stream_ends(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    /// A stream's reader took `bytes`. Whether a PING is worth sending now: then [`WindowGrowth::sent`] is to follow.
    pub fn read(&mut self, stream: &mut StreamProgress, bytes: usize) -> bool {
        if stream.measured != self.measured {
            *stream = StreamProgress { measured: self.measured, bytes: 0 };
        }
        stream.bytes = stream.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.fastest = self.fastest.max(stream.bytes);
        self.measuring.is_none() && self.fastest >= self.window / 2
    }

    /// Whether enough time has passed since the last measurement that came to nothing.
    pub fn due(&self, now: Instant) -> bool {
        self.measuring.is_none() && now >= self.next_at
    }

    /// The PING is out.
    pub fn sent(&mut self, now: Instant) {
        self.measuring = Some(now);
        self.measured += 1;
        self.fastest = 0;
    }

    /// The PING came back. Whether the window has grown; `pay` takes bytes from `limits.buffers`, if they are there.
    pub fn answered(&mut self, now: Instant, pay: impl FnOnce(usize) -> bool) -> bool {
        let Some(sent) = self.measuring.take() else { return false };
        let took = now.saturating_duration_since(sent).max(Duration::from_micros(1));
        let read = std::mem::take(&mut self.fastest);
        self.measured += 1;
        self.round_trip = took.min(self.round_trip.saturating_add(self.round_trip / 8));
        if read == 0 {
            // Asked for another reason: nothing came of it, and nothing was to.
            return false;
        }
        let share = self.round_trip.as_secs_f64() / took.as_secs_f64();
        let needed = 2.0 * f64::from(read) * share;
        if needed > f64::from(self.window) {
            self.needed_at = now;
            let wanted = (HEADROOM * needed) as u32;
            let wanted = wanted.checked_next_power_of_two().unwrap_or(WINDOW_MAX).min(WINDOW_MAX);
            let cost = (wanted - WINDOW_BASE) as usize * self.streams.max(1) as usize;
            if wanted > self.window && pay(cost.saturating_sub(self.paid)) {
                self.paid = self.paid.max(cost);
                self.window = wanted;
                self.patience = PATIENCE_MIN;
                self.next_at = now;
                return true;
            }
        }
        self.next_at = now + self.patience;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        false
    }

    /// Looks whether the window is still needed: if not, it goes back to the base, and what was paid for it is
    /// returned so that it can be given back.
    pub fn unused(&mut self, now: Instant) -> Option<usize> {
        let unused = self.window > WINDOW_BASE
            && now.saturating_duration_since(self.needed_at) >= UNUSED_AFTER;
        unused.then(|| {
            self.window = WINDOW_BASE;
            self.next_at = now;
            self.patience = PATIENCE_MIN;
            std::mem::take(&mut self.paid)
        })
    }
}

fn to_window(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(WINDOW_MAX).min(WINDOW_MAX)
}

/// A stream's window until it is known to need more. On a path of 0.2 ms that is 160 MB/s; a reader that pauses leaves it
/// in our memory, and up to as much again for the pieces that it was read into.
pub const WINDOW_BASE: u32 = 32 * 1024;
/// The largest window: 160 MB/s on a path of 50 ms.
pub const WINDOW_MAX: u32 = 8 * 1024 * 1024;
/// A window that is too small hides how much more is needed: it grows by more than was seen to be, so that a large
/// transfer has its window after a few round trips.
const HEADROOM: f64 = 2.0;
/// A stream's window before a peer has acknowledged the first SETTINGS (RFC 9113 §6.9.2).
const WINDOW_UNTOLD: u32 = 65_535;
/// A connection's own window when it begins.
pub const CONNECTION_WINDOW: u32 = STREAMS_MAX.next_power_of_two() * WINDOW_UNTOLD;
/// As large as it may be (RFC 9113 §6.9.1).
const CONNECTION_WINDOW_MAX: u32 = (1 << 31) - 1;
/// Between two measurements that came to nothing: doubled each time, so that a fast stream whose window is large
/// enough costs a PING now and then.
const PATIENCE_MIN: Duration = Duration::from_millis(20);
const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// A larger window that no stream has needed for this long is taken back.
const UNUSED_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    /// A path, a sender that always has more to send, and one reader.
    struct Path {
        round_trip: Duration,
        /// What the path and the sender can carry, bytes a second.
        capacity: f64,
        /// What the reader takes, bytes a second.
        reader: f64,
    }

    impl Path {
        /// Runs it for `time`; the window at the end.
        fn run(
            &self,
            growth: &mut WindowGrowth,
            now: &mut Instant,
            time: Duration,
            budget: usize,
        ) -> u32 {
            let (mut stream, mut budget) = (StreamProgress::default(), budget);
            let end = *now + time;
            while *now < end {
                // A round trip in which the reader takes what window, path and its own speed allow.
                let limit = f64::from(growth.window()) / self.round_trip.as_secs_f64();
                let rate = limit.min(self.capacity).min(self.reader);
                let bytes = (rate * self.round_trip.as_secs_f64()) as usize;
                if growth.due(*now) {
                    growth.sent(*now);
                }
                growth.read(&mut stream, bytes);
                *now += self.round_trip;
                growth.answered(*now, |cost| {
                    let pays = cost <= budget;
                    budget -= if pays { cost } else { 0 };
                    pays
                });
            }
            growth.window()
        }
    }

    fn begun() -> (WindowGrowth, Instant) {
        let now = Instant::now();
        let mut growth = WindowGrowth::new(now);
        growth.stream_begins();
        (growth, now)
    }

    #[test]
    fn a_fast_stream_behind_a_long_path_gets_what_the_path_carries() {
        let (mut growth, mut now) = begun();
        let path =
            Path { round_trip: Duration::from_millis(50), capacity: 80.0 * MB, reader: 1e12 };
        let window = path.run(&mut growth, &mut now, Duration::from_secs(1), usize::MAX);
        assert!(
            f64::from(window) >= 80.0 * MB * 0.05,
            "{window} bytes in 50 ms are too few for 80 MB/s"
        );
        let later = path.run(&mut growth, &mut now, Duration::from_secs(10), usize::MAX);
        assert!(later <= 8 * window, "it does not go on growing: {later} after {window}");
    }

    #[test]
    fn a_short_path_needs_no_more_than_the_base_even_where_queues_make_it_look_long() {
        let (mut growth, mut now) = begun();
        let quick =
            Path { round_trip: Duration::from_micros(200), capacity: 60.0 * MB, reader: 1e12 };
        assert_eq!(
            quick.run(&mut growth, &mut now, Duration::from_secs(1), usize::MAX),
            WINDOW_BASE
        );
        // Its own bytes queue before the answer: 20 ms now and then, never for long.
        growth.sent(now);
        growth.read(&mut StreamProgress::default(), (60.0 * MB * 0.02) as usize);
        now += Duration::from_millis(20);
        assert!(!growth.answered(now, |_| true), "{}", growth.window());
    }

    #[test]
    fn downloads_that_begin_at_once_are_no_long_path() {
        let (mut growth, mut now) = begun();
        growth.sent(now);
        now += Duration::from_micros(300);
        assert!(!growth.answered(now, |_| true));
        assert!(growth.due(now), "a PING that nobody needed leaves no time to wait");
        // Each fills its caller's socket, and the answers queue behind all of them.
        for _ in 0..5 {
            growth.sent(now);
            growth.read(&mut StreamProgress::default(), 150_000);
            now += Duration::from_millis(50);
            assert!(!growth.answered(now, |_| true), "{}", growth.window());
        }
    }

    #[test]
    fn a_slow_reader_grows_nothing() {
        let (mut growth, mut now) = begun();
        let path =
            Path { round_trip: Duration::from_millis(50), capacity: 80.0 * MB, reader: 10_000.0 };
        assert_eq!(
            path.run(&mut growth, &mut now, Duration::from_secs(60), usize::MAX),
            WINDOW_BASE
        );
    }

    #[test]
    fn what_nobody_pays_for_is_not_offered_and_more_streams_share_what_is_paid() {
        let path =
            Path { round_trip: Duration::from_millis(50), capacity: 80.0 * MB, reader: 1e12 };
        let (mut growth, mut now) = begun();
        let window = path.run(&mut growth, &mut now, Duration::from_secs(2), 1 << 20);
        assert!(window <= WINDOW_BASE + (1 << 20), "{window}");
        assert!(growth.paid() <= 1 << 20);
        let (mut growth, mut now) = begun();
        let window = path.run(&mut growth, &mut now, Duration::from_secs(2), usize::MAX);
        let mut unpaid = 0;
        for streams in 2..=500_u64 {
            growth.stream_begins();
            let offered = u64::from(growth.window() - WINDOW_BASE) * streams;
            unpaid = unpaid.max(
                offered.saturating_sub(2 * growth.paid() as u64 + u64::from(WINDOW_BASE) * streams),
            );
        }
        assert_eq!(unpaid, 0, "a window of {window} for one stream");
    }

    #[test]
    fn the_connection_holds_up_no_stream_and_no_more_than_streams_need() {
        let path =
            Path { round_trip: Duration::from_millis(50), capacity: 80.0 * MB, reader: 1e12 };
        let (mut growth, mut now) = begun();
        assert_eq!(growth.connection_window(), CONNECTION_WINDOW);
        path.run(&mut growth, &mut now, Duration::from_secs(2), usize::MAX);
        let mut told = growth.connection_window();
        for streams in 2..=3000_u64 {
            if growth.stream_begins() {
                told = growth.connection_window();
            }
            let used = streams * u64::from(growth.window());
            assert!(used <= u64::from(told), "{streams} streams use {used} of {told}");
        }
        let most = 4096 * WINDOW_UNTOLD as usize + 2 * growth.paid();
        assert!(told as usize <= most, "whoever never acknowledges a smaller window has {told}");
    }

    #[test]
    fn a_window_that_is_no_longer_needed_is_taken_back() {
        let (mut growth, mut now) = begun();
        let path =
            Path { round_trip: Duration::from_millis(50), capacity: 80.0 * MB, reader: 1e12 };
        path.run(&mut growth, &mut now, Duration::from_secs(2), usize::MAX);
        let paid = growth.paid();
        assert_eq!(growth.unused(now), None, "it was needed a moment ago");
        assert_eq!(growth.unused(now + UNUSED_AFTER), Some(paid));
        assert_eq!((growth.window(), growth.paid()), (WINDOW_BASE, 0));
        assert!(growth.due(now + UNUSED_AFTER), "and may grow again at once");
    }
}

//! The windows of one connection under any order of what may happen to it.
//!
//! Two bytes are one step: what happens, and how much or how long. `limits.buffers` is a number here, so that what is
//! taken from it and given back can be counted.

use std::time::{Duration, Instant};

use crate::http2::window::{StreamProgress, WINDOW_BASE, WINDOW_MAX, WindowGrowth};

/// The window stays between its bounds and within what is paid for; all that is paid is given back once.
pub fn window_growth(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut growth = WindowGrowth::new(now);
    let mut streams = Vec::new();
    let (mut budget, mut ping_is_out) = (BUDGET, false);
    for step in bytes.chunks_exact(2) {
        let amount = usize::from(step[1]);
        match step[0] % 8 {
            // Many at once, as a caller with much to ask begins them.
            0 => {
                for _ in 0..amount.min(STREAMS_MAX - streams.len()) {
                    growth.stream_begins();
                    streams.push(StreamProgress::default());
                    check_offer(&growth, streams.len());
                }
            }
            1 => {
                for _ in 0..amount.min(streams.len()) {
                    streams.pop();
                    growth.stream_ends();
                }
            }
            2 => {
                let at = amount % streams.len().max(1);
                if let Some(stream) = streams.get_mut(at) {
                    growth.read(stream, growth.window() as usize);
                }
            }
            3 => {
                if let Some(stream) = streams.first_mut() {
                    growth.read(stream, 1 << (amount % 40));
                }
            }
            4 if !std::mem::replace(&mut ping_is_out, true) => growth.sent(now),
            5 => {
                ping_is_out = false;
                let (before, window) = (budget, growth.window());
                let pay = |cost: usize| {
                    let fits = cost <= budget;
                    budget -= if fits { cost } else { 0 };
                    fits
                };
                let grown = growth.answered(now, pay);
                assert_eq!(grown, growth.window() > window, "it says whether it has grown");
                assert!(grown || budget == before, "paid for nothing");
                assert!(
                    !grown || offered(&growth, streams.len()) <= growth.paid(),
                    "offered unpaid"
                );
            }
            6 => {
                if let Some(paid) = growth.unused(now) {
                    budget += paid;
                    assert_eq!((growth.window(), growth.paid()), (WINDOW_BASE, 0));
                }
            }
            7 => now += Duration::from_micros(1 << (amount % 26)),
            _ => {}
        }
        assert!((WINDOW_BASE..=WINDOW_MAX).contains(&growth.window()), "{growth:?}");
        assert_eq!(budget + growth.paid(), BUDGET, "{growth:?}");
    }
    budget += growth.paid();
    assert_eq!(budget, BUDGET);
}

/// With more streams than were paid for, the window shrinks before it is twice what was.
fn check_offer(growth: &WindowGrowth, streams: usize) {
    let most = 2 * growth.paid() + (WINDOW_BASE as usize + 2) * streams;
    assert!(offered(growth, streams) <= most, "{streams} streams, {growth:?}");
}

/// What all streams together may leave unread beyond the base.
fn offered(growth: &WindowGrowth, streams: usize) -> usize {
    (growth.window() - WINDOW_BASE) as usize * streams
}

const BUDGET: usize = 64 << 20;
const STREAMS_MAX: usize = 1000;

//! See `evenkeel::fuzzing::window_growth`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| evenkeel::fuzzing::window_growth(bytes));

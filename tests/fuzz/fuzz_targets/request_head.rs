//! See `evenkeel::fuzzing::request_head`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| evenkeel::fuzzing::request_head(bytes));

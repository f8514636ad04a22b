//! See `evenkeel::fuzzing::trailers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| evenkeel::fuzzing::trailers(bytes));

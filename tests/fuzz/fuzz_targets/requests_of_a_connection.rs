//! See `evenkeel::fuzzing::requests_of_a_connection`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| evenkeel::fuzzing::requests_of_a_connection(bytes));

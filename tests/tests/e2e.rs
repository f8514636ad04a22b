//! The product as an operator meets it: real processes, real sockets, real clients.
//!
//! Each test has a network 127.0.N.0/24, so its hosts use the default ports; see [`evenkeel_tests::mesh`].
//! [`each_workers`] makes two tests of one function: workers = 1 and workers = 4.
//! `make test` builds the programs and installs what the tests call; a missing tool fails a test, it never skips one.

// A test is its own error handler; clippy's exemption covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

/// One test for each count of workers that the issue asks for.
macro_rules! each_workers {
    ($($name:ident),+ $(,)?) => {
        mod workers_1 {
            $(#[test] fn $name() { super::$name(1); })+
        }
        mod workers_4 {
            $(#[test] fn $name() { super::$name(4); })+
        }
    };
}

mod e2e {
    pub mod harness;

    pub mod trio;

    pub mod bad_input;
    pub mod consul;
    pub mod doorman;
    pub mod doors;
    pub mod errors;
    pub mod find;
    pub mod grpc;
    pub mod messages;
    pub mod reach;
    pub mod recipes;
    pub mod tunnels;
    pub mod uploads;

    pub mod limits;
    pub mod places;
    pub mod shares;

    pub mod change;
    pub mod copies;
    pub mod demo;
    pub mod faults;
    pub mod hosts;
    pub mod policies;
    pub mod scouts;
    pub mod stalls;
    pub mod tail;
}

//! A mesh of real processes, and what is needed to hurt it and to see whether it hurt.
//!
//! [`mesh`] starts `evenkeel run` on loopback addresses of its own, [`app`] is the application beside it,
//! [`load`] asks at a fixed rate without ever repeating a request, and [`ledger`] compares what clients were
//! told with what the applications did. Everything is a process and a socket: no part of the product is
//! linked in, so a test here sees what an operator would see.
//!
//! The harness is blocking on purpose: a test reads from top to bottom, and only the load generator, which
//! must keep its schedule while the test kills things, has a thread and a runtime of its own.

pub mod app;
pub mod arrivals;
pub mod client;
pub mod ledger;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod network;
pub mod process;
pub mod raw;
pub mod raw_app;
pub mod sockets;
pub mod wait;

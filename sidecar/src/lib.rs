//! Evenkeel: a service mesh without a control plane. One process a host.
//!
//! A library so that the fuzz targets (`tests/fuzz`) reach what the program is made of; to everybody else all of it
//! is private.

mod access;
mod admin;
mod alarm;
mod app;
mod attempt;
mod balancer_metrics;
mod body;
mod buffers;
mod catalog_http;
mod checks;
mod cli;
mod connection;
mod control;
mod control_guard;
mod data_plane;
mod date;
mod demo;
mod descriptors;
mod dns;
mod doorman;
mod error;
mod events;
mod exchange;
mod frame_turns;
mod gossip;
mod head_bytes;
mod http2;
mod inbound;
mod interim;
mod judge;
mod key;
mod limit;
mod link;
mod listener;
mod log_limit;
mod logging;
mod lookups;
mod message;
mod metrics;
mod outbound;
mod outflow;
mod own;
mod passthrough;
mod places;
mod pool;
mod port_pair;
mod probe;
mod quotas;
mod redial;
mod route;
mod scout;
mod socket;
mod socket_owner;
mod spoken;
mod state;
mod strangers;
mod tcp_options;
mod template;
mod timer;
mod tunnel;
mod upload;
mod upstream_state;
mod upstream_table;
mod upstreams;
mod views;
mod waiting;
mod worker;

#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;

pub use cli::main;

//! HTTP/2 on both sides of the proxy, on the `h2` crate.
//!
//! `h2` keeps the protocol: frames, HPACK, the states of streams, flow control, and its own limits on what a peer may
//! make it do. Decided here is what a proxy must be able to decide:
//!
//! - **Flow control** ([`window`]): no stream can use up what the others need.
//! - **What ends a message**: END_STREAM and nothing else. A stream that is reset, with whatever code, or whose
//!   connection ends, has a broken message, not a short one ([`receive`]).
//! - **Interim responses** (1xx) pass in both directions ([`client`], [`server`]).
//! - **Whether a request was sent**: one that never left comes back whole and may go elsewhere ([`client`]).
//! - **Tunnels**: the stream of a CONNECT is joined with a connection, both ways ([`pipe`]).
//! - **Cancellation**: whoever drops a request or a response resets its stream; a stream that the peer resets drops
//!   the request that is being served on it ([`server`]).
//!
//! Why not hyper, which serves HTTP/1.1 here: its HTTP/2 takes NO_ERROR for the end of a body, answers no 1xx, and
//! lets nobody set the windows of a connection that runs.

pub mod client;
pub mod pipe;
pub mod receive;
pub mod send;
pub mod server;
pub mod upkeep;
pub mod window;

use std::time::Duration;

/// Streams that a peer may have open on one connection. A caller with more requests opens another.
pub const STREAMS_MAX: u32 = 1000;

/// How long nothing may come from another host before it is asked, and again before it is given up.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);

/// What the frames of one connection may cost beside their bytes while they wait in h2: some 260,000 of the smallest. A peer that
/// goes beyond it has its connection ended by h2, so unread frames are taken from it long before, see [`receive`].
pub const FRAME_OVERHEAD_MAX: usize = 64 * 1024 * 1024;

/// Bytes of one stream that may wait in h2 for the connection to take them.
pub const SEND_BUFFER_MAX: usize = 64 * 1024;

//! The table, by subject.

pub mod request_framing;
pub mod response_framing;

pub mod frames;

pub mod fields;
pub mod targets;
pub mod trailers;

pub mod forwarding;
pub mod grpc;
pub mod interim;

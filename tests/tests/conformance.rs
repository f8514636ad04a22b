//! The proxy held to RFC 9110, 9112 and 9113 by raw peers on both of its sides.
//!
//! Each test is a table: a row names the section, what the caller or the backend sends byte by byte, the ways it is
//! sent over, and what must be seen at the backend and at the caller. Where an RFC leaves a choice a row allows each
//! outcome; where a library is laxer and is left so, the row says why (`left_lenient`). Nothing here uses an HTTP
//! library but to decode HPACK, so what the proxy writes is judged by the grammar and not by what a parser forgives.
//!
//! `CONFORMANCE_ROW=text` runs only the rows whose description contains the text.

// A test is its own error handler; clippy's exemption covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

mod conformance {
    pub mod message;
    pub mod script;

    pub mod http1;
    pub mod http2;

    pub mod check;
    pub mod row;
    pub mod run;

    pub mod backend;
    pub mod caller;
    pub mod stage;

    pub mod blame;
    pub mod rows;
}

use conformance::stage::Stage;
use conformance::{blame, rows};

#[test]
fn request_framing() {
    Stage::start().run(&rows::request_framing::rows());
}

#[test]
fn response_framing() {
    Stage::start().run(&rows::response_framing::rows());
}

#[test]
fn frames() {
    Stage::start().run(&rows::frames::rows());
}

#[test]
fn fields() {
    Stage::start().run(&rows::fields::rows());
}

#[test]
fn targets() {
    Stage::start().run(&rows::targets::rows());
}

#[test]
fn trailers() {
    Stage::start().run(&rows::trailers::rows());
}

#[test]
fn interim() {
    Stage::start().run(&rows::interim::rows());
}

#[test]
fn forwarding() {
    Stage::start().run(&rows::forwarding::rows());
}

#[test]
fn grpc() {
    Stage::start().run(&rows::grpc::rows());
}

#[test]
fn blame_for_failures() {
    blame::run();
}

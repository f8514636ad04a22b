//! The configuration file, its validation, and the policy types.
#![forbid(unsafe_code)]

mod environment;
mod forms;
mod keys;
mod load;
mod notation;
pub mod policy;
mod problem;
pub mod settings;
mod tree;
mod yaml11;

pub use environment::Environment;
pub use load::{Loaded, load, parse};
pub use problem::{Problem, Problems};

//! The configuration file, its validation, and the policy types.
#![forbid(unsafe_code)]

mod environment;
mod load;
pub mod policy;
mod problem;
pub mod settings;

pub use environment::Environment;
pub use load::{Loaded, load, parse};
pub use problem::{Problem, Problems};

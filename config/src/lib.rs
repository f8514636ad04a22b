//! The configuration file, its validation, and the policy types.
#![forbid(unsafe_code)]

pub mod policy;
pub mod settings;

mod environment;
mod load;
mod problem;

mod tree;
mod yaml11;

mod forms;
mod keys;
mod nearest;
mod notation;
mod report;
mod section;

mod key_file;
mod layer;
mod model;
mod read;
mod validate;

mod diff;
mod effective;
mod schema;

pub use diff::{Change, diff};
pub use environment::Environment;
pub use load::{Loaded, load, parse};
pub use problem::{Problem, Problems};
pub use schema::schema;

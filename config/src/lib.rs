//! The configuration file, its validation, and the policy types.
//!
//! One file makes one [`settings::Settings`], in which nothing is missing and nothing contradicts, or it makes
//! every [`Problem`] it has, each with line and column. The other crates read [`policy`], [`settings`],
//! [`ratelimit`] and [`glob`] and nothing else of this one; only the program itself loads, compares ([`diff()`]) and shows them.
//!
//! From the file inwards: `tree` (YAML with positions) → `section` and `read` (each value through its row of the
//! table in `keys`) → `model` (the file as written) → `validate` and `layer` (settings). What services publish and
//! operators order comes in through [`Published`], and `merge` lays it on what this host's file says. The same table makes
//! [`schema()`]; `effective` writes settings back in the notation of the file. No state, no tasks, no network; the
//! system is asked in [`Environment::from_os`], files are read in `load` and `key_file`.
//!
//! ```
//! use evenkeel_config::{Environment, parse};
//!
//! let env = Environment::named("host-a");
//! let loaded = parse("policy: {hedge: {mode: enforce}}", "evenkeel.yaml", &env)?;
//! assert_eq!(loaded.settings.node.name, "host-a");
//! assert_eq!(loaded.settings.policy.hedge.max, 2);
//!
//! let problems = parse("workers: none\npolicy: {tiemout: 1s}", "evenkeel.yaml", &env).unwrap_err();
//! assert_eq!(
//!     problems.to_string(),
//!     "evenkeel.yaml:1:10: workers: `none` is not a whole number from 1 to 256\n\
//!      evenkeel.yaml:2:10: policy.tiemout: unknown key; did you mean `timeout`?"
//! );
//! # Ok::<(), evenkeel_config::Problems>(())
//! ```
#![forbid(unsafe_code)]

pub mod glob;
pub mod policy;
pub mod ratelimit;
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

mod bounds;
mod key_file;
mod layer;
mod merge;
mod model;
mod published;
mod read;
mod validate;

mod diff;
mod effective;
mod schema;

pub use bounds::Bounds;
pub use diff::{Change, diff};
pub use environment::Environment;
pub use forms::is_service_name;
pub use load::{Loaded, load, load_from, parse};
pub use merge::{Effective, Merged, ROUTES_MAX};
pub use notation::duration;
pub use problem::{Problem, Problems};
pub use published::{PUBLISHED_MAX, Published};
pub use schema::schema;

//! The configuration file, its validation, and the policy types.
#![forbid(unsafe_code)]

pub mod policy;
pub mod settings;

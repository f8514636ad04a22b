//! From a file to [`Settings`], or to everything that is wrong with it.

use std::path::Path;

use crate::environment::Environment;
use crate::problem::{Position, Problem, Problems};
use crate::settings::Settings;

/// A usable configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the program runs with.
    pub settings: Settings,
    /// What is allowed but likely not meant, in the order of the file: log them.
    pub warnings: Vec<Problem>,
}

/// Reads the file at `path`.
///
/// # Errors
/// Every problem of the file at once; a file that cannot be read is one problem.
pub fn load(path: &Path, env: &Environment) -> Result<Loaded, Problems> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file, env),
        Err(error) => Err(Problems(vec![Problem {
            message: format!("cannot be read: {error}"),
            line: Position::START.line,
            column: Position::START.column,
            file,
        }])),
    }
}

/// Reads `text`, called `file` in problems; paths in it are relative to that file's directory.
///
/// # Errors
/// Every problem at once.
pub fn parse(text: &str, file: &str, env: &Environment) -> Result<Loaded, Problems> {
    if text.trim().is_empty() {
        return Ok(Loaded {
            settings: Settings::one_host(env),
            warnings: Vec::new(),
        });
    }
    Err(Problems(vec![Problem {
        file: file.to_owned(),
        line: Position::START.line,
        column: Position::START.column,
        message: "no key is built yet".to_owned(),
    }]))
}

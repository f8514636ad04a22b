//! From a file to [`Settings`], or to everything that is wrong with it.
//!
//! Text → tree (`tree.rs`) → the file as written (`read.rs`) → settings (`validate.rs`); each step adds to one
//! report and goes on. A file too large or not UTF-8 is refused before that. Nothing here keeps state: a reload
//! is another load, and the running settings stay as they are until it has succeeded.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::environment::Environment;
use crate::problem::{Problem, Problems};
use crate::report::Report;
use crate::settings::Settings;
use crate::{read, tree, validate};

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
    match File::open(path) {
        Ok(open) => load_from(open, &file, env),
        Err(error) => Err(unreadable(&file, &error)),
    }
}

/// Reads all that comes from `source`, called `file` in problems; paths in it are relative to that file's directory.
///
/// # Errors
/// As [`load`].
pub fn load_from(source: impl Read, file: &str, env: &Environment) -> Result<Loaded, Problems> {
    let mut bytes = Vec::new();
    if let Err(error) = source.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes) {
        return Err(unreadable(file, &error));
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, file, env),
        Err(error) => {
            let good =
                String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()])
                    .into_owned();
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            Err(Problems(vec![Problem {
                file: file.to_owned(),
                line,
                column,
                message: "not UTF-8 text".to_owned(),
            }]))
        }
    }
}

/// Reads `text`, called `file` in problems; paths in it are relative to that file's directory.
///
/// # Errors
/// Every problem at once.
pub fn parse(text: &str, file: &str, env: &Environment) -> Result<Loaded, Problems> {
    if text.len() > FILE_MAX {
        return Err(whole(file, format!("larger than {FILE_MAX} bytes")));
    }
    let tree = tree::read(text);
    let report = Report::new(file, tree.broken);
    for (at, message) in tree.problems {
        report.problem(at, &message);
    }
    let written = read::file(tree.root.as_ref(), &report);
    // Comparing places of a file that breaks off would compare with what is not there.
    if tree.broken {
        return Err(Problems(report.finish().0));
    }
    let base = Path::new(file).parent().unwrap_or(Path::new(""));
    let settings = validate::settings(written, env, base, &report);
    match report.finish() {
        (problems, warnings) if problems.is_empty() => Ok(Loaded { settings, warnings }),
        (problems, _) => Err(Problems(problems)),
    }
}

fn unreadable(file: &str, error: &std::io::Error) -> Problems {
    whole(file, format!("this configuration file cannot be read: {error}"))
}

/// A problem of the file as a whole.
fn whole(file: &str, message: String) -> Problems {
    Problems(vec![Problem { file: file.to_owned(), line: 0, column: 0, message }])
}

/// A thousand services with long policies stay below it.
const FILE_MAX: usize = 1 << 20;

#[cfg(test)]
mod refusals;
#[cfg(test)]
mod tests;

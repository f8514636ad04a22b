//! What is wrong with a configuration, where, and what to do about it.
//!
//! Reading never stops at the first problem: an operator fixes a file once, not fifteen times. A problem
//! therefore is a value that is collected, never an early return. Whose fault: always the operator's file
//! (or the environment it names), never ours.

use std::fmt;

/// One thing that is wrong, or, as a warning, likely not meant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file as it was named to us.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0: the file as a whole.
    pub column: usize,
    /// The key's path where there is one, what is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, column, message } = self;
        match line {
            0 => write!(f, "{file}: {message}"),
            _ => write!(f, "{file}:{line}:{column}: {message}"),
        }
    }
}

/// Everything that keeps a file from being used, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// One problem a line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A place in the file, both from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// Where a problem of a key that is not written is shown.
    pub(crate) const START: Position = Position { line: 1, column: 1 };
}

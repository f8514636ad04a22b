//! Collects what is wrong with one file while it is read.
//!
//! Reading only adds to it, from many places at once, so it is shared and not passed back and forth. What leaves
//! is bounded and printable, whatever the file held.

use std::cell::RefCell;

use crate::problem::{Position, Problem};

/// Collects what is wrong with one file.
pub(crate) struct Report {
    file: String,
    /// The syntax broke off, so that what is missing may only be cut off.
    broken: bool,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Report {
    pub(crate) fn new(file: &str, broken: bool) -> Report {
        Report {
            file: file.to_owned(),
            broken,
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    pub(crate) fn problem(&self, at: Position, message: &str) {
        self.problems.borrow_mut().push(self.at(at, message));
    }

    /// As [`Report::problem`], unless it may only be cut off.
    pub(crate) fn missing(&self, at: Position, message: &str) {
        if !self.broken {
            self.problem(at, message);
        }
    }

    pub(crate) fn warning(&self, at: Position, message: &str) {
        self.warnings.borrow_mut().push(self.at(at, message));
    }

    /// One line of bounded length, whatever the file held.
    fn at(&self, at: Position, message: &str) -> Problem {
        let visible = |c: char| -> String {
            if c.is_control() { c.escape_default().collect() } else { c.into() }
        };
        let mut shown: String = message.chars().take(MESSAGE_MAX).map(visible).collect();
        if message.chars().nth(MESSAGE_MAX).is_some() {
            shown.push('…');
        }
        Problem { file: self.file.clone(), line: at.line, column: at.column, message: shown }
    }

    /// Problems and warnings, each in the order of the file.
    pub(crate) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let sorted = |list: RefCell<Vec<Problem>>| {
            let mut list = list.into_inner();
            list.sort_by_key(|problem| (problem.line, problem.column));
            list.dedup();
            let more = list.len().saturating_sub(PROBLEMS_MAX);
            list.truncate(PROBLEMS_MAX);
            if more > 0
                && let Some(last) = list.last_mut()
            {
                last.message.push_str(&format!(" (and {more} further problems)"));
            }
            list
        };
        (sorted(self.problems), sorted(self.warnings))
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub value: T,
    pub at: Position,
    pub path: String,
}

/// The same value is the same wherever it stands.
impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T> At<T> {
    pub(crate) fn problem(&self, report: &Report, why: &str) {
        report.problem(self.at, &format!("{}: {why}", self.path));
    }

    pub(crate) fn warning(&self, report: &Report, why: &str) {
        report.warning(self.at, &format!("{}: {why}", self.path));
    }
}

/// Characters of a message: values of the file are shown in it.
const MESSAGE_MAX: usize = 400;

/// What is shown of a file that is wrong from end to end.
const PROBLEMS_MAX: usize = 200;

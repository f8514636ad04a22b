//! Tables for people: aligned, coloured only on a terminal, safe to print.
//!
//! Names, tags and errors in them come from other hosts: control characters are shown as `?`, or one host
//! could steer the terminal of whoever looks at it.

use std::fmt::{Display, Write as _};

/// Rows under a header, columns as wide as their widest cell.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell: text, how it is coloured and on which side it stands.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

/// What a colour says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// As the terminal writes.
    #[default]
    Plain,
    /// Well.
    Good,
    /// Look here when you have time.
    Warn,
    /// Look here now.
    Bad,
    /// Beside the point.
    Dim,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Good => Some("32"),
            Tone::Warn => Some("33"),
            Tone::Bad => Some("31"),
            Tone::Dim => Some("2"),
        }
    }

    /// The text in this tone.
    #[must_use]
    pub fn paint(self, text: &str, colour: bool) -> String {
        match self.code() {
            Some(code) if colour => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

impl Cell {
    /// Text on the left.
    pub fn text(text: impl AsRef<str>) -> Cell {
        Cell { text: printable(text.as_ref()), ..Cell::default() }
    }

    /// A number, on the right.
    pub fn number(number: impl Display) -> Cell {
        Cell { text: format!("{number}"), right: true, ..Cell::default() }
    }

    /// In this tone.
    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Cell {
        self.tone = tone;
        self
    }
}

impl Table {
    /// An empty table with these columns.
    #[must_use]
    pub fn new(header: &[&'static str]) -> Table {
        Table { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the header.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table as lines, without trailing blanks.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let columns = self.header.len();
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count());
            cells.chain([self.header[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let right: Vec<bool> = (0..columns)
            .map(|column| {
                self.rows.iter().any(|row| row.get(column).is_some_and(|cell| cell.right))
            })
            .collect();
        let header: Vec<Cell> = self
            .header
            .iter()
            .map(|name| Cell { text: (*name).to_owned(), tone: Tone::Dim, right: false })
            .collect();
        let mut out = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            let mut blanks = 0;
            for (column, cell) in row.iter().enumerate().take(columns) {
                let fill = widths[column] - cell.text.chars().count();
                let (before, after) = if right[column] { (fill, 0) } else { (0, fill) };
                if !cell.text.is_empty() {
                    let _ = write!(line, "{:blank$}", "", blank = blanks + before);
                    line.push_str(&cell.tone.paint(&cell.text, colour));
                    blanks = 0;
                } else {
                    blanks += before;
                }
                blanks += after + GAP;
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

/// The text without what would steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How long something has lasted, in the two largest units: `3d4h`, `12m3s`, `450ms`.
#[must_use]
pub fn age(ms: u64) -> String {
    let (s, m, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{s}s"),
        60_000..3_600_000 => format!("{m}m{}s", s % 60),
        3_600_000..86_400_000 => format!("{h}h{}m", m % 60),
        _ => format!("{d}d{}h", h % 24),
    }
}

const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let mut table = Table::new(&["NAME", "N", "STATE"]);
        table.row(vec![Cell::text("a"), Cell::number(100), Cell::text("up").tone(Tone::Good)]);
        table.row(vec![Cell::text("longer"), Cell::number(7), Cell::text("")]);
        assert_eq!(table.render(false), "NAME      N  STATE\na       100  up\nlonger    7\n");
        assert!(table.render(true).contains("\x1b[32mup\x1b[0m"));
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec![Cell::text("x\x1b[2Jy\n")]);
        assert_eq!(table.render(false), "NAME\nx?[2Jy?\n");
    }

    #[test]
    fn ages() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (59_999, "59s"),
            (61_000, "1m1s"),
            (3_661_000, "1h1m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }
}

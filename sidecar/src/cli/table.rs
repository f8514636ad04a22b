//! Tables and sentences for people: aligned, at most [`WIDTH`] columns where that is possible, coloured only on a
//! terminal, safe to print.
//!
//! The width is fixed and not the terminal's: what is printed into a ticket or a log is read elsewhere.
//!
//! Names, tags and errors in them come from other hosts: control characters are shown as `?`, or one host
//! could steer the terminal of whoever looks at it.

use std::fmt::{Display, Write as _};

/// Rows under a header, columns as wide as their widest cell.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// The columns whose cells are broken into lines where the table would be too wide.
    wrapping: Vec<usize>,
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
        Table { header: header.to_vec(), rows: Vec::new(), wrapping: Vec::new() }
    }

    /// The same, with columns that are broken into lines where the table would be wider than [`WIDTH`].
    #[must_use]
    pub fn wrapping(mut self, columns: impl IntoIterator<Item = usize>) -> Table {
        self.wrapping = columns.into_iter().collect();
        self
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
        let mut widths: Vec<usize> = (0..columns).map(width).collect();
        // The widest gives way first.
        while widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1) > WIDTH
            && let Some(widest) = self.wrapping.iter().copied().max_by_key(|at| widths[*at])
            && widths[widest] > WRAPPED_MIN
        {
            widths[widest] -= 1;
        }
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
        let rows = self.rows.iter().flat_map(|row| self.lines_of(row, &widths));
        for row in std::iter::once(header).chain(rows) {
            let mut line = String::new();
            let mut blanks = 0;
            for (column, cell) in row.iter().enumerate().take(columns) {
                let fill = widths[column].saturating_sub(cell.text.chars().count());
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

    /// A row as rows of one line each.
    fn lines_of(&self, row: &[Cell], widths: &[usize]) -> Vec<Vec<Cell>> {
        let mut lines = vec![row.to_vec()];
        for (column, cell) in self.wrapping.iter().filter_map(|at| Some((*at, row.get(*at)?))) {
            for (number, text) in wrapped(&cell.text, widths[column]).into_iter().enumerate() {
                if number == lines.len() {
                    lines.push(vec![Cell::default(); row.len()]);
                }
                lines[number][column] = Cell { text, ..cell.clone() };
            }
        }
        lines
    }
}

/// The text in lines of at most `width` characters, broken at blanks and behind commas; what has neither is cut.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_inclusive([' ', ',']) {
        if length(&line) + length(word.trim_end()) > width && !line.is_empty() {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        let mut rest = word;
        while length(rest.trim_end()) > width {
            let end = rest.char_indices().nth(width).map_or(rest.len(), |(at, _)| at);
            lines.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
        line.push_str(rest);
    }
    if !line.trim_end().is_empty() || lines.is_empty() {
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// What a sentence is about, and the sentence behind it, its further lines indented to where it begins. What is longer than half a
/// line has lines of its own.
#[must_use]
pub fn paragraph(lead: &str, text: &str, tone: Tone, colour: bool) -> String {
    let mut out = String::new();
    if lead.chars().count() > WIDTH / 2 {
        for line in wrapped(lead.trim_end(), WIDTH) {
            let _ = writeln!(out, "{line}");
        }
        return out + &paragraph("    ", text, tone, colour);
    }
    let indent = lead.chars().count();
    let lines = wrapped(&printable(text), WIDTH.saturating_sub(indent));
    for (number, line) in lines.iter().enumerate() {
        let line = tone.paint(line, colour);
        let _ = match number {
            0 => writeln!(out, "{lead}{line}"),
            _ => writeln!(out, "{:indent$}{line}", ""),
        };
    }
    out
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

/// Columns of a terminal that nobody has made wider.
pub const WIDTH: usize = 80;
const GAP: usize = 2;
/// What is broken into lines is not broken into single letters.
const WRAPPED_MIN: usize = 12;

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
    fn a_long_column_is_broken_into_lines_within_the_width() {
        let mut table = Table::new(&["FIELD", "VALUE", "FROM"]).wrapping([1]);
        let value = r#"["GET","HEAD","OPTIONS","TRACE","QUERY"] and more of what a list may hold"#;
        table.row(vec![Cell::text("repeat.methods"), Cell::text(value), Cell::text("built-in")]);
        table.row(vec![Cell::text("timeout"), Cell::text("15s"), Cell::text("host")]);
        let text = table.render(false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].ends_with("built-in") && lines[2].starts_with("                "),
            "{text}"
        );
        assert!(lines[3].starts_with("timeout "), "{text}");
    }

    #[test]
    fn lines_break_at_blanks_and_commas_and_nowhere_else_if_possible() {
        for (text, width, lines) in [
            ("", 5, vec![""]),
            ("one two three", 7, vec!["one two", "three"]),
            ("a,b,c", 2, vec!["a,", "b,", "c"]),
            ("abcdefgh ij", 4, vec!["abcd", "efgh", "ij"]),
            ("größe größe", 5, vec!["größe", "größe"]),
            ("fits just", 9, vec!["fits just"]),
        ] {
            assert_eq!(wrapped(text, width), lines, "{text:?} in {width}");
        }
        assert_eq!(paragraph("note: ", "a b", Tone::Plain, false), "note: a b\n");
        let long = paragraph("note: ", &"word ".repeat(40), Tone::Plain, false);
        assert!(long.lines().skip(1).all(|line| line.starts_with("      word")), "{long}");
        assert!(long.lines().all(|line| line.chars().count() <= WIDTH), "{long}");
        let lead = format!("{}: ", "x".repeat(100));
        let apart = paragraph(&lead, "a b", Tone::Plain, false);
        assert!(apart.ends_with("x:\n    a b\n"), "{apart}");
        assert!(apart.lines().all(|line| line.chars().count() <= WIDTH), "{apart}");
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

//! What is seen while the demo runs: a table that redraws itself in a terminal, a line a second elsewhere.
//!
//! Redrawing moves the cursor up over the lines drawn before; nothing else of the terminal is touched,
//! and what was drawn last stays in the scroll-back.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::arms::Arm;
use super::table::Results;

/// Where the live view is drawn.
pub struct Screen {
    terminal: bool,
    drawn: usize,
    last_line_at: Option<u64>,
}

/// What the live view shows.
pub struct Frame<'a> {
    /// Since measuring began; `None`: warming up.
    pub elapsed: Option<Duration>,
    /// Of the whole measurement.
    pub length: Duration,
    /// The figures so far.
    pub results: &'a Results,
    /// For each arm the p99 of each second so far.
    pub p99_by_second: [&'a [Option<Duration>]; Arm::ALL.len()],
    /// When the host was killed, since measuring began.
    pub killed_at: Option<Duration>,
}

impl Screen {
    /// The live view on standard output.
    pub fn new() -> Screen {
        Screen { terminal: io::stdout().is_terminal(), drawn: 0, last_line_at: None }
    }

    /// Prints lines that stay, in place of what was drawn last.
    pub fn say(&mut self, lines: &str) -> io::Result<()> {
        let erase = self.erase();
        write(&format!("{erase}{lines}\n"))
    }

    /// Shows the state of things: redraws in a terminal, else one line every five seconds.
    pub fn draw(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        if self.terminal {
            let text = frame.text();
            let erase = self.erase();
            self.drawn = text.lines().count();
            // Without wrapping, so that a line is a line in a narrow terminal too.
            return write(&format!("{erase}\x1b[?7l{text}\x1b[?7h"));
        }
        let Some(elapsed) = frame.elapsed else {
            return Ok(());
        };
        let step = elapsed.as_secs() / PLAIN_EVERY_SECS;
        if step == 0 || self.last_line_at == Some(step) {
            return Ok(());
        }
        self.last_line_at = Some(step);
        write(&format!("{}\n", frame.line(elapsed)))
    }

    /// What removes the lines drawn last: up to the first of them, then clear to the end of the screen.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}F\x1b[J"),
        }
    }
}

/// At once and whole; a reader that is gone is an error, not a panic.
fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

impl Frame<'_> {
    fn text(&self) -> String {
        let Some(elapsed) = self.elapsed else {
            return "Warming up: learning what is normal …\n".to_owned();
        };
        let clock = elapsed.min(self.length);
        let killed = match self.killed_at {
            None => "all hosts alive".to_owned(),
            Some(at) => format!("{} killed at {} s", super::mesh::KILLED, at.as_secs()),
        };
        let mut text =
            format!("{:>2} of {} s   {killed}\n\n", clock.as_secs(), self.length.as_secs());
        text.push_str(&self.results.table());
        text.push('\n');
        text.push_str(&chart(self.p99_by_second));
        text.push('\n');
        text.push_str(&self.results.posts());
        text.push('\n');
        text
    }

    fn line(&self, elapsed: Duration) -> String {
        let p99 = |arm: Arm| {
            let p99 = self.results.rows[arm.index()].p99;
            p99.map_or_else(|| "-".to_owned(), |p99| format!("{:.1}", p99.as_secs_f64() * 1e3))
        };
        let arms: Vec<String> =
            Arm::ALL.iter().map(|&arm| format!("{} {}", arm.name(), p99(arm))).collect();
        format!("{:>3} s  p99 so far in ms: {}", elapsed.as_secs(), arms.join(", "))
    }
}

/// One line for each arm: how the p99 went from second to second.
pub fn chart(p99_by_second: [&[Option<Duration>]; Arm::ALL.len()]) -> String {
    let mut text = String::from("p99 of each second: ▁ up to 2 ms, █ over 128 ms\n");
    for (arm, seconds) in Arm::ALL.into_iter().zip(p99_by_second) {
        text.push_str(&format!("{:<20}  {}\n", arm.title(), bars(seconds)));
    }
    text
}

/// One character for each second, the last [`BARS_MAX`] of them; each step is twice the one below.
fn bars(seconds: &[Option<Duration>]) -> String {
    let shown = &seconds[seconds.len().saturating_sub(BARS_MAX)..];
    shown
        .iter()
        .map(|p99| match p99 {
            None => ' ',
            Some(p99) => {
                let steps = (p99.as_secs_f64() * 1e3 / LOWEST_BAR_MS).log2().ceil();
                // Between 0 and 7, so no digit is lost.
                BARS[steps.clamp(0.0, 7.0) as usize]
            }
        })
        .collect()
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const LOWEST_BAR_MS: f64 = 2.0;
const BARS_MAX: usize = 56;
const PLAIN_EVERY_SECS: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_double_from_two_milliseconds_up() {
        let seconds = [Some(1), Some(2), Some(3), Some(5), Some(100), Some(129), Some(9_000), None];
        let seconds: Vec<_> = seconds.iter().map(|ms| ms.map(Duration::from_millis)).collect();
        assert_eq!(bars(&seconds), "▁▁▂▃▇██ ");
        let long = vec![Some(Duration::from_millis(1)); 500];
        assert_eq!(bars(&long).chars().count(), BARS_MAX);
    }
}

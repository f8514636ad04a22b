//! The result: a table that fits 80 columns, a sentence that says what is seen, and the same as JSON.
//!
//! The sentences are computed from the figures and say so when Evenkeel was not better, or when the
//! machine was too slow for the figures to mean much.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::arms::Arm;

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which way.
    pub arm: Arm,
    /// Median of answered GETs; `None`: none was answered.
    pub p50: Option<Duration>,
    /// 99th of 100.
    pub p99: Option<Duration>,
    /// 999th of 1,000.
    pub p999: Option<Duration>,
    /// GETs sent.
    pub sent: u64,
    /// GETs without a 2xx.
    pub failed: u64,
    /// GETs executed again after their first time, counted at the applications.
    pub extra: u64,
    /// Processor time of the client's sidecar for each request; `None`: nothing sent.
    pub cpu: Option<Duration>,
    /// The POSTs sent this way.
    pub posts: Posts,
}

/// POSTs with an id each, and what became of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Posts {
    /// Sent.
    pub sent: u64,
    /// Answered with a 2xx.
    pub ok: u64,
    /// Answered otherwise or not at all; sent, neither ok nor failed: still under way.
    pub failed: u64,
    /// Executed exactly once, counted at the applications.
    pub once: u64,
    /// Executed more than once.
    pub twice: u64,
}

impl Posts {
    fn plus(self, other: Posts) -> Posts {
        Posts {
            sent: self.sent + other.sent,
            ok: self.ok + other.ok,
            failed: self.failed + other.failed,
            once: self.once + other.once,
            twice: self.twice + other.twice,
        }
    }
}

/// What all arms did.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    /// In the order of [`Arm::ALL`].
    pub rows: Vec<Row>,
    /// How late the generator itself was, 99th of 100.
    pub late_p99: Duration,
}

impl Row {
    /// Extra GETs as a share of those sent, in percent.
    fn extra_percent(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { self.extra as f64 * 100.0 / self.sent as f64 }
    }
}

impl Results {
    /// The table: two lines of heading and one line for each arm.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "                          p50       p99     p99.9    failed   extra   CPU per\n\
             way                        ms        ms        ms      GETs    GETs   request\n",
        );
        for row in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<20}{:>9} {:>9} {:>9} {:>9} {:>6.1}% {:>9}",
                row.arm.title(),
                milliseconds(row.p50),
                milliseconds(row.p99),
                milliseconds(row.p999),
                grouped(row.failed),
                row.extra_percent(),
                row.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{} µs", cpu.as_micros())),
            );
        }
        text
    }

    /// What the table shows, in sentences computed from it.
    pub fn verdict(&self) -> String {
        let evenkeel = self.row(Arm::Evenkeel);
        let plain = self.row(Arm::RoundRobin);
        let (Some(ours), Some(theirs)) = (evenkeel.p99, plain.p99) else {
            return "Nothing was answered: there is nothing to compare.".to_owned();
        };
        let times = theirs.as_secs_f64() / ours.as_secs_f64().max(1e-6);
        let latency = if times >= BETTER {
            format!(
                "With Evenkeel 99 of 100 requests took at most {} ms, with round robin {} times as long; \
                 that cost {:.1} % extra requests.",
                milliseconds(Some(ours)),
                if times < 10.0 { format!("{times:.1}") } else { format!("{times:.0}") },
                evenkeel.extra_percent(),
            )
        } else {
            format!(
                "In this run Evenkeel was not better than round robin: 99 of 100 requests took at most {} ms, \
                 against {} ms.",
                milliseconds(Some(ours)),
                milliseconds(Some(theirs)),
            )
        };
        let failed = match (evenkeel.failed, plain.failed) {
            (0, 0) => "No GET failed either way.".to_owned(),
            (0, plain) => {
                format!("No GET failed, against {} with plain round robin.", grouped(plain))
            }
            (ours, plain) => {
                format!(
                    "{} GETs failed, against {} with plain round robin.",
                    grouped(ours),
                    grouped(plain)
                )
            }
        };
        wrapped(&format!("{latency} {failed}"))
    }

    /// What became of the POSTs.
    pub fn posts(&self) -> String {
        let ours = self.row(Arm::Evenkeel).posts;
        let others = self.rows.iter().filter(|row| row.arm != Arm::Evenkeel).map(|row| row.posts);
        let others = others.fold(Posts::default(), Posts::plus);
        format!("Through Evenkeel     {}\nThe other three      {}", told(ours), told(others))
    }

    /// What the figures need said beside them.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.row(Arm::Evenkeel).posts.failed > 0 {
            remarks.push(wrapped(
                "A POST under way on a host that dies fails: it may have been executed, so it is never sent again.",
            ));
        }
        if self.late_p99 > LATE_MAX {
            remarks.push(wrapped(&format!(
                "This machine was too busy: the load itself was {} ms late for 1 request in 100, which is part of \
                 the figures above. Run it again with less beside it.",
                milliseconds(Some(self.late_p99))
            )));
        }
        remarks
    }

    /// The object that `--json` prints: milliseconds, percent, microseconds. `posts` are Evenkeel's own;
    /// each arm has the same about itself.
    pub fn json(&self) -> String {
        let arms = self.rows.iter().map(|row| JsonArm {
            name: row.arm.name(),
            p50_ms: row.p50.map(json_milliseconds),
            p99_ms: row.p99.map(json_milliseconds),
            p999_ms: row.p999.map(json_milliseconds),
            sent: row.sent,
            failed: row.failed,
            extra: rounded(row.extra_percent()),
            cpu_us: row.cpu.map(|cpu| rounded(cpu.as_secs_f64() * 1e6)),
            posts: JsonPosts::from(row.posts),
        });
        let object = Json {
            arms: arms.collect(),
            posts: JsonPosts::from(self.row(Arm::Evenkeel).posts),
            late_p99_ms: json_milliseconds(self.late_p99),
        };
        serde_json::to_string(&object).expect("names and numbers can always be written")
    }

    /// The first arm with a POST that was executed twice.
    pub fn executed_twice(&self) -> Option<Arm> {
        self.rows.iter().find(|row| row.posts.twice > 0).map(|row| row.arm)
    }

    fn row(&self, arm: Arm) -> &Row {
        &self.rows[arm.index()]
    }
}

#[derive(Serialize)]
struct Json {
    arms: Vec<JsonArm>,
    posts: JsonPosts,
    late_p99_ms: f64,
}

#[derive(Serialize)]
struct JsonArm {
    name: &'static str,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    sent: u64,
    failed: u64,
    extra: f64,
    cpu_us: Option<f64>,
    posts: JsonPosts,
}

#[derive(Serialize)]
struct JsonPosts {
    sent: u64,
    ok: u64,
    once: u64,
    twice: u64,
}

impl From<Posts> for JsonPosts {
    fn from(posts: Posts) -> JsonPosts {
        JsonPosts { sent: posts.sent, ok: posts.ok, once: posts.once, twice: posts.twice }
    }
}

fn told(posts: Posts) -> String {
    let mut text = format!(
        "{} POSTs: {} executed once, {} twice",
        grouped(posts.sent),
        grouped(posts.once),
        grouped(posts.twice)
    );
    if posts.failed > 0 {
        let _ = write!(text, ", {} failed", grouped(posts.failed));
    }
    text
}

/// Three significant digits where that makes sense: `0.42`, `9.31`, `98.4`.
fn milliseconds(duration: Option<Duration>) -> String {
    match duration.map(|duration| duration.as_secs_f64() * 1e3) {
        None => "-".to_owned(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn json_milliseconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e3)
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Broken at spaces into lines of at most [`COLUMNS`].
pub fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 {
            let fits = column + 1 + width <= COLUMNS;
            lines.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        lines.push_str(word);
        column += width;
    }
    lines
}

/// `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Less would be noise.
const BETTER: f64 = 1.2;

/// Of the smallest usual terminal, less one for the cursor.
const COLUMNS: usize = 79;

/// The load's own lateness above which the figures are about the machine.
const LATE_MAX: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results() -> Results {
        let row = |arm, p99_us, failed, extra, posts: (u64, u64, u64)| Row {
            arm,
            p50: Some(Duration::from_micros(520)),
            p99: Some(Duration::from_micros(p99_us)),
            p999: Some(Duration::from_micros(99_900)),
            sent: 4_000,
            failed,
            extra,
            cpu: Some(Duration::from_nanos(61_700)),
            posts: Posts { sent: 500, ok: posts.0, failed: posts.1, once: posts.2, twice: 0 },
        };
        Results {
            rows: vec![
                row(Arm::RoundRobin, 98_412, 1_312, 0, (450, 50, 451)),
                row(Arm::RoundRobinRetry, 98_000, 0, 0, (500, 0, 500)),
                row(Arm::P2c, 70_000, 0, 0, (500, 0, 500)),
                row(Arm::Evenkeel, 2_100, 0, 128, (500, 0, 500)),
            ],
            late_p99: Duration::from_micros(120),
        }
    }

    #[test]
    fn the_table_is_aligned_and_fits_eighty_columns() {
        let table = results().table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2 + Arm::ALL.len());
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(
            widths.iter().all(|&width| width == widths[0] && width <= 80),
            "{widths:?}\n{table}"
        );
        assert_eq!(
            lines[2].split_whitespace().collect::<Vec<_>>(),
            ["round", "robin", "0.52", "98.4", "99.9", "1,312", "0.0%", "61", "µs"]
        );
        assert!(lines[5].contains("2.10") && lines[5].contains("3.2%"), "{}", lines[5]);
    }

    #[test]
    fn sentences_follow_the_figures_and_fit_eighty_columns() {
        let mut results = results();
        let verdict = results.verdict();
        assert!(verdict.lines().all(|line| line.chars().count() < 80), "{verdict}");
        let verdict = verdict.replace('\n', " ");
        assert!(
            verdict.contains("at most 2.10 ms, with round robin 47 times as long"),
            "{verdict}"
        );
        assert!(
            verdict.contains("cost 3.2 % extra requests. No GET failed, against 1,312"),
            "{verdict}"
        );
        assert_eq!(results.remarks(), Vec::<String>::new());

        results.rows[3].p99 = Some(Duration::from_millis(97));
        results.rows[3].failed = 2;
        results.rows[3].posts.failed = 1;
        results.late_p99 = Duration::from_millis(8);
        let verdict = results.verdict().replace('\n', " ");
        assert!(verdict.contains("was not better than round robin"), "{verdict}");
        assert!(verdict.contains("2 GETs failed, against 1,312"), "{verdict}");
        let remarks = results.remarks();
        assert!(
            remarks[0].contains("never sent again") && remarks[1].contains("8.00 ms late"),
            "{remarks:?}"
        );

        results.rows[3].p99 = None;
        assert!(results.verdict().contains("nothing to compare"));
    }

    #[test]
    fn posts_are_told_with_their_failures() {
        let mut results = results();
        assert_eq!(
            results.posts(),
            "Through Evenkeel     500 POSTs: 500 executed once, 0 twice\n\
             The other three      1,500 POSTs: 1,451 executed once, 0 twice, 50 failed"
        );
        assert_eq!(results.executed_twice(), None);
        results.rows[3].posts.twice = 1;
        assert_eq!(results.executed_twice(), Some(Arm::Evenkeel));
    }

    #[test]
    fn json_has_the_promised_shape() {
        let mut results = results();
        results.rows[0].p50 = None;
        let text = results.json();
        assert!(!text.contains('\n'), "one line: {text}");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let names: Vec<_> =
            json["arms"].as_array().expect("an array").iter().map(|arm| &arm["name"]).collect();
        assert_eq!(names, ["round_robin", "round_robin_retry", "p2c", "evenkeel"]);
        assert_eq!(
            json["arms"][3],
            json!({
                "name": "evenkeel", "p50_ms": 0.52, "p99_ms": 2.1, "p999_ms": 99.9, "sent": 4000, "failed": 0,
                "extra": 3.2, "cpu_us": 61.7, "posts": {"sent": 500, "ok": 500, "once": 500, "twice": 0}
            })
        );
        assert_eq!(json["posts"], json!({"sent": 500, "ok": 500, "once": 500, "twice": 0}));
        assert!(json["arms"][0]["p50_ms"].is_null(), "nothing answered is not zero");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}

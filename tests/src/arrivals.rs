//! When requests came to an application, and what that says of a limit: how many in the busiest window, how many a second.
//!
//! A limit is kept or not where it matters, which is behind it. So windows are counted from the application's own notes, and
//! they slide: a window may begin at any request.

use std::ops::Range;
use std::time::Duration;

/// Requests in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrivals(Vec<(Duration, String)>);

impl Arrivals {
    /// Reads what the application answers to `GET /arrivals`.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Arrivals {
        let arrival = |line: &str| {
            let (at, tenant) = line.split_once(' ')?;
            Some((Duration::from_micros(at.parse().ok()?), tenant.to_owned()))
        };
        Arrivals(text.lines().map(|line| arrival(line).expect("an arrival in each line")).collect())
    }

    /// Those of one tenant.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Arrivals {
        Arrivals(self.0.iter().filter(|(_, whose)| whose == tenant).cloned().collect())
    }

    /// Those from the first of these numbers to before the last.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn part(&self, numbers: Range<usize>) -> Arrivals {
        Arrivals(self.0[numbers].to_vec())
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// For each request, how many came within this length of time up to it, itself included.
    pub fn windows(&self, length: Duration) -> impl Iterator<Item = usize> {
        let mut first = 0;
        self.0.iter().enumerate().map(move |(last, (at, _))| {
            while *at >= self.0[first].0 + length {
                first += 1;
            }
            last - first + 1
        })
    }

    /// The most within any time of this length.
    #[must_use]
    pub fn most_within(&self, length: Duration) -> usize {
        self.windows(length).max().unwrap_or(0)
    }

    /// When the last of the busiest window of this length came.
    #[must_use]
    pub fn busiest(&self, length: Duration) -> Duration {
        let windows = self.windows(length).zip(&self.0);
        windows.max_by_key(|(count, _)| *count).map_or(Duration::ZERO, |(_, (at, _))| *at)
    }

    /// How many a second, from the first to the last; 0 for fewer than two.
    #[must_use]
    pub fn per_sec(&self) -> f64 {
        let (Some((first, _)), Some((last, _))) = (self.0.first(), self.0.last()) else {
            return 0.0;
        };
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let gaps = (self.0.len() - 1) as f64;
        let lasted = (*last - *first).as_secs_f64();
        if lasted > 0.0 { gaps / lasted } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_slide() {
        // Ten a second, and five more at once, half a second after the start.
        let mut times: Vec<u64> = (0..20).map(|n| n * 100_000).chain([500_000; 5]).collect();
        times.sort_unstable();
        let text: String = times.iter().map(|us| format!("{us} \n")).collect();
        let arrivals = Arrivals::parse(&text);
        assert_eq!(arrivals.count(), 25);
        assert_eq!(arrivals.most_within(Duration::from_secs(1)), 15);
        assert_eq!(arrivals.most_within(Duration::from_millis(1)), 6);
        assert_eq!(arrivals.part(11..25).most_within(Duration::from_secs(1)), 10);
        assert!((arrivals.part(11..25).per_sec() - 10.0).abs() < 1e-9);
        assert_eq!(Arrivals::default().most_within(Duration::from_secs(1)), 0);
        assert_eq!(arrivals.part(0..1).per_sec(), 0.0);
    }

    #[test]
    fn tenants_are_told_apart() {
        let arrivals = Arrivals::parse("1 a\n2 b\n3 a\n4 \n");
        assert_eq!(arrivals.of("a").count(), 2);
        assert_eq!(arrivals.of("").count(), 1);
        assert_eq!(arrivals.of("c").count(), 0);
    }
}

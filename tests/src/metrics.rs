//! Prometheus's text format, as far as a test asks questions of it.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// Reads a scrape; lines that are no samples are left out.
    #[must_use]
    pub fn parse(text: &str) -> Metrics {
        Metrics(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over every series of that name whose labels include `labels`; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }

    /// Whether there is a series of that name with these labels.
    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.series(name, labels).next().is_some()
    }

    /// Every metric's name, for a test that looks for one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _, _)| name.as_str())
    }

    fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        self.0
            .iter()
            .filter(move |(n, have, _)| {
                n == name && labels.iter().all(|(k, v)| have.get(*k).is_some_and(|x| x == v))
            })
            .map(|(_, labels, value)| (labels, *value))
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    // The value stands behind the last `}` or, without labels, behind the first space.
    let (head, value) = match line.rfind('}') {
        Some(end) => (&line[..end], &line[end + 1..]),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    Some((name.to_owned(), pairs(labels), value))
}

fn pairs(mut text: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while let Some((key, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped)) => value.push(escaped),
                    None => break,
                },
                c => value.push(c),
            }
        }
        pairs.insert(key.trim_start_matches([',', ' ']).to_owned(), value);
        text = &rest[end..];
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_series_that_carry_the_labels() {
        let text = "# HELP x y\n# TYPE x counter\nx{a=\"1\",b=\"p\\\"},q\"} 2\nx{a=\"1\",b=\"z\"} 3 1700000000\nx{a=\"2\"} 4\ny 5e-1\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("x", &[("a", "1")]), 5.0);
        assert_eq!(metrics.sum("x", &[("b", "p\"},q")]), 2.0);
        assert_eq!(metrics.sum("x", &[]), 9.0);
        assert_eq!(metrics.sum("y", &[]), 0.5);
        assert!(!metrics.has("x", &[("a", "3")]));
    }
}

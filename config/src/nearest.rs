//! The key that was most likely meant.
//!
//! Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours each count
//! one (Damerau 1964 found that these are four in five of all misspellings). Not plain Levenshtein, for which
//! `tiemout` is as far from `timeout` as any two wrong letters.

/// The nearest of `known`, if it is near enough to be what was meant.
pub(crate) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let word = fold(word);
    let near =
        known.map(|key| (distance(&word, &fold(key)), key)).min_by_key(|(distance, _)| *distance);
    let (distance, key) = near?;
    (distance <= key.len().max(word.len()).div_ceil(3)).then_some(key)
}

/// `idleTimeout`, `idle-timeout` and `IDLE_TIMEOUT` are all `idle_timeout` written by another habit.
fn fold(word: &str) -> Vec<char> {
    let kept = word.chars().filter(|c| !matches!(c, '_' | '-' | ' '));
    kept.flat_map(char::to_lowercase).take(WORD_MAX).collect()
}

fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut current = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (previous[j] + 1).min(current[j - 1] + 1).min(previous[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            current[j] = least;
        }
        before = previous;
        previous = current;
    }
    previous[b.len()]
}

/// Longer than any key, so that a key of a megabyte costs nothing.
const WORD_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["timeout", "idle_timeout", "balance", "retry", "hedge", "panic", "slow_start"];
        let table = [
            ("tiemout", Some("timeout")),
            ("timeuot", Some("timeout")),
            ("time_out", Some("timeout")),
            ("idleTimeout", Some("idle_timeout")),
            ("retries", Some("retry")),
            ("hegde", Some("hedge")),
            ("x", None),
            ("replicas", None),
            ("", None),
        ];
        for (word, expected) in table {
            assert_eq!(nearest(word, known.into_iter()), expected, "{word}");
        }
    }

    #[test]
    fn distance_is_symmetric() {
        let words = ["", "a", "ab", "ba", "hedge", "hegde", "timeout"];
        for a in words {
            for b in words {
                assert_eq!(distance(&fold(a), &fold(b)), distance(&fold(b), &fold(a)), "{a} {b}");
            }
            assert_eq!(distance(&fold(a), &fold(a)), 0);
        }
    }
}

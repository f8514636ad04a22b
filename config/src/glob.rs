//! Which ids a pattern of a resource matches.
//!
//! Globs are Go's `path.Match`, which Doorman's configuration uses: `*` and `?` do not cross `/`, `[a-z]` and `[^a-z]` are classes, `\` takes the
//! next character as it is. Ids are bytes of any kind, so a glob matches bytes: `?` is one byte. Several patterns: the first that is
//! the id itself, else the first that matches, in list order. (Doorman wants a last `*` to catch everything, which an
//! id with a `/` slips through; here an id may match nothing.)
//!
//! Matching costs at most |pattern| · |id| steps: only the last `*` is tried again, which suffices while `*` cannot cross a `/`
//! that the pattern writes out. Here and not with the limiter, because the file is checked by the same rule that the limiter follows.

/// The first of `items` whose pattern is `id` itself, else the first whose pattern matches it.
pub fn first<'t, T>(items: &'t [T], pattern: impl Fn(&T) -> &str, id: &[u8]) -> Option<&'t T> {
    let literal = items.iter().find(|item| pattern(item).as_bytes() == id);
    literal.or_else(|| items.iter().find(|item| matches(pattern(item).as_bytes(), id)))
}

/// Whether the whole of `id` matches a well-formed `glob`.
#[must_use]
pub fn matches(glob: &[u8], id: &[u8]) -> bool {
    let (mut g, mut i) = (0, 0);
    // Behind the last star, and how much of the id it has taken up to.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match glob.get(g) {
            None if i == id.len() => return true,
            None => None,
            Some(b'*') => {
                star = Some((g + 1, i));
                Some((g + 1, i))
            }
            Some(_) => {
                id.get(i).and_then(|byte| one(&glob[g..], *byte)).map(|taken| (g + taken, i + 1))
            }
        };
        (g, i) = match (step, star) {
            (Some(next), _) => next,
            // The star takes one more, if it may.
            (None, Some((behind, taken))) if id.get(taken).is_some_and(|byte| *byte != b'/') => {
                star = Some((behind, taken + 1));
                (behind, taken + 1)
            }
            _ => return false,
        };
    }
}

/// Whether every class is closed and not empty, and every `\` has something behind it.
#[must_use]
pub fn is_well_formed(glob: &[u8]) -> bool {
    let mut at = 0;
    while let Some(byte) = glob.get(at) {
        at += match byte {
            b'[' => match class(&glob[at..], 0) {
                Some((len, ..)) => len,
                None => return false,
            },
            b'\\' if at + 1 == glob.len() => return false,
            b'\\' => 2,
            _ => 1,
        };
    }
    true
}

/// Whether the glob's next element matches `byte`, and how long the element is.
fn one(glob: &[u8], byte: u8) -> Option<usize> {
    match glob[0] {
        b'?' => (byte != b'/').then_some(1),
        b'[' => {
            let (len, negated, hit) = class(glob, byte)?;
            (hit != negated).then_some(len)
        }
        b'\\' => (*glob.get(1)? == byte).then_some(2),
        literal => (literal == byte).then_some(1),
    }
}

/// The class at the head of `glob`: its length, whether it is negated, and whether `byte` is in it. `None`: not well formed.
fn class(glob: &[u8], byte: u8) -> Option<(usize, bool, bool)> {
    let negated = glob.get(1) == Some(&b'^');
    let (mut at, mut hit, mut ranges) = (1 + usize::from(negated), false, 0);
    let literal = |at: &mut usize| {
        let mut value = *glob.get(*at)?;
        if value == b'\\' {
            *at += 1;
            value = *glob.get(*at)?;
        } else if value == b'-' || value == b']' {
            return None;
        }
        *at += 1;
        Some(value)
    };
    while glob.get(at) != Some(&b']') || ranges == 0 {
        let low = literal(&mut at)?;
        let mut high = low;
        if glob.get(at) == Some(&b'-') {
            at += 1;
            high = literal(&mut at)?;
        }
        hit |= (low..=high).contains(&byte);
        ranges += 1;
    }
    Some((at + 1, negated, hit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn globs_match_as_doormans_do() {
        for (glob, id, expected) in [
            ("*", "abc", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("db.*", "db.payments", true),
            ("db.*", "db.", true),
            ("db.*", "cache.a", false),
            ("?", "/", false),
            ("?", "a", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY/Zc", false),
            ("*b", "aab", true),
            ("a*/b", "a1/b", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            ("[^a-c]x", "ax", false),
            ("[\\]]", "]", true),
            ("[\\-a]", "-", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a[", "a", false),
        ] {
            assert_eq!(matches(glob.as_bytes(), id.as_bytes()), expected, "{glob} {id}");
        }
        assert!(matches(b"*", &[0xff, 0, 0xfe]), "ids are bytes");
    }

    #[test]
    fn what_is_no_glob_is_known() {
        for glob in ["[", "[]", "[a", "[a-]", "a\\", "[^]", "[-a]"] {
            assert!(!is_well_formed(glob.as_bytes()), "{glob}");
        }
        for glob in ["", "*", "a]", "[a-c]", "[^\\]]", "\\[", "ä"] {
            assert!(is_well_formed(glob.as_bytes()), "{glob}");
        }
    }

    #[test]
    fn literals_come_before_globs_and_globs_in_order() {
        let order = ["db.*", "*", "db.a", "db.a*"];
        let found = |id: &str| first(&order, |pattern| pattern, id.as_bytes()).copied();
        assert_eq!(found("db.a"), Some("db.a"));
        assert_eq!(found("db.ab"), Some("db.*"));
        assert_eq!(found("other"), Some("*"));
        assert_eq!(found("a/b"), None, "a path matches no `*`, and that is an answer, not a crash");
    }

    proptest! {
        #[test]
        fn any_pattern_and_any_id_end(glob in "[a-c*?\\[\\]^\\\\/-]{0,12}", id in "[a-c/-]{0,12}") {
            let longer = format!("{glob}*");
            let (found, still) =
                [&glob, &longer].map(|glob| matches(glob.as_bytes(), id.as_bytes())).into();
            if is_well_formed(glob.as_bytes()) {
                prop_assert!(still || !found, "a star more never matches less");
            }
        }

        #[test]
        fn a_literal_matches_itself(id in "[a-z./]{0,20}") {
            prop_assert!(matches(id.as_bytes(), id.as_bytes()));
        }
    }
}

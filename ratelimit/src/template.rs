//! Which rules a resource follows: the first template equal to its id, else the first whose glob matches, in list order.
//!
//! Globs are Go's `path.Match`, which Doorman's configuration uses: `*` and `?` do not cross `/`, `[a-z]` and `[^a-z]` are classes, `\` takes the
//! next character as it is. Ids are bytes of any kind, so a glob matches bytes: `?` is one byte. An id that no template matches
//! is no resource: the asker is told so. (Doorman wants a last `*` to catch everything, which an id with a `/` slips through.)
//!
//! Matching costs at most |pattern| · |id| steps: only the last `*` is tried again, which suffices while `*` cannot cross a `/`
//! that the pattern writes out.

use std::time::Duration;

use crate::algorithm::{Algorithm, Floors};
use crate::bucket::Pace;
use crate::quantity::Micros;

/// The rules of the resources whose id it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// An id or a glob.
    pub pattern: String,
    /// How much there is in all.
    pub capacity: Micros,
    /// In which time: the capacity is a rate, or `None` if it is so many at once.
    pub per: Option<Duration>,
    /// How many may come at once beyond the rate, over all hosts.
    pub burst: Micros,
    /// How it is shared.
    pub algorithm: Algorithm,
    /// What priorities are sure of.
    pub floors: Floors,
    /// How long a Doorman client holds its lease, at most [`LEASE_LENGTH_MAX`].
    pub lease: Duration,
    /// How often it comes back.
    pub refresh: Duration,
    /// How long a host that has just started believes what such clients say they hold.
    pub learning: Duration,
    /// What a client may use that reaches nobody.
    pub safe: Safe,
}

/// What may be used without a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Safe {
    /// A host: its right. A Doorman client: the capacity divided by the known clients.
    #[default]
    Share,
    /// So much each.
    Each(Micros),
    /// Nothing.
    Stop,
    /// Any amount.
    Unlimited,
}

/// Templates in list order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Templates(Vec<Template>);

/// A template that cannot be followed; `at` counts from 0. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTemplate {
    /// Which.
    pub at: usize,
    /// Why.
    pub why: Why,
}

/// What is wrong with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The glob has an open class, an empty one, or a `\` at its end.
    Glob,
    /// `refresh` under a second, or `lease` under `refresh`.
    Refresh,
    /// `lease` over [`LEASE_LENGTH_MAX`].
    Lease,
    /// More than [`TEMPLATES_MAX`].
    TooMany,
}

impl Templates {
    /// Checked templates.
    pub fn new(templates: Vec<Template>) -> Result<Templates, BadTemplate> {
        if templates.len() > TEMPLATES_MAX {
            return Err(BadTemplate { at: TEMPLATES_MAX, why: Why::TooMany });
        }
        for (at, template) in templates.iter().enumerate() {
            template.check().map_err(|why| BadTemplate { at, why })?;
        }
        Ok(Templates(templates))
    }

    /// The rules of `id`, if it is a resource.
    #[must_use]
    pub fn find(&self, id: &[u8]) -> Option<&Template> {
        let literal = self.0.iter().find(|template| template.pattern.as_bytes() == id);
        literal.or_else(|| self.0.iter().find(|template| matches(template.pattern.as_bytes(), id)))
    }
}

impl Template {
    fn check(&self) -> Result<(), Why> {
        if !is_glob(self.pattern.as_bytes()) {
            return Err(Why::Glob);
        }
        if self.refresh < Duration::from_secs(1) || self.lease < self.refresh {
            return Err(Why::Refresh);
        }
        if self.lease > LEASE_LENGTH_MAX { Err(Why::Lease) } else { Ok(()) }
    }

    /// The pace of a host that has `lease` of the capacity: its burst is the same part of the whole burst. A resource that is not a rate has none.
    #[must_use]
    pub fn pace(&self, lease: Micros) -> Pace {
        let burst = self.burst.part(lease.micros(), self.capacity.micros());
        self.per.map_or(Pace::STOPPED, |per| Pace::new(lease, per, burst))
    }
}

/// Whether the whole of `id` matches a well-formed `glob`.
fn matches(glob: &[u8], id: &[u8]) -> bool {
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

fn is_glob(glob: &[u8]) -> bool {
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

impl std::fmt::Display for BadTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = match self.why {
            Why::Glob => "the pattern is not a glob: close `[`, write `\\\\` for a backslash",
            Why::Refresh => "refresh must be at least 1s and lease at least refresh",
            Why::Lease => "a lease lasts at most 1h",
            Why::TooMany => "too many resources: join some into a glob",
        };
        write!(f, "resources[{}]: {why}", self.at)
    }
}

impl std::error::Error for BadTemplate {}

/// Most templates.
pub const TEMPLATES_MAX: usize = 10_000;
/// A client's lease lasts at most so long.
pub const LEASE_LENGTH_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn template(pattern: &str) -> Template {
        Template {
            pattern: pattern.to_owned(),
            capacity: Micros::units(100),
            per: Some(Duration::from_secs(1)),
            burst: Micros::units(10),
            algorithm: Algorithm::FairShare,
            floors: Floors::default(),
            lease: Duration::from_secs(20),
            refresh: Duration::from_secs(5),
            learning: Duration::from_secs(20),
            safe: Safe::Share,
        }
    }

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
    fn literals_come_before_globs_and_globs_in_order() {
        let order = ["db.*", "*", "db.a", "db.a*"].map(template);
        let templates = Templates::new(order.into()).unwrap();
        let found =
            |id: &str| templates.find(id.as_bytes()).map(|template| template.pattern.as_str());
        assert_eq!(found("db.a"), Some("db.a"));
        assert_eq!(found("db.ab"), Some("db.*"));
        assert_eq!(found("other"), Some("*"));
        assert_eq!(found("a/b"), None, "a path matches no `*`, and that is an answer, not a crash");
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let why = |change: &dyn Fn(&mut Template)| {
            let mut bad = template("db");
            change(&mut bad);
            Templates::new(vec![template("ok"), bad]).unwrap_err()
        };
        for pattern in ["[", "[]", "[a", "[a-]", "a\\", "[^]", "[-a]"] {
            assert_eq!(
                why(&|t| t.pattern = pattern.to_owned()),
                BadTemplate { at: 1, why: Why::Glob },
                "{pattern}"
            );
        }
        assert_eq!(why(&|t| t.refresh = Duration::from_millis(999)).why, Why::Refresh);
        assert_eq!(why(&|t| t.lease = Duration::from_secs(4)).why, Why::Refresh);
        assert_eq!(why(&|t| t.lease = Duration::from_secs(3601)).why, Why::Lease);
    }

    proptest! {
        #[test]
        fn any_pattern_and_any_id_end(glob in "[a-c*?\\[\\]^\\\\/-]{0,12}", id in "[a-c/-]{0,12}") {
            if is_glob(glob.as_bytes()) {
                let _ = matches(glob.as_bytes(), id.as_bytes());
            } else {
                prop_assert!(Templates::new(vec![template(&glob)]).is_err());
            }
        }

        #[test]
        fn a_literal_matches_itself(id in "[a-z./]{0,20}") {
            prop_assert!(matches(id.as_bytes(), id.as_bytes()));
        }
    }
}

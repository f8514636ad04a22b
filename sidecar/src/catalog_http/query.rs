//! The parameters of a query, as Consul's clients write them.
//!
//! A parameter that would change the answer and that is not built is refused: an ignored filter sends requests to the wrong
//! instances. Those that Consul knows and that mean nothing here (`near`, `cached`, `token`) are ignored, as unknown ones are.

use std::time::Duration;

use axum::http::StatusCode;
use evenkeel_discovery::consul::{Selection, go_duration};
use evenkeel_discovery::filter::{FilterExpression, FilteredEntry};

use super::Refusal;

/// What the query's parameters ask.
#[derive(Debug, PartialEq)]
pub(super) struct Query {
    pub index: u64,
    pub wait: Duration,
    pub passing: bool,
    /// What of the entries is wanted, but for the filter.
    pub tags: Vec<String>,
    pub node_meta: Vec<(String, String)>,
    pub dc: Option<String>,
    filter: Option<String>,
    /// For a report on a check: what a human should read.
    pub note: Option<String>,
    /// For maintenance: why.
    pub reason: Option<String>,
    /// For maintenance.
    pub enable: Option<bool>,
    pub stale: bool,
    pub pretty: bool,
}

impl Default for Query {
    fn default() -> Self {
        Query {
            index: 0,
            wait: WAIT_DEFAULT,
            passing: false,
            tags: Vec::new(),
            node_meta: Vec::new(),
            dc: None,
            filter: None,
            note: None,
            reason: None,
            enable: None,
            stale: false,
            pretty: false,
        }
    }
}

impl Query {
    pub fn parse(query: Option<&str>) -> Result<Query, Refusal> {
        let bad = |text: String| Refusal(StatusCode::BAD_REQUEST, text);
        let (mut parsed, mut consistent) = (Query::default(), false);
        for (key, value) in pairs(query.unwrap_or_default()) {
            match key.as_str() {
                "index" => {
                    parsed.index =
                        value.parse().map_err(|_| bad(format!("Invalid index {value:?}")))?;
                }
                "wait" => {
                    let wait = wait_of(&value)
                        .ok_or_else(|| bad(format!("Invalid wait time {value:?}")))?;
                    // As Consul: no wait means the default.
                    parsed.wait = if wait.is_zero() { WAIT_DEFAULT } else { wait.min(WAIT_MAX) };
                }
                "passing" => parsed.passing = flag("passing", &value)?,
                "enable" => parsed.enable = Some(flag("enable", &value)?),
                "note" => parsed.note = Some(value),
                "reason" => parsed.reason = Some(value),
                "tag" => parsed.tags.push(value),
                "dc" if !value.is_empty() => parsed.dc = Some(value.to_ascii_lowercase()),
                "stale" => parsed.stale = true,
                "consistent" => consistent = true,
                "pretty" => parsed.pretty = true,
                "filter" if !value.is_empty() => parsed.filter = Some(value),
                "node-meta" => {
                    let (key, value) = value.split_once(':').unwrap_or((value.as_str(), ""));
                    parsed.node_meta.push((key.to_owned(), value.to_owned()));
                }
                "hash" if !value.is_empty() => {
                    return Err(Refusal(
                        StatusCode::NOT_IMPLEMENTED,
                        "?hash is not built: watch /v1/health/service/NAME or /v1/health/state/any with ?index"
                            .to_owned(),
                    ));
                }
                "ns" | "partition" | "peer" | "sg" if !matches!(value.as_str(), "" | "default") => {
                    return Err(bad(format!(
                        "?{key}={value}: a mesh has one namespace and no peers; leave it out"
                    )));
                }
                // Known and without effect here, or unknown: Consul ignores these too.
                _ => {}
            }
        }
        if parsed.stale && consistent {
            return Err(bad(
                "Cannot specify ?stale with ?consistent, conflicting semantics.".to_owned()
            ));
        }
        Ok(parsed)
    }

    /// What of such entries is wanted.
    pub fn selection(&self, entry: FilteredEntry) -> Result<Selection, Refusal> {
        let parse = |text: &String| FilterExpression::parse(text, entry);
        let expression = self.filter.as_ref().map(parse).transpose();
        Ok(Selection {
            passing: self.passing,
            tags: self.tags.clone(),
            node_meta: self.node_meta.clone(),
            expression: expression
                .map_err(|cause| Refusal(StatusCode::BAD_REQUEST, cause.to_string()))?,
        })
    }

    /// Refuses a filter where there is nothing to choose from.
    pub fn without_filter(self) -> Result<Query, Refusal> {
        match &self.filter {
            None => Ok(self),
            Some(_) => Err(Refusal(
                StatusCode::BAD_REQUEST,
                "?filter: this path has no list to choose from, leave it out".to_owned(),
            )),
        }
    }
}

/// Go's words for a flag; a parameter without a value is set.
fn flag(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Refusal(
            StatusCode::BAD_REQUEST,
            format!("Invalid value for ?{name}: {value:?}, write true or false"),
        )),
    }
}

/// The pairs of a query string, decoded; a key without `=` has an empty value.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    })
}

/// Percent-decoding with `+` as a blank; what is not valid stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How long to wait: Go's durations; none, and a bare 0, are no time.
fn wait_of(text: &str) -> Option<Duration> {
    if matches!(text, "" | "0") { Some(Duration::ZERO) } else { go_duration(text) }
}

/// Of a blocking query that does not say.
pub(super) const WAIT_DEFAULT: Duration = Duration::from_secs(300);

/// Of any blocking query.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Query, StatusCode> {
        Query::parse(Some(query)).map_err(|refusal| refusal.0)
    }

    #[test]
    fn parameters_as_consuls_clients_send_them() {
        let query =
            parse("stale=&wait=120000ms&index=17&tag=a&tag=b%2Fc+d&passing=1&near=_agent&dc=Prod")
                .unwrap();
        let expected = Query {
            index: 17,
            wait: Duration::from_secs(120),
            passing: true,
            tags: vec!["a".into(), "b/c d".into()],
            dc: Some("prod".into()),
            stale: true,
            ..Query::default()
        };
        assert_eq!(query, expected);
        for (query, passing) in
            [("", false), ("passing", true), ("passing=true", true), ("passing=false", false)]
        {
            assert_eq!(parse(query).unwrap().passing, passing, "{query}");
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for (query, status) in [
            ("passing=maybe", StatusCode::BAD_REQUEST),
            ("index=-1", StatusCode::BAD_REQUEST),
            ("wait=10", StatusCode::BAD_REQUEST),
            ("stale&consistent", StatusCode::BAD_REQUEST),
            ("ns=other", StatusCode::BAD_REQUEST),
            ("enable=perhaps", StatusCode::BAD_REQUEST),
            ("hash=abc", StatusCode::NOT_IMPLEMENTED),
        ] {
            assert_eq!(parse(query).err(), Some(status), "{query}");
        }
    }

    #[test]
    fn filters_are_read_for_what_they_are_asked_of() {
        let query =
            parse("filter=Service.Tags+contains+x&node-meta=zone:a&node-meta=rack").unwrap();
        let selection = query.selection(FilteredEntry::Health).map_err(|refusal| refusal.1);
        let selection = selection.unwrap();
        assert!(selection.expression.is_some());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(selection.node_meta, [pair("zone", "a"), pair("rack", "")]);
        let refused = query.selection(FilteredEntry::Node).map_err(|refusal| refusal.0);
        assert_eq!(refused, Err(StatusCode::BAD_REQUEST));
        assert!(query.without_filter().is_err());
    }

    #[test]
    fn waits() {
        for (text, ms) in [
            ("10s", Some(10_000)),
            ("120000ms", Some(120_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("0", Some(0)),
            ("", Some(0)),
            ("10", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("1e400h", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(wait_of(text), ms.map(Duration::from_millis), "{text}");
        }
        assert_eq!(parse("wait=24h").unwrap().wait, WAIT_MAX);
        assert_eq!(parse("wait=0s").unwrap().wait, WAIT_DEFAULT);
    }

    #[test]
    fn bytes_that_are_no_encoding_stay() {
        for (text, meaning) in [
            ("a%3Ab", "a:b"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%ff", "\u{fffd}"),
            ("é", "é"),
        ] {
            assert_eq!(decoded(text), meaning);
        }
    }
}

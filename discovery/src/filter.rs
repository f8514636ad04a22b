//! `?filter`: which entries of an answer are wanted, in the common forms of Consul's expression language.
//!
//! An expression is read against a list of what an entry of that answer has, so that a misspelt field is refused rather
//! than matching nothing; then it is a pure test of the entry's JSON, whatever it came from. What of the language
//! is not here (`matches`, `any`, `all`, comparing lists) is refused too: a filter that is understood in part chooses
//! the wrong instances.
//!
//! ```text
//! or      := and { "or" and }
//! and     := not { "and" not }
//! not     := "not" not | "(" or ")" | test
//! test    := field "==" value | field "!=" value | value ["not"] "in" field
//!          | field ["not"] "contains" value | field "is" ["not"] "empty"
//! field   := name { "." name | "[" quoted "]" }
//! value   := quoted | word
//! ```
//!
//! `in` asks for a tag in a list, for a key in a map, for a part in a text. A key that a map lacks equals nothing.

use std::fmt;

use serde_json::Value;

/// Longest expression, in bytes.
pub const FILTER_MAX: usize = 4096;
/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 32;

/// What the entries are that are chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilteredEntry {
    /// Of `/v1/health/service/NAME`.
    Health,
    /// Of `/v1/catalog/service/NAME`, and what `/v1/catalog/services` is made of.
    Catalog,
    /// Of `/v1/catalog/nodes`.
    Node,
    /// Of `/v1/health/state/STATE`, `health/checks` and `health/node`.
    Check,
    /// Of `/v1/agent/services` and the services of one host.
    Service,
}

/// A filter that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterExpression(Clause);

/// Why a filter was not understood; the fault is the client's. Says where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterError(String);

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failed to create boolean expression evaluator: {}", self.0)
    }
}

impl std::error::Error for FilterError {}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Clause {
    Any(Vec<Clause>),
    All(Vec<Clause>),
    Not(Box<Clause>),
    Test(Vec<String>, FieldTest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldTest {
    Equals(String),
    Has(String),
    IsEmpty,
}

/// What is under a field of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldShape {
    Text,
    Scalar,
    List,
    Map,
}

impl FilterExpression {
    /// Reads an expression about such entries.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str, entry: FilteredEntry) -> Result<FilterExpression, FilterError> {
        if text.len() > FILTER_MAX {
            return Err(FilterError(format!("it is longer than {FILTER_MAX} bytes")));
        }
        let mut parser = FilterParser { tokens: tokens(text)?, at: 0, depth: 0, entry };
        let clause = parser.any()?;
        match parser.peek() {
            None => Ok(FilterExpression(clause)),
            Some(token) => {
                Err(FilterError(format!("{token} is one too many: join tests with `and` or `or`")))
            }
        }
    }

    /// Whether the entry is one that is wanted.
    #[must_use]
    pub fn matches(&self, entry: &Value) -> bool {
        self.0.matches(entry)
    }
}

impl Clause {
    fn matches(&self, entry: &Value) -> bool {
        match self {
            Clause::Any(clauses) => clauses.iter().any(|clause| clause.matches(entry)),
            Clause::All(clauses) => clauses.iter().all(|clause| clause.matches(entry)),
            Clause::Not(clause) => !clause.matches(entry),
            Clause::Test(path, test) => {
                test.holds(path.iter().try_fold(entry, |value, name| value.get(name)))
            }
        }
    }
}

impl FieldTest {
    fn holds(&self, field: Option<&Value>) -> bool {
        match (self, field) {
            (FieldTest::IsEmpty, None | Some(Value::Null)) => true,
            (FieldTest::IsEmpty, Some(Value::String(text))) => text.is_empty(),
            (FieldTest::IsEmpty, Some(Value::Array(list))) => list.is_empty(),
            (FieldTest::IsEmpty, Some(Value::Object(map))) => map.is_empty(),
            (FieldTest::Equals(wanted), Some(Value::String(text))) => text == wanted,
            (FieldTest::Equals(wanted), Some(Value::Number(number))) => {
                number.to_string() == *wanted
            }
            (FieldTest::Equals(wanted), Some(Value::Bool(flag))) => flag.to_string() == *wanted,
            (FieldTest::Has(wanted), Some(Value::String(text))) => text.contains(wanted),
            (FieldTest::Has(wanted), Some(Value::Array(list))) => {
                list.iter().any(|item| item.as_str() == Some(wanted))
            }
            (FieldTest::Has(wanted), Some(Value::Object(map))) => map.contains_key(wanted),
            _ => false,
        }
    }
}

/// A piece of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FilterToken {
    Word(String),
    Quoted(String),
    /// `==`, `!=`, `(`, `)`, `[` or `]`.
    Sign(&'static str),
}

impl fmt::Display for FilterToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilterToken::Word(word) => write!(f, "`{word}`"),
            FilterToken::Quoted(text) => write!(f, "{text:?}"),
            FilterToken::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<FilterToken>, FilterError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = ["==", "!=", "(", ")", "[", "]"].into_iter().find(|sign| rest.starts_with(sign));
        if let Some(sign) = sign {
            tokens.push(FilterToken::Sign(sign));
            rest = &rest[sign.len()..];
        } else if first == '"' || first == '`' {
            let (quoted, tail) = unquote(&rest[1..], first)?;
            tokens.push(FilterToken::Quoted(quoted));
            rest = tail;
        } else {
            let ends = |c: char| c.is_whitespace() || "()[]\"`=!".contains(c);
            let end = rest.find(ends).unwrap_or(rest.len());
            if end == 0 {
                return Err(FilterError(format!(
                    "`{first}` stands alone: write `==`, `!=`, `in`, `contains` or `is empty`"
                )));
            }
            tokens.push(FilterToken::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// What stands before the closing quote, and what follows it. Only double quotes know a backslash.
fn unquote(text: &str, quote: char) -> Result<(String, &str), FilterError> {
    let mut quoted = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Ok((quoted, &text[at + 1..])),
            '\\' if quote == '"' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => quoted.push(escaped),
                _ => {
                    return Err(FilterError(
                        "after a backslash only `\"` or a backslash may stand: use backquotes for other text".to_owned(),
                    ));
                }
            },
            _ => quoted.push(c),
        }
    }
    Err(FilterError("a quote is not closed".to_owned()))
}

struct FilterParser {
    tokens: Vec<FilterToken>,
    at: usize,
    depth: usize,
    entry: FilteredEntry,
}

impl FilterParser {
    fn peek(&self) -> Option<&FilterToken> {
        self.tokens.get(self.at)
    }

    fn next(&mut self, wanted: &str) -> Result<FilterToken, FilterError> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token.ok_or_else(|| FilterError(format!("it ends where {wanted} should stand")))
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_next = matches!(self.peek(), Some(FilterToken::Word(next)) if next == word);
        self.at += usize::from(is_next);
        is_next
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let is_next = matches!(self.peek(), Some(FilterToken::Sign(next)) if *next == sign);
        self.at += usize::from(is_next);
        is_next
    }

    fn any(&mut self) -> Result<Clause, FilterError> {
        let mut clauses = vec![self.all()?];
        while self.takes_word("or") {
            clauses.push(self.all()?);
        }
        Ok(only(clauses, Clause::Any))
    }

    fn all(&mut self) -> Result<Clause, FilterError> {
        let mut clauses = vec![self.not()?];
        while self.takes_word("and") {
            clauses.push(self.not()?);
        }
        Ok(only(clauses, Clause::All))
    }

    fn not(&mut self) -> Result<Clause, FilterError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(FilterError(format!("it is nested deeper than {DEPTH_MAX}")));
        }
        let clause = if self.takes_word("not") {
            Clause::Not(Box::new(self.not()?))
        } else if self.takes_sign("(") {
            let inner = self.any()?;
            if !self.takes_sign(")") {
                return Err(FilterError("a parenthesis is not closed".to_owned()));
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(clause)
    }

    fn test(&mut self) -> Result<Clause, FilterError> {
        let is_in = |token: Option<&FilterToken>| matches!(token, Some(FilterToken::Word(word)) if word == "in" || word == "not");
        if matches!(self.peek(), Some(FilterToken::Quoted(_)))
            || is_in(self.tokens.get(self.at + 1))
                && !matches!(self.tokens.get(self.at + 2), Some(FilterToken::Word(word)) if word == "contains")
        {
            let value = self.value()?;
            let is_not = self.takes_word("not");
            if !self.takes_word("in") {
                return Err(FilterError(format!(
                    "after the value {value:?} `in` and a field should stand; if it is the field, write it without quotes"
                )));
            }
            let (path, shape) = self.field()?;
            return Ok(negated(is_not, has(path, shape, value)?));
        }
        let (path, shape) = self.field()?;
        if self.takes_word("is") {
            let is_not = self.takes_word("not");
            if !self.takes_word("empty") {
                return Err(FilterError(
                    "after `is` there should be `empty` or `not empty`".to_owned(),
                ));
            }
            return Ok(negated(is_not, Clause::Test(path, FieldTest::IsEmpty)));
        }
        let is_equal = self.takes_sign("==");
        if is_equal || self.takes_sign("!=") {
            let value = self.value()?;
            if matches!(shape, FieldShape::List | FieldShape::Map) {
                let name = path.join(".");
                return Err(FilterError(format!(
                    "{name} is no single value: write `{value:?} in {name}`, or name one of its keys"
                )));
            }
            return Ok(negated(!is_equal, Clause::Test(path, FieldTest::Equals(value))));
        }
        let is_not = self.takes_word("not");
        if self.takes_word("contains") {
            let value = self.value()?;
            return Ok(negated(is_not, has(path, shape, value)?));
        }
        let token = self.next("`==`, `!=`, `in`, `contains` or `is empty`")?;
        Err(FilterError(format!(
            "{token} is not understood here: write `==`, `!=`, `in`, `contains` or `is empty`"
        )))
    }

    fn value(&mut self) -> Result<String, FilterError> {
        match self.next("a value")? {
            FilterToken::Word(text) | FilterToken::Quoted(text) => Ok(text),
            FilterToken::Sign(sign) => {
                Err(FilterError(format!("`{sign}` stands where a value should: quote it")))
            }
        }
    }

    fn field(&mut self) -> Result<(Vec<String>, FieldShape), FilterError> {
        let FilterToken::Word(word) = self.next("a field")? else {
            return Err(FilterError(format!(
                "a field should stand here, such as {}",
                self.entry.fields()[0].0
            )));
        };
        let mut path: Vec<String> = word.split('.').map(str::to_owned).collect();
        while self.takes_sign("[") {
            match (self.next("a key")?, self.takes_sign("]")) {
                (FilterToken::Quoted(key), true) => path.push(key),
                _ => return Err(FilterError("in brackets one quoted key should stand".to_owned())),
            }
        }
        for (name, shape) in self.entry.fields() {
            let depth = name.split('.').count();
            let is_this =
                path.len() >= depth && path.iter().zip(name.split('.')).all(|(a, b)| a == b);
            match (shape, path.len().saturating_sub(depth)) {
                (_, 0) if is_this => return Ok((path, *shape)),
                (FieldShape::Map, _) if is_this => {
                    // The key of a map may have dots of its own.
                    let key = path.split_off(depth).join(".");
                    path.push(key);
                    return Ok((path, FieldShape::Text));
                }
                _ => {}
            }
        }
        let fields: Vec<&str> = self.entry.fields().iter().map(|(name, _)| *name).collect();
        Err(FilterError(format!(
            "Selector {:?} is not valid: here are {}",
            path.join("."),
            fields.join(", ")
        )))
    }
}

/// What a list, a map or a text has.
fn has(path: Vec<String>, shape: FieldShape, value: String) -> Result<Clause, FilterError> {
    if shape == FieldShape::Scalar {
        return Err(FilterError(format!("{} has nothing in it: write `==`", path.join("."))));
    }
    Ok(Clause::Test(path, FieldTest::Has(value)))
}

fn negated(is_not: bool, clause: Clause) -> Clause {
    if is_not { Clause::Not(Box::new(clause)) } else { clause }
}

fn only(mut clauses: Vec<Clause>, many: impl FnOnce(Vec<Clause>) -> Clause) -> Clause {
    if clauses.len() == 1 { clauses.remove(0) } else { many(clauses) }
}

impl FilteredEntry {
    fn fields(self) -> &'static [(&'static str, FieldShape)] {
        use FieldShape::{List, Map, Scalar, Text};
        match self {
            FilteredEntry::Health => &[
                ("Service.Tags", List),
                ("Service.Meta", Map),
                ("Service.Service", Text),
                ("Service.ID", Text),
                ("Service.Address", Text),
                ("Service.Port", Scalar),
                ("Service.EnableTagOverride", Scalar),
                ("Service.Weights.Passing", Scalar),
                ("Service.Weights.Warning", Scalar),
                ("Node.Node", Text),
                ("Node.ID", Text),
                ("Node.Address", Text),
                ("Node.Datacenter", Text),
                ("Node.Meta", Map),
                ("Node.TaggedAddresses", Map),
            ],
            FilteredEntry::Catalog => &[
                ("ServiceTags", List),
                ("ServiceMeta", Map),
                ("ServiceName", Text),
                ("ServiceID", Text),
                ("ServiceAddress", Text),
                ("ServicePort", Scalar),
                ("ServiceEnableTagOverride", Scalar),
                ("ServiceWeights.Passing", Scalar),
                ("ServiceWeights.Warning", Scalar),
                ("Node", Text),
                ("ID", Text),
                ("Address", Text),
                ("Datacenter", Text),
                ("NodeMeta", Map),
                ("TaggedAddresses", Map),
            ],
            FilteredEntry::Node => &[
                ("Node", Text),
                ("ID", Text),
                ("Address", Text),
                ("Datacenter", Text),
                ("Meta", Map),
                ("TaggedAddresses", Map),
            ],
            FilteredEntry::Check => &[
                ("Status", Text),
                ("ServiceTags", List),
                ("ServiceName", Text),
                ("ServiceID", Text),
                ("CheckID", Text),
                ("Name", Text),
                ("Node", Text),
                ("Type", Text),
                ("Notes", Text),
                ("Output", Text),
            ],
            FilteredEntry::Service => &[
                ("Tags", List),
                ("Meta", Map),
                ("Service", Text),
                ("ID", Text),
                ("Address", Text),
                ("Port", Scalar),
                ("EnableTagOverride", Scalar),
                ("Weights.Passing", Scalar),
                ("Weights.Warning", Scalar),
            ],
        }
    }
}

#[cfg(test)]
mod tests;

//! Reading values off the tree, each through its row of the table of keys.
//!
//! Invariants: a value is read by exactly the shape of its row (asserted; so the schema, made from the same
//! rows, agrees); whatever is wrong is reported once, at the place where it stands, and reads as absent.

use crate::keys::{self, Key, Shape};
use crate::nearest::nearest;
use crate::notation;
use crate::policy::{After, Factor, RetryOn, Share};
use crate::problem::Position;
use crate::report::{At, Report};
use crate::tree::{Entry, Kind, Node, is_null};
use crate::yaml11::{Plain, classify};

/// A mapping whose keys are known.
pub(crate) struct Section<'a> {
    entries: &'a [Entry],
    keys: &'static [Key],
    /// Where it starts.
    pub at: Position,
    pub path: String,
    report: &'a Report,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(node: Option<&'a Node>, report: &'a Report) -> Section<'a> {
        let at = node.map_or(Position::START, |node| node.at);
        Section::new(node, keys::ROOT, at, String::new(), report)
    }

    /// A mapping that is not part of the file.
    pub(crate) fn of(node: &'a Node, keys: &'static [Key], report: &'a Report) -> Section<'a> {
        Section::new(Some(node), keys, node.at, String::new(), report)
    }

    fn new(
        node: Option<&'a Node>,
        keys: &'static [Key],
        at: Position,
        path: String,
        report: &'a Report,
    ) -> Section<'a> {
        let entries: &[Entry] = match node.map(|node| (node, &node.kind)) {
            Some((_, Kind::Map(entries))) => entries,
            Some((node, _)) if !node.is_null() => {
                let what = if path.is_empty() { "the file" } else { path.as_str() };
                report.problem(node.at, &format!("{what}: expected keys, found {}", found(node)));
                &[]
            }
            _ => &[],
        };
        let section = Section { entries, keys, at, path, report };
        for entry in entries {
            section.check_key(entry);
        }
        section
    }

    fn check_key(&self, entry: &Entry) {
        let path = join(&self.path, &entry.key);
        match self.keys.iter().find(|key| key.name == entry.key) {
            Some(Key { shape: Shape::NotBuilt, .. }) => {
                self.report.problem(entry.at, &format!("{path}: not built yet"));
            }
            Some(_) => {}
            None => self
                .report
                .problem(entry.at, &format!("{path}: unknown key; {}", self.advice(&entry.key))),
        }
    }

    fn advice(&self, unknown: &str) -> String {
        let built = || {
            self.keys.iter().filter(|key| !matches!(key.shape, Shape::NotBuilt)).map(|key| key.name)
        };
        if let Some(near) = nearest(unknown, built()) {
            return format!("did you mean `{near}`?");
        }
        // Policy keys stand in many places: the shortest is the one that the documentation has.
        let mut elsewhere: Option<String> = None;
        keys::each(&mut |path, key| {
            let is_it = key.name == unknown && !matches!(key.shape, Shape::NotBuilt);
            if is_it && elsewhere.as_ref().is_none_or(|known| path.len() < known.len()) {
                elsewhere = Some(path.to_owned());
            }
        });
        match elsewhere {
            Some(path) => format!("there is one at `{path}`"),
            None => format!("known here: {}", built().collect::<Vec<_>>().join(", ")),
        }
    }

    /// The value of a key of this mapping; `None` when nothing is said.
    fn get(&self, name: &str) -> Option<Value<'a>> {
        let key = self.keys.iter().find(|key| key.name == name);
        let key = key.expect("the code reads keys of the table only");
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        let holds_more = matches!(
            key.shape,
            Shape::Map(_)
                | Shape::MapOr { .. }
                | Shape::Meta { .. }
                | Shape::List { .. }
                | Shape::ListOrMap { .. }
        );
        if holds_more && entry.value.is_null() {
            return None;
        }
        let path = join(&self.path, name);
        Some(Value { node: &entry.value, path, shape: &key.shape, report: self.report })
    }

    /// Whether anything stands at this key, usable or not.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name)
    }

    /// Whether every key is one of the table and means something.
    pub(crate) fn is_understood(&self) -> bool {
        self.entries.iter().all(|entry| {
            let key = self.keys.iter().find(|key| key.name == entry.key);
            key.is_some_and(|key| !matches!(key.shape, Shape::NotBuilt))
        })
    }

    /// A value that may be written in more than one way.
    pub(crate) fn value(&self, name: &str) -> Option<Value<'a>> {
        self.get(name)
    }

    /// A mapping that is written, be it empty; `None` when nothing is.
    pub(crate) fn given(&self, name: &str) -> Option<Section<'a>> {
        self.get(name).map(|value| value.section())
    }

    /// Reports a key without which this mapping means nothing.
    pub(crate) fn require(&self, name: &str) {
        if !self.has(name) {
            self.report.missing(self.at, &format!("{}: `{name}` is missing", self.path));
        }
    }

    /// Where a key of this mapping stands, for problems about the key rather than its value.
    pub(crate) fn key_at(&self, name: &str) -> Position {
        self.entries.iter().find(|entry| entry.key == name).map_or(self.at, |entry| entry.at)
    }

    pub(crate) fn section(&self, name: &str) -> Section<'a> {
        match self.get(name) {
            Some(value) => value.section(),
            None => {
                let Some(Key { shape: Shape::Map(keys), .. }) =
                    self.keys.iter().find(|key| key.name == name)
                else {
                    unreachable!("`{name}` is read as a mapping and is none in the table");
                };
                Section::new(None, keys, self.at, join(&self.path, name), self.report)
            }
        }
    }

    /// A mapping, and whether in its place stands the word that says that there is none of it.
    pub(crate) fn section_or_word(&self, name: &str) -> (Section<'a>, bool) {
        let Some(Key { shape: Shape::MapOr { keys, word }, .. }) =
            self.keys.iter().find(|key| key.name == name)
        else {
            unreachable!("`{name}` is read as a mapping or a word and is neither in the table");
        };
        let nothing = || Section::new(None, keys, self.at, join(&self.path, name), self.report);
        let Some(value) = self.get(name) else { return (nothing(), false) };
        let Kind::Scalar { text, plain } = &value.node.kind else {
            return (value.section(), false);
        };
        // YAML 1.1 tools write `off` back as `false`.
        let said = text == word || (*plain && *word == "off" && text == "false");
        if !said {
            value.problem(&format!("`{text}` is neither keys nor `{word}`"));
        }
        (nothing(), said)
    }

    /// The items of a list; `None` when the key is not there.
    pub(crate) fn items(&self, name: &str) -> Option<Vec<Value<'a>>> {
        self.get(name)?.items()
    }

    pub(crate) fn text<T>(&self, name: &str, form: fn(&str) -> Result<T, String>) -> Option<At<T>> {
        self.get(name)?.text(form)
    }

    /// A list of texts; unusable ones are left out.
    pub(crate) fn texts<T>(
        &self,
        name: &str,
        form: fn(&str) -> Result<T, String>,
    ) -> Option<Vec<At<T>>> {
        Some(self.items(name)?.iter().filter_map(|item| item.text(form)).collect())
    }

    pub(crate) fn duration(&self, name: &str) -> Option<std::time::Duration> {
        self.duration_at(name).map(|duration| duration.value)
    }

    pub(crate) fn duration_at(&self, name: &str) -> Option<At<std::time::Duration>> {
        let value = self.get(name)?;
        let Shape::Duration { zero } = value.shape else { value.wrong_shape() };
        let duration = value.notation(notation::duration)?;
        if duration.is_zero() && !zero {
            value.problem("must be above zero");
            return None;
        }
        Some(value.found(duration))
    }

    pub(crate) fn share(&self, name: &str) -> Option<Share> {
        self.share_at(name).map(|share| share.value)
    }

    pub(crate) fn share_at(&self, name: &str) -> Option<At<Share>> {
        let value = self.get(name)?;
        let Shape::Share = value.shape else { value.wrong_shape() };
        Some(value.found(value.notation(notation::share)?))
    }

    pub(crate) fn size(&self, name: &str) -> Option<At<usize>> {
        let value = self.get(name)?;
        let Shape::Size = value.shape else { value.wrong_shape() };
        Some(value.found(value.notation(notation::size)?))
    }

    pub(crate) fn after(&self, name: &str) -> Option<After> {
        let value = self.get(name)?;
        let Shape::After = value.shape else { value.wrong_shape() };
        value.notation(notation::after)
    }

    /// A factor; `Some(None)` when it is off.
    pub(crate) fn factor(&self, name: &str) -> Option<Option<Factor>> {
        let value = self.get(name)?;
        let Shape::Factor = value.shape else { value.wrong_shape() };
        let (text, plain) = value.scalar()?;
        if plain && text == "false" {
            return Some(None);
        }
        value.notation(notation::factor)
    }

    /// A number with decimal places within its row's bounds.
    pub(crate) fn decimal(&self, name: &str) -> Option<Factor> {
        let value = self.get(name)?;
        let Shape::Decimal { min, max } = value.shape else { value.wrong_shape() };
        let (text, plain) = value.scalar()?;
        let within = |decimal: &Factor| (*min as f64..=*max as f64).contains(&decimal.times());
        match notation::decimal(text).filter(within) {
            Some(decimal) if plain => Some(decimal),
            Some(decimal) => {
                value.problem(&format!("is a number: write {decimal} without quotes"));
                None
            }
            None => {
                value.problem(&format!(
                    "`{text}` is not a number from {min} to {max} with at most three decimal places"
                ));
                None
            }
        }
    }

    pub(crate) fn amount(&self, name: &str) -> Option<At<f64>> {
        let value = self.get(name)?;
        let Shape::Amount = value.shape else { value.wrong_shape() };
        let (text, plain) = value.scalar()?;
        value.amount(text, plain)
    }

    /// An amount, or in its place one of the row's words.
    pub(crate) fn amount_or_word(&self, name: &str) -> (Option<f64>, Option<&'static str>) {
        let Some(value) = self.get(name) else { return (None, None) };
        let Shape::AmountOr { words } = value.shape else { value.wrong_shape() };
        let Some((text, plain)) = value.scalar() else { return (None, None) };
        let word = words.iter().copied().find(|word| *word == text);
        if word.is_some() || text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return (
                word.is_none().then(|| value.amount(text, plain)).flatten().map(|at| at.value),
                word,
            );
        }
        let near = nearest(text, words.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        value.problem(&format!(
            "`{text}` is neither a number nor one of {}{near}",
            words.join(", ")
        ));
        (None, None)
    }

    /// Any whole number.
    pub(crate) fn signed(&self, name: &str) -> Option<At<i64>> {
        let value = self.get(name)?;
        let Shape::Signed = value.shape else { value.wrong_shape() };
        let (text, plain) = value.scalar()?;
        // As in `int`: `_` may group digits, a leading zero would be octal to YAML 1.1.
        let digits: String = text.chars().filter(|c| *c != '_').collect();
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let decimal = unsigned.starts_with(|c: char| c.is_ascii_digit());
        let number = digits.parse::<i64>().ok();
        match number.filter(|number| decimal && number.to_string() == digits) {
            Some(number) if plain => Some(value.found(number)),
            Some(number) => {
                value.problem(&format!("is a number: write {number} without quotes"));
                None
            }
            None => {
                value.problem(&format!("`{text}` is not a whole number"));
                None
            }
        }
    }

    pub(crate) fn retry_on(&self, name: &str) -> Option<Vec<RetryOn>> {
        let read = |item: &Value<'_>| {
            let Shape::RetryOn = item.shape else { item.wrong_shape() };
            item.notation(notation::retry_on)
        };
        Some(self.items(name)?.iter().filter_map(read).collect())
    }

    /// A whole number within its row's bounds.
    pub(crate) fn int(&self, name: &str) -> Option<u32> {
        self.int_at(name).map(|number| number.value)
    }

    pub(crate) fn int_at(&self, name: &str) -> Option<At<u32>> {
        let value = self.get(name)?;
        Some(value.found(value.int()?))
    }

    pub(crate) fn usize(&self, name: &str) -> Option<usize> {
        self.int(name).and_then(|value| usize::try_from(value).ok())
    }

    pub(crate) fn flag(&self, name: &str) -> Option<At<bool>> {
        let value = self.get(name)?;
        let (Shape::Bool | Shape::True) = value.shape else { value.wrong_shape() };
        let (text, plain) = value.scalar()?;
        match (text, plain) {
            ("true", true) => Some(value.found(true)),
            ("false", true) if matches!(value.shape, Shape::Bool) => Some(value.found(false)),
            ("false", true) => {
                value.problem("is `true` or left out");
                None
            }
            _ => {
                value.problem(&format!(
                    "`{text}` is neither true nor false{}",
                    without_quotes(plain)
                ));
                None
            }
        }
    }

    /// One of `all`, by the name that `name_of` gives it; the names are those of the key's row.
    pub(crate) fn choice<T: Copy>(
        &self,
        name: &str,
        all: &[T],
        name_of: fn(T) -> &'static str,
    ) -> Option<At<T>> {
        let value = self.get(name)?;
        let Shape::Choice { built, later } = value.shape else { value.wrong_shape() };
        debug_assert!(all.iter().copied().map(name_of).eq(built.iter().copied()), "{}", value.path);
        let (text, plain) = value.scalar()?;
        // YAML 1.1 tools write `off` back as `false`.
        let meant = if plain && text == "false" { "off" } else { text };
        if let Some(found) = all.iter().find(|candidate| name_of(**candidate) == meant) {
            return Some(value.found(*found));
        }
        if later.contains(&meant) {
            value.problem(&format!("`{meant}` is not built yet"));
        } else {
            let near = nearest(text, built.iter().copied())
                .map(|near| format!("; did you mean `{near}`?"));
            let near = near.unwrap_or_default();
            value.problem(&format!("`{text}` is none of {}{near}", built.join(", ")));
        }
        None
    }

    /// Free keys with text values, as `meta` has them.
    pub(crate) fn meta(
        &self,
        name: &str,
        form: fn(&str) -> Result<String, String>,
    ) -> Vec<(String, String)> {
        let Some(value) = self.get(name) else {
            return Vec::new();
        };
        let Shape::Meta { max } = value.shape else { value.wrong_shape() };
        let Kind::Map(entries) = &value.node.kind else {
            value.problem(&format!("expected keys, found {}", found(value.node)));
            return Vec::new();
        };
        if entries.len() > *max {
            value.problem(&format!("{} keys, at most {max} are allowed", entries.len()));
        }
        let read = |entry: &'a Entry| {
            let path = join(&value.path, &entry.key);
            let warn = |why: &str| {
                self.report.warning(entry.at, &format!("{path}: the key {why}"));
            };
            let survived = |_| survives(&entry.key, entry.plain, true, warn);
            if let Err(why) = form(&entry.key).and_then(survived) {
                self.report.problem(entry.at, &format!("{path}: the key {why}"));
                return None;
            }
            let held = Value { node: &entry.value, path, shape: &META_VALUE, report: self.report };
            Some((entry.key.clone(), held.text(form)?.value))
        };
        entries.iter().filter_map(read).collect()
    }
}

/// A value whose shape is known.
pub(crate) struct Value<'a> {
    pub node: &'a Node,
    pub path: String,
    shape: &'static Shape,
    report: &'a Report,
}

impl<'a> Value<'a> {
    pub(crate) fn problem(&self, why: &str) {
        self.report.problem(self.node.at, &format!("{}: {why}", self.path));
    }

    fn wrong_shape(&self) -> ! {
        unreachable!("{}: read as another shape than the table says", self.path)
    }

    fn found<T>(&self, value: T) -> At<T> {
        At { value, at: self.node.at, path: self.path.clone() }
    }

    pub(crate) fn section(&self) -> Section<'a> {
        let (Shape::Map(keys) | Shape::ListOrMap { keys, .. } | Shape::MapOr { keys, .. }) =
            self.shape
        else {
            self.wrong_shape()
        };
        Section::new(Some(self.node), keys, self.node.at, self.path.clone(), self.report)
    }

    /// Whether it is written as a mapping.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.kind, Kind::Map(_))
    }

    pub(crate) fn items(&self) -> Option<Vec<Value<'a>>> {
        let (Shape::List { of, max } | Shape::ListOrMap { of, max, .. }) = self.shape else {
            self.wrong_shape()
        };
        let Kind::List(items) = &self.node.kind else {
            self.problem(&format!("expected a list, found {}", found(self.node)));
            return None;
        };
        if items.len() > *max {
            self.problem(&format!("{} items, at most {max} are allowed", items.len()));
        }
        let item = |(index, node): (usize, &'a Node)| Value {
            node,
            path: format!("{}[{index}]", self.path),
            shape: of,
            report: self.report,
        };
        Some(items.iter().take(*max).enumerate().map(item).collect())
    }

    /// A scalar's text and whether it stands without quotes.
    fn scalar(&self) -> Option<(&'a str, bool)> {
        match &self.node.kind {
            Kind::Scalar { text, plain } if *plain && is_null(text) => {
                self.problem("has no value: write one, or leave the key out for its default");
                None
            }
            Kind::Scalar { text, plain } => Some((text, *plain)),
            Kind::List(_) | Kind::Map(_) => {
                self.problem(&format!("expected a single value, found {}", found(self.node)));
                None
            }
        }
    }

    pub(crate) fn text<T>(&self, form: fn(&str) -> Result<T, String>) -> Option<At<T>> {
        let typed = match self.shape {
            Shape::Text { .. } => false,
            Shape::Plain { .. } => true,
            _ => self.wrong_shape(),
        };
        let (text, plain) = self.scalar()?;
        // The form first: to put `listen: 7080` in quotes would only bring the next problem.
        let warn = |why: &str| {
            self.report.warning(self.node.at, &format!("{}: {why}", self.path));
        };
        match form(text).and_then(|value| survives(text, plain, typed, warn).map(|()| value)) {
            Ok(value) => Some(self.found(value)),
            Err(why) => {
                self.problem(&why);
                None
            }
        }
    }

    fn notation<T>(&self, read: fn(&str) -> Result<T, String>) -> Option<T> {
        let (text, _) = self.scalar()?;
        read(text).map_err(|why| self.problem(&why)).ok()
    }

    fn amount(&self, text: &str, plain: bool) -> Option<At<f64>> {
        match notation::amount(text) {
            Some(number) if plain => return Some(self.found(number)),
            Some(number) => self.problem(&format!("is a number: write {number} without quotes")),
            None => self.problem(&format!(
                "`{text}` is not a number from 0 to {} with at most three decimal places",
                notation::AMOUNT_MAX
            )),
        }
        None
    }

    fn int(&self) -> Option<u32> {
        let Shape::Int { min, max } = self.shape else { self.wrong_shape() };
        let (text, plain) = self.scalar()?;
        // As YAML 1.1 has it, `_` may group digits; a leading zero would be octal there.
        let digits: String = text.chars().filter(|c| *c != '_').collect();
        let decimal = text.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        let value = digits.parse::<u64>().ok().filter(|value| (min..=max).contains(&value));
        match value.and_then(|value| u32::try_from(value).ok()) {
            Some(value) if decimal && plain => Some(value),
            Some(value) if decimal => {
                self.problem(&format!("is a number: write {value} without quotes"));
                None
            }
            _ => {
                self.problem(&format!("`{text}` is not a whole number from {min} to {max}"));
                None
            }
        }
    }
}

pub(crate) static META_VALUE: Shape = Shape::Plain { pattern: crate::forms::FREE };

/// Whether YAML tools leave this text as it stands; `typed`: it may be a number as long as they do. Warns when
/// only some of them do.
fn survives(text: &str, plain: bool, typed: bool, warn: impl Fn(&str)) -> Result<(), String> {
    let quotes =
        |what: &str| format!("`{text}` without quotes is {what} to YAML tools: write \"{text}\"");
    match classify(text) {
        _ if !plain => Ok(()),
        Plain::Text => Ok(()),
        Plain::Doubtful(what) => {
            warn(&quotes(what));
            Ok(())
        }
        Plain::Kept(_) if typed => Ok(()),
        Plain::Kept(what) | Plain::Rewritten(what) => Err(quotes(what)),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn found(node: &Node) -> &'static str {
    match &node.kind {
        Kind::Scalar { .. } => "a single value",
        Kind::List(_) => "a list",
        Kind::Map(_) => "keys",
    }
}

fn without_quotes(plain: bool) -> &'static str {
    if plain { "" } else { " without quotes" }
}

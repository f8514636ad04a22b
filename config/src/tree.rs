//! YAML text as a tree in which every key and value knows where it stands.
//!
//! Decides what of YAML is allowed: one document; mappings with text keys, each at most once; lists; scalars
//! whose meaning is left to whoever reads them (so that `2.10` is still `2.10` when it is a version); anchors
//! and aliases, because tools write them for repeated values. Tags that would change what a value means are
//! refused, and so are merge keys (they left YAML with 1.2).
//!
//! Invariants: nesting ≤ [`DEPTH_MAX`], values ≤ [`NODES_MAX`] with each use of an alias counted at its full
//! size (a few lines of aliases to aliases otherwise stand for gigabytes), no recursion deeper than that.
//!
//! Why not deserialise: a deserialiser stops at its first error and has thrown the positions away when a later
//! check needs one. Structural mistakes are collected here and reading goes on; after a mistake in the syntax
//! itself the tree holds what stood before it and is marked `broken`.

use std::collections::BTreeMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};

use crate::problem::Position;

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub at: Position,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `plain`: without quotes, so that YAML tools may take it for a number, a truth value, a date.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: String,
    pub plain: bool,
    pub at: Position,
    pub value: Node,
}

/// What became of a text.
#[derive(Debug)]
pub(crate) struct Tree {
    /// `None`: nothing but comments.
    pub root: Option<Node>,
    pub problems: Vec<(Position, String)>,
    /// The syntax broke off: the last values may be incomplete.
    pub broken: bool,
}

impl Node {
    /// Nothing written, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if is_null(text))
    }

    fn size(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar { .. } => 0,
            Kind::List(items) => items.iter().map(Node::size).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| 1 + entry.value.size()).sum(),
        }
    }
}

pub(crate) fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

/// Reads one document. Never fails: what is wrong is in [`Tree::problems`].
pub(crate) fn read(text: &str) -> Tree {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = DEPTH_MAX;
    options.block_nesting_limit = DEPTH_MAX;

    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let step = match next {
            Ok((event, span)) => builder.take(event, &span),
            Err(error) => {
                let marker = error.marker();
                let at = Position { line: marker.line(), column: marker.col() + 1 };
                Err((at, format!("not YAML: {}", error.info())))
            }
        };
        if let Err(problem) = step {
            builder.problems.push(problem);
            builder.broken = true;
            break;
        }
    }
    builder.finish()
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchored: BTreeMap<usize, Node>,
    nodes: usize,
    documents: usize,
    problems: Vec<(Position, String)>,
    broken: bool,
}

/// A list or mapping whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: BTreeMap<String, usize>, key: Option<Key> },
}

/// A key whose value has not come yet; `text` is `None` for one that was refused.
struct Key {
    at: Position,
    text: Option<(String, bool)>,
}

type Fatal = (Position, String);

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fatal> {
        let at = Position { line: span.start.line(), column: span.start.col() + 1 };
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err((at, "a second document: the file holds one".to_owned()));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !self.is_string(at, tag.as_deref());
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                self.place(Node { at, kind }, anchor, 1)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.is_string(at, tag.as_deref());
                self.open.push(Open { at, anchor, inside: Inside::List(Vec::new()) });
            }
            Event::MappingStart(_, anchor, tag) => {
                self.is_string(at, tag.as_deref());
                let inside = Inside::Map { entries: Vec::new(), seen: BTreeMap::new(), key: None };
                self.open.push(Open { at, anchor, inside });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => {
                let Some(size) = self.anchored.get(&anchor).map(Node::size) else {
                    return Err((at, "an alias inside the value that it names".to_owned()));
                };
                // Counted before the copy is made: that is the point of the limit.
                self.count(at, size)?;
                let node = self.anchored[&anchor].clone();
                self.place(node, 0, 0)?;
            }
            Event::UnresolvedAlias(name) => {
                self.problems.push((at, format!("no anchor `&{name}` stands before this alias")));
                let kind = Kind::Scalar { text: String::new(), plain: true };
                self.place(Node { at, kind }, 0, 1)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the tag makes a plain scalar a string. A tag that YAML tools do not all know is a problem.
    fn is_string(&mut self, at: Position, tag: Option<&Tag>) -> bool {
        match tag.map(|tag| (tag, tag.core_suffix())) {
            None => false,
            Some((_, Some("str"))) => true,
            Some((_, Some("int" | "float" | "bool" | "null" | "seq" | "map"))) => false,
            Some((tag, _)) => {
                self.problems
                    .push((at, format!("the tag `{}` has no meaning here", tag.original())));
                false
            }
        }
    }

    fn count(&mut self, at: Position, nodes: usize) -> Result<(), Fatal> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err((at, format!("more than {NODES_MAX} values, aliases counted in full")));
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fatal> {
        let Some(Open { at, anchor, inside }) = self.open.pop() else {
            return Ok(());
        };
        let kind = match inside {
            Inside::List(items) => Kind::List(items),
            Inside::Map { mut entries, key, .. } => {
                // Only when the syntax broke off between a key and its value.
                if let Some(Key { at, text: Some((key, plain)) }) = key {
                    let kind = Kind::Scalar { text: String::new(), plain: true };
                    entries.push(Entry { key, plain, at, value: Node { at, kind } });
                }
                Kind::Map(entries)
            }
        };
        self.place(Node { at, kind }, anchor, 1)
    }

    /// Puts a complete value where it belongs: under its key, into its list, at the root.
    fn place(&mut self, node: Node, anchor: usize, nodes: usize) -> Result<(), Fatal> {
        self.count(node.at, nodes)?;
        if anchor > 0 {
            self.anchored.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.inside) {
            None => self.root = Some(node),
            Some(Inside::List(items)) => items.push(node),
            Some(Inside::Map { entries, seen, key }) => match key.take() {
                None => *key = Some(as_key(node, &mut self.problems)),
                Some(Key { text: None, .. }) => {}
                Some(Key { at, text: Some((text, plain)) }) => {
                    if let Some(line) = seen.get(&text) {
                        let message = format!("`{text}` stands here twice, first in line {line}");
                        self.problems.push((at, message));
                    } else {
                        seen.insert(text.clone(), at.line);
                        entries.push(Entry { key: text, plain, at, value: node });
                    }
                }
            },
        }
        Ok(())
    }

    fn finish(mut self) -> Tree {
        while !self.open.is_empty() {
            if self.close().is_err() {
                break;
            }
        }
        Tree { root: self.root, problems: self.problems, broken: self.broken }
    }
}

fn as_key(node: Node, problems: &mut Vec<(Position, String)>) -> Key {
    let text = match node.kind {
        Kind::Scalar { text, plain } => Some((text, plain)),
        Kind::List(_) | Kind::Map(_) => {
            problems.push((node.at, "a key must be text, not a list or mapping".to_owned()));
            None
        }
    };
    Key { at: node.at, text }
}

/// Lists and mappings inside each other. The deepest key there is stands at 8.
const DEPTH_MAX: usize = 32;

/// Keys and values of a file, with every alias counted as what it stands for.
const NODES_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree as one line: quotes mark scalars that had some.
    fn show(node: &Node) -> String {
        match &node.kind {
            Kind::Scalar { text, plain: true } => text.clone(),
            Kind::Scalar { text, .. } => format!("'{text}'"),
            Kind::List(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" "))
            }
            Kind::Map(entries) => {
                let shown = |e: &Entry| {
                    format!("{}@{}:{}={}", e.key, e.at.line, e.at.column, show(&e.value))
                };
                format!("{{{}}}", entries.iter().map(shown).collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn problems(text: &str) -> Vec<String> {
        read(text)
            .problems
            .iter()
            .map(|(at, what)| format!("{}:{}: {what}", at.line, at.column))
            .collect()
    }

    #[test]
    fn reads_with_positions() {
        let tree = read(
            "a: 1\nb:\n  - x: 'y'\n    ü: \"2\"\nc: {d: [1, 2], e: }\nf: &f [off]\ng: *f\nh: !!str 5\n",
        );
        assert_eq!(tree.problems, []);
        assert_eq!(
            show(&tree.root.expect("a root")),
            "{a@1:1=1 b@2:1=[{x@3:5='y' ü@4:5='2'}] c@5:1={d@5:5=[1 2] e@5:16=~} f@6:1=[off] g@7:1=[off] h@8:1='5'}"
        );
    }

    #[test]
    fn nothing_is_no_tree() {
        for text in ["", "\n\n", "# only a comment\n", "---\n", "\u{feff}"] {
            let tree = read(text);
            assert_eq!(tree.problems, [], "{text:?}");
            assert!(tree.root.is_none_or(|root| root.is_null()), "{text:?}");
        }
    }

    #[test]
    fn refuses_with_positions() {
        let table = [
            ("a: 1\nb: 2\na: 3\n", "3:1: `a` stands here twice, first in line 1"),
            ("a: {x: 1, x: 2}\n", "1:11: `x` stands here twice, first in line 1"),
            ("a: *b\n", "1:4: no anchor `&b` stands before this alias"),
            ("a: 1\n---\nb: 2\n", "2:1: a second document: the file holds one"),
            ("? [a]\n: 1\n", "1:3: a key must be text, not a list or mapping"),
            ("a: !python/object 5\n", "1:19: the tag `!python/object` has no meaning here"),
            ("a: &a [*a]\n", "1:8: an alias inside the value that it names"),
        ];
        for (text, expected) in table {
            assert_eq!(problems(text), [expected], "{text:?}");
        }
    }

    #[test]
    fn keeps_what_stood_before_broken_syntax() {
        let tree = read("a: 1\nb:\n  c: 2\n  d: [1, 2\ne: 3\n");
        assert!(tree.broken);
        assert_eq!(tree.problems.len(), 1);
        assert!(show(&tree.root.expect("a root")).starts_with("{a@1:1=1 b@2:1={c@3:3=2"));
    }

    #[test]
    fn a_billion_laughs_are_counted_and_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        let tree = read(&text);
        assert!(tree.broken);
        assert_eq!(tree.problems.len(), 1);
        assert!(tree.problems[0].1.contains("aliases counted in full"), "{:?}", tree.problems);
    }

    #[test]
    fn depth_is_bounded() {
        for text in ["[".repeat(10_000), "- ".repeat(10_000), "{a: ".repeat(5_000)] {
            let tree = read(&text);
            assert!(tree.broken);
            assert_eq!(tree.problems.len(), 1);
        }
    }
}

//! YAML as a tree whose every node knows its line.
//!
//! A wish list is read into this tree first and interpreted afterwards. A typed reader would stop at the first value of
//! a wrong type; the tree lets all mistakes be reported at once.
//!
//! A list may come from a merge request of a stranger, so the parser works within limits: nesting, number of nodes,
//! length of a text, and what aliases may expand to (a "bomb" of a few lines otherwise grows to gigabytes).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Most entries, keys and values in one file.
const MAX_NODES: usize = 500_000;
/// Deepest nesting. A wish list needs two levels.
const MAX_DEPTH: usize = 16;
/// Longest text, in bytes. It also bounds what aliases copy: the parser counts their nodes only.
const MAX_TEXT: usize = 8 << 10;
/// Most nodes that aliases may stand for.
const MAX_REPLAYED: usize = 1000;

/// A value and where it stands.
pub(super) type Located = Spanned<Node>;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Nothing, or `null`, or `~`.
    Null,
    /// Text, number or truth value, as text.
    Scalar(String),
    /// `- …`
    Sequence(Vec<Located>),
    /// `key: …`, in the order of the file. The parser refuses duplicate keys.
    Mapping(Vec<(Spanned<Key>, Located)>),
}

impl Node {
    /// What to call it in a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Why a text is no YAML, and where.
#[derive(Debug)]
pub(super) struct YamlError {
    pub line: u64,
    pub column: u64,
    pub message: String,
}

/// Line of a value, counted from 1: where it is used, if it comes from an alias.
pub(super) fn line<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

/// Parses a text of one document.
pub(super) fn parse(text: &str) -> Result<Located, YamlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_aliases: MAX_REPLAYED,
            max_anchors: MAX_REPLAYED,
            max_recorded_anchor_events: 10 * MAX_REPLAYED,
            max_recorded_anchor_bytes: 64 << 10,
            max_merge_keys: 100,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 8,
        },
        emit_comments: false,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Located>(text, options).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        let mut message = error.without_snippet().to_string();
        if let Some(bare) = message.strip_suffix(&format!(" at line {line}, column {column}")) {
            message.truncate(bare.len());
        }
        YamlError { line, column, message }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// The key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key(pub String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Scalar(text) => Ok(Self(text)),
            other => Err(D::Error::custom(format!("a key has to be a text, found {}", other.kind()))),
        }
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list or a mapping")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    // The parser's texts of all kinds come through here, before they are copied.
    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        if text.len() > MAX_TEXT {
            return Err(E::custom(format!("a text longer than {MAX_TEXT} bytes has no place in a wish list")));
        }
        Ok(Node::Scalar(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        // The hint of the source is not trusted with an allocation.
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element()? {
            sequence.push(item);
        }
        Ok(Node::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut mapping = Vec::new();
        while let Some(item) = items.next_entry()? {
            mapping.push(item);
        }
        Ok(Node::Mapping(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let tree = parse("# a comment\na: 1\nb:\n\n  - x\n  - {c: ~}\n").unwrap();
        let Node::Mapping(entries) = &tree.value else { panic!("{tree:?}") };
        assert_eq!((entries[0].0.value.0.as_str(), line(&entries[0].0)), ("a", 2));
        assert_eq!(entries[0].1.value, Node::Scalar("1".to_owned()));
        let Node::Sequence(items) = &entries[1].1.value else { panic!("{entries:?}") };
        assert_eq!((&items[0].value, line(&items[0])), (&Node::Scalar("x".to_owned()), 5));
        assert_eq!((items[1].value.kind(), line(&items[1])), ("a mapping", 6));
    }

    #[test]
    fn an_alias_is_reported_where_it_is_used() {
        let tree = parse("- &a x\n- y\n- *a\n").unwrap();
        let Node::Sequence(items) = &tree.value else { panic!("{tree:?}") };
        assert_eq!((&items[2].value, line(&items[2])), (&Node::Scalar("x".to_owned()), 3));
    }

    #[test]
    fn mistakes_have_a_position() {
        let long = format!("a: 1\nb: {}\n", "x".repeat(MAX_TEXT + 1));
        let cases = [
            ("a: 1\nb: [1, 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: 1\n b: 2\n", 2),
            ("a: 1\n[b]: 2\n", 2),
            ("- *nowhere\n", 1),
            (long.as_str(), 2),
        ];
        for (text, line) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error:?}");
            assert!(!error.message.contains('\n') && !error.message.contains(" at line "), "{error:?}");
        }
    }

    #[test]
    fn bombs_are_refused_before_they_grow() {
        // Each level stands for ten of the level below.
        let mut laughs = String::from("a0: &a0 ha\n");
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let wide = format!("a: &a {}\nb: [{}]\n", "x".repeat(MAX_TEXT), vec!["*a"; MAX_REPLAYED + 1].join(", "));
        let long = format!("a: {}\n", "x".repeat(MAX_TEXT + 1));
        let quoted = format!("a: \"{}\"\n", "x\\t".repeat(MAX_TEXT));
        let key = format!("? {}\n: 1\n", "x".repeat(MAX_TEXT + 1));
        let deep = format!("a: {}{}", "[".repeat(1000), "]".repeat(1000));
        let deep_blocks: String = (0..1000).map(|level| format!("{}-\n", " ".repeat(level))).collect();
        let many = "- x\n".repeat(MAX_NODES + 1);
        let anchored = format!("- &a\n  - x\n{}", "- *a\n".repeat(MAX_REPLAYED / 2));
        let documents = "---\na: 1\n".repeat(3);
        for (name, text) in [
            ("laughs", &laughs),
            ("wide", &wide),
            ("long", &long),
            ("quoted", &quoted),
            ("key", &key),
            ("deep", &deep),
            ("deep blocks", &deep_blocks),
            ("many", &many),
            ("documents", &documents),
            ("anchored", &anchored),
        ] {
            assert!(parse(text).is_err(), "{name} was accepted");
        }
    }
}

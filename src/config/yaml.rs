//! A YAML document as written, and where each part of it stands.
//!
//! Every scalar, list and mapping is kept, duplicate keys too: judging them is `fields`'
//! work. Lines come from the YAML library itself, by making it fail where we want to know
//! (see [`line_of`]), so that no second parser of ours can disagree with it.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess,
};
use serde::de::{Error as _, Visitor};

/// How much a document may grow to, in bytes of texts and [`NODE_WEIGHT`] for each node.
/// Aliases let a small file describe a huge document.
const WEIGHT_MAX: usize = 64 << 20;

/// What a node weighs beside its text, in bytes.
const NODE_WEIGHT: usize = 64;

/// How many brackets may be open at once, in a count that takes no notice of quotes. The
/// library refuses more than 128 levels, but takes minutes to come to that for some megabytes
/// of open brackets; the room above is for brackets that stand unpaired in texts.
const BRACKETS_OPEN_MAX: usize = 1000;

/// A part of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Switch(bool),
    /// A whole number.
    Whole(i128),
    /// Another number.
    Fraction(f64),
    /// Any other scalar.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in its order, with every duplicate; scalar keys are texts as written.
    Map(Vec<(String, Node)>),
}

/// Why a text is no YAML document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// The line, from 1, where that can be told.
    pub(super) line: Option<usize>,
    /// What the YAML library says.
    pub(super) what: String,
}

/// Reads a text that is one YAML document; an empty one is [`Node::Null`].
pub(super) fn parse(text: &str) -> Result<Node, Broken> {
    refuse_brackets(text)?;
    let budget = Cell::new(WEIGHT_MAX);
    NodeSeed { budget: &budget }.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(
        |error| {
            let line = error.location().map(|location| location.line());
            // The position is reported as the file's line; saying it twice helps nobody.
            let whole = error.to_string();
            let what = whole.split(" at line ").next().unwrap_or_default().to_owned();
            Broken { line, what }
        },
    )
}

fn refuse_brackets(text: &str) -> Result<(), Broken> {
    let (mut open, mut line) = (0_usize, 1);
    for byte in text.bytes() {
        match byte {
            b'\n' => line += 1,
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > BRACKETS_OPEN_MAX {
            let what = format!("more than {BRACKETS_OPEN_MAX} brackets are open");
            return Err(Broken { line: Some(line), what });
        }
    }
    Ok(())
}

/// The line, from 1, of the part that `steps` lead to: at each mapping and list the position
/// of the entry, from 0, duplicates counted. An entry of a mapping is where its key stands,
/// an item of a list where its value begins, and what an alias names where it was written.
pub(super) fn line_of(text: &str, steps: &[usize]) -> Option<usize> {
    let document = serde_yaml::Deserializer::from_str(text);
    // Always an error: the finder fails on purpose, and the library adds the position.
    let error = Finder { steps }.deserialize(document).err()?;
    Some(error.location()?.line())
}

struct NodeSeed<'a> {
    budget: &'a Cell<usize>,
}

impl NodeSeed<'_> {
    fn weigh<E: de::Error>(&self, bytes: usize) -> Result<(), E> {
        let left = self.budget.get().checked_sub(bytes + NODE_WEIGHT);
        self.budget.set(
            left.ok_or_else(|| {
                E::custom("the document is too large once its aliases are followed")
            })?,
        );
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, without a YAML tag")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        self.weigh(0).map(|()| Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        self.weigh(0).map(|()| Node::Switch(value))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        self.weigh(0).map(|()| Node::Whole(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        self.visit_i128(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        self.visit_i128(value.into())
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        // Far above every bound either way.
        self.visit_i128(i128::try_from(value).unwrap_or(i128::MAX))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        self.weigh(0).map(|()| Node::Fraction(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.weigh(value.len()).map(|()| Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        self.weigh(0)?;
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(NodeSeed { budget: self.budget })? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        self.weigh(0)?;
        let mut entries = Vec::new();
        while let Some(ScalarKey(key)) = map.next_key()? {
            self.weigh(key.len())?;
            entries.push((key, map.next_value_seed(NodeSeed { budget: self.budget })?));
        }
        Ok(Node::Map(entries))
    }
}

/// A key of a mapping as written, `1` and `true` included; lists and mappings are refused.
struct ScalarKey(String);

impl<'de> Deserialize<'de> for ScalarKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = ScalarKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key that is a text")
            }

            fn visit_str<E: de::Error>(self, key: &str) -> Result<ScalarKey, E> {
                Ok(ScalarKey(key.to_owned()))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Walks to a part and fails there.
struct Finder<'a> {
    steps: &'a [usize],
}

const FOUND: &str = "found";

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

// What a step cannot enter is where the walk ends: the nearest place that exists.
impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FOUND)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((step, steps)) = self.steps.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        for _ in 0..*step {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Finder { steps })?;
        Err(A::Error::custom(FOUND))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, steps)) = self.steps.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        for _ in 0..*step {
            map.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if steps.is_empty() {
            map.next_key_seed(Finder { steps })?;
        } else {
            map.next_key::<IgnoredAny>()?;
            map.next_value_seed(Finder { steps })?;
        }
        Err(A::Error::custom(FOUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"# 1
a:               # 2
  "b": one       # 3
  'c':           # 4
    - x          # 5
    - - y        # 6
      - z        # 7
    - k: v       # 8
      l:         # 9
        "folded
        text"    # 11
  d: {e: 1,      # 12
      f: [2,     # 13
          3]}    # 14
  a: &anchor     # 15
    g: 1         # 16
  b: *anchor     # 17
? h              # 18
: |              # 19
  block
1: null          # 21
"#;

    #[test]
    fn lines_are_those_of_keys_and_of_list_items() {
        for (steps, line) in [
            (&[][..], 2),
            (&[0], 2),
            (&[0, 0], 3),
            (&[0, 1], 4),
            (&[0, 1, 0], 5),
            (&[0, 1, 1], 6),
            (&[0, 1, 1, 0], 6),
            (&[0, 1, 1, 1], 7),
            (&[0, 1, 2], 8),
            (&[0, 1, 2, 1], 9),
            (&[0, 2], 12),
            (&[0, 2, 0], 12),
            (&[0, 2, 1], 13),
            (&[0, 2, 1, 0], 13),
            (&[0, 2, 1, 1], 14),
            (&[0, 3], 15),
            (&[0, 4], 17),
            (&[0, 4, 0], 16),
            (&[1], 18),
            (&[2], 21),
        ] {
            assert_eq!(line_of(DOCUMENT, steps), Some(line), "{steps:?}");
        }
    }

    #[test]
    fn a_place_that_does_not_exist_is_its_nearest_parent() {
        assert_eq!(line_of(DOCUMENT, &[0, 0, 7, 7]), Some(3));
        assert!(line_of(DOCUMENT, &[99]).is_some());
        assert!(line_of("", &[0]).is_some_and(|line| line == 1));
    }

    #[test]
    fn every_key_is_kept_as_written_and_in_order() {
        let text = |text: &str| Node::Text(text.into());
        let document = parse("b: x\n1: 007\nb: 1.5\ntrue: -2\nn:\n").unwrap();
        assert_eq!(
            document,
            Node::Map(vec![
                ("b".into(), text("x")),
                ("1".into(), text("007")),
                ("b".into(), Node::Fraction(1.5)),
                ("true".into(), Node::Whole(-2)),
                ("n".into(), Node::Null),
            ])
        );
        assert_eq!(parse(""), Ok(Node::Null));
        assert_eq!(parse("# only a comment\n"), Ok(Node::Null));
        assert_eq!(
            parse("\u{feff}a: true").unwrap(),
            Node::Map(vec![("a".into(), Node::Switch(true))])
        );
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_line() {
        for (text, line, what) in [
            ("a: 1\n\tb: 2\n", Some(2), "tab character"),
            ("a: [1,\n", Some(2), "did not find expected"),
            ("a: 1\n---\nb: 2\n", None, "more than one document"),
            ("a: 1\nb: !tag x\n", Some(2), "without a YAML tag"),
            ("a: 1\n[1]: 2\n", Some(2), "a key that is a text"),
            ("a: *nowhere\n", Some(1), "unknown anchor"),
            ("a: \"\u{0}\"\n", None, "control characters"),
        ] {
            let broken = parse(text).unwrap_err();
            assert!(broken.what.contains(what), "{text:?}: {broken:?}");
            assert!(line.is_none() || broken.line == line, "{text:?}: {broken:?}");
        }
    }

    #[test]
    fn aliases_cannot_make_a_small_file_large() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let item = format!("*a{}, ", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", item.repeat(9));
        }
        assert!(parse(&bomb).is_err());
        // It is found all the same: what is passed over is not followed.
        assert_eq!(line_of(&bomb, &[11]), Some(12));
        assert!(parse("a: &a [*a, *a]").is_err());
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(1 << 10));
        let broken = parse(&long).unwrap_err();
        assert!(
            broken.what.ends_with("the document is too large once its aliases are followed"),
            "{broken:?}"
        );
        assert_eq!(broken.line, Some(1), "what is aliased");
    }

    #[test]
    fn deep_nesting_is_refused() {
        for open in ["[", "{", "- ", "? ", "{a: "] {
            for depth in [200, 10_000] {
                assert!(parse(&open.repeat(depth)).is_err(), "{open} {depth}");
            }
        }
        assert!(parse(&format!("a: \"{}\"", "[".repeat(BRACKETS_OPEN_MAX))).is_ok());
    }
}

//! The fields of a request in JSON, read as what they can be and nothing else, so that no body
//! takes up many times its own length in memory.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ARTIFACTS_MAX;

/// Every field that a request may have.
const NAMES: &[&str] = &["remote", "include_pattern", "paths", "urls", "dry_run", "limit", "force"];

/// The fields of a request, each once: of two the first would be lost without a word.
pub(super) struct Fields(pub(super) BTreeMap<String, Field>);

/// What a field has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `null`: as if it were not there.
    Nothing,
    Switch(bool),
    /// One that is neither negative nor a fraction.
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    /// A list whose entry of this number is no text.
    MixedList(usize),
    /// A list of more than [`ARTIFACTS_MAX`] texts.
    LongList,
    /// Nothing that any field can have.
    Other,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(Object).map(Self)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(Any)
    }
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = BTreeMap<String, Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if !NAMES.contains(&name.as_str()) {
                let names = NAMES.join(", ");
                return Err(A::Error::custom(format!("there is no field {name:?}: use {names}")));
            }
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {name:?} is given twice")));
            }
            fields.insert(name, map.next_value()?);
        }
        Ok(fields)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Switch(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
        Ok(Field::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_str<E>(self, value: &str) -> Result<Field, E> {
        Ok(Field::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
        let mut texts = Vec::new();
        let unfit = loop {
            match list.next_element()? {
                None => return Ok(Field::Texts(texts)),
                Some(_) if texts.len() == ARTIFACTS_MAX => break Field::LongList,
                Some(Field::Text(text)) => texts.push(text),
                Some(_) => break Field::MixedList(texts.len()),
            }
        };
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(unfit)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_what_a_field_can_make_of_it() {
        let check = |json: &str, field: Field| {
            assert_eq!(serde_json::from_str::<Field>(json).unwrap(), field, "{json}");
        };
        check("null", Field::Nothing);
        check("true", Field::Switch(true));
        check("7", Field::Number(7));
        check("-7", Field::Other);
        check("7.5", Field::Other);
        check(r#""a\n""#, Field::Text("a\n".to_owned()));
        check("[]", Field::Texts(Vec::new()));
        check(r#"["a","b"]"#, Field::Texts(vec!["a".to_owned(), "b".to_owned()]));
        check(r#"["a",["b"],0]"#, Field::MixedList(1));
        check(r#"{"a":[{"b":null}]}"#, Field::Other);
        let list = |len: usize| format!("[{}]", vec![r#""a""#; len].join(","));
        check(&list(ARTIFACTS_MAX), Field::Texts(vec!["a".to_owned(); ARTIFACTS_MAX]));
        check(&list(ARTIFACTS_MAX + 1), Field::LongList);
    }

    #[test]
    fn what_is_no_json_or_has_a_field_twice_is_refused() {
        let error = |json: &str| match serde_json::from_str::<Fields>(json) {
            Ok(Fields(fields)) => panic!("{json}: {fields:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error(r#"{"limit":1,"limit":2}"#).contains("given twice"));
        assert!(error(r#"{"a":["b"]}"#).contains("use remote, include_pattern, paths"));
        assert!(error("[1]").contains("a JSON object"));
        for broken in [r#"{"urls":[1,}"#, r#"{"urls":["b",0,}"#, r#"{"urls":{"b":}}"#, "{", ""] {
            error(broken);
        }
    }
}

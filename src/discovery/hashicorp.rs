//! `index.json` of HashiCorp-style release hosts: products with versions, versions with builds,
//! builds with URLs. One product's index and the index of all products are both understood.

use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use url::Url;

use super::links::path_below;
use super::{Listed, ListingError, Visit};

/// The index's file name.
pub const INDEX: &str = "index.json";

/// What was in an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Lists of builds; without any it is some other JSON.
    pub lists: u64,
    /// Builds whose URL does not lie below a base URL of the remote.
    pub outside: u64,
}

/// Shows the builds of an index whose URLs lie below one of `bases`.
///
/// # Errors
/// [`ListingError`] for what is no JSON; what was shown before it stays true.
pub fn builds(index: impl Read, bases: &[Url], visit: Visit<'_>) -> Result<Seen, ListingError> {
    let mut walk = Walk { bases, visit, seen: Seen::default(), has_ended: false };
    let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(index));
    (&mut walk).deserialize(&mut json)?;
    Ok(walk.seen)
}

struct Walk<'a> {
    bases: &'a [Url],
    visit: Visit<'a>,
    seen: Seen,
    // A visitor can't stop a deserialiser without an error, so it goes on without effect.
    has_ended: bool,
}

#[derive(serde::Deserialize)]
struct Build {
    #[serde(default)]
    url: String,
}

impl Walk<'_> {
    fn build(&mut self, build: &Build) {
        let url = Url::parse(&build.url).ok();
        match url.and_then(|url| path_below(&url, self.bases)) {
            _ if self.has_ended => {}
            Some(path) => {
                let flow = (self.visit)(Listed { path, size: None });
                self.has_ended = flow == ControlFlow::Break(());
            }
            None => self.seen.outside += 1,
        }
    }
}

/// Walks any value; what is below a `builds` key is read.
impl<'de> DeserializeSeed<'de> for &mut Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index of products, versions and builds")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "builds" {
                self.seen.lists += 1;
                map.next_value_seed(Builds(&mut *self))?;
            } else {
                map.next_value_seed(&mut *self)?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The list below a `builds` key.
struct Builds<'a, 'b>(&'a mut Walk<'b>);

impl<'de> DeserializeSeed<'de> for Builds<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Builds<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of builds")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(build) = seq.next_element::<Build>()? {
            self.0.build(&build);
        }
        Ok(())
    }
}

//! `index.json` of HashiCorp-style release hosts: products with versions, versions with builds
//! and with the checksums that verify them. One product's index, one version's, and the index
//! of all products are understood.
//!
//! Where a build lies is told by its URL. A mirror may keep the URLs of the host that it
//! mirrors: its builds lie where the index has them, by product and version.

use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use url::Url;

use super::links::path_below;
use super::{Listed, ListingError, Visit, in_folder};
use crate::artifact::ArtifactPath;

/// The index's file name.
pub const INDEX: &str = "index.json";

/// Builds of one version, which are in memory at once, and names of files with checksums.
const BUILDS_MAX: usize = 10_000;

/// The keys of a version that name the files which verify its builds.
const CHECKSUMS: &[&str] = &["shasums", "shasums_signature", "shasums_signatures"];

/// What was in an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Lists of builds; without any it is some other JSON.
    pub lists: u64,
    /// Builds whose URL does not lie below a base URL of the remote, and that have no file name.
    pub outside: u64,
}

/// Shows the builds of an index that lies in `folder` (empty, or ending in `/`), and the files
/// that verify them: those whose URLs lie below one of `bases`, and the others by their names.
///
/// # Errors
/// [`ListingError`] for what is no JSON; what was shown before it stays true.
pub fn builds(
    index: impl Read,
    folder: &str,
    bases: &[Url],
    visit: Visit<'_>,
) -> Result<Seen, ListingError> {
    let (keys, seen) = (Vec::new(), Seen::default());
    let mut walk = Walk { folder, bases, visit, keys, seen, has_ended: false };
    let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(index));
    (&mut walk).deserialize(&mut json)?;
    Ok(walk.seen)
}

struct Walk<'a> {
    folder: &'a str,
    bases: &'a [Url],
    visit: Visit<'a>,
    /// The keys that lead to the object that is being read.
    keys: Vec<String>,
    seen: Seen,
    // A visitor can't stop a deserialiser without an error, so it goes on without effect.
    has_ended: bool,
}

#[derive(serde::Deserialize)]
struct Build {
    #[serde(default)]
    url: String,
    #[serde(default)]
    filename: String,
}

impl Walk<'_> {
    /// The folder of the version that is being read, as the index is built.
    fn home(&self) -> Option<String> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        match keys[..] {
            [] => Some(self.folder.to_owned()),
            ["versions", version] => Some(format!("{}{version}/", self.folder)),
            [product, "versions", version] => Some(format!("{}{product}/{version}/", self.folder)),
            _ => None,
        }
    }

    fn version(&mut self, builds: &[Build], checksums: &[String]) {
        self.seen.lists += 1;
        let home = self.home();
        let named = |folder: &Option<String>, name: &str| {
            let is_name = !name.is_empty() && !name.contains('/');
            folder.as_deref().filter(|_| is_name).and_then(|folder| in_folder(folder, name))
        };
        let mut beside = None;
        for build in builds {
            let url = Url::parse(&build.url).ok();
            let path = url.and_then(|url| path_below(&url, self.bases));
            if let (Some(path), None) = (&path, &beside) {
                beside = path.as_str().rsplit_once('/').map(|(above, _)| format!("{above}/"));
            }
            match path.or_else(|| named(&home, &build.filename)) {
                Some(path) => self.show(path),
                None => self.seen.outside += u64::from(!self.has_ended),
            }
        }
        // The checksums lie beside the builds, wherever those are.
        let folder = beside.or(home);
        for path in checksums.iter().filter_map(|name| named(&folder, name)) {
            self.show(path);
        }
    }

    fn show(&mut self, path: ArtifactPath) {
        if !self.has_ended {
            let flow = (self.visit)(Listed { path, size: None });
            self.has_ended = flow == ControlFlow::Break(());
        }
    }
}

/// Values that say nothing where they stand.
macro_rules! step_over_scalars {
    () => {
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

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    };
}

/// Walks any value; an object with `builds` is a version.
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
        let (mut builds, mut checksums) = (None, Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == "builds" {
                builds = Some(map.next_value_seed(Builds)?);
            } else if CHECKSUMS.contains(&key.as_str()) {
                map.next_value_seed(Names(&mut checksums))?;
            } else {
                self.keys.push(key);
                map.next_value_seed(&mut *self)?;
                self.keys.pop();
            }
        }
        if let Some(builds) = builds {
            self.version(&builds, &checksums);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    step_over_scalars!();
}

/// The list below a `builds` key.
struct Builds;

impl<'de> DeserializeSeed<'de> for Builds {
    type Value = Vec<Build>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Vec<Build>, D::Error> {
        value.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Builds {
    type Value = Vec<Build>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of builds")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Build>, A::Error> {
        let mut builds = Vec::new();
        while let Some(build) = seq.next_element::<Build>()? {
            if builds.len() == BUILDS_MAX {
                let why = format!("one version has more than {BUILDS_MAX} builds");
                return Err(A::Error::custom(why));
            }
            builds.push(build);
        }
        Ok(builds)
    }
}

/// A name, or a list of names; anything else is none.
struct Names<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a file with checksums")
    }

    fn visit_str<E>(self, name: &str) -> Result<(), E> {
        if self.0.len() < BUILDS_MAX {
            self.0.push(name.to_owned());
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Names(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    step_over_scalars!();
}

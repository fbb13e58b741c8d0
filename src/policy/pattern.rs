//! Which paths of a remote may be fetched.

use regex::{RegexSet, RegexSetBuilder};

use crate::artifact::ArtifactPath;
use crate::formats::PackageFormat;

/// The compiled patterns of one remote.
#[derive(Debug, Clone)]
pub struct Patterns {
    include: RegexSet,
    exclude: RegexSet,
    mutable: RegexSet,
}

impl Patterns {
    /// Compiles three lists of regular expressions, each searched anywhere in a path; `size_max`
    /// bounds each compiled list in bytes.
    ///
    /// # Errors
    /// The regex crate's, for the first expression that it refuses.
    pub fn new(
        include: &[String],
        exclude: &[String],
        mutable: &[String],
        size_max: usize,
    ) -> Result<Self, regex::Error> {
        let compile = |list: &[String]| RegexSetBuilder::new(list).size_limit(size_max).build();
        Ok(Self {
            include: compile(include)?,
            exclude: compile(exclude)?,
            mutable: compile(mutable)?,
        })
    }

    /// Whether a path may be fetched: it is not excluded, and an include pattern finds itself
    /// in it or it is part of the format's own index.
    pub fn allow(&self, format: &dyn PackageFormat, path: &ArtifactPath) -> bool {
        !self.exclude.is_match(path.as_str())
            && (self.include.is_match(path.as_str())
                || !self.include.is_empty() && format.is_index(path))
    }

    /// The expressions that allow, as written.
    pub fn include(&self) -> &[String] {
        self.include.patterns()
    }

    /// The expressions that refuse, as written.
    pub fn exclude(&self) -> &[String] {
        self.exclude.patterns()
    }

    /// The expressions that name what may change, as written.
    pub fn mutable(&self) -> &[String] {
        self.mutable.patterns()
    }

    /// Whether the operator says that this path may change.
    pub fn is_mutable(&self, path: &ArtifactPath) -> bool {
        self.mutable.is_match(path.as_str())
    }
}

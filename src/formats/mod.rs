//! Package formats: what a path inside a repository is.
//!
//! A format answers questions about paths; it does no I/O and never handles a request. A new
//! format is one file here and one line in [`FORMATS`].

use std::fmt::Debug;

use crate::artifact::{ArtifactPath, Checksum};

mod alpine;
mod deb;
mod generic;
mod rpm;

/// What may be assumed of a file, from its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An index with a lifetime of its own (`index_ttl`), then revalidated.
    Head,
    /// An index file that is valid only together with the head that names it.
    Member,
    /// Never changes under its name (`file_ttl`).
    Immutable,
    /// Passed through, never stored.
    Uncacheable,
}

/// Knowledge of one kind of repository.
pub trait PackageFormat: Debug + Send + Sync {
    /// The name that remotes.yaml uses under `package`.
    fn name(&self) -> &'static str;

    /// The class of a path; a file that the format does not know is a head if it may change.
    fn classify(&self, path: &ArtifactPath) -> Class;

    /// Whether the path is part of the repository's own index, which clients need whatever
    /// packages the operator's patterns name.
    fn is_index(&self, path: &ArtifactPath) -> bool;

    /// The heads that may name this member, most likely first; empty for other classes.
    fn heads_of(&self, path: &ArtifactPath) -> Vec<ArtifactPath>;

    /// The checksum that the name itself carries.
    fn digest_in(&self, path: &ArtifactPath) -> Option<Checksum>;

    /// Paths with their classes: tested, and printed in the documentation.
    fn examples(&self) -> &'static [(&'static str, Class)];
}

/// Every format, in the order in which messages list them.
pub const FORMATS: &[&dyn PackageFormat] =
    &[&generic::Generic, &alpine::Alpine, &rpm::Rpm, &deb::Deb];

/// The format that remotes.yaml calls `name`.
pub fn named(name: &str) -> Option<&'static dyn PackageFormat> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

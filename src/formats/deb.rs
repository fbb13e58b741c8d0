//! The `deb` format.

use super::{Class, PackageFormat};
use crate::artifact::{ArtifactPath, Checksum};

/// The `deb` format.
#[derive(Debug)]
pub(super) struct Deb;

impl PackageFormat for Deb {
    fn name(&self) -> &'static str {
        "deb"
    }

    fn classify(&self, _path: &ArtifactPath) -> Class {
        Class::Immutable
    }

    fn is_index(&self, _path: &ArtifactPath) -> bool {
        false
    }

    fn heads_of(&self, _path: &ArtifactPath) -> Vec<ArtifactPath> {
        Vec::new()
    }

    fn digest_in(&self, _path: &ArtifactPath) -> Option<Checksum> {
        None
    }

    fn examples(&self) -> &'static [(&'static str, Class)] {
        &[]
    }
}

//! The `alpine` format.

use super::{Class, PackageFormat};
use crate::artifact::{ArtifactPath, Checksum};

/// The `alpine` format.
#[derive(Debug)]
pub(super) struct Alpine;

impl PackageFormat for Alpine {
    fn name(&self) -> &'static str {
        "alpine"
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

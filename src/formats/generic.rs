//! The `generic` format: a release host of which nothing is known but its files.
//!
//! It does not guess from names such as `latest` or `SHA256SUMS`: what may change is for the
//! operator's `mutable_patterns` to say.

use super::{Class, PackageFormat, is_folder};
use crate::artifact::{ArtifactPath, Checksum};

/// The `generic` format.
#[derive(Debug)]
pub(super) struct Generic;

impl PackageFormat for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn classify(&self, path: &ArtifactPath) -> Class {
        // A listing of a folder is made anew for each request.
        if is_folder(path) { Class::Head } else { Class::Immutable }
    }

    fn knows_names(&self) -> bool {
        false
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
        &[
            ("vault/", Class::Head),
            ("vault/1.17.2/", Class::Head),
            ("vault/1.17.2/vault_1.17.2_linux_amd64.zip", Class::Immutable),
            ("vault/1.17.2/vault_1.17.2_SHA256SUMS", Class::Immutable),
            ("owner/tool/releases/download/v1.8.2/tool-1.8.2.linux-amd64.tar.gz", Class::Immutable),
        ]
    }
}

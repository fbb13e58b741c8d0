//! The `alpine` format: apk repositories, with the index of apk-tools 2 (`APKINDEX.tar.gz`)
//! or of apk-tools 3 (`Packages.adb`).
//!
//! Each folder `<branch>/<repository>/<architecture>` has one signed index that names its
//! packages directly, so there are no members.

use super::{Class, PackageFormat};
use crate::artifact::{ArtifactPath, Checksum};

/// The `alpine` format.
#[derive(Debug)]
pub(super) struct Alpine;

impl PackageFormat for Alpine {
    fn name(&self) -> &'static str {
        "alpine"
    }

    fn classify(&self, path: &ArtifactPath) -> Class {
        // A package's name has its version and release; the index gives its checksum.
        if path.file_name().ends_with(".apk") { Class::Immutable } else { Class::Head }
    }

    fn is_index(&self, path: &ArtifactPath) -> bool {
        let name = path.file_name();
        name == "APKINDEX.tar.gz" || name.ends_with(".adb") || name.ends_with(".rsa.pub")
    }

    fn heads_of(&self, _path: &ArtifactPath) -> Vec<ArtifactPath> {
        Vec::new()
    }

    fn digest_in(&self, _path: &ArtifactPath) -> Option<Checksum> {
        None
    }

    fn examples(&self) -> &'static [(&'static str, Class)] {
        &[
            ("v3.20/main/x86_64/APKINDEX.tar.gz", Class::Head),
            ("v3.23/main/x86_64/Packages.adb", Class::Head),
            ("v3.23/main/x86_64/extra.adb", Class::Head),
            ("keys/builder@example.org-4a6a0840.rsa.pub", Class::Head),
            ("v3.20/releases/x86_64/latest-releases.yaml", Class::Head),
            ("v3.20/main/x86_64/", Class::Head),
            ("v3.20/main/x86_64/curl-8.9.0-r0.apk", Class::Immutable),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_and_the_keys_are_reachable_and_packages_are_not() {
        let check = |path: &str, is_index: bool| {
            let path = ArtifactPath::from_canonical(path).unwrap();
            assert_eq!(Alpine.is_index(&path), is_index, "{path}");
        };
        check("v3.20/main/x86_64/APKINDEX.tar.gz", true);
        check("APKINDEX.tar.gz", true);
        check("v3.23/main/x86_64/Packages.adb", true);
        check("keys/builder@example.org-4a6a0840.rsa.pub", true);
        check("v3.20/main/x86_64/curl-8.9.0-r0.apk", false);
        check("v3.20/main/x86_64/APKINDEX.tar.gz/", false);
        check("v3.20/main/x86_64/apkindex.tar.gz", false);
        check("v3.20/main/x86_64/old-APKINDEX.tar.gz", false);
        check("v3.20/releases/x86_64/alpine-3.20.0-x86_64.iso", false);
        check("secret.txt?x=APKINDEX.tar.gz", false);
        check("secret.txt?x=/APKINDEX.tar.gz", false);
    }
}

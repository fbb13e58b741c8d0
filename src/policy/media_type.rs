//! What a file is, for `Content-Type`.

use std::borrow::Cow;

use crate::artifact::ArtifactPath;

/// What a file is whose kind nothing tells.
const UNKNOWN: &str = "application/octet-stream";

/// The type by the file's name, then upstream's, then none in particular.
pub fn of(path: &ArtifactPath, upstream: Option<&str>) -> Cow<'static, str> {
    match (mime_guess::from_path(path.file_name()).first_raw(), upstream) {
        (Some(by_name), _) => by_name.into(),
        (None, Some(upstream)) => upstream.to_owned().into(),
        (None, None) => UNKNOWN.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_comes_from_the_name_then_from_upstream() {
        let check = |path: &str, upstream, value| {
            let path = ArtifactPath::from_canonical(path).unwrap();
            assert_eq!(of(&path, upstream), value, "{path}");
        };
        check("a/b.tar.gz", Some("text/html"), "application/gzip");
        check("a/b", Some("text/html"), "text/html");
        check("simple/b/", Some("text/html"), "text/html");
        check("a/b", None, "application/octet-stream");
    }
}

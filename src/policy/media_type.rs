//! What a file is, for `Content-Type`.

use crate::artifact::ArtifactPath;

/// What a file is whose kind nothing tells.
const UNKNOWN: &str = "application/octet-stream";

/// The type by the file's name, then upstream's, then none in particular.
pub fn of<'a>(path: &ArtifactPath, upstream: Option<&'a str>) -> &'a str {
    let by_name = mime_guess::from_path(path.file_name()).first_raw();
    by_name.or(upstream).unwrap_or(UNKNOWN)
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

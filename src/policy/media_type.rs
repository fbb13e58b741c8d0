//! What a file is, for `Content-Type`.

use std::borrow::Cow;

use crate::artifact::ArtifactPath;
use crate::formats::PackageFormat;

/// What a file is whose kind nothing tells.
const UNKNOWN: &str = "application/octet-stream";

/// Packages and what lies beside them, by the endings of their names: mime_guess takes them for
/// something else of that ending, or does not know them.
const OURS: &[(&str, &str)] = &[
    ("rpm", "application/x-rpm"),
    ("drpm", "application/x-rpm"),
    ("deb", "application/vnd.debian.binary-package"),
    ("udeb", "application/vnd.debian.binary-package"),
    ("ddeb", "application/vnd.debian.binary-package"),
    // Alpine's: it has no type of its own, and Android's would be another format's.
    ("apk", UNKNOWN),
    ("whl", "application/zip"),
    ("dsc", "text/plain"),
    ("pub", "text/plain"),
    ("tgz", "application/gzip"),
    ("tbz2", "application/x-bzip2"),
    ("txz", "application/x-xz"),
    ("zst", "application/zstd"),
    ("gem", UNKNOWN),
    ("crate", "application/gzip"),
    ("nupkg", "application/zip"),
    ("conda", "application/zip"),
    ("appimage", UNKNOWN),
    ("qcow2", UNKNOWN),
    ("sha256", "text/plain"),
    ("sha512", "text/plain"),
    ("md5", "text/plain"),
    ("minisig", "text/plain"),
];

/// The type by the file's name, then upstream's, then none in particular.
pub fn of(path: &ArtifactPath, upstream: Option<&str>) -> Cow<'static, str> {
    match (by_name(path.file_name()), upstream) {
        (Some(by_name), _) => by_name.into(),
        (None, Some(upstream)) => upstream.to_owned().into(),
        (None, None) => UNKNOWN.into(),
    }
}

/// Whether a web page can be what a path names: a folder's listing, a name that is a page's, and
/// in a format that knows no names, one that tells nothing.
pub fn may_be_page(format: &dyn PackageFormat, path: &ArtifactPath) -> bool {
    let name = path.file_name();
    if name.is_empty() {
        return true;
    }
    match by_name(name) {
        Some(by_name) => is_html(by_name) || is_script(name),
        None => !format.knows_names(),
    }
}

/// Whether a server most likely makes a page when it is asked for a file of this name.
fn is_script(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ["php", "asp", "aspx", "jsp", "cgi"].iter().any(|script| ending.eq_ignore_ascii_case(script))
}

/// Whether this media type, with parameters or without, is that of web pages.
pub fn is_html(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    ["text/html", "application/xhtml+xml"].iter().any(|html| essence.eq_ignore_ascii_case(html))
}

fn by_name(name: &str) -> Option<&'static str> {
    ours(name).or_else(|| mime_guess::from_path(name).first_raw())
}

fn ours(name: &str) -> Option<&'static str> {
    let (_, ending) = name.rsplit_once('.')?;
    let found = OURS.iter().find(|(known, _)| known.eq_ignore_ascii_case(ending))?;
    Some(found.1)
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
        // The last dot's ending, in any case; a folder's name tells nothing.
        check("a/b-1.2-3.x86_64.RPM", Some("text/html"), "application/x-rpm");
        check("a.rpm/b", Some("text/html"), "text/html");
    }

    #[test]
    fn packages_and_what_lies_beside_them_are_not_taken_for_something_else() {
        let check = |name: &str, value| {
            let path = ArtifactPath::from_canonical(format!("a/{name}")).unwrap();
            assert_eq!(of(&path, None), value, "{path}");
        };
        check("bash-5.1.8-9.el9.x86_64.rpm", "application/x-rpm");
        check("hello_2.10-3_amd64.deb", "application/vnd.debian.binary-package");
        check("curl-8.9.0-r0.apk", "application/octet-stream");
        check("hello_2.10-3.dsc", "text/plain");
        check("builder@example.org-4a6a0840.rsa.pub", "text/plain");
        check("hello_2.10.orig.tar.xz.asc", "application/pgp-signature");
        check("tool-1.2.tgz", "application/gzip");
        check("updateinfo.xml.zst", "application/zstd");
        check("Packages.xz", "application/x-xz");
        check("tool-1.2-py3-none-any.whl", "application/zip");
    }
}

//! Web pages in a file's place.
//!
//! A captive portal, a login form, a proxy's notice or a shop that has moved answers every path
//! with 200 and a page. A package or an index is no page, so that answer is a failure like any
//! other: a stored copy stands in, a mirror is asked, and nothing of it is kept.

use std::io::{Cursor, ErrorKind, Read};
use std::sync::Arc;

use super::{Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest};
use crate::artifact::ArtifactPath;
use crate::formats::PackageFormat;
use crate::policy::media_type;

/// How much of a body is looked at, in bytes.
const LOOK_BYTES: usize = 512;

/// With what an HTML document begins, behind white space and in any case: the tags of the table
/// in section 7.1 of the MIME Sniffing Standard (WHATWG) that stand at a document's start.
const BEGINNINGS: &[&[u8]] = &[
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<script",
    b"<iframe",
    b"<title",
    b"<style",
    b"<meta",
    b"<body",
    b"<!--",
];

/// An upstream whose web pages are taken for files only where a page was asked for.
#[derive(Debug)]
pub struct NoPages {
    inner: Arc<dyn Upstream>,
    host: String,
    format: &'static dyn PackageFormat,
}

impl NoPages {
    /// Judges what `inner`, which is `host`, says of files of a format.
    pub fn new(inner: Arc<dyn Upstream>, host: String, format: &'static dyn PackageFormat) -> Self {
        Self { inner, host, format }
    }

    fn judge(
        &self,
        path: &ArtifactPath,
        head: UpstreamHead,
        mut body: Box<dyn UpstreamBody>,
    ) -> Result<UpstreamReply, UpstreamError> {
        let is_typed = head.content_type.as_deref().is_some_and(media_type::is_html);
        if !is_typed || media_type::may_be_page(self.format, path) {
            return Ok(UpstreamReply::Found(head, body));
        }
        let nonsense = |reason| UpstreamError::Protocol { host: self.host.clone(), reason };
        let start = beginning(&mut *body)
            .map_err(|error| nonsense(format!("the body broke off: {error}")))?;
        if is_page(&start) {
            let reason = "a web page in place of the file (a login, a portal, a notice?)";
            return Err(nonsense(reason.to_owned()));
        }
        Ok(UpstreamReply::Found(head, Box::new(Begun { start: Cursor::new(start), rest: body })))
    }
}

impl Upstream for NoPages {
    fn get(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError> {
        match self.inner.get(request)? {
            UpstreamReply::Found(head, body) if head.part_from.is_none() => {
                self.judge(request.path, head, body)
            }
            reply => Ok(reply),
        }
    }

    fn failing(&self) -> usize {
        self.inner.failing()
    }
}

fn beginning(body: &mut dyn UpstreamBody) -> std::io::Result<Vec<u8>> {
    let mut start = vec![0; LOOK_BYTES];
    let mut filled = 0;
    while filled < start.len() {
        match body.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    start.truncate(filled);
    Ok(start)
}

fn is_page(start: &[u8]) -> bool {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    BEGINNINGS.iter().any(|beginning| {
        text.get(..beginning.len()).is_some_and(|text| text.eq_ignore_ascii_case(beginning))
    })
}

/// A body whose beginning was read already.
struct Begun {
    start: Cursor<Vec<u8>>,
    rest: Box<dyn UpstreamBody>,
}

impl Read for Begun {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self.start.read(buf)? {
            0 => self.rest.read(buf),
            read => Ok(read),
        }
    }
}

impl UpstreamBody for Begun {
    fn is_framed(&self) -> bool {
        self.rest.is_framed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats;
    use crate::upstream::scripted::{File, Scripted};

    const PAGE: &str = "\u{feff}\n <!DOCTYPE html><title>Sign in</title>";

    fn ask(format: &str, path: &str, file: File) -> Result<Vec<u8>, UpstreamError> {
        let inner = Arc::new(Scripted::new().file(path, file));
        let format = formats::named(format).unwrap();
        let upstream = NoPages::new(inner, "files.example.org".to_owned(), format);
        let path = ArtifactPath::from_canonical(path).unwrap();
        match upstream.get(&UpstreamRequest { path: &path, unless: None, part: None })? {
            UpstreamReply::Found(_, mut body) => {
                let mut bytes = Vec::new();
                body.read_to_end(&mut bytes).unwrap();
                assert!(body.is_framed());
                Ok(bytes)
            }
            reply => panic!("{reply:?}"),
        }
    }

    #[test]
    fn a_page_is_taken_for_a_file_only_where_one_was_asked_for() {
        let check = |format: &str, path: &str, is_file: bool| {
            let file = File::of(PAGE).content_type("text/html; charset=utf-8");
            match ask(format, path, file) {
                Ok(bytes) => assert!(is_file && bytes == PAGE.as_bytes(), "{format} {path}"),
                Err(error) => {
                    assert!(!is_file && error.is_failure(), "{format} {path}: {error}");
                    assert!(error.to_string().contains("web page"), "{error}");
                }
            }
        };
        for (format, path) in [
            ("deb", "pool/main/h/hello/hello_2.10-3_amd64.deb"),
            ("deb", "dists/bookworm/InRelease"),
            ("rpm", "9/BaseOS/x86_64/os/repodata/repomd.xml"),
            ("rpm", "mirrorlist?repo=baseos"),
            ("alpine", "v3.20/main/x86_64/APKINDEX.tar.gz"),
            ("generic", "tool/1.2/tool-1.2.tar.gz"),
            ("generic", "tool/1.2/checksums.txt?raw=true"),
        ] {
            check(format, path, false);
        }
        for (format, path) in [
            ("deb", "pool/main/h/hello/"),
            ("alpine", "v3.20/releases/notes.html"),
            ("generic", "simple/tool/"),
            ("generic", "simple/tool"),
            ("generic", "vault/1.17.2"),
            ("generic", "docs/index.HTM"),
            ("generic", "docs/index.php"),
        ] {
            check(format, path, true);
        }
    }

    #[test]
    fn a_file_that_is_only_typed_as_a_page_comes_whole() {
        for bytes in [b"!<arch>\n".to_vec(), b"<?xml?><repomd/>".to_vec(), vec![], vec![7; 5000]] {
            let file = File::of(bytes.clone()).content_type("text/html").in_pieces_of(100);
            assert_eq!(ask("deb", "pool/a_1_amd64.deb", file).unwrap(), bytes);
        }
        let typed_otherwise = File::of(PAGE).content_type("text/plain");
        assert_eq!(ask("deb", "pool/a_1_amd64.deb", typed_otherwise).unwrap(), PAGE.as_bytes());
    }

    #[test]
    fn a_page_that_breaks_off_is_a_failure() {
        let file = File::of(PAGE).content_type("text/html").broken_at(5, ErrorKind::TimedOut);
        let error = ask("deb", "pool/a_1_amd64.deb", file).unwrap_err();
        assert!(error.is_failure() && error.to_string().contains("broke off"), "{error}");
    }
}

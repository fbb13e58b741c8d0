//! Web pages in a file's place.
//!
//! A captive portal, a login form, a proxy's notice or a shop that has moved answers every path
//! with 200 and a page. A package or an index is no page, so that answer is a failure: a stored copy
//! stands in, a mirror is asked, and nothing of it is kept.

use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::{Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest};
use crate::artifact::ArtifactPath;
use crate::formats::PackageFormat;
use crate::policy::media_type;

/// How much of a body is looked at, in bytes, and how much has to be there for that.
const LOOK_BYTES_MAX: usize = 512;
const LOOK_BYTES_MIN: usize = 64;

/// With what an HTML document begins, behind white space and in any case: the longer ones of the
/// table in section 7.1 of the MIME Sniffing Standard (WHATWG), and what portals begin with.
const BEGINNINGS: &[&str] = &[
    "<!doctype html",
    "<html",
    "<head",
    "<script",
    "<noscript",
    "<iframe",
    "<h1",
    "<div",
    "<font",
    "<table",
    "<style",
    "<title",
    "<body",
    "<center",
    "<br",
    "<p>",
    "<meta",
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
        let is_known = self.format.knows_names() && head.content_encoding.is_none();
        if !is_typed && !is_known || media_type::may_be_page(self.format, path) {
            return Ok(UpstreamReply::Found(head, body));
        }
        let (start, broken) = beginning(&mut *body);
        if is_page(&start) {
            return Err(UpstreamError::Page { host: self.host.clone() });
        }
        let body = Begun { start: Cursor::new(start), broken, rest: body };
        Ok(UpstreamReply::Found(head, Box::new(body)))
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

/// What comes first, and what ended it, if it did not end well.
fn beginning(body: &mut dyn UpstreamBody) -> (Vec<u8>, Option<io::Error>) {
    let mut start = vec![0; LOOK_BYTES_MAX];
    let (mut filled, mut broken) = (0, None);
    while filled < LOOK_BYTES_MIN && may_become_page(&start[..filled]) {
        match body.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    start.truncate(filled);
    (start, broken)
}

/// What a text begins with, behind a byte order mark and white space.
fn beyond_blanks(start: &[u8]) -> &[u8] {
    start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start()
}

fn may_become_page(start: &[u8]) -> bool {
    matches!(beyond_blanks(start), [] | [b'<', ..] | [0xef, ..])
}

fn is_page(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(beyond_blanks(start)).to_ascii_lowercase();
    // XHTML may be declared as XML.
    match text.strip_prefix("<?xml").and_then(|declared| declared.split_once("?>")) {
        Some((_, root)) => begins(root.trim_start()),
        None => begins(&text),
    }
}

fn begins(text: &str) -> bool {
    BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// A body whose beginning was read already.
struct Begun {
    start: Cursor<Vec<u8>>,
    broken: Option<io::Error>,
    rest: Box<dyn UpstreamBody>,
}

impl Read for Begun {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.start.read(buf)? {
            0 => self.broken.take().map_or_else(|| self.rest.read(buf), Err),
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
            ("generic", "docs/index.aspx"),
        ] {
            check(format, path, true);
        }
    }

    #[test]
    fn a_file_that_is_only_typed_as_a_page_comes_whole() {
        let archive = [b"!<arch>\n".as_slice(), &[7; 5000]].concat();
        for (format, path, bytes) in [
            ("deb", "pool/a_1_amd64.deb", archive.clone()),
            ("deb", "dists/a/InRelease", Vec::new()),
            ("rpm", "repodata/repomd.xml", b"<?xml?><repomd/>".to_vec()),
            ("generic", "a.zip", vec![7; 5000]),
            ("generic", "a.deb", b"none, but nobody knows".to_vec()),
        ] {
            let file = File::of(bytes.clone()).content_type("text/html").in_pieces_of(100);
            assert_eq!(ask(format, path, file).unwrap(), bytes, "{path}");
        }
    }

    #[test]
    fn in_a_format_that_knows_its_names_a_page_may_be_typed_as_anything() {
        let typed = |text: &str| File::of(text).content_type("application/octet-stream");
        for path in ["dists/a/InRelease", "pool/h/hello_2.10-3_amd64.deb"] {
            assert!(matches!(ask("deb", path, File::of(PAGE)), Err(UpstreamError::Page { .. })));
            assert!(matches!(ask("deb", path, typed(PAGE)), Err(UpstreamError::Page { .. })));
        }
        assert!(ask("generic", "notes.txt", typed(PAGE)).is_ok());
    }

    #[test]
    fn what_cannot_become_a_page_is_not_waited_for() {
        let mut body = File::of("!<arch>\n and the rest of the archive");
        body = body.in_pieces_of(3);
        let path = ArtifactPath::from_canonical("a.deb").unwrap();
        let asked = UpstreamRequest { path: &path, unless: None, part: None };
        let Ok(UpstreamReply::Found(_, mut body)) = body.answer(&asked) else { panic!("a body") };
        assert_eq!(beginning(&mut *body).0, b"!<a");
        let Ok(UpstreamReply::Found(_, mut body)) = File::of(PAGE).in_pieces_of(3).answer(&asked)
        else {
            panic!("a body")
        };
        assert_eq!(beginning(&mut *body).0, PAGE.as_bytes());
    }

    #[test]
    fn what_begins_like_a_page_is_one_and_what_xml_begins_with_is_none() {
        let check =
            |text: &str, expected: bool| assert_eq!(is_page(text.as_bytes()), expected, "{text}");
        check(
            "<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\">",
            true,
        );
        check("\t<p>Please sign in", true);
        check("<!-- a comment --><project/>", false);
        check("<H1>Not here</H1>", true);
        check("<?xml version=\"1.0\"?><!-- a comment --><repomd/>", false);
        check("<repomd xmlns=\"http://linux.example.org/\">", false);
        check("<?xml never ends", false);
        check("#!/bin/sh", false);
    }

    #[test]
    fn a_beginning_that_breaks_off_is_a_cut_body() {
        let file =
            File::of("!<arch>").content_type("text/html").broken_at(5, io::ErrorKind::TimedOut);
        let upstream = NoPages::new(
            Arc::new(Scripted::new().file("a.deb", file)),
            "files.example.org".to_owned(),
            formats::named("deb").unwrap(),
        );
        let path = ArtifactPath::from_canonical("a.deb").unwrap();
        let asked = UpstreamRequest { path: &path, unless: None, part: None };
        let Ok(UpstreamReply::Found(_, mut body)) = upstream.get(&asked) else { panic!("a body") };
        let mut bytes = Vec::new();
        let error = body.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(
            (error.kind(), bytes.as_slice()),
            (io::ErrorKind::TimedOut, b"!<arc".as_slice())
        );
    }
}

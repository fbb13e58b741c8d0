//! Every kind of listing, in the shape in which its servers make it, and broken ones.

use std::io::{Cursor, Read, Write};
use std::ops::ControlFlow;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use url::Url;

use super::unpack::{Bounded, Packing, unpack};
use super::*;

fn boxed(bytes: impl Into<Vec<u8>>) -> Box<dyn Read> {
    Box::new(Cursor::new(bytes.into()))
}

/// Reads with a parser and gives what it shows, as `path size`.
fn shown(
    parse: impl FnOnce(Visit<'_>) -> Result<(), ListingError>,
) -> Result<Vec<String>, ListingError> {
    let mut shown = Vec::new();
    parse(&mut |listed| {
        let size = listed.size.map_or("-".to_owned(), |size| size.to_string());
        shown.push(format!("{} {size}", listed.path));
        ControlFlow::Continue(())
    })?;
    Ok(shown)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A member of a tar archive (POSIX ustar), without the blocks that end an archive.
fn tar_member(name: &str, text: &[u8]) -> Vec<u8> {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    let size = format!("{:011o}", text.len());
    block[124..135].copy_from_slice(size.as_bytes());
    block[156] = b'0';
    block[257..262].copy_from_slice(b"ustar");
    let mut member = [&block, text].concat();
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

/// An APKINDEX as it is signed: a gzip member with the signature, then one with the index.
fn apkindex(text: &str) -> Vec<u8> {
    let signature = gzip(&tar_member(".SIGN.RSA.key.rsa.pub", &[7; 256]));
    let mut index = tar_member("DESCRIPTION", b"v3.20");
    index.extend(tar_member("APKINDEX", text.as_bytes()));
    index.extend([0; 1024]);
    [signature, gzip(&index)].concat()
}

#[test]
fn an_apkindex_names_its_packages() {
    let text = "C:Q1abc=\nP:curl\nV:8.9.0-r0\nA:x86_64\nS:1234\nI:9\nT:URL: retrieval\n\nP:musl\nV:1.2-r1\n\nP:odd\n\nP:..\nV:/x\n\nP:last\nV:1\nS:5\n";
    let index = apkindex(text);
    let found =
        shown(|visit| apk::packages(boxed(index.clone()), "v3.20/main/x86_64/", visit)).unwrap();
    assert_eq!(
        found,
        [
            "v3.20/main/x86_64/curl-8.9.0-r0.apk 1234",
            "v3.20/main/x86_64/musl-1.2-r1.apk -",
            "v3.20/main/x86_64/..-/x.apk -",
            "v3.20/main/x86_64/last-1.apk 5"
        ]
    );
    for cut in [0, 10, index.len() / 2] {
        assert!(shown(|v| apk::packages(boxed(&index[..cut]), "", v)).is_err(), "{cut}");
    }
    let other = gzip(&tar_member("OTHER", b"x"));
    let error = shown(|visit| apk::packages(boxed(other), "", visit)).unwrap_err();
    assert!(error.to_string().contains("no member APKINDEX"), "{error}");
}

const PRIMARY: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="3">
<!-- <package><location href="commented.rpm"/></package> -->
<package type="rpm">
  <name>bash</name><summary>a &lt;shell&gt; <![CDATA[<location href="cdata.rpm"/>]]></summary>
  <size package="1820123" installed="2" archive="3"/>
  <location href="Packages/b/bash-5.2-1.x86_64.rpm"/>
  <format><rpm:provides><rpm:entry name="bash(a>b)"/></rpm:provides></format>
</package>
<package type="rpm"><location href="Packages/l/libstdc%2B%2B&amp;x-1.rpm"/><size package="7"/></package>
<package type="rpm"><location xml:base="http://other.example.org/" href="x.rpm"/></package>
<package type="rpm"><location href="../../outside.rpm"/></package>
</metadata>
"#;

#[test]
fn repodata_names_its_packages() {
    let repomd = r#"<?xml version="1.0"?><repomd xmlns="http://linux.duke.edu/metadata/repo">
        <revision>1</revision>
        <data type="primary"><checksum type="sha256">ab</checksum><location href="repodata/ab-primary.xml.gz"/></data>
        <data type="filelists"><location href='repodata/cd-filelists.xml.zst'/></data></repomd>"#;
    let data = rpm::metadata(repomd.as_bytes(), "9/os/").unwrap();
    let named: Vec<_> = data.iter().map(|d| (d.kind.as_str(), d.path.as_str())).collect();
    assert_eq!(
        named,
        [
            ("primary", "9/os/repodata/ab-primary.xml.gz"),
            ("filelists", "9/os/repodata/cd-filelists.xml.zst")
        ]
    );
    let zstd = ruzstd::encoding::compress_to_vec(
        PRIMARY.as_bytes(),
        ruzstd::encoding::CompressionLevel::Uncompressed,
    );
    for (packing, bytes) in [
        (Packing::Plain, PRIMARY.as_bytes().to_vec()),
        (Packing::Gzip, gzip(PRIMARY.as_bytes())),
        (Packing::Zstd, zstd),
    ] {
        let found = shown(|visit| rpm::packages(boxed(bytes), packing, "9/os/", visit)).unwrap();
        let expected = [
            "9/os/Packages/b/bash-5.2-1.x86_64.rpm 1820123",
            "9/os/Packages/l/libstdc++&x-1.rpm 7",
        ];
        assert_eq!(found, expected, "{packing:?}");
    }
    let half = &repomd.as_bytes()[..repomd.len() / 2];
    assert!(rpm::metadata(half, "").is_err());
    let half = PRIMARY.as_bytes()[..PRIMARY.len() / 2].to_vec();
    assert!(shown(|visit| rpm::packages(boxed(half), Packing::Plain, "", visit)).is_err());
}

/// Two packages, one with an epoch in its file name; made by `xz` from a text of our own.
const PACKAGES_XZ: &str = "
    fd377a585a000004e6d6b4460200210116000000742fe5a3e00074004f5d0028184866dbda3085fe16e55ca8
    78f95c34832681bbe5b46bfbecb7f29f1c8df3d134d8b11385785d9246a60fdb8b1bd8b83df3bb12670864bf
    0646343eadfbb1e4a42b03376628c52b0e08b05a8ce000006e5d2bb224feffb000016b75f482e0861fb6f37d
    010000000004595a
";

#[test]
fn a_release_names_indexes_and_these_their_packages() {
    let release = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nOrigin: Example\nSuite: stable\nMD5Sum:\n aa 10 main/binary-amd64/Packages.gz\nSHA256:\n bb 99 main/binary-amd64/Packages\n bb 10 main/binary-amd64/Packages.gz\n bb 8 main/binary-amd64/Packages.xz\n bb 9 main/binary-amd64/Release\n bb 9 main/binary-all/Packages.bz2\n bb 5 main/i18n/Translation-en.xz\n bb 5 ../../etc/Packages\nDate: x\n cc 5 contrib/binary-amd64/Packages.gz\n-----BEGIN PGP SIGNATURE-----\n";
    let indexes = deb::indexes(release.as_bytes(), "dists/stable/").unwrap();
    let [index] = &indexes[..] else { panic!("{indexes:?}") };
    assert_eq!(index.name, "dists/stable/main/binary-amd64/Packages");
    let files: Vec<_> = index.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
    let name = |end: &str| format!("dists/stable/main/binary-amd64/Packages{end}");
    assert_eq!(files, [(&*name(".xz"), 8), (&*name(".gz"), 10), (&*name(""), 99)]);
    assert!(index.files.iter().all(|file| file.by_hash.is_none()));
    assert!(deb::indexes(&b"<html>not found</html>"[..], "").is_err());

    let xz = unhex(PACKAGES_XZ);
    let expected = ["root/pool/h/hello_1_amd64.deb 5", "root/pool/b/big_1%3a2_amd64.deb 7"];
    let found = shown(|v| deb::packages(boxed(xz.clone()), Packing::Xz, "root/", v)).unwrap();
    assert_eq!(found, expected);
    assert!(shown(|v| deb::packages(boxed(&xz[..90]), Packing::Xz, "", v)).is_err());
    let text = "Filename: ./pool/a.deb\nSize: 1\nDescription: x\n Filename: pool/no.deb\n\n\nFilename: ../up.deb\n";
    let found = shown(|v| deb::packages(boxed(text), Packing::Plain, "", v)).unwrap();
    assert_eq!(found, ["pool/a.deb 1"]);
}

#[test]
fn a_bomb_is_an_error() {
    let mut plain = Bounded::new(std::io::repeat(b'x'), 1000);
    assert!(plain.read_to_end(&mut Vec::new()).is_err());
    // A line without end, from a few KiB.
    let bomb = gzip(&vec![b'x'; 64 << 20]);
    assert!(bomb.len() < 128 << 10);
    let error = shown(|v| deb::packages(boxed(bomb), Packing::Gzip, "", v)).unwrap_err();
    assert!(error.to_string().contains("a line is longer"), "{error}");
    let tag = format!("<a href=\"{}\">", "x".repeat(1 << 20));
    let error = html::links(tag.as_bytes(), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("a tag is longer"), "{error}");
    // A zstd frame that asks for a window of 2 GiB, and an xz file that is none.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    assert!(unpack(boxed(frame), Packing::Zstd).is_err());
    assert!(unpack(boxed("no xz"), Packing::Xz).unwrap().read(&mut [0; 9]).is_err());
}

fn judged(page: &str, folder: &str) -> Vec<String> {
    let bases = [Url::parse("https://files.example.org/pub/").unwrap()];
    let mut found = Vec::new();
    html::links(page.as_bytes(), &mut |href| {
        match links::of_listing(href, folder, &bases) {
            links::Link::File(path) => found.push(path.to_string()),
            links::Link::Folder(path) => found.push(path.to_string()),
            links::Link::Other => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

#[test]
fn listings_of_every_server_are_read() {
    let expected = ["d/1.0/", "d/a b+c.zip", "d/x&y.txt"];
    let nginx = "<html>\r\n<head><title>Index of /pub/d/</title></head>\r\n<body>\r\n<h1>Index of /pub/d/</h1><hr><pre><a href=\"../\">../</a>\r\n<a href=\"1.0/\">1.0/</a>      02-Feb-2026 10:00      -\r\n<a href=\"a%20b+c.zip\">a b+c.zip</a>   02-Feb-2026 10:00    123\r\n<a href=\"x&amp;y.txt\">x&amp;y.txt</a>   02-Feb-2026 10:00    5\r\n</pre><hr></body>\r\n</html>\r\n";
    let apache_plain = "<html><head><title>Index of /pub/d</title></head><body><h1>Index of /pub/d</h1>\n<ul><li><a href=\"/pub/\"> Parent Directory</a></li>\n<li><a href=\"1.0/\"> 1.0/</a></li>\n<li><a href=\"a%20b+c.zip\"> a b+c.zip</a></li>\n<li><a href=\"x&amp;y.txt\"> x&amp;y.txt</a></li>\n</ul>\n</body></html>\n";
    let apache_fancy = "<pre><img src=\"/icons/blank.gif\" alt=\"Icon \"> <a href=\"?C=N;O=D\">Name</a> <a href=\"?C=M;O=A\">Last modified</a><hr><img src=\"/icons/back.gif\" alt=\"[PARENTDIR]\"> <a href=\"/pub/\">Parent Directory</a>   -\n<img src=\"/icons/folder.gif\" alt=\"[DIR]\"> <a href=\"1.0/\">1.0/</a>  2026-02-02 10:00    -\n<img src=\"/icons/compressed.gif\" alt=\"[   ]\"> <a href=\"a%20b+c.zip\">a b+c.zip</a> 2026-02-02 10:00  1.2K\n<img src=\"/icons/text.gif\" alt=\"[TXT]\"> <a href=\"x&amp;y.txt\">x&amp;y.txt</a> 2026-02-02 10:00  5\n<hr></pre><address>Apache Server at files.example.org Port 443</address>";
    let apache_table = "<table><tr><th><a href=\"?C=N;O=D\">Name</a></th></tr><tr><td valign=\"top\"><img src=\"/icons/back.gif\" alt=\"[PARENTDIR]\"></td><td><a href=\"/pub/\">Parent Directory</a></td></tr>\n<tr><td><a href=\"1.0/\">1.0/</a></td><td align=\"right\">2026-02-02 10:00  </td></tr>\n<tr><td><a href=\"a%20b+c.zip\">a b+c.zip</a></td></tr><tr><td><A HREF='x&#38;y.txt'>x&amp;y.txt</A></td></tr></table>";
    let caddy = "<!DOCTYPE html>\n<html><head><style>a > b { content: \"<a href='no'>\" }</style></head><body><!-- <a href=\"commented\"> --><div class=\"breadcrumbs\"><a href=\"../\">pub</a><a href=\"./?layout=grid\">Grid</a></div><tr class=\"file\"><td><a href=\"./1.0/\"><span class=\"name\">1.0/</span></a></td></tr><tr class=\"file\"><td><a href=\"./a%20b&#43;c.zip\"></a></td></tr><tr><td><a href=./x&amp;y.txt></a></td></tr><script>if (1 <a && b> 2) { \"<a href='script'>\" }</script><a rel=\"noopener\" href=\"https://caddyserver.example.org\">Caddy</a></body></html>";
    for (server, page) in [
        ("nginx", nginx),
        ("Apache, plain", apache_plain),
        ("Apache, fancy", apache_fancy),
        ("Apache, table", apache_table),
        ("Caddy", caddy),
    ] {
        assert_eq!(judged(page, "d/"), expected, "{server}");
    }
}

#[test]
fn links_are_relative_to_what_a_page_says() {
    let page =
        "<head><base href=\"/pub/d/real/\"><base href=/no/></head><a href=x><a href='..\\y'>";
    assert_eq!(judged(page, "d/"), ["d/real/x"]);
    assert_eq!(judged("<base href='https://other.example.org/pub/d/'><a href=x>", "d/").len(), 0);
}

#[test]
fn a_comment_or_a_script_without_end_is_malformed() {
    for page in ["<!-- <a href='x'>", "<script> x", "<a href='x", "<![CDATA[ x"] {
        let read = html::links(page.as_bytes(), &mut |_| ControlFlow::Continue(()));
        assert!(matches!(read, Err(ListingError::Malformed(_))), "{page}");
    }
    assert_eq!(
        judged("<!----><a href='x'><!-- a --- > --><a href=y><!-->-->", "d/"),
        ["d/x", "d/y"]
    );
}

#[test]
fn an_index_of_products_names_its_builds() {
    let bases = [Url::parse("https://releases.example.org/").unwrap()];
    let product = r#"{"name": "tool", "versions": {"1.0.0": {"name": "tool", "version": "1.0.0", "shasums": "x",
        "builds": [{"os": "linux", "arch": "amd64", "filename": "tool_1.zip", "url": "https://releases.example.org/tool/1.0.0/tool_1.zip"},
                   {"os": "linux", "url": "https://evil.example.org/tool/x.zip"}, {"os": "none"}]}}}"#;
    let all = format!("{{\"tool\": {product}, \"n\": [1, {{}}], \"b\": null, \"c\": -1.5}}");
    for text in [product, &all] {
        let mut seen = hashicorp::Seen::default();
        let found = shown(|visit| {
            hashicorp::builds(text.as_bytes(), "", &bases, visit).map(|its| seen = its)
        });
        assert_eq!(found.unwrap(), ["tool/1.0.0/tool_1.zip -", "tool/1.0.0/x -"]);
        assert_eq!(seen, hashicorp::Seen { lists: 1, outside: 2 });
    }
    let mut ignore = |_| ControlFlow::Continue(());
    let other = hashicorp::builds(&b"{\"name\": 1}"[..], "", &bases, &mut ignore).unwrap();
    assert_eq!(other, hashicorp::Seen::default());
    assert!(hashicorp::builds(&product.as_bytes()[..99], "", &bases, &mut ignore).is_err());
    let deep = "[".repeat(100_000);
    assert!(hashicorp::builds(deep.as_bytes(), "", &bases, &mut ignore).is_err());
}

#[test]
fn a_mirrors_index_names_builds_and_checksums_by_product_and_version() {
    let bases = [Url::parse("https://mirror.example.org/hc/").unwrap()];
    let version = r#"{"shasums": "t_SUMS", "shasums_signature": "t_SUMS.sig",
        "shasums_signatures": ["t_SUMS.sig", "t_SUMS.7.sig", 1, {"a": 1}], "builds": [
        {"filename": "t.zip", "url": "https://releases.example.org/t/1/t.zip"},
        {"filename": "../up.zip", "url": "https://releases.example.org/t/1/up.zip"}]}"#;
    let product = format!("{{\"versions\": {{\"1\": {version}}}}}");
    let all = format!("{{\"t\": {product}}}");
    for (folder, text) in [("t/1/", version), ("t/", &*product), ("", &*all)] {
        let mut seen = hashicorp::Seen::default();
        let found = shown(|visit| {
            hashicorp::builds(text.as_bytes(), folder, &bases, visit).map(|its| seen = its)
        });
        let names = ["t.zip", "t_SUMS", "t_SUMS.sig", "t_SUMS.sig", "t_SUMS.7.sig"];
        assert_eq!(found.unwrap(), names.map(|name| format!("t/1/{name} -")), "{folder}");
        assert_eq!(seen, hashicorp::Seen { lists: 1, outside: 1 });
    }
}

#[test]
fn indexes_are_known_by_their_checksums_and_flat_ones_by_their_name() {
    let release = "MD5Sum:\n aa 10 ./Packages.gz\nSHA256:\n b0b 10 Packages.gz\n ../x 3 Packages\nAcquire-By-Hash: yes\n";
    let indexes = deb::indexes(release.as_bytes(), "flat/").unwrap();
    let [index] = &indexes[..] else { panic!("{indexes:?}") };
    let files: Vec<_> = index
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.by_hash.as_ref().map(ArtifactPath::as_str)))
        .collect();
    let expected = [("flat/Packages.gz", Some("flat/by-hash/SHA256/b0b")), ("flat/Packages", None)];
    assert_eq!(files, expected);
    let root = deb::indexes(release.as_bytes(), "").unwrap();
    let by_hash = root[0].files[0].by_hash.as_ref().unwrap();
    assert_eq!(by_hash.as_str(), "by-hash/SHA256/b0b");
}

#[test]
fn a_page_of_releases_names_its_assets() {
    let bases = [Url::parse("https://github.example.org/").unwrap()];
    let at = github::Bases { bases: &bases, mirrored: None };
    let page = r#"[{"tag_name": "v1", "author": {"login": "x"}, "assets": [
        {"name": "a.tgz", "size": 12, "browser_download_url": "https://github.example.org/o/r/releases/download/v1/a.tgz"},
        {"name": "b.tgz", "size": null, "browser_download_url": "https://evil.example.org/o/r/b.tgz"}]},
        {"tag_name": "v0"}]"#;
    let mut seen = github::Seen::default();
    let found = shown(|visit| github::assets(page.as_bytes(), at, visit).map(|its| seen = its));
    assert_eq!(found.unwrap(), ["o/r/releases/download/v1/a.tgz 12"]);
    assert_eq!(seen.outside, 1);
    let limited = r#"{"message": "API rate limit exceeded"}"#;
    let error = shown(|visit| github::assets(limited.as_bytes(), at, visit).map(drop));
    assert!(error.unwrap_err().to_string().contains("a list of releases"));
    let elsewhere = [Url::parse("https://mirror.example.org/gh/").unwrap()];
    let check = |mirrored, expected: &[&str]| {
        let at = github::Bases { bases: &elsewhere, mirrored: Some(mirrored) };
        let found = shown(|visit| github::assets(page.as_bytes(), at, visit).map(drop));
        assert_eq!(found.unwrap(), expected, "{mirrored}");
    };
    check("o/r/", &["o/r/releases/download/v1/a.tgz 12"]);
    check("o/s/", &[]);
    assert_eq!(github::first_page("o", "r").unwrap().as_str(), "repos/o/r/releases?per_page=100");
    assert!(github::first_page("..", "r").is_none() && github::first_page("o", "a?b").is_none());
}

proptest! {
    #[test]
    fn no_listing_makes_a_parser_panic_or_lead_outside(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        markup in "(<a href=\"[a-z./%?#&;:]{0,12}\">|<!--|-->|<[a-z/!?]{0,5}|[<>\"'=&]|x){0,40}",
        lines in "((P|V|S|Filename|Size|SHA256):[a-z0-9/. ]{0,12}\n| a 1 [a-z./]{0,20}\n|\n){0,20}",
    ) {
        let base = [Url::parse("https://files.example.org/pub/").unwrap()];
        for text in [bytes.as_slice(), markup.as_bytes(), lines.as_bytes()] {
            let mut keep = |listed: Listed| {
                assert!(!listed.path.as_str().split('/').any(|part| part == ".." || part == "."));
                ControlFlow::Continue(())
            };
            let member = tar_member("APKINDEX", text);
            for packed in [gzip(text), gzip(&member), text.to_vec()] {
                let _ = apk::packages(boxed(packed), "d/", &mut keep);
            }
            for packing in [Packing::Plain, Packing::Gzip, Packing::Xz, Packing::Zstd] {
                let _ = deb::packages(boxed(text), packing, "", &mut keep);
                let _ = rpm::packages(boxed(text), packing, "d/", &mut keep);
            }
            let _ = deb::indexes(text, "dists/x/");
            let _ = rpm::metadata(text, "");
            let _ = hashicorp::builds(text, "d/", &base, &mut keep);
            let _ = github::assets(text, github::Bases { bases: &base, mirrored: Some("d/") }, &mut keep);
            let _ = html::links(text, &mut |href| {
                if let links::Link::File(path) | links::Link::Folder(path) =
                    links::of_listing(href, "d/", &base)
                {
                    assert!(path.as_str().starts_with("d/"), "{href:?}");
                }
                ControlFlow::Continue(())
            });
        }
    }

    #[test]
    fn no_link_header_and_no_pattern_makes_a_reader_panic(text in "\\PC{0,60}") {
        let _ = github::next_page(&text, &Url::parse("https://api.example.org/").unwrap());
        for folder in prefix::folders([text.as_str()]) {
            prop_assert!(folder.is_empty() || folder.ends_with('/'));
        }
        for folder in prefix::beginnings([text.as_str()]) {
            prop_assert!(folder.is_empty() || folder.ends_with('/'));
        }
    }
}

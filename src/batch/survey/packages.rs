//! Package repositories: their indexes say what they have.

use std::io::BufReader;

use super::ask::Asked;
use super::folders::Crawl;
use super::{Survey, SurveyError, ancestors, within};
use crate::discovery::unpack::Packing;
use crate::discovery::{Listed, ListingError, apk, deb, rpm};

impl Survey<'_> {
    pub(super) fn apk(&mut self, folder: &str) -> Result<(), SurveyError> {
        if self.apk_index(folder)? { Ok(()) } else { self.crawl(folder, Crawl::Apk) }
    }

    pub(super) fn apk_index(&mut self, folder: &str) -> Result<bool, SurveyError> {
        let path = within(folder, apk::INDEX)?;
        let Asked::Given(_, body) = self.ask(&path)? else { return Ok(false) };
        self.seen.insert(folder.to_owned());
        let read = apk::packages(body, folder, &mut |listed| self.keep(listed));
        self.read(&path, read)?;
        // An index that can't be read is nothing to cache.
        self.keep_path(&path);
        Ok(true)
    }

    pub(super) fn rpm(&mut self, folder: &str) -> Result<(), SurveyError> {
        let mut failed = None;
        // The pattern may lead deep into a repository, whose root is somewhere above.
        for root in ancestors(folder) {
            match self.rpm_repository(root) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // A server that can't say whether it has a repository here may have one above.
                Err(error @ SurveyError::Upstream { .. }) => drop(failed.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        match (self.crawl(folder, Crawl::Rpm), failed) {
            (Err(SurveyError::NotOffered(_)), Some(error)) => Err(error),
            (crawled, _) => crawled,
        }
    }

    pub(super) fn rpm_repository(&mut self, root: &str) -> Result<bool, SurveyError> {
        let path = within(root, "repodata/repomd.xml")?;
        let Asked::Given(_, body) = self.ask(&path)? else { return Ok(false) };
        self.seen.insert(root.to_owned());
        let metadata = self.read(&path, rpm::metadata(BufReader::new(body), root))?;
        self.keep_path(&path);
        metadata.iter().for_each(|data| self.keep_path(&data.path));
        for data in metadata.iter().filter(|data| data.kind == "primary") {
            let what = data.path.as_str();
            let packing = self.read(&data.path, packing_of(what))?;
            let body = match self.ask(&data.path)? {
                Asked::Given(_, body) => body,
                Asked::Withheld(why) => {
                    self.leave_out(format!("{what}, which {path} names, is not given: {why}"));
                    continue;
                }
            };
            let read = rpm::packages(body, packing, root, &mut |listed| self.keep(listed));
            self.read(&data.path, read)?;
        }
        Ok(true)
    }

    pub(super) fn deb(&mut self, folder: &str) -> Result<(), SurveyError> {
        if let Some(suite) = suite_in(folder) {
            if self.deb_suite(suite)? {
                return Ok(());
            }
            return self.crawl(folder, Crawl::Deb);
        }
        let root = folder.find("pool/").filter(|at| *at == 0 || folder[..*at].ends_with('/'));
        let roots = match root {
            Some(at) => vec![&folder[..at]],
            None => ancestors(folder).collect(),
        };
        for root in roots {
            match self.crawl(&format!("{root}dists/"), Crawl::Deb) {
                Err(SurveyError::NotOffered(_)) => {}
                crawled => return crawled,
            }
        }
        self.crawl(folder, Crawl::Deb)
    }

    pub(super) fn deb_suite(&mut self, suite: &str) -> Result<bool, SurveyError> {
        let root = suite.find("dists/").map_or(suite, |at| &suite[..at]);
        for name in ["InRelease", "Release"] {
            let path = within(suite, name)?;
            let Asked::Given(_, body) = self.ask(&path)? else { continue };
            self.keep_path(&path);
            let indexes = self.read(&path, deb::indexes(BufReader::new(body), suite))?;
            for Listed { path, size } in indexes {
                let packing = self.read(&path, packing_of(path.as_str()))?;
                // A Release may name indexes that are not there.
                let Asked::Given(_, body) = self.ask(&path)? else { continue };
                let _ = self.keep(Listed { path: path.clone(), size });
                let read = deb::packages(body, packing, root, &mut |listed| self.keep(listed));
                self.read(&path, read)?;
            }
            return Ok(true);
        }
        Ok(false)
    }
}

fn packing_of(name: &str) -> Result<Packing, ListingError> {
    Packing::of(name).ok_or_else(|| {
        ListingError::Malformed("it is compressed in a way that is not supported".to_owned())
    })
}

/// The folder of the suite that a folder lies in: up to what follows `dists/`.
fn suite_in(folder: &str) -> Option<&str> {
    let at = folder.find("dists/").filter(|at| *at == 0 || folder[..*at].ends_with('/'))?;
    let name = at + "dists/".len();
    let end = name + folder[name..].find('/')? + 1;
    Some(&folder[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_found_in_paths() {
        let check = |folder: &str, suite: Option<&str>| {
            assert_eq!(suite_in(folder), suite, "{folder}");
        };
        check("dists/bookworm/main/binary-amd64/", Some("dists/bookworm/"));
        check("debian/dists/bookworm/", Some("debian/dists/bookworm/"));
        check("dists/", None);
        check("pool/main/", None);
        check("mydists/x/", None);
    }
}

//! Debian repositories: suites below `dists/`, flat ones, and what may lead to them.

use std::io::BufReader;

use super::ask::{Asked, is_html};
use super::folders::Crawl;
use super::{Survey, SurveyError, ancestors, shown, within};
use crate::artifact::ArtifactPath;
use crate::discovery::unpack::Packing;
use crate::discovery::{Listed, deb, prefix};

impl Survey<'_> {
    /// Packages are named from a root, by the suites in its `dists/`; a pattern may name a
    /// suite, a place in the pool, or neither.
    pub(super) fn deb(&mut self, folder: &str) -> Result<(), SurveyError> {
        if let Some(suite) = deb::suite_in(folder) {
            if self.deb_suite(suite)? {
                return Ok(());
            }
            return self.crawl(folder, Crawl::Deb);
        }
        let roots = match deb::root_of(folder) {
            // What lies in a pool was named by the suites beside it, and few pools are listed.
            Some(root) if self.deb_roots.contains(root) => return Ok(()),
            Some(root) => vec![root],
            None => ancestors(folder).collect(),
        };
        for root in &roots {
            match self.crawl(&format!("{root}dists/"), Crawl::Deb) {
                Err(SurveyError::NotOffered(_)) => {}
                crawled => {
                    crawled?;
                    // A flat repository may lie beside it.
                    if folder != *root && deb::root_of(folder).is_none() {
                        let looked = self.flat_repository(folder);
                        self.tolerate(looked)?;
                    }
                    return Ok(());
                }
            }
        }
        for root in &roots {
            if self.known_suites(root)? || self.flat_repository(root)? {
                return Ok(());
            }
        }
        match self.crawl(folder, Crawl::Deb) {
            Err(SurveyError::NotOffered(_)) => Err(SurveyError::NotOffered(format!(
                "upstream lists neither {} nor a dists/ beside it, so its suites are not known: begin the pattern, or an alternative of it, with ^dists/<suite>/, as in ^(dists/<suite>/|pool/)",
                shown(folder)
            ))),
            crawled => crawled,
        }
    }

    /// Reads the suites below a root that the remote's own patterns name; `false` where there
    /// are none.
    fn known_suites(&mut self, root: &str) -> Result<bool, SurveyError> {
        let include = self.source.target.remote.patterns.include();
        let mut is_known = false;
        for folder in prefix::beginnings(include.iter().map(String::as_str)) {
            let suite = deb::suite_in(&folder).filter(|suite| deb::root_of(suite) == Some(root));
            if let Some(suite) = suite {
                is_known |= self.deb_suite(suite)?;
            }
        }
        Ok(is_known)
    }

    /// Reads a flat repository that nothing has named; `false` where there is none. Many servers
    /// answer with a page whatever they are asked: what is no index is none.
    fn flat_repository(&mut self, root: &str) -> Result<bool, SurveyError> {
        match self.deb_suite(root) {
            Ok(false) | Err(SurveyError::Listing { .. }) => self.deb_flat(root),
            looked => looked,
        }
    }

    /// Reads a suite, or a flat repository, by its Release; `false` where there is none.
    pub(super) fn deb_suite(&mut self, suite: &str) -> Result<bool, SurveyError> {
        if self.repositories.contains(suite) {
            return Ok(true);
        }
        let root = deb::root_of(suite).unwrap_or(suite);
        for name in deb::RELEASES {
            let path = within(suite, name)?;
            let Asked::Given(_, body) = self.ask(&path)? else { continue };
            self.repositories.insert(suite.to_owned());
            let indexes = self.read(&path, deb::indexes(BufReader::new(body), suite))?;
            self.keep_path(&path);
            self.deb_roots.insert(root.to_owned());
            if indexes.is_empty() {
                self.leave_out(format!("{path} names no Packages that can be read"));
                return Ok(true);
            }
            // A mirror of some architectures keeps the Release that names all of them, so only
            // a suite of which nothing is there is worth a word.
            let mut is_any_there = false;
            for index in &indexes {
                let looked = self.deb_index(index, root);
                is_any_there |= self.tolerate(looked)? != Some(false);
            }
            if !is_any_there {
                self.leave_out(match indexes.as_slice() {
                    [only] => format!("{}, which {path} names, is not there", only.name),
                    [first, ..] => {
                        format!("{} and all else that {path} names is not there", first.name)
                    }
                    [] => unreachable!("it was looked at above"),
                });
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads the index of a folder that has no Release; `false` where there is none.
    pub(super) fn deb_flat(&mut self, folder: &str) -> Result<bool, SurveyError> {
        let root = deb::root_of(folder).unwrap_or(folder);
        for name in deb::FLAT_INDEXES {
            let path = within(folder, name)?;
            let packing = Packing::of(name).expect("each of these is known");
            if self.packages(&path, packing, None, root)? {
                self.repositories.insert(folder.to_owned());
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the first file of an index that can be read, by its name or by its checksum.
    fn deb_index(&mut self, index: &deb::Index, root: &str) -> Result<bool, SurveyError> {
        let mut failed = None;
        for file in &index.files {
            for path in std::iter::once(&file.path).chain(&file.by_hash) {
                match self.packages(path, file.packing, Some(file.size), root) {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(SurveyError::Ended) => return Err(SurveyError::Ended),
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
        }
        failed.map_or(Ok(false), Err)
    }

    fn packages(
        &mut self,
        path: &ArtifactPath,
        packing: Packing,
        size: Option<u64>,
        root: &str,
    ) -> Result<bool, SurveyError> {
        let Asked::Given(head, body) = self.ask(path)? else { return Ok(false) };
        if is_html(&head) {
            return Ok(false);
        }
        let read = deb::packages(body, packing, root, &mut |listed| self.keep(listed));
        self.read(path, read)?;
        let _ = self.keep(Listed { path: path.clone(), size });
        Ok(true)
    }
}

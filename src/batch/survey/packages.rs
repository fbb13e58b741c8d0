//! Alpine and RPM repositories: their indexes say what they have.

use std::io::BufReader;

use super::ask::Asked;
use super::folders::Crawl;
use super::{Survey, SurveyError, ancestors, within};
use crate::discovery::unpack::Packing;
use crate::discovery::{ListingError, apk, rpm};

impl Survey<'_> {
    pub(super) fn apk(&mut self, folder: &str) -> Result<(), SurveyError> {
        if self.apk_index(folder)? { Ok(()) } else { self.crawl(folder, Crawl::Apk) }
    }

    pub(super) fn apk_index(&mut self, folder: &str) -> Result<bool, SurveyError> {
        if self.repositories.contains(folder) {
            return Ok(true);
        }
        let path = within(folder, apk::INDEX)?;
        let Asked::Given(_, body) = self.ask(&path)? else { return Ok(false) };
        self.repositories.insert(folder.to_owned());
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
        if self.repositories.contains(root) {
            return Ok(true);
        }
        let path = within(root, "repodata/repomd.xml")?;
        let Asked::Given(_, body) = self.ask(&path)? else { return Ok(false) };
        self.repositories.insert(root.to_owned());
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
}

fn packing_of(name: &str) -> Result<Packing, ListingError> {
    Packing::of(name).ok_or_else(|| {
        ListingError::Malformed("it is compressed in a way that is not supported".to_owned())
    })
}

//! Folders that list themselves: in an `index.json`, or in HTML, one below the other.

use std::io::BufReader;
use std::ops::ControlFlow;

use super::ask::{Asked, is_html};
use super::{DEPTH_MAX, REQUESTS_MAX, Survey, SurveyError, shown, within};
use crate::artifact::ArtifactPath;
use crate::discovery::links::{Link, of_listing};
use crate::discovery::{ListingError, apk, deb, hashicorp, html};

/// Entries of one HTML listing, which are in memory at once.
const PAGE_ENTRIES_MAX: usize = 100_000;

/// What a folder's HTML listing shows.
#[derive(Debug, Default)]
pub(super) struct Page {
    files: Vec<ArtifactPath>,
    folders: Vec<ArtifactPath>,
}

impl Page {
    fn has_file(&self, names: &[&str]) -> bool {
        self.files.iter().any(|file| names.contains(&file.file_name()))
    }

    fn has_folder(&self, name: &str) -> bool {
        let name_of = |folder: &ArtifactPath| {
            folder.as_str().trim_end_matches('/').rsplit('/').next() == Some(name)
        };
        self.folders.iter().any(name_of)
    }
}

/// What came of looking at a folder.
enum Looked {
    At(Page),
    /// It has no listing; why.
    Nothing(String),
}

/// What a crawl looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crawl {
    Files,
    Apk,
    Rpm,
    Deb,
}

impl Survey<'_> {
    pub(super) fn files(&mut self, folder: &str) -> Result<(), SurveyError> {
        let indexed = self.product_index(folder);
        let failed = match indexed {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(SurveyError::Ended) => return Err(SurveyError::Ended),
            // The folder may be listed in HTML all the same.
            Err(error) => Some(error),
        };
        match (self.crawl(folder, Crawl::Files), failed) {
            (Err(SurveyError::NotOffered(_)), Some(error)) => Err(error),
            // A cut index has named what the listing may not: that is told.
            (Ok(()), Some(error @ SurveyError::Listing { .. })) => {
                self.tolerate::<()>(Err(error)).map(drop)
            }
            (crawled, _) => crawled,
        }
    }

    /// Reads an `index.json`; `false` where there is none that names products.
    fn product_index(&mut self, folder: &str) -> Result<bool, SurveyError> {
        let path = within(folder, hashicorp::INDEX)?;
        let Asked::Given(head, body) = self.ask(&path)? else { return Ok(false) };
        if is_html(&head) {
            return Ok(false);
        }
        let (bases, before) = (self.bases(), self.entries);
        match hashicorp::builds(body, folder, bases, &mut |listed| self.keep(listed)) {
            Ok(seen) => {
                self.left_out.add_outside(seen.outside);
                self.check_bounds().map(|()| seen.lists > 0)
            }
            // Some other JSON, or none.
            Err(ListingError::Malformed(_)) if self.entries == before => Ok(false),
            Err(error) => self.read(&path, Err(error)),
        }
    }

    /// Follows the listings of a folder downwards. One below it that can't be had is told and
    /// costs the others nothing.
    ///
    /// # Errors
    /// [`SurveyError`] where the folder itself has no listing.
    pub(super) fn crawl(&mut self, start: &str, crawl: Crawl) -> Result<(), SurveyError> {
        if !self.seen.insert(start.to_owned()) {
            return Ok(());
        }
        let mut todo = vec![(start.to_owned(), 0)];
        while let Some((folder, depth)) = todo.pop() {
            if self.repositories.contains(&folder) {
                continue;
            }
            let looked = self.page(&folder);
            let page = match looked {
                Ok(Looked::At(page)) => page,
                Ok(Looked::Nothing(why)) if folder == start => {
                    self.seen.remove(start);
                    return Err(not_listed(start, &why));
                }
                Err(error) if folder == start => {
                    self.seen.remove(start);
                    return Err(error);
                }
                Ok(Looked::Nothing(why)) => {
                    self.leave_out(format!("{folder} has no listing: {why}"));
                    continue;
                }
                Err(error) => {
                    self.tolerate::<()>(Err(error))?;
                    continue;
                }
            };
            let looked = self.take(&folder, &page, crawl);
            // What is of no use as a repository is none that could lie further below either.
            let is_repository = self.tolerate(looked)?.unwrap_or(true);
            self.check_bounds()?;
            if is_repository {
                continue;
            }
            if depth == DEPTH_MAX && !page.folders.is_empty() {
                self.leave_out(format!("folders more than {DEPTH_MAX} deep"));
                continue;
            }
            // Popped from the end: turned round, so that folders are taken in their order.
            for folder in page.folders.into_iter().rev() {
                if self.seen.len() >= REQUESTS_MAX {
                    self.left_out.end(format!("more than {REQUESTS_MAX} listings"));
                } else if self.seen.insert(folder.to_string()) {
                    todo.push((folder.to_string(), depth + 1));
                }
            }
        }
        Ok(())
    }

    /// Takes from a folder what the crawl looks for; says whether it is a whole repository,
    /// which nothing below needs a look.
    fn take(&mut self, folder: &str, page: &Page, crawl: Crawl) -> Result<bool, SurveyError> {
        match crawl {
            Crawl::Files => {
                page.files.iter().for_each(|file| self.keep_path(file));
                Ok(false)
            }
            Crawl::Apk => Ok(page.has_file(&[apk::INDEX]) && self.apk_index(folder)?),
            Crawl::Rpm => Ok(page.has_folder("repodata") && self.rpm_repository(folder)?),
            Crawl::Deb => {
                // Where no suite is known, a listed pool tells its files itself.
                page.files.iter().for_each(|file| self.keep_path(file));
                Ok(page.has_file(&deb::RELEASES) && self.deb_suite(folder)?
                    || page.has_file(&deb::FLAT_INDEXES) && self.deb_flat(folder)?)
            }
        }
    }

    /// The HTML listing of a folder, if there is one.
    fn page(&mut self, folder: &str) -> Result<Looked, SurveyError> {
        let path = match folder {
            "" => ArtifactPath::root(),
            folder => within(folder, "")?,
        };
        let (head, body) = match self.ask(&path)? {
            Asked::Given(head, body) => (head, body),
            Asked::Withheld(why) => return Ok(Looked::Nothing(why)),
        };
        if !is_html(&head) {
            return Ok(Looked::Nothing("what upstream answers is no HTML".to_owned()));
        }
        let (bases, mut page, mut is_full) = (self.bases(), Page::default(), false);
        let read = html::links(BufReader::new(body), &mut |href| {
            match of_listing(href, folder, bases) {
                Link::File(file) => page.files.push(file),
                Link::Folder(folder) => page.folders.push(folder),
                Link::Other => {}
            }
            is_full = page.files.len() + page.folders.len() >= PAGE_ENTRIES_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.read(&path, read)?;
        if is_full {
            let folder = shown(folder);
            self.leave_out(format!("{folder} lists more than {PAGE_ENTRIES_MAX} entries"));
        }
        Ok(Looked::At(page))
    }
}

fn not_listed(folder: &str, why: &str) -> SurveyError {
    SurveyError::NotOffered(format!(
        "upstream offers no index and no listing at {} ({why}): begin the pattern with a folder that it lists, or name paths",
        shown(folder)
    ))
}

//! Releases of a repository, as an API lists them.

use super::ask::Asked;
use super::{Survey, SurveyError};
use crate::config::Origin;
use crate::discovery::github;

impl Survey<'_> {
    pub(super) fn releases(&mut self, folder: &str) -> Result<(), SurveyError> {
        let bases = self.bases();
        let (Some(api), Some(upstream), Some(base)) =
            (self.origin().and_then(Origin::releases_api), &self.source.releases, bases.first())
        else {
            return self.files(folder);
        };
        let whole = format!("{}{folder}", base.path());
        let mut names = whole.split('/').filter(|name| !name.is_empty());
        // The last folder of a pattern such as "owner/repo" is not known to be whole.
        let first = names.next().zip(names.next());
        let first = first.and_then(|(owner, repository)| github::first_page(owner, repository));
        let Some(first) = first else {
            let why = "the releases of which repository? Begin the pattern with owner/repository/";
            return Err(SurveyError::NotOffered(why.to_owned()));
        };
        let mut next = Some(first);
        let mut is_first = true;
        while let Some(page) = next.take() {
            let Asked::Given(head, body) = self.ask_of(upstream.as_ref(), &page)? else {
                if is_first {
                    let why = format!("the releases API knows no {}", page.without_query());
                    return Err(SurveyError::NotOffered(why));
                }
                break;
            };
            let read = github::assets(body, bases, &mut |listed| self.keep(listed));
            let seen = self.read(&page, read)?;
            self.left_out.add_outside(seen.outside);
            is_first = false;
            next = head.link.and_then(|link| github::next_page(&link, &api));
        }
        Ok(())
    }
}

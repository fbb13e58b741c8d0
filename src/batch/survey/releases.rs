//! Releases of a repository, as an API lists them.

use super::ask::Asked;
use super::{Survey, SurveyError};
use crate::artifact::ArtifactPath;
use crate::config::Origin;
use crate::discovery::github;
use crate::upstream::UpstreamError;

impl Survey<'_> {
    pub(super) fn releases(&mut self, owner: &str, name: &str) -> Result<(), SurveyError> {
        let (Some(origin), Some(upstream)) = (self.origin(), &self.source.releases) else {
            return Err(SurveyError::NotOffered("the remote has no releases API".to_owned()));
        };
        let unfit = || SurveyError::NotOffered(format!("{owner}/{name} is no repository's name"));
        let first = github::first_page(owner, name).ok_or_else(unfit)?;
        // What mirrors GitHub has its paths, whatever host the API's answers name.
        let mirrored = (!origin.is_github()).then(|| format!("{owner}/{name}/"));
        let mut next = Some(first.clone());
        while let Some(page) = next.take() {
            let (head, body) = match self.ask_of(upstream.as_ref(), &page) {
                Ok(Asked::Given(head, body)) => (head, body),
                Ok(Asked::Withheld(_)) if page == first => {
                    let why = format!("the releases API knows no {}", page.without_query());
                    return Err(SurveyError::NotOffered(why));
                }
                Ok(Asked::Withheld(_)) => break,
                Err(error) => return Err(explained(error, &page, origin)),
            };
            let bases = github::Bases { bases: &origin.bases, mirrored: mirrored.as_deref() };
            let read = github::assets(body, bases, &mut |listed| self.keep(listed));
            let seen = self.read(&page, read)?;
            self.left_out.add_outside(seen.outside);
            let api = origin.releases_api();
            next = head.link.zip(api).and_then(|(link, api)| github::next_page(&link, &api));
        }
        Ok(())
    }
}

/// An API that refuses mostly says why: its limit for who comes without a token is low.
fn explained(error: SurveyError, page: &ArtifactPath, origin: &Origin) -> SurveyError {
    let SurveyError::Upstream {
        source: UpstreamError::Status { host, status: status @ (403 | 429), retry_after, said },
        ..
    } = &error
    else {
        return error;
    };
    let said = said.as_deref().and_then(github::complaint);
    let said = said.map(|said| format!(" ({said:?})")).unwrap_or_default();
    let wait = retry_after.map(|after| format!(" and asks for {} s of patience", after.as_secs()));
    let fix = match origin.auth {
        None => "a token in the remote's auth raises its limit",
        Some(_) => "the remote's auth may have used up its limit, or may not see this repository",
    };
    SurveyError::NotOffered(format!(
        "the releases API at {host} answered {status} to {}{said}{}: {fix}",
        page.without_query(),
        wait.unwrap_or_default()
    ))
}

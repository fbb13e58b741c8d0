//! Where the survey of a batch looks: told by what its pattern, or else the remote's own, begin
//! with.

use crate::discovery::prefix;

/// Where a survey looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Places {
    /// In folders of the remote.
    Folders {
        /// Where the author of a pattern that is not anchored most likely means its matches to
        /// lie. They are looked at first, so that no bound ends the survey before; all of them
        /// lie below `folders`.
        guesses: Vec<String>,
        /// Where all matches lie.
        folders: Vec<String>,
    },
    /// In the releases of repositories.
    Repositories {
        /// Owner and name of each.
        repositories: Vec<(String, String)>,
        /// Whether matches can lie in no others.
        are_all: bool,
    },
}

impl Places {
    /// The folders whose files a batch's pattern and one of the remote's `own` can match.
    pub(super) fn folders(include: &str, own: &[String]) -> Self {
        let own = || own.iter().map(String::as_str);
        let mut folders = prefix::folders([include]);
        if folders == [""] {
            folders = prefix::folders(own());
        }
        let mut guesses = prefix::beginnings([include]);
        if guesses.iter().all(String::is_empty) {
            guesses = prefix::beginnings(own());
        }
        guesses.retain(|guess| {
            folders.iter().any(|folder| folder != guess && guess.starts_with(folder))
        });
        Self::Folders { guesses: prefix::outermost(guesses), folders }
    }

    /// The repositories whose releases these patterns can match; `None` where they name none.
    /// `above` is what paths of the remote lack: `owner/`, `owner/repository/`, or nothing.
    ///
    /// No release lies anywhere but below `owner/repository/`, so the beginning of a pattern
    /// means these, whether it is anchored or not.
    pub(super) fn repositories(include: &str, own: &[String], above: &str) -> Option<Self> {
        let mut repositories = Vec::new();
        let mut add = |folder: &String| {
            let whole = format!("{above}{folder}");
            // What follows the last slash is not known to be whole.
            let mut names = whole.split_inclusive('/').filter_map(|name| name.strip_suffix('/'));
            let (Some(owner), Some(name)) = (names.next(), names.next()) else { return false };
            let repository = (owner.to_owned(), name.to_owned());
            if !repositories.contains(&repository) {
                repositories.push(repository);
            }
            true
        };
        // No `all`, which would stop at the first that names none.
        let mut add_all = |folders: Vec<String>| folders.iter().filter(|f| !add(f)).count() == 0;
        let are_all = add_all(prefix::beginnings([include]))
            || add_all(prefix::beginnings(own.iter().map(String::as_str)));
        (!repositories.is_empty()).then_some(Self::Repositories { repositories, are_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn only_an_anchored_pattern_narrows_where_a_survey_looks() {
        let check = |include: &str, own: &[&str], guesses: &[&str], folders: &[&str]| {
            let places = Places::folders(include, &owned(own));
            let expected = Places::Folders { guesses: owned(guesses), folders: owned(folders) };
            assert_eq!(places, expected, "{include} {own:?}");
        };
        check("^a/b/.*", &["zip$"], &[], &["a/b/"]);
        check("a/b/.*", &["zip$"], &["a/b/"], &[""]);
        check("amd64", &["zip$"], &[], &[""]);
        check("amd64", &["^v1/", "^v2/x"], &[], &["v1/", "v2/"]);
        check("amd64", &["v1/.*"], &["v1/"], &[""]);
        check("", &["^a/", "b/.*"], &["a/", "b/"], &[""]);
        // What the remote does not allow is no guess.
        check("v1/sub/", &["^v1/"], &["v1/sub/"], &["v1/"]);
        check("sub/", &["^v1/"], &[], &["v1/"]);
    }

    #[test]
    fn repositories_are_named_by_a_pattern_or_the_remotes_own() {
        let check = |include: &str, own: &[&str], above: &str, named: &[&str], are_all: bool| {
            let repository = |text: &&str| {
                let (owner, name) = text.split_once('/').unwrap();
                (owner.to_owned(), name.to_owned())
            };
            let repositories = named.iter().map(repository).collect();
            let expected = Places::Repositories { repositories, are_all };
            let places = Places::repositories(include, &owned(own), above);
            assert_eq!(places, Some(expected), "{include} {own:?} {above}");
        };
        check("o/r/.*linux-amd64", &[".*"], "", &["o/r"], true);
        check("^o/(r|s)/.*", &[".*"], "", &["o/r", "o/s"], true);
        check("amd64", &["^o/r/", "x/y/.*"], "", &["o/r", "x/y"], true);
        check("amd64", &["^o/r/", "gz$"], "", &["o/r"], false);
        check("o/r/|amd64", &["gz$"], "", &["o/r"], false);
        check("amd64", &["gz$"], "o/r/", &["o/r"], true);
        check("^r/.*amd64", &["gz$"], "o/", &["o/r"], true);
        assert_eq!(Places::repositories("amd64", &owned(&["gz$", "^o/r"]), ""), None);
    }
}

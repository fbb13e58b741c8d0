//! Conditional requests: 304, 412, and whether `If-Range` holds (RFC 9110, section 13).
//!
//! For GET and HEAD of something that exists, and for changes of it, which take everything but
//! [`Verdict::Proceed`] as a 412. It compares what a client has seen with what is stored; asking
//! upstream conditionally is not done here.
//!
//! What is malformed never matches: the worst that follows is a whole answer, or a 412 to a
//! client that asked not to be given anything else.

use std::time::SystemTime;

use crate::artifact::{Validators, weakly_equal};
use crate::front::wire::RequestHead;

/// The conditions of a request, as sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`: answer only if the client's copy is this one (section 13.1.1).
    pub if_match: Option<String>,
    /// `If-None-Match`: answer only if the client has no such copy (section 13.1.2).
    pub if_none_match: Option<String>,
    /// `If-Modified-Since` of a GET or HEAD (section 13.1.3).
    pub if_modified_since: Option<String>,
    /// `If-Unmodified-Since` (section 13.1.4).
    pub if_unmodified_since: Option<String>,
    /// `If-Range`: the range counts only if the client's part is of this copy (section 13.1.5).
    pub if_range: Option<String>,
}

/// What the conditions ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were no conditions.
    Proceed,
    /// Status 304: the client's copy is still right.
    NotModified,
    /// Status 412.
    PreconditionFailed,
}

impl Conditions {
    /// Takes the conditions out of a request head.
    pub fn of(head: &RequestHead) -> Self {
        // Section 13.1.3: for other methods it is to be ignored.
        let is_read = matches!(head.method.as_str(), "GET" | "HEAD");
        Self {
            if_match: head.header("if-match"),
            if_none_match: head.header("if-none-match"),
            if_modified_since: head.header("if-modified-since").filter(|_| is_read),
            if_unmodified_since: head.header("if-unmodified-since"),
            if_range: head.header("if-range"),
        }
    }

    /// Evaluates all but `If-Range` in the order of section 13.2.2.
    /// `current` are the validators that the answer would carry.
    pub fn evaluate(&self, current: &Validators) -> Verdict {
        let etag = current.etag.as_deref();
        let modified = current.last_modified.as_deref().and_then(date);
        // Steps 1 and 2: is it still what the client works on?
        let holds = match &self.if_match {
            Some(list) => lists(list, etag, strongly_equal),
            None => match (date_of(&self.if_unmodified_since), modified) {
                (Some(since), Some(modified)) => modified <= since,
                _ => true,
            },
        };
        if !holds {
            return Verdict::PreconditionFailed;
        }
        // Steps 3 and 4: does the client have it already? If-Modified-Since counts only where
        // If-None-Match, which is exact, is absent.
        let has_it = match &self.if_none_match {
            Some(list) => lists(list, etag, weakly_equal),
            None => match (date_of(&self.if_modified_since), modified) {
                (Some(since), Some(modified)) => modified <= since,
                _ => false,
            },
        };
        if has_it { Verdict::NotModified } else { Verdict::Proceed }
    }

    /// Whether a `Range` counts (step 5): there is no `If-Range`, or it names what is stored.
    /// Otherwise the range is ignored and the answer is the whole body.
    ///
    /// An entity tag must be equal and strong. A date must be equal to `Last-Modified`, not
    /// only later; that the client may use it for a body that could change twice in a second
    /// is for the client to know, which alone saw the `Date` of its part.
    pub fn if_range_holds(&self, current: &Validators) -> bool {
        let Some(if_range) = self.if_range.as_deref().map(trimmed) else { return true };
        let etag = current.etag.as_deref().map(trimmed);
        if etag.is_some_and(|etag| strongly_equal(if_range, etag)) {
            return true;
        }
        match (date(if_range), current.last_modified.as_deref().and_then(date)) {
            (Some(seen), Some(modified)) => seen == modified,
            _ => false,
        }
    }
}

/// Whether a list of entity tags is `*`, which anything that exists matches, or has a tag that
/// equals the current one.
fn lists(list: &str, etag: Option<&str>, equal: fn(&str, &str) -> bool) -> bool {
    trimmed(list) == "*" || etag.is_some_and(|etag| tags(list).any(|tag| equal(tag, trimmed(etag))))
}

/// Both strong and the same (section 8.8.3.2).
fn strongly_equal(one: &str, other: &str) -> bool {
    one == other && !one.starts_with("W/")
}

/// The elements of a list of entity tags: `"a"`, `W/"b"`. A comma inside quotes belongs to its
/// tag. Tags without quotes are kept as they are, because there are servers that send such.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(trimmed)
    .filter(|tag| !tag.is_empty())
}

fn date_of(header: &Option<String>) -> Option<SystemTime> {
    header.as_deref().and_then(date)
}

/// Reads a date in any of the three forms (section 5.6.7). What is not a date, or several of
/// them, is `None`: the field is to be ignored.
fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(trimmed(text)).ok()
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Verdict::{NotModified, PreconditionFailed, Proceed};
    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn stored(etag: &str, last_modified: &str) -> Validators {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Validators { etag: some(etag), last_modified: some(last_modified) }
    }

    fn asked(fields: &[(&str, &str)]) -> Conditions {
        asked_with("GET", fields)
    }

    fn asked_with(method: &str, fields: &[(&str, &str)]) -> Conditions {
        Conditions::of(&RequestHead {
            method: method.to_owned(),
            target: "/".to_owned(),
            is_http_11: true,
            headers: fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            client: None,
        })
    }

    /// The table of RFC 9110, section 8.8.3.2.
    #[test]
    fn entity_tags_compare_as_the_rfc_shows() {
        let check = |one: &str, other: &str, strong: bool, weak: bool| {
            assert_eq!(strongly_equal(one, other), strong, "{one} {other}");
            assert_eq!(weakly_equal(one, other), weak, "{one} {other}");
        };
        check(r#"W/"1""#, r#"W/"1""#, false, true);
        check(r#"W/"1""#, r#"W/"2""#, false, false);
        check(r#"W/"1""#, r#""1""#, false, true);
        check(r#""1""#, r#""1""#, true, true);
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let check = |etag: &str, list: &str, verdict: Verdict| {
            let asked = asked(&[("if-none-match", list)]);
            assert_eq!(asked.evaluate(&stored(etag, THEN)), verdict, "{list} against {etag}");
        };
        check(r#""a""#, r#""a""#, NotModified);
        check(r#""a""#, r#"W/"a""#, NotModified);
        check(r#"W/"a""#, r#""a""#, NotModified);
        check(r#""a""#, r#""b", "c" ,W/"a""#, NotModified);
        check(r#""a""#, "*", NotModified);
        check("", "*", NotModified);
        check(r#""a,b""#, r#""x", "a,b""#, NotModified);
        check(r#""a""#, r#",, "a","#, NotModified);
        // A server that forgets the quotes gets its own text back.
        check("a", "a", NotModified);
        check("a", "b, a", NotModified);
        check(r#""a""#, "a", Proceed);
        check(r#""a""#, r#""b""#, Proceed);
        check(r#""a""#, r#""b, "a""#, Proceed);
        check(r#""a""#, r#"w/"a""#, Proceed);
        check(r#""a""#, r#""A""#, Proceed);
        check(r#""a""#, r#""a"#, Proceed);
        check(r#""a""#, "", Proceed);
        check(r#""a""#, r#""x,"a",y""#, Proceed);
        check("", r#""a""#, Proceed);
        check("", r#""""#, Proceed);
    }

    #[test]
    fn if_match_compares_strongly() {
        let check = |etag: &str, list: &str, verdict: Verdict| {
            let asked = asked(&[("if-match", list)]);
            assert_eq!(asked.evaluate(&stored(etag, THEN)), verdict, "{list} against {etag}");
        };
        check(r#""a""#, r#""b", "a""#, Proceed);
        check(r#""a""#, "*", Proceed);
        check("", "*", Proceed);
        check(r#""a""#, r#"W/"a""#, PreconditionFailed);
        check(r#"W/"a""#, r#"W/"a""#, PreconditionFailed);
        check(r#""a""#, r#""b""#, PreconditionFailed);
        check(r#""a""#, "", PreconditionFailed);
        check("", r#""a""#, PreconditionFailed);
    }

    #[test]
    fn dates_compare_to_the_second_in_all_three_forms() {
        let check = |name: &str, since: &str, verdict: Verdict| {
            let asked = asked(&[(name, since)]);
            assert_eq!(asked.evaluate(&stored("", THEN)), verdict, "{name}: {since}");
        };
        check("if-modified-since", BEFORE, Proceed);
        check("if-modified-since", THEN, NotModified);
        check("if-modified-since", AFTER, NotModified);
        check("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", NotModified);
        check("if-modified-since", "Sun Nov  6 08:49:37 1994", NotModified);
        check("if-unmodified-since", BEFORE, PreconditionFailed);
        check("if-unmodified-since", THEN, Proceed);
        check("if-unmodified-since", AFTER, Proceed);
        check("if-unmodified-since", "Sunday, 06-Nov-94 08:49:36 GMT", PreconditionFailed);
        check("if-unmodified-since", "Sun Nov  6 08:49:36 1994", PreconditionFailed);
        // Not a date, or several: ignored.
        for name in ["if-modified-since", "if-unmodified-since"] {
            for since in ["", "yesterday", "784111777", "Sun, 06 Nov 1994 08:49:36 CET", "é"] {
                check(name, since, Proceed);
            }
            check(name, &format!("{BEFORE}, {AFTER}"), Proceed);
        }
    }

    #[test]
    fn a_date_is_ignored_where_the_copy_has_none() {
        for name in ["if-modified-since", "if-unmodified-since"] {
            for last_modified in ["", "some day"] {
                let verdict = asked(&[(name, THEN)]).evaluate(&stored(r#""a""#, last_modified));
                assert_eq!(verdict, Proceed, "{name} against {last_modified:?}");
            }
        }
    }

    #[test]
    fn only_reads_look_at_if_modified_since() {
        for (method, verdict) in
            [("GET", NotModified), ("HEAD", NotModified), ("PUT", Proceed), ("DELETE", Proceed)]
        {
            let asked = asked_with(method, &[("if-modified-since", AFTER)]);
            assert_eq!(asked.evaluate(&stored("", THEN)), verdict, "{method}");
            let asked = asked_with(method, &[("if-unmodified-since", BEFORE)]);
            assert_eq!(asked.evaluate(&stored("", THEN)), PreconditionFailed, "{method}");
        }
    }

    /// RFC 9110, section 13.2.2.
    #[test]
    fn entity_tags_outrank_dates_and_412_outranks_304() {
        let check = |fields: &[(&str, &str)], verdict: Verdict| {
            let verdict_found = asked(fields).evaluate(&stored(r#""a""#, THEN));
            assert_eq!(verdict_found, verdict, "{fields:?}");
        };
        check(&[], Proceed);
        check(&[("if-match", r#""a""#), ("if-unmodified-since", BEFORE)], Proceed);
        check(&[("if-match", r#""b""#), ("if-unmodified-since", AFTER)], PreconditionFailed);
        check(&[("if-none-match", r#""b""#), ("if-modified-since", AFTER)], Proceed);
        check(&[("if-none-match", r#""a""#), ("if-modified-since", BEFORE)], NotModified);
        check(&[("if-match", r#""b""#), ("if-none-match", r#""a""#)], PreconditionFailed);
        check(&[("if-match", r#""a""#), ("if-none-match", r#""a""#)], NotModified);
        check(&[("if-unmodified-since", BEFORE), ("if-none-match", r#""a""#)], PreconditionFailed);
        check(&[("if-unmodified-since", AFTER), ("if-modified-since", THEN)], NotModified);
        check(&[("if-none-match", r#""b""#), ("if-none-match", r#""a""#)], NotModified);
    }

    #[test]
    fn if_range_must_name_exactly_this_copy() {
        let check = |etag: &str, if_range: &str, holds: bool| {
            let asked = asked(&[("if-range", if_range)]);
            assert_eq!(asked.if_range_holds(&stored(etag, THEN)), holds, "{if_range} {etag}");
        };
        check(r#""a""#, r#""a""#, true);
        check(r#""a""#, THEN, true);
        check("", THEN, true);
        check(r#"W/"a""#, THEN, true);
        check(r#""a""#, "Sunday, 06-Nov-94 08:49:37 GMT", true);
        check(r#""a""#, "Sun Nov  6 08:49:37 1994", true);
        check(r#"W/"a""#, r#"W/"a""#, false);
        check(r#""a""#, r#"W/"a""#, false);
        check(r#"W/"a""#, r#""a""#, false);
        check(r#""a""#, r#""b""#, false);
        check(r#""a""#, r#""a", "b""#, false);
        check(r#""a""#, "*", false);
        check(r#""a""#, BEFORE, false);
        check(r#""a""#, AFTER, false);
        check(r#""a""#, "", false);
        check(r#""a""#, "a", false);
        check("", r#""a""#, false);
        assert!(asked(&[]).if_range_holds(&stored("", "")), "no If-Range, nothing to hold");
        assert!(!asked(&[("if-range", THEN)]).if_range_holds(&stored("", "")));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(
            texts in prop::array::uniform5(prop::option::of(r#"[ \t,*W/"ab]{0,12}|.{0,40}"#)),
            etag in prop::option::of(".{0,12}"),
            last_modified in prop::option::of(".{0,40}"),
        ) {
            let [if_match, if_none_match, if_modified_since, if_unmodified_since, if_range] = texts;
            let conditions = Conditions {
                if_match, if_none_match, if_modified_since, if_unmodified_since, if_range,
            };
            let current = Validators { etag, last_modified };
            conditions.evaluate(&current);
            conditions.if_range_holds(&current);
        }

        #[test]
        fn a_client_that_echoes_a_tag_is_told_so(tag in r"[!#-~]{0,20}", others in 0_usize..4) {
            let etag = format!("\"{tag}\"");
            let mut list = "\"other,\", W/\"~~\", ".repeat(others);
            list.push_str(&etag);
            let conditions =
                Conditions { if_none_match: Some(list), ..Conditions::default() };
            prop_assert_eq!(conditions.evaluate(&stored(&etag, "")), NotModified);
        }
    }
}

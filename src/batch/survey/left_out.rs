//! What a survey has left out, in words: the first reasons, and how many more there are.

/// Reasons that are told.
const REASONS_MAX: usize = 5;
/// Letters of one reason: names come from strangers.
const REASON_CHARS_MAX: usize = 400;

/// Reasons, collected.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// The bound that ended the survey, which is told whatever else is.
    bound: Option<String>,
    reasons: Vec<String>,
    further: usize,
    /// Links that lead out of the remote.
    outside: u64,
}

impl LeftOut {
    /// One more reason; one that is known already is not told twice.
    pub(super) fn add(&mut self, why: String) {
        let why: String = why.chars().take(REASON_CHARS_MAX).collect();
        if self.reasons.contains(&why) {
            return;
        }
        match self.reasons.len() < REASONS_MAX {
            true => self.reasons.push(why),
            false => self.further += 1,
        }
    }

    /// The survey ends here, because of a bound.
    pub(super) fn end(&mut self, bound: String) {
        self.bound.get_or_insert(bound);
    }

    /// So many links lead elsewhere.
    pub(super) fn add_outside(&mut self, links: u64) {
        self.outside += links;
    }

    /// All of it; `None` where nothing was left out.
    pub(super) fn tell(mut self) -> Option<String> {
        self.reasons.splice(0..0, self.bound.take());
        if self.outside > 0 {
            let links = match self.outside {
                1 => "1 link leads".to_owned(),
                links => format!("{links} links lead"),
            };
            self.reasons.push(format!("{links} out of the remote's base_url"));
        }
        if self.further > 0 {
            self.reasons.push(format!("and {} more", self.further));
        }
        (!self.reasons.is_empty()).then(|| self.reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_once_and_not_without_end() {
        assert_eq!(LeftOut::default().tell(), None);
        let mut one = LeftOut::default();
        one.add("a".to_owned());
        one.add("a".to_owned());
        one.add_outside(1);
        assert_eq!(one.tell().unwrap(), "a; 1 link leads out of the remote's base_url");
        let mut many = LeftOut::default();
        (0..7).for_each(|number| many.add(format!("{number}{}", "ä".repeat(500))));
        many.add_outside(2);
        many.end("more than 5 s".to_owned());
        let told = many.tell().unwrap();
        assert!(
            told.ends_with("; 2 links lead out of the remote's base_url; and 2 more"),
            "{told}"
        );
        assert!(told.starts_with("more than 5 s; 0ä"), "{told}");
        assert!(told.len() < 4200, "{}", told.len());
    }
}

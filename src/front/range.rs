//! Which bytes a `Range` header asks for (RFC 9110, section 14).
//!
//! A header is resolved against the length once; everything behind it works with
//! `Range<u64>`. Whether `If-Range` lets a range count is for [`super::conditional`], and that
//! only GET has ranges is for the caller.
//!
//! A server may ignore any `Range` (section 14.2), and the whole body is a right answer to
//! each: that is what a header gets that is malformed, in another unit, or out to make much
//! work.

use std::ops::Range;

/// Ranges of one header that are answered; with more, the answer is the whole body.
pub const RANGES_MAX: usize = 16;

/// What a `Range` header means for a body of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// The whole body, status 200: the header is to be ignored.
    Whole,
    /// One range, not empty and inside the body, status 206 with `Content-Range`.
    Single(Range<u64>),
    /// 2 to [`RANGES_MAX`] ranges in the order asked for, none empty, all inside the body, no
    /// two overlapping: status 206 as multipart/byteranges.
    Several(Vec<Range<u64>>),
    /// No byte that is asked for exists: status 416 with [`unsatisfied`].
    Unsatisfiable,
}

/// One range as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// `first-`
    From(u64),
    /// `first-last`, both included.
    Closed(u64, u64),
    /// `-count`, the last bytes.
    Suffix(u64),
}

impl Spec {
    /// Reads `first-last`, `first-` or `-count`; `None` where it is none of them.
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        match (first, last) {
            ("", count) => Some(Self::Suffix(number(count)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Closed(first, last))
            }
        }
    }

    /// The bytes of a body of `len` bytes; `None` where there are none.
    fn resolve(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..len,
            Self::Closed(first, last) => first..len.min(last.saturating_add(1)),
            Self::Suffix(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }

    /// Whether it asks an empty body for everything from its beginning. No `Content-Range` can say that,
    /// and clients that send a range with everything should not fail on an empty file.
    fn is_all_of_nothing(self) -> bool {
        matches!(self, Self::From(0) | Self::Closed(0, _) | Self::Suffix(1..))
    }
}

/// Reads decimal digits. A number that does not fit is beyond every body, which the largest
/// number is as well.
fn number(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// The ranges of a header in bytes; `None` where it is to be ignored.
fn parse(header: &str) -> Option<Vec<Spec>> {
    let (unit, set) = header.trim_matches([' ', '\t']).split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for element in set.split(',').map(|element| element.trim_matches([' ', '\t'])) {
        // Empty elements of a list are to be skipped (section 5.6.1.2).
        if !element.is_empty() {
            if specs.len() == RANGES_MAX {
                return None;
            }
            specs.push(Spec::parse(element)?);
        }
    }
    (!specs.is_empty()).then_some(specs)
}

/// Resolves a `Range` header against the length of the body.
///
/// ```
/// use artifactapi::front::range::{Resolved, resolve};
/// assert_eq!(resolve("bytes=0-499", 10_000), Resolved::Single(0..500));
/// assert_eq!(resolve("bytes=-500", 10_000), Resolved::Single(9_500..10_000));
/// assert_eq!(resolve("bytes=10000-", 10_000), Resolved::Unsatisfiable);
/// assert_eq!(resolve("lines=1-2", 10_000), Resolved::Whole);
/// ```
///
/// Ranges that overlap mean [`Resolved::Whole`]: no honest client asks for a byte twice, and
/// without overlaps no answer has more of the body than the body itself.
pub fn resolve(header: &str, len: u64) -> Resolved {
    let Some(specs) = parse(header) else { return Resolved::Whole };
    if len == 0 && specs.iter().any(|spec| spec.is_all_of_nothing()) {
        return Resolved::Whole;
    }
    let mut ranges: Vec<_> = specs.into_iter().filter_map(|spec| spec.resolve(len)).collect();
    match ranges.as_slice() {
        [] => Resolved::Unsatisfiable,
        [_] => Resolved::Single(ranges.remove(0)),
        _ if overlap(&ranges) => Resolved::Whole,
        _ => Resolved::Several(ranges),
    }
}

/// `Content-Range` of a part of a body of `len` bytes (section 14.4). The range must not be empty.
pub fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1))
}

/// `Content-Range` of a 416 answer.
pub fn unsatisfied(len: u64) -> String {
    format!("bytes */{len}")
}

fn overlap(ranges: &[Range<u64>]) -> bool {
    let mut sorted: Vec<_> = ranges.iter().collect();
    sorted.sort_by_key(|range| range.start);
    sorted.windows(2).any(|pair| pair[0].end > pair[1].start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Resolved::{Several, Single, Unsatisfiable, Whole};
    use super::*;

    fn check(header: &str, len: u64, expected: Resolved) {
        assert_eq!(resolve(header, len), expected, "{header:?} of {len}");
    }

    /// The examples of RFC 9110, section 14.1.2.
    #[test]
    fn the_examples_of_the_rfc_resolve_as_it_says() {
        check("bytes=0-499", 10_000, Single(0..500));
        check("bytes=500-999", 10_000, Single(500..1_000));
        check("bytes=-500", 10_000, Single(9_500..10_000));
        check("bytes=9500-", 10_000, Single(9_500..10_000));
        check("bytes=0-0,-1", 10_000, Several(vec![0..1, 9_999..10_000]));
        check(
            "bytes= 0-999, 4500-5499, -1000",
            10_000,
            Several(vec![0..1_000, 4_500..5_500, 9_000..10_000]),
        );
        check("bytes=500-600,601-999", 10_000, Several(vec![500..601, 601..1_000]));
        // Valid too, but its ranges overlap.
        check("bytes=500-700,601-999", 10_000, Whole);
    }

    #[test]
    fn ends_beyond_the_body_are_cut() {
        check("bytes=0-", 10, Single(0..10));
        check("bytes=9-", 10, Single(9..10));
        check("bytes=5-99", 10, Single(5..10));
        check("bytes=-99", 10, Single(0..10));
        check("bytes=0-18446744073709551615", 10, Single(0..10));
        check("bytes=0-99999999999999999999999", 10, Single(0..10));
        check("bytes=-99999999999999999999999", 10, Single(0..10));
        check("bytes=0-", u64::MAX, Single(0..u64::MAX));
        check("bytes=3-18446744073709551615", u64::MAX, Single(3..u64::MAX));
    }

    #[test]
    fn bytes_that_do_not_exist_are_unsatisfiable() {
        check("bytes=10-", 10, Unsatisfiable);
        check("bytes=10-20", 10, Unsatisfiable);
        check("bytes=99999999999999999999999-", 10, Unsatisfiable);
        check("bytes=-0", 10, Unsatisfiable);
        check("bytes=10-,20-30,-0", 10, Unsatisfiable);
        // What exists is answered.
        check("bytes=10-,2-3", 10, Single(2..4));
        check("bytes=1-2,10-,4-5", 10, Several(vec![1..3, 4..6]));
    }

    #[test]
    fn an_empty_body_is_whole_from_its_beginning_on() {
        check("bytes=0-", 0, Whole);
        check("bytes=0-99", 0, Whole);
        check("bytes=-5", 0, Whole);
        check("bytes=-0", 0, Unsatisfiable);
        check("bytes=1-", 0, Unsatisfiable);
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=1-2-3",
            "bytes=2-1",
            "bytes=0-1,2-1",
            "bytes=0-1,x",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=0x1-",
            "bytes=1 -2",
            "bytes=1- 2",
            "bytes =0-1",
            "bytes:0-1",
            "0-1",
            "=0-1",
            "lines=0-1",
            "bytes=0-1;q=1",
            "bytes=٠-١",
            "bytes=--1",
            "none",
        ] {
            check(header, 10, Whole);
        }
    }

    #[test]
    fn the_unit_is_read_without_case_and_empty_elements_are_skipped() {
        check("Bytes=0-1", 10, Single(0..2));
        check(" bytes=0-1\t", 10, Single(0..2));
        check("bytes=,,0-1,\t,", 10, Single(0..2));
    }

    #[test]
    fn sets_that_only_make_work_get_the_whole_body() {
        let spread = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{}-{0}", 2 * at)).collect();
            format!("bytes={}", ranges.join(","))
        };
        assert!(
            matches!(resolve(&spread(RANGES_MAX as u64), 1_000), Several(r) if r.len() == RANGES_MAX)
        );
        check(&spread(RANGES_MAX as u64 + 1), 1_000, Whole);
        check(&spread(100_000), 1_000_000, Whole);
        check("bytes=0-,0-", 10, Whole);
        check("bytes=5-9,0-5", 10, Whole);
        check("bytes=-5,-5", 10, Whole);
        check("bytes=5-9,0-4", 10, Several(vec![5..10, 0..5]));
    }

    #[test]
    fn content_range_counts_its_last_byte() {
        assert_eq!(content_range(&(0..500), 1_234), "bytes 0-499/1234");
        assert_eq!(unsatisfied(47_022), "bytes */47022");
    }

    /// Headers that are nearly right, and any text at all.
    fn any_header() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            Just(String::new()),
            (0_u64..40).prop_map(|n| n.to_string()),
            any::<u64>().prop_map(|n| n.to_string()),
            "[0-9 ,x-]{0,30}",
        ];
        let spec = (number.clone(), number).prop_map(|(first, last)| format!("{first}-{last}"));
        prop_oneof![
            4 => prop::collection::vec(spec, 0..20).prop_map(|set| format!("bytes={}", set.join(","))),
            1 => ".{0,60}",
        ]
    }

    proptest! {
        #[test]
        fn what_is_resolved_lies_inside_the_body(
            header in any_header(),
            len in prop_oneof![0_u64..50, any::<u64>()],
        ) {
            let ranges = match resolve(&header, len) {
                Whole | Unsatisfiable => Vec::new(),
                Single(range) => vec![range],
                Several(ranges) => {
                    prop_assert!((2..=RANGES_MAX).contains(&ranges.len()));
                    ranges
                }
            };
            for (at, range) in ranges.iter().enumerate() {
                prop_assert!(range.start < range.end && range.end <= len, "{:?}", range);
                for other in &ranges[at + 1..] {
                    prop_assert!(range.end <= other.start || other.end <= range.start);
                }
            }
        }
    }
}

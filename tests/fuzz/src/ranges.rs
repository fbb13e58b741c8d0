//! `Range` headers.

use crate::front::range::{RANGES_MAX, Resolved, content_range, resolve};

/// Resolves a header against a length, which the input begins with.
pub fn range(input: &[u8]) {
    let Some((len, header)) = input.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    // As a value comes from a request head.
    let header = String::from_utf8_lossy(header);
    // Lengths of every order, most of them small enough for the numbers of an input.
    let len = len >> (len & 63);
    let ranges = match resolve(&header, len) {
        Resolved::Whole | Resolved::Unsatisfiable => Vec::new(),
        Resolved::Single(range) => vec![range],
        Resolved::Several(ranges) => {
            assert!((2..=RANGES_MAX).contains(&ranges.len()));
            ranges
        }
    };
    let mut asked = 0_u64;
    for (at, range) in ranges.iter().enumerate() {
        assert!(range.start < range.end && range.end <= len, "{range:?} of {len}");
        for other in &ranges[at + 1..] {
            assert!(range.end <= other.start || other.end <= range.start, "{range:?} {other:?}");
        }
        asked += range.end - range.start;
        let told = content_range(range, len);
        assert!(told.starts_with("bytes ") && told.ends_with(&format!("/{len}")));
    }
    assert!(asked <= len, "no answer has more than the body");
}

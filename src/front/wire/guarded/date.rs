//! The `Date` field's value (RFC 9110, section 6.6.1), formatted once a second and thread.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of an IMF-fixdate.
const LEN: usize = 29;

thread_local! {
    static LAST: Cell<(u64, [u8; LEN])> = const { Cell::new((u64::MAX, [0; LEN])) };
}

/// Appends the date of now.
pub(super) fn append_now(out: &mut Vec<u8>) {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (last, mut text) = LAST.get();
    if last != second {
        let fresh = httpdate::fmt_http_date(now);
        text.copy_from_slice(fresh.as_bytes());
        LAST.set((second, text));
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cached_date_is_the_date_of_now() {
        for _ in 0..3 {
            let mut out = Vec::new();
            append_now(&mut out);
            let given = httpdate::parse_http_date(std::str::from_utf8(&out).unwrap()).unwrap();
            let age = SystemTime::now().duration_since(given).unwrap();
            assert!(age.as_secs() <= 1, "{age:?}");
        }
    }
}

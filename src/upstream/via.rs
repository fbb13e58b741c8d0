//! Who has passed a request on (`Via`, RFC 9110, section 7.6.3): so that one which a base URL or
//! a redirect leads back to this server ends at once, instead of waiting for itself.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// What this process is called: another one of the same program is no loop.
static NAME: LazyLock<String> = LazyLock::new(|| {
    // Each RandomState has keys of its own, which is all the chance that is needed.
    format!("artifactapi-{:016x}", RandomState::new().hash_one(0_u8))
});
static VALUE: LazyLock<String> = LazyLock::new(|| format!("1.1 {}", *NAME));

/// The field's value in what this process asks of upstreams.
pub fn value() -> &'static str {
    &VALUE
}

/// Whether this process has passed on the request that came with this `Via`.
pub fn is_own(via: &str) -> bool {
    via.contains(NAME.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_itself_among_others_and_no_other_of_its_kind() {
        assert!(is_own(value()));
        assert!(is_own(&format!("1.0 fred, {}, 1.1 squid", value())));
        assert!(!is_own("1.1 artifactapi-0123456789abcdef, 1.1 artifactapi"));
    }
}

//! Variables of a service that is not used: what was probably meant, and is said at the start.

use crate::config::env::ENGINES;

/// A service: the variable that chooses it, how its other variables begin, and what stands in
/// for it.
const SERVICES: [(&str, &[&str], &str); 3] = [
    ("MINIO_ENDPOINT", &["MINIO_", "HOT_"], "files are kept in DATA_DIR"),
    ("DBHOST", &["DB"], "the index is kept in DATA_DIR"),
    ("REDIS_URL", &["REDIS_"], "freshness and leases are kept in memory"),
];

/// One sentence for each service of which variables are set but not the one that chooses it.
///
/// ```
/// use artifactapi::wiring::unused::unused;
/// let env = |name: &str| (name == "DBUSER" || name == "DBNAME").then(|| "x".to_owned());
/// let said = "DBUSER and DBNAME do nothing, because DBHOST is not set: the index is kept in DATA_DIR";
/// assert_eq!(unused(&env), [said]);
/// assert!(unused(&|name| Some(name.to_owned())).is_empty());
/// ```
pub fn unused(env: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let is_set = |name: &str| env(name).is_some_and(|value| !value.trim().is_empty());
    let told = SERVICES.iter().filter(|(choice, ..)| !is_set(choice)).filter_map(
        |(choice, beginnings, instead)| {
            let is_of_it = |name: &str| beginnings.iter().any(|begins| name.starts_with(begins));
            let names = ENGINES.iter().map(|key| key.name);
            let set: Vec<_> = names.filter(|name| is_of_it(name) && is_set(name)).collect();
            let (verb, set) = match &set[..] {
                [] => return None,
                [one] => ("does", (*one).to_owned()),
                [most @ .., last] => ("do", format!("{} and {last}", most.join(", "))),
            };
            Some(format!("{set} {verb} nothing, because {choice} is not set: {instead}"))
        },
    );
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_without_the_one_that_chooses_their_service_are_named() {
        let check = |set: &[&str], told: &[&str]| {
            let env = |name: &str| set.contains(&name).then(|| "1".to_owned());
            assert_eq!(unused(&env), told, "{set:?}");
        };
        check(&[], &[]);
        check(&["MINIO_ENDPOINT", "HOT_BYTES", "DBHOST", "DBPORT", "REDIS_URL"], &[]);
        check(
            &["HOT_BYTES", "REDIS_PREFIX", "MINIO_BUCKET", "MINIO_ACCESS_KEY"],
            &[
                "MINIO_ACCESS_KEY, MINIO_BUCKET and HOT_BYTES do nothing, because MINIO_ENDPOINT is not set: files are kept in DATA_DIR",
                "REDIS_PREFIX does nothing, because REDIS_URL is not set: freshness and leases are kept in memory",
            ],
        );
        // Set to nothing is not set, as everywhere.
        assert!(unused(&|_| Some(" ".to_owned())).is_empty());
    }

    #[test]
    fn every_variable_is_one_of_a_service() {
        for key in ENGINES {
            let of = SERVICES.iter().filter(|(_, beginnings, _)| {
                beginnings.iter().any(|begins| key.name.starts_with(begins))
            });
            assert_eq!(of.count(), 1, "{}", key.name);
        }
    }
}

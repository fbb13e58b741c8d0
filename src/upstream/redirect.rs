//! Where a redirect may lead (RFC 9110, section 15.4).
//!
//! Pure rules: what is looked up and connected to is `http`'s, which also holds the addresses
//! behind a name against [`super::address`].

use url::Url;

use super::address::is_private_host;

/// Whether a status is a redirect that is followed. 300 and 305 need a judgement that a
/// cache can't make.
pub fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// What redirects of one upstream may do.
#[derive(Debug, Clone)]
pub struct RedirectRules {
    plain_http: bool,
    private: bool,
}

impl RedirectRules {
    /// The rules of a base URL.
    ///
    /// Plain http may be left to, and private addresses may be led to, only where the base
    /// URL is of that kind itself. A name counts as private by what it is (`localhost`), not
    /// by what it resolves to: who answers lookups must not decide. `allow_private` is
    /// the operator's word for all other private hosts.
    pub fn of(base: &Url, allow_private: bool) -> Self {
        Self {
            plain_http: base.scheme() == "http",
            private: allow_private || base.host().is_some_and(|host| is_private_host(&host)),
        }
    }

    /// Whether private addresses may be led to.
    pub fn private_allowed(&self) -> bool {
        self.private
    }

    /// The URL that a `Location` leads to from `from`, without its fragment.
    ///
    /// # Errors
    /// The reason for which it is not followed, without the URL, which may carry a token.
    pub fn next(&self, from: &Url, location: &[u8]) -> Result<Url, &'static str> {
        let location = std::str::from_utf8(location).map_err(|_| "its Location is not text")?;
        let mut to = from.join(location).map_err(|_| "its Location is not a URL")?;
        to.set_fragment(None);
        match to.scheme() {
            "https" => {}
            "http" if self.plain_http || from.scheme() == "http" => {}
            "http" => return Err("it leads from https to plain http"),
            _ => return Err("it leads to something other than http and https"),
        }
        if !to.username().is_empty() || to.password().is_some() {
            return Err("its Location carries credentials");
        }
        match to.host() {
            None => Err("its Location has no host"),
            Some(host) if !self.private && is_private_host(&host) => Err(LEADS_INSIDE),
            Some(_) => Ok(to),
        }
    }
}

/// The reason for which a redirect to a private address is refused.
pub const LEADS_INSIDE: &str = "it leads to a loopback, link-local or private address; \
     allow_private_redirects would allow that";

/// Whether two URLs are of one origin: scheme, host and port (RFC 6454). Credentials stay
/// inside of one.
pub fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host() == b.host()
        && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(base: &str, from: &str, location: &str) -> Result<String, &'static str> {
        let rules = RedirectRules::of(&Url::parse(base).unwrap(), false);
        rules.next(&Url::parse(from).unwrap(), location.as_bytes()).map(String::from)
    }

    #[test]
    fn redirects_lead_where_the_rules_allow() {
        let check = |base: &str, location: &str, expected: Result<&str, &str>| {
            let got = next(base, &format!("{base}d/f"), location);
            match expected {
                Ok(url) => assert_eq!(got.as_deref(), Ok(url), "{base} → {location}"),
                Err(why) => {
                    let got = got.expect_err(location);
                    assert!(got.contains(why), "{base} → {location}: {got}");
                }
            }
        };
        let (https, http) = ("https://a.example.org/r/", "http://a.example.org/r/");
        check(https, "g", Ok("https://a.example.org/r/d/g"));
        check(https, "/g?x=1#frag", Ok("https://a.example.org/g?x=1"));
        check(https, "?x", Ok("https://a.example.org/r/d/f?x"));
        check(https, "//b.example.org/g", Ok("https://b.example.org/g"));
        check(https, "https://b.example.org:8443/ä", Ok("https://b.example.org:8443/%C3%A4"));
        check(http, "http://b.example.org/g", Ok("http://b.example.org/g"));
        check(http, "https://b.example.org/g", Ok("https://b.example.org/g"));
        check(https, "http://a.example.org/g", Err("plain http"));
        check(https, "ftp://a.example.org/g", Err("other than http"));
        check(https, "file:///etc/passwd", Err("other than http"));
        check(https, "data:,x", Err("other than http"));
        check(https, "https://u:p@b.example.org/", Err("credentials"));
        check(https, "https://u@b.example.org/", Err("credentials"));
        check(https, "https://", Err("not a URL"));
        check(https, "https://[::1/", Err("not a URL"));
        check(https, "https://127.0.0.1/", Err("private"));
        check(https, "https://0x7f.1/", Err("private"));
        check(https, "https://[::ffff:10.0.0.1]/", Err("private"));
        check(https, "https://169.254.169.254/latest", Err("private"));
        check(https, "https://localhost:8080/", Err("private"));
        check(https, "https://1.1.1.1/", Ok("https://1.1.1.1/"));
        check("http://10.0.0.5/", "http://10.0.0.6:9000/x", Ok("http://10.0.0.6:9000/x"));
        check("http://localhost:8000/", "http://127.0.0.1/x", Ok("http://127.0.0.1/x"));
    }

    #[test]
    fn the_operator_can_allow_private_addresses() {
        let base = Url::parse("https://a.example.org/").unwrap();
        let rules = RedirectRules::of(&base, true);
        assert!(rules.next(&base, b"https://10.0.0.1/x").is_ok());
        assert!(rules.next(&base, b"http://10.0.0.1/x").is_err());
    }

    #[test]
    fn an_https_hop_is_not_left_for_plain_http_again_unless_the_base_is_plain() {
        assert!(
            next("http://a.example.org/", "https://b.example.org/", "http://c.example.org/")
                .is_ok()
        );
        assert!(
            next("https://a.example.org/", "https://b.example.org/", "http://a.example.org/")
                .is_err()
        );
    }

    #[test]
    fn a_location_that_is_not_text_is_refused() {
        let base = Url::parse("https://a.example.org/").unwrap();
        assert!(RedirectRules::of(&base, false).next(&base, b"/\xff").is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let check = |a: &str, b: &str, same: bool| {
            let (a, b) = (Url::parse(a).unwrap(), Url::parse(b).unwrap());
            assert_eq!(same_origin(&a, &b), same, "{a} {b}");
        };
        check("https://a.example.org/x", "https://A.example.org:443/y", true);
        check("http://a.example.org/", "http://a.example.org:80/", true);
        check("https://a.example.org/", "http://a.example.org/", false);
        check("https://a.example.org/", "https://b.a.example.org/", false);
        check("https://a.example.org/", "https://a.example.org:8443/", false);
    }
}

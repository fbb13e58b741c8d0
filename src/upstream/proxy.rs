//! Which HTTP proxy stands before an upstream.
//!
//! A remote's own `proxy` is used for everything that the remote asks. Without one, the
//! environment's decides, as for other programs of the machine: `HTTPS_PROXY`, `HTTP_PROXY`,
//! else `ALL_PROXY`, in capitals or not, and `NO_PROXY`. Loopback never goes through
//! the environment's proxy. Proxies are asked to CONNECT, for plain http as well.
//!
//! Through a proxy it is the proxy that resolves names, so the addresses behind a redirect's
//! host name can't be checked here; addresses written as such are.

use url::Url;

use super::SetupError;

/// Hosts that the environment's proxy is never asked for.
const LOOPBACK: [&str; 4] = ["localhost", ".localhost", "127.*", "[::1]"];

/// The proxies that the environment names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    http: Option<Url>,
    https: Option<Url>,
    no_proxy: Vec<String>,
}

/// A proxy, and the hosts that are reached without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyChoice {
    /// `http` or `https`, with a host; may carry a user and password.
    pub url: Url,
    /// Patterns of hosts: a name, `.suffix`, `prefix*`, `*`.
    pub except: Vec<String>,
}

impl ProxyEnv {
    /// Reads the environment, one variable at a time through `get`.
    ///
    /// `NO_PROXY` is a list of hosts, separated by commas: `*`, or names, each of which also
    /// covers what ends in it. Ranges of addresses (`10.0.0.0/8`) are not understood.
    ///
    /// # Errors
    /// [`SetupError::Proxy`] for a proxy that is not an http or https URL.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self, SetupError> {
        let either = |capitals: &str| {
            [capitals.to_owned(), capitals.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| Some((get(&name).filter(|text| !text.is_empty())?, name)))
        };
        let proxy = |name: &str| {
            let Some((text, name)) = either(name).or_else(|| either("ALL_PROXY")) else {
                return Ok::<_, SetupError>(None);
            };
            // `host:port` alone is common, and means http.
            let url = if text.contains("://") { text } else { format!("http://{text}") };
            let url = Url::parse(&url).map_err(|_| bad(&name, "is not a URL"))?;
            check(&url, &name)?;
            Ok(Some(url))
        };
        let (http, https) = (proxy("HTTP_PROXY")?, proxy("HTTPS_PROXY")?);
        let mut no_proxy: Vec<String> = LOOPBACK.map(str::to_owned).to_vec();
        let listed = either("NO_PROXY").map(|(list, _)| list).unwrap_or_default();
        for entry in listed.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            no_proxy.push(entry.to_owned());
            if !entry.starts_with(['*', '.']) {
                no_proxy.push(format!(".{entry}"));
            }
        }
        Ok(Self { http, https, no_proxy })
    }

    /// The proxy for URLs of a scheme, where `own` is the remote's.
    ///
    /// # Errors
    /// [`SetupError::Proxy`] where `own` is not http or https.
    pub fn choose(
        &self,
        own: Option<&Url>,
        scheme: &str,
    ) -> Result<Option<ProxyChoice>, SetupError> {
        if let Some(url) = own {
            check(url, "proxy")?;
            return Ok(Some(ProxyChoice { url: url.clone(), except: Vec::new() }));
        }
        let url = if scheme == "https" { &self.https } else { &self.http };
        let choice = |url: &Url| ProxyChoice { url: url.clone(), except: self.no_proxy.clone() };
        Ok(url.as_ref().map(choice))
    }
}

fn check(url: &Url, name: &str) -> Result<(), SetupError> {
    match (url.scheme(), url.host()) {
        ("http" | "https", Some(_)) => Ok(()),
        _ => Err(bad(name, "is not an http or https URL; other proxies are not spoken with")),
    }
}

fn bad(name: &str, why: &'static str) -> SetupError {
    SetupError::Proxy { name: name.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Result<ProxyEnv, SetupError> {
        ProxyEnv::from_vars(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_scheme_and_then_the_catch_all_decide() {
        let check = |vars: &[(&str, &str)], http: Option<&str>, https: Option<&str>| {
            let env = env(vars).unwrap();
            let url = |scheme: &str| env.choose(None, scheme).unwrap().map(|c| c.url.to_string());
            assert_eq!((url("http").as_deref(), url("https").as_deref()), (http, https));
        };
        let (a, b) = ("http://a.example.org:3128/", "http://b.example.org:3128/");
        check(&[], None, None);
        check(&[("HTTP_PROXY", "")], None, None);
        check(&[("http_proxy", a)], Some(a), None);
        check(&[("HTTPS_PROXY", "a.example.org:3128")], None, Some(a));
        check(&[("ALL_PROXY", a), ("https_proxy", b)], Some(a), Some(b));
        check(&[("HTTP_PROXY", a), ("http_proxy", b)], Some(a), None);
    }

    #[test]
    fn a_remotes_own_proxy_has_no_exceptions() {
        let env = env(&[("HTTP_PROXY", "http://a.example.org"), ("NO_PROXY", "*")]).unwrap();
        let own = Url::parse("http://own.example.org:8080").unwrap();
        let choice = env.choose(Some(&own), "http").unwrap().unwrap();
        assert_eq!((choice.url, choice.except), (own, vec![]));
    }

    #[test]
    fn exceptions_cover_loopback_and_what_ends_in_a_name() {
        let env =
            env(&[("ALL_PROXY", "http://a.example.org"), ("no_proxy", "corp.example.org, *.lab,")]);
        let except = env.unwrap().choose(None, "http").unwrap().unwrap().except;
        let expected = ["corp.example.org", ".corp.example.org", "*.lab"];
        assert_eq!(except, [LOOPBACK.as_slice(), expected.as_slice()].concat());
    }

    #[test]
    fn a_proxy_that_we_cannot_speak_with_is_an_error_that_names_the_variable() {
        let check = |name: &str, text: &str| {
            let error = env(&[(name, text)]).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("s3cret"), "{error}");
        };
        check("ALL_PROXY", "socks5://u:s3cret@a.example.org:1080");
        check("https_proxy", "http://[s3cret");
        let own = Url::parse("socks5://a.example.org").unwrap();
        assert!(ProxyEnv::default().choose(Some(&own), "http").is_err());
    }
}

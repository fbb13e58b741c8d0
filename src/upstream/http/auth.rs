//! Credentials as header fields.
//!
//! Pure. Which hop of a request gets them is decided in `http`: only the base URL's own
//! origin, and only until a redirect has left it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use crate::config::Auth;
use crate::upstream::SetupError;

/// The header fields that carry `auth`; without any, those of a user and password inside
/// `base`. All are marked as sensitive, so that nothing prints them.
///
/// # Errors
/// [`SetupError::Auth`] for what can't be a header field.
pub(super) fn headers(auth: Option<&Auth>, base: &Url) -> Result<HeaderMap, SetupError> {
    let mut headers = HeaderMap::new();
    match auth {
        None if base.username().is_empty() && base.password().is_none() => {}
        None => {
            let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
            let password = decode(base.password().unwrap_or_default());
            headers.insert(header::AUTHORIZATION, basic(&decode(base.username()), &password)?);
        }
        Some(Auth::Basic { user, password }) => {
            let value = basic(user.as_bytes(), password.reveal().as_bytes())?;
            headers.insert(header::AUTHORIZATION, value);
        }
        Some(Auth::Bearer(token)) => {
            let value = sensitive("the bearer token", &format!("Bearer {}", token.reveal()))?;
            headers.insert(header::AUTHORIZATION, value);
        }
        Some(Auth::Headers(fields)) => {
            for (name, value) in fields {
                let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                    SetupError::Auth(format!("{name:?} is not the name of a header field"))
                })?;
                let value = sensitive(&format!("the value of {name}"), value.reveal())?;
                headers.append(parsed, value);
            }
        }
    }
    Ok(headers)
}

fn basic(user: &[u8], password: &[u8]) -> Result<HeaderValue, SetupError> {
    let pair = [user, b":", password].concat();
    sensitive("the user or password", &format!("Basic {}", BASE64_STANDARD.encode(pair)))
}

fn sensitive(what: &str, text: &str) -> Result<HeaderValue, SetupError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        SetupError::Auth(format!("{what} has characters that a header can't carry"))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const PLAIN: &str = "https://a.example.org/";

    fn fields(auth: Option<Auth>, base: &str) -> Result<Vec<(String, String)>, SetupError> {
        let headers = headers(auth.as_ref(), &Url::parse(base).unwrap())?;
        assert!(headers.values().all(HeaderValue::is_sensitive));
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        Ok(headers.iter().map(field).collect())
    }

    #[test]
    fn each_kind_of_credentials_becomes_its_header() {
        let check = |auth: Option<Auth>, base: &str, expected: &[(&str, &str)]| {
            let expected: Vec<_> =
                expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            assert_eq!(fields(auth, base).unwrap(), expected);
        };
        let basic = Auth::Basic { user: "Aladdin".into(), password: Secret::new("open sesame") };
        // The example of RFC 7617, section 2.
        let rfc = [("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")];
        check(None, PLAIN, &[]);
        check(Some(basic), PLAIN, &rfc);
        check(None, "https://Aladdin:open%20sesame@a.example.org/", &rfc);
        let bearer = Auth::Bearer(Secret::new("t0k"));
        check(Some(bearer), "https://u:p@a.example.org/", &[("authorization", "Bearer t0k")]);
        let custom = Auth::Headers(vec![("X-Token".into(), Secret::new("s"))]);
        check(Some(custom), PLAIN, &[("x-token", "s")]);
    }

    #[test]
    fn what_is_no_header_is_an_error_that_keeps_the_secret() {
        let check = |auth: Auth, names: &str| {
            let error = fields(Some(auth), PLAIN).unwrap_err().to_string();
            assert!(error.contains(names) && !error.contains("s3cret"), "{error}");
        };
        let header =
            |name: &str, value: &str| Auth::Headers(vec![(name.to_owned(), Secret::new(value))]);
        check(Auth::Bearer(Secret::new("s3cret\r\nX: y")), "bearer");
        check(header("X-Token", "s3cret\n"), "X-Token");
        check(header("X Token", "s3cret"), "X Token");
    }
}

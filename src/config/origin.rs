//! The upstream of a remote: URLs, credentials, timeouts.
//!
//! A value that could be a secret is never put into a message; where `${NAME}` stands in
//! the file, messages show that and not what it expands to.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::fields::{Fields, Place, Placed, Reading, Shown};
use super::key::{Key, Kind};
use super::shown::without_credential;
use super::{Auth, Origin, Secret, Timeouts};

/// The keys below `auth`; exactly one is given.
pub(super) const AUTH_KEYS: &[Key] = &[
    Key {
        name: "basic",
        kind: Kind::Group,
        default: "",
        about: "Basic authentication: `user` and `password`.",
    },
    Key { name: "bearer", kind: Kind::Secret, default: "", about: "A bearer token." },
    Key {
        name: "headers",
        kind: Kind::Group,
        default: "",
        about: "Header fields by name, sent as they are.",
    },
];

/// The keys below `auth.basic`.
pub(super) const BASIC_KEYS: &[Key] = &[
    Key { name: "user", kind: Kind::Text, default: "", about: "The user; without a colon." },
    Key { name: "password", kind: Kind::Secret, default: "", about: "The password." },
];

/// The keys below `timeouts`. The defaults are those of [`Timeouts::default`].
pub(super) const TIMEOUT_KEYS: &[Key] = &[
    Key {
        name: "connect",
        kind: WAIT,
        default: "10",
        about: "For the connection with TLS, and once more for the lookup of the name.",
    },
    Key {
        name: "first_byte",
        kind: WAIT,
        default: "60",
        about: "From the request to the head of the answer.",
    },
    Key {
        name: "idle",
        kind: WAIT,
        default: "60",
        about: "For a silence inside the body; a slow body that moves is never cut.",
    },
];

const WAIT: Kind = Kind::Seconds { min_ms: 10, max_ms: 3_600_000 };

/// Header fields that this program sets itself: another value would break the framing, the
/// cached bytes or the conditions of a request.
const HEADERS_TAKEN: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// A URL with the credential that stood in it.
struct Base {
    url: Url,
    credential: Option<(String, String)>,
}

/// Reads the upstream of a remote. `None` only if an error was recorded.
pub(super) fn read(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Option<Origin> {
    let bases = bases(reading, remote);
    let given = auth(reading, remote);
    if let (Some(_), Some((_, Some((place, _))))) = (&given, &bases) {
        let fix = "keep only auth";
        reading.error(place, Shown::NOTHING, "the URL and auth both have a credential", fix);
    }
    let ca_file = reading.text(remote, "ca_file").map(|path| PathBuf::from(path.value));
    let proxy = proxy(reading, remote);
    let timeouts = timeouts(reading, remote);
    let api_url = api_url(reading, remote);
    let offline = reading.switch(remote, "offline");
    let allow_private_redirects = reading.switch(remote, "allow_private_redirects");
    // Only now: what is wrong with the URLs must not hide what is wrong behind them.
    let (bases, credential) = bases?;
    let from_url = credential
        .map(|(_, (user, password))| Auth::Basic { user, password: Secret::new(password) });
    let auth = given.or(from_url);
    Some(Origin {
        bases,
        auth,
        ca_file,
        proxy,
        timeouts,
        offline,
        allow_private_redirects,
        api_url,
    })
}

/// A user and a password that stand in a URL, and where.
type Credential = (Place, (String, String));

/// `base_url` and `mirrors`, and the credential that stands in one or all of them.
fn bases(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Option<(Vec<Url>, Option<Credential>)> {
    if !remote.has("base_url") {
        let place = remote.place_of("base_url");
        let fix = "add base_url: \"https://…\", or say type: \"local\"";
        reading.error(&place, Shown::NOTHING, "a remote needs a base_url", fix);
    }
    let texts: Vec<Placed<String>> = reading
        .text(remote, "base_url")
        .into_iter()
        .chain(reading.texts(remote, "mirrors"))
        .collect();
    let mut urls = Vec::new();
    let mut credential: Option<Credential> = None;
    for text in texts {
        let Some(mut base) = url(reading, &text) else { continue };
        if !base.url.path().ends_with('/') {
            let path = format!("{}/", base.url.path());
            base.url.set_path(&path);
        }
        if base.url.query().is_some() || base.url.fragment().is_some() {
            let shown = Shown::text(&without_credential(&text.value));
            let fix = "end it with the path: what clients ask for is put behind it";
            reading.error(&text.place, shown, "has a query or a fragment", fix);
        }
        if base.url.scheme() == "http" {
            let shown = Shown::text(&without_credential(&text.value));
            let fix = "use https if the server has it: anyone on the way can change what is cached";
            reading.warn(&text.place, shown, "is plain http", fix);
        }
        match (base.credential.take(), &credential) {
            (Some(found), Some((_, known))) if found != *known => {
                let what = "has another credential than the URL before it";
                let shown = Shown::text(&without_credential(&text.value));
                reading.error(&text.place, shown, what, "give one for all of them, under auth");
            }
            (Some(found), None) => {
                refuse_user(reading, &text.place, &found.0);
                credential = Some((text.place.clone(), found));
            }
            _ => {}
        }
        urls.push(base.url);
    }
    (!urls.is_empty()).then_some((urls, credential))
}

fn proxy(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Option<Url> {
    let text = reading.text(remote, "proxy")?;
    let base = url(reading, &text)?;
    let mut url = base.url;
    if let Some((user, password)) = base.credential {
        // The proxy's credential has no other place; neither call can fail with a host.
        let _ = url.set_username(&user);
        let _ = url.set_password(Some(&password));
    }
    Some(url)
}

/// Where releases are listed; like a base URL, but it has no credential of its own.
fn api_url(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Option<Url> {
    let text = reading.text(remote, "api_url")?;
    let base = url(reading, &text)?;
    let mut url = base.url;
    if base.credential.is_some() || url.query().is_some() || url.fragment().is_some() {
        let shown = Shown::text(&without_credential(&text.value));
        let what = "has a credential, a query or a fragment";
        reading.error(&text.place, shown, what, "end it with the path; credentials go under auth");
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Some(url)
}

/// A URL that can be asked, its credential apart from it.
fn url(reading: &mut Reading<'_>, text: &Placed<String>) -> Option<Base> {
    let shown = Shown::text(&without_credential(&text.value));
    let expanded = expand(reading, text, &shown)?;
    let mut refuse = |what: String, fix: &str| {
        reading.error(&text.place, shown.clone(), what, fix);
        None
    };
    if expanded.is_empty() {
        return refuse("is empty".to_owned(), &Kind::Url.fix());
    }
    // The URL library would drop these silently.
    if expanded.chars().any(|char| char.is_control() || char == ' ' || char == '\\') {
        let fix = "remove it, or write a blank as %20";
        return refuse("has a blank, a control character or a backslash".to_owned(), fix);
    }
    let mut url = match Url::parse(&expanded) {
        Ok(url) => url,
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            return refuse("has no scheme".to_owned(), "write https:// in front of it");
        }
        Err(error) => return refuse(format!("is not a URL: {error}"), &Kind::Url.fix()),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("is neither http nor https".to_owned(), "begin it with https:// or http://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return refuse("names no host".to_owned(), &Kind::Url.fix());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let credential = (!url.username().is_empty() || url.password().is_some())
        .then(|| (decoded(url.username()), decoded(url.password().unwrap_or_default())));
    if credential.is_some() {
        // Neither call can fail for a URL with a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        // What the environment gives is where it should be.
        let written = text.value.rsplit_once('@').map_or("", |(before, _)| before);
        if !written.contains("${") {
            let fix = "put it into a variable and write ${NAME}, so that the file holds no secret";
            reading.warn(&text.place, shown, "holds a credential", fix);
        }
    }
    Some(Base { url, credential })
}

fn timeouts(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Timeouts {
    let fields = reading.group(remote, "timeouts", TIMEOUT_KEYS, &[]);
    let mut wait = |name| Duration::from_millis(reading.number(&fields, name).unwrap_or_default());
    Timeouts { connect: wait("connect"), first_byte: wait("first_byte"), idle: wait("idle") }
}

fn auth(reading: &mut Reading<'_>, remote: &Fields<'_>) -> Option<Auth> {
    if !remote.has("auth") {
        return None;
    }
    let before = reading.error_count();
    let elsewhere = [(BASIC_KEYS, "below auth.basic")];
    let fields = reading.group(remote, "auth", AUTH_KEYS, &elsewhere);
    let given = AUTH_KEYS.iter().map(|key| key.name).filter(|name| fields.has(name));
    match given.collect::<Vec<_>>().as_slice() {
        ["basic"] => basic(reading, &fields),
        ["bearer"] => bearer(reading, &fields),
        ["headers"] => headers(reading, &fields),
        // What is there was refused already.
        [] if reading.error_count() > before => None,
        given => {
            let what = format!("there are {} ways to authenticate", given.len());
            let fix = "give exactly one of basic, bearer and headers";
            reading.error(&fields.place, Shown::NOTHING, what, fix);
            None
        }
    }
}

fn bearer(reading: &mut Reading<'_>, auth: &Fields<'_>) -> Option<Auth> {
    let text = reading.text(auth, "bearer")?;
    let token = secret(reading, &text)?;
    if token.reveal().bytes().any(|byte| byte == b' ' || !byte.is_ascii()) {
        let fix = "give the token alone, without \"Bearer\"";
        let what = "has a blank or a letter that no bearer token has";
        reading.error(&text.place, Shown::masked(), what, fix);
    }
    Some(Auth::Bearer(token))
}

fn basic(reading: &mut Reading<'_>, auth: &Fields<'_>) -> Option<Auth> {
    let fields = reading.group(auth, "basic", BASIC_KEYS, &[]);
    for name in ["user", "password"] {
        if !fields.has(name) {
            let what = format!("{name} is missing");
            let fix = "give user and password; an empty one as \"\"";
            reading.error(&fields.place, Shown::NOTHING, what, fix);
        }
    }
    let user = reading.text(&fields, "user")?;
    let expanded = expand(reading, &user, &Shown::text(&user.value))?;
    refuse_user(reading, &user.place, &expanded);
    let password = reading.text(&fields, "password")?;
    let shown = Shown::masked();
    let value = expand(reading, &password, &shown)?;
    refuse_control(reading, &password, &value);
    Some(Auth::Basic { user: expanded, password: Secret::new(value) })
}

fn headers(reading: &mut Reading<'_>, auth: &Fields<'_>) -> Option<Auth> {
    let mut headers = Vec::new();
    for entry in reading.open_group(auth, "headers") {
        let name = entry.name.to_ascii_lowercase();
        // RFC 9110, section 5.6.2.
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            let what = "is not a name of a header field";
            let fix = "use letters, digits and hyphens";
            reading.error(&entry.place, Shown::text(entry.name), what, fix);
        } else if HEADERS_TAKEN.contains(&name.as_str()) {
            let what = "is set by the cache itself";
            reading.error(&entry.place, Shown::text(entry.name), what, "remove it");
        }
        let Some(value) = reading.scalar(entry.node, &entry.place, Kind::Secret) else { continue };
        let Some(value) = secret(reading, &value) else { continue };
        if !value.reveal().is_ascii() {
            let what = "has a letter outside of ASCII, which header fields cannot carry";
            reading.error(&entry.place, Shown::masked(), what, "encode it as the server expects");
        }
        headers.push((entry.name.to_owned(), value));
    }
    (!headers.is_empty()).then_some(Auth::Headers(headers))
}

/// A secret that is not empty and fits into a header field.
fn secret(reading: &mut Reading<'_>, text: &Placed<String>) -> Option<Secret> {
    let value = expand(reading, text, &Shown::masked())?;
    if value.is_empty() {
        let what = "is empty";
        reading.error(&text.place, Shown::masked(), what, "give the secret, or remove auth");
    }
    refuse_control(reading, text, &value);
    Some(Secret::new(value))
}

/// RFC 7617, section 2: the first colon ends the user.
fn refuse_user(reading: &mut Reading<'_>, place: &Place, user: &str) {
    if user.contains(':') || user.chars().any(char::is_control) {
        let what = "the user has a colon or a control character";
        let fix = "basic authentication cannot carry such a user: use another";
        reading.error(place, Shown::NOTHING, what, fix);
    }
}

fn refuse_control(reading: &mut Reading<'_>, text: &Placed<String>, value: &str) {
    if value.chars().any(char::is_control) {
        let what = "has a control character";
        let fix = "remove it; it is often a line break at the end of a file or a variable";
        reading.error(&text.place, Shown::masked(), what, fix);
    }
}

/// Replaces each `${NAME}` by that environment variable; `$${` is a literal `${`. Of what
/// is wrong, `shown` is printed, and the variable's name.
fn expand(reading: &mut Reading<'_>, text: &Placed<String>, shown: &Shown) -> Option<String> {
    let mut expanded = String::new();
    let mut rest = text.value.as_str();
    let mut complete = true;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            expanded += &rest[..at - 1];
            expanded += "${";
            rest = &rest[at + 2..];
            continue;
        }
        expanded += &rest[..at];
        let (name, behind) = rest[at + 2..].split_once('}').unwrap_or(("", ""));
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !is_name {
            let what = "has a ${ that no variable's name and } follow";
            reading.error(
                &text.place,
                shown.clone(),
                what,
                "write ${NAME}, or $${ for a literal ${",
            );
            return None;
        }
        match (reading.env)(name) {
            Some(value) => expanded += &value,
            None => {
                let what = format!("names the variable {name}, which is not set");
                let fix = format!("set {name} in the environment of the cache");
                reading.error(&text.place, shown.clone(), what, fix);
                complete = false;
            }
        }
        rest = behind;
    }
    complete.then(|| expanded + rest)
}

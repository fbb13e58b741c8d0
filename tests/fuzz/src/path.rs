//! Paths of artifacts: what a client writes behind `/api/<remote>/`, and the key that a blob
//! lies under.

use crate::artifact::{ARTIFACT_PATH_MAX, ArtifactKey, ArtifactPath, BlobKey, RemoteName};

/// Parses a path, with a query behind its first `?`, and follows it to its key.
pub fn path(input: &[u8]) {
    // A target is printable ASCII, for the listener sees to that; a list of paths is any text.
    let text = String::from_utf8_lossy(input);
    if let Ok(path) = ArtifactPath::from_canonical(text.as_ref()) {
        check(&path);
    }
    for url in [text.as_ref(), &format!("http://{text}"), &format!("http://a/{text}")] {
        if let Some(key) = BlobKey::of_url(url) {
            check_key(&key);
        }
    }
    let (raw, query) = match text.split_once('?') {
        Some((raw, query)) => (raw, Some(query)),
        None => (text.as_ref(), None),
    };
    if let Ok(path) = ArtifactPath::from_request(raw, query) {
        check(&path);
        let form = path.upstream_form();
        let (raw, query) = match form.split_once('?') {
            Some((raw, query)) => (raw, Some(query)),
            None => (form.as_str(), None),
        };
        assert!(raw.bytes().all(|byte| byte.is_ascii_graphic()), "{raw:?}");
        assert_eq!(ArtifactPath::from_request(raw, query), Ok(path), "{form:?}");
    }
}

/// What may be relied on wherever a path is used for a file, a key or a URL.
fn check(path: &ArtifactPath) {
    let text = path.as_str();
    assert!(text.len() <= ARTIFACT_PATH_MAX);
    assert_eq!(ArtifactPath::from_canonical(text).as_ref(), Ok(path));
    assert!(!text.chars().any(|c| c.is_control() || c == '\\'));
    // However often somebody behind us decodes it, it stays inside the remote.
    let mut seen = path.without_query().to_owned();
    loop {
        assert!(!seen.starts_with('/'), "{text:?}");
        assert!(seen.split('/').all(|segment| segment != "." && segment != ".."), "{text:?}");
        assert!(!seen.contains(['\\', '\0', '\r', '\n']), "{text:?}");
        let next = percent_encoding::percent_decode_str(&seen).decode_utf8_lossy().into_owned();
        if next == seen {
            break;
        }
        seen = next;
    }
    let remote: RemoteName = "remote".parse().expect("it is a name");
    let key = BlobKey::of(&ArtifactKey { remote, path: path.clone() });
    assert_eq!(key.parts().0, "remote");
    check_key(&key);
}

/// What a store may rely on when it makes a file of a key.
fn check_key(key: &BlobKey) {
    let (folder, hash, name) = key.parts();
    assert!(folder.parse::<RemoteName>().is_ok() && hash.len() == 16, "{key}");
    assert!(!name.chars().any(|c| c.is_control() || c == '\\'), "{name:?}");
    assert!(!name.is_empty() && name.len() <= 255 && !name.contains('/'), "{name:?}");
    assert!(name != "." && name != "..");
    assert_eq!(BlobKey::from_listing(key.as_str()).as_ref(), Some(key));
}

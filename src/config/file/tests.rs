//! What is accepted, what is refused in which words, and what is only warned of.

use serde_json::json;

use super::*;
use crate::artifact::ArtifactPath;
use crate::config::problem::PROBLEMS_LISTED_MAX;
use crate::config::{Auth, Origin, Timeouts};

fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("hunter2".into()),
        "HOST" => Some("files.example.org".into()),
        "EMPTY" => Some(String::new()),
        "LINES" => Some("hunter2\n".into()),
        _ => None,
    }
}

const AROUND: Around<'static> = Around { regex_size_max: 1 << 20, env: &env };

fn parsed(text: &str) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    parse(text, "r.yaml", &AROUND)
}

/// A remote `a` that is right, with more lines, which begin at line 4.
fn with(lines: &str) -> String {
    let mut text = String::from("remotes:\n  a:\n    include_patterns: [\"x$\"]\n");
    for line in lines.lines() {
        text += &format!("    {line}\n");
    }
    text
}

fn remote_of(text: &str) -> Arc<Remote> {
    let (remotes, _) = parsed(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    remotes.by_name.values().next().expect("the text has a remote").clone()
}

fn origin_of(lines: &str) -> Origin {
    match &remote_of(&with(&format!("base_url: https://h.example.org/p\n{lines}"))).kind {
        Kind::Remote(origin) => (**origin).clone(),
        Kind::Local => panic!("the text has a remote with an upstream"),
    }
}

/// The text is refused with exactly these lines.
#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let report = match parsed(text) {
        Err(errors) => errors.report,
        Ok(_) => panic!("accepted:\n{text}"),
    };
    let found: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "\n{text}");
}

/// Lines of a remote are refused with exactly these messages; `base_url` is line 4.
#[track_caller]
fn refused_lines(lines: &str, expected: &[&str]) {
    refused(&with(&format!("base_url: https://h.example.org\n{lines}")), expected);
}

/// The text is accepted with exactly these warnings.
#[track_caller]
fn warned(text: &str, expected: &[&str]) {
    let (_, warnings) = parsed(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let found: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "\n{text}");
}

#[test]
fn a_remote_with_the_least_keys_has_the_documented_defaults() {
    let remote = remote_of(&with("base_url: https://h.example.org/p"));
    assert_eq!(remote.format.name(), "generic");
    assert_eq!(remote.description, "");
    assert_eq!(remote.max_bytes, None);
    let lifetimes = Lifetimes {
        file_ttl: None,
        index_ttl: Duration::from_secs(300),
        stale_if_error: None,
        negative_ttl: Duration::from_secs(30),
    };
    assert_eq!(remote.lifetimes, lifetimes);
    let origin = origin_of("");
    assert_eq!(
        origin.bases.iter().map(|url| url.as_str()).collect::<Vec<_>>(),
        ["https://h.example.org/p/"]
    );
    assert_eq!((origin.auth, origin.ca_file, origin.proxy), (None, None, None));
    assert_eq!(origin.timeouts, Timeouts::default());
    assert!(!origin.offline && !origin.allow_private_redirects);
}

#[test]
fn every_key_is_understood() {
    let text = with(
        "base_url: http://${HOST}/p?\n\
         type: remote\npackage: deb\ndescription: d\n\
         exclude_patterns: [y$]\nmutable_patterns: [z$]\n\
         cache: {file_ttl: 60, index_ttl: 0.5, stale_if_error: 7, negative_ttl: 0}\nmax_bytes: 5Gi\n\
         mirrors: [https://m1.example.org/, https://m2.example.org/q/]\n\
         auth: {bearer: \"${TOKEN}\"}\n\
         ca_file: ca.pem\nproxy: http://u:p@proxy.example.org:3128\n\
         timeouts: {connect: 0.5, first_byte: 5, idle: \"6\"}\n\
         offline: true\nallow_private_redirects: true\n",
    );
    let remote = remote_of(&text.replace("/p?", "/p"));
    assert_eq!(remote.format.name(), "deb");
    assert_eq!(remote.max_bytes, Some(5 << 30));
    let lifetimes = Lifetimes {
        file_ttl: Some(Duration::from_secs(60)),
        index_ttl: Duration::from_millis(500),
        stale_if_error: Some(Duration::from_secs(7)),
        negative_ttl: Duration::ZERO,
    };
    assert_eq!(remote.lifetimes, lifetimes);
    let Kind::Remote(origin) = &remote.kind else { panic!("it has an upstream") };
    let bases: Vec<&str> = origin.bases.iter().map(|url| url.as_str()).collect();
    assert_eq!(
        bases,
        ["http://files.example.org/p/", "https://m1.example.org/", "https://m2.example.org/q/"]
    );
    assert!(matches!(&origin.auth, Some(Auth::Bearer(token)) if token.reveal() == "hunter2"));
    assert_eq!(
        origin.proxy.as_ref().map(|url| url.as_str()),
        Some("http://u:p@proxy.example.org:3128/")
    );
    assert_eq!(origin.timeouts.connect, Duration::from_millis(500));
    assert_eq!(origin.timeouts.idle, Duration::from_secs(6));
    assert!(origin.offline && origin.allow_private_redirects);
    let path = |path: &str| ArtifactPath::from_canonical(path).unwrap();
    assert!(remote.patterns.allow(remote.format, &path("a/x")));
    assert!(!remote.patterns.allow(remote.format, &path("a/w")));
    assert!(remote.patterns.is_mutable(&path("a/z")));
}

#[test]
fn each_way_to_authenticate_is_understood() {
    let basic = |user: &str, password: &str| {
        Some(Auth::Basic { user: user.into(), password: crate::config::Secret::new(password) })
    };
    let secret = crate::config::Secret::new;
    for (lines, expected) in [
        ("auth: {basic: {user: u, password: \"a$${b\"}}", basic("u", "a${b")),
        (
            "auth: {basic: {user: \"${HOST}\", password: \"${TOKEN}!\"}}",
            basic("files.example.org", "hunter2!"),
        ),
        ("auth: {basic: {user: \"\", password: \"\"}}", basic("", "")),
        ("auth: {bearer: $x$}", Some(Auth::Bearer(secret("$x$")))),
        (
            "auth:\n  headers:\n    X-Key: \"k ${TOKEN}\"\n    Y: z",
            Some(Auth::Headers(vec![
                ("X-Key".into(), secret("k hunter2")),
                ("Y".into(), secret("z")),
            ])),
        ),
        ("auth:", None),
    ] {
        assert_eq!(origin_of(lines).auth, expected, "{lines}");
    }
    // A credential in the URL is one as well, decoded, and leaves the URL.
    let remote = remote_of(&with(
        "base_url: https://u%40x:p%3A@h.example.org\nmirrors: [https://m.example.org]",
    ));
    let Kind::Remote(origin) = &remote.kind else { panic!("it has an upstream") };
    assert_eq!(origin.auth, basic("u@x", "p:"));
    assert_eq!(origin.bases[0].as_str(), "https://h.example.org/");
}

#[test]
fn these_three_keys_stand_in_the_remote_or_below_cache() {
    for lines in [
        "keep_unused_for: 3600\nstale_if_error: 6\nnegative_ttl: 7",
        "cache: {keep_unused_for: 3600, stale_if_error: 6, negative_ttl: 7}",
    ] {
        let remote = remote_of(&with(&format!("type: local\n{lines}")));
        assert_eq!(remote.keeping.unused_for, Some(Duration::from_secs(3600)));
        assert_eq!(remote.lifetimes.stale_if_error, Some(Duration::from_secs(6)));
        assert_eq!(remote.lifetimes.negative_ttl, Duration::from_secs(7));
    }
    refused_lines(
        "cache: {negative_ttl: 5}\nnegative_ttl: 5",
        &["r.yaml:6: remotes.a.negative_ttl: is also below cache; keep the one below cache"],
    );
}

#[test]
fn max_bytes_bounds_one_artifact_and_below_cache_all_of_them() {
    let remote = remote_of(&with(
        "base_url: https://h.example.org\nmax_bytes: 5Mi\ncache: {max_bytes: 10Gi}\npin_patterns: ['^keep/']",
    ));
    assert_eq!(remote.max_bytes, Some(5 << 20));
    assert_eq!(remote.keeping.max_bytes, Some(10 << 30));
    let path = |path: &str| ArtifactPath::from_canonical(path).unwrap();
    assert!(remote.keeping.pins.hold(&path("keep/a")) && !remote.keeping.pins.hold(&path("a")));
    let shown = remote.to_json();
    assert_eq!(
        (&shown["max_bytes"], &shown["cache"]["max_bytes"]),
        (&json!(5 << 20), &json!(10_u64 << 30))
    );
    assert_eq!(shown["pin_patterns"], json!(["^keep/"]));
    refused_lines(
        "keep_unused_for: 0\npin_patterns: ['(']",
        &[
            "r.yaml:5: remotes.a.keep_unused_for: 0 is below 1; give 1 to 3153600000 seconds",
            "r.yaml:6: remotes.a.pin_patterns[0]: \"(\" is not a regular expression: unclosed group; close the parenthesis or escape it as \\(",
        ],
    );
    warned(
        &with("type: local\ncache: {max_bytes: 5}\npin_patterns: [x]"),
        &[
            "r.yaml:5: remotes.a.cache.max_bytes: has no effect in a local remote, which keeps what is uploaded; remove it; max_bytes beside cache bounds the single upload",
            "r.yaml:6: remotes.a.pin_patterns: has no effect in a local remote; remove it",
        ],
    );
}

#[test]
fn merge_keys_bring_in_what_is_not_there() {
    let text = "remotes:\n  a: &a\n    base_url: https://h.example.org\n    include_patterns: [x$]\n    \
                cache: {index_ttl: 1}\n  b:\n    <<: *a\n    description: b\n    cache: {index_ttl: 2}\n";
    let (remotes, warnings) = parsed(text).unwrap();
    assert_eq!(warnings, []);
    let ttl = |name: &str| remotes.by_name[&name.parse().unwrap()].lifetimes.index_ttl.as_secs();
    assert_eq!((ttl("a"), ttl("b")), (1, 2));
    assert_eq!(remotes.by_name[&"b".parse().unwrap()].patterns.include(), ["x$"]);
}

#[test]
fn what_is_no_configuration_is_refused() {
    let no_remotes = "there are no remotes; list them below \"remotes:\", as the example of the documentation does";
    refused("", &[&format!("r.yaml:1: {no_remotes}")]);
    refused("# nothing", &[&format!("r.yaml:2: {no_remotes}")]);
    refused("remotes:\n", &[&format!("r.yaml:1: remotes: {no_remotes}")]);
    refused("remotes: {}\n", &[&format!("r.yaml:1: remotes: {no_remotes}")]);
    refused(
        "x: 1\nremote:\n",
        &[
            "r.yaml:1: x: the key is unknown; the keys here are remotes",
            "r.yaml:2: remote: the key is unknown; did you mean remotes?",
        ],
    );
    refused(
        "- a\n",
        &[
            "r.yaml:1: a list is not a mapping; write its keys below it, indented, as \"key: value\"",
        ],
    );
    refused(
        "remotes:\n  - a\n",
        &[
            "r.yaml:1: remotes: a list is not a mapping; write its keys below it, indented, as \"key: value\"",
        ],
    );
    refused(
        "remotes:\n\ta:\n",
        &[
            "r.yaml:2: the file is not YAML that can be used: found character that cannot start any token; indent with blanks: YAML takes no tabs",
        ],
    );
    let (what, fix) = (
        "the file is not YAML that can be used",
        "look at this line and the one before it: indentation, colons, quotes",
    );
    refused(
        "remotes: {}\n---\nremotes: {}\n",
        &[&format!(
            "r.yaml: {what}: deserializing from YAML containing more than one document is not supported; {fix}"
        )],
    );
}

#[test]
fn unknown_and_repeated_keys_are_refused_with_the_nearest_known_one() {
    refused_lines(
        "includ_patterns: [y]\nfile_ttl: 5\ncache:\n  filettl: 1\n  mirrors: []\noffline: true\noffline: false\nfoo: 1",
        &[
            "r.yaml:5: remotes.a.includ_patterns: the key is unknown; did you mean include_patterns?",
            "r.yaml:6: remotes.a.file_ttl: the key is unknown; file_ttl belongs below cache",
            "r.yaml:8: remotes.a.cache.filettl: the key is unknown; did you mean file_ttl?",
            "r.yaml:9: remotes.a.cache.mirrors: the key is unknown; mirrors belongs to the remote itself",
            "r.yaml:11: remotes.a.offline: the key is there twice; remove one: only the last would count, silently",
            "r.yaml:12: remotes.a.foo: the key is unknown; the keys here are base_url, type, package, description, \
             include_patterns, exclude_patterns, mutable_patterns, pin_patterns, cache, mirrors, auth, ca_file, proxy, \
             timeouts, offline, allow_private_redirects, api_url, allow_overwrite, max_bytes, stale_if_error, negative_ttl, keep_unused_for",
        ],
    );
    refused(
        "remotes:\n  a: {type: local}\n  a: {type: local}\n  b/c: {type: local}\n",
        &[
            "r.yaml:3: remotes.a: the key is there twice; remove one: only the last would count, silently",
            "r.yaml:4: remotes.\"b/c\": \"b/c\" is not a name for a remote; use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first",
        ],
    );
}

#[test]
fn every_bad_expression_is_reported_with_its_own_index() {
    refused_lines(
        "include_patterns2: x\nexclude_patterns:\n  - \"ok\"\n  - \".*/x86_64/(.*\\\\.apk$\"\n  - '*.apk'\nmutable_patterns: [\"(a{1000}){1000}\", 5]",
        &[
            "r.yaml:5: remotes.a.include_patterns2: the key is unknown; did you mean include_patterns?",
            r#"r.yaml:8: remotes.a.exclude_patterns[1]: ".*/x86_64/(.*\.apk$" is not a regular expression: unclosed group; close the parenthesis or escape it as \("#,
            r#"r.yaml:9: remotes.a.exclude_patterns[2]: "*.apk" is not a regular expression: repetition operator missing expression; write .* for any text, or escape the character with \"#,
            r#"r.yaml:10: remotes.a.mutable_patterns[0]: "(a{1000}){1000}" compiles to more than 1048576 bytes; make it shorter, above all its counted repetitions, or raise REGEX_SIZE_MAX"#,
            "r.yaml:10: remotes.a.mutable_patterns[1]: 5 is not a text; put it in quotes",
        ],
    );
    // Each fits by itself.
    let many: String = (0..40).map(|i| format!("  - \"(?:{i}[a-z]{{300}}){{3}}$\"\n")).collect();
    let errors = parsed(&with(&format!("type: local\nexclude_patterns:\n{many}"))).unwrap_err();
    let report = errors.report.to_string();
    assert!(report.starts_with("r.yaml:6: remotes.a.exclude_patterns[0]: "), "{report}");
    assert!(report.contains("and the patterns below it: the list compiles to more"), "{report}");
}

#[test]
fn values_that_do_not_fit_are_refused_with_what_would() {
    refused_lines(
        "type: Remote\npackage: dbe\ndescription: 5\ninclude: 1\nmax_bytes: 5 apples\noffline: yes\ntimeouts: 30",
        &[
            r#"r.yaml:5: remotes.a.type: "Remote" is not one of the known words; did you mean remote?"#,
            r#"r.yaml:6: remotes.a.package: "dbe" is not a known package format; did you mean deb?"#,
            "r.yaml:7: remotes.a.description: 5 is not a text; put it in quotes",
            "r.yaml:8: remotes.a.include: the key is unknown; did you mean include_patterns?",
            r#"r.yaml:9: remotes.a.max_bytes: "5 apples" is not a number of bytes; give 1 byte to 1048576 TiB, as a number or with Ki, Mi, Gi, Ti, K, M, G, T"#,
            r#"r.yaml:10: remotes.a.offline: "yes" is not true or false; write true or false without quotes"#,
            "r.yaml:11: remotes.a.timeouts: 30 is not a mapping; write its keys below it, indented, as \"key: value\"",
        ],
    );
    refused_lines(
        "cache:\n  file_ttl: -1\n  index_ttl: 99999999999\n  negative_ttl: true\nmax_bytes: 0\ntimeouts: {idle: 0, connect: .inf}\nmirrors: https://m.example.org",
        &[
            "r.yaml:6: remotes.a.cache.file_ttl: -1 is below 0; give 0 to 3153600000 seconds",
            "r.yaml:7: remotes.a.cache.index_ttl: 99999999999 is above 3153600000; give 0 to 3153600000 seconds",
            "r.yaml:8: remotes.a.cache.negative_ttl: true is not a number of seconds; give 0 to 3153600000 seconds",
            "r.yaml:9: remotes.a.max_bytes: 0 is below 1 byte; give 1 byte to 1048576 TiB, as a number or with Ki, Mi, Gi, Ti, K, M, G, T",
            "r.yaml:10: remotes.a.timeouts.idle: 0 is below 0.01; give 0.01 to 3600 seconds",
            "r.yaml:10: remotes.a.timeouts.connect: inf is not a number of seconds; give 0.01 to 3600 seconds",
            "r.yaml:11: remotes.a.mirrors: \"https://m.example.org\" is not a list of URLs; write one entry a line, each behind \"- \"",
        ],
    );
}

#[test]
fn urls_that_cannot_be_asked_are_refused_without_their_credential() {
    refused(
        &with(
            "base_url: dl.example.org\nmirrors:\n  - ftp://u:hunter2@h.example.org\n  - https://\n  - https://h.example.org?q\n  \
             - \"https://h.example.org/a b\"\n  - localhost:8000\n  - 'https://u:hunter2@[h'\n  - https://${NOPE}/\n  - https://${}/\n  - 5\nproxy: socks5://h.example.org",
        ),
        &[
            r#"r.yaml:4: remotes.a.base_url: "dl.example.org" has no scheme; write https:// in front of it"#,
            r#"r.yaml:6: remotes.a.mirrors[0]: "ftp://***@h.example.org" is neither http nor https; begin it with https:// or http://"#,
            r#"r.yaml:7: remotes.a.mirrors[1]: "https://" is not a URL: empty host; write a URL such as https://files.example.org/path"#,
            r#"r.yaml:8: remotes.a.mirrors[2]: "https://h.example.org?q" has a query or a fragment; end it with the path: what clients ask for is put behind it"#,
            r#"r.yaml:9: remotes.a.mirrors[3]: "https://h.example.org/a b" has a blank, a control character or a backslash; remove it, or write a blank as %20"#,
            r#"r.yaml:10: remotes.a.mirrors[4]: "localhost:8000" is neither http nor https; begin it with https:// or http://"#,
            r#"r.yaml:11: remotes.a.mirrors[5]: "https://***@[h" is not a URL: invalid IPv6 address; write a URL such as https://files.example.org/path"#,
            r#"r.yaml:12: remotes.a.mirrors[6]: "https://${NOPE}/" names the variable NOPE, which is not set; set NOPE in the environment of the cache"#,
            r#"r.yaml:13: remotes.a.mirrors[7]: "https://${}/" has a ${ that no variable's name and } follow; write ${NAME}, or $${ for a literal ${"#,
            "r.yaml:14: remotes.a.mirrors[8]: 5 is not an http or https URL; put it in quotes",
            r#"r.yaml:15: remotes.a.proxy: "socks5://h.example.org" is neither http nor https; begin it with https:// or http://"#,
        ],
    );
    refused(
        &with("type: remote"),
        &[
            "r.yaml:2: remotes.a: a remote needs a base_url; add base_url: \"https://…\", or say type: \"local\"",
        ],
    );
}

#[test]
fn credentials_that_cannot_be_sent_are_refused_and_never_shown() {
    for (auth, expected) in [
        (
            "hunter2",
            "auth: a text is not a mapping; write its keys below it, indented, as \"key: value\"",
        ),
        (
            "{}",
            "auth: there are 0 ways to authenticate; give exactly one of basic, bearer and headers",
        ),
        (
            "{bearer: hunter2, basic: {user: u, password: hunter2}}",
            "auth: there are 2 ways to authenticate; give exactly one of basic, bearer and headers",
        ),
        (
            "{token: hunter2}",
            "auth.token: the key is unknown; the keys here are basic, bearer, headers",
        ),
        (
            "{password: hunter2}",
            "auth.password: the key is unknown; password belongs below auth.basic",
        ),
        ("{bearer: 1234567}", "auth.bearer: *** is not a text; put it in quotes"),
        (
            "{bearer: \"Bearer hunter2\"}",
            "auth.bearer: *** has a blank or a letter that no bearer token has; give the token alone, without \"Bearer\"",
        ),
        ("{bearer: \"${EMPTY}\"}", "auth.bearer: *** is empty; give the secret, or remove auth"),
        (
            "{bearer: \"${LINES}\"}",
            "auth.bearer: *** has a control character; remove it; it is often a line break at the end of a file or a variable",
        ),
        (
            "{bearer: \"${NOPE}hunter2\"}",
            "auth.bearer: *** names the variable NOPE, which is not set; set NOPE in the environment of the cache",
        ),
        (
            "{basic: {user: \"a:b\", password: hunter2}}",
            "auth.basic.user: the user has a colon or a control character; basic authentication cannot carry such a user: use another",
        ),
        (
            "{basic: {user: u}}",
            "auth.basic: password is missing; give user and password; an empty one as \"\"",
        ),
        (
            "{headers: {\"X Y\": hunter2}}",
            "auth.headers.\"X Y\": \"X Y\" is not a name of a header field; use letters, digits and hyphens",
        ),
        (
            "{headers: {Range: hunter2}}",
            "auth.headers.Range: \"Range\" is set by the cache itself; remove it",
        ),
        (
            "{headers: {X: [hunter2]}}",
            "auth.headers.X: *** is not a text; put a text there, in quotes",
        ),
    ] {
        refused_lines(&format!("auth: {auth}"), &[&format!("r.yaml:5: remotes.a.{expected}")]);
    }
    refused(
        &with(
            "base_url: https://u:hunter2@h.example.org\nmirrors: [https://v:hunter2@h.example.org]\nauth: {bearer: x}",
        ),
        &[
            "r.yaml:4: remotes.a.base_url: the URL and auth both have a credential; keep only auth",
            "r.yaml:5: remotes.a.mirrors[0]: \"https://***@h.example.org\" has another credential than the URL before it; give one for all of them, under auth",
        ],
    );
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    warned(&with("base_url: https://h.example.org"), &[]);
    warned(
        &with(
            "base_url: http://u:hunter2@h.example.org\nmirrors: [\"http://u:hunter2@${HOST}\"]\nproxy: \"http://u:${TOKEN}@p.example.org\"",
        ),
        &[
            "r.yaml:4: remotes.a.base_url: \"http://***@h.example.org\" holds a credential; put it into a variable and write ${NAME}, so that the file holds no secret",
            "r.yaml:4: remotes.a.base_url: \"http://***@h.example.org\" is plain http; use https if the server has it: anyone on the way can change what is cached",
            "r.yaml:5: remotes.a.mirrors[0]: \"http://***@${HOST}\" holds a credential; put it into a variable and write ${NAME}, so that the file holds no secret",
            "r.yaml:5: remotes.a.mirrors[0]: \"http://***@${HOST}\" is plain http; use https if the server has it: anyone on the way can change what is cached",
        ],
    );
    let all = "allows every path; name the directories and file names that clients need";
    let anywhere = "may stand anywhere in a path; begin it with ^ or end it with $";
    warned(
        "remotes:\n  a:\n    base_url: https://h.example.org\n    include_patterns: ['.*', '', '^.+$', '(.*)|x', 'tools/', 'a[$]', '^v1/', 'z$']\n",
        &[
            &format!("r.yaml:4: remotes.a.include_patterns[0]: \".*\" {all}"),
            &format!("r.yaml:4: remotes.a.include_patterns[1]: \"\" {all}"),
            &format!("r.yaml:4: remotes.a.include_patterns[2]: \"^.+$\" {all}"),
            &format!("r.yaml:4: remotes.a.include_patterns[3]: \"(.*)|x\" {all}"),
            &format!("r.yaml:4: remotes.a.include_patterns[4]: \"tools/\" {anywhere}"),
            &format!("r.yaml:4: remotes.a.include_patterns[5]: \"a[$]\" {anywhere}"),
        ],
    );
    warned(
        "remotes:\n  a:\n    base_url: https://h.example.org\n  b:\n    type: local\n    mutable_patterns: [x]\n    base_url: https://h.example.org\n",
        &[
            "r.yaml:2: remotes.a: no pattern is listed, so nothing can be fetched; list what clients may fetch, such as \"\\\\.tar\\\\.gz$\"",
            "r.yaml:6: remotes.b.mutable_patterns: has no effect in a local remote; remove it",
            "r.yaml:7: remotes.b.base_url: has no effect in a local remote; remove it",
        ],
    );
}

#[test]
fn overwriting_is_for_local_remotes_alone() {
    let local = remote_of(&with("type: local\nallow_overwrite: true"));
    assert!(local.allow_overwrite && !remote_of(&with("type: local")).allow_overwrite);
    warned(
        &with("base_url: https://h.example.org\nallow_overwrite: true"),
        &["r.yaml:5: remotes.a.allow_overwrite: has no effect but in a local remote; remove it"],
    );
}

#[test]
fn a_local_remote_without_include_patterns_takes_what_is_not_excluded() {
    let text = |kind: &str| format!("remotes:\n  a:\n    {kind}\n    exclude_patterns: [tmp$]\n");
    let allows =
        |remote: &Remote, path: &str| remote.allows(&ArtifactPath::from_canonical(path).unwrap());
    let local = remote_of(&text("type: local"));
    assert!(allows(&local, "any/path") && !allows(&local, "a.tmp"));
    let cached = remote_of(&text("base_url: https://h.example.org"));
    assert!(!allows(&cached, "any/path"));
    let bounded = remote_of(&text("type: local\n    include_patterns: [^a/]"));
    assert!(allows(&bounded, "a/b") && !allows(&bounded, "b/a"));
}

#[test]
fn one_error_hides_no_other() {
    refused(
        &with(
            "base_url: no\ncache: 5\nauth: {bearer: \"${NOPE}\"}\ntimeouts: {idle: x}\noffline: 1",
        )
        .replace("  a:", "  a/b:"),
        &[
            "r.yaml:2: remotes.\"a/b\": \"a/b\" is not a name for a remote; use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first",
            "r.yaml:4: remotes.\"a/b\".base_url: \"no\" has no scheme; write https:// in front of it",
            "r.yaml:5: remotes.\"a/b\".cache: 5 is not a mapping; write its keys below it, indented, as \"key: value\"",
            "r.yaml:6: remotes.\"a/b\".auth.bearer: *** names the variable NOPE, which is not set; set NOPE in the environment of the cache",
            "r.yaml:7: remotes.\"a/b\".timeouts.idle: \"x\" is not a number of seconds; give 0.01 to 3600 seconds",
            "r.yaml:8: remotes.\"a/b\".offline: 1 is not true or false; write true or false without quotes",
        ],
    );
}

#[test]
fn the_reference_has_a_line_for_each_key() {
    let reference = reference();
    for line in [
        "| `index_ttl` | `300` | 0 to 3153600000 seconds | For index files and what `mutable_patterns` names; 0 is revalidate every time. |",
        "| `bearer` | none | text, never printed | A bearer token. |",
        "| `package` | `generic` | generic or alpine or rpm or deb | The format of the repository: which files are indexes and which never change. |",
    ] {
        assert!(reference.lines().any(|other| other == line), "{reference}");
    }
}

#[test]
fn a_file_with_very_many_errors_lists_the_first_and_counts_the_rest() {
    let lines: String = (0..250).map(|i| format!("wrong{i}: 1\n")).collect();
    let report = parsed(&with(&format!("type: local\n{lines}"))).unwrap_err().report;
    assert_eq!(report.errors.len(), PROBLEMS_LISTED_MAX);
    assert_eq!(report.errors_unlisted, 150);
    assert!(report.to_string().ends_with("… and 150 more errors\n"));
}

#[test]
fn a_file_is_read_from_disk_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("remotes.yaml");
    let report = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        check(&path, &AROUND).to_string()
    };
    let name = path.display();
    let missing = check(&folder.path().join("none"), &AROUND);
    assert!(missing.to_string().contains("; name the file in CONFIG_PATH"), "{missing}");
    assert!(!missing.is_usable());
    assert!(check(folder.path(), &AROUND).to_string().contains("cannot be read"));
    assert_eq!(
        report(b"a: 1\nb: \xff\n"),
        format!("{name}:2: the file is not UTF-8; save it as UTF-8\n")
    );
    let large = vec![b'#'; FILE_BYTES_MAX as usize + 1];
    assert!(report(&large).contains("the file is larger than 4 MiB"));
    assert_eq!(report(with("base_url: https://h.example.org").as_bytes()), "");
    let ca_file = with("base_url: https://h.example.org\nca_file: /nowhere/ca.pem");
    let found = report(ca_file.as_bytes());
    assert!(found.starts_with(&format!(
        "{name}:5: remotes.a.ca_file: \"/nowhere/ca.pem\" cannot be read: "
    )));
    assert!(parse(&"#".repeat(FILE_BYTES_MAX as usize + 1), "r.yaml", &AROUND).is_err());
}

#[test]
fn what_is_in_force_is_shown_without_secrets() {
    let text = with(
        "base_url: https://u:hunter2@h.example.org/p\nproxy: http://u:hunter2@p.example.org\ncache: {stale_if_error: 1.5}",
    ) + "  b:\n    base_url: https://h.example.org\n    auth: {headers: {X-Key: \"${TOKEN}\"}}\n  c: {type: local}\n";
    let (remotes, _) = parsed(&text).unwrap();
    let shown = remotes.to_json();
    for text in [shown.to_string(), format!("{remotes:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let a = &shown["remotes"]["a"];
    assert_eq!(a["base_url"], "https://h.example.org/p/");
    assert_eq!(a["auth"]["basic"]["password"], "***");
    assert_eq!(a["proxy"], "http://***@p.example.org/");
    assert_eq!(a["cache"]["stale_if_error"], 1.5);
    assert_eq!(a["include_patterns"][0], "x$");
    assert_eq!(shown["remotes"]["b"]["auth"]["headers"]["X-Key"], "***");
    assert_eq!(shown["remotes"]["c"]["type"], "local");
    assert!(shown["remotes"]["c"].get("base_url").is_none());
}

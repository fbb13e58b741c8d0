//! No text makes the reading panic, however it came about.

use proptest::prelude::*;

use super::example_tests::EXAMPLE;
use super::*;

fn parsed(text: &str) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    let env = |name: &str| (name == "TOKEN").then(|| "hunter2".to_owned());
    parse(text, "remotes.yaml", &Around { regex_size_max: 1 << 20, env: &env })
}

/// Pieces that YAML and this format give a meaning.
const PIECES: &[&str] = &[
    "remotes:",
    "a:",
    "base_url:",
    "auth:",
    "basic:",
    "headers:",
    "cache:",
    "include_patterns:",
    "- ",
    "? ",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "\n\t",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x ",
    "*x",
    "<<: ",
    "!t ",
    "|",
    ">",
    "'",
    "\"",
    "\\",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "https://u:p@h.example.org",
    "${TOKEN}",
    "${",
    "}",
    "-1",
    "1e999",
    "0x",
    "~",
    ".*",
    "(",
    "local",
    "type: ",
    "é",
    "\u{feff}",
    "\u{0}",
    "\r\n",
];

proptest! {
    #[test]
    fn no_text_makes_the_reading_panic(text in "(?s).*") {
        let _ = parsed(&text);
    }

    #[test]
    fn no_mixture_of_meaningful_pieces_makes_the_reading_panic(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)
    ) {
        let _ = parsed(&pieces.concat());
    }

    #[test]
    fn no_change_of_one_place_in_a_real_file_makes_the_reading_panic(
        at in 0..EXAMPLE.len(), len in 0..9_usize, piece in prop::sample::select(PIECES)
    ) {
        let behind = (at + len).min(EXAMPLE.len());
        let changed = [&EXAMPLE.as_bytes()[..at], piece.as_bytes(), &EXAMPLE.as_bytes()[behind..]].concat();
        let _ = parsed(&String::from_utf8_lossy(&changed));
    }
}

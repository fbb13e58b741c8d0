//! Reads values out of a YAML document by the tables of keys, and records what does not fit.
//!
//! Every method gives back something to go on with, so that one reading finds every error;
//! what was read counts only if none was recorded. Nothing here knows what a remote is.

use std::collections::HashSet;

use super::key::{Key, Kind, Misfit};
use super::problem::{PROBLEMS_LISTED_MAX, Problem, Report, nearest, quoted};
use super::yaml::{Node, line_of};

/// How much text is parsed at most to find the lines of the errors, and of the warnings, of a
/// file: each takes one pass.
const LOCATING_BYTES_MAX: usize = 32 << 20;

/// Where a part of the document stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The way to it, for [`line_of`].
    steps: Vec<usize>,
    /// Its dotted key.
    pub(super) key: String,
}

impl Place {
    fn entry(&self, step: usize, name: &str) -> Self {
        // A dot inside a name would read as a step, and a line break would end the message.
        let is_plain = |char: char| char.is_alphanumeric() || "_-<".contains(char);
        let plain = !name.is_empty() && name.len() <= 64 && name.chars().all(is_plain);
        let name = if plain { name.to_owned() } else { quoted(name) };
        let dot = if self.key.is_empty() { "" } else { "." };
        self.below(step, format!("{}{dot}{name}", self.key))
    }

    fn item(&self, step: usize) -> Self {
        self.below(step, format!("{}[{step}]", self.key))
    }

    fn below(&self, step: usize, key: String) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps, key }
    }
}

/// A value as one may print it.
#[derive(Debug, Clone)]
pub(super) struct Shown(Option<String>);

impl Shown {
    /// The problem is not one value's.
    pub(super) const NOTHING: Self = Self(None);

    /// A text that is no secret.
    pub(super) fn text(text: &str) -> Self {
        Self(Some(quoted(text)))
    }

    /// A secret is there.
    pub(super) fn masked() -> Self {
        Self(Some("***".to_owned()))
    }

    fn node(node: &Node, kind: Kind) -> Self {
        Self(Some(match node {
            _ if kind == Kind::Secret => return Self::masked(),
            Node::Null => "nothing".to_owned(),
            Node::Switch(value) => value.to_string(),
            Node::Whole(value) => value.to_string(),
            Node::Fraction(value) => value.to_string(),
            Node::Text(text) if matches!(kind, Kind::Url | Kind::Urls) => {
                quoted(&super::shown::without_credential(text))
            }
            // Where keys are expected, a text may be a secret that lost its key.
            Node::Text(_) if kind == Kind::Group => "a text".to_owned(),
            Node::Text(text) => quoted(text),
            Node::List(_) => "a list".to_owned(),
            Node::Map(_) => "a mapping".to_owned(),
        }))
    }
}

/// A value with its place.
#[derive(Debug)]
pub(super) struct Placed<T> {
    pub(super) place: Place,
    pub(super) value: T,
}

/// The entries of one mapping, judged by a table of keys.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    /// Where the mapping stands.
    pub(super) place: Place,
    keys: &'static [Key],
    entries: Vec<Entry<'n>>,
}

/// One entry of a mapping.
#[derive(Debug)]
pub(super) struct Entry<'n> {
    pub(super) name: &'n str,
    pub(super) place: Place,
    pub(super) node: &'n Node,
}

impl Fields<'_> {
    /// The entry of a key, unless it is absent or empty.
    fn get(&self, name: &str) -> Option<&Entry<'_>> {
        self.entries.iter().find(|entry| entry.name == name && *entry.node != Node::Null)
    }

    /// Whether the key has a value, fit or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Where a key stands, or the mapping if the key is absent.
    pub(super) fn place_of(&self, name: &str) -> Place {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .map_or_else(|| self.place.clone(), |entry| entry.place.clone())
    }

    fn key(&self, name: &str) -> &'static Key {
        self.keys.iter().find(|key| key.name == name).expect("only keys of the table are read")
    }
}

/// What one reading has found so far.
pub(super) struct Reading<'a> {
    /// Looks up environment variables.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<(Place, Problem)>,
    warnings: Vec<(Place, Problem)>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Records an error.
    pub(super) fn error(
        &mut self,
        place: &Place,
        shown: Shown,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.errors.push((place.clone(), problem(place, shown, what.into(), fix.into())));
    }

    /// Records a warning.
    pub(super) fn warn(
        &mut self,
        place: &Place,
        shown: Shown,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.warnings.push((place.clone(), problem(place, shown, what.into(), fix.into())));
    }

    fn misfit(&mut self, place: &Place, shown: Shown, misfit: Misfit) {
        self.error(place, shown, misfit.what, misfit.fix);
    }

    /// Whether no error was recorded.
    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// How many errors were recorded.
    pub(super) fn error_count(&self) -> usize {
        self.errors.len()
    }

    /// Ends the reading: finds the lines, sorts by them, and cuts what is too much to list.
    pub(super) fn into_report(self, file: &str, text: &str) -> Report {
        let affordable = LOCATING_BYTES_MAX / text.len().max(1);
        let listed_max = PROBLEMS_LISTED_MAX.min(affordable).max(1);
        let settle = |problems: Vec<(Place, Problem)>| {
            let unlisted = problems.len().saturating_sub(listed_max);
            let mut listed: Vec<(Vec<usize>, Problem)> = problems
                .into_iter()
                .take(listed_max)
                .map(|(place, problem)| {
                    let line = line_of(text, &place.steps);
                    (place.steps, Problem { file: file.to_owned(), line, ..problem })
                })
                .collect();
            listed.sort_by(|(a_steps, a), (b_steps, b)| (a.line, a_steps).cmp(&(b.line, b_steps)));
            (listed.into_iter().map(|(_, problem)| problem).collect(), unlisted)
        };
        let (errors, errors_unlisted) = settle(self.errors);
        let (warnings, warnings_unlisted) = settle(self.warnings);
        Report { errors, errors_unlisted, warnings, warnings_unlisted }
    }

    /// The entries of a mapping whose keys the operator chooses. Duplicates are errors, the
    /// entries that `<<` brings are behind those that stand there and give way to them.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, place: &Place) -> Vec<Entry<'n>> {
        let map = match node {
            Node::Null => return Vec::new(),
            Node::Map(map) => map,
            other => {
                let what = format!("is not {}", Kind::Group.noun());
                self.error(place, Shown::node(other, Kind::Group), what, Kind::Group.fix());
                return Vec::new();
            }
        };
        let mut entries: Vec<Entry<'n>> = Vec::new();
        let mut merged = Vec::new();
        let mut names: HashSet<&'n str> = HashSet::new();
        for (step, (name, node)) in map.iter().enumerate() {
            let entry = Entry { name, place: place.entry(step, name), node };
            if !names.insert(name) {
                let fix = "remove one: only the last would count, silently";
                self.error(&entry.place, Shown::NOTHING, "the key is there twice", fix);
            } else if name == MERGE {
                merged.push(entry);
            } else {
                entries.push(entry);
            }
        }
        for merge in merged {
            let sources: Vec<(Place, &'n Node)> = match merge.node {
                Node::List(list) => {
                    list.iter().enumerate().map(|(i, node)| (merge.place.item(i), node)).collect()
                }
                node => vec![(merge.place, node)],
            };
            for (place, node) in sources {
                for entry in self.entries(node, &place) {
                    if names.insert(entry.name) {
                        entries.push(entry);
                    }
                }
            }
        }
        entries
    }

    /// The entries of a mapping whose keys a table lists; any other key is an error.
    /// `elsewhere` names keys that belong to another mapping, with that mapping.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        place: &Place,
        keys: &'static [Key],
        elsewhere: &[(&[Key], &str)],
    ) -> Fields<'n> {
        let mut entries = self.entries(node, place);
        entries.retain(|entry| {
            let is_known = keys.iter().any(|key| key.name == entry.name);
            if !is_known {
                let fix = fix_for_unknown(entry.name, keys, elsewhere);
                self.error(&entry.place, Shown::NOTHING, "the key is unknown", fix);
            }
            is_known
        });
        Fields { place: place.clone(), keys, entries }
    }

    /// The mapping below a key, empty if absent.
    pub(super) fn group<'n>(
        &mut self,
        fields: &Fields<'n>,
        name: &str,
        keys: &'static [Key],
        elsewhere: &[(&[Key], &str)],
    ) -> Fields<'n> {
        let place = fields.place_of(name);
        let node = fields.entries.iter().find(|entry| entry.name == name).map(|entry| entry.node);
        self.fields(node.unwrap_or(&Node::Null), &place, keys, elsewhere)
    }

    /// The mapping below a key whose keys the operator chooses.
    pub(super) fn open_group<'n>(&mut self, fields: &Fields<'n>, name: &str) -> Vec<Entry<'n>> {
        let place = fields.place_of(name);
        let node = fields.entries.iter().find(|entry| entry.name == name).map(|entry| entry.node);
        self.entries(node.unwrap_or(&Node::Null), &place)
    }

    /// A number, or the key's default.
    pub(super) fn number(&mut self, fields: &Fields<'_>, name: &str) -> Option<u64> {
        let key = fields.key(name);
        let default = key.kind.number(key.default).ok();
        let Some(entry) = fields.get(name) else { return default };
        // A number in quotes can mean nothing else.
        let text = match entry.node {
            Node::Whole(number) => number.to_string(),
            Node::Fraction(number) => number.to_string(),
            Node::Text(text) => text.clone(),
            _ => String::new(),
        };
        match key.kind.number(&text) {
            Ok(number) => Some(number),
            Err(misfit) => {
                self.misfit(&entry.place, Shown::node(entry.node, key.kind), misfit);
                default
            }
        }
    }

    /// A switch, or the key's default.
    pub(super) fn switch(&mut self, fields: &Fields<'_>, name: &str) -> bool {
        let key = fields.key(name);
        match fields.get(name).map(|entry| (entry, entry.node)) {
            None => key.default == "true",
            Some((_, Node::Switch(value))) => *value,
            Some((entry, node)) => {
                let what = format!("is not {}", key.kind.noun());
                self.error(&entry.place, Shown::node(node, key.kind), what, key.kind.fix());
                false
            }
        }
    }

    /// A text, or `None` if the key is absent.
    pub(super) fn text(&mut self, fields: &Fields<'_>, name: &str) -> Option<Placed<String>> {
        let kind = fields.key(name).kind;
        let entry = fields.get(name)?;
        self.scalar(entry.node, &entry.place, kind)
    }

    /// One text, wherever it stands.
    pub(super) fn scalar(
        &mut self,
        node: &Node,
        place: &Place,
        kind: Kind,
    ) -> Option<Placed<String>> {
        if let Node::Text(text) = node {
            return Some(Placed { place: place.clone(), value: text.clone() });
        }
        let fix = match node {
            Node::List(_) | Node::Map(_) | Node::Null => kind.fix(),
            // 0123, 1.10 or yes would not come back as they were written.
            _ => "put it in quotes".to_owned(),
        };
        let noun = if kind == Kind::Secret { Kind::Text.noun() } else { kind.noun() };
        self.error(place, Shown::node(node, kind), format!("is not {noun}"), fix);
        None
    }

    /// One of a few words, or the key's default.
    pub(super) fn word(&mut self, fields: &Fields<'_>, name: &str, known: &[&str]) -> String {
        let key = fields.key(name);
        let Some(word) = self.text(fields, name) else { return key.default.to_owned() };
        if !known.contains(&word.value.as_str()) {
            let fix = match nearest(&word.value, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => key.kind.fix(),
            };
            let what = format!("is not {}", key.kind.noun());
            self.error(&word.place, Shown::text(&word.value), what, fix);
            return key.default.to_owned();
        }
        word.value
    }

    /// A list of texts; empty if the key is absent.
    pub(super) fn texts(&mut self, fields: &Fields<'_>, name: &str) -> Vec<Placed<String>> {
        let kind = fields.key(name).kind;
        let Some(entry) = fields.get(name) else { return Vec::new() };
        let Node::List(items) = entry.node else {
            let what = format!("is not {}", kind.noun());
            self.error(&entry.place, Shown::node(entry.node, kind), what, kind.fix());
            return Vec::new();
        };
        let of_item = if kind == Kind::Urls { Kind::Url } else { Kind::Text };
        let items = items.iter().enumerate();
        items.filter_map(|(i, node)| self.scalar(node, &entry.place.item(i), of_item)).collect()
    }
}

/// The key that brings in the entries of other mappings.
const MERGE: &str = "<<";

fn problem(place: &Place, Shown(value): Shown, what: String, fix: String) -> Problem {
    Problem { key: place.key.clone(), value, what, fix, ..Problem::default() }
}

fn fix_for_unknown(name: &str, keys: &[Key], elsewhere: &[(&[Key], &str)]) -> String {
    let names = |keys: &[Key]| keys.iter().map(|key| key.name).collect::<Vec<_>>();
    if let Some(near) = nearest(name, names(keys).into_iter()) {
        return format!("did you mean {near}?");
    }
    for (others, home) in elsewhere {
        if let Some(near) = nearest(name, names(others).into_iter()) {
            return format!("{near} belongs {home}");
        }
    }
    format!("the keys here are {}", names(keys).join(", "))
}

//! Heads and their members, which upstream publishes one after the other: what fits together, and
//! how long what is stored of them is fresh.
//!
//! A member is held against the digest that its head states. Where it does not fit, or is gone, one
//! of the two is of another publication: the head is in doubt, and fetched anew. A head that states
//! nothing of it leaves only the order of things to judge by.

use std::time::Duration;

use super::fetch::{Fetch, Fetcher};
use crate::artifact::{ArtifactKey, Digest, Entry};
use crate::body::read_to_vec;
use crate::chain::chain;
use crate::coord::Mark;
use crate::formats::Class;
use crate::index::ArtifactIndex;

/// How long a head and its members may change one after the other.
const SETTLES_AFTER: Duration = Duration::from_secs(60);
/// How long what is fetched or confirmed meanwhile is fresh, at most.
const UNSETTLED_TTL: Duration = Duration::from_secs(5);
/// The longest head that is read for what it states of its members, in bytes.
const STATING_BYTES_MAX: u64 = 8 << 20;
/// A head that was confirmed before that may have changed unnoticed.
const CONFIRMED_LATELY: Duration = Duration::from_secs(10);

impl Fetcher {
    /// Publications take their time: while a head and its members change upstream, what comes of
    /// them may not fit together. So what is fetched or confirmed then is fresh for moments only.
    pub(super) fn mark_unsettled(&self, fetch: &Fetch<'_>, entry: &Entry, fits: Option<bool>) {
        let before = fetch.stored.as_ref().filter(|before| before.digest != entry.digest);
        match fetch.class {
            Class::Head if before.is_some() => {
                self.ports.freshness.set(fetch.key, Mark::Unsettled, SETTLES_AFTER);
            }
            Class::Member => {
                let Some((key, head)) = self.head_of(fetch) else { return };
                let confirmed = self.ports.clock.now().duration_since(head.validated_at);
                let is_odd = match (fits, &fetch.stored) {
                    (Some(fits), _) => !fits,
                    _ if entry.head != Some(head.digest) => false,
                    // It changed, and its head did not.
                    (None, Some(_)) => before.is_some_and(|before| before.head == entry.head),
                    // Upstream's head may be another by now.
                    (None, None) => confirmed.is_ok_and(|ago| ago > CONFIRMED_LATELY),
                };
                if is_odd {
                    self.doubt(&key, head.digest);
                }
            }
            _ => {}
        }
    }

    /// Has a head fetched anew at its next request; while it is unsettled already, once it is not
    /// fresh any more, so that a mirror whose files never fit has it fetched no more often.
    pub(super) fn doubt(&self, head: &ArtifactKey, digest: Digest) {
        let marks = &self.ports.freshness;
        marks.set(head, Mark::Doubted, SETTLES_AFTER);
        if marks.remaining(head, Mark::Unsettled).is_none() {
            marks.set(head, Mark::Unsettled, SETTLES_AFTER);
            marks.clear(head, Mark::Fresh(digest));
        }
    }

    /// Whether a member that does not fit its head is to be fetched whole although upstream confirms
    /// it: validators do not tell every version apart. Once a minute at most.
    pub(super) fn is_first_misfit(&self, member: &ArtifactKey) -> bool {
        let is_first = self.ports.freshness.remaining(member, Mark::Doubted).is_none();
        if is_first {
            self.ports.freshness.set(member, Mark::Doubted, SETTLES_AFTER);
        }
        is_first
    }

    /// Whether these bytes of a member are those that the head states which it began under; `None`
    /// where that can't be told.
    pub(super) fn fits_head(&self, fetch: &Fetch<'_>, digest: Digest) -> Option<bool> {
        let (key, head) = self.head_of(fetch).filter(|_| fetch.class == Class::Member)?;
        if Some(head.digest) != fetch.writer.member_of() {
            return None;
        }
        Some(self.stated(fetch, &key, &head)? == digest)
    }

    /// The digest that a stored head states for what is fetched.
    fn stated(&self, fetch: &Fetch<'_>, key: &ArtifactKey, head: &Entry) -> Option<Digest> {
        if head.size > STATING_BYTES_MAX {
            return None;
        }
        let opened = self.ports.blobs.open_current(&head.blob, &head.version, 0..head.size);
        let text = opened.map_err(|error| chain(&error)).and_then(|mut body| {
            read_to_vec(&mut body, STATING_BYTES_MAX as usize).map_err(|error| chain(&error))
        });
        match text {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text);
                fetch.remote.format.stated(&key.path, &text, &fetch.key.path)
            }
            Err(error) => {
                self.counters.blob_errors.inc();
                tracing::warn!(head = %key, error, "a head cannot be read for what it states of its members");
                None
            }
        }
    }

    /// How long what came, or was confirmed, is fresh.
    pub(super) fn lifetime(&self, fetch: &Fetch<'_>) -> Duration {
        let index_ttl = fetch.remote.lifetimes.index_ttl;
        let is_unsettled =
            |key: &ArtifactKey| self.ports.freshness.remaining(key, Mark::Unsettled).is_some();
        let may_change_soon = match fetch.class {
            Class::Head => is_unsettled(fetch.key),
            Class::Member => self.head_of(fetch).is_some_and(|(key, _)| is_unsettled(&key)),
            Class::Immutable => false,
        };
        if may_change_soon { index_ttl.min(UNSETTLED_TTL) } else { index_ttl }
    }

    /// The head that a member is valid with, as it is stored now.
    pub(super) fn head_of(&self, fetch: &Fetch<'_>) -> Option<(ArtifactKey, Entry)> {
        let heads = fetch.remote.format.heads_of(&fetch.key.path);
        let keys = heads.into_iter().map(|path| fetch.remote.key(path));
        stored_head(&*self.ports.index, keys)
    }

    pub(super) fn mark_absent(&self, fetch: &Fetch<'_>) {
        let mut negative_ttl = fetch.remote.lifetimes.negative_ttl;
        if fetch.class == Class::Member {
            // A head that names it may be on its way, and so may it.
            negative_ttl = negative_ttl.min(UNSETTLED_TTL);
        }
        if !negative_ttl.is_zero() {
            self.ports.freshness.set(fetch.key, Mark::Absent, negative_ttl);
        }
        for path in fetch.remote.format.heads_of(&fetch.key.path) {
            let head = fetch.remote.key(path);
            let Ok(Some(entry)) = self.ports.index.get(&head) else { continue };
            match self.stated(fetch, &head, &entry) {
                // That can't be right any more.
                Some(_) => self.doubt(&head, entry.digest),
                // It may name it in another way, or not at all, as a signature that there is not.
                None => self.ports.freshness.clear(&head, Mark::Fresh(entry.digest)),
            }
        }
    }
}

/// Of the heads that may name a member, likeliest first, the one that is stored; of those in one
/// folder the one that upstream confirmed last, since it may have given up the other.
pub(super) fn stored_head(
    index: &dyn ArtifactIndex,
    keys: impl Iterator<Item = ArtifactKey>,
) -> Option<(ArtifactKey, Entry)> {
    let folder = |key: &ArtifactKey| {
        key.path.without_query().rsplit_once('/').map(|(folder, _)| folder.to_owned())
    };
    let mut newest: Option<(ArtifactKey, Entry)> = None;
    for key in keys {
        if let Some((found, _)) = &newest
            && folder(found) != folder(&key)
        {
            break;
        }
        let Ok(Some(entry)) = index.get(&key) else { continue };
        if newest.as_ref().is_none_or(|(_, found)| found.validated_at < entry.validated_at) {
            newest = Some((key, entry));
        }
    }
    newest
}

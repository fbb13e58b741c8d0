//! Hashing what is stored, row by row.
//!
//! One thread reads rows, [`THREADS`] hash blobs, and the caller's tells what was found: so a
//! large file holds up one thread and not the run. Bytes stream through a buffer for each.
//!
//! Something counts as wrong only if the row that said otherwise still stands there: a refresh
//! replaces the blob first and its row a moment later. Who repairs between the two takes the
//! old row away and leaves the new blob, and the refresh writes its row all the same.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::thread;

use crossbeam_channel::{Receiver, SendError, Sender, bounded};

use super::{Finding, UNREADABLE_MAX, UpkeepError, Watch, What, Work};
use crate::artifact::{ArtifactKey, Entry, RemoteName};
use crate::blob::BlobError;
use crate::body::{BodyError, Piece};
use crate::cache::Ports;
use crate::cache::prove::Hashing;
use crate::cache::steps::as_published;
use crate::chain::chain;
use crate::index::{IndexError, Put, Row, Scan};

/// Threads that hash: two keep a disk and a core busy, and leave the rest to a server.
const THREADS: usize = 2;
/// Rows and news that wait between the threads.
const QUEUE_MAX: usize = 64;
/// Bytes between two signs of progress inside one file.
const STRIDE_BYTES: u64 = 8 << 20;
/// How often a file that is refreshed while it is judged is judged anew.
const ROUNDS_MAX: usize = 3;

/// What to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// Of this remote only.
    pub remote: Option<RemoteName>,
    /// What to do about what is wrong.
    pub repair: Repair,
    /// The remotes of which a row may be dropped, because an upstream has what goes; `None`
    /// where that is no matter.
    pub fetchable: Option<BTreeSet<RemoteName>>,
}

/// What to do about what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing; nothing at all is written.
    Nothing,
    /// The row goes, then a damaged blob, so that the next request fetches anew; not where
    /// nothing can be fetched ([`Verify::fetchable`]). Rows that were unproven and are right are
    /// proven from now on.
    Drop,
}

/// What was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Rows that were judged, and the bytes that they stand for.
    pub rows: Work,
    /// Whose bytes are right.
    pub right: u64,
    /// Of these, rows that were unproven and are no more.
    pub proven: u64,
    /// Whose blob is not there.
    pub missing: u64,
    /// Whose blob was replaced or written to.
    pub changed: u64,
    /// Whose bytes are wrong.
    pub damaged: u64,
    /// Of the wrong ones, those that were dropped.
    pub dropped: u64,
    /// Rows that a server wrote or removed meanwhile, again and again.
    pub overtaken: u64,
    /// What could not be judged; never dropped.
    pub unreadable: u64,
}

impl Verified {
    /// Whether nothing is wrong now: everything was judged, and what was wrong was dropped.
    pub fn is_sound(&self) -> bool {
        self.unreadable == 0 && self.missing + self.changed + self.damaged == self.dropped
    }
}

/// Hashes every stored artifact and compares it with its row.
///
/// # Errors
/// [`UpkeepError`].
pub fn verify(
    ports: &Ports,
    what: &Verify,
    watch: &mut dyn Watch,
) -> Result<Verified, UpkeepError> {
    let scan = Scan { remote: what.remote.clone(), ..Scan::default() };
    watch.began(recorded(ports, &scan)?);
    let (give_row, rows) = bounded(QUEUE_MAX);
    let (tell, news) = bounded(QUEUE_MAX);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let worker = Worker { ports, what, rows: rows.clone(), tell: tell.clone() };
            named("verify")
                .spawn_scoped(scope, move || worker.run())
                .map_err(UpkeepError::Thread)?;
        }
        // Only the workers hold these ends from now on, so that their end is everybody's.
        drop((rows, tell));
        let scanning = named("rows")
            .spawn_scoped(scope, move || read_rows(ports, &scan, &give_row))
            .map_err(UpkeepError::Thread)?;
        let done = sum_up(&news, watch);
        // Nobody listens any more: whoever still works stops at the next word.
        drop(news);
        let scanned = scanning.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let done = done?;
        scanned.map_err(UpkeepError::Index)?;
        Ok(done)
    })
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

fn recorded(ports: &Ports, scan: &Scan) -> Result<Work, UpkeepError> {
    let mut work = Work::default();
    let counting = ports.index.scan(scan, &mut |row| {
        work.files += 1;
        work.bytes += row.entry.size;
        ControlFlow::Continue(())
    });
    counting.map_err(UpkeepError::Index)?;
    Ok(work)
}

fn read_rows(ports: &Ports, scan: &Scan, give: &Sender<Row>) -> Result<(), IndexError> {
    ports.index.scan(scan, &mut |row| match give.send(row) {
        Ok(()) => ControlFlow::Continue(()),
        Err(SendError(_)) => ControlFlow::Break(()),
    })
}

fn sum_up(news: &Receiver<News>, watch: &mut dyn Watch) -> Result<Verified, UpkeepError> {
    let mut done = Verified::default();
    for news in news {
        match news {
            News::Hashed(bytes) => watch.advanced(Work { files: 0, bytes }),
            News::Judged { verdict, size, unhashed } => {
                done.rows.files += 1;
                done.rows.bytes += size;
                watch.advanced(Work { files: 1, bytes: unhashed });
                done.add(&verdict);
                if let Verdict::Wrong(finding) = &verdict {
                    watch.found(finding);
                }
                if done.unreadable >= UNREADABLE_MAX {
                    return Err(UpkeepError::Unreadable);
                }
            }
        }
    }
    Ok(done)
}

impl Verified {
    fn add(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Right => self.right += 1,
            Verdict::Proven => {
                self.right += 1;
                self.proven += 1;
            }
            Verdict::Overtaken => self.overtaken += 1,
            Verdict::Wrong(finding) => {
                match finding.what {
                    What::Missing => self.missing += 1,
                    What::Changed => self.changed += 1,
                    What::Damaged => self.damaged += 1,
                    _ => self.unreadable += 1,
                }
                self.dropped += u64::from(finding.is_mended);
            }
        }
    }
}

/// What the workers tell.
enum News {
    /// So many more bytes.
    Hashed(u64),
    /// A row is done.
    Judged {
        verdict: Verdict,
        size: u64,
        /// Bytes of it that were not hashed, because that was not worth it.
        unhashed: u64,
    },
}

enum Verdict {
    Right,
    Proven,
    Overtaken,
    Wrong(Finding),
}

struct Worker<'a> {
    ports: &'a Ports,
    what: &'a Verify,
    rows: Receiver<Row>,
    tell: Sender<News>,
}

/// Nobody listens any more.
struct Unheard;

impl Worker<'_> {
    fn run(self) {
        for Row { key, entry, .. } in &self.rows {
            let (size, mut hashed) = (entry.size, 0);
            let Ok(verdict) = self.judge(&key, entry, &mut hashed) else { return };
            let unhashed = size.saturating_sub(hashed);
            if self.tell.send(News::Judged { verdict, size, unhashed }).is_err() {
                return;
            }
        }
    }

    fn judge(
        &self,
        key: &ArtifactKey,
        mut entry: Entry,
        hashed: &mut u64,
    ) -> Result<Verdict, Unheard> {
        for _ in 0..ROUNDS_MAX {
            let Some((what, why)) = self.fault_of(&entry, hashed)? else {
                return Ok(self.right(key, entry));
            };
            let now = match (what, self.ports.index.get(key)) {
                (What::Unreadable, _) => return Ok(wrong(What::Unreadable, key, &entry, why)),
                (_, Ok(now)) => now,
                (_, Err(error)) => {
                    return Ok(wrong(What::Unreadable, key, &entry, Some(chain(&error))));
                }
            };
            match now {
                None => return Ok(Verdict::Overtaken),
                Some(now) if now.generation != entry.generation => {
                    entry = now;
                    continue;
                }
                Some(_) => {}
            }
            let repairs = self.what.repair != Repair::Nothing;
            if what == What::Changed {
                if self.is_unfinished(key, &entry) {
                    return Ok(Verdict::Right);
                }
                if let Some(lying) = self.as_it_lies(&entry, hashed)? {
                    let why = "its bytes are right: --repair takes them as they lie there";
                    return Ok(match repairs {
                        true => self.right(key, lying),
                        false => wrong(what, key, &lying, Some(why.to_owned())),
                    });
                }
            }
            return Ok(match repairs {
                true => self.drop_wrong(what, key, &entry, why),
                false => wrong(what, key, &entry, why),
            });
        }
        Ok(Verdict::Overtaken)
    }

    /// The entry of a blob that is another version than its row means, if its bytes are those that
    /// the row means: it was copied without its times, say.
    fn as_it_lies(&self, entry: &Entry, hashed: &mut u64) -> Result<Option<Entry>, Unheard> {
        let Ok(Some(meta)) = self.ports.blobs.stat(&entry.blob) else { return Ok(None) };
        let lying = Entry { version: meta.version, unproven: true, ..entry.clone() };
        let is_right = meta.size == entry.size && self.fault_of(&lying, hashed)?.is_none();
        Ok(is_right.then_some(lying))
    }

    fn is_fetchable(&self, remote: &RemoteName) -> bool {
        self.what.fetchable.as_ref().is_none_or(|fetchable| fetchable.contains(remote))
    }

    /// What is wrong with the blob of a row, if something is.
    fn fault_of(&self, entry: &Entry, hashed: &mut u64) -> Result<Option<Fault>, Unheard> {
        let opened = self.ports.blobs.open_current(&entry.blob, &entry.version, 0..entry.size);
        let mut body = match opened {
            Ok(body) => body,
            Err(error) => return Ok(Some(fault_at_opening(&error))),
        };
        let mut hashing = Hashing::default();
        loop {
            let piece = match body.next_piece() {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => return Ok(Some(fault_in_body(&error))),
            };
            for part in parts_of(&piece) {
                if let Err(error) = hashing.add(&part) {
                    return Ok(Some(fault_in_body(&BodyError::Io(error))));
                }
                *hashed += part.len();
                self.tell.send(News::Hashed(part.len())).map_err(|_| Unheard)?;
            }
        }
        let digest = hashing.digest();
        let is_right = digest == entry.digest;
        Ok((!is_right).then(|| {
            (What::Damaged, Some(format!("its SHA-256 is {digest} instead of {}", entry.digest)))
        }))
    }

    /// Whether a newer version was published and its row not yet written, as when the process was
    /// killed between the two: the server writes it, or fetches anew, at the next request.
    fn is_unfinished(&self, key: &ArtifactKey, entry: &Entry) -> bool {
        let blobs = &*self.ports.blobs;
        let published = blobs.stat(&entry.blob).and_then(|meta| match meta {
            Some(meta) => as_published(blobs, key, &meta),
            None => Ok(None),
        });
        published.is_ok_and(|published| published.is_some())
    }

    fn right(&self, key: &ArtifactKey, entry: Entry) -> Verdict {
        if !entry.unproven || self.what.repair == Repair::Nothing {
            return Verdict::Right;
        }
        let replaces = Some(entry.generation);
        let proven = Entry { unproven: false, ..entry };
        match self.ports.index.put(key, &proven, replaces) {
            Ok(Put::Stored(_)) => Verdict::Proven,
            Ok(Put::Superseded(_)) => Verdict::Right,
            Err(error) => {
                tracing::warn!(artifact = %key, error = chain(&error), "cannot record that a blob is whole");
                Verdict::Right
            }
        }
    }

    /// Where it can be fetched anew. Row first, blob second; each only if it still is what was judged.
    fn drop_wrong(
        &self,
        what: What,
        key: &ArtifactKey,
        entry: &Entry,
        why: Option<String>,
    ) -> Verdict {
        if !self.is_fetchable(&key.remote) {
            let kept = "kept, because no upstream has it";
            let why = why.map_or(kept.to_owned(), |why| format!("{why}; {kept}"));
            return wrong(what, key, entry, Some(why));
        }
        match self.ports.index.remove(key, entry.generation) {
            Ok(true) => {}
            Ok(false) => return Verdict::Overtaken,
            Err(error) => return wrong(What::Unreadable, key, entry, Some(chain(&error))),
        }
        if what == What::Damaged
            && let Err(error) = self.remove_blob(entry)
        {
            // Nothing leads to it any more; a sweep removes it.
            tracing::warn!(artifact = %key, error = chain(&error), "a damaged blob was left behind");
        }
        Verdict::Wrong(Finding { is_mended: true, ..finding(what, key, entry, why) })
    }

    fn remove_blob(&self, entry: &Entry) -> Result<(), BlobError> {
        let blobs = &self.ports.blobs;
        match blobs.holds(&entry.blob, &entry.version)? {
            true => blobs.remove_version(&entry.blob, &entry.version),
            // It was replaced since: that one is not known to be wrong.
            false => Ok(()),
        }
    }
}

type Fault = (What, Option<String>);

fn fault_at_opening(error: &BlobError) -> Fault {
    match error {
        BlobError::Missing(_) => (What::Missing, None),
        BlobError::Changed(_) => (What::Changed, None),
        BlobError::Corrupt { reason, .. } => (What::Damaged, Some(reason.clone())),
        BlobError::Full(_) | BlobError::Unsynced { .. } | BlobError::Unavailable { .. } => {
            (What::Unreadable, Some(chain(error)))
        }
    }
}

/// A file that ends early is damaged. What else breaks a body off may be a network's fault,
/// and condemns nothing.
fn fault_in_body(error: &BodyError) -> Fault {
    let what = match error {
        BodyError::TooLong { .. } => What::Damaged,
        BodyError::Io(error) if error.kind() == ErrorKind::UnexpectedEof => What::Damaged,
        BodyError::Cut(_) | BodyError::Io(_) => What::Unreadable,
    };
    (what, Some(chain(error)))
}

fn finding(what: What, key: &ArtifactKey, entry: &Entry, why: Option<String>) -> Finding {
    let (artifact, blob) = (Some(key.clone()), entry.blob.clone());
    Finding { what, artifact, blob, why, is_mended: false }
}

fn wrong(what: What, key: &ArtifactKey, entry: &Entry, why: Option<String>) -> Verdict {
    Verdict::Wrong(finding(what, key, entry, why))
}

/// A piece in parts of at most [`STRIDE_BYTES`], so that a large file shows its progress.
fn parts_of<'a>(piece: &'a Piece<'a>) -> impl Iterator<Item = Piece<'a>> {
    let strides = piece.len().div_ceil(STRIDE_BYTES);
    (0..strides).map(move |stride| {
        let from = stride * STRIDE_BYTES;
        let len = STRIDE_BYTES.min(piece.len() - from);
        match piece {
            Piece::Region { file, offset, .. } => {
                Piece::Region { file, offset: offset + from, len }
            }
            Piece::Bytes(bytes) => Piece::Bytes(&bytes[from as usize..(from + len) as usize]),
        }
    })
}

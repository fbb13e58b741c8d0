//! What only files can show: the layout, links, and what a crash or an operator leaves.

use std::collections::HashSet;
use std::os::unix::fs::symlink;

use super::*;
use crate::artifact::{ArtifactKey, ArtifactPath, Validators};
use crate::body::read_to_vec;
use crate::staging::{Expect, Staging};

crate::blob::conformance::blob_conformance!(|| {
    let data_dir = tempfile::tempdir().unwrap();
    (DiskBlobs::open(data_dir.path()).unwrap(), data_dir)
});

struct Bench {
    store: DiskBlobs,
    staging: Staging,
    data_dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let staging = Staging::open(&data_dir.path().join("staging"), 1 << 20).unwrap();
        Self { store: DiskBlobs::open(data_dir.path()).unwrap(), staging, data_dir }
    }

    fn sealed(&self, bytes: &[u8]) -> SealedFile {
        let expect = Expect { len: Some(bytes.len() as u64), checksum: None };
        let mut staged = self.staging.begin(expect).unwrap();
        staged.append_bytes(bytes).unwrap();
        staged.seal().unwrap()
    }

    fn publish(&self, bytes: &[u8]) -> Result<BlobVersion, BlobError> {
        let sealed = self.sealed(bytes);
        self.store.publish(&key(), &sealed, &about(&sealed))
    }

    fn path(&self) -> PathBuf {
        self.data_dir.path().join("blobs").join(key().as_str())
    }

    fn read(&self, version: &BlobVersion) -> Result<Vec<u8>, BlobError> {
        let len = version.0.split_once('-').unwrap().0.parse().unwrap();
        let mut body = self.store.open(&key(), version, 0..len)?;
        Ok(read_to_vec(&mut body, 1 << 20).unwrap())
    }

    fn left_overs(&self) -> usize {
        fs::read_dir(self.data_dir.path().join("blobs/.incoming")).map_or(0, Iterator::count)
    }
}

fn artifact() -> ArtifactKey {
    let path = ArtifactPath::from_canonical("dir/file.bin").unwrap();
    ArtifactKey { remote: "remote".parse().unwrap(), path }
}

fn key() -> BlobKey {
    BlobKey::of(&artifact())
}

fn about(sealed: &SealedFile) -> About {
    About {
        artifact: artifact(),
        digest: sealed.digest(),
        content_type: None,
        content_encoding: None,
        validators: Validators::default(),
        stored_at: UNIX_EPOCH,
    }
}

fn count(store: &DiskBlobs) -> usize {
    let mut shown = 0;
    let mut visit = |_| {
        shown += 1;
        ControlFlow::Continue(())
    };
    store.each(&mut visit).unwrap();
    shown
}

#[test]
fn a_blob_is_the_scratch_file_at_its_key() {
    let bench = Bench::new();
    let sealed = bench.sealed(b"bytes");
    let version = bench.store.publish(&key(), &sealed, &about(&sealed)).unwrap();
    let metadata = fs::metadata(bench.path()).unwrap();
    assert_eq!(metadata.ino(), sealed.file().metadata().unwrap().ino());
    assert_eq!(version.0, format!("5-{}.{:09}", metadata.mtime(), metadata.mtime_nsec()));
    assert!(!sealed.path().exists());
    drop(sealed);
    assert_eq!(fs::read(bench.path()).unwrap(), b"bytes");
}

#[test]
fn versions_of_one_size_differ_however_quickly_they_follow() {
    let bench = Bench::new();
    let versions: HashSet<_> = (0..200).map(|_| bench.publish(b"same").unwrap()).collect();
    assert_eq!((versions.len(), bench.left_overs()), (200, 0));
}

#[test]
fn publishing_a_file_again_copies_it() {
    let bench = Bench::new();
    let sealed = bench.sealed(b"again");
    let first = bench.store.publish(&key(), &sealed, &about(&sealed)).unwrap();
    let second = bench.store.publish(&key(), &sealed, &about(&sealed)).unwrap();
    assert!(first != second && bench.read(&second).unwrap() == b"again");
    // What has the first one open keeps it.
    assert_eq!(sealed.file().metadata().unwrap().nlink(), 0);
    assert_eq!(bench.left_overs(), 0);
}

#[test]
fn across_file_systems_the_bytes_are_copied() {
    let bench = Bench::new();
    bench.publish(b"earlier").unwrap();
    let bytes: Vec<u8> = (0..COPY_BUFFER_BYTES + 3).map(|at| at as u8).collect();
    let sealed = bench.sealed(&bytes);
    let version = bench.store.copy_in(&bench.path(), &sealed, &about(&sealed)).unwrap();
    assert!(!sealed.is_moved() && sealed.path().exists());
    drop(sealed);
    assert!(bench.read(&version).unwrap() == bytes);
    assert_eq!(bench.left_overs(), 0);
}

#[test]
fn a_moved_and_a_copied_blob_describe_themselves() {
    let bench = Bench::new();
    let sealed = bench.sealed(b"bytes");
    let said = about(&sealed);
    for copied in [false, true] {
        let version = match copied {
            true => bench.store.copy_in(&bench.path(), &sealed, &said).unwrap(),
            false => bench.store.publish(&key(), &sealed, &said).unwrap(),
        };
        let meta = bench.store.stat(&key()).unwrap().unwrap();
        assert_eq!((meta.about, meta.version), (Some(said.clone()), version), "{copied}");
    }
}

#[test]
fn a_file_that_was_written_to_does_not_describe_itself_any_more() {
    let bench = Bench::new();
    for damage in [&b"by"[..], b"BYTES", b""] {
        bench.publish(b"bytes").unwrap();
        fs::write(bench.path(), damage).unwrap();
        let meta = bench.store.stat(&key()).unwrap().unwrap();
        assert_eq!((meta.size, meta.about), (damage.len() as u64, None), "{damage:?}");
    }
}

#[test]
fn a_blob_that_cannot_describe_itself_is_a_blob_all_the_same() {
    let bench = Bench::new();
    let sealed = bench.sealed(b"bytes");
    let path = ArtifactPath::from_canonical("p".repeat(4_000)).unwrap();
    let artifact = ArtifactKey { path, ..artifact() };
    let long = About { artifact, ..about(&sealed) };
    let version = bench.store.publish(&key(), &sealed, &long).unwrap();
    assert!(bench.store.has_warned.load(Ordering::Relaxed));
    assert_eq!(bench.store.stat(&key()).unwrap().unwrap().about, None);
    assert_eq!(bench.read(&version).unwrap(), b"bytes");
}

#[test]
fn what_a_crash_left_goes_at_the_next_start_and_is_never_shown() {
    let bench = Bench::new();
    let version = bench.publish(b"whole").unwrap();
    let blobs = bench.data_dir.path().join("blobs");
    fs::write(blobs.join(".incoming/0000"), b"ha").unwrap();
    fs::create_dir_all(blobs.join("remote/0123456789abcdef")).unwrap();
    fs::write(blobs.join("README"), b"not a blob").unwrap();
    fs::write(blobs.join("remote/README"), b"not a blob").unwrap();
    assert_eq!(count(&bench.store), 1);
    let again = DiskBlobs::open(bench.data_dir.path()).unwrap();
    assert_eq!((bench.left_overs(), count(&again)), (0, 1));
    assert_eq!(bench.read(&version).unwrap(), b"whole");
}

#[test]
fn a_folder_that_was_removed_under_the_store_comes_back() {
    let bench = Bench::new();
    let version = bench.publish(b"one").unwrap();
    fs::remove_dir_all(bench.data_dir.path().join("blobs")).unwrap();
    assert!(matches!(bench.read(&version), Err(BlobError::Missing(_))));
    assert_eq!((bench.store.stat(&key()).unwrap(), count(&bench.store)), (None, 0));
    bench.store.remove(&key()).unwrap();
    bench.publish(b"two").unwrap();
    // Only a replacement needs the folder of temporary names.
    assert!(!bench.data_dir.path().join("blobs/.incoming").exists());
    let version = bench.publish(b"three").unwrap();
    assert_eq!(bench.read(&version).unwrap(), b"three");
}

#[test]
fn a_removed_blob_leaves_no_folder() {
    let bench = Bench::new();
    bench.publish(b"x").unwrap();
    bench.store.remove(&key()).unwrap();
    assert!(!bench.path().parent().unwrap().exists());
}

#[test]
fn a_symbolic_link_is_neither_followed_nor_shown_and_is_replaced() {
    let bench = Bench::new();
    let version = bench.publish(b"bytes").unwrap();
    let outside = bench.data_dir.path().join("outside");
    fs::rename(bench.path(), &outside).unwrap();
    symlink(&outside, bench.path()).unwrap();
    symlink(bench.path().parent().unwrap(), bench.data_dir.path().join("blobs/linked")).unwrap();
    assert!(matches!(bench.read(&version), Err(BlobError::Corrupt { .. })));
    assert_eq!((bench.store.stat(&key()).unwrap(), count(&bench.store)), (None, 0));
    let version = bench.publish(b"other").unwrap();
    assert_eq!(bench.read(&version).unwrap(), b"other");
    assert_eq!(fs::read(&outside).unwrap(), b"bytes");
}

#[test]
fn a_folder_in_place_of_a_blob_is_corrupt_and_does_not_stop_a_listing() {
    let bench = Bench::new();
    let version = bench.publish(b"x").unwrap();
    fs::remove_file(bench.path()).unwrap();
    fs::create_dir(bench.path()).unwrap();
    assert!(matches!(bench.read(&version), Err(BlobError::Corrupt { .. })));
    assert_eq!((bench.store.stat(&key()).unwrap(), count(&bench.store)), (None, 0));
    let error = bench.publish(b"y").unwrap_err();
    assert!(matches!(error, BlobError::Unavailable { operation: "publish", .. }), "{error}");
    assert_eq!(bench.left_overs(), 0);
}

#[test]
fn a_file_that_was_cut_or_written_to_is_changed() {
    let bench = Bench::new();
    for damage in [&b"by"[..], b"BYTES", b""] {
        let version = bench.publish(b"bytes").unwrap();
        fs::write(bench.path(), damage).unwrap();
        assert!(matches!(bench.read(&version), Err(BlobError::Changed(_))), "{damage:?}");
    }
}

#[test]
fn a_store_that_cannot_be_written_says_so() {
    // A file in the folder's place refuses also where the tests run as root.
    let bench = Bench::new();
    fs::write(bench.data_dir.path().join("blobs/remote"), b"").unwrap();
    let error = bench.publish(b"x").unwrap_err();
    assert!(matches!(error, BlobError::Unavailable { operation: "publish", .. }), "{error}");
    assert_eq!(bench.staging.reserved_bytes(), 0);

    let blocked = bench.data_dir.path().join("blobs/remote");
    let error = DiskBlobs::open(&blocked).unwrap_err();
    assert!(matches!(&error, OpenDiskError::Io { .. }), "{error}");
    assert!(error.to_string().contains("blobs/remote/blobs"), "{error}");
}

#[test]
fn a_full_disk_and_a_used_up_quota_are_full() {
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        assert!(matches!(failed("publish", &key(), errno.into()), BlobError::Full(_)), "{errno}");
    }
}

#[test]
fn a_folder_can_be_synced_and_a_missing_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    sync_folder(folder.path()).unwrap();
    assert!(sync_folder(&folder.path().join("none")).is_err());
}

/// What this process has open in the store's folder, as the kernel names it.
fn open_in(bench: &Bench) -> Vec<String> {
    let folder = bench.data_dir.path().join("blobs").display().to_string();
    let named = |fd: io::Result<fs::DirEntry>| fs::read_link(fd.ok()?.path()).ok();
    let names = fs::read_dir("/proc/self/fd").unwrap().filter_map(named);
    let names = names.map(|name| name.display().to_string());
    names.filter(|name| name.starts_with(&folder)).collect()
}

#[test]
fn a_file_stays_open_behind_a_read_and_takes_no_space_once_it_is_gone() {
    let bench = Bench::new();
    let first = bench.publish(b"first").unwrap();
    assert_eq!(bench.read(&first).unwrap(), b"first");
    assert_eq!(open_in(&bench), [""; 0], "whoever reads once opens and closes");
    assert_eq!(bench.read(&first).unwrap(), b"first");
    assert_eq!(open_in(&bench), [bench.path().display().to_string()]);
    assert_eq!(bench.read(&first).unwrap(), b"first");
    assert_eq!(open_in(&bench).len(), 1, "it is opened once");
    let second = bench.publish(b"other").unwrap();
    assert_eq!(open_in(&bench), [""; 0], "what is replaced is closed");
    assert!(matches!(bench.read(&first), Err(BlobError::Changed(_))));
    assert_eq!(bench.read(&second).unwrap(), b"other");
    bench.store.remove(&key()).unwrap();
    assert_eq!(open_in(&bench), [""; 0], "what is removed is closed");
    assert!(matches!(bench.read(&second), Err(BlobError::Missing(_))));
}

#[test]
fn what_an_operator_does_to_an_open_file_is_seen() {
    let bench = Bench::new();
    let version = bench.publish(b"bytes").unwrap();
    (0..3).for_each(|_| assert_eq!(bench.read(&version).unwrap(), b"bytes"));
    fs::remove_file(bench.path()).unwrap();
    assert!(matches!(bench.read(&version), Err(BlobError::Missing(_))));

    let version = bench.publish(b"bytes").unwrap();
    assert_eq!(bench.read(&version).unwrap(), b"bytes");
    // Of the same length, in the same file.
    fs::write(bench.path(), b"other").unwrap();
    assert!(matches!(bench.read(&version), Err(BlobError::Changed(_))));

    let version = bench.publish(b"bytes").unwrap();
    assert_eq!(bench.read(&version).unwrap(), b"bytes");
    fs::remove_file(bench.path()).unwrap();
    assert_eq!(open_in(&bench).len(), 1, "nobody has told us");
    bench.store.each(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(open_in(&bench), [""; 0], "a sweep lets go of what was removed by hand");
}

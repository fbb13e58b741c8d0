//! A small file system of its own for a server's data, so that it can really be filled.
//!
//! It is mounted in a mount namespace that a waiting process holds: nobody else sees it, and
//! nothing of it is left once that process has ended, however the test does. That takes root,
//! or a system that lets everybody make user namespaces; without either the test fails.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;

/// Mounts, says so, and waits until nobody wants it any more.
const HOLD: &str = r#"mount -t tmpfs -o "size=$1,mode=0700" tmpfs "$2"; echo; exec cat"#;

/// The mounted file system. Gone when dropped, once no server runs in it.
#[derive(Debug)]
pub(crate) struct Disk {
    holder: Child,
    folder: PathBuf,
}

impl Disk {
    /// Mounts one of `bytes` on a new folder.
    pub(crate) fn mount(folder: &Path, bytes: u64) -> Self {
        fs::create_dir(folder).expect("the folder of the test takes another");
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--propagation", "private", "sh", "-euc", HOLD, "sh"]);
        command.arg(bytes.to_string()).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is there (package util-linux)");
        let mut said = [0];
        let heard = holder.stdout.take().expect("it is piped").read_exact(&mut said);
        heard.expect("a file system can be mounted: as root, or where user namespaces are allowed");
        Self { holder, folder: folder.to_owned() }
    }

    /// Starts a program where the file system is mounted.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string()]);
        if !geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Its root, as the test sees it.
    pub(crate) fn path(&self) -> PathBuf {
        let folder = self.folder.strip_prefix("/").expect("the test's folder is absolute");
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(folder)
    }

    /// Fills it up with another file, to the last byte.
    pub(crate) fn fill(&self) {
        let mut options = File::options();
        let filler = options.create(true).append(true).open(self.filler());
        let mut filler = filler.expect("a full disk still takes a name");
        for size in [1 << 16, 1 << 10, 1] {
            let piece = vec![0; size];
            let error = loop {
                if let Err(error) = filler.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        }
    }

    /// Removes what filled it.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    /// What it has left, in bytes.
    pub(crate) fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).expect("it is mounted");
        disk.f_bavail * disk.f_frsize
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

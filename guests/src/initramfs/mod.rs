//! Initial RAM file systems for Linux guests.
//!
//! An [`Initramfs`] is a set of files in memory, written as a `newc` cpio archive (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). The same set gives the same bytes: entries are
//! sorted, belong to root and have no time. It starts with what every guest here has: Debian's static busybox, a
//! console device for the first messages, and the `/init` of [`INIT`]:
//!
//! 1. It mounts /proc and prints `INIT-REACHED uptime: <seconds>` before anything else, for whoever measures boots.
//! 2. It mounts /sys and /dev, installs busybox's applets, loads drivers of the PCI functions and virtio devices that there are
//!    if it has modules ([`Initramfs::modules`]), and prints `CPUS <n>`.
//! 3. Where there is a `/script`, or `gearshift.script=` on the kernel's command line (a shell command, in double
//!    quotes if it has spaces), it runs that, prints `GUEST-DONE status: <n>` and powers off.
//! 4. Else a shell with job control owns the console, and its end powers the machine off.

mod cpio;

use crate::kernel_module::{self, KernelModule, Tree};
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::io::Write as _;

/// The first program of our guests.
pub const INIT: &str = include_str!("init.sh");

/// Largest file of a `newc` archive: its size field has eight hexadecimal digits.
const FILE_MAX: usize = u32::MAX as usize;

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the guest's kernel has the least work.
    None,
    /// gzip without name and time.
    Gzip,
}

/// What cannot be put into an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// Absolute, empty, or with an empty, `.` or `..` component or a NUL.
    #[error("{0:?} is not a path inside the guest's root directory, such as \"etc/issue\"")]
    Path(String),
    /// Above 4 GiB.
    #[error("{0} is larger than a cpio archive can hold (4 GiB)")]
    TooLarge(String),
}

#[derive(Debug, Clone)]
enum Node {
    Directory,
    File { mode: u32, bytes: Vec<u8> },
    Symlink(String),
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// A file system in the making.
#[derive(Debug, Clone)]
pub struct Initramfs {
    nodes: BTreeMap<String, Node>,
}

impl Initramfs {
    /// The usual guest: `busybox` (a static executable), devices, mount points and [`INIT`].
    pub fn new(busybox: &[u8]) -> Self {
        let mut nodes = BTreeMap::new();
        for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
            nodes.insert(dir.to_owned(), Node::Directory);
        }
        for link in ["sbin", "usr/bin", "usr/sbin"] {
            nodes.insert(link.to_owned(), Node::Symlink("/bin".to_owned()));
        }
        nodes.insert("usr".to_owned(), Node::Directory);
        nodes.insert("dev/console".to_owned(), Node::CharDevice { mode: 0o600, major: 5, minor: 1 });
        nodes.insert("dev/null".to_owned(), Node::CharDevice { mode: 0o666, major: 1, minor: 3 });
        let mut file = |path: &str, mode, bytes: &[u8]| {
            nodes.insert(path.to_owned(), Node::File { mode, bytes: bytes.to_vec() });
        };
        file("bin/busybox", 0o755, busybox);
        file("init", 0o755, INIT.as_bytes());
        file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
        file("etc/group", 0o644, b"root:x:0:\n");
        nodes.insert("bin/sh".to_owned(), Node::Symlink("busybox".to_owned()));
        Self { nodes }
    }

    /// Kernel modules, where `modprobe` and the kernel itself find them; they must be of one kernel. [`INIT`] loads the drivers of
    /// the devices that there are.
    pub fn modules(mut self, modules: &[KernelModule]) -> Self {
        let Some(Tree { release, files }) = kernel_module::tree(modules) else { return self };
        let folder = format!("lib/modules/{release}");
        for path in ["lib", "lib/modules", &folder] {
            self.nodes.entry(path.to_owned()).or_insert(Node::Directory);
        }
        for (name, bytes) in files {
            self.nodes.insert(format!("{folder}/{name}"), Node::File { mode: 0o644, bytes });
        }
        self
    }

    /// Replaces `/init`.
    pub fn init(mut self, text: &str) -> Self {
        self.nodes.insert("init".to_owned(), Node::File { mode: 0o755, bytes: text.as_bytes().to_vec() });
        self
    }

    /// A shell script that the guest runs instead of a shell on its console, then it powers off.
    pub fn script(mut self, text: &str) -> Self {
        self.nodes.insert("script".to_owned(), Node::File { mode: 0o755, bytes: text.as_bytes().to_vec() });
        self
    }

    /// A file of one's own at `path` (relative to the root), with permissions `mode`; its directories come along.
    ///
    /// # Errors
    /// [`InitramfsError::Path`] and [`InitramfsError::TooLarge`].
    pub fn file(mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<Self, InitramfsError> {
        let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
        if path.split('/').any(bad) {
            return Err(InitramfsError::Path(path.to_owned()));
        }
        if bytes.len() > FILE_MAX {
            return Err(InitramfsError::TooLarge(path.to_owned()));
        }
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.to_owned(), Node::File { mode: mode & 0o7777, bytes });
        Ok(self)
    }

    /// The archive.
    pub fn build(&self, compression: Compression) -> Vec<u8> {
        let archive = cpio::write(&self.nodes);
        match compression {
            Compression::None => archive,
            Compression::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
                gzip.write_all(&archive)
                    .and_then(|()| gzip.finish())
                    .expect("memory takes all that is written")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn archives_are_deterministic_and_gzip_unpacks_to_the_same() {
        let make = || Initramfs::new(b"busy").script("true").file("a/b/c", 0o600, vec![1, 2]).unwrap();
        let plain = make().build(Compression::None);
        assert_eq!(plain, make().build(Compression::None));
        let packed = make().build(Compression::Gzip);
        assert_eq!(packed, make().build(Compression::Gzip));
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }

    #[test]
    fn paths_out_of_the_root_are_refused() {
        for path in ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a/", "a\0b"] {
            let result = Initramfs::new(b"").file(path, 0o644, vec![]);
            assert_eq!(result.unwrap_err(), InitramfsError::Path(path.to_owned()));
        }
    }
}

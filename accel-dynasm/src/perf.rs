//! Names of translated blocks for perf(1), which reads them from /tmp/perf-PID.map.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file, to which each block adds a line when it is translated. It stays behind for `perf report`.
///
/// Code that is dropped keeps its line; if other code takes its place, perf believes the later one.
#[derive(Debug)]
pub struct PerfMap {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl PerfMap {
    /// Makes the file where perf looks for it.
    ///
    /// # Errors
    /// It exists already, be it as a link, or cannot be made.
    pub fn for_this_process() -> io::Result<Self> {
        Self::at(format!("/tmp/perf-{}.map", std::process::id()).into())
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let file = new_file(&path)?;
        Ok(Self { path, file: Mutex::new(Some(file)) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells that the `len` bytes of code at host address `code` were translated from guest address `guest`.
    pub(crate) fn add(&self, code: u64, len: usize, guest: u64) {
        let line = format!("{code:x} {len:x} {}\n", guest_name(guest));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_err()) {
            // A disk that is full is no reason to stop the guest.
            *file = None;
        }
    }
}

/// What perf calls the translation of the code at guest address `guest`.
pub(crate) fn guest_name(guest: u64) -> String {
    format!("guest:{guest:016x}")
}

/// Makes a file that was not there: never one that a link or another user has put there.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_perfs_and_nothing_that_exists_is_written_to() {
        let path = std::env::temp_dir().join(format!("gearshift-perf-{}.map", std::process::id()));
        let link = path.with_extension("link");
        let map = PerfMap::at(path.clone()).unwrap();
        map.add(0x7f00_1000, 0x2a, 0xffff_ffff_8100_0000);
        map.add(0x7f00_1030, 0x10, 0x40_0000);
        let text = std::fs::read_to_string(map.path()).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let refused = [&path, &link].map(|path| PerfMap::at(path.clone()).unwrap_err().kind());
        std::fs::remove_file(&path).unwrap();
        // Not even one that dangles.
        let dangling = PerfMap::at(link.clone()).unwrap_err().kind();
        std::fs::remove_file(&link).unwrap();
        assert_eq!(text, "7f001000 2a guest:ffffffff81000000\n7f001030 10 guest:0000000000400000\n");
        assert_eq!((refused, dangling), ([io::ErrorKind::AlreadyExists; 2], io::ErrorKind::AlreadyExists));
    }
}

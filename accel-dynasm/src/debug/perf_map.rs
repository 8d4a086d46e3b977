//! Names of translated blocks for perf(1), which reads them from /tmp/perf-PID.map; and files for perf as such: a guest
//! that has code translated again and again must not fill the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a map: more than a million blocks.
const MOST: u64 = 64 << 20;

/// Is told, in a line, that a file gets no more.
#[derive(Clone)]
pub struct Notice(pub Arc<dyn Fn(String) + Send + Sync>);

impl std::fmt::Debug for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notice")
    }
}

/// A file that grows up to a limit.
#[derive(Debug)]
pub(crate) struct Bounded {
    path: PathBuf,
    /// `None` once it gets no more.
    file: Option<File>,
    limit: u64,
    left: u64,
    notice: Notice,
}

impl Bounded {
    /// `file`, which is at `path`, for `limit` bytes more.
    pub(crate) fn new(path: PathBuf, file: File, limit: u64, notice: Notice) -> Self {
        Self { path, file: Some(file), limit, left: limit, notice }
    }

    /// Adds a record. One that does not fit, or cannot be written, is the end of the file, and no reason to stop the
    /// guest.
    pub(crate) fn add(&mut self, record: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let reason = match self.left.checked_sub(record.len() as u64) {
            None => format!("it has reached {} MiB", self.limit.div_ceil(1 << 20)),
            Some(left) => match file.write_all(record) {
                Ok(()) => {
                    self.left = left;
                    return;
                }
                Err(error) => error.to_string(),
            },
        };
        self.file = None;
        (self.notice.0)(format!(
            "{}: {reason}; code translated from now on is not in it",
            self.path.display()
        ));
    }
}

/// The file, to which each block adds a line when it is translated, up to 64 MiB. It stays behind for `perf report`.
///
/// Code that is dropped keeps its line; if other code takes its place, perf believes the later one.
#[derive(Debug)]
pub struct PerfMap {
    path: PathBuf,
    file: Mutex<Bounded>,
}

impl PerfMap {
    /// Makes the file where perf looks for it. `notice` is told when it is full.
    ///
    /// # Errors
    /// It exists already, be it as a link, or cannot be made.
    pub fn for_this_process(notice: Notice) -> io::Result<Self> {
        Self::at(format!("/tmp/perf-{}.map", std::process::id()).into(), MOST, notice)
    }

    fn at(path: PathBuf, limit: u64, notice: Notice) -> io::Result<Self> {
        let file = new_file(&path)?;
        Ok(Self { file: Mutex::new(Bounded::new(path.clone(), file, limit, notice)), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells that the `len` bytes of code at host address `code` were translated from guest address `guest`.
    pub(crate) fn add(&self, code: u64, len: usize, guest: u64) {
        let line = format!("{code:x} {len:x} {}\n", guest_name(guest));
        self.file.lock().unwrap_or_else(PoisonError::into_inner).add(line.as_bytes());
    }
}

/// The name by which perf knows the translation of the code at guest address `guest`.
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
    fn lines_are_perfs_up_to_a_limit_and_nothing_that_exists_is_written_to() {
        let path = std::env::temp_dir().join(format!("gearshift-perf-{}.map", std::process::id()));
        let link = path.with_extension("link");
        let told = Arc::new(Mutex::new(Vec::new()));
        let notice = {
            let told = told.clone();
            Notice(Arc::new(move |line| told.lock().unwrap().push(line)))
        };
        let map = PerfMap::at(path.clone(), 80, notice.clone()).unwrap();
        map.add(0x7f00_1000, 0x2a, 0xffff_ffff_8100_0000);
        map.add(0x7f00_1030, 0x10, 0x40_0000);
        let text = std::fs::read_to_string(map.path()).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        // 79 bytes are used.
        (0..3).for_each(|_| map.add(1, 1, 0));
        let full = std::fs::read_to_string(map.path()).unwrap();
        let at = |path: &PathBuf| PerfMap::at(path.clone(), MOST, notice.clone()).unwrap_err().kind();
        let refused = [&path, &link].map(at);
        std::fs::remove_file(&path).unwrap();
        // Not even one that dangles.
        let dangling = at(&link);
        std::fs::remove_file(&link).unwrap();
        assert_eq!(full, text);
        let told = told.lock().unwrap().clone();
        assert!(
            told.len() == 1 && told[0].contains("has reached 1 MiB") && told[0].contains("gearshift-perf")
        );
        assert_eq!(text, "7f001000 2a guest:ffffffff81000000\n7f001030 10 guest:0000000000400000\n");
        assert_eq!((refused, dangling), ([io::ErrorKind::AlreadyExists; 2], io::ErrorKind::AlreadyExists));
    }
}

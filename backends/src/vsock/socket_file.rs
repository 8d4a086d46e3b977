//! The socket's entry in the file system.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::host::connect_to;

/// The entry of a listening socket. It goes with the last clone of this, or by [`remove`](Self::remove).
#[derive(Clone, Debug)]
pub struct SocketFile(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    /// Device and inode: another program may have put its own there meanwhile.
    identity: (u64, u64),
    removed: AtomicBool,
}

impl SocketFile {
    /// Listens at `path`. The entry of a program that is gone is taken away first.
    ///
    /// # Errors
    /// There is something else, somebody listens there, or no entry can be made.
    pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, Self)> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && connect_to(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let found = fs::symlink_metadata(path)?;
        let entry = Entry {
            path: path.to_owned(),
            identity: (found.dev(), found.ino()),
            removed: AtomicBool::new(false),
        };
        Ok((listener, Self(Arc::new(entry))))
    }

    /// Removes the entry now, where the process is about to end without dropping what it has.
    pub fn remove(&self) {
        self.0.remove();
    }
}

impl Entry {
    fn remove(&self) {
        let ours = || {
            let found = fs::symlink_metadata(&self.path);
            found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
        };
        if !self.removed.swap(true, Ordering::AcqRel) && ours() {
            // What cannot be removed is found by the next one to listen there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.remove();
    }
}

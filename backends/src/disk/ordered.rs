//! The order of writes on the way to stable storage.
//!
//! A format that allocates writes data first, then the tables that refer to it; counts of references before pointers when
//! it allocates, after them when it frees. imago keeps that order in what it calls, and no more: the host's caches may store
//! it in any other, and after a power cut a table points to a cluster whose content, copied sectors included, never
//! arrived, or that counts as free. So each write of a table first makes stable what was written before. Tables are cached
//! and written at flushes, so this costs a sync or two for each.
#![allow(unsafe_code, reason = "imago's `Storage` has unsafe methods; they only pass its own contract on")]

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handle of a storage.
#[derive(Clone, Debug)]
pub(super) struct Ordered<S> {
    shared: Arc<Shared<S>>,
    kind: Kind,
}

/// What a handle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A format's tables: each write waits for what was written before.
    Tables,
    /// The data beside them. imago takes such a handle for a file of its own, which has the size of the disk.
    Data,
    /// Both, or a format without tables: no order.
    Plain,
}

#[derive(Debug)]
struct Shared<S> {
    storage: S,
    /// Something was written since the last sync began.
    unsynced: AtomicBool,
}

impl<S: Storage> Ordered<S> {
    /// The handle for tables.
    pub(super) fn tables(storage: S) -> Self {
        Self::new(storage, Kind::Tables)
    }

    /// The handle for the data beside the tables of this one.
    pub(super) fn data(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), kind: Kind::Data }
    }

    /// The only handle of a storage whose writes need no order.
    pub(super) fn plain(storage: S) -> Self {
        Self::new(storage, Kind::Plain)
    }

    fn new(storage: S, kind: Kind) -> Self {
        Self { shared: Arc::new(Shared { storage, unsynced: AtomicBool::new(false) }), kind }
    }

    /// The storage below.
    pub(super) fn storage(&self) -> &S {
        &self.shared.storage
    }

    /// Runs a write behind the barrier that it needs.
    fn write(&self, write: impl FnOnce(&S) -> io::Result<()>) -> io::Result<()> {
        if self.kind == Kind::Tables && self.shared.unsynced.load(Ordering::Acquire) {
            self.sync()?;
        }
        let done = write(self.storage());
        // After the write: a sync that runs beside it may have missed it. What failed may be there in part.
        self.shared.unsynced.store(true, Ordering::Release);
        done
    }
}

impl<S: Storage> fmt::Display for Ordered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.storage(), f)
    }
}

impl<S: Storage> Storage for Ordered<S> {
    fn mem_align(&self) -> usize {
        self.storage().mem_align()
    }

    fn req_align(&self) -> usize {
        self.storage().req_align()
    }

    fn zero_align(&self) -> usize {
        self.storage().zero_align()
    }

    fn discard_align(&self) -> usize {
        self.storage().discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.storage().size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.storage().resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.storage().get_filename()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.storage().pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        self.write(|storage| unsafe { storage.pure_writev(bufv, offset) })
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        self.write(|storage| unsafe { storage.pure_write_zeroes(offset, length) })
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        self.write(|storage| unsafe { storage.pure_write_allocated_zeroes(offset, length) })
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        self.write(|storage| unsafe { storage.pure_discard(offset, length) })
    }

    fn flush(&self) -> io::Result<()> {
        self.storage().flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.unsynced.store(false, Ordering::Release);
        let done = self.storage().sync();
        if done.is_err() {
            self.shared.unsynced.store(true, Ordering::Release);
        }
        done
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.storage().invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.storage().get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        if self.kind == Kind::Data {
            // The file ends with its last cluster, wherever the disk ends.
            return Ok(());
        }
        self.write(|storage| storage.resize(new_size, mode))
    }
}

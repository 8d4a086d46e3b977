//! A file or block device under an image.
//!
//! imago's own `File` reads zeroes beyond the end of the file and grows it by writes there. Both hide that somebody
//! truncated an image in use, so [`ImageFile`] asks the file for its length first.
#![allow(unsafe_code, reason = "imago's `Storage` has unsafe methods; they only pass its own contract on")]

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};
use rustix::fs::{FileType, SeekFrom};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What lies beyond the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing: neither reads nor writes may touch it (raw images).
    Fixed,
    /// The rest of the cluster that the end is in, and what writes append (formats that allocate).
    Cluster(u64),
}

/// A file or block device, open with the rights that the image has.
#[derive(Debug)]
pub(super) struct ImageFile {
    inner: File,
    /// The same open file, for its length.
    file: fs::File,
    block_device: bool,
    end: AtomicU64,
}

/// Length of a file, or of the medium of a block device.
pub(super) fn length(file: &fs::File) -> io::Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        // Reads and writes of images give their positions, so nobody else uses the file's own.
        return Ok(rustix::fs::seek(file, SeekFrom::End(0))?);
    }
    u64::try_from(stat.st_size).map_err(|_| io::Error::other("the file has no length"))
}

impl ImageFile {
    /// Takes an open file; `path` is where images that it names are looked for, `writable` and `direct` how it was opened.
    pub(super) fn new(
        file: fs::File,
        path: &Path,
        writable: bool,
        direct: bool,
        end: End,
    ) -> io::Result<Self> {
        let own = file.try_clone()?;
        let block_device = FileType::from_raw_mode(rustix::fs::fstat(&own)?.st_mode) == FileType::BlockDevice;
        let options = StorageOpenOptions::new().filename(path).write(writable).direct(direct);
        let inner = File::from_open_file(file, options)?;
        let this = Self { inner, file: own, block_device, end: AtomicU64::new(0) };
        this.set_end(end);
        Ok(this)
    }

    /// Tells what lies beyond the end, once the format is known.
    pub(super) fn set_end(&self, end: End) {
        let unit = match end {
            End::Fixed => 1,
            // Accesses are never smaller than a block of the drive.
            End::Cluster(size) => size.max(4096),
        };
        self.end.store(unit, Ordering::Relaxed);
    }

    /// Refuses an access up to `end` bytes that the file cannot have.
    fn check(&self, end: u64, write: bool) -> io::Result<()> {
        let unit = self.end.load(Ordering::Relaxed);
        if unit != 1 && write {
            return Ok(());
        }
        let length = length(&self.file)?;
        // A cluster that was written in part ends the file and reads as zeroes from there.
        let there = end <= length.next_multiple_of(unit);
        if there {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the file ends at byte {length}, before byte {end}; somebody truncated it"),
        ))
    }
}

fn end_of(offset: u64, length: u64) -> io::Result<u64> {
    offset.checked_add(length).ok_or_else(|| io::Error::other("position beyond all files"))
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Storage for ImageFile {
    fn mem_align(&self) -> usize {
        self.inner.mem_align()
    }

    fn req_align(&self) -> usize {
        self.inner.req_align()
    }

    fn zero_align(&self) -> usize {
        self.inner.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.inner.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.inner.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.inner.get_filename()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        self.check(end_of(offset, bufv.len())?, false)?;
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.check(end_of(offset, bufv.len())?, true)?;
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.pure_writev(bufv, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(end_of(offset, length)?, true)?;
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(end_of(offset, length)?, true)?;
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(end_of(offset, length)?, true)?;
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { self.inner.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.inner.get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        if self.block_device {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a block device keeps its size"));
        }
        self.inner.resize(new_size, mode)
    }
}

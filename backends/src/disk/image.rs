//! A disk image in a file or on a block device.

use super::backend::{BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, RangeLimits, SECTOR};
use super::report::Report;
use super::storage::{End, ImageFile};
use async_trait::async_trait;
use imago::raw::Raw;
use imago::{FormatAccess, Storage as _};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use thiserror::Error;
use tokio::runtime::Handle;

/// Most sectors that one discard or write-zeroes may name: 2 GiB.
const MAX_RANGE: u32 = 1 << 22;

/// Why an image cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host said no.
    #[error("cannot open disk {}: {source}", path.display())]
    Host {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// An open image. Requests run in the pool of [`crate::runtime`], one thread a batch.
#[derive(Debug)]
pub struct DiskImage {
    shared: Arc<Shared>,
    handle: &'static Handle,
}

#[derive(Debug)]
struct Shared {
    /// Reads and writes share it; what breaks mappings (discard, resize) has it alone.
    access: RwLock<FormatAccess<ImageFile>>,
    info: BlockInfo,
    report: Report,
}

impl DiskImage {
    /// Opens `path` as raw sectors. A length that is no multiple of a sector loses its tail.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_raw(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let host = |source| OpenError::Host { path: path.to_owned(), source };
        let file = fs::OpenOptions::new().read(true).write(!read_only).open(path).map_err(host)?;
        let file = ImageFile::new(file, path, !read_only, false, End::Fixed).map_err(host)?;
        let alignment = (file.discard_align() as u64).div_ceil(SECTOR);
        let raw = Raw::open_image(file, !read_only).map_err(host)?;
        let access = FormatAccess::new(raw);
        let limits = (!read_only).then(|| RangeLimits {
            max_sectors: MAX_RANGE,
            alignment: u32::try_from(alignment).unwrap_or(1),
        });
        let info = BlockInfo {
            capacity: access.size() / SECTOR,
            read_only,
            block_size: 512,
            physical_block_size: 4096,
            write_back: true,
            discard: limits,
            write_zeroes: limits,
            serial: String::new(),
        };
        let report = Report::new(path.display().to_string());
        let shared = Arc::new(Shared { access: RwLock::new(access), info, report });
        Ok(Self { shared, handle: crate::runtime().map_err(host)? })
    }
}

impl Shared {
    fn info(&self) -> BlockInfo {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        BlockInfo { capacity: access.size() / SECTOR, ..self.info.clone() }
    }

    /// Serves one request on this thread.
    fn serve(&self, info: &BlockInfo, request: &mut BlockRequest) {
        if let Err(error) = request.check(info) {
            request.result = Err(error);
            return;
        }
        let shared = || self.access.read().unwrap_or_else(PoisonError::into_inner);
        let alone = || self.access.write().unwrap_or_else(PoisonError::into_inner);
        let done = match &mut request.command {
            BlockCommand::Read { sector, data } => shared().read(data.as_mut_slice(), *sector * SECTOR),
            BlockCommand::Write { sector, data } => shared().write(data.as_slice(), *sector * SECTOR),
            BlockCommand::Flush => {
                let access = shared();
                // `flush` writes the format's own caches, `sync` the host's.
                access.flush().and_then(|()| access.sync())
            }
            BlockCommand::Discard { sector, count } => {
                alone().discard_to_any(*sector * SECTOR, *count * SECTOR)
            }
            BlockCommand::WriteZeroes { sector, count, unmap: false } => {
                shared().write_zeroes(*sector * SECTOR, *count * SECTOR)
            }
            BlockCommand::WriteZeroes { sector, count, unmap: true } => {
                alone().discard_to_zero(*sector * SECTOR, *count * SECTOR)
            }
        };
        request.result = done.map_err(|error| {
            self.report.error(format_args!("{:?} failed: {error}", request.command));
            guest_error(&error)
        });
    }
}

/// What the guest learns of an error of the host's.
fn guest_error(error: &io::Error) -> BlockError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            BlockError::NoSpace
        }
        io::ErrorKind::Unsupported => BlockError::Unsupported,
        _ => BlockError::Io,
    }
}

#[async_trait]
impl BlockBackend for DiskImage {
    fn info(&self) -> BlockInfo {
        self.shared.info()
    }

    async fn submit(&self, batch: &mut [BlockRequest]) {
        let mut requests: Vec<_> = batch.iter_mut().map(std::mem::take).collect();
        let shared = Arc::clone(&self.shared);
        let served = self.handle.spawn_blocking(move || {
            let info = shared.info();
            for request in &mut requests {
                shared.serve(&info, request);
            }
            requests
        });
        match served.await {
            Ok(requests) => batch.iter_mut().zip(requests).for_each(|(slot, request)| *slot = request),
            // The thread panicked or the runtime ends: the requests keep `BlockError::Io`.
            Err(error) => self.shared.report.error(format_args!("a batch was lost: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(disk: &DiskImage, commands: Vec<BlockCommand>) -> Vec<BlockRequest> {
        let mut batch: Vec<_> = commands.into_iter().map(BlockRequest::new).collect();
        disk.handle.block_on(disk.submit(&mut batch));
        batch
    }

    #[test]
    fn what_is_written_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = DiskImage::open_raw(file.path(), false).unwrap();
        assert_eq!(disk.info().capacity, 2048);
        let done = submit(
            &disk,
            vec![
                BlockCommand::Write { sector: 3, data: vec![0xA5; 1024] },
                BlockCommand::Flush,
                BlockCommand::WriteZeroes { sector: 4, count: 1, unmap: true },
                BlockCommand::Read { sector: 2, data: vec![1; 2048] },
            ],
        );
        assert!(done.iter().all(|r| r.result.is_ok()), "{done:?}");
        let BlockCommand::Read { data, .. } = &done[3].command else { panic!("{done:?}") };
        assert!(data.iter().enumerate().all(|(i, b)| *b == if (512..1024).contains(&i) { 0xA5 } else { 0 }));
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096 + 100).unwrap();
        let disk = DiskImage::open_raw(file.path(), false).unwrap();
        let data = || vec![0; 512];
        let done = submit(
            &disk,
            vec![
                BlockCommand::Read { sector: 8, data: data() },
                BlockCommand::Read { sector: u64::MAX, data: data() },
                BlockCommand::Write { sector: 7, data: vec![0; 1024] },
                BlockCommand::Write { sector: 0, data: vec![0; 100] },
                BlockCommand::Discard { sector: 0, count: u64::MAX },
                BlockCommand::Read { sector: 7, data: data() },
            ],
        );
        let results: Vec<_> = done.iter().map(|r| r.result).collect();
        let out = Err(BlockError::OutOfRange);
        assert_eq!(results, [out, out, out, out, out, Ok(())]);
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 4096 + 100);
    }

    #[test]
    fn a_truncated_file_is_an_error_and_does_not_grow() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = DiskImage::open_raw(file.path(), false).unwrap();
        file.as_file().set_len(4096).unwrap();
        let data = || vec![7; 512];
        let done = submit(
            &disk,
            vec![
                BlockCommand::Read { sector: 8, data: data() },
                BlockCommand::Write { sector: 2047, data: data() },
                BlockCommand::Write { sector: 7, data: data() },
            ],
        );
        let results: Vec<_> = done.iter().map(|r| r.result).collect();
        assert_eq!(results, [Err(BlockError::Io), Err(BlockError::Io), Ok(())]);
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 4096);
    }

    #[test]
    fn a_read_only_disk_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [9; 4096]).unwrap();
        let disk = DiskImage::open_raw(file.path(), true).unwrap();
        let done = submit(
            &disk,
            vec![
                BlockCommand::Write { sector: 0, data: vec![0; 512] },
                BlockCommand::Discard { sector: 0, count: 1 },
                BlockCommand::WriteZeroes { sector: 0, count: 1, unmap: false },
                BlockCommand::Flush,
            ],
        );
        let results: Vec<_> = done.iter().map(|r| r.result).collect();
        let no = Err(BlockError::ReadOnly);
        assert_eq!(results, [no, no, no, Ok(())]);
        assert_eq!(fs::read(file.path()).unwrap(), [9; 4096]);
    }
}

//! A disk image in a file or on a block device.

use super::backend::{BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, RangeLimits, SECTOR};
use super::chain::{self, DiskFile};
use super::error::OpenError;
use super::options::{DiskOptions, Format, check_serial};
use super::report::Report;
use async_trait::async_trait;
use imago::{FormatAccess, Storage};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::runtime::Handle;

/// Most sectors that one discard or write-zeroes may name: 2 GiB.
const MAX_RANGE: u32 = 1 << 22;

/// What most drives write at once. The same for all images, so that a guest finds its partitions where it put them.
const PHYSICAL: u64 = 4096;

/// An open image. Requests run in the pool of [`crate::runtime()`], one thread a batch.
#[derive(Debug)]
pub struct DiskImage {
    shared: Arc<Served<DiskFile>>,
    format: Format,
    handle: &'static Handle,
}

/// An image and how it is served, whatever it lies on.
#[derive(Debug)]
pub(super) struct Served<S: Storage + 'static> {
    /// Reads and writes share it; what breaks mappings (discard, resize) has it alone.
    access: RwLock<FormatAccess<S>>,
    info: BlockInfo,
    /// The format gives clusters out and takes them back.
    allocates: bool,
    report: Report,
}

impl DiskImage {
    /// Opens what `options` say, and locks it against other programs. A raw length that is no multiple of a sector loses
    /// its tail.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let path = &options.path;
        check_serial(&options.serial).map_err(|reason| OpenError::Option { path: path.clone(), reason })?;
        let handle = crate::runtime().map_err(|source| OpenError::Host { path: path.clone(), source })?;
        let mut opened = chain::open(options, true)?;
        let format = opened.format;
        if options.snapshot && !options.read_only {
            opened = chain::overlay(opened.access, path)?;
        }
        let report = Report::new(path.display().to_string());
        let shared = Served::new(opened.access, opened.cluster, options.read_only, &options.serial, report);
        Ok(Self { shared: Arc::new(shared), format, handle })
    }

    /// The format of the image, named or found; with `snapshot` that of the image below.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl<S: Storage + 'static> Served<S> {
    pub(super) fn new(
        access: FormatAccess<S>,
        cluster: u64,
        read_only: bool,
        serial: &str,
        report: Report,
    ) -> Self {
        let alignment = u32::try_from(cluster.max(PHYSICAL) / SECTOR).unwrap_or(1);
        let limits = (!read_only).then_some(RangeLimits { max_sectors: MAX_RANGE, alignment });
        let info = BlockInfo {
            capacity: access.size() / SECTOR,
            read_only,
            block_size: SECTOR as u32,
            physical_block_size: PHYSICAL as u32,
            write_back: true,
            discard: limits,
            write_zeroes: limits,
            serial: serial.to_owned(),
        };
        Self { access: RwLock::new(access), info, allocates: cluster > 1, report }
    }

    fn info(&self) -> BlockInfo {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        BlockInfo { capacity: access.size() / SECTOR, ..self.info.clone() }
    }

    /// Serves a batch on this thread.
    pub(super) fn serve(&self, batch: &mut [BlockRequest]) {
        let info = self.info();
        for request in batch {
            request.result = request.check(&info).and_then(|()| {
                self.perform(&mut request.command).map_err(|error| {
                    self.report.error(format_args!("{:?} failed: {error}", request.command));
                    guest_error(&error)
                })
            });
        }
    }

    fn perform(&self, command: &mut BlockCommand) -> io::Result<()> {
        let shared = || self.access.read().unwrap_or_else(PoisonError::into_inner);
        let alone = || self.access.write().unwrap_or_else(PoisonError::into_inner);
        match command {
            BlockCommand::Read { sector, data } => shared().read(data.as_mut_slice(), *sector * SECTOR),
            BlockCommand::Write { sector, data } => shared().write(data.as_slice(), *sector * SECTOR),
            BlockCommand::Flush if self.info.read_only => Ok(()),
            BlockCommand::Flush => {
                let access = shared();
                // `flush` writes the format's own caches, `sync` the host's.
                access.flush().and_then(|()| access.sync())
            }
            BlockCommand::Discard { sector, count } => {
                let mut access = alone();
                let done = access.discard_to_any(*sector * SECTOR, *count * SECTOR);
                // A host that cannot give storage back keeps it, which a discard allows.
                done.or_else(|e| if e.kind() == io::ErrorKind::Unsupported { Ok(()) } else { Err(e) })?;
                self.settle(&access)
            }
            BlockCommand::WriteZeroes { sector, count, unmap: false } => {
                shared().write_zeroes(*sector * SECTOR, *count * SECTOR)
            }
            BlockCommand::WriteZeroes { sector, count, unmap: true } => {
                let mut access = alone();
                access.discard_to_zero(*sector * SECTOR, *count * SECTOR)?;
                self.settle(&access)
            }
        }
    }

    /// Makes it stable that clusters are free, before anybody can get them for other sectors: otherwise a power cut could
    /// leave the old table with the new content, and sectors that were flushed long ago would hold what others wrote.
    fn settle(&self, access: &FormatAccess<S>) -> io::Result<()> {
        if self.allocates { access.flush().and_then(|()| access.sync()) } else { Ok(()) }
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
            shared.serve(&mut requests);
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
mod faulty;
#[cfg(test)]
mod tests;

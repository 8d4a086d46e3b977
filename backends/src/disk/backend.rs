//! The seam between a block device and what holds its sectors.

use async_trait::async_trait;
use std::fmt;
use thiserror::Error;

/// Bytes in a sector: the unit of every position and count here, whatever the block size of the disk is.
pub const SECTOR: u64 = 512;

/// Most bytes that one read or write may carry. A device splits or refuses what is larger, so that no guest decides how
/// much memory a request takes.
pub const MAX_REQUEST: usize = 4 << 20;

/// Bounds of discard or write-zeroes, as virtio's configuration has them (virtio 1.2, 5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most sectors of a request. Never 0.
    pub max_sectors: u32,
    /// Sectors at whose multiples a range should begin and end to have an effect on the host's storage. Never 0; a range
    /// that is not aligned is served all the same.
    pub alignment: u32,
}

/// What a block back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Size in sectors.
    pub capacity: u64,
    /// Writes, discards and write-zeroes fail with [`BlockError::ReadOnly`].
    pub read_only: bool,
    /// Logical block in bytes: a power of two of at least [`SECTOR`]. Requests that are not whole blocks are served,
    /// slowly.
    pub block_size: u32,
    /// Physical block in bytes: what the host writes at once. A multiple of `block_size`.
    pub physical_block_size: u32,
    /// Writes may be lost when the host loses power, up to the next flush. Where false, each write is stable as it
    /// completes.
    pub write_back: bool,
    /// Discard, if there is any.
    pub discard: Option<RangeLimits>,
    /// Write-zeroes, if there is any.
    pub write_zeroes: Option<RangeLimits>,
    /// Serial number that the guest reads: at most 20 bytes of printable ASCII.
    pub serial: String,
}

/// What is asked for. Positions and counts are sectors.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum BlockCommand {
    /// Fill `data` from `sector` on. Its length is a multiple of [`SECTOR`], at most [`MAX_REQUEST`].
    Read {
        /// First sector.
        sector: u64,
        /// Destination. Undefined content where the request fails.
        data: Vec<u8>,
    },
    /// Store `data` at `sector`. Its length is a multiple of [`SECTOR`], at most [`MAX_REQUEST`].
    Write {
        /// First sector.
        sector: u64,
        /// Source; left as it is.
        data: Vec<u8>,
    },
    /// Make stable, through the host's caches, what completed before the batch was submitted.
    #[default]
    Flush,
    /// The content is no longer needed, and undefined until it is written again.
    Discard {
        /// First sector.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many.
        count: u64,
        /// The host's storage of the range may be given back.
        unmap: bool,
    },
}

impl fmt::Debug for BlockCommand {
    /// Without the data: a disk's content belongs in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { sector, data } => write!(f, "read of {} bytes at sector {sector}", data.len()),
            Self::Write { sector, data } => write!(f, "write of {} bytes at sector {sector}", data.len()),
            Self::Flush => f.write_str("flush"),
            Self::Discard { sector, count } => write!(f, "discard of {count} sectors at {sector}"),
            Self::WriteZeroes { sector, count, .. } => write!(f, "zeroes to {count} sectors at {sector}"),
        }
    }
}

impl BlockCommand {
    /// First sector and number of them; none for a flush. A part of a sector counts as one.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { sector, data } | Self::Write { sector, data } => {
                Some((*sector, (data.len() as u64).div_ceil(SECTOR)))
            }
            Self::Discard { sector, count } | Self::WriteZeroes { sector, count, .. } => {
                Some((*sector, *count))
            }
            Self::Flush => None,
        }
    }

    /// Whether it would change the disk.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. })
    }
}

/// Why a request failed, as far as a guest learns it. The cause is in the host's log.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// The host could not; also a request that nobody has served yet.
    #[error("I/O error")]
    Io,
    /// There is no such request here (virtio's `VIRTIO_BLK_S_UNSUPP`).
    #[error("not supported")]
    Unsupported,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Beyond the end of the disk, larger than a bound, or a part of a sector.
    #[error("outside of the disk or its limits")]
    OutOfRange,
    /// The host's file system or quota is full.
    #[error("no space on the host")]
    NoSpace,
}

/// A request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// What is asked for.
    pub command: BlockCommand,
    /// The outcome: [`BlockError::Io`] until a back end has served it.
    pub result: Result<(), BlockError>,
}

impl Default for BlockRequest {
    fn default() -> Self {
        Self::new(BlockCommand::default())
    }
}

impl BlockRequest {
    /// A request to be served.
    pub fn new(command: BlockCommand) -> Self {
        Self { command, result: Err(BlockError::Io) }
    }

    /// What holds for every request; a back end checks each by this before it serves it.
    ///
    /// # Errors
    /// The result that the request has to get.
    pub fn check(&self, info: &BlockInfo) -> Result<(), BlockError> {
        let Some((sector, count)) = self.command.range() else { return Ok(()) };
        if self.command.writes() && info.read_only {
            return Err(BlockError::ReadOnly);
        }
        let limit = match &self.command {
            BlockCommand::Read { data, .. } | BlockCommand::Write { data, .. } => {
                if !(data.len() as u64).is_multiple_of(SECTOR) || data.len() > MAX_REQUEST {
                    return Err(BlockError::OutOfRange);
                }
                u64::MAX
            }
            BlockCommand::Discard { .. } => info.discard.ok_or(BlockError::Unsupported)?.max_sectors.into(),
            BlockCommand::WriteZeroes { .. } => {
                info.write_zeroes.ok_or(BlockError::Unsupported)?.max_sectors.into()
            }
            BlockCommand::Flush => u64::MAX,
        };
        let inside = sector.checked_add(count).is_some_and(|end| end <= info.capacity);
        if inside && count <= limit { Ok(()) } else { Err(BlockError::OutOfRange) }
    }
}

/// What holds the sectors of a disk. Shared by all queues of a device; calls may overlap.
///
/// * Requests of one batch are served in their order, of different batches in any. Requests that are in flight at once
///   and touch the same sectors have no order that a guest could rely on.
/// * A flush makes stable all writes whose batches completed before its own was submitted, and those before it in its batch.
/// * When the future is dropped, requests of the batch may or may not be done, and their buffers are lost.
#[async_trait]
pub trait BlockBackend: fmt::Debug + Send + Sync {
    /// What it is now. Only the capacity may change while it is in use, by whoever resizes it, who then tells the device.
    fn info(&self) -> BlockInfo;

    /// Serves the batch: at its end each request has its result, and a read its data.
    async fn submit(&self, batch: &mut [BlockRequest]);
}

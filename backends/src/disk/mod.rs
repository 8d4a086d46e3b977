//! Disks: the seam of block devices, and images in files behind it.

mod backend;
mod dispatch;
mod image;
mod report;
mod storage;

pub use backend::{
    BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, MAX_REQUEST, RangeLimits, SECTOR,
};
pub use dispatch::dispatch;
pub use image::{DiskImage, OpenError};

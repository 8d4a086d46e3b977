//! Disks: the seam of block devices, and images in files behind it.
//!
//! [`backend`](BlockBackend) is the seam. [`DiskImage`] is what most disks are; `chain` opens it with what it stands on,
//! `probe` has the rule for formats that nobody named, `lock` the locks that QEMU's programs know, `storage` the file under
//! imago, `ordered` the order of its writes. [`RateLimit`] wraps any back end; [`tools`] work on images outside of machines.

mod backend;
mod chain;
mod error;
mod image;
mod lock;
mod options;
mod ordered;
mod probe;
mod rate_limit;
mod report;
mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tools;

pub use backend::{
    BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, MAX_REQUEST, RangeLimits, SECTOR,
};
pub use error::OpenError;
pub use image::DiskImage;
pub(crate) use options::split_at_commas;
pub use options::{BackingPolicy, Cache, DiskOptions, Format};
pub use rate_limit::RateLimit;

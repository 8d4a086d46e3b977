//! A few blocks that were found lately, in front of the map of all.

use crate::mode::Mode;

/// Entries; a power of two.
pub(crate) const RECENT: usize = 1024;

/// A block by linear address and circumstances.
#[derive(Clone, Copy)]
pub(crate) struct Recent {
    pub address: u64,
    pub mode: Mode,
    /// What of the engine's state it holds for.
    pub stamp: u64,
    pub block: u32,
}

pub(crate) fn recent_index(address: u64) -> usize {
    (address ^ address >> 10) as usize % RECENT
}

//! A few blocks that were found lately, in front of the map of all.

use x86_core::Tlb;

use crate::block_mode::BlockMode;

/// Entries; a power of two.
pub(crate) const RECENT: usize = 1024;

/// A block by linear address and circumstances.
#[derive(Clone, Copy)]
pub(crate) struct LookupEntry {
    pub address: u64,
    pub mode: BlockMode,
    /// What of the engine's state it holds for.
    pub stamp: u64,
    /// And which of the two generations of fetch translations.
    pub generation: u64,
    pub block: u32,
}

impl LookupEntry {
    /// An entry that never holds.
    pub(crate) fn none(mode: BlockMode) -> Self {
        Self { address: 0, mode, stamp: 0, generation: 0, block: 0 }
    }

    /// Whether it holds now.
    pub(crate) fn holds(&self, stamp: u64, tlb: &Tlb) -> bool {
        let generations = [tlb.fetch_generation, tlb.global_fetch_generation];
        self.stamp == stamp && generations.contains(&self.generation)
    }
}

pub(crate) fn recent_index(address: u64) -> usize {
    (address ^ address >> 10) as usize % RECENT
}

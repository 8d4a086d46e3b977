//! A direct-mapped cache of blocks by linear address, in front of the tables of all.

use x86_core::Tlb;

use crate::block_mode::BlockMode;

/// Entries; a power of two.
const ENTRIES: usize = 1024;

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    mode: BlockMode,
    stamp: u64,
    generation: u64,
    block: u32,
}

/// Blocks that were found lately.
pub(super) struct LookupCache {
    entries: Box<[Entry; ENTRIES]>,
    /// Entries hold only if they were made since it was changed last.
    stamp: u64,
}

impl LookupCache {
    /// An empty cache.
    pub(super) fn new(mode: BlockMode) -> Self {
        // No stamp is 0.
        let empty = Entry { address: 0, mode, stamp: 0, generation: 0, block: 0 };
        Self { entries: Box::new([empty; ENTRIES]), stamp: 1 }
    }

    /// The block for `address`, if the translation that it was found through still holds.
    pub(super) fn find(&self, address: u64, mode: BlockMode, tlb: &Tlb) -> Option<u32> {
        let entry = &self.entries[index(address)];
        let generations = [tlb.fetch_generation, tlb.global_fetch_generation];
        let holds = entry.address == address
            && entry.mode == mode
            && entry.stamp == self.stamp
            && generations.contains(&entry.generation);
        holds.then_some(entry.block)
    }

    /// `block` was found for `address` through a translation that is global or not.
    pub(super) fn insert(&mut self, address: u64, mode: BlockMode, block: u32, tlb: &Tlb, global: bool) {
        let generation = if global { tlb.global_fetch_generation } else { tlb.fetch_generation };
        self.entries[index(address)] = Entry { address, mode, stamp: self.stamp, generation, block };
    }

    /// Drops all entries.
    pub(super) fn clear(&mut self) {
        self.stamp += 1;
    }
}

fn index(address: u64) -> usize {
    (address ^ address >> 10) as usize % ENTRIES
}

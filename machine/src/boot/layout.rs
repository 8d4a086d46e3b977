//! Where the things lie that the boot protocols hand over.

use std::ops::Range;

use accel_api::PAGE_SIZE;

use crate::memory_map::{EBDA, EXTENDED, MemoryMap};

/// Offset of the global descriptor table, 4 entries.
const GDT: u64 = 0x500;
/// Offset of the PVH start info, its module list and its memory map.
const PVH_INFO: u64 = 0x6000;
/// Offset of Linux's boot_params ("zero page"), 4 KiB.
const ZERO_PAGE: u64 = 0x7000;
/// Offset of the page tables: PML4, PDPT, four page directories.
const PAGE_TABLES: u64 = 0x9000;
/// Offset of Linux's setup_data: a seed for its random numbers.
const SEED: u64 = 0x1_0000;
/// Offset of the command line, NUL-terminated.
const CMDLINE: u64 = 0x2_0000;
/// Bytes there for the command line, the NUL included.
pub(super) const CMDLINE_ROOM: u64 = 0x1_0000;

/// The block of guest memory for what a kernel is handed. It lies at address 0, unless the kernel has segments there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Handover {
    base: u64,
}

impl Handover {
    /// Its usual place, in the lowest 640 KiB.
    pub(super) const LOW: Self = Self { base: 0 };
    /// Bytes from its base to its end.
    pub(super) const LEN: u64 = CMDLINE + CMDLINE_ROOM;

    /// The lowest place in RAM below 4 GiB that none of `taken` reaches into.
    pub(super) fn beside(taken: &[Range<u64>], map: &MemoryMap) -> Option<Self> {
        let behind = taken.iter().map(|range| range.end.next_multiple_of(PAGE_SIZE));
        let fits = |block: &Self| {
            let range = block.range();
            let in_ram = range.end <= EBDA || (range.start >= EXTENDED && range.end <= map.low_end());
            in_ram && taken.iter().all(|other| other.end <= range.start || range.end <= other.start)
        };
        [0, EXTENDED]
            .into_iter()
            .chain(behind)
            .map(|base| Self { base })
            .filter(fits)
            .min_by_key(|block| block.base)
    }

    /// What it takes of guest memory: nothing lies below the first of it.
    fn range(self) -> Range<u64> {
        self.base + GDT..self.end()
    }

    /// First address after it.
    pub(super) fn end(self) -> u64 {
        self.base + Self::LEN
    }

    pub(super) fn gdt(self) -> u64 {
        self.base + GDT
    }

    pub(super) fn pvh_info(self) -> u64 {
        self.base + PVH_INFO
    }

    pub(super) fn zero_page(self) -> u64 {
        self.base + ZERO_PAGE
    }

    pub(super) fn page_tables(self) -> u64 {
        self.base + PAGE_TABLES
    }

    pub(super) fn seed(self) -> u64 {
        self.base + SEED
    }

    pub(super) fn cmdline(self) -> u64 {
        self.base + CMDLINE
    }
}

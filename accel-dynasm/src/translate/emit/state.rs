//! State that the emitter keeps while it goes through a block.

use dynasmrt::{AssemblyOffset, DynamicLabel};

use crate::translate::plan::flag_effects::ARITH;
use crate::translate::plan::lazy_flags::{LazyFlags, Recipe};
use crate::translate::plan::step::Access;

pub(super) fn at(offset: AssemblyOffset) -> u32 {
    offset.0 as u32
}

/// Contents of R10 or R11 of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    Nothing,
    /// The guest's value; memory has it too unless it is dirty.
    Guest {
        dirty: bool,
    },
    /// Of a group.
    Addend(u8),
}

/// Where the flags are: all of them in the host's, or known, unless they can no longer be seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagState {
    /// Those that are in the host's.
    pub host: u8,
    pub lazy: Option<Recipe>,
}

impl FlagState {
    /// At the start of a block.
    pub(super) fn of(known: Option<LazyFlags>) -> Self {
        let host = if known.is_some() { 0 } else { ARITH };
        Self { host, lazy: known.map(LazyFlags::at_entry) }
    }

    /// All are in the host's.
    pub(super) fn is_complete(&self) -> bool {
        self.host == ARITH
    }
}

/// A piece of code that lies after the block's last instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cold {
    /// An access that misses the soft TLB. Without an `address` R10 and R11 are as the check left them; else R10 is
    /// loaded with it.
    Miss { label: DynamicLabel, site: u32, address: Option<i64>, tag: i32 },
    /// An access that misses its inline TLB entry.
    Refill {
        label: DynamicLabel,
        /// Behind the check.
        back: DynamicLabel,
        site: u32,
        full: u32,
        /// Where its tag and addend are.
        entry: (i32, i32),
        access: Access,
    },
    /// A direct jump that is not chained.
    Ask { label: DynamicLabel, jump: usize, delta: i64, flags: Option<LazyFlags> },
    /// A jump to another page whose place can change.
    Far { label: DynamicLabel, delta: i64, site: u32, flags: Option<LazyFlags> },
    /// The jump cache does not have the address.
    Unknown { label: DynamicLabel, site: u32 },
    /// An instruction that x86-core has to execute after all.
    Helper { label: DynamicLabel, site: u32 },
    /// Requests have come. `dirty`: which of R10 and R11 memory does not have.
    Poll { label: DynamicLabel, site: u32, dirty: [bool; 2] },
}

/// The start of a block that jumps back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub label: DynamicLabel,
    /// Its address.
    pub first: u64,
    /// Which of R10 and R11 are the guest's there, and not in memory.
    pub used: [bool; 2],
}

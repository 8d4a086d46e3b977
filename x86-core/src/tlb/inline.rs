//! Inline TLB: translations kept at single accesses (ADR 14). Host code made by a JIT looks there first, at a place
//! that does not depend on the address, so that neither the look nor the access has to wait for the other.

use std::mem::offset_of;

use super::{MODES, Tlb, TlbMode};

/// Entries for loads, and as many for stores, of each way memory can be accessed.
pub const INLINE_TLB_ENTRIES: usize = 32;
const ALL: usize = MODES * 2 * INLINE_TLB_ENTRIES;

/// Tag of an empty entry: a page of no canonical address. The addend is zero, so an access there is no more canonical
/// for the host than for the guest; executors must be ready for the host's exception.
const NONE: u64 = 1 << 48;

/// All entries of a vCPU, which its executor fills.
#[repr(C)]
#[derive(Debug)]
pub struct InlineTlb {
    /// Not 0: some are filled. The executor that fills one sets this.
    filled: u64,
    tags: [u64; ALL],
    addends: [u64; ALL],
}

impl InlineTlb {
    pub(super) const EMPTY: Self = Self { filled: 0, tags: [NONE; ALL], addends: [0; ALL] };

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.filled) != 0 {
            self.tags.fill(NONE);
            self.addends.fill(0);
        }
    }

    /// Byte offset in `Tlb` of the word that is not 0 when entries are filled.
    pub const fn filled_offset() -> usize {
        offset_of!(Tlb, inline) + offset_of!(Self, filled)
    }

    /// Byte offsets in `Tlb` of tag and addend of the entry with this number among those for `mode` and `write`.
    pub const fn offsets(mode: TlbMode, write: bool, number: usize) -> (usize, usize) {
        let at =
            8 * ((mode as usize * 2 + write as usize) * INLINE_TLB_ENTRIES + number % INLINE_TLB_ENTRIES);
        let all = offset_of!(Tlb, inline);
        (all + offset_of!(Self, tags) + at, all + offset_of!(Self, addends) + at)
    }
}

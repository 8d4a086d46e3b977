//! Segments of the two processors: what Linux has in its GDT, and an LDT of our own.
//!
//! Natively the LDT is installed by modify_ldt(2); the GDT is the kernel's. The software CPU gets tables with the same
//! contents, so that loading a selector, LAR, LSL, VERR, VERW and far transfers can be compared as well as accesses
//! through segments with limits.

use accel_api::x86::Segment;

use super::case::{CODE, CODE_SIZE, WINDOW, WINDOW_SIZE};

/// A segment descriptor in its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Linear address of byte 0.
    pub base: u32,
    /// Limit as the descriptor has it: in bytes, or in pages with G.
    pub limit: u32,
    /// As [`Segment::attributes`].
    pub attributes: u16,
}

const fn descriptor(base: u64, limit: u64, attributes: u16) -> Descriptor {
    Descriptor { base: base as u32, limit: limit as u32, attributes }
}

const NONE: Descriptor = descriptor(0, 0, 0);
const FLAT: u64 = 0xf_ffff;
const WINDOW_LIMIT: u64 = WINDOW_SIZE as u64 - 1;
const CODE_LIMIT: u64 = CODE_SIZE as u64 - 1;

/// The GDT of 64-bit Linux. Descriptors of privilege level 0 look all alike from level 3, so that those of TSS and LDT
/// may lie anywhere.
pub const GDT: [Descriptor; 16] = [
    NONE,
    descriptor(0, FLAT, 0xc09b),
    descriptor(0, FLAT, 0xa09b),
    descriptor(0, FLAT, 0xc093),
    descriptor(0, FLAT, 0xc0fb),
    descriptor(0, FLAT, 0xc0f3),
    descriptor(0, FLAT, 0xa0fb),
    NONE,
    descriptor(0, 0x67, 0x008b),
    NONE,
    descriptor(0, 0xff, 0x0082),
    NONE,
    NONE,
    NONE,
    NONE,
    descriptor(0, 0, 0x40f5),
];

/// The LDT.
pub const LDT: [Descriptor; 11] = [
    descriptor(CODE, CODE_LIMIT, 0x00fb),
    descriptor(WINDOW, WINDOW_LIMIT, 0x00f3),
    descriptor(WINDOW, WINDOW_LIMIT, 0x40f3),
    // Read-only.
    descriptor(WINDOW, WINDOW_LIMIT, 0x40f1),
    // Expand-down, 16 and 32 bits.
    descriptor(WINDOW, 0x7ff, 0x00f7),
    descriptor(WINDOW, 0x7ff, 0x40f7),
    descriptor(0, FLAT, 0xc0fb),
    // Execute-only.
    descriptor(0, FLAT, 0xc0f9),
    // Not present: data, code.
    descriptor(WINDOW, WINDOW_LIMIT, 0x4073),
    descriptor(0, FLAT, 0xc07b),
    descriptor(CODE, CODE_LIMIT, 0x40fb),
];

const fn ldt(index: u16) -> u16 {
    index << 3 | 7
}

/// Linux's 64-bit code segment.
pub const CODE64: u16 = 0x33;
/// Linux's 32-bit code segment.
pub const CODE32: u16 = 0x23;
/// Linux's data segment.
pub const DATA: u16 = 0x2b;
/// 16-bit code at [`CODE`].
pub const CODE16: u16 = ldt(0);
/// 32-bit code at [`CODE`] with a limit.
pub const CODE32_LIMITED: u16 = ldt(10);
/// The window as data, stack pointer 16 bits wide.
pub const DATA16: u16 = ldt(1);
/// Selectors that a stack segment may have.
pub const STACKS: [u16; 5] = [DATA, DATA16, ldt(2), ldt(4), ldt(5)];
/// Selectors that ES, DS and GS may have.
pub const READABLE: [u16; 10] =
    [0, DATA, DATA16, ldt(2), ldt(3), ldt(4), ldt(5), ldt(6), CODE16, CODE32_LIMITED];
/// Code segments that a far transfer can reach.
pub const TARGETS: [u16; 5] = [CODE64, CODE32, CODE16, CODE32_LIMITED, ldt(6)];
/// Selectors to be loaded by hostile code: good ones and bad ones of every kind.
pub const ANY: [u16; 32] = [
    0,
    1,
    2,
    3,
    8,
    0x10,
    0x13,
    0x18,
    0x1b,
    0x20,
    0x23,
    0x28,
    0x2b,
    0x30,
    0x33,
    0x3b,
    0x40,
    0x43,
    0x50,
    0x63,
    0x80,
    ldt(0),
    ldt(1),
    ldt(2),
    ldt(3),
    ldt(4),
    ldt(5),
    ldt(6),
    ldt(7),
    ldt(8),
    ldt(9),
    ldt(11),
];

/// The descriptor that `selector` names; `None` for null selectors and beyond the tables.
fn find(selector: u16) -> Option<Descriptor> {
    let index = usize::from(selector >> 3);
    match selector & 4 {
        0 => GDT.get(index).filter(|_| index != 0).copied(),
        _ => LDT.get(index).copied(),
    }
}

/// The segment register that holds `selector`.
pub fn segment(selector: u16) -> Segment {
    match find(selector) {
        Some(Descriptor { base, limit, attributes }) => Segment {
            selector,
            base: base.into(),
            limit: if attributes & Segment::GRANULARITY != 0 { limit << 12 | 0xfff } else { limit },
            attributes,
            unusable: false,
        },
        None => Segment { selector, unusable: true, ..Segment::default() },
    }
}

/// Linear address of the segment's byte 0.
pub fn base(selector: u16) -> u64 {
    find(selector).map_or(0, |descriptor| descriptor.base.into())
}

impl Descriptor {
    /// As it lies in the table (Intel SDM vol. 3, 3.4.5).
    pub fn raw(self) -> u64 {
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        let attributes = u64::from(self.attributes) & 0xf0ff;
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | attributes << 40
            | (limit >> 16 & 15) << 48
            | (base >> 24) << 56
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_laid_out_as_linux_does() {
        assert_eq!(GDT[6].raw(), 0x00af_fb00_0000_ffff);
        assert_eq!(GDT[4].raw(), 0x00cf_fb00_0000_ffff);
        assert_eq!(LDT[1].raw(), 0x2000_f300_0000_2fff);
    }

    #[test]
    fn lists_hold_what_they_say() {
        for selector in STACKS {
            let s = segment(selector);
            assert!(s.attributes & 0x9a == 0x92, "{selector:#x}");
        }
        for selector in READABLE.into_iter().filter(|&s| s != 0) {
            let s = segment(selector);
            assert!(s.attributes & 0x90 == 0x90 && s.attributes & 0xa != 8, "{selector:#x}");
        }
        for selector in TARGETS {
            assert_eq!(segment(selector).attributes & 0x9e, 0x9a, "{selector:#x}");
        }
        // The host's per-CPU segment would tell where the thread runs.
        assert!(ANY.iter().all(|s| s & !3 != 0x78));
    }
}

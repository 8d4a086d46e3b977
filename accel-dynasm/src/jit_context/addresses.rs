//! Where host code finds the fields of a vCPU's memory.

use std::mem::offset_of;

use accel_api::host_time::Lease;
use accel_api::x86::{Segment, Ymm};
use x86_core::{Cpu, DataTable, TlbMode};

use super::{CLASSES, JitContext, JumpTable, VcpuMemory};

/// Absolute addresses below 2 GiB, for one vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub cpu: i32,
    pub flags: i32,
    pub rip: i32,
    pub code_page: i32,
    pub system_flags: i32,
    pub kernel_gs_base: i32,
    pub tsc_offset: i32,
    pub lease_since: i32,
    pub lease_removed: i32,
    pub tsc_aux: i32,
    pub cr0: i32,
    pub cr2: i32,
    pub cr3: i32,
    pub cr4: i32,
    /// To be set to 1 where an inline TLB entry is filled.
    pub inline_tlb_filled: i32,
    context: i32,
    jumps: i32,
    tlb: [i32; 3],
    /// The vCPU's request word, anywhere.
    pub requests: i64,
}

/// Offsets of the fields of a soft TLB entry.
pub(crate) mod entry {
    use std::mem::offset_of;

    use x86_core::{TLB_ENTRIES, TlbEntry};

    pub(crate) const READ: i32 = offset_of!(TlbEntry, read_tag) as i32;
    pub(crate) const WRITE: i32 = offset_of!(TlbEntry, write_tag) as i32;
    pub(crate) const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;
    /// log2 of its size.
    pub(crate) const SHIFT: u8 = size_of::<TlbEntry>().trailing_zeros() as u8;
    /// Bits by which an address is rotated so that its page number counts entries, and the mask that then selects one.
    pub(crate) const ROTATION: i8 = 12 - SHIFT as i8;
    pub(crate) const INDEX_MASK: i32 = ((TLB_ENTRIES - 1) << SHIFT) as i32;
}

macro_rules! context_fields {
    ($($field:ident)*) => {$(
        pub(crate) fn $field(&self) -> i32 {
            self.context + offset_of!(JitContext, $field) as i32
        }
    )*};
}

impl Addresses {
    /// Those of the vCPU at `memory`, which lies below 2 GiB; `requests` may be anywhere.
    pub(crate) fn new(memory: *const VcpuMemory, requests: *const std::sync::atomic::AtomicU32) -> Self {
        let cpu = memory.addr() as i32;
        let tlb = |mode| cpu + DataTable::of(mode).offset() as i32;
        Self {
            cpu,
            flags: cpu + offset_of!(Cpu, flags) as i32,
            rip: cpu + offset_of!(Cpu, rip) as i32,
            code_page: cpu + offset_of!(Cpu, code_page) as i32,
            system_flags: cpu + offset_of!(Cpu, system_flags) as i32,
            kernel_gs_base: cpu + offset_of!(Cpu, msrs.kernel_gs_base) as i32,
            tsc_offset: cpu + offset_of!(Cpu, tsc_offset) as i32,
            lease_since: cpu + (offset_of!(Cpu, lease) + Lease::SINCE) as i32,
            lease_removed: cpu + (offset_of!(Cpu, lease) + Lease::REMOVED) as i32,
            tsc_aux: cpu + offset_of!(Cpu, msrs.tsc_aux) as i32,
            cr0: cpu + offset_of!(Cpu, cr0) as i32,
            cr2: cpu + offset_of!(Cpu, cr2) as i32,
            cr3: cpu + offset_of!(Cpu, cr3) as i32,
            cr4: cpu + offset_of!(Cpu, cr4) as i32,
            inline_tlb_filled: cpu + Cpu::inline_tlb_filled_offset() as i32,
            context: cpu + offset_of!(VcpuMemory, context) as i32,
            jumps: cpu + offset_of!(VcpuMemory, jumps) as i32,
            tlb: [tlb(TlbMode::Supervisor), tlb(TlbMode::User), tlb(TlbMode::SupervisorOnly)],
            requests: requests.addr() as i64,
        }
    }

    context_fields! { host_rsp target vectors rax ea dispatcher instructions temporary waiting site user_vectors was_user refills }

    pub(crate) fn gpr(&self, index: u8) -> i32 {
        self.cpu + Cpu::gpr_offset(index as usize) as i32
    }

    pub(crate) fn vector(&self, index: u8) -> i32 {
        self.cpu + Cpu::vector_offset(index as usize) as i32
    }

    pub(crate) fn fault_vector(&self, index: u8) -> i32 {
        self.context + (offset_of!(JitContext, fault_vectors) + size_of::<Ymm>() * index as usize) as i32
    }

    pub(crate) fn segment_base(&self, index: usize) -> i32 {
        self.cpu + Cpu::seg_base_offset(index) as i32
    }

    pub(crate) fn segment(&self, index: usize) -> i32 {
        self.segment_base(index) - offset_of!(Segment, base) as i32
    }

    pub(crate) fn selector(&self, index: usize) -> i32 {
        self.segment(index) + offset_of!(Segment, selector) as i32
    }

    pub(crate) fn group(&self, index: u8) -> i32 {
        self.context + (offset_of!(JitContext, groups) + 8 * index as usize) as i32
    }

    pub(crate) fn saved_flags(&self) -> i32 {
        self.context + offset_of!(JitContext, flags) as i32
    }

    pub(crate) fn kept(&self, index: u8) -> i32 {
        self.context + (offset_of!(JitContext, kept) + 8 * index as usize) as i32
    }

    /// The table of the soft TLB with this index.
    pub(crate) fn tlb(&self, mode: usize) -> i32 {
        self.tlb[mode.min(2)]
    }

    /// Where tag and addend of an inline TLB entry are, for accesses through the table with this index.
    pub(crate) fn inline_tlb(&self, mode: usize, write: bool, number: usize) -> (i32, i32) {
        let modes = [TlbMode::Supervisor, TlbMode::User, TlbMode::SupervisorOnly];
        let (tag, addend) = Cpu::inline_tlb_offsets(modes[mode.min(2)], write, number);
        (self.cpu + tag as i32, self.cpu + addend as i32)
    }

    pub(crate) fn negated(&self, class: usize) -> i32 {
        self.jumps + (size_of::<JumpTable>() * class.min(CLASSES - 1) + offset_of!(JumpTable, negated)) as i32
    }

    pub(crate) fn code(&self, class: usize) -> i32 {
        self.jumps + (size_of::<JumpTable>() * class.min(CLASSES - 1) + offset_of!(JumpTable, code)) as i32
    }
}

//! vCPU states as firmware leaves them.

use accel_api::x86::{ControlRegs, CpuState, DescriptorTable, MpState, Mtrrs, PHYS_BITS, Segment};

use crate::memory_map::{DEVICE_HOLE, GIB};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Code segment: present, code, execute and read, accessed.
const CODE: u16 = Segment::PRESENT | Segment::CODE_OR_DATA | 0xb;
/// Data segment: present, data, read and write, accessed.
const DATA: u16 = Segment::PRESENT | Segment::CODE_OR_DATA | 3;

/// The reset state of vCPU `id`, with what firmware sets on every processor before it starts a kernel: the MTRRs.
///
/// Linux takes disabled MTRRs for a BIOS fault and then leaves PAT alone too.
pub fn firmware_state(id: u32) -> CpuState {
    let mut state = CpuState::reset(id);
    state.msrs.mtrr = mtrrs();
    if id == 0 {
        state.lapic = state.lapic.with_virtual_wire();
    }
    state
}

/// RAM is write-back, the VGA window and the device hole uncached, the ROM area write-protected (Intel SDM vol. 3,
/// 12.11).
fn mtrrs() -> Mtrrs {
    const ENABLE: u64 = 1 << 11;
    const FIXED_ENABLE: u64 = 1 << 10;
    const WRITE_BACK: u64 = 6;
    const WRITE_PROTECTED: u64 = 5;
    const VALID: u64 = 1 << 11;
    let all = |kind: u64| u64::from_ne_bytes([kind as u8; 8]);
    let mut fixed = [all(WRITE_PROTECTED); 11];
    fixed[0] = all(WRITE_BACK);
    fixed[1] = all(WRITE_BACK);
    fixed[2] = 0;
    let mut variable = [[0; 2]; 8];
    variable[0] = [DEVICE_HOLE, ((1 << PHYS_BITS) - 1) & !(GIB - 1) | VALID];
    Mtrrs { def_type: ENABLE | FIXED_ENABLE | WRITE_BACK, fixed, variable }
}

/// GDT entries as the boot protocols want them: null, null, code at 0x10, data at 0x18; `long` code is 64-bit.
pub(super) fn gdt(long: bool) -> [u64; 4] {
    let code = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    [0, 0, code, 0x00cf_9300_0000_ffff]
}

/// Flat segments as in [`gdt`], loaded; interrupts off; no IDT.
fn flat(gdt_at: u64, long: bool) -> CpuState {
    let mut state = firmware_state(0);
    let size = if long { Segment::LONG } else { Segment::DB };
    let data = Segment::flat(0x18, DATA | Segment::DB | Segment::GRANULARITY);
    let s = &mut state.segments;
    s.cs = Segment::flat(0x10, CODE | size | Segment::GRANULARITY);
    (s.ds, s.es, s.ss, s.fs, s.gs) = (data, data, data, data, data);
    s.tr = Segment { selector: 0, base: 0, limit: 0x67, attributes: Segment::PRESENT | 0xb, unusable: false };
    s.ldtr = Segment { unusable: true, ..Segment::default() };
    state.gdtr = DescriptorTable { base: gdt_at, limit: 31 };
    state.idtr = DescriptorTable { base: 0, limit: 0 };
    state.gpr = [0; 16];
    state.rflags = 2;
    state.mp = MpState::Running;
    state
}

/// Long mode with the given page tables.
pub(super) fn long_mode(gdt_at: u64, cr3: u64, rip: u64) -> CpuState {
    let mut state = flat(gdt_at, true);
    state.control =
        ControlRegs { cr0: CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_PE, cr3, cr4: CR4_PAE, ..state.control };
    state.msrs.efer = EFER_LME | EFER_LMA;
    state.rip = rip;
    state
}

/// 32-bit protected mode without paging.
pub(super) fn protected_mode(gdt_at: u64, rip: u64) -> CpuState {
    let mut state = flat(gdt_at, false);
    state.control = ControlRegs { cr0: CR0_ET | CR0_PE, ..state.control };
    state.rip = rip;
    state
}

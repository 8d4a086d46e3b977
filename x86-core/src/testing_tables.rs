//! Descriptor tables on the bench: a GDT with a segment of every kind, an IDT, a TSS.

use accel_api::x86::{DescriptorTable, Segment, gpr};

use crate::Cpu;
use crate::cpu::seg;
use crate::mode::Mode;
use crate::testing::{cpu, peek, poke};

pub(crate) const GDT: u64 = 0x2000;
pub(crate) const LDT: u64 = 0x3000;
pub(crate) const IDT: u64 = 0x4000;
pub(crate) const TSS: u64 = 0x6000;
pub(crate) const STACK: u64 = 0x9000;
/// RSP0 of the TSS, and SS0:ESP0.
pub(crate) const INNER_STACK: u64 = 0xa000;
/// IST1.
pub(crate) const IST: u64 = 0xb000;
pub(crate) const HANDLER: u64 = 0x7000;

pub(crate) const CODE0: u16 = 0x08;
pub(crate) const DATA0: u16 = 0x10;
pub(crate) const CODE3: u16 = 0x1b;
pub(crate) const DATA3: u16 = 0x23;
pub(crate) const TR: u16 = 0x28;
/// Conforming code of level 0.
pub(crate) const CONFORMING: u16 = 0x38;
/// Like [`CODE0`], not present.
pub(crate) const ABSENT_CODE: u16 = 0x40;
pub(crate) const ABSENT_DATA: u16 = 0x48;
pub(crate) const READ_ONLY: u16 = 0x50;
/// Code that cannot be read.
pub(crate) const EXECUTE_ONLY: u16 = 0x58;
pub(crate) const LDT_SELECTOR: u16 = 0x60;
/// 16-bit code and data of level 0, in any mode but 64-bit.
pub(crate) const CODE16: u16 = 0x70;
pub(crate) const DATA16: u16 = 0x78;
/// 32-bit code of level 3 for compatibility mode.
pub(crate) const COMPAT3: u16 = 0x83;
/// Free for tests; up to 0xff.
pub(crate) const FREE: u16 = 0x90;

/// A descriptor of the given base, limit field and attributes (laid out as [`Segment::attributes`]).
pub(crate) const fn descriptor(base: u32, limit: u32, attributes: u16) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes as u64) << 40
        | (limit & 0xf_0000) << 32
        | (base >> 24) << 56
}

/// An interrupt or trap gate (or call gate) of the 8-byte form; for long mode the rest is `offset >> 32`.
pub(crate) const fn gate(selector: u16, offset: u64, kind: u8, dpl: u8, low: u8) -> u64 {
    offset & 0xffff
        | (selector as u64) << 16
        | (low as u64) << 32
        | (0x80 | kind as u64 | (dpl as u64) << 5) << 40
        | (offset >> 16 & 0xffff) << 48
}

pub(crate) fn poke64(cpu: &mut Cpu, at: u64, value: u64) {
    poke(cpu, at, &value.to_le_bytes());
}

pub(crate) fn peek64(cpu: &mut Cpu, at: u64) -> u64 {
    u64::from_le_bytes(peek(cpu, at, 8).try_into().unwrap())
}

pub(crate) fn peek32(cpu: &mut Cpu, at: u64) -> u32 {
    u32::from_le_bytes(peek(cpu, at, 4).try_into().unwrap())
}

pub(crate) fn set_descriptor(cpu: &mut Cpu, selector: u16, value: u64) {
    poke64(cpu, GDT + u64::from(selector & 0xfff8), value);
}

/// Writes IDT entry `vector` in the form of the CPU's mode.
pub(crate) fn set_gate(cpu: &mut Cpu, vector: u8, value: u64, offset_high: u64) {
    if cpu.long_mode() {
        poke64(cpu, IDT + 16 * u64::from(vector), value);
        poke64(cpu, IDT + 16 * u64::from(vector) + 8, offset_high);
    } else {
        poke64(cpu, IDT + 8 * u64::from(vector), value);
    }
}

/// A vCPU in `mode` ([`Mode::Long`], or 16- or 32-bit protected mode) with the tables above loaded, at privilege
/// `cpl` on [`STACK`]. Every vector below 64 has an interrupt gate of DPL 0 to [`HANDLER`].
pub(crate) fn cpu_with_tables(mode: Mode, cpl: u8) -> Box<Cpu> {
    let mut c = cpu(mode);
    let long = mode == Mode::Long;
    let code = if long { 0xa000 } else { 0xc000 };
    let entries = [
        (CODE0, descriptor(0, 0xf_ffff, code | 0x9b)),
        (DATA0, descriptor(0, 0xf_ffff, 0xc093)),
        (CODE3, descriptor(0, 0xf_ffff, code | 0xfb)),
        (DATA3, descriptor(0, 0xf_ffff, 0xc0f3)),
        (TR, descriptor(TSS as u32, 0x67, 0x89)),
        (CONFORMING, descriptor(0, 0xf_ffff, code | 0x9f)),
        (ABSENT_CODE, descriptor(0, 0xf_ffff, code | 0x1b)),
        (ABSENT_DATA, descriptor(0, 0xf_ffff, 0xc013)),
        (READ_ONLY, descriptor(0, 0xf_ffff, 0xc091)),
        (EXECUTE_ONLY, descriptor(0, 0xf_ffff, code | 0x99)),
        (LDT_SELECTOR, descriptor(LDT as u32, 0xff, 0x82)),
        (CODE16, descriptor(0, 0xffff, 0x9b)),
        (DATA16, descriptor(0, 0xffff, 0x93)),
        (COMPAT3, descriptor(0, 0xf_ffff, 0xc0fb)),
    ];
    for (selector, value) in entries {
        set_descriptor(&mut c, selector, value);
    }
    c.gdtr = DescriptorTable { base: GDT, limit: 0xff };
    c.idtr = DescriptorTable { base: IDT, limit: if long { 64 * 16 - 1 } else { 64 * 8 - 1 } };
    for vector in 0..64 {
        set_gate(&mut c, vector, gate(CODE0, HANDLER, 14, 0, 0), 0);
    }
    if long {
        poke64(&mut c, TSS + 4, INNER_STACK);
        poke64(&mut c, TSS + 0x24, IST);
    } else {
        poke64(&mut c, TSS + 4, INNER_STACK | u64::from(DATA0) << 32);
    }
    c.tr = Segment { selector: TR, base: TSS, limit: 0x67, attributes: 0x8b, unusable: false };
    set_privilege(&mut c, cpl);
    c.gpr[gpr::RSP] = STACK;
    c
}

/// Gives the CPU flat code and data of level 0 or 3.
pub(crate) fn set_privilege(c: &mut Cpu, cpl: u8) {
    let (cs, ss) = if cpl == 0 { (CODE0, DATA0) } else { (CODE3, DATA3) };
    let dpl = u16::from(cpl) << 5;
    let code = c.segs[seg::CS].attributes & !0x60 | dpl;
    c.segs = [Segment::flat(ss, 0xc093 | dpl); 6];
    c.segs[seg::CS] = Segment::flat(cs, code);
    c.update_mode();
}

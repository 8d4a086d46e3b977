//! Descriptors and the loading of segment registers (Intel SDM vol. 3, 3.4 and chapter 5).
//!
//! 1. A [`Descriptor`] is 8 bytes of the GDT or LDT; the system descriptors of long mode (LDT, TSS, call gate) have 8
//!    more, which [`Cpu::upper_half`] fetches.
//! 2. [`Cpu::load_segment`] is MOV, POP, LDS and their kin, in every mode; [`Cpu::check_stack_segment`] and
//!    [`Cpu::check_code`] are the rules that far transfers and event delivery share.
//! 3. Loads are checked completely before a register changes. The accessed bit is the only thing memory sees.

use accel_api::x86::Segment;

use crate::alu::Word;
use crate::cpu::seg;
use crate::mode::Mode;
use crate::{Cpu, Exec, Fault, vector};

/// Types of system descriptors (Intel SDM vol. 3, table 3-2).
#[allow(missing_docs)] // the manual's names
pub mod system_type {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL: u8 = 12;
    pub const INTERRUPT: u8 = 14;
    pub const TRAP: u8 = 15;
}

/// Rights of the flat segments that SYSCALL, SYSENTER and their kin load without a descriptor, as [`Segment::attributes`] has
/// them.
pub mod rights {
    /// 64-bit code.
    pub const CODE64: u16 = 0xa09b;
    /// 32-bit code.
    pub const CODE32: u16 = 0xc09b;
    /// Data and stacks.
    pub const DATA: u16 = 0xc093;
    /// With this, they are the user's.
    pub const DPL3: u16 = 3 << 5;
}

/// Of a TSS descriptor's type: it is the current task's, or of one that waits for a nested one.
pub(crate) const BUSY: u8 = 2;

/// Eight bytes of a descriptor table (Intel SDM vol. 3, figure 3-8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address, bits 31:0.
    pub const fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | (self.0 >> 56) << 24
    }

    /// Last valid offset in bytes.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Access rights as [`Segment::attributes`] has them.
    pub const fn attributes(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// Type, bits 11:8 of the second doubleword.
    pub const fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 15
    }

    /// Privilege level, 0 to 3.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    /// P.
    pub const fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// S clear: a gate, a TSS or an LDT.
    pub const fn is_system(self) -> bool {
        self.0 >> 44 & 1 == 0
    }

    /// A code segment.
    pub const fn is_code(self) -> bool {
        self.0 >> 43 & 3 == 3
    }

    /// A conforming code segment.
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// A writable data segment.
    pub const fn is_writable(self) -> bool {
        !self.is_system() && !self.is_code() && self.kind() & 2 != 0
    }

    /// A data segment, or a code segment that may be read.
    pub const fn is_readable(self) -> bool {
        !self.is_system() && (!self.is_code() || self.kind() & 2 != 0)
    }

    /// L: 64-bit code.
    pub const fn is_long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// D/B.
    pub const fn is_big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// Selector, of a gate.
    pub const fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Offset, of a gate: 32 bits.
    pub const fn gate_offset(self) -> u64 {
        self.0 & 0xffff | self.0 >> 32 & 0xffff_0000
    }

    /// The segment register that this descriptor makes.
    pub const fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            attributes: self.attributes(),
            unusable: false,
        }
    }
}

/// A segment register after loading a null selector. Its DPL tells the CPL if it is SS in 64-bit mode.
pub const fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, attributes: (dpl as u16) << 5, unusable: true }
}

/// A selector whose index and TI are zero.
pub const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Requested privilege level of a selector.
pub const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A fault whose error code is made from a selector, without EXT.
pub type SelectorFault = fn(u16) -> Fault;

impl Cpu {
    /// Linear address of the `bytes` bytes (8 or 16) that `selector` stands for, if the table has them.
    fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.unusable {
            return None;
        } else {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        };
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The descriptor of `selector`, which is not null.
    ///
    /// # Errors
    /// `outside` if the table ends before it; #PF.
    #[inline]
    pub fn descriptor(&mut self, selector: u16, outside: SelectorFault) -> Exec<Descriptor> {
        let at = self.descriptor_address(selector, 8).ok_or_else(|| outside(selector))?;
        Ok(Descriptor(self.system_load(at)?))
    }

    /// The second eight bytes of a long-mode system descriptor (Intel SDM vol. 3, 7.2.3): bits 63:32 of its base or
    /// offset.
    ///
    /// # Errors
    /// `bad` if the table ends before them or their type field is not 0; #PF.
    pub fn upper_half(&mut self, selector: u16, bad: SelectorFault) -> Exec<u64> {
        let at = self.descriptor_address(selector, 16).ok_or_else(|| bad(selector))?;
        let upper: u64 = self.system_load(at.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(bad(selector));
        }
        Ok(upper << 32)
    }

    /// Sets the accessed bit of a code or data descriptor, in memory and in `descriptor`.
    ///
    /// # Errors
    /// #PF.
    #[inline]
    pub fn mark_accessed(&mut self, selector: u16, descriptor: &mut Descriptor) -> Exec {
        const ACCESSED: u64 = 1 << 40;
        if descriptor.0 & ACCESSED == 0 {
            self.update_type(selector, |kind| kind | 1)?;
            descriptor.0 |= ACCESSED;
        }
        Ok(())
    }

    /// Marks the TSS of `selector`, found available, as busy (Intel SDM vol. 3, 9.1.2.1).
    ///
    /// # Errors
    /// #PF; #GP if another processor has been faster.
    pub(crate) fn mark_busy(&mut self, selector: u16) -> Exec {
        if self.update_type(selector, |kind| kind | BUSY)? & BUSY == 0 {
            Ok(())
        } else {
            Err(Fault::gp(selector))
        }
    }

    /// Changes the type field of a descriptor in memory. `op` gets the byte that ends in it, and keeps the rest. Returns
    /// what was there.
    #[cold]
    pub(crate) fn update_type(&mut self, selector: u16, op: fn(u8) -> u8) -> Exec<u8> {
        match self.descriptor_address(selector, 8) {
            Some(at) => self.system_update(at.wrapping_add(5), op),
            None => Err(Fault::gp(selector)),
        }
    }

    /// A segment register as real-address and virtual-8086 mode load it (Intel SDM vol. 3, 21.1.1 and 21.2.1). Real mode
    /// keeps the limit and rights that protected mode left behind.
    pub fn real_segment(&self, old: &Segment, selector: u16) -> Segment {
        if self.mode == Mode::Virtual8086 {
            return virtual8086_segment(selector);
        }
        if old.unusable {
            return Segment::real(selector);
        }
        Segment { selector, base: u64::from(selector) << 4, ..*old }
    }

    /// Loads ES, SS, DS, FS or GS (Intel SDM vol. 2, MOV).
    ///
    /// # Errors
    /// #GP, #NP, #SS or #PF.
    pub fn load_segment(&mut self, index: usize, selector: u16) -> Exec {
        if !self.protected() {
            self.segs[index] = self.real_segment(&self.segs[index], selector);
            return Ok(());
        }
        self.segs[index] = if index == seg::SS {
            if is_null(selector) {
                if self.mode != Mode::Long || self.cpl == 3 || rpl(selector) != self.cpl {
                    return Err(Fault::GP0);
                }
                null_segment(selector, self.cpl)
            } else {
                self.check_stack_segment(selector, self.cpl, Fault::gp)?
            }
        } else {
            self.data_segment(selector, Fault::gp)?
        };
        if index == seg::SS {
            self.update_mode();
        }
        Ok(())
    }

    /// Checks a selector for ES, DS, FS or GS and gives the segment; `bad` is what it raises: #GP for loads, #TS for task
    /// switches.
    ///
    /// # Errors
    /// `bad`, #NP, #PF.
    pub(crate) fn data_segment(&mut self, selector: u16, bad: SelectorFault) -> Exec<Segment> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let mut d = self.descriptor(selector, bad)?;
        let private = !d.is_conforming();
        if !d.is_readable() || (private && (rpl(selector) > d.dpl() || self.cpl > d.dpl())) {
            return Err(bad(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// Checks a selector for SS at privilege `cpl` (Intel SDM vol. 3, 5.7) and gives the segment. `bad` is what it
    /// raises: #GP for loads and returns, #TS where it comes from a TSS. Null is for the caller to have sorted out.
    ///
    /// # Errors
    /// `bad`, #SS if it is not present, #PF.
    pub fn check_stack_segment(&mut self, selector: u16, cpl: u8, bad: SelectorFault) -> Exec<Segment> {
        let mut d = self.descriptor(selector, bad)?;
        if rpl(selector) != cpl || d.dpl() != cpl || !d.is_writable() {
            return Err(bad(selector));
        }
        if !d.present() {
            return Err(Fault::ss(selector));
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// Checks that `d`, of `selector`, is code that can run: in long mode L and D exclude each other.
    ///
    /// # Errors
    /// #GP(selector), #NP(selector).
    #[inline]
    pub fn check_code(&self, selector: u16, d: Descriptor, privilege_ok: bool) -> Exec {
        if !d.is_code() || !privilege_ok || (self.long_mode() && d.is_long() && d.is_big()) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        Ok(())
    }

    /// Checks that execution can go on at `offset` of the code segment that `d` describes.
    ///
    /// # Errors
    /// #GP(0) beyond the limit, or if the address is not canonical in 64-bit code.
    #[inline]
    pub fn check_entry(&self, d: Descriptor, offset: u64) -> Exec {
        let fits = if self.long_mode() && d.is_long() {
            Self::canonical(offset)
        } else {
            offset <= u64::from(d.limit())
        };
        if fits { Ok(()) } else { Err(Fault::GP0) }
    }

    /// LLDT.
    ///
    /// # Errors
    /// #GP, #NP or #PF.
    pub fn load_ldtr(&mut self, selector: u16) -> Exec {
        if is_null(selector) {
            self.ldtr = null_segment(selector, 0);
            return Ok(());
        }
        self.ldtr = self.system_segment(selector, |kind, _| kind == system_type::LDT)?;
        Ok(())
    }

    /// LTR: marks the TSS busy.
    ///
    /// # Errors
    /// #GP, #NP or #PF.
    pub fn load_tr(&mut self, selector: u16) -> Exec {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut tr = self.system_segment(selector, |kind, long| {
            kind == system_type::TSS || (kind == system_type::TSS16 && !long)
        })?;
        self.mark_busy(selector)?;
        tr.attributes |= u16::from(BUSY);
        self.tr = tr;
        Ok(())
    }

    fn system_segment(&mut self, selector: u16, wanted: fn(u8, bool) -> bool) -> Exec<Segment> {
        if selector & 4 != 0 {
            return Err(Fault::gp(selector));
        }
        let d = self.descriptor(selector, Fault::gp)?;
        let long = self.long_mode();
        if !d.is_system() || !wanted(d.kind(), long) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        let mut segment = d.segment(selector);
        if long {
            segment.base |= self.upper_half(selector, Fault::gp)?;
            if !Self::canonical(segment.base) {
                return Err(Fault::gp(selector));
            }
        }
        Ok(segment)
    }

    /// Reads `W` at `offset` of the current TSS.
    ///
    /// # Errors
    /// #TS(TR) beyond its limit; #PF.
    pub fn tss_field<W: Word>(&mut self, offset: u64) -> Exec<W> {
        if self.tr.unusable || offset + W::BYTES as u64 - 1 > u64::from(self.tr.limit) {
            return Err(Fault::ts(self.tr.selector));
        }
        self.system_load(self.tr.base.wrapping_add(offset))
    }

    /// Stack of privilege level `cpl` from a TSS outside long mode: SS and ESP (Intel SDM vol. 3, 5.8.5).
    ///
    /// # Errors
    /// #TS(TR), #PF.
    pub fn tss_stack(&mut self, cpl: u8) -> Exec<(u16, u64)> {
        let level = u64::from(cpl);
        if self.tr.kind() & 8 != 0 {
            let esp: u32 = self.tss_field(4 + 8 * level)?;
            Ok((self.tss_field(8 + 8 * level)?, esp.into()))
        } else {
            let sp: u16 = self.tss_field(2 + 4 * level)?;
            Ok((self.tss_field(4 + 4 * level)?, sp.into()))
        }
    }

    /// Stack `slot` from a TSS of long mode: RSP0 to RSP2 are slots 0 to 2, IST1 to IST7 slots 4 to 10 (Intel SDM vol.
    /// 3, figure 7-11).
    ///
    /// # Errors
    /// #TS(TR), #PF; #SS(0) if the pointer is not canonical.
    pub fn tss_stack_long(&mut self, slot: u8) -> Exec<u64> {
        let rsp = self.tss_field(4 + 8 * u64::from(slot))?;
        if Self::canonical(rsp) { Ok(rsp) } else { Err(Fault::SS0) }
    }

    /// After a return to an outer level: data segments that it may not use become null, and null selectors 0 (Intel SDM
    /// vol. 3, 5.8.6; vol. 2A, IRET). Bases stay, which 64-bit code uses whatever the selector is: seen on Zen 3 for null
    /// selectors, and both vendors' kernels rely on it for the bases of programs.
    pub fn drop_inner_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.segs[index];
            let conforming = s.attributes & 0x1c == 0x1c;
            if is_null(s.selector) && s.unusable {
                s.selector = 0;
            } else if !s.unusable && !conforming && s.dpl() < self.cpl {
                *s = Segment { base: s.base, ..null_segment(0, 0) };
            }
        }
    }

    /// #GP(0) unless CPL is 0.
    ///
    /// # Errors
    /// #GP(0).
    #[inline(always)]
    pub fn privileged(&self) -> Exec {
        if self.cpl == 0 { Ok(()) } else { Err(Fault::GP0) }
    }
}

/// A segment register of virtual-8086 mode (Intel SDM vol. 3, 21.2.1).
pub const fn virtual8086_segment(selector: u16) -> Segment {
    Segment { attributes: 0xf3, ..Segment::real(selector) }
}

/// Fault for an IDT entry: index times 8 with the IDT bit (Intel SDM vol. 3, figure 6-7).
pub const fn idt_fault(exception: u8, index: u8) -> Fault {
    const IDT: u32 = 2;
    debug_assert!(exception == vector::GP || exception == vector::NP);
    Fault::with_code(exception, (index as u32) << 3 | IDT)
}

#[cfg(test)]
mod tests;

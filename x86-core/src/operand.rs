//! Operands of decoded instructions: registers, immediates, effective addresses, the stack.

use iced_x86::{Instruction, OpKind, Register};

use crate::alu::Word;
use crate::cpu::seg;
use crate::mode::Mode;
use crate::{Cpu, Ea, Exec, Fault};
use accel_api::x86::{Segment, gpr};

/// Byte offset in [`Cpu::gpr`] and width of each register by iced's number for it; width 0 for those that are not
/// general ones.
const PLACES: [(u8, u8); 256] = {
    let mut places = [(0, 0); 256];
    let mut n = 0u8;
    while n < 16 {
        // iced lists AL, CL, DL, BL, AH, CH, DH, BH, SPL, ..., R15L.
        let byte = if n < 4 { 0 } else { 4 };
        places[Register::AL as usize + byte + n as usize] = (8 * n, 1);
        if n < 4 {
            places[Register::AH as usize + n as usize] = (8 * n + 1, 1);
        }
        places[Register::AX as usize + n as usize] = (8 * n, 2);
        places[Register::EAX as usize + n as usize] = (8 * n, 4);
        places[Register::RAX as usize + n as usize] = (8 * n, 8);
        n += 1;
    }
    places
};

/// Byte offset in [`Cpu::gpr`] and width of a general register; AH, CH, DH and BH lie one byte in.
#[inline(always)]
pub fn gpr_place(register: Register) -> Option<(usize, usize)> {
    let (place, size) = PLACES[register as usize & 0xff];
    (size != 0).then_some((place.into(), size.into()))
}

/// Index into [`Cpu::segs`] of a segment register.
pub fn segment_index(register: Register) -> Option<usize> {
    register.is_segment_register().then(|| register.number())
}

impl Cpu {
    /// Reads general register `index` in width `W` (low part).
    #[inline(always)]
    pub fn reg<W: Word>(&self, index: usize) -> W {
        W::from_u64(self.gpr[index & 15])
    }

    /// Writes general register `index` in width `W`: 32-bit results are zero-extended, narrower ones merged.
    #[inline(always)]
    pub fn set_reg<W: Word>(&mut self, index: usize, value: W) {
        let slot = &mut self.gpr[index & 15];
        *slot = match W::BYTES {
            1 => *slot & !0xff | value.to_u64(),
            2 => *slot & !0xffff | value.to_u64(),
            _ => value.to_u64(),
        };
    }

    /// Reads a general register as named, AH to BH included; 0 for others.
    pub fn read_gpr(&self, register: Register) -> u64 {
        match gpr_place(register) {
            Some((place, size)) => {
                let value = self.gpr[(place / 8) & 15] >> (place % 8 * 8);
                if size == 8 { value } else { value & ((1 << (8 * size)) - 1) }
            }
            None => 0,
        }
    }

    /// Writes a general register as named, AH to BH included.
    pub fn write_gpr(&mut self, register: Register, value: u64) {
        let Some((place, size)) = gpr_place(register) else { return };
        let slot = &mut self.gpr[(place / 8) & 15];
        *slot = match size {
            8 => value,
            4 => value & 0xffff_ffff,
            _ => {
                let shift = place % 8 * 8;
                let mask = ((1u64 << (8 * size)) - 1) << shift;
                *slot & !mask | value << shift & mask
            }
        };
    }

    /// Operand `n` in width `W`: register, immediate (sign-extended as encoded) or memory.
    ///
    /// # Errors
    /// Faults of the memory access.
    pub fn read_op<W: Word>(&mut self, ins: &Instruction, n: u32) -> Exec<W> {
        match ins.op_kind(n) {
            OpKind::Register => Ok(W::from_u64(self.read_gpr(ins.op_register(n)))),
            OpKind::Memory => {
                let ea = self.ea(ins, W::BYTES, false)?;
                self.load(ea)
            }
            _ => Ok(W::from_u64(ins.try_immediate(n).unwrap_or(0))),
        }
    }

    /// Writes operand `n` in width `W`: register or memory.
    ///
    /// # Errors
    /// Faults of the memory access.
    pub fn write_op<W: Word>(&mut self, ins: &Instruction, n: u32, value: W) -> Exec {
        if ins.op_kind(n) == OpKind::Register {
            self.write_gpr(ins.op_register(n), value.to_u64());
            return Ok(());
        }
        let ea = self.ea(ins, W::BYTES, true)?;
        self.store(ea, value)
    }

    /// Reads operand `n`, computes, writes it back; atomically with a LOCK prefix. See [`Cpu::rmw`].
    ///
    /// # Errors
    /// Faults of the memory access, or what `op` returns.
    pub fn rmw_op<W: Word, R>(
        &mut self,
        ins: &Instruction,
        n: u32,
        mut op: impl FnMut(W) -> Exec<(W, R)>,
    ) -> Exec<R> {
        if ins.op_kind(n) == OpKind::Register {
            let register = ins.op_register(n);
            let (new, result) = op(W::from_u64(self.read_gpr(register)))?;
            self.write_gpr(register, new.to_u64());
            return Ok(result);
        }
        let ea = self.ea(ins, W::BYTES, true)?;
        self.rmw(ea, ins.has_lock_prefix(), op)
    }

    /// Offset part of the memory operand: base + index * scale + displacement, cut to the address size.
    pub fn ea_offset(&self, ins: &Instruction) -> u64 {
        let base = ins.memory_base();
        if base == Register::RIP || base == Register::EIP {
            // iced has added the address of the next instruction to the displacement.
            return ins.memory_displacement64();
        }
        let mut offset = ins.memory_displacement64();
        let index = ins.memory_index();
        if base != Register::None {
            offset = offset.wrapping_add(self.read_gpr(base));
        }
        if index != Register::None {
            offset =
                offset.wrapping_add(self.read_gpr(index).wrapping_mul(u64::from(ins.memory_index_scale())));
        }
        offset & address_mask(ins)
    }

    /// Linear address of the memory operand, segment checks included, for an access of `size` bytes.
    ///
    /// # Errors
    /// #GP(0) or #SS(0) by the segment's limit, type or null selector (Intel SDM vol. 3, 5.3 to 5.5).
    #[inline]
    pub fn ea(&self, ins: &Instruction, size: usize, write: bool) -> Exec<Ea> {
        self.segmented(self.memory_segment(ins), self.ea_offset(ins), size, write)
    }

    /// Index into [`Cpu::segs`] of the memory operand's segment. 64-bit mode ignores overrides other than FS and GS
    /// (Intel SDM vol. 1, 3.4.2.1), also when it is about which exception a non-canonical address raises.
    #[inline]
    pub fn memory_segment(&self, ins: &Instruction) -> usize {
        let segment = segment_index(ins.memory_segment()).unwrap_or(seg::DS);
        if self.mode == Mode::Long && segment < seg::FS && ins.has_segment_prefix() {
            let stack = matches!(ins.memory_base().full_register(), Register::RSP | Register::RBP);
            return if stack { seg::SS } else { seg::DS };
        }
        segment
    }

    /// Linear address of `offset` in segment `segment` for an access of `size` bytes.
    ///
    /// # Errors
    /// As [`Self::ea`].
    pub fn segmented(&self, segment: usize, offset: u64, size: usize, write: bool) -> Exec<Ea> {
        let stack = segment == seg::SS;
        let s = &self.segs[segment];
        if self.mode == Mode::Long {
            let base = if segment >= seg::FS { s.base } else { 0 };
            return Ok(Ea { la: base.wrapping_add(offset), stack });
        }
        if !within(s, offset, size) || (self.protected() && !usable(s, write)) {
            return Err(if stack { Fault::SS0 } else { Fault::GP0 });
        }
        Ok(Ea { la: s.base.wrapping_add(offset) & 0xffff_ffff, stack })
    }

    /// Width in bytes of the stack pointer: 2, 4 or 8 (Intel SDM vol. 1, 6.2.3).
    pub fn stack_width(&self) -> usize {
        match self.mode {
            Mode::Long => 8,
            _ if self.segs[seg::SS].attributes & Segment::DB != 0 => 4,
            _ => 2,
        }
    }

    /// `value` cut to the stack pointer's width, the rest of RSP kept.
    pub fn with_stack_width(&self, value: u64) -> u64 {
        let old = self.gpr[gpr::RSP];
        match self.stack_width() {
            8 => value,
            4 => value & 0xffff_ffff,
            _ => old & !0xffff | value & 0xffff,
        }
    }

    /// The stack address `delta` bytes from RSP, for an access of `size` bytes.
    ///
    /// # Errors
    /// #SS(0).
    pub fn stack_ea(&self, delta: i64, size: usize, write: bool) -> Exec<Ea> {
        let offset = self.gpr[gpr::RSP].wrapping_add_signed(delta);
        let offset = match self.stack_width() {
            8 => offset,
            4 => offset & 0xffff_ffff,
            _ => offset & 0xffff,
        };
        self.segmented(seg::SS, offset, size, write)
    }

    /// Pushes; RSP changes only on success.
    ///
    /// # Errors
    /// Faults of the store.
    pub fn push<W: Word>(&mut self, value: W) -> Exec {
        let ea = self.stack_ea(-(W::BYTES as i64), W::BYTES, true)?;
        self.store(ea, value)?;
        self.add_rsp(-(W::BYTES as i64));
        Ok(())
    }

    /// Pops; RSP changes only on success.
    ///
    /// # Errors
    /// Faults of the load.
    pub fn pop<W: Word>(&mut self) -> Exec<W> {
        let value = self.peek(0)?;
        self.add_rsp(W::BYTES as i64);
        Ok(value)
    }

    /// Reads the stack `delta` bytes above RSP.
    ///
    /// # Errors
    /// Faults of the load.
    pub fn peek<W: Word>(&mut self, delta: i64) -> Exec<W> {
        let ea = self.stack_ea(delta, W::BYTES, false)?;
        self.load(ea)
    }

    /// Moves RSP in the stack's width.
    pub fn add_rsp(&mut self, delta: i64) {
        self.gpr[gpr::RSP] = self.with_stack_width(self.gpr[gpr::RSP].wrapping_add_signed(delta));
    }
}

/// Address-size mask of a memory operand.
pub(crate) fn address_mask(ins: &Instruction) -> u64 {
    let of = |r: Register| match r.size() {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    if ins.memory_base() != Register::None {
        of(ins.memory_base())
    } else if ins.memory_index() != Register::None {
        of(ins.memory_index())
    } else {
        match ins.memory_displ_size() {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
}

/// Limit check, expand-down segments included (Intel SDM vol. 3, 5.3).
pub(crate) fn within(s: &Segment, offset: u64, size: usize) -> bool {
    let last = offset.wrapping_add(size as u64 - 1);
    let expand_down = s.attributes & 0x1c == 0x14;
    if expand_down {
        let top = if s.attributes & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && last <= top && last >= offset
    } else {
        last <= u64::from(s.limit) && last >= offset
    }
}

/// Type check of a data access (Intel SDM vol. 3, 5.5).
fn usable(s: &Segment, write: bool) -> bool {
    let code = s.attributes & 8 != 0;
    let rw = s.attributes & 2 != 0;
    !s.unusable && if write { !code && rw } else { !code || rw }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_registers_have_their_places() {
        let place = |r| gpr_place(r).unwrap();
        assert_eq!(place(Register::AL), (0, 1));
        assert_eq!(place(Register::AH), (1, 1));
        assert_eq!(place(Register::BH), (3 * 8 + 1, 1));
        assert_eq!(place(Register::SPL), (4 * 8, 1));
        assert_eq!(place(Register::DIL), (7 * 8, 1));
        assert_eq!(place(Register::R8L), (8 * 8, 1));
        assert_eq!(place(Register::R15L), (15 * 8, 1));
        assert_eq!(place(Register::R15W), (15 * 8, 2));
        for register in Register::values() {
            let size = gpr_place(register).map(|(_, size)| size);
            assert_eq!(size, register.is_gpr().then(|| register.size()), "{register:?}");
            if register.is_gpr() && size != Some(1) {
                assert_eq!(place(register).0, 8 * register.number(), "{register:?}");
            }
        }
    }
}

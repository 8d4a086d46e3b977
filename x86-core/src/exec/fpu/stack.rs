//! The register stack: TOP, tags, stack faults, and what an operation's status word does to the guest's
//! (Intel SDM vol. 1, 8.1 and 8.5).

use iced_x86::{Instruction, Register};

use super::host::Env;
use crate::mode::bits;
use crate::{Cpu, Ea, Exec, F80, Fault, FpuRegs, fsw};

/// Unmasked exceptions that leave operands and destination as they were.
const BEFORE: u16 = fsw::IE | fsw::DE | fsw::ZE;

impl FpuRegs {
    /// Index of ST`i`'s register.
    #[inline(always)]
    pub(super) fn slot(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }

    #[inline(always)]
    pub(super) fn st(&self, i: usize) -> F80 {
        self.r[self.slot(i)]
    }

    #[inline(always)]
    pub(super) fn is_empty(&self, i: usize) -> bool {
        self.ftw >> self.slot(i) & 1 == 0
    }

    /// Writes ST`i` and marks it valid.
    #[inline(always)]
    pub(super) fn set_st(&mut self, i: usize, value: F80) {
        let slot = self.slot(i);
        self.r[slot] = value;
        self.ftw |= 1 << slot;
    }

    #[inline(always)]
    pub(super) fn free(&mut self, i: usize) {
        self.ftw &= !(1 << self.slot(i));
    }

    #[inline(always)]
    pub(super) fn move_top(&mut self, by: u16) {
        self.fsw = self.fsw & !fsw::TOP | self.fsw.wrapping_add(by << 11) & fsw::TOP;
    }

    #[inline(always)]
    pub(super) fn pop(&mut self) {
        self.free(0);
        self.move_top(1);
    }

    #[inline(always)]
    pub(super) fn pop_if(&mut self, pop: bool) {
        if pop {
            self.pop();
        }
    }

    /// Pushes on a stack known to have room.
    #[inline(always)]
    pub(super) fn push_unchecked(&mut self, value: F80) {
        self.move_top(7);
        self.set_st(0, value);
    }

    /// Pushes; the masked response to an overflow pushes the indefinite.
    #[inline(always)]
    pub(super) fn push(&mut self, value: F80) {
        if self.is_empty(7) {
            self.push_unchecked(value);
        } else if self.overflow() {
            self.push_unchecked(F80::INDEFINITE);
        }
    }

    /// Records a stack overflow. Whether the masked response follows.
    #[cold]
    pub(super) fn overflow(&mut self) -> bool {
        self.fsw |= fsw::C1;
        self.stack_fault()
    }

    /// Records a stack underflow. Whether the masked response follows.
    #[cold]
    pub(super) fn underflow(&mut self) -> bool {
        self.fsw &= !fsw::C1;
        self.stack_fault()
    }

    fn stack_fault(&mut self) -> bool {
        self.fsw |= fsw::IE | fsw::SF;
        self.update_summary();
        self.fcw & fsw::IE != 0
    }

    /// Takes over the exception flags of `status` and the condition codes in `codes`. Returns the exceptions that were
    /// raised and are not masked.
    #[inline(always)]
    pub(super) fn merge(&mut self, status: u16, codes: u16) -> u16 {
        self.fsw = self.fsw & !codes | status & (codes | fsw::EXCEPTIONS);
        let unmasked = status & !self.fcw & fsw::EXCEPTIONS;
        if unmasked != 0 {
            self.update_summary();
        }
        unmasked
    }

    /// [`Self::merge`] for an operation on registers: whether its result is to be written.
    #[inline(always)]
    pub(super) fn completes(&mut self, status: u16, codes: u16) -> bool {
        self.merge(status, codes) & BEFORE == 0
    }
}

/// Number of the stack register that operand `n` names.
#[inline(always)]
pub(super) fn sti(ins: &Instruction, n: u32) -> usize {
    (ins.op_register(n) as usize).wrapping_sub(Register::ST0 as usize) & 7
}

/// #NM and #MF as every waiting x87 instruction raises them.
#[inline(always)]
pub(super) fn begin(cpu: &Cpu) -> Exec {
    available(cpu)?;
    no_pending(cpu)
}

/// #NM by CR0.EM and CR0.TS.
#[inline(always)]
pub(super) fn available(cpu: &Cpu) -> Exec {
    if cpu.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0 { Err(Fault::NM) } else { Ok(()) }
}

/// #MF if an unmasked exception is pending. With CR0.NE clear a PC reports it through its interrupt controller (FERR#,
/// IRQ 13) instead; nothing is wired to that here, so execution goes on as if IGNNE# were asserted.
#[inline(always)]
pub(super) fn no_pending(cpu: &Cpu) -> Exec {
    if cpu.fpu.fsw & fsw::ES != 0 && cpu.cr0 & bits::CR0_NE != 0 { Err(Fault::MF) } else { Ok(()) }
}

/// The start of a non-control instruction without memory operand.
#[inline(always)]
pub(super) fn enter(cpu: &mut Cpu) -> Exec<Env> {
    begin(cpu)?;
    cpu.fpu.fip = cpu.rip;
    Ok(Env::new(&cpu.fpu))
}

/// The end of a non-control instruction. FOP is kept for unmasked exceptions only, as processors with the
/// fopcode compatibility mode off do (Intel SDM vol. 1, 8.1.9.1).
#[inline(always)]
pub(super) fn leave(cpu: &mut Cpu) -> Exec {
    if cpu.fpu.fsw & fsw::ES != 0 {
        cpu.fpu.fop = opcode(cpu);
    }
    Ok(())
}

/// The memory operand of a non-control instruction, and its offset for FDP.
#[inline(always)]
pub(super) fn operand(cpu: &mut Cpu, ins: &Instruction, size: usize, write: bool) -> Exec<(Ea, u64)> {
    let offset = cpu.ea_offset(ins);
    let segment = cpu.memory_segment(ins);
    Ok((cpu.segmented(segment, offset, size, write)?, offset))
}

/// Records FIP and FDP of an instruction whose memory access has succeeded.
#[inline(always)]
pub(super) fn record(cpu: &mut Cpu, offset: u64) -> Env {
    cpu.fpu.fip = cpu.rip;
    cpu.fpu.fdp = offset;
    Env::new(&cpu.fpu)
}

/// Opcode bits of the current instruction as FOP holds them; they are fetched again, since this is rare.
#[cold]
fn opcode(cpu: &mut Cpu) -> u16 {
    let mut bytes = [0; crate::MAX_INSTRUCTION];
    let Ok(have) = cpu.fetch(cpu.rip, &mut bytes) else { return 0 };
    if have < bytes.len() {
        let mut more = [0; crate::MAX_INSTRUCTION];
        if cpu.fetch(cpu.rip.wrapping_add(have as u64), &mut more).is_ok() {
            bytes[have..].copy_from_slice(&more[..crate::MAX_INSTRUCTION - have]);
        }
    }
    let escape = bytes.windows(2).find(|pair| pair[0] & 0xf8 == 0xd8);
    escape.map_or(0, |pair| u16::from(pair[0] & 7) << 8 | u16::from(pair[1]))
}

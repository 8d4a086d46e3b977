//! PUSHF, POPF and the instructions on single flags (Intel SDM vol. 2; VIF rules vol. 3, 21.3.3.5 and 21.4).

use accel_api::x86::gpr;
use iced_x86::{Code, Instruction};

use crate::alu::{ArithFlags, Word, flag};
use crate::exec::Table;
use crate::mode::{Mode, bits};
use crate::{Cpu, Exec, Fault};

/// What stands between a program that may not touch IF and its interrupt flag.
enum Interrupts {
    /// IF itself.
    Real,
    /// VIF takes IF's place.
    Virtual,
}

impl Cpu {
    /// Which flag CLI and STI act on.
    fn interrupt_flag(&self) -> Exec<Interrupts> {
        if self.cpl <= self.iopl() {
            return Ok(Interrupts::Real);
        }
        let extension = if self.mode == Mode::Virtual8086 { bits::CR4_VME } else { bits::CR4_PVI };
        if self.cpl == 3 && self.cr4 & extension != 0 { Ok(Interrupts::Virtual) } else { Err(Fault::GP0) }
    }

    /// Whether a program whose interrupts are virtual has one pending and may take it: a #GP(0) before its next instruction
    /// calls the monitor (Intel SDM vol. 3, 21.3.2). IRET and a task switch can bring this about.
    #[inline]
    pub fn virtual_interrupt_due(&self) -> bool {
        const DUE: u64 = flag::VIF | flag::VIP;
        self.system_flags & DUE == DUE
            && self.cpl > self.iopl()
            && matches!(self.interrupt_flag(), Ok(Interrupts::Virtual))
    }

    /// Whether a 16-bit PUSHF, POPF or IRET in virtual-8086 mode acts on VIF; `None` where all is as usual.
    ///
    /// # Errors
    /// #GP(0) below IOPL 3 without the extension or with another width.
    pub(super) fn virtual_flags(&self, width: usize) -> Exec<bool> {
        if self.mode != Mode::Virtual8086 || self.iopl() == 3 {
            return Ok(false);
        }
        if self.cr4 & bits::CR4_VME != 0 && width == 2 { Ok(true) } else { Err(Fault::GP0) }
    }

    /// Takes the flags that a 16-bit POPF or IRET of the virtual-8086 mode extensions popped: IF goes to VIF.
    ///
    /// # Errors
    /// #GP(0) if TF is set, or interrupts are enabled while one is pending.
    pub(super) fn set_virtual_flags(&mut self, popped: u64) -> Exec {
        if popped & flag::TF != 0 || (popped & flag::IF != 0 && self.has(flag::VIP)) {
            return Err(Fault::GP0);
        }
        const KEEP: u64 = flag::IF | flag::IOPL | flag::VIF | !0xffff;
        let vif = if popped & flag::IF != 0 { flag::VIF } else { 0 };
        self.set_rflags(self.rflags() & (KEEP & !flag::VIF) | popped & !KEEP | vif);
        self.leave = true;
        Ok(())
    }

    /// Sets the flags in `mask` as `value` has them; the executor looks again if an interrupt or trap may follow.
    pub(super) fn set_flags_masked(&mut self, value: u64, mask: u64) {
        let old = self.rflags();
        self.set_rflags(old & !mask | value & mask);
        if (self.rflags() & !old) & (flag::IF | flag::TF) != 0 || (self.rflags() ^ old) & flag::AC != 0 {
            self.leave = true;
        }
    }
}

fn pushf<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let mut image = cpu.rflags() & !(flag::RF | flag::VM);
    if cpu.virtual_flags(W::BYTES)? {
        let vif = if image & flag::VIF != 0 { flag::IF } else { 0 };
        image = image & !flag::IF | vif | flag::IOPL;
    }
    cpu.push(W::from_u64(image))
}

fn popf<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let virtualised = cpu.virtual_flags(W::BYTES)?;
    let popped = cpu.peek::<W>(0)?.to_u64();
    if virtualised {
        cpu.set_virtual_flags(popped)?;
    } else {
        let mut mask = flag::ARITH | flag::TF | flag::DF | flag::NT;
        if W::BYTES > 2 {
            mask |= flag::AC | flag::ID;
        }
        if cpu.cpl <= cpu.iopl() {
            mask |= flag::IF;
        }
        if cpu.cpl == 0 {
            mask |= flag::IOPL;
        }
        // RF is always cleared by the wide forms.
        let clear = if W::BYTES > 2 { flag::RF } else { 0 };
        cpu.set_flags_masked(popped & !clear, mask | clear);
    }
    cpu.add_rsp(W::BYTES as i64);
    Ok(())
}

fn cli(cpu: &mut Cpu, _: &Instruction) -> Exec {
    match cpu.interrupt_flag()? {
        Interrupts::Real => cpu.system_flags &= !flag::IF,
        Interrupts::Virtual => cpu.system_flags &= !flag::VIF,
    }
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Instruction) -> Exec {
    match cpu.interrupt_flag()? {
        Interrupts::Real => {
            if !cpu.has(flag::IF) {
                cpu.system_flags |= flag::IF;
                cpu.shadow = true;
                cpu.leave = true;
            }
        }
        Interrupts::Virtual => {
            if cpu.has(flag::VIP) {
                return Err(Fault::GP0);
            }
            cpu.system_flags |= flag::VIF;
        }
    }
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.system_flags &= !flag::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.system_flags |= flag::DF;
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.flags.assign(flag::CF, false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.flags.assign(flag::CF, true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let carry = cpu.flags.cf();
    cpu.flags.assign(flag::CF, !carry);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let ah = cpu.flags.to_rflags() & 0xd5 | 2;
    let rax = &mut cpu.gpr[gpr::RAX];
    *rax = *rax & !0xff00 | ah << 8;
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let of = cpu.flags.to_rflags() & flag::OF;
    cpu.flags = ArithFlags::from_rflags(cpu.gpr[gpr::RAX] >> 8 & 0xd5 | of);
    Ok(())
}

/// CLAC (false) and STAC (true).
fn set_ac<const ON: bool>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.cpl != 0 || !cpu.model.features.has(accel_api::x86::Feature::Smap) {
        return Err(Fault::UD);
    }
    cpu.system_flags = if ON { cpu.system_flags | flag::AC } else { cpu.system_flags & !flag::AC };
    cpu.update_data_table();
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Pushfw], pushf::<u16>);
    table.set(&[Pushfd], pushf::<u32>);
    table.set(&[Pushfq], pushf::<u64>);
    table.set(&[Popfw], popf::<u16>);
    table.set(&[Popfd], popf::<u32>);
    table.set(&[Popfq], popf::<u64>);
    table.set(&[Cli], cli);
    table.set(&[Sti], sti);
    table.set(&[Cld], cld);
    table.set(&[Std], std);
    table.set(&[Clc], clc);
    table.set(&[Stc], stc);
    table.set(&[Cmc], cmc);
    table.set(&[Lahf], lahf);
    table.set(&[Sahf], sahf);
    table.set(&[Clac], set_ac::<false>);
    table.set(&[Stac], set_ac::<true>);
}

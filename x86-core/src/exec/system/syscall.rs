//! Fast system calls and the segment bases of 64-bit mode (Intel SDM vol. 2; vol. 3, 5.8.7 and 5.8.8; AMD APM vol. 2,
//! 6.1, and vol. 3).
//!
//! Both vendors have SYSCALL and SYSRET in 64-bit mode, and SYSENTER and SYSEXIT outside long mode. Programs of 32 bits on
//! a kernel of 64 use SYSENTER on Intel's processors, which has a 64-bit target there, and SYSCALL on AMD's.

use accel_api::x86::{Feature, Segment, Vendor, gpr};
use iced_x86::{Code, Instruction};

use crate::alu::{Word, flag};
use crate::cpu::seg;
use crate::exec::Table;
use crate::mode::{Mode, bits};
use crate::segment::rights::{CODE32, CODE64, DATA, DPL3};
use crate::{Cpu, Exec, Fault};

/// Index of R11.
const R11: usize = 11;

impl Cpu {
    fn flat_segments(&mut self, cs: Segment, ss: Segment) {
        self.segs[seg::CS] = cs;
        self.segs[seg::SS] = ss;
        self.update_mode();
    }
}

/// SYSCALL and SYSRET exist where they are enabled: in 64-bit mode, on AMD's processors in all of protected mode.
fn syscall_ready(cpu: &Cpu) -> Exec {
    let there = match cpu.model.vendor() {
        Vendor::Intel => cpu.mode == Mode::Long,
        Vendor::Amd => !matches!(cpu.mode, Mode::Real | Mode::Virtual8086),
    };
    if cpu.efer & bits::EFER_SCE != 0 && there { Ok(()) } else { Err(Fault::UD) }
}

fn syscall(cpu: &mut Cpu, _: &Instruction) -> Exec {
    syscall_ready(cpu)?;
    let rflags = cpu.rflags();
    cpu.gpr[gpr::RCX] = cpu.next_rip;
    let (target, rights, cleared) = if cpu.long_mode() {
        cpu.gpr[R11] = rflags;
        let target = if cpu.mode == Mode::Long { cpu.msrs.lstar } else { cpu.msrs.cstar };
        (target, CODE64, cpu.msrs.fmask & 0xffff_ffff | flag::RF)
    } else {
        (cpu.msrs.star & 0xffff_ffff, CODE32, flag::VM | flag::IF | flag::RF)
    };
    cpu.next_rip = target;
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.set_rflags(rflags & !cleared);
    cpu.flat_segments(Segment::flat(selector, rights), Segment::flat(selector.wrapping_add(8), DATA));
    Ok(())
}

/// SYSRET; `W` tells to which size of code.
fn sysret<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    syscall_ready(cpu)?;
    cpu.privileged()?;
    let target = cpu.reg::<W>(gpr::RCX).to_u64();
    if !Cpu::canonical(target) {
        return Err(Fault::GP0);
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let (cs, rights) = if W::BYTES == 8 { (base.wrapping_add(16), CODE64) } else { (base, CODE32) };
    cpu.next_rip = target;
    let rflags = if cpu.mode == Mode::Long { cpu.gpr[R11] } else { cpu.rflags() | flag::IF };
    cpu.set_rflags(rflags & flag::SYSRET);
    cpu.flat_segments(
        Segment::flat(cs | 3, rights | DPL3),
        Segment::flat(base.wrapping_add(8) | 3, DATA | DPL3),
    );
    if cpu.has(flag::TF) {
        // As if the program's SYSCALL were over only now (AMD APM vol. 2, 6.1.1).
        cpu.pending_debug |= crate::dr6::BS;
    }
    Ok(())
}

/// SYSENTER and SYSEXIT exist, and are used in protected mode with a code segment set. AMD's processors do not have them in
/// long mode.
fn fast_call_ready(cpu: &Cpu) -> Exec<u16> {
    let missing = cpu.model.vendor() == Vendor::Amd && cpu.long_mode();
    if missing || !cpu.model.features.has(Feature::Sep) {
        return Err(Fault::UD);
    }
    let selector = cpu.msrs.sysenter_cs as u16;
    if cpu.cr0 & bits::CR0_PE == 0 || selector & !3 == 0 { Err(Fault::GP0) } else { Ok(selector & !3) }
}

fn sysenter(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let selector = fast_call_ready(cpu)?;
    let (rights, mask) = if cpu.long_mode() { (CODE64, u64::MAX) } else { (CODE32, 0xffff_ffff) };
    cpu.gpr[gpr::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.next_rip = cpu.msrs.sysenter_eip & mask;
    cpu.system_flags &= !(flag::VM | flag::IF | flag::RF);
    cpu.flat_segments(Segment::flat(selector, rights), Segment::flat(selector.wrapping_add(8), DATA));
    Ok(())
}

/// SYSEXIT; `W` tells to which size of code.
fn sysexit<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let selector = fast_call_ready(cpu)?;
    cpu.privileged()?;
    let (rip, rsp) = (cpu.reg::<W>(gpr::RDX).to_u64(), cpu.reg::<W>(gpr::RCX).to_u64());
    if !Cpu::canonical(rip) || !Cpu::canonical(rsp) {
        return Err(Fault::GP0);
    }
    let (cs, rights) = if W::BYTES == 8 { (32, CODE64) } else { (16, CODE32) };
    cpu.gpr[gpr::RSP] = rsp;
    cpu.next_rip = rip;
    cpu.flat_segments(
        Segment::flat(selector.wrapping_add(cs) | 3, rights | DPL3),
        Segment::flat(selector.wrapping_add(cs + 8) | 3, DATA | DPL3),
    );
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.mode != Mode::Long {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    std::mem::swap(&mut cpu.segs[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

fn base_access(cpu: &Cpu) -> Exec {
    if cpu.mode == Mode::Long && cpu.cr4 & bits::CR4_FSGSBASE != 0 { Ok(()) } else { Err(Fault::UD) }
}

fn read_base<W: Word, const SEG: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    base_access(cpu)?;
    cpu.write_gpr(ins.op0_register(), W::from_u64(cpu.segs[SEG].base).to_u64());
    Ok(())
}

fn write_base<W: Word, const SEG: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    base_access(cpu)?;
    let base = W::from_u64(cpu.read_gpr(ins.op0_register())).to_u64();
    if !Cpu::canonical(base) {
        return Err(Fault::GP0);
    }
    cpu.segs[SEG].base = base;
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Syscall], syscall);
    table.set(&[Sysretd], sysret::<u32>);
    table.set(&[Sysretq], sysret::<u64>);
    table.set(&[Sysenter], sysenter);
    table.set(&[Sysexitd], sysexit::<u32>);
    table.set(&[Sysexitq], sysexit::<u64>);
    table.set(&[Swapgs], swapgs);
    table.set(&[Rdfsbase_r32], read_base::<u32, { seg::FS }>);
    table.set(&[Rdfsbase_r64], read_base::<u64, { seg::FS }>);
    table.set(&[Rdgsbase_r32], read_base::<u32, { seg::GS }>);
    table.set(&[Rdgsbase_r64], read_base::<u64, { seg::GS }>);
    table.set(&[Wrfsbase_r32], write_base::<u32, { seg::FS }>);
    table.set(&[Wrfsbase_r64], write_base::<u64, { seg::FS }>);
    table.set(&[Wrgsbase_r32], write_base::<u32, { seg::GS }>);
    table.set(&[Wrgsbase_r64], write_base::<u64, { seg::GS }>);
}

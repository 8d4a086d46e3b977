//! XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
#![allow(unsafe_code)] // CMPXCHG16B on guest RAM through a host pointer, CMPXCHG between registers

use std::arch::asm;

use accel_api::x86::{Feature, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Table, codes, require, sized, words};
use crate::alu::{Word, flag};
use crate::{AccessKind, Cpu, Exec, Fault, alu::bit};

fn xadd<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let b: W = cpu.read_op(ins, 1)?;
    let before = cpu.flags;
    if ins.op0_kind() == OpKind::Register {
        let a: W = cpu.read_op(ins, 0)?;
        let sum = a.add(b, &mut cpu.flags);
        // When both are the same register the sum stays.
        cpu.write_op(ins, 1, a)?;
        return cpu.write_op(ins, 0, sum);
    }
    let (old, flags) = cpu.rmw_op(ins, 0, |a: W| {
        let mut f = before;
        let sum = a.add(b, &mut f);
        Ok((sum, (a, f)))
    })?;
    cpu.flags = flags;
    cpu.write_op(ins, 1, old)
}

/// CMPXCHG. Memory is written in any case, with what it held if the comparison failed (Intel SDM vol. 2A, CMPXCHG).
fn cmpxchg<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let new: W = cpu.read_op(ins, 1)?;
    let expected: W = cpu.reg(gpr::RAX);
    let before = cpu.flags;
    let (old, flags) = cpu.rmw_op(ins, 0, |old: W| {
        let mut f = before;
        expected.sub(old, &mut f);
        Ok((if f.zf() { new } else { old }, (old, f)))
    })?;
    cpu.flags = flags;
    if !flags.zf() {
        cpu.set_reg(gpr::RAX, old);
    }
    Ok(())
}

/// CMPXCHG of 32 bits. Between registers the manual writes the destination also when the comparison fails, which would clear its
/// upper half; processors differ from it, so the host's decides.
fn cmpxchg32(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if ins.op0_kind() != OpKind::Register {
        return cmpxchg::<u32>(cpu, ins);
    }
    let to = ins.op0_register().number() & 15;
    let source = cpu.read_gpr(ins.op1_register());
    let mut accumulator = cpu.gpr[gpr::RAX];
    let mut destination = cpu.gpr[to];
    (accumulator as u32).sub(destination as u32, &mut cpu.flags);
    // SAFETY: computes in the named registers only.
    unsafe {
        asm!("cmpxchg {d:e}, {s:e}", d = inout(reg) destination, s = in(reg) source, inout("rax") accumulator,
            options(pure, nomem, nostack));
    }
    cpu.gpr[gpr::RAX] = accumulator;
    cpu.gpr[to] = destination;
    Ok(())
}

/// CMPXCHG8B; ZF only.
fn cmpxchg8b(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let join = |high, low| cpu.gpr[high] << 32 | cpu.gpr[low] & 0xffff_ffff;
    let expected = join(gpr::RDX, gpr::RAX);
    let new = join(gpr::RCX, gpr::RBX);
    let old: u64 = cpu.rmw_op(ins, 0, |old| Ok((if old == expected { new } else { old }, old)))?;
    cpu.flags.assign(flag::ZF, old == expected);
    if old != expected {
        cpu.set_reg(gpr::RAX, old as u32);
        cpu.set_reg(gpr::RDX, (old >> 32) as u32);
    }
    Ok(())
}

/// CMPXCHG16B; ZF only. An operand not aligned to 16 bytes is #GP(0), so none crosses a page.
fn cmpxchg16b(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    require(cpu, Feature::Cx16)?;
    let ea = cpu.ea(ins, 16, true)?;
    // Alignment is looked at first, so that this is #GP also for a stack address that is not canonical.
    if ea.la & 15 != 0 {
        return Err(Fault::GP0);
    }
    let expected = [cpu.gpr[gpr::RAX], cpu.gpr[gpr::RDX]];
    let new = [cpu.gpr[gpr::RBX], cpu.gpr[gpr::RCX]];
    let span = cpu.span(ea, 16, AccessKind::Write)?;
    let old = match span {
        Some(span) if bit::host_has(Feature::Cx16) => {
            // SAFETY: the span is 16 aligned bytes of writable RAM, and the host has the instruction.
            let old = unsafe { host_cmpxchg16b(span.host, expected, new) };
            cpu.wrote(span, 16);
            old
        }
        // A device, or a host without the instruction.
        _ => cpu.alone(|cpu| {
            cpu.probe_write(ea, 16)?;
            let old = [cpu.load(ea)?, cpu.load(ea.plus(8))?];
            let written = if old == expected { new } else { old };
            cpu.store(ea, written[0])?;
            cpu.store(ea.plus(8), written[1])?;
            Ok(old)
        })?,
    };
    cpu.flags.assign(flag::ZF, old == expected);
    if old != expected {
        (cpu.gpr[gpr::RAX], cpu.gpr[gpr::RDX]) = (old[0], old[1]);
    }
    Ok(())
}

/// One locked CMPXCHG16B. Returns what was there, low half first.
///
/// # Safety
/// `host` must be valid for 16 bytes and aligned to 16; the host must have the instruction.
unsafe fn host_cmpxchg16b(host: *mut u8, expected: [u64; 2], new: [u64; 2]) -> [u64; 2] {
    let [mut low, mut high] = expected;
    // SAFETY: the caller's promise. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!("xchg rbx, rsi", "lock cmpxchg16b [rdi]", "mov rbx, rsi", in("rdi") host, inout("rsi") new[0] => _,
            in("rcx") new[1], inout("rax") low, inout("rdx") high, options(nostack));
    }
    [low, high]
}

pub(super) fn register(table: &mut Table) {
    sized(table, Mnemonic::Xadd, words!(xadd));
    codes! { table;
        Cmpxchg_rm8_r8 => cmpxchg::<u8>;
        Cmpxchg_rm16_r16 => cmpxchg::<u16>;
        Cmpxchg_rm32_r32 => cmpxchg32;
        Cmpxchg_rm64_r64 => cmpxchg::<u64>;
        Cmpxchg8b_m64 => cmpxchg8b;
        Cmpxchg16b_m128 => cmpxchg16b;
    }
}

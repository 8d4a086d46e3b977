//! Moves of MMX registers, EMMS, and instructions that name an MMX and an XMM or general register.
#![allow(unsafe_code)] // conversions run the host's instruction under the guest's MXCSR

use std::arch::asm;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::mmx::{available, begin, mm, source};
use super::stack::no_pending;
use crate::exec::Table;
use crate::mode::bits;
use crate::{Cpu, Exec, Fault, fsw};
use accel_api::x86::gpr;

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Movq_mm_mmm64], |c, i| {
        begin(c)?;
        let value = source::<8>(c, i, 1)?;
        set(c, mm(i, 0), value)
    });
    t.set(&[Code::Movq_mmm64_mm], |c, i| {
        begin(c)?;
        let value = source::<8>(c, i, 1)?;
        if i.op0_kind() == OpKind::Register {
            return set(c, mm(i, 0), value);
        }
        let ea = c.ea(i, 8, true)?;
        c.store(ea, value)?;
        done(c)
    });
    t.set(&[Code::Movd_mm_rm32], from_general::<u32>);
    t.set(&[Code::Movq_mm_rm64], from_general::<u64>);
    t.set(&[Code::Movd_rm32_mm], to_general::<u32>);
    t.set(&[Code::Movq_rm64_mm], to_general::<u64>);
    // The cache hint of MOVNTQ has no effect that software could see.
    t.set(&[Code::Movntq_m64_mm], to_general::<u64>);
    t.set(&[Code::Maskmovq_rDI_mm_mm], masked_store);
    t.set(&[Code::Pinsrw_mm_r32m16_imm8, Code::Pinsrw_mm_r64m16_imm8], insert);
    t.set(&[Code::Pextrw_r32_mm_imm8, Code::Pextrw_r64_mm_imm8], |c, i| {
        begin(c)?;
        let word = source::<8>(c, i, 1)? >> (16 * (i.immediate8() & 3)) & 0xffff;
        c.write_gpr(i.op0_register(), word);
        done(c)
    });
    t.set(&[Code::Pmovmskb_r32_mm, Code::Pmovmskb_r64_mm], |c, i| {
        begin(c)?;
        let value = source::<8>(c, i, 1)?;
        let mask = value.to_le_bytes().iter().rev().fold(0, |m, byte| m << 1 | u64::from(byte >> 7));
        c.write_gpr(i.op0_register(), mask);
        done(c)
    });
    t.set(&[Code::Emms], |c, _| {
        begin(c)?;
        c.fpu.ftw = 0;
        c.fpu.fsw &= !fsw::TOP;
        Ok(())
    });
    t.set(&[Code::Movq2dq_xmm_mm], |c, i| {
        begin_sse(c)?;
        no_pending(c)?;
        let value = source::<8>(c, i, 1)?;
        set_xmm(c, i, [value, 0]);
        done(c)
    });
    t.set(&[Code::Movdq2q_mm_xmm], |c, i| {
        begin_sse(c)?;
        no_pending(c)?;
        let [low, _] = xmm(c, i, 1);
        set(c, mm(i, 0), low)
    });
    t.set(&[Code::Cvtpi2ps_xmm_mmm64], |c, i| to_float(c, i, convert_pi2ps));
    t.set(&[Code::Cvtpi2pd_xmm_mmm64], |c, i| to_float(c, i, convert_pi2pd));
    t.set(&[Code::Cvtps2pi_mm_xmmm64], |c, i| to_integers::<8>(c, i, convert_ps2pi));
    t.set(&[Code::Cvttps2pi_mm_xmmm64], |c, i| to_integers::<8>(c, i, convert_tps2pi));
    t.set(&[Code::Cvtpd2pi_mm_xmmm128], |c, i| to_integers::<16>(c, i, convert_pd2pi));
    t.set(&[Code::Cvttpd2pi_mm_xmmm128], |c, i| to_integers::<16>(c, i, convert_tpd2pi));
}

/// Ends an instruction that writes MMX register `i`.
#[inline(always)]
fn set(cpu: &mut Cpu, i: usize, value: u64) -> Exec {
    cpu.fpu.set_mm(i, value);
    done(cpu)
}

#[inline(always)]
fn done(cpu: &mut Cpu) -> Exec {
    cpu.fpu.use_mmx();
    Ok(())
}

fn from_general<W: crate::alu::Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    let value = cpu.read_op::<W>(ins, 1)?;
    set(cpu, mm(ins, 0), value.to_u64())
}

fn to_general<W: crate::alu::Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    let value = source::<8>(cpu, ins, 1)?;
    cpu.write_op(ins, 0, W::from_u64(value))?;
    done(cpu)
}

fn insert(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    let word = cpu.read_op::<u16>(ins, 1)?;
    let i = mm(ins, 0);
    let shift = 16 * (ins.immediate8() & 3);
    let value = cpu.fpu.r[i].mantissa & !(0xffff << shift) | u64::from(word) << shift;
    set(cpu, i, value)
}

/// MASKMOVQ. Without a byte to store the address is not looked at, which the manual leaves open.
fn masked_store(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    let value = cpu.fpu.r[mm(ins, 1)].mantissa.to_le_bytes();
    let mask = cpu.fpu.r[mm(ins, 2)].mantissa.to_le_bytes();
    let rdi = cpu.gpr[gpr::RDI];
    let offset = match ins.op0_kind() {
        OpKind::MemorySegDI => rdi & 0xffff,
        OpKind::MemorySegEDI => rdi & 0xffff_ffff,
        _ => rdi,
    };
    let segment = cpu.memory_segment(ins);
    let bytes = || (0..8u64).zip(value).zip(mask).filter(|(_, mask)| mask & 0x80 != 0).map(|(byte, _)| byte);
    for (i, _) in bytes() {
        let ea = cpu.segmented(segment, offset.wrapping_add(i), 1, true)?;
        cpu.probe_write(ea, 1)?;
    }
    for (i, byte) in bytes() {
        let ea = cpu.segmented(segment, offset.wrapping_add(i), 1, true)?;
        cpu.store(ea, byte)?;
    }
    done(cpu)
}

/// #UD and #NM of instructions that use XMM and MMX registers; most go on to #MF.
#[inline(always)]
fn begin_sse(cpu: &Cpu) -> Exec {
    if cpu.cr4 & bits::CR4_OSFXSR == 0 {
        return Err(Fault::UD);
    }
    available(cpu)
}

type Xmm = [u64; 2];

fn xmm_number(ins: &Instruction, n: u32) -> usize {
    (ins.op_register(n) as usize).wrapping_sub(Register::XMM0 as usize) & 15
}

fn xmm(cpu: &Cpu, ins: &Instruction, n: u32) -> Xmm {
    let ymm = &cpu.vector.0[xmm_number(ins, n)];
    [ymm[0], ymm[1]]
}

/// Writes the XMM register that operand 0 names.
fn set_xmm(cpu: &mut Cpu, ins: &Instruction, value: Xmm) {
    let ymm = &mut cpu.vector.0[xmm_number(ins, 0)];
    [ymm[0], ymm[1]] = value;
}

/// One conversion under MXCSR `$0`: result and the flags it raised. The host's MXCSR, which collects the guest's sticky
/// flags, stays as it was: which of the flags the guest gets to see depends on its masks.
macro_rules! conversions {
    ($($name:ident $op:literal;)*) => { $(
        fn $name(to: &mut Xmm, from: &Xmm, mxcsr: u32) -> u32 {
            let mut words = [mxcsr, 0, 0];
            // SAFETY: both operands are 16 bytes; MXCSR is put back.
            unsafe {
                asm!(
                    "stmxcsr [{w} + 8]",
                    "movups {to}, [{r}]",
                    "movups {from}, [{s}]",
                    "ldmxcsr [{w}]",
                    concat!($op, " {to}, {from}"),
                    "stmxcsr [{w} + 4]",
                    "ldmxcsr [{w} + 8]",
                    "movups [{r}], {to}",
                    w = in(reg) &mut words, r = in(reg) to, s = in(reg) from,
                    to = out(xmm_reg) _, from = out(xmm_reg) _,
                    options(nostack, preserves_flags),
                );
            }
            words[1] & FLAGS
        }
    )* };
}

/// MXCSR's exception flags.
const FLAGS: u32 = 0x3f;

conversions! {
    convert_pi2ps "cvtdq2ps";
    convert_pi2pd "cvtdq2pd";
    convert_ps2pi "cvtps2dq";
    convert_tps2pi "cvttps2dq";
    convert_pd2pi "cvtpd2dq";
    convert_tpd2pi "cvttpd2dq";
}

/// Converts the two elements `from`, under the guest's rounding; takes up the flags.
///
/// # Errors
/// #XM of an unmasked exception, or #UD if the guest does not handle #XM.
fn convert(cpu: &mut Cpu, how: fn(&mut Xmm, &Xmm, u32) -> u32, from: Xmm) -> Exec<Xmm> {
    const MASKS: u32 = FLAGS << 7;
    const BEFORE: u32 = 7;
    let mut to = [0; 2];
    let guest = cpu.fpu.mxcsr;
    let mut flags = how(&mut to, &from, guest & !FLAGS | MASKS);
    let unmasked = flags & !(guest >> 7);
    if unmasked & BEFORE != 0 {
        // Nothing is computed, so nothing is inexact.
        flags &= BEFORE;
    }
    cpu.fpu.mxcsr |= flags;
    match unmasked {
        0 => Ok(to),
        _ if cpu.handles_xm() => Err(Fault::XM),
        _ => Err(Fault::UD),
    }
}

/// CVTPI2PS and CVTPI2PD; the latter leaves the x87 state alone, pending exceptions included, if its operand is in
/// memory.
fn to_float(cpu: &mut Cpu, ins: &Instruction, how: fn(&mut Xmm, &Xmm, u32) -> u32) -> Exec {
    let double = ins.code() == Code::Cvtpi2pd_xmm_mmm64;
    let memory = ins.op1_kind() == OpKind::Memory;
    begin_sse(cpu)?;
    let stays = double && memory;
    if !stays {
        no_pending(cpu)?;
    }
    let from = source::<8>(cpu, ins, 1)?;
    let [low, high] = convert(cpu, how, [from, 0])?;
    let keep = xmm(cpu, ins, 0)[1];
    set_xmm(cpu, ins, [low, if double { high } else { keep }]);
    if stays { Ok(()) } else { done(cpu) }
}

/// Conversions from the low 8 or all 16 bytes (`N`) of an XMM register or memory.
fn to_integers<const N: usize>(
    cpu: &mut Cpu,
    ins: &Instruction,
    how: fn(&mut Xmm, &Xmm, u32) -> u32,
) -> Exec {
    begin_sse(cpu)?;
    no_pending(cpu)?;
    let mut from = if ins.op1_kind() == OpKind::Register {
        xmm(cpu, ins, 1)
    } else {
        let ea = cpu.ea(ins, N, false)?;
        if N == 16 && ea.la & 15 != 0 {
            return Err(Fault::GP0);
        }
        [cpu.load(ea)?, if N == 16 { cpu.load(ea.plus(8))? } else { 0 }]
    };
    if N == 8 {
        from[1] = 0;
    }
    let [low, _] = convert(cpu, how, from)?;
    set(cpu, mm(ins, 0), low)
}

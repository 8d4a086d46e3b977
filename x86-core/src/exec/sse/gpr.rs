//! Between vector registers and general registers or flags: MOVD and MOVQ, conversions of scalars, masks of signs,
//! extraction and insertion of lanes, comparisons into RFLAGS.
#![allow(unsafe_code)] // inline assembly

use std::arch::asm;
use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};

use iced_x86::{Code, Instruction, OpKind};

use super::access::Xmm;
use super::form::{feature, number, operand, xmm};
use super::{mxcsr, ready_as};
use crate::alu::{ArithFlags, Word};
use crate::exec::Table;
use crate::{Cpu, Exec};

/// Computes a general register from a vector operand.
///
/// # Safety
/// The host must have the instruction.
type ToGpr = unsafe fn(&Xmm) -> u64;
/// Merges something computed from a general register's value into a vector register.
///
/// # Safety
/// The host must have the instruction.
type FromGpr = unsafe fn(&mut Xmm, u64);
/// Compares two vector operands.
///
/// # Safety
/// The host must have the instruction.
type Compare = unsafe fn(&Xmm, &Xmm) -> ArithFlags;

/// A [`ToGpr`] of one host instruction; `$m` is the register modifier of its width.
macro_rules! to_gpr {
    ($text:literal, $m:literal) => {{
        unsafe fn raw(value: &Xmm) -> u64 {
            let result: u64;
            // SAFETY: the caller's promise; the assembly computes in registers. A 32-bit result is zero-extended.
            unsafe {
                let value = _mm_loadu_si128(value.as_ptr().cast());
                asm!(concat!($text, " {r:", $m, "}, {v}"), r = lateout(reg) result, v = in(xmm_reg) value,
                    options(nomem, nostack));
            }
            result
        }
        raw as ToGpr
    }};
}

macro_rules! from_gpr {
    ($text:literal, $m:literal) => {{
        unsafe fn raw(dst: &mut Xmm, value: u64) {
            // SAFETY: the caller's promise; the assembly computes in registers.
            unsafe {
                let mut a = _mm_loadu_si128(dst.as_ptr().cast());
                asm!(concat!($text, " {a}, {v:", $m, "}"), a = inout(xmm_reg) a, v = in(reg) value,
                    options(nomem, nostack));
                _mm_storeu_si128(dst.as_mut_ptr().cast(), a);
            }
        }
        raw as FromGpr
    }};
}

macro_rules! compare {
    ($text:literal) => {{
        unsafe fn raw(a: &Xmm, b: &Xmm) -> ArithFlags {
            let flags: u16;
            // SAFETY: the caller's promise; the assembly computes in registers.
            unsafe {
                let a: __m128i = _mm_loadu_si128(a.as_ptr().cast());
                let b: __m128i = _mm_loadu_si128(b.as_ptr().cast());
                asm!(concat!($text, " {a}, {b}"), "lahf", "seto al", a = in(xmm_reg) a, b = in(xmm_reg) b,
                    out("ax") flags, options(nomem, nostack));
            }
            ArithFlags(flags)
        }
        raw as Compare
    }};
}

/// `op r, xmm/m`, the memory operand of `bytes`.
fn exec_to_gpr<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction, bytes: u8, op: ToGpr) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let value = operand(cpu, ins, 1, bytes, false)?;
    // SAFETY: part of SSE2, which every x86-64 host has.
    let result = mxcsr::run(cpu, || unsafe { op(&value) }, |_| false)?;
    cpu.write_gpr(ins.op0_register(), result);
    Ok(())
}

/// What is merged with the last operand: the destination's old value, or the first source.
#[inline(always)]
fn merged<const VEX: bool>(cpu: &Cpu, ins: &Instruction) -> Xmm {
    xmm(cpu, number(if VEX { ins.op1_register() } else { ins.op0_register() }))
}

/// `op xmm, [xmm,] r/m`, the operand of width `W`.
fn exec_from_gpr<W: Word, const VEX: bool>(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let value: W = cpu.read_op(ins, 1 + u32::from(VEX))?;
    let dst = number(ins.op0_register());
    let old = merged::<VEX>(cpu, ins);
    let compute = || {
        let mut result = old;
        // SAFETY: part of SSE2, which every x86-64 host has.
        unsafe { op(&mut result, value.to_u64()) };
        result
    };
    let result = mxcsr::run(cpu, compute, |_| false)?;
    set_xmm::<VEX>(cpu, dst, result);
    Ok(())
}

/// COMISS and its like: no register changes but the flags.
fn exec_compare<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction, bytes: u8, op: Compare) -> Exec {
    ready_as::<VEX>(cpu, feature(ins.code()))?;
    let a = xmm(cpu, number(ins.op0_register()));
    let b = operand(cpu, ins, 1, bytes, !VEX && bytes == 16)?;
    // SAFETY: part of SSE2, or `ready` has made sure of the guest's feature, which the host has too.
    cpu.flags = mxcsr::run(cpu, || unsafe { op(&a, &b) }, |_| false)?;
    Ok(())
}

/// Sets the low half of a vector register; the upper half becomes zero if the encoding is VEX, and else stays.
pub(super) fn set_xmm<const VEX: bool>(cpu: &mut Cpu, index: usize, value: Xmm) {
    let register = &mut cpu.vector.0[index];
    (register[0], register[1]) = (value[0], value[1]);
    if VEX {
        (register[2], register[3]) = (0, 0);
    }
}

/// MOVD and MOVQ from a general register or memory: zeros above.
fn mov_from<W: Word, const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let value: W = cpu.read_op(ins, 1)?;
    set_xmm::<VEX>(cpu, number(ins.op0_register()), [value.to_u64(), 0]);
    Ok(())
}

/// MOVD and MOVQ to a general register or memory.
fn mov_to<W: Word, const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let value = xmm(cpu, number(ins.op1_register()))[0];
    cpu.write_op(ins, 0, W::from_u64(value))
}

/// Shift of lane `index` (taken modulo the number of lanes) of width `W` in a 128-bit value.
#[inline(always)]
fn lane_shift<W: Word>(index: u8) -> u32 {
    u32::from(index) % (16 / W::BYTES as u32) * W::BITS
}

#[inline(always)]
fn wide(value: Xmm) -> u128 {
    u128::from(value[0]) | u128::from(value[1]) << 64
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS: memory gets the lane, a register the lane zero-extended.
fn extract<W: Word, const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, feature(ins.code()))?;
    let value = wide(xmm(cpu, number(ins.op1_register())));
    let lane = W::from_u64((value >> lane_shift::<W>(ins.immediate8())) as u64);
    if ins.op0_kind() == OpKind::Register {
        cpu.write_gpr(ins.op0_register(), lane.to_u64());
        return Ok(());
    }
    let ea = cpu.ea(ins, W::BYTES, true)?;
    cpu.store(ea, lane)
}

/// PINSRB, PINSRW, PINSRD, PINSRQ.
fn insert<W: Word, const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, feature(ins.code()))?;
    let lane: W = cpu.read_op(ins, 1 + u32::from(VEX))?;
    let shift = lane_shift::<W>(ins.immediate8());
    let mask = u128::from(u64::MAX >> (64 - W::BITS)) << shift;
    let value = wide(merged::<VEX>(cpu, ins)) & !mask | u128::from(lane.to_u64()) << shift;
    set_xmm::<VEX>(cpu, number(ins.op0_register()), [value as u64, (value >> 64) as u64]);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    /// Functions of a legacy instruction and of its VEX form.
    macro_rules! both {
        ($($legacy:ident $vex:ident => $function:ident($($arg:expr),*);)*) => {$(
            table.set(&[$legacy], |cpu, ins| $function::<false>(cpu, ins, $($arg),*));
            table.set(&[$vex], |cpu, ins| $function::<true>(cpu, ins, $($arg),*));
        )*};
    }
    both! {
        Cvtss2si_r32_xmmm32 VEX_Vcvtss2si_r32_xmmm32 => exec_to_gpr(4, to_gpr!("cvtss2si", "e"));
        Cvtss2si_r64_xmmm32 VEX_Vcvtss2si_r64_xmmm32 => exec_to_gpr(4, to_gpr!("cvtss2si", "r"));
        Cvtsd2si_r32_xmmm64 VEX_Vcvtsd2si_r32_xmmm64 => exec_to_gpr(8, to_gpr!("cvtsd2si", "e"));
        Cvtsd2si_r64_xmmm64 VEX_Vcvtsd2si_r64_xmmm64 => exec_to_gpr(8, to_gpr!("cvtsd2si", "r"));
        Cvttss2si_r32_xmmm32 VEX_Vcvttss2si_r32_xmmm32 => exec_to_gpr(4, to_gpr!("cvttss2si", "e"));
        Cvttss2si_r64_xmmm32 VEX_Vcvttss2si_r64_xmmm32 => exec_to_gpr(4, to_gpr!("cvttss2si", "r"));
        Cvttsd2si_r32_xmmm64 VEX_Vcvttsd2si_r32_xmmm64 => exec_to_gpr(8, to_gpr!("cvttsd2si", "e"));
        Cvttsd2si_r64_xmmm64 VEX_Vcvttsd2si_r64_xmmm64 => exec_to_gpr(8, to_gpr!("cvttsd2si", "r"));
        Movmskps_r32_xmm VEX_Vmovmskps_r32_xmm => exec_to_gpr(0, to_gpr!("movmskps", "e"));
        Movmskps_r64_xmm VEX_Vmovmskps_r64_xmm => exec_to_gpr(0, to_gpr!("movmskps", "e"));
        Movmskpd_r32_xmm VEX_Vmovmskpd_r32_xmm => exec_to_gpr(0, to_gpr!("movmskpd", "e"));
        Movmskpd_r64_xmm VEX_Vmovmskpd_r64_xmm => exec_to_gpr(0, to_gpr!("movmskpd", "e"));
        Pmovmskb_r32_xmm VEX_Vpmovmskb_r32_xmm => exec_to_gpr(0, to_gpr!("pmovmskb", "e"));
        Pmovmskb_r64_xmm VEX_Vpmovmskb_r64_xmm => exec_to_gpr(0, to_gpr!("pmovmskb", "e"));
        Comiss_xmm_xmmm32 VEX_Vcomiss_xmm_xmmm32 => exec_compare(4, compare!("comiss"));
        Comisd_xmm_xmmm64 VEX_Vcomisd_xmm_xmmm64 => exec_compare(8, compare!("comisd"));
        Ucomiss_xmm_xmmm32 VEX_Vucomiss_xmm_xmmm32 => exec_compare(4, compare!("ucomiss"));
        Ucomisd_xmm_xmmm64 VEX_Vucomisd_xmm_xmmm64 => exec_compare(8, compare!("ucomisd"));
        Ptest_xmm_xmmm128 VEX_Vptest_xmm_xmmm128 => exec_compare(16, compare!("ptest"));
        Cvtsi2ss_xmm_rm32 VEX_Vcvtsi2ss_xmm_xmm_rm32 => exec_from_32(from_gpr!("cvtsi2ss", "e"));
        Cvtsi2ss_xmm_rm64 VEX_Vcvtsi2ss_xmm_xmm_rm64 => exec_from_64(from_gpr!("cvtsi2ss", "r"));
        Cvtsi2sd_xmm_rm32 VEX_Vcvtsi2sd_xmm_xmm_rm32 => exec_from_32(from_gpr!("cvtsi2sd", "e"));
        Cvtsi2sd_xmm_rm64 VEX_Vcvtsi2sd_xmm_xmm_rm64 => exec_from_64(from_gpr!("cvtsi2sd", "r"));
    }
    macro_rules! moves {
        ($($function:ident::<$word:ty> $legacy:tt $vex:tt;)*) => {$(
            table.set(&$legacy, $function::<$word, false>);
            table.set(&$vex, $function::<$word, true>);
        )*};
    }
    moves! {
        mov_from::<u32> [Movd_xmm_rm32] [VEX_Vmovd_xmm_rm32];
        mov_from::<u64> [Movq_xmm_rm64] [VEX_Vmovq_xmm_rm64];
        mov_to::<u32> [Movd_rm32_xmm] [VEX_Vmovd_rm32_xmm];
        mov_to::<u64> [Movq_rm64_xmm] [VEX_Vmovq_rm64_xmm];
        extract::<u8> [Pextrb_r32m8_xmm_imm8, Pextrb_r64m8_xmm_imm8]
            [VEX_Vpextrb_r32m8_xmm_imm8, VEX_Vpextrb_r64m8_xmm_imm8];
        extract::<u16>
            [Pextrw_r32m16_xmm_imm8, Pextrw_r64m16_xmm_imm8, Pextrw_r32_xmm_imm8, Pextrw_r64_xmm_imm8]
            [VEX_Vpextrw_r32m16_xmm_imm8, VEX_Vpextrw_r64m16_xmm_imm8, VEX_Vpextrw_r32_xmm_imm8,
                VEX_Vpextrw_r64_xmm_imm8];
        extract::<u32> [Pextrd_rm32_xmm_imm8, Extractps_rm32_xmm_imm8, Extractps_r64m32_xmm_imm8]
            [VEX_Vpextrd_rm32_xmm_imm8, VEX_Vextractps_rm32_xmm_imm8, VEX_Vextractps_r64m32_xmm_imm8];
        extract::<u64> [Pextrq_rm64_xmm_imm8] [VEX_Vpextrq_rm64_xmm_imm8];
        insert::<u8> [Pinsrb_xmm_r32m8_imm8, Pinsrb_xmm_r64m8_imm8]
            [VEX_Vpinsrb_xmm_xmm_r32m8_imm8, VEX_Vpinsrb_xmm_xmm_r64m8_imm8];
        insert::<u16> [Pinsrw_xmm_r32m16_imm8, Pinsrw_xmm_r64m16_imm8]
            [VEX_Vpinsrw_xmm_xmm_r32m16_imm8, VEX_Vpinsrw_xmm_xmm_r64m16_imm8];
        insert::<u32> [Pinsrd_xmm_rm32_imm8] [VEX_Vpinsrd_xmm_xmm_rm32_imm8];
        insert::<u64> [Pinsrq_xmm_rm64_imm8] [VEX_Vpinsrq_xmm_xmm_rm64_imm8];
    }
}

fn exec_from_32<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    exec_from_gpr::<u32, VEX>(cpu, ins, op)
}

fn exec_from_64<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    exec_from_gpr::<u64, VEX>(cpu, ins, op)
}

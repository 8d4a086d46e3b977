//! Between vector registers and general registers or flags: MOVD and MOVQ, conversions of scalars, masks of signs,
//! extraction and insertion of lanes, comparisons into RFLAGS.
#![allow(unsafe_code)] // inline assembly

use std::arch::asm;
use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};

use iced_x86::{Code, Instruction, OpKind};

use super::access::Xmm;
use super::form::{feature, number, operand, xmm};
use super::{mxcsr, ready};
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
fn exec_to_gpr(cpu: &mut Cpu, ins: &Instruction, bytes: u8, op: ToGpr) -> Exec {
    ready(cpu, None)?;
    let value = operand(cpu, ins, 1, bytes, true)?;
    // SAFETY: part of SSE2, which every x86-64 host has.
    let result = mxcsr::run(cpu, || unsafe { op(&value) }, |_| false)?;
    cpu.write_gpr(ins.op0_register(), result);
    Ok(())
}

/// `op xmm, r/m`, the operand of width `W`.
fn exec_from_gpr<W: Word>(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    ready(cpu, None)?;
    let value: W = cpu.read_op(ins, 1)?;
    let dst = number(ins.op0_register());
    let old = xmm(cpu, dst);
    let compute = || {
        let mut result = old;
        // SAFETY: part of SSE2, which every x86-64 host has.
        unsafe { op(&mut result, value.to_u64()) };
        result
    };
    let result = mxcsr::run(cpu, compute, |_| false)?;
    set_xmm(cpu, dst, result);
    Ok(())
}

/// COMISS and its like: no register changes but the flags.
fn exec_compare(cpu: &mut Cpu, ins: &Instruction, bytes: u8, op: Compare) -> Exec {
    ready(cpu, feature(ins.code()))?;
    let a = xmm(cpu, number(ins.op0_register()));
    let b = operand(cpu, ins, 1, bytes, true)?;
    // SAFETY: part of SSE2, or `ready` has made sure of the guest's feature, which the host has too.
    cpu.flags = mxcsr::run(cpu, || unsafe { op(&a, &b) }, |_| false)?;
    Ok(())
}

/// Sets the low half of a vector register.
pub(super) fn set_xmm(cpu: &mut Cpu, index: usize, value: Xmm) {
    let register = &mut cpu.vector.0[index];
    (register[0], register[1]) = (value[0], value[1]);
}

/// MOVD and MOVQ from a general register or memory: zeros above.
fn mov_from<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, None)?;
    let value: W = cpu.read_op(ins, 1)?;
    set_xmm(cpu, number(ins.op0_register()), [value.to_u64(), 0]);
    Ok(())
}

/// MOVD and MOVQ to a general register or memory.
fn mov_to<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, None)?;
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
fn extract<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, feature(ins.code()))?;
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
fn insert<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, feature(ins.code()))?;
    let lane: W = cpu.read_op(ins, 1)?;
    let shift = lane_shift::<W>(ins.immediate8());
    let mask = u128::from(u64::MAX >> (64 - W::BITS)) << shift;
    let dst = number(ins.op0_register());
    let value = wide(xmm(cpu, dst)) & !mask | u128::from(lane.to_u64()) << shift;
    set_xmm(cpu, dst, [value as u64, (value >> 64) as u64]);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Movd_xmm_rm32], mov_from::<u32>);
    table.set(&[Movq_xmm_rm64], mov_from::<u64>);
    table.set(&[Movd_rm32_xmm], mov_to::<u32>);
    table.set(&[Movq_rm64_xmm], mov_to::<u64>);

    macro_rules! set {
        ($($code:ident => $function:ident($($arg:expr),*);)*) => {
            $(table.set(&[$code], |cpu, ins| $function(cpu, ins, $($arg),*));)*
        };
    }
    set! {
        Cvtss2si_r32_xmmm32 => exec_to_gpr(4, to_gpr!("cvtss2si", "e"));
        Cvtss2si_r64_xmmm32 => exec_to_gpr(4, to_gpr!("cvtss2si", "r"));
        Cvtsd2si_r32_xmmm64 => exec_to_gpr(8, to_gpr!("cvtsd2si", "e"));
        Cvtsd2si_r64_xmmm64 => exec_to_gpr(8, to_gpr!("cvtsd2si", "r"));
        Cvttss2si_r32_xmmm32 => exec_to_gpr(4, to_gpr!("cvttss2si", "e"));
        Cvttss2si_r64_xmmm32 => exec_to_gpr(4, to_gpr!("cvttss2si", "r"));
        Cvttsd2si_r32_xmmm64 => exec_to_gpr(8, to_gpr!("cvttsd2si", "e"));
        Cvttsd2si_r64_xmmm64 => exec_to_gpr(8, to_gpr!("cvttsd2si", "r"));
        Movmskps_r32_xmm => exec_to_gpr(0, to_gpr!("movmskps", "e"));
        Movmskps_r64_xmm => exec_to_gpr(0, to_gpr!("movmskps", "e"));
        Movmskpd_r32_xmm => exec_to_gpr(0, to_gpr!("movmskpd", "e"));
        Movmskpd_r64_xmm => exec_to_gpr(0, to_gpr!("movmskpd", "e"));
        Pmovmskb_r32_xmm => exec_to_gpr(0, to_gpr!("pmovmskb", "e"));
        Pmovmskb_r64_xmm => exec_to_gpr(0, to_gpr!("pmovmskb", "e"));
        Comiss_xmm_xmmm32 => exec_compare(4, compare!("comiss"));
        Comisd_xmm_xmmm64 => exec_compare(8, compare!("comisd"));
        Ucomiss_xmm_xmmm32 => exec_compare(4, compare!("ucomiss"));
        Ucomisd_xmm_xmmm64 => exec_compare(8, compare!("ucomisd"));
        Ptest_xmm_xmmm128 => exec_compare(16, compare!("ptest"));
        Cvtsi2ss_xmm_rm32 => exec_from_32(from_gpr!("cvtsi2ss", "e"));
        Cvtsi2ss_xmm_rm64 => exec_from_64(from_gpr!("cvtsi2ss", "r"));
        Cvtsi2sd_xmm_rm32 => exec_from_32(from_gpr!("cvtsi2sd", "e"));
        Cvtsi2sd_xmm_rm64 => exec_from_64(from_gpr!("cvtsi2sd", "r"));
    }

    table.set(&[Pextrb_r32m8_xmm_imm8, Pextrb_r64m8_xmm_imm8], extract::<u8>);
    table.set(&[Pextrw_r32m16_xmm_imm8, Pextrw_r64m16_xmm_imm8], extract::<u16>);
    table.set(&[Pextrw_r32_xmm_imm8, Pextrw_r64_xmm_imm8], extract::<u16>);
    table.set(&[Pextrd_rm32_xmm_imm8, Extractps_rm32_xmm_imm8, Extractps_r64m32_xmm_imm8], extract::<u32>);
    table.set(&[Pextrq_rm64_xmm_imm8], extract::<u64>);
    table.set(&[Pinsrb_xmm_r32m8_imm8, Pinsrb_xmm_r64m8_imm8], insert::<u8>);
    table.set(&[Pinsrw_xmm_r32m16_imm8, Pinsrw_xmm_r64m16_imm8], insert::<u16>);
    table.set(&[Pinsrd_xmm_rm32_imm8], insert::<u32>);
    table.set(&[Pinsrq_xmm_rm64_imm8], insert::<u64>);
}

fn exec_from_32(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    exec_from_gpr::<u32>(cpu, ins, op)
}

fn exec_from_64(cpu: &mut Cpu, ins: &Instruction, op: FromGpr) -> Exec {
    exec_from_gpr::<u64>(cpu, ins, op)
}

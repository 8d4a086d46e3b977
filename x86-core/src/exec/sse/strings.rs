//! PCMPESTRM, PCMPESTRI, PCMPISTRM, PCMPISTRI (Intel SDM vol. 2B, 4.1).
//!
//! All four are the host's PCMPESTRM with bit 6 of the immediate clear: it gives IntRes2, one bit a character, and the
//! flags. Implicit lengths are counted first (a string ends before its first zero); the index and the wide mask follow
//! from IntRes2.
#![allow(unsafe_code)] // inline assembly

use std::arch::asm;
use std::arch::x86_64::{_mm_cvtsi128_si32, _mm_loadu_si128, _mm_setzero_si128};

use accel_api::x86::{Feature, gpr};
use iced_x86::Code::*;
use iced_x86::Instruction;

use super::access::Xmm;
use super::form::{number, operand, xmm};
use super::gpr::set_xmm;
use super::ready_as;
use crate::alu::ArithFlags;
use crate::exec::Table;
use crate::{Cpu, Exec};

/// Bit 0 of the immediate: characters are words.
const WORDS: u8 = 1;
/// Bit 6: the index is of the last character (PCMPxSTRI), the mask is of whole characters (PCMPxSTRM).
const LAST_OR_WIDE: u8 = 1 << 6;

/// IntRes2 and the flags of comparing `a` and `b` of `lengths` characters, by the low six bits of `imm`. Lengths count
/// by their magnitude, up to the register's end.
///
/// # Safety
/// The host must have SSE4.2.
unsafe fn compare(a: &Xmm, b: &Xmm, lengths: (i32, i32), imm: u8) -> (u32, ArithFlags) {
    // SAFETY: the references are valid.
    let (a, b) = unsafe { (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast())) };
    // SAFETY: SSE2.
    let mut mask = unsafe { _mm_setzero_si128() };
    let mut flags = 0u32;
    macro_rules! by_immediate {
        ($($value:literal)*) => {
            match imm & 63 {
                // SAFETY: the caller's promise; the assembly computes in registers.
                $($value => unsafe {
                    asm!(concat!("pcmpestrm {a}, {b}, ", $value), "lahf", "seto al", a = in(xmm_reg) a,
                        b = in(xmm_reg) b, inout("eax") lengths.0 => flags, in("edx") lengths.1,
                        out("xmm0") mask, options(pure, nomem, nostack))
                },)*
                _ => {}
            }
        };
    }
    by_immediate!(
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    );
    // SAFETY: SSE2.
    (unsafe { _mm_cvtsi128_si32(mask) } as u32, ArithFlags(flags as u16))
}

/// Characters before the first zero.
fn implicit_length(value: Xmm, imm: u8) -> i32 {
    let whole = u128::from(value[0]) | u128::from(value[1]) << 64;
    let bits = if imm & WORDS != 0 { 16 } else { 8 };
    let character = |i: u32| whole >> (i * bits) & ((1 << bits) - 1);
    (0..128 / bits).take_while(|&i| character(i) != 0).count() as i32
}

/// Characters that a length register tells of; more than 16 count as 16.
fn explicit_length(register: u64, wide: bool) -> i32 {
    let value = if wide { register as i64 } else { i64::from(register as i32) };
    value.clamp(-16, 16) as i32
}

/// Reads the operands, compares, sets the flags. Returns IntRes2.
fn run<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec<u32> {
    ready_as::<VEX>(cpu, if VEX { None } else { Some(Feature::Sse42) })?;
    let a = xmm(cpu, number(ins.op0_register()));
    // Of all 16-byte operands of legacy SSE4.2 only these may lie at any address.
    let b = operand(cpu, ins, 1, 16, false)?;
    let imm = ins.immediate8();
    let explicit =
        |wide| (explicit_length(cpu.gpr[gpr::RAX], wide), explicit_length(cpu.gpr[gpr::RDX], wide));
    let lengths = match ins.code() {
        Pcmpestrm_xmm_xmmm128_imm8
        | Pcmpestri_xmm_xmmm128_imm8
        | VEX_Vpcmpestrm_xmm_xmmm128_imm8
        | VEX_Vpcmpestri_xmm_xmmm128_imm8 => explicit(false),
        Pcmpestrm64_xmm_xmmm128_imm8
        | Pcmpestri64_xmm_xmmm128_imm8
        | VEX_Vpcmpestrm64_xmm_xmmm128_imm8
        | VEX_Vpcmpestri64_xmm_xmmm128_imm8 => explicit(true),
        _ => (implicit_length(a, imm), implicit_length(b, imm)),
    };
    // SAFETY: `ready` has made sure of the guest's SSE4.2, which the host has too.
    let (bits, flags) = unsafe { compare(&a, &b, lengths, imm) };
    cpu.flags = flags;
    Ok(bits)
}

/// The index into ECX: of the first or last character chosen, or their number if there is none.
fn index<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let bits = run::<VEX>(cpu, ins)?;
    let imm = ins.immediate8();
    cpu.gpr[gpr::RCX] = u64::from(match (bits, imm & LAST_OR_WIDE) {
        (0, _) => {
            if imm & WORDS != 0 {
                8
            } else {
                16
            }
        }
        (_, 0) => bits.trailing_zeros(),
        _ => bits.ilog2(),
    });
    Ok(())
}

/// The mask into XMM0: a bit or a whole character each.
fn mask<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let bits = run::<VEX>(cpu, ins)?;
    let imm = ins.immediate8();
    let width = if imm & WORDS != 0 { 16 } else { 8 };
    let value = if imm & LAST_OR_WIDE == 0 {
        u128::from(bits)
    } else {
        (0..128 / width)
            .filter(|i| bits >> i & 1 != 0)
            .fold(0u128, |all, i| all | ((1 << width) - 1) << (i * width))
    };
    set_xmm::<VEX>(cpu, 0, [value as u64, (value >> 64) as u64]);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    table.set(
        &[Pcmpestrm_xmm_xmmm128_imm8, Pcmpestrm64_xmm_xmmm128_imm8, Pcmpistrm_xmm_xmmm128_imm8],
        mask::<false>,
    );
    table.set(
        &[Pcmpestri_xmm_xmmm128_imm8, Pcmpestri64_xmm_xmmm128_imm8, Pcmpistri_xmm_xmmm128_imm8],
        index::<false>,
    );
    table.set(
        &[
            VEX_Vpcmpestrm_xmm_xmmm128_imm8,
            VEX_Vpcmpestrm64_xmm_xmmm128_imm8,
            VEX_Vpcmpistrm_xmm_xmmm128_imm8,
        ],
        mask::<true>,
    );
    table.set(
        &[
            VEX_Vpcmpestri_xmm_xmmm128_imm8,
            VEX_Vpcmpestri64_xmm_xmmm128_imm8,
            VEX_Vpcmpistri_xmm_xmmm128_imm8,
        ],
        index::<true>,
    );
}

//! Arithmetic on MMX registers (Intel SDM vol. 1, 9; SSE, SSE2 and SSSE3 forms in 10 to 12).
//!
//! Every one computes in the low half of two XMM registers: the SSE2 form does lane by lane what the MMX form does.
//! Instructions that look across the whole register (packs, high unpacks, horizontal sums) get their operands placed
//! first.
#![allow(unsafe_code)] // inline assembly, pure register arithmetic

use std::arch::asm;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::stack::no_pending;
use super::transfer::fetch;
use crate::exec::Table;
use crate::mode::bits;
use crate::{Cpu, Exec, Fault, FpuRegs, fsw};

/// Binary instructions: the code, bytes of its memory operand, and the assembly from `{a}` and `{b}` to `{a}`.
macro_rules! binary {
    ($table:ident; $($code:ident $size:literal [$($text:expr),*];)*) => { $(
        $table.set(&[Code::$code], |cpu, ins| {
            binary::<$size>(cpu, ins, |a, b| {
                let (mut a, mut b) = (a as i64, b as i64);
                // SAFETY: register arithmetic.
                unsafe {
                    asm!($($text,)* "/* {a} {b} */", a = inout(xmm_reg) a, b = inout(xmm_reg) b,
                        options(pure, nomem, nostack, preserves_flags));
                }
                let _ = b;
                a as u64
            })
        });
    )* };
}

/// Instructions whose SSE2 form does the same in its low half.
macro_rules! plain {
    ($table:ident; $($op:literal $code:ident;)*) => {
        binary! { $table; $($code 8 [concat!($op, " {a}, {b}")];)* }
    };
}

/// Instructions that take both operands as one 128-bit value and whose result's low half counts.
macro_rules! joined {
    ($table:ident; $($op:literal $code:ident;)*) => {
        binary! { $table; $($code 8 ["punpcklqdq {a}, {b}", concat!($op, " {a}, {a}")];)* }
    };
}

/// Shifts by an immediate, done as shifts by a register.
macro_rules! immediate {
    ($table:ident; $($op:literal $code:ident;)*) => {
        binary! { $table; $($code 0 [concat!($op, " {a}, {b}")];)* }
    };
}

pub(super) fn register(t: &mut Table) {
    plain! { t;
        "paddb" Paddb_mm_mmm64; "paddw" Paddw_mm_mmm64; "paddd" Paddd_mm_mmm64; "paddq" Paddq_mm_mmm64;
        "paddsb" Paddsb_mm_mmm64; "paddsw" Paddsw_mm_mmm64; "paddusb" Paddusb_mm_mmm64;
        "paddusw" Paddusw_mm_mmm64; "psubb" Psubb_mm_mmm64; "psubw" Psubw_mm_mmm64; "psubd" Psubd_mm_mmm64;
        "psubq" Psubq_mm_mmm64; "psubsb" Psubsb_mm_mmm64; "psubsw" Psubsw_mm_mmm64; "psubusb" Psubusb_mm_mmm64;
        "psubusw" Psubusw_mm_mmm64; "pmullw" Pmullw_mm_mmm64; "pmulhw" Pmulhw_mm_mmm64;
        "pmulhuw" Pmulhuw_mm_mmm64; "pmaddwd" Pmaddwd_mm_mmm64; "pmuludq" Pmuludq_mm_mmm64;
        "pcmpeqb" Pcmpeqb_mm_mmm64; "pcmpeqw" Pcmpeqw_mm_mmm64; "pcmpeqd" Pcmpeqd_mm_mmm64;
        "pcmpgtb" Pcmpgtb_mm_mmm64; "pcmpgtw" Pcmpgtw_mm_mmm64; "pcmpgtd" Pcmpgtd_mm_mmm64;
        "pand" Pand_mm_mmm64; "pandn" Pandn_mm_mmm64; "por" Por_mm_mmm64; "pxor" Pxor_mm_mmm64;
        "psllw" Psllw_mm_mmm64; "pslld" Pslld_mm_mmm64; "psllq" Psllq_mm_mmm64; "psrlw" Psrlw_mm_mmm64;
        "psrld" Psrld_mm_mmm64; "psrlq" Psrlq_mm_mmm64; "psraw" Psraw_mm_mmm64; "psrad" Psrad_mm_mmm64;
        "pavgb" Pavgb_mm_mmm64; "pavgw" Pavgw_mm_mmm64; "pmaxsw" Pmaxsw_mm_mmm64; "pmaxub" Pmaxub_mm_mmm64;
        "pminsw" Pminsw_mm_mmm64; "pminub" Pminub_mm_mmm64; "psadbw" Psadbw_mm_mmm64;
        "pmulhrsw" Pmulhrsw_mm_mmm64; "pmaddubsw" Pmaddubsw_mm_mmm64; "psignb" Psignb_mm_mmm64;
        "psignw" Psignw_mm_mmm64; "psignd" Psignd_mm_mmm64; "pabsb" Pabsb_mm_mmm64; "pabsw" Pabsw_mm_mmm64;
        "pabsd" Pabsd_mm_mmm64;
    }
    joined! { t;
        "packsswb" Packsswb_mm_mmm64; "packuswb" Packuswb_mm_mmm64; "packssdw" Packssdw_mm_mmm64;
        "phaddw" Phaddw_mm_mmm64; "phaddd" Phaddd_mm_mmm64; "phaddsw" Phaddsw_mm_mmm64;
        "phsubw" Phsubw_mm_mmm64; "phsubd" Phsubd_mm_mmm64; "phsubsw" Phsubsw_mm_mmm64;
    }
    immediate! { t;
        "psllw" Psllw_mm_imm8; "pslld" Pslld_mm_imm8; "psllq" Psllq_mm_imm8; "psrlw" Psrlw_mm_imm8;
        "psrld" Psrld_mm_imm8; "psrlq" Psrlq_mm_imm8; "psraw" Psraw_mm_imm8; "psrad" Psrad_mm_imm8;
    }
    binary! { t;
        Punpcklbw_mm_mmm32 4 ["punpcklbw {a}, {b}"];
        Punpcklwd_mm_mmm32 4 ["punpcklwd {a}, {b}"];
        Punpckldq_mm_mmm32 4 ["punpckldq {a}, {b}"];
        Punpckhbw_mm_mmm64 8 ["psrlq {a}, 32", "psrlq {b}, 32", "punpcklbw {a}, {b}"];
        Punpckhwd_mm_mmm64 8 ["psrlq {a}, 32", "psrlq {b}, 32", "punpcklwd {a}, {b}"];
        Punpckhdq_mm_mmm64 8 ["psrlq {a}, 32", "psrlq {b}, 32", "punpckldq {a}, {b}"];
        // Indices have 4 bits in the SSE form, 3 in this: the table is there twice.
        Pshufb_mm_mmm64 8 ["punpcklqdq {a}, {a}", "pshufb {a}, {b}"];
    }
    t.set(&[Code::Pshufw_mm_mmm64_imm8], |cpu, ins| {
        let order = u32::from(ins.immediate8());
        binary::<8>(cpu, ins, |_, b| {
            (0..4).fold(0, |r, lane| r | (b >> (16 * (order >> (2 * lane) & 3)) & 0xffff) << (16 * lane))
        })
    });
    t.set(&[Code::Palignr_mm_mmm64_imm8], |cpu, ins| {
        let shift = 8 * u32::from(ins.immediate8());
        binary::<8>(cpu, ins, |a, b| {
            (u128::from(a) << 64 | u128::from(b)).checked_shr(shift).unwrap_or(0) as u64
        })
    });
}

/// #UD, #NM and #MF as MMX instructions raise them (Intel SDM vol. 3, 13.1 and 13.5).
#[inline(always)]
pub(super) fn begin(cpu: &Cpu) -> Exec {
    available(cpu)?;
    no_pending(cpu)
}

/// The first two of [`begin`].
#[inline(always)]
pub(super) fn available(cpu: &Cpu) -> Exec {
    if cpu.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0 {
        return Err(if cpu.cr0 & bits::CR0_EM != 0 { Fault::UD } else { Fault::NM });
    }
    Ok(())
}

impl FpuRegs {
    /// What every MMX instruction but EMMS does to the x87 state.
    #[inline(always)]
    pub(super) fn use_mmx(&mut self) {
        self.fsw &= !fsw::TOP;
        self.ftw = 0xff;
    }

    /// Writes MMX register `i`; its exponent and sign become ones.
    #[inline(always)]
    pub(super) fn set_mm(&mut self, i: usize, value: u64) {
        self.r[i & 7] = crate::F80 { mantissa: value, exponent: 0xffff };
    }
}

/// Number of the MMX register that operand `n` names.
#[inline(always)]
pub(super) fn mm(ins: &Instruction, n: u32) -> usize {
    (ins.op_register(n) as usize).wrapping_sub(Register::MM0 as usize) & 7
}

/// Operand `n`: an MMX register, or `N` bytes of memory (none: an immediate).
#[inline(always)]
pub(super) fn source<const N: usize>(cpu: &mut Cpu, ins: &Instruction, n: u32) -> Exec<u64> {
    match ins.op_kind(n) {
        OpKind::Register => Ok(cpu.fpu.r[mm(ins, n)].mantissa),
        OpKind::Memory => {
            let ea = cpu.ea(ins, N, false)?;
            fetch::<N>(cpu, ea)
        }
        _ => Ok(u64::from(ins.immediate8())),
    }
}

#[inline(always)]
fn binary<const N: usize>(cpu: &mut Cpu, ins: &Instruction, op: impl FnOnce(u64, u64) -> u64) -> Exec {
    begin(cpu)?;
    let b = source::<N>(cpu, ins, 1)?;
    let i = mm(ins, 0);
    cpu.fpu.use_mmx();
    let value = op(cpu.fpu.r[i].mantissa, b);
    cpu.fpu.set_mm(i, value);
    Ok(())
}

//! VPTEST, VTESTPS, VTESTPD and the masks of signs where an operand is a YMM register or there is no legacy form.
#![allow(unsafe_code)] // inline assembly

use std::arch::x86_64::{
    _mm_castsi128_pd, _mm_castsi128_ps, _mm_loadu_si128, _mm_movemask_epi8, _mm_movemask_pd, _mm_movemask_ps,
};

use accel_api::x86::Ymm;
use iced_x86::{Code, Instruction, OpKind};

use super::raw::vector_asm;
use super::{access, ready};
use crate::alu::ArithFlags;
use crate::exec::Table;
use crate::exec::sse::{feature, number};
use crate::{Cpu, Exec};

/// Compares two vector operands.
///
/// # Safety
/// The host must have AVX.
type Compare = unsafe fn(&Ymm, &Ymm) -> ArithFlags;

macro_rules! compare {
    ($text:literal) => {{
        unsafe fn raw(a: &Ymm, b: &Ymm) -> ArithFlags {
            let flags: u16;
            // SAFETY: the caller's promise; both references are read and nothing is written.
            unsafe {
                vector_asm!(float "vmovups ymm0, [{a}]", "vmovups ymm1, [{b}]", $text, "vzeroupper", "lahf", "seto al",
                    a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), out("ax") flags,);
            }
            ArithFlags(flags)
        }
        raw as Compare
    }};
}

fn exec_compare(cpu: &mut Cpu, ins: &Instruction, bytes: u8, op: Compare) -> Exec {
    ready(cpu, None)?;
    let a = cpu.vector.0[number(ins.op0_register())];
    let b = if ins.op1_kind() == OpKind::Register {
        cpu.vector.0[number(ins.op1_register())]
    } else {
        access::load(cpu, ins, bytes, false)?
    };
    // SAFETY: `ready` has made sure of the guest's AVX, which the host has too.
    cpu.flags = unsafe { op(&a, &b) };
    Ok(())
}

/// The sign bits of all lanes of `N` bytes, the lowest first.
fn signs<const N: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, feature(ins.code()))?;
    let of_half = |half: &[u64]| {
        // SAFETY: SSE2; a half has 16 bytes.
        let mask = unsafe {
            let half = _mm_loadu_si128(half.as_ptr().cast());
            match N {
                1 => _mm_movemask_epi8(half),
                4 => _mm_movemask_ps(_mm_castsi128_ps(half)),
                _ => _mm_movemask_pd(_mm_castsi128_pd(half)),
            }
        };
        u64::from(mask as u32)
    };
    let (low, high) = cpu.vector.0[number(ins.op1_register())].split_at(2);
    let mask = of_half(low) | of_half(high) << (16 / N);
    cpu.write_gpr(ins.op0_register(), mask);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    macro_rules! set {
        ($($code:ident $bytes:literal $text:literal;)*) => {
            $(table.set(&[$code], |cpu, ins| exec_compare(cpu, ins, $bytes, compare!($text)));)*
        };
    }
    set! {
        VEX_Vptest_ymm_ymmm256 32 "vptest ymm0, ymm1";
        VEX_Vtestps_xmm_xmmm128 16 "vtestps xmm0, xmm1";
        VEX_Vtestps_ymm_ymmm256 32 "vtestps ymm0, ymm1";
        VEX_Vtestpd_xmm_xmmm128 16 "vtestpd xmm0, xmm1";
        VEX_Vtestpd_ymm_ymmm256 32 "vtestpd ymm0, ymm1";
    }
    table.set(&[VEX_Vmovmskps_r32_ymm, VEX_Vmovmskps_r64_ymm], signs::<4>);
    table.set(&[VEX_Vmovmskpd_r32_ymm, VEX_Vmovmskpd_r64_ymm], signs::<8>);
    table.set(&[VEX_Vpmovmskb_r32_ymm, VEX_Vpmovmskb_r64_ymm], signs::<1>);
}

//! AES, carry-less multiplication, SHA and Galois fields (Intel SDM vol. 1, 12.13 and 5.19), where the guest's CPU has them.
#![allow(unsafe_code)] // inline assembly

use iced_x86::Code::*;

use super::form::{Float, Forms, Shape};
use super::raw::{host_imm_op, rows};
use crate::exec::avx::values;

/// The host's instruction takes the round constant as an immediate, but it is only XORed into two lanes.
///
/// # Safety
/// As a [`VecOp`](super::VecOp).
unsafe fn aeskeygenassist(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
    let constant = u64::from(imm) << 32;
    let dst = dst.cast::<[u64; 2]>();
    // SAFETY: the caller's promise.
    unsafe {
        host_imm_op!("aeskeygenassist", 0, [0])(dst.cast(), src, 0);
        let [low, high] = dst.read_unaligned();
        dst.write_unaligned([low ^ constant, high ^ constant]);
    }
}

/// A [`VecOp`](super::VecOp) of a host instruction that takes any immediate: a table of 16 bytes an entry, into which is
/// jumped.
macro_rules! any_imm_op {
    ($text:literal) => {{
        unsafe fn raw(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
            // SAFETY: the caller's promise; the assembly computes in registers, and the jump is to one of the entries.
            unsafe {
                let mut a = core::arch::x86_64::_mm_loadu_si128(dst.cast());
                let b = core::arch::x86_64::_mm_loadu_si128(src.cast());
                core::arch::asm!(
                    "lea {t}, [rip + 2f]", "lea {t}, [{t} + {i}]", "jmp {t}", ".p2align 4", "2:",
                    concat!(".irp i, ", values!(256)), ".p2align 4", concat!($text, " {a}, {b}, \\i"),
                    "jmp 3f", ".endr", "3:",
                    a = inout(xmm_reg) a, b = in(xmm_reg) b, i = in(reg) usize::from(imm) * 16, t = out(reg) _,
                    options(nomem, nostack, preserves_flags));
                core::arch::x86_64::_mm_storeu_si128(dst.cast(), a);
            }
        }
        raw as super::VecOp
    }};
}

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, Float::None, int:
        Aesenc_xmm_xmmm128 "aesenc", Aesenclast_xmm_xmmm128 "aesenclast", Aesdec_xmm_xmmm128 "aesdec",
        Aesdeclast_xmm_xmmm128 "aesdeclast", Aesimc_xmm_xmmm128 "aesimc", Sha1nexte_xmm_xmmm128 "sha1nexte",
        Sha1msg1_xmm_xmmm128 "sha1msg1", Sha1msg2_xmm_xmmm128 "sha1msg2", Sha256msg1_xmm_xmmm128 "sha256msg1",
        Sha256msg2_xmm_xmmm128 "sha256msg2", Gf2p8mulb_xmm_xmmm128 "gf2p8mulb",
    }
    let load = Shape::Load;
    forms.add(Aeskeygenassist_xmm_xmmm128_imm8, load, Float::None, aeskeygenassist);
    forms.add(Gf2p8affineqb_xmm_xmmm128_imm8, load, Float::None, any_imm_op!("gf2p8affineqb"));
    forms.add(Gf2p8affineinvqb_xmm_xmmm128_imm8, load, Float::None, any_imm_op!("gf2p8affineinvqb"));
    let pclmulqdq = host_imm_op!("pclmulqdq", 0x11, [0 1 16 17]);
    forms.add(Pclmulqdq_xmm_xmmm128_imm8, load, Float::None, pclmulqdq);
    forms.add(Sha1rnds4_xmm_xmmm128_imm8, load, Float::None, host_imm_op!("sha1rnds4", 3, [0 1 2 3]));
}

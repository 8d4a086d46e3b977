//! AES, carry-less multiplication and SHA (Intel SDM vol. 1, 12.13 and 5.19), where the guest's CPU has them.
#![allow(unsafe_code)] // inline assembly

use iced_x86::Code::*;

use super::form::{Float, Forms, Shape};
use super::raw::{host_imm_op, rows};

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

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, Float::None, int:
        Aesenc_xmm_xmmm128 "aesenc", Aesenclast_xmm_xmmm128 "aesenclast", Aesdec_xmm_xmmm128 "aesdec",
        Aesdeclast_xmm_xmmm128 "aesdeclast", Aesimc_xmm_xmmm128 "aesimc", Sha1nexte_xmm_xmmm128 "sha1nexte",
        Sha1msg1_xmm_xmmm128 "sha1msg1", Sha1msg2_xmm_xmmm128 "sha1msg2", Sha256msg1_xmm_xmmm128 "sha256msg1",
        Sha256msg2_xmm_xmmm128 "sha256msg2",
    }
    let load = Shape::Load;
    forms.add(Aeskeygenassist_xmm_xmmm128_imm8, load, Float::None, aeskeygenassist);
    let pclmulqdq = host_imm_op!("pclmulqdq", 0x11, [0 1 16 17]);
    forms.add(Pclmulqdq_xmm_xmmm128_imm8, load, Float::None, pclmulqdq);
    forms.add(Sha1rnds4_xmm_xmmm128_imm8, load, Float::None, host_imm_op!("sha1rnds4", 3, [0 1 2 3]));
}

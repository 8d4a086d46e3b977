//! Moves between vector registers and memory. Non-temporal ones are ordinary ones: write combining is a hint about
//! caches (Intel SDM vol. 1, 10.4.6.2).
#![allow(unsafe_code)] // raw operations work on pointers

use iced_x86::Code::{self, *};

use super::form::{Float, Forms, Shape, VecOp};
use super::raw::rows;

/// Raw moves; each is safe as a [`VecOp`] is. `value` is the source's two quadwords, `old` the destination's.
macro_rules! moves {
    ($($(#[$doc:meta])* $name:ident($old:ident, $value:ident) $new:expr;)*) => {$(
        $(#[$doc])*
        unsafe fn $name(dst: *mut [u64; 4], src: *const [u64; 2], _: u8) {
            let dst = dst.cast::<[u64; 2]>();
            // SAFETY: the caller's promise.
            let ($old, $value) = unsafe { (dst.read_unaligned(), src.read_unaligned()) };
            let _ = $old;
            // SAFETY: the caller's promise.
            unsafe { dst.write_unaligned($new) };
        }
    )*};
}

const LOW32: u64 = 0xffff_ffff;

moves! {
    copy(old, value) value;
    /// The low quadword, with zeros above it.
    zero_extend(old, value) [value[0], 0];
    merge_single(old, value) [old[0] & !LOW32 | value[0] & LOW32, old[1]];
    low_to_low(old, value) [value[0], old[1]];
    low_to_high(old, value) [old[0], value[0]];
    high_to_low(old, value) [value[1], old[1]];
    duplicate_low(old, value) [value[0], value[0]];
}

pub(super) fn forms(forms: &mut Forms) {
    let mut load = |codes: &[Code], register: VecOp, memory: VecOp| {
        for &code in codes {
            forms.add_split(code, Shape::Load, Float::None, register, memory);
        }
    };
    load(
        &[
            Movups_xmm_xmmm128,
            Movupd_xmm_xmmm128,
            Movdqu_xmm_xmmm128,
            Movaps_xmm_xmmm128,
            Movapd_xmm_xmmm128,
            Movdqa_xmm_xmmm128,
            Movntdqa_xmm_m128,
            Lddqu_xmm_m128,
        ],
        copy,
        copy,
    );
    // From memory a scalar comes zero-extended; from a register it leaves the rest of the destination alone.
    load(&[Movss_xmm_xmmm32], merge_single, copy);
    load(&[Movsd_xmm_xmmm64], low_to_low, copy);
    load(&[Movq_xmm_xmmm64], zero_extend, copy);
    load(&[Movddup_xmm_xmmm64], duplicate_low, duplicate_low);
    load(&[Movlps_xmm_m64, Movlpd_xmm_m64], low_to_low, low_to_low);
    load(&[Movhps_xmm_m64, Movhpd_xmm_m64, Movlhps_xmm_xmm], low_to_high, low_to_high);
    load(&[Movhlps_xmm_xmm], high_to_low, high_to_low);
    rows! { forms, Float::None, int: Movsldup_xmm_xmmm128 "movsldup", Movshdup_xmm_xmmm128 "movshdup" }

    let mut store = |codes: &[Code], register: VecOp, memory: VecOp| {
        for &code in codes {
            forms.add_split(code, Shape::Store, Float::None, register, memory);
        }
    };
    store(
        &[
            Movups_xmmm128_xmm,
            Movupd_xmmm128_xmm,
            Movdqu_xmmm128_xmm,
            Movaps_xmmm128_xmm,
            Movapd_xmmm128_xmm,
            Movdqa_xmmm128_xmm,
            Movntps_m128_xmm,
            Movntpd_m128_xmm,
            Movntdq_m128_xmm,
        ],
        copy,
        copy,
    );
    store(&[Movntss_m32_xmm, Movntsd_m64_xmm], copy, copy);
    store(&[Movss_xmmm32_xmm], merge_single, copy);
    store(&[Movsd_xmmm64_xmm], low_to_low, copy);
    store(&[Movq_xmmm64_xmm], zero_extend, copy);
    store(&[Movlps_m64_xmm, Movlpd_m64_xmm], copy, copy);
    store(&[Movhps_m64_xmm, Movhpd_m64_xmm], high_to_low, high_to_low);
}

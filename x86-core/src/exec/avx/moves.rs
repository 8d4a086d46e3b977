//! Moves between vector registers and memory, and broadcasts of a memory operand. Non-temporal ones are ordinary ones.
#![allow(unsafe_code)] // inline assembly

use iced_x86::Code::*;

use super::Float;
use super::form::Forms;
use super::raw::{avx_op, rows};

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, int, [(x x) None, (y y) None]:
        Vmovups Vmovupd Vmovaps Vmovapd Vmovdqu Vmovdqa Vmovsldup Vmovshdup
    }
    rows! { forms, int, [(x x | q) None, (y y) None]: Vmovddup }
    rows! { forms, int, [(x x x) None]: Vmovss Vmovsd Vmovhlps Vmovlhps }

    let narrow = avx_op!(int Vmovaps x x);
    let wide = avx_op!(int Vmovaps y y);
    let (single, double) = (avx_op!(int Vmovaps x d), avx_op!(int Vmovaps x q));
    let whole = [
        (VEX_Vlddqu_xmm_m128, narrow),
        (VEX_Vlddqu_ymm_m256, wide),
        (VEX_Vmovntdqa_xmm_m128, narrow),
        (VEX_Vmovntdqa_ymm_m256, wide),
        (VEX_Vmovntps_m128_xmm, narrow),
        (VEX_Vmovntps_m256_ymm, wide),
        (VEX_Vmovntpd_m128_xmm, narrow),
        (VEX_Vmovntpd_m256_ymm, wide),
        (VEX_Vmovntdq_m128_xmm, narrow),
        (VEX_Vmovntdq_m256_ymm, wide),
        (VEX_Vmovss_xmm_m32, single),
        (VEX_Vmovsd_xmm_m64, double),
        (VEX_Vmovss_m32_xmm, narrow),
        (VEX_Vmovsd_m64_xmm, narrow),
        (VEX_Vmovlps_m64_xmm, narrow),
        (VEX_Vmovlpd_m64_xmm, narrow),
    ];
    for (code, op) in whole {
        forms.add_code(code, Float::None, op, op);
    }
    let low = avx_op!(int Vmovq x x);
    forms.add_code(VEX_Vmovq_xmm_xmmm64, Float::None, low, double);
    forms.add_code(VEX_Vmovq_xmmm64_xmm, Float::None, low, low);

    // Half a register from memory, the other half from the first source.
    let to_low = avx_op!(int Vmovsd x x q);
    let to_high = avx_op!(int Vmovlhps x x q);
    for (code, op) in [
        (VEX_Vmovlps_xmm_xmm_m64, to_low),
        (VEX_Vmovlpd_xmm_xmm_m64, to_low),
        (VEX_Vmovhps_xmm_xmm_m64, to_high),
        (VEX_Vmovhpd_xmm_xmm_m64, to_high),
    ] {
        forms.add_code(code, Float::None, op, op);
    }
    let from_high = avx_op!(int text "vmovddup xmm0, [{b} + 8]" x);
    forms.add_code(VEX_Vmovhps_m64_xmm, Float::None, from_high, from_high);
    forms.add_code(VEX_Vmovhpd_m64_xmm, Float::None, from_high, from_high);

    // These take memory only with AVX, registers with AVX2.
    let loads = [
        (VEX_Vbroadcastss_xmm_m32, avx_op!(int text "vbroadcastss xmm0, [{b}]" x)),
        (VEX_Vbroadcastss_ymm_m32, avx_op!(int text "vbroadcastss ymm0, [{b}]" y)),
        (VEX_Vbroadcastsd_ymm_m64, avx_op!(int text "vbroadcastsd ymm0, [{b}]" y)),
        (VEX_Vbroadcastf128_ymm_m128, avx_op!(int text "vbroadcastf128 ymm0, [{b}]" y)),
        (VEX_Vbroadcasti128_ymm_m128, avx_op!(int text "vbroadcasti128 ymm0, [{b}]" y)),
        (VEX_Vbroadcastss_xmm_xmm, avx_op!(int Vbroadcastss x x)),
        (VEX_Vbroadcastss_ymm_xmm, avx_op!(int Vbroadcastss y x)),
        (VEX_Vbroadcastsd_ymm_xmm, avx_op!(int Vbroadcastsd y x)),
    ];
    for (code, op) in loads {
        forms.add_code(code, Float::None, op, op);
    }
    rows! { forms, int, [(x x | d) None, (y x | d) None]: Vpbroadcastd }
    rows! { forms, int, [(x x | q) None, (y x | q) None]: Vpbroadcastq }
    rows! { forms, int, [(x x | w) None, (y x | w) None]: Vpbroadcastw }
    rows! { forms, int, [(x x | b) None, (y x | b) None]: Vpbroadcastb }
}

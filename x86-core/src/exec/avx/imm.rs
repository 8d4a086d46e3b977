//! Instructions with an immediate byte. Its bits that mean nothing are masked off, which keeps the tables small.
#![allow(unsafe_code)] // inline assembly

use iced_x86::Code::*;

use super::Float;
use super::form::Forms;
use super::raw::{avx_imm_op, imm_rows};

pub(super) fn forms(forms: &mut Forms) {
    imm_rows! { forms, int, [(x x) None, (y y) None] 256, 0xff: Vpshufd Vpshuflw Vpshufhw Vpermilps }
    imm_rows! { forms, int, [(x x) None] 4, 0x03: Vpermilpd }
    imm_rows! { forms, int, [(y y) None] 16, 0x0f: Vpermilpd }
    imm_rows! { forms, int, [(y y) None] 256, 0xff: Vpermq Vpermpd }
    imm_rows! { forms, int, [(x x x) None, (y y y) None] 256, 0xff: Vshufps Vpblendw Vpalignr }
    imm_rows! { forms, int, [(x x x) None] 4, 0x03: Vshufpd Vblendpd }
    imm_rows! { forms, int, [(y y y) None] 16, 0x0f: Vshufpd Vblendpd }
    imm_rows! { forms, int, [(x x x) None] 16, 0x0f: Vblendps Vpblendd }
    imm_rows! { forms, int, [(y y y) None] 256, 0xff: Vblendps Vpblendd Vperm2f128 Vperm2i128 }
    imm_rows! { forms, int, [(x x x) None, (y y y) None] 64, 0x3f: Vmpsadbw }
    imm_rows! { forms, int, [(y y x) None] 2, 0x01: Vinsertf128 Vinserti128 }
    imm_rows! { forms, int, [(x y) None] 2, 0x01: Vextractf128 Vextracti128 }
    // From memory it is always the lowest lane that goes in, which the host's register form takes from bits 7:6.
    forms.add_code(
        VEX_Vinsertps_xmm_xmm_xmmm32_imm8,
        Float::None,
        avx_imm_op!(int Vinsertps 256 0xff: x x x),
        avx_imm_op!(int Vinsertps 64 0x3f: x x d),
    );
    imm_rows! { forms, int, [(x x) None, (y y) None] 256, 0xff:
        Vpsrlw Vpsrld Vpsrlq Vpsraw Vpsrad Vpsllw Vpslld Vpsllq Vpsrldq Vpslldq
    }

    imm_rows! { forms, float, [(x x x) Flags, (y y y) Flags] 32, 0x1f: Vcmpps Vcmppd }
    imm_rows! { forms, float, [(x x x | d) Flags] 32, 0x1f: Vcmpss }
    imm_rows! { forms, float, [(x x x | q) Flags] 32, 0x1f: Vcmpsd }
    imm_rows! { forms, float, [(x x) Flags, (y y) Flags] 16, 0x0f: Vroundps Vroundpd }
    imm_rows! { forms, float, [(x x x | d) Flags] 16, 0x0f: Vroundss }
    imm_rows! { forms, float, [(x x x | q) Flags] 16, 0x0f: Vroundsd }
    imm_rows! { forms, float, [(x x x) Single(4), (y y y) Single(8)] 256, 0xff: Vdpps }
    imm_rows! { forms, float, [(x x x) Double(2)] 256, 0xff: Vdppd }
    imm_rows! { forms, float, [(x x) Half(4), (x y) Half(8)] 8, 0x07: Vcvtps2ph }
}

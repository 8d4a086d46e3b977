//! AES, carry-less multiplication and Galois fields, where the guest's CPU has them.
#![allow(unsafe_code)] // inline assembly

use super::form::Forms;
use super::raw::{imm_rows, rows};

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, int, [(x x x) None, (y y y) None]: Vaesenc Vaesenclast Vaesdec Vaesdeclast Vgf2p8mulb }
    rows! { forms, int, [(x x) None]: Vaesimc }
    imm_rows! { forms, int, [(x x) None] 256, 0xff: Vaeskeygenassist }
    imm_rows! { forms, int, [(x x x) None, (y y y) None] 32, 0x11: Vpclmulqdq }
    imm_rows! { forms, int, [(x x x) None, (y y y) None] 256, 0xff: Vgf2p8affineqb Vgf2p8affineinvqb }
}

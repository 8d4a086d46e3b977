//! Floating-point arithmetic and conversion, packed and scalar.
#![allow(unsafe_code)] // inline assembly

use super::form::Forms;
use super::raw::rows;

pub(super) fn forms(forms: &mut Forms) {
    // What can underflow.
    rows! { forms, float, [(x x x) Single(4), (y y y) Single(8)]:
        Vaddps Vsubps Vmulps Vdivps Vhaddps Vhsubps Vaddsubps
    }
    rows! { forms, float, [(x x x) Double(2), (y y y) Double(4)]:
        Vaddpd Vsubpd Vmulpd Vdivpd Vhaddpd Vhsubpd Vaddsubpd
    }
    rows! { forms, float, [(x x x | d) Single(1)]: Vaddss Vsubss Vmulss Vdivss }
    rows! { forms, float, [(x x x | q) Double(1)]: Vaddsd Vsubsd Vmulsd Vdivsd }
    // Invalid, denormal and inexact at most; the reciprocal approximations raise nothing at all.
    rows! { forms, float, [(x x x) Flags, (y y y) Flags]: Vminps Vminpd Vmaxps Vmaxpd }
    rows! { forms, float, [(x x x | d) Flags]: Vminss Vmaxss Vsqrtss }
    rows! { forms, float, [(x x x | q) Flags]: Vminsd Vmaxsd Vsqrtsd }
    rows! { forms, float, [(x x) Flags, (y y) Flags]: Vsqrtps Vsqrtpd }
    rows! { forms, float, [(x x) None, (y y) None]: Vrsqrtps Vrcpps }
    rows! { forms, float, [(x x x | d) None]: Vrsqrtss Vrcpss }
    conversions(forms);
}

fn conversions(forms: &mut Forms) {
    rows! { forms, float, [(x x) Flags, (y y) Flags]: Vcvtdq2ps Vcvtps2dq Vcvttps2dq }
    rows! { forms, float, [(x x) Flags, (x y) Flags]: Vcvtpd2dq Vcvttpd2dq }
    rows! { forms, float, [(x x | q) Flags, (y x) Flags]: Vcvtps2pd Vcvtph2ps }
    rows! { forms, float, [(x x | q) None, (y x) None]: Vcvtdq2pd }
    rows! { forms, float, [(x x) Single(2), (x y) Single(4)]: Vcvtpd2ps }
    rows! { forms, float, [(x x x | d) Flags]: Vcvtss2sd }
    rows! { forms, float, [(x x x | q) Single(1)]: Vcvtsd2ss }
}

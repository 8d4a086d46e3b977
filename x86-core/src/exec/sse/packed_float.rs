//! Floating-point arithmetic and conversion on two vector operands, packed and scalar.
#![allow(unsafe_code)] // inline assembly

use super::form::{Float, Forms};
use super::raw::rows;

pub(super) fn forms(forms: &mut Forms) {
    arithmetic(forms);
    comparisons_and_roots(forms);
    conversions(forms);
}

/// What can underflow.
fn arithmetic(forms: &mut Forms) {
    rows! { forms, Float::Single(4), float:
        Addps_xmm_xmmm128 "addps", Subps_xmm_xmmm128 "subps", Mulps_xmm_xmmm128 "mulps", Divps_xmm_xmmm128 "divps",
        Haddps_xmm_xmmm128 "haddps", Hsubps_xmm_xmmm128 "hsubps", Addsubps_xmm_xmmm128 "addsubps",
    }
    rows! { forms, Float::Double(2), float:
        Addpd_xmm_xmmm128 "addpd", Subpd_xmm_xmmm128 "subpd", Mulpd_xmm_xmmm128 "mulpd", Divpd_xmm_xmmm128 "divpd",
        Haddpd_xmm_xmmm128 "haddpd", Hsubpd_xmm_xmmm128 "hsubpd", Addsubpd_xmm_xmmm128 "addsubpd",
    }
    rows! { forms, Float::Single(1), float:
        Addss_xmm_xmmm32 "addss", Subss_xmm_xmmm32 "subss", Mulss_xmm_xmmm32 "mulss", Divss_xmm_xmmm32 "divss",
    }
    rows! { forms, Float::Double(1), float:
        Addsd_xmm_xmmm64 "addsd", Subsd_xmm_xmmm64 "subsd", Mulsd_xmm_xmmm64 "mulsd", Divsd_xmm_xmmm64 "divsd",
    }
}

/// Invalid, denormal and inexact at most; the reciprocal approximations raise nothing at all.
fn comparisons_and_roots(forms: &mut Forms) {
    rows! { forms, Float::Flags, float:
        Minps_xmm_xmmm128 "minps", Minpd_xmm_xmmm128 "minpd", Minss_xmm_xmmm32 "minss", Minsd_xmm_xmmm64 "minsd",
        Maxps_xmm_xmmm128 "maxps", Maxpd_xmm_xmmm128 "maxpd", Maxss_xmm_xmmm32 "maxss", Maxsd_xmm_xmmm64 "maxsd",
        Sqrtps_xmm_xmmm128 "sqrtps", Sqrtpd_xmm_xmmm128 "sqrtpd", Sqrtss_xmm_xmmm32 "sqrtss",
        Sqrtsd_xmm_xmmm64 "sqrtsd",
    }
    rows! { forms, Float::None, float:
        Rsqrtps_xmm_xmmm128 "rsqrtps", Rsqrtss_xmm_xmmm32 "rsqrtss", Rcpps_xmm_xmmm128 "rcpps",
        Rcpss_xmm_xmmm32 "rcpss",
    }
}

fn conversions(forms: &mut Forms) {
    rows! { forms, Float::Flags, float:
        Cvtps2pd_xmm_xmmm64 "cvtps2pd", Cvtss2sd_xmm_xmmm32 "cvtss2sd", Cvtdq2ps_xmm_xmmm128 "cvtdq2ps",
        Cvtps2dq_xmm_xmmm128 "cvtps2dq", Cvttps2dq_xmm_xmmm128 "cvttps2dq", Cvtpd2dq_xmm_xmmm128 "cvtpd2dq",
        Cvttpd2dq_xmm_xmmm128 "cvttpd2dq",
    }
    rows! { forms, Float::None, float: Cvtdq2pd_xmm_xmmm64 "cvtdq2pd" }
    rows! { forms, Float::Single(2), float: Cvtpd2ps_xmm_xmmm128 "cvtpd2ps" }
    rows! { forms, Float::Single(1), float: Cvtsd2ss_xmm_xmmm64 "cvtsd2ss" }
}

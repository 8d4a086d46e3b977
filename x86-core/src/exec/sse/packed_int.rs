//! Integer and logic instructions on two vector operands, which raise no floating-point exceptions.
#![allow(unsafe_code)] // inline assembly

use super::form::{Float, Forms};
use super::raw::rows;

pub(super) fn forms(forms: &mut Forms) {
    // SSE.
    rows! { forms, Float::None, int:
        Unpcklps_xmm_xmmm128 "unpcklps", Unpckhps_xmm_xmmm128 "unpckhps", Andps_xmm_xmmm128 "andps",
        Andnps_xmm_xmmm128 "andnps", Orps_xmm_xmmm128 "orps", Xorps_xmm_xmmm128 "xorps",
    }
    // SSE2.
    rows! { forms, Float::None, int:
        Unpcklpd_xmm_xmmm128 "unpcklpd", Unpckhpd_xmm_xmmm128 "unpckhpd", Andpd_xmm_xmmm128 "andpd",
        Andnpd_xmm_xmmm128 "andnpd", Orpd_xmm_xmmm128 "orpd", Xorpd_xmm_xmmm128 "xorpd",
        Punpcklbw_xmm_xmmm128 "punpcklbw", Punpcklwd_xmm_xmmm128 "punpcklwd",
        Punpckldq_xmm_xmmm128 "punpckldq", Packsswb_xmm_xmmm128 "packsswb", Pcmpgtb_xmm_xmmm128 "pcmpgtb",
        Pcmpgtw_xmm_xmmm128 "pcmpgtw", Pcmpgtd_xmm_xmmm128 "pcmpgtd", Packuswb_xmm_xmmm128 "packuswb",
        Punpckhbw_xmm_xmmm128 "punpckhbw", Punpckhwd_xmm_xmmm128 "punpckhwd",
        Punpckhdq_xmm_xmmm128 "punpckhdq", Packssdw_xmm_xmmm128 "packssdw",
        Punpcklqdq_xmm_xmmm128 "punpcklqdq", Punpckhqdq_xmm_xmmm128 "punpckhqdq",
        Pcmpeqb_xmm_xmmm128 "pcmpeqb", Pcmpeqw_xmm_xmmm128 "pcmpeqw", Pcmpeqd_xmm_xmmm128 "pcmpeqd",
        Psrlw_xmm_xmmm128 "psrlw", Psrld_xmm_xmmm128 "psrld", Psrlq_xmm_xmmm128 "psrlq",
        Paddq_xmm_xmmm128 "paddq", Pmullw_xmm_xmmm128 "pmullw", Psubusb_xmm_xmmm128 "psubusb",
        Psubusw_xmm_xmmm128 "psubusw", Pminub_xmm_xmmm128 "pminub", Pand_xmm_xmmm128 "pand",
        Paddusb_xmm_xmmm128 "paddusb", Paddusw_xmm_xmmm128 "paddusw", Pmaxub_xmm_xmmm128 "pmaxub",
        Pandn_xmm_xmmm128 "pandn", Pavgb_xmm_xmmm128 "pavgb", Psraw_xmm_xmmm128 "psraw",
        Psrad_xmm_xmmm128 "psrad", Pavgw_xmm_xmmm128 "pavgw", Pmulhuw_xmm_xmmm128 "pmulhuw",
        Pmulhw_xmm_xmmm128 "pmulhw", Psubsb_xmm_xmmm128 "psubsb", Psubsw_xmm_xmmm128 "psubsw",
        Pminsw_xmm_xmmm128 "pminsw", Por_xmm_xmmm128 "por", Paddsb_xmm_xmmm128 "paddsb",
        Paddsw_xmm_xmmm128 "paddsw", Pmaxsw_xmm_xmmm128 "pmaxsw", Pxor_xmm_xmmm128 "pxor",
        Psllw_xmm_xmmm128 "psllw", Pslld_xmm_xmmm128 "pslld", Psllq_xmm_xmmm128 "psllq",
        Pmuludq_xmm_xmmm128 "pmuludq", Pmaddwd_xmm_xmmm128 "pmaddwd", Psadbw_xmm_xmmm128 "psadbw",
        Psubb_xmm_xmmm128 "psubb", Psubw_xmm_xmmm128 "psubw", Psubd_xmm_xmmm128 "psubd",
        Psubq_xmm_xmmm128 "psubq", Paddb_xmm_xmmm128 "paddb", Paddw_xmm_xmmm128 "paddw",
        Paddd_xmm_xmmm128 "paddd",
    }
    // SSSE3.
    rows! { forms, Float::None, int:
        Pshufb_xmm_xmmm128 "pshufb", Phaddw_xmm_xmmm128 "phaddw", Phaddd_xmm_xmmm128 "phaddd",
        Phaddsw_xmm_xmmm128 "phaddsw", Pmaddubsw_xmm_xmmm128 "pmaddubsw", Phsubw_xmm_xmmm128 "phsubw",
        Phsubd_xmm_xmmm128 "phsubd", Phsubsw_xmm_xmmm128 "phsubsw", Psignb_xmm_xmmm128 "psignb",
        Psignw_xmm_xmmm128 "psignw", Psignd_xmm_xmmm128 "psignd", Pmulhrsw_xmm_xmmm128 "pmulhrsw",
        Pabsb_xmm_xmmm128 "pabsb", Pabsw_xmm_xmmm128 "pabsw", Pabsd_xmm_xmmm128 "pabsd",
    }
    // SSE4.1.
    rows! { forms, Float::None, int:
        Pmovsxbw_xmm_xmmm64 "pmovsxbw", Pmovsxbd_xmm_xmmm32 "pmovsxbd", Pmovsxbq_xmm_xmmm16 "pmovsxbq",
        Pmovsxwd_xmm_xmmm64 "pmovsxwd", Pmovsxwq_xmm_xmmm32 "pmovsxwq", Pmovsxdq_xmm_xmmm64 "pmovsxdq",
        Pmuldq_xmm_xmmm128 "pmuldq", Pcmpeqq_xmm_xmmm128 "pcmpeqq", Packusdw_xmm_xmmm128 "packusdw",
        Pmovzxbw_xmm_xmmm64 "pmovzxbw", Pmovzxbd_xmm_xmmm32 "pmovzxbd", Pmovzxbq_xmm_xmmm16 "pmovzxbq",
        Pmovzxwd_xmm_xmmm64 "pmovzxwd", Pmovzxwq_xmm_xmmm32 "pmovzxwq", Pmovzxdq_xmm_xmmm64 "pmovzxdq",
        Pminsb_xmm_xmmm128 "pminsb", Pminsd_xmm_xmmm128 "pminsd", Pminuw_xmm_xmmm128 "pminuw",
        Pminud_xmm_xmmm128 "pminud", Pmaxsb_xmm_xmmm128 "pmaxsb", Pmaxsd_xmm_xmmm128 "pmaxsd",
        Pmaxuw_xmm_xmmm128 "pmaxuw", Pmaxud_xmm_xmmm128 "pmaxud", Pmulld_xmm_xmmm128 "pmulld",
        Phminposuw_xmm_xmmm128 "phminposuw",
    }
    // SSE4.2.
    rows! { forms, Float::None, int:
        Pcmpgtq_xmm_xmmm128 "pcmpgtq",
    }
}

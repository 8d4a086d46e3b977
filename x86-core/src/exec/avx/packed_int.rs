//! Integer and logic instructions, permutations by a register, and blends by one, which raise no floating-point exceptions.
#![allow(unsafe_code)] // inline assembly

use super::form::Forms;
use super::raw::rows;

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, int, [(x x x) None, (y y y) None]:
        Vunpcklps Vunpckhps Vunpcklpd Vunpckhpd Vandps Vandpd Vandnps Vandnpd Vorps Vorpd Vxorps Vxorpd
        Vpunpcklbw Vpunpcklwd Vpunpckldq Vpunpcklqdq Vpunpckhbw Vpunpckhwd Vpunpckhdq Vpunpckhqdq
        Vpacksswb Vpackssdw Vpackuswb Vpackusdw
        Vpcmpeqb Vpcmpeqw Vpcmpeqd Vpcmpeqq Vpcmpgtb Vpcmpgtw Vpcmpgtd Vpcmpgtq
        Vpaddb Vpaddw Vpaddd Vpaddq Vpaddsb Vpaddsw Vpaddusb Vpaddusw
        Vpsubb Vpsubw Vpsubd Vpsubq Vpsubsb Vpsubsw Vpsubusb Vpsubusw
        Vpmullw Vpmulld Vpmulhw Vpmulhuw Vpmulhrsw Vpmuludq Vpmuldq Vpmaddwd Vpmaddubsw Vpsadbw Vpavgb Vpavgw
        Vpminub Vpminuw Vpminud Vpminsb Vpminsw Vpminsd Vpmaxub Vpmaxuw Vpmaxud Vpmaxsb Vpmaxsw Vpmaxsd
        Vpand Vpandn Vpor Vpxor Vpshufb Vphaddw Vphaddd Vphaddsw Vphsubw Vphsubd Vphsubsw
        Vpsignb Vpsignw Vpsignd Vpermilps Vpermilpd Vpsrlvd Vpsrlvq Vpsravd Vpsllvd Vpsllvq
    }
    rows! { forms, int, [(y y y) None]: Vpermd Vpermps }
    rows! { forms, int, [(x x) None, (y y) None]: Vpabsb Vpabsw Vpabsd }
    rows! { forms, int, [(x x) None]: Vphminposuw }
    // The count is 128 bits wide for both.
    rows! { forms, int, [(x x x) None, (y y x) None]: Vpsrlw Vpsrld Vpsrlq Vpsraw Vpsrad Vpsllw Vpslld Vpsllq }
    rows! { forms, int, [(x x | q) None, (y x) None]: Vpmovsxbw Vpmovsxwd Vpmovsxdq Vpmovzxbw Vpmovzxwd Vpmovzxdq }
    rows! { forms, int, [(x x | d) None, (y x | q) None]: Vpmovsxbd Vpmovsxwq Vpmovzxbd Vpmovzxwq }
    rows! { forms, int, [(x x | w) None, (y x | d) None]: Vpmovsxbq Vpmovzxbq }
    rows! { forms, int mask, [(x x x) None, (y y y) None]: Vblendvps Vblendvpd Vpblendvb }
}

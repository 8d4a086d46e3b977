//! No instruction of SSE to SSE4.2 is forgotten.

use iced_x86::Code::{self, *};
use iced_x86::{CpuidFeature, EncodingKind, OpCodeOperandKind as Kind};

use crate::exec;

/// Whether the second operand of `code` is memory and never a register.
pub(super) fn memory_only(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count()).any(|n| info.op_kind(n) == Kind::mem)
}

fn is_sse(code: Code) -> bool {
    use CpuidFeature::{AES, PCLMULQDQ, SHA, SSE, SSE2, SSE3, SSE4_1, SSE4_2, SSSE3};
    let ours = [SSE, SSE2, SSE3, SSSE3, SSE4_1, SSE4_2, AES, PCLMULQDQ, SHA];
    let info = code.op_code();
    info.is_instruction()
        && info.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|f| ours.contains(f))
        && !code.cpuid_features().is_empty()
}

fn has_mmx(code: Code) -> bool {
    code.op_code().op_kinds().iter().any(|k| matches!(k, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem))
}

/// Instructions that use no vector register; `exec::integer` and `exec::system` have them.
const ELSEWHERE: &[Code] = &[
    Prefetchnta_m8,
    Prefetcht0_m8,
    Prefetcht1_m8,
    Prefetcht2_m8,
    Movnti_m32_r32,
    Movnti_m64_r64,
    Crc32_r32_rm8,
    Crc32_r64_rm8,
    Crc32_r32_rm16,
    Crc32_r32_rm32,
    Crc32_r64_rm64,
    Lfence,
    Lfence_E9,
    Lfence_EA,
    Lfence_EB,
    Lfence_EC,
    Lfence_ED,
    Lfence_EE,
    Lfence_EF,
    Mfence,
    Mfence_F1,
    Mfence_F2,
    Mfence_F3,
    Mfence_F4,
    Mfence_F5,
    Mfence_F6,
    Mfence_F7,
    Sfence,
    Sfence_F9,
    Sfence_FA,
    Sfence_FB,
    Sfence_FC,
    Sfence_FD,
    Sfence_FE,
    Sfence_FF,
];

#[test]
fn every_sse_instruction_is_defined() {
    let missing: Vec<_> = Code::values()
        .filter(|&code| is_sse(code) && !has_mmx(code) && !ELSEWHERE.contains(&code))
        .filter(|&code| !exec::is_defined(code))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn memory_operands_have_a_width_that_the_loads_know() {
    for code in Code::values() {
        if let Some(form) = exec::vec_op(code) {
            assert!([0, 2, 4, 8, 16].contains(&form.bytes), "{code:?} {}", form.bytes);
            assert!(!form.aligned || form.bytes == 16);
        }
    }
    let bytes = |code| exec::vec_op(code).map(|f| (f.bytes, f.aligned));
    assert_eq!(bytes(Cvtps2pd_xmm_xmmm64), Some((8, false)));
    assert_eq!(bytes(Movhps_m64_xmm), Some((8, false)));
    assert_eq!(bytes(Pmovzxbq_xmm_xmmm16), Some((2, false)));
    assert_eq!(bytes(Insertps_xmm_xmmm32_imm8), Some((4, false)));
    assert_eq!(bytes(Unpcklps_xmm_xmmm128), Some((16, true)));
    assert_eq!(bytes(Movupd_xmmm128_xmm), Some((16, false)));
    assert_eq!(bytes(Movntps_m128_xmm), Some((16, true)));
}

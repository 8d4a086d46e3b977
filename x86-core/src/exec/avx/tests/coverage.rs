//! No instruction of the families here is forgotten.

use iced_x86::{Code, CpuidFeature, EncodingKind};

use crate::exec;

/// Instructions of AVX and of what stands beside it in `exec::avx` and `exec::sse`: VEX-encoded, and the legacy ones of SSE4a
/// and GFNI.
pub(super) fn ours() -> Vec<Code> {
    use CpuidFeature::{AES, AVX, AVX2, F16C, FMA, GFNI, PCLMULQDQ, SSE4A, VAES, VPCLMULQDQ};
    let features = [AVX, AVX2, FMA, F16C, AES, PCLMULQDQ, GFNI, VAES, VPCLMULQDQ];
    let of = |code: &Code| {
        let info = code.op_code();
        let needs = code.cpuid_features();
        info.is_instruction()
            && match info.encoding() {
                EncodingKind::VEX => needs.iter().all(|f| features.contains(f)),
                EncodingKind::Legacy => needs.iter().all(|f| [SSE4A, GFNI].contains(f)),
                _ => false,
            }
            && !needs.is_empty()
    };
    Code::values().filter(of).collect()
}

#[test]
fn every_instruction_is_defined() {
    let all = ours();
    assert!(all.len() > 680, "{}", all.len());
    let missing: Vec<_> = all.into_iter().filter(|&code| !exec::is_defined(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn memory_operands_have_the_width_that_iced_tells() {
    for code in Code::values() {
        let Some(form) = exec::avx_op(code) else { continue };
        assert!([0, 1, 2, 4, 8, 16, 32].contains(&form.bytes), "{code:?} {}", form.bytes);
        assert!(!form.aligned || form.bytes >= 16, "{code:?}");
    }
}

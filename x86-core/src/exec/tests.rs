//! Which instructions there are.

use iced_x86::{Code, CpuidFeature as F, EncodingKind};

use super::is_defined;

/// Extensions of legacy encoding that no CPU model announces, so that their instructions are #UD.
const NEVER_ANNOUNCED: &[F] = &[
    // Virtualisation, enclaves, system management.
    F::VMX,
    F::SVM,
    F::SKINIT,
    F::SKINIT_or_SVM,
    F::SGX1,
    F::SMM,
    F::SMX,
    F::SEV_ES,
    F::SEV_SNP,
    F::OSS,
    F::PCONFIG,
    F::TDX,
    F::TSE,
    F::INVLPGB,
    F::RMPQUERY,
    // Newer than x86-64-v3.
    F::CET_SS,
    F::CET_IBT,
    F::PKU,
    F::PTWRITE,
    F::WAITPKG,
    F::MOVDIR64B,
    F::MOVDIRI,
    F::ENQCMD,
    F::SERIALIZE,
    F::TSXLDTRK,
    F::RTM,
    F::HLE_or_RTM,
    F::UINTR,
    F::HRESET,
    F::LKGS,
    F::FRED,
    F::UDBG,
    F::WRMSRNS,
    F::MSRLIST,
    F::RAO_INT,
    F::KL,
    F::AESKLE,
    F::WIDE_KL,
    // Waiting in the guest would hide from us that it waits.
    F::MONITOR,
    F::MONITORX,
    // AMD's own, and vendors that are gone.
    F::MCOMMIT,
    F::CLZERO,
    F::RDPRU,
    F::D3NOW,
    F::D3NOWEXT,
    F::CL1INVMB,
    F::CYRIX_D3NOW,
    F::CYRIX_DMI,
    F::CYRIX_DDI,
    F::CYRIX_EMMI,
    F::CYRIX_FPU,
    F::CYRIX_SHR,
    F::CYRIX_SMINT,
    F::CYRIX_SMINT_0F7E,
    F::CYRIX_SMM,
    F::CENTAUR_AIS,
    F::PADLOCK_ACE,
    F::PADLOCK_GMI,
    F::PADLOCK_PHE,
    F::PADLOCK_PMM,
    F::PADLOCK_RNG,
    F::PADLOCK_UNDOC,
    F::IA64,
    // Of single early processors; today the encodings are others' or #UD.
    F::INTEL8086_ONLY,
    F::FPU287XL_ONLY,
    F::FPU387SL_ONLY,
    F::INTEL286_ONLY,
    F::INTEL386_ONLY,
    F::INTEL386_A0_ONLY,
    F::INTEL486_A_ONLY,
    F::UMOV,
    F::MOV_TR,
    F::PCOMMIT,
];

/// Every instruction of legacy encoding up to x86-64-v3 has semantics, in whatever mode it exists; UD0, UD1 and UD2 are
/// #UD by definition, and the rest by their extension. Vector instructions have a test of their own.
#[test]
fn every_instruction_is_there_or_has_a_reason() {
    let vector = [F::SSE4A, F::GFNI];
    let mut missing = Vec::new();
    for code in Code::values().filter(|code| code.op_code().is_instruction()) {
        let features = code.cpuid_features();
        let excused = features.iter().any(|f| NEVER_ANNOUNCED.contains(f) || vector.contains(f))
            || format!("{code:?}").starts_with("Ud");
        if code.op_code().encoding() == EncodingKind::Legacy && !is_defined(code) && !excused {
            missing.push((code, features));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

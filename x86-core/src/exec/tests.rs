//! Which instructions there are, and what makes one of bytes.

use std::sync::Arc;

use accel_api::x86::{Feature, gpr};
use iced_x86::{Code, CpuidFeature as F, EncodingKind};

use super::is_defined;
use crate::alu::bit::host_has;
use crate::mode::Mode;
use crate::testing::{cpu, run};
use crate::{Exec, Fault};

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
    // AMD's own, and vendors that are gone.
    F::MCOMMIT,
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

/// Runs `code` with RBX at RAM and BMI announced.
fn outcome(mode: Mode, code: &[u8]) -> Exec {
    let mut c = cpu(mode);
    let model = Arc::make_mut(&mut c.model);
    model.features = model.features.with(&[Feature::Bmi1, Feature::Bmi2]);
    c.gpr[gpr::RBX] = 0x3000;
    run(&mut c, code)
}

/// Vol. 2A, 2.1.1, 2.2.1, 2.3.1 to 2.3.5, 2.3.11 and LOCK: what prefixes go with what.
#[test]
fn prefix_rules() {
    let (ud, gp, ok) = (Err(Fault::UD), Err(Fault::GP0), Ok(()));
    let cases: &[(&[u8], Exec)] = &[
        (&[0xf0, 0x01, 0x03], ok),       // lock add [rbx], eax
        (&[0xf0, 0x87, 0x03], ok),       // lock xchg
        (&[0xf0, 0x0f, 0xbb, 0x03], ok), // lock btc
        (&[0xf0, 0xff, 0x0b], ok),       // lock dec
        (&[0xf0, 0x01, 0xc0], ud),       // to a register
        (&[0xf0, 0x03, 0x03], ud),       // lock add eax, [rbx]
        (&[0xf0, 0x39, 0x03], ud),       // lock cmp
        (&[0xf0, 0x0f, 0xa3, 0x03], ud), // lock bt
        (&[0xf0, 0x89, 0x03], ud),       // lock mov
        (&[0xf0, 0xff, 0x33], ud),       // lock push
        (&[0xf0, 0xa4], ud),             // lock movsb
        (&[0xf0, 0x90], ud),
    ];
    for &(code, want) in cases {
        assert_eq!(outcome(Mode::Long, code), want, "{code:x?}");
    }
    // 15 bytes are an instruction, 16 are not, whatever they would do.
    let mut code = vec![0x66; 14];
    code.push(0x90);
    assert_eq!(outcome(Mode::Long, &code), ok);
    for mode in [Mode::Real, Mode::Protected32, Mode::Long] {
        let code: Vec<u8> = std::iter::repeat_n(0x66, 15).chain([0x90]).collect();
        assert_eq!(outcome(mode, &code), gp, "{mode:?}");
    }
    // A REX prefix counts only right before the opcode: this is mov ax, 0x1234.
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RAX] = u64::MAX;
    run(&mut c, &[0x48, 0x66, 0xb8, 0x34, 0x12]).unwrap();
    assert_eq!(c.gpr[gpr::RAX], 0xffff_ffff_ffff_1234);
    if host_has(Feature::Bmi1) && host_has(Feature::Bmi2) {
        let andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1]; // andn eax, ebx, ecx
        assert_eq!(outcome(Mode::Long, &andn), ok);
        for prefix in [0x66, 0xf2, 0xf3, 0xf0, 0x48] {
            assert_eq!(outcome(Mode::Long, &[&[prefix][..], &andn].concat()), ud, "{prefix:x}");
        }
        assert_eq!(outcome(Mode::Long, &[0x2e, 0xc4, 0xe2, 0x60, 0xf2, 0xc1]), ok); // a segment may be named
        assert_eq!(outcome(Mode::Long, &[0xc4, 0xe2, 0x64, 0xf2, 0xc1]), ud); // VEX.L
        assert_eq!(outcome(Mode::Long, &[0xc4, 0xe3, 0x7b, 0xf0, 0xc1, 1]), ok); // rorx eax, ecx, 1
        assert_eq!(outcome(Mode::Long, &[0xc4, 0xe3, 0x63, 0xf0, 0xc1, 1]), ud); // VEX.vvvv of an operand there is not
        for (mode, want) in
            [(Mode::Protected32, ok), (Mode::Protected16, ok), (Mode::Real, ud), (Mode::Virtual8086, ud)]
        {
            assert_eq!(outcome(mode, &andn), want, "{mode:?}");
        }
    }
}

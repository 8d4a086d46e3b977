//! Which instructions are tried.

use accel_api::x86::{CpuFeatures, Feature};
use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, MemorySize, Mnemonic, OpCodeOperandKind};

use super::case::CodeSize;

/// What is tried beyond the features of the model `x86-64-v2`, if the host has it.
const BEYOND: &[Feature] = &[
    Feature::Movbe,
    Feature::Bmi1,
    Feature::Bmi2,
    Feature::Adx,
    Feature::Abm,
    Feature::Aes,
    Feature::Pclmulqdq,
    Feature::Sha,
    Feature::Clflushopt,
    Feature::Clwb,
    Feature::Sse4a,
    Feature::Xsave,
    Feature::Xsaveopt,
    Feature::Xsavec,
    Feature::Xgetbv1,
    Feature::Xsaves,
    Feature::Avx,
    Feature::Avx2,
    Feature::Fma,
    Feature::F16c,
    Feature::Gfni,
    Feature::Vaes,
    Feature::Vpclmulqdq,
    Feature::Fsgsbase,
    Feature::Rdrand,
    Feature::Rdseed,
    Feature::Rdtscp,
    Feature::Rdpid,
    Feature::Invpcid,
    Feature::Clzero,
    Feature::Mwaitx,
    Feature::Rdpru,
    Feature::Wbnoinvd,
];

/// Features of the software CPU under test: those of `x86-64-v2` and [`BEYOND`] that the host has.
pub fn features() -> CpuFeatures {
    let model = accel_api::x86::CpuModel::named("x86-64-v2", 1, 1_000_000);
    let wanted = model.map_or(CpuFeatures::EMPTY, |model| model.features).with(BEYOND);
    wanted.intersection(&CpuFeatures::of_host())
}

/// All instructions to try with `features` in code of `size`: those that exist there, less [`excluded`] ones.
pub fn codes(features: &CpuFeatures, size: CodeSize) -> Vec<Code> {
    Code::values().filter(|&code| selected(code, size, features)).collect()
}

/// Whether `code` is to be tried.
pub fn selected(code: Code, size: CodeSize, features: &CpuFeatures) -> bool {
    exists(code, size, features) && excluded(code, size).is_none()
}

/// Whether a processor with `features` has `code` in code of `size`.
pub fn exists(code: Code, size: CodeSize, features: &CpuFeatures) -> bool {
    let op_code = code.op_code();
    let mode = match size {
        CodeSize::Bits16 => op_code.mode16(),
        CodeSize::Bits32 => op_code.mode32(),
        CodeSize::Bits64 => op_code.mode64(),
    };
    op_code.is_instruction()
        && mode
        && op_code.decoder_option() == 0
        // FSTENV and its kin are two instructions, FWAIT and FNSTENV; UD0 without ModR/M is old processors'.
        && !op_code.fwait()
        && code != Code::Ud0
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|&feature| announced(feature, features))
}

/// Why an instruction is not run natively, and what tests it instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Excluded {
    /// The reason.
    pub reason: &'static str,
    /// File below `x86-core/src/exec`, and the test in it.
    pub test: (&'static str, &'static str),
}

/// Why an instruction of these features is left out in code of `size`.
pub fn excluded(code: Code, size: CodeSize) -> Option<Excluded> {
    use Mnemonic::*;
    const KERNEL: &str = "enters the host's kernel";
    const PROCESSOR: &str = "tells of the host's processor";
    const FS: &str = "the host's threads live by the FS base";
    const UMIP: &str = "the host's kernel emulates it (UMIP)";
    const VENDOR: &str = "differs by vendor";
    const SYSCALLS: &str = "system/tests/syscall.rs";
    const PRIVILEGED: &str = "system/tests/privileged.rs";
    const CONTROL: &str = "system/tests/control.rs";
    const FAR: &str = "system/tests/far.rs";
    const FORMS: &str = "integer/tests/forms.rs";
    const AMD: &str = "system/tests/amd.rs";
    let op_code = code.op_code();
    let long = size == CodeSize::Bits64;
    let because = |reason, file, test| Some(Excluded { reason, test: (file, test) });
    match code.mnemonic() {
        Syscall => return because(KERNEL, SYSCALLS, "syscall_and_sysret"),
        Sysenter => return because(KERNEL, SYSCALLS, "sysenter_and_sysexit"),
        Int1 | Int3 => return because(KERNEL, CONTROL, "software_interrupts"),
        Cpuid => return because(PROCESSOR, PRIVILEGED, "cpuid_and_hlt"),
        Rdtsc | Rdtscp => return because(PROCESSOR, PRIVILEGED, "time_stamp_counter"),
        Rdpid => return because(PROCESSOR, FORMS, "features_gate_instructions"),
        Rdpmc => return because(PROCESSOR, PRIVILEGED, "privileged_instructions"),
        Xgetbv => return because(PROCESSOR, PRIVILEGED, "extended_control_register"),
        Rdpru => return because(PROCESSOR, AMD, "counters_for_programs"),
        Monitorx | Mwaitx => return because("waits", AMD, "waiting_for_a_store_ends_at_once"),
        Clzero => return because(VENDOR, AMD, "a_line_of_zeros"),
        Rdrand | Rdseed => return because("random", FORMS, "random_numbers_come_with_carry_and_differ"),
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => return because(FS, SYSCALLS, "bases"),
        Lfs => return because(FS, FAR, "segment_instructions"),
        Pop if op_code.op_kinds().contains(&OpCodeOperandKind::fs) => {
            return because(FS, FAR, "segment_instructions");
        }
        Sgdt | Sidt | Sldt | Str => return because(UMIP, PRIVILEGED, "table_registers"),
        Smsw => return because(UMIP, PRIVILEGED, "machine_status_word"),
        Sysexit if !long => return because(VENDOR, SYSCALLS, "sysenter_and_sysexit"),
        Sysret | Sysretq if !long => return because(VENDOR, SYSCALLS, "syscall_and_sysret"),
        // AMD has no far pointers with 64-bit offsets.
        Call | Jmp if op_code.memory_size() == MemorySize::SegPtr64 => {
            return because(VENDOR, FAR, "call_gate_of_64_bit_mode");
        }
        Lss | Lgs if op_code.memory_size() == MemorySize::SegPtr64 => {
            return because(VENDOR, FAR, "segment_instructions");
        }
        Reservednop if op_code.op_code() & 0xff == 0x0d => {
            return because(VENDOR, CONTROL, "hints_and_undefined");
        }
        _ => {}
    }
    // Intel ignores an operand-size prefix on near branches in 64-bit mode, AMD does not (Intel SDM vol. 2A, Jcc).
    if long && op_code.operand_size() == 16 && is_near_transfer(code) {
        return because(VENDOR, CONTROL, "near_transfers");
    }
    None
}

/// Whether `code` is a jump, call or return that stays in its code segment.
pub fn is_near_transfer(code: Code) -> bool {
    use FlowControl::*;
    use MemorySize::*;
    let transfer = matches!(
        code.flow_control(),
        UnconditionalBranch | IndirectBranch | ConditionalBranch | Return | Call | IndirectCall
    );
    let far = matches!(code.mnemonic(), Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq)
        || matches!(code.op_code().memory_size(), SegPtr16 | SegPtr32 | SegPtr64);
    transfer && !far
}

/// Whether the instruction's only meaning is #UD, so that it needs no semantics.
pub fn always_undefined(code: Code) -> bool {
    matches!(code.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2)
}

/// Whether `features` include what iced calls `feature`.
fn announced(feature: CpuidFeature, features: &CpuFeatures) -> bool {
    use CpuidFeature as C;
    let needed = match feature {
        C::INTEL8086 | C::INTEL186 | C::INTEL286 | C::INTEL386 | C::INTEL486 | C::X64 => return true,
        C::MULTIBYTENOP | C::PAUSE => return true,
        // ENDBR32 and ENDBR64 do nothing without CET.
        C::CET_IBT => return true,
        C::FPU | C::FPU287 | C::FPU387 => Feature::Fpu,
        C::CX8 => Feature::Cx8,
        C::CMPXCHG16B => Feature::Cx16,
        C::CMOV => Feature::Cmov,
        C::MMX => Feature::Mmx,
        C::SSE => Feature::Sse,
        C::SSE2 => Feature::Sse2,
        C::SSE3 => Feature::Sse3,
        C::SSSE3 => Feature::Ssse3,
        C::SSE4_1 => Feature::Sse41,
        C::SSE4_2 => Feature::Sse42,
        C::FXSR => Feature::Fxsr,
        C::POPCNT => Feature::Popcnt,
        C::LZCNT => Feature::Abm,
        C::MOVBE => Feature::Movbe,
        C::BMI1 => Feature::Bmi1,
        C::BMI2 => Feature::Bmi2,
        C::ADX => Feature::Adx,
        C::AES => Feature::Aes,
        C::PCLMULQDQ => Feature::Pclmulqdq,
        C::SHA => Feature::Sha,
        C::CLFSH => Feature::Clflush,
        C::CLFLUSHOPT => Feature::Clflushopt,
        C::CLWB => Feature::Clwb,
        C::PREFETCHW => Feature::Prefetchw,
        C::SSE4A => Feature::Sse4a,
        C::XSAVE => Feature::Xsave,
        C::XSAVEOPT => Feature::Xsaveopt,
        C::XSAVEC => Feature::Xsavec,
        C::XSAVES => Feature::Xsaves,
        C::AVX => Feature::Avx,
        C::AVX2 => Feature::Avx2,
        C::FMA => Feature::Fma,
        C::F16C => Feature::F16c,
        C::GFNI => Feature::Gfni,
        C::VAES => Feature::Vaes,
        C::VPCLMULQDQ => Feature::Vpclmulqdq,
        C::FSGSBASE => Feature::Fsgsbase,
        C::RDRAND => Feature::Rdrand,
        C::RDSEED => Feature::Rdseed,
        C::RDTSCP => Feature::Rdtscp,
        C::RDPID => Feature::Rdpid,
        C::INVPCID => Feature::Invpcid,
        C::SMAP => Feature::Smap,
        C::CLZERO => Feature::Clzero,
        C::MONITORX => Feature::Mwaitx,
        C::RDPRU => Feature::Rdpru,
        C::WBNOINVD => Feature::Wbnoinvd,
        C::SEP => Feature::Sep,
        C::SYSCALL => Feature::Syscall,
        C::TSC => Feature::Tsc,
        C::MSR => Feature::Msr,
        C::CPUID => return true,
        _ => return false,
    };
    features.has(needed)
}

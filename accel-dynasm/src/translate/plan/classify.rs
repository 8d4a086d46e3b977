//! Which instructions the host executes in the guest's place.

use accel_api::x86::{CpuFeatures, Feature};
use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::string::Strings;
use crate::block_mode::BlockMode;

/// How an instruction is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Not at all.
    Nop,
    /// By itself: it works on registers only.
    Copy,
    /// By itself, with its memory operand led to the host's memory.
    Memory,
    /// LEA of an address relative to RIP.
    Lea,
    Push,
    Pop,
    Leave,
    /// MOVS and STOS.
    String,
    /// On the vCPU's state in memory: see `emit/system.rs`.
    System,
    Jump,
    Jcc,
    Call,
    Return,
    JumpIndirect,
    CallIndirect,
    /// To another privilege: by a stub of the runtime.
    Transfer,
    /// By its function in x86-core.
    Helper,
    /// The same, and the next instruction is not the one that follows it.
    HelperEnd,
}

impl Action {
    /// Leaves the block, or may.
    pub(crate) fn is_branch(self) -> bool {
        self.ends_block() || self == Self::Jcc
    }

    /// Ends the block.
    pub(crate) fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Jump
                | Self::Call
                | Self::Return
                | Self::JumpIndirect
                | Self::CallIndirect
                | Self::Transfer
                | Self::HelperEnd
        )
    }
}

/// Decides by the features of guest and host, and by the vCPU's mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Classifier {
    pub features: CpuFeatures,
    /// The guest has BMI1, whatever the host has.
    pub bmi1: bool,
    pub mode: BlockMode,
}

impl Classifier {
    pub(crate) fn action(&self, ins: &Instruction) -> Action {
        match ins.flow_control() {
            FlowControl::Next => self.straight(ins),
            FlowControl::ConditionalBranch if ins.is_jcc_short_or_near() => Action::Jcc,
            FlowControl::UnconditionalBranch
                if matches!(ins.code(), Code::Jmp_rel8_64 | Code::Jmp_rel32_64) =>
            {
                Action::Jump
            }
            FlowControl::Call if ins.code() == Code::Call_rel32_64 => Action::Call,
            FlowControl::Return if matches!(ins.code(), Code::Retnq | Code::Retnq_imm16) => Action::Return,
            FlowControl::IndirectBranch if ins.code() == Code::Jmp_rm64 => {
                self.with_operand(ins, Action::JumpIndirect, Action::HelperEnd)
            }
            FlowControl::IndirectCall if ins.code() == Code::Call_rm64 => {
                self.with_operand(ins, Action::CallIndirect, Action::HelperEnd)
            }
            // In the kernel it is rare, and could come back here without a look at requests.
            _ if ins.code() == Code::Syscall && self.mode.user() => Action::Transfer,
            _ if matches!(ins.code(), Code::Sysretq | Code::Iretq) && !self.mode.user() => Action::Transfer,
            _ => Action::HelperEnd,
        }
    }

    /// `action`, if the memory operand is one that the plan can describe.
    fn with_operand(&self, ins: &Instruction, action: Action, other: Action) -> Action {
        if ins.op0_kind() != OpKind::Memory || plain_address(ins) { action } else { other }
    }

    fn straight(&self, ins: &Instruction) -> Action {
        use Mnemonic as M;
        match ins.mnemonic() {
            M::Nop | M::Endbr64 | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => {
                Action::Nop
            }
            M::Prefetchw if self.features.has(Feature::Prefetchw) => Action::Nop,
            _ if self.system(ins) => Action::System,
            _ if Strings::of(ins).is_some() => Action::String,
            M::Push => match ins.code() {
                Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Action::Push,
                Code::Push_rm64 => match ins.op0_kind() {
                    OpKind::Memory if !plain_address(ins) => Action::Helper,
                    _ => Action::Push,
                },
                _ => Action::Helper,
            },
            M::Pop => match ins.code() {
                Code::Pop_r64 => Action::Pop,
                Code::Pop_rm64 if ins.op0_kind() == OpKind::Register => Action::Pop,
                _ => Action::Helper,
            },
            M::Leave if ins.code() == Code::Leaveq => Action::Leave,
            M::Lea => match ins.memory_base() {
                Register::RIP if ins.op0_register().size() > 2 => Action::Lea,
                Register::RIP | Register::EIP => Action::Helper,
                _ => Action::Copy,
            },
            m => {
                let vector = uses_vectors(ins);
                let fits = if vector { self.vector(ins) } else { integer(m) };
                if !fits
                    || !(self.has_features(ins.code()) || self.ignores_prefix(ins))
                    || !plain_registers(ins)
                {
                    return Action::Helper;
                }
                let memory = (0..ins.op_count()).any(|n| ins.op_kind(n) == OpKind::Memory);
                if !memory {
                    // Operands that the instruction has by its opcode.
                    let implicit = ins.op_count() > 0
                        && (0..ins.op_count()).any(|n| {
                            !matches!(
                                ins.op_kind(n),
                                OpKind::Register
                                    | OpKind::Immediate8
                                    | OpKind::Immediate16
                                    | OpKind::Immediate32
                                    | OpKind::Immediate64
                                    | OpKind::Immediate8to16
                                    | OpKind::Immediate8to32
                                    | OpKind::Immediate8to64
                                    | OpKind::Immediate32to64
                                    | OpKind::Immediate8_2nd
                            )
                        });
                    return if implicit { Action::Helper } else { Action::Copy };
                }
                // A register selects the bit, and with it the place, far from the operand.
                let bit_string =
                    matches!(m, M::Bt | M::Bts | M::Btr | M::Btc) && ins.op1_kind() == OpKind::Register;
                if bit_string || !plain_address(ins) { Action::Helper } else { Action::Memory }
            }
        }
    }

    /// Whether it is one of those in `emit/system.rs`, and cannot fault.
    fn system(&self, ins: &Instruction) -> bool {
        let kernel = !self.mode.user();
        match ins.code() {
            Code::Cli | Code::Sti | Code::Swapgs => kernel,
            Code::Cld => true,
            Code::Pushfq => true,
            Code::Rdtsc => kernel || !self.mode.tsc_disabled(),
            Code::Rdtscp => (kernel || !self.mode.tsc_disabled()) && self.features.has(Feature::Rdtscp),
            Code::Mov_r64_cr => {
                kernel
                    && matches!(
                        ins.op1_register(),
                        Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4
                    )
            }
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => ins.op0_kind() == OpKind::Register,
            _ => false,
        }
    }

    /// TZCNT without BMI1 is BSF: the guest's processor ignores the prefix, the host's does not.
    pub(crate) fn ignores_prefix(&self, ins: &Instruction) -> bool {
        matches!(ins.code(), Code::Tzcnt_r32_rm32 | Code::Tzcnt_r64_rm64) && !self.bmi1
    }

    fn vector(&self, ins: &Instruction) -> bool {
        use Mnemonic as M;
        let ready = match ins.code().encoding() {
            EncodingKind::Legacy => self.mode.sse_ready(),
            EncodingKind::VEX => self.mode.avx_ready(),
            _ => false,
        };
        ready
            && !self.mode.unmasked()
            && !matches!(
                ins.mnemonic(),
                // Their memory operand is not all accessed, or not where iced says.
                M::Maskmovdqu
                    | M::Vmaskmovdqu
                    | M::Vmaskmovps
                    | M::Vmaskmovpd
                    | M::Vpmaskmovd
                    | M::Vpmaskmovq
                    | M::Vgatherdpd
                    | M::Vgatherdps
                    | M::Vgatherqpd
                    | M::Vgatherqps
                    | M::Vpgatherdd
                    | M::Vpgatherdq
                    | M::Vpgatherqd
                    | M::Vpgatherqq
            )
    }

    fn has_features(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|f| match feature(*f) {
            Needs::Nothing => true,
            Needs::Feature(f) => self.features.has(f),
            Needs::Unknown => false,
        })
    }
}

/// Whether vector registers, or their upper halves, are used.
pub(crate) fn uses_vectors(ins: &Instruction) -> bool {
    matches!(ins.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall)
        || (0..ins.op_count())
            .any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_vector_register())
}

/// Only registers that are the host's too.
fn plain_registers(ins: &Instruction) -> bool {
    (0..ins.op_count()).filter(|n| ins.op_kind(*n) == OpKind::Register).all(|n| {
        let register = ins.op_register(n);
        register.is_gpr() || register.is_xmm() || register.is_ymm()
    })
}

/// Whether the memory operand's address is computed in 64 bits.
fn plain_address(ins: &Instruction) -> bool {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    (matches!(base, Register::None | Register::RIP) || base.is_gpr64())
        && (index == Register::None || index.is_gpr64())
        // Without registers only the form with 64 bits is not cut to 32.
        && (base != Register::None || index != Register::None || ins.memory_displ_size() == 8)
}

enum Needs {
    Nothing,
    Feature(Feature),
    Unknown,
}

fn feature(f: CpuidFeature) -> Needs {
    use CpuidFeature as C;
    Needs::Feature(match f {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::X64
        | C::CMOV
        | C::CX8
        | C::PAUSE
        | C::MULTIBYTENOP
        | C::SSE
        | C::SSE2 => return Needs::Nothing,
        C::SSE3 => Feature::Sse3,
        C::SSSE3 => Feature::Ssse3,
        C::SSE4_1 => Feature::Sse41,
        C::SSE4_2 => Feature::Sse42,
        C::SSE4A => Feature::Sse4a,
        C::POPCNT => Feature::Popcnt,
        C::LZCNT => Feature::Abm,
        C::BMI1 => Feature::Bmi1,
        C::BMI2 => Feature::Bmi2,
        C::ADX => Feature::Adx,
        C::MOVBE => Feature::Movbe,
        C::CMPXCHG16B => Feature::Cx16,
        C::AES => Feature::Aes,
        C::PCLMULQDQ => Feature::Pclmulqdq,
        C::SHA => Feature::Sha,
        C::GFNI => Feature::Gfni,
        C::AVX => Feature::Avx,
        C::AVX2 => Feature::Avx2,
        C::FMA => Feature::Fma,
        C::F16C => Feature::F16c,
        C::VAES => Feature::Vaes,
        C::VPCLMULQDQ => Feature::Vpclmulqdq,
        _ => return Needs::Unknown,
    })
}

/// Instructions on general registers and memory that do nothing but compute.
fn integer(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Sub
            | And
            | Or
            | Xor
            | Cmp
            | Test
            | Adc
            | Sbb
            | Inc
            | Dec
            | Neg
            | Not
            | Imul
            | Mul
            | Div
            | Idiv
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Bswap
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Movbe
            | Movnti
            | Crc32
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
            | Mulx
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Adcx
            | Adox
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Pause
            | Lfence
            | Mfence
            | Sfence
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
    )
}

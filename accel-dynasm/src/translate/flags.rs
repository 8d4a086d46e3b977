//! What instructions do to the arithmetic flags.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::admit::Action;

pub(super) const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What an instruction does to the arithmetic flags.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Effect {
    pub reads: u32,
    /// Those that have nothing of their old values behind it.
    pub sets: u32,
    /// Those that may have others.
    pub modifies: u32,
}

impl Effect {
    pub(super) fn of(ins: &Instruction, action: Action, ignores_prefix: bool) -> Self {
        match action {
            // Rust knows how they can be had, and leaves them in the host's.
            Action::Generic | Action::GenericEnd => return Self { reads: 0, sets: ARITH, modifies: ARITH },
            Action::Transfer => return Self { reads: ARITH, sets: 0, modifies: 0 },
            _ => {}
        }
        let reads = ins.rflags_read() & ARITH;
        let mut modifies = ins.rflags_modified() & ARITH;
        let mut sets = match conditionally(ins) {
            true => 0,
            // Where the manual calls a flag undefined, processors may leave it alone.
            false => modifies & !ins.rflags_undefined(),
        };
        if matches!(ins.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test) {
            // No processor does so with AF here: all clear it.
            (sets, modifies) = (ARITH, ARITH);
        }
        if ignores_prefix {
            sets &= RflagsBits::ZF;
        }
        Self { reads, sets, modifies }
    }

    /// Sets some and leaves others as they are.
    pub(super) fn is_partial(self) -> bool {
        self.modifies != 0 && self.sets != ARITH
    }

    /// What is wanted before the instruction, if `wanted` is behind it.
    pub(super) fn before(self, wanted: u32) -> u32 {
        wanted & !self.sets | self.reads
    }
}

/// Whether an instruction may leave flags alone that it sets otherwise: it is repeated or shifts by a count that can be
/// zero. (RCL and RCR of small operands count modulo their size and one.)
fn conditionally(ins: &Instruction) -> bool {
    use Mnemonic::*;
    let shifts = matches!(ins.mnemonic(), Shl | Sal | Shr | Sar | Rol | Ror | Shld | Shrd);
    let count = ins.op_count().saturating_sub(1);
    let by_zero = |bits: u64| match ins.op_kind(count) {
        OpKind::Immediate8 => ins.immediate(count) & bits == 0,
        _ => true,
    };
    let size = match ins.op0_kind() {
        OpKind::Register => ins.op0_register().size(),
        _ => ins.memory_size().size(),
    };
    let by_cl = ins.op_count() > 0
        && ins.op_kind(count) == OpKind::Register
        && ins.op_register(count) == Register::CL;
    by_cl
        || ins.has_rep_prefix()
        || ins.has_repne_prefix()
        || matches!(ins.mnemonic(), Rcl | Rcr)
        || shifts && (size < 4 || by_zero(if size == 8 { 63 } else { 31 }))
}

#[cfg(test)]
mod tests {
    use iced_x86::Decoder;
    use x86_core::DECODER_OPTIONS;

    use super::*;
    use crate::mode::Mode;
    use crate::translate::admit::Admission;

    const CF: u32 = RflagsBits::CF;
    const ZF: u32 = RflagsBits::ZF;

    fn admission() -> Admission {
        Admission { features: accel_api::CpuFeatures::of_host(), bmi1: true, mode: Mode::plain() }
    }

    fn effect(bytes: &[u8]) -> Effect {
        let ins = Decoder::with_ip(64, bytes, 0, DECODER_OPTIONS).decode();
        Effect::of(&ins, admission().action(&ins), false)
    }

    /// Intel SDM vol. 2, of each instruction.
    #[test]
    fn effects() {
        let all = Effect { reads: 0, sets: ARITH, modifies: ARITH };
        assert_eq!(effect(&[0x31, 0xc0]), all, "xor eax, eax");
        assert_eq!(effect(&[0x39, 0xc8]), all, "cmp eax, ecx");
        assert_eq!(effect(&[0x11, 0xc8]), Effect { reads: CF, ..all }, "adc eax, ecx");
        let all_but_cf = Effect { reads: 0, sets: ARITH & !CF, modifies: ARITH & !CF };
        assert_eq!(effect(&[0xff, 0xc0]), all_but_cf, "inc eax");
        assert_eq!(effect(&[0xd3, 0xe0]), Effect { sets: 0, ..all }, "shl eax, cl");
        assert_eq!(effect(&[0xc1, 0xe0, 0x20]).sets, 0, "shl eax, 32");
        assert_eq!(effect(&[0x48, 0xc1, 0xe0, 0x20]).sets & (CF | ZF), CF | ZF, "shl rax, 32");
        assert_eq!(effect(&[0xc1, 0xc8, 0x05]).sets, CF, "ror eax, 5");
        assert_eq!(effect(&[0x66, 0xc1, 0xd0, 0x11]).sets, 0, "rcl ax, 17");
        assert_eq!(effect(&[0x74, 0x00]), Effect { reads: ZF, sets: 0, modifies: 0 }, "je");
        assert_eq!(effect(&[0x0f, 0xa2]), all, "cpuid, which is a function");
        assert_eq!(effect(&[0x9c]), Effect { reads: ARITH, sets: 0, modifies: 0 }, "pushf");
    }

    /// [`Effect::of`] relies on it for AF, which the manual leaves undefined.
    #[test]
    #[allow(unsafe_code)]
    fn logic_clears_af() {
        macro_rules! af_behind {
            ($code:literal) => {{
                let ah: u64;
                // SAFETY: changes only RAX, RCX and the flags.
                unsafe {
                    std::arch::asm!("mov ah, 0x12", "sahf", $code, "lahf", out("rax") ah, inout("rcx") 0x1234 => _)
                };
                ah >> 8 & 0x10
            }};
        }
        assert_eq!(af_behind!("nop"), 0x10);
        let behind = [
            af_behind!("and ecx, 3"),
            af_behind!("or cl, 3"),
            af_behind!("xor rcx, rcx"),
            af_behind!("test cx, cx"),
        ];
        assert_eq!(behind, [0; 4]);
    }
}

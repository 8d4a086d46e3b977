//! Effects of instructions on the arithmetic flags.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::classify::Action;

/// All of them, as the low bits of [`RflagsBits`].
pub(crate) const ARITH: u8 =
    (RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF)
        as u8;
const CF: u8 = RflagsBits::CF as u8;
const ZF: u8 = RflagsBits::ZF as u8;
const OF: u8 = RflagsBits::OF as u8;

/// The effect of an instruction on the arithmetic flags.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Effect {
    pub reads: u8,
    /// Flags whose new values do not depend on their old ones.
    pub sets: u8,
    /// Flags that may change.
    pub modifies: u8,
}

impl Effect {
    pub(crate) fn of(ins: &Instruction, action: Action, ignores_prefix: bool) -> Self {
        match action {
            // Rust knows how they can be had, and leaves them in the host's.
            Action::Helper | Action::HelperEnd => return Self { reads: 0, sets: ARITH, modifies: ARITH },
            Action::Transfer => return Self { reads: ARITH, sets: 0, modifies: 0 },
            // None of them does, whatever the manual says of MOV.
            Action::System => return Self { reads: ins.rflags_read() as u8 & ARITH, sets: 0, modifies: 0 },
            _ => {}
        }
        let reads = ins.rflags_read() as u8 & ARITH;
        let mut modifies = ins.rflags_modified() as u8 & ARITH;
        let mut sets = match conditionally(ins) {
            true => 0,
            // Where the manual calls a flag undefined, processors may leave it alone.
            false => modifies & !ins.rflags_undefined() as u8,
        };
        if matches!(ins.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr) {
            // By a count that turns an operand once around, too, where iced says that nothing changes.
            modifies |= CF | OF;
        }
        if sets_all(ins) && !conditionally(ins) {
            (sets, modifies) = (ARITH, ARITH);
        }
        if ignores_prefix {
            sets &= ZF;
        }
        Self { reads, sets, modifies }
    }

    /// Flags wanted before the instruction, if `wanted` are after it.
    pub(crate) fn before(self, wanted: u8) -> u8 {
        wanted & !self.sets | self.reads
    }
}

/// Flags that the manual calls undefined here (AF, and OF after shifts by more than one) are changed by every
/// processor.
fn sets_all(ins: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(ins.mnemonic(), And | Or | Xor | Test | Shl | Sal | Shr | Sar | Shld | Shrd)
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
    // Then the manual says nothing of CF.
    let by_too_much = |size: usize| size < 4 && ins.immediate(count) & 31 >= 8 * size as u64;
    let by_cl = ins.op_count() > 0
        && ins.op_kind(count) == OpKind::Register
        && ins.op_register(count) == Register::CL;
    by_cl
        || ins.has_rep_prefix()
        || ins.has_repne_prefix()
        || matches!(ins.mnemonic(), Rcl | Rcr)
        || shifts && (by_zero(if size == 8 { 63 } else { 31 }) || by_too_much(size))
}

#[cfg(test)]
mod tests {
    use iced_x86::Decoder;
    use x86_core::DECODER_OPTIONS;

    use super::*;
    use crate::block_mode::BlockMode;
    use crate::translate::plan::classify::Classifier;

    fn classifier() -> Classifier {
        Classifier { features: accel_api::x86::CpuFeatures::of_host(), bmi1: true, mode: BlockMode::plain() }
    }

    fn effect(bytes: &[u8]) -> Effect {
        let ins = Decoder::with_ip(64, bytes, 0, DECODER_OPTIONS).decode();
        Effect::of(&ins, classifier().action(&ins), false)
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
        assert_eq!(effect(&[0x48, 0xc1, 0xe0, 0x20]), all, "shl rax, 32");
        assert_eq!(effect(&[0x66, 0xc1, 0xe0, 0x10]).sets, 0, "shl ax, 16");
        assert_eq!(effect(&[0xf, 0x20, 0xd0]), Effect::default(), "mov rax, cr2");
        assert_eq!(effect(&[0xc1, 0xc8, 0x05]).sets, CF, "ror eax, 5");
        assert_eq!(effect(&[0x66, 0xc1, 0xd0, 0x11]).sets, 0, "rcl ax, 17");
        assert_eq!(effect(&[0x66, 0xc1, 0xd0, 0x11]).modifies & (CF | OF), CF | OF, "rcl ax, 17");
        assert_eq!(effect(&[0x74, 0x00]), Effect { reads: ZF, sets: 0, modifies: 0 }, "je");
        assert_eq!(effect(&[0x0f, 0xa2]), all, "cpuid, which is a function");
        assert_eq!(effect(&[0x9c]), Effect { reads: ARITH, sets: 0, modifies: 0 }, "pushf");
    }

    /// [`sets_all`] relies on it.
    #[test]
    #[allow(unsafe_code)]
    fn no_flag_is_left_alone() {
        macro_rules! left_by {
            ($code:literal) => {{
                let after = [0x0000u16, 0xd501].map(|flags| {
                    let mut ax = flags;
                    // SAFETY: changes only RAX, RCX and the flags.
                    unsafe {
                        std::arch::asm!("add al, 0x7f", "sahf", $code, "lahf", "seto al",
                            inout("ax") ax, inout("rcx") 0x1234 => _, inout("rdx") 0x8765 => _)
                    };
                    ax & 0xd501
                });
                after[0] ^ after[1]
            }};
        }
        assert_eq!(left_by!("nop"), 0xd501);
        let logic =
            [left_by!("and ecx, 3"), left_by!("or cl, 3"), left_by!("xor rcx, rcx"), left_by!("test cx, cx")];
        assert_eq!(logic, [0; 4]);
        let by_one = [
            left_by!("shl ecx, 1"),
            left_by!("shr rcx, 1"),
            left_by!("sar cl, 1"),
            left_by!("shld ecx, edx, 1"),
        ];
        assert_eq!(by_one, [0; 4]);
        let by_more =
            [left_by!("shl rcx, 33"), left_by!("shr ecx, 5"), left_by!("sar cx, 15"), left_by!("shl cl, 7")];
        assert_eq!(by_more, [0; 4]);
        assert_eq!([left_by!("shrd rcx, rdx, 40"), left_by!("shld ecx, edx, 7")], [0; 2]);
    }
}

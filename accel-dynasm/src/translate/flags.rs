//! Which arithmetic flags are wanted where.
//!
//! Checks of memory accesses change the flags, so they are cheap only where none is wanted. What comes behind a block, as far
//! as that is known and in the same page, is looked at too: it nearly always sets the flags anew before it reads one. The
//! lines looked at belong to the block like its own, so that a store to them takes it back.

use iced_x86::{Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use x86_core::{DECODER_OPTIONS, lines};

use super::admit::{Action, Admission};

pub(super) const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Most instructions looked at for one way out of a block, and most conditional branches on the way.
const LOOK: u32 = 10;
const DEPTH: u32 = 2;

/// What an instruction does to the arithmetic flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Effect {
    reads: u32,
    /// Those that have nothing of their old values behind it.
    sets: u32,
}

impl Effect {
    pub(super) fn of(ins: &Instruction, action: Action, ignores_prefix: bool) -> Self {
        if action.wants_flags() {
            return Self { reads: ARITH, sets: 0 };
        }
        let reads = ins.rflags_read() & ARITH;
        let mut sets = match conditionally(ins) {
            true => 0,
            // Where the manual calls a flag undefined, processors may leave it alone.
            false => ins.rflags_modified() & !ins.rflags_undefined() & ARITH,
        };
        if matches!(ins.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test) {
            // No processor does so with AF here: all clear it.
            sets = ARITH;
        }
        if ignores_prefix {
            sets &= RflagsBits::ZF;
        }
        Self { reads, sets }
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

/// Looks at what lies behind a block.
pub(super) struct Ahead<'a> {
    /// Of the whole page.
    pub bytes: &'a [u8],
    /// Linear address of the page.
    pub page: u64,
    pub admission: &'a Admission,
    /// Lines looked at.
    pub lines: u64,
    left: u32,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(bytes: &'a [u8], page: u64, admission: &'a Admission) -> Self {
        Self { bytes, page, admission, lines: 0, left: 0 }
    }

    /// The flags wanted at `target`.
    pub(super) fn wanted(&mut self, target: u64) -> u32 {
        self.left = LOOK;
        self.follow(target, ARITH, DEPTH)
    }

    /// Which of the flags `open` are wanted at `target`.
    fn follow(&mut self, target: u64, mut open: u32, depth: u32) -> u32 {
        let start = target.wrapping_sub(self.page);
        let Some(bytes) = usize::try_from(start).ok().and_then(|start| self.bytes.get(start..)) else {
            return open;
        };
        let mut decoder = Decoder::with_ip(64, bytes, target, DECODER_OPTIONS);
        let mut wanted = 0;
        while open != 0 {
            if self.left == 0 || !decoder.can_decode() {
                return wanted | open;
            }
            self.left -= 1;
            let ins = decoder.decode();
            if ins.is_invalid() {
                return wanted | open;
            }
            self.lines |= lines(ins.ip().wrapping_sub(self.page) as usize, ins.len());
            let action = self.admission.action(&ins);
            let effect = Effect::of(&ins, action, self.admission.ignores_prefix(&ins));
            wanted |= effect.reads & open;
            open &= !(effect.reads | effect.sets);
            match action {
                Action::Jump | Action::Call => return wanted | self.follow(ins.near_branch64(), open, depth),
                Action::Jcc if depth > 0 => wanted |= self.follow(ins.near_branch64(), open, depth - 1),
                _ if ins.flow_control() != FlowControl::Next => return wanted | open,
                _ => {}
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Mode;

    const CF: u32 = RflagsBits::CF;
    const ZF: u32 = RflagsBits::ZF;
    const PAGE: u64 = 0x7000;

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
        assert_eq!(effect(&[0x31, 0xc0]), Effect { reads: 0, sets: ARITH }, "xor eax, eax");
        assert_eq!(effect(&[0x39, 0xc8]), Effect { reads: 0, sets: ARITH }, "cmp eax, ecx");
        assert_eq!(effect(&[0x11, 0xc8]), Effect { reads: CF, sets: ARITH }, "adc eax, ecx");
        assert_eq!(effect(&[0xff, 0xc0]), Effect { reads: 0, sets: ARITH & !CF }, "inc eax");
        assert_eq!(effect(&[0xd3, 0xe0]), Effect { reads: 0, sets: 0 }, "shl eax, cl");
        assert_eq!(effect(&[0xc1, 0xe0, 0x20]), Effect { reads: 0, sets: 0 }, "shl eax, 32");
        assert_eq!(effect(&[0x48, 0xc1, 0xe0, 0x20]).sets & (CF | ZF), CF | ZF, "shl rax, 32");
        assert_eq!(effect(&[0xc1, 0xc8, 0x05]).sets, CF, "ror eax, 5");
        assert_eq!(effect(&[0x66, 0xc1, 0xd0, 0x11]).sets, 0, "rcl ax, 17");
        assert_eq!(effect(&[0x74, 0x00]), Effect { reads: ZF, sets: 0 }, "je");
        assert_eq!(effect(&[0x0f, 0xa2]), Effect { reads: ARITH, sets: 0 }, "cpuid, which is a function");
        assert_eq!(effect(&[0x9c]), Effect { reads: ARITH, sets: 0 }, "pushf");
    }

    fn wanted(code: &[u8]) -> (u32, u64) {
        let mut page = vec![0xcc; 4096];
        page[64..64 + code.len()].copy_from_slice(code);
        let admission = admission();
        let mut ahead = Ahead::new(&page, PAGE, &admission);
        (ahead.wanted(PAGE + 64), ahead.lines)
    }

    #[test]
    fn what_comes_behind_a_block() {
        assert_eq!(wanted(&[0x48, 0x89, 0xc1, 0x39, 0xc8]).0, 0, "mov, cmp");
        assert_eq!(wanted(&[0x0f, 0x94, 0xc0, 0x39, 0xc8]).0, ZF, "sete, cmp");
        assert_eq!(wanted(&[0xc3]).0, ARITH, "ret");
        assert_eq!(wanted(&[0x72, 0x02, 0x31, 0xc0, 0x39, 0xc8]).0, CF, "jc over the first of two");
        assert_eq!(wanted(&[0x75, 0xfe]).0, ARITH, "jne to itself");
        assert_eq!(wanted(&[0xeb, 0x3e, 0xcc]).0, ARITH, "jmp to int3 in another line");
        assert_eq!(wanted(&[0xeb, 0x3e, 0xcc]).1, 6, "and both lines were looked at");
        let (behind, before) = (Ahead::new(&[0x90; 4096], PAGE, &admission()).wanted(PAGE + 4096), PAGE - 1);
        assert_eq!(behind, ARITH, "another page");
        assert_eq!(Ahead::new(&[0x90; 4096], PAGE, &admission()).wanted(before), ARITH);
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

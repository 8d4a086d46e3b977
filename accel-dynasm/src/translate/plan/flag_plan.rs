//! Where a block has the flags in the host's, where recipes give them, and the cost of a check of memory in between.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Plan;
use super::classify::Action;
use super::flag_effects::{ARITH, Effect};
use super::lazy_flags::{Known, Operand, Operation, Replay};
use super::step::{Access, Step, full};
use super::values::Value;

/// Instructions that a check costs where flags have to be saved, and where they have to be loaded again.
const SAVE: u32 = 5;
const LOAD: u32 = 5;

/// The costs of a check before each step.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    /// The flags are those of the same instruction where this is the same.
    epochs: Vec<usize>,
    /// They can be had without having been saved.
    lazy: Vec<bool>,
    /// Of each epoch, before which step the first check has been placed.
    checks: Vec<usize>,
}

impl Costs {
    fn begin(&mut self) {
        self.epochs.clear();
        self.lazy.clear();
        self.checks.clear();
        self.checks.push(usize::MAX);
    }

    /// Of a check before step `at`, after which some flag is read or not.
    pub(super) fn of(&self, at: usize, live: bool) -> u32 {
        let lost = self.checks[self.epochs[at]] <= at;
        let save = if lost || self.lazy[at] { 0 } else { SAVE };
        let load = match (live && !lost, self.lazy[at]) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => LOAD,
        };
        save + load
    }

    /// A check is placed before step `at`.
    pub(super) fn place(&mut self, at: usize) {
        let first = &mut self.checks[self.epochs[at]];
        *first = at.min(*first);
    }
}

impl Plan {
    /// Finds out where flags are read, and where recipes give them; `known`: at the start one does.
    pub(super) fn want_flags(&mut self, known: bool) {
        let mut wanted = 0;
        for step in self.steps.iter_mut().rev() {
            wanted = step.effect.before(wanted_after(step, wanted));
            step.live = wanted != 0;
        }
        self.costs.begin();
        let mut lazy = known;
        for step in &self.steps {
            self.costs.epochs.push(self.costs.checks.len() - 1);
            self.costs.lazy.push(lazy);
            if step.effect.modifies != 0 {
                self.costs.checks.push(usize::MAX);
                let known = is_replayed(&step.ins) && (lazy || step.effect.sets == ARITH);
                lazy = known || step.action == Action::Helper;
            }
        }
    }

    /// Finds out where checks change the host's flags, now that they are placed, and where the guest's may be seen.
    pub(super) fn place_flags(&mut self) {
        // At the end they may be seen; nothing changes them there.
        let (mut seen, mut lost) = (true, false);
        let groups = self.groups.iter().map(|group| group.at);
        for at in groups.chain(self.poll) {
            self.steps[at].checks = true;
        }
        for step in self.steps.iter_mut().rev() {
            let checked = step.checks;
            // Rust may be asked in the middle of it.
            let reads_time = matches!(step.ins.mnemonic(), Mnemonic::Rdtsc | Mnemonic::Rdtscp);
            (step.seen_after, step.lost_after) = (seen || reads_time, lost);
            step.checks = changes_flags(step);
            if step.effect.sets == ARITH {
                (seen, lost) = (false, false);
            }
            let loses = checked || step.checks;
            lost |= loses;
            seen |= loses
                || step.may_fault()
                || step.effect.reads != 0
                || matches!(step.action, Action::Helper | Action::HelperEnd | Action::Transfer | Action::Jcc);
        }
    }
}

/// Flags that have to be in the host's after `step`, if the code that follows reads `wanted`. Direct jumps have recipes
/// for them; other jumps do not.
fn wanted_after(step: &Step, wanted: u8) -> u8 {
    match step.action {
        Action::Return | Action::JumpIndirect | Action::CallIndirect => ARITH,
        _ => wanted,
    }
}

/// Whether the code of `step` changes flags that the guest's instruction does not.
fn changes_flags(step: &Step) -> bool {
    use Mnemonic::*;
    let alone = |access: Option<Access>| access.is_some_and(|access| access.group.is_none());
    let system = matches!(step.ins.mnemonic(), Cli | Sti | Cld | Rdtsc | Rdtscp | Pushfq);
    system && step.action == Action::System
        || step.action == Action::String
        || alone(step.operand)
        || alone(step.stack)
}

/// Whether there mostly is a [`replay`].
fn is_replayed(ins: &Instruction) -> bool {
    use Mnemonic::*;
    match ins.mnemonic() {
        Cmp | Test => true,
        Add | Sub | And | Or | Xor | Inc | Dec | Neg | Shl | Sal | Shr | Sar | Rol | Ror | Bt | Bts | Btr
        | Btc => ins.op0_kind() == OpKind::Register,
        Imul => ins.op_count() > 1 && ins.op1_kind() == OpKind::Register,
        _ => false,
    }
}

/// The operation that gives the flags after `step`, by the values of registers before and after it.
pub(crate) fn replay(step: &Step, before: &[Value; 18], after: &[Value; 18]) -> Option<Replay<Known>> {
    let plain = matches!(step.action, Action::Copy | Action::Memory) && !step.ignores_prefix;
    if plain && is_replayed(&step.ins) { replay_of(&step.ins, step.effect, before, after) } else { None }
}

fn replay_of(
    ins: &Instruction,
    effect: Effect,
    before: &[Value; 18],
    after: &[Value; 18],
) -> Option<Replay<Known>> {
    use Mnemonic::*;
    let general =
        |r: Register| r.is_gpr() && !matches!(r, Register::AH | Register::BH | Register::CH | Register::DH);
    let place = |r: Register, values: &[Value; 18]| {
        let Value { unknown, plus } = values[usize::from(full(r))];
        Operand { place: Known::Value(unknown), plus }
    };
    let number = |plus: i32| Operand { place: Known::Constant, plus };
    // The source operand number `n`.
    let source = |n: u32| match ins.op_kind(n) {
        OpKind::Register if general(ins.op_register(n)) => Some(place(ins.op_register(n), before)),
        OpKind::Register => None,
        OpKind::Memory => Some(Operand { place: Known::Fetched, plus: 0 }),
        _ => ins.try_immediate(n).ok().map(|n| number(n as i32)),
    };
    let count = ins.op_count();
    if !(1..=3).contains(&count) {
        return None;
    }
    let compares = matches!(ins.mnemonic(), Cmp | Test);
    let size = match ins.op0_kind() {
        OpKind::Register if general(ins.op0_register()) => ins.op0_register().size(),
        OpKind::Memory if compares => ins.memory_size().size(),
        _ => return None,
    } as u8;
    let replay = |operation, operands| Some(Replay { operation, size, operands, effect });
    match ins.mnemonic() {
        Cmp => return replay(Operation::Subtract, [source(0)?, source(1)?]),
        Test => return replay(Operation::And, [source(0)?, source(1)?]),
        _ => {}
    }
    let to = ins.op0_register();
    let (old, result) = (place(to, before), place(to, after));
    let less = |n: i32| Some(Operand { plus: result.plus.checked_sub(n)?, ..result });
    let same = count == 2 && ins.op1_kind() == OpKind::Register && ins.op1_register() == to;
    // A second operand that is still there after it.
    let second = (count == 2).then(|| source(1)).flatten();
    let fetched = second.is_some_and(|second| second.place == Known::Fetched);
    let constant = second.filter(|second| second.place == Known::Constant).map(|second| second.plus);
    match ins.mnemonic() {
        // Zero, with the flags of zero.
        Xor | Sub if same => replay(Operation::And, [number(0); 2]),
        And | Or | Xor => replay(Operation::And, [result, result]),
        Add if same || fetched => replay(Operation::Sum, [result, old]),
        Sub if fetched => replay(Operation::Taken, [result, old]),
        Add => match constant {
            Some(n) => replay(Operation::Add, [less(n)?, number(n)]),
            None => replay(Operation::Sum, [result, second?]),
        },
        Sub => match constant {
            Some(n) => replay(Operation::Subtract, [less(n.checked_neg()?)?, number(n)]),
            None => replay(Operation::Difference, [result, second?]),
        },
        Inc => replay(Operation::Increment, [less(1)?; 2]),
        Dec => replay(Operation::Decrement, [less(-1)?; 2]),
        Neg => replay(Operation::Negation, [result, result]),
        Shl | Sal => replay(Operation::ShiftLeft, [old, second?]),
        Shr => replay(Operation::ShiftRight, [old, second?]),
        Sar => replay(Operation::ShiftSigned, [old, second?]),
        Rol => replay(Operation::RotateLeft, [old, second?]),
        Ror => replay(Operation::RotateRight, [old, second?]),
        Bt | Bts | Btr | Btc => replay(Operation::Bit, [old, second?]),
        Imul if count == 2 && !fetched => replay(Operation::Multiply, [old, second?]),
        Imul if count == 3 && ins.op1_kind() == OpKind::Register => {
            replay(Operation::Multiply, [source(1)?, source(2)?])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use accel_api::x86::gpr::{RAX, RBX, RCX};
    use x86_core::alu::{ArithFlags, Word, flag};
    use x86_core::testing;
    use x86_core::{Cpu, DECODER_OPTIONS};

    use super::*;
    use crate::block_mode::BlockMode;
    use crate::translate::plan::classify::Classifier;
    use crate::translate::plan::lazy_flags::{LazyFlags, Place, Recipe};

    /// The flags after one instruction, and those that should be known, whichever registers it has changed.
    fn known(code: &[u8], rax: u64, rbx: u64, rcx: u64) -> Option<(u64, u64)> {
        let mut cpu: Box<Cpu> = testing::cpu(x86_core::Mode::Long);
        (cpu.gpr[RAX], cpu.gpr[RBX], cpu.gpr[RCX]) = (rax, rbx, rcx);
        cpu.set_rflags(2 | flag::CF | flag::AF);
        let (flags, old) = (cpu.flags, cpu.gpr);
        testing::run(&mut cpu, code).expect("no fault");
        let ins = iced_x86::Decoder::with_ip(64, code, 0, DECODER_OPTIONS).decode();
        let mut plan = Plan::default();
        let classifier = Classifier {
            features: accel_api::x86::CpuFeatures::of_host(),
            bmi1: true,
            mode: BlockMode::plain(),
        };
        plan.add(ins, code, 0, &classifier, &mut iced_x86::InstructionInfoFactory::new());
        let replay = replay(&plan.steps[0], &plan.values[0], &plan.values[1])?;
        let mut context = crate::jit_context::JitContext { flags: flags.0.into(), ..Default::default() };
        let mut recipe = Recipe::after(Some(Recipe::SAVED), replay)?;
        for n in 0.. {
            let Some((operand, was)) = recipe.lost(&plan.values[0], &plan.values[1]) else { break };
            let Place::Register(r) = was.place else { panic!("lost from no register") };
            context.kept[usize::from(n)] = old[usize::from(r)];
            recipe.keep(operand, n, was.plus);
        }
        let lazy: LazyFlags = recipe.placed(&plan.values[1])?;
        Some((lazy.flags(&cpu, &context).to_rflags(), cpu.flags.to_rflags()))
    }

    /// Of each form, on values at the edges of each width.
    #[test]
    fn operations_give_the_flags_again() {
        let forms: [&[u8]; 37] = [
            &[0x48, 0x39, 0xd8],             // cmp rax, rbx
            &[0x39, 0xd8],                   // cmp eax, ebx
            &[0x66, 0x39, 0xd8],             // cmp ax, bx
            &[0x38, 0xd8],                   // cmp al, bl
            &[0x48, 0x3d, 0, 0, 0, 0x80],    // cmp rax, -0x80000000
            &[0x3d, 0, 0, 0, 0x80],          // cmp eax, 0x80000000
            &[0x48, 0x85, 0xdb],             // test rbx, rbx
            &[0xa8, 0x81],                   // test al, 0x81
            &[0x48, 0x21, 0xd8],             // and rax, rbx
            &[0x0c, 0x80],                   // or al, 0x80
            &[0x31, 0xc0],                   // xor eax, eax
            &[0x48, 0x29, 0xc0],             // sub rax, rax
            &[0x48, 0x01, 0xd8],             // add rax, rbx
            &[0x66, 0x01, 0xd8],             // add ax, bx
            &[0x01, 0xc0],                   // add eax, eax
            &[0x04, 0x7f],                   // add al, 127
            &[0x48, 0x05, 0xff, 0xff, 0, 0], // add rax, 0xffff
            &[0x48, 0x29, 0xd8],             // sub rax, rbx
            &[0x2c, 0x01],                   // sub al, 1
            &[0x48, 0x83, 0xe8, 0x80],       // sub rax, -128
            &[0x48, 0xff, 0xc0],             // inc rax
            &[0xfe, 0xc8],                   // dec al
            &[0xf7, 0xd8],                   // neg eax
            &[0xc1, 0xe0, 3],                // shl eax, 3
            &[0x48, 0xd1, 0xe8],             // shr rax, 1
            &[0x66, 0xc1, 0xf8, 17],         // sar ax, 17
            &[0xd2, 0xe0],                   // shl al, cl
            &[0x48, 0xd3, 0xe8],             // shr rax, cl
            &[0xd3, 0xf9],                   // sar ecx, cl
            &[0xc1, 0xc0, 7],                // rol eax, 7
            &[0x48, 0xd3, 0xc8],             // ror rax, cl
            &[0x0f, 0xba, 0xe0, 31],         // bt eax, 31
            &[0x48, 0x0f, 0xa3, 0xd8],       // bt rax, rbx
            &[0x0f, 0xb3, 0xd8],             // btr eax, ebx
            &[0x0f, 0xaf, 0xc3],             // imul eax, ebx
            &[0x48, 0x0f, 0xaf, 0xc0],       // imul rax, rax
            &[0x66, 0x6b, 0xc3, 0x85],       // imul ax, bx, -123
        ];
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 1 << 63, u64::MAX];
        for form in forms {
            for (rax, rbx) in edges.into_iter().flat_map(|a| edges.map(|b| (a, b))) {
                for rcx in [0, 1, 7, 33] {
                    let (got, want) = known(form, rax, rbx, rcx).unwrap_or_else(|| panic!("{form:02x?}"));
                    assert_eq!(got, want, "{form:02x?} {rax:#x} {rbx:#x} {rcx:#x}");
                }
            }
        }
        // adc eax, ebx; cmp ah, bl; mul rbx: their operands are gone, or no operation gives the flags.
        let others: [&[u8]; 3] = [&[0x11, 0xd8], &[0x38, 0xdc], &[0x48, 0xf7, 0xe3]];
        for other in others {
            assert_eq!(known(other, 1, 2, 3), None, "{other:02x?}");
        }
    }

    /// Flags are saved in the form that LAHF and SETO give.
    #[test]
    fn saved_flags_come_first() {
        let mut flags = ArithFlags::from_rflags(flag::CF | flag::OF);
        let context = crate::jit_context::JitContext { flags: flags.0.into(), ..Default::default() };
        let cpu = testing::cpu(x86_core::Mode::Long);
        assert_eq!(LazyFlags::SAVED.flags(&cpu, &context), flags);
        7u8.inc(&mut flags);
        assert!(flags.cf());
    }
}

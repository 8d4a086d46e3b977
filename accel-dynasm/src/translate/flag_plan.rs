//! Where a block has the flags in the host's, where they can be had else, and what a check of memory costs between.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::admit::Action;
use super::emit::may_fault;
use super::flags::ARITH;
use super::lazy::{Known, Operand, Operation, Replay};
use super::plan::{Plan, Step, full};
use super::values::Value;

/// What a check costs where flags have to be saved, and to be had back, in instructions.
const SAVE: u32 = 5;
const LOAD: u32 = 5;

/// What checks cost before each step.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// The flags are those of the same instruction where this is the same.
    epochs: Vec<u32>,
    /// They can be had without having been saved.
    lazy: Vec<bool>,
    /// Before which steps checks have been placed.
    checks: Vec<usize>,
}

impl Costs {
    /// Of a check before step `at`.
    pub(super) fn of(&self, plan: &Plan, at: usize) -> u32 {
        let lost = self.checks.iter().any(|check| *check <= at && self.epochs[*check] == self.epochs[at]);
        let save = if lost || self.lazy[at] { 0 } else { SAVE };
        let load = match (plan.steps[at].live && !lost, self.lazy[at]) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => LOAD,
        };
        save + load
    }

    /// A check is placed before step `at`.
    pub(super) fn place(&mut self, at: usize) {
        self.checks.push(at);
    }
}

impl Plan {
    /// Finds out who reads the flags, and how they can be had; `known`: at the start they can.
    pub(super) fn want_flags(&mut self, known: bool) -> Costs {
        for n in 0..self.steps.len() {
            let replay = replay(&self.steps[n].ins, &self.values[n], &self.values[n + 1]);
            let step = &mut self.steps[n];
            step.replay = replay.filter(|_| !matches!(step.action, Action::Generic | Action::GenericEnd));
        }
        let mut wanted = 0;
        let mut costs = Costs::default();
        for step in self.steps.iter_mut().rev() {
            wanted = step.effect.before(wanted_behind(step, wanted));
            step.live = wanted != 0;
        }
        let (mut epoch, mut lazy) = (0, known);
        for step in &self.steps {
            costs.epochs.push(epoch);
            costs.lazy.push(lazy);
            if step.effect.modifies != 0 {
                epoch += 1;
                let known = step.replay.is_some() && (lazy || !step.effect.is_partial());
                lazy = known || step.action == Action::Generic;
            }
        }
        costs
    }

    /// Finds out where checks change the host's flags, now that they are placed, and what needs the guest's there.
    pub(super) fn place_flags(&mut self) {
        let mut wanted = 0;
        // At the end somebody sees them; nothing changes them there.
        let (mut seen, mut lost) = (true, false);
        for n in (0..self.steps.len()).rev() {
            let checked = self.poll == Some(n) || self.groups.iter().any(|group| group.at == n);
            let step = &mut self.steps[n];
            wanted = wanted_behind(step, wanted);
            let Step { action, effect, .. } = *step;
            let kept = wanted & !effect.sets != 0 || seen;
            step.needs_flags = effect.reads != 0 || effect.is_partial() && kept;
            step.lost_behind = lost;
            wanted = effect.before(wanted);
            if effect.sets == ARITH {
                (seen, lost) = (false, false);
            }
            let loses = checked || changes_flags(step);
            lost |= loses;
            seen |= loses
                || may_fault(step)
                || matches!(action, Action::Generic | Action::GenericEnd | Action::Transfer | Action::Jcc);
        }
    }
}

/// Flags that have to be in the host's behind `step`, if `wanted` are what comes next reads. Direct jumps say how they can be
/// had; others do not.
fn wanted_behind(step: &Step, wanted: u32) -> u32 {
    match step.action {
        Action::Return | Action::JumpIndirect | Action::CallIndirect => ARITH,
        _ => wanted,
    }
}

/// Whether the code of `step` changes flags that the guest's instruction does not.
fn changes_flags(step: &Step) -> bool {
    let alone = |access: Option<super::plan::Access>| access.is_some_and(|access| access.group.is_none());
    matches!(step.action, Action::System | Action::String) || alone(step.operand) || alone(step.stack)
}

/// What gives the flags behind an instruction, by what registers hold before it and behind it.
fn replay(ins: &Instruction, before: &[Value; 18], behind: &[Value; 18]) -> Option<Replay<Known>> {
    use Mnemonic::*;
    let to = ins.op0_register();
    let general = |r: Register| r.is_gpr() && !matches!(r, Register::AH | Register::BH | Register::CH | Register::DH);
    if ins.op_count() == 0 || ins.op0_kind() != OpKind::Register || !general(to) {
        return None;
    }
    let place = |r: Register, values: &[Value; 18]| {
        let Value { unknown, plus } = values[usize::from(full(r))];
        Operand { place: Known::Value(unknown), plus }
    };
    let constant = ins.try_immediate(1).ok().filter(|_| ins.op_count() == 2).map(|n| n as i32);
    // The second operand, if it is the same on both sides.
    let second = || match (ins.op1_kind(), constant) {
        (OpKind::Register, _) if general(ins.op1_register()) => Some(place(ins.op1_register(), before)),
        (_, Some(plus)) => Some(Operand { place: Known::Constant, plus }),
        _ => None,
    };
    let result = place(to, behind);
    let less = |n: i32| Some(Operand { plus: result.plus.checked_sub(n)?, ..result });
    let same = ins.op1_kind() == OpKind::Register && ins.op1_register() == to;
    let (operation, operands) = match ins.mnemonic() {
        Cmp => (Operation::Subtract, [place(to, before), second()?]),
        Test => (Operation::And, [place(to, before), second()?]),
        And | Or | Xor => (Operation::And, [result, result]),
        // Zero, with the flags of zero.
        Sub if same => (Operation::And, [result, result]),
        Add | Sub if same => return None,
        Add => match constant {
            Some(n) => (Operation::Add, [less(n)?, second()?]),
            None => (Operation::Sum, [result, second()?]),
        },
        Sub => match constant {
            Some(n) => (Operation::Subtract, [less(n.checked_neg()?)?, second()?]),
            None => (Operation::Difference, [result, second()?]),
        },
        Inc => (Operation::Increment, [less(1)?; 2]),
        Dec => (Operation::Decrement, [less(-1)?; 2]),
        Neg => (Operation::Negation, [result, result]),
        _ => return None,
    };
    Some(Replay { operation, size: to.size() as u8, operands })
}

#[cfg(test)]
mod tests {
    use accel_api::gpr::{RAX, RBX};
    use x86_core::alu::{ArithFlags, Word, flag};
    use x86_core::testing;
    use x86_core::{Cpu, DECODER_OPTIONS};

    use super::*;
    use crate::mode::Mode;
    use crate::translate::admit::Admission;
    use crate::translate::lazy::{LazyFlags, Recipe};

    /// The flags behind one instruction, from the registers behind it, and whether they should be known.
    fn known(code: &[u8], rax: u64, rbx: u64) -> Option<(u64, u64)> {
        let mut cpu: Box<Cpu> = testing::cpu(x86_core::Mode::Long);
        (cpu.gpr[RAX], cpu.gpr[RBX]) = (rax, rbx);
        cpu.set_rflags(2 | flag::CF | flag::AF);
        let before = cpu.flags;
        testing::run(&mut cpu, code).expect("no fault");
        let ins = iced_x86::Decoder::with_ip(64, code, 0, DECODER_OPTIONS).decode();
        let mut plan = Plan::default();
        let admission = Admission { features: Default::default(), bmi1: true, mode: Mode::plain() };
        plan.add(ins, 0, &admission, &mut Default::default());
        let replay = replay(&ins, &plan.values[0], &plan.values[1])?;
        let context = crate::home::Context { flags: before.0.into(), ..Default::default() };
        let recipe: Recipe = Recipe::SAVED.then(replay)?;
        let lazy: LazyFlags = recipe.placed(&plan.values[1])?;
        Some((lazy.flags(&cpu, &context).to_rflags(), cpu.flags.to_rflags()))
    }

    /// Of each form, on values at the edges of each width.
    #[test]
    fn operations_give_the_flags_again() {
        let forms: [&[u8]; 22] = [
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
            &[0x04, 0x7f],                   // add al, 127
            &[0x48, 0x05, 0xff, 0xff, 0, 0], // add rax, 0xffff
            &[0x48, 0x29, 0xd8],             // sub rax, rbx
            &[0x2c, 0x01],                   // sub al, 1
            &[0x48, 0x83, 0xe8, 0x80],       // sub rax, -128
            &[0x48, 0xff, 0xc0],             // inc rax
            &[0xfe, 0xc8],                   // dec al
            &[0xf7, 0xd8],                   // neg eax
        ];
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 1 << 63, u64::MAX];
        for form in forms {
            for (rax, rbx) in edges.into_iter().flat_map(|a| edges.map(|b| (a, b))) {
                let (got, want) = known(form, rax, rbx).unwrap_or_else(|| panic!("{form:02x?}"));
                assert_eq!(got, want, "{form:02x?} {rax:#x} {rbx:#x}");
            }
        }
        // add rax, rax; shl eax, 3; adc eax, ebx; cmp ah, bl; add rax, [rbx]: what they worked on is gone.
        let others: [&[u8]; 4] = [&[0x48, 0x01, 0xc0], &[0xc1, 0xe0, 3], &[0x11, 0xd8], &[0x38, 0xdc]];
        for other in others {
            assert_eq!(known(other, 1, 2), None, "{other:02x?}");
        }
    }

    /// What LAHF and SETO give is what this is saved as.
    #[test]
    fn saved_flags_come_first() {
        let mut flags = ArithFlags::from_rflags(flag::CF | flag::OF);
        let context = crate::home::Context { flags: flags.0.into(), ..Default::default() };
        let cpu = testing::cpu(x86_core::Mode::Long);
        assert_eq!(LazyFlags::SAVED.flags(&cpu, &context), flags);
        7u8.inc(&mut flags);
        assert!(flags.cf());
    }
}

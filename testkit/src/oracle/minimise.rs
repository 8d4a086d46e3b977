//! Takes away what does not matter for a difference.

use accel_api::x86::FpuState;
use iced_x86::Instruction;

use super::case::{Case, State, seg};
use super::compare::Difference;
use super::run::Pair;

/// The case with as many inputs zero or initial as leave the first difference standing, and what differs then.
pub(super) fn minimise(
    pair: &mut Pair,
    ins: &Instruction,
    case: Case,
    found: Vec<Difference>,
) -> (Case, Vec<Difference>) {
    let mut best = Minimal { pair, ins, case, found };
    let usual = State::new().selectors;
    for register in [seg::ES, seg::DS, seg::GS] {
        best.attempt(|case| case.state.selectors[register] = 0);
        best.attempt(|case| case.state.selectors[register] = usual[seg::SS]);
    }
    best.attempt(|case| case.state.rflags = 0x202);
    best.attempt(|case| case.state.fpu = FpuState { xstate_bv: 7, ..FpuState::reset() });
    let fpu = FpuState::reset();
    best.attempt(|case| case.state.fpu.ymm = fpu.ymm);
    best.attempt(|case| case.state.fpu.mxcsr = fpu.mxcsr);
    best.attempt(|case| {
        let state = &mut case.state.fpu;
        (state.fcw, state.fsw, state.ftw, state.st) = (fpu.fcw, fpu.fsw, fpu.ftw, fpu.st);
    });
    best.attempt(|case| case.state.fpu.fcw = fpu.fcw);
    best.attempt(|case| case.state.fpu.fsw &= 0x3800);
    best.attempt(|case| case.state.fpu.fsw = 0);
    if best.case.state.fpu.ftw != 0 {
        best.attempt(|case| case.state.fpu.ftw = 0xff);
    }
    for i in 0..8 {
        best.attempt(|case| case.state.fpu.st[i] = [0; 10]);
    }
    for i in 0..16 {
        best.attempt(|case| case.state.fpu.ymm[i] = [0; 4]);
        best.attempt(|case| case.state.fpu.ymm[i][2..].fill(0));
        best.attempt(|case| case.state.gpr[i] = 0);
    }
    best.attempt(|case| case.memory.fill(0));
    best.blocks(1024);
    best.blocks(128);
    best.blocks(16);
    best.blocks(1);
    (best.case, best.found)
}

struct Minimal<'a> {
    pair: &'a mut Pair,
    ins: &'a Instruction,
    case: Case,
    found: Vec<Difference>,
}

impl Minimal<'_> {
    /// Keeps a change if what differed first still differs.
    fn attempt(&mut self, change: impl FnOnce(&mut Case)) {
        let mut case = self.case.clone();
        change(&mut case);
        if case == self.case {
            return;
        }
        let found = self.pair.compare(self.ins, &case).found;
        let same = |d: &Difference| self.found.first().is_some_and(|first| d.what == first.what);
        if found.iter().any(same) {
            (self.case, self.found) = (case, found);
        }
    }

    /// Zeros memory in blocks, where few are left.
    fn blocks(&mut self, size: usize) {
        let used = |case: &Case| -> Vec<usize> {
            let blocks = case.memory.chunks(size).enumerate();
            blocks.filter(|(_, block)| block.iter().any(|&b| b != 0)).map(|(i, _)| i).collect()
        };
        for block in used(&self.case).into_iter().take(100) {
            self.attempt(|case| case.memory[block * size..][..size].fill(0));
        }
    }
}

//! R10 and R11, which host code uses itself: the guest's values of them are in memory where they are not in the
//! registers.

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use super::state::Held;
use crate::translate::plan::step::{SCRATCH, Step};

impl Emitter<'_> {
    /// Stores the guest's value if memory does not have it.
    pub(super) fn spill(&mut self, n: usize) {
        if self.held[n] == (Held::Guest { dirty: true }) {
            let r = SCRATCH[n];
            dynasm!(self.asm ; .arch x64 ; mov [self.addresses.gpr(r)], Rq(r));
            self.held[n] = Held::Guest { dirty: false };
        }
    }

    pub(super) fn spill_all(&mut self) {
        self.spill(0);
        self.spill(1);
    }

    /// Makes the register free.
    pub(super) fn release(&mut self, n: usize) {
        self.spill(n);
        self.held[n] = Held::Nothing;
    }

    /// Makes sure the register has the guest's value.
    pub(super) fn need(&mut self, n: usize) {
        if !matches!(self.held[n], Held::Guest { .. }) {
            let r = SCRATCH[n];
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), [self.addresses.gpr(r)]);
            self.held[n] = Held::Guest { dirty: false };
        }
    }

    /// Which of the two `r` is.
    pub(super) fn scratch(r: u8) -> Option<usize> {
        SCRATCH.iter().position(|s| *s == r)
    }

    /// `r` as an operand that is read.
    pub(super) fn need_register(&mut self, r: u8) {
        if let Some(n) = Self::scratch(r) {
            self.need(n);
        }
    }

    pub(super) fn wrote(&mut self, step: &Step) {
        for n in 0..2 {
            if step.uses[n].write {
                self.held[n] = Held::Guest { dirty: true };
            }
        }
    }
}

//! The guest's arithmetic flags while a block's own code changes the host's.
//!
//! At each place of a block the flags are in the host's, or a recipe gives them
//! ([`crate::translate::plan::lazy_flags`]), or both. Code of our own that changes the host's flags
//! ([`Emitter::lose_flags`]) saves them only where no recipe gives them; code that reads them loads them first
//! ([`Emitter::need_flags`]). So they are right wherever a block can be left.

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use super::state::{FlagState, Held};
use crate::jit_context::KEPT;
use crate::translate::encode::{self, Memory};
use crate::translate::output::NOTHING;
use crate::translate::plan::classify::Action;
use crate::translate::plan::flag_effects::ARITH;
use crate::translate::plan::flag_plan::replay;
use crate::translate::plan::lazy_flags::{Known, LazyFlags, Operand, Operation, Place, Recipe, Replay};
use crate::translate::plan::step::{RCX, RSP, SCRATCH, Step};

/// Which of R10 and R11 code may use.
pub(super) type Free = [bool; 2];

/// Second operand of an instruction.
#[derive(Clone, Copy)]
enum Second {
    Register(u8),
    Constant(i32),
}

/// An instruction on the low bytes of `$a`.
macro_rules! by_size {
    ($asm:expr, $op:ident, $size:expr, $a:expr, $b:expr) => {
        match ($size, $b) {
            (1, Second::Register(b)) => dynasm!($asm ; .arch x64 ; $op Rb($a), Rb(b)),
            (2, Second::Register(b)) => dynasm!($asm ; .arch x64 ; $op Rw($a), Rw(b)),
            (4, Second::Register(b)) => dynasm!($asm ; .arch x64 ; $op Rd($a), Rd(b)),
            (_, Second::Register(b)) => dynasm!($asm ; .arch x64 ; $op Rq($a), Rq(b)),
            (1, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rb($a), BYTE b as i8),
            (2, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rw($a), WORD b as i16),
            (4, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rd($a), DWORD b),
            (_, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rq($a), DWORD b),
        }
    };
    ($asm:expr, $op:ident, $size:expr, $a:expr) => {
        match $size {
            1 => dynasm!($asm ; .arch x64 ; $op Rb($a)),
            2 => dynasm!($asm ; .arch x64 ; $op Rw($a)),
            4 => dynasm!($asm ; .arch x64 ; $op Rd($a)),
            _ => dynasm!($asm ; .arch x64 ; $op Rq($a)),
        }
    };
}

/// A shift of the low bytes of `$a`, by a constant or by CL.
macro_rules! shift_by_size {
    ($asm:expr, $op:ident, $size:expr, $a:expr, $b:expr) => {
        match ($size, $b) {
            (1, Second::Register(_)) => dynasm!($asm ; .arch x64 ; $op Rb($a), cl),
            (2, Second::Register(_)) => dynasm!($asm ; .arch x64 ; $op Rw($a), cl),
            (4, Second::Register(_)) => dynasm!($asm ; .arch x64 ; $op Rd($a), cl),
            (_, Second::Register(_)) => dynasm!($asm ; .arch x64 ; $op Rq($a), cl),
            (1, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rb($a), BYTE b as i8),
            (2, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rw($a), BYTE b as i8),
            (4, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rd($a), BYTE b as i8),
            (_, Second::Constant(b)) => dynasm!($asm ; .arch x64 ; $op Rq($a), BYTE b as i8),
        }
    };
}

impl Emitter<'_> {
    // ---- Where they are ----

    /// The recipe for the flags here, if there is one, wherever they are.
    pub(super) fn known_flags(&mut self) -> Option<LazyFlags> {
        self.out.flags_matter |= self.at_entry;
        self.flags.lazy.and_then(|lazy| lazy.placed(self.values()))
    }

    /// The same, unless they are in the host's.
    pub(super) fn flags_now(&mut self) -> Option<LazyFlags> {
        self.out.flags_matter |= self.at_entry;
        if self.flags.is_complete() {
            return None;
        }
        let known = self.known_flags();
        debug_assert!(known.is_some(), "flags are lost at {:?}", self.plan.steps[self.now].ins);
        known
    }

    /// Its index in the output; [`NOTHING`] if the flags are in the host's.
    pub(super) fn flags_number(&mut self) -> u32 {
        let flags = self.flags_now();
        self.number(flags)
    }

    /// The index of `flags` in the output.
    pub(super) fn number(&mut self, flags: Option<LazyFlags>) -> u32 {
        let Some(flags) = flags else { return NOTHING };
        let recipes = &mut self.out.recipes;
        // Most are those of the site before.
        let last = recipes.len().saturating_sub(2);
        let n = recipes[last..].iter().position(|other| *other == flags).map_or(recipes.len(), |n| last + n);
        if n == recipes.len() {
            recipes.push(flags);
        }
        n as u32
    }

    /// The code that follows changes the host's flags. Saving them, if need be, changes `r`, which is R10 or R11.
    pub(super) fn lose_flags(&mut self, r: u8) {
        self.out.flags_matter |= self.at_entry;
        if self.flags.is_complete() && self.flags.lazy.is_none() {
            self.save_flags(r);
        }
        self.flags.host = 0;
    }

    /// Keeps the flags, which are in the host's, in memory; `r` is changed.
    fn save_flags(&mut self, r: u8) {
        dynasm!(self.asm
            ; .arch x64
            ; mov Rq(r), rax
            ; lahf
            ; seto al
            ; mov [self.addresses.saved_flags()], ax
            ; mov rax, Rq(r)
        );
        self.flags.lazy = Some(Recipe::SAVED);
    }

    /// Loads flags `wanted` of the guest's into the host's, if they are not there.
    pub(super) fn need_flags(&mut self, wanted: u8, free: Free) {
        if wanted == 0 {
            return;
        }
        self.out.flags_matter |= self.at_entry;
        if self.flags.host & wanted != wanted
            && let Some(flags) = self.flags_now()
        {
            self.load_flags(flags, free);
            self.flags.host = ARITH;
        }
    }

    /// Before `step`, whose code may change the host's flags and read the guest's: sees to it that they can be had
    /// then, and after it.
    pub(super) fn begin_flags(&mut self, step: &Step) {
        let effect = step.effect;
        self.required = effect.reads;
        self.next_flags = None;
        self.fetch = None;
        if matches!(step.action, Action::Helper | Action::HelperEnd) {
            return;
        }
        let FlagState { host, mut lazy } = self.flags;
        if step.checks && self.flags.is_complete() && lazy.is_none() {
            // The check is going to save them.
            lazy = Some(Recipe::SAVED);
        }
        let [before, after] = [0, 1].map(|n| &self.plan.values[self.now + n]);
        let mut next = lazy;
        if effect.modifies != 0 {
            self.replay = if step.seen_after { replay(step, before, after) } else { None };
            next = self.replay.and_then(|replay| Recipe::after(lazy, replay));
        }
        let complete = if step.checks { 0 } else { host } | effect.sets == ARITH;
        let wanted = step.seen_after && (!complete || step.lost_after);
        if wanted && let Some(recipe) = next {
            next = self.keep_operands(recipe);
        }
        next = next.filter(|recipe| recipe.is_placed(after));
        if step.seen_after && !complete && next.is_none() {
            self.required = ARITH;
        }
        self.next_flags = next;
    }

    /// Stores operands of `recipe` that no register has after the step at hand.
    fn keep_operands(&mut self, mut recipe: Recipe) -> Option<Recipe> {
        let [before, after] = [0, 1].map(|n| &self.plan.values[self.now + n]);
        if recipe.fetches() {
            let n = self.free_place(&recipe)?;
            recipe.keep(Operand { place: Known::Fetched, plus: 0 }, n, 0);
            self.fetch = Some(n);
        }
        while let Some((operand, was)) = recipe.lost(before, after) {
            let (n, Place::Register(r)) = (self.free_place(&recipe)?, was.place) else { return None };
            self.need_register(r);
            dynasm!(self.asm ; .arch x64 ; mov [self.addresses.kept(n)], Rq(r));
            recipe.keep(operand, n, was.plus);
            if let Some(lazy) = &mut self.flags.lazy {
                lazy.keep(operand, n, was.plus);
            }
        }
        Some(recipe)
    }

    /// A place in which no operand is kept, of `recipe` or of the recipe that holds now.
    fn free_place(&self, recipe: &Recipe) -> Option<u8> {
        let used = |n| recipe.keeps(n) || self.flags.lazy.is_some_and(|lazy| lazy.keeps(n));
        (0..KEPT as u8).find(|n| !used(*n))
    }

    /// Behind `step`.
    pub(super) fn flags_after(&mut self, step: &Step) {
        if step.action == Action::Helper {
            // Rust has left them in both.
            self.flags = FlagState { host: ARITH, lazy: Some(Recipe::SAVED) };
        } else {
            debug_assert!(!step.checks || self.flags.lazy.is_some() || !step.seen_after, "{:?}", step.ins);
            // Flags that the instruction may leave alone are right if they were.
            self.flags = FlagState { host: self.flags.host | step.effect.sets, lazy: self.next_flags };
        }
        self.at_entry &= step.effect.sets != ARITH;
    }

    // ---- Loading them ----

    /// The next instruction reads the flags, after a check of memory that leaves neither R10 nor R11 free.
    pub(super) fn prepare_flags(&mut self) {
        let Some(lazy) = self.known_flags() else { return self.make_saved() };
        if self.temporaries(&lazy) > 0 && self.flags.lazy != Some(Recipe::SAVED) {
            self.make_saved();
        }
    }

    /// Likewise, one that leaves R11 free.
    pub(super) fn prepare_flags_for_one(&mut self) {
        if self.known_flags().is_some_and(|lazy| self.temporaries(&lazy) > 1) {
            self.make_saved();
        }
    }

    fn make_saved(&mut self) {
        self.need_flags(ARITH, [true; 2]);
        self.release(1);
        self.save_flags(SCRATCH[1]);
    }

    /// How many of R10 and R11 it takes to load the flags; saved ones alone take none.
    fn temporaries(&self, lazy: &LazyFlags) -> usize {
        let of = |replay: &Replay<Place>| {
            let [a, b] = replay.operands;
            // RSP may move on the way.
            let plain = |operand| self.plain(operand).is_some_and(|r| r != RSP);
            let first = !(replay.operation.leaves_operands() && plain(a));
            let counts = replay.operation.counts() && b.place != Place::Constant;
            let second = a != b && b.place != Place::Constant && !plain(b);
            usize::from(first) + usize::from(second || counts)
        };
        lazy.replays().map(of).max().unwrap_or(0)
    }

    /// Loads the host's flags by `lazy`.
    pub(super) fn load_flags(&mut self, lazy: LazyFlags, free: Free) {
        if lazy.first.is_none() {
            match self.temporary(&mut free.clone()) {
                Some(r) => dynasm!(self.asm
                    ; .arch x64
                    ; mov Rq(r), rax
                    ; movzx eax, WORD [self.addresses.saved_flags()]
                    ; add al, 0x7f
                    ; sahf
                    ; mov rax, Rq(r)
                ),
                None => dynasm!(self.asm
                    ; .arch x64
                    ; mov [self.addresses.rax()], rax
                    ; movzx eax, WORD [self.addresses.saved_flags()]
                    ; add al, 0x7f
                    ; sahf
                    ; mov rax, [self.addresses.rax()]
                ),
            }
        }
        for replay in lazy.replays() {
            self.replay(*replay, free);
        }
    }

    /// One of `free`, which is then used.
    fn temporary(&mut self, free: &mut Free) -> Option<u8> {
        let empty = |n: &usize| self.held[*n] == Held::Nothing;
        let mut candidates = (0..2).filter(|n| free[*n]);
        let n = candidates.clone().find(empty).or_else(|| candidates.next())?;
        free[n] = false;
        self.release(n);
        Some(SCRATCH[n])
    }

    /// The host's register that holds `operand`, if one does.
    fn plain(&self, operand: Operand<Place>) -> Option<u8> {
        match operand {
            Operand { place: Place::Register(r), plus: 0 } if Self::scratch(r).is_none() => Some(r),
            _ => None,
        }
    }

    /// `r` = `operand`; changes no flag.
    fn fetch(&mut self, r: u8, operand: Operand<Place>) {
        let (from, plus) = match operand.place {
            Place::Constant => return self.constant(r, i64::from(operand.plus) as u64),
            Place::Kept(n) => (self.addresses.kept(n), operand.plus),
            Place::Register(other) => match Self::scratch(other) {
                // Memory has it.
                Some(_) => (self.addresses.gpr(other), operand.plus),
                None => {
                    let memory = Memory { base: Some(other), index: None, disp: operand.plus };
                    return self.put(encode::lea(r, memory));
                }
            },
        };
        dynasm!(self.asm ; .arch x64 ; mov Rq(r), [from]);
        if plus != 0 {
            self.put(encode::lea(r, Memory { base: Some(r), index: None, disp: plus }));
        }
    }

    fn replay(&mut self, replay: Replay<Place>, mut free: Free) {
        let Replay { operation, size, operands: [a, b], .. } = replay;
        let first = match self.plain(a).filter(|_| operation.leaves_operands()) {
            Some(r) => r,
            None => {
                // The guest's values in R10 and R11 go to memory before either is changed.
                self.spill_all();
                let r = self.temporary(&mut free).unwrap_or(SCRATCH[1]);
                self.fetch(r, a);
                r
            }
        };
        if operation.counts() && b.place != Place::Constant {
            return self.replay_by_count(operation, size, first, b, free);
        }
        let second = match (b.place, self.plain(b)) {
            (Place::Constant, _) => Second::Constant(b.plus),
            _ if a == b => Second::Register(first),
            (_, Some(r)) => Second::Register(r),
            _ => {
                self.spill_all();
                let r = self.temporary(&mut free).unwrap_or(SCRATCH[0]);
                self.fetch(r, b);
                Second::Register(r)
            }
        };
        match operation {
            Operation::Subtract => by_size!(self.asm, cmp, size, first, second),
            Operation::And => by_size!(self.asm, test, size, first, second),
            Operation::Add => by_size!(self.asm, add, size, first, second),
            Operation::Sum => {
                by_size!(self.asm, sub, size, first, second);
                by_size!(self.asm, add, size, first, second);
            }
            Operation::Difference => {
                by_size!(self.asm, add, size, first, second);
                by_size!(self.asm, sub, size, first, second);
            }
            Operation::Taken => {
                // -(first - second), the number that was subtracted.
                by_size!(self.asm, sub, size, first, second);
                by_size!(self.asm, neg, size, first);
                let Second::Register(second) = second else { return };
                by_size!(self.asm, cmp, size, second, Second::Register(first));
            }
            Operation::Negation => {
                by_size!(self.asm, neg, size, first);
                by_size!(self.asm, neg, size, first);
            }
            Operation::Increment => by_size!(self.asm, inc, size, first),
            Operation::Decrement => by_size!(self.asm, dec, size, first),
            Operation::Multiply => match (size, second) {
                (2, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; imul Rw(first), Rw(b)),
                (4, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; imul Rd(first), Rd(b)),
                (_, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; imul Rq(first), Rq(b)),
                (2, Second::Constant(b)) => {
                    dynasm!(self.asm ; .arch x64 ; imul Rw(first), Rw(first), WORD b as i16)
                }
                (4, Second::Constant(b)) => {
                    dynasm!(self.asm ; .arch x64 ; imul Rd(first), Rd(first), DWORD b)
                }
                (_, Second::Constant(b)) => {
                    dynasm!(self.asm ; .arch x64 ; imul Rq(first), Rq(first), DWORD b)
                }
            },
            Operation::Bit => match (size, second) {
                (2, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; bt Rw(first), Rw(b)),
                (4, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; bt Rd(first), Rd(b)),
                (_, Second::Register(b)) => dynasm!(self.asm ; .arch x64 ; bt Rq(first), Rq(b)),
                (2, Second::Constant(b)) => dynasm!(self.asm ; .arch x64 ; bt Rw(first), BYTE b as i8),
                (4, Second::Constant(b)) => dynasm!(self.asm ; .arch x64 ; bt Rd(first), BYTE b as i8),
                (_, Second::Constant(b)) => dynasm!(self.asm ; .arch x64 ; bt Rq(first), BYTE b as i8),
            },
            _ => self.shift(operation, size, first, second),
        }
    }

    fn shift(&mut self, operation: Operation, size: u8, first: u8, second: Second) {
        match operation {
            Operation::ShiftLeft => shift_by_size!(self.asm, shl, size, first, second),
            Operation::ShiftRight => shift_by_size!(self.asm, shr, size, first, second),
            Operation::ShiftSigned => shift_by_size!(self.asm, sar, size, first, second),
            Operation::RotateLeft => shift_by_size!(self.asm, rol, size, first, second),
            _ => shift_by_size!(self.asm, ror, size, first, second),
        }
    }

    /// Shifts `first` by `count`, which has to be in CL for it.
    fn replay_by_count(
        &mut self,
        operation: Operation,
        size: u8,
        first: u8,
        count: Operand<Place>,
        mut free: Free,
    ) {
        if self.plain(count) == Some(RCX) {
            return self.shift(operation, size, first, Second::Register(RCX));
        }
        self.spill_all();
        let r = self.temporary(&mut free).unwrap_or(SCRATCH[0]);
        dynasm!(self.asm ; .arch x64 ; mov Rq(r), rcx);
        self.fetch(RCX, count);
        self.shift(operation, size, first, Second::Register(RCX));
        dynasm!(self.asm ; .arch x64 ; mov rcx, Rq(r));
    }

    // ---- Operands in memory ----

    /// Executes `step`, CMP or TEST, on what `memory` holds, which is kept at place `n`. Of R10 and R11, one that is
    /// not in `avoid` is used.
    pub(super) fn compare_fetched(&mut self, step: &Step, memory: Memory, avoid: [bool; 2], n: u8) {
        let Some(replay) = self.replay else { return };
        let in_use = |n: usize| matches!(self.held[n], Held::Addend(_));
        let to = (0..2).rev().filter(|n| !avoid[*n]).min_by_key(|n| in_use(*n)).unwrap_or(1);
        self.release(to);
        let (r, size) = (SCRATCH[to], replay.size);
        self.put(encode::load_zero_extended(r, memory, size));
        dynasm!(self.asm ; .arch x64 ; mov [self.addresses.kept(n)], Rq(r));
        let other = |operand: u32| step.ins.op_register(operand).full_register().number() as u8;
        let constant = step.ins.try_immediate(1).ok().map(|n| Second::Constant(n as i32));
        let first = replay.operands[0].place == Known::Fetched;
        let (a, b) = match constant {
            Some(constant) => (r, constant),
            None if first => (r, Second::Register(other(1))),
            None => (other(0), Second::Register(r)),
        };
        match replay.operation {
            Operation::Subtract => by_size!(self.asm, cmp, size, a, b),
            _ => by_size!(self.asm, test, size, a, b),
        }
    }
}

impl Operation {
    /// Changes nothing but flags.
    fn leaves_operands(self) -> bool {
        matches!(self, Self::Subtract | Self::And | Self::Bit)
    }

    /// Its second operand is a count, in CL or constant.
    fn counts(self) -> bool {
        use Operation::*;
        matches!(self, ShiftLeft | ShiftRight | ShiftSigned | RotateLeft | RotateRight)
    }
}

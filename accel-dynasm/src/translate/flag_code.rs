//! The guest's arithmetic flags while a block's own code changes the host's.
//!
//! At each place of a block the flags are in the host's, or can be had ([`super::lazy`]), or both. Code of our own that changes
//! the host's flags ([`Emitter::lose_flags`]) saves them only where they could not be had else; who reads them has them back
//! first ([`Emitter::need_flags`]). So they are right wherever a block can be left.

use dynasmrt::{DynasmApi, dynasm};

use super::admit::Action;
use super::emit::{Emitter, Held};
use super::encode::{self, Memory};
use super::flags::ARITH;
use super::lazy::{LazyFlags, Operand, Operation, Place, Recipe, Replay};
use super::plan::{RSP, SCRATCH, Step};

/// Which of R10 and R11 code may use.
pub(super) type Free = [bool; 2];

/// Where the flags are; at least one of the two.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagState {
    /// In the host's.
    pub host: bool,
    pub lazy: Option<Recipe>,
}

impl FlagState {
    /// At the start of a block.
    pub(super) fn of(known: Option<LazyFlags>) -> Self {
        Self { host: known.is_none(), lazy: known.map(LazyFlags::at_entry) }
    }
}

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

impl Emitter<'_> {
    /// How the flags can be had here, wherever they are.
    pub(super) fn known_flags(&mut self) -> Option<LazyFlags> {
        self.out.flags_matter |= self.at_entry;
        self.flags.lazy.and_then(|lazy| lazy.placed(self.values()))
    }

    /// How they can be had, unless they are in the host's.
    pub(super) fn flags_now(&mut self) -> Option<LazyFlags> {
        let known = self.known_flags();
        known.filter(|_| !self.flags.host)
    }

    /// What comes next changes the host's flags. Of R10 and R11, `r` is changed.
    pub(super) fn lose_flags(&mut self, r: u8) {
        self.out.flags_matter |= self.at_entry;
        if self.flags.host && self.flags.lazy.is_none() {
            self.save_flags(r);
        }
        self.flags.host = false;
    }

    /// Keeps the flags, which are in the host's, in memory; `r` is changed.
    fn save_flags(&mut self, r: u8) {
        dynasm!(self.asm
            ; .arch x64
            ; mov Rq(r), rax
            ; lahf
            ; seto al
            ; mov [self.places.saved_flags()], ax
            ; mov rax, Rq(r)
        );
        self.flags.lazy = Some(Recipe::SAVED);
    }

    /// The guest's flags are in the host's from here on.
    pub(super) fn need_flags(&mut self, free: Free) {
        self.out.flags_matter |= self.at_entry;
        if let Some(flags) = self.flags_now() {
            self.load_flags(flags, free);
            self.flags.host = true;
        }
    }

    /// Has the host's from `lazy`.
    pub(super) fn load_flags(&mut self, lazy: LazyFlags, mut free: Free) {
        if lazy.saved {
            match self.temporary(&mut free) {
                Some(r) => {
                    dynasm!(self.asm ; .arch x64 ; mov Rq(r), rax ; movzx eax, WORD [self.places.saved_flags()]);
                    dynasm!(self.asm ; .arch x64 ; add al, 0x7f ; sahf ; mov rax, Rq(r));
                    free[usize::from(r - SCRATCH[0])] = true;
                }
                None => {
                    let rax = self.places.rax();
                    dynasm!(self.asm ; .arch x64 ; mov [rax], rax ; movzx eax, WORD [self.places.saved_flags()]);
                    dynasm!(self.asm ; .arch x64 ; add al, 0x7f ; sahf ; mov rax, [rax]);
                }
            }
        }
        for replay in lazy.replays.into_iter().flatten() {
            self.replay(replay, free);
        }
    }

    /// The next instruction reads the flags, behind a check of memory that leaves neither R10 nor R11 free.
    pub(super) fn prepare_flags(&mut self) {
        if self.flags.lazy == Some(Recipe::SAVED) {
            return;
        }
        self.need_flags([true; 2]);
        self.release(1);
        self.save_flags(SCRATCH[1]);
    }

    /// Whether what [`Self::need_flags`] does takes both of R10 and R11.
    pub(super) fn takes_both(&mut self) -> bool {
        let Some(lazy) = self.flags_now() else { return false };
        lazy.replays.iter().flatten().any(|replay| {
            let [a, b] = replay.operands;
            // RSP may move on the way.
            a != b && b.place != Place::Constant && self.plain(b).is_none_or(|r| r == RSP)
        })
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
            Place::Kept(n) => (self.places.kept(n), operand.plus),
            Place::Register(other) => match Self::scratch(other) {
                Some(n) => {
                    self.spill(n);
                    (self.places.gpr(other), operand.plus)
                }
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
        let Replay { operation, size, operands: [a, b] } = replay;
        let compares = matches!(operation, Operation::Subtract | Operation::And);
        let first = match self.plain(a).filter(|_| compares) {
            Some(r) => r,
            None => {
                // What R10 and R11 held of the guest is in memory before either is changed.
                self.spill_all();
                let r = self.temporary(&mut free).unwrap_or(SCRATCH[1]);
                self.fetch(r, a);
                r
            }
        };
        let second = match (b.place, self.plain(b)) {
            _ if a == b => Second::Register(first),
            (Place::Constant, _) => Second::Constant(b.plus),
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
            Operation::Negation => {
                by_size!(self.asm, neg, size, first);
                by_size!(self.asm, neg, size, first);
            }
            Operation::Increment => by_size!(self.asm, inc, size, first),
            Operation::Decrement => by_size!(self.asm, dec, size, first),
        }
    }

    /// Before `step`: keeps operands of the flags that no register has behind it.
    pub(super) fn keep_operands(&mut self, step: &Step) {
        let Some(mut lazy) = self.flags.lazy else { return };
        let [before, behind] = [0, 1].map(|n| &self.plan.values[self.now + n]);
        while let Some((operand, was)) = lazy.lost(before, behind) {
            let wanted = !self.flags.host || step.lost_behind;
            let (true, Some(n), Place::Register(r)) =
                (wanted && step.effect.sets != ARITH, lazy.free_place(), was.place)
            else {
                // Nobody asks for them before they are set anew, or they are in the host's until then.
                break;
            };
            self.need_register(r);
            dynasm!(self.asm ; .arch x64 ; mov [self.places.kept(n)], Rq(r));
            lazy.keep(operand, n, was.plus);
        }
        self.flags.lazy = Some(lazy);
    }

    /// Behind `step`.
    pub(super) fn flags_behind(&mut self, step: &Step) {
        if step.action == Action::Generic {
            // Rust has left them in both.
            self.flags = FlagState { host: true, lazy: Some(Recipe::SAVED) };
        } else if step.effect.modifies != 0 {
            let before = self.flags.lazy;
            let replay = step.replay;
            let lazy = replay.and_then(|replay| before.map_or_else(|| Recipe::of(replay), |b| b.then(replay)));
            self.flags = FlagState { host: true, lazy };
        }
        self.at_entry &= step.effect.sets != ARITH;
        let behind = &self.plan.values[self.now + 1];
        self.flags.lazy = self.flags.lazy.filter(|lazy| lazy.placed(behind).is_some());
    }
}

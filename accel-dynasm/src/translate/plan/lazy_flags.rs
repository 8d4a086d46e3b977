//! Lazy flags: recipes for the arithmetic flags, as operations whose operands are still there (ADR 19).
//!
//! Checks of memory accesses change the host's flags. Most often the operands of the instruction that has set them are
//! still in registers, so that nothing has to be saved: the operation is executed again where the flags are wanted. The
//! block itself does so where the guest reads them ([`crate::translate::emit`]), and Rust where a block is left.

use std::hash::{Hash, Hasher};

use x86_core::Cpu;
use x86_core::alu::wide::NoByte;
use x86_core::alu::{ArithFlags, Word, flag};

use super::flag_effects::{ARITH, Effect};
use super::values::{Value, first_values};
use crate::jit_context::{JitContext, KEPT};

/// Where a value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Place {
    Register(u8),
    /// In [`JitContext::kept`].
    Kept(u8),
    /// Zero.
    Constant,
}

/// The value at a place, plus a constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Operand<P> {
    pub place: P,
    pub plus: i32,
}

/// A value as the plan of a block knows it, in whichever register it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// [`Value::unknown`].
    Value(u32),
    Kept(u8),
    Constant,
    /// In memory; to be kept as it is loaded.
    Fetched,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Operation {
    Add,
    Subtract,
    /// And of OR and XOR, whose flags are those of AND of the result with itself.
    And,
    /// An addition whose sum is the first operand.
    Sum,
    /// A subtraction whose difference is the first operand.
    Difference,
    /// A subtraction of the number that makes the second operand the first.
    Taken,
    /// A negation whose result is the first operand.
    Negation,
    Increment,
    Decrement,
    ShiftLeft,
    ShiftRight,
    ShiftSigned,
    RotateLeft,
    RotateRight,
    /// With a product of one width.
    Multiply,
    /// BT.
    Bit,
}

/// One operation on operands of `size` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Replay<P> {
    pub operation: Operation,
    pub size: u8,
    pub operands: [Operand<P>; 2],
    pub effect: Effect,
}

/// How the flags can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lazy<P> {
    /// Sets all; without it, those in [`JitContext::flags`] come first.
    pub first: Option<Replay<P>>,
    /// Then sets some.
    pub then: Option<Replay<P>>,
}

/// Hashed once for each exit of a block: two words an operation.
impl Hash for Lazy<Place> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for replay in [self.first, self.then].into_iter().flatten() {
            let place = |operand: Operand<Place>| match operand.place {
                Place::Register(n) => u64::from(n),
                Place::Kept(n) => 0x100 | u64::from(n),
                Place::Constant => 0x200,
            };
            let [a, b] = replay.operands;
            let what = replay.operation as u64 | u64::from(replay.size) << 8;
            state.write_u64(what | place(a) << 16 | place(b) << 32);
            state.write_u64(u64::from(a.plus as u32) | u64::from(b.plus as u32) << 32);
        }
    }
}

/// By registers at one place of the code.
pub(crate) type LazyFlags = Lazy<Place>;
/// By values, which change their registers.
pub(crate) type Recipe = Lazy<Known>;

impl<P: Copy> Lazy<P> {
    pub(crate) const SAVED: Self = Self { first: None, then: None };

    /// The flags after one more operation, if they can be had `before`.
    pub(crate) fn after(before: Option<Self>, replay: Replay<P>) -> Option<Self> {
        if replay.effect.sets == ARITH {
            return Some(Self { first: Some(replay), then: None });
        }
        let before = before?;
        // Of an earlier one that sets no others nothing is left.
        let last = before.then.is_none_or(|then| then.effect.modifies & !replay.effect.sets == 0);
        last.then_some(Self { then: Some(replay), ..before })
    }

    pub(crate) fn replays(&self) -> impl Iterator<Item = &Replay<P>> {
        self.first.iter().chain(&self.then)
    }

    pub(crate) fn operands(&self) -> impl Iterator<Item = &Operand<P>> {
        self.replays().flat_map(|replay| &replay.operands)
    }

    fn map<Q>(self, place: impl Fn(Operand<P>) -> Option<Operand<Q>>) -> Option<Lazy<Q>> {
        let replay = |replay: Option<Replay<P>>| match replay {
            None => Some(None),
            Some(Replay { operation, size, operands: [a, b], effect }) => {
                Some(Some(Replay { operation, size, operands: [place(a)?, place(b)?], effect }))
            }
        };
        Some(Lazy { first: replay(self.first)?, then: replay(self.then)? })
    }
}

impl Recipe {
    /// Where the operands are while registers hold `values`; `None` if one is in none.
    pub(crate) fn placed(self, values: &[Value; 18]) -> Option<LazyFlags> {
        self.map(|operand| operand.placed(values))
    }

    /// Whether [`Self::placed`] finds all of them.
    pub(crate) fn is_placed(&self, values: &[Value; 18]) -> bool {
        self.operands().all(|operand| operand.placed(values).is_some())
    }

    /// An operand that a register holds in `before` and none holds in `after`, and where it was.
    pub(crate) fn lost(
        &self,
        before: &[Value; 18],
        after: &[Value; 18],
    ) -> Option<(Operand<Known>, Operand<Place>)> {
        self.operands().find_map(|operand| match (operand.placed(before), operand.placed(after)) {
            (Some(was), None) => Some((*operand, was)),
            _ => None,
        })
    }

    /// The value of `operand` is at place `n` from here on, but for `plus`.
    pub(crate) fn keep(&mut self, operand: Operand<Known>, n: u8, plus: i32) {
        for replay in self.first.iter_mut().chain(&mut self.then) {
            for same in replay.operands.iter_mut().filter(|other| **other == operand) {
                *same = Operand { place: Known::Kept(n), plus };
            }
        }
    }

    /// Whether an operand is kept at place `n`.
    pub(crate) fn keeps(&self, n: u8) -> bool {
        self.operands().any(|operand| operand.place == Known::Kept(n))
    }

    /// Whether an operand is still to be loaded.
    pub(crate) fn fetches(&self) -> bool {
        self.operands().any(|operand| operand.place == Known::Fetched)
    }
}

impl Operand<Known> {
    fn placed(self, values: &[Value; 18]) -> Option<Operand<Place>> {
        let Self { place, plus } = self;
        let place = match place {
            Known::Kept(n) => Place::Kept(n),
            Known::Constant => Place::Constant,
            Known::Fetched => return None,
            Known::Value(unknown) => {
                let holds = |r: &usize| *r < 16 && values[*r].unknown == unknown;
                let r = Some(Value::home(unknown)).filter(holds).or_else(|| (0..16).find(holds))?;
                let plus = plus.checked_sub(values[r].plus)?;
                return Some(Operand { place: Place::Register(r as u8), plus });
            }
        };
        Some(Operand { place, plus })
    }
}

impl LazyFlags {
    /// Of a block that begins with the registers as they are.
    pub(crate) fn at_entry(self) -> Recipe {
        let known = |Operand { place, plus }| {
            let place = match place {
                Place::Register(r) => Known::Value(first_values()[usize::from(r & 15)].unknown),
                Place::Kept(n) => Known::Kept(n),
                Place::Constant => Known::Constant,
            };
            Some(Operand { place, plus })
        };
        self.map(known).unwrap_or(Lazy::SAVED)
    }

    /// The flags, of a vCPU whose registers are those of the block.
    pub(crate) fn flags(&self, cpu: &Cpu, context: &JitContext) -> ArithFlags {
        let mut flags = ArithFlags(context.flags as u16);
        for Replay { operation, size, operands, .. } in self.replays() {
            let [a, b] = operands.map(|operand| {
                let value = match operand.place {
                    Place::Register(r) => cpu.gpr[usize::from(r & 15)],
                    Place::Kept(n) => context.kept[usize::from(n) % KEPT],
                    Place::Constant => 0,
                };
                value.wrapping_add_signed(operand.plus.into())
            });
            match size {
                1 => apply::<u8>(*operation, a, b, &mut flags),
                2 => apply_wide::<u16>(*operation, a, b, &mut flags),
                4 => apply_wide::<u32>(*operation, a, b, &mut flags),
                _ => apply_wide::<u64>(*operation, a, b, &mut flags),
            }
        }
        flags
    }
}

fn apply_wide<W: NoByte>(operation: Operation, a: u64, b: u64, flags: &mut ArithFlags) {
    match operation {
        Operation::Multiply => drop(W::from_u64(a).imul2(W::from_u64(b), flags)),
        Operation::Bit => flags.assign(flag::CF, a >> (b % u64::from(W::BITS)) & 1 != 0),
        _ => apply::<W>(operation, a, b, flags),
    }
}

fn apply<W: Word>(operation: Operation, a: u64, b: u64, flags: &mut ArithFlags) {
    let word = W::from_u64;
    let result = match operation {
        Operation::Add => word(a).add(word(b), flags),
        Operation::Subtract => word(a).sub(word(b), flags),
        Operation::And | Operation::Multiply | Operation::Bit => word(a).and(word(b), flags),
        Operation::Sum => word(a.wrapping_sub(b)).add(word(b), flags),
        Operation::Difference => word(a.wrapping_add(b)).sub(word(b), flags),
        Operation::Taken => word(b).sub(word(b.wrapping_sub(a)), flags),
        Operation::Negation => word(a.wrapping_neg()).neg(flags),
        Operation::Increment => word(a).inc(flags),
        Operation::Decrement => word(a).dec(flags),
        Operation::ShiftLeft => word(a).shl(b as u8, flags),
        Operation::ShiftRight => word(a).shr(b as u8, flags),
        Operation::ShiftSigned => word(a).sar(b as u8, flags),
        Operation::RotateLeft => word(a).rol(b as u8, flags),
        Operation::RotateRight => word(a).ror(b as u8, flags),
    };
    let _ = result;
}

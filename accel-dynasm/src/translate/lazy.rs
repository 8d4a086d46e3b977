//! Lazy flags: the arithmetic flags as operations whose operands are still there.
//!
//! Checks of memory accesses change the host's flags. Most often the operands of the instruction that has set them are still
//! in registers, so that nothing has to be saved: whoever wants the flags executes the operation again. That is the block
//! itself, where the guest reads them ([`super::flag_code`]), or Rust, where a block is left by a fault.

use x86_core::Cpu;
use x86_core::alu::{ArithFlags, Word};

use super::values::{Value, first_values};
use crate::home::Context;

/// Operands that can be kept in memory at a time.
pub(crate) const KEPT: usize = 4;
/// Operations in a row: one that leaves CF alone, and who has set that.
const MOST: usize = 2;

/// Where a value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Place {
    Register(u8),
    /// In [`Context::kept`].
    Kept(u8),
    /// Zero.
    Constant,
}

/// What is at a place, plus a constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Operand<P> {
    pub place: P,
    pub plus: i32,
}

/// Where a block finds a value: by what is known of all registers, whichever holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// [`Value::unknown`].
    Value(u32),
    Kept(u8),
    Constant,
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
    /// A negation whose result is the first operand.
    Negation,
    /// These leave CF alone.
    Increment,
    Decrement,
}

/// One operation on operands of `size` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Replay<P> {
    pub operation: Operation,
    pub size: u8,
    pub operands: [Operand<P>; 2],
}

impl<P> Replay<P> {
    /// Leaves CF alone.
    fn is_partial(&self) -> bool {
        matches!(self.operation, Operation::Increment | Operation::Decrement)
    }
}

/// How the flags can be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lazy<P> {
    /// First come those in [`Context::flags`].
    pub saved: bool,
    pub replays: [Option<Replay<P>>; MOST],
}

/// By registers at one place of the code.
pub(crate) type LazyFlags = Lazy<Place>;
/// By values, which change their registers.
pub(super) type Recipe = Lazy<Known>;

impl<P: Copy> Lazy<P> {
    pub(super) const SAVED: Self = Self { saved: true, replays: [None; MOST] };

    /// The flags behind one more operation.
    pub(super) fn then(self, replay: Replay<P>) -> Option<Self> {
        let [first, second] = self.replays;
        let replays = match (replay.is_partial(), first, second) {
            (false, ..) => return Some(Self { saved: false, replays: [Some(replay), None] }),
            // Of an earlier increment nothing is left.
            (true, Some(first), _) if !first.is_partial() => [Some(first), Some(replay)],
            (true, Some(_), None) | (true, None, None) => [Some(replay), None],
            _ => return None,
        };
        Some(Self { replays, ..self })
    }

    pub(super) fn of(replay: Replay<P>) -> Option<Self> {
        let alone = Self { saved: false, replays: [Some(replay), None] };
        (!replay.is_partial()).then_some(alone)
    }

    pub(super) fn operands(&self) -> impl Iterator<Item = &Operand<P>> {
        self.replays.iter().flatten().flat_map(|replay| &replay.operands)
    }

    fn map<Q>(self, mut place: impl FnMut(Operand<P>) -> Option<Operand<Q>>) -> Option<Lazy<Q>> {
        let mut replays = [const { None }; MOST];
        for (to, from) in replays.iter_mut().zip(self.replays) {
            let Some(from) = from else { continue };
            let [a, b] = from.operands;
            let operands = [place(a)?, place(b)?];
            *to = Some(Replay { operation: from.operation, size: from.size, operands });
        }
        Some(Lazy { saved: self.saved, replays })
    }
}

impl Recipe {
    /// Where the operands are while registers hold `values`; `None` if one is in none.
    pub(super) fn placed(self, values: &[Value; 18]) -> Option<LazyFlags> {
        self.map(|operand| operand.placed(values))
    }

    /// An operand that a register holds in `before` and none holds in `behind`, and where it was.
    pub(super) fn lost(&self, before: &[Value; 18], behind: &[Value; 18]) -> Option<(Operand<Known>, Operand<Place>)> {
        let lost = |operand: &Operand<Known>| match (operand.placed(before), operand.placed(behind)) {
            (Some(was), None) => Some((*operand, was)),
            _ => None,
        };
        self.operands().find_map(lost)
    }

    /// What `operand` was is at place `n` from here on, but for `plus`.
    pub(super) fn keep(&mut self, operand: Operand<Known>, n: u8, plus: i32) {
        for replay in self.replays.iter_mut().flatten() {
            for same in replay.operands.iter_mut().filter(|other| **other == operand) {
                *same = Operand { place: Known::Kept(n), plus };
            }
        }
    }

    /// A place in which no operand is kept.
    pub(super) fn free_place(&self) -> Option<u8> {
        (0..KEPT as u8).find(|n| self.operands().all(|operand| operand.place != Known::Kept(*n)))
    }
}

impl Operand<Known> {
    fn placed(self, values: &[Value; 18]) -> Option<Operand<Place>> {
        let Self { place, plus } = self;
        let place = match place {
            Known::Kept(n) => Place::Kept(n),
            Known::Constant => Place::Constant,
            Known::Value(unknown) => {
                let r = (0..16).find(|r| values[*r].unknown == unknown)?;
                let plus = plus.checked_sub(values[r].plus)?;
                return Some(Operand { place: Place::Register(r as u8), plus });
            }
        };
        Some(Operand { place, plus })
    }
}

impl LazyFlags {
    /// Of a block that begins with the registers as they are.
    pub(super) fn at_entry(self) -> Recipe {
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
    pub(crate) fn flags(&self, cpu: &Cpu, context: &Context) -> ArithFlags {
        let mut flags = ArithFlags(if self.saved { context.flags as u16 } else { 0 });
        for replay in self.replays.iter().flatten() {
            let [a, b] = replay.operands.map(|operand| {
                let value = match operand.place {
                    Place::Register(r) => cpu.gpr[usize::from(r & 15)],
                    Place::Kept(n) => context.kept[usize::from(n) % KEPT],
                    Place::Constant => 0,
                };
                value.wrapping_add_signed(operand.plus.into())
            });
            let apply = match replay.size {
                1 => apply::<u8>,
                2 => apply::<u16>,
                4 => apply::<u32>,
                _ => apply::<u64>,
            };
            apply(replay.operation, a, b, &mut flags);
        }
        flags
    }
}

fn apply<W: Word>(operation: Operation, a: u64, b: u64, flags: &mut ArithFlags) {
    let word = W::from_u64;
    match operation {
        Operation::Add => word(a).add(word(b), flags),
        Operation::Subtract => word(a).sub(word(b), flags),
        Operation::And => word(a).and(word(b), flags),
        Operation::Sum => word(a.wrapping_sub(b)).add(word(b), flags),
        Operation::Difference => word(a.wrapping_add(b)).sub(word(b), flags),
        Operation::Negation => word(a.wrapping_neg()).neg(flags),
        Operation::Increment => word(a).inc(flags),
        Operation::Decrement => word(a).dec(flags),
    };
}

//! One instruction of a block, as the plan describes it.

use iced_x86::{Instruction, Mnemonic, Register};

use super::classify::Action;
use super::flag_effects::Effect;

pub(crate) const RCX: u8 = 1;
pub(crate) const RSP: u8 = 4;
pub(crate) const RBP: u8 = 5;
/// The two registers that are not the guest's.
pub(crate) const SCRATCH: [u8; 2] = [10, 11];

/// The base of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Base {
    Register(u8),
    /// The linear address of the block's page.
    Page,
    /// Zero.
    None,
}

impl Base {
    /// The linear address itself, if it is known now.
    pub(crate) fn known(self, page: Option<u64>) -> Option<u64> {
        match self {
            Self::Register(_) => None,
            Self::Page => page,
            Self::None => Some(0),
        }
    }

    /// Where its value is followed.
    pub(super) fn slot(self) -> usize {
        match self {
            Self::Register(r) => r as usize,
            Self::Page => 16,
            Self::None => 17,
        }
    }
}

/// One memory access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub base: Base,
    /// Register and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
    /// FS or GS, as an index into the vCPU's segments.
    pub segment: Option<usize>,
    pub size: u16,
    pub write: bool,
    pub group: Option<u8>,
}

/// How an instruction uses one of the registers that are not in the host's.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Use {
    pub read: bool,
    pub write: bool,
}

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub ins: Instruction,
    /// Of its first byte in the page.
    pub offset: u16,
    pub action: Action,
    /// Its effect on the arithmetic flags.
    pub effect: Effect,
    /// Some flags are read after it, before they are set anew.
    pub live: bool,
    /// Its code changes flags of the host that the guest's instruction does not.
    pub checks: bool,
    /// The flags after it may be seen: by a fault, an exit or code that reads them.
    pub seen_after: bool,
    /// A check changes the host's flags before that.
    pub lost_after: bool,
    /// R10 and R11 as operands; in addresses they count by themselves.
    pub uses: [Use; 2],
    /// The operand in memory.
    pub operand: Option<Access>,
    /// The access to the stack.
    pub stack: Option<Access>,
    pub vector: bool,
    /// TZCNT on a processor without BMI1, which executes it as BSF.
    pub ignores_prefix: bool,
}

impl Step {
    /// Jumps to `first`, the start of its block.
    pub(crate) fn turns_to(&self, first: u64) -> bool {
        matches!(self.action, Action::Jump | Action::Jcc) && self.ins.near_branch64() == first
    }

    /// Whether the host may raise an exception that is the guest's, or that x86-core has to deal with.
    pub(crate) fn may_fault(&self) -> bool {
        let wide = self.operand.is_some_and(|o| o.size >= 16);
        // Some hosts refuse locked accesses across lines (ADR 15).
        let locked =
            self.ins.has_lock_prefix() || self.ins.mnemonic() == Mnemonic::Xchg && self.operand.is_some();
        // Division errors; and #GP where an operand is not aligned.
        matches!(self.ins.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) || wide || locked
    }

    /// Offset of the next instruction in the page.
    pub(crate) fn next_offset(&self) -> u16 {
        self.offset + self.ins.len() as u16
    }
}

/// A group of accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// The step before which it is checked.
    pub at: usize,
    /// The base of its range there.
    pub base: Base,
    pub low: i32,
    pub size: u16,
    pub write: bool,
}

/// Number of the 64-bit register that a general register is part of.
pub(crate) fn full(register: Register) -> u8 {
    register.full_register().number() as u8
}

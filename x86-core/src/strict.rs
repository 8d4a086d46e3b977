//! What data accesses are checked for beyond their translation, while the guest asks for it: alignment (#AC) and data
//! breakpoints.
//!
//! It costs nothing else: [`Cpu::strict`] makes [`Cpu::data_table`] the one where nothing hits, and only the slow path of
//! loads and stores comes here.

use crate::alu::flag;
use crate::mode::bits::CR0_AM;
use crate::{AccessKind, Cpu, Ea, Exec, Fault};

impl Cpu {
    /// Whether misaligned data accesses are #AC(0) (Intel SDM vol. 3, 6.15).
    pub(crate) fn checks_alignment(&self) -> bool {
        self.cpl == 3 && self.has(flag::AC) && self.cr0 & CR0_AM != 0
    }

    /// Runs `op` without alignment checks, as masked moves and gathers do (Intel SDM vol. 2A, table 2-18, exceptions
    /// types 6 and 12).
    pub(crate) fn at_any_alignment(&mut self, op: impl FnOnce(&mut Self) -> Exec) -> Exec {
        if !self.checks_alignment() {
            return op(self);
        }
        self.cr0 &= !CR0_AM;
        self.update_data_table();
        let result = op(self);
        self.cr0 |= CR0_AM;
        self.update_data_table();
        result
    }

    /// What a data access must pass before it is translated while [`Cpu::strict`] is set: alignment, as processors look at
    /// it behind the canonical form and before the page; and data breakpoints, which note it if `kind` is what happens
    /// (`None`: it is only tried).
    #[inline]
    pub(crate) fn check_access(&mut self, ea: Ea, len: usize, kind: Option<AccessKind>) -> Exec {
        if self.strict { self.check_strictly(ea, len, kind) } else { Ok(()) }
    }

    #[cold]
    fn check_strictly(&mut self, ea: Ea, len: usize, kind: Option<AccessKind>) -> Exec {
        if self.checks_alignment() && ea.la & (natural_alignment(len) - 1) != 0 {
            self.check_end(ea, 1)?;
            self.check_end(ea, len)?;
            return Err(Fault::AC0);
        }
        if let Some(kind) = kind
            && self.watching
        {
            self.note_access(ea.la, len, kind == AccessKind::Write);
        }
        Ok(())
    }
}

/// Alignment that an operand of `len` bytes wants where it is checked (Intel SDM vol. 3, table 6-7; the vector operands as
/// processors do it).
const fn natural_alignment(len: usize) -> u64 {
    match len {
        // FSTENV and FSAVE images of 16-bit code.
        2 | 14 | 94 => 2,
        // Those of 32-bit code.
        4 | 28 | 108 => 4,
        // 10 bytes: an extended real.
        8 | 10 => 8,
        16 | 32 => 16,
        _ => 1,
    }
}

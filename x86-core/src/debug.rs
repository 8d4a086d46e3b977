//! Breakpoints of the debug registers, and single steps (Intel SDM vol. 3, chapter 18).
//!
//! 1. Nothing of this costs anything while DR7 enables no breakpoint and TF is clear. Else the run loop executes one
//!    instruction at a time by [`Cpu::step`].
//! 2. A breakpoint on code is a fault, found before the instruction. What is found while it executes (data, ports) and
//!    the single step are traps. The bits of DR6 of all of them gather in [`Cpu::pending_debug`] until a debug exception
//!    tells of them: one for all.
//! 3. MOV SS and POP SS hold their traps back until the next instruction is over (6.8.3). If that enters a handler or the
//!    system by itself (INT n, INT3, INTO, SYSCALL, SYSENTER), the trap comes before the first instruction there. If it
//!    raises a debug exception (INT1, GD), that one tells of the trap, too. Any other exception ends it, as on the
//!    processors that Linux's `mov_ss_trap` self-test describes.
//! 4. Data breakpoints see each access because [`Cpu::strict`] keeps the soft TLB from answering.
//! 5. DR6 tells of enabled breakpoints only.

use iced_x86::{Code, FlowControl, Instruction};

use crate::alu::flag;
use crate::mode::bits::CR4_DE;
use crate::{Cpu, Exec, Fault, Shutdown, vector};

/// Bits of DR6 (Intel SDM vol. 3, 18.2.3).
#[allow(missing_docs)] // the manual's names
pub mod dr6 {
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// B0 to B3: which breakpoint it was.
    pub const HITS: u64 = 0xf;
}

/// What a breakpoint waits for (18.2.4, R/W).
mod kind {
    pub(super) const CODE: u64 = 0;
    pub(super) const WRITE: u64 = 1;
    pub(super) const PORT: u64 = 2;
    pub(super) const ACCESS: u64 = 3;
}

impl Cpu {
    /// Writes DR7, whose reserved bits the caller has set right.
    pub(crate) fn set_dr7(&mut self, value: u64) {
        self.dr7 = value;
        self.update_breakpoints();
    }

    /// Recomputes what follows from DR7.
    pub(crate) fn update_breakpoints(&mut self) {
        self.armed = self.dr7 & 0xff != 0;
        self.watching = (0..4).any(|n| matches!(self.enabled(n), Some(kind::WRITE | kind::ACCESS)));
        self.update_data_table();
    }

    /// The kind of breakpoint `n`, if DR7 enables it.
    fn enabled(&self, n: usize) -> Option<u64> {
        (self.dr7 >> (2 * n) & 3 != 0).then(|| self.dr7 >> (16 + 4 * n) & 3)
    }

    /// Bytes that breakpoint `n` spans (18.2.4, LEN).
    fn span_of(&self, n: usize) -> u64 {
        [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize]
    }

    /// B0 to B3 of the breakpoints of a kind in `kinds` that lie within `len` bytes (or ports) from `at` on.
    fn hits(&self, at: u64, len: usize, kinds: &[u64]) -> u64 {
        let hit = |n: &usize| {
            let span = self.span_of(*n);
            // Low address bits do not count (18.2.5).
            let start = self.dr[*n] & !(span - 1);
            let last = at.wrapping_add(len as u64 - 1);
            self.enabled(*n).is_some_and(|kind| kinds.contains(&kind))
                && at <= start | (span - 1)
                && start <= last
        };
        (0..4).filter(hit).fold(0, |bits, n| bits | 1 << n)
    }

    /// Breakpoints on the instruction at linear address `la`.
    fn code_breakpoints(&self, la: u64) -> u64 {
        // Of more than one byte they are undefined (18.2.4); the first byte counts.
        (0..4)
            .filter(|&n| self.enabled(n) == Some(kind::CODE) && self.dr[n] == la)
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// Notes a data access that a breakpoint may wait for.
    pub(crate) fn note_access(&mut self, la: u64, len: usize, write: bool) {
        let kinds: &[u64] = if write { &[kind::WRITE, kind::ACCESS] } else { &[kind::ACCESS] };
        self.pending_debug |= self.hits(la, len, kinds);
    }

    /// Notes an access to `len` ports.
    pub(crate) fn note_ports(&mut self, port: u16, len: usize) {
        if self.cr4 & CR4_DE != 0 {
            self.pending_debug |= self.hits(port.into(), len, &[kind::PORT]);
        }
    }

    /// A debug exception for `causes` is on its way: DR6 tells. B0 to B3 are of the last one only (18.2.3).
    pub(crate) fn tell_debug_causes(&mut self, causes: u64) {
        self.dr6 = self.dr6 & !dr6::HITS | causes;
    }

    /// An exception is on its way. If it is a debug exception, it tells of all causes there are; any other ends what was
    /// held back. A task switch's trap is for the new task to take.
    pub(crate) fn resolve_debug_causes(&mut self, exception: u8) {
        if exception == vector::DB {
            let causes = std::mem::take(&mut self.pending_debug);
            self.tell_debug_causes(causes);
        } else {
            self.pending_debug &= dr6::BT;
        }
    }

    /// Whether a string instruction must stop after each element, for the trap that may follow it.
    pub(crate) fn stops_repeats(&self) -> bool {
        self.armed || self.has(flag::TF)
    }

    /// Delivers the debug trap that is due behind the last instruction, if one is.
    ///
    /// # Errors
    /// Triple fault.
    #[inline]
    pub fn take_debug_trap(&mut self) -> Result<(), Shutdown> {
        if self.pending_debug == 0 || self.debug_shadow {
            return Ok(());
        }
        self.raise(Fault::DB)
    }

    /// Executes the instruction at RIP on its own, with the breakpoint before it; [`Cpu::take_debug_trap`] delivers the
    /// trap behind it.
    ///
    /// # Errors
    /// Its fault; RIP stays.
    pub fn step(&mut self) -> Exec {
        let resumed = self.has(flag::RF);
        self.system_flags &= !flag::RF;
        // MOV SS and POP SS keep code breakpoints from the next instruction, too (6.8.3).
        let shadowed = std::mem::take(&mut self.debug_shadow);
        if self.armed && !resumed && !shadowed {
            let hits = self.code_breakpoints(self.code_address(self.rip));
            if hits != 0 {
                self.pending_debug |= hits;
                return Err(Fault::DB);
            }
        }
        let stepping = self.has(flag::TF);
        let before = self.pending_debug;
        let ins = self.execute_one().inspect_err(|_| {
            // An instruction that has not completed traps for nothing it touched.
            self.pending_debug = before | self.pending_debug & (dr6::BT | dr6::BD);
        })?;
        self.rip = self.next_rip;
        self.instructions += 1;
        // Of several MOV SS in a row only the first holds traps back (6.8.3), so that none waits for ever.
        self.debug_shadow &= !shadowed;
        if stepping && self.steps_over(&ins) {
            self.pending_debug |= dr6::BS;
        }
        Ok(())
    }

    /// Whether `ins`, which has completed and began with TF set, is followed by the single-step trap (18.3.1.4).
    fn steps_over(&self, ins: &Instruction) -> bool {
        match ins.code() {
            // The kernel can keep the trap from its entry by IA32_FMASK (AMD APM vol. 2, 6.1.1).
            Code::Syscall | Code::Sysretd | Code::Sysretq => self.has(flag::TF),
            // Entering the handler has cleared TF.
            _ if ins.flow_control() == FlowControl::Interrupt => false,
            // The trap behind MOV SS is left out: the next instruction's comes anyway.
            _ if self.debug_shadow => false,
            // DEBUGCTL.BTF: on branches only (18.4.3).
            _ => self.msrs.debugctl & DEBUGCTL_BTF == 0 || self.branched(ins),
        }
    }

    fn branched(&self, ins: &Instruction) -> bool {
        match ins.flow_control() {
            FlowControl::Next => false,
            FlowControl::ConditionalBranch => self.next_rip != ins.next_ip(),
            _ => true,
        }
    }
}

const DEBUGCTL_BTF: u64 = 2;

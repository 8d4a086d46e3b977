//! Lockstep: checks host code against the semantics functions of the instructions that it was translated from.
//!
//! 1. Blocks are neither chained nor found in the jump cache, so that each comes back to the dispatcher at its end.
//! 2. Before a block that is to be checked runs, x86-core executes the same instructions on trial
//!    ([`x86_core::Trial`]): the registers after each are kept, its stores are taken back. So nothing else may store to
//!    RAM: there is one vCPU, and devices do so only when the guest asks them, which ends a trial.
//! 3. When the block is left, wherever that is, its registers and all bytes stored are compared with those of the trial
//!    after as many instructions.
//! 4. Where a trial ends before the block does (a device, an instruction that gives something else each time), what
//!    came before is compared when the block hands that instruction over.

use x86_core::alu::flag;
use x86_core::{Cpu, Fault, Registers, Trial, TrialEnd, WrongBytes, vector};

/// Times that each block is checked, whatever the share.
const FIRST: u8 = 2;

/// A difference between host code and the trial.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub what: String,
    pub before: Box<Registers>,
    pub expected: Box<Registers>,
    pub found: Box<Registers>,
    pub bytes: Vec<WrongBytes>,
    /// Instructions executed.
    pub executed: usize,
}

/// The state of checking, of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Lockstep {
    /// One in so many blocks is checked.
    every: u64,
    left: u64,
    /// The block that is to be checked next.
    pending: Option<u32>,
    /// A block is being checked.
    active: bool,
    /// It has raised the fault that was due.
    faulted: bool,
    /// Instructions counted before it.
    pub start: u64,
    pub trial: Trial,
    pub difference: Option<Difference>,
    pub compared: u64,
    pub incomparable: u64,
}

impl Lockstep {
    /// Checks one in `every` blocks, and each block at first.
    pub(crate) fn new(every: u64) -> Self {
        Self { every: every.max(1), left: 1, ..Self::default() }
    }

    /// Whether block `number`, about to run, is to be checked, which has been done `times`.
    pub(crate) fn due(&mut self, number: u32, times: &mut u8) -> bool {
        if self.pending == Some(number) {
            return true;
        }
        self.left -= 1;
        let turn = self.left == 0;
        if turn {
            self.left = self.every;
        }
        if !turn && *times >= FIRST {
            return false;
        }
        *times = times.saturating_add(1);
        self.pending = Some(number);
        true
    }

    /// A number may be another block's from now on.
    pub(crate) fn forget(&mut self) {
        self.pending = None;
    }

    /// A block is being checked, so that it must come back wherever it ends.
    pub(crate) fn active(&self) -> bool {
        self.active
    }

    /// Executes up to `limit` instructions on trial; `start` have been counted.
    pub(crate) fn begin(&mut self, cpu: &mut Cpu, limit: usize, start: u64) {
        self.pending = None;
        self.faulted = false;
        self.start = start;
        cpu.run_trial(limit, &mut self.trial);
        self.active = true;
    }

    /// The block has handed over an instruction, `counted` before it: the last look at a trial that ended there.
    pub(crate) fn hand_over(&mut self, cpu: &mut Cpu, counted: u64) {
        let executed = counted.wrapping_sub(self.start) as usize;
        if self.trial.end == TrialEnd::Barred && executed + 1 == self.trial.states.len() {
            // Behind STI interrupts are not looked for before this instruction is over: the shadow needs no other
            // record.
            self.compare(cpu, executed, true);
        }
    }

    /// The block is over, and has raised `fault`.
    pub(crate) fn finish(&mut self, cpu: &mut Cpu, counted: u64, fault: Option<Fault>) {
        self.active = false;
        if self.difference.is_some() {
            return;
        }
        let executed = counted.wrapping_sub(self.start) as usize;
        let last = self.trial.states.len() - 1;
        let expected = match self.trial.end {
            TrialEnd::Fault(fault, address) if executed == last => Some((fault, address)),
            _ => None,
        };
        if executed > last {
            match self.trial.end {
                TrialEnd::Barred => self.incomparable += 1,
                TrialEnd::Over => {
                    self.differs(cpu, last, format!("{executed} instructions instead of {last}"))
                }
                TrialEnd::Fault(fault, _) => {
                    self.differs(cpu, last, format!("goes on where {fault:?} is due"))
                }
            }
            return;
        }
        if let Some(fault) = fault {
            if self.trial.end == TrialEnd::Barred && executed == last {
                // Looked at when it was handed over.
                self.incomparable += 1;
                return;
            }
            if expected.is_none_or(|(other, _)| other != fault) {
                let due = expected.map_or("nothing".to_owned(), |(other, _)| format!("{other:?}"));
                return self.differs(cpu, executed, format!("raises {fault:?} where {due} is due"));
            }
            let wrong = |address: u64| fault.vector() == vector::PF && address != cpu.fault_address;
            if let Some((_, address)) = expected.filter(|(_, address)| wrong(*address)) {
                let what = format!("a page fault of {:#x} instead of {address:#x}", cpu.fault_address);
                return self.differs(cpu, executed, what);
            }
            self.faulted = true;
        }
        self.compare(cpu, executed, false);
    }

    /// The registers that are due after `executed` instructions, and how many of these may have stored.
    fn expected(&self, executed: usize) -> (&Registers, usize) {
        match &self.trial.at_fault {
            Some(partial) if self.faulted => (partial, executed + 1),
            _ => (&self.trial.states[executed], executed),
        }
    }

    /// `held`: whether interrupts wait for one more instruction need not be right.
    fn compare(&mut self, cpu: &mut Cpu, executed: usize, held: bool) {
        self.compared += 1;
        let mut found = cpu.registers();
        let (expected, steps) = self.expected(executed);
        // RF says that an instruction is resumed, which only the run loop knows.
        found.rflags = found.rflags & !flag::RF | expected.rflags & flag::RF;
        if held {
            found.shadow = expected.shadow;
        }
        let bytes = self.trial.journal().map(|j| j.wrong_bytes(steps)).unwrap_or_default();
        if found != *expected || !bytes.is_empty() {
            let what = if found == *expected { "memory" } else { "registers" };
            self.differs(cpu, executed, format!("{what} differ after {executed} instructions"));
        }
    }

    #[cold]
    fn differs(&mut self, cpu: &mut Cpu, executed: usize, what: String) {
        let (expected, steps) = self.expected(executed);
        self.difference = Some(Difference {
            what,
            before: Box::new(self.trial.states[0].clone()),
            expected: Box::new(expected.clone()),
            found: Box::new(cpu.registers()),
            bytes: self.trial.journal().map(|j| j.wrong_bytes(steps)).unwrap_or_default(),
            executed,
        });
    }
}

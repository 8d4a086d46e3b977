//! Executes instructions on trial: what comes of them is kept, and everything is as before.
//!
//! An executor that translates is compared with this, block by block. Only what can be done twice is done: the trial ends
//! in front of an instruction whose outcome differs by nature, or that reaches outside the CPU and its RAM.

use accel_api::Segment;
use iced_x86::{Instruction, Mnemonic};

use crate::exec::sse::mxcsr;
use crate::journal::Journal;
use crate::{Cpu, Fault, FpuRegs, VectorFile, exec};

/// Registers that instructions which can be tried may change.
#[derive(Clone, PartialEq, Debug)]
pub struct Registers {
    /// RAX to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Segment; 6],
    /// YMM0 to YMM15.
    pub vector: VectorFile,
    /// x87, MMX and MXCSR.
    pub fpu: FpuRegs,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// Interrupts wait for one more instruction.
    pub shadow: bool,
    /// An NMI has been taken and IRET has not come yet.
    pub nmi_masked: bool,
}

/// Why a trial ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrialEnd {
    /// As many instructions as were asked for, or the run loop has to look at something.
    #[default]
    Over,
    /// The next instruction raises this fault; for #PF, of this linear address.
    Fault(Fault, u64),
    /// The next instruction cannot be tried.
    Barred,
}

/// A trial, and its allocations for the next.
#[derive(Debug, Default)]
pub struct Rehearsal {
    /// Before the first instruction, and behind each.
    pub states: Vec<Registers>,
    /// Those that were executed, and the one that was not, if it could be decoded.
    pub instructions: Vec<Instruction>,
    /// Why it ended.
    pub end: TrialEnd,
    /// Where it ended with a fault: what the instruction had done already, as repeated ones may.
    pub at_fault: Option<Box<Registers>>,
    journal: Option<Box<Journal>>,
}

impl Rehearsal {
    /// What was stored, once a trial has been made.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref()
    }
}

impl Cpu {
    /// The registers as they are.
    pub fn registers(&mut self) -> Registers {
        mxcsr::sync(self);
        Registers {
            gpr: self.gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segs: self.segs,
            vector: self.vector,
            fpu: self.fpu.clone(),
            kernel_gs_base: self.msrs.kernel_gs_base,
            shadow: self.shadow,
            nmi_masked: self.nmi_masked,
        }
    }

    /// Executes up to `limit` instructions from RIP on and takes everything back. The vCPU must run guest code now
    /// ([`mxcsr::enter`]), and no other may store to RAM meanwhile.
    pub fn rehearse(&mut self, limit: usize, into: &mut Rehearsal) {
        into.states.clear();
        into.at_fault = None;
        into.instructions.clear();
        into.states.push(self.registers());
        let (cpl, leave, budget) = (self.cpl, self.leave, self.budget);
        let (next_rip, cr2, fault_address) = (self.next_rip, self.cr2, self.fault_address);
        let (instructions, code_page) = (self.instructions, self.code_page);
        let (debug_shadow, pending_debug) = (self.debug_shadow, self.pending_debug);
        let mut journal = into.journal.take().unwrap_or_default();
        journal.clear();
        self.journal = Some(journal);
        self.leave = false;
        self.update_data_tlb();

        into.end = self.try_out(limit, into);

        let mut journal = self.journal.take().unwrap_or_default();
        journal.undo();
        into.journal = Some(journal);
        let before = &into.states[0];
        self.gpr = before.gpr;
        self.rip = before.rip;
        self.segs = before.segs;
        self.vector = before.vector;
        self.fpu = before.fpu.clone();
        mxcsr::replace(self, before.fpu.mxcsr);
        self.msrs.kernel_gs_base = before.kernel_gs_base;
        (self.shadow, self.nmi_masked) = (before.shadow, before.nmi_masked);
        self.set_rflags(before.rflags);
        self.update_mode();
        (self.cpl, self.leave, self.budget) = (cpl, leave, budget);
        (self.next_rip, self.cr2, self.fault_address) = (next_rip, cr2, fault_address);
        (self.instructions, self.code_page) = (instructions, code_page);
        (self.debug_shadow, self.pending_debug) = (debug_shadow, pending_debug);
        self.update_data_tlb();
    }

    fn try_out(&mut self, limit: usize, into: &mut Rehearsal) -> TrialEnd {
        while into.states.len() <= limit {
            let done = self.decode_at(self.rip).and_then(|ins| {
                into.instructions.push(ins);
                if !can_be_tried(&ins) {
                    return Ok(false);
                }
                self.next_rip = ins.next_ip();
                exec::lookup(ins.code())(self, &ins)?;
                Ok(true)
            });
            let barred = self.journal.as_ref().is_none_or(|j| j.barred());
            match done {
                _ if barred => return TrialEnd::Barred,
                Err(fault) => {
                    if let Some(journal) = &mut self.journal {
                        journal.end_step();
                    }
                    into.at_fault = Some(Box::new(self.registers()));
                    return TrialEnd::Fault(fault, self.fault_address);
                }
                Ok(false) => return TrialEnd::Barred,
                // A repeated instruction that has not finished: where it pauses is nobody's business.
                Ok(true) if self.next_rip == self.rip && self.leave => return TrialEnd::Barred,
                Ok(true) => {}
            }
            self.rip = self.next_rip;
            if let Some(journal) = &mut self.journal {
                journal.end_step();
            }
            let state = self.registers();
            into.states.push(state);
            if self.leave {
                return TrialEnd::Over;
            }
        }
        TrialEnd::Over
    }
}

/// Whether an instruction gives the same each time, and can be taken back by restoring [`Registers`] and RAM.
fn can_be_tried(ins: &Instruction) -> bool {
    use Mnemonic::*;
    match ins.mnemonic() {
        Rdtsc | Rdtscp | Rdpmc | Rdrand | Rdseed => false,
        Cli | Sti | Clac | Stac | Swapgs | Sysret | Sysretq | Iretq | Xsaves | Xrstors | Xsaves64
        | Xrstors64 => true,
        _ => !ins.is_privileged(),
    }
}

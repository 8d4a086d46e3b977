//! Executes instructions on trial: what comes of them is kept, and everything is as before.
//!
//! A JIT is compared with this, block by block (lockstep). Only what can be done twice is done: the trial ends
//! in front of an instruction whose outcome differs by nature, or that reaches outside the CPU and its RAM.

use accel_api::x86::Segment;
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
    /// As many instructions as were asked for.
    #[default]
    Over,
    /// The next instruction raises this fault; for #PF, of this linear address.
    Fault(Fault, u64),
    /// The next instruction cannot be tried.
    Barred,
}

/// A trial, and its allocations for the next.
#[derive(Debug, Default)]
pub struct Trial {
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

impl Trial {
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
    pub fn run_trial(&mut self, limit: usize, into: &mut Trial) {
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
        self.update_data_table();

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
        self.update_data_table();
    }

    fn try_out(&mut self, limit: usize, into: &mut Trial) -> TrialEnd {
        while into.states.len() <= limit {
            // Whoever looks at requests does so elsewhere; a shadow is over after one instruction.
            self.leave = false;
            self.shadow = false;
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
        }
        TrialEnd::Over
    }
}

/// Whether an instruction gives the same each time, and can be taken back by restoring [`Registers`] and RAM.
fn can_be_tried(ins: &Instruction) -> bool {
    use Mnemonic::*;
    match ins.mnemonic() {
        Rdtsc | Rdtscp | Rdpmc | Rdpru | Rdrand | Rdseed => false,
        Cli | Sti | Clac | Stac | Swapgs | Sysret | Sysretq | Iretq | Xsaves | Xrstors | Xsaves64
        | Xrstors64 => true,
        _ => !ins.is_privileged(),
    }
}

#[cfg(test)]
mod tests {
    use accel_api::x86::gpr::{RAX, RBX, RCX, RDI, RSP};

    use super::*;
    use crate::mode::bits::CR0_PG;
    use crate::testing::{RAM_SIZE, cpu, peek, poke, step};
    use crate::{Mode, vector};

    const CODE: u64 = 0x1000;
    const TABLES: u64 = 0x10000;
    /// The one page below the tables that is not present.
    const ABSENT: u64 = 0x8000;

    /// A vCPU at `code` with all RAM but [`ABSENT`] mapped to itself by tables in which no A or D bit is set.
    fn paging(code: &[u8]) -> Box<Cpu> {
        let mut cpu = cpu(Mode::Long);
        poke(&mut cpu, CODE, code);
        let entry = |cpu: &mut Cpu, at: u64, value: u64| poke(cpu, at, &value.to_le_bytes());
        for level in 0..3 {
            let table = TABLES + 0x1000 * level;
            entry(&mut cpu, table, (table + 0x1000) | 3);
        }
        for page in (0..RAM_SIZE).step_by(0x1000).filter(|page| *page != ABSENT) {
            entry(&mut cpu, TABLES + 0x3000 + page / 512, page | 3);
        }
        cpu.cr3 = TABLES;
        cpu.rip = CODE;
        cpu.gpr[RSP] = 0x5008;
        set_paging(&mut cpu, true);
        cpu
    }

    fn set_paging(cpu: &mut Cpu, on: bool) {
        cpu.cr0 = cpu.cr0 & !CR0_PG | if on { CR0_PG } else { 0 };
        cpu.tlb.flush_all();
        cpu.update_mode();
    }

    /// All of RAM; looking sets no A bit.
    fn ram(cpu: &mut Cpu) -> Vec<u8> {
        set_paging(cpu, false);
        let bytes = peek(cpu, 0, RAM_SIZE as usize);
        set_paging(cpu, true);
        bytes
    }

    #[test]
    fn a_trial_leaves_no_trace_and_tells_what_happens() {
        let code = [
            &b"\xc7\x04\x25\xfe\x6f\0\0\x44\x33\x22\x11"[..], // mov dword [0x6ffe], 0x11223344
            b"\x50",                                          // push rax
            b"\xf3\xaa",                                      // rep stosb
            b"\x48\x87\x1c\x25\0\x90\0\0",                    // xchg [0x9000], rbx
            b"\xfb",                                          // sti
            b"\x48\xff\xc0",                                  // inc rax
            b"\x0f\x31",                                      // rdtsc
        ]
        .concat();
        let mut cpu = paging(&code);
        (cpu.gpr[RAX], cpu.gpr[RBX], cpu.gpr[RCX], cpu.gpr[RDI]) = (0x77, 9, 5, 0xa100);
        let (before, registers) = (ram(&mut cpu), cpu.registers());
        let mut trial = Trial::default();
        cpu.leave = false;
        cpu.run_trial(40, &mut trial);
        assert!(!cpu.leave && cpu.registers() == registers);
        assert_eq!((trial.end, trial.states.len(), trial.instructions.len()), (TrialEnd::Barred, 7, 7));
        assert!(trial.states[5].shadow && !trial.states[6].shadow);
        assert!(ram(&mut cpu) == before);

        for n in 1..trial.states.len() {
            cpu.shadow = false;
            step(&mut cpu).unwrap();
            assert_eq!(cpu.registers(), trial.states[n], "{n}");
            let journal = trial.journal().unwrap();
            assert_eq!(journal.wrong_bytes(n), [], "{n}");
            // D bits of the pages stored to are among them.
            assert_eq!(journal.wrong_bytes(6).is_empty(), n >= 4, "{n}");
        }
        assert_ne!(ram(&mut cpu), before);
    }

    #[test]
    fn what_a_faulting_instruction_has_done_is_told_apart() {
        let mut cpu = paging(b"\xf3\xaa"); // rep stosb
        (cpu.gpr[RAX], cpu.gpr[RCX], cpu.gpr[RDI]) = (0x77, 4, ABSENT - 2);
        let (before, registers) = (ram(&mut cpu), cpu.registers());
        let mut trial = Trial::default();
        cpu.run_trial(1, &mut trial);
        let TrialEnd::Fault(fault, address) = trial.end else { panic!("{:?}", trial.end) };
        assert_eq!((fault.vector(), address), (vector::PF, ABSENT));
        assert_eq!(trial.states.len(), 1);
        let partial = trial.at_fault.as_ref().unwrap();
        assert_eq!((partial.rip, partial.gpr[RCX], partial.gpr[RDI]), (CODE, 2, ABSENT));
        assert!(cpu.registers() == registers && ram(&mut cpu) == before);
        assert_eq!(step(&mut cpu), Err(fault));
        assert!(cpu.registers() == **partial);
        assert_eq!(trial.journal().unwrap().wrong_bytes(1), []);
    }

    #[test]
    fn what_cannot_be_done_twice_ends_a_trial() {
        // nop, and: rdtsc; rdrand eax; in al, 0x60; mov cr3, rax; wrmsr; hlt; mov [0x9003], al, where code was decoded.
        let codes: [&[u8]; 7] = [
            b"\x0f\x31",
            b"\x0f\xc7\xf0",
            b"\xe4\x60",
            b"\x0f\x22\xd8",
            b"\x0f\x30",
            b"\xf4",
            b"\x88\x04\x25\x03\x90\0\0",
        ];
        for code in codes {
            let mut cpu = paging(&[b"\x90", code].concat());
            cpu.vm.flags.set(9, accel_api::PageFlag::CODE);
            cpu.vm.code.add(9, 1);
            let before = ram(&mut cpu);
            let mut trial = Trial::default();
            cpu.run_trial(40, &mut trial);
            assert_eq!((trial.end, trial.states.len()), (TrialEnd::Barred, 2), "{code:x?}");
            assert!(
                ram(&mut cpu) == before && cpu.stale_code.is_empty() && cpu.vm.code.get(9) == 1,
                "{code:x?}"
            );
        }
    }
}

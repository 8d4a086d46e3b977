//! Instructions one by one, where no translation is to be had or wanted.

use x86_core::{Cpu, Exec, MAX_INSTRUCTION};

use crate::engine::Engine;

impl Engine {
    /// Decodes and executes the instruction at RIP on its own.
    ///
    /// # Errors
    /// Its fault; RIP stays.
    pub(crate) fn single(&mut self, cpu: &mut Cpu) -> Exec {
        self.stats.single_steps += 1;
        cpu.execute_one()?;
        cpu.rip = cpu.next_rip;
        self.count(1);
        Ok(())
    }

    /// Executes what a block of `left` instructions holds, one by one.
    ///
    /// # Errors
    /// The fault of the instruction at RIP.
    #[cold]
    pub(crate) fn step_through(&mut self, cpu: &mut Cpu, mut left: u16) -> Exec {
        self.stepping = None;
        while left > 0 {
            let before = cpu.rip;
            left -= 1;
            cpu.budget -= 1;
            self.single(cpu)?;
            if cpu.rip.wrapping_sub(before) > MAX_INSTRUCTION as u64 || cpu.rip == before {
                break;
            }
            if cpu.leave || cpu.shared.requested() != 0 {
                // What is left of it must not be taken for another block.
                self.stepping = Some((cpu.rip, left)).filter(|_| left > 0);
                break;
            }
        }
        Ok(())
    }
}

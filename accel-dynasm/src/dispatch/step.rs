//! Single instructions: those that cross into another page, which are blocks of one instruction, and those that have no
//! translation or are not to have one.
//!
//! The code of a block of two pages depends on a second translation of addresses. So in user code only jumps that look
//! at the linear address lead to one, and jumps to one of the kernel's ask again when those to other pages do.

use accel_api::PAGE_SIZE;
use x86_core::{CodePage, Cpu, Exec, MAX_INSTRUCTION};

use super::Dispatcher;

impl Dispatcher {
    /// The page after the one of RIP, if it can be fetched from.
    pub(super) fn second_page(&mut self, cpu: &mut Cpu) -> Option<CodePage> {
        cpu.code_page_at((cpu.rip | (PAGE_SIZE - 1)).wrapping_add(1)).ok().flatten()
    }

    /// Whether the second page of block `number`, which was found for RIP, is still the same; if it has one.
    pub(super) fn is_whole(&mut self, cpu: &mut Cpu, number: u32) -> bool {
        let Some(second) = self.store.blocks.get(number).second else { return true };
        self.second_page(cpu).is_some_and(|page| page.index == second)
    }

    /// Whether the translation of the second page of block `number`, which was found for RIP, is global; if it has one.
    pub(super) fn is_global(&mut self, cpu: &mut Cpu, number: u32) -> bool {
        self.store.blocks.get(number).second.is_none()
            || self.second_page(cpu).is_some_and(|page| page.global)
    }

    /// Decodes and executes the instruction at RIP on its own.
    ///
    /// # Errors
    /// Its fault; RIP stays.
    pub(super) fn single(&mut self, cpu: &mut Cpu) -> Exec {
        self.counters.single_steps += 1;
        cpu.execute_one()?;
        cpu.rip = cpu.next_rip;
        self.count(1);
        Ok(())
    }

    /// Executes the `left` instructions of a block one by one.
    ///
    /// # Errors
    /// The fault of the instruction at RIP.
    #[cold]
    pub(super) fn step_through(&mut self, cpu: &mut Cpu, mut left: u16) -> Exec {
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
                // The rest of it must not be taken for another block.
                self.stepping = Some((cpu.rip, left)).filter(|_| left > 0);
                break;
            }
        }
        Ok(())
    }
}

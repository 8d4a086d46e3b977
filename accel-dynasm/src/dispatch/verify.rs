//! Runs blocks in lockstep with their instructions.

use accel_api::{AccelError, BackendReport};
use x86_core::Cpu;
use x86_core::shared::request;

use super::Dispatcher;
use crate::debug::lockstep::Difference;
use crate::debug::{divergence, listing};
use crate::translate::output::Site;
use crate::translate::plan::lazy_flags::LazyFlags;

impl Dispatcher {
    /// Whether a block is being checked, which has to come back wherever it ends.
    pub(super) fn is_checking(&self) -> bool {
        self.lockstep.as_ref().is_some_and(|lockstep| lockstep.active())
    }

    /// Whether block `number`, about to run, is to be checked.
    pub(super) fn is_due(&mut self, number: u32) -> bool {
        let Self { lockstep, store, .. } = self;
        let blocks = &mut store.blocks;
        lockstep.as_mut().is_some_and(|lockstep| lockstep.due(number, &mut blocks.get_mut(number).checked))
    }

    /// x86-core is about to execute the instruction of `site`, which a trial may not have gone beyond.
    pub(super) fn compare_before(&mut self, cpu: &mut Cpu, site: &Site) {
        let counted = self.counted();
        if let Some(lockstep) = self.lockstep.as_mut().filter(|lockstep| lockstep.active()) {
            lockstep.hand_over(cpu, counted - 1 - u64::from(site.rest));
        }
    }

    /// Runs block `number`, which was found for RIP, and compares.
    pub(super) fn run_checked(&mut self, cpu: &mut Cpu, number: u32) {
        let limit = self.store.blocks.get(number).instructions.into();
        let start = self.counted();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.begin(cpu, limit, start);
        }
        self.enter(cpu, number);
        let (counted, fault) = (self.counted(), self.fault);
        let Some(lockstep) = &mut self.lockstep else { return };
        lockstep.finish(cpu, counted, fault);
        if let Some(difference) = lockstep.difference.take() {
            self.report(cpu, number, &difference);
        }
    }

    /// Makes the vCPU stop, with all that is known of a difference.
    #[cold]
    fn report(&mut self, cpu: &Cpu, number: u32, difference: &Difference) {
        let block = self.store.blocks.get(number);
        let (rip, hash) = (difference.before.rip, block.key.hash());
        let summary =
            format!("translated code at {rip:#x} (block {hash:#018x}) is wrong: {}", difference.what);
        let report = BackendReport {
            text: divergence::describe(difference) + &listing::describe(block, self.store.code(block)),
            by_check: true,
            // Names of `Config`.
            settings: vec![("verify", "1".to_owned()), ("only", format!("{hash:#x}..{hash:#x}"))],
        };
        self.failure = Some(AccelError::Internal { summary, report: Box::new(report) });
        cpu.shared.post(request::KICK);
    }

    /// Records that the vCPU comes, with `argument` of the stub `lookup`, to a block that is to be checked.
    pub(super) fn arrive(&mut self, cpu: &Cpu, argument: u32) {
        self.arriving = self.store.recipe_at(argument).map(|known| (cpu.rip, known));
    }

    /// The recipe for its flags that [`Self::arrive`] has recorded, if it still holds.
    pub(super) fn arrived(&mut self, cpu: &Cpu) -> Option<LazyFlags> {
        let (rip, known) = self.arriving.take()?;
        (rip == cpu.rip && known.flags(cpu, self.runtime.context()) == cpu.flags).then_some(known)
    }
}

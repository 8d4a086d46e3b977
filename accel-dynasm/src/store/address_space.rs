//! Keeps what the engine knows in step with the vCPU's translations and circumstances.
//!
//! * The jump tables of user code hold for one [`View`]; those of one that may come back are put away.
//! * Those of the kernel hold until global translations of code change, unless its code lies on pages that are not global;
//!   so do its links to other pages.
//! * A recent look-up has the generation of the translation it was made through.

use x86_core::{Cpu, Tlb};

use crate::block_mode::BlockMode;
use crate::dispatch::Dispatcher;
use crate::store::jump_cache::View;

/// What the engine has followed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    view: View,
    global_fetch_generation: u64,
    write_generation: u64,
    /// Code of the kernel lies on pages that are not global.
    pub fleeting: bool,
}

impl Dispatcher {
    /// Forgets what does not hold, now that the vCPU may have changed its translations or its circumstances.
    pub(crate) fn follow(&mut self, cpu: &Cpu) {
        let user = cpu.cpl == 3;
        let context = self.context();
        if user != (context.was_user != 0) {
            context.was_user = user.into();
            self.vectors = user && context.user_vectors != 0;
        }
        let (tlb, last) = (&cpu.tlb, &mut self.followed);
        last.write_generation = tlb.write_generation;
        let circumstances = BlockMode::of(cpu, false).circumstances();
        let view = View { generation: tlb.fetch_generation, circumstances };
        if view == last.view {
            return;
        }
        let before = std::mem::replace(&mut last.view, view);
        let changed = view.generation != before.generation;
        let global = tlb.global_fetch_generation != last.global_fetch_generation;
        last.global_fetch_generation = tlb.global_fetch_generation;
        let fleeting = changed && last.fleeting;
        if global {
            self.jumps.clear_user(self.home);
            self.jumps.forget_away();
        } else if !changed || tlb.may_return(before.generation) {
            let vectors = self.context().user_vectors != 0;
            self.jumps.leave(self.home, before, vectors);
        } else {
            self.jumps.clear_user(self.home);
        }
        self.context().user_vectors = self.jumps.resume(self.home, view).unwrap_or(false).into();
        if global || fleeting || view.circumstances != before.circumstances {
            self.jumps.clear_kernel(self.home);
        }
        if global || fleeting {
            self.followed.fleeting = false;
            self.unlink_far();
        }
    }

    /// Whether translations of code may have changed since a block was last looked up; or what stores may do, which it may
    /// have checked for stores that are still to come.
    pub(crate) fn moved(&self, cpu: &Cpu) -> bool {
        let last = &self.followed;
        cpu.tlb.fetch_generation != last.view.generation || cpu.tlb.write_generation != last.write_generation
    }
}

/// What a look-up holds for that was made through a translation, global or not.
pub(crate) fn generation(tlb: &Tlb, global: bool) -> u64 {
    if global { tlb.global_fetch_generation } else { tlb.fetch_generation }
}

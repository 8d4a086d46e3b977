//! Keeps ways between blocks in step with the vCPU's translations of addresses.
//!
//! * The jump caches of user code hold for one [`View`]; those of a view that may come back are saved.
//! * The jump caches of the kernel hold until global translations of code change, unless its code lies on pages that
//!   are not global; so do its chained jumps to other pages.
//! * The look-up cache has the generation of the translation that each entry was found through.

use x86_core::Cpu;

use super::CodeStore;
use super::jump_cache::View;
use crate::block_mode::BlockMode;

/// The translations that the store was last brought in step with.
#[derive(Debug, Default)]
pub(super) struct Translations {
    view: View,
    global_fetch_generation: u64,
    write_generation: u64,
    /// Code of the kernel lies on pages that are not global.
    fleeting: bool,
}

impl CodeStore {
    /// Drops the ways that do not hold, now that the vCPU may have changed its translations or its mode.
    /// `user_vectors`: user code finds its vector registers in the host's. Whether that is so from now on, if the view
    /// has changed.
    pub(crate) fn sync(&mut self, cpu: &Cpu, user_vectors: bool) -> Option<bool> {
        let (tlb, last) = (&cpu.tlb, &mut self.translations);
        last.write_generation = tlb.write_generation;
        let view = View { generation: tlb.fetch_generation, mode: BlockMode::of(cpu, false).within_class() };
        if view == last.view {
            return None;
        }
        let before = std::mem::replace(&mut last.view, view);
        let changed = view.generation != before.generation;
        let global = tlb.global_fetch_generation != last.global_fetch_generation;
        last.global_fetch_generation = tlb.global_fetch_generation;
        let fleeting = changed && last.fleeting;
        if global {
            self.jump_cache.clear_user();
            self.jump_cache.drop_saved();
        } else if !changed || tlb.may_return(before.generation) {
            self.jump_cache.save_user(before, user_vectors);
        } else {
            self.jump_cache.clear_user();
        }
        let vectors = self.jump_cache.restore_user(view).unwrap_or(false);
        if global || fleeting || view.mode != before.mode {
            self.jump_cache.clear_kernel();
        }
        if global || fleeting {
            self.translations.fleeting = false;
            self.unchain_far();
        }
        Some(vectors)
    }

    /// Code of the kernel was found on a page that is not global.
    pub(crate) fn has_fleeting_code(&mut self) {
        self.translations.fleeting = true;
    }

    /// Whether translations of code may have changed since a block was last looked up; or whether the rights of stores
    /// have, which a block may have checked for stores that are still to come.
    pub(crate) fn moved(&self, cpu: &Cpu) -> bool {
        let last = &self.translations;
        cpu.tlb.fetch_generation != last.view.generation || cpu.tlb.write_generation != last.write_generation
    }
}

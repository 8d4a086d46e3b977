//! Variants of a block by the flags that it is entered with (ADR 19).
//!
//! A block that begins with a check of memory would have to save the flags first. If they can be had otherwise, as
//! after a comparison whose operands are still in registers, it is translated once more for jumps that come like this,
//! and saves nothing. Only direct jumps lead to such a variant; jump caches and Rust enter blocks with the flags in the
//! host's.

use super::CodeStore;
use super::blocks::Key;
use crate::translate::output::{DirectJump, INDIRECT};
use crate::translate::plan::lazy_flags::LazyFlags;

impl CodeStore {
    /// The direct jump with this number.
    pub(crate) fn jump(&self, number: u32) -> Option<DirectJump> {
        self.blocks.jumps.get(number).map(|record| record.jump)
    }

    /// The recipe for the flags of a vCPU that comes with this argument of [`Stub::Lookup`].
    ///
    /// [`Stub::Lookup`]: crate::translate::output::Stub::Lookup
    pub(crate) fn recipe_at(&self, argument: u32) -> Option<LazyFlags> {
        let jump = Some(argument).filter(|argument| argument & INDIRECT == 0)?;
        self.blocks.recipes.get(self.jump(jump)?.known).copied()
    }

    /// Whether block `number` is the best for a vCPU that comes with flags `known`.
    pub(crate) fn suits(&self, number: u32, known: Option<LazyFlags>) -> bool {
        match self.blocks.known(number) {
            Some(other) => known == Some(*other),
            None => known.is_none() || !self.blocks.get(number).flags_matter,
        }
    }

    /// The block with `key` for a vCPU that comes with flags `known`, and the recipe that it is to be translated for if
    /// there is none.
    pub(crate) fn best_for(&self, key: Key, known: Option<LazyFlags>) -> (Option<u32>, Option<LazyFlags>) {
        let usual = self.blocks.find(key).filter(|n| !self.blocks.get(*n).dropped);
        let differs = |n| {
            let block = self.blocks.get(n);
            block.flags_matter && block.second.is_none()
        };
        let Some(known) = known.filter(|_| usual.is_none_or(differs)) else { return (usual, None) };
        let mut room = false;
        for variant in self.blocks.variants(key) {
            if variant.is_some_and(|number| self.blocks.known(number) == Some(&known)) {
                return (variant, Some(known));
            }
            room |= variant.is_none();
        }
        if room { (None, Some(known)) } else { (usual, None) }
    }
}

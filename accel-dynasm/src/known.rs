//! The guest's flags where translated code is left, and blocks for who comes with flags that can be had from registers.
//!
//! A block that begins with a check of memory would have to save the flags first. If they can be had otherwise, as behind a
//! comparison whose operands are still there, it is translated once more for who comes like this, and does not. Only direct jumps
//! lead to such blocks; jump tables and Rust have the flags in the host's.

use x86_core::Cpu;

use crate::blocks::{Key, Variant};
use crate::engine::{Engine, INDIRECT};
use crate::translate::LazyFlags;

impl Engine {
    /// Translated code has been left where the flags can be had as `flags` says, unless they were in the host's.
    pub(crate) fn take_flags(&mut self, cpu: &mut Cpu, flags: Option<LazyFlags>) {
        if let Some(flags) = flags {
            cpu.flags = flags.flags(cpu, self.context());
        }
    }

    /// Likewise, by `link`.
    pub(crate) fn flags_of_link(&mut self, cpu: &mut Cpu, link: u32) {
        let Some(link) = self.blocks.links.get(link).map(|edge| edge.link()) else { return };
        self.take_flags(cpu, link.known.filter(|_| !link.host_flags));
    }

    /// How the flags can be had by who comes with `argument` of [`crate::stubs::Stubs::lookup`].
    pub(crate) fn known_at(&self, argument: u32) -> Option<LazyFlags> {
        let link = Some(argument).filter(|argument| argument & INDIRECT == 0)?;
        self.blocks.links.get(link)?.link().known
    }

    /// The block with `key` for who comes with flags `known`, and what it is to be translated for if there is none.
    pub(crate) fn best_for(&self, key: Key, known: Option<LazyFlags>) -> (Option<u32>, Option<LazyFlags>) {
        let usual = self.blocks.find(key).filter(|n| !self.blocks.get(*n).dropped);
        let Some(known) = known.filter(|_| usual.is_none_or(|n| self.blocks.get(n).flags_matter)) else {
            return (usual, None);
        };
        match self.blocks.variant(key, known) {
            Variant::Known(number) if !self.blocks.get(number).dropped => (Some(number), Some(known)),
            Variant::None => (None, Some(known)),
            _ => (usual, None),
        }
    }
}

//! The guest's flags where translated code is left, and blocks for who comes with flags that can be had from registers.
//!
//! A block that begins with a check of memory would have to save the flags first. If they can be had otherwise, as behind a
//! comparison whose operands are still there, it is translated once more for who comes like this, and does not. Only direct jumps
//! lead to such blocks; jump tables and Rust have the flags in the host's.

use x86_core::Cpu;

use crate::dispatch::{Dispatcher, INDIRECT, NOTHING};
use crate::store::blocks::Key;
use crate::translate::LazyFlags;

impl Dispatcher {
    /// Translated code has been left where the flags can be had as number `flags` says, unless they were in the host's.
    pub(crate) fn take_flags(&mut self, cpu: &mut Cpu, flags: u32) {
        if let Some(&flags) = self.blocks.recipes.get(flags) {
            cpu.flags = flags.flags(cpu, self.context());
        }
    }

    /// Likewise, by `link`.
    pub(crate) fn flags_of_link(&mut self, cpu: &mut Cpu, link: u32) {
        let Some(link) = self.blocks.links.get(link).map(|edge| edge.link()) else { return };
        self.take_flags(cpu, if link.host_flags { NOTHING } else { link.known });
    }

    /// How the flags can be had by who comes with `argument` of [`crate::runtime::stubs::Stubs::lookup`].
    pub(crate) fn known_at(&self, argument: u32) -> Option<LazyFlags> {
        let link = Some(argument).filter(|argument| argument & INDIRECT == 0)?;
        self.blocks.recipes.get(self.blocks.links.get(link)?.link().known).copied()
    }

    /// Where it comes to a block that is to be checked, and how the flags can be had there.
    pub(crate) fn arrive(&mut self, cpu: &Cpu, argument: u32) {
        self.arriving = self.known_at(argument).map(|known| (cpu.rip, known));
    }

    /// What [`Self::arrive`] was told, if it still holds.
    pub(crate) fn arrived(&mut self, cpu: &Cpu) -> Option<LazyFlags> {
        let (rip, known) = self.arriving.take()?;
        (rip == cpu.rip && known.flags(cpu, self.context()) == cpu.flags).then_some(known)
    }

    /// Whether block `number` is the best for who comes with flags `known`.
    pub(crate) fn suits(&self, number: u32, known: Option<LazyFlags>) -> bool {
        match self.blocks.known(number) {
            Some(other) => known == Some(*other),
            None => known.is_none() || !self.blocks.get(number).flags_matter,
        }
    }

    /// The block with `key` for who comes with flags `known`, and what it is to be translated for if there is none.
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

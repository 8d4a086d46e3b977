//! Code that is written again and again: translating it costs more than it gives.
//!
//! A page whose code was overwritten a few times is suspect. Blocks on it are interpreted until they have been met often
//! enough without having been overwritten; so a program that generates code pays for translations only of what runs often.

use x86_core::Keyed;

use crate::store::blocks::Key;

/// Invalidations that make a page suspect.
const SUSPECT: u32 = 8;
/// Times that a block on a suspect page is interpreted first.
const PATIENCE: u32 = 16;

/// Pages, and blocks, that are known at a time: code that is somewhere else each time must not take memory without end.
const MOST: usize = 1 << 16;

/// What is known of pages and blocks.
#[derive(Debug, Default)]
pub(crate) struct SelfModifyingCode {
    pages: Keyed<usize, u32>,
    blocks: Keyed<Key, u32>,
}

impl SelfModifyingCode {
    /// Some code of RAM page `page` was overwritten, that of these blocks.
    pub(crate) fn dropped(&mut self, page: usize, blocks: impl Iterator<Item = Key>) {
        if self.pages.len() >= MOST {
            self.pages.clear();
        }
        *self.pages.entry(page).or_default() += 1;
        for key in blocks {
            self.blocks.remove(&key);
        }
    }

    /// Whether the block, which has no translation, is better interpreted now.
    pub(crate) fn is(&mut self, key: Key) -> bool {
        if self.pages.get(&key.ram_page()).is_none_or(|n| *n < SUSPECT) {
            return false;
        }
        if self.blocks.len() >= MOST {
            self.blocks.clear();
        }
        let met = self.blocks.entry(key).or_default();
        *met += 1;
        *met <= PATIENCE
    }
}

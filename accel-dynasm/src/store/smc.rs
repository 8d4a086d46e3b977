//! Self-modifying code: where code is overwritten again and again, translating it costs more than it gives.
//!
//! A page whose code was overwritten a few times is suspect. A block on it is interpreted until it has been met often
//! enough without having been overwritten; so a program that generates code pays for translations only of code that
//! runs often.

use x86_core::Keyed;

use super::blocks::Key;

/// Invalidations that make a page suspect.
const SUSPECT: u32 = 8;
/// Times that a block on a suspect page is interpreted first.
const PATIENCE: u32 = 16;

/// Pages, and blocks, that are known at a time: code that is somewhere else each time must not take memory without
/// bound.
const MOST: usize = 1 << 16;

/// Invalidations by page, and how often blocks on suspect pages have been met since.
#[derive(Debug, Default)]
pub(crate) struct SelfModifyingCode {
    pages: Keyed<usize, u32>,
    blocks: Keyed<Key, u32>,
}

impl SelfModifyingCode {
    /// Code of RAM page `page` was overwritten, that of these blocks.
    pub(super) fn invalidated(&mut self, page: usize, blocks: impl Iterator<Item = Key>) {
        if self.pages.len() >= MOST {
            self.pages.clear();
        }
        *self.pages.entry(page).or_default() += 1;
        for key in blocks {
            self.blocks.remove(&key);
        }
    }

    /// Whether the block, which has no translation, is better interpreted this time.
    pub(crate) fn is_suspect(&mut self, key: Key) -> bool {
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

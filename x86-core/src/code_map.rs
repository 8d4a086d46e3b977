//! Which 64-byte lines of RAM have been decoded by some vCPU.
//!
//! The page flag `CODE` makes stores to a page slow; this map makes them precise: a store to a line nobody decoded
//! disturbs nothing. One 64-bit word a page, allocated 2 MiB of guest RAM at a time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const CHUNK: usize = 512;

/// Decoded lines of all RAM pages.
#[derive(Debug)]
pub struct CodeMap {
    chunks: Box<[OnceLock<Box<[AtomicU64; CHUNK]>>]>,
}

/// Decoded code that has been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleCode {
    /// RAM page index.
    pub page: usize,
    /// Its lines, one bit each.
    pub lines: u64,
}

impl StaleCode {
    /// All of a page.
    pub const fn page(page: usize) -> Self {
        Self { page, lines: u64::MAX }
    }
}

/// The lines that `len` bytes at page offset `offset` touch, one bit each; a range beyond the page is cut off.
pub fn lines(offset: usize, len: usize) -> u64 {
    let first = (offset / 64).min(63);
    let last = ((offset + len.max(1) - 1) / 64).min(63);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

impl CodeMap {
    /// An empty map for `pages` pages.
    pub fn new(pages: usize) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with(pages.div_ceil(CHUNK), OnceLock::new);
        Self { chunks: chunks.into_boxed_slice() }
    }

    /// Records that `lines` of `page` are decoded.
    pub fn add(&self, page: usize, lines: u64) {
        if let Some(chunk) = self.chunks.get(page / CHUNK) {
            let words = chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]));
            words[page % CHUNK].fetch_or(lines, Ordering::AcqRel);
        }
    }

    /// Decoded lines of `page`.
    pub fn get(&self, page: usize) -> u64 {
        self.word(page).map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// Forgets `lines` of `page`.
    pub fn remove(&self, page: usize, lines: u64) {
        if let Some(word) = self.word(page) {
            word.fetch_and(!lines, Ordering::AcqRel);
        }
    }

    fn word(&self, page: usize) -> Option<&AtomicU64> {
        self.chunks.get(page / CHUNK)?.get().map(|words| &words[page % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_range() {
        assert_eq!(lines(0, 1), 1);
        assert_eq!(lines(63, 2), 3);
        assert_eq!(lines(4095, 8), 1 << 63);
        assert_eq!(lines(0, 4096), u64::MAX);
        assert_eq!(lines(64, 0), 2);
    }

    #[test]
    fn map_remembers_and_forgets() {
        let map = CodeMap::new(1000);
        map.add(999, 5);
        assert_eq!((map.get(999), map.get(998), map.get(5000)), (5, 0, 0));
        map.remove(999, 4 | 2);
        assert_eq!(map.get(999), 1);
    }
}

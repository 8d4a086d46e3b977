//! Where decoded blocks live, and how they are found by the place of their first byte in RAM.
//!
//! Ops lie in chunks that never move, so blocks may point at each other. A block is dropped by overwriting its first op,
//! which every way into it goes through; its memory comes back when the store is emptied as a whole.

use x86_core::Keyed;

use crate::op::{Generic, Op};

/// Place and form of a block: RAM page, offset in it, how it was decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn new(page: usize, offset: u64, mode: u8) -> Self {
        Self((page as u64) << 16 | offset << 4 | u64::from(mode))
    }

    fn page(self) -> usize {
        (self.0 >> 16) as usize
    }
}

const CHUNK_OPS: usize = 16 * 1024;
const CHUNK_GENERICS: usize = 4 * 1024;
/// Ops kept before everything is dropped and decoded anew: 10 MiB, and as a rule half as much again for generics.
const MAX_OPS: usize = 320 * 1024;

/// Decoded blocks of one vCPU.
#[derive(Default)]
pub(crate) struct Store {
    ops: Vec<Vec<Op>>,
    generics: Vec<Vec<Generic>>,
    blocks: Keyed<Key, *mut Op>,
    pages: Keyed<usize, Vec<Key>>,
    /// Ops and generics, each; some belong to blocks that have been dropped, or were never finished.
    used: usize,
    used_generics: usize,
}

impl Store {
    pub(crate) fn find(&self, key: Key) -> Option<*mut Op> {
        self.blocks.get(&key).copied()
    }

    /// Whether another block may be added; if not, [`Self::clear`] comes first.
    pub(crate) fn full(&self) -> bool {
        // A block that is not finished, because its code changes, leaves its generics.
        self.used >= MAX_OPS || self.used_generics >= MAX_OPS
    }

    /// Keeps a block; returns its first op.
    pub(crate) fn insert(&mut self, key: Key, block: &[Op]) -> *mut Op {
        let chunk = chunk_with_room(&mut self.ops, CHUNK_OPS, block.len());
        let at = chunk.len();
        chunk.extend_from_slice(block);
        let first = &raw mut chunk[at];
        self.used += block.len();
        self.blocks.insert(key, first);
        self.pages.entry(key.page()).or_default().push(key);
        first
    }

    /// Keeps a generic op's instruction; its address goes into [`Op::imm`].
    pub(crate) fn generic(&mut self, generic: Generic) -> u64 {
        let chunk = chunk_with_room(&mut self.generics, CHUNK_GENERICS, 1);
        chunk.push(generic);
        self.used_generics += 1;
        &raw const chunk[chunk.len() - 1] as u64
    }

    /// Forgets the blocks of RAM page `page`, calling `retire` on the first op of each.
    pub(crate) fn drop_page(&mut self, page: usize, mut retire: impl FnMut(*mut Op)) {
        for key in self.pages.remove(&page).unwrap_or_default() {
            if let Some(first) = self.blocks.remove(&key) {
                retire(first);
            }
        }
    }

    /// Whether any block of RAM page `page` is kept.
    pub(crate) fn has_page(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }

    /// Forgets everything. No chain may be running.
    pub(crate) fn clear(&mut self) {
        self.ops.truncate(1);
        self.generics.truncate(1);
        self.ops.iter_mut().for_each(Vec::clear);
        self.generics.iter_mut().for_each(Vec::clear);
        self.blocks.clear();
        self.pages.clear();
        (self.used, self.used_generics) = (0, 0);
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }
}

/// The last chunk if `len` more fit without moving it, or a new one.
fn chunk_with_room<T>(chunks: &mut Vec<Vec<T>>, size: usize, len: usize) -> &mut Vec<T> {
    let fits = chunks.last().is_some_and(|c| c.capacity() - c.len() >= len);
    if !fits {
        chunks.push(Vec::with_capacity(size.max(len)));
    }
    let last = chunks.len() - 1;
    &mut chunks[last]
}

//! Regions of the code cache: they are filled one after the other and emptied in the same order. When all are full, the
//! oldest makes room, and the others keep code that runs. Metadata is kept by region too, and goes with the code; its
//! numbers have their region in them, so they do not change when another region is emptied.

use std::ops::{Index, IndexMut};

/// Regions of a code cache. When one is emptied, that share of the code in use has to be translated again.
pub(crate) const REGIONS: usize = 16;

/// Bits of a number that count within a region: more than there are bytes of code in one.
const INDEX_BITS: u32 = 26;

/// Most items that a region can number.
pub(super) const MOST_NUMBERS: usize = 1 << INDEX_BITS;

/// The region that number `n` belongs to.
pub(crate) fn region_of(n: u32) -> usize {
    (n >> INDEX_BITS) as usize
}

fn index_of(n: u32) -> usize {
    (n & ((1 << INDEX_BITS) - 1)) as usize
}

/// A list of numbered items for each region.
pub(crate) struct Numbered<T>([Vec<T>; REGIONS]);

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self([const { Vec::new() }; REGIONS])
    }
}

impl<T> Numbered<T> {
    /// The number of the item that is pushed next.
    pub(crate) fn next(&self, region: usize) -> u32 {
        (region as u32) << INDEX_BITS | self.0[region].len() as u32
    }

    pub(crate) fn push(&mut self, region: usize, item: T) {
        self.0[region].push(item);
    }

    pub(crate) fn extend(&mut self, region: usize, items: impl Iterator<Item = T>) {
        self.0[region].extend(items);
    }

    pub(crate) fn get(&self, n: u32) -> Option<&T> {
        self.0.get(region_of(n))?.get(index_of(n))
    }

    /// The items of a region, in the order in which they were pushed.
    pub(crate) fn of(&self, region: usize) -> &[T] {
        &self.0[region]
    }

    /// The numbers of a region.
    pub(crate) fn numbers(&self, region: usize) -> std::ops::Range<u32> {
        ((region as u32) << INDEX_BITS)..self.next(region)
    }

    /// Drops the items of a region; their numbers are given out again.
    pub(crate) fn clear(&mut self, region: usize) {
        self.0[region].clear();
    }
}

impl<T> Index<u32> for Numbered<T> {
    type Output = T;

    fn index(&self, n: u32) -> &T {
        &self.0[region_of(n)][index_of(n)]
    }
}

impl<T> IndexMut<u32> for Numbered<T> {
    fn index_mut(&mut self, n: u32) -> &mut T {
        &mut self.0[region_of(n)][index_of(n)]
    }
}

/// Numbers leave the bits free that the argument of the stub `lookup` has besides.
const _: () = assert!((REGIONS as u32) << INDEX_BITS <= crate::translate::output::INDIRECT);

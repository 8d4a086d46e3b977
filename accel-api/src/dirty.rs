//! Sets of pages that were written.

use crate::{PAGE_SIZE, PageFlag, PageFlags};

/// Pages of guest RAM, by RAM offset / 4096.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DirtyPages {
    /// One bit a page.
    words: Vec<u64>,
}

impl DirtyPages {
    /// None of `pages` pages.
    pub fn none(pages: usize) -> Self {
        Self { words: vec![0; pages.div_ceil(64)] }
    }

    /// Adds `page`; one beyond the end is no page.
    pub fn add(&mut self, page: usize) {
        if let Some(word) = self.words.get_mut(page / 64) {
            *word |= 1 << (page % 64);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Whether `page` is one of them.
    pub fn contains(&self, page: usize) -> bool {
        self.words.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(n, word)| {
            let mut bits = *word;
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(n * 64 + bit)
            })
        })
    }

    /// RAM offsets in bytes, ascending.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        self.iter().map(|page| page as u64 * PAGE_SIZE)
    }
}

impl PageFlags {
    /// Clears `DIRTY` everywhere; the pages that had it. For accelerators: what may still be stored to without asking is not
    /// looked at here ([`AccelVm::take_dirty`](crate::AccelVm::take_dirty) is the whole operation).
    pub fn take_dirty(&self) -> DirtyPages {
        let mut taken = DirtyPages::none(self.pages());
        for page in 0..self.pages() {
            // A look first: most pages are clean, and a read leaves their cache lines to others.
            if self.get(page).contains(PageFlag::DIRTY)
                && self.clear(page, PageFlag::DIRTY).contains(PageFlag::DIRTY)
            {
                taken.add(page);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_a_set() {
        let mut pages = DirtyPages::none(130);
        assert!(pages.is_empty());
        [129, 0, 63, 64, 0, 500].into_iter().for_each(|page| pages.add(page));
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert_eq!(pages.offsets().last(), Some(129 << 12));
        assert_eq!(
            (pages.count(), pages.contains(64), pages.contains(65), pages.contains(500)),
            (4, true, false, false)
        );
        let mut more = DirtyPages::default();
        more.merge(&pages);
        assert_eq!(more, pages);
    }

    #[test]
    fn what_is_taken_is_clean_and_keeps_its_other_flags() {
        let flags = PageFlags::new(100);
        flags.set(70, PageFlag::DIRTY | PageFlag::CODE);
        flags.set(71, PageFlag::CODE);
        assert_eq!(flags.take_dirty().iter().collect::<Vec<_>>(), [70]);
        assert_eq!((flags.get(70), flags.get(71)), (PageFlag::CODE, PageFlag::CODE));
        assert!(flags.take_dirty().is_empty());
    }
}

//! Pages that one vCPU is to be told of by others, each once: a vCPU that does not look for long must not make the list grow
//! without end.

use crate::{Keyed, StaleCode};

/// Pages told apart; where there are more it is all of them.
const MOST: usize = 1024;

/// RAM pages, and lines of them, one bit each.
#[derive(Debug, Default)]
pub struct PageList {
    pages: Keyed<usize, u64>,
    all: bool,
}

impl PageList {
    pub(crate) fn add(&mut self, page: usize, lines: u64) {
        if self.pages.len() >= MOST && !self.pages.contains_key(&page) {
            // The map keeps its room, which is as much as it ever has.
            self.pages.clear();
            self.all = true;
        }
        if !self.all {
            *self.pages.entry(page).or_default() |= lines;
        }
    }

    /// The pages with their lines, in any order; `None`: all there are.
    pub fn pages(&self) -> Option<impl Iterator<Item = StaleCode>> {
        (!self.all).then(|| self.pages.iter().map(|(&page, &lines)| StaleCode { page, lines }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(list: &PageList) -> Option<Vec<StaleCode>> {
        let mut pages: Vec<_> = list.pages()?.collect();
        pages.sort_by_key(|stale| stale.page);
        Some(pages)
    }

    #[test]
    fn a_page_is_listed_once_with_all_its_lines() {
        let mut list = PageList::default();
        for (page, lines) in [(7, 1), (3, 2), (7, 1), (7, 1 << 63)] {
            list.add(page, lines);
        }
        let expected = [StaleCode { page: 3, lines: 2 }, StaleCode { page: 7, lines: 1 << 63 | 1 }];
        assert_eq!(sorted(&list).unwrap(), expected);
    }

    #[test]
    fn too_many_pages_are_all_pages() {
        let mut list = PageList::default();
        for round in 0..3 {
            (0..MOST).for_each(|page| list.add(page, 1 << round));
        }
        assert_eq!(sorted(&list).unwrap().len(), MOST);
        (0..100 * MOST).for_each(|page| list.add(page, 1));
        assert!(list.pages().is_none() && list.pages.is_empty());
    }
}

//! Translations of address spaces that are not the current one, by PCID (Intel SDM vol. 3, 4.10.1).
//!
//! 1. A load of CR3 that changes the PCID takes the old one's translations out of the tables and keeps them here; if bit
//!    63 says that those of the new one need not go, and they are here, they are restored. Global ones stay in the tables.
//! 2. All that takes back translations of a PCID which is not the current one, or rights of all, reaches them here.
//! 3. The manual lets translations stand for a PCID whatever page tables it is loaded with. They are restored only for
//!    the tables that they came from: to forget is always allowed.
//! 4. Address spaces and entries of each are bounded. The first to go are those left longest ago, and those filled longest
//!    ago.
//!
//! With them comes the generation of their fetch translations, so that executors, too, can find again what they know.

use super::{
    FetchEntry, Filled, LargePages, PAGE_MASK, Slot, Stored, Tlb, TlbEntry, bits, empty, never, tlb_index,
};
use crate::KeyedSet;
use crate::mode::bits::CR3_PCID;

/// Address spaces remembered besides the current one. Linux uses six PCIDs on each processor.
const SPACES: usize = 7;
/// Data translations remembered of each. Moving one out and in costs a tenth of finding it again.
const MOST: usize = 128;

/// What is remembered of one address space.
#[derive(Debug)]
struct Space {
    /// CR3, without bit 63; nothing if this place is free.
    cr3: Option<u64>,
    data: Vec<(Slot, TlbEntry)>,
    stored: Stored,
    fetch: Vec<(usize, FetchEntry)>,
    fetched: KeyedSet<u64>,
    large: LargePages,
    /// Of its fetch translations; 0 if another must begin when it comes back.
    generation: u64,
    /// When it was left.
    left: u64,
}

impl Space {
    fn new() -> Self {
        Self {
            cr3: None,
            data: Vec::new(),
            stored: Stored([0; 64]),
            fetch: Vec::new(),
            fetched: KeyedSet::default(),
            large: LargePages::NONE,
            generation: 0,
            left: 0,
        }
    }

    fn clear(&mut self) {
        self.cr3 = None;
        self.data.clear();
        self.stored.clear();
        self.fetch.clear();
        self.fetched.clear();
    }

    fn flush_page(&mut self, base: u64) {
        if self.large.may_have(base) {
            self.clear();
            return;
        }
        let index = tlb_index(base);
        self.data.retain(|(slot, entry)| {
            slot.place().1 != index || entry.read_tag != base && entry.write_tag != base
        });
        if self.fetched.remove(&base) {
            self.fetch.retain(|(_, entry)| entry.tag & PAGE_MASK != base);
            self.generation = 0;
        }
    }
}

/// The address spaces besides the current one.
#[derive(Default, Debug)]
pub(super) struct Spaces {
    list: Vec<Space>,
    switches: u64,
    resumed: u64,
    restored: u64,
}

impl Spaces {
    fn place_of(&self, pcid: u64) -> Option<usize> {
        self.list.iter().position(|space| space.cr3.is_some_and(|cr3| cr3 & CR3_PCID == pcid))
    }

    /// A free place; the address space that was left longest ago is forgotten for it if need be.
    fn free_place(&mut self) -> usize {
        if let Some(at) = self.list.iter().position(|space| space.cr3.is_none()) {
            return at;
        }
        if self.list.len() < SPACES {
            self.list.push(Space::new());
            return self.list.len() - 1;
        }
        let oldest = self.list.iter().enumerate().min_by_key(|(_, space)| space.left);
        let at = oldest.map_or(0, |(at, _)| at);
        self.list[at].clear();
        at
    }

    /// Data translations of each address space.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.list.iter().map(|space| space.data.len()).collect()
    }

    pub(super) fn clear(&mut self) {
        self.list.iter_mut().for_each(Space::clear);
    }

    pub(super) fn renew_generations(&mut self) {
        self.list.iter_mut().for_each(|space| space.generation = 0);
    }

    pub(super) fn drop_write_tags(&mut self) {
        for space in &mut self.list {
            for (slot, entry) in &mut space.data {
                entry.write_tag = never(slot.place().1);
            }
            space.stored.clear();
        }
    }

    pub(super) fn drop_write_tags_of(&mut self, page: usize) {
        for space in self.list.iter_mut().filter(|space| space.stored.may_have(page)) {
            for (slot, entry) in space.data.iter_mut().filter(|(_, entry)| entry.page == page as u64) {
                entry.write_tag = never(slot.place().1);
            }
        }
    }
}

impl Tlb {
    /// A load of CR3 with CR4.PCIDE set: `from` its old to `to` its new value, both without bit 63. `keep` is that bit:
    /// translations of the new PCID need not go (Intel SDM vol. 3, 4.10.4.1).
    pub fn switch_space(&mut self, from: u64, to: u64, keep: bool) {
        if (from ^ to) & CR3_PCID == 0 {
            if from != to || !keep {
                self.flush_non_global();
            }
            return;
        }
        let known = self.spaces.place_of(to & CR3_PCID);
        self.leave_space(from);
        match known {
            Some(at) if keep && self.spaces.list[at].cr3 == Some(to) => self.resume_space(at),
            Some(at) => self.spaces.list[at].clear(),
            None => {}
        }
    }

    /// Keeps the current address space's translations for a return to `cr3`, and empties the tables of them.
    fn leave_space(&mut self, cr3: u64) {
        self.inline.clear();
        let at = self.spaces.free_place();
        self.spaces.switches += 1;
        let space = &mut self.spaces.list[at];
        space.cr3 = Some(cr3);
        space.left = self.spaces.switches;
        let Filled { slots, listed, stored } = &mut self.filled;
        let surplus = slots.len().saturating_sub(MOST);
        for (n, slot) in slots.drain(..).enumerate() {
            let (mode, index) = slot.place();
            listed.put(mode, index, false);
            if self.global.has(mode, index) {
                continue;
            }
            let entry = std::mem::replace(&mut self.data[mode][index], empty(index));
            if n >= surplus {
                space.data.push((slot, entry));
            }
        }
        std::mem::swap(stored, &mut space.stored);
        for index in bits(&self.fetch_filled) {
            let entry = &mut self.fetch[index];
            if !entry.global && entry.tag != u64::MAX {
                space.fetch.push((index, *entry));
                entry.tag = u64::MAX;
            }
        }
        self.fetch_filled.fill(0);
        std::mem::swap(&mut self.fetched, &mut space.fetched);
        space.large = std::mem::replace(&mut self.large, LargePages::NONE);
        space.generation = self.fetch_generation;
        self.fetch_generation = self.next_generation();
    }

    /// Puts back what is remembered of an address space. Global translations that have come where they were stay.
    fn resume_space(&mut self, at: usize) {
        let space = &mut self.spaces.list[at];
        for (slot, entry) in space.data.drain(..) {
            let (mode, index) = slot.place();
            if !self.global.has(mode, index) {
                self.data[mode][index] = entry;
                self.filled.list(mode, index);
                self.spaces.restored += 1;
            }
        }
        std::mem::swap(&mut self.filled.stored, &mut space.stored);
        for (index, entry) in space.fetch.drain(..) {
            let now = &mut self.fetch[index];
            if !now.global || now.tag == u64::MAX {
                *now = entry;
                self.fetch_filled[index / 64] |= 1 << (index % 64);
                self.spaces.restored += 1;
            }
        }
        std::mem::swap(&mut self.fetched, &mut space.fetched);
        self.large = space.large;
        if space.generation != 0 {
            self.fetch_generation = space.generation;
        }
        space.clear();
        self.spaces.resumed += 1;
    }

    /// Forgets the page of `address` in the address space `pcid`, which is not the current one (INVPCID).
    pub fn flush_other_page(&mut self, pcid: u64, address: u64) {
        if let Some(at) = self.spaces.place_of(pcid) {
            self.spaces.list[at].flush_page(address & PAGE_MASK);
        }
    }

    /// Forgets the address space `pcid`, which is not the current one.
    pub fn flush_other(&mut self, pcid: u64) {
        if let Some(at) = self.spaces.place_of(pcid) {
            self.spaces.list[at].clear();
        }
    }

    /// Forgets all address spaces but the current one.
    pub fn flush_others(&mut self) {
        self.spaces.clear();
    }

    /// Whether [`Self::fetch_generation`] may become `generation` again.
    pub fn may_return(&self, generation: u64) -> bool {
        let mut kept = self.spaces.list.iter().filter(|space| space.cr3.is_some());
        kept.any(|space| space.generation == generation)
    }

    /// Counters for [`accel_api::VcpuStats`].
    pub fn counters(&self) -> [(&'static str, u64); 2] {
        [("address_spaces_resumed", self.spaces.resumed), ("translations_restored", self.spaces.restored)]
    }
}

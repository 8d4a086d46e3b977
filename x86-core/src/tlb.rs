//! Soft TLB: what the page walk found, in the form the load and store paths want.
//!
//! * One table of direct-mapped entries for each way memory can be accessed ([`TlbMode`]); the current one is chosen
//!   when the privilege changes, so an entry needs no permission bits.
//! * A tag is the linear address of the page when the access is allowed, and one that cannot match in its slot when it
//!   is not. `address ^ tag` is then the page offset on a hit and large on a miss, and comparing it with
//!   `4096 - size` checks tag, permission and page crossing at once.
//! * A write tag stands only once the page's D bit and `DIRTY` flag are set and nobody holds decoded code of the page.

use std::collections::HashMap;
use std::mem::offset_of;

/// Entries in each table; a power of two.
pub const TLB_ENTRIES: usize = 4096;
/// Entries in the fetch table; a power of two.
const FETCH_ENTRIES: usize = 256;

/// How data is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlbMode {
    /// Supervisor, may touch user pages.
    Supervisor = 0,
    /// User.
    User = 1,
    /// Supervisor under SMAP with AC clear.
    SupervisorOnly = 2,
}

const MODES: usize = 3;

/// One translation, for loads and stores.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    /// Page address if loads hit.
    pub read_tag: u64,
    /// Page address if stores hit.
    pub write_tag: u64,
    /// Host address less guest linear address.
    pub addend: u64,
    /// RAM page index.
    pub page: u64,
}

/// One translation, for instruction fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchEntry {
    tag: u64,
    /// Host address of the page.
    pub host: *const u8,
    /// RAM page index.
    pub page: usize,
    /// Survives a CR3 load.
    pub global: bool,
}

/// What a new entry is to say.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// Host address of the page.
    pub host: *mut u8,
    /// RAM page index.
    pub page: usize,
    /// Stores may hit.
    pub store: bool,
    /// Survives a CR3 load.
    pub global: bool,
    /// Part of a page larger than 4 KiB.
    pub large: bool,
}

/// The tables of one vCPU.
#[derive(Debug)]
pub struct Tlb {
    /// Inline, so that translated code can address it by a constant.
    data: [[TlbEntry; TLB_ENTRIES]; MODES],
    /// A table in which nothing ever hits.
    nothing: Box<[TlbEntry; TLB_ENTRIES]>,
    fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Pages that code was fetched from since their translations were last taken back, and whether those are global:
    /// executors remember such translations for longer than the fetch table does.
    fetched: HashMap<u64, bool>,
    /// Slots that hold, or held, translations that go with a CR3 load.
    filled: Filled,
    /// Slots that hold, or held, global ones.
    filled_global: Filled,
    /// Linear range that entries of large pages lie in.
    large: (u64, u64),
    /// Changes whenever a fetch translation may have changed. Never 0.
    pub fetch_generation: u64,
    /// Changes whenever a global fetch translation may have changed. Never 0.
    pub global_fetch_generation: u64,
    /// Changes whenever stores that could hit must ask again, though their translations have not changed.
    pub write_generation: u64,
}

const PAGE_MASK: u64 = !0xfff;

/// A tag that no address which selects slot `index` can match.
const fn never(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

const fn empty(index: usize) -> TlbEntry {
    TlbEntry { read_tag: never(index), write_tag: never(index), addend: 0, page: 0 }
}

/// Slots filled since the last flush, so that a flush costs what was filled.
#[derive(Debug)]
struct Filled {
    /// `mode << 16 | index`, each once.
    slots: Vec<u32>,
    listed: [u64; MODES * TLB_ENTRIES / 64],
    /// RAM pages that may have a write tag in one of the slots: a bit for each, by page number modulo their count.
    stored: [u64; 64],
}

impl Filled {
    const fn new() -> Self {
        Self { slots: Vec::new(), listed: [0; MODES * TLB_ENTRIES / 64], stored: [0; 64] }
    }

    fn note(&mut self, mode: TlbMode, index: usize, to: &Translation) {
        let at = mode as usize * TLB_ENTRIES + index;
        if self.listed[at / 64] & 1 << (at % 64) == 0 {
            self.listed[at / 64] |= 1 << (at % 64);
            self.slots.push((mode as u32) << 16 | index as u32);
        }
        if to.store {
            self.stored[to.page / 64 % 64] |= 1 << (to.page % 64);
        }
    }

    fn may_store(&self, page: usize) -> bool {
        self.stored[page / 64 % 64] & 1 << (page % 64) != 0
    }

    fn slots(&self) -> impl Iterator<Item = (usize, usize)> {
        self.slots.iter().map(|key| ((key >> 16) as usize, (key & 0xffff) as usize))
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.listed.fill(0);
        self.stored.fill(0);
    }
}

/// Slot of `address` in the fetch table. User and supervisor code of one page have a slot each.
#[inline(always)]
const fn fetch_index(address: u64, user: bool) -> usize {
    ((address >> 12) as usize ^ (user as usize) << 7) & (FETCH_ENTRIES - 1)
}

/// Slot of `address` in a data table.
#[inline(always)]
pub const fn tlb_index(address: u64) -> usize {
    (address >> 12) as usize & (TLB_ENTRIES - 1)
}

impl Default for Tlb {
    fn default() -> Self {
        let mut table = [empty(0); TLB_ENTRIES];
        for (index, entry) in table.iter_mut().enumerate() {
            *entry = empty(index);
        }
        let none = FetchEntry { tag: u64::MAX, host: std::ptr::null(), page: 0, global: false };
        Self {
            data: [table; MODES],
            nothing: Box::new(table),
            fetch: Box::new([none; FETCH_ENTRIES]),
            fetched: HashMap::new(),
            filled: Filled::new(),
            filled_global: Filled::new(),
            large: (u64::MAX, 0),
            fetch_generation: 1,
            global_fetch_generation: 1,
            write_generation: 1,
        }
    }
}

impl Tlb {
    /// First entry of the table for `mode`.
    pub fn table(&mut self, mode: TlbMode) -> *mut TlbEntry {
        self.data[mode as usize].as_mut_ptr()
    }

    /// Byte offset in `Tlb` of the table for `mode`.
    pub const fn table_offset(mode: TlbMode) -> usize {
        offset_of!(Self, data) + mode as usize * size_of::<[TlbEntry; TLB_ENTRIES]>()
    }

    /// First entry of a table that stays empty, for accesses that must not be answered here.
    pub fn nothing(&mut self) -> *mut TlbEntry {
        self.nothing.as_mut_ptr()
    }

    /// The entry for `address` in the table for `mode`, hit or not.
    #[inline(always)]
    pub fn entry(&self, mode: TlbMode, address: u64) -> &TlbEntry {
        &self.data[mode as usize][tlb_index(address)]
    }

    /// Remembers a translation of the page of `address`.
    pub fn fill(&mut self, mode: TlbMode, address: u64, to: &Translation) {
        let index = tlb_index(address);
        let base = address & PAGE_MASK;
        let slot = &mut self.data[mode as usize][index];
        *slot = TlbEntry {
            read_tag: base,
            write_tag: if to.store { base } else { never(index) },
            addend: (to.host as u64).wrapping_sub(base),
            page: to.page as u64,
        };
        // A slot may be in both lists: flushing it early is harmless, late is not.
        let filled = if to.global { &mut self.filled_global } else { &mut self.filled };
        filled.note(mode, index, to);
        if to.large {
            self.large = (self.large.0.min(base), self.large.1.max(base));
        }
    }

    /// The fetch translation of the page of `address`, if remembered.
    #[inline(always)]
    pub fn fetch(&self, address: u64, user: bool) -> Option<&FetchEntry> {
        let entry = &self.fetch[fetch_index(address, user)];
        (entry.tag == (address & PAGE_MASK | user as u64)).then_some(entry)
    }

    /// Remembers a fetch translation.
    pub fn fill_fetch(&mut self, address: u64, user: bool, to: &Translation) {
        let tag = address & PAGE_MASK | user as u64;
        let global = self.fetched.entry(address & PAGE_MASK).or_default();
        *global |= to.global;
        self.fetch[fetch_index(address, user)] =
            FetchEntry { tag, host: to.host, page: to.page, global: to.global };
        if to.large {
            self.large = (self.large.0.min(tag & PAGE_MASK), self.large.1.max(tag & PAGE_MASK));
        }
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        for (mode, index) in self.filled_global.slots() {
            self.data[mode][index] = empty(index);
        }
        self.filled_global.clear();
        self.large = (u64::MAX, 0);
        self.flush_non_global();
        self.flush_fetch(true);
    }

    /// Forgets all but global translations (CR3 load, Intel SDM vol. 3, 4.10.4.1).
    pub fn flush_non_global(&mut self) {
        for (mode, index) in self.filled.slots() {
            self.data[mode][index] = empty(index);
        }
        self.filled.clear();
        self.flush_fetch(false);
    }

    /// Forgets the page of `address` (INVLPG). If it may be part of a large page, everything goes: its pieces are
    /// spread over the tables.
    pub fn flush_page(&mut self, address: u64) {
        let base = address & PAGE_MASK;
        let (low, high) = self.large;
        // The bounds are of 4 KiB pieces; the page around them may reach 1 GiB further.
        const GIB: u64 = 1 << 30;
        if low <= high && base >= low & !(GIB - 1) && base <= high | (GIB - 1) {
            self.flush_all();
            return;
        }
        let index = tlb_index(address);
        for table in self.data.iter_mut() {
            if table[index].read_tag == base || table[index].write_tag == base {
                table[index] = empty(index);
            }
        }
        if let Some(&global) = self.fetched.get(&base) {
            for user in [false, true] {
                let entry = &mut self.fetch[fetch_index(base, user)];
                if entry.tag & PAGE_MASK == base {
                    entry.tag = u64::MAX;
                }
            }
            self.flush_fetch(global);
        }
    }

    /// Makes every store ask again.
    pub fn drop_write_tags(&mut self) {
        self.write_generation += 1;
        for filled in [&mut self.filled, &mut self.filled_global] {
            for (mode, index) in filled.slots() {
                self.data[mode][index].write_tag = never(index);
            }
            filled.stored.fill(0);
        }
    }

    /// Makes stores to RAM page `page` ask again; true if some could hit until now.
    pub fn drop_write_tags_of(&mut self, page: usize) -> bool {
        let mut found = false;
        for filled in [&self.filled, &self.filled_global] {
            if !filled.may_store(page) {
                continue;
            }
            for (mode, index) in filled.slots() {
                let entry = &mut self.data[mode][index];
                if entry.page == page as u64 && entry.write_tag != never(index) {
                    entry.write_tag = never(index);
                    found = true;
                }
            }
        }
        self.write_generation += u64::from(found);
        found
    }

    fn flush_fetch(&mut self, global: bool) {
        for entry in self.fetch.iter_mut() {
            if global || !entry.global {
                entry.tag = u64::MAX;
            }
        }
        self.fetched.retain(|_, is_global| *is_global && !global);
        self.fetch_generation += 1;
        self.global_fetch_generation += u64::from(global);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(tlb: &Tlb, mode: TlbMode, address: u64) -> (bool, bool) {
        let e = tlb.entry(mode, address);
        (address ^ e.read_tag < 4096, address ^ e.write_tag < 4096)
    }

    fn to(page: usize, store: bool, global: bool, large: bool) -> Translation {
        Translation { host: std::ptr::without_provenance_mut(0x10000), page, store, global, large }
    }

    #[test]
    fn nothing_hits_an_empty_table() {
        let tlb = Tlb::default();
        for bits in [0, 0xfff, 0x1000, !0xfff, u64::MAX, 1 << 47, 0x8000_0000_0000_0000] {
            for page in 0..4u64 {
                assert_eq!(hit(&tlb, TlbMode::User, bits ^ page << 12), (false, false), "{bits:#x} {page}");
            }
        }
    }

    #[test]
    fn a_cr3_load_keeps_global_pages_only() {
        let mut tlb = Tlb::default();
        tlb.fill(TlbMode::Supervisor, 0x5000, &to(1, true, false, false));
        tlb.fill(TlbMode::Supervisor, 0x6000, &to(2, false, true, false));
        assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x5fff), (true, true));
        assert_eq!(hit(&tlb, TlbMode::User, 0x5fff), (false, false));
        assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (true, false));
        tlb.flush_non_global();
        assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x5fff), (false, false));
        assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (true, false));
        tlb.flush_all();
        assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (false, false));
    }

    #[test]
    fn a_non_global_page_in_a_global_slot_goes_with_cr3() {
        let mut tlb = Tlb::default();
        tlb.fill(TlbMode::User, 0x5000, &to(1, true, true, false));
        tlb.fill(TlbMode::User, 0x5000 + ((TLB_ENTRIES as u64) << 12), &to(2, true, false, false));
        tlb.flush_non_global();
        assert_eq!(hit(&tlb, TlbMode::User, 0x5000 + ((TLB_ENTRIES as u64) << 12)), (false, false));
        // And the other way round: a global page in a slot already listed must go with a full flush.
        tlb.fill(TlbMode::User, 0x5000, &to(1, true, false, false));
        tlb.fill(TlbMode::User, 0x5000, &to(1, true, true, false));
        tlb.flush_all();
        assert_eq!(hit(&tlb, TlbMode::User, 0x5000), (false, false));
    }

    #[test]
    fn invlpg_drops_all_pieces_of_a_large_page() {
        let mut tlb = Tlb::default();
        tlb.fill(TlbMode::User, 0x20_0000, &to(1, true, false, true));
        tlb.fill(TlbMode::User, 0x20_1000, &to(2, true, false, true));
        tlb.flush_page(0x3f_f000);
        assert_eq!(hit(&tlb, TlbMode::User, 0x20_0000), (false, false));
        assert_eq!(hit(&tlb, TlbMode::User, 0x20_1000), (false, false));
    }

    #[test]
    fn watched_pages_lose_their_write_tag() {
        let mut tlb = Tlb::default();
        tlb.fill(TlbMode::User, 0x5000, &to(7, true, false, false));
        assert!(!tlb.drop_write_tags_of(8));
        assert!(tlb.drop_write_tags_of(7) && !tlb.drop_write_tags_of(7));
        assert_eq!(hit(&tlb, TlbMode::User, 0x5000), (true, false));
    }

    #[test]
    fn fetch_entries_know_the_privilege() {
        let mut tlb = Tlb::default();
        tlb.fill_fetch(0x7123, true, &to(3, false, false, false));
        assert!(tlb.fetch(0x7fff, true).is_some() && tlb.fetch(0x7fff, false).is_none());
        let generation = tlb.fetch_generation;
        tlb.flush_page(0x7000);
        assert!(tlb.fetch(0x7fff, true).is_none() && tlb.fetch_generation != generation);
    }
}

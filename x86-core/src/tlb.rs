//! Soft TLB: what the page walk found, in the form the load and store paths want.
//!
//! * One table of direct-mapped entries for each way memory can be accessed ([`TlbMode`]); the current one is chosen
//!   when the privilege changes, so an entry needs no permission bits.
//! * A tag is the linear address of the page when the access is allowed, and one that cannot match in its slot when it
//!   is not. `address ^ tag` is then the page offset on a hit and large on a miss, and comparing it with
//!   `4096 - size` checks tag, permission and page crossing at once.
//! * A write tag stands only once the page's D bit and `DIRTY` flag are set and nobody holds decoded code of the page.
//! * The tables have the translations of one address space, and global ones. What was remembered of other PCIDs is
//!   saved and restored with them (`spaces`): translated code reaches the tables by constants, so they stay where they are.

#![allow(unsafe_code)] // finds the current table by its offset in the vCPU

mod inline;
mod spaces;

use std::mem::offset_of;

use crate::{Cpu, KeyedSet};
pub use inline::{INLINE_TLB_ENTRIES, InlineTlb};
use spaces::Spaces;

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

/// The table that answers data accesses: its byte offset in [`Cpu`]. An offset and not a pointer, so that the vCPU holds no
/// pointer into itself, and can be moved and borrowed like any other value.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataTable(usize);

impl DataTable {
    /// The one in which nothing hits, for accesses that must not be answered from a table.
    pub const NONE: Self = Self(offset_of!(Cpu, tlb) + offset_of!(Tlb, nothing));

    /// The one for accesses by `mode`.
    pub const fn of(mode: TlbMode) -> Self {
        Self(
            offset_of!(Cpu, tlb)
                + offset_of!(Tlb, data)
                + mode as usize * size_of::<[TlbEntry; TLB_ENTRIES]>(),
        )
    }

    /// Its offset in bytes.
    pub const fn offset(self) -> usize {
        self.0
    }
}

impl Cpu {
    /// The entry for `address` in the current data table, hit or not.
    #[inline(always)]
    pub fn data_entry(&self, address: u64) -> &TlbEntry {
        let table = std::ptr::from_ref(self).wrapping_byte_add(self.data_table.0).cast::<TlbEntry>();
        // SAFETY: a `DataTable` is the offset of a table of TLB_ENTRIES entries in `Cpu`, and the index is smaller.
        unsafe { &*table.add(tlb_index(address)) }
    }
}

/// The tables of one vCPU.
#[derive(Debug)]
pub struct Tlb {
    /// Inline, so that translated code can address it by a constant.
    data: [[TlbEntry; TLB_ENTRIES]; MODES],
    /// A table in which nothing ever hits.
    nothing: [TlbEntry; TLB_ENTRIES],
    /// Copies of some of them, at the accesses themselves.
    inline: InlineTlb,
    fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Slots of it that hold, or held, translations that are not global: a bit for each.
    fetch_filled: [u64; FETCH_ENTRIES / 64],
    /// Pages that code was fetched from since their translations were last taken back: executors remember such
    /// translations for longer than the fetch table does.
    fetched: KeyedSet<u64>,
    /// Likewise, through global translations.
    fetched_global: KeyedSet<u64>,
    /// Slots that hold, or held, translations that go with a CR3 load.
    filled: Filled,
    /// Slots that hold, or held, global ones.
    filled_global: Filled,
    /// Slots that hold global ones now.
    global: SlotSet,
    /// Where large pages are that are not global, and that are.
    large: LargePages,
    large_global: LargePages,
    /// Other PCIDs' translations.
    spaces: Spaces,
    last_generation: u64,
    /// Stands for the fetch translations of the current address space: another whenever one may have changed, and the same
    /// again when the address space comes back with all of them. Never 0, and never [`Self::global_fetch_generation`].
    pub fetch_generation: u64,
    /// Likewise for global fetch translations alone.
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

/// Most pages remembered to have been fetched from; a guest with more pays a look-up.
const MOST_FETCHED: usize = 1 << 15;

/// A set of slots of the data tables.
#[derive(Debug)]
struct SlotSet([u64; MODES * TLB_ENTRIES / 64]);

impl SlotSet {
    const EMPTY: Self = Self([0; MODES * TLB_ENTRIES / 64]);

    fn has(&self, mode: usize, index: usize) -> bool {
        let at = mode * TLB_ENTRIES + index;
        self.0[at / 64] & 1 << (at % 64) != 0
    }

    fn put(&mut self, mode: usize, index: usize, held: bool) {
        let at = mode * TLB_ENTRIES + index;
        self.0[at / 64] = self.0[at / 64] & !(1 << (at % 64)) | u64::from(held) << (at % 64);
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// RAM pages that may have a write tag: a bit for each, by page number modulo their count.
#[derive(Debug)]
struct Stored([u64; 64]);

impl Stored {
    fn note(&mut self, page: usize) {
        self.0[page / 64 % 64] |= 1 << (page % 64);
    }

    fn may_have(&self, page: usize) -> bool {
        self.0[page / 64 % 64] & 1 << (page % 64) != 0
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// Slots filled since the last flush, so that a flush costs what was filled.
#[derive(Debug)]
struct Filled {
    /// In the order in which they were filled first, each once.
    slots: Vec<Slot>,
    listed: SlotSet,
    stored: Stored,
}

/// A place in the data tables.
#[derive(Clone, Copy, Debug)]
struct Slot {
    mode: u16,
    index: u16,
}

impl Slot {
    fn place(self) -> (usize, usize) {
        (self.mode.into(), self.index.into())
    }
}

impl Filled {
    const fn new() -> Self {
        Self { slots: Vec::new(), listed: SlotSet::EMPTY, stored: Stored([0; 64]) }
    }

    fn list(&mut self, mode: usize, index: usize) {
        if !self.listed.has(mode, index) {
            self.listed.put(mode, index, true);
            self.slots.push(Slot { mode: mode as u16, index: index as u16 });
        }
    }

    fn slots(&self) -> impl Iterator<Item = (usize, usize)> {
        self.slots.iter().map(|slot| slot.place())
    }

    fn clear(&mut self) {
        for slot in self.slots.drain(..) {
            let (mode, index) = slot.place();
            self.listed.put(mode, index, false);
        }
        self.stored.clear();
    }
}

/// Linear range that pieces of large pages lie in.
#[derive(Clone, Copy, Debug)]
struct LargePages {
    low: u64,
    high: u64,
}

impl LargePages {
    const NONE: Self = Self { low: u64::MAX, high: 0 };

    fn note(&mut self, base: u64) {
        *self = Self { low: self.low.min(base), high: self.high.max(base) };
    }

    /// Whether the page at `base` may be part of one.
    fn may_have(&self, base: u64) -> bool {
        // The bounds are of 4 KiB pieces; the page around them may reach 1 GiB further.
        const GIB: u64 = 1 << 30;
        self.low <= self.high && base >= self.low & !(GIB - 1) && base <= self.high | (GIB - 1)
    }
}

/// Indices of the bits that are set.
fn bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(n, &word)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(64 * n + bit)
        })
    })
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
            inline: InlineTlb::EMPTY,
            nothing: table,
            fetch: Box::new([none; FETCH_ENTRIES]),
            fetch_filled: [0; FETCH_ENTRIES / 64],
            fetched: KeyedSet::default(),
            fetched_global: KeyedSet::default(),
            filled: Filled::new(),
            filled_global: Filled::new(),
            global: SlotSet::EMPTY,
            large: LargePages::NONE,
            large_global: LargePages::NONE,
            spaces: Spaces::default(),
            last_generation: 2,
            fetch_generation: 1,
            global_fetch_generation: 2,
            write_generation: 1,
        }
    }
}

impl Tlb {
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
        self.global.put(mode as usize, index, to.global);
        // A slot may be in both lists; what it holds now is told by `global`.
        let filled = if to.global { &mut self.filled_global } else { &mut self.filled };
        filled.list(mode as usize, index);
        if to.store {
            filled.stored.note(to.page);
        }
        if to.large {
            self.large_of(to.global).note(base);
        }
    }

    fn large_of(&mut self, global: bool) -> &mut LargePages {
        if global { &mut self.large_global } else { &mut self.large }
    }

    /// The fetch translation of the page of `address`, if remembered.
    #[inline(always)]
    pub fn fetch(&self, address: u64, user: bool) -> Option<&FetchEntry> {
        let entry = &self.fetch[fetch_index(address, user)];
        (entry.tag == (address & PAGE_MASK | user as u64)).then_some(entry)
    }

    /// Remembers a fetch translation.
    pub fn fill_fetch(&mut self, address: u64, user: bool, to: &Translation) {
        let base = address & PAGE_MASK;
        let fetched = if to.global { &self.fetched_global } else { &self.fetched };
        if fetched.len() >= MOST_FETCHED {
            self.flush_fetch(to.global);
        }
        let fetched = if to.global { &mut self.fetched_global } else { &mut self.fetched };
        fetched.insert(base);
        let index = fetch_index(address, user);
        self.fetch[index] =
            FetchEntry { tag: base | user as u64, host: to.host, page: to.page, global: to.global };
        self.fetch_filled[index / 64] |= u64::from(!to.global) << (index % 64);
        if to.large {
            self.large_of(to.global).note(base);
        }
    }

    /// Forgets everything, of all address spaces.
    pub fn flush_all(&mut self) {
        self.spaces.clear();
        self.flush_global();
        self.flush_non_global();
    }

    fn flush_global(&mut self) {
        self.inline.clear();
        for (mode, index) in self.filled_global.slots() {
            if self.global.has(mode, index) {
                self.data[mode][index] = empty(index);
            }
        }
        self.filled_global.clear();
        self.global.clear();
        self.large_global = LargePages::NONE;
        self.flush_fetch(true);
    }

    /// Forgets all of the current address space but global translations (CR3 load, Intel SDM vol. 3, 4.10.4.1).
    pub fn flush_non_global(&mut self) {
        self.inline.clear();
        for (mode, index) in self.filled.slots() {
            if !self.global.has(mode, index) {
                self.data[mode][index] = empty(index);
            }
        }
        self.filled.clear();
        self.large = LargePages::NONE;
        self.flush_fetch(false);
    }

    /// Forgets the page of `address` in the current address space, and global ones (INVLPG). If it may be part of a large
    /// page, all like it goes: its pieces are spread over the tables.
    pub fn flush_page(&mut self, address: u64) {
        self.inline.clear();
        let base = address & PAGE_MASK;
        if self.large_global.may_have(base) {
            self.flush_global();
        }
        if self.large.may_have(base) {
            self.flush_non_global();
        }
        let index = tlb_index(address);
        for (mode, table) in self.data.iter_mut().enumerate() {
            if table[index].read_tag == base || table[index].write_tag == base {
                table[index] = empty(index);
                self.global.put(mode, index, false);
            }
        }
        let global = self.fetched_global.contains(&base);
        if global || self.fetched.contains(&base) {
            self.flush_fetch(global);
        }
    }

    /// Makes every store ask again.
    pub fn drop_write_tags(&mut self) {
        self.inline.clear();
        self.write_generation += 1;
        for filled in [&mut self.filled, &mut self.filled_global] {
            for (mode, index) in filled.slots() {
                self.data[mode][index].write_tag = never(index);
            }
            filled.stored.clear();
        }
        self.spaces.drop_write_tags();
    }

    /// Makes stores to RAM page `page` ask again; true if some could hit until now.
    pub fn drop_write_tags_of(&mut self, page: usize) -> bool {
        self.inline.clear();
        let mut found = false;
        for filled in [&self.filled, &self.filled_global] {
            if !filled.stored.may_have(page) {
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
        self.spaces.drop_write_tags_of(page);
        found
    }

    fn next_generation(&mut self) -> u64 {
        self.last_generation += 1;
        self.last_generation
    }

    /// Forgets fetch translations that are not global, or all.
    fn flush_fetch(&mut self, global: bool) {
        if global {
            self.fetch.iter_mut().for_each(|entry| entry.tag = u64::MAX);
            self.fetched_global.clear();
            self.global_fetch_generation = self.next_generation();
            // What executors remember of other address spaces may be global.
            self.spaces.renew_generations();
        } else {
            for index in bits(&self.fetch_filled) {
                if !self.fetch[index].global {
                    self.fetch[index].tag = u64::MAX;
                }
            }
        }
        self.fetch_filled.fill(0);
        self.fetched.clear();
        self.fetch_generation = self.next_generation();
    }
}

#[cfg(test)]
mod tests;

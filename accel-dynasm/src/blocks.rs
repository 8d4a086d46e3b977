//! What is known of translated blocks: by their place in RAM, and by where their code lies. What is dropped is kept until
//! its code is, so that the memory it takes is bounded by that of code.

use std::hash::Hasher as _;

use iced_x86::Instruction;
use x86_core::alu::flag;
use x86_core::exec::ExecFn;
use x86_core::{Cpu, KeyHasher, Keyed};

use crate::links::Edge;
use crate::mode::Mode;
use crate::regions::{Numbered, region_of};
use crate::translate::Site;

/// Place and circumstances of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    /// RAM page and offset in it.
    place: u64,
    /// Linear address of the page, for code that works only there; with the mode in its low bits.
    page: u64,
}

impl Key {
    pub(crate) fn new(ram_page: usize, address: u64, mode: Mode) -> Self {
        let page = if mode.user() { 0 } else { address & !0xfff };
        Self { place: (ram_page as u64) << 12 | address & 0xfff, page: page | u64::from(mode.bits()) }
    }

    pub(crate) fn ram_page(self) -> usize {
        (self.place >> 12) as usize
    }

    /// Offset in its page.
    pub(crate) fn offset(self) -> u64 {
        self.place & 0xfff
    }

    /// A number for people, the same in every run in which the code lies at the same place.
    pub(crate) fn hash(self) -> u64 {
        let mut hasher = KeyHasher::default();
        hasher.write_u64(self.place);
        hasher.write_u64(self.page);
        hasher.finish()
    }
}

/// Lines of its second page that an instruction can reach into.
pub(crate) const SECOND_LINES: u64 = 1;

/// One translation.
#[derive(Debug)]
pub(crate) struct Block {
    pub key: Key,
    /// RAM page that its only instruction crosses into.
    pub second: Option<usize>,
    pub mode: Mode,
    /// Linear address of its page when it was translated: of user code, one of them.
    pub page: u64,
    /// Offset of its code in the cache, and lengths of code and of guest code.
    pub code: u32,
    pub code_len: u32,
    pub length: u16,
    /// Lines of the page that it depends on.
    pub lines: u64,
    pub instructions: u16,
    /// Offsets in the cache.
    pub entry: u32,
    pub far_entry: u32,
    pub retired: u32,
    /// Times that a group's check has failed.
    pub misses: u32,
    /// The first of the links that lead to it, or [`NOTHING`](crate::engine::NOTHING).
    pub incoming: u32,
    /// Times that it was checked, in lockstep.
    pub checked: u8,
    /// Its code must not be entered any more.
    pub dropped: bool,
    /// Host instructions that may fault, by their distance from `code`, their guest instructions' offsets, and how many behind
    /// those have been counted already.
    pub faults: Box<[(u32, u16, u8)]>,
    /// Where it leads in its page, by offset, and which flags are right there, if not all; for who compares them.
    pub exits: Box<[(u16, u16)]>,
    /// What it is shown by, where somebody may want to see it.
    pub listing: Option<Box<Listing>>,
}

impl Block {
    /// Linear address of its page where `cpu`, which is in it, has it.
    pub(crate) fn page_now(&self, cpu: &Cpu) -> u64 {
        if self.mode.user() { cpu.code_page } else { self.page }
    }

    /// Lines of RAM page `page` that it depends on.
    pub(crate) fn lines_in(&self, page: usize) -> u64 {
        let first = if page == self.key.ram_page() { self.lines } else { 0 };
        first | if self.second == Some(page) { SECOND_LINES } else { 0 }
    }

    /// The flags that are right where it leads to `offset` in its page.
    pub(crate) fn flags_at(&self, offset: u64) -> u64 {
        let exit = self.exits.iter().find(|(at, _)| u64::from(*at) == offset);
        exit.map_or(flag::ARITH, |(_, wanted)| u64::from(*wanted))
    }
}

/// Guest code of a block, and where in its host code the instructions begin: distances from the start, page offsets.
#[derive(Debug)]
pub(crate) struct Listing {
    pub guest: Box<[u8]>,
    pub starts: Box<[(u32, u16)]>,
}

/// An instruction executed by its function in x86-core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generic {
    pub instruction: Instruction,
    pub function: ExecFn,
    /// Has an operand relative to RIP, or is a branch: what it was decoded for depends on the page's address.
    pub relative: bool,
}

/// Where blocks are.
#[derive(Default)]
pub(crate) struct Blocks {
    pub list: Numbered<Block>,
    by_key: Keyed<Key, u32>,
    by_page: Keyed<usize, Vec<u32>>,
    /// With the block each belongs to.
    pub sites: Numbered<(u32, Site)>,
    pub generics: Numbered<Generic>,
    pub links: Numbered<Edge>,
}

impl Blocks {
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn get(&self, number: u32) -> &Block {
        &self.list[number]
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> &mut Block {
        &mut self.list[number]
    }

    /// Adds a block whose code lies in `region`.
    pub(crate) fn insert(&mut self, region: usize, block: Block) {
        let number = self.list.next(region);
        let key = block.key;
        for page in [Some(key.ram_page()), block.second].into_iter().flatten() {
            self.by_page.entry(page).or_default().push(number);
        }
        self.list.push(region, block);
        self.by_key.insert(key, number);
    }

    /// Takes the blocks of a RAM page that `hit` says so of out of use; their numbers.
    pub(crate) fn drop_page(&mut self, page: usize, hit: impl Fn(&Block) -> bool) -> Vec<u32> {
        let Some(numbers) = self.by_page.get_mut(&page) else { return Vec::new() };
        let list = &mut self.list;
        let mut dropped = Vec::new();
        numbers.retain(|&n| {
            let block = &mut list[n];
            if !block.dropped && !hit(block) {
                return true;
            }
            if !block.dropped {
                block.dropped = true;
                dropped.push(n);
            }
            false
        });
        if numbers.is_empty() {
            self.by_page.remove(&page);
        }
        dropped
    }

    /// The block whose code is at offset `at` of the cache, which lies in `region`.
    pub(crate) fn at_code(&self, region: usize, at: usize) -> Option<&Block> {
        let list = self.list.of(region);
        // Code is only ever appended.
        let behind = list.partition_point(|b| b.code as usize <= at);
        list[..behind].last().filter(|b| at < (b.code + b.code_len) as usize)
    }

    /// RAM pages that have blocks.
    pub(crate) fn pages(&self) -> Vec<usize> {
        self.by_page.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Forgets the blocks of a region, from which no link leads anywhere.
    pub(crate) fn clear(&mut self, region: usize) {
        self.by_key.retain(|_, number| region_of(*number) != region);
        self.by_page.retain(|_, numbers| {
            numbers.retain(|number| region_of(*number) != region);
            !numbers.is_empty()
        });
        self.list.clear(region);
        self.sites.clear(region);
        self.generics.clear(region);
        self.links.clear(region);
    }
}

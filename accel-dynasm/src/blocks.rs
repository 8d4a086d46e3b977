//! What is known of translated blocks: by their place in RAM, and by where their code lies.

use std::hash::Hasher as _;

use iced_x86::Instruction;
use x86_core::alu::flag;
use x86_core::exec::ExecFn;
use x86_core::{Cpu, KeyHasher, Keyed};

use crate::mode::Mode;
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

/// One translation.
#[derive(Debug)]
pub(crate) struct Block {
    pub key: Key,
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
    /// Links that lead to it.
    pub incoming: Vec<u32>,
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
    list: Vec<Block>,
    by_key: Keyed<Key, u32>,
    by_page: Keyed<usize, Vec<u32>>,
    /// With the block each belongs to.
    pub sites: Vec<(u32, Site)>,
    pub generics: Vec<Generic>,
}

impl Blocks {
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn get(&self, number: u32) -> &Block {
        &self.list[number as usize]
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> &mut Block {
        &mut self.list[number as usize]
    }

    pub(crate) fn next_number(&self) -> u32 {
        self.list.len() as u32
    }

    /// Adds a block.
    pub(crate) fn insert(&mut self, block: Block) {
        let number = self.next_number();
        let key = block.key;
        self.list.push(block);
        self.by_page.entry(key.ram_page()).or_default().push(number);
        self.by_key.insert(key, number);
    }

    /// Takes the blocks of a RAM page that `hit` says so of out of use; their numbers.
    pub(crate) fn drop_page(&mut self, page: usize, hit: impl Fn(&Block) -> bool) -> Vec<u32> {
        let Some(numbers) = self.by_page.get_mut(&page) else { return Vec::new() };
        let list = &mut self.list;
        let mut dropped = Vec::new();
        numbers.retain(|&n| {
            let block = &mut list[n as usize];
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

    /// The block whose code is at offset `at` of the cache.
    pub(crate) fn at_code(&self, at: usize) -> Option<&Block> {
        // Code is only ever appended.
        let behind = self.list.partition_point(|b| b.code as usize <= at);
        self.list[..behind].last().filter(|b| at < (b.code + b.code_len) as usize)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.by_key.clear();
        self.by_page.clear();
        self.sites.clear();
        self.generics.clear();
    }
}

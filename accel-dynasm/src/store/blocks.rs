//! What is known of translated blocks: by their place in RAM, and by where their code lies. What is dropped is kept until
//! its code is, so that the memory it takes is bounded by that of code.

use std::hash::Hasher as _;

use iced_x86::Instruction;
use x86_core::exec::ExecFn;
use x86_core::{Cpu, KeyHasher, Keyed};

use crate::block_mode::BlockMode;
use crate::dispatch::NOTHING;
use crate::store::chaining::ChainedJump;
use crate::store::regions::{Numbered, REGIONS, region_of};
use crate::translate::{LazyFlags, MayFault, Output, Site};

/// Place and circumstances of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    /// RAM page and offset in it.
    place: u64,
    /// Linear address of the page, for code that works only there; with the mode in its low bits.
    page: u64,
}

impl Key {
    pub(crate) fn new(ram_page: usize, address: u64, mode: BlockMode) -> Self {
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
    pub mode: BlockMode,
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
    /// The first of the links that lead to it, or [`NOTHING`].
    pub incoming: u32,
    /// Times that it was checked, in lockstep.
    pub checked: u8,
    /// Its code must not be entered any more.
    pub dropped: bool,
    pub faults: Box<[MayFault]>,
    /// It is for who comes with flags that can be had as this number in [`Blocks::recipes`]; or [`NOTHING`].
    pub known: u32,
    /// The flags it is entered with make a difference.
    pub flags_matter: bool,
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

/// Most blocks at one place that are for who comes with known flags.
const VARIANTS: usize = 4;

/// How flags can be had: each way once a region, since a few thousand serve all exits of all blocks.
#[derive(Default)]
pub(crate) struct Recipes {
    list: Numbered<LazyFlags>,
    numbers: [Keyed<LazyFlags, u32>; REGIONS],
}

impl Recipes {
    pub(crate) fn get(&self, number: u32) -> Option<&LazyFlags> {
        self.list.get(number)
    }

    /// The number of `flags` in `region`.
    pub(crate) fn number(&mut self, region: usize, flags: LazyFlags) -> u32 {
        let Self { list, numbers } = self;
        *numbers[region].entry(flags).or_insert_with(|| {
            let number = list.next(region);
            list.push(region, flags);
            number
        })
    }

    /// Takes those of a translation, whose indices become numbers.
    pub(crate) fn take(&mut self, region: usize, of: &mut Output) {
        let numbers: Vec<u32> = of.recipes.iter().map(|flags| self.number(region, *flags)).collect();
        let numbered = |index: u32| numbers.get(index as usize).copied().unwrap_or(NOTHING);
        of.sites.iter_mut().for_each(|site| site.flags = numbered(site.flags));
        of.links.iter_mut().for_each(|link| link.known = numbered(link.known));
        of.faults.iter_mut().for_each(|fault| fault.flags = numbered(fault.flags));
    }

    fn clear(&mut self, region: usize) {
        self.list.clear(region);
        self.numbers[region].clear();
    }
}

/// Where blocks are.
#[derive(Default)]
pub(crate) struct Blocks {
    pub list: Numbered<Block>,
    by_key: Keyed<Key, u32>,
    /// Those for who comes with known flags.
    variants: Keyed<Key, [u32; VARIANTS]>,
    by_page: Keyed<usize, Vec<u32>>,
    /// With the block each belongs to.
    pub sites: Numbered<(u32, Site)>,
    pub generics: Numbered<Generic>,
    pub recipes: Recipes,
    pub links: Numbered<ChainedJump>,
}

impl Blocks {
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// The blocks for who comes with known flags, with places for more.
    pub(crate) fn variants(&self, key: Key) -> impl Iterator<Item = Option<u32>> {
        let numbers = self.variants.get(&key).copied().unwrap_or([NOTHING; VARIANTS]);
        numbers.into_iter().map(|number| (!self.is_gone(number)).then_some(number))
    }

    fn is_gone(&self, number: u32) -> bool {
        self.list.get(number).is_none_or(|block| block.dropped)
    }

    /// How the flags can be had by who comes to block `number`, if it is for known ones.
    pub(crate) fn known(&self, number: u32) -> Option<&LazyFlags> {
        self.recipes.get(self.get(number).known)
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
        let (key, known) = (block.key, block.known != NOTHING);
        for page in [Some(key.ram_page()), block.second].into_iter().flatten() {
            self.by_page.entry(page).or_default().push(number);
        }
        self.list.push(region, block);
        let place = self.variants(key).position(|variant| variant.is_none());
        if !known {
            self.by_key.insert(key, number);
        } else if let Some(place) = place {
            self.variants.entry(key).or_insert([NOTHING; VARIANTS])[place] = number;
        }
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
        let variants = self.variants.values().flatten();
        self.by_key.len() + variants.filter(|number| **number != NOTHING).count()
    }

    /// Forgets the blocks of a region, from which no link leads anywhere.
    pub(crate) fn clear(&mut self, region: usize) {
        self.by_key.retain(|_, number| region_of(*number) != region);
        self.variants.retain(|_, numbers| {
            let gone = numbers.iter_mut().filter(|number| region_of(**number) == region);
            gone.for_each(|number| *number = NOTHING);
            *numbers != [NOTHING; VARIANTS]
        });
        self.by_page.retain(|_, numbers| {
            numbers.retain(|number| region_of(*number) != region);
            !numbers.is_empty()
        });
        self.list.clear(region);
        self.sites.clear(region);
        self.generics.clear(region);
        self.recipes.clear(region);
        self.links.clear(region);
    }
}

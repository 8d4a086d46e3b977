//! Metadata of blocks: by their place in RAM, and by where their code lies. A block that is dropped is kept as long as
//! its code is, so the memory of metadata is bounded by that of code.

use std::hash::Hasher as _;

use iced_x86::Instruction;
use x86_core::exec::ExecFn;
use x86_core::{Cpu, KeyHasher, Keyed};

use super::regions::{Numbered, REGIONS, region_of};
use crate::block_mode::BlockMode;
use crate::translate::output::{DirectJump, MayFault, NOTHING, Site};
use crate::translate::plan::lazy_flags::LazyFlags;

/// The key of a block.
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

    /// A number for reports, the same in every run in which the code lies at the same place.
    pub(crate) fn hash(self) -> u64 {
        let mut hasher = KeyHasher::default();
        hasher.write_u64(self.place);
        hasher.write_u64(self.page);
        hasher.finish()
    }
}

/// Lines of its second page that an instruction can reach into.
pub(crate) const SECOND_LINES: u64 = 1;

/// One translation block.
#[derive(Debug)]
pub(crate) struct Block {
    pub key: Key,
    /// RAM page that its only instruction crosses into, if it does.
    pub second: Option<usize>,
    pub mode: BlockMode,
    /// Linear address of its page when it was translated; user code may be mapped at others too.
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
    /// The first of the jumps that are chained to it, or [`NOTHING`].
    pub incoming: u32,
    /// Times that it was checked, in lockstep.
    pub checked: u8,
    /// Its code must not be entered any more.
    pub dropped: bool,
    pub faults: Box<[MayFault]>,
    /// It is entered only with flags that this recipe gives, by its number; with [`NOTHING`], with flags in the host's.
    pub known: u32,
    /// The flags it is entered with make a difference.
    pub flags_matter: bool,
    /// Its listing, if listings are wanted.
    pub listing: Option<Box<Listing>>,
}

impl Block {
    /// Linear address of its page as `cpu`, which executes it, has it mapped.
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

/// An instruction that a helper executes: by its function in x86-core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Helper {
    pub instruction: Instruction,
    pub function: ExecFn,
    /// Has an operand relative to RIP, or is a branch: the decoded instruction holds only for one address of the page.
    pub relative: bool,
}

/// A direct jump of block `from`, and where it leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainedJump {
    pub(super) from: u32,
    pub(super) jump: DirectJump,
    /// The block that it leads to, or [`NOTHING`] while it asks; and its neighbours in the list of that block.
    pub(super) to: u32,
    pub(super) previous: u32,
    pub(super) next: u32,
    /// It is in the store's list of jumps to other pages.
    pub(super) noted: bool,
}

impl ChainedJump {
    /// A jump as it is emitted: it leads to where it asks.
    pub(super) fn new(from: u32, jump: DirectJump) -> Self {
        Self { from, jump, to: NOTHING, previous: NOTHING, next: NOTHING, noted: false }
    }
}

/// Most variants of a block: those that are entered with flags that a recipe gives (ADR 19).
const VARIANTS: usize = 4;

/// Recipes for flags: each is kept once a region, since a few thousand serve all exits of all blocks.
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
    pub(super) fn number(&mut self, region: usize, flags: LazyFlags) -> u32 {
        let Self { list, numbers } = self;
        *numbers[region].entry(flags).or_insert_with(|| {
            let number = list.next(region);
            list.push(region, flags);
            number
        })
    }

    fn clear(&mut self, region: usize) {
        self.list.clear(region);
        self.numbers[region].clear();
    }
}

/// All blocks, and their numbered parts.
#[derive(Default)]
pub(crate) struct Blocks {
    pub list: Numbered<Block>,
    by_key: Keyed<Key, u32>,
    /// Blocks that are entered with flags that a recipe gives.
    variants: Keyed<Key, [u32; VARIANTS]>,
    by_page: Keyed<usize, Vec<u32>>,
    /// With the block each belongs to.
    pub sites: Numbered<(u32, Site)>,
    pub helpers: Numbered<Helper>,
    /// How flags can be had that are not in the host's.
    pub recipes: Recipes,
    pub jumps: Numbered<ChainedJump>,
}

impl Blocks {
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// The variants of a block, `None` where there is room for one.
    pub(crate) fn variants(&self, key: Key) -> impl Iterator<Item = Option<u32>> {
        let numbers = self.variants.get(&key).copied().unwrap_or([NOTHING; VARIANTS]);
        numbers.into_iter().map(|number| (!self.is_gone(number)).then_some(number))
    }

    fn is_gone(&self, number: u32) -> bool {
        self.list.get(number).is_none_or(|block| block.dropped)
    }

    /// The recipe that gives the flags where block `number` is entered, if it is a variant.
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

    /// Drops the blocks of a RAM page for which `hit` holds; their numbers.
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
        let after = list.partition_point(|b| b.code as usize <= at);
        list[..after].last().filter(|b| at < (b.code + b.code_len) as usize)
    }

    /// RAM pages that have blocks.
    pub(crate) fn pages(&self) -> Vec<usize> {
        self.by_page.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        let variants = self.variants.values().flatten();
        self.by_key.len() + variants.filter(|number| **number != NOTHING).count()
    }

    /// Forgets the blocks of a region, none of whose jumps is chained.
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
        self.helpers.clear(region);
        self.recipes.clear(region);
        self.jumps.clear(region);
    }
}

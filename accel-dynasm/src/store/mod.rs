//! The code store: host code of blocks, their metadata, and all ways from block to block.
//!
//! 1. `code_cache.rs` has the memory for code, which fills and is emptied by [`regions`]; `blocks.rs` has the metadata.
//! 2. `insert.rs` places a translation and fills in its relocations; `eviction.rs` makes room when the cache is full.
//! 3. `chaining.rs` lets direct jumps lead to their targets; `jump_cache.rs` serves jumps whose target is known only
//!    when they happen; `lookup_cache.rs` is in front of the tables of all blocks. `flag_variants.rs` chooses between
//!    blocks of the same code by the flags they are entered with (ADR 19).
//! 4. Blocks are invalidated when their code is written ([`CodeStore::invalidate`]); `address_space.rs` drops ways
//!    between blocks when translations of addresses change.
//! 5. `smc.rs` and `inline_tlb.rs` remember code that is better translated otherwise, or not at all.

mod address_space;
pub(crate) mod blocks;
mod chaining;
mod code_cache;
mod eviction;
mod flag_variants;
pub(crate) mod inline_tlb;
pub(crate) mod insert;
mod jump_cache;
mod lookup_cache;
pub(crate) mod regions;
mod smc;

use std::collections::HashSet;
use std::ops::Range;
use std::ptr::NonNull;

use accel_api::AccelError;
use x86_core::{StaleCode, Tlb};

use self::address_space::Translations;
use self::blocks::{Block, Blocks, Key};
use self::code_cache::CodeCache;
use self::inline_tlb::InlineTlbPolicy;
use self::jump_cache::JumpCache;
use self::lookup_cache::LookupCache;
use self::smc::SelfModifyingCode;
use crate::block_mode::BlockMode;
use crate::counters::StoreCounters;
use crate::jit_context::{CLASSES, JumpTable};
use crate::translate::output::{MayFault, StubTable};

/// Failed checks of a group after which a block is translated without groups.
const MAX_GROUP_MISSES: u32 = 32;

/// The code store of a vCPU.
pub(crate) struct CodeStore {
    cache: CodeCache,
    pub blocks: Blocks,
    stubs: StubTable,
    jump_cache: JumpCache,
    lookup_cache: LookupCache,
    /// Direct jumps to other pages that have been chained.
    far: Vec<u32>,
    translations: Translations,
    smc: SelfModifyingCode,
    pub inline_tlb: InlineTlbPolicy,
    /// Blocks whose groups have failed too often.
    ungrouped: HashSet<Key>,
    /// Whether blocks lead to one another without Rust.
    chains: bool,
    pub counters: StoreCounters,
}

/// Options of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreOptions {
    /// Bytes of code.
    pub cache_bytes: usize,
    /// The memory is to have no file of its own, so that perf looks up its names elsewhere.
    pub nameless: bool,
    /// Whether blocks lead to one another without Rust.
    pub chains: bool,
}

/// Whether the host maps memory as executable.
///
/// # Errors
/// It does not.
pub(crate) fn check() -> Result<(), AccelError> {
    CodeCache::new(code_cache::LEAST, false).map(drop)
}

impl CodeStore {
    /// A store without code, which uses `jumps` for its jump cache.
    ///
    /// # Safety
    /// `jumps` are new, there as long as the store is, and nothing else changes them. Host code reads them only while
    /// no method of the store runs.
    ///
    /// # Errors
    /// The host does not map memory as executable, or has none.
    #[allow(unsafe_code)] // the tables lie where host code finds them
    pub(crate) unsafe fn new(
        options: StoreOptions,
        mode: BlockMode,
        jumps: NonNull<[JumpTable; CLASSES]>,
    ) -> Result<Self, AccelError> {
        let cache = CodeCache::new(options.cache_bytes, options.nameless)?;
        Ok(Self {
            cache,
            blocks: Blocks::default(),
            stubs: StubTable::default(),
            // SAFETY: the caller's promise.
            jump_cache: unsafe { JumpCache::new(jumps) },
            lookup_cache: LookupCache::new(mode),
            far: Vec::new(),
            translations: Translations::default(),
            smc: SelfModifyingCode::default(),
            inline_tlb: InlineTlbPolicy::default(),
            ungrouped: HashSet::new(),
            chains: options.chains,
            counters: StoreCounters::default(),
        })
    }

    /// Offset at which code is placed next.
    pub(crate) fn cursor(&self) -> usize {
        self.cache.cursor()
    }

    /// Places the stubs, `code` that was made for [`Self::cursor`], in front of all blocks.
    pub(crate) fn place_stubs(&mut self, code: &[u8], stubs: StubTable) {
        self.cache.append(code);
        self.cache.divide();
        self.stubs = stubs;
    }

    /// The block for `address`, if it was found lately.
    pub(crate) fn find_cached(&self, address: u64, mode: BlockMode, tlb: &Tlb) -> Option<u32> {
        self.lookup_cache.find(address, mode, tlb)
    }

    /// `block` was found for `address` through a translation that is `global` or not.
    pub(crate) fn cache(&mut self, address: u64, mode: BlockMode, block: u32, tlb: &Tlb, global: bool) {
        self.lookup_cache.insert(address, mode, block, tlb, global);
    }

    /// Where block `number` is entered from its own page.
    pub(crate) fn entry(&self, number: u32) -> *const u8 {
        self.cache.address(self.blocks.get(number).entry as usize)
    }

    /// The host address of the code at distance `at` of block `number`.
    pub(crate) fn address(&self, number: u32, at: u32) -> *const u8 {
        self.cache.address((self.blocks.get(number).code + at) as usize)
    }

    /// The host address of the code at offset `at` of the cache.
    pub(crate) fn stub_address(&self, at: usize) -> *const u8 {
        self.cache.address(at)
    }

    /// Host address and bytes of a block's code.
    pub(crate) fn code(&self, block: &Block) -> (u64, &[u8]) {
        let start = block.code as usize;
        (self.cache.address(start) as u64, self.cache.bytes(start..start + block.code_len as usize))
    }

    /// Host addresses of all code.
    pub(crate) fn range(&self) -> Range<usize> {
        self.cache.range()
    }

    /// Bytes of code.
    pub(crate) fn used(&self) -> usize {
        self.cache.used()
    }

    /// The block that the host instruction at address `pc` belongs to.
    pub(crate) fn block_at(&self, pc: u64) -> Option<&Block> {
        let at = self.cache.offset(pc)?;
        self.blocks.at_code(self.cache.region_at(at)?, at)
    }

    /// The block of the host instruction at address `pc`, and its entry in the fault table, if it may raise an
    /// exception for the guest's.
    pub(crate) fn fault_at(&self, pc: u64) -> Option<(&Block, MayFault)> {
        let block = self.block_at(pc)?;
        let distance = self.cache.offset(pc)? as u32 - block.code;
        let fault = block.faults.iter().find(|fault| fault.at == distance)?;
        Some((block, *fault))
    }

    /// Whether the block with `key` is to be translated without groups.
    pub(crate) fn is_ungrouped(&self, key: Key) -> bool {
        self.ungrouped.contains(&key)
    }

    /// A group's check has failed in block `number`.
    pub(crate) fn group_missed(&mut self, number: u32) {
        let block = self.blocks.get_mut(number);
        block.misses += 1;
        if block.misses == MAX_GROUP_MISSES {
            self.counters.ungrouped += 1;
            self.ungrouped.insert(block.key);
            self.retire(number);
        }
    }

    /// Whether the block with `key` is better interpreted this time, because its code changes often.
    pub(crate) fn is_suspect(&mut self, key: Key) -> bool {
        self.smc.is_suspect(key)
    }

    /// Drops the blocks of code that was written.
    pub(crate) fn invalidate(&mut self, stale: StaleCode) {
        self.counters.invalidations += 1;
        self.lookup_cache.clear();
        let dropped = self.blocks.drop_page(stale.page, |b| b.lines_in(stale.page) & stale.lines != 0);
        self.smc.invalidated(stale.page, dropped.iter().map(|n| self.blocks.get(*n).key));
        if stale.lines == u64::MAX {
            self.inline_tlb.forget(stale.page);
        }
        for number in dropped {
            self.retire(number);
        }
    }

    /// Drops block `number`: every way into it asks again.
    pub(crate) fn retire(&mut self, number: u32) {
        self.lookup_cache.clear();
        self.blocks.get_mut(number).dropped = true;
        self.unchain_incoming(number);
        // The jump cache may lead here.
        let block = self.blocks.get(number);
        self.cache.put_jump(block.entry as usize, block.retired as usize);
    }
}

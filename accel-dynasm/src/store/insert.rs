//! Places translations into the cache.

use iced_x86::{FlowControl, Instruction};
use x86_core::exec::ExecFn;

use super::CodeStore;
use super::blocks::{Block, ChainedJump, Helper, Key, Listing};
use crate::block_mode::BlockMode;
use crate::translate::output::{INDIRECT, MayFault, NOTHING, Output, SiteKind, Target};
use crate::translate::plan::lazy_flags::LazyFlags;

/// A translation that is to be inserted, but for code and metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewBlock<'a> {
    pub key: Key,
    pub mode: BlockMode,
    /// The recipe for the flags that it is entered with; without one they are in the host's.
    pub known: Option<LazyFlags>,
    /// RAM page that its only instruction crosses into, if it does.
    pub second: Option<usize>,
    /// Linear address of its page.
    pub page: u64,
    /// Bytes of its guest code, if listings may want them.
    pub listing: Option<&'a [u8]>,
}

impl CodeStore {
    /// Makes room for `len` bytes of code, if need be by eviction. Whether there is room: if not, `len` is more than a
    /// region has. No host code that may be evicted may be going to be returned to.
    pub(crate) fn make_room(&mut self, len: usize) -> bool {
        if !self.cache.has_room(len) && !self.cache.is_empty() {
            self.evict();
        }
        self.cache.has_room(len)
    }

    /// Fills in the relocations of `code`, for which there is room, where it is inserted next.
    pub(crate) fn relocate(&self, code: &mut [u8], out: &Output) {
        let region = self.cache.current();
        let (sites, jumps) = (self.blocks.sites.next(region), self.blocks.jumps.next(region));
        for relocation in &out.relocations {
            let field = relocation.field as usize;
            let value = match relocation.target {
                Target::Stub { stub, class, vectors } => {
                    let to = self.stubs.offset(stub, class, vectors) as i64;
                    (to - (self.cache.cursor() + field + 4) as i64) as u32
                }
                Target::Site(n) => sites + n,
                Target::IndirectSite(n) => (sites + n) | INDIRECT,
                Target::Jump(n) => jumps + n,
            };
            code[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Where the stub that executes instructions lies, counted from where code is inserted next.
    pub(crate) fn distance_to_helper_stub(&self) -> i64 {
        self.stubs.helper[0] as i64 - self.cache.cursor() as i64
    }

    /// Adds a block, whose `code` is relocated. `function` gives the function that executes an instruction in a helper.
    /// Returns the block's number.
    pub(crate) fn insert(
        &mut self,
        new: NewBlock<'_>,
        code: &[u8],
        out: &Output,
        function: impl Fn(&Instruction) -> ExecFn,
    ) -> u32 {
        let region = self.cache.current();
        let number = self.blocks.list.next(region);
        let at = self.cache.append(code) as u32;
        self.counters.translated += 1;
        self.counters.instructions_translated += u64::from(out.instructions);
        let helpers = self.blocks.helpers.next(region);
        let recipes = &mut self.blocks.recipes;
        let numbers: Vec<u32> = out.recipes.iter().map(|flags| recipes.number(region, *flags)).collect();
        let recipe = |index: u32| numbers.get(index as usize).copied().unwrap_or(NOTHING);
        let known = new.known.filter(|_| out.flags_matter);
        let known = known.map_or(NOTHING, |flags| recipes.number(region, flags));
        let sites = out.sites.iter().map(|&(mut site)| {
            site.flags = recipe(site.flags);
            if let SiteKind::Helper(n) | SiteKind::Begun(n) = &mut site.kind {
                *n += helpers;
            }
            (number, site)
        });
        self.blocks.sites.extend(region, sites);
        let helpers = out.helpers.iter().map(|instruction| Helper {
            instruction: *instruction,
            function: function(instruction),
            relative: instruction.is_ip_rel_memory_operand()
                || instruction.flow_control() != FlowControl::Next,
        });
        self.blocks.helpers.extend(region, helpers);
        let jumps = out.jumps.iter().map(|&(mut jump)| {
            jump.known = recipe(jump.known);
            ChainedJump::new(number, jump)
        });
        self.blocks.jumps.extend(region, jumps);
        let faults = out.faults.iter().map(|fault| MayFault { flags: recipe(fault.flags), ..*fault });
        let faults = faults.collect();
        let listing = new
            .listing
            .map(|guest| Box::new(Listing { guest: guest.into(), starts: out.starts.as_slice().into() }));
        let block = Block {
            key: new.key,
            second: new.second,
            mode: new.mode,
            page: new.page,
            code: at,
            code_len: code.len() as u32,
            length: out.length,
            lines: out.lines,
            instructions: out.instructions as u16,
            entry: at + out.entry,
            far_entry: at + out.far_entry,
            retired: at + out.retired,
            misses: 0,
            incoming: NOTHING,
            checked: 0,
            dropped: false,
            faults,
            known,
            flags_matter: out.flags_matter,
            listing,
        };
        self.blocks.insert(region, block);
        number
    }
}

//! Chaining: a direct jump leads from block to block without Rust once its target is known. Each chained jump is in a
//! list of its target, so that no jump leads to a block that was dropped.

use super::CodeStore;
use super::blocks::{Blocks, ChainedJump};
use super::code_cache::JUMP_LEN;
use crate::translate::output::NOTHING;

impl Blocks {
    /// Records that `jump`, which asks, leads to block `to` from now on.
    fn attach(&mut self, jump: u32, to: u32) {
        let next = std::mem::replace(&mut self.get_mut(to).incoming, jump);
        if next != NOTHING {
            self.jumps[next].previous = jump;
        }
        let record = &mut self.jumps[jump];
        (record.to, record.previous, record.next) = (to, NOTHING, next);
    }

    /// Records that `jump` leads nowhere any more. Whether it did.
    pub(super) fn detach(&mut self, jump: u32) -> bool {
        let ChainedJump { to, previous, next, .. } = self.jumps[jump];
        if to == NOTHING {
            return false;
        }
        if next != NOTHING {
            self.jumps[next].previous = previous;
        }
        match previous {
            NOTHING => self.get_mut(to).incoming = next,
            _ => self.jumps[previous].next = next,
        }
        self.jumps[jump].to = NOTHING;
        true
    }
}

impl CodeStore {
    /// Makes the direct jump with number `jump` lead to block `number`, which was found for it.
    pub(crate) fn chain(&mut self, jump: u32, number: u32) {
        if !self.chains {
            return;
        }
        let Some(&ChainedJump { from, jump: record, to, .. }) = self.blocks.jumps.get(jump) else { return };
        let (from, target) = (self.blocks.get(from), self.blocks.get(number));
        // The vCPU's mode may have changed on the way, and the block's own code may have been overwritten. And where a
        // page of user code lies is known only by its address.
        let two_pages = target.second.is_some();
        if from.mode.grouped() != target.mode || from.dropped || two_pages && target.mode.user() {
            return;
        }
        debug_assert_eq!(to, NOTHING, "a jump that asks leads nowhere");
        self.counters.chained += 1;
        let mut to = target.entry;
        if !record.host_flags && target.known == NOTHING && target.flags_matter {
            let (load, field) = record.load;
            self.cache.link((from.code + field) as usize, to as usize);
            to = from.code + load;
        }
        self.cache.link((from.code + record.field) as usize, to as usize);
        self.blocks.attach(jump, number);
        if (record.far || two_pages) && !std::mem::replace(&mut self.blocks.jumps[jump].noted, true) {
            self.far.push(jump);
        }
    }

    /// Lets computed jumps to `address` find block `number`, which was found for it.
    pub(crate) fn remember(&mut self, address: u64, number: u32) {
        let block = self.blocks.get(number);
        if !self.chains || block.mode.is_ungrouped() {
            return;
        }
        let entry = self.cache.address(block.far_entry as usize);
        self.jump_cache.set(block.mode.class(), address, entry);
    }

    /// Makes a direct jump ask again.
    fn unchain(&mut self, jump: u32) {
        if !self.blocks.detach(jump) {
            return;
        }
        let ChainedJump { from, jump, .. } = self.blocks.jumps[jump];
        let block = self.blocks.get(from);
        let field = block.code + jump.field;
        // Where a dropped block began, there is the jump of `retire` now.
        if !block.dropped || field >= block.entry + JUMP_LEN as u32 {
            self.cache.link(field as usize, (block.code + jump.ask) as usize);
        }
    }

    /// Makes jumps to other pages ask again: translations of code have changed.
    pub(super) fn unchain_far(&mut self) {
        for jump in std::mem::take(&mut self.far) {
            self.blocks.jumps[jump].noted = false;
            self.unchain(jump);
        }
    }

    /// Makes all jumps to block `number` ask again.
    pub(super) fn unchain_incoming(&mut self, number: u32) {
        loop {
            match self.blocks.get(number).incoming {
                NOTHING => break,
                jump => self.unchain(jump),
            }
        }
    }
}

#[cfg(test)]
impl CodeStore {
    /// Checks that every chained jump is in the list of the block that it leads to, and in no other, and leads there.
    pub(crate) fn check_chains(&self) {
        use super::regions::REGIONS;
        let mut listed = 0;
        for number in (0..REGIONS).flat_map(|region| self.blocks.list.numbers(region)) {
            let (mut at, mut previous) = (self.blocks.get(number).incoming, NOTHING);
            while at != NOTHING {
                let record = &self.blocks.jumps[at];
                assert_eq!((record.to, record.previous), (number, previous));
                let from = self.blocks.get(record.from);
                let field = (from.code + record.jump.field) as usize;
                let distance: [u8; 4] = self.cache.bytes(field..field + 4).try_into().expect("4 bytes");
                let leads = (field as i64 + 4 + i64::from(i32::from_le_bytes(distance))) as u32;
                let loads = !record.jump.host_flags && leads == from.code + record.jump.load.0;
                assert!(leads == self.blocks.get(number).entry || loads || from.dropped, "jump {at:#x}");
                (at, previous, listed) = (record.next, at, listed + 1);
            }
        }
        let jumps = (0..REGIONS).flat_map(|region| self.blocks.jumps.of(region));
        assert_eq!(jumps.filter(|record| record.to != NOTHING).count(), listed);
    }
}

//! Links: direct jumps that lead from block to block. Each is in the list of all that lead where it does, so that what is
//! dropped is not jumped to any more.

use crate::dispatch::{Dispatcher, NOTHING};
use crate::store::blocks::Blocks;
use crate::store::code_cache::JUMP_LEN;
use crate::translate::DirectJump;

/// A direct jump of block `from`, and where it leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainedJump {
    from: u32,
    link: DirectJump,
    /// The block that it leads to, or [`NOTHING`] while it asks; and its neighbours in the list of that block.
    to: u32,
    previous: u32,
    next: u32,
    /// It is in the engine's list of links to other pages.
    noted: bool,
}

impl ChainedJump {
    /// A link as it is assembled: it leads to where it asks.
    pub(crate) fn new(from: u32, link: DirectJump) -> Self {
        Self { from, link, to: NOTHING, previous: NOTHING, next: NOTHING, noted: false }
    }

    pub(crate) fn link(&self) -> DirectJump {
        self.link
    }
}

impl Blocks {
    /// Records that `link`, which asks, leads to block `to` from now on.
    fn attach(&mut self, link: u32, to: u32) {
        let next = std::mem::replace(&mut self.get_mut(to).incoming, link);
        if next != NOTHING {
            self.links[next].previous = link;
        }
        let edge = &mut self.links[link];
        (edge.to, edge.previous, edge.next) = (to, NOTHING, next);
    }

    /// Records that `link` leads nowhere any more. Whether it did.
    pub(crate) fn detach(&mut self, link: u32) -> bool {
        let ChainedJump { to, previous, next, .. } = self.links[link];
        if to == NOTHING {
            return false;
        }
        if next != NOTHING {
            self.links[next].previous = previous;
        }
        match previous {
            NOTHING => self.get_mut(to).incoming = next,
            _ => self.links[previous].next = next,
        }
        self.links[link].to = NOTHING;
        true
    }
}

impl Dispatcher {
    /// Makes the jump with number `link` lead to the block that was found for it.
    pub(crate) fn link(&mut self, link: u32, number: u32) {
        if self.lockstep.is_some() {
            return;
        }
        let Some(&ChainedJump { from, link: record, to, .. }) = self.blocks.links.get(link) else { return };
        let (from, target) = (self.blocks.get(from), self.blocks.get(number));
        // Circumstances may have changed on the way, and its own code may have been overwritten. And where a page of user code
        // lies is known only by its address.
        let two_pages = target.second.is_some();
        if from.mode.together() != target.mode || from.dropped || two_pages && target.mode.user() {
            return;
        }
        debug_assert_eq!(to, NOTHING, "a link that asks leads nowhere");
        self.stats.links += 1;
        let mut to = target.entry;
        if !record.host_flags && target.known == NOTHING && target.flags_matter {
            let (load, field) = record.load;
            self.cache.link((from.code + field) as usize, to as usize);
            to = from.code + load;
        }
        self.cache.link((from.code + record.field) as usize, to as usize);
        self.blocks.attach(link, number);
        if (record.far || two_pages) && !std::mem::replace(&mut self.blocks.links[link].noted, true) {
            self.far.push(link);
        }
    }

    /// Makes a link ask again.
    fn unlink(&mut self, link: u32) {
        if !self.blocks.detach(link) {
            return;
        }
        let ChainedJump { from, link, .. } = self.blocks.links[link];
        let block = self.blocks.get(from);
        let field = block.code + link.field;
        // Where a dropped block began, there is the jump of `retire` now.
        if !block.dropped || field >= block.entry + JUMP_LEN as u32 {
            self.cache.link(field as usize, (block.code + link.ask) as usize);
        }
    }

    /// Makes links to other pages ask again: translations of code have changed.
    pub(crate) fn unlink_far(&mut self) {
        for link in std::mem::take(&mut self.far) {
            self.blocks.links[link].noted = false;
            self.unlink(link);
        }
    }

    /// Makes all links to block `number` ask again.
    pub(crate) fn unlink_from(&mut self, number: u32) {
        loop {
            match self.blocks.get(number).incoming {
                NOTHING => break,
                link => self.unlink(link),
            }
        }
    }

    /// Drops block `number`: every way into it asks again.
    pub(crate) fn retire(&mut self, number: u32) {
        self.stamp += 1;
        self.blocks.get_mut(number).dropped = true;
        self.unlink_from(number);
        // The jump tables may lead here.
        let block = self.blocks.get(number);
        self.cache.put_jump(block.entry as usize, block.retired as usize);
    }
}

#[cfg(test)]
impl Dispatcher {
    /// Whether every link is in the list of the block that it leads to, and in no other, and its jump leads there.
    pub(crate) fn check_links(&self) {
        use crate::store::regions::REGIONS;
        let mut listed = 0;
        for number in (0..REGIONS).flat_map(|region| self.blocks.list.numbers(region)) {
            let (mut at, mut previous) = (self.blocks.get(number).incoming, NOTHING);
            while at != NOTHING {
                let edge = &self.blocks.links[at];
                assert_eq!((edge.to, edge.previous), (number, previous));
                let from = self.blocks.get(edge.from);
                let field = (from.code + edge.link.field) as usize;
                let distance: [u8; 4] = self.cache.bytes(field..field + 4).try_into().expect("4 bytes");
                let leads = (field as i64 + 4 + i64::from(i32::from_le_bytes(distance))) as u32;
                let loads = !edge.link.host_flags && leads == from.code + edge.link.load.0;
                assert!(leads == self.blocks.get(number).entry || loads || from.dropped, "link {at:#x}");
                (at, previous, listed) = (edge.next, at, listed + 1);
            }
        }
        let links = (0..REGIONS).flat_map(|region| self.blocks.links.of(region));
        assert_eq!(links.filter(|edge| edge.to != NOTHING).count(), listed);
    }
}

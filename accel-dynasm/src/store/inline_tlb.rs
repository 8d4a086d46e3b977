//! Which accesses have no anchors: those that change pages from turn to turn, and those that share an anchor with another
//! one at work. Each of their turns would fill the anchor anew.
//!
//! All count their refills together. If some tens of them have taken no more time than would go by in such a loop, the one
//! that came last is most likely at fault; if not, the next one is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use x86_core::Cpu;

use crate::dispatch::Dispatcher;
use crate::translate::Site;

/// Refills between two looks at the time.
pub(crate) const REFILLS: i64 = 64;
/// What so many take if they are worth an anchor.
const LONG: Duration = Duration::from_nanos(80 * REFILLS as u64);
/// Most pages remembered.
const MOST: usize = 1 << 12;

/// Accesses without anchors.
#[derive(Debug)]
pub(crate) struct InlineTlbPolicy {
    /// By RAM page: offsets of instructions.
    pages: HashMap<usize, Vec<u16>>,
    since: Instant,
}

impl Default for InlineTlbPolicy {
    fn default() -> Self {
        Self { pages: HashMap::new(), since: Instant::now() }
    }
}

impl InlineTlbPolicy {
    /// Offsets of instructions in a RAM page.
    pub(crate) fn of(&self, page: usize) -> &[u16] {
        self.pages.get(&page).map_or(&[], Vec::as_slice)
    }

    /// Forgets what code there was in a RAM page.
    pub(crate) fn forget(&mut self, page: usize) {
        self.pages.remove(&page);
    }

    fn add(&mut self, page: usize, offset: u16) {
        if self.pages.len() >= MOST {
            self.pages.clear();
        }
        let offsets = self.pages.entry(page).or_default();
        if !offsets.contains(&offset) {
            offsets.push(offset);
        }
    }

    /// Whether the last refills have come too fast; begins anew.
    fn too_often(&mut self) -> bool {
        let now = Instant::now();
        now - std::mem::replace(&mut self.since, now) < LONG
    }
}

impl Dispatcher {
    /// Anchors have been filled so often that it is time to look; whether the block, in which `site` did so last, goes on. If
    /// not, it is dropped.
    pub(crate) fn refilled(&mut self, cpu: &mut Cpu, number: u32, site: &Site) -> bool {
        self.context().refills = REFILLS;
        self.stats.refills += REFILLS as u64;
        if !self.roaming.too_often() {
            return true;
        }
        let block = self.blocks.get(number);
        let page = block.key.ram_page();
        cpu.rip = block.page_now(cpu) + u64::from(site.offset);
        self.roaming.add(page, site.offset);
        self.stats.roaming += 1;
        self.retire(number);
        false
    }
}

//! Which accesses have no inline TLB entry (ADR 14): those that change pages from turn to turn of their loop, and those
//! that share an entry with another one at work. Each turn would fill the entry again.
//!
//! All accesses count their refills together. If some tens of refills have taken no more time than would go by in such
//! a loop, the access that came last is most likely at fault; if it is not, the next one is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Refills between two looks at the time.
pub(crate) const REFILLS: i64 = 64;
/// Time that so many take if they are worth an entry.
const LONG: Duration = Duration::from_nanos(80 * REFILLS as u64);
/// Most pages remembered.
const MOST: usize = 1 << 12;

/// Accesses without an inline TLB entry.
#[derive(Debug)]
pub(crate) struct InlineTlbPolicy {
    /// By RAM page: offsets of instructions.
    excluded: HashMap<usize, Vec<u16>>,
    since: Instant,
}

impl Default for InlineTlbPolicy {
    fn default() -> Self {
        Self { excluded: HashMap::new(), since: Instant::now() }
    }
}

impl InlineTlbPolicy {
    /// Offsets of instructions in a RAM page.
    pub(crate) fn excluded(&self, page: usize) -> &[u16] {
        self.excluded.get(&page).map_or(&[], Vec::as_slice)
    }

    /// Forgets the code that was in a RAM page.
    pub(super) fn forget(&mut self, page: usize) {
        self.excluded.remove(&page);
    }

    /// The instruction at `offset` of RAM page `page` has no entry from now on.
    pub(crate) fn exclude(&mut self, page: usize, offset: u16) {
        if self.excluded.len() >= MOST {
            self.excluded.clear();
        }
        let offsets = self.excluded.entry(page).or_default();
        if !offsets.contains(&offset) {
            offsets.push(offset);
        }
    }

    /// Whether the last [`REFILLS`] have come too fast. The next ones begin now.
    pub(crate) fn too_fast(&mut self) -> bool {
        let now = Instant::now();
        now - std::mem::replace(&mut self.since, now) < LONG
    }
}

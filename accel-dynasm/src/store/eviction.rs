//! Eviction: a full code cache makes room by dropping the code that was translated first.
//!
//! 1. To know which code is still in use would take counting, which costs more than translating it again. So the oldest
//!    region goes as a whole; code that was in it and is in use is soon back, in the newest.
//! 2. Ways into code are chained jumps, the jump caches and the look-up cache. Those that lead into the region are cut;
//!    all others stay as they are.
//! 3. It happens only when a block is looked up, which is entered next: no host code that may be gone is returned to.
//!    The function that looks up may still hold the number of a jump, and finds out by [`StoreCounters::evictions`].
//!
//! [`StoreCounters::evictions`]: crate::counters::StoreCounters::evictions

use super::CodeStore;
use super::regions::region_of;

impl CodeStore {
    /// Goes on to the next region of the code cache and drops the blocks in it.
    #[cold]
    pub(super) fn evict(&mut self) {
        let region = self.cache.turn();
        let blocks = self.blocks.list.numbers(region);
        if blocks.is_empty() {
            return;
        }
        self.counters.evictions += 1;
        self.counters.evicted += blocks.len() as u64;
        self.lookup_cache.clear();
        blocks.for_each(|number| self.unchain_incoming(number));
        for jump in self.blocks.jumps.numbers(region) {
            self.blocks.detach(jump);
        }
        self.far.retain(|jump| region_of(*jump) != region);
        self.jump_cache.forget(&self.cache.addresses(region));
        self.blocks.clear(region);
        let Self { blocks, ungrouped, .. } = self;
        ungrouped.retain(|key| blocks.find(*key).is_some());
    }
}

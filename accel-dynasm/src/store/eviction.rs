//! Makes room in a full code cache by what was translated first.
//!
//! 1. There is no telling which code is still in use without counting, which costs more than translating it again. So the
//!    oldest region goes as a whole; what is in use and was in it is soon back, in the newest.
//! 2. Ways into code are links, the jump tables and the few blocks found lately. Those that lead into the region are cut;
//!    all others stay as they are.
//! 3. It happens only when a block is looked up, which is then gone to: nobody comes back to code that may have gone. The
//!    function that looks up may still hold the number of a link, and finds out by [`Counters::evictions`].
//!
//! [`Counters::evictions`]: crate::counters::Counters

use crate::dispatch::Dispatcher;
use crate::store::regions::region_of;

impl Dispatcher {
    /// Goes on to the next region of the code cache, dropping what is in it. No translated code may be going to be returned
    /// to.
    #[cold]
    pub(crate) fn evict(&mut self) {
        let region = self.cache.turn();
        let blocks = self.blocks.list.numbers(region);
        if blocks.is_empty() {
            return;
        }
        self.stats.evictions += 1;
        self.stats.evicted += blocks.len() as u64;
        self.stamp += 1;
        blocks.for_each(|number| self.unlink_from(number));
        for link in self.blocks.links.numbers(region) {
            self.blocks.detach(link);
        }
        self.far.retain(|link| region_of(*link) != region);
        self.jumps.forget(self.home, &self.cache.addresses(region));
        self.blocks.clear(region);
        let Self { blocks, ungrouped, .. } = self;
        ungrouped.retain(|key| blocks.find(*key).is_some());
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.forget();
        }
    }
}

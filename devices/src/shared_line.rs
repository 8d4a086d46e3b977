//! A wire that several devices drive, as functions of PCI share an interrupt.

use std::sync::{Arc, Mutex};

use crate::traits::IrqLine;
use crate::util::lock;

/// A wire that is asserted while any of its owners asserts it. Each owner's level is kept apart: one that lets go does not take
/// another's request away.
#[derive(Debug)]
pub struct SharedIrqLine {
    target: Arc<dyn IrqLine>,
    /// Level of each owner.
    levels: Mutex<Vec<bool>>,
}

impl SharedIrqLine {
    /// A wire to `target`, which nobody drives yet.
    pub fn new(target: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { target, levels: Mutex::default() })
    }

    /// One more owner, which does not assert it yet.
    pub fn owner(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        let mut levels = lock(&self.levels);
        levels.push(false);
        Arc::new(Owner { line: self.clone(), index: levels.len() - 1 })
    }
}

#[derive(Debug)]
struct Owner {
    line: Arc<SharedIrqLine>,
    index: usize,
}

impl IrqLine for Owner {
    fn set(&self, level: bool) {
        // Held while the wire is driven: two owners' changes must not arrive in the wrong order.
        let mut levels = lock(&self.line.levels);
        let others = levels.iter().enumerate().any(|(n, level)| *level && n != self.index);
        if let Some(own) = levels.get_mut(self.index) {
            *own = level;
        }
        // Also where nothing changes: a device makes an edge by letting go and asserting again.
        self.line.target.set(level || others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestLine;

    #[test]
    fn one_that_lets_go_leaves_the_others_request() {
        let wire = Arc::new(TestLine::default());
        let line = SharedIrqLine::new(wire.clone());
        let [a, b] = [line.owner(), line.owner()];
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(wire.level());
        a.set(false);
        assert!(wire.level());
        b.set(false);
        assert!(!wire.level());
        b.set(true);
        assert_eq!((wire.level(), wire.rises()), (true, 2));
    }

    #[test]
    fn owners_on_many_threads_leave_the_wire_as_the_last_of_them() {
        let wire = Arc::new(TestLine::default());
        let line = SharedIrqLine::new(wire.clone());
        std::thread::scope(|scope| {
            for n in 0..4u32 {
                let owner = line.owner();
                scope.spawn(move || (0..10_000 + n).for_each(|i| owner.set(i % 2 == 1)));
            }
        });
        // Owners 0 and 2 end low or high by the parity of their last number.
        assert!(wire.level(), "owners 0 and 2 end with 9,999 and 10,001: asserted");
    }
}

//! Where guest-physical memory is RAM.

use accel_api::{Access, PAGE_SIZE, PageFlags, RamRegion, SlotId};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A snapshot of the mapped slots, sorted by address. Replaced as a whole when a slot comes or goes.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    id: SlotId,
    region: RamRegion,
    writable: bool,
    /// What look-ups need of the region, at hand.
    gpa: u64,
    size: u64,
    host: AtomicPtr<u8>,
    /// Of its first page.
    index: usize,
}

impl Slot {
    fn new(id: SlotId, region: RamRegion, writable: bool) -> Self {
        let (gpa, size, host) = (region.gpa(), region.size(), AtomicPtr::new(region.host_addr()));
        let index = (region.offset() / PAGE_SIZE) as usize;
        Self { id, region, writable, gpa, size, host, index }
    }
}

// By hand: an atomic pointer, which is one so that threads may share it, is never changed.
impl Clone for Slot {
    fn clone(&self) -> Self {
        Self::new(self.id, self.region.clone(), self.writable)
    }
}

/// A guest-physical page that is RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamPage {
    /// Host address of its first byte.
    pub host: *mut u8,
    /// Index into [`PageFlags`].
    pub index: usize,
    /// Stores reach it; otherwise they go to the bus.
    pub writable: bool,
}

impl MemoryMap {
    /// The map with one more slot.
    ///
    /// # Errors
    /// What is wrong with the slot.
    pub fn with(&self, id: SlotId, region: &RamRegion, access: Access) -> Result<Self, &'static str> {
        if self.slots.iter().any(|s| s.id == id) {
            return Err("in use");
        }
        let end = |r: &RamRegion| r.gpa() + r.size();
        if self.slots.iter().any(|s| s.region.gpa() < end(region) && region.gpa() < end(&s.region)) {
            return Err("overlaps another slot");
        }
        let mut slots = self.slots.clone();
        slots.push(Slot::new(id, region.clone(), access == Access::ReadWrite));
        slots.sort_by_key(|s| s.region.gpa());
        Ok(Self { slots })
    }

    /// The map less one slot.
    ///
    /// # Errors
    /// What is wrong with the slot.
    pub fn without(&self, id: SlotId) -> Result<Self, &'static str> {
        let mut slots = self.slots.clone();
        let at = slots.iter().position(|s| s.id == id).ok_or("not mapped")?;
        slots.remove(at);
        Ok(Self { slots })
    }

    /// The RAM page that holds `gpa`, if any.
    pub fn page(&self, gpa: u64) -> Option<RamPage> {
        let at = self.slots.partition_point(|s| s.gpa <= gpa).checked_sub(1)?;
        let slot = &self.slots[at];
        let within = (gpa - slot.gpa) & !(PAGE_SIZE - 1);
        if within >= slot.size {
            return None;
        }
        Some(RamPage {
            host: slot.host.load(Ordering::Relaxed).wrapping_add(within as usize),
            index: slot.index + (within / PAGE_SIZE) as usize,
            writable: slot.writable,
        })
    }

    /// The flags of all RAM, once anything is mapped.
    pub fn flags(&self) -> Option<&Arc<PageFlags>> {
        self.slots.first().map(|s| s.region.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accel_api::GuestRam;

    #[test]
    fn pages_are_found_and_holes_are_not() {
        let ram = GuestRam::new(&[(0, 0x2000), (0x10000, 0x1000)]).unwrap();
        let map = MemoryMap::default().with(SlotId(0), &ram.regions()[0], Access::ReadWrite).unwrap();
        let map = map.with(SlotId(1), &ram.regions()[1], Access::ReadOnly).unwrap();
        assert_eq!(map.page(0x1fff).unwrap().index, 1);
        assert!(map.page(0x2000).is_none() && map.page(0xffff).is_none() && map.page(u64::MAX).is_none());
        let rom = map.page(0x10fff).unwrap();
        assert_eq!((rom.index, rom.writable), (2, false));
        assert!(map.with(SlotId(1), &ram.regions()[1], Access::ReadWrite).is_err());
        assert!(map.without(SlotId(0)).unwrap().page(0).is_none());
        assert!(map.without(SlotId(7)).is_err());
    }
}

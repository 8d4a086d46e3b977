//! Memory slots and the dirty log.
//!
//! KVM logs writes only once somebody asks for them: a log costs the guest a fault at the first store to each page, and
//! huge pages. What was written before [`Slots::start_log`] is unknown.
#![allow(unsafe_code)] // KVM is given host addresses

use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_api::{AccelError, Access, PAGE_SIZE, RamRegion, SlotId};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::sys::host;

/// The slots of a VM.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Slot>,
    logging: bool,
}

#[derive(Debug)]
struct Slot {
    id: SlotId,
    region: RamRegion,
    access: Access,
}

impl Slot {
    /// Tells KVM of the slot, or that it has gone.
    fn set(&self, vm: &VmFd, present: bool, logging: bool) -> Result<(), AccelError> {
        let flags = match self.access {
            Access::ReadOnly => KVM_MEM_READONLY,
            Access::ReadWrite if logging => KVM_MEM_LOG_DIRTY_PAGES,
            Access::ReadWrite => 0,
        };
        let region = kvm_userspace_memory_region {
            slot: self.id.0,
            flags,
            guest_phys_addr: self.region.gpa(),
            memory_size: if present { self.region.size() } else { 0 },
            userspace_addr: self.region.host_addr().expose_provenance() as u64,
        };
        // SAFETY: the region's mapping lives as long as `self`, which is kept in the list until KVM has been told that the
        // slot has gone, and the list lives as long as the VM.
        unsafe { vm.set_user_memory_region(region) }.map_err(host("KVM_SET_USER_MEMORY_REGION"))
    }

    fn overlaps(&self, region: &RamRegion) -> bool {
        let end = |r: &RamRegion| r.gpa() + r.size();
        self.region.gpa() < end(region) && region.gpa() < end(&self.region)
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`accel_api::AccelVm::map`].
    pub(crate) fn map(
        &self,
        vm: &VmFd,
        id: SlotId,
        region: &RamRegion,
        access: Access,
    ) -> Result<(), AccelError> {
        let mut inner = self.lock();
        let bad = |why| Err(AccelError::BadSlot { slot: id.0, why });
        if inner.list.iter().any(|slot| slot.id == id) {
            return bad("in use");
        }
        if inner.list.iter().any(|slot| slot.overlaps(region)) {
            return bad("overlaps another slot");
        }
        let slot = Slot { id, region: region.clone(), access };
        slot.set(vm, true, inner.logging)?;
        inner.list.push(slot);
        Ok(())
    }

    /// See [`accel_api::AccelVm::unmap`].
    pub(crate) fn unmap(&self, vm: &VmFd, id: SlotId) -> Result<(), AccelError> {
        let mut inner = self.lock();
        let Some(at) = inner.list.iter().position(|slot| slot.id == id) else {
            return Err(AccelError::BadSlot { slot: id.0, why: "not mapped" });
        };
        let slot = &inner.list[at];
        slot.set(vm, false, false)?;
        // The log goes with the slot, and nobody knows what was written since it was read.
        if slot.access == Access::ReadWrite {
            slot.region.flags().mark_written(slot.region.offset(), slot.region.size() as usize);
        }
        inner.list.remove(at);
        Ok(())
    }

    /// See [`accel_api::AccelVm::start_dirty_log`].
    pub(crate) fn start_log(&self, vm: &VmFd) -> Result<(), AccelError> {
        let mut inner = self.lock();
        if !inner.logging {
            inner.list.iter().try_for_each(|slot| slot.set(vm, true, true))?;
            inner.logging = true;
        }
        Ok(())
    }

    /// Flags the pages that KVM has seen written since the last call.
    pub(crate) fn collect(&self, vm: &VmFd) -> Result<(), AccelError> {
        self.start_log(vm)?;
        let inner = self.lock();
        inner
            .list
            .iter()
            .filter(|slot| slot.access == Access::ReadWrite)
            .try_for_each(|slot| slot.collect(vm))
    }
}

impl Slot {
    fn collect(&self, vm: &VmFd) -> Result<(), AccelError> {
        let log =
            vm.get_dirty_log(self.id.0, self.region.size() as usize).map_err(host("KVM_GET_DIRTY_LOG"))?;
        for (word, mut bits) in (0u64..).zip(log) {
            while bits != 0 {
                let page = word * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                self.region.flags().mark_written(self.region.offset() + page * PAGE_SIZE, PAGE_SIZE as usize);
            }
        }
        Ok(())
    }
}

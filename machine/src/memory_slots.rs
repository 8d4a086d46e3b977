//! Memory as the guest has it: which piece of [`GuestRam`] lies where, and what the guest may do with it. Main RAM stays where it
//! is; ROM, VRAM behind a BAR, flash and shadowed segments come, move and go while vCPUs run.
//!
//! The list is the machine's, not the accelerator's: whichever executes the guest is told of it.
//!
//! [`GuestRam`]: accel_api::GuestRam

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_api::{AccelError, AccelVm, Access, RamRegion, SlotId};

/// A piece of memory that lies somewhere, or nowhere.
#[derive(Debug)]
struct Slot {
    /// Where it is to lie.
    wanted: Option<(RamRegion, Access)>,
    /// It does.
    mapped: bool,
}

#[derive(Debug, Default)]
struct State {
    vm: Option<Arc<dyn AccelVm>>,
    /// By number.
    slots: Vec<Slot>,
}

/// All memory of one machine.
#[derive(Debug, Default)]
pub(crate) struct MemorySlots(Mutex<State>);

impl MemorySlots {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `vm` of all that lies somewhere, and of what changes from now on, in the place of the accelerator before.
    ///
    /// # Errors
    /// It refuses; then nobody is told, and the one before is as it was.
    pub(crate) fn attach(&self, vm: Arc<dyn AccelVm>) -> Result<(), AccelError> {
        let mut state = self.lock();
        for (number, slot) in (0..).zip(&state.slots) {
            if let Some((region, access)) = slot.wanted.as_ref().filter(|_| slot.mapped || state.vm.is_none())
            {
                vm.map(SlotId(number), region, *access)?;
            }
        }
        if state.vm.is_none() {
            state.slots.iter_mut().for_each(|slot| slot.mapped = slot.wanted.is_some());
        }
        state.vm = Some(vm);
        Ok(())
    }

    /// Tells `vm` again, which knows all that lies somewhere.
    pub(crate) fn put_back(&self, vm: Arc<dyn AccelVm>) {
        self.lock().vm = Some(vm);
    }

    /// Tells nobody from now on.
    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.vm = None;
        state.slots.iter_mut().for_each(|slot| slot.mapped = false);
    }

    /// Memory that stays where it is: before anybody is told.
    pub(crate) fn fix(&self, region: RamRegion, access: Access) {
        self.lock().slots.push(Slot { wanted: Some((region, access)), mapped: false });
    }

    /// A piece that lies nowhere yet.
    pub(crate) fn add(self: &Arc<Self>) -> MemoryWindow {
        let slots = &mut self.lock().slots;
        slots.push(Slot { wanted: None, mapped: false });
        MemoryWindow { slots: self.clone(), number: slots.len() as u32 - 1 }
    }

    /// Has piece `number` lie where `wanted` says. One that another is in the way of lies nowhere, until it is told again.
    fn place(&self, number: u32, wanted: Option<(RamRegion, Access)>) -> Result<(), AccelError> {
        let state = &mut *self.lock();
        let Some(slot) = state.slots.get_mut(number as usize) else { return Ok(()) };
        if slot.wanted == wanted && slot.mapped == wanted.is_some() {
            return Ok(());
        }
        if let Some(vm) = state.vm.as_ref().filter(|_| slot.mapped) {
            vm.unmap(SlotId(number))?;
            slot.mapped = false;
        }
        slot.wanted = wanted;
        if let (Some(vm), Some((region, access))) = (&state.vm, &slot.wanted) {
            vm.map(SlotId(number), region, *access)?;
            slot.mapped = true;
        }
        Ok(())
    }
}

/// A piece of memory that a device places, as a BAR or the shadowing of a ROM asks for. Dropped, it lies nowhere.
#[derive(Debug)]
pub struct MemoryWindow {
    slots: Arc<MemorySlots>,
    number: u32,
}

impl MemoryWindow {
    /// Has `region` lie where it says ([`RamRegion::at`]), or nothing; what this window showed before goes. Takes effect before
    /// it returns, also for running vCPUs. May be called by a device in the middle of a guest's access.
    ///
    /// # Errors
    /// Other memory is in the way: the window then shows nothing. Or a failure of the host.
    pub fn show(&self, region: Option<(RamRegion, Access)>) -> Result<(), AccelError> {
        self.slots.place(self.number, region)
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // The machine may be gone; and who drops it cannot do anything about a failure of the host.
        let _ = self.show(None);
    }
}

#[cfg(test)]
mod tests {
    use accel_api::GuestRam;

    use super::*;
    use crate::fake::FakeVm;

    #[test]
    fn windows_move_and_every_accelerator_is_told() {
        let ram = Arc::new(GuestRam::with_device_memory(&[(0, 0x4000)], 0x4000).unwrap());
        let slots = Arc::new(MemorySlots::default());
        slots.fix(ram.regions()[0].clone(), Access::ReadWrite);
        let first = FakeVm::alone(&ram);
        slots.attach(first.clone()).unwrap();
        assert_eq!(first.mapped(), [(0, 0x4000)]);

        let vram = ram.allocate(0x2000).unwrap();
        let at = |gpa| Some((vram.at(gpa).unwrap(), Access::ReadWrite));
        let window = slots.add();
        window.show(at(0x10_0000)).unwrap();
        window.show(at(0x20_0000)).unwrap();
        assert_eq!(first.mapped(), [(0, 0x4000), (0x20_0000, 0x2000)]);
        assert!(matches!(window.show(at(0x2000)), Err(AccelError::BadSlot { .. })), "RAM is there");
        assert_eq!(first.mapped(), [(0, 0x4000)], "nowhere");
        window.show(at(0x4000)).unwrap();

        let second = FakeVm::alone(&ram);
        slots.attach(second.clone()).unwrap();
        assert_eq!(second.mapped(), [(0, 0x4000), (0x4000, 0x2000)]);
        window.show(Some((vram.at(0x4000).unwrap().part(0, 0x1000).unwrap(), Access::ReadOnly))).unwrap();
        assert_eq!(second.mapped(), [(0, 0x4000), (0x4000, 0x1000)]);
        drop(window);
        assert_eq!((second.mapped(), first.mapped().len()), (vec![(0, 0x4000)], 2), "only the present one");
        slots.detach();
        let third = slots.add();
        third.show(at(0x8000)).unwrap();
        assert_eq!(second.mapped().len(), 1);
        slots.attach(first).unwrap_err();
    }
}

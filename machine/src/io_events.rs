//! Doorbells: registers whose stores the accelerator turns into events by itself, where it can. The list is the machine's: whichever
//! accelerator executes the guest is told of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_api::{AccelVm, IoEventAddress};
use devices::DoorbellHost;
use vmm_sys_util::eventfd::EventFd;

#[derive(Debug, Default)]
struct State {
    vm: Option<Arc<dyn AccelVm>>,
    /// The accelerator rings those with true.
    list: HashMap<IoEventAddress, (Arc<EventFd>, bool)>,
}

/// All doorbells of one machine.
#[derive(Debug, Default)]
pub(crate) struct IoEvents(Mutex<State>);

impl IoEvents {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `vm` of all doorbells, and of what changes from now on, in the place of the accelerator before.
    pub(crate) fn attach(&self, vm: Arc<dyn AccelVm>) {
        let mut state = self.lock();
        let state = &mut *state;
        for (at, (event, rung)) in &mut state.list {
            if let (true, Some(old)) = (*rung, &state.vm)
                && let Err(error) = old.detach_ioeventfd(*at, event)
            {
                tracing::warn!("the ioeventfd at {at:x?} stays: {error}");
            }
            *rung = ring(vm.as_ref(), *at, event);
        }
        state.vm = Some(vm);
    }

    /// Tells nobody from now on.
    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.vm = None;
        state.list.values_mut().for_each(|(_, rung)| *rung = false);
    }
}

/// Whether `vm` rings from now on. One that refuses calls the device, which rings by itself.
fn ring(vm: &dyn AccelVm, at: IoEventAddress, event: &EventFd) -> bool {
    vm.attach_ioeventfd(at, event).unwrap_or_else(|error| {
        tracing::debug!("no ioeventfd at {at:x?}: {error}");
        false
    })
}

impl State {
    fn forget(&mut self, at: IoEventAddress) {
        if let (Some((event, true)), Some(vm)) = (self.list.remove(&at), &self.vm)
            && let Err(error) = vm.detach_ioeventfd(at, &event)
        {
            tracing::warn!("the ioeventfd at {at:x?} stays: {error}");
        }
    }
}

impl DoorbellHost for IoEvents {
    fn watch(&self, at: IoEventAddress, event: &Arc<EventFd>) {
        let mut state = self.lock();
        state.forget(at);
        let rung = state.vm.as_ref().is_some_and(|vm| ring(vm.as_ref(), at, event));
        state.list.insert(at, (event.clone(), rung));
    }

    fn forget(&self, at: IoEventAddress) {
        self.lock().forget(at);
    }
}

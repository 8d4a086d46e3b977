//! How a vCPU waits in a device access for the host, and how a kick ends the wait.
//!
//! 1. A device never waits while it takes an access. What comes of the access is kept, over the limit if need be; only
//!    then, behind the access and with no lock held, the bus has the vCPU wait for room
//!    ([`PioDevice::throttle`](crate::PioDevice::throttle)).
//! 2. The wait ends when there is room, or by a kick. A vCPU that was kicked waits no more until it has left the guest and
//!    says so ([`Waiter::rearm`]): so at most one instruction's accesses for each vCPU and kick go over the limit.

use std::sync::{Arc, Condvar, Mutex};

use crate::util::lock;

#[derive(Debug, Default)]
struct State {
    kicked: bool,
    woken: bool,
}

/// Where one vCPU waits.
#[derive(Debug, Default)]
pub struct Waiter {
    state: Mutex<State>,
    changed: Condvar,
}

impl Waiter {
    /// Ends the present wait and those to come, until [`Self::rearm`]. `leave` makes the vCPU leave the guest. It is called
    /// with the waiter's lock held: a vCPU whose wait has ended finds that it has to leave.
    pub fn kick(&self, leave: impl FnOnce()) {
        let mut state = lock(&self.state);
        state.kicked = true;
        leave();
        self.changed.notify_one();
    }

    /// The vCPU has left the guest by a kick, and may wait again.
    pub fn rearm(&self) {
        lock(&self.state).kicked = false;
    }

    /// Waits for a wake from a [`WaitList`] or a kick; whether there is anything left to wait for.
    fn wait(&self) -> bool {
        let state = lock(&self.state);
        let stay = |state: &mut State| !state.kicked && !state.woken;
        let mut state = self.changed.wait_while(state, stay).unwrap_or_else(|e| e.into_inner());
        state.woken = false;
        !state.kicked
    }

    fn wake(&self) {
        lock(&self.state).woken = true;
        self.changed.notify_one();
    }
}

/// The vCPUs that wait for one thing, which its owner's lock protects.
#[derive(Debug, Default)]
pub(crate) struct WaitList(Vec<Arc<Waiter>>);

impl WaitList {
    /// Wakes all; they look whether they go on waiting.
    pub(crate) fn wake(&mut self) {
        self.0.drain(..).for_each(|waiter| waiter.wake());
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Waits until `ready`, which looks at `owner` with its lock held, or until a kick. `list` is where `owner` keeps who waits.
pub(crate) fn wait_for<T>(
    owner: &Mutex<T>,
    waiter: &Arc<Waiter>,
    ready: impl Fn(&T) -> bool,
    list: impl Fn(&mut T) -> &mut WaitList,
) {
    loop {
        let mut state = lock(owner);
        if ready(&state) {
            return;
        }
        list(&mut state).0.push(waiter.clone());
        drop(state);
        if !waiter.wait() {
            list(&mut lock(owner)).0.retain(|other| !Arc::ptr_eq(other, waiter));
            return;
        }
    }
}

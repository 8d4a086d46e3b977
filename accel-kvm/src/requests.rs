//! Requests that other threads make of a vCPU: a kick, an NMI, an INTA cycle.
//!
//! A request is a flag; the thread that sets it wakes the vCPU, which looks. To wake it is to set `immediate_exit` in the page
//! that the vCPU shares with the kernel, and then to send its thread a signal: before KVM_RUN the former makes it return at
//! once, within it the latter does. So no request is overlooked, whenever it comes.
#![allow(unsafe_code)] // `immediate_exit` is written while the kernel may read it

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_api::x86::Events;
use accel_api::{AccelError, Kick};
use kvm_ioctls::VcpuFd;

use crate::sys::Thread;

/// The requests made of one vCPU, from the making of the VM on.
#[derive(Default)]
pub(crate) struct VcpuRequests {
    kicked: AtomicBool,
    /// NMIs that KVM has not been given yet.
    nmis: AtomicU8,
    /// Level of the 8259's INTR output; of vCPU 0 only.
    intr: AtomicBool,
    /// An ExtINT message, which asks for one INTA cycle.
    extint: AtomicBool,
    /// `None` while the vCPU is not bound; requests wait.
    bound: Mutex<Option<VcpuThread>>,
}

/// The thread that a vCPU is bound to.
struct VcpuThread {
    thread: Thread,
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the pointer leads into the vCPU's shared page, which is mapped as long as this exists (see
// `VcpuRequests::bind`), and is only used for atomic accesses.
unsafe impl Send for VcpuThread {}

impl fmt::Debug for VcpuRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.bound().is_some();
        f.debug_struct("VcpuRequests")
            .field("kicked", &self.kicked)
            .field("bound", &bound)
            .finish_non_exhaustive()
    }
}

impl VcpuRequests {
    fn bound(&self) -> MutexGuard<'_, Option<VcpuThread>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests wake `vcpu` on the calling thread from now on. [`Self::unbind`] must be called on this thread before `vcpu` is
    /// dropped.
    ///
    /// # Errors
    /// The thread cannot be signalled.
    pub(crate) fn bind(&self, vcpu: &mut VcpuFd) -> Result<(), AccelError> {
        let immediate_exit = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast();
        *self.bound() = Some(VcpuThread { thread: Thread::current()?, immediate_exit });
        Ok(())
    }

    /// Requests wake no thread any more; those that were made stay.
    pub(crate) fn unbind(&self) {
        *self.bound() = None;
    }

    /// Makes the vCPU look at its requests.
    fn wake(&self) {
        if let Some(vcpu) = &*self.bound() {
            // SAFETY: `VcpuThread`'s page is mapped while the lock is held, since `unbind` takes it.
            let before = unsafe { vcpu.immediate_exit.as_ref() }.swap(1, Ordering::SeqCst);
            // If it was set, another thread's signal is on its way, or the vCPU will look of itself.
            if before == 0 {
                vcpu.thread.interrupt();
            }
        }
    }

    /// Raises an NMI. Of those that wait, two count.
    pub(crate) fn raise_nmi(&self) {
        let limit = Events::nmi_limit(false);
        // Refused where there are as many already.
        let _ = self
            .nmis
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count < limit).then_some(count + 1));
        self.wake();
    }

    /// How many were raised since [`Self::take_nmis`].
    pub(crate) fn nmis(&self) -> u8 {
        self.nmis.load(Ordering::SeqCst)
    }

    /// How many NMIs were raised since the last call.
    pub(crate) fn take_nmis(&self) -> u8 {
        self.nmis.swap(0, Ordering::SeqCst)
    }

    /// Replaces them; the vCPU itself does so, and needs no waking.
    pub(crate) fn set_nmis(&self, count: u8) {
        self.nmis.store(count, Ordering::SeqCst);
    }

    /// Sets the level of INTR.
    pub(crate) fn set_intr(&self, asserted: bool) {
        if self.intr.swap(asserted, Ordering::SeqCst) != asserted && asserted {
            self.wake();
        }
    }

    /// Sends an ExtINT message.
    pub(crate) fn send_extint(&self) {
        self.set_extint_message(true);
        self.wake();
    }

    /// Whether an ExtINT message waits.
    pub(crate) fn extint_message(&self) -> bool {
        self.extint.load(Ordering::SeqCst)
    }

    /// Sets whether one waits.
    pub(crate) fn set_extint_message(&self, waits: bool) {
        self.extint.store(waits, Ordering::SeqCst);
    }

    /// Whether the 8259 is to be asked for a vector.
    pub(crate) fn wants_inta(&self) -> bool {
        self.intr.load(Ordering::SeqCst) || self.extint_message()
    }

    /// Whether there is something to look at that [`Self::wants_inta`] does not tell.
    pub(crate) fn pending(&self) -> bool {
        self.kicked.load(Ordering::SeqCst) || self.nmis() != 0
    }

    /// A kick that was taken is owed all the same; the vCPU itself says so, and needs no waking.
    pub(crate) fn rearm_kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
    }

    /// Whether the vCPU was kicked since the last call.
    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }
}

impl Kick for VcpuRequests {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_nmis_that_wait_two_count() {
        let requests = VcpuRequests::default();
        for raised in 1..=3 {
            requests.raise_nmi();
            assert_eq!((requests.nmis(), requests.pending()), (raised.min(2), true));
        }
        assert_eq!([requests.take_nmis(), requests.take_nmis()], [2, 0]);
        assert!(!requests.pending());
    }
}

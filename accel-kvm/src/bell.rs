//! How other threads get a vCPU's attention.
//!
//! What is asked for is a flag; a ring of the bell makes the vCPU look. A ring sets `immediate_exit` in the page that the
//! vCPU shares with the kernel, then sends the thread a signal: before KVM_RUN the former makes it return at once,
//! within it the latter does. So a ring is never lost, whenever it comes.
#![allow(unsafe_code)] // `immediate_exit` is written while the kernel may read it

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_api::x86::Events;
use accel_api::{AccelError, Kick};
use kvm_ioctls::VcpuFd;

use crate::sys::Thread;

/// The bell of one vCPU, from the making of the VM on.
#[derive(Default)]
pub(crate) struct Bell {
    kicked: AtomicBool,
    /// NMIs that KVM has not been given yet.
    nmis: AtomicU8,
    /// Level of the 8259's INTR output; of vCPU 0 only.
    intr: AtomicBool,
    /// An ExtINT message, which asks for one INTA cycle.
    extint: AtomicBool,
    hearer: Mutex<Option<Hearer>>,
}

/// Who hears it: a bound vCPU.
struct Hearer {
    thread: Thread,
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the pointer leads into the vCPU's shared page, which is mapped as long as this exists (see `Bell::bind`), and is
// only used for atomic accesses.
unsafe impl Send for Hearer {}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.hearer().is_some();
        f.debug_struct("Bell").field("kicked", &self.kicked).field("bound", &bound).finish_non_exhaustive()
    }
}

impl Bell {
    fn hearer(&self) -> MutexGuard<'_, Option<Hearer>> {
        self.hearer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread and its vCPU hear the bell from now on. [`Self::unbind`] must be called on this thread before
    /// `vcpu` is dropped.
    ///
    /// # Errors
    /// The thread cannot be signalled.
    pub(crate) fn bind(&self, vcpu: &mut VcpuFd) -> Result<(), AccelError> {
        let immediate_exit = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast();
        *self.hearer() = Some(Hearer { thread: Thread::current()?, immediate_exit });
        Ok(())
    }

    /// Nobody hears it any more; what is asked for stays.
    pub(crate) fn unbind(&self) {
        *self.hearer() = None;
    }

    /// Makes the vCPU look.
    fn ring(&self) {
        if let Some(hearer) = &*self.hearer() {
            // SAFETY: `Hearer`'s page is mapped while the lock is held, since `unbind` takes it.
            let before = unsafe { hearer.immediate_exit.as_ref() }.swap(1, Ordering::SeqCst);
            // If it was set, somebody else's signal is on its way, or the vCPU will look of itself.
            if before == 0 {
                hearer.thread.interrupt();
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
        self.ring();
    }

    /// How many were raised since [`Self::take_nmis`].
    pub(crate) fn nmis(&self) -> u8 {
        self.nmis.load(Ordering::SeqCst)
    }

    /// How many NMIs were raised since the last call.
    pub(crate) fn take_nmis(&self) -> u8 {
        self.nmis.swap(0, Ordering::SeqCst)
    }

    /// Replaces them; the vCPU itself does so, and needs no ring.
    pub(crate) fn set_nmis(&self, count: u8) {
        self.nmis.store(count, Ordering::SeqCst);
    }

    /// Sets the level of INTR.
    pub(crate) fn set_intr(&self, asserted: bool) {
        if self.intr.swap(asserted, Ordering::SeqCst) != asserted && asserted {
            self.ring();
        }
    }

    /// Sends an ExtINT message.
    pub(crate) fn send_extint(&self) {
        self.set_extint_message(true);
        self.ring();
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
    pub(crate) fn rung(&self) -> bool {
        self.kicked.load(Ordering::SeqCst) || self.nmis() != 0
    }

    /// A kick that was taken is owed all the same; the vCPU itself says so, and needs no ring.
    pub(crate) fn rearm_kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
    }

    /// Whether the vCPU was kicked since the last call.
    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }
}

impl Kick for Bell {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_nmis_that_wait_two_count() {
        let bell = Bell::default();
        for raised in 1..=3 {
            bell.raise_nmi();
            assert_eq!((bell.nmis(), bell.rung()), (raised.min(2), true));
        }
        assert_eq!([bell.take_nmis(), bell.take_nmis()], [2, 0]);
        assert!(!bell.rung());
    }
}

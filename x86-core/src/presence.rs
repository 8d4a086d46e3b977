//! Who is in guest code, and who wants the others out of it.
//!
//! A vCPU is *present* while it may touch guest memory without being asked. It says so first, and looks second whether
//! another wants to be alone; who wants to be alone says so first, and looks second who is present. So one of two sees the
//! other: the vCPU goes back out, or it is waited for.

use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// What others see of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    present: AtomicBool,
    /// Is kept out in the middle of an instruction, so that nothing but being let in lets it go on.
    owed: AtomicBool,
    /// How many of [`Solitude::wanted`] are its own; only its thread uses it.
    own: AtomicU32,
}

/// How many vCPUs of a VM want to be alone.
#[derive(Debug, Default)]
pub(crate) struct Solitude {
    wanted: AtomicU32,
}

impl Presence {
    /// Whether it is in guest code. What it has stored there is seen if not.
    pub(crate) fn is_present(&self) -> bool {
        self.present.load(Ordering::Acquire)
    }

    /// Goes out of guest code; returns whether it was there.
    pub(crate) fn leave(&self) -> bool {
        self.present.swap(false, Ordering::AcqRel)
    }

    /// Comes back without asking: for who is alone.
    pub(crate) fn come_back(&self) {
        self.present.store(true, Ordering::Relaxed);
        // Who asks for something looks second whether anybody is present; we look second what is asked for.
        fence(Ordering::SeqCst);
    }

    /// Goes into guest code, unless another vCPU wants to be alone.
    pub(crate) fn try_enter(&self, solitude: &Solitude) -> bool {
        self.come_back();
        let free = self.may_enter(solitude);
        if !free {
            self.leave();
        }
        free
    }

    /// Tells whether it is kept out in the middle of an instruction.
    pub(crate) fn set_owed(&self, owed: bool) {
        self.owed.store(owed, Ordering::Release);
    }

    /// Whether it is kept out in the middle of an instruction.
    pub(crate) fn is_owed(&self) -> bool {
        self.owed.load(Ordering::Acquire)
    }

    /// Whether no other vCPU wants to be alone.
    pub(crate) fn may_enter(&self, solitude: &Solitude) -> bool {
        solitude.wanted.load(Ordering::Acquire) == self.own.load(Ordering::Relaxed)
    }

    /// Wants to be alone from now on. Those present may stay until they are asked to leave.
    pub(crate) fn want(&self, solitude: &Solitude) {
        self.own.fetch_add(1, Ordering::Relaxed);
        solitude.wanted.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes one [`Self::want`] back.
    pub(crate) fn unwant(&self, solitude: &Solitude) {
        solitude.wanted.fetch_sub(1, Ordering::Release);
        // Those kept out may be about to sleep.
        fence(Ordering::SeqCst);
        self.own.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Where a vCPU's working state lies.
#![allow(unsafe_code)] // owns a `Cpu` in memory that an executor chose

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::Cpu;

/// Owns a [`Cpu`], as a `Box` does, in memory of the executor's choice: translated code addresses it by constants.
#[derive(Debug)]
pub struct CpuHome {
    cpu: NonNull<Cpu>,
    release: unsafe fn(NonNull<Cpu>),
}

impl CpuHome {
    /// Moves `cpu` to `at`.
    ///
    /// # Safety
    /// `at` must be aligned, writable and large enough for a [`Cpu`], and nobody else's until `release` is called with
    /// it; `release` frees the memory and does not drop the `Cpu`.
    pub unsafe fn at(at: NonNull<Cpu>, cpu: Box<Cpu>, release: unsafe fn(NonNull<Cpu>)) -> Self {
        // SAFETY: the caller's promise.
        unsafe { at.write(*cpu) };
        Self { cpu: at, release }
    }
}

impl From<Box<Cpu>> for CpuHome {
    fn from(cpu: Box<Cpu>) -> Self {
        unsafe fn release(cpu: NonNull<Cpu>) {
            // SAFETY: it came from a `Box`, and its contents have been dropped.
            unsafe { drop(Box::from_raw(cpu.as_ptr().cast::<std::mem::MaybeUninit<Cpu>>())) };
        }
        // SAFETY: a box is not null.
        let cpu = unsafe { NonNull::new_unchecked(Box::into_raw(cpu)) };
        Self { cpu, release }
    }
}

impl Deref for CpuHome {
    type Target = Cpu;

    fn deref(&self) -> &Cpu {
        // SAFETY: it is there and ours until we are dropped.
        unsafe { self.cpu.as_ref() }
    }
}

impl DerefMut for CpuHome {
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: as above.
        unsafe { self.cpu.as_mut() }
    }
}

impl Drop for CpuHome {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more; the memory is released as was agreed.
        unsafe {
            self.cpu.drop_in_place();
            (self.release)(self.cpu);
        }
    }
}

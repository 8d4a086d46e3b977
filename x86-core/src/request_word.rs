//! A vCPU's request word, which translated code polls.
#![allow(unsafe_code)] // maps memory below 2 GiB and shares one word of it

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// One word, below 2 GiB where the host has room there, so that code reaches it without a register.
#[derive(Debug)]
pub(crate) struct RequestWord {
    word: NonNull<AtomicU32>,
    mapped: bool,
}

/// Bytes of its mapping.
const LEN: usize = 4096;

// SAFETY: an atomic word that is ours until we are dropped.
unsafe impl Send for RequestWord {}
// SAFETY: as above.
unsafe impl Sync for RequestWord {}

impl Default for RequestWord {
    fn default() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        match NonNull::new(at.cast()) {
            // Fresh pages are zero, which is a valid word.
            Some(word) if at != libc::MAP_FAILED => Self { word, mapped: true },
            _ => Self { word: NonNull::from(Box::leak(Box::default())), mapped: false },
        }
    }
}

impl Deref for RequestWord {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        // SAFETY: it is ours until we are dropped.
        unsafe { self.word.as_ref() }
    }
}

impl Drop for RequestWord {
    fn drop(&mut self) {
        // SAFETY: from where `default` had it, and nobody uses it any more.
        unsafe {
            if self.mapped {
                libc::munmap(self.word.as_ptr().cast(), LEN);
            } else {
                drop(Box::from_raw(self.word.as_ptr()));
            }
        }
    }
}

//! The runtime: ways between Rust and host code.
//!
//! 1. `stubs.rs` enters host code and leaves it for a helper; [`helpers`] has the functions that stubs call.
//! 2. `transfer.rs` has changes of privilege and `jump_victims.rs` the rarer half of the jump cache, which host code
//!    does without Rust.
//! 3. [`signals`] takes exceptions of the host.
#![allow(unsafe_code)] // enters host code, and hands out the context that it uses

mod asm;
pub(crate) mod helpers;
mod jump_victims;
pub(crate) mod signals;
pub(crate) mod stubs;
mod transfer;

use std::ops::Range;
use std::ptr::NonNull;

use accel_api::AccelError;
use x86_core::Cpu;

use self::helpers::Helpers;
use self::signals::Registration;
use crate::jit_context::JitContext;

/// Enters host code at an address; comes back when a helper has returned null. The vCPU is passed for the compiler to
/// know that it changes: host code knows where it is.
type Enter = unsafe extern "sysv64" fn(*const u8, *mut Cpu);

/// A vCPU's way into its host code.
#[derive(Debug)]
pub(crate) struct Runtime {
    context: NonNull<JitContext>,
    enter: Enter,
    registration: Registration,
}

/// See [`Runtime::entry`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    context: NonNull<JitContext>,
    enter: Enter,
    number: usize,
}

impl Runtime {
    /// Uses the stubs that lie at host addresses `enter` and `fault`, for code in `code`.
    ///
    /// # Safety
    /// The stubs were emitted for `context`, which is there as long as the runtime is and which nothing else uses but
    /// code in `code`, entered by [`Entry::run`].
    ///
    /// # Errors
    /// Too many vCPUs have host code.
    pub(crate) unsafe fn new(
        context: NonNull<JitContext>,
        code: Range<usize>,
        enter: *const u8,
        fault: *const u8,
    ) -> Result<Self, AccelError> {
        // SAFETY: the caller's promise; references are handed out only by `context` and `context_mut`.
        let registration = unsafe { signals::register(code, fault as usize, context)? };
        // SAFETY: a function of that type, by the caller's promise.
        let enter = unsafe { std::mem::transmute::<*const u8, Enter>(enter) };
        Ok(Self { context, enter, registration })
    }

    /// The state shared with host code.
    pub(crate) fn context(&self) -> &JitContext {
        // SAFETY: it is there, see `new`. Host code does not run while a reference of ours is used: it is entered by a
        // function that has the dispatcher for itself, and leaves for a helper likewise.
        unsafe { self.context.as_ref() }
    }

    /// The same, to be changed.
    pub(crate) fn context_mut(&mut self) -> &mut JitContext {
        // SAFETY: as above.
        unsafe { self.context.as_mut() }
    }

    /// The way into host code, apart from the runtime: the helpers that host code calls may use the runtime.
    pub(crate) fn entry(&self) -> Entry {
        Entry { context: self.context, enter: self.enter, number: self.registration.number() }
    }
}

impl Entry {
    /// Runs host code from `code` on, until a helper leaves it.
    ///
    /// # Safety
    /// `code` is the entry of a block of the runtime's code, for the vCPU's mode as it is. `cpu` is the vCPU that the
    /// code was made for. The stubs' functions were made for the type of `helpers`. The caller has exclusive references
    /// of both, from which these pointers come, and does not use them until this returns.
    pub(crate) unsafe fn run<H: Helpers>(self, code: *const u8, cpu: *mut Cpu, helpers: *mut H) {
        // Stubs name the vCPU by its address alone.
        let _ = cpu.expose_provenance();
        // SAFETY: it is there, and no reference to it is in use, since `helpers` owns the runtime.
        unsafe { (*self.context.as_ptr()).dispatcher = NonNull::new(helpers.cast()) };
        // SAFETY: the caller's promise.
        signals::running(self.number, || unsafe { (self.enter)(code, cpu) });
    }
}

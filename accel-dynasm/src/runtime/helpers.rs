//! Functions that host code calls through the stubs.
//!
//! The vCPU's state is complete in [`Cpu`] while one of them runs, but for RIP, which follows from the site. The work
//! is done by an implementation of [`Helpers`], so that this part of the JIT needs not know its caller.
#![allow(unsafe_code)] // called with raw pointers by generated code

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use x86_core::Cpu;

/// As the result of a helper: leaves host code.
pub(crate) const LEAVE: *const u8 = std::ptr::null();

/// The work of the functions that host code calls. Each returns the host address at which to go on, or [`LEAVE`].
pub(crate) trait Helpers {
    /// Finds the block at RIP. `argument`: that of [`Stub::Lookup`](crate::translate::output::Stub::Lookup).
    fn look_up(&mut self, cpu: &mut Cpu, argument: u32) -> *const u8;

    /// The soft TLB does not have the address of the access at `site`.
    fn tlb_miss(&mut self, cpu: &mut Cpu, site: u32) -> *const u8;

    /// Executes the instruction of `site`.
    fn execute_helper(&mut self, cpu: &mut Cpu, site: u32) -> *const u8;

    /// Something is requested.
    fn poll(&mut self, cpu: &mut Cpu, site: u32) -> *const u8;

    /// A host instruction has raised an exception.
    fn fault(&mut self, cpu: &mut Cpu) -> *const u8;

    /// One of the above has panicked. The vCPU must not go on.
    fn panicked(&mut self, cpu: &Cpu, payload: &(dyn Any + Send)) -> *const u8;
}

/// A function that a stub calls, with the vCPU, [`JitContext::dispatcher`](crate::jit_context::JitContext::dispatcher)
/// and the stub's argument.
pub(super) type Function = unsafe extern "sysv64" fn(*mut Cpu, *mut c_void, u32) -> *const u8;

/// The functions of one implementation, in the order of the stubs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    pub(super) lookup: Function,
    pub(super) tlb_miss: Function,
    pub(super) helper: Function,
    pub(super) poll: Function,
    pub(super) fault: Function,
}

impl Functions {
    pub(crate) fn of<H: Helpers>() -> Self {
        Self {
            lookup: lookup::<H>,
            tlb_miss: tlb_miss::<H>,
            helper: helper::<H>,
            poll: poll::<H>,
            fault: fault::<H>,
        }
    }
}

macro_rules! called_by_stubs {
    ($($name:ident: |$helpers:ident, $cpu:ident, $argument:ident| $work:expr;)*) => {$(
        unsafe extern "sysv64" fn $name<H: Helpers>(cpu: *mut Cpu, helpers: *mut c_void, argument: u32) -> *const u8 {
            // SAFETY: called by a stub, with the pointers that `Entry::run` was given.
            unsafe { call::<H>(cpu, helpers, |$helpers, $cpu| { let $argument = argument; $work }) }
        }
    )*};
}

called_by_stubs! {
    lookup: |helpers, cpu, argument| helpers.look_up(cpu, argument);
    tlb_miss: |helpers, cpu, argument| helpers.tlb_miss(cpu, argument);
    helper: |helpers, cpu, argument| helpers.execute_helper(cpu, argument);
    poll: |helpers, cpu, argument| helpers.poll(cpu, argument);
    fault: |helpers, cpu, _argument| helpers.fault(cpu);
}

/// Does the work of a helper. A panic must not unwind into generated code: it ends the VM here. (Where panics abort,
/// one ends the process.)
///
/// # Safety
/// `cpu` and `helpers` are those that [`Entry::run`](super::Entry::run) was given, by a call that has not returned.
unsafe fn call<H: Helpers>(
    cpu: *mut Cpu,
    helpers: *mut c_void,
    work: impl FnOnce(&mut H, &mut Cpu) -> *const u8,
) -> *const u8 {
    let helpers = helpers.cast::<H>();
    // SAFETY: the caller of `run` has exclusive references of both, and does not use them until it returns. What a panic
    // leaves half done is not used any more.
    let done = catch_unwind(AssertUnwindSafe(|| unsafe { work(&mut *helpers, &mut *cpu) }));
    // SAFETY: likewise; the references above are gone.
    done.unwrap_or_else(|payload| unsafe { (*helpers).panicked(&*cpu, &*payload) })
}

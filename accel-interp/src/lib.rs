//! The interpreter accelerator: runs on every host, and is the reference for the others.
//!
//! 1. `lower.rs` decodes a run of guest instructions into a block of [`op::Op`]s; hot forms get handlers of their own
//!    (`handlers`), all others one that calls x86-core's function.
//! 2. `op.rs` is how one op passes control to the next without returning.
//! 3. `store.rs` keeps blocks by their place in RAM, `engine.rs` finds, links and drops them.
//! 4. Everything that is not executing instructions (interrupts, requests, sleeping, state) is x86-core's
//!    [`x86_core::soft`], shared with the JIT.

mod engine;
mod handlers;
mod liveness;
mod lower;
mod op;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use accel_api::{AccelCaps, AccelError, AccelId, AccelVm, Accelerator, Available, Probe, Quality, VmSpec};
use x86_core::soft::{MAX_VCPUS, SoftVm, caps};

pub use crate::engine::Engine;

/// The name users choose it by.
pub const ID: AccelId = AccelId("interp");

/// The interpreter works wherever the program does.
pub fn probe() -> Probe {
    Probe::Available(Available::of(Quality::Interpreted, "needs nothing of the host"))
}

/// Makes the interpreter.
///
/// # Errors
/// None; the signature is that of every backend.
pub fn create() -> Result<Arc<dyn Accelerator>, AccelError> {
    Ok(Arc::new(Interp { caps: caps(MAX_VCPUS) }))
}

#[derive(Debug)]
struct Interp {
    caps: AccelCaps,
}

impl Accelerator for Interp {
    fn id(&self) -> AccelId {
        ID
    }

    fn caps(&self) -> &AccelCaps {
        &self.caps
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        Ok(SoftVm::<Engine>::new(ID, spec, ())?)
    }
}

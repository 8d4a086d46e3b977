//! The JIT accelerator: x86-64 guest code becomes x86-64 host code, block by block.
//!
//! Guest registers, flags and vector registers are the host's (ADR 9), so most instructions are copied; memory operands
//! are led through the soft TLB.
//!
//! 1. `translate/`, the *translator*, makes host code and metadata of the bytes of a block. It is pure: it knows
//!    addresses and numbers of the other parts only as relocations.
//! 2. `store/`, the *code store*, keeps host code and metadata: cache regions, blocks, chaining, jump cache,
//!    invalidation.
//! 3. `runtime/`, the *runtime*, is the way between host code and Rust: stubs, helpers, changes of privilege, signals.
//! 4. `dispatch.rs`, the *dispatcher*, finds, makes and runs blocks. It alone knows the three others.
//! 5. `jit_context.rs` is the memory that host code addresses, `block_mode.rs` the state of a vCPU that a block is made
//!    for.
//! 6. `debug/` looks at blocks from outside: lockstep, listings, perf.
//!
//! ```text
//!   dispatch ──► store ────► translate ──► jit_context, block_mode
//!      │  │                     ▲
//!      │  └────► runtime ───────┘   (numbers and offsets of stubs)
//!      └───────► config, debug ──► store
//! ```
//!
//! `cargo xtask lint` checks that no folders import each other in a circle. Code of 16 and 32 bits is interpreted.
//! Everything but executing instructions is x86-core's [`x86_core::soft`], shared with the interpreter.
#![allow(clippy::useless_conversion)] // of register numbers, in the expansion of dynasm!

mod block_mode;
mod config;
mod counters;
mod debug;
mod dispatch;
mod host;
mod jit_context;
mod runtime;
mod store;
#[cfg(test)]
mod tests;
mod translate;

use std::sync::Arc;

use accel_api::{
    Absent, AbsentKind, AccelCaps, AccelError, AccelId, AccelVm, Accelerator, Available, Probe, Quality,
    VmSpec,
};
use x86_core::soft::{MAX_VCPUS, SoftVm, caps};

pub use crate::config::Config;
#[doc(hidden)]
pub use crate::debug::injected_bug::InjectedBug;
pub use crate::debug::jitdump::JitDump;
pub use crate::debug::listing::BlockDump;
pub use crate::debug::perf_map::{Notice, PerfMap};
pub use crate::dispatch::Dispatcher;
pub use crate::host::HostCpu;

/// The name users choose it by.
pub const ID: AccelId = AccelId("jit");

/// Whether the JIT works here: memory can be mapped as executable, and below 2 GiB.
pub fn probe() -> Probe {
    match check() {
        Ok(()) => {
            Probe::Available(Available::of(Quality::Translated, "this host allows memory that is executable"))
        }
        Err(absent) => Probe::Absent(absent),
    }
}

fn check() -> Result<(), Absent> {
    jit_context::memory::check().map_err(|error| {
        absent(&error, "raise the limit of the process's address space (ulimit -v), or use the interpreter")
    })?;
    store::check().map_err(|error| {
        let remedy = "allow the process memory that is executable (SELinux: execmem; systemd: \
                      MemoryDenyWriteExecute=no), or use the interpreter";
        absent(&error, remedy)
    })
}

fn absent(error: &AccelError, remedy: &str) -> Absent {
    Absent {
        kind: AbsentKind::MissingCapability,
        reason: format!("the host does not let this process translate: {error}"),
        remedy: Some(remedy.to_owned()),
    }
}

/// Makes the JIT.
///
/// # Errors
/// None; the signature is that of every backend. If the host refuses memory, a vCPU cannot be made.
pub fn create() -> Result<Arc<dyn Accelerator>, AccelError> {
    Ok(create_with(Config::default()))
}

/// Makes the JIT with a configuration.
pub fn create_with(config: Config) -> Arc<dyn Accelerator> {
    // Lockstep compares RAM too, which no other vCPU must store to meanwhile.
    let max_vcpus = if config.verify.is_some() { 1 } else { jit_context::memory::room(MAX_VCPUS) };
    Arc::new(Jit { caps: caps(max_vcpus), config: Arc::new(config) })
}

#[derive(Debug)]
struct Jit {
    caps: AccelCaps,
    config: Arc<Config>,
}

impl Accelerator for Jit {
    fn id(&self) -> AccelId {
        ID
    }

    fn caps(&self) -> &AccelCaps {
        &self.caps
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        let max = self.caps.max_vcpus;
        if spec.vcpus > max {
            return Err(AccelError::TooManyVcpus { accel: ID, asked: spec.vcpus, max });
        }
        // Others of this process may have come since.
        let room = jit_context::memory::room(spec.vcpus);
        if room < spec.vcpus {
            let why = "each takes 8 MiB of addresses below 2 GiB";
            return Err(AccelError::NoRoom { accel: ID, asked: spec.vcpus, max: room, why });
        }
        Ok(SoftVm::<Dispatcher>::new(ID, spec, self.config.clone())?)
    }
}

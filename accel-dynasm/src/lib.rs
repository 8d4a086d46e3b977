//! The JIT accelerator: x86-64 guest code becomes x86-64 host code.
//!
//! 1. `translate` makes host code of a block of guest instructions. Guest registers are the host's, flags and vector registers
//!    too, so most instructions are copied; memory operands are led through the soft TLB.
//! 2. `cache.rs` keeps code, `blocks.rs` what is known of it, `links.rs` what leads from block to block, `jumps.rs` the tables
//!    for computed jumps; `engine.rs` finds, translates and drops. When the cache is full `evict.rs` makes room, by `regions.rs`.
//! 3. `stubs.rs` is the way between translated code and Rust, `calls.rs` what is called: whatever the translator does not know
//!    is executed by x86-core. `transfer.rs` is the way from a program to the kernel and back.
//! 4. `home.rs` is where state lies so that code can address it, `signals.rs` takes exceptions of the host, `slips.rs` what
//!    should not be.
//! 5. `lockstep.rs` compares what blocks do with what x86-core does, `report.rs` tells of a difference, `show.rs` shows
//!    blocks; `perf.rs` and `jitdump.rs` tell perf of them.
//! 6. Code of 16 and 32 bits is interpreted. Everything that is not executing instructions is x86-core's
//!    [`x86_core::soft`], shared with the interpreter.
#![allow(clippy::useless_conversion)] // what dynasm! makes of register numbers

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

/// The JIT works where memory can be mapped as executable, and below 2 GiB.
pub fn probe() -> Probe {
    match check() {
        Ok(()) => Probe::Available(Available::of(Quality::Translated, "translates guest code to host code")),
        Err(absent) => Probe::Absent(absent),
    }
}

fn check() -> Result<(), Absent> {
    jit_context::memory::check().map_err(|error| {
        absent(&error, "raise the limit of the process's address space (ulimit -v), or use the interpreter")
    })?;
    store::code_cache::CodeCache::new(4096, false).map(drop).map_err(|error| {
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
/// None; the signature is that of every backend. What the host refuses shows in a vCPU that cannot be made.
pub fn create() -> Result<Arc<dyn Accelerator>, AccelError> {
    Ok(create_with(Config::default()))
}

/// Makes the JIT with choices of one's own.
pub fn create_with(config: Config) -> Arc<dyn Accelerator> {
    // What is compared includes RAM, which nobody else must store to meanwhile.
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

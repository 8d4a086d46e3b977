//! The KVM accelerator: the guest's instructions run on the processor itself, through /dev/kvm.
//!
//! 1. `vm.rs` makes the VM with a *split* irqchip: only the local APICs are the kernel's, the other controllers stay the
//!    machine's. `slots.rs` maps RAM and collects the dirty log, `interrupts.rs` is where interrupts enter.
//! 2. `vcpu.rs` is the contract of `run`: `exit.rs` reads why KVM returned, and whatever the guest asked of its devices
//!    is answered and *completed* before `run` returns. `requests.rs` is what other threads may ask of a vCPU.
//! 3. `state` converts between KVM's structures and [`accel_api::x86::CpuState`], in the order that loses nothing.
//! 4. `cpuid.rs` and `msr.rs` make the guest see the CPU model, the whole of it and nothing else; `speculation.rs` is
//!    what it must know of the processor beneath.
//! 5. `probe.rs` finds out whether and how well this works here: `device.rs` opens the device and tells why it cannot,
//!    `calibrate.rs` measures guests, `provider.rs` names the kernel module behind it.

mod calibrate;
mod cpuid;
mod debug;
mod device;
mod exit;
mod interrupts;
mod msr;
mod probe;
mod provider;
mod requests;
mod slots;
mod speculation;
mod state;
mod sys;
mod vcpu;
mod vm;

use std::io;
use std::path::Path;
use std::sync::Arc;

use accel_api::{AccelCaps, AccelError, AccelId, AccelVm, Accelerator, VmSpec};
use kvm_ioctls::Kvm;

use crate::vm::KvmVm;

pub use device::DEFAULT_PATH;
pub use probe::probe;

/// The name users choose it by.
pub const ID: AccelId = AccelId("kvm");

/// Most vCPUs: APIC ids below the xAPIC's broadcast id.
const MAX_VCPUS: usize = 254;

/// Makes the accelerator.
///
/// # Errors
/// The device cannot be opened.
pub fn create() -> Result<Arc<dyn Accelerator>, AccelError> {
    create_on(Path::new(DEFAULT_PATH))
}

/// Makes the accelerator of the device at `path`.
///
/// # Errors
/// The device cannot be opened.
pub fn create_on(path: &Path) -> Result<Arc<dyn Accelerator>, AccelError> {
    let failed =
        |error| AccelError::Host { what: "KVM's device cannot be used", source: io::Error::other(error) };
    let kvm = device::open(path).map_err(failed)?;
    let caps = AccelCaps {
        features: cpuid::features(&kvm)?,
        speculation: speculation::of_host(&kvm),
        max_vcpus: kvm.get_max_vcpus().min(MAX_VCPUS) as u32,
        exact: false,
    };
    Ok(Arc::new(KvmAccelerator { kvm: Arc::new(kvm), caps }))
}

#[derive(Debug)]
struct KvmAccelerator {
    kvm: Arc<Kvm>,
    caps: AccelCaps,
}

impl Accelerator for KvmAccelerator {
    fn id(&self) -> AccelId {
        ID
    }

    fn caps(&self) -> &AccelCaps {
        &self.caps
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        let missing = spec.model.features.missing_from(&self.caps.features);
        if !missing.is_empty() {
            let missing = missing.into_iter().map(str::to_owned).collect();
            return Err(AccelError::MissingFeatures { accel: ID, missing });
        }
        let max = self.caps.max_vcpus;
        if spec.vcpus == 0 || spec.vcpus > max {
            return Err(AccelError::TooManyVcpus { accel: ID, asked: spec.vcpus, max });
        }
        Ok(Arc::new(KvmVm::new(&self.kvm, spec)?))
    }
}

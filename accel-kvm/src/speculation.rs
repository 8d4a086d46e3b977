//! What is true of the processor's speculation, for guests that run on it: what KVM says, and what a guest would know by the
//! signature if it had the host's.

use accel_api::x86::{ARCH_CAPABILITIES_RSBA, HostProcessor, Signature, Speculation, Vendor};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

use crate::msr::index::ARCH_CAPABILITIES;

/// The truth on this host.
pub(crate) fn of_host(kvm: &Kvm) -> Speculation {
    let silicon = HostProcessor::detect().signature;
    Speculation::of(silicon, told(kvm).unwrap_or(0) | untold(silicon))
}

/// IA32_ARCH_CAPABILITIES as KVM would have a guest see it (Linux Documentation/virt/kvm/api.rst, 4.3 and 4.68): on AMD's
/// processors, too, which have no such MSR. `None`, which is no immunity at all, if KVM does not tell.
fn told(kvm: &Kvm) -> Option<u64> {
    let known = kvm.get_msr_feature_index_list().ok()?;
    known.as_slice().contains(&ARCH_CAPABILITIES).then_some(())?;
    let entry = kvm_msr_entry { index: ARCH_CAPABILITIES, ..kvm_msr_entry::default() };
    let mut list = Msrs::from_entries(&[entry]).ok()?;
    (kvm.get_msrs(&mut list).ok()? == 1).then(|| list.as_slice()[0].data)
}

/// Hazards that guests are to know by the model's number: returns of Skylake and what came of it (Linux
/// arch/x86/kernel/cpu/common.c, RETBLEED). Guests see another number there.
fn untold(silicon: Signature) -> u64 {
    const MODELS: [u8; 11] = [0x4e, 0x55, 0x5e, 0x66, 0x7e, 0x8a, 0x8e, 0x9e, 0xa5, 0xa6, 0xa7];
    let Signature { vendor, family, model, stepping: _ } = silicon;
    if vendor == Vendor::Intel && family == 6 && MODELS.contains(&model) { ARCH_CAPABILITIES_RSBA } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hazards_that_go_with_a_model_are_told() {
        let cascade_lake = Signature { vendor: Vendor::Intel, family: 6, model: 0x55, stepping: 7 };
        let ice_lake = Signature { model: 0x6a, ..cascade_lake };
        let other = Signature { vendor: Vendor::Amd, family: 0x17, ..cascade_lake };
        assert_eq!([cascade_lake, ice_lake, other].map(untold), [ARCH_CAPABILITIES_RSBA, 0, 0]);
    }
}

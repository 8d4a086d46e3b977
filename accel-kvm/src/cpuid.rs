//! CPUID: what KVM can give, and the model's table in KVM's form.

use accel_api::AccelError;
use accel_api::x86::{CpuFeatures, CpuModel, CpuidInputs, CpuidResult, Feature, PLATFORM_FEATURES};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::sys::host;

/// What promises speed and changes nothing that software could see, so that it may be announced on every host.
const HINTS: CpuFeatures = CpuFeatures::of(&[Feature::Erms, Feature::Fsrm, Feature::Prefetchw]);

/// Instructions that need no privilege, no control register and no state of their own, so that no provider of KVM can keep a
/// guest from them, even one whose list leaves them out.
const UNCONDITIONAL: CpuFeatures = CpuFeatures::of(&[
    Feature::Sse3,
    Feature::Ssse3,
    Feature::Sse41,
    Feature::Sse42,
    Feature::Popcnt,
    Feature::Cx16,
    Feature::LahfLm,
]);

/// Features KVM offers guests on this host.
///
/// # Errors
/// KVM does not tell.
pub(crate) fn features(kvm: &Kvm) -> Result<CpuFeatures, AccelError> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
    let find = |function: u32, index: u32| {
        let entry = supported.as_slice().iter().find(|e| e.function == function && e.index == index);
        entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let offered = CpuFeatures::from_cpuid(find);
    let unconditional = CpuFeatures::of_host().intersection(&UNCONDITIONAL);
    Ok(offered.union(&PLATFORM_FEATURES).union(&HINTS).union(&unconditional))
}

/// Leaves whose output depends on ECX, and up to which subleaf they have any.
const INDEXED: [(u32, u32); 5] = [(4, 4), (7, 2), (0xb, 2), (0xd, 2), (0x8000_001d, 4)];

/// The CPUID table of vCPU `id`. KVM itself keeps OSXSAVE, the APIC bit and the size of the XSAVE area up to date.
///
/// # Errors
/// The model has more leaves than KVM takes.
pub(crate) fn table(model: &CpuModel, id: u32) -> Result<CpuId, AccelError> {
    let inputs = CpuidInputs { apic_id: id, apic_enabled: true, ..CpuidInputs::default() };
    let mut entries = Vec::new();
    for first in [0, 0x4000_0000, 0x8000_0000] {
        let last = model.cpuid(first, 0, inputs).eax;
        for function in first..=last {
            let subleaves = INDEXED.iter().find(|(leaf, _)| *leaf == function);
            let flags = if subleaves.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            for index in 0..=subleaves.map_or(0, |(_, last)| *last) {
                let out = model.cpuid(function, index, inputs);
                // KVM gives zeros for what is not in the table, and would fill in parts of an empty leaf 0xd.
                if out == CpuidResult::default() {
                    continue;
                }
                let (eax, ebx, ecx, edx) = (out.eax, out.ebx, out.ecx, out.edx);
                entries.push(kvm_cpuid_entry2 {
                    function,
                    index,
                    flags,
                    eax,
                    ebx,
                    ecx,
                    edx,
                    padding: [0; 3],
                });
            }
        }
    }
    CpuId::from_entries(&entries).map_err(|_| {
        AccelError::InvalidState(format!("a CPU model of {} CPUID leaves is too large", entries.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_leaf_of_the_model_once() {
        let model = CpuModel::named("x86-64-v2", 2, 2_000_000).unwrap();
        let table = table(&model, 1).unwrap();
        let mut places: Vec<_> = table.as_slice().iter().map(|e| (e.function, e.index)).collect();
        let inputs = CpuidInputs { apic_id: 1, apic_enabled: true, ..CpuidInputs::default() };
        for entry in table.as_slice() {
            let out = model.cpuid(entry.function, entry.index, inputs);
            assert_eq!((out.eax, out.ebx, out.ecx, out.edx), (entry.eax, entry.ebx, entry.ecx, entry.edx));
        }
        let all = places.len();
        places.dedup();
        assert_eq!(places.len(), all);
        assert!(
            places.contains(&(0x4000_0000, 0))
                && places.contains(&(0x8000_0008, 0))
                && places.contains(&(4, 3))
        );
    }
}

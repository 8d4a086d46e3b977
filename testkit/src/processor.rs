//! What CPUID tells of the processor that the tests run on.

use std::arch::x86_64::__cpuid;

/// It has VMX (Intel SDM vol. 3, 24.6) or SVM (AMD APM vol. 2, 15.4), so that KVM has hardware behind it.
pub fn has_virtualisation() -> bool {
    let svm = __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 4 != 0;
    __cpuid(1).ecx & 1 << 5 != 0 || svm
}

/// It is the one that QEMU's TCG emulates, by the name in the hypervisor leaf.
pub fn is_emulated() -> bool {
    let leaf = __cpuid(0x4000_0000);
    let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].into_iter().flat_map(u32::to_le_bytes).collect();
    __cpuid(1).ecx & 1 << 31 != 0 && name == b"TCGTCGTCGTCG"
}

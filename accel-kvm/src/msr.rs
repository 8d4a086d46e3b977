//! MSRs: those that the processor or the kernel's local APIC must know are KVM's, and bound by its filter to exactly the
//! architecture's behaviour. All others leave the guest and are answered here: those of the CPU model by
//! [`accel_api::Msrs`], the rest by the machine. So the guest finds the same MSRs as on every other accelerator, and
//! none of KVM's own.

use accel_api::AccelError;
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::sys::host;

/// Indices (Intel SDM vol. 4, table 2-2).
pub(crate) mod index {
    pub(crate) const TSC: u32 = 0x10;
    pub(crate) const APIC_BASE: u32 = 0x1b;
    pub(crate) const TSC_ADJUST: u32 = 0x3b;
    pub(crate) const SYSENTER_CS: u32 = 0x174;
    pub(crate) const SYSENTER_ESP: u32 = 0x175;
    pub(crate) const SYSENTER_EIP: u32 = 0x176;
    pub(crate) const PAT: u32 = 0x277;
    pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
    pub(crate) const EFER: u32 = 0xc000_0080;
    pub(crate) const STAR: u32 = 0xc000_0081;
    pub(crate) const LSTAR: u32 = 0xc000_0082;
    pub(crate) const CSTAR: u32 = 0xc000_0083;
    pub(crate) const FMASK: u32 = 0xc000_0084;
    pub(crate) const FS_BASE: u32 = 0xc000_0100;
    pub(crate) const GS_BASE: u32 = 0xc000_0101;
    pub(crate) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(crate) const TSC_AUX: u32 = 0xc000_0103;
}

/// MSRs that the guest reads and writes without leaving. The x2APIC's are never filtered.
const IN_KERNEL: [u32; 15] = {
    use index::*;
    [
        APIC_BASE,
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        PAT,
        TSC_DEADLINE,
        EFER,
        STAR,
        LSTAR,
        CSTAR,
        FMASK,
        FS_BASE,
        GS_BASE,
        KERNEL_GS_BASE,
        TSC_AUX,
    ]
};

/// Allows [`IN_KERNEL`] and reading the TSC, and nothing else. (A write to the TSC moves IA32_TSC_ADJUST, which KVM has
/// only for models that announce it.)
///
/// # Errors
/// Host failure.
pub(crate) fn set_filter(vm: &VmFd) -> Result<(), AccelError> {
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let mut allowed = vec![(index::TSC, MsrFilterRangeFlags::READ)];
    // Neighbours share a range, of which KVM takes 16.
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for index in IN_KERNEL {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            _ => runs.push((index, 1)),
        }
    }
    allowed.extend(runs.iter().map(|(first, _)| (*first, both)));
    let counts = [1].into_iter().chain(runs.iter().map(|(_, count)| *count));
    let mut ranges: Vec<_> = allowed
        .iter()
        .zip(counts)
        .map(|((base, flags), msr_count)| MsrFilterRange {
            flags: *flags,
            base: *base,
            msr_count,
            bitmap: &[0xff],
        })
        .collect();
    // A bit that is clear denies: writing the TSC.
    ranges.push(MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: index::TSC,
        msr_count: 1,
        bitmap: &[0],
    });
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(host("KVM_X86_SET_MSR_FILTER"))
}

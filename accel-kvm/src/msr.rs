//! MSRs: those that the processor or the kernel's local APIC must know are KVM's, and bound by its filter to exactly the
//! architecture's behaviour. All others leave the guest and are answered here: those of the CPU model by
//! [`accel_api::x86::Msrs`], the rest by the machine. So the guest finds the same MSRs as on every other accelerator, and
//! none of KVM's own.

use accel_api::AccelError;
use accel_api::x86::CpuModel;
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::sys::host;

/// Indices (Intel SDM vol. 4, table 2-2).
pub(crate) mod index {
    pub(crate) const TSC: u32 = 0x10;
    pub(crate) const APIC_BASE: u32 = 0x1b;
    pub(crate) const TSC_ADJUST: u32 = 0x3b;
    pub(crate) const SPEC_CTRL: u32 = 0x48;
    pub(crate) const PRED_CMD: u32 = 0x49;
    pub(crate) const ARCH_CAPABILITIES: u32 = 0x10a;
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

/// MSRs that every guest reads and writes without leaving. The x2APIC's are never filtered.
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

/// Allows [`IN_KERNEL`], the controls of speculation that `model` announces, which must reach the processor, and reading
/// the TSC; nothing else. In a bitmap, of which the kernel reads whole 64-bit words, 1 allows. (A write to the TSC moves
/// IA32_TSC_ADJUST, which KVM has only for models that announce it.)
///
/// # Errors
/// Host failure.
pub(crate) fn set_filter(vm: &VmFd, model: &CpuModel) -> Result<(), AccelError> {
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = |flags, base| MsrFilterRange { flags, base, msr_count: 1, bitmap: &[1, 0, 0, 0, 0, 0, 0, 0] };
    let mut ranges = vec![range(MsrFilterRangeFlags::READ, index::TSC)];
    if model.spec_ctrl_bits() != 0 {
        ranges.push(range(both, index::SPEC_CTRL));
    }
    if model.pred_cmd_bits() != 0 {
        ranges.push(range(MsrFilterRangeFlags::WRITE, index::PRED_CMD));
    }
    for index in IN_KERNEL {
        // Neighbours share a range: KVM takes 16 of them.
        match ranges.last_mut() {
            Some(last) if last.flags == both && last.base + last.msr_count == index => {
                last.msr_count += 1;
                last.bitmap = &[0xff; 8];
            }
            _ => ranges.push(range(both, index)),
        }
    }
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(host("KVM_X86_SET_MSR_FILTER"))
}

//! The debugger's plan in KVM's form.

use accel_api::{AccelError, DebugPlan, DebugStop};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
    kvm_guest_debug_arch,
};

/// DR6.BS: a single step (Intel SDM vol. 3, 18.2.3).
const DR6_BS: u64 = 1 << 14;

/// # Errors
/// More breakpoints than the processor has.
pub(crate) fn check(plan: &DebugPlan) -> Result<(), AccelError> {
    match plan.breakpoints.len() {
        0..=4 => Ok(()),
        _ => Err(AccelError::BadDebugPlan("the processor has four breakpoints")),
    }
}

/// What KVM is told of a plan that was [`check`]ed.
pub(crate) fn guest_debug(plan: &DebugPlan) -> kvm_guest_debug {
    let DebugPlan { breakpoints, single_step } = plan;
    let mut arch = kvm_guest_debug_arch::default();
    let mut control = 0;
    if !breakpoints.is_empty() {
        control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        arch.debugreg[7] = 0x400;
    }
    if *single_step {
        control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    for (n, address) in breakpoints.iter().take(4).enumerate() {
        arch.debugreg[n] = *address;
        // Gn, with R/W and LEN 0: execution of one byte (Intel SDM vol. 3, 18.2.4).
        arch.debugreg[7] |= 2 << (2 * n);
    }
    kvm_guest_debug { control, pad: 0, arch }
}

/// What a debug exit was about.
pub(crate) fn stop(plan: &DebugPlan, dr6: u64, pc: u64) -> DebugStop {
    // A step may end in front of a breakpoint's instruction; the step is what was asked for first.
    let step = plan.single_step && (dr6 & DR6_BS != 0 || !plan.breakpoints.contains(&pc));
    if step { DebugStop::Step } else { DebugStop::Breakpoint(pc) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_become_debug_registers() {
        let plan = DebugPlan { breakpoints: vec![0x1000, 0x2000], single_step: false };
        let debug = guest_debug(&plan);
        assert_eq!((debug.arch.debugreg[1], debug.arch.debugreg[7]), (0x2000, 0x40a));
        assert_eq!(debug.control & KVM_GUESTDBG_SINGLESTEP, 0);
        assert_eq!(guest_debug(&DebugPlan::default()).control, 0);
        assert!(check(&plan).is_ok());
        assert!(check(&DebugPlan { breakpoints: vec![0; 5], single_step: false }).is_err());
    }
}

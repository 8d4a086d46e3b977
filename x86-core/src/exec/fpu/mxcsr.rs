//! MXCSR between [`Cpu`] and the host's register.
//!
//! While guest code runs the host's MXCSR collects the guest's sticky flags. Whoever reads the guest's MXCSR collects
//! them first, and whoever replaces it loads the host's; this is the one place of this family that knows.

use crate::Cpu;
use crate::exec::mxcsr as host;

/// Brings the sticky flags that the host has collected into `cpu.fpu.mxcsr`.
#[inline(always)]
pub(super) fn collect(cpu: &mut Cpu) {
    host::sync(cpu);
}

/// Replaces the guest's MXCSR, by a value without reserved bits.
#[inline(always)]
pub(super) fn replace(cpu: &mut Cpu, value: u32) {
    cpu.set_mxcsr(value);
    host::enter(cpu);
}

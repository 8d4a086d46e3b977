//! MXCSR (Intel SDM vol. 1, 10.2.3 and 11.5), shared between guest and host.
//!
//! 1. While guest code runs the host's MXCSR holds the guest's rounding, FTZ and DAZ bits with *all* exceptions masked,
//!    and gathers the sticky flags. The executor calls [`enter`] before it runs guest code and [`leave`] behind it;
//!    whatever it calls in between must not compute in floating point. [`sync`] brings `cpu.fpu.mxcsr` up to date.
//! 2. A guest that unmasks exceptions ([`Cpu::sse_unmasked`]) pays for it: each operation is then executed into a temporary with
//!    clean flags, looks at the flags, and raises #XM before the destination is written.
//!
//! Known limit: when underflow or overflow is unmasked, PE should tell of rounding with an unbounded exponent; here it
//! tells of the rounding to a denormal or to infinity, so PE may be set where a processor would set UE or OE alone.
#![allow(unsafe_code)] // MXCSR is reached by inline assembly only

use std::arch::asm;

use crate::{Cpu, Exec, Fault};

/// Bits that a guest may set: all but the reserved ones (MXCSR_MASK of the FXSAVE image, Intel SDM vol. 1, 11.6.6).
pub const MXCSR_MASK: u32 = 0xffff;

/// The sticky flags: IE, DE, ZE, OE, UE, PE.
pub const FLAGS: u32 = 0x3f;

/// The exception masks, in the order of the flags.
const MASKS: u32 = FLAGS << MASK_SHIFT;
const MASK_SHIFT: u32 = 7;
const IE_DE_ZE: u32 = 7;
const UE: u32 = 1 << 4;
const FTZ: u32 = 1 << 15;

/// MXCSR of the host outside guest code: what the ABI promises to every function.
const HOST: u32 = 0x1f80;

fn read() -> u32 {
    let mut value = 0u32;
    // SAFETY: writes four bytes to a local.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

fn write(value: u32) {
    // SAFETY: all exceptions are masked and no reserved bit is set (the callers' arithmetic), so the load cannot fault
    // and no later host instruction can trap.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly)) };
}

/// Gives the host's MXCSR to the guest. Also to be called after `cpu.fpu.mxcsr` was replaced while guest code runs
/// (FXRSTOR, XRSTOR, a loaded state).
pub fn enter(cpu: &mut Cpu) {
    let guest = cpu.fpu.mxcsr & MXCSR_MASK;
    cpu.sse_unmasked = guest & MASKS != MASKS;
    write(guest | MASKS);
}

/// Takes the sticky flags back into `cpu.fpu.mxcsr` and gives the host its own MXCSR.
pub fn leave(cpu: &mut Cpu) {
    sync(cpu);
    write(HOST);
}

/// Brings the sticky flags in `cpu.fpu.mxcsr` up to date, before it is read (STMXCSR, FXSAVE, XSAVE).
pub fn sync(cpu: &mut Cpu) {
    cpu.fpu.mxcsr |= read() & FLAGS;
}

/// Replaces the guest's MXCSR while guest code runs.
///
/// # Errors
/// #GP(0) if a reserved bit is set (Intel SDM vol. 2A, LDMXCSR and FXRSTOR).
pub fn load(cpu: &mut Cpu, value: u32) -> Exec {
    if value & !MXCSR_MASK != 0 {
        return Err(Fault::GP0);
    }
    replace(cpu, value);
    Ok(())
}

/// Replaces the guest's MXCSR by a value without reserved bits while guest code runs.
pub fn replace(cpu: &mut Cpu, value: u32) {
    cpu.set_mxcsr(value);
    enter(cpu);
}

/// Runs a floating-point operation under the guest's MXCSR. `op` only computes: it writes nothing that a fault would
/// have to take back. `tiny` says whether its result is a denormal that it computed, rather than copied: an exact one
/// raises underflow only when that is unmasked (Intel SDM vol. 1, 11.5.2.5), and the host has it masked.
///
/// # Errors
/// #XM, or #UD if CR4.OSXMMEXCPT is clear, when an unmasked exception comes up (Intel SDM vol. 1, 11.5.3).
#[inline(always)]
pub(in crate::exec) fn run<R>(
    cpu: &mut Cpu,
    op: impl FnOnce() -> R,
    tiny: impl FnOnce(&R) -> bool,
) -> Exec<R> {
    if !cpu.sse_unmasked {
        return Ok(op());
    }
    let (was, unmasked) = begin(cpu);
    let result = op();
    end(cpu, was, unmasked, tiny(&result))?;
    Ok(result)
}

/// Clears the host's flags. Returns the host's MXCSR and the unmasked exceptions.
#[cold]
#[inline(never)]
fn begin(cpu: &Cpu) -> (u32, u32) {
    let was = read();
    let unmasked = !cpu.fpu.mxcsr >> MASK_SHIFT & FLAGS;
    // FTZ works only where underflow is masked (10.2.3.3).
    let ftz = if unmasked & UE != 0 { FTZ } else { 0 };
    write(was & !(FLAGS | ftz));
    (was, unmasked)
}

#[cold]
#[inline(never)]
fn end(cpu: &Cpu, was: u32, unmasked: u32, tiny: bool) -> Exec {
    let mut flags = read() & FLAGS;
    let early = flags & unmasked & IE_DE_ZE != 0;
    if early {
        // Invalid, denormal and division by zero are found before anything is computed, so that no other flag comes up
        // behind an unmasked one of them (11.5.3.2).
        flags &= IE_DE_ZE;
    } else if tiny {
        flags |= UE & unmasked;
    }
    write(was | flags);
    if flags & unmasked == 0 {
        return Ok(());
    }
    Err(if cpu.handles_xm() { Fault::XM } else { Fault::UD })
}

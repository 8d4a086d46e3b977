//! HLT, CPUID, NOPs, hints, fences and cache-line instructions (Intel SDM vol. 2).
//!
//! Instructions of features that the model never announces (MONITOR, VMX, SVM, RSM, UD0 to UD2 and so on) have no
//! entry in the table and raise #UD.
#![allow(unsafe_code)] // fences

use std::arch::x86_64::{_mm_lfence, _mm_mfence, _mm_sfence};

use accel_api::x86::{CpuidInputs, Feature, MpState, gpr};
use iced_x86::{Code, Instruction};

use crate::alu::Word;
use crate::exec::{Table, serialising};
use crate::mode::bits;
use crate::{AccessKind, Cpu, Ea, Exec, Fault};

fn hlt(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.privileged()?;
    cpu.mp = MpState::Halted;
    cpu.leave = true;
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let inputs = CpuidInputs {
        apic_id: cpu.lapic.apic_id(),
        osxsave: cpu.cr4 & bits::CR4_OSXSAVE != 0,
        apic_enabled: cpu.lapic.is_enabled(),
        xcr0: cpu.xcr0,
    };
    let out = cpu.model.cpuid(cpu.gpr[gpr::RAX] as u32, cpu.gpr[gpr::RCX] as u32, inputs);
    cpu.gpr[gpr::RAX] = out.eax.into();
    cpu.gpr[gpr::RBX] = out.ebx.into();
    cpu.gpr[gpr::RCX] = out.ecx.into();
    cpu.gpr[gpr::RDX] = out.edx.into();
    Ok(())
}

fn nop(_: &mut Cpu, _: &Instruction) -> Exec {
    Ok(())
}

fn pause(_: &mut Cpu, _: &Instruction) -> Exec {
    std::hint::spin_loop();
    Ok(())
}

/// Guest loads and stores are host loads and stores, and its time-stamp counter is the host's: so a fence is, too. LFENCE
/// orders readings of the counter, which MFENCE need not (Intel SDM vol. 3, 18.17.4).
fn lfence(_: &mut Cpu, _: &Instruction) -> Exec {
    // SAFETY: part of x86-64.
    unsafe { _mm_lfence() };
    Ok(())
}

fn mfence(_: &mut Cpu, _: &Instruction) -> Exec {
    // SAFETY: part of x86-64.
    unsafe { _mm_mfence() };
    Ok(())
}

fn sfence(_: &mut Cpu, _: &Instruction) -> Exec {
    // SAFETY: part of x86-64.
    unsafe { _mm_sfence() };
    Ok(())
}

/// CLFLUSH and its kin: nothing to flush, but the address is checked as for a load.
fn flush_line<const FEATURE: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let feature = match FEATURE {
        0 => Feature::Clflush,
        1 => Feature::Clflushopt,
        _ => Feature::Clwb,
    };
    if !cpu.model.features.has(feature) {
        return Err(Fault::UD);
    }
    let ea = cpu.ea(ins, 1, false)?;
    cpu.span(ea, 1, AccessKind::Read)?;
    Ok(())
}

/// The byte at the address in rAX, as wide as the address size, in DS or the segment of a prefix.
fn byte_at_rax<W: Word>(cpu: &Cpu, ins: &Instruction, write: bool) -> Exec<Ea> {
    cpu.segmented(cpu.memory_segment(ins), cpu.reg::<W>(gpr::RAX).to_u64(), 1, write)
}

/// CLZERO (AMD APM vol. 3): the cache line becomes zero. `W` is the address size.
fn clzero<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    const LINE: usize = 64;
    if !cpu.model.features.has(Feature::Clzero) {
        return Err(Fault::UD);
    }
    let Ea { la, stack } = byte_at_rax::<W>(cpu, ins, true)?;
    cpu.store_bytes(Ea { la: la & !(LINE as u64 - 1), stack }, &[0; LINE])
}

/// MONITORX (AMD APM vol. 3): the address is checked as for a load, and nothing is watched, because [`mwaitx`] does not
/// wait.
fn monitorx<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if !cpu.model.features.has(Feature::Mwaitx) {
        return Err(Fault::UD);
    }
    if cpu.gpr[gpr::RCX] as u32 != 0 {
        return Err(Fault::GP0);
    }
    let ea = byte_at_rax::<W>(cpu, ins, false)?;
    cpu.span(ea, 1, AccessKind::Read)?;
    Ok(())
}

/// MWAITX (AMD APM vol. 3): processors may wake for reasons of their own, and this one always does. ECX may ask for wake-ups
/// by masked interrupts and by a timer.
fn mwaitx(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.model.features.has(Feature::Mwaitx) {
        return Err(Fault::UD);
    }
    if cpu.gpr[gpr::RCX] as u32 & !3 != 0 {
        return Err(Fault::GP0);
    }
    std::hint::spin_loop();
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Hlt], hlt);
    table.set(&[Cpuid], |cpu, ins| serialising(cpu, ins, cpuid));
    table.set(&[Nopw, Nopd, Nopq, Nop_rm16, Nop_rm32, Nop_rm64], nop);
    table.set(&[Endbr32, Endbr64, Cldemote_m8], nop);
    // Without shadow stacks these encodings are NOPs that leave their register alone.
    table.set(&[Rdsspd_r32, Rdsspq_r64], nop);
    // Without MPX these encodings are NOPs.
    table.set(&[Bndldx_bnd_mib, Bndstx_mib_bnd, Bndmk_bnd_m32, Bndmk_bnd_m64], nop);
    table.set(&[Bndmov_bnd_bndm64, Bndmov_bnd_bndm128, Bndmov_bndm64_bnd, Bndmov_bndm128_bnd], nop);
    table.set(&[Bndcl_bnd_rm32, Bndcl_bnd_rm64, Bndcu_bnd_rm32, Bndcu_bnd_rm64], nop);
    table.set(&[Bndcn_bnd_rm32, Bndcn_bnd_rm64], nop);
    table.set(&[Prefetch_m8, Prefetchw_m8, Prefetchwt1_m8, Prefetchnta_m8], nop);
    table.set(&[Prefetcht0_m8, Prefetcht1_m8, Prefetcht2_m8, Prefetchit0_m8, Prefetchit1_m8], nop);
    table.set(&[Prefetchreserved3_m8, Prefetchreserved4_m8, Prefetchreserved5_m8], nop);
    table.set(&[Prefetchreserved6_m8, Prefetchreserved7_m8], nop);
    let reserved = [
        [Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D],
        [Reservednop_rm16_r16_0F18, Reservednop_rm32_r32_0F18, Reservednop_rm64_r64_0F18],
        [Reservednop_rm16_r16_0F19, Reservednop_rm32_r32_0F19, Reservednop_rm64_r64_0F19],
        [Reservednop_rm16_r16_0F1A, Reservednop_rm32_r32_0F1A, Reservednop_rm64_r64_0F1A],
        [Reservednop_rm16_r16_0F1B, Reservednop_rm32_r32_0F1B, Reservednop_rm64_r64_0F1B],
        [Reservednop_rm16_r16_0F1C, Reservednop_rm32_r32_0F1C, Reservednop_rm64_r64_0F1C],
        [Reservednop_rm16_r16_0F1D, Reservednop_rm32_r32_0F1D, Reservednop_rm64_r64_0F1D],
        [Reservednop_rm16_r16_0F1E, Reservednop_rm32_r32_0F1E, Reservednop_rm64_r64_0F1E],
        [Reservednop_rm16_r16_0F1F, Reservednop_rm32_r32_0F1F, Reservednop_rm64_r64_0F1F],
    ];
    reserved.iter().for_each(|codes| table.set(codes, nop));
    table.set(&[Pause], pause);
    table.set(&[Lfence, Lfence_E9, Lfence_EA, Lfence_EB, Lfence_EC, Lfence_ED, Lfence_EE, Lfence_EF], lfence);
    table.set(&[Mfence, Mfence_F1, Mfence_F2, Mfence_F3, Mfence_F4, Mfence_F5, Mfence_F6, Mfence_F7], mfence);
    table.set(&[Sfence, Sfence_F9, Sfence_FA, Sfence_FB, Sfence_FC, Sfence_FD, Sfence_FE, Sfence_FF], sfence);
    table.set(&[Clflush_m8], flush_line::<0>);
    table.set(&[Clflushopt_m8], flush_line::<1>);
    table.set(&[Clwb_m8], flush_line::<2>);
    table.set(&[Clzerow], clzero::<u16>);
    table.set(&[Clzerod], clzero::<u32>);
    table.set(&[Clzeroq], clzero::<u64>);
    table.set(&[Monitorxw], monitorx::<u16>);
    table.set(&[Monitorxd], monitorx::<u32>);
    table.set(&[Monitorxq], monitorx::<u64>);
    table.set(&[Mwaitx], mwaitx);
}

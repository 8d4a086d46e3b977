//! The local APIC's timer and the time-stamp counter. Nothing here has an upper bound: a host may be slow.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::host_time;
use accel_api::x86::{CpuState, gpr};
use iced_x86::code_asm::*;

use crate::rig::{Rig, cell, map};
use crate::snippet::Asm;

const LVT_TIMER: u32 = (map::APIC + 0x320) as u32;
const INITIAL: u32 = (map::APIC + 0x380) as u32;
const CURRENT: u32 = (map::APIC + 0x390) as u32;
const DIVIDE: u32 = (map::APIC + 0x3e0) as u32;
const TSC_DEADLINE: u32 = 0x6e0;

fn write(a: &mut CodeAssembler, register: u32, value: u32) -> Asm {
    a.mov(edx, register)?;
    a.mov(dword_ptr(rdx), value)
}

/// Sleeps until `count` interrupts came. QEMU's emulated processor delivers the one that made its guest exit in the shadow
/// of STI to the guest before HLT, which then sleeps for ever: there the guest stays awake.
fn halt_until(a: &mut CodeAssembler, count: u32) -> Asm {
    let (mut top, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut top)?;
    a.cli()?;
    a.cmp(dword_ptr(cell::COUNT), count)?;
    a.jae(done)?;
    a.sti()?;
    if crate::processor::is_emulated() { a.nop() } else { a.hlt() }?;
    a.jmp(top)?;
    a.set_label(&mut done)?;
    a.sti()
}

fn spin_until(a: &mut CodeAssembler, count: u32) -> Asm {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.pause()?;
    a.cmp(dword_ptr(cell::COUNT), count)?;
    a.jb(top)
}

fn enabled(rig: &Rig) -> CpuState {
    rig.write(cell::EOI_MODE, 1u64);
    let mut state = rig.long_mode(0);
    state.rflags |= 0x200;
    state
}

/// A one-shot timer interrupts once, whether the guest sleeps or spins, and counts down to 0 (Intel SDM vol. 3, 11.5.4).
pub fn one_shot(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        write(a, DIVIDE, 0b1011)?; // by 1: 1 ns a tick
        write(a, LVT_TIMER, 0x70)?;
        write(a, INITIAL, 200_000)?;
        a.mov(edx, CURRENT)?;
        a.mov(r8d, dword_ptr(rdx))?;
        halt_until(a, 1)?;
        a.mov(edx, CURRENT)?;
        a.mov(r9d, dword_ptr(rdx))?;
        write(a, INITIAL, 100_000)?;
        spin_until(a, 2)?;
        write(a, INITIAL, 50_000_000)?;
        write(a, INITIAL, 0)?; // stops it
        a.mov(edx, CURRENT)?;
        a.mov(r10d, dword_ptr(rdx))
    });
    let end = rig.run(&enabled(&rig));
    assert_eq!(rig.vectors(), [0x70, 0x70]);
    assert!(end.gpr[8] <= 200_000);
    assert_eq!((end.gpr[9], end.gpr[10]), (0, 0));
}

/// A periodic timer goes on; its current count starts anew, and masking it stops the interrupts.
pub fn periodic(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        write(a, DIVIDE, 0b0011)?; // by 16
        write(a, LVT_TIMER, 1 << 17 | 0x71)?;
        write(a, INITIAL, 20_000)?; // 320 us
        halt_until(a, 5)?;
        spin_until(a, 8)?;
        write(a, LVT_TIMER, 1 << 17 | 1 << 16 | 0x71)?;
        a.mov(r8, qword_ptr(cell::COUNT))?;
        a.mov(edx, CURRENT)?;
        a.mov(r9d, dword_ptr(rdx))
    });
    let end = rig.run(&enabled(&rig));
    assert!(rig.vectors().iter().all(|v| *v == 0x71));
    assert!(end.gpr[8] >= 8 && end.gpr[9] <= 20_000);
    assert_eq!(end.lapic.timer_initial, 20_000);
}

/// TSC-deadline mode: the interrupt comes no earlier than the deadline, the MSR reads 0 afterwards; a deadline in the
/// past interrupts at once, and 0 disarms (Intel SDM vol. 3, 11.5.4.1).
pub fn tsc_deadline(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let arm = |a: &mut CodeAssembler, ticks: i32| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.add(rax, ticks)?;
        a.mov(rsi, rax)?; // the deadline
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, TSC_DEADLINE)?;
        a.wrmsr()
    };
    let tsc = |a: &mut CodeAssembler| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)
    };
    rig.code(|a| {
        write(a, LVT_TIMER, 2 << 17 | 0x72)?;
        a.mfence()?;
        arm(a, 1_000_000)?;
        a.mov(r12, rsi)?;
        halt_until(a, 1)?;
        tsc(a)?;
        a.sub(rax, r12)?;
        a.mov(r8, rax)?; // how late
        a.mov(ecx, TSC_DEADLINE)?;
        a.rdmsr()?;
        a.mov(r9d, eax)?;
        arm(a, -5)?;
        spin_until(a, 2)?;
        arm(a, 500_000)?;
        a.mov(r12, rsi)?;
        spin_until(a, 3)?;
        tsc(a)?;
        a.sub(rax, r12)?;
        a.mov(r10, rax)?;
        arm(a, 0x7fff_ffff)?;
        a.mov(ecx, TSC_DEADLINE)?;
        a.rdmsr()?;
        a.sub(eax, esi)?;
        a.mov(r11d, eax)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()
    });
    let end = rig.run(&enabled(&rig));
    assert_eq!(rig.vectors(), [0x72; 3]);
    assert!((end.gpr[8] as i64) >= 0 && (end.gpr[10] as i64) >= 0, "early: {:x?}", &end.gpr[8..12]);
    assert_eq!((end.gpr[9], end.gpr[11]), (0, 0));
    assert_eq!(end.lapic.tsc_deadline, 0);
}

/// RDTSC never goes back and is the host's counter plus the offset; RDTSCP gives TSC_AUX; WRMSR to the TSC and to
/// IA32_TSC_ADJUST move it (Intel SDM vol. 3, 18.17.3).
pub fn time_stamp(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut top, mut good) = (a.create_label(), a.create_label());
        a.mov(ecx, 500)?;
        a.xor(r8d, r8d)?;
        a.set_label(&mut top)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, r8)?;
        a.jae(good)?;
        a.inc(ebx)?;
        a.set_label(&mut good)?;
        a.mov(r8, rax)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.mov(qword_ptr(map::DATA), r8)?;
        a.rdtscp()?;
        a.mov(qword_ptr(map::DATA + 8), rcx)?;
        // To 1 << 60, then back by 1 << 59 through the adjustment.
        a.mov(ecx, 0x10)?;
        a.xor(eax, eax)?;
        a.mov(edx, 1 << 28)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(dword_ptr(map::DATA + 16), edx)?;
        a.mov(ecx, 0x3b)?;
        a.rdmsr()?;
        a.sub(edx, 1 << 27)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(dword_ptr(map::DATA + 24), edx)
    });
    let mut state = rig.long_mode(0);
    state.tsc_offset = 0x1000_0000_0000;
    state.msrs.tsc_aux = 0x55aa;
    let before = host_time::now();
    let end = rig.run(&state);
    let after = host_time::now();
    assert_eq!(end.gpr[gpr::RBX], 0, "went back");
    let last = rig.read::<u64>(map::DATA) - state.tsc_offset;
    assert!((before..=after).contains(&last), "{before} {last} {after}");
    let [_, aux, written, adjusted] = rig.quads(map::DATA);
    assert_eq!((aux, written >> 4, adjusted >> 4), (0x55aa, 1 << 24, 1 << 23));
    assert_ne!(end.tsc_offset, state.tsc_offset);
}

/// Readings of the counter, a vCPU's first and later ones, change RAX and RDX, and RDTSCP also RCX, alone (Intel SDM vol. 2).
pub fn reading_leaves_the_rest_alone(accel: &Arc<dyn Accelerator>) {
    // SF, OF, AF, PF of 0x7fffffff + 1, and CF.
    const FLAGS: u32 = 0x895;
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(r10, 0x1111_2222_3333_4444_u64)?;
        a.mov(r11, 0x5555_6666_7777_8888_u64)?;
        a.mov(r12d, 3)?;
        a.set_label(&mut top)?;
        for with_aux in [false, true] {
            let mut good = a.create_label();
            a.inc(r10)?;
            a.mov(eax, 0x7fff_ffff)?;
            a.add(eax, 1)?;
            a.stc()?;
            if with_aux { a.rdtscp() } else { a.rdtsc() }?;
            a.lea(r11, qword_ptr(r11 + 1))?;
            a.pushfq()?;
            a.pop(r9)?;
            a.and(r9d, 0x8d5)?;
            a.cmp(r9d, FLAGS)?;
            a.je(good)?;
            a.inc(ebx)?;
            a.set_label(&mut good)?;
        }
        a.dec(r12d)?;
        a.jnz(top)
    });
    let state = rig.long_mode(0);
    let end = rig.run(&state);
    assert_eq!(end.gpr[gpr::RBX], 0, "other flags");
    assert_eq!((end.gpr[10], end.gpr[11]), (0x1111_2222_3333_444a, 0x5555_6666_7777_888e));
    for register in [gpr::RSI, gpr::RDI, gpr::RBP, 8, 13, 14, 15] {
        assert_eq!(end.gpr[register], state.gpr[register], "register {register}");
    }
}

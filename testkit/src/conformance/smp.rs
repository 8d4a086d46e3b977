//! Several vCPUs: interprocessor interrupts, start-up, memory order. Atomic operations are in `locks.rs`.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::{CpuState, MpState, gpr};
use iced_x86::code_asm::*;

use crate::rig::{Rig, cell, map};
use crate::snippet::{Asm, assemble, stay};

const ICR_LOW: u64 = map::APIC + 0x300;
const ICR_HIGH: u64 = map::APIC + 0x310;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const LOGICAL: u32 = 1 << 11;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// Writes the xAPIC's ICR.
fn send(a: &mut CodeAssembler, destination: u32, low: u32) -> Asm {
    a.mov(edx, ICR_HIGH as u32)?;
    a.mov(dword_ptr(rdx), destination << 24)?;
    a.mov(edx, ICR_LOW as u32)?;
    a.mov(dword_ptr(rdx), low)
}

/// Waits until `count` traps were recorded on all vCPUs together.
fn wait(a: &mut CodeAssembler, count: u32) -> Asm {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.pause()?;
    a.cmp(dword_ptr(cell::COUNT), count)?;
    a.jb(top)
}

/// Runs vCPU 0 from `state` to the guest's end, and the others from theirs until then.
pub(crate) fn run_all(rig: &Rig, state: &CpuState, others: &[CpuState]) -> (CpuState, Vec<CpuState>) {
    std::thread::scope(|s| {
        let threads: Vec<_> = others
            .iter()
            .zip(1..)
            .map(|(state, id)| {
                s.spawn(move || {
                    let mut runner = rig.vcpu(id, state);
                    rig.check(runner.finish())
                })
            })
            .collect();
        let end = rig.vcpu(0, state).finish();
        for id in 1..=others.len() as u32 {
            // As if it had ended itself.
            use accel_api::{IoSize, VcpuBus};
            rig.bus_of(id).pio_write(crate::fake_bus::EXIT_PORT, IoSize::Byte, 0);
        }
        let states = threads.into_iter().map(|t| t.join().expect("vCPU")).collect();
        (rig.check(end), states)
    })
}

/// An idle vCPU: STI; HLT for ever, at [`map::USER_CODE`].
fn idle(rig: &Rig, id: u32) -> CpuState {
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.sti()?;
        a.hlt()?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    let mut state = rig.long_mode(id);
    state.rip = map::USER_CODE;
    state
}

/// Which vCPU's stack each trap was on.
fn receivers(rig: &Rig) -> Vec<(u64, u64)> {
    // Stacks are a page apart, vCPU 0's on top.
    rig.traps().iter().map(|t| (t.vector, (map::STACK - t.rsp) >> 12)).collect()
}

/// Fixed interrupts through the xAPIC's ICR: physical, logical, all shorthands, and NMI.
pub fn xapic_ipis(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    rig.write(cell::EOI_MODE, 1u64);
    let sends = [
        (1, 0x50, 1),
        (0, 0x51, 2),
        (0, SELF | 0x52, 3),
        (0, ALL | 0x53, 5),
        (0, OTHERS | 0x54, 6),
        (0x02, LOGICAL | 0x55, 7),
        (0x03, LOGICAL | 0x56, 9),
        (1, NMI, 10),
        (9, 0x57, 10),
    ];
    rig.code(|a| {
        a.sti()?;
        for (destination, low, count) in sends {
            send(a, destination, low)?;
            wait(a, count)?;
        }
        a.nop()
    });
    let (mut zero, mut one) = (rig.long_mode(0), idle(&rig, 1));
    zero.lapic.ldr = 0x0100_0000;
    one.lapic.ldr = 0x0200_0000;
    run_all(&rig, &zero, &[one]);
    let mut got = receivers(&rig);
    // Broadcasts arrive in any order.
    got[3..5].sort_unstable();
    got[7..9].sort_unstable();
    let expected = [
        (0x50, 1),
        (0x51, 0),
        (0x52, 0),
        (0x53, 0),
        (0x53, 1),
        (0x54, 1),
        (0x55, 1),
        (0x56, 0),
        (0x56, 1),
        (2, 1),
    ];
    assert_eq!(got, expected);
}

/// The same through x2APIC MSRs; the SELF IPI register; logical ids derived from the APIC id (Intel SDM vol. 3,
/// 11.12.9 to 11.12.11).
pub fn x2apic_ipis(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    rig.write(cell::EOI_MODE, 2u64);
    let sends = [
        (1, 0x60, 1),
        (0xffff_ffffu32, 0x61, 3),
        (2, LOGICAL | 0x62, 4), // cluster 0, bit 1
        (0, OTHERS | 0x63, 5),
    ];
    rig.code(|a| {
        a.sti()?;
        for (destination, low, count) in sends {
            a.mov(ecx, 0x830)?;
            a.mov(eax, low)?;
            a.mov(edx, destination)?;
            a.wrmsr()?;
            wait(a, count)?;
        }
        a.mov(ecx, 0x83f)?;
        a.mov(eax, 0x64)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        wait(a, 6)?;
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.mov(r8d, eax)?;
        a.mov(ecx, 0x80d)?;
        a.rdmsr()?;
        a.mov(r9d, eax)
    });
    let mut one = idle(&rig, 1);
    one.lapic = rig.long_mode_x2apic(1).lapic;
    let (end, _) = run_all(&rig, &rig.long_mode_x2apic(0), &[one]);
    let mut got = receivers(&rig);
    got[1..3].sort_unstable();
    assert_eq!(got, [(0x60, 1), (0x61, 0), (0x61, 1), (0x62, 1), (0x63, 1), (0x64, 0)]);
    assert_eq!((end.gpr[8], end.gpr[9]), (0, 1));
}

/// The ID register of xAPIC mode is the guest's to write: messages find the local APIC by it, CPUID and x2APIC mode go on
/// with the processor's own (Intel SDM vol. 3, 11.4.6 and 11.12.5.1).
pub fn xapic_id(accel: &Arc<dyn Accelerator>) {
    const DEVICE: u16 = 0xe0;
    let rig = Rig::smp(accel, 2);
    rig.write(cell::EOI_MODE, 1u64);
    let port = rig.port();
    rig.bus().on_out(DEVICE, move |n| {
        port.signal_msi(super::interrupts::fixed(n as u8, 0x54)).expect("signal_msi");
    });
    rig.code(|a| {
        a.sti()?;
        a.mov(ebx, (map::APIC + 0x20) as u32)?;
        a.mov(dword_ptr(rbx), 0x07ff_ffff)?;
        a.mov(r8d, dword_ptr(rbx))?;
        send(a, 0, 0x50)?; // nobody's any more
        send(a, 7, 0x51)?;
        wait(a, 1)?;
        send(a, 1, 0x52)?;
        wait(a, 2)?;
        send(a, 1, NMI)?;
        wait(a, 3)?;
        a.mov(eax, 7)?;
        a.out(u32::from(DEVICE), al)?;
        wait(a, 4)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(r9d, ebx)?;
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 1 << 10)?;
        a.wrmsr()?;
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.mov(r10d, eax)?;
        a.mov(dword_ptr(cell::EOI_MODE), 2)?;
        a.mov(ecx, 0x830)?;
        a.mov(eax, 0x55)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        wait(a, 5)
    });
    let (end, _) = run_all(&rig, &rig.long_mode(0), &[idle(&rig, 1)]);
    assert_eq!(receivers(&rig), [(0x51, 0), (0x52, 1), (2, 1), (0x54, 0), (0x55, 0)]);
    assert_eq!((end.gpr[8], end.gpr[9] >> 24, end.gpr[10]), (7 << 24, 0, 0));
    assert_eq!((end.lapic.apic_id, end.lapic.xapic_id), (0, 0));
}

/// A vCPU that sends itself INIT does not come to its next instruction; a start-up message brings it back.
pub fn init_from_itself(accel: &Arc<dyn Accelerator>) {
    const BEFORE: u64 = cell::USER;
    const BEHIND: u64 = cell::USER + 8;
    let rig = Rig::smp(accel, 2);
    let code = assemble(16, 0, |a| {
        a.mov(ax, cs)?;
        a.mov(ds, ax)?;
        a.inc(dword_ptr(0x800))?;
        stay(a)
    });
    rig.bytes(map::STARTUP, &code);
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.mov(dword_ptr(BEFORE), 1)?;
        send(a, 1, INIT | ASSERT)?;
        a.set_label(&mut top)?;
        a.inc(dword_ptr(BEHIND))?;
        a.jmp(top)
    });
    let wait_for = |a: &mut CodeAssembler, at: u64| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.pause()?;
        a.cmp(dword_ptr(at), 0)?;
        a.je(top)
    };
    rig.code(|a| {
        let mut spin = a.create_label();
        wait_for(a, BEFORE)?;
        // A message that comes before the INIT is void.
        a.mov(ecx, 100_000)?;
        a.set_label(&mut spin)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jnz(spin)?;
        for _ in 0..3 {
            send(a, 1, STARTUP | ASSERT | (map::STARTUP >> 12) as u32)?;
        }
        wait_for(a, map::STARTUP + 0x800)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    run_all(&rig, &rig.long_mode(0), &[one]);
    assert_eq!((rig.read::<u32>(BEHIND), rig.read::<u32>(map::STARTUP + 0x800)), (0, 1));
}

/// INIT and start-up bring a vCPU that waits into real mode at the vector's page, with the registers of INIT (Intel SDM
/// vol. 3, 9.4.4.1, table 10-1); a second start-up message changes nothing.
pub fn start_up(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    let vector = (map::STARTUP >> 12) as u32;
    let code = assemble(16, 0, |a| {
        a.mov(ax, cs)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(0x800), ax)?;
        a.mov(dword_ptr(0x804), edx)?;
        a.inc(dword_ptr(0x808))?;
        a.mov(eax, cr0)?;
        a.mov(dword_ptr(0x80c), eax)?;
        stay(a)
    });
    rig.bytes(map::STARTUP, &code);
    rig.code(|a| {
        send(a, 1, INIT | ASSERT | LEVEL)?;
        send(a, 1, INIT | LEVEL)?;
        send(a, 1, STARTUP | ASSERT | vector)?;
        send(a, 1, STARTUP | ASSERT | vector)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.pause()?;
        a.cmp(dword_ptr(map::STARTUP + 0x80c), 0)?;
        a.je(top)
    });
    let fresh = CpuState::reset(1);
    assert_eq!(fresh.mp, MpState::WaitForSipi);
    let (_, others) = run_all(&rig, &rig.long_mode(0), &[fresh]);
    assert_eq!(rig.read::<u16>(map::STARTUP + 0x800), (map::STARTUP >> 4) as u16);
    assert_eq!(rig.read::<u32>(map::STARTUP + 0x808), 1);
    let one = &others[0];
    assert_eq!((one.segments.cs.base, one.segments.cs.selector), (map::STARTUP, (map::STARTUP >> 4) as u16));
    assert_eq!((one.mp, one.rip), (MpState::Running, code.len() as u64 - 2));
    assert_eq!(rig.read::<u32>(map::STARTUP + 0x80c) & 0x8000_0011, 0x10, "real mode");
}

/// INIT stops a running vCPU, whose state becomes that of INIT but for what INIT leaves (x87 and SSE registers, the
/// TSC); it can be started again.
pub fn init_of_a_running_vcpu(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    rig.bytes(
        map::STARTUP,
        &assemble(16, 0, |a| {
            a.mov(ax, cs)?;
            a.mov(ds, ax)?;
            a.mov(word_ptr(0x800), 1)?;
            stay(a)
        }),
    );
    rig.code_at(64, map::USER_CODE, |a| {
        a.mov(qword_ptr(cell::USER), 1)?;
        stay(a)
    });
    rig.code(|a| {
        let (mut running, mut started) = (a.create_label(), a.create_label());
        a.set_label(&mut running)?;
        a.pause()?;
        a.cmp(dword_ptr(cell::USER), 0)?;
        a.je(running)?;
        send(a, 1, INIT | ASSERT | LEVEL)?;
        send(a, 1, STARTUP | ASSERT | (map::STARTUP >> 12) as u32)?;
        a.set_label(&mut started)?;
        a.pause()?;
        a.cmp(word_ptr(map::STARTUP + 0x800), 0)?;
        a.je(started)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    one.fpu.ymm[5][0] = 0x1234;
    let (_, others) = run_all(&rig, &rig.long_mode(0), &[one]);
    let one = &others[0];
    assert_eq!((one.control.cr0 & 1, one.msrs.efer, one.control.cr4, one.control.cr3), (0, 0, 0, 0));
    assert_eq!(one.fpu.ymm[5][0], 0x1234, "INIT leaves XMM registers");
    assert_eq!((one.segments.ds.base, one.gdtr.limit), (map::STARTUP, 0xffff));
}

/// Message passing: stores of one vCPU are seen in order by the other (Intel SDM vol. 3, 9.2.3.2).
pub fn store_order(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 50_000;
    let rig = Rig::smp(accel, 2);
    let (data, flag) = (map::DATA, map::DATA + 0x1000);
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 1)?;
        a.set_label(&mut top)?;
        a.mov(dword_ptr(data), ecx)?;
        a.mov(dword_ptr(flag), ecx)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUNDS)?;
        a.jbe(top)?;
        stay(a)
    });
    rig.code(|a| {
        let (mut top, mut good) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.mov(eax, dword_ptr(flag))?;
        a.mov(ecx, dword_ptr(data))?;
        a.cmp(ecx, eax)?;
        a.jae(good)?;
        a.inc(ebx)?;
        a.set_label(&mut good)?;
        a.cmp(eax, ROUNDS)?;
        a.jb(top)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    let (end, _) = run_all(&rig, &rig.long_mode(0), &[one]);
    assert_eq!(end.gpr[gpr::RBX], 0, "saw a flag before the data stored in front of it");
}

/// A page-table change, an IPI and INVLPG in its handler: afterwards the other vCPU does not use the old translation
/// (a TLB shoot-down).
pub fn shoot_down(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    let page = map::DATA + 0x4000;
    let entry = map::PT + (page >> 12) * 8;
    let (old, new) = (map::DATA + 0x5000, map::DATA + 0x6000);
    rig.map_page(page, old | 3);
    let (round, done) = (cell::USER, cell::USER + 8);
    // Vector 0x50 of both vCPUs: INVLPG, acknowledge, EOI.
    let handler = map::DATA;
    rig.write(map::IDT + 0x500, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | handler >> 16 << 48);
    rig.code_at(64, handler, |a| {
        a.push(rax)?;
        a.invlpg(byte_ptr(page))?;
        a.mov(rax, qword_ptr(round))?;
        a.mov(qword_ptr(done), rax)?;
        a.mov(eax, (map::APIC + 0xb0) as u32)?;
        a.mov(dword_ptr(rax), 0)?;
        a.pop(rax)?;
        a.iretq()
    });
    // The other: stores to the page all the time.
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.sti()?;
        a.set_label(&mut top)?;
        a.inc(qword_ptr(page))?;
        a.jmp(top)
    });
    rig.code(|a| {
        // 100 times: swap the frames, shoot down, and see that the old one is left alone.
        let (mut top, mut acked) = (a.create_label(), a.create_label());
        a.mov(r12, old | 3)?;
        a.mov(r13, new | 3)?;
        a.mov(r14d, 100)?;
        a.set_label(&mut top)?;
        a.xchg(r12, r13)?;
        a.mov(qword_ptr(entry), r12)?;
        a.inc(qword_ptr(round))?;
        send(a, 1, 0x50)?;
        a.set_label(&mut acked)?;
        a.pause()?;
        a.mov(rax, qword_ptr(done))?;
        a.cmp(rax, qword_ptr(round))?;
        a.jne(acked)?;
        a.lea(rsi, ptr(r13 - 3))?; // identity-mapped too
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(ecx, 200)?;
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jnz(spin)?;
        a.sub(rax, qword_ptr(rsi))?;
        a.or(rbx, rax)?;
        a.dec(r14d)?;
        a.jnz(top)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    let (end, _) = run_all(&rig, &rig.long_mode(0), &[one]);
    assert_eq!(end.gpr[gpr::RBX], 0, "stored through a translation that was shot down");
    let [a, b] = [rig.read::<u64>(old), rig.read::<u64>(new)];
    assert!(a + b > 0);
}

//! Non-maskable interrupts: how many are remembered, and those that a vCPU sends to itself.

use std::sync::Arc;

use accel_api::Accelerator;
use iced_x86::code_asm::*;

use super::interrupts::{ACT, act, wait};
use crate::rig::{Rig, cell, map};

/// An NMI comes whatever IF says; a second one waits until IRET, a third merges with it (Intel SDM vol. 3, 6.7.1).
pub fn while_masked(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().on_out(ACT, move |_| port.inject_nmi(0));
    // A handler of its own: three more NMIs from within, then IRET. Entered once more for all of them.
    let handler = map::DATA;
    rig.write(map::IDT + 32, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | handler >> 16 << 48);
    rig.code_at(64, handler, |a| {
        let mut done = a.create_label();
        a.inc(r8d)?;
        a.cmp(r8d, 1)?;
        a.jne(done)?;
        for _ in 0..3 {
            a.out(u32::from(ACT), al)?;
        }
        for _ in 0..8 {
            a.nop()?;
        }
        a.mov(r9d, r8d)?;
        a.set_label(&mut done)?;
        a.iretq()
    });
    rig.code(|a| {
        let mut top = a.create_label();
        a.out(u32::from(ACT), al)?;
        a.set_label(&mut top)?;
        a.pause()?;
        a.cmp(r8d, 2)?;
        a.jb(top)?;
        spin(a)
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[8], end.gpr[9]), (2, 1));
    assert_eq!((end.events.nmi_masked, end.events.nmi_pending), (false, 0));
}

/// Some time for what must not come.
fn spin(a: &mut CodeAssembler) -> crate::snippet::Asm {
    a.mov(ecx, 500)?;
    let mut spin = a.create_label();
    a.set_label(&mut spin)?;
    a.dec(ecx)?;
    a.jnz(spin)
}

/// Two that come before the first can be taken are two, as if the second had met the first's handler; a third merges.
pub fn two_at_once(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().on_out(ACT, move |n| (0..n & 0xff).for_each(|_| port.inject_nmi(0)));
    rig.code(|a| {
        for (n, count) in [(1, 1), (2, 3), (3, 5)] {
            act(a, n)?;
            wait(a, count)?;
        }
        spin(a)
    });
    let end = rig.run_long();
    assert_eq!(rig.vectors(), [2; 5]);
    assert_eq!(end.events.nmi_pending, 0);
}

/// A vCPU that sends itself NMIs, as hypervisors do to patch themselves, gets each of them while it waits; in both modes
/// of the local APIC.
pub fn from_itself(accel: &Arc<dyn Accelerator>) {
    const TURNS: u32 = 50;
    const NMI: u32 = 4 << 8;
    for x2apic in [false, true] {
        let rig = Rig::new(accel);
        rig.code(|a| {
            let (mut top, mut taken) = (a.create_label(), a.create_label());
            a.xor(esi, esi)?;
            a.set_label(&mut top)?;
            a.inc(esi)?;
            if x2apic {
                a.mov(ecx, 0x830)?;
                a.mov(eax, NMI)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
            } else {
                a.mov(ebx, (map::APIC + 0x310) as u32)?;
                a.mov(dword_ptr(rbx), 0)?;
                a.mov(dword_ptr(rbx - 0x10), NMI)?;
            }
            a.set_label(&mut taken)?;
            a.pause()?;
            a.cmp(dword_ptr(cell::COUNT), esi)?;
            a.jb(taken)?;
            a.cmp(esi, TURNS)?;
            a.jb(top)
        });
        rig.run(&if x2apic { rig.long_mode_x2apic(0) } else { rig.long_mode(0) });
        assert_eq!(rig.vectors(), [2; TURNS as usize]);
    }
}

//! Interrupts from outside: messages, priorities, the task-priority register, EOI, the 8259's line, shadows.

use std::sync::Arc;

use accel_api::x86::{CpuState, gpr};
use accel_api::{Accelerator, MsiMessage};
use iced_x86::code_asm::*;

use crate::fake_bus::Event;
use crate::rig::{Rig, cell, map, sel};

/// Port whose OUT makes the host act.
pub(super) const ACT: u16 = 0xe0;

/// A fixed message to the xAPIC with this id.
pub(super) fn fixed(destination: u8, vector: u8) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000 | u64::from(destination) << 12, data: vector.into() }
}

/// Makes an OUT of `n` to [`ACT`] send the `n`th message.
fn send_on_out(rig: &Rig, messages: Vec<MsiMessage>) {
    let port = rig.port();
    rig.bus().on_out(ACT, move |n| {
        if let Some(message) = messages.get(n as usize & 0xff) {
            port.signal_msi(*message).expect("signal_msi");
        }
    });
}

pub(super) fn act(a: &mut CodeAssembler, n: u32) -> crate::snippet::Asm {
    a.mov(eax, n)?;
    a.out(u32::from(ACT), al)
}

/// Likewise with the number in a register.
fn act_on(a: &mut CodeAssembler, n: AsmRegister32) -> crate::snippet::Asm {
    a.mov(eax, n)?;
    a.out(u32::from(ACT), al)
}

/// Waits until `count` traps were recorded.
pub(super) fn wait(a: &mut CodeAssembler, count: u32) -> crate::snippet::Asm {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.pause()?;
    a.cmp(dword_ptr(cell::COUNT), count)?;
    a.jb(top)
}

/// Interrupts are on, and the handler ends them.
pub(super) fn enabled(rig: &Rig) -> CpuState {
    rig.write(cell::EOI_MODE, 1u64);
    let mut state = rig.long_mode(0);
    state.rflags |= 0x200;
    state
}

/// Fixed, lowest-priority and logical messages, broadcast; a message to another id is not ours, one with a vector below
/// 16 is not accepted and noted in ESR (Intel SDM vol. 3, 11.5.2, 11.5.3, 11.11).
pub fn messages(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let logical =
        |mda: u64, vector: u32| MsiMessage { address: 0xfee0_0000 | mda << 12 | 1 << 2, data: vector };
    send_on_out(
        &rig,
        vec![
            fixed(0, 0x50),
            fixed(0xff, 0x51),
            fixed(5, 0x52),
            logical(0x01, 0x53),
            logical(0x02, 0x54),
            MsiMessage { address: 0xfee0_0000 | 1 << 3, data: 0x155 }, // lowest priority, redirectable
            fixed(0, 0x0e),
            fixed(0, 0x60),
        ],
    );
    rig.code(|a| {
        for (n, count) in [1, 2, 2, 3, 3, 4, 4, 5].into_iter().enumerate() {
            act(a, n as u32)?;
            wait(a, count)?;
        }
        a.mov(ebx, (map::APIC + 0x280) as u32)?;
        a.mov(dword_ptr(rbx), 0)?;
        a.mov(r8d, dword_ptr(rbx))
    });
    let mut state = enabled(&rig);
    state.lapic.ldr = 0x0100_0000;
    let end = rig.run(&state);
    assert_eq!(rig.vectors(), [0x50, 0x51, 0x53, 0x55, 0x60]);
    assert_eq!(end.gpr[8], if accel.caps().exact { 0x40 } else { 0 }, "received illegal vector");
    assert_eq!((end.lapic.irr, end.lapic.isr), ([0; 4], [0; 4]));
}

/// While interrupts are off they wait in IRR, and come by priority, highest first.
pub fn priority_order(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    send_on_out(&rig, [0x31, 0xf1, 0x90, 0x91, 0x40, 0x90].map(|v| fixed(0, v)).to_vec());
    rig.code(|a| {
        a.cli()?;
        for n in 0..6 {
            act(a, n)?;
        }
        a.mov(ecx, 1000)?;
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.dec(ecx)?;
        a.jnz(spin)?;
        a.mov(r8, qword_ptr(cell::COUNT))?;
        a.sti()?;
        wait(a, 5)
    });
    let end = rig.run(&enabled(&rig));
    assert_eq!(end.gpr[8], 0, "nothing while IF is clear");
    assert_eq!(rig.vectors(), [0xf1, 0x91, 0x90, 0x40, 0x31], "two of 0x90 merge");
}

/// A vector in service holds back its class and those below until EOI; a higher one comes through.
pub fn in_service(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    send_on_out(&rig, [0x55, 0x5f, 0x45, 0x61].map(|v| fixed(0, v)).to_vec());
    let mut state = enabled(&rig);
    rig.write(cell::EOI_MODE, 0u64);
    rig.code(|a| {
        a.mov(ebx, (map::APIC + 0xb0) as u32)?;
        act(a, 0)?;
        wait(a, 1)?; // 0x55 is in service
        act(a, 1)?;
        act(a, 2)?;
        a.mov(r8, qword_ptr(cell::COUNT))?;
        act(a, 3)?;
        wait(a, 2)?; // 0x61
        a.mov(dword_ptr(rbx), 0)?; // ends 0x61
        a.nop()?;
        a.mov(r9, qword_ptr(cell::COUNT))?;
        a.mov(dword_ptr(rbx), 0)?; // ends 0x55
        wait(a, 3)?; // 0x5f
        a.mov(dword_ptr(rbx), 0)?;
        wait(a, 4)?;
        a.mov(dword_ptr(rbx), 0)
    });
    state.rflags |= 0x200;
    let end = rig.run(&state);
    assert_eq!(rig.vectors(), [0x55, 0x61, 0x5f, 0x45]);
    assert_eq!((end.gpr[8], end.gpr[9]), (1, 2));
    assert_eq!(end.lapic.isr, [0; 4]);
}

/// CR8 and the TPR register are one thing, and hold back classes up to their own (Intel SDM vol. 3, 11.8.3.1).
pub fn task_priority(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    send_on_out(&rig, [0x6f, 0x71, 0x60].map(|v| fixed(0, v)).to_vec());
    rig.code(|a| {
        a.mov(ebx, (map::APIC + 0x80) as u32)?;
        a.mov(eax, 6)?;
        a.mov(cr8, rax)?;
        a.mov(r8d, dword_ptr(rbx))?;
        act(a, 0)?;
        act(a, 1)?;
        wait(a, 1)?;
        a.mov(r9, qword_ptr(cell::COUNT))?;
        a.mov(dword_ptr(rbx), 0x5a)?;
        wait(a, 2)?;
        a.mov(r10, cr8)?;
        act(a, 2)?;
        wait(a, 3)
    });
    let end = rig.run(&enabled(&rig));
    assert_eq!(rig.vectors(), [0x71, 0x6f, 0x60]);
    assert_eq!(end.gpr[8..11], [0x60, 1, 5]);
    let kept = if accel.caps().exact { 0xff } else { 0xf0 };
    assert_eq!(end.lapic.tpr & kept, 0x5a & kept);
}

/// The EOI of a level-triggered vector is told to the bus, that of an edge-triggered one is not.
pub fn level_eoi(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let level = MsiMessage { data: 0xc044, ..fixed(0, 0) };
    // A backend with the local APIC in the kernel learns from the route which vectors are level-triggered.
    let route = accel_api::IrqRoute { message: level, masked: false, level: true };
    rig.port().set_route(5, Some(route)).expect("set_route");
    send_on_out(&rig, vec![level, fixed(0, 0x45), level]);
    rig.code(|a| {
        for n in 0..3 {
            act(a, n)?;
            wait(a, n + 1)?;
        }
        a.nop()
    });
    rig.run(&enabled(&rig));
    assert_eq!(rig.vectors(), [0x44, 0x45, 0x44]);
    let eois: Vec<_> = rig.bus().take_log().into_iter().filter(|e| matches!(e, Event::Eoi { .. })).collect();
    assert_eq!(eois, [Event::Eoi { vector: 0x44 }; 2]);
}

/// The 8259's line through LINT0: the vector comes from the INTA cycle, no EOI at the local APIC is due, and a request
/// that went away meanwhile costs nothing.
pub fn extint(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let port = rig.port();
    let bus = Arc::downgrade(rig.bus());
    rig.bus().on_out(ACT, move |_| {
        let bus = bus.upgrade().expect("alive");
        bus.answer_extint(Some(0x38));
        port.set_extint(true);
    });
    let (lower, gone, raise) = (rig.port(), rig.port(), rig.port());
    rig.bus().on_out(ACT + 3, move |_| raise.set_extint(true));
    rig.bus().on_out(ACT + 1, move |_| lower.set_extint(false));
    rig.bus().on_out(ACT + 2, move |_| {
        gone.set_extint(true);
        gone.set_extint(false);
    });
    rig.code(|a| {
        a.cli()?;
        act(a, 0)?;
        a.mov(r8, qword_ptr(cell::COUNT))?;
        // The line is lowered by the handler in earnest; here it is told behind the STI shadow.
        a.sti()?;
        wait(a, 1)?;
        a.out(u32::from(ACT + 1), al)?;
        a.cli()?;
        a.out(u32::from(ACT + 2), al)?;
        a.sti()?;
        a.nop()?;
        // Raised and lowered again before the guest would take it.
        a.cli()?;
        a.out(u32::from(ACT + 3), al)?;
        a.nop()?;
        a.out(u32::from(ACT + 1), al)?;
        a.sti()?;
        a.mov(ecx, 100)?;
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.dec(ecx)?;
        a.jnz(spin)
    });
    let mut state = enabled(&rig);
    rig.write(cell::EOI_MODE, 0u64);
    state.lapic = state.lapic.with_virtual_wire();
    let end = rig.run(&state);
    assert_eq!(rig.vectors(), [0x38]);
    assert_eq!((end.gpr[8], end.lapic.isr), (0, [0; 4]));
    assert!(rig.bus().count(|e| *e == Event::AckExtint) >= 1);
    assert_eq!(rig.bus().count(|e| matches!(e, Event::Eoi { .. })), 0);
}

/// Between STI and the end of the next instruction no interrupt comes: STI; CLI lets none in, STI; HLT wakes up, and
/// the return address shows where it came (Intel SDM vol. 2, STI).
pub fn sti_shadow(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    send_on_out(&rig, vec![fixed(0, 0x50)]);
    rig.code(|a| {
        a.cli()?;
        act(a, 0)?;
        for _ in 0..20 {
            a.sti()?;
            a.cli()?;
        }
        a.mov(r8, qword_ptr(cell::COUNT))?;
        let mut behind = a.create_label();
        a.lea(r9, ptr(behind))?;
        a.sti()?;
        a.inc(ebx)?;
        a.set_label(&mut behind)?;
        a.nop()?;
        wait(a, 1)
    });
    let end = rig.run(&enabled(&rig));
    assert_eq!((rig.vectors(), end.gpr[8]), (vec![0x50], 0));
    assert!(rig.traps()[0].rip >= end.gpr[9], "behind the instruction after STI");
    assert_eq!(end.gpr[gpr::RBX], 1);
}

/// MOV SS holds off interrupts for one instruction, so that RSP can follow (Intel SDM vol. 3, 6.8.3).
pub fn mov_ss_shadow(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().on_out(ACT, move |_| port.inject_nmi(0));
    rig.code(|a| {
        a.mov(ecx, u32::from(crate::rig::sel::DATA))?;
        a.mov(edx, u32::from(ACT))?;
        a.mov(esi, 50)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rbx, rsp)?;
        a.mov(rsp, 1u64 << 63)?; // no event may use this
        a.mov(ss, ecx)?;
        a.mov(rsp, rbx)?;
        a.out(dx, al)?;
        a.dec(esi)?;
        a.jnz(top)?;
        wait(a, 50)
    });
    rig.run_long();
    assert_eq!(rig.vectors(), vec![2; 50]);
}

/// The local APIC software-disabled, or masked LINT0: nothing comes, and what was in IRR stays (11.4.7.2).
pub fn software_disabled(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    send_on_out(&rig, vec![fixed(0, 0x50), fixed(0, 0x51)]);
    rig.code(|a| {
        a.mov(ebx, (map::APIC + 0xf0) as u32)?;
        a.mov(dword_ptr(rbx), 0xff)?;
        act(a, 0)?;
        a.nop()?;
        a.mov(dword_ptr(rbx), 0x1ff)?;
        act(a, 1)?;
        wait(a, 1)
    });
    rig.run(&enabled(&rig));
    assert_eq!(rig.vectors(), [0x51], "fixed messages are not accepted while software-disabled");
}

/// Interrupts in a hot loop from another thread: each one arrives, none twice, and the loop's arithmetic is unharmed.
pub fn storm(accel: &Arc<dyn Accelerator>) {
    const COUNT: u32 = 300;
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut top)?;
        a.add(rbx, 3)?;
        a.inc(rcx)?;
        a.mov(qword_ptr(cell::USER), rcx)?;
        a.cmp(dword_ptr(cell::COUNT), COUNT)?;
        a.jb(top)
    });
    let state = enabled(&rig);
    let port = rig.port();
    let ram = rig.ram.clone();
    let end = std::thread::scope(|s| {
        s.spawn(move || {
            use vm_memory::{Bytes, GuestAddress};
            let start = std::time::Instant::now();
            let read = |at| ram.memory().read_obj::<u32>(GuestAddress(at)).expect("RAM");
            // What is sent before the state is loaded gets lost.
            while read(cell::USER) == 0 && start.elapsed() < crate::rig::PATIENCE {
                std::thread::yield_now();
            }
            for n in 0..COUNT {
                port.signal_msi(fixed(0, 0x40 + (n % 8) as u8)).expect("signal_msi");
                // The next only when this one was taken: the same vector twice would merge.
                while read(cell::COUNT) <= n && start.elapsed() < crate::rig::PATIENCE {
                    std::thread::yield_now();
                }
            }
        });
        rig.run(&state)
    });
    let expected: Vec<_> = (0..u64::from(COUNT)).map(|n| 0x40 + n % 8).collect();
    assert_eq!(rig.vectors(), expected);
    assert_eq!(end.gpr[gpr::RBX], 3 * end.gpr[gpr::RCX]);
}

/// An interrupt that waited while IF was clear comes before the first instruction that SYSRET or IRET leads to, when they
/// set it.
pub fn behind_returns(accel: &Arc<dyn Accelerator>) {
    const TURNS: u32 = 12;
    let waits = |turn: u32| turn.is_multiple_of(3);
    for by_iret in [false, true] {
        let rig = Rig::new(accel);
        for page in [map::USER_CODE, map::USER_STACK - 0x1000] {
            rig.user_page(page);
        }
        let port = rig.port();
        rig.bus().on_out(ACT, move |n| {
            if waits(n) {
                port.signal_msi(fixed(0, 0x50)).expect("signal_msi");
            }
        });
        rig.code_at(64, map::USER_CODE, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.syscall()?;
            a.inc(r9)?;
            a.jmp(top)
        });
        rig.code(|a| {
            let mut end = a.create_label();
            a.cmp(r8d, TURNS)?;
            a.je(end)?;
            act_on(a, r8d)?;
            a.inc(r8d)?;
            if by_iret {
                a.mov(rbx, rsp)?;
                a.push(i32::from(sel::USER_DATA))?;
                a.push(rbx)?;
                a.push(r11)?;
                a.push(i32::from(sel::USER_CODE64))?;
                a.push(rcx)?;
                a.iretq()?;
            } else {
                a.sysretq()?;
            }
            a.set_label(&mut end)?;
            a.nop()
        });
        let mut state = super::exceptions::user_state(&rig);
        state.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
        state.msrs.lstar = map::CODE;
        state.msrs.fmask = 0x200;
        state.rflags |= 0x200;
        rig.write(cell::EOI_MODE, 1u64);
        let end = rig.run(&state);
        assert_eq!(end.gpr[9], u64::from(TURNS));
        let came = rig.traps();
        assert_eq!(came.len(), (0..TURNS).filter(|turn| waits(*turn)).count());
        for trap in came {
            let expected = (0x50, map::USER_CODE + 2, u64::from(sel::USER_CODE64));
            assert_eq!((trap.vector, trap.rip, trap.cs), expected, "by IRET: {by_iret}");
        }
    }
}

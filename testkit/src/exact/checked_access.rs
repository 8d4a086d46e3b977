//! Breakpoints of the guest's debug registers and alignment checks, met by code that runs as blocks before and after.

use std::sync::Arc;

use crate::rig::{Rig, map, pte, sel};
use crate::snippet::faulting;
use accel_api::Accelerator;
use accel_api::x86::{Segment, gpr};
use iced_x86::code_asm::*;

/// Leads #DB to a handler that counts at [`map::DATA`] and goes on, RF set.
fn count_debug_exceptions(rig: &Rig) {
    let at = map::DATA + 0x1000;
    rig.code_at(64, at, |a| {
        a.inc(qword_ptr(map::DATA))?;
        a.or(dword_ptr(rsp + 16), 0x1_0000)?;
        a.iretq()
    });
    let gate = (at & 0xffff) | u64::from(sel::CODE64) << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
    rig.write(map::IDT + 16, gate);
}

/// A loop of `turns` that stores to [`map::DATA`] + 0x800 and counts in RBX.
fn turns(a: &mut CodeAssembler, turns: u32) -> Result<(), iced_x86::IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, turns)?;
    a.set_label(&mut top)?;
    a.mov(dword_ptr(map::DATA + 0x800), ecx)?;
    a.inc(rbx)?;
    a.dec(ecx)?;
    a.jnz(top)
}

/// The same code, hot, is stopped while a breakpoint is armed and runs free before and after. Data: writes only.
pub fn breakpoints_come_and_go(accel: &Arc<dyn Accelerator>) {
    for (control, turns_seen, bit) in [(0xd_0002u64, 5, 1), (0x1_0001, 5, 1), (0, 0, 0)] {
        let rig = Rig::new(accel);
        count_debug_exceptions(&rig);
        rig.code(|a| {
            let (mut body, mut behind) = (a.create_label(), a.create_label());
            a.call(body)?;
            a.mov(eax, (map::DATA + 0x800) as u32)?;
            a.mov(dr0, rax)?;
            a.mov(eax, control as u32)?;
            a.mov(dr7, rax)?;
            turns(a, 5)?;
            a.mov(rsi, qword_ptr(map::DATA + 0x800))?; // a load is not seen
            a.xor(eax, eax)?;
            a.mov(dr7, rax)?;
            a.mov(rdi, dr6)?;
            a.call(body)?;
            a.jmp(behind)?;
            a.set_label(&mut body)?;
            turns(a, 10_000)?;
            a.ret()?;
            a.set_label(&mut behind)?;
            a.nop()
        });
        let end = rig.run_long();
        assert_eq!((rig.read::<u64>(map::DATA), end.gpr[gpr::RBX]), (turns_seen, 20_005), "{control:#x}");
        assert_eq!(end.gpr[gpr::RDI] & 0xf, bit);
    }
}

/// A breakpoint on the first instruction of a loop: once a turn, with RF to get past it.
pub fn code_breakpoints_in_a_loop(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    count_debug_exceptions(&rig);
    rig.code(|a| {
        let (mut top, mut again) = (a.create_label(), a.create_label());
        a.mov(ecx, 10_000)?;
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.cmp(rbx, 20_000)?;
        a.jae(again)?;
        a.lea(rax, ptr(top))?;
        a.mov(dr3, rax)?;
        a.mov(eax, 0x40)?;
        a.mov(dr7, rax)?;
        a.mov(ecx, 10_000)?;
        a.jmp(top)?;
        a.set_label(&mut again)?;
        a.mov(rdi, dr6)
    });
    let end = rig.run_long();
    assert_eq!((rig.read::<u64>(map::DATA), end.gpr[gpr::RBX], end.gpr[gpr::RDI] & 0xf), (10_000, 20_000, 8));
}

/// Ring 3 sets AC and is checked from the next instruction on, in loads that ran unchecked before; ring 0 is not.
pub fn alignment_is_checked_while_asked_for(accel: &Arc<dyn Accelerator>) {
    for (am, faults) in [(1 << 18, 2), (0, 0)] {
        let rig = Rig::new(accel);
        for page in [map::CODE, map::DATA, map::STACK - 0x1000, map::CELLS] {
            rig.user_page(page);
        }
        rig.map_page(map::CODE, rig.pte(map::CODE) | pte::U);
        rig.code(|a| {
            let mut top = a.create_label();
            a.mov(ecx, 3000)?;
            a.set_label(&mut top)?;
            a.add(rbx, qword_ptr(map::DATA + 1))?;
            a.add(dword_ptr(map::DATA + 0x22), ecx)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.pushfq()?;
            a.or(dword_ptr(rsp), 1 << 18)?; // AC
            a.popfq()?;
            a.mov(ecx, dword_ptr(map::DATA + 8))?;
            faulting(a, |a| a.mov(rax, qword_ptr(map::DATA + 1)))?;
            faulting(a, |a| a.mov(dword_ptr(map::DATA + 2), eax))
        });
        let mut state = rig.long_mode(0);
        state.control.cr0 |= am;
        state.rflags |= 3 << 12; // the guest ends by a port
        state.segments.cs = Segment::flat(sel::USER_CODE64, 0xa0fb);
        state.segments.ss = Segment::flat(sel::USER_DATA, 0xc0f3);
        rig.run(&state);
        let traps = rig.traps();
        assert_eq!(rig.vectors(), vec![17; faults]);
        assert!(traps.iter().all(|t| t.error == 0 && t.rip == t.expected_rip && t.cs & 3 == 3));
    }
}

//! `save` and `load`: whole, exact, and refusing nothing that a CPU can be in.
//!
//! Every other check runs a second time on the travelling backend, which saves and loads between instructions. Here are
//! the states that are easily lost.

use std::sync::Arc;

use accel_api::x86::{CpuState, Events, MpState, Segment, gpr};
use accel_api::{Accelerator, Exit};
use iced_x86::code_asm::*;

use crate::rig::{Rig, cell, map, pte, sel};
use crate::snippet::stay;

/// Binds a vCPU, loads, saves: what comes back.
fn round_trip(accel: &Arc<dyn Accelerator>, state: &CpuState) -> CpuState {
    let rig = Rig::new(accel);
    rig.vcpu(0, state).save()
}

fn assert_same(before: &CpuState, after: &CpuState) {
    let mut before = before.clone();
    before.normalise();
    let differences: Vec<_> = before.diff(after).iter().map(ToString::to_string).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// The state a bound vCPU starts with is the architecture's (Intel SDM vol. 3, table 10-1).
pub fn reset(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    for id in 0..2 {
        let mut vcpu = rig.vm.bind_vcpu(&accel_api::VcpuConfig { id }, rig.bus().clone()).expect("bind_vcpu");
        let mut state = vcpu.save().expect("save");
        state.normalise();
        // The counter starts at 0 or runs already.
        state.tsc_offset = 0;
        assert_same(&CpuState::reset(id), &state);
    }
}

/// Every register with a value of its own, so that no two can be mixed up and none is forgotten.
pub fn registers(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let mut state = rig.long_mode(0);
    for (n, r) in state.gpr.iter_mut().enumerate() {
        *r = 0x0111_0000_0000_0000 * (n as u64 + 1) + n as u64;
    }
    state.rip = 0xffff_8000_1234_5678;
    state.rflags = 0x24_0ed7;
    state.control.cr2 = 0xdead_beef_0000;
    state.control.cr4 |= 1 << 7 | 1 << 16; // PGE, FSGSBASE
    state.debug.dr = [0x1001, 0x2002, 0x3003, 0x4004];
    state.debug.dr6 = 0xffff_4ff1;
    state.debug.dr7 = 0x0455;
    state.gdtr.base = 0xffff_8000_0000_1000;
    state.gdtr.limit = 0x7f;
    state.idtr.base = 0xffff_8000_0000_2000;
    state.idtr.limit = 0xffe;
    let s = &mut state.segments;
    s.fs = Segment { base: 0x7fff_1234_5000, ..s.fs };
    s.gs = Segment { selector: 0, unusable: true, base: 0xffff_8880_0000_0000, ..Segment::default() };
    s.ldtr = Segment {
        selector: 0x38,
        base: 0xffff_8000_0000_5000,
        limit: 0xfff,
        attributes: 0x82,
        unusable: false,
    };
    s.es = Segment { selector: 0, unusable: true, ..Segment::default() };
    let m = &mut state.msrs;
    m.star = 0x0023_0010_0000_0000;
    m.lstar = 0xffff_8000_0000_0001;
    m.cstar = 0xffff_8000_0000_0002;
    m.fmask = 0x4_7700;
    m.kernel_gs_base = 0x7fff_0000_0003;
    m.tsc_aux = 0x8000_0004;
    (m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = (0x10, 0xffff_8000_0000_0005, 0xffff_8000_0000_0006);
    m.pat = 0x0007_0106_0007_0406;
    m.mtrr.def_type = 0xc06;
    m.mtrr.fixed = std::array::from_fn(|n| 0x0606_0606_0606_0600 + [0, 1, 4, 5, 6][n % 5]);
    m.mtrr.variable = std::array::from_fn(|n| [(n as u64) << 32 | 6, 0xff_0000_0800]);
    state.tsc_offset = 0x1234_5678_9abc;
    assert_same(&state, &round_trip(accel, &state));
}

/// x87 in 80 bits with tags and pointers, MXCSR, all XMM registers.
pub fn floating_point(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let mut state = rig.long_mode(0);
    let fpu = &mut state.fpu;
    fpu.fcw = 0x027f;
    fpu.fsw = 0x3841 & !0x40 | 0x4100; // TOP 7
    fpu.ftw = 0b1010_0110;
    fpu.fop = 0x1d9;
    fpu.fip = 0x1234_5678;
    fpu.fdp = 0x8765_4321;
    for (n, st) in fpu.st.iter_mut().enumerate() {
        *st = [n as u8, 1, 2, 3, 4, 5, 6, 0x80 | n as u8, n as u8, 0x40];
    }
    fpu.mxcsr = 0x7fa5;
    for (n, ymm) in fpu.ymm.iter_mut().enumerate() {
        *ymm = [0x1000 + n as u64, 0x8000_0000_0000_0000 + n as u64, 0, 0];
    }
    let after = round_trip(accel, &state);
    assert_same(&state, &after);

    // And the guest sees them.
    rig.code(|a| {
        a.movups(xmmword_ptr(map::DATA), xmm9)?;
        a.stmxcsr(dword_ptr(map::DATA + 0x20))?;
        a.fnsave(ptr(map::DATA + 0x100))
    });
    rig.run(&state);
    assert_eq!(rig.quads(map::DATA), [0x1009, 0x8000_0000_0000_0009]);
    assert_eq!(rig.read::<u32>(map::DATA + 0x20), 0x7fa5);
    assert_eq!(rig.read::<u16>(map::DATA + 0x100), 0x027f);
    assert_eq!(rig.read::<u64>(map::DATA + 0x100 + 28), 0x8006_0504_0302_0100, "ST0");
}

/// The local APIC: requests, interrupts in service, a timer on its way, priorities, in both modes.
pub fn local_apic(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for mut state in [rig.long_mode(0), rig.long_mode_x2apic(0)] {
        let l = &mut state.lapic;
        l.tpr = 0xe0;
        l.irr = [0x1_0000, 0, 1 << 40, 1 << 63];
        l.isr = [0, 1 << 5, 0, 1 << 3];
        l.tmr = [0, 1 << 5, 1 << 40, 0];
        if l.apic_base & 1 << 10 == 0 {
            (l.xapic_id, l.ldr, l.dfr) = (0x77, 0x0100_0000, 0x0fff_ffff);
        }
        l.esr_new = if accel.caps().exact { 0x40 } else { 0 };
        l.icr = 0x4_4050;
        l.lvt_lint0 = 0x700;
        l.lvt_lint1 = 0x400;
        l.lvt_error = 0xfe;
        l.lvt_timer = 1 << 17 | 0xee;
        l.timer_initial = 0xf000_0000;
        l.timer_divide = 0b1010;
        l.timer_remaining_ns = 0x40_0000_0000;
        let mut after = round_trip(accel, &state);
        let left = after.lapic.timer_remaining_ns;
        assert!(left <= 0x40_0000_0000 && left > 0x10_0000_0000, "{left:#x}");
        after.lapic.timer_remaining_ns = 0x40_0000_0000;
        assert_same(&state, &after);

        state.lapic.lvt_timer = 2 << 17 | 0xee;
        state.lapic.timer_initial = 0;
        state.lapic.tsc_deadline = u64::MAX >> 1;
        assert_same(&state, &round_trip(accel, &state));
    }
}

/// Halted, waiting for a start-up message, shut down; interrupt shadow, NMI pending and masked.
pub fn pending(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for mp in [MpState::Running, MpState::Halted, MpState::WaitForSipi, MpState::Shutdown] {
        let mut state = rig.long_mode(0);
        state.mp = mp;
        assert_same(&state, &round_trip(accel, &state));
    }
    for bits in 0..8 {
        let mut state = rig.long_mode(0);
        state.events.interrupt_shadow = bits & 1 != 0;
        state.events.nmi_masked = bits & 4 != 0;
        state.events.nmi_pending = if bits & 2 != 0 { Events::nmi_limit(bits & 4 != 0) } else { 0 };
        assert_same(&state, &round_trip(accel, &state));
    }
}

/// A halted vCPU that is loaded with an interrupt in IRR, or with a deadline that has passed, wakes; with neither it
/// goes on halting.
pub fn halted_goes_on(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| a.inc(ebx));
    let mut state = rig.long_mode(0);
    state.mp = MpState::Halted;
    state.rflags |= 0x200;
    for case in 0..3 {
        let mut state = state.clone();
        rig.write(cell::COUNT, 0u64);
        match case {
            0 => state.lapic.irr[1] = 1 << 0x11,
            1 => {
                state.lapic.lvt_timer = 2 << 17 | 0x51;
                state.lapic.tsc_deadline = 5;
            }
            _ => state.events.nmi_pending = 1,
        }
        let fresh = Rig::new(accel);
        fresh.code(|a| a.inc(ebx));
        let end = fresh.run(&state);
        let vector = if case == 2 { 2 } else { 0x51 };
        assert_eq!((fresh.vectors(), end.gpr[gpr::RBX]), (vec![vector], 1), "case {case}");
    }
    let mut runner = rig.vcpu(0, &state);
    runner.vcpu.kicker().kick();
    assert_eq!(runner.step(), Exit::Kicked);
    assert_eq!(runner.save().mp, MpState::Halted);
}

/// A debug exception that waits is delivered when the state is loaded: at once, or behind the instruction that MOV SS shields.
/// A backend that cannot hold one refuses the state.
pub fn debug_that_waits(accel: &Arc<dyn Accelerator>) {
    for (shielded, at) in [(false, map::CODE), (true, map::CODE + 2)] {
        let rig = Rig::new(accel);
        rig.code(|a| {
            a.inc(ebx)?;
            a.nop()
        });
        let mut state = rig.long_mode(0);
        state.events.debug_pending = 1 << 2;
        (state.events.debug_shadow, state.events.interrupt_shadow) = (shielded, shielded);
        if !accel.caps().exact {
            let mut vcpu = rig.vcpu(0, &rig.long_mode(0)).vcpu;
            assert!(matches!(vcpu.load(&state), Err(accel_api::AccelError::InvalidState(_))));
            continue;
        }
        let end = rig.run(&state);
        assert_eq!((rig.vectors(), rig.traps()[0].rip), (vec![1], at), "shielded: {shielded}");
        assert_eq!((end.debug.dr6 & 0xf, end.events.debug_pending, end.events.debug_shadow), (4, 0, false));
    }
}

/// The four entries of PAE paging are part of the state: what is in the table by now does not matter. Where the state has none, the
/// table is read. Processors of AMD's read it again under nested paging, so that KVM may, too.
pub fn page_directory_pointers(accel: &Arc<dyn Accelerator>) {
    for in_state in [false, true] {
        let rig = Rig::new(accel);
        let entry = map::PD | pte::P;
        let known = in_state && accel.caps().exact;
        rig.write(map::DATA + 0x4000, if known { 0 } else { entry });
        rig.code_at(32, map::CODE, |a| {
            a.mov(dword_ptr(map::ALIAS as u32), 0x3333_4444)?;
            crate::snippet::exit(a)
        });
        let mut state = rig.pae(map::DATA + 0x4000);
        state.control.pdptrs = in_state.then_some([entry, 0, 0, 0]);
        let end = rig.run(&state);
        assert_eq!(rig.read::<u32>(map::ALIASED), 0x3333_4444);
        assert!(!accel.caps().exact || end.control.pdptrs == Some([entry, 0, 0, 0]), "{:x?}", end.control);
    }
    let rig = Rig::new(accel);
    rig.code(|a| a.nop());
    assert_eq!(rig.run_long().control.pdptrs, None, "no PAE paging");
}

/// A masked NMI and the shadow, loaded, still hold events back.
pub fn held_back(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.inc(ebx)?;
        a.nop()?;
        // IRET unmasks.
        a.mov(rax, rsp)?;
        a.push(i32::from(sel::DATA))?;
        a.push(rax)?;
        a.pushfq()?;
        a.push(i32::from(sel::CODE64))?;
        let mut behind = a.create_label();
        a.lea(rax, ptr(behind))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut behind)?;
        a.nop()?;
        a.nop()
    });
    let mut state = rig.long_mode(0);
    state.events.nmi_pending = 1;
    state.events.nmi_masked = true;
    let end = rig.run(&state);
    let trap = rig.traps()[0];
    assert_eq!(trap.vector, 2);
    assert!(trap.rip > map::CODE + 20, "not before IRET: {:#x}", trap.rip);
    assert!(!end.events.nmi_masked);

    let rig = Rig::new(accel);
    rig.code(|a| {
        a.inc(ebx)?;
        a.nop()
    });
    let mut state = rig.long_mode(0);
    state.rflags |= 0x200;
    state.lapic.irr[1] = 1 << 0x11;
    state.events.interrupt_shadow = true;
    rig.run(&state);
    assert_eq!(rig.traps()[0].rip, map::CODE + 2, "behind the first instruction");
}

/// `save` does not change anything: a thousand of them between steps of the guest leave its result alone, and `load`
/// of an old state takes the guest back.
pub fn save_and_rewind(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.inc(rbx)?;
        stay(a)
    });
    let start = rig.long_mode(0);
    let mut runner = rig.vcpu(0, &start);
    for _ in 0..20 {
        runner.vcpu.kicker().kick();
        assert_eq!(runner.step(), Exit::Kicked);
        let first = runner.save();
        assert_same(&first, &runner.save());
        assert!(first.gpr[gpr::RBX] <= 1);
        runner.vcpu.load(&start).expect("load");
        assert_eq!(runner.save().gpr[gpr::RBX], 0);
    }
}

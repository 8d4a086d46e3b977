//! The debugger's breakpoints and single step, which the guest cannot see.

use std::sync::Arc;

use accel_api::x86::{CpuState, gpr};
use accel_api::{Accelerator, DebugPlan, DebugStop, Exit};
use iced_x86::code_asm::*;

use crate::rig::{Rig, Runner, cell, map};
use crate::snippet::faulting;

fn at(addresses: &[u64]) -> DebugPlan {
    DebugPlan { breakpoints: addresses.to_vec(), single_step: false }
}

fn stepping() -> DebugPlan {
    DebugPlan { breakpoints: Vec::new(), single_step: true }
}

/// Runs to the next stop.
fn stop(runner: &mut Runner) -> (DebugStop, CpuState) {
    loop {
        match runner.step() {
            Exit::Kicked => {}
            Exit::Debug(stop) => return (stop, runner.save()),
            other => panic!("{other:x?}"),
        }
    }
}

/// A breakpoint stops before its instruction, each time round a loop; going on passes it. Others can be set at any stop,
/// and a fifth is refused.
pub fn breakpoints(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3)?; // 5 bytes
        a.set_label(&mut top)?;
        a.inc(ebx)?; // 2
        a.dec(ecx)?; // 2
        a.jnz(top)?; // 2
        a.inc(esi)
    });
    let (top, behind) = (map::CODE + 5, map::CODE + 11);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.vcpu.set_debug(&at(&[top])).expect("plan");
    for n in 0..3 {
        let (why, state) = stop(&mut runner);
        assert_eq!((why, state.rip, state.gpr[gpr::RBX]), (DebugStop::Breakpoint(top), top, n));
    }
    runner.vcpu.set_debug(&at(&[1 << 40, top, behind])).expect("plan");
    let (why, state) = stop(&mut runner);
    assert_eq!((why, state.rip), (DebugStop::Breakpoint(behind), behind));
    assert!(runner.vcpu.set_debug(&at(&[1, 2, 3, 4, 5])).is_err());
    runner.vcpu.set_debug(&DebugPlan::default()).expect("plan");
    let end = rig.check(runner.finish());
    assert_eq!((end.gpr[gpr::RBX], end.gpr[gpr::RSI]), (3, 1));
    assert_eq!((end.debug.dr7, end.debug.dr[0]), (0x400, 0), "the guest's registers are its own");
    assert!(rig.traps().is_empty());
}

/// Single step: every instruction once, through branches, calls, faults into their handler and out of it; a REP
/// instruction may stop at each turn. What hardware steps runs the handler within the step (see
/// [`accel_api::AccelCaps::exact`]).
pub fn single_step(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut skip, mut function) = (a.create_label(), a.create_label());
        a.mov(ecx, 4)?;
        a.mov(esi, map::DATA as u32)?;
        a.mov(edi, (map::DATA + 0x100) as u32)?;
        a.rep().movsb()?;
        a.jmp(skip)?;
        a.set_label(&mut function)?;
        a.inc(ebx)?;
        a.ret()?;
        a.set_label(&mut skip)?;
        a.call(function)?;
        faulting(a, |a| a.ud2())?;
        a.inc(ebx)
    });
    // Without steps first: both must end alike.
    let expected = rig.run_long();
    assert_eq!(expected.gpr[gpr::RBX], 2);
    rig.write(cell::COUNT, 0u64);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.vcpu.set_debug(&stepping()).expect("plan");
    let mut rips = vec![map::CODE];
    let mut handler = 0;
    let end = loop {
        let (why, state) = stop(&mut runner);
        assert_eq!(why, DebugStop::Step);
        if state.rip >= map::HANDLERS && state.rip < map::TRAPS {
            handler += 1;
        } else if rips.last() != Some(&state.rip) {
            rips.push(state.rip);
        }
        assert!(rips.len() < 100 && handler < 100);
        if state.rip == expected.rip {
            break state;
        }
    };
    if !accel.caps().exact {
        let both = (expected.gpr, vec![6]);
        assert!(rips.len() >= 15, "{rips:x?}");
        assert_eq!((end.gpr, rig.vectors()), both);
        return;
    }
    // mov, mov, mov, rep, jmp, call, inc, ret, 4 of `faulting` and its UD2, nop, inc, out.
    let code = map::CODE;
    assert_eq!(
        rips[..9],
        [code, code + 5, code + 10, code + 15, code + 17, code + 22, code + 19, code + 21, code + 27]
    );
    assert_eq!(rips.len(), 17, "{rips:x?}");
    assert!(handler > 20, "the handler is stepped through too: {handler}");
    assert_eq!((end.gpr, rig.vectors()), (expected.gpr, vec![6]));
    assert!(rig.traps().iter().all(|t| t.rflags & 0x100 == 0), "the guest does not see TF");
}

/// An interrupt while stepping: the step ends in front of the handler or behind its first instruction; nothing is lost.
pub fn step_into_interrupts(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().on_out(0xe0, move |_| port.signal_msi(super::interrupts::fixed(0, 0x50)).expect("signal_msi"));
    rig.write(cell::EOI_MODE, 1u64);
    rig.code(|a| {
        a.sti()?;
        for _ in 0..3 {
            a.out(0xe0u32, al)?;
            a.inc(ebx)?;
        }
        a.nop()
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.vcpu.set_debug(&stepping()).expect("plan");
    for _ in 0..400 {
        let (_, state) = stop(&mut runner);
        if rig.read::<u64>(cell::COUNT) == 3 && state.gpr[gpr::RBX] == 3 {
            break;
        }
    }
    runner.vcpu.set_debug(&DebugPlan::default()).expect("plan");
    rig.check(runner.finish());
    assert_eq!(rig.vectors(), [0x50; 3]);
}

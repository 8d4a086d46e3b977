//! HLT blocks inside `run` and wakes; kicks make `run` return.

use std::sync::Arc;
use std::time::Duration;

use accel_api::x86::{MpState, gpr};
use accel_api::{Accelerator, Exit};
use iced_x86::code_asm::*;

use super::interrupts::fixed;
use crate::rig::{Rig, Runner, cell, map};
use crate::snippet::stay;

/// Does `action` on another thread once the guest has written to the cell, and a little later, so that it probably
/// sleeps by then; the check does not depend on it.
fn when_asleep<T: Send>(rig: &Rig, runner: impl FnOnce() -> T, action: impl FnOnce() + Send) -> T {
    let ram = rig.ram.clone();
    std::thread::scope(|s| {
        s.spawn(move || {
            use vm_memory::{Bytes, GuestAddress};
            let start = std::time::Instant::now();
            let told = || ram.memory().read_obj::<u32>(GuestAddress(cell::USER)).expect("RAM") != 0;
            while !told() && start.elapsed() < crate::rig::PATIENCE {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(2));
            action();
        });
        runner()
    })
}

/// Nothing interrupts between STI and HLT: an interrupt that comes early wakes it all the same.
fn halting(rig: &Rig) {
    rig.code(|a| {
        a.mov(dword_ptr(cell::USER), 1)?;
        a.sti()?;
        a.hlt()?;
        a.inc(ebx)
    });
}

/// An interrupt wakes HLT; the return address is behind it.
pub fn wakes_by_interrupt(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    halting(&rig);
    let port = rig.port();
    let end =
        when_asleep(&rig, || rig.run_long(), move || port.signal_msi(fixed(0, 0x50)).expect("signal_msi"));
    assert_eq!((rig.vectors(), end.gpr[gpr::RBX]), (vec![0x50], 1));
    // INC, OUT and the final JMP, where the guest stays, are 2 bytes each.
    assert_eq!(rig.traps()[0].rip, end.rip - 4, "behind HLT");
}

/// An NMI wakes HLT with interrupts off; a maskable interrupt does not.
pub fn wakes_by_nmi(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.mov(dword_ptr(cell::USER), 1)?;
        a.hlt()?;
        a.inc(ebx)
    });
    let port = rig.port();
    let act = move || {
        port.signal_msi(fixed(0, 0x50)).expect("signal_msi");
        std::thread::sleep(Duration::from_millis(2));
        port.inject_nmi(0);
    };
    let end = when_asleep(&rig, || rig.run_long(), act);
    assert_eq!((rig.vectors(), end.gpr[gpr::RBX]), (vec![2], 1));
    assert_eq!(end.lapic.irr, [0, 1 << 16, 0, 0], "still waiting");
}

/// The idle loop of an operating system: STI; HLT never misses an interrupt that is there already.
pub fn sti_hlt(accel: &Arc<dyn Accelerator>) {
    const COUNT: u32 = 100;
    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().on_out(0xe0, move |_| port.signal_msi(fixed(0, 0x50)).expect("signal_msi"));
    rig.write(cell::EOI_MODE, 1u64);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(ecx, COUNT)?;
        a.set_label(&mut top)?;
        a.cli()?;
        a.out(0xe0u32, al)?;
        a.sti()?;
        a.hlt()?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    rig.run_long();
    assert_eq!(rig.vectors(), vec![0x50; COUNT as usize]);
}

/// A kick while halted makes `run` return; the next `run` goes on halting.
pub fn kick_while_halted(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    halting(&rig);
    let port = rig.port();
    let mut state = rig.long_mode(0);
    state.gpr[gpr::RSI] = 7;
    let ram = rig.ram.clone();
    std::thread::scope(|s| {
        let mut runner = rig.vcpu(0, &state);
        let kick = runner.vcpu.kicker();
        s.spawn(move || {
            use vm_memory::{Bytes, GuestAddress};
            while ram.memory().read_obj::<u32>(GuestAddress(cell::USER)).expect("RAM") == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(2));
            kick.kick();
        });
        until_kicked(&mut runner);
        let mut halted = runner.save();
        for _ in 0..100 {
            if halted.mp == MpState::Halted {
                break;
            }
            // The kick came before HLT, which takes effect now: the next one waits for that, longer than a busy host does.
            let kick = runner.vcpu.kicker();
            s.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                kick.kick();
            });
            until_kicked(&mut runner);
            halted = runner.save();
        }
        assert_eq!((halted.mp, halted.gpr[gpr::RSI]), (MpState::Halted, 7));
        port.signal_msi(fixed(0, 0x60)).expect("signal_msi");
        let end = rig.check(runner.finish());
        assert_eq!((rig.vectors(), end.gpr[gpr::RBX], end.mp), (vec![0x60], 1, MpState::Running));
    });
}

fn until_kicked(runner: &mut Runner) {
    assert_eq!(runner.step(), Exit::Kicked);
}

/// A kick before `run` is not lost, and is used up by one return.
pub fn early_kick(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.inc(ebx)?;
        stay(a)
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.vcpu.kicker().kick();
    until_kicked(&mut runner);
    runner.vcpu.kicker().kick();
    runner.vcpu.kicker().kick();
    until_kicked(&mut runner);
    let at = runner.save().rip;
    assert!(at == map::CODE || at == map::CODE + 2, "{at:#x}");
}

/// Kicks out of a loop that never leaves on its own, from several threads, always at an instruction boundary: the loop
/// keeps RBX = 5 RCX between its two instructions.
pub fn kicks_in_a_loop(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rbx, 5)?;
        a.inc(rcx)?;
        a.jmp(top)
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            let (kick, stop) = (runner.vcpu.kicker(), &stop);
            s.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    kick.kick();
                    std::thread::yield_now();
                }
            });
        }
        let mut last = 0;
        for _ in 0..100 {
            until_kicked(&mut runner);
            let state = runner.save();
            let (b, c) = (state.gpr[gpr::RBX], state.gpr[gpr::RCX]);
            let half = state.rip == map::CODE + 4;
            assert_eq!(b, 5 * (c + u64::from(half)), "at {:#x}", state.rip);
            assert!(c >= last, "the guest went back");
            last = c;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A kick in the middle of a long REP MOVS: `run` returns with registers that say how far it came, and goes on.
pub fn kick_in_rep(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(edx, 20)?;
        a.set_label(&mut top)?;
        a.mov(esi, 0x20_0000)?;
        a.mov(edi, 0x20_0001)?; // overlapping by all but a byte: a fill
        a.mov(ecx, 0x1_0000)?;
        a.rep().movsb()?;
        a.dec(edx)?;
        a.jnz(top)
    });
    rig.write(0x20_0000, 0xa5u8);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let end = std::thread::scope(|s| {
        let (kick, flag) = (runner.vcpu.kicker(), &stop);
        s.spawn(move || {
            while !flag.load(std::sync::atomic::Ordering::Relaxed) {
                kick.kick();
                std::thread::yield_now();
            }
        });
        let end = runner.finish();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        rig.check(end)
    });
    assert_eq!((end.gpr[gpr::RCX], end.gpr[gpr::RDI]), (0, 0x21_0001));
    assert_eq!((rig.read::<u8>(0x21_0000), rig.read::<u8>(0x21_0001)), (0xa5, 0));
}

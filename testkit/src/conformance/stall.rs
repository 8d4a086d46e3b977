//! A vCPU that is held up in an access to the machine: nobody who changes memory, or looks at what was written of it, waits
//! for that access.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use accel_api::x86::CpuState;
use accel_api::{Accelerator, Access, Exit, MsiMessage, SlotId};
use iced_x86::code_asm::*;

use super::interrupts::fixed;
use crate::fake_bus::Event;
use crate::rig::{PATIENCE, Rig, cell, map};

const SLOT: SlotId = SlotId(map::EXTRA_SLOT);
/// Port whose OUT makes the host act.
const ACT: u16 = 0xe0;

/// Holds up vCPU 0 at each event that `wanted` says yes to. It tells when it is there, and goes on when told, or for good when
/// there is nobody to tell it.
fn hold(rig: &Rig, wanted: impl Fn(&Event) -> bool + Send + Sync + 'static) -> (Receiver<()>, Sender<()>) {
    let ((at, there), (go, on)) = (mpsc::channel(), mpsc::channel());
    let on = Mutex::new(on);
    rig.bus().on_event(move |event| {
        if wanted(event) {
            // The test may be done with it.
            let _ = at.send(());
            let _ = on.lock().expect("lock").recv_timeout(2 * PATIENCE);
        }
    });
    (there, go)
}

/// While vCPU 0 is held up: dirty pages are collected, a slot comes and goes, a device writes to code.
fn changes(rig: &Rig) {
    rig.vm.take_dirty().expect("take_dirty");
    rig.vm.map(SLOT, &rig.ram.regions()[2], Access::ReadWrite).expect("map");
    rig.vm.unmap(SLOT).expect("unmap");
    let code = rig.read::<u8>(map::CODE);
    rig.bytes(map::CODE, &[code]);
}

/// Runs vCPU 0 from `state`, and makes changes while it is held up.
fn answers(rig: &Rig, state: &CpuState, (there, go): (Receiver<()>, Sender<()>)) {
    std::thread::scope(|s| {
        let vcpu = s.spawn(|| {
            let mut runner = rig.vcpu(0, state);
            rig.check(runner.finish())
        });
        there.recv_timeout(PATIENCE).expect("the access comes");
        let (done, finished) = mpsc::channel();
        s.spawn(move || {
            changes(rig);
            done.send(()).expect("the test waits");
        });
        let answered = finished.recv_timeout(PATIENCE).is_ok();
        drop(go);
        assert!(answered, "somebody waits for a device access");
        vcpu.join().expect("vCPU");
    });
}

/// IN, OUT, loads and stores, an MSR of the machine's.
pub fn device_accesses(accel: &Arc<dyn Accelerator>) {
    const MSR: u32 = 0x4000_0000;
    let wanted: [fn(&Event) -> bool; 6] = [
        |e| matches!(e, Event::PioRead { .. }),
        |e| matches!(e, Event::PioWrite { .. }),
        |e| matches!(e, Event::MmioRead { .. }),
        |e| matches!(e, Event::MmioWrite { .. }),
        |e| matches!(e, Event::MsrRead { .. }),
        |e| matches!(e, Event::MsrWrite { .. }),
    ];
    for wanted in wanted {
        let rig = Rig::new(accel);
        rig.bus().have_msr(MSR, 5);
        rig.code(|a| {
            a.mov(ebx, map::MMIO as u32)?;
            a.in_(al, 0x30u32)?;
            a.out(0x30u32, al)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(dword_ptr(rbx), eax)?;
            a.mov(ecx, MSR)?;
            a.rdmsr()?;
            a.wrmsr()
        });
        let held = hold(&rig, wanted);
        answers(&rig, &rig.long_mode(0), held);
    }
}

/// The end of a level-triggered interrupt, and the cycle that asks the 8259 for a vector.
pub fn interrupt_cycles(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let level = MsiMessage { data: 0xc044, ..fixed(0, 0) };
    let route = accel_api::IrqRoute { message: level, masked: false, level: true };
    rig.port().set_route(5, Some(route)).expect("set_route");
    let port = rig.port();
    rig.bus().on_out(ACT, move |_| port.signal_msi(level).expect("signal_msi"));
    let act = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.out(u32::from(ACT), al)?;
        a.set_label(&mut top)?;
        a.pause()?;
        a.cmp(dword_ptr(cell::COUNT), 1)?;
        a.jb(top)
    };
    rig.code(act);
    rig.write(cell::EOI_MODE, 1u64);
    let mut state = rig.long_mode(0);
    state.rflags |= 0x200;
    let held = hold(&rig, |e| matches!(e, Event::Eoi { .. }));
    answers(&rig, &state, held);
    assert_eq!(rig.vectors(), [0x44]);

    let rig = Rig::new(accel);
    let port = rig.port();
    rig.bus().answer_extint(Some(0x38));
    rig.bus().on_out(ACT, move |_| port.set_extint(true));
    rig.code(act);
    let mut state = rig.long_mode(0);
    state.rflags |= 0x200;
    state.lapic = state.lapic.with_virtual_wire();
    let held = hold(&rig, |e| matches!(e, Event::AckExtint));
    answers(&rig, &state, held);
    assert_eq!(rig.vectors()[0], 0x38);
}

/// Locked accesses to a device, while another vCPU makes one after the other across two pages, each of which has to wait for its
/// turn. A kick ends that wait, and each is made once.
pub fn locked_accesses(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 8;
    let rig = Rig::smp(accel, 2);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(ebx, map::MMIO as u32)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut top)?;
        a.lock().inc(dword_ptr(rbx))?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    // Behind MOV of 5 bytes and LOCK INC of 4.
    let inc = map::USER_CODE + 9;
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.mov(ebx, map::DATA as u32 + 0xffc)?;
        a.set_label(&mut top)?;
        a.lock().inc(qword_ptr(rbx))?;
        a.inc(r12)?;
        a.jmp(top)
    });
    let mut other = rig.long_mode(1);
    other.rip = map::USER_CODE;
    let (there, go) = hold(&rig, |e| matches!(e, Event::MmioWrite { .. }));
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let ((tell, told), (left, returns)) = (mpsc::channel(), mpsc::channel());
        let second = s.spawn({
            let (rig, over) = (&rig, &over);
            move || {
                let mut runner = rig.vcpu(1, &other);
                tell.send(runner.vcpu.kicker()).expect("the test waits");
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(runner.step(), Exit::Kicked);
                    left.send(()).expect("the test waits");
                }
                runner.save()
            }
        });
        let first = s.spawn(|| rig.check(rig.vcpu(0, &rig.long_mode(0)).finish()));
        let kick = told.recv_timeout(PATIENCE).expect("vCPU 1 is bound");
        let (done, finished) = mpsc::channel();
        let mut waits_for = None;
        for _ in 0..ROUNDS {
            there.recv_timeout(PATIENCE).expect("the access comes");
            s.spawn({
                let (done, rig) = (done.clone(), &rig);
                move || {
                    changes(rig);
                    // Nobody waits any more if that took too long.
                    let _ = done.send(());
                }
            });
            if finished.recv_timeout(PATIENCE).is_err() {
                waits_for = Some("who changes memory");
                break;
            }
            kick.kick();
            if returns.recv_timeout(PATIENCE).is_err() {
                waits_for = Some("a vCPU that is kicked");
                break;
            }
            go.send(()).expect("vCPU 0 waits");
        }
        drop(go);
        first.join().expect("vCPU 0");
        over.store(true, Ordering::SeqCst);
        kick.kick();
        let state = second.join().expect("vCPU 1");
        assert_eq!(waits_for, None, "waits for a device access");
        // It may have been kicked between the two instructions.
        let made = rig.read::<u64>(map::DATA + 0xffc);
        assert!(made == state.gpr[12] + u64::from(state.rip == inc), "{made} {:x?}", state.gpr);
    });
}

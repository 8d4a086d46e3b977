//! A vCPU that is held up in an access to the machine: nobody who changes memory, or looks at what was written of it, waits
//! for that access.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use accel_api::{Accelerator, Access, CpuState, MsiMessage, SlotId};
use iced_x86::code_asm::*;

use super::interrupts::fixed;
use crate::fake_bus::Event;
use crate::rig::{PATIENCE, Rig, cell, map};
use crate::snippet::stay;

const SLOT: SlotId = SlotId(map::EXTRA_SLOT);
/// Port whose OUT makes the host act.
const ACT: u16 = 0xe0;

/// Holds up vCPU 0 at the first event that `wanted` says yes to. It tells when it is there, and goes on when told.
fn hold(rig: &Rig, wanted: impl Fn(&Event) -> bool + Send + Sync + 'static) -> (Receiver<()>, Sender<()>) {
    let ((at, there), (go, on)) = (mpsc::channel(), mpsc::channel());
    let on = Mutex::new(Some(on));
    rig.bus().on_event(move |event| {
        let first = wanted(event).then(|| on.lock().expect("lock").take()).flatten();
        if let Some(on) = first {
            at.send(()).expect("the test waits");
            // The sender is dropped if the test fails.
            let _ = on.recv_timeout(2 * PATIENCE);
        }
    });
    (there, go)
}

/// While vCPU 0, run from `state`, is held up, and behind `others` have done what they do: dirty pages are collected, a slot
/// comes and goes, a device writes to code.
fn answers(
    rig: &Rig,
    state: &CpuState,
    (there, go): (Receiver<()>, Sender<()>),
    others: impl FnOnce(),
) -> CpuState {
    std::thread::scope(|s| {
        let vcpu = s.spawn(|| {
            let mut runner = rig.vcpu(0, state);
            rig.check(runner.finish())
        });
        there.recv_timeout(PATIENCE).expect("the access comes");
        others();
        let (done, finished) = mpsc::channel();
        s.spawn(move || {
            rig.vm.collect_dirty(rig.ram.flags()).expect("collect_dirty");
            rig.vm.map(SLOT, &rig.ram.regions()[2], Access::ReadWrite).expect("map");
            rig.vm.unmap(SLOT).expect("unmap");
            let code = rig.read::<u8>(map::CODE);
            rig.bytes(map::CODE, &[code]);
            done.send(()).expect("the test waits");
        });
        let answered = finished.recv_timeout(PATIENCE).is_ok();
        drop(go);
        assert!(answered, "somebody waits for a device access");
        vcpu.join().expect("vCPU")
    })
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
        answers(&rig, &rig.long_mode(0), held, || ());
    }
}

/// The end of a level-triggered interrupt, and the cycle that asks the 8259 for a vector.
pub fn interrupt_cycles(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let level = MsiMessage { data: 0xc044, ..fixed(0, 0) };
    let route = accel_api::IoapicRoute { message: level, masked: false, level: true };
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
    answers(&rig, &state, held, || ());
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
    answers(&rig, &state, held, || ());
    assert_eq!(rig.vectors()[0], 0x38);
}

/// A locked access to a device; another vCPU waits for its turn to make one of two pages.
pub fn locked_accesses(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::smp(accel, 2);
    rig.code(|a| {
        a.mov(ebx, map::MMIO as u32)?;
        a.lock().inc(dword_ptr(rbx))
    });
    rig.code_at(64, map::USER_CODE, |a| {
        a.mov(dword_ptr(cell::USER), 1)?;
        a.mov(ebx, map::DATA as u32 + 0xffe)?;
        a.lock().inc(dword_ptr(rbx))?;
        a.mov(dword_ptr(cell::USER), 2)?;
        stay(a)
    });
    let mut other = rig.long_mode(1);
    other.rip = map::USER_CODE;
    let held = hold(&rig, |e| matches!(e, Event::MmioWrite { .. }));
    std::thread::scope(|s| {
        let (kick, kicked) = mpsc::channel();
        let second = {
            let rig = &rig;
            s.spawn(move || {
                let mut runner = rig.vcpu(1, &other);
                kick.send(runner.vcpu.kicker()).expect("the test waits");
                while rig.read::<u32>(cell::USER) != 2 {
                    runner.step();
                }
            })
        };
        let started = std::time::Instant::now();
        let wait_for = |value: u32| {
            while rig.read::<u32>(cell::USER) < value && started.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
        };
        // It is on its way to its access, or through already: while the first one's lasts, it may be kept out altogether.
        wait_for(1);
        answers(&rig, &rig.long_mode(0), held, || ());
        wait_for(2);
        kicked.recv().expect("bound").kick();
        second.join().expect("vCPU 1");
    });
    assert_eq!(rig.read::<u32>(map::DATA + 0xffe), 1);
}

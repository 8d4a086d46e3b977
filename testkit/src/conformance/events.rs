//! What accelerators may do by themselves, without a thread of this process: turn writes of an event into an interrupt, and a
//! guest's stores into events. One that does not offer it says so, and calls.

use std::sync::Arc;
use std::time::Instant;

use accel_api::{Accelerator, IoEventAddress, IrqRoute};
use iced_x86::code_asm::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupts::{enabled, fixed};
use crate::fake_bus::Event;
use crate::rig::{PATIENCE, Rig, cell, map};

const GSI: u32 = 30;
const DOORBELL: u64 = map::MMIO + 0x40;
const PORT: u16 = 0xe8;

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("eventfd")
}

/// Stores of every size at a doorbell, and OUT at another, are events; others beside them, and all once they are taken back, go to
/// the bus.
pub fn ioeventfd(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let (memory, port) = (event(), event());
    let places = [(IoEventAddress::Memory(DOORBELL), &memory), (IoEventAddress::Port(PORT), &port)];
    let offered = places.map(|(at, event)| rig.vm.attach_ioeventfd(at, event).expect("attach_ioeventfd"));
    let ring = || {
        rig.code(|a| {
            a.mov(rsi, DOORBELL)?;
            a.mov(eax, 5)?;
            a.mov(byte_ptr(rsi), al)?;
            a.mov(word_ptr(rsi), ax)?;
            a.mov(dword_ptr(rsi), eax)?;
            a.mov(qword_ptr(rsi), rax)?;
            a.mov(dword_ptr(rsi + 8), eax)?; // beside it
            a.mov(edx, u32::from(PORT))?;
            a.out(dx, al)?;
            a.out(dx, eax)
        });
        rig.bus().take_log();
        let mut runner = rig.vcpu(0, &rig.long_mode(0));
        rig.check(runner.finish());
        drop(runner);
        let log = rig.bus().take_log();
        let stores = log.iter().filter(|e| matches!(e, Event::MmioWrite { gpa: DOORBELL, .. })).count();
        let outs = log.iter().filter(|e| matches!(e, Event::PioWrite { port: PORT, .. })).count();
        let beside = log.iter().filter(|e| matches!(e, Event::MmioWrite { .. })).count() - stores;
        assert_eq!(beside, 1, "{log:x?}");
        [(stores, memory.read().unwrap_or(0)), (outs, port.read().unwrap_or(0))]
    };
    let expected = |rung: bool, count: usize| if rung { (0, count as u64) } else { (count, 0) };
    assert_eq!(ring(), [expected(offered[0], 4), expected(offered[1], 2)]);
    for (at, event) in places {
        rig.vm.detach_ioeventfd(at, event).expect("detach_ioeventfd");
    }
    assert_eq!(ring(), [(4, 0), (2, 0)]);
}

/// What is written to an input's event arrives as its message, also what was written before; once it is taken back, it stays in
/// the event.
pub fn irqfd(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let (port, event) = (rig.port(), event());
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(dword_ptr(cell::USER + 4))?;
        a.cmp(dword_ptr(cell::USER), 0)?;
        a.je(top)?;
        a.cli()
    });
    let route = |vector| Some(IrqRoute { message: fixed(0, vector), masked: false, level: false });
    port.set_route(GSI, route(0x51)).expect("set_route");
    if port.attach_irqfd(GSI, &event).expect("attach_irqfd") {
        port.detach_irqfd(GSI, &event).expect("detach_irqfd");
    } else {
        event.write(1).expect("write");
        assert_eq!(event.read().expect("still there"), 1);
        return;
    }
    event.write(1).expect("write");
    std::thread::scope(|s| {
        let (rig, port, event) = (&rig, &port, &event);
        s.spawn(move || {
            let arrived = |count: usize| {
                let start = Instant::now();
                while rig.vectors().len() < count && start.elapsed() < PATIENCE {
                    std::thread::yield_now();
                }
            };
            // What comes before the state is loaded goes with the state before.
            let start = Instant::now();
            while rig.read::<u32>(cell::USER + 4) == 0 && start.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            assert!(port.attach_irqfd(GSI, event).expect("attach_irqfd"));
            arrived(1);
            event.write(1).expect("write");
            arrived(2);
            port.set_route(GSI, route(0x62)).expect("set_route");
            event.write(1).expect("write");
            arrived(3);
            port.detach_irqfd(GSI, event).expect("detach_irqfd");
            event.write(1).expect("write");
            rig.write(cell::USER, 1u32);
        });
        rig.run(&enabled(rig));
    });
    assert_eq!(rig.vectors(), [0x51, 0x51, 0x62]);
    assert_eq!(event.read().expect("still there"), 1);
}

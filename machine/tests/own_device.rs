//! An embedder's device, as the example makes it, is one like the machine's own.

use accel_api::{Probe, Quality};
use machine::{GuestEnd, Machine, MachineError, OnReset, Registry};
use state::Section;

#[allow(dead_code, unreachable_pub)] // its `main` has no caller here
#[path = "../examples/own_device.rs"]
mod own_device;

fn on_interpreter() -> Option<machine::MachineBuilder> {
    let registry = Registry::builtin();
    let descriptor = registry.list().iter().find(|descriptor| descriptor.id.0 == "interp")?;
    assert!(matches!((descriptor.probe)(), Probe::Available(it) if it.quality != Quality::Degraded));
    Some(own_device::machine().accelerator((descriptor.create)().unwrap()))
}

fn adder(machine: &Machine) -> Section {
    machine.units().get("adder").unwrap().save()
}

#[test]
fn it_runs_and_is_saved_restored_and_reset() {
    let Some(builder) = on_interpreter() else { return };
    let machine = builder.on_reset(OnReset::Restart).build().unwrap();
    let new = adder(&machine);
    machine.resume().unwrap();
    assert_eq!(machine.wait_end(), GuestEnd::DebugExit(42));
    let used = adder(&machine);
    assert_ne!(used, new);

    let other = on_interpreter().unwrap().build().unwrap();
    let unit = other.units().get("adder").unwrap();
    unit.restore(&used).unwrap();
    assert_eq!(adder(&other), used);
    let refused = unit.restore(&Section { version: 1, body: br#"{"sum":4294967295}"#.to_vec() }).unwrap_err();
    assert_eq!(refused.to_string(), "sum is 4294967295, which must be below 2^31");
    other.reset().unwrap();
    assert_eq!(adder(&other), new);
}

#[test]
fn a_device_in_anothers_place_is_refused() {
    let Some(builder) = on_interpreter() else { return };
    let taken = builder.devices(|board| {
        assert!(board.irq(2).is_none() && board.irq(16).is_none());
        let again = board.add_unit(devices::dma_page::DmaPageRegisters::new()).unwrap_err();
        assert_eq!(again.to_string(), "two devices are called dma_page; give one of them another name");
        board.add_pio(own_device::PORT, 1, devices::dma_page::DmaPageRegisters::new())
    });
    let Err(MachineError::Chipset(error)) = taken.build() else { panic!("two devices at one port") };
    assert_eq!(error.to_string(), "devices: range 0x510+0x1 overlaps the device at 0x510");
}

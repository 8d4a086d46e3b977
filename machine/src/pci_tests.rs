//! Machines on the fake backend with PCI functions: where firmware would put them, and that they stay there.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use accel_api::{IoSize, VcpuBus};
use devices::MmioDevice;
use devices::pci::{BarKind, DeviceFunction, Function, Identity, command, reg};

use crate::fake::{self, Step, out, power_off};
use crate::memory_map::{ECAM, GIB, HIGH_RAM};
use crate::{GuestEnd, MachineError, OnReset};

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x10f0,
    revision: 1,
    class: 0xff_0000,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Registers that read as their offset; a write interrupts.
#[derive(Debug, Default)]
struct Doorbell {
    function: Mutex<Option<Arc<Function>>>,
    rings: AtomicU32,
}

impl MmioDevice for Doorbell {
    fn mmio_read(&self, offset: u64, _: u8) -> u64 {
        offset
    }
    fn mmio_write(&self, _: u64, _: u8, value: u64) {
        self.rings.fetch_add(1, SeqCst);
        let function = self.function.lock().unwrap().clone().unwrap();
        if !function.notify(0) {
            function.set_intx(value != 0);
        }
    }
}

fn config_address(bus: &dyn VcpuBus, at: DeviceFunction, offset: u16) {
    let place = u32::from(at.device()) << 11 | u32::from(at.function()) << 8;
    bus.pio_write(0xcf8, IoSize::Dword, 1 << 31 | place | u32::from(offset & 0xfc));
}

fn config_read(bus: &dyn VcpuBus, at: DeviceFunction, offset: u16) -> u32 {
    config_address(bus, at, offset);
    bus.pio_read(0xcfc, IoSize::Dword)
}

fn config_write(bus: &dyn VcpuBus, at: DeviceFunction, offset: u16, value: u32) {
    config_address(bus, at, offset);
    bus.pio_write(0xcfc, IoSize::Dword, value);
}

/// The first place that the machine's own devices leave: 1 is its entropy device's.
const AT: DeviceFunction = DeviceFunction::new(2, 0);

fn ioapic_write(bus: &dyn VcpuBus, register: u64, value: u64) {
    bus.mmio_write(0xfec0_0000, IoSize::Dword, register);
    bus.mmio_write(0xfec0_0010, IoSize::Dword, value);
}

/// One function of an embedder: the guest finds it at the addresses that it was given, the first time and after a reset.
#[test]
fn functions_have_addresses_before_the_guest_runs() {
    let starts = Arc::new(AtomicU64::new(0));
    let doorbell = Arc::new(Doorbell::default());
    let machine = fake::guest({
        let starts = starts.clone();
        move |g| {
            assert_eq!(config_read(g.bus, AT, 0), 0x10f0_1af4);
            assert_eq!(
                config_read(g.bus, AT, reg::COMMAND) & 0xffff,
                3,
                "decode is on, bus mastering is not"
            );
            assert_eq!(g.bus.mmio_read(ECAM.start + 0x1_0000, IoSize::Dword), 0x10f0_1af4, "through ECAM");
            let [low, wide, high, ports] = [0, 2, 3, 4].map(|n| config_read(g.bus, AT, reg::BAR0 + 4 * n));
            assert_eq!((low, wide, high), (0xf001_5000, 0xf000_000c, 0), "the larger ones first");
            assert_eq!(ports, 0x1001);
            assert_eq!(g.bus.mmio_read(0xf000_1238, IoSize::Dword), 0x1238);
            assert_eq!(g.bus.mmio_read(0xf001_5ff8, IoSize::Qword), 0xff8);
            assert_eq!(g.bus.pio_read(0x101c, IoSize::Word), 0x1c);
            // INTA of device 2 is PIRQG: pin 22 of the IOAPIC, input 10 of the 8259 pair.
            assert_eq!(config_read(g.bus, AT, reg::INTERRUPT_LINE) & 0xffff, 0x010a);
            let lpc = DeviceFunction::new(31, 0);
            assert_eq!(config_read(g.bus, lpc, 0x68), 0x0b0a_0b0a);
            assert_eq!(g.bus.pio_read(0x4d1, IoSize::Byte), 0x0c, "levels");
            ioapic_write(g.bus, 0x10 + 2 * 22, 0x8000 | 0x61);
            g.bus.mmio_write(0xf001_5000, IoSize::Dword, 1);
            // The guest puts things elsewhere.
            config_write(g.bus, AT, reg::BAR0, 0xc000_0000);
            assert_eq!(g.bus.mmio_read(0xc000_0010, IoSize::Dword), 0x10);
            config_write(g.bus, DeviceFunction::new(0, 0), 0x60, 0);
            assert_eq!(g.bus.mmio_read(ECAM.start, IoSize::Dword), 0xffff_ffff);
            config_write(g.bus, lpc, 0x40, 0xb000);
            assert_eq!(g.bus.pio_read(0xb004, IoSize::Word), 1, "SCI_EN");
            match starts.fetch_add(1, SeqCst) {
                0 | 1 => out(g.bus, 0xcf9, 6),
                _ => {
                    config_write(g.bus, lpc, 0x40, 0x600);
                    power_off(g.bus);
                }
            }
            Step::Halt
        }
    })
    .on_reset(OnReset::Restart)
    .devices({
        let doorbell = doorbell.clone();
        move |board| {
            let slot = board.pci_slot(None)?;
            assert_eq!(slot.at(), AT);
            let function = Function::builder("doorbell", &IDENTITY)
                .bar(0, BarKind::Memory32, 0x1000)
                .bar(2, BarKind::Memory64 { prefetchable: true }, 0x1_0000)
                .bar(4, BarKind::Io, 32)
                .intx()
                .build(&slot)?;
            assert!([0, 2, 4].into_iter().all(|n| function.connect(n, doorbell.clone())));
            *doorbell.function.lock().unwrap() = Some(function.clone());
            board.add_pci(&slot, function.clone())?;
            board.add_unit(function)
        }
    })
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert_eq!((starts.load(SeqCst), doorbell.rings.load(SeqCst)), (3, 3));
    // The machine has the function, which has its window; nobody has the machine.
    let function = doorbell.function.lock().unwrap().take().unwrap();
    drop(machine);
    assert_eq!((Arc::strong_count(&function), Arc::strong_count(&doorbell)), (1, 1));
}

#[test]
fn a_bar_that_is_too_large_goes_above_the_ram() {
    let machine = fake::guest(|g| {
        assert_eq!(config_read(g.bus, AT, reg::BAR0), 4);
        assert_eq!(u64::from(config_read(g.bus, AT, reg::BAR0 + 4)) << 32, HIGH_RAM);
        power_off(g.bus);
        Step::Halt
    })
    .devices(|board| {
        let slot = board.pci_slot(Some(AT))?;
        let wide = BarKind::Memory64 { prefetchable: false };
        let function = Function::builder("large", &IDENTITY).bar(0, wide, GIB).build(&slot)?;
        assert!(function.connect(0, Arc::new(Doorbell::default())));
        board.add_pci(&slot, function.clone())?;
        assert!(board.add_pci(&slot, function).is_err(), "the place is taken");
        Ok(())
    })
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

#[test]
fn a_function_in_anothers_place_is_refused() {
    let built = fake::guest(|_| Step::Halt)
        .devices(|board| {
            let slot = board.pci_slot(Some(DeviceFunction::new(31, 0)))?;
            let function = Function::builder("second", &IDENTITY).build(&slot)?;
            board.add_pci(&slot, function)
        })
        .build();
    let Err(MachineError::Chipset(error)) = built else { panic!("two functions in one place") };
    assert_eq!(error.to_string(), "another PCI function is at 00:1f.0; put this one elsewhere");
}

/// A bus master's message arrives as the table says.
#[test]
fn messages_reach_the_accelerator() {
    let machine = fake::guest(|g| {
        config_write(g.bus, AT, reg::COMMAND, u32::from(command::MEMORY | command::BUS_MASTER));
        let table = u64::from(config_read(g.bus, AT, reg::BAR0 + 4));
        g.bus.mmio_write(table, IoSize::Qword, 0xfee0_0000);
        g.bus.mmio_write(table + 8, IoSize::Qword, 0x55);
        config_write(g.bus, AT, 0x40, 1 << 31);
        let bell = u64::from(config_read(g.bus, AT, reg::BAR0));
        g.bus.mmio_write(bell, IoSize::Dword, 1);
        power_off(g.bus);
        Step::Halt
    })
    .devices(|board| {
        let slot = board.pci_slot(None)?;
        let function =
            Function::builder("bell", &IDENTITY).bar(0, BarKind::Memory32, 0x1000).msix(1, 1).build(&slot)?;
        let bell = Arc::new(Doorbell { function: Mutex::new(Some(function.clone())), ..Doorbell::default() });
        assert!(function.connect(0, bell));
        board.add_pci(&slot, function)
    })
    .build()
    .unwrap();
    let interrupts = machine.interrupts().clone();
    let log = Arc::new(Sent::default());
    interrupts.detach();
    interrupts.attach(log.clone()).unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert_eq!(*log.0.lock().unwrap(), [(0xfee0_0000, 0x55)]);
}

/// An accelerator's port that remembers messages.
#[derive(Debug, Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl accel_api::InterruptPort for Sent {
    fn signal_msi(&self, message: accel_api::MsiMessage) -> Result<(), accel_api::AccelError> {
        self.0.lock().unwrap().push((message.address, message.data));
        Ok(())
    }
    fn set_route(
        &self,
        _: accel_api::Gsi,
        _: Option<accel_api::IrqRoute>,
    ) -> Result<(), accel_api::AccelError> {
        Ok(())
    }
    fn set_extint(&self, _: bool) {}
    fn inject_nmi(&self, _: accel_api::VcpuId) {}
}

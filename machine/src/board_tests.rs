//! A board that is no PC: one UART at a place of its own, a counter with state, no controllers, no PCI.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use accel_api::{Accelerator as _, GpFault, GuestRam, IoSize, VmSpec};
use devices::MachineControl as _;
use devices::output::OutputQueue;
use devices::{IrqFanout, PioDevice as _};
use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit};

use super::*;
use crate::boot_source::{Boot, BootSource};
use crate::clock::{TscFrequency, VmClock};
use crate::control::Control;
use crate::fake::{FakeAccelerator, Screen, Step, out};
use crate::memory_map::{MIB, MemoryMap};
use crate::timers::Timers;
use crate::vm::Parts;
use crate::{GuestEnd, Machine, OnReset, Source};

const SERIAL: u16 = 0x100;
const COUNTER: u16 = 0x200;
const END: u16 = 0x201;

#[derive(Debug)]
struct Bare {
    parts: BoardParts,
    acpi: AcpiHardware,
    programmed: Arc<AtomicU64>,
    pressed: Arc<AtomicU64>,
    devices: Arc<Devices>,
}

#[derive(Debug)]
struct Devices {
    uart: Arc<Uart>,
    counter: Arc<Counter>,
    control: Arc<Control>,
}

#[derive(Debug, Default)]
struct Counter(AtomicU64);

#[derive(Serialize, Deserialize)]
struct SavedCounter(u64);

impl Saved for SavedCounter {
    const VERSION: u32 = 1;
}

impl StateUnit for Counter {
    fn name(&self) -> &str {
        "counter"
    }
    fn save(&self) -> Section {
        Section::of(&SavedCounter(self.0.load(SeqCst)))
    }
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.0.store(section.open::<SavedCounter>()?.0, SeqCst);
        Ok(())
    }
    fn reset(&self) {
        self.0.store(0, SeqCst);
    }
}

#[derive(Debug)]
struct Bus(Arc<Devices>);

impl VcpuBus for Bus {
    fn mmio_read(&self, _: u64, _: IoSize) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, port: u16, _: IoSize) -> u32 {
        if port == COUNTER { self.0.counter.0.load(SeqCst) as u32 } else { u32::MAX }
    }
    fn pio_write(&self, port: u16, size: IoSize, value: u32) {
        match port {
            COUNTER => _ = self.0.counter.0.fetch_add(1, SeqCst),
            END if value == 0 => self.0.control.reset(),
            END => self.0.control.power_off(),
            _ => self.0.uart.pio_write(port, size as u8, value),
        }
    }
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn ack_extint(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}

impl Board for Bare {
    fn parts(&self) -> &BoardParts {
        &self.parts
    }
    fn bus(&self, _: Arc<Waiter>) -> Arc<dyn VcpuBus> {
        Arc::new(Bus(self.devices.clone()))
    }
    fn acpi(&self) -> &AcpiHardware {
        &self.acpi
    }
    fn program(&self) {
        self.programmed.fetch_add(1, SeqCst);
    }
    fn console(&self) -> &Arc<Uart> {
        &self.devices.uart
    }
    fn press_power_button(&self) {
        self.pressed.fetch_add(1, SeqCst);
    }
    fn close(&self, patience: Duration) {
        self.devices.uart.output().flush(patience);
        self.devices.uart.output().close();
    }
}

/// It runs, resets, is paused, saved, restored and ended like the PC.
#[test]
fn a_machine_has_another_board() {
    let accelerator = FakeAccelerator::running(|g| {
        let counted = g.bus.pio_read(COUNTER, IoSize::Dword);
        out(g.bus, COUNTER, 0);
        match counted {
            0 => out(g.bus, SERIAL, b'a'),
            1..=50 => return Step::Halt,
            90 => out(g.bus, END, 1),
            _ => out(g.bus, SERIAL, b'b'),
        }
        Step::Again
    });
    let map = MemoryMap::new(16 * MIB).unwrap();
    let kernel = Boot::Kernel(Source::bytes("kernel", crate::boot::tests::elf(true)));
    let boot = BootSource::open(Some(kernel), None, String::new(), map, 1, None).unwrap();
    let layout: Vec<_> = boot.regions().unwrap().iter().map(|&(gpa, len, _)| (gpa, len)).collect();
    let ram = Arc::new(GuestRam::new(&layout).unwrap());
    let tsc = TscFrequency::of_host();
    let clock = Arc::new(VmClock::new(tsc.khz));
    let timers = Timers::new(clock.clone());
    let control = Arc::new(Control::new(OnReset::Restart, OnReset::End));

    let written = Screen::default();
    let output = OutputQueue::new("bare", written.clone()).unwrap();
    let uart = Uart::new("uart", SERIAL, Arc::new(IrqFanout::new(Vec::new())), output);
    let counter = Arc::new(Counter::default());
    let units: [Arc<dyn StateUnit>; 2] = [uart.clone(), counter.clone()];
    let parts = BoardParts {
        interrupts: InterruptCell::new(control.clone()),
        memory: Arc::default(),
        doorbells: Arc::default(),
        timed: Vec::new(),
        units: Units::from_iter(units),
    };
    for (region, (.., access)) in ram.regions().iter().zip(boot.regions().unwrap()) {
        parts.memory.fix(region.clone(), access);
    }
    let (programmed, pressed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let acpi = AcpiHardware { pm1a_evt: 0x300, ..crate::chipset::ACPI_HARDWARE };
    let devices = Arc::new(Devices { uart, counter: counter.clone(), control: control.clone() });
    let board = Bare { parts, acpi, programmed: programmed.clone(), pressed: pressed.clone(), devices };
    board.program();
    let states = boot.load(&ram, board.acpi()).unwrap();
    let model = Arc::new(
        crate::builder::cpu_model("x86-64-v2", 1, tsc.khz, accelerator.id(), accelerator.caps()).unwrap(),
    );
    let vm = accelerator.create_vm(&VmSpec { model: model.clone(), ram: ram.clone(), vcpus: 1 }).unwrap();
    let (name, accel, board) = ("bare".to_owned(), accelerator.id(), Box::new(board));
    let machine = Machine::assemble(Parts {
        name,
        vm,
        accel,
        model,
        board,
        timers,
        clock,
        control,
        ram,
        boot,
        tsc,
        states,
        balloon: None,
    })
    .unwrap();

    machine.resume().unwrap();
    while counter.0.load(SeqCst) < 2 {
        std::thread::yield_now();
    }
    machine.reset().unwrap();
    assert_eq!((machine.resets(), programmed.load(SeqCst)), (1, 2));
    machine.press_power_button();
    assert_eq!(pressed.load(SeqCst), 1);
    while counter.0.load(SeqCst) < 2 {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    let mut sections = machine.units().save();
    sections.insert("counter".into(), Section::of(&SavedCounter(88)));
    machine.units().restore(&sections).unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert_eq!(written.text(), "aabb");
}

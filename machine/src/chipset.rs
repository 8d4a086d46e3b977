//! The devices of the PC and the wires between them.
//!
//! ```text
//! UART, PIT, RTC, i8042, PM ──┬─▶ 8259 pair ──INTR─▶ InterruptCell ─▶ LINT0 of vCPU 0
//!                             └─▶ IOAPIC ────MSI───▶ InterruptCell ─▶ local APICs
//! ```
//!
//! Every ISA line reaches both controllers, as on the board: line n is pin n of the IOAPIC, but for line 0, which is
//! pin 2 (the MADT says so). Which of the two is listened to is up to the guest. PCI's interrupt wires are pins 16 to 23, and
//! drive the inputs of the 8259 pair that the LPC bridge routes them to.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use accel_api::{GuestRam, VcpuBus};
use devices::acpi_pm::{
    ACPI_PM_PORT, AcpiPm, PM_TIMER_OFFSET, PM1_CONTROL_OFFSET, RESET_PORT, RESET_VALUE, ResetControl,
    SCI_IRQ, SLP_TYP_S5,
};
use devices::bus::{BusError, MmioBus, PioBus};
use devices::debug_port::{DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT, DebugConsole, DebugExit};
use devices::dma_page::DmaPageRegisters;
use devices::i8042::{I8042, I8042_COMMAND_PORT, I8042_DATA_PORT, I8042_IRQ, PORT_92, Port92};
use devices::ioapic::{IOAPIC_BASE, IOAPIC_LEN, Ioapic, IoapicVersion};
use devices::output::{OutputQueue, OutputUnit};
use devices::pic::Pic;
use devices::pit::{PIT_IRQ, PIT_PORT, PORT_61, Pit};
use devices::rtc::{CmosConfig, RTC_CENTURY, RTC_IRQ, RTC_PORT, Rtc};
use devices::shared_line::SharedIrqLine;
use devices::uart::{COM1_IRQ, COM1_PORT, UART_PORTS, Uart};
use devices::waiting::Waiter;
use devices::{IrqFanout, TimedDevice};
use state::{StateUnit, Units};

use crate::acpi::AcpiHardware;
use crate::board::{Board, BoardParts};
use crate::bus::{LogLimit, MachineBus};
use crate::clock::VmClock;
use crate::control::{Control, GuestEnd};
use crate::host;
use crate::interrupts::{InterruptCell, IntrWire};
use crate::memory_map::MemoryMap;
use crate::pci::{PciBoard, PciParts};
use crate::ram_unit::RamUnit;
use crate::timers::Timers;

/// Where the devices answer, for the ACPI tables.
pub(crate) const ACPI_HARDWARE: AcpiHardware = AcpiHardware {
    pm1a_evt: ACPI_PM_PORT,
    pm1a_cnt: ACPI_PM_PORT + PM1_CONTROL_OFFSET,
    pm_timer: ACPI_PM_PORT + PM_TIMER_OFFSET,
    reset: RESET_PORT,
    reset_value: RESET_VALUE,
    sci: SCI_IRQ,
    century: RTC_CENTURY,
    s5: SLP_TYP_S5,
    ioapic: IOAPIC_BASE as u32,
};

/// Ports of the 8259 pair: master, slave, edge/level control.
const PIC_PORTS: [(u16, u16); 3] = [(0x20, 2), (0xa0, 2), (0x4d0, 2)];
/// Port of the POST code.
const POST_PORT: u16 = 0x80;

/// ISA interrupts.
const ISA_LINES: u8 = 16;

/// Where a byte stream of the guest goes.
pub type Sink = Box<dyn Write + Send>;

/// What the chipset is wired to.
pub(crate) struct ChipsetSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) map: &'a MemoryMap,
    pub(crate) vcpus: u32,
    pub(crate) clock: Arc<VmClock>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) control: Arc<Control>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) console: Sink,
    pub(crate) debug_console: Option<Sink>,
}

/// The devices that somebody outside the buses needs.
#[derive(Debug)]
pub(crate) struct Chipset {
    pub(crate) bus: Arc<MachineBus>,
    pub(crate) parts: BoardParts,
    pub(crate) uart: Arc<Uart>,
    pub(crate) pm: Arc<AcpiPm>,
    /// ISA interrupts, which any number of devices may share.
    pub(crate) lines: Vec<Arc<SharedIrqLine>>,
    pub(crate) pci: PciBoard,
    pub(crate) debug_output: Option<Arc<OutputQueue>>,
}

/// Why the chipset could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// Two devices at one address.
    #[error("devices: {0}")]
    Bus(#[from] BusError),
    /// A PCI function that cannot be, or not there.
    #[error(transparent)]
    Pci(#[from] devices::pci::PciError),
    /// A virtio device that cannot be.
    #[error(transparent)]
    Virtio(#[from] devices::virtio::VirtioError),
    /// Two parts of one name.
    #[error("two devices are called {0}; give one of them another name")]
    UnitName(String),
    /// The host has no thread for the console.
    #[error("no thread for the console: {0}")]
    Console(#[source] io::Error),
}

impl Chipset {
    pub(crate) fn build(spec: ChipsetSpec<'_>) -> Result<Self, ChipsetError> {
        let ChipsetSpec { name, map, vcpus, clock, timers, control, ram, console, debug_console } = spec;
        let interrupts = InterruptCell::new(control.clone());
        let pic = Pic::new(Arc::new(IntrWire(interrupts.clone())));
        let ioapic = Ioapic::new(IoapicVersion::V20, interrupts.clone());
        // Inputs of the 8259 pair: an ISA line drives one, PCI's wires may drive the same.
        let pic_inputs: Vec<_> = (0..ISA_LINES).map(|irq| SharedIrqLine::new(pic.line(irq))).collect();
        let lines: Vec<_> = (0u8..)
            .zip(&pic_inputs)
            .map(|(irq, input)| {
                let pin = if irq == 0 { 2 } else { irq };
                SharedIrqLine::new(Arc::new(IrqFanout::new(vec![input.owner(), ioapic.line(pin)])))
            })
            .collect();
        let line = |irq: u8| lines[usize::from(irq)].owner();

        let sink = WatchedSink { sink: console, control: control.clone() };
        let output =
            OutputQueue::new(host::thread_name("console", name), sink).map_err(ChipsetError::Console)?;
        let uart = Uart::new("uart0", COM1_PORT, line(COM1_IRQ), output);
        let pit = Pit::new(clock.clone(), line(PIT_IRQ), timers.clone());
        let cmos = CmosConfig {
            ram_below_4g: map.low_end(),
            ram_above_4g: map.size() - map.low_end(),
            cpus: vcpus as u8,
        };
        // A host whose clock stands before 1970 gets a guest that starts there.
        let utc = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let rtc = Rtc::new(&cmos, utc, clock.clone(), line(RTC_IRQ), timers.clone());
        let pm = AcpiPm::new(clock.clone(), line(SCI_IRQ), timers.clone(), control.clone());
        let i8042 = I8042::new(line(I8042_IRQ), control.clone());
        let (dma_page, port_92) = (DmaPageRegisters::new(), Port92::new(control.clone()));
        let reset_control = ResetControl::new(control.clone());
        let console = OutputUnit::new("console", uart.output().clone());
        let (pio, mmio) = (Arc::new(PioBus::new()), Arc::new(MmioBus::new()));
        let memory = ram.regions().iter().map(|region| region.gpa()..region.gpa() + region.size()).collect();
        let pci = PciBoard::build(PciParts {
            map,
            memory,
            mmio: &mmio,
            pio: &pio,
            pic: &pic,
            pic_inputs: &pic_inputs,
            ioapic: &ioapic,
            interrupts: &interrupts,
            pm: pm.clone(),
        })?;
        let [pci_root, host_bridge, lpc] = pci.units.clone();
        let units: [Arc<dyn StateUnit>; 18] = [
            clock.clone(),
            timers,
            RamUnit::new(ram.clone()),
            interrupts.clone(),
            pic.clone(),
            ioapic.clone(),
            pci_root,
            host_bridge,
            lpc,
            pit.clone(),
            rtc.clone(),
            pm.clone(),
            i8042.clone(),
            dma_page.clone(),
            port_92.clone(),
            reset_control.clone(),
            uart.clone(),
            console,
        ];
        let mut units = Units::from_iter(units);

        for (port, len) in PIC_PORTS {
            pio.add(port, len, pic.clone())?;
        }
        pio.add(PIT_PORT, 4, pit.clone())?
            .add(PORT_61, 1, pit.clone())?
            .add(I8042_DATA_PORT, 1, i8042.clone())?
            .add(I8042_COMMAND_PORT, 1, i8042)?
            .add(RTC_PORT, 2, rtc.clone())?
            .add(POST_PORT, 1, dma_page)?
            .add(PORT_92, 1, port_92)?
            .add(DEBUG_EXIT_PORT, 4, DebugExit::new(control))?
            .add(COM1_PORT, UART_PORTS, uart.clone())?
            .add(RESET_PORT, 1, reset_control)?;
        let debug_output = match debug_console {
            None => None,
            Some(sink) => {
                let queue = OutputQueue::new(host::thread_name("debugcon", name), sink)
                    .map_err(ChipsetError::Console)?;
                pio.add(DEBUG_CONSOLE_PORT, 1, DebugConsole::new(queue.clone()))?;
                units.add(OutputUnit::new("debug_console", queue.clone()));
                Some(queue)
            }
        };
        mmio.add(IOAPIC_BASE, IOAPIC_LEN, ioapic.clone())?;

        let bus = MachineBus { pio, mmio, pic, ioapic, log: LogLimit::new(clock) };
        let timed: Vec<Arc<dyn TimedDevice>> = vec![pit, rtc, pm.clone()];
        let bus = Arc::new(bus);
        let (memory, doorbells) = Default::default();
        let parts = BoardParts { interrupts, memory, doorbells, timed, units };
        Ok(Self { bus, parts, uart, pm, lines, pci, debug_output })
    }
}

impl Board for Chipset {
    fn parts(&self) -> &BoardParts {
        &self.parts
    }

    fn bus(&self, waiter: Arc<Waiter>) -> Arc<dyn VcpuBus> {
        self.bus.for_vcpu(waiter)
    }

    fn acpi(&self) -> &AcpiHardware {
        &ACPI_HARDWARE
    }

    fn program(&self) {
        self.pci.program();
    }

    fn console(&self) -> &Arc<Uart> {
        &self.uart
    }

    fn press_power_button(&self) {
        self.pm.press_power_button();
    }

    fn close(&self, patience: Duration) {
        self.uart.close_input();
        let output = self.uart.output();
        output.flush(patience);
        output.close();
        if let Some(output) = &self.debug_output {
            output.flush(patience);
            output.close();
        }
    }
}

/// The console's sink; when it fails, the machine ends instead of running on unseen.
struct WatchedSink {
    sink: Sink,
    control: Arc<Control>,
}

impl WatchedSink {
    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && !matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        {
            self.control.post(GuestEnd::ConsoleLost { reason: error.to_string() });
        }
        result
    }
}

impl Write for WatchedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.sink.write(bytes);
        self.watch(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.sink.flush();
        self.watch(result)
    }
}

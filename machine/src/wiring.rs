//! How an embedder adds devices of its own to a machine.

use std::sync::Arc;

use accel_api::GuestRam;
use devices::pci::{DeviceFunction, PciFunction, PciSlot};
use devices::virtio::{VirtioDevice, VirtioPci};
use devices::{Clock, DoorbellHost, IrqLine, MachineControl, MmioDevice, PioDevice, TimedDevice, TimerHost};
use state::StateUnit;

use crate::chipset::{Chipset, ChipsetError};
use crate::clock::VmClock;
use crate::control::Control;
use crate::interrupts::{MsiVector, NoVector};
use crate::memory_slots::MemoryWindow;
use crate::timers::Timers;

/// The board that a device is put on: what [`MachineBuilder::devices`](crate::MachineBuilder::devices) is given, when the
/// machine's own devices are there and nothing runs yet.
#[derive(Debug)]
pub struct Wiring<'a> {
    pub(crate) chipset: &'a mut Chipset,
    pub(crate) clock: &'a Arc<VmClock>,
    pub(crate) timers: &'a Arc<Timers>,
    pub(crate) control: &'a Arc<Control>,
    pub(crate) ram: &'a Arc<GuestRam>,
}

impl Wiring<'_> {
    /// Puts `device` at ports `start .. start + len`.
    ///
    /// # Errors
    /// Another device is there.
    pub fn add_pio(&self, start: u16, len: u16, device: Arc<dyn PioDevice>) -> Result<(), ChipsetError> {
        self.chipset.bus.pio.add(start, len, device)?;
        Ok(())
    }

    /// Puts `device` at guest-physical `start .. start + len`, where there is no RAM.
    ///
    /// # Errors
    /// Another device or memory is there.
    pub fn add_mmio(&self, start: u64, len: u64, device: Arc<dyn MmioDevice>) -> Result<(), ChipsetError> {
        let overlaps = |gpa: u64, bytes: u64| gpa < start.saturating_add(len) && start < gpa + bytes;
        if let Some(region) = self.ram.regions().iter().find(|region| overlaps(region.gpa(), region.size())) {
            return Err(devices::bus::BusError::Overlap { start, len, other: region.gpa() }.into());
        }
        self.chipset.bus.mmio.add(start, len, device)?;
        Ok(())
    }

    /// A share of ISA interrupt `irq`, 0 to 15, which reaches the 8259 pair and the IOAPIC; it is asserted while any of its
    /// owners asserts it. `None`: there is no such line (2 is the cascade of the 8259s).
    pub fn irq(&self, irq: u8) -> Option<Arc<dyn IrqLine>> {
        (irq != 2).then(|| self.chipset.lines.get(usize::from(irq)).map(|line| line.owner())).flatten()
    }

    /// A place on the PCI bus, for [`Function::builder`](devices::pci::Function::builder): `at`, or the first free one. Its BARs
    /// get addresses before the guest starts, and after each reset.
    ///
    /// # Errors
    /// All places are taken.
    pub fn pci_slot(&self, at: Option<DeviceFunction>) -> Result<PciSlot, ChipsetError> {
        self.chipset.pci.slot(at)
    }

    /// Puts `function` on the PCI bus, in the place that it was built for.
    ///
    /// # Errors
    /// Another one is there.
    pub fn add_pci(&self, slot: &PciSlot, function: Arc<dyn PciFunction>) -> Result<(), ChipsetError> {
        Ok(self.chipset.pci.root.add(slot.at(), function)?)
    }

    /// An interrupt input for messages, as a vector of MSI-X is.
    ///
    /// # Errors
    /// There are no more.
    pub fn vector(&self) -> Result<MsiVector, NoVector> {
        self.chipset.parts.interrupts.vector()
    }

    /// To have the accelerator ring doorbells.
    pub fn doorbells(&self) -> Arc<dyn DoorbellHost> {
        self.chipset.parts.doorbells.clone()
    }

    /// Puts a virtio device on the PCI bus, in the first free place, and makes it a part of what is saved, restored and reset, as
    /// `name`.
    ///
    /// # Errors
    /// There is one of that name, no place is free, or its queues cannot be.
    pub fn add_virtio(
        &mut self,
        name: &str,
        device: Arc<dyn VirtioDevice>,
    ) -> Result<Arc<VirtioPci>, ChipsetError> {
        let slot = self.pci_slot(None)?;
        let device = VirtioPci::new(name, device, &slot, self.ram.clone())?;
        self.add_pci(&slot, device.clone())?;
        self.add_unit(device.clone())?;
        Ok(device)
    }

    /// Has `device` called at its deadlines.
    pub fn add_timed(&mut self, device: Arc<dyn TimedDevice>) {
        self.chipset.parts.timed.push(device);
    }

    /// Makes `unit` a part of what is saved, restored and reset, behind those that are there.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn add_unit(&mut self, unit: Arc<dyn StateUnit>) -> Result<(), ChipsetError> {
        let name = unit.name().to_owned();
        if self.chipset.parts.units.add(unit) { Ok(()) } else { Err(ChipsetError::UnitName(name)) }
    }

    /// VM time.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// To be told when a deadline has moved.
    pub fn timers(&self) -> Arc<dyn TimerHost> {
        self.timers.clone()
    }

    /// Power and reset.
    pub fn control(&self) -> Arc<dyn MachineControl> {
        self.control.clone()
    }

    /// A window through which the guest sees memory of a device ([`GuestRam::allocate`]), nothing at first. The device moves it
    /// while vCPUs run.
    pub fn memory_window(&self) -> MemoryWindow {
        self.chipset.parts.memory.add()
    }

    /// The guest's memory: checked accesses, whose writes are recorded ([`GuestRam::memory`]).
    pub fn memory(&self) -> &Arc<GuestRam> {
        self.ram
    }
}

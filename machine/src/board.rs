//! What a machine needs of the board that its vCPUs and memory are put on.
//!
//! The only board today is the PC's [`Chipset`](crate::chipset::Chipset). Another one (without PCI, with another interrupt
//! controller) implements [`Board`]; vCPU threads, life cycle, saving and switching stay as they are.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use accel_api::{AccelVm, VcpuBus};
use devices::TimedDevice;
use devices::uart::Uart;
use devices::waiting::Waiter;
use state::Units;

use crate::acpi::AcpiHardware;
use crate::interrupts::InterruptCell;
use crate::io_events::IoEvents;
use crate::memory_slots::MemorySlots;
use crate::vm::MachineError;

/// What every board has, whatever its devices are.
#[derive(Debug)]
pub(crate) struct BoardParts {
    /// Where interrupts leave for the accelerator.
    pub(crate) interrupts: Arc<InterruptCell>,
    /// What is mapped where.
    pub(crate) memory: Arc<MemorySlots>,
    /// Stores that the accelerator turns into events.
    pub(crate) doorbells: Arc<IoEvents>,
    /// Devices with deadlines.
    pub(crate) timed: Vec<Arc<dyn TimedDevice>>,
    /// All that have state, in the order in which they are restored: controllers before the devices that drive them.
    pub(crate) units: Units,
}

impl BoardParts {
    /// Connects them with `vm`.
    ///
    /// # Errors
    /// The accelerator cannot map the memory, or has no place for the interrupts.
    pub(crate) fn attach(&self, vm: &Arc<dyn AccelVm>) -> Result<(), MachineError> {
        self.memory.attach(vm.clone())?;
        self.doorbells.attach(vm.clone());
        self.interrupts.attach(vm.interrupts())?;
        Ok(())
    }

    /// Connects them with `vm` again, which they were connected with before another one failed.
    ///
    /// # Errors
    /// The accelerator has no place for the interrupts.
    pub(crate) fn put_back(&self, vm: &Arc<dyn AccelVm>) -> Result<(), MachineError> {
        self.memory.put_back(vm.clone());
        self.doorbells.attach(vm.clone());
        Ok(self.interrupts.attach(vm.interrupts())?)
    }

    /// Lets go of the accelerator: it may hold the bus, which holds the devices, which hold these.
    pub(crate) fn detach(&self) {
        self.interrupts.detach();
        self.memory.detach();
        self.doorbells.detach();
    }
}

/// The devices of a kind of machine and the wires between them.
pub(crate) trait Board: Send + Sync + Debug {
    /// What every board has.
    fn parts(&self) -> &BoardParts;

    /// The devices as one vCPU sees them. A device whose host side does not keep up has the vCPU wait at `waiter`.
    fn bus(&self, waiter: Arc<Waiter>) -> Arc<dyn VcpuBus>;

    /// Where its ACPI hardware is, for the tables.
    fn acpi(&self) -> &AcpiHardware;

    /// Does what a machine's firmware does when it starts, at the first time and after each reset: the devices have their
    /// reset state then.
    fn program(&self);

    /// The serial port that is the console.
    fn console(&self) -> &Arc<Uart>;

    /// Presses the power button.
    fn press_power_button(&self);

    /// Writes out what is queued for the host, waiting at most `patience`, then frees every vCPU that waits for it.
    fn close(&self, patience: Duration);
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;

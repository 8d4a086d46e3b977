//! The chipset of the PC machine model.
//!
//! 1. **Devices know nothing of accelerators.** Everything a device needs from outside is one of the small
//!    traits of [`traits`]: an interrupt line, a sink for MSIs, a clock, a wake-up for the timer thread, the
//!    machine's power control. The `machine` crate implements and wires them.
//! 2. **Devices are shared.** A device is an `Arc`, its methods take `&self`, and several vCPU threads, the timer
//!    thread and the control thread call it at once. State sits behind one mutex a device; the order of locks and
//!    what may be called with a lock held is fixed in [`traits`].
//! 3. **Time is derived, not counted.** A counter is a function of [`Clock::now`] and the moment it was loaded, in
//!    integer arithmetic from the VM's start, so that it neither drifts nor depends on when a thread was woken.
//!    Only interrupts need a thread: a [`TimedDevice`] says when it next wants to be called.
//! 4. **State is plain data.** Every device that has any is a [`state::StateUnit`]; what its sections hold is in the folder
//!    `saved`, apart from the types that the devices run on.
//! 5. **Guests are hostile.** No access panics; what the hardware would ignore is ignored, reads of nothing give
//!    all ones.

pub mod acpi_pm;
pub mod bus;
pub mod debug_port;
pub mod dma_page;
pub mod i8042;
pub mod ioapic;
pub mod output;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pvpanic;
pub mod rtc;
mod saved;
pub mod shared_line;
pub mod traits;
pub mod uart;
pub mod virtio;
pub mod waiting;
pub mod watchdog;

#[cfg(test)]
mod testing;
mod util;

pub use traits::{
    Clock, DoorbellHost, IoapicHost, IrqFanout, IrqLine, MachineControl, MmioDevice, MsiSender, PioDevice,
    TimedDevice, TimerHost,
};

//! What devices ask of the machine, and what they offer it.
//!
//! # Locks
//!
//! A device calls out of itself in two ways.
//!
//! * **With its lock held**: [`IrqLine::set`] and every method of [`IoapicHost`]. Two threads that change one line
//!   must not have their changes arrive in the wrong order, and a snapshot that holds a device's lock must find
//!   the interrupt either in the device or behind it, never in between.
//! * **With no lock held**: [`TimerHost::rearm`], [`MachineControl`] and the sinks of [`crate::output`]. Their
//!   order does not matter, and the implementer may hold its own lock while it calls back
//!   [`TimedDevice::deadline`].
//!
//! Hence the order of locks, each may be taken while those to its left are held:
//!
//! > UART, PIT, RTC, i8042, ACPI PM → PIC → IOAPIC → the implementer's own (local APIC, INTR wire, …)
//!
//! An implementer of `IrqLine` or `IoapicHost` must not call a device that stands to its left, nor the one that is
//! calling. In particular a local APIC must not call [`crate::ioapic::Ioapic::eoi`] or [`crate::pic::Pic::ack`]
//! with its own lock held, since both may deliver to that same local APIC.
//!
//! # Restore
//!
//! The clock first, then PIC and IOAPIC, then the devices that drive them: `restore` drives the device's outputs
//! to the saved level, and a controller that already holds this level sees no edge.

use std::fmt::Debug;
use std::sync::Arc;

use accel_api::{IoEventAddress, IrqRoute, MsiMessage};
use vmm_sys_util::eventfd::EventFd;

use crate::waiting::Waiter;

/// A wire into an interrupt controller (or the INTR wire to the processors).
///
/// `true` is *asserted*, whatever the electrical polarity. Called with the caller's lock held; see the
/// [module docs](self). Setting the level that is already set is allowed and has no effect.
pub trait IrqLine: Send + Sync + Debug {
    /// Drives the wire.
    fn set(&self, level: bool);
}

/// One wire soldered to several inputs: ISA lines reach both the 8259 pair and the IOAPIC.
#[derive(Debug)]
pub struct IrqFanout(Vec<Arc<dyn IrqLine>>);

impl IrqFanout {
    /// Joins `targets`; they are driven in this order.
    pub fn new(targets: Vec<Arc<dyn IrqLine>>) -> Self {
        Self(targets)
    }
}

impl IrqLine for IrqFanout {
    fn set(&self, level: bool) {
        for target in &self.0 {
            target.set(level);
        }
    }
}

/// Where interrupt messages go, of the IOAPIC and of functions with MSI-X. Called with the sender's lock held; see the
/// [module docs](self).
pub trait MsiSender: Send + Sync + Debug {
    /// Delivers one (Intel SDM vol. 3, 11.11).
    fn send(&self, message: MsiMessage);
}

/// The far side of the IOAPIC. Called with the IOAPIC's lock held; see the [module docs](self).
pub trait IoapicHost: MsiSender {
    /// A pin's route changed, or was set by `restore` or `reset`. Never called for a write that leaves the route
    /// as it was. A host whose local APICs see every EOI themselves may ignore it.
    fn route_changed(&self, pin: u8, route: IrqRoute) {
        let _ = (pin, route);
    }
}

/// Where devices have the accelerator ring their doorbells: registers whose stores are an event and nothing else.
pub trait DoorbellHost: Send + Sync + Debug {
    /// Has the guest's stores that begin at `at` write to `event`, without a call of the device where the accelerator offers that;
    /// where it does not, the device is called, and rings by itself. One that is there goes.
    fn watch(&self, at: IoEventAddress, event: &Arc<EventFd>);
    /// Takes it back.
    fn forget(&self, at: IoEventAddress);
}

/// VM time: nanoseconds since the VM was started, monotonic, standing still while the VM is paused.
pub trait Clock: Send + Sync + Debug {
    /// The present moment.
    fn now(&self) -> u64;
}

/// A device that wants to be called at a given VM time.
pub trait TimedDevice: Send + Sync + Debug {
    /// When [`expire`](Self::expire) is next wanted, in ns of VM time; may lie in the past. `None`: not at all.
    fn deadline(&self) -> Option<u64>;

    /// Does what is due at `now`. Calls that come early, late or twice are harmless. One call need not catch up
    /// with everything: the caller asks for the deadline again.
    fn expire(&self, now: u64);
}

/// The thread that waits for the earliest deadline of all timed devices.
pub trait TimerHost: Send + Sync + Debug {
    /// Some device's deadline may have moved earlier: look at all of them again. Called with no device lock held.
    fn rearm(&self);
}

/// Power and reset, as the chipset asks for them. Requests are posted: none of these may wait for vCPUs.
/// Called with no device lock held, on the vCPU thread that made the access, or the timers' thread.
pub trait MachineControl: Send + Sync + Debug {
    /// The guest entered ACPI S5.
    fn power_off(&self);
    /// The guest asked for a platform reset.
    fn reset(&self);
    /// The guest wrote `value` to the debug-exit port.
    fn debug_exit(&self, value: u8);
    /// The guest's kernel has panicked; whether a crash kernel of its own takes over.
    fn panicked(&self, crash_kernel: bool);
    /// The guest has not reset the watchdog's timer in time.
    fn watchdog(&self);
}

/// A device on the port I/O bus. `port` is absolute, `size` is 1, 2 or 4 and the access lies wholly within the
/// range the device was registered for. Unused ports read all ones.
pub trait PioDevice: Send + Sync + Debug {
    /// Reads `size` bytes, zero-extended.
    fn pio_read(&self, port: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value`. Never waits for the host.
    fn pio_write(&self, port: u16, size: u8, value: u32);
    /// Called behind each write, with no lock held: a device whose host side does not keep up has the vCPU wait here, at
    /// `waiter`, where a kick ends the wait.
    fn throttle(&self, waiter: &Arc<Waiter>) {
        let _ = waiter;
    }
}

/// A device on the memory bus. `offset` counts from the start of the registered range, `size` is 1, 2, 4 or 8 and
/// the access lies wholly within the range. Unused offsets read all ones.
pub trait MmioDevice: Send + Sync + Debug {
    /// Reads `size` bytes, zero-extended.
    fn mmio_read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`. Never waits for the host.
    fn mmio_write(&self, offset: u64, size: u8, value: u64);
    /// As [`PioDevice::throttle`].
    fn throttle(&self, waiter: &Arc<Waiter>) {
        let _ = waiter;
    }
}

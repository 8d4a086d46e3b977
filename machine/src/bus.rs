//! The devices as a vCPU sees them: port and memory accesses go to the devices, interrupt acknowledge and EOI to the
//! controllers.
//!
//! What no device answers reads all ones and swallows writes, as on a PC; it is logged at debug level, a few times a
//! second at most, since a guest may do it in a loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel_api::{GpFault, IoSize, VcpuBus};
use devices::Clock;
use devices::bus::{MmioBus, PioBus};
use devices::ioapic::Ioapic;
use devices::pic::Pic;
use devices::waiting::Waiter;

use crate::clock::VmClock;

/// Log lines a second.
const LINES: u64 = 20;
const SECOND: u64 = 1_000_000_000;

/// The devices of one machine.
#[derive(Debug)]
pub(crate) struct MachineBus {
    pub(crate) pio: Arc<PioBus>,
    pub(crate) mmio: Arc<MmioBus>,
    pub(crate) pic: Arc<Pic>,
    pub(crate) ioapic: Arc<Ioapic>,
    pub(crate) log: LogLimit,
}

impl MachineBus {
    /// As one vCPU sees them. A device whose host side does not keep up has the vCPU wait at `waiter`.
    pub(crate) fn for_vcpu(self: &Arc<Self>, waiter: Arc<Waiter>) -> Arc<dyn VcpuBus> {
        Arc::new(View { devices: self.clone(), waiter })
    }
}

#[derive(Debug)]
struct View {
    devices: Arc<MachineBus>,
    waiter: Arc<Waiter>,
}

impl VcpuBus for View {
    fn mmio_read(&self, gpa: u64, size: IoSize) -> u64 {
        let MachineBus { mmio, log, .. } = &*self.devices;
        if log.wanted() && !mmio.contains(gpa) && log.take() {
            tracing::debug!("read of {} bytes at {gpa:#x}, where nothing is", size.bytes());
        }
        mmio.read(gpa, size as u8)
    }

    fn mmio_write(&self, gpa: u64, size: IoSize, value: u64) {
        let MachineBus { mmio, log, .. } = &*self.devices;
        if log.wanted() && !mmio.contains(gpa) && log.take() {
            tracing::debug!("write of {value:#x} ({} bytes) at {gpa:#x}, where nothing is", size.bytes());
        }
        mmio.write(gpa, size as u8, value, &self.waiter);
    }

    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        let MachineBus { pio, log, .. } = &*self.devices;
        if log.wanted() && !pio.contains(port) && log.take() {
            tracing::debug!("IN of {} bytes from port {port:#x}, where nothing is", size.bytes());
        }
        pio.read(port, pio_size(size))
    }

    fn pio_write(&self, port: u16, size: IoSize, value: u32) {
        let MachineBus { pio, log, .. } = &*self.devices;
        if log.wanted() && !pio.contains(port) && log.take() {
            tracing::debug!("OUT of {value:#x} ({} bytes) to port {port:#x}, where nothing is", size.bytes());
        }
        pio.write(port, pio_size(size), value, &self.waiter);
    }

    fn msr_read(&self, index: u32) -> Result<u64, GpFault> {
        if self.devices.log.wanted() && self.devices.log.take() {
            tracing::debug!("RDMSR of unknown {index:#x}");
        }
        Err(GpFault)
    }

    fn msr_write(&self, index: u32, value: u64) -> Result<(), GpFault> {
        if self.devices.log.wanted() && self.devices.log.take() {
            tracing::debug!("WRMSR of {value:#x} to unknown {index:#x}");
        }
        Err(GpFault)
    }

    fn ack_extint(&self) -> Option<u8> {
        self.devices.pic.ack()
    }

    fn eoi(&self, vector: u8) {
        self.devices.ioapic.eoi(vector);
    }
}

/// Ports are at most 4 bytes wide.
fn pio_size(size: IoSize) -> u8 {
    size.min(IoSize::Dword) as u8
}

/// Lets [`LINES`] lines through in each second of VM time.
#[derive(Debug)]
pub(crate) struct LogLimit {
    clock: Arc<VmClock>,
    second: AtomicU64,
    used: AtomicU64,
}

impl LogLimit {
    pub(crate) fn new(clock: Arc<VmClock>) -> Self {
        Self { clock, second: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    /// Somebody listens to such lines.
    fn wanted(&self) -> bool {
        tracing::enabled!(tracing::Level::DEBUG)
    }

    /// Takes one line from the present second's share. Approximate when threads race at the turn of a second.
    fn take(&self) -> bool {
        let second = self.clock.now() / SECOND;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.used.store(0, Ordering::Relaxed);
        }
        self.used.fetch_add(1, Ordering::Relaxed) < LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_limited() {
        let limit = LogLimit::new(Arc::new(VmClock::new(1)));
        assert_eq!((0..1000).filter(|_| limit.take()).count() as u64, LINES);
        limit.second.store(7, Ordering::Relaxed);
        assert!(limit.take(), "a new second has a new share");
    }
}

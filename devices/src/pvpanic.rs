//! pvpanic on PCI, 1b36:0011 (QEMU, `docs/specs/pvpanic`): how a kernel that panics says so.
//!
//! One byte behind BAR 0. It reads as the events that the device knows; a write tells that they have happened. Nothing is kept.

use std::sync::Arc;

use crate::pci::{BarKind, Function, Identity, PciError, PciSlot};
use crate::traits::{MachineControl, MmioDevice};

/// The kernel has panicked.
const PANICKED: u8 = 1 << 0;
/// It has, and a crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// Its byte.
#[derive(Debug)]
struct Events(Arc<dyn MachineControl>);

impl MmioDevice for Events {
    fn mmio_read(&self, offset: u64, _: u8) -> u64 {
        if offset == 0 { (PANICKED | CRASH_LOADED).into() } else { 0 }
    }

    fn mmio_write(&self, offset: u64, _: u8, value: u64) {
        let events = if offset == 0 { value as u8 } else { 0 };
        if events & (PANICKED | CRASH_LOADED) != 0 {
            self.0.panicked(events & CRASH_LOADED != 0);
        }
    }
}

/// The device, for the place `slot`, called `pvpanic` among the state units.
///
/// # Errors
/// None that a caller can cause.
pub fn new(slot: &PciSlot, control: Arc<dyn MachineControl>) -> Result<Arc<Function>, PciError> {
    let identity = Identity {
        vendor: 0x1b36,
        device: 0x0011,
        revision: 1,
        // A system peripheral of no other kind.
        class: 0x08_8000,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    };
    let function = Function::builder("pvpanic", &identity).bar(0, BarKind::Memory32, 16).build(slot)?;
    function.connect(0, Arc::new(Events(control)));
    Ok(function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Board;
    use crate::pci::{DeviceFunction, command, reg};
    use crate::testing::{Request, TestControl};

    #[test]
    fn a_kernel_that_panics_is_heard() {
        const BAR: u64 = 0xc000_0000;
        let (board, control) = (Board::new(), Arc::new(TestControl::default()));
        let at = DeviceFunction::new(3, 0);
        let function = new(&board.slot(at), control.clone()).unwrap();
        board.root.add(at, function.clone()).unwrap();
        assert_eq!(function.config_read(0, 4), 0x0011_1b36);
        function.config_write(reg::BAR0, 4, BAR as u32);
        function.config_write(reg::COMMAND, 2, command::MEMORY.into());
        assert_eq!((board.mmio.read(BAR, 1), board.mmio.read(BAR + 1, 1)), (3, 0));
        for (offset, value, told) in [
            (0, 1, Some(Request::Panicked(false))),
            (0, 2, Some(Request::Panicked(true))),
            (0, 0xfc, None),
            (1, 1, None),
        ] {
            board.poke(BAR + offset, 1, value);
            assert_eq!(control.take().first(), told.as_ref(), "{offset} {value}");
        }
    }
}

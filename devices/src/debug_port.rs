//! Two ports for tests and bare guests: debug exit (0xf4) and the debug console (0xe9).
//!
//! Neither is found on real boards; both are where QEMU and Bochs have them, so guests written for these work.

use std::sync::Arc;

use crate::output::OutputQueue;
use crate::traits::{MachineControl, PioDevice};
use crate::util::{read_bytes, write_bytes};
use crate::waiting::Waiter;

/// Port of [`DebugExit`], four ports long.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// Port of [`DebugConsole`].
pub const DEBUG_CONSOLE_PORT: u16 = 0xe9;

/// `isa-debug-exit`: a write ends the virtual machine. The low byte of the written value is reported to
/// [`MachineControl::debug_exit`]. Reads give 0. It has no state.
#[derive(Debug)]
pub struct DebugExit {
    control: Arc<dyn MachineControl>,
}

impl DebugExit {
    /// Reports to `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { control })
    }
}

impl PioDevice for DebugExit {
    fn pio_read(&self, _port: u16, _size: u8) -> u32 {
        0
    }

    fn pio_write(&self, _port: u16, _size: u8, value: u32) {
        self.control.debug_exit(value as u8);
    }
}

/// Bochs' port 0xe9: each byte written appears on the host. Reads give 0xe9, by which guests detect it. It has no
/// state.
#[derive(Debug)]
pub struct DebugConsole {
    output: Arc<OutputQueue>,
}

impl DebugConsole {
    /// Writes to `output`.
    pub fn new(output: Arc<OutputQueue>) -> Arc<Self> {
        Arc::new(Self { output })
    }
}

impl PioDevice for DebugConsole {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        read_bytes(port, size, |p| if p == DEBUG_CONSOLE_PORT { 0xe9 } else { 0xff })
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        write_bytes(port, size, value, |p, byte| {
            if p == DEBUG_CONSOLE_PORT {
                self.output.push(byte);
            }
        });
    }

    fn throttle(&self, waiter: &Arc<Waiter>) {
        self.output.wait_for_room(waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::tests::SharedSink;
    use crate::testing::{Request, TestControl};

    #[test]
    fn exit_reports_the_byte() {
        let control = Arc::new(TestControl::default());
        let port = DebugExit::new(control.clone());
        port.pio_write(0xf4, 4, 0x1_0010);
        port.pio_write(0xf4, 1, 0xff);
        assert_eq!(control.take(), [Request::DebugExit(0x10), Request::DebugExit(0xff)]);
        assert_eq!(port.pio_read(0xf4, 4), 0);
    }

    #[test]
    fn console_writes_bytes() {
        let sink = SharedSink::default();
        let console = DebugConsole::new(OutputQueue::new("out", sink.clone()).unwrap());
        assert_eq!(console.pio_read(0xe9, 1), 0xe9);
        for byte in b"hello" {
            console.pio_write(0xe9, 1, (*byte).into());
        }
        assert!(console.output.flush(Duration::from_secs(10)));
        assert_eq!(sink.bytes(), b"hello");
    }
}

//! Ports that must merely exist: POST codes, the I/O delay port and the DMA page registers.
//!
//! Firmware writes its progress to port 0x80; Linux writes there (or to 0xed) to let an ISA bus cycle pass. The
//! DMA page registers 0x81..0x8f are plain storage (ICH9 13.2); there is no DMA controller behind them.

use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::saved::dma_page::SavedDmaPage;
use crate::traits::PioDevice;
use crate::util::{lock, read_bytes, write_bytes};

/// The state: the bytes at ports 0x80..=0x8f.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DmaPageState {
    /// Byte n is port 0x80 + n.
    pub bytes: [u8; 16],
}

/// Ports 0x80..=0x8f and 0xed.
#[derive(Debug, Default)]
pub struct DmaPageRegisters(Mutex<DmaPageState>);

impl DmaPageRegisters {
    /// First port and length of the two ranges to register. Port 0x92 and the rest of the ICH's second DMA page
    /// belong to others.
    pub const PORTS: [(u16, u16); 2] = [(0x80, 16), (0xed, 1)];

    /// All bytes zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The last POST code written to port 0x80.
    pub fn post_code(&self) -> u8 {
        lock(&self.0).bytes[0]
    }
}

impl PioDevice for DmaPageRegisters {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        let state = lock(&self.0);
        read_bytes(port, size, |p| if p & 0xfff0 == 0x80 { state.bytes[usize::from(p & 15)] } else { 0xff })
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut state = lock(&self.0);
        write_bytes(port, size, value, |p, v| {
            if p & 0xfff0 == 0x80 {
                state.bytes[usize::from(p & 15)] = v;
            }
        });
    }
}

impl StateUnit for DmaPageRegisters {
    fn name(&self) -> &str {
        "dma_page"
    }

    fn save(&self) -> Section {
        Section::of(&SavedDmaPage::from(&*lock(&self.0)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = DmaPageState::try_from(section.open::<SavedDmaPage>()?)?;
        *lock(&self.0) = restored;
        Ok(())
    }

    fn reset(&self) {
        *lock(&self.0) = DmaPageState::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, Rng, TestClock, device_tests, pio_access};

    struct DmaPageRig(Arc<DmaPageRegisters>);

    impl Rig for DmaPageRig {
        type Device = DmaPageRegisters;
        fn new(_: Arc<TestClock>) -> Self {
            Self(DmaPageRegisters::new())
        }
        fn device(&self) -> &DmaPageRegisters {
            &self.0
        }
        fn access(&self, rng: &mut Rng) -> u64 {
            pio_access(&*self.0, &[0x80, 0x81, 0x87, 0x8f, 0xed], rng)
        }
    }

    device_tests!(DmaPageRig);

    #[test]
    fn code_is_kept_and_delay_port_is_nothing() {
        let registers = DmaPageRegisters::new();
        registers.pio_write(0x80, 1, 0x42);
        registers.pio_write(0xed, 1, 0x99);
        assert_eq!((registers.post_code(), registers.pio_read(0xed, 1)), (0x42, 0xff));
    }
}

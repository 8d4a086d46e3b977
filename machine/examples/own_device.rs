//! A device of one's own: it adds up what is written to its port, interrupts when the sum passes 100, and is saved, restored
//! and reset with the machine.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use devices::{IrqLine, PioDevice};
use machine::{AccelChoice, GuestEnd, Machine, MachineBuilder, MemoryImage, Registry};
use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit, check};

/// Port of the device.
pub const PORT: u16 = 0x510;
/// ISA interrupt of the device, which others may share.
const IRQ: u8 = 5;
const LIMIT: u32 = 100;

/// The device. Several vCPUs may call it at once.
#[derive(Debug)]
pub struct Adder {
    sum: Mutex<u32>,
    irq: Arc<dyn IrqLine>,
}

impl Adder {
    fn change(&self, to: impl FnOnce(u32) -> u32) {
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = to(*sum);
        // With the lock held: changes of a wire must not overtake one another.
        self.irq.set(*sum > LIMIT);
    }

    fn sum(&self) -> u32 {
        *self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PioDevice for Adder {
    fn pio_read(&self, _port: u16, _size: u8) -> u32 {
        self.sum()
    }
    fn pio_write(&self, _port: u16, _size: u8, value: u32) {
        self.change(|sum| sum.wrapping_add(value));
    }
}

/// What it is saved as. Its fields are a format: a change is a new version.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedAdder {
    sum: u32,
}

impl Saved for SavedAdder {
    const VERSION: u32 = 1;
}

impl StateUnit for Adder {
    fn name(&self) -> &str {
        "adder"
    }
    fn save(&self) -> Section {
        Section::of(&SavedAdder { sum: self.sum() })
    }
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedAdder { sum } = section.open()?;
        check(sum < 1 << 31, "sum", sum, "below 2^31")?;
        self.change(|_| sum);
        Ok(())
    }
    fn reset(&self) {
        self.change(|_| 0);
    }
}

/// A machine with the device, whose guest adds 20 and 22 and writes the sum to the debug-exit port.
pub fn machine() -> MachineBuilder {
    let mut rom = vec![0xf4; 4096]; // HLT
    // mov dx, PORT; mov al, 20; out dx, al; mov al, 22; out dx, al; in al, dx; out f4h, al
    let [low, high] = PORT.to_le_bytes();
    rom[..13].copy_from_slice(&[0xba, low, high, 0xb0, 20, 0xee, 0xb0, 22, 0xee, 0xec, 0xe6, 0xf4, 0xf4]);
    // The reset vector: jmp to the start of the ROM.
    rom[4080..4083].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
    Machine::builder()
        .memory(2 << 20)
        .memory_image(MemoryImage::new().rom_below_4_gib(machine::Source::bytes("adds", rom)))
        .devices(|board| {
            let Some(irq) = board.irq(IRQ) else { return Ok(()) };
            let adder = Arc::new(Adder { sum: Mutex::default(), irq });
            board.add_pio(PORT, 1, adder.clone())?;
            board.add_unit(adder)
        })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let chosen = Registry::builtin().choose(&AccelChoice::Auto)?;
    let machine = machine().accelerator(chosen.accelerator).start()?;
    match machine.wait() {
        GuestEnd::DebugExit(sum) => writeln!(io::stdout(), "20 + 22 = {sum}, by a device of our own")?,
        end => writeln!(io::stdout(), "{end}")?,
    }
    Ok(())
}

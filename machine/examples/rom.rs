//! Runs a ROM of 16-bit code from the reset vector: `cargo run --release -p machine --example rom -- [ACCELERATOR]`.
//!
//! The ROM has what firmware starts with: a jump at FFFF_FFF0h, and code below it. It writes a text to the serial port
//! and ends the guest by the debug-exit port.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use accel_api::Accelerator;
use machine::{AccelChoice, GuestEnd, Machine, MemoryImage, Registry, Source};

/// Bytes of the ROM; it ends at 4 GiB.
const SIZE: usize = 0x1_0000;
/// What the guest says.
pub const TEXT: &str = "the ROM runs\r\n";
/// What it exits with.
pub const CODE: u8 = 42;

/// The ROM. CS has base FFFF_0000h after RESET (Intel SDM vol. 3, 10.1.4), so that IP is an offset in these 64 KiB until
/// a far jump.
fn rom() -> Vec<u8> {
    let mut rom = vec![0xff; SIZE];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(
        0,
        &[
            0xbe, 0x00, 0x01, // mov si, 0x100
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x2e, 0xac, // next: cs lodsb
            0x84, 0xc0, // test al, al
            0x74, 0x03, // jz end
            0xee, // out dx, al
            0xeb, 0xf7, // jmp next
            0xb0, CODE, // end: mov al, CODE
            0xe6, 0xf4, // out 0xf4, al
            0xf4, // hlt
        ],
    );
    put(0x100, TEXT.as_bytes());
    put(0x100 + TEXT.len(), &[0]);
    // The reset vector: jmp 0, by a displacement from behind the jump.
    put(0xfff0, &[0xe9, 0x0d, 0x00]);
    rom
}

/// Runs it to its end.
pub fn run(
    accelerator: Arc<dyn Accelerator>,
    console: impl Write + Send + 'static,
) -> Result<GuestEnd, Box<dyn Error>> {
    let image = MemoryImage::new().rom_below_4_gib(Source::bytes("rom", rom()));
    let machine = Machine::builder()
        .accelerator(accelerator)
        .memory(2 << 20)
        .memory_image(image)
        .console(console)
        .start()?;
    Ok(machine.wait())
}

fn main() -> Result<(), Box<dyn Error>> {
    let choice: AccelChoice = std::env::args().nth(1).as_deref().unwrap_or("auto").parse()?;
    let chosen = Registry::builtin().choose(&choice)?;
    let end = run(chosen.accelerator, io::stdout())?;
    writeln!(io::stderr(), "{end}")?;
    Ok(())
}

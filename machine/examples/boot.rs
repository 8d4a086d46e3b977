//! Boots a kernel and shows its console: `cargo run --release -p machine --example boot -- KERNEL [INITRD]`.

use std::error::Error;
use std::io::{self, Read};
use std::process::ExitCode;

use machine::{AccelChoice, GuestEnd, Machine, Registry};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut files = std::env::args_os().skip(1);
    let kernel = files.next().ok_or("usage: boot KERNEL [INITRD]")?;

    // The best accelerator this host has.
    let chosen = Registry::builtin().choose(&AccelChoice::Auto)?;
    let mut machine = Machine::builder()
        .accelerator(chosen.accelerator)
        .cpus(2)
        .memory(512 << 20)
        .kernel(kernel)
        .cmdline("console=ttyS0 panic=-1")
        .console(io::stdout());
    if let Some(initrd) = files.next() {
        machine = machine.initrd(initrd);
    }
    let machine = machine.start()?;

    // Standard input is the guest's keyboard; the thread ends with the process.
    let input = machine.console_input();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(n @ 1..) = io::stdin().read(&mut bytes) {
            if !input.push(&bytes[..n]) {
                break;
            }
        }
    });

    let powered_off = machine.wait() == GuestEnd::PowerOff;
    Ok(if powered_off { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

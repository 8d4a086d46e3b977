//! Boots Xen with a Linux kernel as its first domain, runs a command there and powers off:
//! `cargo run --release -p machine --example xen -- ACCELERATOR XEN KERNEL INITRD`. `cargo xtask fetch --xen` and
//! `cargo xtask fetch --flavour generic` obtain the files.
//!
//! A hypervisor below Linux asks of a processor what Linux alone does not: NMIs to itself, a kernel in ring 3, the
//! descriptor tables of both.

mod multiboot;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use machine::memory_map::{MIB, MemoryMap};
use machine::{AccelChoice, GuestEnd, Machine, Registry};
use multiboot::Module;

const MEMORY: u64 = 1024 * MIB;
/// There is no BIOS that could be called from real mode.
const XEN: &str = "xen no-real-mode console=com1 com1=115200,8n1 dom0_mem=512M";
const LINUX: &str =
    "vmlinuz console=hvc0 panic=-1 cryptomgr.notests gearshift.script=\"cat /sys/hypervisor/type\"";

/// What the console says on the way, and what that means.
const MILESTONES: [(&str, &str); 4] = [
    ("(XEN) Xen version", "Xen speaks"),
    ("] Linux version", "domain 0 speaks"),
    ("INIT-REACHED", "its first program runs"),
    ("GUEST-DONE status: 0", "its command has succeeded"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [accelerator, xen, kernel, initrd] = &arguments[..] else {
        return Err("usage: xen ACCELERATOR XEN KERNEL INITRD".into());
    };
    let (xen, kernel, initrd) = (fs::read(xen)?, fs::read(kernel)?, fs::read(initrd)?);
    let modules = [Module { bytes: &kernel, cmdline: LINUX }, Module { bytes: &initrd, cmdline: "" }];
    let image = multiboot::image(&xen, XEN, &modules, &MemoryMap::new(MEMORY)?)?;

    let chosen = Registry::builtin().choose(&accelerator.parse::<AccelChoice>()?)?;
    let machine = Machine::builder()
        .accelerator(chosen.accelerator)
        .memory(MEMORY)
        .memory_image(image)
        .console(Console { start: Instant::now(), line: Vec::new(), next: 0 })
        .start()?;
    match machine.wait() {
        GuestEnd::PowerOff => Ok(()),
        other => Err(format!("Xen ended otherwise than by power-off: {other}").into()),
    }
}

/// Standard output; says on standard error when a milestone is passed.
struct Console {
    start: Instant,
    line: Vec<u8>,
    next: usize,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(bytes)?;
        for &byte in bytes {
            self.line.push(byte);
            if byte != b'\n' {
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            if let Some((_, what)) = MILESTONES.get(self.next).filter(|(text, _)| line.contains(text)) {
                let seconds = self.start.elapsed().as_secs_f64();
                writeln!(io::stderr(), "{seconds:7.2} s: {what}\r")?;
                self.next += 1;
            }
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

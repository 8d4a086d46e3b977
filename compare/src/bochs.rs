//! Bochs as a peer: its configuration, and a disk with the guest.
//!
//! Bochs loads no kernel by itself, so a guest is a disk image ([`disk`]) that its BIOS boots. Its clock counts instructions,
//! not time: what a guest measures itself means nothing there, and only the time to a milestone does, which is taken
//! outside.

use std::fs::{self, File};
use std::process::Command;

use crate::disk;
use crate::error::Error;
use crate::host::Scratch;
use crate::subject::GuestRun;

/// Sectors of a cylinder: 16 heads of 63.
const CYLINDER: u64 = 16 * 63 * 512;

/// Where the disk and the configuration are made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bochs(Scratch);

impl Bochs {
    pub(crate) fn new() -> Result<Self, Error> {
        Scratch::new("bochs").map(Self)
    }

    /// The process, with the disk of this guest; the last guest's is overwritten.
    pub(crate) fn command(&self, guest: &GuestRun<'_>) -> Result<Command, String> {
        let read = |path: &std::path::Path| {
            fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let kernel = read(guest.kernel)?;
        let initrd = guest.initrd.map_or_else(|| Ok(Vec::new()), read)?;
        let image = disk::image(&kernel, &initrd, guest.cmdline, guest.mebibytes)
            .map_err(|error| error.to_string())?;
        let cylinders = (image.len() as u64).div_ceil(CYLINDER);
        let make = || -> Result<Command, Error> {
            let disk = self.0.file("disk", &image)?;
            let file = File::options().write(true).open(&disk).map_err(Error::file("open", &disk))?;
            file.set_len(cylinders * CYLINDER).map_err(Error::file("extend", &disk))?;
            let rc = self.0.file("bochsrc", configuration(&disk.display(), cylinders, guest).as_bytes())?;
            // A build with the debugger waits for this word.
            let input = self.0.file("input", b"c\n")?;
            let input = File::open(&input).map_err(Error::file("open", &input))?;
            let mut command = Command::new("bochs");
            command.args(["-q", "-f"]).arg(rc).stdin(input);
            Ok(command)
        };
        make().map_err(|error| error.to_string())
    }
}

/// A PC with nothing but a disk and a serial port that is standard output. The display is one that needs no screen.
fn configuration(disk: &dyn std::fmt::Display, cylinders: u64, guest: &GuestRun<'_>) -> String {
    let mebibytes = guest.mebibytes;
    format!(
        "display_library: rfb, options=\"timeout=0\"\n\
         memory: guest={mebibytes}, host={mebibytes}\n\
         romimage: file=$BXSHARE/BIOS-bochs-latest\n\
         vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest\n\
         boot: disk\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path=\"{disk}\", mode=flat, cylinders={cylinders}, heads=16, spt=63\n\
         com1: enabled=1, mode=file, dev=/dev/stdout\n\
         clock: sync=none\n\
         cpu: count=1, ips=100000000, reset_on_triple_fault=0\n\
         panic: action=fatal\n\
         log: /dev/null\n"
    )
}

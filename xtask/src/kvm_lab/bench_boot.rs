//! Debian's kernel to its first program, ours beside QEMU with KVM: both on the lab's processor, in one machine.
//!
//! `gearshift compare boot` does the measuring, inside the lab. It finds its guest in a cache folder that is brought
//! along, and QEMU with the three pieces of firmware that its `microvm` needs.

use super::image::Contents;
use super::machine::{Lab, LabError};
use super::suite::Scratch;
use crate::cargo;
use anyhow::{Context as _, Result};
use std::env;
use std::io;
use std::path::{Path, PathBuf};

const QEMU: &str = "qemu-system-x86_64";
/// Where Debian's QEMU looks for firmware, and what of it a PVH or Linux boot of `microvm` takes.
const FIRMWARE: &str = "/usr/share/qemu";
const FIRMWARE_FILES: [&str; 3] = ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"];

/// Runs the experiment, and prints its table; its exit status.
pub(super) fn run(lab: &Lab, repeat: u32) -> Result<u8, LabError> {
    let scratch = Scratch::new()?;
    let contents = contents(lab, &scratch)?;
    let repeat = repeat.to_string();
    let boot = ["env", "GEARSHIFT_CACHE=/lab/cache", "gearshift", "compare", "boot", "--offline"];
    let options = ["--accel", "kvm", "--peer", "qemu-kvm", "--repeat", &repeat];
    let command: Vec<_> = boot.into_iter().chain(options).map(str::to_owned).collect();
    lab.run(&contents, &command, &mut io::stdout().lock())
}

fn contents(lab: &Lab, scratch: &Scratch) -> Result<Contents> {
    let mut contents = Contents::default();
    contents.add_as(&scratch.stripped(&cargo::gearshift()?)?, "lab/gearshift")?;
    let cache = lab.guest().kernel.parent().context("the guest is in a folder")?;
    let name = cache.file_name().context("the guest's folder has a name")?;
    contents.add_as(cache, &format!("lab/cache/debian/{}", name.to_string_lossy()))?;
    contents.add_as(&qemu()?, &format!("bin/{QEMU}"))?;
    for name in FIRMWARE_FILES {
        let path = Path::new(FIRMWARE).join(name);
        // QEMU looks beside the folder it is started from.
        contents.add_as(&path, &format!("share/qemu/{name}"))?;
    }
    Ok(contents)
}

/// The host's, which a [`Lab`] has found installed.
fn qemu() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(QEMU)).find(|path| path.is_file());
    found.with_context(|| format!("{QEMU} is not in PATH"))
}

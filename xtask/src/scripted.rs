//! Debian's kernel with an initial RAM disk of a task's own, on `gearshift run`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use guests::debian::{self, Flavour};
use guests::suite;

use crate::cargo;
use crate::console::say;

/// What there is to run.
#[derive(Debug)]
pub(crate) struct Scripted {
    gearshift: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Scripted {
    /// For the task called `name`: `gearshift`, or the released one, which is built; Debian's kernel, fetched; and what
    /// `initramfs` makes of its busybox.
    pub(crate) fn prepare(
        name: &str,
        gearshift: Option<&Path>,
        initramfs: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let gearshift = gearshift.map_or_else(cargo::gearshift, |file| Ok(file.to_owned()))?;
        let guest = debian::fetch(Flavour::Cloud, &mut |line| say(line))?;
        let busybox = fs::read(&guest.busybox).with_context(|| guest.busybox.display().to_string())?;
        let initrd = suite::source().join(format!("target/{name}.initrd"));
        fs::write(&initrd, initramfs(&busybox)?)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(Self { gearshift, kernel: guest.kernel, initrd })
    }

    /// `gearshift run` with the guest, on `accel`.
    pub(crate) fn run(&self, accel: &str, cpus: u32, cmdline: &str) -> Command {
        let mut command = Command::new(&self.gearshift);
        command.args(["run", "--accel", accel, "--cpus", &cpus.to_string(), "--mem", "512M"]);
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
        command.args(["--cmdline", cmdline]);
        command
    }
}

//! Every guest of ours, built and written to files.

use anyhow::{Context as _, Result};
use clap::Args;
use guests::debian::{self, Flavour};
use guests::initramfs::Compression;
use guests::suite::{self, Suite};
use guests::{embedded, micro, modes};
use std::fs;
use std::path::{Path, PathBuf};

/// Build every guest of our own, see docs/guests.md: prints the paths of the files
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder to write them to [default: target/guests]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Arguments of the user-space suites in their initial RAM disks, such as "--millis 50 zlib lua"
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    arguments: String,
}

/// The bare-metal guests, by name.
pub(crate) fn bare() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let micro = micro::all().map(|guest| (guest.name, guest.elf));
    [("embedded", embedded::ELF)].into_iter().chain(micro).chain(modes::all().map(|g| (g.name, g.elf)))
}

/// Builds all and writes all.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut progress = |line: &str| eprintln!("{line}");
    let folder = arguments.out.clone().unwrap_or_else(|| suite::source().join("target/guests"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, elf) in bare() {
        let path = write(&folder, &format!("{name}.elf"), elf)?;
        println!("bare-metal {name} {}", path.display());
    }
    let guest = debian::fetch(Flavour::Cloud, &mut progress)?;
    let busybox = fs::read(&guest.busybox).with_context(|| guest.busybox.display().to_string())?;
    for suite in Suite::ALL {
        let program = suite::build(suite, suite::source(), &mut progress)?;
        let initramfs = program.initramfs(&busybox, &arguments.arguments)?.build(Compression::None);
        let path = write(&folder, &format!("{}.initrd", suite.name()), &initramfs)?;
        println!("native {} {:?}", suite.name(), program.native());
        println!("initrd {} {}", suite.name(), path.display());
    }
    println!("kernel {}", guest.kernel.display());
    Ok(())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

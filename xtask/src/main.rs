//! Development tasks: `cargo xtask <task>`.

mod cargo;
mod clocksource;
mod console;
mod fuzz;
mod guest_files;
mod kvm_lab;
mod lint;
mod oracle;
mod reboots;
mod scripted;
mod stress;
mod test;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use guests::debian;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use testkit::oracle::Verdict;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of this workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Obtain Debian's kernel and an initramfs through the host's apt; prints their paths
    Fetch {
        /// Which kernel: cloud, generic or i386
        #[arg(long, default_value = "cloud")]
        flavour: debian::Flavour,
        /// The Xen hypervisor instead
        #[arg(long, conflicts_with = "flavour")]
        xen: bool,
    },
    Clocksource(clocksource::Arguments),
    Guests(guest_files::Arguments),
    KvmLab(kvm_lab::Arguments),
    /// Run hostile guests against the interpreter for as long as one wants
    Fuzz(fuzz::Arguments),
    /// Check the rules of the house that the compiler does not know
    Lint,
    /// Run random instructions on this processor and in the software CPU, and compare
    Oracle(oracle::Arguments),
    Reboots(reboots::Arguments),
    Stress(stress::Arguments),
    /// Run all tests, with all they need, and count them
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write one of our own guests, a PVH ELF, to a file
    Guest {
        /// "embedded" or the name of a benchmark guest or of one that checks the processor's modes
        name: String,
        /// Where to write it
        out: PathBuf,
    },
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Fetch { xen: true, .. } => {
            let xen = debian::fetch_xen(&mut |line| eprintln!("{line}"))?;
            println!("version {}", xen.version);
            println!("xen {}", xen.image.display());
        }
        Task::Fetch { flavour, .. } => {
            let guest = debian::fetch(flavour, &mut |line| eprintln!("{line}"))?;
            println!("version {}", guest.version);
            for (what, path) in
                [("kernel", guest.kernel), ("initrd", guest.initrd), ("busybox", guest.busybox)]
            {
                println!("{what} {}", path.display());
            }
        }
        Task::Clocksource(arguments) => {
            if !clocksource::run(&arguments)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Guests(arguments) => guest_files::run(&arguments)?,
        Task::KvmLab(arguments) => return Ok(kvm_lab::run(&arguments)),
        Task::Fuzz(arguments) => fuzz::run(&arguments)?,
        Task::Lint => {
            let findings = lint::run()?;
            for finding in &findings {
                println!("{finding}");
            }
            if !findings.is_empty() {
                eprintln!("{} finding(s)", findings.len());
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Oracle(arguments) => {
            return Ok(match oracle::run(&arguments)? {
                Verdict::Same => ExitCode::SUCCESS,
                Verdict::Found => ExitCode::from(oracle::FOUND),
                Verdict::Wrong => ExitCode::FAILURE,
            });
        }
        Task::Reboots(arguments) => {
            if !reboots::run(&arguments)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Stress(arguments) => {
            if !stress::run(&arguments)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Test { arguments } => test::run(&arguments)?,
        Task::Guest { name, out } => {
            let elf = guest(&name)?;
            fs::write(&out, elf).with_context(|| format!("cannot write {}", out.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn guest(name: &str) -> Result<&'static [u8]> {
    let Some((_, elf)) = guest_files::bare().find(|guest| guest.0 == name) else {
        let names: Vec<_> = guest_files::bare().map(|guest| guest.0).collect();
        bail!("no guest is called {name:?}; there are {}", names.join(", "));
    };
    Ok(elf)
}

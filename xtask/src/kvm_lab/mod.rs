//! A machine with hardware KVM where there is none: `cargo xtask kvm-lab`.
//!
//! 1. QEMU's TCG emulates a PC whose processor has AMD's SVM with nested paging. Debian's kernel boots in it and loads
//!    its `kvm-amd` module: /dev/kvm there is the real thing, only slow (an exit takes some 50 microseconds).
//! 2. Everything in it comes from Debian's packages, by [`guests::debian`]: kernel, modules, busybox. QEMU is the host's.
//! 3. [`image`] makes the initramfs: the files asked for, with the shared libraries they need, and the command.
//! 4. [`machine`] boots it. The kernel's console goes to a log, the command has a serial port to itself, whose output
//!    [`markers`] frame. A machine that does not come up is started again; one that hangs is ended.
//! 5. Without a command, [`suite`] runs what the project's KVM backend must pass.

mod bench_boot;
mod image;
mod machine;
mod markers;
mod suite;

use clap::Args;
use image::Contents;
use machine::{Lab, LabError, Shape};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) use machine::guest;

/// As `timeout` and `env` have it: numbers that commands themselves rarely give.
const TIMED_OUT: u8 = 124;
const LAB_FAILED: u8 = 125;

/// Run a command, or the project's own suite, on a real kvm_amd inside an emulated machine
///
/// The machine is emulated by QEMU's TCG with AMD SVM and boots Debian's kernel, whose kvm-amd module is loaded; nothing
/// of it needs KVM or root on the host. It is for correctness: an exit takes some 50 microseconds there.
///
/// FILEs (folders with all in them) are found in /lab, where the command runs, with the shared libraries they need
/// beside them where the loader expects them; /lab and busybox are in the PATH. Standard output and standard error of
/// the command come out as one stream. The exit status is the command's; 124 if it did not end in time, 125 if the lab
/// itself failed.
///
/// Without a COMMAND, the suite runs: the tests of accel-kvm, `gearshift probe`, and boots of Debian's kernel by
/// `gearshift run --accel kvm`. The exit status is then 0 or 1.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Processors of the machine; the suite has its own numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// Memory of the machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    mem: u32,
    /// Seconds the command may take
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Keep the machine's initramfs and logs, and say where they are
    #[arg(long)]
    keep: bool,
    /// Measure boots of Debian's kernel instead: `gearshift run --accel kvm` beside QEMU with KVM, both in the machine
    #[arg(long, conflicts_with_all = ["files", "command"])]
    bench_boot: bool,
    /// Rounds of --bench-boot
    #[arg(long, value_name = "N", default_value_t = 5, requires = "bench_boot")]
    repeat: u32,
    /// Files and folders for the command
    #[arg(value_name = "FILE", requires = "command")]
    files: Vec<PathBuf>,
    /// Program and arguments, as they are: `sh -c '...'` for a shell's line
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs what was asked for; failures of the lab are told here.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let shape = Shape {
        cpus: arguments.cpus,
        mebibytes: arguments.mem,
        timeout: Duration::from_secs(arguments.timeout),
        keep: arguments.keep,
    };
    let result = Lab::new(shape).and_then(|lab| {
        if arguments.bench_boot {
            return bench_boot::run(&lab, arguments.repeat);
        }
        if arguments.command.is_empty() {
            return Ok(suite::run(&lab)?.into());
        }
        let mut contents = Contents::default();
        for file in &arguments.files {
            contents.add(file)?;
        }
        lab.run(&contents, &arguments.command, &mut io::stdout().lock())
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("lab: {error}"));
            ExitCode::from(if matches!(error, LabError::TimedOut { .. }) { TIMED_OUT } else { LAB_FAILED })
        }
    }
}

/// A line for whoever waits.
#[expect(clippy::print_stderr, reason = "progress of a command-line tool")]
fn say(line: &str) {
    eprintln!("{line}");
}

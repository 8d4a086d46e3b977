//! What is measured: one of our backends, or a peer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

/// What QEMU runs a guest with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QemuAccel {
    /// Its translator, with the machine `q35`
    Tcg,
    /// KVM, with its smallest machine, `microvm`
    Kvm,
}

impl QemuAccel {
    /// Options for accelerator, processor and machine.
    fn options(self) -> [&'static str; 6] {
        match self {
            Self::Tcg => ["-accel", "tcg", "-cpu", "max", "-M", "q35"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host", "-M", "microvm"],
        }
    }
}

/// A way to run a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// One of our backends, in this program or in another that takes `gearshift run`'s arguments.
    Ours { accel: String, program: Option<PathBuf> },
    /// `qemu-system-x86_64`.
    Qemu { accel: QemuAccel, version: String },
}

/// One guest to be run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestRun<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) mebibytes: u32,
    /// Text on the console after which counters are of interest.
    pub(crate) until: &'a str,
}

impl Subject {
    /// Short, for the heads of columns.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ours { accel, .. } => accel,
            Self::Qemu { accel: QemuAccel::Tcg, .. } => "qemu-tcg",
            Self::Qemu { accel: QemuAccel::Kvm, .. } => "qemu-kvm",
        }
    }

    /// The backend, if it is one of ours.
    pub(crate) fn accel(&self) -> Option<&str> {
        match self {
            Self::Ours { accel, .. } => Some(accel),
            Self::Qemu { .. } => None,
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Ours { accel, program: None } => format!("our {accel}"),
            Self::Ours { accel, program: Some(program) } => format!("our {accel}, by {}", program.display()),
            Self::Qemu { accel, version } => format!("{version}, {}", accel.options().join(" ")),
        }
    }

    /// Whether its standard error has a line of counters.
    pub(crate) fn has_counters(&self) -> bool {
        matches!(self, Self::Ours { program: None, .. })
    }

    /// The process that runs the guest with its console on standard output.
    pub(crate) fn command(&self, guest: &GuestRun<'_>) -> Command {
        let memory = guest.mebibytes.to_string();
        let mut command = match self {
            Self::Ours { accel, program } => {
                let mut command = match program {
                    Some(program) => {
                        let mut command = Command::new(program);
                        command.arg("run");
                        command
                    }
                    None => {
                        // This very file, even if it has been replaced since.
                        let mut command = Command::new("/proc/self/exe");
                        command.args(["guest", "--until", guest.until]);
                        command
                    }
                };
                command.args(["--accel", accel, "--mem", &format!("{memory}M")]);
                command.arg("--cmdline").arg(guest.cmdline).arg("--kernel").arg(guest.kernel);
                if let Some(initrd) = guest.initrd {
                    command.arg("--initrd").arg(initrd);
                }
                command
            }
            Self::Qemu { accel, .. } => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(accel.options()).args(["-m", &memory]);
                command.args(["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
                command.arg("-append").arg(guest.cmdline).arg("-kernel").arg(guest.kernel);
                if let Some(initrd) = guest.initrd {
                    command.arg("-initrd").arg(initrd);
                }
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }
}

/// First line of `qemu-system-x86_64 --version`, if it is installed.
pub(crate) fn qemu_version() -> Option<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
}

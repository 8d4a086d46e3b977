//! Who runs a guest: one of our backends, a peer, or the host itself.
//!
//! A *subject* is somebody who takes part. Whoever was asked for and cannot is a [`Missing`], with the reason, and is
//! told of wherever the others' numbers are shown.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use clap::ValueEnum;
use machine::{AccelChoice, ChooseError, MachineError, Needs, Registry};

use accel_api::Probe;

use crate::bochs;
use crate::error::Error;

/// Other programs that can run the same guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// QEMU's translator
    QemuTcg,
    /// QEMU on KVM
    QemuKvm,
    /// Bochs; Linux guests only, booted from a disk
    Bochs,
}

/// The programs.
const QEMU: &str = "qemu-system-x86_64";
const BOCHS: &str = "bochs";

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::QemuTcg => "qemu-tcg",
            Self::QemuKvm => "qemu-kvm",
            Self::Bochs => "bochs",
        }
    }

    fn program(self) -> &'static str {
        if self == Self::Bochs { BOCHS } else { QEMU }
    }

    /// What it calls its version.
    fn version(self) -> Option<String> {
        let argument = if self == Self::Bochs { "--help" } else { "--version" };
        let output = Command::new(self.program()).arg(argument).stdin(Stdio::null()).output().ok()?;
        // Bochs writes to either, within a frame.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().map(str::trim).find(|line| line.contains(char::is_numeric)).map(str::to_owned)
    }
}

/// Options of QEMU for accelerator, processor and machine. For Linux on KVM it is its smallest machine, for want of which it
/// would be slower than it can be; a guest of ours needs the power-off port of a PC.
fn qemu_options(kvm: bool, linux: bool) -> [&'static str; 6] {
    match kvm {
        false => ["-accel", "tcg", "-cpu", "max", "-M", "q35"],
        true => ["-accel", "kvm", "-cpu", "host", "-M", if linux { "microvm" } else { "q35" }],
    }
}

/// What kind of subject it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ours { worker: Vec<OsString>, cpu: String },
    Qemu { kvm: bool },
    Bochs(Arc<bochs::Bochs>),
    Native,
}

/// Somebody who takes part.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Short, for the heads of columns.
    pub name: String,
    /// For people: what it is, with its version.
    pub about: String,
    /// What stands behind it, such as a kernel module.
    pub provider: Option<String>,
    /// Of a backend: `hardware`, `translated`, `interpreted` or `degraded`.
    pub quality: Option<&'static str>,
    /// Nanoseconds an instruction of the guest's kernel takes, where a probe measured that.
    pub(crate) ring0_ns: Option<f64>,
    kind: Kind,
}

/// Somebody who was asked for and cannot take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name asked for.
    pub name: String,
    /// Why not, and what helps.
    pub reason: String,
}

/// One guest to be run.
#[derive(Debug, Clone, Copy)]
pub struct GuestRun<'a> {
    /// ELF or bzImage.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Memory.
    pub mebibytes: u32,
    /// Text on the console after which counters are of interest; empty for never.
    pub until: &'a str,
    /// A Linux kernel, which finds its devices by itself.
    pub linux: bool,
}

/// Those who take part, and those who cannot.
#[derive(Debug, Clone, Default)]
pub struct Field {
    /// In the order of columns.
    pub subjects: Vec<Subject>,
    /// With reasons.
    pub missing: Vec<Missing>,
}

impl Field {
    /// Looks at every backend and program that is named. `all` stands for every backend there is, `auto` for the best.
    ///
    /// # Errors
    /// A name that no backend has, or that nobody of those named can run a guest here.
    pub fn survey(
        registry: &Registry,
        accel: &[String],
        cpu: &str,
        peers: &[Peer],
        native: bool,
        worker: &[OsString],
    ) -> Result<Self, Error> {
        let mut field = Self::default();
        let survey = registry.survey();
        let needs = Needs { cpu_model: cpu.to_owned(), ..Needs::default() };
        let mut names = Vec::new();
        for name in accel.iter().map(|name| name.trim()) {
            match name {
                "all" => names.extend(survey.descriptors().map(|descriptor| descriptor.id.0.to_owned())),
                other => names.push(other.to_owned()),
            }
        }
        for name in names {
            match survey.choose(&name.parse::<AccelChoice>()?, &needs) {
                Ok(chosen) => {
                    let id = chosen.accelerator.id();
                    if field.subjects.iter().any(|other| other.name == id.0) {
                        continue;
                    }
                    match needs.met_by(&*chosen.accelerator) {
                        Ok(()) => {}
                        // No matter of this backend.
                        Err(error @ MachineError::Model(_)) => return Err(error.into()),
                        Err(error) => {
                            field.missing.push(Missing { name, reason: error.to_string() });
                            continue;
                        }
                    }
                    let probe = survey.probes().find(|(descriptor, _)| descriptor.id == id);
                    field.subjects.push(Subject::ours(id.0, probe.map(|(_, probe)| probe), worker, cpu));
                }
                Err(error @ (ChooseError::Unavailable(_) | ChooseError::NotBuilt { .. })) => {
                    field.missing.push(Missing { name, reason: error.to_string() });
                }
                Err(ChooseError::NoneWorks { skipped }) => {
                    field.missing.extend(
                        skipped
                            .into_iter()
                            .map(|one| Missing { name: one.id.0.to_owned(), reason: one.reason }),
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
        for peer in peers {
            field.add_peer(*peer);
        }
        let skipped = || field.missing.iter().map(|one| (one.name.clone(), one.reason.clone())).collect();
        if field.subjects.is_empty() {
            return Err(Error::NoSubject { skipped: skipped() });
        }
        if native {
            field.subjects.push(Subject {
                name: "native".to_owned(),
                about: "the host itself, without a guest".to_owned(),
                provider: None,
                quality: None,
                ring0_ns: None,
                kind: Kind::Native,
            });
        }
        Ok(field)
    }

    fn add_peer(&mut self, peer: Peer) {
        let missing = |reason: String| Missing { name: peer.name().to_owned(), reason };
        let Some(version) = peer.version() else {
            let package = if peer == Peer::Bochs { "bochs" } else { "qemu-system-x86" };
            let reason = format!("{} is not installed (Debian: apt install {package})", peer.program());
            return self.missing.push(missing(reason));
        };
        if peer == Peer::QemuKvm
            && let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
        {
            return self.missing.push(missing(format!("/dev/kvm cannot be opened: {error}")));
        }
        // What our probe of the same KVM found holds for it too.
        let kvm = self.subjects.iter().find(|other| peer == Peer::QemuKvm && other.name == "kvm").cloned();
        let (kind, options) = match peer {
            Peer::Bochs => match bochs::Bochs::new() {
                Ok(bochs) => (Kind::Bochs(Arc::new(bochs)), "boots from a disk".to_owned()),
                Err(error) => return self.missing.push(missing(error.to_string())),
            },
            _ => {
                let kvm = peer == Peer::QemuKvm;
                (Kind::Qemu { kvm }, qemu_options(kvm, true).join(" "))
            }
        };
        self.subjects.push(Subject {
            name: peer.name().to_owned(),
            about: format!("{version}, {options}"),
            provider: kvm.as_ref().and_then(|kvm| kvm.provider.clone()),
            quality: None,
            ring0_ns: kvm.and_then(|kvm| kvm.ring0_ns),
            kind,
        });
    }
}

impl Subject {
    fn ours(name: &str, probe: Option<&Probe>, worker: &[OsString], cpu: &str) -> Self {
        let available = match probe {
            Some(Probe::Available(available)) => Some(available),
            _ => None,
        };
        Self {
            name: name.to_owned(),
            about: available.map_or_else(String::new, |found| found.detail.clone()),
            provider: available.and_then(|found| found.provider.clone()),
            quality: available.map(|found| found.quality.name()),
            ring0_ns: available.and_then(|found| found.measured).map(|measured| measured.ring0_ns),
            kind: Kind::Ours { worker: worker.to_vec(), cpu: cpu.to_owned() },
        }
    }

    /// The host itself.
    pub fn is_native(&self) -> bool {
        self.kind == Kind::Native
    }

    /// One of our backends, whose speed a change of ours may change.
    pub fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours { .. })
    }

    /// It boots Linux, and nothing else.
    pub(crate) fn is_linux_only(&self) -> bool {
        matches!(self.kind, Kind::Bochs(_))
    }

    /// A guest's clock tells the host's time, so that what it measures itself is a time.
    pub(crate) fn keeps_time(&self) -> bool {
        !matches!(self.kind, Kind::Bochs(_))
    }

    /// `backend`, `peer` or `native`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Ours { .. } => "backend",
            Kind::Qemu { .. } | Kind::Bochs(_) => "peer",
            Kind::Native => "native",
        }
    }

    /// The process that runs the guest with its console on standard output.
    ///
    /// # Errors
    /// Why it cannot: the host itself, for one, is no machine for a guest.
    pub fn command(&self, guest: &GuestRun<'_>) -> Result<Command, String> {
        let memory = guest.mebibytes.to_string();
        let mut command = match &self.kind {
            Kind::Native => return Err("a guest needs a machine".to_owned()),
            Kind::Bochs(bochs) => return bochs.command(guest),
            Kind::Ours { worker, cpu } => {
                // This very file, even if it has been replaced since.
                let mut command = Command::new("/proc/self/exe");
                command.args(worker).args([
                    "--accel",
                    &self.name,
                    "--cpu",
                    cpu,
                    "--mem",
                    &format!("{memory}M"),
                ]);
                command.args(["--until", guest.until]);
                command.arg("--cmdline").arg(guest.cmdline).arg("--kernel").arg(guest.kernel);
                if let Some(initrd) = guest.initrd {
                    command.arg("--initrd").arg(initrd);
                }
                command
            }
            Kind::Qemu { kvm } => {
                let mut command = Command::new(QEMU);
                command.args(qemu_options(*kvm, guest.linux)).args(["-m", &memory]);
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
        Ok(command)
    }
}

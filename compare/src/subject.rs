//! Who runs a guest: one of our backends, the same of another build, a peer, or the host itself.
//!
//! A *subject* is somebody who takes part. Whoever was asked for and cannot is a [`Missing`], with the reason, and is
//! told of wherever the others' numbers are shown.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use machine::{AccelChoice, ChooseError, MachineError, Needs, Registry};

use accel_api::Probe;

use crate::beside::BuildInfo;
use crate::bochs;
use crate::build::{self, Build};
use crate::error::Error;
use crate::options::Options;
use crate::peer::{Peer, QEMU};
use crate::process::{Convention, Runner};

/// Options of QEMU for accelerator, processor and machine. For Linux on KVM it is its smallest machine, for want of which it
/// would be slower than it can be; a guest of ours needs the power-off port of a PC.
fn qemu_options(kvm: bool, linux: bool) -> [&'static str; 6] {
    match kvm {
        false => ["-accel", "tcg", "-cpu", "max", "-M", "q35"],
        true => ["-accel", "kvm", "-cpu", "host", "-M", if linux { "microvm" } else { "q35" }],
    }
}

/// This very file, even if it has been replaced since.
const SELF: &str = "/proc/self/exe";

/// What kind of subject it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ours { start: Start, cpu: String },
    Build { backend: String, label: String, path: PathBuf, cpu: String },
    Qemu { kvm: bool },
    Bochs(Arc<bochs::Bochs>),
    Native,
}

/// By which command this program runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    /// The hidden one of these words, which tells more than `run`.
    Worker(Vec<OsString>),
    /// `run`, as beside another build.
    Run,
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
    pub quality: Option<String>,
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
    /// Another build's backend follows ours, so that their runs are neighbours.
    ///
    /// # Errors
    /// A name that no backend has, a path that is no build of this program, or that nobody of those named can run a guest
    /// here.
    pub fn survey(
        registry: &Registry,
        options: &Options,
        worker: &[OsString],
        runner: &Runner<'_>,
    ) -> Result<Self, Error> {
        let mut field = Self::default();
        let Options { accel, cpu, .. } = options;
        let paths: Vec<&Path> = options.peer.iter().filter_map(Peer::build).collect();
        let builds = Build::ask_all(&paths, runner)?;
        let start = if builds.is_empty() { Start::Worker(worker.to_vec()) } else { Start::Run };
        let survey = registry.survey();
        let needs = Needs { cpu_model: cpu.clone(), ..Needs::default() };
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
                    let ours = Subject::ours(id.0, probe.map(|(_, probe)| probe), &start, cpu);
                    field.add_with_builds(ours, &builds, cpu);
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
        for peer in options.peer.iter().filter(|peer| peer.build().is_none()) {
            field.add_peer(peer);
        }
        let skipped = || field.missing.iter().map(|one| (one.name.clone(), one.reason.clone())).collect();
        if field.subjects.is_empty() {
            return Err(Error::NoSubject { skipped: skipped() });
        }
        if options.native {
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

    /// Adds one of our backends, and behind it the same of each other build.
    fn add_with_builds(&mut self, ours: Subject, builds: &[Build], cpu: &str) {
        let backend = ours.name.clone();
        // Runs are as long on both sides as what was measured of ours makes them.
        let ring0_ns = ours.ring0_ns;
        self.subjects.push(ours);
        for build in builds {
            let name = build.subject(&backend);
            let (path, label) = (build.path.clone(), build.label.clone());
            match build.backend(&backend, cpu) {
                Ok(entry) => self.subjects.push(Subject {
                    name,
                    about: format!("{}, {}", build.version, path.display()),
                    provider: entry.provider.clone(),
                    quality: entry.quality.clone(),
                    ring0_ns,
                    kind: Kind::Build { backend: backend.clone(), label, path, cpu: cpu.to_owned() },
                }),
                Err(reason) => self.missing.push(Missing { name, reason }),
            }
        }
    }

    fn add_peer(&mut self, peer: &Peer) {
        let missing = |reason: String| Missing { name: peer.name(), reason };
        let Some(version) = peer.version() else {
            let package = if *peer == Peer::Bochs { "bochs" } else { "qemu-system-x86" };
            let reason = format!("{} is not installed (Debian: apt install {package})", peer.program());
            return self.missing.push(missing(reason));
        };
        if *peer == Peer::QemuKvm
            && let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
        {
            return self.missing.push(missing(format!("/dev/kvm cannot be opened: {error}")));
        }
        // What our probe of the same KVM found holds for it too.
        let kvm = self
            .subjects
            .iter()
            .find(|other| *peer == Peer::QemuKvm && other.name == machine::KVM.0)
            .cloned();
        let (kind, options) = match peer {
            Peer::Bochs => match bochs::Bochs::new() {
                Ok(bochs) => (Kind::Bochs(Arc::new(bochs)), "boots from a disk".to_owned()),
                Err(error) => return self.missing.push(missing(error.to_string())),
            },
            _ => {
                let kvm = *peer == Peer::QemuKvm;
                (Kind::Qemu { kvm }, qemu_options(kvm, true).join(" "))
            }
        };
        self.subjects.push(Subject {
            name: peer.name(),
            about: format!("{version}, {options}"),
            provider: kvm.as_ref().and_then(|kvm| kvm.provider.clone()),
            quality: None,
            ring0_ns: kvm.and_then(|kvm| kvm.ring0_ns),
            kind,
        });
    }
}

impl Subject {
    fn ours(name: &str, probe: Option<&Probe>, start: &Start, cpu: &str) -> Self {
        let available = match probe {
            Some(Probe::Available(available)) => Some(available),
            _ => None,
        };
        Self {
            name: name.to_owned(),
            about: available.map_or_else(String::new, |found| found.detail.clone()),
            provider: available.and_then(|found| found.provider.clone()),
            quality: available.map(|found| found.quality.name().to_owned()),
            ring0_ns: available.and_then(|found| found.measured).map(|measured| measured.ring0_ns),
            kind: Kind::Ours { start: start.clone(), cpu: cpu.to_owned() },
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

    /// The other build that it belongs to.
    pub fn build(&self) -> Option<BuildInfo> {
        match &self.kind {
            Kind::Build { backend, label, path, .. } => Some(BuildInfo {
                label: label.clone(),
                path: path.display().to_string(),
                backend: backend.clone(),
            }),
            _ => None,
        }
    }

    /// How the exit status of the process that [`Self::command`] makes is read.
    pub(crate) fn convention(&self) -> Convention {
        match &self.kind {
            Kind::Ours { start: Start::Worker(_), .. } => Convention::Worker,
            Kind::Ours { start: Start::Run, .. } | Kind::Build { .. } => Convention::Run,
            Kind::Qemu { .. } => Convention::Qemu,
            Kind::Bochs(_) => Convention::Bochs,
            Kind::Native => Convention::Native,
        }
    }

    /// It boots Linux, and nothing else.
    pub(crate) fn is_linux_only(&self) -> bool {
        matches!(self.kind, Kind::Bochs(_))
    }

    /// A guest's clock tells the host's time, so that what it measures itself is a time.
    pub(crate) fn keeps_time(&self) -> bool {
        !matches!(self.kind, Kind::Bochs(_))
    }

    /// `backend`, `build`, `peer` or `native`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Ours { .. } => "backend",
            Kind::Build { .. } => "build",
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
            Kind::Build { backend, path, cpu, .. } => build::run(path, backend, cpu, guest),
            Kind::Ours { start: Start::Run, cpu } => build::run(SELF.as_ref(), &self.name, cpu, guest),
            Kind::Ours { start: Start::Worker(words), cpu } => {
                let mut command = Command::new(SELF);
                command.args(words).args([
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

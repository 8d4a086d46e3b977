//! The machine that QEMU's TCG emulates: a PC whose processor has SVM with nested paging.

use super::image::Contents;
use super::markers::Markers;
use anyhow::{Context as _, Result};
use guests::debian::{self, DefaultGuest};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";
/// Modules that make /dev/kvm in it.
const MODULES: &[&str] = &["kvm-amd"];
/// The kernel's console is for the log. The timer is not tested and the TSC not watched: both go by the host's clock,
/// which a busy host does not share evenly. A stall of the host is no stall of the guest, either.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 no_timer_check tsc=reliable nowatchdog \
                       rcupdate.rcu_cpu_stall_suppress=1 mitigations=off";
/// A boot whose console has been silent for so long hangs.
const SILENT: Duration = Duration::from_secs(30);
/// How often a machine is started that does not come up.
const ATTEMPTS: u32 = 3;
/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Lines shown of a log.
const LAST: usize = 80;

/// Size and patience.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) cpus: u32,
    pub(super) mebibytes: u32,
    /// For the command, once it runs.
    pub(super) timeout: Duration,
    /// Whether the machine's files stay.
    pub(super) keep: bool,
}

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub(super) enum LabError {
    /// The emulator is not there.
    #[error("{QEMU} is not installed (Debian: apt-get install qemu-system-x86)")]
    NoQemu,
    /// The command did not end in time.
    #[error("the command did not end in {seconds} s")]
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// The machine did not get as far as the command.
    #[error("the machine did not start the command in {ATTEMPTS} attempts\n{last}")]
    NoBegin {
        /// What the machine said last.
        last: String,
    },
    /// The machine ended before the command.
    #[error("the machine ended ({status}) without an end marker\n{last}")]
    NoEnd {
        /// QEMU's exit status.
        status: String,
        /// What machine and QEMU said last.
        last: String,
    },
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// A lab ready to run commands.
#[derive(Debug, Clone)]
pub(super) struct Lab {
    guest: DefaultGuest,
    shape: Shape,
}

impl Lab {
    /// Checks for QEMU, and obtains kernel and modules.
    pub(super) fn new(shape: Shape) -> Result<Self, LabError> {
        match Command::new(QEMU).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LabError::NoQemu),
            Err(error) => return Err(anyhow::Error::new(error).context(format!("cannot run {QEMU}")).into()),
            Ok(_) => {}
        }
        Ok(Self { guest: guest(&mut |line| super::say(line))?, shape })
    }

    /// The same with another number of processors.
    pub(super) fn with_cpus(&self, cpus: u32) -> Self {
        let mut other = self.clone();
        other.shape.cpus = cpus;
        other
    }

    /// Kernel and busybox, as in the lab, for guests of the lab's guests.
    pub(super) fn guest(&self) -> &DefaultGuest {
        &self.guest
    }

    /// Runs a command; its output goes to `output` as it comes, its exit status is returned.
    pub(super) fn run(
        &self,
        contents: &Contents,
        command: &[String],
        output: &mut dyn io::Write,
    ) -> Result<u8, LabError> {
        let token = format!("{:016x}", RandomState::new().hash_one(command));
        let files = Files::new(self.shape.keep)?;
        let image = contents.build(&self.guest, command, &token)?;
        fs::write(files.initrd(), image).context("cannot write the lab's initramfs")?;
        let mut attempt = 1;
        loop {
            let mut markers = Markers::new(&token);
            let end = self.attempt(&files, &mut markers, output)?;
            if markers.begun() && !matches!(end, End::Status(_)) {
                let held = markers.rest();
                output.write_all(held).and_then(|()| output.flush()).context("writing output")?;
            }
            match end {
                End::Status(status) => return Ok(status),
                End::Silent if attempt < ATTEMPTS => {
                    attempt += 1;
                    super::say(&format!(
                        "lab: nothing from the machine for {} s while it boots; attempt {attempt} of {ATTEMPTS}",
                        SILENT.as_secs()
                    ));
                }
                End::Silent => return Err(LabError::NoBegin { last: files.last(&markers) }),
                End::TimedOut => {
                    let seconds = self.shape.timeout.as_secs();
                    return Err(LabError::TimedOut { seconds });
                }
                End::Gone(status) => return Err(LabError::NoEnd { status, last: files.last(&markers) }),
            }
        }
    }

    fn attempt(&self, files: &Files, markers: &mut Markers, output: &mut dyn io::Write) -> Result<End> {
        let mut qemu = Ended(self.qemu(files)?);
        let pieces = read_all(qemu.0.stdout.take().context("QEMU's standard output")?);
        let (mut progress, mut log, mut begun) = (Instant::now(), 0, None);
        loop {
            let limit = match begun {
                None => SILENT.saturating_sub(progress.elapsed()),
                Some(begun) => self.shape.timeout.saturating_sub(Instant::now() - begun),
            };
            if limit.is_zero() {
                return Ok(if begun.is_some() { End::TimedOut } else { End::Silent });
            }
            match pieces.recv_timeout(limit.min(LOOK)) {
                Ok(piece) => {
                    let seen = markers.take(&piece);
                    output.write_all(&seen.output).and_then(|()| output.flush()).context("writing output")?;
                    if let Some(status) = seen.status {
                        return Ok(End::Status(status));
                    }
                    if markers.begun() {
                        begun.get_or_insert_with(Instant::now);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let length = fs::metadata(files.console()).map_or(0, |meta| meta.len());
                    if length != log {
                        (log, progress) = (length, Instant::now());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = qemu.0.wait().context("waiting for QEMU")?;
                    return Ok(End::Gone(status.to_string()));
                }
            }
        }
    }

    fn qemu(&self, files: &Files) -> Result<Child> {
        let Shape { cpus, mebibytes, .. } = self.shape;
        let file = |kind: &str, path: PathBuf| format!("{kind}{}", path.display());
        let errors = fs::File::create(files.errors()).context("cannot write QEMU's messages")?;
        let mut qemu = Command::new(QEMU);
        // q35 has the 8254 and the HPET, against which a kernel can measure a TSC that nobody tells the frequency of.
        qemu.args(["-accel", "tcg", "-cpu", "max,+svm,+npt", "-M", "q35"]);
        qemu.args(["-smp", &cpus.to_string(), "-m", &mebibytes.to_string()]);
        qemu.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.args(["-serial", &file("file:", files.console()), "-serial", "stdio"]);
        qemu.arg("-kernel").arg(&self.guest.kernel).arg("-initrd").arg(files.initrd());
        qemu.args(["-append", CMDLINE]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        qemu.spawn().with_context(|| format!("cannot run {QEMU}"))
    }
}

/// Kernel, busybox and modules of the lab's machine.
pub(crate) fn guest(progress: &mut dyn FnMut(&str)) -> Result<DefaultGuest> {
    debian::fetch_with_modules(debian::Flavour::Cloud, MODULES, progress)
        .context("cannot fetch Debian's kernel")
}

/// How an attempt ended.
#[derive(Debug)]
enum End {
    Status(u8),
    Silent,
    TimedOut,
    Gone(String),
}

/// Ends the process with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The pieces read, by a thread that ends with the stream.
fn read_all(mut from: impl io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if sender.send(bytes[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The machine's files, in a folder of their own.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    keep: bool,
}

impl Files {
    fn new(keep: bool) -> Result<Self> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("gearshift-kvm-lab-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        if keep {
            super::say(&format!("lab: the machine's files are in {}", folder.display()));
        }
        Ok(Self { folder, keep })
    }

    fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.img")
    }

    /// What the machine's kernel says.
    fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What QEMU says.
    fn errors(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The last lines of everything.
    fn last(&self, markers: &Markers) -> String {
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            // What cannot be read has nothing to tell.
            let _ = fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
            bytes
        };
        // Once the command has begun, its output has been passed on.
        let output = if markers.begun() { Vec::new() } else { markers.rest().to_vec() };
        let parts = [("QEMU", read(&self.errors())), ("console", read(&self.console())), ("output", output)];
        let mut text = String::new();
        for (name, bytes) in parts {
            for line in last_lines(&bytes) {
                text += &format!("{name}: {line}\n");
            }
        }
        text.trim_end().to_owned()
    }
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST)..].iter().map(|line| (*line).to_owned()).collect()
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing is lost if it stays.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

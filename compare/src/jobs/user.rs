//! A Linux program, natively and inside guests.
//!
//! `guests/user` is built as one static executable for the baseline x86-64, so that the same machine code runs on the
//! host and in a guest without AVX (the C library inside chooses its string functions by CPUID, though: the host gets
//! wider ones). In guests it is started by the script of an initramfs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use guests::debian::DefaultGuest;
use guests::initramfs::{Compression, Initramfs};

use super::boot::{CMDLINE_OF_SCRIPTS, INSTRUCTIONS, MEBIBYTES};
use super::{Job, Kitchen, Reading, Readings, RowSpec, Selection, Unavailable};
use crate::error::Error;
use crate::host;
use crate::process::{End, Outcome, Runner, Watch};
use crate::subject::{GuestRun, Subject};

const GROUP: &str = "user";
const TARGET: &str = "x86_64-unknown-linux-gnu";

struct Suite {
    rows: Vec<RowSpec>,
    program: PathBuf,
    /// The classes wanted, by name.
    classes: Vec<String>,
    /// For the program, on the host and in guests.
    arguments: String,
    /// Kernel and initial RAM disk with the program in it; or why there is no guest.
    guest: Result<(PathBuf, PathBuf), String>,
}

fn row(class: &str, about: &str, what: &str) -> RowSpec {
    RowSpec {
        guest: format!("{GROUP}/{class}"),
        group: GROUP,
        about: about.to_owned(),
        unit: "ns",
        what: what.to_owned(),
    }
}

/// Without the suite, or a Debian guest, the rows are there and say why they have no numbers.
pub(super) fn job(
    selection: &Selection,
    kitchen: &Kitchen<'_>,
    guest: Result<&DefaultGuest, &String>,
    say: &dyn Fn(&str),
) -> Result<Box<dyn Job>, Error> {
    let built = match kitchen.suite {
        Some(file) => Ok(file.to_owned()),
        None => build(say),
    };
    let known = built.and_then(|program| classes(&program).map(|classes| (program, classes)));
    let (program, known) = match known {
        Ok(known) => known,
        Err(reason) => {
            let names = selection.named(GROUP).unwrap_or_else(|| vec!["suite".to_owned()]);
            let rows = names.iter().map(|name| row(name, "", "")).collect();
            return Ok(Box::new(Unavailable { rows, reason }));
        }
    };
    for name in selection.named(GROUP).unwrap_or_default() {
        if !known.iter().any(|(class, _)| *class == name) {
            let known = known.iter().map(|(class, _)| format!("{GROUP}/{class}")).collect();
            return Err(Error::Guest { name: format!("{GROUP}/{name}"), known });
        }
    }
    let wanted: Vec<_> = known.into_iter().filter(|(class, _)| selection.wants(GROUP, class)).collect();
    let what = guest.map_or_else(|_| "no guest".to_owned(), |guest| format!("Debian's {}", guest.version));
    let classes: Vec<String> = wanted.iter().map(|(class, _)| class.clone()).collect();
    let arguments = format!("--millis {} {}", kitchen.millis, classes.join(" "));
    let guest = match guest {
        Ok(guest) => {
            let busybox = fs::read(&guest.busybox).map_err(Error::file("read", &guest.busybox))?;
            let bytes = fs::read(&program).map_err(Error::file("read", &program))?;
            let initrd = Initramfs::new(&busybox)
                .script(&format!("/bin/user-suite {arguments}\n"))
                .file("bin/user-suite", 0o755, bytes)
                .map(|initramfs| initramfs.build(Compression::None))
                .map_err(|error| Error::Usage(error.to_string()))?;
            Ok((guest.kernel.clone(), kitchen.scratch.file("user.img", &initrd)?))
        }
        Err(reason) => Err(reason.clone()),
    };
    let rows = wanted.iter().map(|(class, about)| row(class, about, &what)).collect();
    Ok(Box::new(Suite { rows, program, classes, arguments, guest }))
}

impl Job for Suite {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    fn refusal(&self, subject: &Subject) -> Option<String> {
        if subject.is_native() { None } else { self.guest.as_ref().err().cloned() }
    }

    fn kernel_instructions(&self) -> f64 {
        INSTRUCTIONS
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        let outcome = match &self.guest {
            Ok((kernel, initrd)) if !subject.is_native() => {
                let guest = GuestRun {
                    kernel,
                    initrd: Some(initrd),
                    cmdline: CMDLINE_OF_SCRIPTS,
                    mebibytes: MEBIBYTES,
                    until: super::boot::DONE,
                    linux: true,
                };
                runner.guest(subject, &guest, &Watch::default())?
            }
            _ => {
                let mut command = Command::new(&self.program);
                command.args(self.arguments.split(' ')).stdin(Stdio::null());
                runner.native(command)?
            }
        };
        Ok(outcome.map(|outcome| self.classes.iter().map(|class| reading(class, &outcome)).collect()))
    }
}

/// What a class's `RESULT` line says. The suite itself compares checksums. How the machine ends is no matter of a class.
fn reading(class: &str, outcome: &Outcome) -> Reading {
    let line = match line(class, &outcome.console) {
        Ok(line) => line,
        Err(failure) => return Reading::failed(format!("{failure} ({})", outcome.end.0)),
    };
    Reading {
        refusal: None,
        value: (!line.wrong).then_some(line.ns),
        failure: line.wrong.then(|| format!("wrong result: checksum {}", line.checksum)),
        answer: Some((format!("checksum={}", line.checksum), End(String::new()))),
        memory: None,
        counters: None,
        milestones: Vec::new(),
    }
}

/// A line `RESULT <class> iterations=<units> ns=<sum> best=<fastest> checksum=<sum> [WRONG]`.
#[derive(Debug, PartialEq)]
struct Line {
    /// Nanoseconds a unit took.
    ns: f64,
    checksum: String,
    wrong: bool,
}

fn line(class: &str, console: &str) -> Result<Line, String> {
    let start = format!("RESULT {class} ");
    let line = console.lines().map(str::trim_end).find(|line| line.starts_with(&start));
    let line = line.ok_or("says no result")?;
    let field =
        |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| field(name).and_then(|text| text.parse::<f64>().ok());
    match (number("iterations"), number("ns"), field("checksum")) {
        (Some(units), Some(ns), Some(checksum)) if units > 0.0 => {
            Ok(Line { ns: ns / units, checksum: checksum.to_owned(), wrong: line.ends_with("WRONG") })
        }
        _ => Err(format!("is no result: {line}")),
    }
}

/// Builds the suite into the workspace's target folder; its path, or why it cannot be.
fn build(say: &dyn Fn(&str)) -> Result<PathBuf, String> {
    let root = host::source_root();
    if !root.join("guests/user/Cargo.toml").is_file() {
        return Err("the user-space suite is built from gearshift's source tree, which is not on this host; --suite FILE \
                    names one that is built"
            .to_owned());
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = target.join("user-suite");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "user-suite", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target);
    // The baseline, whatever the user builds other things for; and a file without symbols, as it travels in the
    // initramfs.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C target-cpu=x86-64 -C strip=symbols");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").current_dir(root).stdin(Stdio::null());
    say("building the user-space suite");
    let reason = match cargo.output() {
        Ok(output) if output.status.success() => return Ok(target.join(TARGET).join("release/user-suite")),
        Ok(output) => crate::process::last_lines(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => error.to_string(),
    };
    Err(format!("the user-space suite cannot be built: {reason}; --suite FILE names one that is"))
}

/// The classes the suite has and what they do, by its usage text.
fn classes(suite: &Path) -> Result<Vec<(String, String)>, String> {
    let said = Command::new(suite).arg("--help").stdin(Stdio::null()).output();
    let output = said.map_err(|error| format!("{} cannot be run: {error}", suite.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().skip_while(|line| *line != "classes:").skip(1);
    let split = |line: &str| {
        let (name, about) = line.trim().split_once(' ')?;
        Some((name.to_owned(), about.trim().to_owned()))
    };
    let classes: Vec<_> = lines.filter_map(split).collect();
    if classes.is_empty() {
        return Err(format!("{} is no user-space suite: its --help lists no classes", suite.display()));
    }
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_results() {
        let console = "INIT\r\nRESULT calls iterations=4 ns=1000 best=200 checksum=00\r\nRESULT x\r\n\
                       RESULT y iterations=1 ns=1 best=1 checksum=01 WRONG\r\n";
        let calls = Line { ns: 250.0, checksum: "00".to_owned(), wrong: false };
        assert_eq!(line("calls", console), Ok(calls));
        assert!(line("cal", console).is_err() && line("x", console).is_err());
        assert!(line("y", console).unwrap().wrong);
    }

    #[test]
    fn what_is_no_suite_is_told() {
        assert!(classes(Path::new("/nonexistent")).unwrap_err().contains("cannot be run"));
        assert!(classes(Path::new("/bin/true")).unwrap_err().contains("no user-space suite"));
    }
}

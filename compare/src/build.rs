//! Another build of this program, which runs each guest in turn with this one.
//!
//! 1. It is spoken to by what every build documents and keeps: `probe --json` tells which backends it has, `run` runs a
//!    guest, and the exit code says how that ended. Hidden commands may change from build to build.
//! 2. So that both sides do the same before the guest's first instruction, this build's backends are started by `run`
//!    too, as soon as another build takes part.
//! 3. Both sides are told the CPU model by name: defaults may differ between builds.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::Error;
use crate::process::{Broken, End, Runner, last_lines};
use crate::subject::GuestRun;

/// Another build, which has answered.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// Its executable, from the root.
    pub(crate) path: PathBuf,
    /// Tells it from other builds.
    pub(crate) label: String,
    /// Name and version.
    pub(crate) version: String,
    entries: Vec<Entry>,
}

/// A backend of it. The other build may be older or newer: what is not told is not known.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Entry {
    name: String,
    aliases: Vec<String>,
    status: Option<String>,
    reason: String,
    cpu_models: Vec<String>,
    pub(crate) quality: Option<String>,
    pub(crate) provider: Option<String>,
}

/// What is read of `probe --json`.
#[derive(Debug, Deserialize)]
struct Probed {
    accelerators: Vec<Entry>,
}

impl Build {
    /// Asks each of the builds what it has. One that is named twice takes part once.
    ///
    /// # Errors
    /// A path that is no executable file, or one that does not answer like this program.
    pub(crate) fn ask_all(paths: &[&Path], runner: &Runner<'_>) -> Result<Vec<Self>, Error> {
        let mut all: Vec<PathBuf> = Vec::new();
        for path in paths {
            // A name without a folder is a file here, and not a program to be looked for in `PATH`.
            let path = path.canonicalize().map_err(|error| refused(path, &error.to_string()))?;
            if !all.contains(&path) {
                all.push(path);
            }
        }
        let labels = labels(&all);
        all.into_iter().zip(labels).map(|(path, label)| Self::ask(path, label, runner)).collect()
    }

    fn ask(path: PathBuf, label: String, runner: &Runner<'_>) -> Result<Self, Error> {
        let answer = |arguments: &[&str]| -> Result<String, Error> {
            let mut command = Command::new(&path);
            command.args(arguments).stdin(Stdio::null());
            match runner.native(command)? {
                Ok(outcome) if outcome.end == End("exit status 0".to_owned()) => Ok(outcome.console),
                Ok(outcome) => Err(format!("its `{}` ended with {}", arguments.join(" "), outcome.end.0)),
                Err(Broken::Failed(reason)) => Err(reason),
                Err(Broken::Stopped) => Err("interrupted".to_owned()),
            }
            .map_err(|reason| refused(&path, &reason))
        };
        let version = answer(&["--version"])?.trim().to_owned();
        if !version.starts_with("gearshift ") {
            let reason = format!("it calls itself `{}`", last_lines(&version));
            return Err(refused(&path, &reason));
        }
        let probed: Probed = serde_json::from_str(&answer(&["probe", "--json"])?)
            .map_err(|error| refused(&path, &format!("its `probe --json` is not understood: {error}")))?;
        Ok(Self { path, label, version, entries: probed.accelerators })
    }

    /// The name that its backend has beside ours.
    pub(crate) fn subject(&self, backend: &str) -> String {
        format!("{backend}@{}", self.label)
    }

    /// Its backend of the same name, or why it cannot take part.
    pub(crate) fn backend(&self, backend: &str, cpu: &str) -> Result<&Entry, String> {
        let is_it =
            |entry: &&Entry| entry.name == backend || entry.aliases.iter().any(|name| name == backend);
        let entry =
            self.entries.iter().find(is_it).ok_or_else(|| "that build has no such backend".to_owned())?;
        if entry.status.as_ref().is_some_and(|status| status != "available") {
            return Err(format!("that build says: {}", entry.reason));
        }
        // Only the models without features behind them are listed.
        let model = cpu.split([',', '+']).next().unwrap_or(cpu);
        if !entry.cpu_models.is_empty() && !entry.cpu_models.iter().any(|name| name == model) {
            let models = entry.cpu_models.join(", ");
            return Err(format!("that build has no CPU model `{model}` for it, but {models}"));
        }
        Ok(entry)
    }
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Build { path: path.to_owned(), reason: reason.to_owned() }
}

/// `gearshift run` of a build, in words that all builds understand.
pub(crate) fn run(program: &Path, backend: &str, cpu: &str, guest: &GuestRun<'_>) -> Command {
    let mut command = Command::new(program);
    let memory = format!("{}M", guest.mebibytes);
    command.args(["run", "--accel", backend, "--cpu", cpu, "--mem", &memory]);
    command.arg("--cmdline").arg(guest.cmdline).arg("--kernel").arg(guest.kernel);
    if let Some(initrd) = guest.initrd {
        command.arg("--initrd").arg(initrd);
    }
    command
}

/// How a guest ended by the exit code of `gearshift run`, as its help tells them.
pub(crate) fn end(code: i32) -> Option<String> {
    match code {
        0 => Some("power-off".to_owned()),
        14 => Some("triple fault".to_owned()),
        16 => Some("reset".to_owned()),
        code if code & 1 == 1 => Some(format!("debug exit {}", code >> 1)),
        _ => None,
    }
}

/// The shortest ends of the paths that tell them apart, and say more than this program's own name.
fn labels(paths: &[PathBuf]) -> Vec<String> {
    let end = |path: &Path, count: usize| -> OsString {
        let parts: Vec<_> = path.components().filter(|part| !matches!(part, Component::RootDir)).collect();
        let kept: PathBuf = parts[parts.len().saturating_sub(count)..].iter().collect();
        kept.into_os_string()
    };
    let label = |path: &PathBuf| {
        let longest = path.components().count();
        let count = (1..longest).find(|count| {
            let label = end(path, *count);
            let shared = paths.iter().filter(|other| end(other, *count) == label).count() > 1;
            !shared && label != "gearshift"
        });
        end(path, count.unwrap_or(longest)).to_string_lossy().into_owned()
    };
    paths.iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_builds_apart() {
        let of = |paths: &[&str]| labels(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/base/gearshift-5c27138"]), ["gearshift-5c27138"]);
        assert_eq!(of(&["/t/release/gearshift"]), ["release/gearshift"]);
        assert_eq!(
            of(&["/a/release/gearshift", "/b/release/gearshift", "/old"]),
            ["a/release/gearshift", "b/release/gearshift", "old"]
        );
        assert_eq!(of(&["/gearshift", "/a/gearshift"]), ["gearshift", "a/gearshift"]);
    }

    #[test]
    fn what_another_build_lacks_is_said() {
        let json = r#"{ "format": 9, "accelerators": [
            { "name": "jit", "aliases": ["tcg"], "status": "available", "cpu_models": ["x86-64-v2"], "new": 1 },
            { "name": "kvm", "status": "absent", "reason": "no /dev/kvm" }, { "name": "bare" } ] }"#;
        let probed: Probed = serde_json::from_str(json).unwrap();
        let (path, label, version) = ("/x".into(), "old".to_owned(), String::new());
        let build = Build { path, label, version, entries: probed.accelerators };
        assert!(build.backend("tcg", "x86-64-v2,-avx").is_ok() && build.backend("bare", "any").is_ok());
        let reason = |backend, cpu| build.backend(backend, cpu).unwrap_err();
        assert!(reason("interp", "host").contains("no such backend"));
        assert!(reason("kvm", "host").contains("no /dev/kvm"));
        assert!(reason("jit", "host").contains("no CPU model `host`"));
        assert_eq!(build.subject("jit"), "jit@old");
    }

    #[test]
    fn exit_codes_are_ends() {
        let ends = [0, 14, 16, 7].map(|code| end(code).unwrap());
        assert_eq!(ends, ["power-off", "triple fault", "reset", "debug exit 3"]);
        assert_eq!([2, 22, 24].map(end), [None, None, None]);
    }
}

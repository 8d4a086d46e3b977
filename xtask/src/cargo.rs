//! What cargo builds, by its own account.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The cargo that runs this program.
pub(crate) fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A program that was built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// Of its target: the test's or binary's name.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Built with the test harness.
    pub(crate) test: bool,
}

/// Runs `cargo` with these arguments (a build); the programs it made, or found made.
pub(crate) fn executables(arguments: &[&str]) -> Result<Vec<Executable>> {
    let output = Command::new(program())
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// `gearshift`, as users have it; builds it.
pub(crate) fn gearshift() -> Result<PathBuf> {
    let found = executables(&["build", "--release", "--package", "gearshift"])?;
    let gearshift = found.into_iter().find(|executable| executable.name == "gearshift");
    Ok(gearshift.context("cargo built no gearshift")?.path)
}

/// What we read of cargo's messages ("External tools" in its book).
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

fn parse(messages: &str) -> Result<Vec<Executable>> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("cargo wrote something unexpected")?;
        if let Message { reason, executable: Some(path), target: Some(target), profile: Some(profile) } =
            message
            && reason == "compiler-artifact"
        {
            found.push(Executable { name: target.name, path, test: profile.test });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_other_messages() {
        let messages = r#"{"reason":"build-script-executed","package_id":"x"}
{"reason":"compiler-artifact","target":{"name":"accel_api","kind":["lib"]},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kvm","kind":["test"]},"profile":{"test":true},"executable":"/t/kvm-1"}
{"reason":"build-finished","success":true}"#;
        let expected = Executable { name: "kvm".to_owned(), path: "/t/kvm-1".into(), test: true };
        assert_eq!(parse(messages).unwrap(), [expected]);
        assert!(parse("no json").is_err());
    }
}

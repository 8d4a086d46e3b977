//! Other programs that run the same guests, as they are named on the command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The programs.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
const BOCHS: &str = "bochs";

/// Other programs that can run the same guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// QEMU's TCG
    QemuTcg,
    /// QEMU on KVM
    QemuKvm,
    /// Bochs; Linux guests only, booted from a disk
    Bochs,
    /// Another build of this program: the path of its executable
    Gearshift(PathBuf),
}

impl Peer {
    /// As on the command line.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::QemuTcg => "qemu-tcg".to_owned(),
            Self::QemuKvm => "qemu-kvm".to_owned(),
            Self::Bochs => "bochs".to_owned(),
            Self::Gearshift(path) => format!("{GEARSHIFT}={}", path.display()),
        }
    }

    /// The path of another build.
    pub(crate) fn build(&self) -> Option<&Path> {
        match self {
            Self::Gearshift(path) => Some(path),
            _ => None,
        }
    }

    /// Of one that is installed, and not named by path.
    pub(crate) fn program(&self) -> &'static str {
        if *self == Self::Bochs { BOCHS } else { QEMU }
    }

    /// What it calls its version.
    pub(crate) fn version(&self) -> Option<String> {
        let argument = if *self == Self::Bochs { "--help" } else { "--version" };
        let output = Command::new(self.program()).arg(argument).stdin(Stdio::null()).output().ok()?;
        // Bochs writes to either, within a frame.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().map(str::trim).find(|line| line.contains(char::is_numeric)).map(str::to_owned)
    }
}

/// Comes before the path of another build.
const GEARSHIFT: &str = "gearshift";
/// How that is shown.
const GEARSHIFT_PATH: &str = "gearshift=PATH";

/// Reads a [`Peer`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerParser;

impl TypedValueParser for PeerParser {
    type Value = Peer;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Peer, clap::Error> {
        match value.as_bytes() {
            b"qemu-tcg" => return Ok(Peer::QemuTcg),
            b"qemu-kvm" => return Ok(Peer::QemuKvm),
            b"bochs" => return Ok(Peer::Bochs),
            other => {
                let path = other.strip_prefix(GEARSHIFT.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
                if let Some(path @ [_, ..]) = path {
                    return Ok(Peer::Gearshift(OsStr::from_bytes(path).into()));
                }
            }
        }
        let mut error = clap::Error::new(ErrorKind::InvalidValue).with_cmd(command);
        if let Some(argument) = argument {
            error.insert(ContextKind::InvalidArg, ContextValue::String(argument.to_string()));
        }
        let known = possible_values().map(|value| value.get_name().to_owned()).collect();
        error.insert(ContextKind::InvalidValue, ContextValue::String(value.to_string_lossy().into_owned()));
        error.insert(ContextKind::ValidValue, ContextValue::Strings(known));
        Err(error)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(possible_values()))
    }
}

fn possible_values() -> impl Iterator<Item = PossibleValue> {
    [
        ("qemu-tcg", "QEMU's TCG"),
        ("qemu-kvm", "QEMU on KVM"),
        ("bochs", "Bochs; Linux guests only, booted from a disk"),
        (
            GEARSHIFT_PATH,
            "Another build of this program, on each of the same backends; may be given several times",
        ),
    ]
    .into_iter()
    .map(|(name, help)| PossibleValue::new(name).help(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Peer, clap::Error> {
        PeerParser.parse_ref(&clap::Command::new("x"), None, value.as_ref())
    }

    #[test]
    fn every_peer_is_named_as_it_is_parsed() {
        let build = Peer::Gearshift("/a/b=c".into());
        for peer in [Peer::QemuTcg, Peer::QemuKvm, Peer::Bochs, build] {
            assert_eq!(parse(&peer.name()).unwrap(), peer);
        }
        let shown: Vec<_> = possible_values().map(|value| value.get_name().to_owned()).collect();
        assert!(shown.iter().all(|name| parse(name).is_ok()), "{shown:?}");
    }

    #[test]
    fn others_are_refused() {
        for value in ["vax", "gearshift", "gearshift=", "gearshiftx=/a", ""] {
            assert_eq!(parse(value).unwrap_err().kind(), ErrorKind::InvalidValue, "{value}");
        }
    }
}

//! What a backend says of itself on this host, before anything is made.

use std::fmt;

/// Outcome of probing a backend.
#[derive(Clone, PartialEq, Debug)]
pub enum Probe {
    /// It works here.
    Available(Available),
    /// This host does not have what it needs.
    Absent(Absent),
    /// What it needs is there and does not work.
    Broken(Broken),
}

/// A backend that works here, and how well.
#[derive(Clone, PartialEq, Debug)]
pub struct Available {
    /// How it ranks.
    pub quality: Quality,
    /// One line for the user: what makes it as good, or as bad, as it is.
    pub detail: String,
    /// What stands behind it, where the host has several of the kind, for example a kernel module's name.
    pub provider: Option<String>,
    /// Its speed, where it was measured.
    pub measured: Option<Measured>,
}

impl Available {
    /// A backend that needs no measuring.
    pub fn of(quality: Quality, detail: impl Into<String>) -> Self {
        Self { quality, detail: detail.into(), provider: None, measured: None }
    }
}

/// Speed of a backend, measured with the same short loop everywhere.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// Nanoseconds an instruction in ring 0.
    pub ring0_ns: f64,
    /// Nanoseconds an instruction in ring 3.
    pub ring3_ns: f64,
    /// Nanoseconds an instruction in this process, without any guest.
    pub native_ns: f64,
    /// Nanoseconds from the guest to the VMM and back, for a port access.
    pub exit_ns: f64,
}

/// What is missing, and what helps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    /// Kind, for programs.
    pub kind: AbsentKind,
    /// What is missing, in one line.
    pub reason: String,
    /// What the user can do about it, if anything.
    pub remedy: Option<String>,
}

/// Kinds of [`Absent`].
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AbsentKind {
    /// The device is not there, or has no hardware behind it.
    NoDevice,
    /// It is there, and this user may not use it.
    NoPermission,
    /// Another file is in the device's place.
    WrongDevice,
    /// It speaks another version of its interface.
    Version,
    /// It lacks something that is needed.
    MissingCapability,
    /// Somebody else has it, or the host is short of what it takes.
    Busy,
}

impl AbsentKind {
    /// Its name in machine-readable output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoDevice => "no-device",
            Self::NoPermission => "no-permission",
            Self::WrongDevice => "wrong-device",
            Self::Version => "version",
            Self::MissingCapability => "missing-capability",
            Self::Busy => "busy",
        }
    }
}

/// What does not work, and what helps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// What does not work, in one line.
    pub reason: String,
    /// What the user can do about it, if anything.
    pub remedy: Option<String>,
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        self.provider.as_ref().map_or(Ok(()), |provider| write!(f, "; provider {provider}"))
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The reason in one line, without the remedy.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available(available) => available.fmt(f),
            Self::Absent(absent) => absent.fmt(f),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

impl Probe {
    /// What the user can do where it does not work.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Available(_) => None,
            Self::Absent(Absent { remedy, .. }) | Self::Broken(Broken { remedy, .. }) => remedy.as_deref(),
        }
    }
}

/// Rank of a backend on this host; the best is the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Quality {
    /// Works, no faster than software would be (for example KVM whose provider emulates ring 0).
    Degraded,
    /// Interprets.
    Interpreted,
    /// Translates.
    Translated,
    /// Runs on the hardware.
    Hardware,
}

impl Quality {
    /// Its name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Degraded => "degraded",
            Self::Interpreted => "interpreted",
            Self::Translated => "translated",
            Self::Hardware => "hardware",
        }
    }
}

/// Nanoseconds as people write them: `0.31 ns`, `8.2 us`.
pub fn duration_text(ns: f64) -> String {
    let (value, unit) = match ns {
        ..999.5 => (ns, "ns"),
        ..999_500.0 => (ns / 1e3, "us"),
        _ => (ns / 1e6, "ms"),
    };
    let digits = match value {
        ..0.995 => 2,
        ..9.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A number as people write it: `1_234_567`.
pub fn count_text(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_groups_of_three_digits() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1_000"), (1_234_567, "1_234_567")] {
            assert_eq!(count_text(count), text);
        }
    }

    #[test]
    fn durations_have_two_digits_that_count() {
        for (ns, text) in [
            (0.312, "0.31 ns"),
            (1.06, "1.1 ns"),
            (9.96, "10 ns"),
            (999.6, "1.0 us"),
            (8_240.0, "8.2 us"),
            (52_300.0, "52 us"),
            (1.2e6, "1.2 ms"),
        ] {
            assert_eq!(duration_text(ns), text);
        }
    }

    #[test]
    fn a_line_tells_the_reason_and_the_provider() {
        let mut available = Available::of(Quality::Degraded, "ring 0 is emulated");
        available.provider = Some("kvm_x".to_owned());
        assert_eq!(Probe::Available(available).to_string(), "ring 0 is emulated; provider kvm_x");
    }

    #[test]
    fn quality_ranks() {
        assert!(Quality::Hardware > Quality::Translated && Quality::Interpreted > Quality::Degraded);
    }
}

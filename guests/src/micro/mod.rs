//! Bare-metal benchmark guests, one a class of work.
//!
//! Each is an ELF64 with a PVH entry note that runs on the processor alone: of devices, all use the serial port for their
//! one line of output ([`Report`]) and the power-off port. The command line `n=COUNT` sets the iterations.
//! What it computes is folded into a checksum, which [`Micro::expected`] computes again in Rust, so a benchmark
//! of a wrong processor is noticed. Those about devices and interrupts use what every PC has: the serial port, the IOAPIC
//! and the local APIC.

mod model;

use std::str::FromStr;

/// One benchmark guest.
#[derive(Debug, Clone, Copy)]
pub struct Micro {
    /// Short name, also the one in its report.
    pub name: &'static str,
    /// What it measures, for people.
    pub about: &'static str,
    /// Iterations where the command line does not say.
    pub iterations: u64,
    /// The guest's file.
    pub elf: &'static [u8],
}

/// Every benchmark guest, in the order of reports.
pub fn all() -> impl Iterator<Item = Micro> {
    crate::assembled::MICRO.iter().map(|&(name, iterations, elf)| Micro {
        name,
        about: model::about(name),
        iterations,
        elf,
    })
}

/// The guest of that name.
pub fn find(name: &str) -> Option<Micro> {
    all().find(|micro| micro.name == name)
}

impl Micro {
    /// The checksum a right processor reports after `iterations` (at least 1, as the guest counts).
    pub fn expected(&self, iterations: u64) -> u64 {
        model::checksum(self.name, iterations.max(1))
    }

    /// Why the guest says on its console that it cannot run here, if it does: the processor lacks what it is about. Then
    /// it powers off without a [`Report`], and nothing has failed.
    pub fn unavailable<'a>(&self, console: &'a str) -> Option<&'a str> {
        crate::unavailable(self.name, console)
    }
}

/// The line a guest prints: `RESULT <name> iterations=<n> tsc=<cycles> checksum=<16 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name of the guest.
    pub name: String,
    /// Iterations it ran.
    pub iterations: u64,
    /// TSC cycles they took.
    pub tsc: u64,
    /// What it computed.
    pub checksum: u64,
}

/// A line that is not a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a RESULT line of a benchmark guest")]
pub struct NotAReport;

impl FromStr for Report {
    type Err = NotAReport;

    fn from_str(line: &str) -> Result<Self, NotAReport> {
        let mut words = line.split_whitespace();
        if words.next() != Some("RESULT") {
            return Err(NotAReport);
        }
        let name = words.next().ok_or(NotAReport)?.to_owned();
        let mut field = |key: &str, radix| {
            let value = words.next()?.strip_prefix(key)?.strip_prefix('=')?;
            u64::from_str_radix(value, radix).ok()
        };
        let iterations = field("iterations", 10).ok_or(NotAReport)?;
        let tsc = field("tsc", 10).ok_or(NotAReport)?;
        let checksum = field("checksum", 16).ok_or(NotAReport)?;
        Ok(Self { name, iterations, tsc, checksum })
    }
}

impl Report {
    /// The first report in a guest's console output.
    pub fn find(console: &str) -> Option<Self> {
        console.lines().find_map(|line| line.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_back() {
        let text = "\r\nRESULT int iterations=12 tsc=3456 checksum=00000000deadbeef\r\n";
        let report = Report { name: "int".into(), iterations: 12, tsc: 3456, checksum: 0xdead_beef };
        assert_eq!(Report::find(text), Some(report));
    }

    #[test]
    fn other_lines_are_not_reports() {
        for line in
            ["", "RESULT", "RESULT int iterations=1", "RESULT int tsc=1 iterations=1 checksum=1", "int"]
        {
            assert_eq!(line.parse::<Report>(), Err(NotAReport), "{line}");
        }
    }

    #[test]
    fn what_cannot_run_says_so() {
        let avx2 = find("avx2").unwrap();
        let console = "x\r\nRESULT avx2 unavailable: the processor has no AVX2\r\n";
        assert_eq!(avx2.unavailable(console), Some("the processor has no AVX2"));
        assert_eq!(find("int").unwrap().unavailable(console), None);
        assert_eq!(Report::find(console), None);
        assert_eq!(avx2.unavailable("RESULT avx2 iterations=1 tsc=2 checksum=3\n"), None);
    }

    #[test]
    fn names_are_unique_and_described() {
        let names: Vec<_> = all().map(|m| m.name).collect();
        for (n, name) in names.iter().enumerate() {
            assert!(!names[..n].contains(name), "{name}");
            assert!(!find(name).unwrap().about.is_empty());
        }
    }

    #[test]
    fn models_depend_on_their_count() {
        for micro in all() {
            assert_ne!(micro.expected(3), micro.expected(4), "{}", micro.name);
        }
    }
}
